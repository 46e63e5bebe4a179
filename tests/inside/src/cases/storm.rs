// SPDX-License-Identifier: GPL-2.0-only

//! What cannot be masked: NMIs and machine checks, while a Guest runs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::guests::{OFF, pin, time_to_die, unpin};
use super::{Bench, NotHere, unexpected};
use crate::guest::{Guest, patience};
use crate::host;
use crate::protocol::Injection;

/// QEMU gives NMIs to the processors whose local interrupt 1 is an NMI. Linux sets that up on the
/// first one only, so that is where the Guest has to be.
const NMI_CPU: usize = 0;

/// NMIs, one by one, that must have come to the processor that the Guest runs on.
const NMIS: u64 = 300;

/// None may be lost: so they come slowly, each after the one before has been dealt with.
pub fn nmi(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = Guest::probe(&["case=work"])?;
    guest.wait_for("working")?;
    pin(guest.pid(), NMI_CPU)?;
    let before = host::nmi_count(NMI_CPU)?;
    let mut came = 0;
    for injected in 1..=NMIS {
        ensure!(guest.alive()?, "the Guest has ended");
        bench.control.inject(Injection::Nmi { count: 1 })?;
        // QEMU drops an NMI while one is pending. Here none is, so each must come.
        let end = Instant::now() + patience();
        while came < injected && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
            came = host::nmi_count(NMI_CPU)? - before;
        }
        // One that is dropped on the way from the Guest to the Host would be missing here.
        ensure!(
            came == injected,
            "of {injected} NMIs {came} reached the Host"
        );
    }
    bench.control.say("note", &format!("{came} NMIs came"))?;
    all_right(guest)?;
    host::wait_until_free()
}

/// Has the Guest of `case=work` or `case=storm` come to its end, which must be a good one.
fn all_right(mut guest: Guest) -> Result<()> {
    if guest.alive()? {
        guest.send(b"enough\n")?;
    }
    guest
        .finish()?
        .expect_code(OFF)?
        .expect_output("good: seed 1, all values right")?;
    Ok(())
}

/// How often a Guest and the Switcher must have been hit by what is injected.
const HITS: u64 = 50;

/// What was hit.
#[derive(Debug, Default)]
struct Hits {
    guest: u64,
    switcher: u64,
}

impl Hits {
    /// By the module's counters of `nmi` or `mce`.
    fn of(kind: &str) -> Result<Self> {
        Ok(Self {
            guest: host::counter(&format!("{kind}_in_guest"))?,
            switcher: host::counter(&format!("{kind}_in_switcher"))?,
        })
    }

    fn since(self, before: &Self) -> Self {
        Self {
            guest: self.guest - before.guest,
            switcher: self.switcher - before.switcher,
        }
    }
}

/// Calls `inject`, which gives how many it injected, until Guest and Switcher have both been hit
/// [`HITS`] times and `least` were injected; gives what was hit and how many were injected.
fn until_both_are_hit(
    guest: &mut Guest,
    kind: &str,
    least: u64,
    mut inject: impl FnMut() -> Result<u64>,
) -> Result<(Hits, u64)> {
    let before = Hits::of(kind)?;
    let end = Instant::now() + patience();
    let mut injected = 0;
    loop {
        injected += inject()?;
        let hits = Hits::of(kind)?.since(&before);
        let enough = hits.guest >= HITS && hits.switcher >= HITS && injected >= least;
        if enough || !guest.alive()? || Instant::now() > end {
            return Ok((hits, injected));
        }
    }
}

/// Checks that both were hit.
fn expect_both(hits: &Hits, injected: u64) -> Result<()> {
    ensure!(
        hits.guest >= HITS && hits.switcher >= HITS,
        "{injected} injections: the Guest was hit {} times, the Switcher {}; {HITS} each were \
         wanted",
        hits.guest,
        hits.switcher
    );
    Ok(())
}

