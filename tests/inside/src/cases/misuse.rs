// SPDX-License-Identifier: GPL-2.0-only

//! Programs that ask for what they should not, or for too much.
//!
//! They are on an initial disk of their own, and no compiler has made them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::processes::disk_with;
use super::programs::Session;
use crate::code;
use crate::host;

/// The Guest.
const KERNEL: &str = "/guests/guest";

/// Calls with an address that is not the program's: nothing may be lost by it. And a number that is
/// some job's is not given to a process. The status says which part went wrong.
fn careless() -> &'static [u8] {
    code!(
        "sub rsp, 32",
        "mov ebp, 1",
        "mov ebx, 40",
        "2: mov edi, 8",
        "mov eax, 7", // pipe
        "int 0x80",
        "cmp rax, -3", // BadAddress
        "jne 9f",
        "dec ebx",
        "jnz 2b",
        "mov rdi, rsp",
        "mov eax, 7",
        "int 0x80",
        "test rax, rax",
        "jnz 9f",
        "cmp dword ptr [rsp], 3",
        "jne 9f",
        "cmp dword ptr [rsp + 4], 4",
        "jne 9f",
        // A byte is read from the pipe with a bad address, and with a good one.
        "inc ebp",
        "mov byte ptr [rsp + 8], 55",
        "mov edi, 4",
        "lea rsi, [rsp + 8]",
        "mov edx, 1",
        "mov eax, 2", // write
        "int 0x80",
        "mov edi, 4",
        "mov eax, 4", // close
        "int 0x80",
        "mov edi, 3",
        "mov esi, 8",
        "mov eax, 1", // read
        "int 0x80",
        "cmp rax, -3",
        "jne 9f",
        "mov edi, 3",
        "lea rsi, [rsp + 9]",
        "mov eax, 1",
        "int 0x80",
        "cmp rax, 1",
        "jne 9f",
        "cmp byte ptr [rsp + 9], 55",
        "jne 9f",
        // It sends the byte to itself, and receives it in the same way.
        "inc ebp",
        "mov edi, 1",
        "mov eax, 24", // socket
        "int 0x80",
        "mov r13, rax",
        "mov rdi, r13",
        "mov esi, 7",
        "mov eax, 25", // bind
        "int 0x80",
        "mov dword ptr [rsp + 16], 0x0100007f",
        "mov dword ptr [rsp + 20], 7",
        "mov rdi, r13",
        "lea rsi, [rsp + 8]",
        "lea rcx, [rsp + 16]",
        "mov eax, 26", // send_to
        "int 0x80",
        "cmp rax, 1",
        "jne 9f",
        "inc ebp",
        "mov qword ptr [rsp + 16], 0",
        "mov rdi, r13",
        "mov esi, 8",
        "mov eax, 27", // receive
        "int 0x80",
        "cmp rax, -3",
        "jne 9f",
        // Its own code can be read, but not written.
        "mov rdi, r13",
        "lea rsi, [rsp + 9]",
        "lea rcx, [rip + 3f]",
        "mov eax, 27",
        "int 0x80",
        "cmp rax, -3",
        "jne 9f",
        "mov byte ptr [rsp + 9], 0",
        "mov rdi, r13",
        "lea rcx, [rsp + 16]",
        "mov eax, 27",
        "int 0x80",
        "cmp rax, 1",
        "jne 9f",
        "cmp byte ptr [rsp + 9], 55",
        "jne 9f",
        "inc ebp",
        "mov eax, 8", // fork
        "int 0x80",
        "test rax, rax",
        "jz 3f",
        "mov r12, rax",
        "mov rdi, r12",
        "mov esi, 8",
        "xor edx, edx",
        "mov eax, 10", // wait
        "int 0x80",
        "cmp rax, -3",
        "jne 9f",
        "mov rdi, r12",
        "mov rsi, rsp",
        "xor edx, edx",
        "mov eax, 10",
        "int 0x80",
        "cmp rax, r12",
        "jne 9f",
        "cmp qword ptr [rsp + 8], 7",
        "jne 9f",
        // Its job has the number that would be the next.
        "inc ebp",
        "lea r12d, [r12 + 1]",
        "xor edi, edi",
        "mov esi, r12d",
        "mov eax, 17", // group
        "int 0x80",
        "cmp rax, r12",
        "jne 9f",
        "mov eax, 8",
        "int 0x80",
        "test rax, rax",
        "jz 3f",
        "inc r12d",
        "cmp rax, r12",
        "jne 9f",
        "xor edi, edi",
        "xor eax, eax", // exit
        "int 0x80",
        "3: mov edi, 7",
        "xor eax, eax",
        "int 0x80",
        "9: mov edi, ebp",
        "xor eax, eax",
        "int 0x80",
    )
}

