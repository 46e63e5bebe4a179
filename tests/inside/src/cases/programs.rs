// SPDX-License-Identifier: GPL-2.0-only

//! The Guest's shell and programs, driven over the console as a person would.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::guest::{Ended, Guest};
use crate::host;
use crate::random::Random;

/// The Guest's initial disk.
const INITRD: &str = "--initrd=/guests/initrd.cpio";
/// What the shell shows when it waits for a line.
const PROMPT: &str = "$ ";
/// After which time without a prompt a person types `^C` once more.
const AGAIN: Duration = Duration::from_secs(5);
/// The exit status of a Launcher whose Guest has switched itself off.
const OFF: i32 = 0;

/// Somebody at the console of a Guest whose shell waits for a line.
pub(super) struct Session {
    guest: Guest,
    /// How much of the output has been looked at.
    read: usize,
}

impl Session {
    /// Starts a Guest with so much memory in MiB and waits for the first prompt.
    fn start(memory: &str) -> Result<Self> {
        Self::with(&[], memory)
    }

    /// The same with more options of the Launcher's.
    fn with(options: &[&str], memory: &str) -> Result<Self> {
        Self::of(&[options, &[INITRD, memory, "/guests/guest"]].concat())
    }

    /// Starts a Guest with these arguments of the Launcher's and waits for the first prompt.
    pub(super) fn of(arguments: &[&str]) -> Result<Self> {
        host::load_module()?;
        let guest = Guest::launch(arguments)?;
        let mut session = Self { guest, read: 0 };
        session.until_prompt()?;
        Ok(session)
    }

    /// All that has been said so far.
    pub(super) fn said(&self) -> Result<String> {
        Ok(self.guest.output_until(|_| true)?.replace('\r', ""))
    }

    /// Waits until all of these have been said.
    pub(super) fn until(&mut self, words: &[&str]) -> Result<()> {
        let read = self.read;
        let text = self.guest.output_until(|text| {
            let new = text.get(read..).unwrap_or_default();
            words.iter().all(|word| new.contains(word))
        })?;
        self.read = text.len();
        Ok(())
    }

    /// Waits until something has been said so often.
    pub(super) fn until_count(&mut self, word: &str, times: usize) -> Result<()> {
        let read = self.read;
        let text = self.guest.output_until(|text| {
            let new = text.get(read..).unwrap_or_default();
            new.matches(word).count() >= times
        })?;
        self.read = text.len();
        Ok(())
    }

    /// Types bytes, and does not wait for anything.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.guest.send(bytes)
    }

    /// All that is said up to the next prompt.
    pub(super) fn until_prompt(&mut self) -> Result<String> {
        let read = self.read;
        let text = self
            .guest
            .output_until(|text| text.len() > read && text[read..].ends_with(PROMPT))?;
        self.read = text.len();
        let new = &text[read..];
        Ok(new[..new.len() - PROMPT.len()].replace('\r', ""))
    }

    /// Types `^C` until there is a prompt, as a person would: one that is typed before the job has
    /// begun is a key like others, which nobody reads while the job runs. Gives what is said
    /// before the prompt.
    fn interrupt(&mut self) -> Result<String> {
        let read = self.read;
        for _ in 0..20 {
            self.guest.send(b"\x03")?;
            let prompt = |text: &str| text.len() > read && text[read..].ends_with(PROMPT);
            if self.guest.output_within(AGAIN, prompt).is_some() {
                break;
            }
        }
        self.until_prompt()
    }

    /// Types a line; gives what is said before the next prompt, without the line itself.
    pub(super) fn line(&mut self, line: &str) -> Result<String> {
        self.guest.send(format!("{line}\n").as_bytes())?;
        let said = self.until_prompt().with_context(|| line.to_owned())?;
        let answer = said.strip_prefix(&format!("{line}\n"));
        let answer = answer.with_context(|| format!("{line:?} was shown as {said:?}"))?;
        Ok(answer.to_owned())
    }

    /// Types lines whose answers are known.
    pub(super) fn expect(&mut self, lines: &[(&str, &str)]) -> Result<()> {
        for (line, answer) in lines {
            let said = self.line(line)?;
            ensure!(said == *answer, "{line:?} gives {said:?}, not {answer:?}");
        }
        Ok(())
    }

    /// Types a line after which the Guest is switched off.
    pub(super) fn last_line(mut self, line: &str) -> Result<Ended> {
        self.guest.send(line.as_bytes())?;
        let ended = self.guest.finish()?;
        ended.expect_code(OFF)?;
        Ok(ended)
    }
}