/// As fast as QEMU takes them, while the Guest does everything that leads through the Switcher.
pub fn nmi_storm(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = Guest::probe(&["case=storm"])?;
    guest.wait_for("working")?;
    pin(guest.pid(), NMI_CPU)?;
    let before = host::nmi_count(NMI_CPU)?;
    let (hits, injected) = until_both_are_hit(&mut guest, "nmi", 10_000, || {
        bench.control.inject(Injection::Nmi { count: 500 })?;
        Ok(500)
    })?;
    let came = host::nmi_count(NMI_CPU)? - before;
    let Hits {
        guest: in_guest,
        switcher,
    } = hits;
    bench.control.say(
        "note",
        &format!(
            "{injected} injected, {came} came: {in_guest} to the Guest, {switcher} to the Switcher"
        ),
    )?;
    all_right(guest)?;
    expect_both(&hits, injected)?;
    // One of each may be passed on together; none may be kept.
    ensure!(
        came >= in_guest.max(switcher),
        "{in_guest} and {switcher} were noted, but only {came} reached the Host"
    );
    host::wait_until_free()
}

/// MCG_STATUS: a machine check is in progress, and the program that it interrupted can go on.
pub(super) const CAN_GO_ON: u64 = 1 << 2 | 1;
/// MCG_STATUS: one is in progress, the address is that of the error, and the program cannot go on.
const CANNOT_GO_ON: u64 = 1 << 2 | 1 << 1;
/// MCG_STATUS of Intel's: no other processor has been told of it.
const LOCAL: u64 = 1 << 3;
/// A bank's status: valid, uncorrected, enabled, and deferred: nobody has yet used what is broken.
/// (Intel's have no such bit, and without the two that ask for an action it means the same.) Linux
/// goes on, and writes it down when it next looks.
const DEFERRED: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 44;

/// How often Linux looks for what it has not yet written down, in seconds.
pub(super) const CHECK_INTERVAL: &str =
    "/sys/devices/system/machinecheck/machinecheck0/check_interval";

/// The machine checks that Linux writes into its log, so that the log does not overflow; anything
/// else in there that is not allowed is an error.
fn recorded(bench: &mut Bench) -> Result<u64> {
    let records = bench.log.new_records()?;
    let others = unexpected("mce", &records);
    ensure!(
        others.is_empty(),
        "the kernel warned:\n{}",
        others.join("\n")
    );
    let one = |record: &&host::Record| record.text.contains("Machine Check: ");
    Ok(records.iter().filter(one).count() as u64)
}

