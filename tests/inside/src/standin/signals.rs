// SPDX-License-Identifier: GPL-2.0-only

//! A storm of signals: no record may be lost or come twice, no request be half done.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use libc::{EINTR, ENOENT};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

use super::expect;
use crate::device::{GETDMA, IRQ};
use crate::tiny::{BOUND, BOUND_COUNT, BOUND_KEY, BOUND_RECORDS, COUNT, Program, RING, Tiny, say};

/// Signals that have come.
static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: libc::c_int) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

/// With so many signals and so many records a storm is over.
const ENOUGH: u64 = 1000;
/// And after this time, if there were at least so many of both: on a busy machine the two threads
/// seldom run at the same time.
const LONG_ENOUGH: (Duration, u64) = (Duration::from_millis(1500), 20);
/// How long a storm may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Signals as fast as another thread can send them, and ten thousand a second from a timer, with
/// and without SA_RESTART.
pub fn storm(_: &[String]) -> Result<()> {
    for restart in [true, false] {
        let flags = if restart {
            SaFlags::SA_RESTART
        } else {
            SaFlags::empty()
        };
        let action = SigAction::new(SigHandler::Handler(count), flags, SigSet::empty());
        // SAFETY: The handler touches one atomic number.
        unsafe {
            sigaction(Signal::SIGUSR1, &action)?;
            sigaction(Signal::SIGALRM, &action)?;
        }
        for (name, program) in [("calls", COUNT), ("the ring", RING), ("DMA", BOUND)] {
            let (records, interrupted, came) = under_signals(program, restart)?;
            println!(
                "note: {name}, SA_RESTART {restart}: {came} signals, {records} records, \
                 {interrupted} EINTRs"
            );
        }
    }
    Ok(())
}

/// Has this process sent a SIGALRM every so many microseconds, or no more.
pub fn alarm(microseconds: i64) -> Result<()> {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: The call reads the structure, and writes nothing with a null pointer.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    ensure!(set == 0, "setitimer(): {}", std::io::Error::last_os_error());
    Ok(())
}

/// Only one processor for the calling thread.
fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn under_signals(program: Program, restart: bool) -> Result<(u64, u64, u64)> {
    let guest = Tiny::new(32, program)?;
    let stop = AtomicBool::new(false);
    let me = pthread_self();
    // Each on a processor of its own where there are two; else signals come as often as the two
    // take turns.
    pin(0)?;
    let before = CAME.load(Ordering::Relaxed);
    let result = thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            pin(1.min(crate::host::cpus() - 1))?;
            // The alarms are for the thread that has the Guest.
            let mut alarms = SigSet::empty();
            alarms.add(Signal::SIGALRM);
            alarms.thread_block()?;
            while !stop.load(Ordering::Relaxed) {
                pthread_kill(me, Signal::SIGUSR1)?;
                // A moment, so that the Guest gets on between two of them.
                // (`spin_loop` is slow in an emulator: it lets others go first.)
                for n in 0..2000 {
                    std::hint::black_box(n);
                }
            }
            Ok(())
        });
        let run = || -> Result<(u64, u64)> {
            let (mut key, mut interrupted, mut next) = (0, 0, 0);
            let begun = Instant::now();
            loop {
                let both = CAME.load(Ordering::Relaxed).wrapping_sub(before).min(key);
                let (time, least) = LONG_ENOUGH;
                if both >= ENOUGH || (begun.elapsed() > time && both >= least) {
                    break;
                }
                ensure!(
                    begun.elapsed() < PATIENCE,
                    "{key} records: the storm does not end"
                );
                match guest.next() {
                    Ok(found) => {
                        ensure!(found == key, "key {found} instead of {key}");
                        key += 1;
                    }
                    Err(EINTR) if !restart => {
                        interrupted += 1;
                        continue;
                    }
                    other => bail!("read() in a storm: {}", say(other)),
                }
                expect(
                    "IRQ in a storm",
                    guest.device.request(&[IRQ, key % 64]),
                    Ok(16),
                )?;
                // Records are given in their order, each once; then all are made free.
                match guest.device.request(&[GETDMA, BOUND_KEY]) {
                    Ok(place) => {
                        let wanted = BOUND_RECORDS + 168 * next;
                        ensure!(place as u64 == wanted, "record {place:#x}, not {wanted:#x}");
                        next += 1;
                    }
                    Err(ENOENT) if key == 1 || next == BOUND_COUNT || next == 0 => {
                        for n in 0..BOUND_COUNT {
                            guest.memory.write((BOUND_RECORDS + 168 * n) as usize, 0);
                        }
                        next = 0;
                    }
                    other => bail!("GETDMA in a storm, {next} records taken: {}", say(other)),
                }
            }
            Ok((key, interrupted))
        };
        alarm(100)?;
        let result = run();
        alarm(0)?;
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"));
        sent??;
        result
    });
    let came = CAME.load(Ordering::Relaxed) - before;
    let (records, interrupted) = result?;
    Ok((records, interrupted, came))
}
