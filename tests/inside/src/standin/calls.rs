// SPDX-License-Identifier: GPL-2.0-only

//! Lengths, pieces, and system calls that the device does not have.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Result, ensure};
use libc::{EBADF, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOTTY, EOPNOTSUPP, EPERM, ESPIPE};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::{call, expect, expect_error};
use crate::device::{BREAK, Device, GETDMA, INITIALIZE, IRQ};
use crate::host::DEVICE;
use crate::tiny::{COUNT, DIE, Memory, Tiny, key_of, reason};

/// Every length from 0 to 130 bytes, and the enormous ones; every number of words from 0 to 15 with
/// every request; before INITIALIZE and after it.
pub fn lengths(_: &[String]) -> Result<()> {
    let memory = Memory::new(32)?;
    let device = Device::open()?;
    all_lengths(&device, false)?;
    for size in [0, 1, 7, 8, 23, 24, 25, 4096] {
        expect_error("read() before INITIALIZE", device.read(size), EINVAL)?;
    }
    let good = memory.load(COUNT);
    expect("INITIALIZE", device.request(&good), Ok(56))?;
    all_lengths(&device, true)?;

    for size in 0..24 {
        expect_error("a short read()", device.read(size), EINVAL)?;
    }
    for (key, size) in [24, 25, 31, 32, 4096, 1 << 20].into_iter().enumerate() {
        let record = device.read(size);
        let record = record.map_err(|n| anyhow::anyhow!("read() of {size} bytes: {n}"))?;
        ensure!(record.len() == 24, "a record of {} bytes", record.len());
        ensure!(key_of(&record)? == key as u64, "{:?}", key_of(&record));
    }
    // More than there can be: the kernel looks only at where it would begin and end.
    let (fd, place) = (device.0.as_raw_fd() as usize, low_page(0)?);
    for (count, wanted) in [
        (1 << 31, Ok(24)),
        (1 << 40, Ok(24)),
        (1 << 57, Err(EFAULT)),
        (usize::MAX >> 1, Err(EFAULT)),
        (usize::MAX, Err(EFAULT)),
    ] {
        // SAFETY: The device writes at most one record, for which there is room.
        let answer = unsafe { call(libc::SYS_read, &[fd, place, count]) };
        expect(&format!("read() of {count:#x} bytes"), answer, wanted)?;
    }
    drop(device);

    // The reason comes as far as there is room, from its beginning each time.
    let dead = Tiny::new(32, DIE)?;
    let whole = reason(&dead.device)?;
    ensure!(whole.contains("trap 6"), "{whole:?}");
    for size in [0, 1, 7, 8, 23, 24, whole.len(), 4096] {
        let part = dead.device.read(size);
        let part = part.map_err(|n| anyhow::anyhow!("the reason in {size} bytes: {n}"))?;
        let wanted = &whole.as_bytes()[..size.min(whole.len())];
        ensure!(part == wanted, "the reason in {size} bytes is {part:?}");
    }
    Ok(())
}

/// A page full of one word, so low that a terabyte after it is user space with four levels of page tables
/// too. It is never unmapped.
fn low_page(word: u64) -> Result<usize> {
    const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
    // In the lowest two gigabytes.
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: The system finds a free place, so nothing that exists is replaced.
    let page = unsafe { mmap_anonymous(None, PAGE, access, flags) }?;
    // SAFETY: It is a page of this process's, writable, and nobody else knows of it.
    unsafe { page.cast::<[u64; 512]>().write([word; 512]) };
    Ok(page.as_ptr() as usize)
}

