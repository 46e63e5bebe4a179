// SPDX-License-Identifier: GPL-2.0-only

//! Guests whose sums show whether they lost anything while they were away, and one who holds the
//! device and does nothing with it.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use libc::{EAGAIN, EINTR, ENOENT};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::device::{BREAK, Device, IRQ};
use crate::progress::{Progress, path_of};
use crate::tiny::{NAP, NAP_LINE, SUM, Tiny, say};

/// Signals that have come, alarms aside.
static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn nothing(_: libc::c_int) {}

/// Has a signal call a function.
fn handle(signal: Signal, with: extern "C" fn(libc::c_int), flags: SaFlags) -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(with), flags, SigSet::empty());
    // SAFETY: Both functions above touch one atomic number at most.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Runs a Guest that computes (`spin`) or one that sleeps by turns (`halt`), and checks each sum.
/// `restart` or `interrupt` says whether a SIGUSR1 lets `read()` go on or end: in the first way an
/// EINTR that no alarm can have caused is an error. From the input come commands, a letter each:
/// `b` for a BREAK, `x` for the end.
pub fn sums(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (halts, restart) = match words[..] {
        [how @ ("spin" | "halt"), then @ ("restart" | "interrupt")] => {
            (how == "halt", then == "restart")
        }
        _ => bail!("spin or halt, restart or interrupt?"),
    };
    let flags = if restart {
        SaFlags::SA_RESTART
    } else {
        SaFlags::empty()
    };
    handle(Signal::SIGUSR1, count, flags)?;
    handle(Signal::SIGALRM, nothing, SaFlags::empty())?;
    let (program, step) = if halts { (NAP, 1000) } else { (SUM, 20_000) };
    let guest = Tiny::new(64, program)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path_of(std::process::id()))?;
    let over = Arc::new(AtomicBool::new(false));
    let waker = {
        let over = Arc::clone(&over);
        let device = Device(guest.device.0.try_clone()?);
        std::thread::spawn(move || -> Result<()> {
            let mut alarms = SigSet::empty();
            alarms.add(Signal::SIGALRM);
            alarms.add(Signal::SIGUSR1);
            alarms.thread_block()?;
            loop {
                let mut letter = [0];
                std::io::stdin().read_exact(&mut letter)?;
                over.store(letter[0] == b'x', Ordering::Release);
                let answer = device.request(&[BREAK, 1]);
                ensure!(answer == Ok(16), "BREAK: {}", say(answer));
                if letter[0] == b'x' {
                    return Ok(());
                }
            }
        })
    };
    if halts {
        super::signals::alarm(3000)?;
    }
    println!("running");
    let mut progress = Progress::default();
    loop {
        match guest.next() {
            Ok(number) => {
                progress.records += 1;
                let wanted = progress.records * step;
                ensure!(
                    number >> 63 == 0,
                    "the Guest's own segment has base {:#x} now; it has sent {} records",
                    number << 1 >> 1,
                    progress.records - 1
                );
                let (word, sum) = (guest.memory.word(0), guest.memory.word(1));
                ensure!(
                    number == wanted && word == wanted && sum == wanted * (wanted + 1) / 2,
                    "the Guest sent {number}, number {word} and sum {sum}, at {wanted}"
                );
            }
            Err(EINTR) if halts => {
                progress.interrupted += 1;
                let answer = guest.device.request(&[IRQ, NAP_LINE]);
                ensure!(answer == Ok(16), "IRQ: {}", say(answer));
            }
            Err(EINTR) if !restart => progress.interrupted += 1,
            Err(EAGAIN) => {
                progress.breaks += 1;
                let ends = over.load(Ordering::Acquire);
                let answer = guest.device.request(&[BREAK, 0]);
                ensure!(answer == Ok(16), "BREAK off: {}", say(answer));
                if ends {
                    file.write_all_at(&progress.bytes(), 0)?;
                    break;
                }
            }
            Err(ENOENT) => {
                let reason = guest.device.read(256).unwrap_or_default();
                bail!("it died: {}", String::from_utf8_lossy(&reason));
            }
            Err(number) => bail!("read(): {}", say::<()>(Err(number))),
        }
        progress.signals = CAME.load(Ordering::Relaxed);
        progress.seen_on(nix::sched::sched_getcpu()? as u64);
        file.write_all_at(&progress.bytes(), 0)?;
    }
    if halts {
        super::signals::alarm(0)?;
    }
    waker.join().map_err(|_| anyhow!("the waker panicked"))??;
    println!("{} records, all sums right", progress.records);
    Ok(())
}

/// Opens the device, INITIALIZEs or not, gives it to a child and closes it, or not, and stays until
/// it may read something. Word: `open`, `guest`, `child` or `letter`.
pub fn holder(words: &[String]) -> Result<()> {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    let how = words.first().context("how shall it be held?")?.as_str();
    let wait = || -> Result<()> {
        println!("holding");
        std::io::stdin().read_exact(&mut [0])?;
        Ok(())
    };
    match how {
        "open" => {
            let _device = Device::open()?;
            wait()
        }
        "guest" => {
            let guest = Tiny::new(64, SUM)?;
            guest.next().map_err(|n| anyhow!("{}", say::<()>(Err(n))))?;
            wait()
        }
        // A child has the descriptor and the memory, and has tried to map the device too; this
        // process has closed its own.
        "child" => {
            let guest = Tiny::new(64, SUM)?;
            guest.next().map_err(|n| anyhow!("{}", say::<()>(Err(n))))?;
            // SAFETY: This process has one thread.
            match unsafe { fork() }? {
                ForkResult::Child => {
                    // SAFETY: A fresh mapping at a place that the kernel chooses.
                    let mapped = unsafe {
                        libc::mmap(
                            std::ptr::null_mut(),
                            4096,
                            libc::PROT_READ,
                            libc::MAP_SHARED,
                            guest.fd(),
                            0,
                        )
                    };
                    let refused =
                        mapped == libc::MAP_FAILED && nix::errno::Errno::last_raw() == libc::ENODEV;
                    let done = wait().is_ok() && refused;
                    // SAFETY: Ends this process only.
                    unsafe { libc::_exit(i32::from(!done)) }
                }
                ForkResult::Parent { child } => {
                    drop(guest);
                    let status = waitpid(child, None)?;
                    ensure!(
                        matches!(status, WaitStatus::Exited(_, 0)),
                        "the child, whose mmap() must fail with ENODEV: {status:?}"
                    );
                    Ok(())
                }
            }
        }
        // The descriptor is on its way through a socket, and nobody has it open.
        "letter" => {
            use nix::sys::socket::{
                AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
            };
            let ends = socketpair(
                AddressFamily::Unix,
                SockType::Datagram,
                None,
                SockFlag::empty(),
            )?;
            let guest = Tiny::new(64, SUM)?;
            let (fds, bytes) = ([guest.fd()], [std::io::IoSlice::new(b"x")]);
            let letter = [ControlMessage::ScmRights(&fds)];
            use std::os::fd::AsRawFd;
            let none: Option<&()> = None;
            sendmsg(ends.0.as_raw_fd(), &bytes, &letter, MsgFlags::empty(), none)?;
            drop(guest);
            wait()
        }
        other => bail!("how is {other:?}?"),
    }
}
