// SPDX-License-Identifier: GPL-2.0-only

//! What fails, and what is left then: the n-th allocation and the n-th copy, memory that goes away,
//! file systems that are full.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod;
use nix::mount::{MsFlags, mount, umount};

use super::guests::{CRASHED, OFF};
use super::{Bench, NotHere, leaks, unexpected};
use crate::device::{Device, IRQ};
use crate::fail_nth::{FailNth, reports};
use crate::guest::Guest;
use crate::host::{self, LAUNCHER};
use crate::nets;
use crate::tiny::{
    BOUND, COUNT, DIE, Memory, NAP, NAP_LINE, Program, RING, TOUCH, Tiny, last_words, say,
};

/// What came of failures: where they were made, and what the kernel said besides.
#[derive(Default)]
struct Found {
    /// Kind, function, answer; and how often.
    table: BTreeMap<(String, String, String), u64>,
    others: BTreeSet<String>,
}

/// More failures than there are places to fail: then something does not end.
const FAR: u32 = 20_000;

/// The number of this thread, or a skip.
fn fail_nth() -> Result<FailNth> {
    let text = "this kernel has no CONFIG_FAULT_INJECTION; that of `make setup-long` has";
    FailNth::new()?.ok_or_else(|| NotHere(text.into()).into())
}

impl Found {
    /// Looks at what the kernel has said since the last time: a report of each failure, which goes
    /// into the table if that is `new`, and nothing else that is not allowed. Gives how many hit
    /// the module.
    fn note(&mut self, bench: &mut Bench, case: &str, answer: &str, new: bool) -> Result<u64> {
        let (failures, rest) = reports(&bench.log.new_records()?)?;
        self.others.extend(unexpected(case, &rest));
        let mut ours = 0;
        for failure in failures {
            ours += u64::from(failure.within.is_some());
            let within = failure.within.unwrap_or_else(|| "Linux alone".to_owned());
            let key = (failure.kind, within, answer.to_owned());
            *self.table.entry(key).or_default() += u64::from(new);
        }
        Ok(ours)
    }

    /// Says what is in the table, a line for each place; anything else that the kernel has said is
    /// an error.
    fn tell(&self, bench: &mut Bench) -> Result<()> {
        for ((kind, within, answer), count) in &self.table {
            let text = format!("{count} x {kind} in {within}: {answer}");
            bench.control.say("note", &text)?;
        }
        let others: Vec<&str> = self.others.iter().map(String::as_str).take(60).collect();
        ensure!(others.is_empty(), "the kernel said:\n{}", others.join("\n"));
        Ok(())
    }
}

/// Pages in use, where nothing of ours is.
fn pages() -> Result<f64> {
    let counted = leaks::counted()?;
    counted.get(leaks::PAGES).copied().context("no pages")
}

/// What may be different between two counts, in pages, for Linux's own reasons.
const NOISE: f64 = 4.5;
/// How often a failure that hit the module is made again, so that a page lost with each is seen.
const AGAIN: u32 = 6;

/// The module is loaded with the n-th allocation failing, for every n.
pub fn load(bench: &mut Bench) -> Result<()> {
    let fail = fail_nth()?;
    let image = fs::read(host::MODULE)?;
    // All that is done for the first time is done now.
    host::load_module()?;
    let before = pages()?;
    host::unload_module()?;
    bench.log.new_records()?;
    let mut found = Found::default();
    let (mut n, mut loaded, mut ours) = (0, 0, 0);
    loop {
        n += 1;
        ensure!(n < FAR, "there is no end of it");
        let mut came = false;
        // Once; and where it was the module that was hit, several times more.
        for again in 0..AGAIN {
            let (answer, left) = fail.with(n, || kmod::init_module(&image, c""))?;
            let hit = left == 0;
            came = hit;
            let what = || format!("failure {n} of loading");
            let text = match answer {
                Ok(()) => {
                    loaded += 1;
                    // It may have been the counters' own file that there was no memory for.
                    if host::counters().is_ok() {
                        host::wait_until_free().with_context(what)?;
                    }
                    host::unload_module().with_context(what)?;
                    "loaded".to_owned()
                }
                Err(Errno::ENOMEM | Errno::EFAULT) if hit => answer.unwrap_err().to_string(),
                Err(error) => bail!("{}: {error}, and hit {hit}", what()),
            };
            ensure!(!host::module_loaded(), "{}: half loaded", what());
            ensure!(!Path::new(host::DEVICE).exists(), "{}: a device", what());
            let in_module = found
                .note(bench, "fail-nth-load", &text, again == 0 && hit)
                .with_context(what)?;
            if again == 0 {
                ours += in_module;
            }
            if in_module == 0 || !came {
                break;
            }
        }
        if !came {
            break;
        }
    }
    let after = pages()?;
    let text = format!(
        "{} failures, {ours} of them in the module; {loaded} times it was loaded all the same; \
         {before} pages in use before, {after} after",
        n - 1
    );
    bench.control.say("note", &text)?;
    drop(fail);
    found.tell(bench)?;
    ensure!(after - before < NOISE, "{text}");
    ensure!(ours > 10, "hardly any hit the module");
    nets::scan("fail-nth-load")
}