/// Lines and what they give: words, quotes, jobs, files and statuses.
pub fn shell(_: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    session.expect(&[
        ("", ""),
        ("# nothing at all", ""),
        (
            "echo one  'two  three' \"four\" fi\\ ve",
            "one two  three four fi ve\n",
        ),
        ("echo '$?' \"$?\" $?", "$? 0 0\n"),
        ("true; echo $?", "0\n"),
        ("false; echo $?; echo $?", "1\n0\n"),
        ("false | true; echo $?", "0\n"),
        ("true | false; echo $?", "1\n"),
        ("sh -c 'exit 7'; echo $?", "7\n"),
        ("echo one two | wc", "1 2 8 -\n"),
        ("echo a | cat | cat | cat | wc", "1 1 2 -\n"),
        ("echo one > /tmp/a; echo two >> /tmp/a", ""),
        ("cat /tmp/a; cat < /tmp/a | wc", "one\ntwo\n2 2 8 -\n"),
        ("echo three > /tmp/a; cat /tmp/a", "three\n"),
        ("echo $? > /tmp/status$?; cat /tmp/status0", "0\n"),
        ("echo 'echo from a file; false' > /tmp/script", ""),
        ("sh /tmp/script; echo $?", "from a file\n1\n"),
        (
            "help | head -n 1",
            "A line is a command and its words, or several:\n",
        ),
    ])?;
    session.expect(&[
        (
            "nosuch; echo $?",
            "sh: nosuch: no such program; `help` lists them\n127\n",
        ),
        (
            "/bin/nosuch; echo $?",
            "sh: /bin/nosuch: no such file or directory\n127\n",
        ),
        ("/etc/motd; echo $?", "sh: /etc/motd: not a program\n126\n"),
        (
            "cat < /nowhere; echo $?",
            "sh: /nowhere: no such file or directory\n1\n",
        ),
        ("echo 'a", "sh: the quote ' has no other half\n"),
        ("echo $?", "2\n"),
        ("echo a | | wc", "sh: a command is missing beside |\n"),
        ("echo not run; > a", "sh: a command is missing beside >\n"),
        ("exit 1 2", "usage: exit [status], wait\n"),
    ])?;
    // Every program is listed, and knows how it is used.
    let help = session.line("help")?;
    let (_, list) = help.split_once("how it is used:\n").context("no list")?;
    let programs: Vec<&str> = list.split_whitespace().collect();
    for name in ["cat", "dd", "ls", "ping", "ps", "sh", "stress", "wc"] {
        ensure!(programs.contains(&name), "no {name} in {list:?}");
    }
    session.last_line("exit\n")?;
    Session::start("16")?.last_line("\x04")?;
    Ok(())
}

