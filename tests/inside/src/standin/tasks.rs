// SPDX-License-Identifier: GPL-2.0-only

//! Who may use a Guest: the task that opened it, with the memory it lent; and what becomes of a
//! Guest whose owner is gone.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use libc::{EAGAIN, EBUSY, EINVAL, EPERM};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use nix::unistd::{Uid, dup, setresuid};

use super::{STAND_IN, call, expect, expect_error, in_child};
use crate::device::{BREAK, Device, GETDMA, INITIALIZE, IRQ};
use crate::host;
use crate::tiny::{COUNT, HALT, Memory, Tiny};

/// What every task but the owner is told.
fn all_refused(what: &str, device: &Device, guest: bool, words: &[u64; 7]) -> Result<()> {
    let with = |name: &str| format!("{name} {what}");
    expect_error(&with("INITIALIZE"), device.request(words), EPERM)?;
    expect_error(&with("GETDMA"), device.request(&[GETDMA, 0]), EPERM)?;
    // An interrupt is for everyone, once there is somebody to interrupt.
    let answer = if guest { Ok(16) } else { Err(EINVAL) };
    expect(&with("IRQ"), device.request(&[IRQ, 1]), answer)?;
    expect_error(&with("IRQ 64"), device.request(&[IRQ, 64]), EINVAL)?;
    for size in [0, 23, 24, 4096] {
        expect_error(&with("read()"), device.read(size), EPERM)?;
    }
    // What is no request is none, whoever makes it; and BREAK is for everyone.
    expect_error(&with("request 9"), device.request(&[9, 0]), EINVAL)?;
    expect(&with("BREAK off"), device.request(&[BREAK, 0]), Ok(16))
}

/// A task that shares this one's memory but not its descriptors, and that this one waits for.
fn in_clone(flags: i32, body: &dyn Fn() -> i32) -> Result<i32> {
    extern "C" fn start(body: *mut libc::c_void) -> libc::c_int {
        // SAFETY: It points to the reference below, which outlives the task.
        let body = unsafe { &*body.cast::<&dyn Fn() -> i32>() };
        body()
    }
    let mut stack = vec![0_u128; 1 << 14];
    let top = stack.as_mut_ptr_range().end;
    let argument = (&raw const body).cast_mut().cast();
    // SAFETY: The stack is the new task's alone, and lives until it is waited for.
    let pid = unsafe { libc::clone(start, top.cast(), flags | libc::SIGCHLD, argument) };
    ensure!(pid > 0, "clone(): {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: `status` has room for what is written there.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    ensure!(
        waited == pid,
        "waitpid(): {}",
        std::io::Error::last_os_error()
    );
    ensure!(
        libc::WIFEXITED(status),
        "the other task ended with status {status:#x}"
    );
    Ok(libc::WEXITSTATUS(status))
}