/// `open()`, `INITIALIZE` and exits with the n-th allocation or copy failing, for every n.
pub fn guest(bench: &mut Bench) -> Result<()> {
    let fail = fail_nth()?;
    host::load_module()?;
    // All that is done for the first time is done now.
    for program in [TOUCH, COUNT, RING, BOUND] {
        let guest = Tiny::new(PAGES, program)?;
        fail.with(FAR, || guest.next())?
            .0
            .map_err(Errno::from_raw)?;
    }
    bench.log.new_records()?;
    for (name, tried) in [
        (
            "open()",
            opens as fn(&mut Bench, &FailNth, &mut Found, bool) -> Result<u32>,
        ),
        ("INITIALIZE", initializes),
    ] {
        let mut found = Found::default();
        let failures = tried(bench, &fail, &mut found, true)?;
        // A debug kernel keeps each way that leads to an allocation, for good: so pages are counted
        // when all have been gone once.
        let before = pages()?;
        bench.log.new_records()?;
        for _ in 1..AGAIN {
            tried(bench, &fail, &mut found, false)?;
        }
        let after = pages()?;
        let text = format!(
            "{name}: {failures} failures, each {AGAIN} times; {before} pages in use after the \
             first time, {after} after the last"
        );
        bench.control.say("note", &text)?;
        found.tell(bench)?;
        ensure!(after - before < NOISE, "{text}");
    }
    for run in &RUNS {
        let before = pages()?;
        let mut found = Found::default();
        let (failures, tried, exits) = runs(bench, &fail, run, &mut found)?;
        let name = run.name;
        let after = pages()?;
        let text = format!(
            "{name}: {exits} exits, {failures} places to fail, {tried} tried; {before} pages in \
             use before, {after} after"
        );
        bench.control.say("note", &text)?;
        found.tell(bench)?;
        ensure!(after - before < NOISE, "{text}");
    }
    drop(fail);
    nets::scan("fail-nth-guest")
}