/// What `^C` ends, and what it does not.
pub fn interrupt(_: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    for line in ["sleep 1000", "cat /dev/zero | sum", "sleep 1000 | cat | wc"] {
        session.guest.send(format!("{line}\n").as_bytes())?;
        session.guest.wait_for(&format!("{line}\n"))?;
        std::thread::sleep(Duration::from_millis(300));
        session.interrupt().with_context(|| line.to_owned())?;
        session.expect(&[("echo $?", "130\n")])?;
    }
    // What was typed for the job goes with it, and is no command of the shell's.
    session.guest.send(b"cat\n")?;
    session.guest.wait_for("cat\n")?;
    session.guest.send(b"half")?;
    session.guest.wait_for("half")?;
    session.interrupt()?;
    session.expect(&[("echo whole; echo $?", "whole\n0\n")])?;
    // The rest of the line is given up too; a line that is being typed is; nothing else.
    session.guest.send(b"sleep 1000; echo still here\n")?;
    std::thread::sleep(Duration::from_millis(300));
    let said = session.interrupt()?;
    ensure!(!said.contains("still here\nstill"), "{said:?}");
    ensure!(said.matches("still here").count() == 1, "{said:?}");
    session.guest.send(b"echo never\x03")?;
    session.until_prompt()?;
    session.guest.send(b"sleep 1000 &\n")?;
    let said = session.until_prompt()?;
    let pid = background(&said)?;
    session.guest.send(b"\x03")?;
    session.until_prompt()?;
    let tasks = session.line("ps")?;
    ensure!(
        tasks
            .lines()
            .filter(|line| line.ends_with(" sleep"))
            .count()
            == 1,
        "one program sleeps in the background: {tasks:?}"
    );
    // Nor does it end what the shell only waits for; but it ends the waiting.
    session.guest.send(b"wait; echo never\n")?;
    std::thread::sleep(Duration::from_millis(300));
    let said = session.interrupt()?;
    ensure!(said == "wait; echo never\n^C\n", "{said:?}");
    session.expect(&[
        ("echo $?", "130\n"),
        (
            &format!("kill {pid}; wait"),
            &format!("[{pid}] ended with 137\n"),
        ),
        (
            &format!("kill {pid}; echo $?"),
            &format!("kill: {pid}: no such process\n1\n"),
        ),
    ])?;
    session.last_line("halt\n")?;
    Ok(())
}

/// The number in `[7]`, which the shell says of a job in the background.
fn background(said: &str) -> Result<u32> {
    let number = said
        .rsplit_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    let (number, _) = number.with_context(|| format!("no job in {said:?}"))?;
    Ok(number.parse()?)
}

/// CRC-32, a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), bit);
    !bytes.iter().fold(!0, byte)
}

/// What the Guest's `pattern` prints, made as the book says.
pub fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let word = |index: u64| {
        let step = 0x9e37_79b9_7f4a_7c15;
        let z = seed.wrapping_add((index + 1).wrapping_mul(step));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..bytes.div_ceil(8) as u64)
        .flat_map(word)
        .take(bytes)
        .collect()
}

