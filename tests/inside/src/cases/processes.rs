// SPDX-License-Identifier: GPL-2.0-only

//! The Guest's tasks and processes, driven from its shell.
//!
//! The initial disk is the book's, with two programs more that no compiler has made: one computes
//! for ever without a call, and one keeps numbers in the registers for floating point.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::guests::{CRASHED, OFF};
use crate::code;
use crate::guest::{Ended, Guest};
use crate::host;

/// The initial disk of the Guest.
const DISK: &str = "/guests/initrd.cpio";
/// The Guest.
const KERNEL: &str = "/guests/guest";
/// What the shell says when it is ready.
const PROMPT: &str = "$ ";
/// Where a program begins.
const BASE: u64 = 0x40_0000;

/// `jmp` to itself: no call, no fault.
fn spin() -> &'static [u8] {
    code!("2: jmp 2b")
}

/// Its own number in an x87 and an SSE register, compared in each of many rounds; then a line.
fn numbers() -> &'static [u8] {
    code!(
        "mov eax, 11", // getpid
        "int 0x80",
        "mov r12, rax",
        "push rax",
        "fninit",
        "fild qword ptr [rsp]",
        "movq xmm3, rax",
        "mov ecx, 60000000",
        "2: movq rdx, xmm3",
        "cmp rdx, r12",
        "jne 4f",
        "dec ecx",
        "jnz 2b",
        "fistp qword ptr [rsp]",
        "pop rax",
        "cmp rax, r12",
        "jne 4f",
        "lea rsi, [rip + 6f]",
        "jmp 5f",
        "4: lea rsi, [rip + 7f]",
        "5: mov edi, 1",
        "mov edx, 14",
        "mov eax, 2", // write
        "int 0x80",
        "xor edi, edi",
        "xor eax, eax", // exit
        "int 0x80",
        "6: .ascii \"numbers: kept\\n\"",
        "7: .ascii \"numbers: lost\\n\"",
    )
}

