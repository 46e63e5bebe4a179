// SPDX-License-Identifier: GPL-2.0-only

//! Whatever a process that can open the device may try: see the stand-ins for what they do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::guests::run;
use super::{Bench, NotHere, unexpected};
use crate::guest::{Ended, Guest};
use crate::host::{self, Record};
use crate::protocol::Injection;
use crate::random::Random;
use crate::swap::Swap;

/// How long a killed process may take to be gone.
const SECONDS_TO_DIE: Duration = Duration::from_secs(20);

/// Runs a stand-in, which must be content; then nothing of its Guests may be left.
fn stand_in(bench: &mut Bench, words: &[&str]) -> Result<()> {
    host::load_module()?;
    let begun = Instant::now();
    let ended = Guest::stand_in(words)?.finish()?;
    let took = begun.elapsed().as_secs_f32();
    for line in ended.output.lines() {
        if let Some(note) = line.strip_prefix("note: ") {
            bench.control.say("note", note)?;
        }
    }
    bench
        .control
        .say("note", &format!("{words:?}: {took:.1} s"))?;
    ended.expect_code(0)?;
    host::wait_until_free().with_context(|| format!("after {words:?}"))
}

pub fn lengths(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["lengths"])?;
    stand_in(bench, &["vectors"])
}

pub fn other_calls(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["others"])
}

pub fn pointers(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["pointers"])?;
    stand_in(bench, &["races"])
}

pub fn order(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["initialize"])?;
    stand_in(bench, &["after-the-end"])?;
    stand_in(bench, &["break"])?;
    stand_in(bench, &["crowd"])
}

pub fn tasks(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["wrong-tasks"])?;
    stand_in(bench, &["exec", "keep"])?;
    stand_in(bench, &["exec", "close"])?;
    stand_in(bench, &["orphan"])?;
    stand_in(bench, &["setuid"])
}

pub fn lent_memory(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["memory-kinds"])?;
    stand_in(bench, &["memory-changes"])
}

/// Memory that Linux swaps, moves, joins and shares while a Guest uses it.
pub fn lent(bench: &mut Bench) -> Result<()> {
    let swap = Swap::new(16384)?;
    let result = stand_in(bench, &["lent"]);
    drop(swap);
    result
}

pub fn storm(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["storm"])
}

pub fn hundred(bench: &mut Bench) -> Result<()> {
    stand_in(bench, &["hundred"])?;
    // The same with a Launcher for each, which takes a while to start them all.
    let many = if bench.long() { 100 } else { 10 };
    let mut guests = Vec::new();
    for n in 0..many {
        let seed = format!("seed={n}");
        guests.push(Guest::launch(&[
            "4",
            "/guests/probe",
            "case=console-halt",
            &seed,
        ])?);
    }
    for guest in &guests {
        guest.wait_for("waiting")?;
    }
    let alive = host::counter("guests")?;
    ensure!(alive == many, "{alive} Guests at once, not {many}");
    for line in ["one", "two", "three"] {
        for guest in &mut guests {
            guest.send(format!("{line}\n").as_bytes())?;
        }
        for guest in &guests {
            guest.wait_for(&format!("got {line:?}"))?;
        }
    }
    for guest in guests {
        guest
            .finish()?
            .expect_code(0)?
            .expect_output("good: 3 interrupts")?;
    }
    host::wait_until_free()
}