/// Programs that work on files, each with its output to the letter.
pub fn files(_: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    session.expect(&[
        ("ls", "bin/\ndev/\netc/\ninit\ntmp/\n"),
        ("ls /etc /tmp", "motd\n"),
        (
            "ls /nowhere; echo $?",
            "ls: /nowhere: no such file or directory\n1\n",
        ),
        ("ls -x; echo $?", "usage: ls [-l] [PATH...]\n2\n"),
        (
            "cat /etc/motd",
            "This machine is a Guest. All there is of it is in a book.\n",
        ),
        (
            "mkdir /tmp/d; mkdir /tmp/d",
            "mkdir: /tmp/d: exists already\n",
        ),
        ("echo 12345 > /tmp/d/b; echo 1 > /tmp/d/a", ""),
        ("ls /tmp /tmp/d", "d/\na\nb\n"),
        ("ls -l /tmp/d", "-          2 a\n-          6 b\n"),
        ("cat /tmp/d; echo $?", "cat: /tmp/d: is a directory\n1\n"),
        (
            "cat /tmp/d/a /nowhere /tmp/d/b",
            "1\n12345\ncat: /nowhere: no such file or directory\n",
        ),
        ("rm /tmp/d/a /tmp/d/b /tmp/d; ls /tmp", ""),
        (
            "rm /tmp/d; echo $?",
            "rm: /tmp/d: no such file or directory\n1\n",
        ),
        ("rm; echo $?", "usage: rm PATH...\n2\n"),
    ])?;
    session.expect(&[
        ("help | head -n 3 | wc", "3 27 123 -\n"),
        ("cat /dev/zero | head -c 100k | wc", "0 1 102400 -\n"),
        ("head -c 4 /etc/motd /etc/motd; echo", "ThisThis\n"),
        (
            "head -x; echo $?",
            "usage: head [-n LINES | -c BYTES] [FILE...]\n2\n",
        ),
        ("wc /etc/motd", "1 14 58 /etc/motd\n"),
    ])?;
    let whole = pattern(20_000, 7);
    let moved = [&[0; 4096][..], &whole[4096..12288]].concat();
    session.expect(&[
        ("pattern 20000 7 > /tmp/p", ""),
        ("sum /tmp/p", &format!("{:08x} 20000 /tmp/p\n", crc(&whole))),
        (
            "dd if=/tmp/p of=/tmp/q bs=4k skip=1 seek=1 count=2",
            "2+0 blocks read\n2+0 blocks written\n8192 bytes\n",
        ),
        ("sum /tmp/q", &format!("{:08x} 12288 /tmp/q\n", crc(&moved))),
        (
            "cat /tmp/p | dd bs=3000 | sum",
            &format!(
                "6+1 blocks read\n6+1 blocks written\n20000 bytes\n{:08x} 20000 -\n",
                crc(&whole)
            ),
        ),
        (
            "dd if=/tmp/p bs=0; echo $?",
            "dd: \"bs=\" means nothing here\n\
          usage: dd [if=FILE] [of=FILE] [bs=BYTES] [count=N] [skip=N] [seek=N]\n2\n",
        ),
        ("pattern x; echo $?", "usage: pattern BYTES [SEED]\n2\n"),
    ])?;
    session.last_line("halt\n")?;
    Ok(())
}

/// Programs at disks and at random bytes; some of them are killed while they wait for a disk.
pub fn devices(bench: &mut Bench) -> Result<()> {
    let [disk, fixed] = ["/tmp/disk-written", "/tmp/disk-fixed"];
    let whole = pattern(1 << 20, 3);
    fs::write(disk, &whole)?;
    fs::write(fixed, &whole[..64 << 10])?;
    let disks = [format!("--block={disk}"), format!("--block={fixed},ro")];
    let mut session = Session::with(&[&disks[0], &disks[1], "--rng"], "16")?;
    let piece = pattern(5000, 9);
    let last = crc(&whole[255 << 12..]);
    session.expect(&[
        ("ls /dev", "block0\nblock1\nconsole\nnull\nrandom\nzero\n"),
        (
            "sum /dev/block0",
            &format!("{:08x} 1048576 /dev/block0\n", crc(&whole)),
        ),
        (
            "sum < /dev/block1",
            &format!("{:08x} 65536 -\n", crc(&whole[..64 << 10])),
        ),
        (
            "pattern 5000 9 | dd of=/dev/block0 bs=1000 seek=7",
            "5+0 blocks read\n5+0 blocks written\n5000 bytes\n",
        ),
        (
            "dd if=/dev/block0 bs=4k skip=255 count=2 | sum",
            &format!("1+0 blocks read\n1+0 blocks written\n4096 bytes\n{last:08x} 4096 -\n"),
        ),
        (
            "dd if=/dev/zero of=/dev/block0 bs=4k seek=256 count=1; echo $?",
            "1+0 blocks read\n0+0 blocks written\n0 bytes\n\
             dd: /dev/block0: no space left\n1\n",
        ),
        (
            "echo a > /dev/block1; echo $?",
            "echo: cannot write: read only\n1\n",
        ),
        (
            "dd if=/dev/random bs=1000 count=1 > /tmp/one",
            "1+0 blocks read\n1+0 blocks written\n1000 bytes\n",
        ),
        (
            "head -c 1000 /dev/random > /tmp/two; ls -l /tmp",
            "-       1000 one\n-       1000 two\n",
        ),
        (
            "echo a > /dev/random; echo $?",
            "echo: cannot write: read only\n1\n",
        ),
    ])?;
    let [one, two] = [session.line("sum /tmp/one")?, session.line("sum /tmp/two")?];
    let sum = |said: &str| said.split(' ').next().map(str::to_owned);
    ensure!(sum(&one) != sum(&two), "the same bytes twice: {one:?}");
    // What `dd` has told is done is in the file.
    let mut wanted = whole;
    wanted[7000..12_000].copy_from_slice(&piece);
    ensure!(fs::read(disk)? == wanted, "the file is another");

    let free = |session: &mut Session| -> Result<String> {
        let memory = session.line("mem")?;
        let line = memory.lines().find(|line| line.contains("free"));
        Ok(line.with_context(|| memory.clone())?.to_owned())
    };
    let copy = format!("cat{} > /dev/null", " /dev/block0".repeat(15));
    let mut before = None;
    let mut random = Random::new(bench.seed());
    for round in 0..10 {
        let said = session.line(&format!("{copy} &"))?;
        let pid = background(&said)?;
        std::thread::sleep(Duration::from_millis(random.below(40)));
        session.expect(&[(
            &format!("kill {pid}; wait"),
            &format!("[{pid}] ended with 137\n"),
        )])?;
        let now = free(&mut session)?;
        let first = before.get_or_insert_with(|| now.clone());
        ensure!(now == *first, "round {round}: {now:?}, before {first:?}");
    }
    session.expect(&[(
        "sum /dev/block0",
        &format!("{:08x} 1048576 /dev/block0\n", crc(&wanted)),
    )])?;
    session.last_line("halt\n")?;
    fs::remove_file(disk)?;
    fs::remove_file(fixed)?;
    host::wait_until_free()
}

