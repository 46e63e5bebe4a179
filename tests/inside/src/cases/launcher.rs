// SPDX-License-Identifier: GPL-2.0-only

//! The Launcher: what it is given at the start, its two processes, and what it may still do later.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod, stat};
use nix::unistd::Pid;

use super::Bench;
use crate::guest::{Guest, child_of, patience, state_and_parent};
use crate::host;
use crate::random::Random;

/// A disk of an odd size and with a pattern, its sum by the Guest and by this side, and files that
/// are none.
pub fn initial_disk(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let path = "/tmp/initial-disk";
    let option = format!("--initrd={path}");
    let run = |words: &[&str]| {
        let words = [words, &["16", "/guests/probe", "case=initial-disk"]].concat();
        Guest::launch(&words)?.finish()
    };
    run(&[])?
        .expect_code(0)?
        .expect_output("good: there is no disk")?;
    for bytes in [1_usize, 4096, (1 << 20) + 1] {
        let disk: Vec<u8> = (0..bytes).map(|place| (place % 251 + 1) as u8).collect();
        fs::write(path, &disk)?;
        let add = |sum: u64, byte: &u8| sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
        let sum = disk.iter().fold(0, add);
        run(&[&option])?
            .expect_code(0)?
            .expect_output(&format!("good: a disk of {bytes} bytes, sum {sum:#x}"))?;
    }
    fs::write(path, vec![1; 17 << 20])?;
    let refused = [
        (
            option.as_str(),
            "too small for this kernel and its initial disk",
        ),
        (
            "--initrd=/nowhere",
            "--initrd `/nowhere`: there is no such file",
        ),
        ("--initrd=/tmp", "this is a directory"),
        ("--initrd=/dev/zero", "not a regular file"),
    ];
    for (option, words) in refused {
        run(&[option])?.expect_code(2)?.expect_error(words)?;
    }
    fs::write(path, "")?;
    run(&[&option])?
        .expect_code(2)?
        .expect_error("the file is empty")?;
    fs::remove_file(path)?;
    Ok(())
}

/// The descriptors that a process has open.
fn descriptors(process: Pid) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count())
}

/// A Guest that restarts when it is told to, from copies of everything, which are removed while the
/// first life runs.
pub fn lives(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let folder = Path::new("/tmp/lives");
    fs::create_dir(folder)?;
    let copy = |from: &str, name: &str| -> Result<String> {
        let to = folder.join(name);
        fs::copy(from, &to).with_context(|| from.to_owned())?;
        Ok(to.display().to_string())
    };
    let command = copy(host::LAUNCHER, "lguest")?;
    let kernel = copy("/guests/probe", "kernel")?;
    let disk = copy("/guests/probe", "disk")?;
    let node = folder.join("node");
    let device = stat(host::DEVICE)?.st_rdev;
    mknod(&node, SFlag::S_IFCHR, Mode::S_IRWXU, device)?;
    let mut guest = Guest::start(Command::new(&command).args([
        format!("--initrd={disk}").as_str(),
        &format!("--device={}", node.display()),
        "16",
        &kernel,
        "case=lives",
    ]))?;
    let first = guest.line_with("a life with ")?;
    let (parent, mut last) = (guest.parent(), guest.pid());
    ensure!(
        parent != last,
        "the Guest runs in the process that was started"
    );
    fs::remove_dir_all(folder)?;
    let before = descriptors(parent)?;
    let restarts = 20;
    for n in 1..=restarts {
        guest.send(b"again\n")?;
        guest.wait_for_count("a life with ", n + 1)?;
        let life = guest.pid();
        ensure!(
            life != last && life != parent,
            "restart {n}: {last}, {life}"
        );
        last = life;
    }
    let after = descriptors(parent)?;
    ensure!(before == after, "{before} open files, then {after}");
    let alive = host::counter("guests")?;
    ensure!(alive == 1, "{alive} Guests");
    guest.send(b"end\n")?;
    let ended = guest.finish()?;
    let same = ended.expect_code(0)?.output.matches(first.as_str()).count();
    ensure!(same == restarts + 1, "{same} lives alike: {}", ended.said());
    let text = format!("{} lives, {after} files open in the parent", restarts + 1);
    bench.control.say("note", &text)?;
    host::wait_until_free()
}

/// Whether a process is gone, or only its number is left.
fn is_gone(process: Pid) -> bool {
    state_and_parent(process).is_none_or(|(state, _)| state == 'Z')
}

/// Either of the two processes is killed, or stopped and the parent killed, at any time: nothing is
/// left of both, nor of the Guest.
pub fn parent_killed(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut random = Random::new(bench.seed());
    let rounds = if bench.long() { 200 } else { 30 };
    let mut begun = 0;
    for round in 0..rounds {
        let guest = Guest::probe(&["case=work"])?;
        let moment = Duration::from_micros(random.below(200_000));
        thread::sleep(moment);
        let (parent, life) = (guest.parent(), child_of(guest.parent()));
        begun += u32::from(host::counter("guests")? > 0);
        let victim = random.below(3);
        let what = format!("round {round}, {moment:?}, {victim}, {parent}, {life:?}");
        match (life, victim) {
            (Some(life), 0) => kill(life, Signal::SIGKILL)?,
            (Some(life), 1) => {
                kill(life, Signal::SIGSTOP)?;
                kill(parent, Signal::SIGKILL)?;
            }
            _ => kill(parent, Signal::SIGKILL)?,
        }
        let ended = guest
            .finish_within(patience())
            .with_context(|| what.clone())?;
        ended
            .expect_code(128 + Signal::SIGKILL as i32)
            .with_context(|| what.clone())?;
        let end = Instant::now() + Duration::from_secs(20) * host::patience();
        while !life.is_none_or(is_gone) {
            ensure!(Instant::now() < end, "{what}: the life survives");
            thread::sleep(Duration::from_millis(2));
        }
        host::wait_until_free().context(what)?;
    }
    ensure!(begun > 0, "none of {rounds} Guests had begun");
    let text = format!("{begun} of {rounds} had a Guest when they were killed");
    bench.control.say("note", &text)
}