/// Injects one machine check and waits until the Host has dealt with it. Another one before that
/// would be the end of the machine, as on a real processor.
pub(super) fn machine_check(bench: &mut Bench, cpu: usize, global: u64) -> Result<()> {
    let before = host::mce_count(cpu)?;
    // Intel's processors are all told of one and wait for each other, unless it is a local one.
    let alone = host::vendor() == "GenuineIntel";
    bench.control.inject(Injection::MachineCheck {
        count: 1,
        cpu: u32::try_from(cpu)?,
        global: if alone { global | LOCAL } else { global },
        status: DEFERRED,
    })?;
    let end = Instant::now() + patience();
    while host::mce_count(cpu)? == before || in_progress(cpu)? {
        ensure!(
            Instant::now() < end,
            "a machine check never reached the Host"
        );
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a CPU says that it is dealing with a machine check.
fn in_progress(cpu: usize) -> Result<bool> {
    const MCG_STATUS: u64 = 0x17a;
    let file =
        File::open(format!("/dev/cpu/{cpu}/msr")).context("this kernel needs CONFIG_X86_MSR=y")?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, MCG_STATUS)?;
    Ok(u64::from_le_bytes(bytes) & (1 << 2) != 0)
}

/// Machine checks that can be recovered from, on Guest and Switcher.
pub fn mce(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let interval = fs::read_to_string(CHECK_INTERVAL)?;
    fs::write(CHECK_INTERVAL, "1")?;
    let result = recoverable(bench);
    fs::write(CHECK_INTERVAL, interval.trim())?;
    result
}

fn recoverable(bench: &mut Bench) -> Result<()> {
    let mut guest = Guest::probe(&["case=storm"])?;
    guest.wait_for("working")?;
    pin(guest.pid(), 0)?;
    let before = host::mce_count(0)?;
    let mut logged = 0;
    let (hits, injected) = until_both_are_hit(&mut guest, "mce", 200, || {
        for _ in 0..10 {
            machine_check(bench, 0, CAN_GO_ON)?;
        }
        logged += recorded(bench)?;
        Ok(10)
    })?;
    let came = host::mce_count(0)? - before;
    all_right(guest)?;
    // Linux writes down the last ones a little later.
    let end = Instant::now() + patience();
    while logged == 0 && Instant::now() < end {
        thread::sleep(Duration::from_millis(100));
        logged += recorded(bench)?;
    }
    let Hits {
        guest: in_guest,
        switcher,
    } = hits;
    bench.control.say(
        "note",
        &format!(
            "{injected} injected, {came} came: {in_guest} to the Guest, {switcher} to the \
             Switcher; {logged} in the log"
        ),
    )?;
    expect_both(&hits, injected)?;
    ensure!(
        came == injected,
        "{injected} were injected, and {came} reached the Host"
    );
    ensure!(logged > 0, "no machine check is in the Host's log");
    host::wait_until_free()
}

/// A machine check after which the program cannot go on: Linux ends the Launcher, as it would any
/// program that was hit so, and the Guest's memory comes back.
pub fn mce_fatal(bench: &mut Bench) -> Result<()> {
    if host::cpus() < 2 {
        // It might hit this process, and with it the machine.
        return Err(NotHere("needs a processor that the Guest has to itself".into()).into());
    }
    host::load_module()?;
    let cpu = host::cpus() - 1;
    let me = nix::unistd::getpid();
    pin(me, 0)?;
    let interval = fs::read_to_string(CHECK_INTERVAL)?;
    fs::write(CHECK_INTERVAL, "1")?;
    let result = end_the_launcher(bench, cpu);
    // What was injected on top of another stays in its bank, where Linux looks every five minutes
    // and then logs it: in the middle of some other case. So it looks now.
    thread::sleep(Duration::from_secs(3));
    fs::write(CHECK_INTERVAL, interval.trim())?;
    unpin(me)?;
    result?;
    // The next Guest has nothing of it.
    super::guests::run(&["case=hello"])?.expect_code(OFF)?;
    host::wait_until_free()
}

fn end_the_launcher(bench: &mut Bench, cpu: usize) -> Result<()> {
    let begin = || -> Result<Guest> {
        let guest = Guest::probe(&["case=work"])?;
        guest.wait_for("working")?;
        pin(guest.pid(), cpu)?;
        Ok(guest)
    };
    let mut guest = begin()?;
    let mut others = 0;
    let before = Hits::of("mce")?;
    let end = Instant::now() + patience();
    let mut injected = 0;
    // One that comes while the Host's kernel runs hurts nobody; so a few may be needed.
    let hits = loop {
        machine_check(bench, cpu, CANNOT_GO_ON)?;
        injected += 1;
        let hits = Hits::of("mce")?.since(&before);
        if hits.guest + hits.switcher > 0 || Instant::now() > end {
            break hits;
        }
        // One that comes while the Launcher itself is in ring 3 ends it as it would any program.
        if !guest.alive()? {
            guest
                .finish_within(time_to_die())?
                .expect_code(128 + Signal::SIGBUS as i32)?;
            others += 1;
            ensure!(others < 10, "{others} Launchers were hit, and no Guest");
            guest = begin()?;
        }
    };
    bench.control.say(
        "note",
        &format!(
            "{injected} injected, {} to the Guest, {} to the Switcher",
            hits.guest, hits.switcher
        ),
    )?;
    ensure!(
        hits.guest + hits.switcher == 1,
        "of {injected} machine checks {hits:?} hit something"
    );
    // One is enough, although nothing else calls the Launcher back.
    let end = Instant::now() + time_to_die();
    while guest.alive()? {
        if Instant::now() > end {
            bail!("still running: {}", tasks_of(guest.pid())?);
        }
        thread::sleep(Duration::from_millis(5));
    }
    guest.finish()?.expect_code(128 + Signal::SIGBUS as i32)?;
    Ok(())
}

/// What Linux says of each task of a process.
fn tasks_of(pid: Pid) -> Result<String> {
    const LINES: [&str; 5] = ["State:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigCgt:"];
    let mut said = String::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let status = fs::read_to_string(task.join("status"))?;
        for line in status.lines() {
            if LINES.iter().any(|begin| line.starts_with(begin)) {
                said += &format!("{line}; ");
            }
        }
        let stack = fs::read_to_string(task.join("stack")).unwrap_or_default();
        said += &format!("stack: {}\n", stack.replace('\n', ", "));
    }
    let switches = || host::counter("world_switches");
    let before = switches()?;
    thread::sleep(Duration::from_millis(100));
    Ok(format!("{said}{} trips in 0.1 s", switches()? - before))
}