/// An ELF file with this code at [`BASE`].
pub(super) fn program(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1_u32, 5] {
        file.extend(word.to_le_bytes());
    }
    let size = HEADERS + code.len() as u64;
    for word in [0, BASE, BASE, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// An entry of an archive.
fn entry(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mode = if name == "TRAILER!!!" { 0 } else { 0o100_755 };
    let fields = [
        1,
        mode,
        0,
        0,
        1,
        0,
        bytes.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    let mut entry = b"070701".to_vec();
    for field in fields {
        entry.extend(format!("{field:08x}").bytes());
    }
    entry.extend(name.bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend(bytes);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}

/// The initial disk with the two programs in it.
fn disk() -> Result<PathBuf> {
    disk_with(&[("bin/spin", spin()), ("bin/numbers", numbers())])
}

/// The initial disk with programs that have this code.
pub(super) fn disk_with(programs: &[(&str, &[u8])]) -> Result<PathBuf> {
    let mut disk = fs::read(DISK).with_context(|| format!("{DISK}: `make initrd`"))?;
    let end = disk.windows(10).rposition(|name| name == b"TRAILER!!!");
    // Its header is before it.
    disk.truncate(end.context("an archive without an end")? - 110);
    for (name, code) in programs {
        disk.extend(entry(name, &program(code)));
    }
    disk.extend(entry("TRAILER!!!", &[]));
    let path = PathBuf::from("/tmp/processes.cpio");
    fs::write(&path, disk)?;
    Ok(path)
}

/// A Guest whose shell has said that it is ready.
fn shell() -> Result<Guest> {
    host::load_module()?;
    let disk = format!("--initrd={}", disk()?.display());
    let guest = Guest::launch(&[&disk, "32", KERNEL])?;
    guest.wait_for(PROMPT)?;
    Ok(guest)
}

/// Types `exit`; the Guest must power off.
fn leave(mut guest: Guest) -> Result<Ended> {
    guest.send(b"exit\n")?;
    let ended = guest.finish()?;
    ended.expect_code(OFF)?;
    host::wait_until_free()?;
    Ok(ended)
}

pub fn forks(_: &mut Bench) -> Result<()> {
    let mut guest = shell()?;
    guest.send(b"stress fork 10000\n")?;
    let lost = guest.line_with("10000 forks, ")?;
    ensure!(lost == "0 frames lost", "{lost}");
    leave(guest).map(drop)
}

pub fn fair(bench: &mut Bench) -> Result<()> {
    const COUNT: usize = 5;
    let mut guest = shell()?;
    guest.send(format!("stress share {COUNT} 4; echo over\n").as_bytes())?;
    guest.wait_for_count("of 1000\n", COUNT)?;
    let ended = leave(guest)?;
    let lines = ended.output.lines();
    let shares = lines.filter_map(|line| line.strip_suffix(" of 1000")?.parse().ok());
    let shares: Vec<usize> = shares.collect();
    bench.control.say("note", &format!("{shares:?} of 1000"))?;
    let part = 1000 / COUNT;
    // The emulator's own pauses fall on somebody.
    let fair = |share: &usize| share.abs_diff(part) <= part * 2 / 5;
    ensure!(
        shares.len() == COUNT && shares.iter().all(fair),
        "not equal: {shares:?}"
    );
    Ok(())
}

pub fn preempted(bench: &mut Bench) -> Result<()> {
    let mut guest = shell()?;
    // Two that never call; the shell has to answer all the same.
    guest.send(b"spin &\nspin &\necho still here\n")?;
    guest.wait_for_count("still here\n", 2)?;
    guest.send(b"ps\n")?;
    let ran = guest.line_with("NAME\n")?;
    bench.control.say("note", &ran)?;
    guest.wait_for_count(" spin\n", 2)?;
    // And one in the foreground, which only ^C can end.
    guest.send(b"spin\n")?;
    guest.wait_for("$ spin\n")?;
    // One that is typed before the program has begun is a key like others: then once more.
    let prompts = |text: &str| text.matches("$ ").count();
    let before = prompts(&guest.output_until(|_| true)?);
    for _ in 0..20 {
        guest.send(b"\x03")?;
        let again = std::time::Duration::from_secs(5);
        if guest
            .output_within(again, |text| prompts(text) > before)
            .is_some()
        {
            break;
        }
    }
    guest.send(b"echo back again\n")?;
    guest.wait_for_count("back again\n", 2)?;
    leave(guest).map(drop)
}

pub fn numbers_kept(_: &mut Bench) -> Result<()> {
    let mut guest = shell()?;
    guest.send(b"numbers &\nnumbers &\nnumbers &\n")?;
    guest.wait_for_count("numbers: ", 3)?;
    let ended = leave(guest)?;
    let kept = ended.output.matches("numbers: kept").count();
    ensure!(kept == 3, "{kept} of 3 kept theirs: {:?}", ended.output);
    Ok(())
}

pub fn program_faults(_: &mut Bench) -> Result<()> {
    let mut guest = shell()?;
    guest.send(b"stress fault\necho alive\n")?;
    guest.wait_for_count("alive\n", 2)?;
    let ended = leave(guest)?;
    for (what, vector, says) in [
        (
            "reads 0",
            14,
            "page fault (vector 14, error 0x4) reading 0x0",
        ),
        (
            "reads the kernel",
            14,
            "error 0x5) reading 0xffffffff80100000",
        ),
        ("writes its text", 14, "error 0x7) writing 0x40"),
        ("runs its stack", 14, "error 0x15) executing 0x7ff"),
        ("turns interrupts off", 13, "general protection fault"),
        ("divides by zero", 0, "divide error (vector 0, error 0x0)"),
        ("runs what is no instruction", 6, "(vector 6, error 0x0)"),
        ("stops for a debugger", 3, "(vector 3, error 0x0)"),
        ("says it overflowed", 4, "(vector 4, error 0x0)"),
        ("goes step by step", 1, "(vector 1, error 0x0)"),
        ("reads no address", 13, "(vector 13, error 0x0)"),
    ] {
        ended.expect_output(&format!("{what}: fault {vector}"))?;
        ended.expect_output(says)?;
    }
    let said = ended.output.matches(") was ended: ").count();
    ensure!(said == 11, "{said} ends were told: {:?}", ended.output);
    Ok(())
}

pub fn panic_text(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = Guest::launch(&["16", KERNEL, "quiet"])?;
    guest.send(b"crash\n")?;
    let ended = guest.finish()?;
    ended.expect_code(CRASHED)?;
    let text = &ended.errors;
    ensure!(
        text.contains("the user typed crash (commands.rs:"),
        "without its text: {text:?}"
    );
    let (_, callers) = text
        .split_once("; called from ")
        .with_context(|| format!("without a backtrace: {text:?}"))?;
    let kernel = |word: &&str| word.starts_with("ffffffff801") && word.len() == 16;
    let callers: Vec<&str> = callers
        .split(|c: char| !c.is_ascii_hexdigit())
        .take_while(kernel)
        .collect();
    // obey, read_and_obey or main, and what has called main.
    ensure!(callers.len() >= 3, "{callers:?} of {text:?}");
    bench.control.say("note", &callers.join(" "))?;
    host::wait_until_free()
}