/// Programs about the machine.
pub fn machine(_: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    let up = session.line("uptime")?;
    let clock = up.strip_prefix("up ").context("uptime")?.trim_end();
    ensure!(
        clock.split(':').count() == 3 && clock.len() == 8 && clock.starts_with("00:"),
        "{up:?}"
    );
    let memory = session.line("mem")?;
    let numbers: Vec<u64> = memory
        .lines()
        .filter_map(|line| {
            line.strip_suffix(" KiB")?
                .split_whitespace()
                .last()?
                .parse()
                .ok()
        })
        .collect();
    let &[all, free, programs, heap, tables] = &numbers[..] else {
        anyhow::bail!("{memory:?}");
    };
    ensure!(all == 16 << 10 && programs > 0 && tables > 0, "{memory:?}");
    ensure!(
        free + programs + heap + tables < all && free > all / 2,
        "{memory:?}"
    );
    // Init has started `ps` and waits for it; it may not have come to that yet.
    let init = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], ["1", "0", _, "sleeps", _, _, "init"])
    };
    let mut tasks = session.line("ps")?;
    for _ in 0..5 {
        if tasks.lines().any(|line| init(&line)) {
            break;
        }
        tasks = session.line("ps")?;
    }
    ensure!(tasks.lines().filter(init).count() == 1, "{tasks:?}");
    ensure!(
        tasks
            .lines()
            .any(|line| line.ends_with(" ps") && line.contains(" runs ")),
        "{tasks:?}"
    );

    let begun = Instant::now();
    session.expect(&[("sleep 0.5; echo $?", "0\n")])?;
    let slept = begun.elapsed();
    ensure!(slept >= Duration::from_millis(500), "slept {slept:?} only");
    session.expect(&[
        ("sleep; echo $?", "usage: sleep SECONDS\n2\n"),
        ("kill 4000; echo $?", "kill: 4000: no such process\n1\n"),
        ("kill x; echo $?", "usage: kill PID...\n2\n"),
        ("halt now; echo $?", "usage: halt [-r]\n2\n"),
    ])?;
    let said = session.line("sleep 1000 &")?;
    let pid = background(&said)?;
    session.expect(&[(
        &format!("kill {pid}; wait"),
        &format!("[{pid}] ended with 137\n"),
    )])?;
    let said = session.line("false & wait")?;
    let pid = background(said.lines().next().unwrap_or_default())?;
    ensure!(
        said == format!("[{pid}]\n[{pid}] ended with 1\n"),
        "{said:?}"
    );

    // It starts over, and is there again.
    session.guest.send(b"halt -r\n")?;
    session.until_prompt()?;
    session.expect(&[("echo again", "again\n")])?;
    session.last_line("halt\n")?;
    Ok(())
}

