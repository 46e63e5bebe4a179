// SPDX-License-Identifier: GPL-2.0-only

//! What the Launcher may not say to `/dev/lguest`, and how the Launcher refuses its own users.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::ptr::NonNull;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{Bench, NotHere};
use crate::device::{BREAK, Device, GETDMA, INITIALIZE, IRQ};
use crate::guest::Guest;
use crate::host;

/// Memory for a Guest that never gets far: zeros, page aligned.
struct Memory {
    base: NonNull<libc::c_void>,
    bytes: usize,
}

impl Memory {
    fn new(pages: usize) -> Result<Self> {
        let bytes = pages * 4096;
        let length = bytes.try_into()?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: The kernel chooses a fresh place, so nothing that exists is replaced.
        let base = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { base, bytes })
    }

    fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The mapping is this structure's own, and nobody has a reference into it.
        let _ = unsafe { munmap(self.base, self.bytes) };
    }
}

/// Checks one answer of the device against an error number.
fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, i32>, error: i32) -> Result<()> {
    match answer {
        Err(number) if number == error => Ok(()),
        other => bail!(
            "{what}: {other:?} instead of error {error} ({})",
            std::io::Error::from_raw_os_error(error)
        ),
    }
}

/// The pages of the Guests here.
const PAGES: u64 = 16;
/// An entry point that is an address, although nothing is mapped there.
const ENTRY: u64 = 0xffff_ffff_8010_0000;

/// INITIALIZE's words: base, pages, limit, entry, root, levels.
fn good_words(memory: &Memory) -> [u64; 7] {
    [
        INITIALIZE,
        memory.address(),
        PAGES,
        PAGES,
        ENTRY,
        (PAGES - 1) * 4096,
        4,
    ]
}

pub fn requests(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let metadata = fs::metadata(host::DEVICE)?;
    let mode = metadata.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the device's mode is {mode:o}");
    ensure!(
        metadata.uid() == 0,
        "the device belongs to user {}",
        metadata.uid()
    );

    let device = Device::open()?;
    let invalid = libc::EINVAL;
    refused("read() before INITIALIZE", device.read(64), invalid)?;
    refused(
        "GETDMA before INITIALIZE",
        device.request(&[GETDMA, 0]),
        invalid,
    )?;
    refused("IRQ before INITIALIZE", device.request(&[IRQ, 1]), invalid)?;
    refused("nothing", device.bytes(&[]), invalid)?;
    for length in [1, 7, 9, 15] {
        refused(
            &format!("{length} bytes"),
            device.bytes(&vec![0; length]),
            invalid,
        )?;
    }
    for request in [4, 99, 1 << 32, u64::MAX] {
        refused(
            &format!("request {request}"),
            device.request(&[request, 0]),
            invalid,
        )?;
    }
    refused("BREAK 2", device.request(&[BREAK, 2]), invalid)?;
    refused("BREAK without a word", device.request(&[BREAK]), invalid)?;
    refused(
        "INITIALIZE of 5 words",
        device.request(&[INITIALIZE; 6]),
        invalid,
    )?;
    refused(
        "INITIALIZE of 7 words",
        device.request(&[INITIALIZE; 8]),
        invalid,
    )?;
    refused("a megabyte", device.bytes(&vec![0; 1 << 20]), invalid)?;
    bad_pointer(&device.0)?;

    let memory = Memory::new(PAGES as usize)?;
    let good = good_words(&memory);
    let bad = |place: usize, value: u64| {
        let mut words = good;
        words[place] = value;
        words
    };
    for (what, words) in [
        ("a base off the page", bad(1, memory.address() + 8)),
        ("no page", bad(2, 0)),
        ("more pages than there are addresses", bad(2, 1 << 60)),
        ("all pages", bad(2, u64::MAX)),
        ("a limit below the memory", bad(3, PAGES - 1)),
        ("a limit past all addresses", bad(3, 1 << 60)),
        ("a limit beyond a process's memory", bad(3, 1 << 35)),
        ("memory past the limit", bad(2, PAGES + 1)),
        ("an entry that is no address", bad(4, 1 << 63)),
        ("a root off the page", bad(5, 8)),
        ("a root at the end", bad(5, PAGES * 4096)),
        ("a root far out", bad(5, u64::MAX - 4095)),
        ("no levels", bad(6, 0)),
        ("three levels", bad(6, 3)),
        ("very many levels", bad(6, u64::MAX)),
    ] {
        refused(what, device.request(&words), invalid)?;
    }
    refused("read() after failed INITIALIZEs", device.read(64), invalid)?;

    ensure!(
        device.request(&good) == Ok(56),
        "INITIALIZE in good order was refused"
    );
    match device.request(&good) {
        Err(libc::EBUSY | libc::EINVAL) => {}
        other => bail!("INITIALIZE twice: {other:?}"),
    }
    refused("a short read()", device.read(23), invalid)?;
    refused("IRQ 64", device.request(&[IRQ, 64]), invalid)?;
    refused("a huge IRQ", device.request(&[IRQ, u64::MAX]), invalid)?;
    refused(
        "GETDMA of nothing",
        device.request(&[GETDMA, 0]),
        libc::ENOENT,
    )?;
    ensure!(device.request(&[IRQ, 63]) == Ok(16), "IRQ 63 was refused");

    // Nothing is mapped in this Guest: it dies at its first instruction, and says why.
    refused(
        "read() of a Guest without memory maps",
        device.read(256),
        libc::ENOENT,
    )?;
    let reason = device
        .read(256)
        .map_err(|number| anyhow::anyhow!("no reason: {number}"))?;
    let reason = String::from_utf8_lossy(&reason).into_owned();
    ensure!(reason.contains("trap 14"), "the reason is {reason:?}");
    drop(device);
    host::wait_until_free()
}