/// Kills one process at a moment of its life that the random numbers choose.
fn kill_one(bench: &mut Bench, random: &mut Random) -> Result<&'static str> {
    let launcher = random.below(5) == 0;
    let seed = random.word().to_string();
    let (what, guest, most) = if launcher {
        let cases = [
            "work",
            "spin",
            "memory",
            "console-halt",
            "console-spin",
            "tables",
        ];
        let case = cases[random.below(6) as usize];
        (case, Guest::probe(&[&format!("case={case}")])?, 400_000)
    } else if random.below(2) == 0 {
        let names = ["count", "ring", "spin", "halt", "touch", "mirror", "bound"];
        let name = names[random.below(7) as usize];
        (name, Guest::stand_in(&["run", name, "256"])?, 40_000)
    } else {
        ("mortal", Guest::stand_in(&["mortal", &seed])?, 60_000)
    };
    // Every third one from its very beginning, the others when it is surely at work.
    if random.below(3) != 0 && !launcher {
        guest.wait_for(if what == "mortal" { "begun" } else { "running" })?;
    }
    let wait = Duration::from_micros(random.below(most));
    if random.below(4) == 0 {
        bench.control.inject(Injection::Nmi { count: 1 })?;
    }
    thread::sleep(wait);
    // The Launcher may just be forking; both signals are for the same process.
    let victim = guest.pid();
    // At the same time as another signal, now and then.
    let with = [
        None,
        None,
        None,
        Some(Signal::SIGSTOP),
        Some(Signal::SIGTERM),
    ];
    if let Some(signal) = with[random.below(5) as usize] {
        // It may have ended by itself.
        let _ = kill(victim, signal);
    }
    let _ = kill(victim, Signal::SIGKILL);
    let ended = guest.finish_within(SECONDS_TO_DIE)?;
    let code = ended.code();
    ensure!(
        matches!(code, 137 | 143) || (launcher && code == 0),
        "{what}: {}",
        ended.said()
    );
    host::wait_until_free().with_context(|| format!("{what}, killed after {wait:?}"))?;
    Ok(what)
}

pub fn killed_anywhere(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let seed = bench.seed();
    let times = if bench.long() { 500 } else { 50 };
    bench
        .control
        .say("note", &format!("seed={seed}, {times} kills"))?;
    let mut random = Random::new(seed);
    let mut killed = BTreeMap::new();
    for n in 0..times {
        let what = kill_one(bench, &mut random);
        let what = what.with_context(|| format!("kill {n} of seed={seed}"))?;
        *killed.entry(what).or_insert(0) += 1;
    }
    bench.control.say("note", &format!("{killed:?}"))?;
    run(&["case=hello"])?
        .expect_code(0)?
        .expect_output("good: hello")?;
    host::wait_until_free()
}

/// The state of a process: R runs, S sleeps, T is stopped, t is traced.
fn state(guest: &Guest) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", guest.pid()))?;
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    Ok(rest[..1].to_owned())
}