/// Has `^C` end the job of the first program.
fn front() -> &'static [u8] {
    code!(
        "mov edi, 1",
        "mov eax, 31", // foreground
        "int 0x80",
        "mov rdi, rax",
        "xor eax, eax", // exit
        "int 0x80",
    )
}

/// Sleeps for 200 ms, and runs into an instruction that is none.
fn late() -> &'static [u8] {
    code!(
        "mov edi, 200000000",
        "mov eax, 12", // sleep
        "int 0x80",
        "ud2",
    )
}

/// Says that it is there, reads at most three bytes, and writes them.
fn three() -> &'static [u8] {
    code!(
        "sub rsp, 16",
        "mov edi, 1",
        "lea rsi, [rip + 8f]",
        "mov edx, 6",
        "mov eax, 2", // write
        "int 0x80",
        "xor edi, edi",
        "mov rsi, rsp",
        "mov edx, 3",
        "mov eax, 1", // read
        "int 0x80",
        "mov rdx, rax",
        "mov edi, 1",
        "mov rsi, rsp",
        "mov eax, 2",
        "int 0x80",
        "xor edi, edi",
        "xor eax, eax", // exit
        "int 0x80",
        "8: .ascii \"ready\\n\"",
    )
}

/// Makes directories with long names until there is an error, and ends with it.
fn names() -> &'static [u8] {
    code!(
        "sub rsp, 112",
        "mov rdi, rsp",
        "mov ecx, 112",
        "mov al, 120",
        "rep stosb",
        "xor ebx, ebx",
        "2: mov eax, ebx",
        "mov rdi, rsp",
        "mov ecx, 8",
        "3: mov edx, eax",
        "and edx, 15",
        "add edx, 97",
        "mov [rdi], dl",
        "inc rdi",
        "shr eax, 4",
        "dec ecx",
        "jnz 3b",
        "mov rdi, rsp",
        "mov esi, 112",
        "mov eax, 30", // mkdir
        "int 0x80",
        "inc ebx",
        "test rax, rax",
        "jns 2b",
        "neg rax",
        "mov rdi, rax",
        "xor eax, eax", // exit
        "int 0x80",
    )
}

/// Forks until that fails, says so, and ends after a second. The children end with it: they read a
/// pipe that only it can write. With a word behind its name it makes pipes too, which take the last
/// frames that were too few for a process.
fn bomb() -> &'static [u8] {
    code!(
        "mov r13, [rsp]",
        "sub rsp, 16",
        "mov rdi, rsp",
        "mov eax, 7", // pipe
        "int 0x80",
        "2: mov eax, 8", // fork
        "int 0x80",
        "test rax, rax",
        "jz 3f",
        "jns 2b",
        "cmp r13, 1",
        "je 5f",
        "4: lea rdi, [rsp + 8]",
        "mov eax, 7", // pipe
        "int 0x80",
        "test rax, rax",
        "jz 4b",
        "5: mov edi, 1",
        "lea rsi, [rip + 8f]",
        "mov edx, 5",
        "mov eax, 2", // write
        "int 0x80",
        "mov edi, 1000000000",
        "mov eax, 12", // sleep
        "int 0x80",
        "xor edi, edi",
        "xor eax, eax", // exit
        "int 0x80",
        "3: mov edi, [rsp + 4]",
        "mov eax, 4", // close
        "int 0x80",
        "mov edi, [rsp]",
        "lea rsi, [rsp + 8]",
        "mov edx, 1",
        "mov eax, 1", // read
        "int 0x80",
        "xor edi, edi",
        "xor eax, eax",
        "int 0x80",
        "8: .ascii \"full\\n\"",
    )
}

/// A Guest whose shell is ready, with a network and all these programs.
fn start() -> Result<Session> {
    let network = Path::new("/tmp/misuse");
    if network.exists() {
        fs::remove_file(network)?;
    }
    let card = "--sharenet=/tmp/misuse";
    let disk = disk_with(&[
        ("bin/careless", careless()),
        ("bin/front", front()),
        ("bin/late", late()),
        ("bin/three", three()),
        ("bin/names", names()),
        ("bin/bomb", bomb()),
    ])?;
    let disk = format!("--initrd={}", disk.display());
    Session::of(&[card, &disk, "16", KERNEL])
}

