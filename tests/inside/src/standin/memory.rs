// SPDX-License-Identifier: GPL-2.0-only

//! Memory of every kind, and what a Launcher can do to it while its Guest runs.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libc::ENOENT;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::{call, expect, in_child};
use crate::device::Device;
use crate::tiny::{COUNT, MIRROR, Memory, PAGE, TOUCH, TOUCHED, Tiny, reason, say};

/// Pages of the Guests here.
pub(super) const PAGES: usize = 64;

/// A mapping of `pages` pages.
pub(super) fn map(fd: i32, flags: i32, pages: usize) -> Result<Memory> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let none = std::ptr::null_mut();
    // SAFETY: The kernel chooses a fresh place.
    let base = unsafe { libc::mmap(none, pages * PAGE, protection, flags, fd, 0) };
    ensure!(
        base != libc::MAP_FAILED,
        "mmap(): {}",
        std::io::Error::last_os_error()
    );
    let base = NonNull::new(base).context("mmap() gave address 0")?;
    if flags & libc::MAP_SHARED != 0 {
        // The Guests here send to small numbers. In shared memory those would be keys of other
        // Guests', and nothing would come to the Launcher.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: The page is the first of those mapped above, and nobody has used it yet.
        let first = unsafe { libc::mmap(base.as_ptr(), PAGE, protection, flags, -1, 0) };
        ensure!(
            first == base.as_ptr(),
            "mmap() of the first page: {}",
            std::io::Error::last_os_error()
        );
    }
    // SAFETY: It was mapped in the lines before.
    Ok(unsafe { Memory::adopt(base, pages) })
}

/// A file in memory, long enough.
pub(super) fn memory_file() -> Result<OwnedFd> {
    let file = memfd_create("guest", MFdFlags::empty())?;
    ftruncate(&file, (PAGES * PAGE) as i64)?;
    Ok(file)
}

/// `mprotect()`, `madvise()` or `munmap()` of some pages.
pub(super) fn change(
    number: libc::c_long,
    memory: &Memory,
    pages: (usize, usize),
    word: i32,
) -> Result<()> {
    let place = memory.address() + pages.0 * PAGE;
    let length = (pages.1 - pages.0) * PAGE;
    // SAFETY: The pages are a Guest's memory, which this process reads and writes word by word
    // and only where it has left them alone.
    let done = unsafe { call(number, &[place, length, word as usize]) };
    expect("a change of memory", done, Ok(0))
}

/// Each kind of memory that a process can have: it works as any other, or the Guest dies of it with
/// a reason.
pub fn kinds(_: &[String]) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open("/tmp/guest-memory")?;
    file.set_len((PAGES * PAGE) as u64)?;
    let zero = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/zero")?;
    let in_memory = memory_file()?;
    let (private, shared) = (libc::MAP_PRIVATE, libc::MAP_SHARED);
    let anonymous = libc::MAP_ANONYMOUS;
    for (what, memory) in [
        ("private memory", map(-1, private | anonymous, PAGES)?),
        ("shared memory", map(-1, shared | anonymous, PAGES)?),
        (
            "locked memory",
            map(-1, private | anonymous | libc::MAP_LOCKED, PAGES)?,
        ),
        (
            "a stack that grows",
            map(-1, private | anonymous | libc::MAP_GROWSDOWN, PAGES)?,
        ),
        ("/dev/zero", map(zero.as_raw_fd(), private, PAGES)?),
        (
            "a memory file, shared",
            map(in_memory.as_raw_fd(), shared, PAGES)?,
        ),
        (
            "a memory file, private",
            map(in_memory.as_raw_fd(), private, PAGES)?,
        ),
        ("a file, shared", map(file.as_raw_fd(), shared, PAGES)?),
        ("a file, private", map(file.as_raw_fd(), private, PAGES)?),
    ] {
        mirrors(what, memory)?;
    }
    // A large page of the processor's, in the middle of which the Guest's memory begins.
    let large = map(-1, private | anonymous, 3 * 512)?;
    change(libc::SYS_madvise, &large, (0, 3 * 512), libc::MADV_HUGEPAGE)?;
    for page in 0..3 * 512 {
        large.write(page * PAGE, 1);
    }
    let smaps = std::fs::read_to_string("/proc/self/smaps")?;
    let huge = smaps.lines().any(|line| {
        line.strip_prefix("AnonHugePages:")
            .is_some_and(|rest| rest.trim() != "0 kB")
    });
    ensure!(huge, "Linux has made no large page of 6 MiB");
    mirrors("large pages", large)?;

    // Memory that is all there and may not be used.
    let memory = Memory::new(PAGES)?;
    let device = Device::open()?;
    let words = memory.load(COUNT);
    change(libc::SYS_mprotect, &memory, (0, PAGES), libc::PROT_READ)?;
    expect(
        "INITIALIZE with memory that is read-only",
        device.request(&words),
        Ok(56),
    )?;
    refused("read-only memory", &device)?;
    change(libc::SYS_mprotect, &memory, (0, PAGES), libc::PROT_NONE)?;
    let device = Device::open()?;
    expect(
        "INITIALIZE with memory without rights",
        device.request(&words),
        Ok(56),
    )?;
    refused("memory without rights", &device)?;

    // Only the page with the code, so that the tables can be walked. Nobody writes to it.
    let guest = Tiny::new(PAGES, COUNT)?;
    change(libc::SYS_mprotect, &guest.memory, (1, 2), libc::PROT_READ)?;
    guest.expect("code in a page that may not be written", 0)?;
    change(libc::SYS_mprotect, &guest.memory, (1, 2), libc::PROT_NONE)?;
    refused("code in a page that may not be read", &guest.device)?;
    // A file that is too short for its mapping.
    let short = memory_file()?;
    let memory = map(short.as_raw_fd(), shared, PAGES)?;
    let guest = Tiny::within(memory, COUNT)?;
    ftruncate(&short, 0)?;
    refused("a file that has been cut off", &guest.device)?;

    // Memory that Linux hides even from itself, if it has such.
    // SAFETY: The call takes no pointers.
    match unsafe { call(libc::SYS_memfd_secret, &[0]) } {
        Ok(fd) => {
            use std::os::fd::FromRawFd;
            // SAFETY: It was made in the line before.
            let secret = unsafe { OwnedFd::from_raw_fd(fd as i32) };
            ftruncate(&secret, (PAGES * PAGE) as i64)?;
            let guest = Tiny::within(map(secret.as_raw_fd(), shared, PAGES)?, COUNT)?;
            refused("secret memory", &guest.device)?;
        }
        Err(number) => println!("note: no secret memory here: {}", say::<()>(Err(number))),
    }
    // SAFETY: The kernel chooses a fresh place, if it gives one at all.
    let huge = unsafe {
        let flags = (private | anonymous | libc::MAP_HUGETLB) as usize;
        call(libc::SYS_mmap, &[0, 1 << 21, 3, flags, usize::MAX, 0])
    };
    match huge {
        Ok(base) => {
            let base = NonNull::new(base as *mut _).context("mmap() gave address 0")?;
            // SAFETY: It was mapped in the lines before.
            mirrors("hugetlb", unsafe { Memory::adopt(base, 512) })?;
        }
        Err(number) => println!("note: no hugetlb memory here: {}", say::<()>(Err(number))),
    }
    Ok(())
}