/// Waits until something is so.
fn until(what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !done()? {
        ensure!(Instant::now() < end, "{what}: not within 20 seconds");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Checks that the world is switched for this one Guest, or that it is not.
fn switches(what: &str, wanted: bool) -> Result<()> {
    let before = host::counter("world_switches")?;
    if wanted {
        let more = || Ok(host::counter("world_switches")? > before);
        return until(&format!("{what}: a world switch"), more);
    }
    thread::sleep(Duration::from_millis(60));
    let after = host::counter("world_switches")?;
    ensure!(after == before, "{what}: {} world switches", after - before);
    Ok(())
}

pub fn signals(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    for name in ["count", "spin", "touch"] {
        let mut guest = Guest::stand_in(&["run", name, "64"])?;
        guest.wait_for("running")?;
        for _ in 0..5 {
            guest.signal(Signal::SIGSTOP)?;
            until("SIGSTOP", || Ok(state(&guest)? == "T"))?;
            switches(&format!("{name}, stopped"), false)?;
            guest.signal(Signal::SIGCONT)?;
            switches(&format!("{name}, continued"), true)?;
        }
        traced(&guest).with_context(|| format!("ptrace of {name}"))?;
        frozen(bench, &guest).with_context(|| format!("freezing {name}"))?;
        guest.send(b"x")?;
        guest.finish()?.expect_code(0)?.expect_output("records")?;
        host::wait_until_free()?;
    }
    // Fatal ones, also in their sleep, and to a Guest that is stopped.
    for name in ["count", "spin", "halt", "touch", "bound"] {
        for signal in [
            Signal::SIGTERM,
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGHUP,
        ] {
            let guest = Guest::stand_in(&["run", name, "64"])?;
            guest.wait_for("running")?;
            if signal == Signal::SIGBUS {
                guest.signal(Signal::SIGSTOP)?;
                until("SIGSTOP", || Ok(state(&guest)? == "T"))?;
                guest.signal(signal)?;
                guest.signal(Signal::SIGCONT)?;
            } else {
                guest.signal(signal)?;
            }
            let ended = guest.finish_within(SECONDS_TO_DIE);
            let ended = ended.with_context(|| format!("{name}, {signal}"))?;
            ended
                .expect_code(128 + signal as i32)
                .with_context(|| format!("{name}, {signal}"))?;
            host::wait_until_free().with_context(|| format!("{name}, {signal}"))?;
        }
    }
    Ok(())
}

/// Has a traced process, stopped in its `read()`, run a while with a debugger's breakpoint in the
/// debug registers, on an address that is never used.
pub(super) fn with_breakpoint(pid: Pid) -> Result<()> {
    let register = |n: usize| {
        let offset = std::mem::offset_of!(libc::user, u_debugreg) + n * 8;
        (offset as *mut libc::c_void).cast()
    };
    ptrace::write_user(pid, register(0), 0x1000)?;
    ptrace::write_user(pid, register(7), 0x1)?;
    ptrace::step(pid, None)?;
    // In the middle of `read()` a step ends only when the call does.
    thread::sleep(Duration::from_millis(20));
    if waitpid(pid, Some(WaitPidFlag::WNOHANG))? == WaitStatus::StillAlive {
        kill(pid, Signal::SIGSTOP)?;
        waitpid(pid, Some(WaitPidFlag::__WALL))?;
    }
    ptrace::write_user(pid, register(7), 0)?;
    Ok(())
}

/// Traces a process that runs a Guest: stops it in its `read()`, looks at it, steps, lets go.
fn traced(guest: &Guest) -> Result<()> {
    let pid = guest.pid();
    for round in 0..5 {
        ptrace::attach(pid)?;
        let status = waitpid(pid, Some(WaitPidFlag::__WALL))?;
        ensure!(
            matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)),
            "attached: {status:?}"
        );
        let registers = ptrace::getregs(pid)?;
        ensure!(registers.rip != 0, "RIP is 0");
        switches("traced", false)?;
        if round % 2 == 1 {
            with_breakpoint(pid)?;
        }
        ptrace::detach(pid, None)?;
        until("detach", || Ok(state(guest)? != "t"))?;
        // A stop that was asked for twice may be left over.
        guest.signal(Signal::SIGCONT)?;
        switches("let go", true)?;
    }
    Ok(())
}

/// Where the control groups are mounted.
const GROUPS: &str = "/tmp/groups";

/// Freezes a process that runs a Guest by its control group, thaws it, and takes the group away.
fn frozen(bench: &mut Bench, guest: &Guest) -> Result<()> {
    if !Path::new(GROUPS).exists() {
        fs::create_dir(GROUPS)?;
        let none: Option<&str> = None;
        mount(
            Some("cgroup2"),
            GROUPS,
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )
        .context("cannot mount the control groups")?;
        let controllers = fs::read_to_string(format!("{GROUPS}/cgroup.controllers"))?;
        if !controllers.contains("memory") {
            let text = "no limit on a group's memory: this kernel has no CONFIG_MEMCG";
            bench.control.say("note", text)?;
        }
    }
    let group = format!("{GROUPS}/guest");
    fs::create_dir(&group)?;
    fs::write(format!("{group}/cgroup.procs"), guest.pid().to_string())?;
    for _ in 0..5 {
        fs::write(format!("{group}/cgroup.freeze"), "1")?;
        until("the freezer", || {
            Ok(fs::read_to_string(format!("{group}/cgroup.events"))?.contains("frozen 1"))
        })?;
        switches("frozen", false)?;
        fs::write(format!("{group}/cgroup.freeze"), "0")?;
        switches("thawed", true)?;
    }
    fs::write(format!("{GROUPS}/cgroup.procs"), guest.pid().to_string())?;
    fs::remove_dir(&group).context("the group cannot be removed")
}