/// Opens the device; gives how many failures there were.
fn opens(bench: &mut Bench, fail: &FailNth, found: &mut Found, new: bool) -> Result<u32> {
    for n in 1..FAR {
        // SAFETY: The name is a C string.
        let (file, left) = fail.with(n, || unsafe {
            let file = libc::open(c"/dev/lguest".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            (file, Errno::last())
        })?;
        let came = left == 0;
        let text = match file {
            (file @ 0.., _) => {
                // SAFETY: It is open, and nobody else's.
                drop(unsafe { File::from_raw_fd(file) });
                "opened".to_owned()
            }
            (_, error @ (Errno::ENOMEM | Errno::EFAULT)) if came => error.to_string(),
            (_, error) => bail!("failure {n} of open(): {error}, and hit {came}"),
        };
        let what = || format!("failure {n} of open()");
        found
            .note(bench, "fail-nth-guest", &text, new && came)
            .with_context(what)?;
        host::wait_until_free().with_context(what)?;
        if !came {
            return Ok(n - 1);
        }
    }
    bail!("there is no end of open()'s failures")
}

/// Pages of the Guests here.
const PAGES: usize = 64;

/// INITIALIZEs; what fails must be as if it had not been tried, and go well the next time.
fn initializes(bench: &mut Bench, fail: &FailNth, found: &mut Found, new: bool) -> Result<u32> {
    for n in 1..FAR {
        let memory = Memory::new(PAGES)?;
        let words = memory.load(COUNT);
        let device = Device::open()?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let (answer, left) = fail.with(n, || device.bytes(&bytes))?;
        let came = left == 0;
        let what = || format!("failure {n} of INITIALIZE");
        let text = match answer {
            Ok(56) => "done".to_owned(),
            Err(number @ (libc::ENOMEM | libc::EFAULT)) if came => {
                let early = device.read(24);
                ensure!(
                    early == Err(libc::EINVAL),
                    "{}: read() says {}",
                    what(),
                    say(early)
                );
                let again = device.request(&words);
                ensure!(again == Ok(56), "{}: the next says {}", what(), say(again));
                Errno::from_raw(number).to_string()
            }
            other => bail!("{}: {}, and hit {came}", what(), say(other)),
        };
        let first = device.next_key();
        ensure!(first == Ok(0), "{}: then {}", what(), say(first));
        drop(device);
        found
            .note(bench, "fail-nth-guest", &text, new && came)
            .with_context(what)?;
        host::wait_until_free().with_context(what)?;
        if !came {
            return Ok(n - 1);
        }
    }
    bail!("there is no end of INITIALIZE's failures")
}

/// Exits that are enough.
const EXITS: u64 = 1000;

/// What a Guest that was hit may say in its last words.
const REASONS: [&str; 6] = [
    "no memory",
    "the Launcher has nothing there",
    "the Launcher has no memory for",
    "the kernel refused",
    "unhandled trap 6",
    "bad read",
];

/// A Guest that is run again and again, and the keys that it sends.
struct Run {
    name: &'static str,
    program: Program,
    pages: usize,
    first: u64,
    step: u64,
}

/// One that touches much, so that each page is an exit; the others send something at every exit.
const RUNS: [Run; 6] = [
    run("faults", TOUCH, 1024, 1, 1),
    run("calls", COUNT, 64, 0, 1),
    run("the ring", RING, 64, 0, 1),
    run("bound records", BOUND, 64, 0, 1),
    run("sleep", NAP, 64, 1000, 1000),
    run("death", DIE, 64, 0, 1),
];

const fn run(name: &'static str, program: Program, pages: usize, first: u64, step: u64) -> Run {
    Run {
        name,
        program,
        pages,
        first,
        step,
    }
}

/// How a run with one failure ended.
struct End {
    /// What came of the failure; nothing if it did not come.
    what: Option<String>,
    exits: u64,
}

impl Run {
    /// Runs it up to the `n`-th failure or the thousandth exit, and sees that it goes on then.
    fn once(&self, fail: &FailNth, n: u32) -> Result<End> {
        let guest = Tiny::new(self.pages, self.program)?;
        let begun = host::counter("world_switches")?;
        let (mut left, mut records) = (n, 0);
        loop {
            // Whoever sleeps is woken.
            let woken = guest.device.request(&[IRQ, NAP_LINE]);
            ensure!(woken == Ok(16), "IRQ: {}", say(woken));
            let (answer, off) = fail.with(left, || guest.next())?;
            left = off;
            let exits = host::counter("world_switches")? - begun;
            let end = |what: &str| {
                let what = Some(what.to_owned());
                Ok(End { what, exits })
            };
            match answer {
                Ok(key) => {
                    let wanted = self.first + self.step * records;
                    ensure!(key == wanted, "record {key} instead of {wanted}");
                    records += 1;
                    if left == 0 {
                        self.goes_on(&guest, records)?;
                        return end("the Guest goes on");
                    }
                }
                Err(libc::EFAULT) if left == 0 => {
                    self.goes_on(&guest, records)?;
                    return end("EFAULT, and the record comes with the next read()");
                }
                Err(libc::ENOENT) => {
                    let reason = last_words(&guest.device)?;
                    let known = REASONS.iter().find(|known| reason.contains(*known));
                    let known = known.with_context(|| format!("it died of {reason:?}"))?;
                    if left != 0 {
                        ensure!(reason.contains("trap 6"), "not hit, and died: {reason:?}");
                        return Ok(End { what: None, exits });
                    }
                    return end(&format!("killed: \"... {known} ...\""));
                }
                other => bail!("read() says {}, {left} off", say(other)),
            }
            if exits >= EXITS {
                return Ok(End { what: None, exits });
            }
        }
    }

    /// Nothing is missing: the next record is the next.
    fn goes_on(&self, guest: &Tiny, records: u64) -> Result<()> {
        let woken = guest.device.request(&[IRQ, NAP_LINE]);
        ensure!(woken == Ok(16), "IRQ: {}", say(woken));
        let wanted = self.first + self.step * records;
        guest.expect("after a failure", wanted)
    }
}

/// Runs a Guest, once for each place to fail on the way to its thousandth exit: each of the first
/// ones, and one in so many hundredths of the others. Gives how many places there are, how many
/// were tried, and the exits.
fn runs(
    bench: &mut Bench,
    fail: &FailNth,
    run: &Run,
    found: &mut Found,
) -> Result<(u32, u32, u64)> {
    let every = bench.words.iter().any(|word| word == "every");
    let (first, sparse) = if bench.long() { (300, 50) } else { (60, 8) };
    let (mut n, mut tried) = (1, 0);
    loop {
        ensure!(n < 50 * FAR, "there is no end of it");
        let what = || format!("{}, failure {n}", run.name);
        let end = run.once(fail, n).with_context(what)?;
        host::wait_until_free().with_context(what)?;
        let text = end.what.as_deref().unwrap_or_default();
        found
            .note(bench, "fail-nth-guest", text, end.what.is_some())
            .with_context(what)?;
        if end.what.is_none() {
            return Ok((n - 1, tried, end.exits));
        }
        tried += 1;
        n += if every || n < first {
            1
        } else {
            1 + n / sparse
        };
    }
}

/// Memory that is taken from a Guest: see the stand-in of that name.
pub fn memory_taken(bench: &mut Bench) -> Result<()> {
    let guests = if bench.long() { "2000" } else { "60" };
    stand_in(bench, &["memory-taken", guests])
}

/// INITIALIZE under signals: see the stand-in of that name.
pub fn initialize_signals(bench: &mut Bench) -> Result<()> {
    let times = if bench.long() { "2000" } else { "150" };
    stand_in(bench, &["initialize-signals", times])
}

/// Runs a stand-in with a seed.
fn stand_in(bench: &mut Bench, words: &[&str; 2]) -> Result<()> {
    host::load_module()?;
    let seed = bench.seed().to_string();
    let [name, times] = words;
    let ended = Guest::stand_in(&[name, &seed, times])?.finish()?;
    let notes = ended
        .output
        .lines()
        .filter_map(|l| l.strip_prefix("note: "));
    for note in notes {
        bench.control.say("note", note)?;
    }
    ended
        .expect_code(0)
        .with_context(|| format!("seed={seed}"))?;
    host::wait_until_free()
}

/// A file system in memory of so many KiB.
struct Small(&'static str);

impl Small {
    fn new(kib: u32) -> Result<Self> {
        let place = "/tmp/small";
        fs::create_dir_all(place)?;
        let small = Self(place);
        small.mount(kib, MsFlags::empty())?;
        Ok(small)
    }

    fn mount(&self, kib: u32, flags: MsFlags) -> Result<()> {
        let size = format!("size={kib}k");
        mount(
            Some("none"),
            self.0,
            Some("tmpfs"),
            flags,
            Some(size.as_str()),
        )
        .with_context(|| format!("no tmpfs of {kib} KiB"))
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What stays goes with the machine.
        let _ = umount(self.0);
    }
}

/// A disk whose file has holes, on a file system without room to fill them: the Guest is told of
/// the write that fails, nobody else is hurt, and with more room it is a disk like any other.
pub fn disk_full(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let small = Small::new(4096)?;
    let path = small.file("disk");
    File::create(&path)?.set_len(8 << 20)?;
    let block = format!("--block={path}");
    let words = ["-v", &block, "32", "/guests/drive", "case=disk"];
    let ended = Guest::launch(&words)?.finish()?;
    ended
        .expect_code(CRASHED)?
        .expect_error("driver works")?
        .expect_error("failed")?;
    let told = ended
        .errors
        .lines()
        .filter(|line| line.contains("failed") || line.contains("crash"));
    for line in told {
        bench.control.say("note", line)?;
    }
    host::wait_until_free()?;
    small.mount(16384, MsFlags::MS_REMOUNT)?;
    let ended = Guest::launch(&words)?.finish()?;
    ended
        .expect_code(OFF)?
        .expect_output("good: 8388608 bytes read back")?;
    host::wait_until_free()
}

/// A console that goes to a file, on a file system that is full: the Launcher says so and ends, and
/// with it the Guest.
pub fn output_full(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let small = Small::new(64)?;
    let mut filler = File::create(small.file("filler"))?;
    let full = loop {
        match filler.write_all(&[1; 4096]) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    ensure!(full.raw_os_error() == Some(libc::ENOSPC), "{full}");
    let launch = |name: &str| -> Result<_> {
        let log = File::create(small.file(name))?;
        let output = Command::new(LAUNCHER)
            .args(["16", "/guests/probe", "case=hello"])
            .stdin(Stdio::null())
            .stdout(log)
            .output()?;
        Ok((
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    };
    let (code, said) = launch("log")?;
    bench.control.say("note", said.trim())?;
    ensure!(
        code == Some(3) && said.contains("No space left on device"),
        "{code:?}: {said}"
    );
    host::wait_until_free()?;
    drop(filler);
    fs::remove_file(small.file("filler"))?;
    let (code, said) = launch("log")?;
    ensure!(code == Some(OFF), "with room, {code:?}: {said}");
    let printed = fs::read_to_string(small.file("log"))?;
    ensure!(printed.contains("good: hello"), "{printed}");
    host::wait_until_free()
}
