// SPDX-License-Identifier: GPL-2.0-only

//! The Launcher: what it is given at the start, its two processes, and what it may still do later.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod, stat};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Bench, NotHere};
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

/// Waits until a life whose parent has died is gone.
///
/// One that was stopped before it could ask for its end has nothing yet, and ends when it goes on.
fn until_gone(life: Pid) -> Result<()> {
    let begun = Instant::now();
    while !is_gone(life) {
        let waited = begun.elapsed();
        ensure!(
            waited < Duration::from_secs(20) * host::patience(),
            "the life survives"
        );
        let stopped = state_and_parent(life).is_some_and(|(state, _)| state == 'T');
        if stopped && waited > Duration::from_secs(1) && !has_device(life) {
            kill(life, Signal::SIGCONT)?;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether a process has a Guest's device open.
fn has_device(process: Pid) -> bool {
    let entries = fs::read_dir(format!("/proc/{process}/fd"));
    let mut files = entries.into_iter().flatten().flatten();
    files.any(|file| fs::read_link(file.path()).is_ok_and(|to| to == Path::new("/dev/lguest")))
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
        if let Some(life) = life {
            until_gone(life).context(what.clone())?;
        }
        host::wait_until_free().context(what)?;
    }
    ensure!(begun > 0, "none of {rounds} Guests had begun");
    let text = format!("{begun} of {rounds} had a Guest when they were killed");
    bench.control.say("note", &text)
}

/// Stops a process while it is inside of a system call; gives its registers and where the
/// instruction `syscall` is.
fn stop_in_call(life: Pid) -> Result<(libc::user_regs_struct, u64)> {
    let end = Instant::now() + patience();
    loop {
        ptrace::attach(life)?;
        let status = waitpid(life, Some(WaitPidFlag::__WALL))?;
        ensure!(
            matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)),
            "attached: {status:?}"
        );
        let registers = ptrace::getregs(life)?;
        let at = registers.rip - 2;
        let code = ptrace::read(life, at as *mut libc::c_void)? as u16;
        if code == 0x050f {
            return Ok((registers, at));
        }
        // Between two calls.
        ptrace::detach(life, None)?;
        ensure!(
            Instant::now() < end,
            "never in a system call: {code:#x} at {at:#x}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// One system call in the name of another process, which is inside of one: its answer, or the
/// signal that it died of.
fn call_as(life: Pid, number: u64, arguments: [u64; 4]) -> Result<Result<i64, Signal>> {
    let (before, at) = stop_in_call(life)?;
    let mut registers = before;
    registers.rip = at;
    registers.rax = number;
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
    [registers.r8, registers.r9] = [u64::MAX, 0];
    ptrace::setregs(life, registers)?;
    ptrace::step(life, None)?;
    match waitpid(life, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {
            let answer = ptrace::getregs(life)?.rax.cast_signed();
            ptrace::setregs(life, before)?;
            ptrace::detach(life, None)?;
            Ok(Ok(answer))
        }
        WaitStatus::Signaled(_, signal, _) => Ok(Err(signal)),
        other => bail!("after system call {number}: {other:?}"),
    }
}

/// What a life must not do: a name, a number, arguments.
const FORBIDDEN: &[(&str, i64, [u64; 4])] = &[
    ("open", libc::SYS_open, [0; 4]),
    ("openat", libc::SYS_openat, [0; 4]),
    ("execve", libc::SYS_execve, [0; 4]),
    ("fork", libc::SYS_fork, [0; 4]),
    ("clone3", libc::SYS_clone3, [0; 4]),
    ("socket", libc::SYS_socket, [2, 1, 0, 0]),
    ("kill", libc::SYS_kill, [1, 0, 0, 0]),
    ("executable memory", libc::SYS_mmap, [0, 4096, 7, 0x22]),
    ("keys for a terminal", libc::SYS_ioctl, [0, 0x5412, 0, 0]),
    ("a signal for another", libc::SYS_tgkill, [1, 1, 0, 0]),
    // The long set goes on from here.
    ("creat", libc::SYS_creat, [0; 4]),
    ("openat2", libc::SYS_openat2, [0; 4]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 4]),
    ("execveat", libc::SYS_execveat, [0; 4]),
    ("vfork", libc::SYS_vfork, [0; 4]),
    ("clone", libc::SYS_clone, [0; 4]),
    ("connect", libc::SYS_connect, [0; 4]),
    ("accept", libc::SYS_accept, [0; 4]),
    ("ptrace", libc::SYS_ptrace, [0; 4]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [0; 4]),
    ("process_vm_writev", libc::SYS_process_vm_writev, [0; 4]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [0; 4]),
    ("tkill", libc::SYS_tkill, [1, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0; 4]),
    ("unlink", libc::SYS_unlink, [0; 4]),
    ("rename", libc::SYS_rename, [0; 4]),
    ("mkdir", libc::SYS_mkdir, [0; 4]),
    ("mknod", libc::SYS_mknod, [0; 4]),
    ("chmod", libc::SYS_chmod, [0; 4]),
    ("chroot", libc::SYS_chroot, [0; 4]),
    ("setuid", libc::SYS_setuid, [0; 4]),
    ("capset", libc::SYS_capset, [0; 4]),
    ("bpf", libc::SYS_bpf, [0; 4]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 4]),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 4]),
    ("memfd_create", libc::SYS_memfd_create, [0; 4]),
    ("init_module", libc::SYS_init_module, [0; 4]),
    ("reboot", libc::SYS_reboot, [0; 4]),
    ("ioperm", libc::SYS_ioperm, [0x80, 1, 1, 0]),
    ("modify_ldt", libc::SYS_modify_ldt, [0; 4]),
    ("seccomp", libc::SYS_seccomp, [0; 4]),
    ("prctl", libc::SYS_prctl, [4, 1, 0, 0]),
    ("F_SETFL", libc::SYS_fcntl, [0, 4, 0, 0]),
    ("a handler", libc::SYS_rt_sigaction, [10, 0, 0, 8]),
    (
        "memory made executable",
        libc::SYS_mprotect,
        [0, 4096, 5, 0],
    ),
];

