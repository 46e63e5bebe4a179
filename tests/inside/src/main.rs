// SPDX-License-Identifier: GPL-2.0-only

//! The first process of the Linux in QEMU.

use std::io::Write;
use std::os::fd::AsFd;
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use inside::beside::{self, Beside, lead_terminal, open_terminal, own_terminal};
use inside::cases::{self, Bench, Outcome, WITH_LDT, with_ldt};
use inside::guest::exit_code;
use inside::host::{self, Control, KernelLog, LAUNCHER};
use inside::standin::{self, STAND_IN};
use nix::sys::termios;

fn main() {
    // Only the first process may do what follows; a case may start another for itself.
    if std::process::id() != 1 {
        if std::env::args().nth(1).as_deref() == Some(WITH_LDT) {
            match with_ldt() {
                Ok(reason) => println!("{reason}"),
                Err(error) => println!("inside: {error:#}"),
            }
            return;
        }
        let words: Vec<String> = std::env::args().skip(1).collect();
        if let Some((STAND_IN, rest)) = words.split_first().map(|(w, rest)| (w.as_str(), rest)) {
            std::process::exit(standin::main(rest));
        }
        if let Some((beside::LEADER, rest)) =
            words.split_first().map(|(w, rest)| (w.as_str(), rest))
        {
            std::process::exit(beside::lead(rest).unwrap_or_else(|error| {
                eprintln!("inside: {error:#}\r");
                3
            }));
        }
        eprintln!("inside: this is /init of the tests' machine, and nothing else");
        std::process::exit(2);
    }
    if let Err(error) = work() {
        // The kernel's log is what is left when the control channel is not.
        host::mark(&format!("{error:#}"));
        println!("inside: {error:#}");
    }
    leave();
}

/// Does what the control channel says, line by line, until it ends.
fn work() -> Result<()> {
    host::mount_all()?;
    let mut log = KernelLog::open()?;
    let boot = log.new_records()?;
    let mut bench = Bench {
        control: Control::open()?,
        log,
        boot,
        words: Vec::new(),
        unscanned: Vec::new(),
    };
    let facts = host::facts(&bench.boot);
    bench.control.say("ready", &facts)?;
    let mut beside = Beside::default();
    while let Some(line) = bench.control.hear()? {
        let mut words = line.split(' ');
        match words.next() {
            Some("case") => {
                let name = words.next().unwrap_or_default();
                bench.words = words.map(str::to_owned).collect();
                run_case(&mut bench, name)?;
            }
            Some("guest") => {
                let status = run_guest(words).unwrap_or_else(|error| {
                    host::mark(&format!("{error:#}"));
                    complain(&format!("{error:#}"));
                    3
                });
                std::mem::take(&mut beside).stop(&mut bench.control.voice()?)?;
                bench.control.say("exit", &status.to_string())?;
            }
            Some("beside") => {
                let number = words.next().and_then(|word| word.parse().ok());
                let number = number.with_context(|| format!("which Guest? {line:?}"))?;
                let started = beside.start(number, words, bench.control.voice()?);
                if let Err(error) = started {
                    host::mark(&format!("{error:#}"));
                    complain(&format!("{error:#}"));
                    bench.control.say("over", &format!("{number} 3"))?;
                }
            }
            Some("sections") => bench.control.say("note", &host::module_sections()?)?,
            Some("quit") => return Ok(()),
            _ => bail!("the control channel says {line:?}"),
        }
    }
    Ok(())
}

/// Runs one case and says how it went. A panic is a failure like any other.
fn run_case(bench: &mut Bench, name: &str) -> Result<()> {
    host::mark(&format!("case {name}"));
    bench.control.say("start", name)?;
    let Some(case) = cases::find(name) else {
        return bench.control.say("fail", "there is no such case");
    };
    let run = panic::catch_unwind(AssertUnwindSafe(|| case.run(bench)));
    let outcome = run.unwrap_or_else(|_| Outcome::Fail("the case itself panicked".to_owned()));
    match outcome {
        Outcome::Pass => bench.control.say("pass", ""),
        Outcome::Skip(why) => bench.control.say("skip", &why),
        Outcome::Fail(why) => bench.control.say("fail", &why),
    }
}

/// Gives the user a Guest: `terminal` or `pipe`, `shell` or `alone`, then the Launcher's words.
/// Comes back with the Launcher's exit status.
fn run_guest<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<i32> {
    let mode = words
        .next()
        .context("how shall the user talk to the Guest?")?;
    let shell = words.next().context("with the Host's shell or alone?")?;
    host::load_module()?;
    if shell == "shell" {
        start_shell()?;
    }
    let mut command = Command::new(LAUNCHER);
    command.args(words);
    let waits_for = match mode {
        "terminal" => {
            let terminal = open_terminal("/dev/hvc0")?;
            command.stdin(terminal.try_clone()?);
            command.stdout(terminal.try_clone()?);
            command.stderr(terminal.try_clone()?);
            lead_terminal(&terminal)?;
            Some(terminal)
        }
        "pipe" => {
            command
                .stdin(host::open_port("input")?)
                .stdout(host::open_port("output")?)
                .stderr(host::open_port("errors")?);
            None
        }
        other => bail!("no way to talk to a Guest is called {other:?}"),
    };
    let status = command
        .status()
        .context("the Launcher is not in this machine")?;
    if let Some(terminal) = waits_for {
        // What is still on its way to the user goes first.
        termios::tcdrain(terminal.as_fd())?;
    }
    Ok(exit_code(status))
}

/// Keeps a shell of the Host on its own terminal, starting it again when it ends.
fn start_shell() -> Result<()> {
    thread::spawn(move || -> Result<()> {
        loop {
            // The end of a session hangs up its terminal, so each shell gets it opened anew.
            let terminal = open_terminal("/dev/hvc1")?;
            writeln!(
                &terminal,
                "\r\nThe Host's shell. `lguest 64 /guests/guest` starts a Guest.\r"
            )?;
            let mut command = Command::new("/bin/busybox");
            command.args(["sh", "-l"]).current_dir("/");
            command
                .env("PATH", "/bin")
                .env("HOME", "/")
                .env("PS1", "host# ");
            command
                .stdin(terminal.try_clone()?)
                .stdout(terminal.try_clone()?);
            command.stderr(terminal.try_clone()?);
            own_terminal(&mut command);
            if let Err(error) = command.status() {
                writeln!(&terminal, "no shell: {error}\r")?;
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
    });
    Ok(())
}

/// Tells the user what went wrong, wherever there may be a user.
fn complain(text: &str) {
    let places = [host::open_port("errors"), open_terminal("/dev/hvc0")];
    for mut place in places.into_iter().flatten() {
        // There is no third place to say that this failed.
        let _ = writeln!(place, "{text}\r");
    }
}

/// Ends the machine through QEMU's exit device.
fn leave() -> ! {
    // SAFETY: The process may use any port it asked for, and this one is asked for first; QEMU's
    // isa-debug-exit listens there and ends the machine at the write. Nothing is left running.
    unsafe {
        if libc::ioperm(0xf4, 4, 1) == 0 {
            std::arch::asm!("out dx, eax", in("dx") 0xf4_u16, in("eax") 0_u32);
        }
    }
    // Without the port: the kernel's own way, which needs -no-reboot.
    // SAFETY: The call takes no pointers; the first process may reboot.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}