/// Every other task, however near to this one, before INITIALIZE and after it.
pub fn wrong_tasks(_: &[String]) -> Result<()> {
    let memory = Memory::new(32)?;
    let words = memory.load(COUNT);
    let device = Device::open()?;
    for initialized in [false, true] {
        if initialized {
            expect("INITIALIZE", device.request(&words), Ok(56))?;
        }
        let refused = |what: &str| all_refused(what, &device, initialized, &words);
        in_child("fork()", || refused("in a child"))?;
        in_child("fork() twice", || {
            in_child("fork()", || refused("in a grandchild"))
        })?;
        for (what, flags) in [
            ("CLONE_VM without CLONE_FILES", libc::CLONE_VM),
            (
                "CLONE_VM and CLONE_FILES",
                libc::CLONE_VM | libc::CLONE_FILES,
            ),
            ("CLONE_FILES without CLONE_VM", libc::CLONE_FILES),
            ("as vfork() does", libc::CLONE_VM | libc::CLONE_VFORK),
        ] {
            let status = in_clone(flags, &|| i32::from(refused(what).is_err()))?;
            ensure!(status == 0, "a task made with {what} was not refused");
        }
        let answer = thread::scope(|scope| scope.spawn(|| refused("in a thread")).join());
        answer.map_err(|_| anyhow!("the thread panicked"))??;
        in_child("SCM_RIGHTS", || {
            let passed = pass_through_socket(&device)?;
            all_refused("after SCM_RIGHTS, in a child", &passed, initialized, &words)
        })?;
    }
    // The same open file by other numbers is the same Guest, for its owner.
    let copy = Device(File::from(dup(&device.0)?));
    ensure!(
        copy.next_key() == Ok(0),
        "read() of a dup(): {:?}",
        copy.next_key()
    );
    let passed = pass_through_socket(&device)?;
    ensure!(passed.next_key() == Ok(1), "read() after SCM_RIGHTS");
    let number = 200;
    // SAFETY: Nothing has that number.
    let dup2 = unsafe { libc::dup2(device.0.as_raw_fd(), number) };
    ensure!(
        dup2 == number,
        "dup2(): {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: It was made in the line before, and is nobody else's.
    let third = Device(File::from(unsafe { OwnedFd::from_raw_fd(number) }));
    drop((device, copy, passed));
    ensure!(
        third.next_key() == Ok(2),
        "read() when the first number was closed"
    );
    expect_error("INITIALIZE by another number", third.request(&words), EBUSY)?;
    ensure!(
        host::counter("guests")? == 1,
        "the Guest went with one of its numbers"
    );
    // Opened anew through /proc it is another Guest.
    let path = format!("/proc/self/fd/{}", third.0.as_raw_fd());
    let other = Device(File::options().read(true).write(true).open(path)?);
    expect_error("read() of another opening", other.read(24), EINVAL)?;
    ensure!(third.next_key() == Ok(3), "the first opening was disturbed");
    Ok(())
}

/// Sends a descriptor to this same process and takes what arrives.
fn pass_through_socket(device: &Device) -> Result<Device> {
    let (here, there) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::empty(),
    )?;
    let fds = [device.0.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        here.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &control,
        MsgFlags::empty(),
        None,
    )?;
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(
        there.as_raw_fd(),
        &mut into,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            let fd = *fds.first().context("no descriptor came")?;
            // SAFETY: The kernel has just made it for this process.
            return Ok(Device(File::from(unsafe { OwnedFd::from_raw_fd(fd) })));
        }
    }
    Err(anyhow!("no descriptor came"))
}

/// Gives itself another program, with the Guest's file open in it, and then without.
pub fn exec(words: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let guest = Tiny::new(32, COUNT)?;
    guest.expect("before exec", 0)?;
    let fresh = Device::open()?;
    let keep = words.first().is_some_and(|word| word == "keep");
    for fd in [guest.fd(), fresh.0.as_raw_fd()] {
        let flags = if keep { 0 } else { libc::FD_CLOEXEC };
        // SAFETY: The call takes no pointers.
        let set = unsafe { libc::fcntl(fd, libc::F_SETFD, flags) };
        ensure!(set == 0, "fcntl(): {}", std::io::Error::last_os_error());
    }
    let numbers = [guest.fd(), fresh.0.as_raw_fd()].map(|fd| fd.to_string());
    let error = Command::new("/proc/self/exe")
        .args([STAND_IN, "after-exec", if keep { "keep" } else { "close" }])
        .args(numbers)
        .exec();
    Err(error.into())
}

/// What [`exec`] becomes: the same task with other memory.
pub fn after_exec(words: &[String]) -> Result<()> {
    let [keep, old, fresh] = words else {
        return Err(anyhow!("three words are needed"));
    };
    if keep == "close" {
        ensure!(
            host::counter("guests")? == 0,
            "CLOEXEC has not closed the Guest"
        );
        ensure!(
            host::counter("pinned_pages")? == 0,
            "its pages are still pinned"
        );
        return Ok(());
    }
    let open = |number: &str| -> Result<Device> {
        // SAFETY: `exec` has left the descriptors open for this.
        let fd = unsafe { OwnedFd::from_raw_fd(number.parse()?) };
        Ok(Device(File::from(fd)))
    };
    let (old, fresh) = (open(old)?, open(fresh)?);
    // The memory of the old Guest went with the old program.
    for size in [0, 24] {
        expect_error("read() after exec", old.read(size), EPERM)?;
    }
    expect_error("GETDMA after exec", old.request(&[GETDMA, 0]), EPERM)?;
    // An interrupt touches no memory, and nobody will run the Guest that it is for.
    expect("IRQ after exec", old.request(&[IRQ, 1]), Ok(16))?;
    let memory = Memory::new(32)?;
    let words = memory.load(COUNT);
    expect_error("INITIALIZE after exec", old.request(&words), EBUSY)?;
    expect("BREAK off after exec", old.request(&[BREAK, 0]), Ok(16))?;
    // One that was opened and no more can still be used: nothing was lent to it.
    expect("INITIALIZE", fresh.request(&words), Ok(56))?;
    ensure!(
        fresh.next_key() == Ok(0),
        "a Guest made after exec does not run"
    );
    drop(old);
    ensure!(
        fresh.next_key() == Ok(1),
        "closing the old Guest disturbed the new one"
    );
    Ok(())
}

