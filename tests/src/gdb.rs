// SPDX-License-Identifier: GPL-2.0-only

//! gdb at a Host that runs a Guest.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::{Artifacts, place, root};
use crate::control::Message;
use crate::machine::{Machine, Settings};
use crate::report::Report;

/// What the section is called.
pub const SECTION: &str = "gdb";
/// The label in the Switcher behind which the Host is itself again.
const STOP: &str = "back_in_host";
/// Where the second stop is.
const SHADOW: &str = "book/host/demand.md";

/// Boots a Host, and gives it with a gdb that has its symbols and waits at the first Guest exit.
/// What the Guest prints goes into a file.
///
/// # Errors
///
/// When there is no gdb, or the Host does not come up.
pub fn start(artifacts: &Artifacts, log: &Path, console: &Path) -> Result<(Machine, Command)> {
    ensure!(
        Command::new("gdb").arg("--version").output().is_ok(),
        "there is no gdb here; on Debian and Ubuntu: apt-get install gdb"
    );
    artifacts.complete()?;
    let kernel = place("KDIR")?.join("vmlinux");
    ensure!(kernel.is_file(), "there is no {}", kernel.display());
    let module = artifacts.module.as_deref().context("no module")?;

    let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, log);
    settings.debugger = true;
    // The symbols of a kernel that moves itself about at boot would be in the wrong place.
    settings.append = "nokaslr".to_owned();
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(Duration::from_secs(180))?;
    machine.tell("sections")?;
    let sections = match machine.hear(Duration::from_secs(60))? {
        Message::Note(text) => text,
        other => bail!("the machine says {other:?}"),
    };
    // The Guest starts when gdb lets the processors go on.
    machine.pause()?;
    machine.tell("guest pipe alone 64 /guests/guest")?;
    for stream in [&machine.output, &machine.errors] {
        copy_into(stream.try_clone()?, console)?;
    }

    let script = script(&kernel, module, &sections, &machine.debugger());
    let path = machine.folder().join("commands");
    fs::write(&path, script)?;
    let mut gdb = Command::new("gdb");
    gdb.arg("-q").arg("-x").arg(path).current_dir(root());
    Ok((machine, gdb))
}

/// What gdb is told first.
fn script(kernel: &Path, module: &Path, sections: &str, socket: &Path) -> String {
    let words: Vec<&str> = sections.split(' ').collect();
    // gdb wants the sections that are in memory while the module runs.
    let loaded = words.chunks_exact(2).filter(|pair| {
        let name = pair[0];
        [".text", ".rodata", ".data", ".bss"].contains(&name) || name.starts_with(".text.")
    });
    let at: String = loaded
        .map(|pair| format!(" -s {} {}", pair[0], pair[1]))
        .collect();
    let (kernel, module, socket) = (kernel.display(), module.display(), socket.display());
    let python = root().join("tests/gdb/lguest.py");
    let python = python.display();
    format!(
        "set confirm off\nset pagination off\nset print thread-events off\n\
         file {kernel}\nadd-symbol-file {module}{at}\nsource {python}\n\
         target remote {socket}\nbreak {STOP}\ncommands\nsilent\nguest-why\nchapter\nend\n\
         continue\n"
    )
}

/// Copies what a channel brings to the end of a file, in a thread of its own.
fn copy_into(mut stream: UnixStream, path: &Path) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    thread::spawn(move || io::copy(&mut stream, &mut file));
    Ok(())
}

/// Has gdb stop at a Guest exit, and demands the trap, the registers and the lines.
///
/// # Errors
///
/// When the report cannot be kept.
pub fn test(report: &mut Report) -> Result<()> {
    let name = "guest-exit";
    if !report.wants(SECTION, name) {
        return Ok(());
    }
    report.section("gdb: the Host stopped at a Guest exit");
    let full = format!("{SECTION}/{name}");
    let begun = Instant::now();
    let mut said = String::new();
    let result = drive(report, &mut said).and_then(|()| check(&said));
    let log = report.keep(SECTION, name, said.as_bytes())?;
    match result {
        Ok(why) => {
            report.remark(&why);
            report.pass(&format!("{full} ({:.1} s)", begun.elapsed().as_secs_f32()));
        }
        Err(error) => report.fail(&full, &format!("{error:#}"), &log),
    }
    Ok(())
}

fn drive(report: &Report, said: &mut String) -> Result<()> {
    let artifacts = Artifacts::collect()?;
    let log = report.log_path(SECTION, "boot");
    let console = report.log_path(SECTION, "console");
    let _ = fs::remove_file(&console);
    let (machine, mut gdb) = start(&artifacts, &log, &console)?;
    // The second stop is at another line, by a breakpoint in a chapter.
    let line = line_of(SHADOW, "match walk(&mut self.tables(), root, va, fault) {")?;
    gdb.args(["-batch", "-nx"]);
    for words in [
        "guest-regs",
        "backtrace 8",
        "continue 12",
        "guest-x $rip 2",
        &format!("chapter-break {SHADOW}:{line}"),
        "delete 1",
        "continue",
        "chapter",
    ] {
        gdb.arg("-ex").arg(words);
    }
    let output = Command::new("timeout")
        .arg("300")
        .arg(gdb.get_program())
        .args(gdb.get_args())
        .current_dir(root())
        .output()?;
    said.push_str(&String::from_utf8_lossy(&output.stdout));
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    drop(machine);
    Ok(())
}

/// The number of the only line of a chapter that is this.
fn line_of(chapter: &str, text: &str) -> Result<usize> {
    let lines = fs::read_to_string(root().join(chapter))?;
    let mut found = (1..)
        .zip(lines.lines())
        .filter(|(_, line)| line.trim() == text);
    match (found.next(), found.next()) {
        (Some((number, _)), None) => Ok(number),
        _ => bail!("{chapter} has not exactly one line {text:?}"),
    }
}

/// Whether all is said that should be; gives why the Guest came out.
fn check(said: &str) -> Result<String> {
    let out: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("The Guest is out: trap "))
        .collect();
    let [first, _, ..] = out.as_slice() else {
        bail!("gdb does not stop at two exits:\n{said}");
    };
    let rip = first
        .rsplit("0x")
        .next()
        .unwrap_or("")
        .trim_end_matches('.');
    ensure!(
        said.contains(&format!("rip 0x{rip:0>16}")),
        "guest-regs has another RIP than {rip}:\n{said}"
    );
    let switcher = line_of("book/switcher/switcher.md", "back_in_host:")? + 1;
    let call = line_of(
        "book/host/run-loop.md",
        "here.run_guest_once(&mut vcpu.regs, &mut vcpu.fpu);",
    )?;
    let fault = line_of(SHADOW, "match walk(&mut self.tables(), root, va, fault) {")?;
    for wanted in [
        format!("book/switcher/switcher.md:{switcher}, in {STOP}\n"),
        format!("book/host/run-loop.md:{call}, in "),
        format!("at book/host/run-loop.md:{call}\n"),
        format!("{SHADOW}:{fault}, in demand_page\n"),
    ] {
        ensure!(
            said.contains(&wanted),
            "gdb does not say {wanted:?}:\n{said}"
        );
    }
    Ok((*first).to_owned())
}
