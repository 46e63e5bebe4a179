// SPDX-License-Identifier: GPL-2.0-only

//! Cases of devices, with a test Guest that is built on the drivers of the book.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Bench, guests};
use crate::guest::{Ended, Guest};
use crate::host::{self, LAUNCHER};

/// Runs the test Guest with these options of the Launcher's and these words, to a good end.
fn drive(options: &[&str], words: &[&str]) -> Result<Ended> {
    host::load_module()?;
    let arguments = [&["-v"], options, &["32", "/guests/drive"], words].concat();
    let ended = Guest::launch(&arguments)?.finish()?;
    ended.expect_code(guests::OFF)?;
    Ok(ended)
}

/// The rest of the line that begins so.
fn line<'a>(ended: &'a Ended, start: &str) -> Result<&'a str> {
    let mut lines = ended.output.lines();
    let found = lines.find_map(|line| line.strip_prefix(start));
    found.with_context(|| format!("no line {start:?} in:\n{}", ended.output))
}

/// Random bytes are there, are not zero, and differ from one Guest to the next.
pub fn random(bench: &mut Bench) -> Result<()> {
    let one = drive(&["--rng"], &["case=random"])?;
    let other = drive(&["--rng"], &["case=random"])?;
    one.expect_output("good: all lengths")?;
    other.expect_output("good: all lengths")?;
    let (one, other) = (
        line(&one, "good: random ")?.to_owned(),
        line(&other, "good: random ")?,
    );
    bench
        .control
        .say("note", &format!("first 32 bytes: {one}"))?;
    ensure!(one != other, "the same bytes twice: {one}");

    let works = "lguest: device 1: random, 1 page, driver works";
    let ended = drive(&["--rng"], &["case=random"])?;
    ensure!(ended.errors.contains(works), "{}", ended.errors);
    // Without the option there is no device, and the Guest is told so.
    let none = Guest::launch(&["32", "/guests/drive", "case=random"])?.finish()?;
    none.expect_code(guests::CRASHED)?;
    ensure!(none.errors.contains("no random bytes"), "{}", none.errors);
    host::wait_until_free()
}

/// Where the files of disks are.
const FILE: &str = "/tmp/disk";

/// A file for a disk, gone with this.
struct Scratch;

impl Scratch {
    fn new(bytes: u64) -> Result<Self> {
        fs::create_dir_all("/tmp")?;
        let file = File::create(FILE)?;
        file.set_len(bytes)?;
        Ok(Self)
    }

    /// The name of another file beside it.
    fn other(name: &str) -> Result<String> {
        fs::create_dir_all("/tmp")?;
        Ok(format!("/tmp/{name}"))
    }

    fn block(suffix: &str) -> String {
        format!("--block={FILE}{suffix}")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(FILE);
    }
}