/// With a network there is a task of the kernel's before the first program, which is process 1 all
/// the same, hears what the command line says, and may end with any status.
pub fn first(_: &mut Bench) -> Result<()> {
    let network = Path::new("/tmp/first");
    if network.exists() {
        fs::remove_file(network)?;
    }
    let card = "--sharenet=/tmp/first";
    let disk = "--initrd=/guests/initrd.cpio";
    let said = |guest: &[&str]| -> Result<String> {
        let session = Session::of(&[&[card, disk, "16", KERNEL], guest].concat())?;
        let said = session.said()?;
        session.last_line("exit 3\n")?;
        host::wait_until_free()?;
        Ok(said)
    };
    let greeting = "Type `help` for a list of commands.\n$ ";
    let plain = said(&[])?;
    ensure!(plain == greeting, "{plain:?}");
    let quiet = said(&["quiet", "run=false;", "echo", "ended", "with", "$?;", "ps"])?;
    let begin = "$ false; echo ended with $?; ps\nended with 1\n  PID PARENT";
    ensure!(quiet.starts_with(begin), "{quiet:?}");
    let is = |wanted: [&str; 3]| {
        quiet.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            matches!(words[..], [pid, parent, .., name] if [pid, parent, name] == wanted)
        })
    };
    ensure!(
        is(["1", "0", "init"]) && is(["2", "0", "network"]),
        "{quiet:?}"
    );
    let wrong = said(&["quite", "quiet"])?;
    ensure!(
        wrong == "The command line says \"quite\"; that means nothing.\n$ ",
        "{wrong:?}"
    );
    Ok(())
}

/// Calls with bad addresses, a fault nobody waits for, two who read the same console, and those who
/// would end the first program.
pub fn misuse(_: &mut Bench) -> Result<()> {
    let mut session = start()?;
    session.expect(&[
        ("careless; echo $?", "0\n"),
        ("kill 1; echo $?", "kill: 1: not allowed\n1\n"),
    ])?;
    // `^C` finds nobody to end, and so it only gives up the line.
    let said = session.line("front &")? + &session.line("wait")?;
    ensure!(said.ends_with("ended with 0\n"), "{said:?}");
    session.send(b"half a line\x03")?;
    let said = session.until_prompt()?;
    ensure!(said.contains("half a line"), "{said:?}");
    // The one reads a part of the line, and the other gets the rest.
    session.send(b"sh -c 'three & three; wait'\n")?;
    session.until_count("ready\n", 2)?;
    std::thread::sleep(Duration::from_millis(300));
    session.send(b"abcd\n")?;
    session.until_prompt()?;
    // Nobody but the kernel knows of its end.
    session.send(b"sh -c 'late &'; sleep 1\n")?;
    let said = session.until_prompt()?;
    let told = said.lines().find(|line| line.starts_with("late (pid "));
    let told = told.with_context(|| format!("not told: {said:?}"))?;
    ensure!(
        told.contains(") was ended: invalid opcode (vector 6"),
        "{told:?}"
    );
    session.last_line("halt\n")?;
    host::wait_until_free()
}

/// The tree full, and the memory full of processes: those who ask are told, and the rest lives on.
pub fn hungry(_: &mut Bench) -> Result<()> {
    let mut session = start()?;
    session.expect(&[
        (
            "cat /dev/zero > /tmp/z",
            "cat: cannot write: no space left\n",
        ),
        ("names; echo $?", "11\n"),
        ("mkdir /tmp/d; echo $?", "mkdir: /tmp/d: no space left\n1\n"),
        ("rm /tmp/z; mkdir /tmp/d; echo $?", "0\n"),
    ])?;
    // The shell fails to start commands. It must not lose what it had opened for them, which would
    // show in the frames that are free later.
    let line = ["echo a | cat"; 12].join("; ");
    // The first time it needs memory itself, and waits for that.
    session.send(b"bomb all &\n")?;
    session.until(&["]\n", "$ ", "full\n"])?;
    session.line(&line)?;
    session.line("wait")?;
    while !session.line("sleep 0.3")?.is_empty() {}
    let mut free = Vec::new();
    for _ in 0..8 {
        session.send(b"bomb &\n")?;
        session.until(&["]\n", "$ ", "full\n"])?;
        let said = session.line(&line)?;
        let refused = said.matches("sh: out of memory\n").count();
        session.line("wait")?;
        // Its children end a little later.
        while !session.line("sleep 0.3")?.is_empty() {}
        // An emulator that has slept through the second has nothing to show.
        if refused < 10 {
            continue;
        }
        session.expect(&[("echo a | cat", "a\n")])?;
        let memory = session.line("mem")?;
        let line = memory.lines().find(|line| line.starts_with("free "));
        free.push(line.context("no free memory")?.to_owned());
        if let [.., one, other] = &free[..] {
            ensure!(one == other, "lost by failing: {free:?}");
            session.last_line("halt\n")?;
            return host::wait_until_free();
        }
    }
    anyhow::bail!("the memory was not full when the shell tried: {free:?}")
}