/// Has a child keep the file, and leaves: the child is told nothing but EPERM, and the
/// owner's memory went with the owner.
pub fn orphan(_: &[String]) -> Result<()> {
    // SAFETY: The system call takes no pointers.
    let _ = unsafe { call(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER as usize, 1]) };
    let (answer_out, answer_in) = nix::unistd::pipe()?;
    // A child that is the owner, and a grandchild that inherits its file.
    in_child("the owner", || {
        let guest = Tiny::new(32, COUNT)?;
        guest.expect("the owner's own", 0)?;
        let words = guest.memory.load(COUNT);
        let owner = nix::unistd::getpid();
        // SAFETY: This process has one thread.
        if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork() }? {
            let check = || -> Result<()> {
                while nix::unistd::getppid() == owner {
                    thread::sleep(Duration::from_millis(5));
                }
                // The owner's memory goes before its number does, but not in the same moment.
                thread::sleep(Duration::from_millis(50));
                ensure!(
                    host::counter("guests")? == 1,
                    "the Guest went with its owner"
                );
                ensure!(
                    host::counter("pinned_pages")? == 0,
                    "its owner's pages are still pinned"
                );
                all_refused("when the owner is gone", &guest.device, true, &words)?;
                let breaker = thread::scope(|scope| {
                    let breaker = scope.spawn(|| guest.device.request(&[BREAK, 1]));
                    thread::sleep(Duration::from_millis(50));
                    expect("BREAK off", guest.device.request(&[BREAK, 0]), Ok(16))?;
                    breaker.join().map_err(|_| anyhow!("the breaker panicked"))
                })?;
                expect("BREAK of an orphan", breaker, Ok(16))
            };
            let result = check();
            let text = result.map_or_else(|error| format!("{error:#}"), |()| "well".to_owned());
            nix::unistd::write(&answer_in, text.as_bytes())?;
            // SAFETY: Ends this process only. The last descriptor of the Guest goes with it.
            unsafe { libc::_exit(0) };
        }
        // The owner leaves without closing anything or unmapping its memory.
        // SAFETY: As above.
        unsafe { libc::_exit(0) }
    })?;
    drop(answer_in);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut File::from(answer_out), &mut text)?;
    ensure!(text == "well", "{text}");
    // The grandchild's end is this process's to hear of.
    nix::sys::wait::wait()?;
    Ok(())
}

/// Becomes nobody while its Guest lives: the file was opened with the right to.
pub fn setuid(_: &[String]) -> Result<()> {
    let guest = Tiny::new(32, COUNT)?;
    guest.expect("as root", 0)?;
    let halted = Tiny::new(32, HALT)?;
    let nobody = Uid::from_raw(65534);
    setresuid(nobody, nobody, nobody)?;
    ensure!(Device::open().is_err(), "nobody may open the device");
    for key in 1..100 {
        guest.expect("as nobody", key)?;
    }
    expect("IRQ as nobody", guest.device.request(&[IRQ, 1]), Ok(16))?;
    thread::scope(|scope| -> Result<()> {
        let breaker = scope.spawn(|| halted.device.request(&[BREAK, 1]));
        expect_error("read() of the other", halted.device.read(24), EAGAIN)?;
        expect("BREAK off", halted.device.request(&[BREAK, 0]), Ok(16))?;
        let answer = breaker
            .join()
            .map_err(|_| anyhow!("the breaker panicked"))?;
        expect("BREAK as nobody", answer, Ok(16))
    })?;
    let again = halted.memory.load(HALT);
    ensure!(again[0] == INITIALIZE, "INITIALIZE has a number of its own");
    expect_error("INITIALIZE as nobody", halted.device.request(&again), EBUSY)
}