/// A loop device in front of a file, so that there is a disk that Linux must wait for.
struct Loop(File, &'static str);

impl Loop {
    fn new(file: &str) -> Result<Self> {
        let name = "/dev/loop0";
        let open = |name: &str| File::options().read(true).write(true).open(name);
        let device = open(name).with_context(|| format!("cannot open {name}"))?;
        let file = open(file)?;
        // SAFETY: LOOP_SET_FD takes the descriptor of an open file.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), 0x4c00, file.as_raw_fd()) };
        ensure!(
            done == 0,
            "LOOP_SET_FD: {}",
            std::io::Error::last_os_error()
        );
        Ok(Self(device, name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // SAFETY: LOOP_CLR_FD takes nothing.
        unsafe { libc::ioctl(self.0.as_raw_fd(), 0x4c01, 0) };
    }
}

/// Whether the file is what the test Guest writes to its disk.
fn is_pattern(seed: u64) -> Result<()> {
    let bytes = fs::read(FILE)?;
    for (n, word) in (0_u64..).zip(bytes.chunks_exact(8)) {
        let wanted = n.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ensure!(
            word == wanted.to_le_bytes(),
            "word {n} of the file is {word:02x?}"
        );
    }
    Ok(())
}

/// The number before some word on the line of device 1.
fn counted(ended: &Ended, what: &str) -> Result<u64> {
    let start = "lguest: device 1: block, 1 page, driver works; ";
    let mut lines = ended.errors.lines();
    let line = lines.find_map(|line| line.strip_prefix(start));
    let line = line.with_context(|| format!("no line of the disk in:\n{}", ended.errors))?;
    let number = line.split(", ").find_map(|part| part.strip_suffix(what));
    number
        .and_then(|number| number.trim().parse().ok())
        .with_context(|| format!("no {what} in {line:?}"))
}

/// 64 MiB go to a file and come back, and the Host sees the same in it.
pub fn disk(bench: &mut Bench) -> Result<()> {
    let _file = Scratch::new(64 << 20)?;
    let seed = bench.seed();
    let words = ["case=disk", &format!("seed={seed}")];
    let ended = drive(&[&Scratch::block("")], &words)?;
    ended.expect_output("good: 67108864 bytes read back")?;
    is_pattern(seed)?;
    let [reads, writes, flushes, at_once] =
        [" reads", " writes", " flushes", " done at once"].map(|what| counted(&ended, what));
    let (reads, writes, at_once) = (reads?, writes?, at_once?);
    ensure!(
        (reads, writes, flushes?) == (1024, 1024, 1),
        "{}",
        ended.errors
    );
    // A file in memory makes nobody wait.
    ensure!(at_once == 2048, "{}", ended.errors);
    host::wait_until_free()
}

/// The same through a block device that Linux has to wait for, with several requests under way;
/// and what was flushed is behind it, while the Guest still runs.
pub fn disk_waits(bench: &mut Bench) -> Result<()> {
    let _file = Scratch::new(8 << 20)?;
    let device = Loop::new(FILE)?;
    // Linux would read ahead, and what it has read makes nobody wait.
    let name = device.1.rsplit('/').next().unwrap_or_default();
    fs::write(format!("/sys/block/{name}/queue/read_ahead_kb"), "0")?;
    let seed = bench.seed();
    host::load_module()?;
    let block = format!("--block={}", device.1);
    let seed_word = format!("seed={seed}");
    let words = ["case=disk", "wait=1", &seed_word];
    let arguments = [&["-v", &block, "32", "/guests/drive"], &words[..]].concat();
    let mut guest = Guest::launch(&arguments)?;
    guest.wait_for("flushed")?;
    is_pattern(seed).context("after the flush")?;
    // What Linux has kept of it is forgotten, so that the Guest has to wait.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    guest.send(b"\n")?;
    let ended = guest.finish()?;
    ended.expect_code(guests::OFF)?;
    let under_way = |what: &str| -> Result<u64> {
        let rest = line(&ended, &format!("good: 8388608 bytes {what}, at most "))?;
        let number = rest.split(' ').next().and_then(|n| n.parse().ok());
        number.with_context(|| format!("no number in {rest:?}"))
    };
    let (written, read) = (under_way("written")?, under_way("read back")?);
    let at_once = counted(&ended, " done at once")?;
    let note = format!("{written} writes and {read} reads under way, {at_once} done at once");
    bench.control.say("note", &note)?;
    ensure!(written > 1 && read > 1, "nothing was under way together");
    host::wait_until_free()
}

/// Bytes anywhere, against a copy; what cannot be; and a file that shrinks.
pub fn disk_errors(bench: &mut Bench) -> Result<()> {
    let _file = Scratch::new(200 << 10)?;
    let seed = format!("seed={}", bench.seed());
    let block = Scratch::block("");
    drive(&[&block], &["case=disk-bytes", &seed])?.expect_output("good: bytes anywhere")?;
    let ended = drive(&[&block], &["case=disk-errors"])?;
    ended.expect_output("good: can be written")?;
    ensure!(counted(&ended, " failed")? == 10, "{}", ended.errors);
    let before = fs::read(FILE)?;
    let read_only = Scratch::block(",ro");
    let ended = drive(&[&read_only], &["case=disk-errors"])?;
    ended.expect_output("good: read only")?;
    ensure!(
        fs::read(FILE)? == before,
        "a disk that is read only has changed"
    );

    let mut guest = Guest::launch(&[&block, "32", "/guests/drive", "case=disk-shrinks"])?;
    guest.wait_for("ready")?;
    File::options().write(true).open(FILE)?.set_len(2048)?;
    guest.send(b"\n")?;
    let ended = guest.finish()?;
    ended.expect_code(guests::OFF)?;
    ended.expect_output("good: a disk that shrinks")?;
    host::wait_until_free()
}

/// A Guest that asks its disk for the impossible is ended, with a reason.
pub fn disk_impossible(_: &mut Bench) -> Result<()> {
    let _file = Scratch::new(64 << 10)?;
    host::load_module()?;
    let memory = 32_u64 << 20;
    let tries = [
        (
            memory + 2 * 4096,
            512,
            0,
            "across a page or outside its memory",
        ),
        (memory - 256, 512, 0, "across a page or outside its memory"),
        (
            u64::MAX - 100,
            512,
            0,
            "across a page or outside its memory",
        ),
        (0x10_0000, 512, 2, "none of its disk's"),
        (0x10_0000, 512, 32, "none of its disk's"),
        (0x10_0000, 512, 4096, "where no device is"),
    ];
    for (address, bytes, key, says) in tries {
        let numbers = [("address", address), ("bytes", bytes), ("key", key)];
        let numbers = numbers.map(|(name, number)| format!("{name}={number}"));
        let words: Vec<&str> = numbers.iter().map(String::as_str).collect();
        let start = [
            &Scratch::block(""),
            "32",
            "/guests/drive",
            "case=disk-impossible",
        ];
        let arguments: Vec<&str> = start.into_iter().chain(words).collect();
        let ended = Guest::launch(&arguments)?.finish()?;
        ended.expect_code(guests::KILLED)?;
        ensure!(ended.errors.contains(says), "{numbers:?}: {}", ended.errors);
        host::wait_until_free()?;
    }
    Ok(())
}

/// Kills a Launcher, and waits until it is gone.
fn kill(guest: Guest) -> Result<()> {
    guest.signal(Signal::SIGKILL)?;
    guest.finish()?;
    Ok(())
}

/// What a read from a disk costs, and a line on the console; both go to files in memory.
pub fn costs(bench: &mut Bench) -> Result<()> {
    let _file = Scratch::new(64 << 10)?;
    let ended = drive(&[&Scratch::block("")], &["case=disk-cost"])?;
    let console = Scratch::other("console")?;
    let guest = Command::new(LAUNCHER)
        .args(["32", "/guests/drive", "case=console-cost"])
        .stdin(Stdio::null())
        .stdout(File::create(&console)?)
        .status()?;
    ensure!(guest.success(), "{guest}");
    let printed = fs::read_to_string(&console)?;
    fs::remove_file(console)?;
    for line in ended.output.lines().chain(printed.lines()) {
        if line.starts_with("good: ") {
            bench.control.say("note", line.trim_end())?;
        }
    }
    host::wait_until_free()
}

/// One file is one Guest's disk, or several Guests read it.
pub fn disk_locked(_: &mut Bench) -> Result<()> {
    let _file = Scratch::new(64 << 10)?;
    host::load_module()?;
    let (written, read) = (Scratch::block(""), Scratch::block(",ro"));
    let start = |block: &str| Guest::launch(&[block, "32", "/guests/drive", "case=disk-shrinks"]);
    let refused = |block: &str| -> Result<()> {
        let ended = start(block)?.finish()?;
        ended.expect_code(2)?;
        ensure!(
            ended.errors.contains("somebody else has it"),
            "{}",
            ended.errors
        );
        Ok(())
    };
    let writer = start(&written)?;
    writer.wait_for("ready")?;
    refused(&written)?;
    refused(&read)?;
    // However a Launcher ends, its lock is gone with it.
    kill(writer)?;
    let readers = [start(&read)?, start(&read)?];
    for reader in &readers {
        reader.wait_for("ready")?;
    }
    refused(&written)?;
    for reader in readers {
        kill(reader)?;
    }
    let twice = Guest::launch(&[&written, &written, "32", "/guests/drive"])?.finish()?;
    twice.expect_code(2)?;
    ensure!(
        twice.errors.contains("somebody else has it"),
        "{}",
        twice.errors
    );
    let odd = File::options().write(true).open(FILE)?;
    odd.set_len(1000)?;
    let ended = start(&written)?.finish()?;
    ended.expect_code(2)?;
    ensure!(
        ended.errors.contains("truncate -s 1024"),
        "{}",
        ended.errors
    );
    host::wait_until_free()
}