/// The kernel at work: forks, copies, stacks and shares.
pub fn stress(bench: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    let forks = if bench.long() { 10_000 } else { 1000 };
    let begun = Instant::now();
    session.expect(&[(
        &format!("stress fork {forks}"),
        &format!("{forks} forks, 0 frames lost\n"),
    )])?;
    let note = format!("{forks} forks in {:.1} s", begun.elapsed().as_secs_f32());
    bench.control.say("note", &note)?;
    session.expect(&[
        ("stress memory 1M", "1048576 bytes, two copies, both good\n"),
        (
            "stress memory 1M | stress memory 2M | cat",
            "2097152 bytes, two copies, both good\n",
        ),
        (
            "stress; echo $?",
            "usage: stress fork COUNT | memory BYTES | \
          share PROCESSES SECONDS | fault | stack\n2\n",
        ),
    ])?;
    let said = session.line("stress stack; echo $?")?;
    ensure!(
        said.contains("900 KiB of stack are there, 1100 are not\n0\n")
            && said.matches("was ended: page fault").count() == 1,
        "{said:?}"
    );
    // More memory than there is: the program is told, or ended, and the rest lives on.
    let said = session.line("stress memory 64M; echo $?")?;
    ensure!(!said.ends_with("\n0\n"), "{said:?}");
    session.expect(&[("echo alive", "alive\n")])?;
    session.last_line("halt\n")?;
    Ok(())
}

/// Processes that compute get equal shares of the processor.
pub fn share(bench: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    for count in [2_u64, 5] {
        let said = session.line(&format!("stress share {count} 2"))?;
        let shares: Vec<u64> = said
            .lines()
            .filter_map(|line| line.strip_suffix(" of 1000")?.parse().ok())
            .collect();
        bench.control.say("note", &format!("{shares:?}"))?;
        let fair = 1000 / count;
        let good = |share: &u64| (fair * 2 / 3..=fair * 3 / 2).contains(share);
        ensure!(
            shares.len() as u64 == count && shares.iter().all(good),
            "{shares:?} of {said:?}"
        );
    }
    session.last_line("halt\n")?;
    Ok(())
}

/// The names of what is measured, in order.
const COSTS: [&str; 4] = ["null_call", "fault", "fork_exit_wait", "pipe_ping_pong"];

/// What calls cost a Guest's program, and a program of this Linux.
pub fn costs(bench: &mut Bench) -> Result<()> {
    let mut session = Session::start("16")?;
    let said = session.line("bench")?;
    tell(bench, "guest", &said, &COSTS)?;
    let said = session.line("bench console_write > /tmp/cost; cat /tmp/cost")?;
    let (_, said) = said.rsplit_once("-\n").context("no line was written")?;
    tell(bench, "guest", said, &["console_write"])?;
    session.last_line("halt\n")?;
    let ended = Guest::stand_in(&["costs"])?.finish()?;
    ended.expect_code(0)?;
    tell(
        bench,
        "linux",
        ended.output.trim_end_matches("well\n"),
        &COSTS,
    )
}

/// Passes on the lines `name value` if they have these names.
fn tell(bench: &mut Bench, whose: &str, said: &str, names: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    for line in said.lines() {
        let (name, value) = line.split_once(' ').with_context(|| line.to_owned())?;
        let value: u64 = value.parse().with_context(|| line.to_owned())?;
        ensure!(value > 0, "{line:?}");
        found.push(name);
        let note = format!("good: {whose} {name} {value}");
        bench.control.say("note", &note)?;
    }
    ensure!(found == names, "{found:?} instead of {names:?}");
    Ok(())
}