/// `write()` and `read()` with pointers into nowhere and into the kernel.
fn bad_pointer(file: &File) -> Result<()> {
    for address in [8_usize, 0xffff_8880_0010_0000, usize::MAX - 4095] {
        // SAFETY: The kernel checks the pointer, which is what is tested; nothing of this
        // process lies there.
        let written = unsafe { libc::write(file.as_raw_fd(), address as *const _, 16) };
        let error = std::io::Error::last_os_error().raw_os_error();
        ensure!(written == -1, "write() from {address:#x} gave {written}");
        ensure!(
            error == Some(libc::EFAULT),
            "write() from {address:#x}: {error:?}"
        );
    }
    Ok(())
}

pub fn wrong_task(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let device = Device::open()?;
    let memory = Memory::new(PAGES as usize)?;
    let words = good_words(&memory);
    let elsewhere = |what: &str, words: &[u64]| -> Result<()> {
        let answer = thread::scope(|scope| scope.spawn(|| device.request(words)).join());
        let answer = answer.map_err(|_| anyhow::anyhow!("the other task panicked"))?;
        refused(&format!("{what} from another task"), answer, libc::EPERM)
    };
    elsewhere("INITIALIZE", &words)?;
    ensure!(
        device.request(&words) == Ok(56),
        "INITIALIZE in good order was refused"
    );
    elsewhere("GETDMA", &[GETDMA, 0])?;
    // Interrupts are for everyone who holds the file.
    for (line, wanted) in [(1, Ok(16)), (63, Ok(16)), (64, Err(libc::EINVAL))] {
        let answer = thread::scope(|scope| scope.spawn(|| device.request(&[IRQ, line])).join());
        let answer = answer.map_err(|_| anyhow::anyhow!("the other task panicked"))?;
        ensure!(answer == wanted, "IRQ {line} of another task: {answer:?}");
    }
    let answer = thread::scope(|scope| scope.spawn(|| device.read(64)).join());
    let answer = answer.map_err(|_| anyhow::anyhow!("the other task panicked"))?;
    refused("read() from another task", answer, libc::EPERM)?;

    // BREAK is for every thread: it waits until the owner has taken notice.
    thread::scope(|scope| -> Result<()> {
        let breaker = scope.spawn(|| device.request(&[BREAK, 1]));
        thread::sleep(Duration::from_millis(200));
        ensure!(!breaker.is_finished(), "BREAK did not wait");
        refused("read() under BREAK", device.read(64), libc::EAGAIN)?;
        ensure!(
            device.request(&[BREAK, 0]) == Ok(16),
            "BREAK off was refused"
        );
        let answer = breaker
            .join()
            .map_err(|_| anyhow::anyhow!("the breaker panicked"))?;
        ensure!(answer == Ok(16), "BREAK on came back with {answer:?}");
        Ok(())
    })?;
    drop(device);
    host::wait_until_free()
}

/// The argument with which this program is its own Launcher with an LDT.
pub const WITH_LDT: &str = "with-ldt";