/// Ends a Guest by its control group, and by the kernel's search for memory.
pub fn out_of_memory(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let guest = Guest::stand_in(&["big", "64", "0"])?;
    guest.wait_for("running")?;
    let Ok(()) = fs::write("/proc/sysrq-trigger", "f") else {
        return Err(NotHere("this kernel has no CONFIG_MAGIC_SYSRQ".to_owned()).into());
    };
    expect_killed(bench, guest.finish_within(SECONDS_TO_DIE)?)?;
    if bench.long() {
        // For real: more than the machine has. It runs out while the Guest runs.
        let all = host::meminfo("MemTotal")? / 1024;
        let before = all.saturating_sub(700).to_string();
        let guest = Guest::stand_in(&["big", "1024", &before])?;
        guest.wait_for("running")?;
        expect_killed(bench, guest.finish_within(Duration::from_secs(240))?)?;
    }
    run(&["case=hello"])?.expect_code(0)?;
    host::wait_until_free()
}

/// The Launcher was killed, nothing is left of its Guest, and the kernel's log has the report that
/// belongs to it, and no other warning.
fn expect_killed(bench: &mut Bench, ended: Ended) -> Result<()> {
    ended.expect_code(128 + Signal::SIGKILL as i32)?;
    host::wait_until_free()?;
    let records = bench.log.new_records()?;
    let begin = |record: &Record| record.text.contains("invoked oom-killer");
    let end = |record: &Record| record.text.starts_with("Out of memory: Killed process");
    let begin = records.iter().position(begin);
    let end = records.iter().position(end);
    let (Some(begin), Some(end)) = (begin, end) else {
        bail!("the log has no report of a process killed for its memory");
    };
    let (before, rest) = records.split_at(begin);
    let (report, after) = rest.split_at(end + 1 - begin);
    for record in report {
        // The module may well stand in the call trace: it is who asked for the memory.
        let text = &record.text;
        let bad = text.contains("BUG") || text.contains("WARNING") || text.starts_with("lguest:");
        ensure!(!bad, "in the report: {text}");
    }
    let others = [
        unexpected("out-of-memory", before),
        unexpected("out-of-memory", after),
    ]
    .concat();
    ensure!(
        others.is_empty(),
        "the kernel warned:\n{}",
        others.join("\n")
    );
    Ok(())
}

/// A limit, the Launcher's exit status, and what it must say.
type Limit = (&'static str, u64, i32, &'static str);

/// The Launcher under limits, as a user who may open the device and nothing else.
pub fn limits(_: &mut Bench) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    host::load_module()?;
    let limits: [Limit; 5] = [
        // Bytes that it may lock: none. It locks nothing, its memory is only lent.
        ("memlock", 0, 0, ""),
        // Address space: too little for 16 MiB.
        ("as", 12 << 20, 2, "ulimit -v"),
        // Files: no room for one, for the device, for what comes after it.
        ("nofile", 3, 2, "too many open files"),
        ("nofile", 4, 3, "too many open files"),
        ("nofile", 5, 3, "too many open files"),
    ];
    fs::set_permissions(host::DEVICE, fs::Permissions::from_mode(0o666))?;
    let result = limits.iter().try_for_each(|(name, limit, status, says)| {
        let what = format!("{name} {limit}");
        let ended =
            Guest::launch_with_limit(name, *limit, &["16", "/guests/probe", "case=memory"])?
                .finish()?;
        ended
            .expect_code(*status)
            .and_then(|ended| ended.expect_error(says))
            .with_context(|| what.clone())?;
        host::wait_until_free().context(what)
    });
    fs::set_permissions(host::DEVICE, fs::Permissions::from_mode(0o600))?;
    result
}