fn all_lengths(device: &Device, initialized: bool) -> Result<()> {
    // A word that is no request, whatever its place.
    for length in 0..=130 {
        let answer = device.bytes(&vec![0x99; length]);
        expect_error(&format!("write() of {length} bytes"), answer, EINVAL)?;
    }
    for request in [INITIALIZE, GETDMA, IRQ, BREAK, 4] {
        for count in 0..=15 {
            let mut words = vec![2; count];
            if let Some(first) = words.first_mut() {
                *first = request;
            }
            let wanted = match (request, count) {
                (INITIALIZE, 7) if initialized => Err(EBUSY),
                (GETDMA, 2) if initialized => Err(ENOENT),
                (IRQ, 2) if initialized => Ok(16),
                _ => Err(EINVAL),
            };
            let what = format!("request {request} of {count} words");
            expect(&what, device.request(&words), wanted)?;
        }
    }
    let (fd, place) = (device.0.as_raw_fd() as usize, low_page(IRQ)?);
    for (count, wanted) in [
        (4096, EINVAL),
        (1 << 31, EINVAL),
        (1 << 40, EINVAL),
        (1 << 57, EFAULT),
        (usize::MAX, EFAULT),
    ] {
        // SAFETY: Nothing is written to this process.
        let answer = unsafe { call(libc::SYS_write, &[fd, place, count]) };
        expect_error(&format!("write() of {count:#x} bytes"), answer, wanted)?;
    }
    Ok(())
}

/// One piece of a vector.
fn piece(start: usize, length: usize) -> libc::iovec {
    libc::iovec {
        iov_base: start as *mut _,
        iov_len: length,
    }
}

/// `readv()` or `writev()`.
fn vectored(number: libc::c_long, device: &Device, pieces: &[libc::iovec]) -> Result<usize, i32> {
    let fd = device.0.as_raw_fd() as usize;
    // SAFETY: The pieces lie in buffers of the callers below.
    unsafe { call(number, &[fd, pieces.as_ptr() as usize, pieces.len()]) }
}

/// Requests and records in pieces, split at every place.
pub fn vectors(_: &[String]) -> Result<()> {
    let guest = Tiny::new(32, COUNT)?;
    let device = &guest.device;
    let mut key = 0;
    let request = |line: u64| [IRQ, line];
    for (line, wanted) in [(63, Ok(16)), (64, Err(EINVAL))] {
        let words = request(line);
        let at = words.as_ptr() as usize;
        for one in 0..=16 {
            for two in one..=16 {
                // An empty piece in each place between.
                let pieces = [
                    piece(at, one),
                    piece(at, 0),
                    piece(at + one, two - one),
                    piece(0, 0),
                    piece(at + two, 16 - two),
                ];
                let answer = vectored(libc::SYS_writev, device, &pieces);
                let what = format!("writev() of IRQ {line}, split at {one} and {two}");
                expect(&what, answer, wanted)?;
            }
        }
        let bytes: Vec<_> = (0..16).map(|n| piece(at + n, 1)).collect();
        let answer = vectored(libc::SYS_writev, device, &bytes);
        expect("writev() byte by byte", answer, wanted)?;
    }
    for (one, two) in (0..=24).flat_map(|one| (one..=24).map(move |two| (one, two))) {
        let mut buffers = [[0_u8; 24]; 3];
        let lengths = [one, two - one, 24 - two];
        let pieces: Vec<_> = buffers
            .iter_mut()
            .zip(lengths)
            .map(|(buffer, length)| piece(buffer.as_mut_ptr() as usize, length))
            .collect();
        let answer = vectored(libc::SYS_readv, device, &pieces);
        expect(&format!("readv() split at {one} and {two}"), answer, Ok(24))?;
        let joined: Vec<u8> = buffers
            .iter()
            .zip(lengths)
            .flat_map(|(buffer, length)| buffer[..length].to_vec())
            .collect();
        ensure!(
            key_of(&joined)? == key,
            "split at {one} and {two}: {joined:?}"
        );
        key += 1;
    }
    // What the kernel answers before the device is asked.
    let mut buffer = [0_u64; 3];
    let at = buffer.as_mut_ptr() as usize;
    for number in [libc::SYS_readv, libc::SYS_writev] {
        expect("a vector of nothing", vectored(number, device, &[]), Ok(0))?;
        let empty = [piece(at, 0), piece(at, 0)];
        expect(
            "a vector of empty pieces",
            vectored(number, device, &empty),
            Ok(0),
        )?;
        let many: Vec<_> = (0..1025).map(|_| piece(at, 0)).collect();
        expect_error("1,025 pieces", vectored(number, device, &many), EINVAL)?;
        let whole = [piece(at, usize::MAX)];
        expect_error(
            "a piece of all there is",
            vectored(number, device, &whole),
            EINVAL,
        )?;
    }
    // A piece that is not there, first or last; and the record is not lost.
    let bad = [[piece(8, 12), piece(at, 12)], [piece(at, 12), piece(8, 12)]];
    for pieces in bad {
        let answer = vectored(libc::SYS_readv, device, &pieces);
        expect_error("readv() with a bad piece", answer, EFAULT)?;
        guest.expect("after it", key)?;
        key += 1;
        let pieces = pieces.map(|p| piece(p.iov_base as usize, 8));
        let answer = vectored(libc::SYS_writev, device, &pieces);
        expect_error("writev() with a bad piece", answer, EFAULT)?;
    }
    Ok(())
}

