// SPDX-License-Identifier: GPL-2.0-only

//! The twin of the Guest's program `bench`: the same things measured, by a program of this Linux.
//!
//! It is a process of its own with one thread, so that its copies are copies of little.

use std::arch::x86_64::_rdtsc;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe};

/// Prints `name value` for each of the four.
pub fn costs(_: &[String]) -> Result<()> {
    println!("null_call {}", null_call());
    println!("fault {}", fault()?);
    println!("fork_exit_wait {}", fork_exit_wait()?);
    println!("pipe_ping_pong {}", pipe_ping_pong()?);
    Ok(())
}

/// The least ticks of so many.
fn least(times: u32, mut work: impl FnMut()) -> u64 {
    let ticks = |_| {
        // SAFETY: Every processor of this kind has it.
        let before = unsafe { _rdtsc() };
        work();
        // SAFETY: As above.
        (unsafe { _rdtsc() }) - before
    };
    (0..times).map(ticks).min().unwrap_or(0)
}

fn null_call() -> u64 {
    // SAFETY: The call has no arguments. The library asks the kernel each time.
    least(1000, || unsafe {
        libc::syscall(libc::SYS_getpid);
    })
}

/// The first write to a page that was asked for, with nothing large in its place.
fn fault() -> Result<u64> {
    const PAGE: usize = 4096;
    const PAGES: usize = 1000;
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    // SAFETY: A new mapping, where the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE * PAGES, access, kind, -1, 0) };
    ensure!(at != libc::MAP_FAILED, "{}", Errno::last());
    // SAFETY: The mapping is this function's own. A kernel without huge pages says so.
    unsafe { libc::madvise(at, PAGE * PAGES, libc::MADV_NOHUGEPAGE) };
    let mut page = at.cast::<u8>();
    let least = least(PAGES as u32, || {
        // SAFETY: It is in the mapping.
        unsafe { page.write_volatile(1) };
        page = page.wrapping_add(PAGE);
    });
    // SAFETY: Nothing in it is used any more.
    unsafe { libc::munmap(at, PAGE * PAGES) };
    Ok(least)
}

fn fork_exit_wait() -> Result<u64> {
    let mut failed = None;
    let least = least(100, || {
        // SAFETY: There is one thread, and the child ends at once.
        match unsafe { fork() } {
            // SAFETY: Ends the process and nothing else.
            Ok(ForkResult::Child) => unsafe { libc::_exit(0) },
            Ok(ForkResult::Parent { child }) => failed = waitpid(child, None).err().or(failed),
            Err(error) => failed = Some(error),
        }
    });
    failed.map_or(Ok(least), |error| Err(error).context("fork"))
}

fn pipe_ping_pong() -> Result<u64> {
    let (to_read, to) = pipe()?;
    let (from, from_write) = pipe()?;
    // A byte through a pipe, without a buffer in between.
    let put = |file: &dyn AsRawFd| {
        // SAFETY: One byte is read from where one is.
        unsafe { libc::write(file.as_raw_fd(), [0_u8].as_ptr().cast(), 1) == 1 }
    };
    let take = |file: &dyn AsRawFd| {
        let mut byte = [0_u8];
        // SAFETY: One byte is written to where one is.
        unsafe { libc::read(file.as_raw_fd(), byte.as_mut_ptr().cast(), 1) == 1 }
    };
    // SAFETY: There is one thread.
    let ForkResult::Parent { child } = (unsafe { fork() })? else {
        drop(to);
        while take(&to_read) && put(&from_write) {}
        // SAFETY: Ends the process and nothing else.
        unsafe { libc::_exit(0) }
    };
    let mut good = true;
    let least = least(1000, || good &= put(&to) && take(&from));
    drop(to);
    waitpid(child, None)?;
    ensure!(good, "a byte was lost");
    Ok(least)
}