/// A Guest in this memory sees what this process writes, and the other way round.
fn mirrors(what: &str, memory: Memory) -> Result<()> {
    let guest = Tiny::within(memory, MIRROR)?;
    for value in [1, 1 << 40, u64::MAX, 0] {
        guest.memory.set_word(0, value);
        guest.expect(what, value)?;
        ensure!(
            guest.memory.word(1) == value,
            "{what}: the Guest's copy is not seen"
        );
    }
    Ok(())
}

/// The Guest must die, and the reason be the Launcher's memory.
fn refused(what: &str, device: &Device) -> Result<()> {
    let reason = reason(device)?;
    ensure!(
        reason.contains("the Launcher"),
        "{what}: the reason is {reason:?}"
    );
    Ok(())
}

/// What is done to the memory of a Guest that has all of it in use.
pub fn changes(_: &[String]) -> Result<()> {
    let data = (TOUCHED, PAGES - 3);
    // The Guest keeps what it has until it flushes. What it touches then is gone.
    type Change<'a> = (&'static str, &'a dyn Fn(&Tiny) -> Result<()>, bool);
    let elsewhere = Memory::new(PAGES)?;
    let all: [Change<'_>; 6] = [
        (
            "munmap()",
            &|g| change(libc::SYS_munmap, &g.memory, data, 0),
            true,
        ),
        (
            "mprotect() to read",
            &|g| change(libc::SYS_mprotect, &g.memory, data, 1),
            true,
        ),
        (
            "mprotect() to nothing",
            &|g| change(libc::SYS_mprotect, &g.memory, data, 0),
            true,
        ),
        (
            "mremap()",
            &|g| {
                let length = (data.1 - data.0) * PAGE;
                let (from, to) = (g.memory.address() + TOUCHED * PAGE, elsewhere.address());
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as usize;
                // SAFETY: Both ranges are this function's own, and only the Guest uses the first.
                let moved = unsafe { call(libc::SYS_mremap, &[from, length, length, flags, to]) };
                expect("mremap()", moved, Ok(to))
            },
            true,
        ),
        (
            "MADV_DONTNEED",
            &|g| change(libc::SYS_madvise, &g.memory, data, libc::MADV_DONTNEED),
            false,
        ),
        (
            "MADV_PAGEOUT",
            &|g| change(libc::SYS_madvise, &g.memory, data, libc::MADV_PAGEOUT),
            false,
        ),
    ];
    for (what, change, deadly) in all {
        let guest = Tiny::new(PAGES, TOUCH)?;
        guest.expect(what, 1)?;
        change(&guest)?;
        if deadly {
            refused(what, &guest.device).with_context(|| what)?;
            continue;
        }
        for round in 2..5 {
            guest.expect(what, round)?;
        }
        let touched = guest.memory.read(TOUCHED * PAGE);
        let wanted = if what == "MADV_DONTNEED" { 3 } else { 4 };
        ensure!(
            touched == wanted,
            "{what}: a page was touched {touched} times, not {wanted}"
        );
    }
    // The file below is cut off, or has a hole cut into it.
    for punch in [false, true] {
        let file = memory_file()?;
        let guest = Tiny::within(map(file.as_raw_fd(), libc::MAP_SHARED, PAGES)?, TOUCH)?;
        guest.expect("a memory file", 1)?;
        if punch {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (at, length) = (TOUCHED * PAGE, (PAGES - 3 - TOUCHED) * PAGE);
            // SAFETY: The call takes no pointers.
            let done = unsafe {
                let fd = file.as_raw_fd() as usize;
                call(libc::SYS_fallocate, &[fd, mode as usize, at, length])
            };
            expect("fallocate()", done, Ok(0))?;
            guest.expect("after a hole was cut", 2)?;
        } else {
            ftruncate(&file, (TOUCHED * PAGE) as i64)?;
            refused("a file that was cut off", &guest.device)?;
        }
    }
    forked()?;
    under_way()
}

