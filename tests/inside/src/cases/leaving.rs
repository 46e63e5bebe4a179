// SPDX-License-Identifier: GPL-2.0-only

//! Leaving and coming back: whatever takes a Guest away from its processor, its sums are right
//! afterwards.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::mount::{MsFlags, mount};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::guests::{OFF, pin, unpin};
use super::{Bench, NotHere};
use crate::guest::{Guest, patience};
use crate::host::{self, Control};
use crate::progress::{Progress, path_of};
use crate::random::Random;

/// A Guest that keeps sums, and the stand-in that checks them.
struct Sums {
    guest: Guest,
    what: String,
}

impl Sums {
    fn start(how: &str, then: &str) -> Result<Self> {
        let guest = Guest::stand_in(&["sums", how, then])?;
        guest.wait_for("running")?;
        let what = format!("{how}, {then}");
        Ok(Self { guest, what })
    }

    fn pid(&self) -> Pid {
        self.guest.pid()
    }

    fn progress(&self) -> Result<Progress> {
        Progress::of(self.pid().as_raw().cast_unsigned())
    }

    /// Waits until something is so of its progress.
    fn until(&self, what: &str, done: impl Fn(Progress) -> bool) -> Result<()> {
        let end = Instant::now() + patience();
        loop {
            let now = self.progress()?;
            if done(now) {
                return Ok(());
            }
            if state(self.pid())? == "Z" {
                // It has ended, so this fails with all that it has said.
                self.guest.wait_for("all is well with what has ended")?;
            }
            if Instant::now() > end {
                bail!("{}: no {what} in time, but {now:?}", self.what);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for so many records more.
    fn goes_on(&self, records: u64) -> Result<()> {
        let wanted = self.progress()?.records + records;
        self.until("more records", |now| now.records >= wanted)
    }

    /// Ends it; it must be content with all its sums. Gives how far it came.
    fn finish(mut self) -> Result<Progress> {
        let pid = self.pid().as_raw().cast_unsigned();
        self.guest.send(b"x")?;
        let what = self.what;
        let ended = self.guest.finish()?;
        let said = ended.expect_code(0)?.expect_output("all sums right");
        said.with_context(|| what)?;
        let progress = Progress::of(pid)?;
        // Whoever counts inodes counts this one, too.
        fs::remove_file(path_of(pid))?;
        Ok(progress)
    }
}

/// One Guest that computes, one that sleeps by turns, and one under the real Launcher.
pub(super) struct Three {
    spin: Sums,
    halt: Sums,
    work: Guest,
}

impl Three {
    pub(super) fn start() -> Result<Self> {
        host::load_module()?;
        let spin = Sums::start("spin", "restart")?;
        let halt = Sums::start("halt", "restart")?;
        let work = Guest::probe(&["case=work", "seed=77"])?;
        work.wait_for("working with seed 77")?;
        Ok(Self { spin, halt, work })
    }

    pub(super) fn pids(&self) -> [Pid; 3] {
        [self.spin.pid(), self.halt.pid(), self.work.pid()]
    }

    fn records(&self) -> Result<[u64; 2]> {
        Ok([self.spin.progress()?.records, self.halt.progress()?.records])
    }

    pub(super) fn go_on(&self, records: u64) -> Result<()> {
        self.spin.goes_on(records)?;
        self.halt.goes_on(records)
    }

    /// Nothing happens for a while, for none of them.
    fn stands_still(&self, what: &str) -> Result<()> {
        let switches = host::counter("world_switches")?;
        let before = self.records()?;
        thread::sleep(Duration::from_millis(60));
        let after = self.records()?;
        let switches = host::counter("world_switches")? - switches;
        ensure!(
            before == after && switches == 0,
            "{what}: records {before:?}, then {after:?}, {switches} world switches"
        );
        Ok(())
    }

    /// Ends all three, content with all that they have counted.
    fn ended(mut self) -> Result<[Progress; 2]> {
        self.work.send(b"enough\n")?;
        let ended = self.work.finish()?;
        ended
            .expect_code(OFF)?
            .expect_output("good: seed 77, all values right")?;
        let both = [self.spin.finish()?, self.halt.finish()?];
        host::wait_until_free()?;
        Ok(both)
    }

    /// The same; gives how many sums were right.
    pub(super) fn end(self) -> Result<[u64; 2]> {
        Ok(self.ended()?.map(|progress| progress.records))
    }

    fn finish(self, bench: &mut Bench) -> Result<[Progress; 2]> {
        let both = self.ended()?;
        let [spin, halt] = both.map(|progress| progress.records);
        let note = format!("sums right: {spin} of the one that computes, {halt} of the sleeper");
        bench.control.say("note", &note)?;
        Ok(both)
    }
}

/// The state of a process: R runs, S sleeps, T is stopped, t is traced.
pub(super) fn state(pid: Pid) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    Ok(rest[..1].to_owned())
}

/// Waits until something is so.
fn until(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patience();
    while !done()? {
        ensure!(Instant::now() < end, "{what}: not in time");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

pub fn signals(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut random = Random::new(bench.number("seed").unwrap_or(4));
    let rounds = if bench.long() { 1000 } else { 100 };
    for (how, then) in [
        ("spin", "restart"),
        ("spin", "interrupt"),
        ("halt", "restart"),
        ("halt", "interrupt"),
    ] {
        let mut sums = Sums::start(how, then)?;
        // Each signal is handled, wherever it met the Guest, and then the Guest goes on.
        for n in 0..rounds {
            let before = sums.progress()?;
            sums.guest.signal(Signal::SIGUSR1)?;
            sums.until("signal", |now| now.signals > before.signals)?;
            if n % 10 == 0 {
                sums.goes_on(1)?;
            }
            thread::sleep(Duration::from_micros(random.below(3000)));
        }
        let after = sums.progress()?;
        ensure!(after.signals >= rounds, "{how}, {then}: {after:?}");
        ensure!(
            (after.interrupted == 0) == (how == "spin" && then == "restart"),
            "{how}, {then}: {after:?}"
        );
        for _ in 0..rounds / 10 {
            sums.guest.signal(Signal::SIGSTOP)?;
            until("SIGSTOP", || Ok(state(sums.pid())? == "T"))?;
            let before = sums.progress()?;
            thread::sleep(Duration::from_millis(20));
            ensure!(sums.progress()? == before, "{how}, {then}: runs stopped");
            sums.guest.signal(Signal::SIGCONT)?;
            sums.goes_on(1)?;
        }
        for _ in 0..rounds / 10 {
            traced(&sums)?;
        }
        for n in 0..rounds {
            sums.guest.send(b"b")?;
            sums.until("BREAK", |now| now.breaks > n)?;
        }
        sums.goes_on(1)?;
        let end = sums.finish()?;
        ensure!(end.breaks == rounds + 1, "{how}, {then}: {end:?}");
        let note = format!(
            "{how}, {then}: {} signals, {} EINTRs, {} BREAKs, {} sums right",
            end.signals, end.interrupted, end.breaks, end.records
        );
        bench.control.say("note", &note)?;
        host::wait_until_free()?;
    }
    Ok(())
}

/// A debugger takes hold of the task that runs the Guest, looks, and lets go.
fn traced(sums: &Sums) -> Result<()> {
    let pid = sums.pid();
    ptrace::attach(pid)?;
    // An alarm of the sleeper's may come first, and goes where it was going.
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => break,
            WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal)?,
            status => bail!("attached: {status:?}"),
        }
    }
    let before = sums.progress()?;
    let registers = ptrace::getregs(pid)?;
    ensure!(registers.rip != 0, "RIP is 0");
    thread::sleep(Duration::from_millis(10));
    ensure!(sums.progress()? == before, "{}: runs traced", sums.what);
    ptrace::detach(pid, None)?;
    sums.goes_on(1)
}

/// One of the kernel's two freezers.
struct Freezer {
    about: &'static str,
    mount: &'static str,
    kind: &'static str,
    options: Option<&'static str>,
    /// The file that freezes, and what is written to freeze and to thaw.
    switch: (&'static str, &'static str, &'static str),
    /// The file that says when all are frozen, and what it says.
    frozen: (&'static str, &'static str),
}

const FREEZERS: [Freezer; 2] = [
    Freezer {
        about: "version 2",
        mount: "/tmp/groups-2",
        kind: "cgroup2",
        options: None,
        switch: ("cgroup.freeze", "1", "0"),
        frozen: ("cgroup.events", "frozen 1"),
    },
    Freezer {
        about: "version 1",
        mount: "/tmp/groups-1",
        kind: "cgroup",
        options: Some("freezer"),
        switch: ("freezer.state", "FROZEN", "THAWED"),
        frozen: ("freezer.state", "FROZEN"),
    },
];

pub fn freezer(bench: &mut Bench) -> Result<()> {
    for freezer in &FREEZERS {
        if !Path::new(freezer.mount).exists() {
            fs::create_dir(freezer.mount)?;
            mount(
                Some(freezer.kind),
                freezer.mount,
                Some(freezer.kind),
                MsFlags::empty(),
                freezer.options,
            )
            .with_context(|| format!("no control groups of {}", freezer.about))?;
        }
        let three = Three::start()?;
        let group = format!("{}/leaving", freezer.mount);
        fs::create_dir(&group)?;
        for pid in three.pids() {
            fs::write(format!("{group}/cgroup.procs"), pid.to_string())?;
        }
        let (switch, freeze, thaw) = freezer.switch;
        let (says, frozen) = freezer.frozen;
        let rounds = if bench.long() { 100 } else { 20 };
        for _ in 0..rounds {
            fs::write(format!("{group}/{switch}"), freeze)?;
            until("the freezer", || {
                Ok(fs::read_to_string(format!("{group}/{says}"))?.contains(frozen))
            })?;
            three.stands_still(freezer.about)?;
            fs::write(format!("{group}/{switch}"), thaw)?;
            three.go_on(1)?;
        }
        for pid in three.pids() {
            fs::write(format!("{}/cgroup.procs", freezer.mount), pid.to_string())?;
        }
        fs::remove_dir(&group).context("the group cannot be removed")?;
        let note = format!("{}: frozen {rounds} times", freezer.about);
        bench.control.say("note", &note)?;
        three.finish(bench)?;
    }
    Ok(())
}

/// How often the Host has been suspended, and how often that failed.
fn suspended() -> Result<[u64; 2]> {
    let number = |name: &str| -> Result<u64> {
        let text = fs::read_to_string(format!("/sys/power/suspend_stats/{name}"))?;
        Ok(text.trim().parse()?)
    };
    Ok([number("success")?, number("fail")?])
}

/// The driver of the channel to the test command.
const CONSOLE: &str = "/sys/bus/virtio/drivers/virtio_console";

/// Does something while the channel to the test command is closed. Linux 7.3 loses that channel
/// when it resumes: it asks whether the other side is there before it can be told.
fn without_console<T>(bench: &mut Bench, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(CONSOLE)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("virtio") {
            fs::write(format!("{CONSOLE}/unbind"), &name)?;
            devices.push(name);
        }
    }
    let result = body();
    for name in devices {
        fs::write(format!("{CONSOLE}/bind"), &name)?;
    }
    bench.control = Control::open()?;
    result
}

pub fn suspend(bench: &mut Bench) -> Result<()> {
    const LEVELS: [&str; 5] = ["freezer", "devices", "platform", "processors", "core"];
    let Ok(states) = fs::read_to_string("/sys/power/state") else {
        return Err(NotHere("this kernel has no CONFIG_SUSPEND".into()).into());
    };
    let tests = fs::read_to_string("/sys/power/pm_test").context("no CONFIG_PM_DEBUG")?;
    ensure!(states.contains("mem"), "it can only {states:?}");
    // Seconds that it stays down.
    fs::write("/sys/module/suspend/parameters/pm_test_delay", "1")?;
    let three = Three::start()?;
    let notes = without_console(bench, || {
        let mut notes = Vec::new();
        let [before, failed] = suspended()?;
        for (n, level) in (1..).zip(LEVELS) {
            ensure!(tests.contains(level), "pm_test has only {tests:?}");
            fs::write("/sys/power/pm_test", level)?;
            let records = three.records()?;
            fs::write("/sys/power/state", "mem").with_context(|| format!("suspend, {level}"))?;
            let stats = suspended()?;
            ensure!(
                stats == [before + n, failed],
                "{level}: suspended and failed {stats:?}, not {:?}",
                [before + n, failed]
            );
            three.go_on(3).with_context(|| format!("after {level}"))?;
            let after = three.records()?;
            notes.push(format!("{level}: records {records:?}, then {after:?}"));
        }
        Ok(notes)
    })?;
    fs::write("/sys/power/pm_test", "none")?;
    for note in notes {
        bench.control.say("note", &note)?;
    }
    three.finish(bench)?;
    Ok(())
}

/// EFER, the CS of SYSENTER and where SYSCALL leads.
const REGISTERS: [u32; 3] = [0xc000_0080, 0x174, 0xc000_0082];

/// The registers of a processor that a trip changes, or could.
fn registers(cpu: usize) -> Result<Vec<u64>> {
    REGISTERS
        .iter()
        .map(|which| host::msr(cpu, *which))
        .collect()
}

pub fn hotplug(bench: &mut Bench) -> Result<()> {
    if host::cpus() < 2 {
        return Err(NotHere("needs two processors".into()).into());
    }
    let online = "/sys/devices/system/cpu/cpu1/online";
    let rounds = if bench.long() { 100 } else { 15 };
    let three = Three::start()?;
    // Linux leaves a bit in what it remembers of DR7, but not in the DR7 of a processor that comes.
    let [spin, ..] = three.pids();
    pin(spin, 1)?;
    three.spin.until("CPU 1", |now| now.cpu == 2)?;
    ptrace::attach(spin)?;
    waitpid(spin, Some(WaitPidFlag::__WALL))?;
    super::device::with_breakpoint(spin)?;
    ptrace::detach(spin, None)?;
    // A stop that was asked for twice may be left over.
    kill(spin, Signal::SIGCONT)?;
    let registers_before = registers(1)?;
    for round in 0..rounds {
        let off = || -> Result<()> {
            for pid in three.pids() {
                pin(pid, 1)?;
            }
            three.spin.until("CPU 1", |now| now.cpu == 2)?;
            three.halt.until("CPU 1", |now| now.cpu == 2)?;
            // Under the Guests that run there; they must go on elsewhere.
            fs::write(online, "0").context("CPU 1 does not go")?;
            three.go_on(2)?;
            three.spin.until("CPU 0", |now| now.cpu == 1)
        };
        let result = off();
        fs::write(online, "1").context("CPU 1 does not come back")?;
        result.with_context(|| format!("round {round}"))?;
        ensure!(
            registers(1)? == registers_before,
            "round {round}: {REGISTERS:x?} of CPU 1 are {:x?}, were {registers_before:x?}",
            registers(1)?
        );
    }
    for pid in three.pids() {
        unpin(pid)?;
    }
    let note = format!("CPU 1 went and came {rounds} times");
    bench.control.say("note", &note)?;
    let [spin, halt] = three.finish(bench)?;
    ensure!(
        spin.moves >= 2 * rounds && halt.moves >= 2 * rounds,
        "they were not moved: {spin:?}, {halt:?}"
    );
    ensure!(registers(1)? == registers_before, "CPU 1 has changed");
    Ok(())
}

pub fn migration(bench: &mut Bench) -> Result<()> {
    if host::cpus() < 2 {
        return Err(NotHere("needs two processors".into()).into());
    }
    let three = Three::start()?;
    let time = Duration::from_secs(if bench.long() { 30 } else { 3 });
    let (begun, mut calls) = (Instant::now(), 0_u64);
    // For as long, and until both have really been moved a few times.
    let moved = |sums: &Sums| -> Result<bool> { Ok(sums.progress()?.moves >= 20) };
    while begun.elapsed() < time
        || (begun.elapsed() < patience() && !(moved(&three.spin)? && moved(&three.halt)?))
    {
        for (n, pid) in three.pids().into_iter().enumerate() {
            pin(pid, (calls as usize + n) % 2)?;
        }
        calls += 1;
    }
    for pid in three.pids() {
        unpin(pid)?;
    }
    three.go_on(3)?;
    let [spin, halt] = three.finish(bench)?;
    let note = format!(
        "{calls} times another processor; they noticed {} and {} moves",
        spin.moves, halt.moves
    );
    bench.control.say("note", &note)?;
    ensure!(
        spin.moves >= 20 && halt.moves >= 20,
        "{note}: hardly any migration"
    );
    Ok(())
}

pub fn module(bench: &mut Bench) -> Result<()> {
    let refused = |when: &str| -> Result<()> {
        let answer = delete_module(c"lguest", DeleteModuleFlags::O_NONBLOCK);
        ensure!(answer == Err(Errno::EWOULDBLOCK), "{when}: {answer:?}");
        Ok(())
    };
    let mut refusals = 0;
    for how in ["open", "guest", "child", "letter"] {
        host::load_module()?;
        let mut holder = Guest::stand_in(&["holder", how])?;
        holder.wait_for("holding")?;
        for _ in 0..10 {
            refused(how)?;
            refusals += 1;
        }
        let guests = host::counter("guests")?;
        ensure!(guests == 1, "{how}: {guests} Guests are held");
        holder.send(b"x")?;
        holder.finish()?.expect_code(0).context(how)?;
        host::wait_until_free()?;
        // A file is closed for good a moment after its last holder is gone.
        until("the module goes", || match host::unload_module() {
            Ok(()) => Ok(true),
            Err(_) => Ok(false),
        })?;
        ensure!(!Path::new(host::DEVICE).exists(), "{how}: a device is left");
    }
    host::load_module()?;
    let three = Three::start()?;
    for _ in 0..100 {
        refused("three Guests at work")?;
        refusals += 1;
    }
    three.go_on(3)?;
    bench
        .control
        .say("note", &format!("refused {refusals} times"))?;
    three.finish(bench)?;
    host::unload_module()?;
    host::load_module()
}