/// Gives this process an LDT, runs a Guest from it, and returns why the Guest died.
pub fn with_ldt() -> Result<String> {
    // `struct user_desc` of asm/ldt.h: entry 0, base 0, the whole 4 GiB, 32 bits, useable.
    let entry: [u32; 4] = [0, 0, 0xf_ffff, 0x51];
    // SAFETY: The call reads the 16 bytes it is pointed to and changes this process's LDT, which
    // no code in this process uses.
    let made =
        unsafe { libc::syscall(libc::SYS_modify_ldt, 1, entry.as_ptr(), size_of_val(&entry)) };
    ensure!(
        made == 0,
        "no LDT: {}; this kernel needs CONFIG_MODIFY_LDT_SYSCALL=y",
        std::io::Error::last_os_error()
    );
    let device = Device::open()?;
    let memory = Memory::new(PAGES as usize)?;
    ensure!(
        device.request(&good_words(&memory)) == Ok(56),
        "INITIALIZE in good order was refused"
    );
    refused("running with an LDT", device.read(256), libc::ENOENT)?;
    let reason = device.read(256);
    let reason = reason.map_err(|number| anyhow::anyhow!("no reason: {number}"))?;
    Ok(String::from_utf8_lossy(&reason).into_owned())
}

pub fn ldt(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    // In a process of its own: an LDT stays as long as its process.
    let output = Command::new("/proc/self/exe").arg(WITH_LDT).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some((_, lacking)) = said.split_once("no LDT: ") {
        return Err(NotHere(lacking.trim().to_owned()).into());
    }
    ensure!(said.contains("the Launcher has an LDT"), "{said}");
    host::wait_until_free()
}

pub fn bad_memory(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    // A Launcher that lends what is not its own: the Host's memory, addresses past the end of
    // every process, and memory that it has given back.
    let mut given_back = 0;
    for base in [
        0xffff_8880_0000_0000,
        0xffff_ffff_8100_0000,
        1 << 47,
        0x1000,
        0,
    ] {
        let device = Device::open()?;
        let base = if base == 0 {
            let memory = Memory::new(PAGES as usize)?;
            given_back += 1;
            memory.address()
        } else {
            base
        };
        let words = [INITIALIZE, base, PAGES, PAGES, ENTRY, 0, 4];
        match device.request(&words) {
            Err(libc::EINVAL | libc::EFAULT) => continue,
            Ok(56) => {}
            other => bail!("memory at {base:#x}: {other:?}"),
        }
        refused(
            &format!("running from {base:#x}"),
            device.read(256),
            libc::ENOENT,
        )?;
        let reason = device
            .read(256)
            .map_err(|number| anyhow::anyhow!("no reason: {number}"))?;
        ensure!(
            !reason.is_empty(),
            "memory at {base:#x}: no reason was given"
        );
    }
    ensure!(given_back == 1, "the last try was not made");
    host::wait_until_free()
}

/// One wrong use of the Launcher: its words, the exit status, and what the complaint must say.
type Misuse = (&'static [&'static str], i32, &'static str);

const MISUSES: &[Misuse] = &[
    (&[], 2, "usage"),
    (&["lots", "/guests/probe"], 2, "MiB"),
    (&["0", "/guests/probe"], 2, "memory"),
    (&["-5", "/guests/probe"], 2, "MiB"),
    (&["1", "/guests/probe"], 2, "MiB"),
    (&["16"], 2, "kernel"),
    (&["16", "/guests/none"], 2, "/guests/none"),
    (&["16", "/dev/null"], 2, "/dev/null"),
    (&["16", "/tmp"], 2, "/tmp"),
    (&["16", "/lib/lguest.ko"], 2, "/lib/lguest.ko"),
    (&["16", "/bin/lguest"], 2, "/bin/lguest"),
    (
        &["--no-such-option", "16", "/guests/probe"],
        2,
        "--no-such-option",
    ),
    (
        &["--device", "/dev/none", "16", "/guests/probe"],
        3,
        "/dev/none",
    ),
    (&["--device", "/tmp", "16", "/guests/probe"], 3, "/tmp"),
];

pub fn usage(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    for (words, status, says) in MISUSES {
        let ended = Guest::launch(words)?.finish();
        let ended = ended.with_context(|| format!("lguest {words:?}"))?;
        let checked = ended
            .expect_code(*status)
            .and_then(|ended| ended.expect_error(says));
        checked.with_context(|| format!("lguest {words:?}"))?;
    }
    Ok(())
}

pub fn no_device(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let ended = Guest::launch_as_nobody(&["16", "/guests/probe"])?.finish()?;
    ended.expect_code(3)?.expect_error("permission")?;
    host::wait_until_free()?;
    host::unload_module()?;
    let ended = Guest::launch(&["16", "/guests/probe"])?.finish()?;
    ended.expect_code(3)?.expect_error("load the module")?;
    host::load_module()
}