/// The value of a line in `/proc/.../status`.
fn status_of(task: &str, line: &str) -> Result<String> {
    let status = fs::read_to_string(format!("{task}/status"))?;
    let mut lines = status.lines();
    let value = lines.find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let words = value.with_context(|| format!("no {line} in {task}"))?;
    Ok(words.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Every thread of a life has the filter and no power of root's.
fn is_confined(life: Pid) -> Result<usize> {
    let none = "0000000000000000";
    let wanted = [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
    ];
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{life}/task"))? {
        let task = task?.path().display().to_string();
        for (line, wanted) in wanted {
            let value = status_of(&task, line)?;
            ensure!(value == wanted, "{task}: {line} is {value}, not {wanted}");
        }
        threads += 1;
    }
    Ok(threads)
}

/// A Guest that runs, with these words for its Launcher.
fn spinning(words: &[&str]) -> Result<Guest> {
    let words = [words, &["16", "/guests/probe", "case=spin"]].concat();
    let guest = Guest::launch(&words)?;
    guest.wait_for("spinning")?;
    Ok(guest)
}

/// What a life may still do, tried in the life itself: a debugger has it make system calls.
pub fn confined(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let mut guest = spinning(&[])?;
    let threads = is_confined(guest.pid())?;
    let parent = format!("/proc/{}", guest.parent());
    ensure!(
        status_of(&parent, "Seccomp")? == "0",
        "the parent is confined"
    );
    // What it may do, it can go on doing.
    for _ in 0..3 {
        let life = guest.pid();
        let answer = call_as(life, libc::SYS_getpid as u64, [0; 4])?;
        ensure!(answer == Ok(life.as_raw().into()), "getpid(): {answer:?}");
        let mapped = call_as(life, libc::SYS_mmap as u64, [0, 4096, 3, 0x22])?;
        ensure!(mapped.is_ok_and(|at| at > 0), "mmap(): {mapped:?}");
        ensure!(guest.alive()?, "the life has ended");
    }
    drop(guest);
    let some = if bench.long() { FORBIDDEN.len() } else { 10 };
    for (name, number, arguments) in &FORBIDDEN[..some] {
        let guest = spinning(&[])?;
        let answer = call_as(guest.pid(), number.cast_unsigned(), *arguments)?;
        ensure!(answer == Err(Signal::SIGSYS), "{name}: {answer:?}");
        let ended = guest.finish()?;
        ended
            .expect_code(128 + Signal::SIGSYS as i32)?
            .expect_error("a system call that it may not make")?;
    }
    bench.control.say(
        "note",
        &format!("{threads} threads confined, {some} calls refused"),
    )?;
    host::wait_until_free()
}

/// Another user, another root directory, and restarts from there.
pub fn rights(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    fs::create_dir_all("/etc")?;
    fs::write(
        "/etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nguest:x:1234:2345::/:\nbad:x:none:0::/:\n",
    )?;
    let empty = "/tmp/empty";
    fs::create_dir(empty)?;
    let root = format!("--chroot={empty}");
    let words = [
        "--username=guest",
        &root,
        "16",
        "/guests/probe",
        "case=lives",
    ];
    let mut guest = Guest::launch(&words)?;
    for n in 1..=5 {
        guest.wait_for_count("a life with ", n)?;
        let life = guest.pid();
        is_confined(life)?;
        let folder = format!("/proc/{life}");
        let seen = [
            status_of(&folder, "Uid")?,
            status_of(&folder, "Gid")?,
            status_of(&folder, "Groups")?,
            fs::read_link(format!("{folder}/root"))?
                .display()
                .to_string(),
            fs::read_link(format!("{folder}/cwd"))?
                .display()
                .to_string(),
        ];
        let wanted = [
            "1234 1234 1234 1234",
            "2345 2345 2345 2345",
            "",
            empty,
            empty,
        ];
        ensure!(seen == wanted, "{seen:?}, not {wanted:?}");
        let word: &[u8] = if n == 5 { b"end\n" } else { b"again\n" };
        guest.send(word)?;
    }
    guest.finish()?.expect_code(0)?;
    // Its parent's end is the end of it, although it is another user's process.
    let guest = spinning(&["--username=guest"])?;
    let life = guest.pid();
    kill(guest.parent(), Signal::SIGKILL)?;
    let end = Instant::now() + Duration::from_secs(20) * host::patience();
    while !is_gone(life) {
        ensure!(Instant::now() < end, "the life survives");
        thread::sleep(Duration::from_millis(2));
    }
    // And a signal for the parent reaches it.
    let guest = spinning(&["--username=guest"])?;
    kill(guest.parent(), Signal::SIGTERM)?;
    guest.finish()?.expect_code(128 + Signal::SIGTERM as i32)?;

    let refused: [(&str, i32, &str); 6] = [
        ("--username=nemo", 2, "no such user in /etc/passwd"),
        ("--username=bad", 2, "no such user in /etc/passwd"),
        ("--username=", 2, "no such user in /etc/passwd"),
        (
            "--chroot=/nowhere",
            2,
            "--chroot `/nowhere`: there is no such file",
        ),
        ("--chroot=/guests/probe", 2, "this is not a directory"),
        ("--chroot=", 2, "--chroot"),
    ];
    for (option, status, words) in refused {
        let ended = Guest::launch(&[option, "16", "/guests/probe"])?.finish()?;
        ended.expect_code(status)?.expect_error(words)?;
    }
    for option in ["--username=guest", &root] {
        let words = [option, "16", "/guests/probe"];
        let ended = Guest::launch_as_nobody(&words)?.finish()?;
        ended
            .expect_code(2)?
            .expect_error("only root can do that")?;
    }
    fs::remove_file("/etc/passwd")?;
    fs::remove_dir(empty)?;
    host::wait_until_free()
}

/// A Guest that panics with an address of its own: the Launcher knows the function.
pub fn names(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let ended = Guest::probe(&["case=named"])?.finish()?;
    ended
        .expect_code(5)?
        .expect_error("I was at 0xffffffff80")?
        .expect_error("probe::disk::named+0x1\n")?;
    host::wait_until_free()
}

/// Has Linux answer 0 to `fdatasync()` without doing it, in this process and its children: a filter
/// whose verdict is an error of number 0.
fn cheat() -> std::io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump = |k, jt, jf| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let mut program = [
        // The number of the system call is the first word of what the filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(libc::SYS_fdatasync as u32, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: The call reads the program, which is there until it returns.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) };
    nix::errno::Errno::result(done)?;
    Ok(())
}

/// A Guest that writes to a disk of this machine, and a note for each round that is on it for good.
/// This ends when somebody ends the machine; see `tests/src/durable.rs`.
pub fn durable(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let disk = "/dev/vda";
    if !Path::new(disk).exists() {
        return Err(NotHere(format!("this machine has no {disk}")).into());
    }
    // Linux would write to the disk by itself after a while.
    fs::write("/proc/sys/vm/dirty_writeback_centisecs", "0")?;
    let block = format!("--block={disk}");
    let mut command = Command::new(host::LAUNCHER);
    command.args([&block, "32", "/guests/drive", "case=disk-durable"]);
    if bench.words.iter().any(|word| word == "cheated") {
        // SAFETY: Between fork and exec one system call is made, which allocates nothing.
        unsafe { command.pre_exec(cheat) };
    }
    let guest = Guest::start(&mut command)?;
    for round in 1.. {
        guest.wait_for(&format!("durable {round}\n"))?;
        bench.control.say("note", &round.to_string())?;
    }
    Ok(())
}