/// Everything else that can be done with a descriptor.
pub fn others(_: &[String]) -> Result<()> {
    let guest = Tiny::new(32, COUNT)?;
    let mut buffer = [0_u64; 512];
    let (fd, at) = (guest.fd() as usize, buffer.as_mut_ptr() as usize);
    let request = [IRQ, 1];
    let from = request.as_ptr() as usize;
    let mut key = 0;
    let file = File::create("/tmp/others")?;
    file.set_len(4096)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/tmp/others")?;
    let other = file.as_raw_fd() as usize;
    let (pipe_out, pipe_in) = nix::unistd::pipe()?;
    nix::unistd::write(&pipe_in, &[0; 16])?;
    let (pipe_out, pipe_in) = (pipe_out.as_raw_fd() as usize, pipe_in.as_raw_fd() as usize);

    // SAFETY: All that is written to lies in `buffer`, or nowhere: see each call.
    let call = |number, arguments: &[usize]| unsafe { call(number, arguments) };
    // A position means nothing.
    for offset in [0, 1, 4096, 1 << 40, i64::MAX as usize - 24] {
        let what = format!("pread() at {offset:#x}");
        expect(
            &what,
            call(libc::SYS_pread64, &[fd, at, 24, offset]),
            Ok(24),
        )?;
        ensure!(buffer[2] == key, "{what}: key {}", buffer[2]);
        key += 1;
        let what = format!("pwrite() at {offset:#x}");
        expect(
            &what,
            call(libc::SYS_pwrite64, &[fd, from, 16, offset]),
            Ok(16),
        )?;
    }
    // Where the position would pass the last one that there is, the kernel says no.
    let (negative, last) = (usize::MAX, i64::MAX as usize);
    expect_error(
        "pread() at the end",
        call(libc::SYS_pread64, &[fd, at, 24, last]),
        EINVAL,
    )?;
    expect_error(
        "pread() at -1",
        call(libc::SYS_pread64, &[fd, at, 24, negative]),
        EINVAL,
    )?;
    expect_error(
        "pwrite() at -1",
        call(libc::SYS_pwrite64, &[fd, from, 16, negative]),
        EINVAL,
    )?;
    for whence in 0..=4 {
        let answer = call(libc::SYS_lseek, &[fd, 0, whence]);
        expect_error(&format!("lseek() of kind {whence}"), answer, ESPIPE)?;
    }
    for number in [0, 1, 0x5401, 0x8000_0000, 0xffff_ffff, 0xc018_6c00] {
        let answer = call(libc::SYS_ioctl, &[fd, number, at]);
        expect_error(&format!("ioctl() {number:#x}"), answer, ENOTTY)?;
    }
    for (protection, flags) in [(1, 1), (3, 1), (1, 2), (3, 2), (7, 1)] {
        let answer = call(libc::SYS_mmap, &[0, 4096, protection, flags, fd, 0]);
        expect_error(&format!("mmap() {protection} {flags}"), answer, ENODEV)?;
    }
    // Always ready, as a file is: a Guest cannot be waited for in this way.
    let mut poll = libc::pollfd {
        fd: fd as i32,
        events: 5,
        revents: 0,
    };
    let place = &raw mut poll as usize;
    expect("poll()", call(libc::SYS_poll, &[place, 1, 0]), Ok(1))?;
    ensure!(poll.revents == 5, "poll() says {:#x}", poll.revents);
    let epoll = call(libc::SYS_epoll_create1, &[0]);
    let epoll = epoll.map_err(|n| anyhow::anyhow!("epoll_create1(): {n}"))?;
    expect_error(
        "epoll_ctl()",
        call(libc::SYS_epoll_ctl, &[epoll, 1, fd, at]),
        EPERM,
    )?;

    for (what, number, arguments, wanted) in [
        (
            "splice() from it",
            libc::SYS_splice,
            [fd, 0, pipe_in, 0, 24, 0],
            EINVAL,
        ),
        (
            "splice() to it",
            libc::SYS_splice,
            [pipe_out, 0, fd, 0, 16, 0],
            EINVAL,
        ),
        (
            "sendfile() from it",
            libc::SYS_sendfile,
            [other, fd, 0, 24, 0, 0],
            EINVAL,
        ),
        (
            "sendfile() to it",
            libc::SYS_sendfile,
            [fd, other, 0, 16, 0, 0],
            EINVAL,
        ),
        (
            "copy_file_range()",
            libc::SYS_copy_file_range,
            [fd, 0, other, 0, 24, 0],
            EINVAL,
        ),
        ("fsync()", libc::SYS_fsync, [fd, 0, 0, 0, 0, 0], EINVAL),
        (
            "ftruncate()",
            libc::SYS_ftruncate,
            [fd, 0, 0, 0, 0, 0],
            EINVAL,
        ),
        (
            "fallocate()",
            libc::SYS_fallocate,
            [fd, 0, 0, 4096, 0, 0],
            ENODEV,
        ),
        (
            "getdents64()",
            libc::SYS_getdents64,
            [fd, at, 4096, 0, 0, 0],
            libc::ENOTDIR,
        ),
    ] {
        expect_error(what, call(number, &arguments), wanted)?;
    }
    // RWF_NOWAIT: the device cannot promise that.
    let pieces = [piece(at, 24)];
    let vector = pieces.as_ptr() as usize;
    let answer = call(libc::SYS_preadv2, &[fd, vector, 1, 0, 0, 8]);
    expect_error("preadv2() that may not wait", answer, EOPNOTSUPP)?;
    // O_NONBLOCK changes nothing: running a Guest is work, not waiting.
    let flags = (libc::O_RDWR | libc::O_NONBLOCK | libc::O_APPEND) as usize;
    expect(
        "O_NONBLOCK",
        call(libc::SYS_fcntl, &[fd, libc::F_SETFL as usize, flags]),
        Ok(0),
    )?;
    guest.expect("read() with O_NONBLOCK", key)?;
    expect(
        "write() with O_NONBLOCK",
        guest.device.request(&request),
        Ok(16),
    )?;
    guest.expect("all the while nothing was lost", key + 1)?;

    // A descriptor that may do only one of the two.
    let only = OpenOptions::new().read(true).open(DEVICE)?;
    let only = Device(only);
    expect_error("write() without the right", only.request(&request), EBADF)?;
    expect_error("read() without a Guest", only.read(24), EINVAL)?;
    let only = Device(OpenOptions::new().write(true).open(DEVICE)?);
    let memory = Memory::new(32)?;
    expect("INITIALIZE", only.request(&memory.load(COUNT)), Ok(56))?;
    expect_error("read() without the right", only.read(24), EBADF)?;
    let path = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(DEVICE)?;
    expect_error("read() of a mere path", Device(path).read(24), EBADF)
}