/// `fork()`, after which a page belongs to whoever writes to it first: it must be the Guest's.
fn forked() -> Result<()> {
    let guest = Tiny::new(PAGES, MIRROR)?;
    guest.memory.set_word(0, 1);
    guest.expect("before fork()", 1)?;
    let (go_out, go_in) = nix::unistd::pipe()?;
    let (done_out, done_in) = nix::unistd::pipe()?;
    // SAFETY: This process has one thread.
    if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork() }? {
        // The child writes to its copy, and stays so that the pages have two owners.
        guest.memory.set_word(0, 99);
        guest.memory.set_word(1, 99);
        // It may be that the parent has failed and is gone.
        let _ = nix::unistd::write(&done_in, b"x");
        drop(go_in);
        let _ = nix::unistd::read(&go_out, &mut [0]);
        // SAFETY: Ends this process only.
        unsafe { libc::_exit(i32::from(guest.memory.word(0) != 99)) }
    }
    nix::unistd::read(&done_out, &mut [0])?;
    for value in 2..10 {
        guest.memory.set_word(0, value);
        guest.expect("after fork()", value)?;
        ensure!(
            guest.memory.word(1) == value,
            "after fork() the Guest's copy is not seen"
        );
    }
    drop(go_in);
    let status = nix::sys::wait::wait()?;
    let well = matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0));
    ensure!(well, "the child saw what the Guest wrote: {status:?}");
    // And once more with a page that the Guest has not had before the fork.
    let guest = Tiny::new(PAGES, MIRROR)?;
    guest.memory.set_word(0, 5);
    in_child("fork() before the first run", || {
        guest.memory.set_word(0, 98);
        Ok(())
    })?;
    guest.expect("first run after fork()", 5)
}

/// How long the memory is changed under way.
const WHILE: Duration = Duration::from_millis(700);

/// Another thread changes the memory all the time; the Guest lives or dies, and a new one is made.
fn under_way() -> Result<()> {
    let (mut rounds, mut deaths) = (0_u64, 0_u64);
    let end = Instant::now() + WHILE;
    while Instant::now() < end {
        let guest = Tiny::new(PAGES, TOUCH)?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let changer = scope.spawn(|| -> Result<()> {
                let place = guest.memory.address() + TOUCHED * PAGE;
                let length = (PAGES - 3 - TOUCHED) * PAGE;
                let fixed = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED) as usize;
                let anew = [place, length, 3, fixed, usize::MAX, 0];
                let steps: [(libc::c_long, &[usize]); 6] = [
                    (
                        libc::SYS_madvise,
                        &[place, length, libc::MADV_DONTNEED as usize],
                    ),
                    (libc::SYS_mprotect, &[place, length, 1]),
                    (libc::SYS_mprotect, &[place, length, 3]),
                    (libc::SYS_munmap, &[place, length]),
                    (libc::SYS_mmap, &anew),
                    (
                        libc::SYS_madvise,
                        &[place, length, libc::MADV_PAGEOUT as usize],
                    ),
                ];
                for n in 0_u64.. {
                    let (number, arguments) = steps[(n % 6) as usize];
                    // SAFETY: Only the Guest uses these pages.
                    let done = unsafe { call(number, arguments) };
                    ensure!(done.is_ok(), "step {n}: {}", say(done));
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    thread::sleep(Duration::from_micros(50 * (n % 7)));
                }
                Ok(())
            });
            let result = loop {
                match guest.next() {
                    Ok(_) if Instant::now() > end => break Ok(()),
                    Ok(_) => rounds += 1,
                    Err(ENOENT) => {
                        deaths += 1;
                        break Ok(());
                    }
                    Err(number) => break Err(anyhow!("read(): {number}")),
                }
            };
            stop.store(true, Ordering::Relaxed);
            changer
                .join()
                .map_err(|_| anyhow!("the changer panicked"))??;
            result
        })?;
    }
    println!("note: memory changed under way: {rounds} rounds, {deaths} Guests died of it");
    if deaths == 0 {
        bail!("no Guest died in {rounds} rounds: the changes did not meet it");
    }
    Ok(())
}
