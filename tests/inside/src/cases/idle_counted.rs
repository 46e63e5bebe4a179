// SPDX-License-Identifier: GPL-2.0-only

//! What a Guest that has halted costs, in instructions of the whole machine.
//!
//! The machine counts what it executes (`tests/counter`), and writes the count down whenever this
//! program calls a function at one fixed address. Between two such marks everything sleeps for a
//! long time. What is executed then is Linux's own, and what the Guest costs.

use std::arch::asm;
use std::arch::x86_64::_rdtsc;
use std::num::NonZero;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};

use super::Bench;
use crate::bare::{Bare, End, PAGE, with_module};
use crate::device::{Device, IRQ};

/// The function whose calls the counter notes: no other program has anything there.
pub const MARK: u64 = 0x6c67_0000_0000;

/// How long all sleep, in seconds of the machine's, which does not wait for them: `window=` says
/// another number.
const WINDOW: u64 = 400;
/// How often without a Guest, and with one.
const ROUNDS: usize = 6;
/// Instructions of a stretch of computing.
const SPIN: u64 = 200_000_000;

const SET_CLOCKEVENT: u64 = 9;
const HALT: u64 = 10;
const NEXT_IRQ: u64 = 32;

/// Puts a function there that returns at once.
fn prepare() -> Result<()> {
    let place = NonZero::new(MARK as usize);
    let length = NonZero::new(PAGE as usize).context("a page has bytes")?;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
    // SAFETY: Nothing that exists is replaced. The page is written to before it can be executed.
    unsafe {
        let page = mmap_anonymous(place, length, both, flags)?;
        page.cast::<u8>().write(0xc3);
        mprotect(
            page,
            PAGE as usize,
            ProtFlags::PROT_READ | ProtFlags::PROT_EXEC,
        )?;
    }
    Ok(())
}

/// Has the count noted, and gives the time.
fn mark() -> u64 {
    // SAFETY: `prepare` has put a function there that returns at once. A processor has a TSC.
    unsafe {
        let function = std::ptr::with_exposed_provenance::<()>(MARK as usize);
        let function: extern "C" fn() = std::mem::transmute(function);
        function();
        _rdtsc()
    }
}

/// One stretch between two marks, and how long it took.
fn window(bench: &mut Bench, what: &str, body: impl FnOnce()) -> Result<()> {
    let begun = mark();
    body();
    let took = mark() - begun;
    bench.control.say("note", &format!("window {what} {took}"))
}

/// How long a stretch is.
fn seconds(bench: &Bench) -> u64 {
    bench.number("window").unwrap_or(WINDOW).min(WINDOW)
}

fn sleep(bench: &mut Bench, what: &str) -> Result<()> {
    let time = Duration::from_secs(seconds(bench));
    window(bench, what, || thread::sleep(time))
}

fn compute() {
    // SAFETY: The two instructions change one register.
    unsafe {
        asm!(
            "2: dec {0}",
            "jnz 2b",
            inout(reg) SPIN / 2 => _,
            options(nomem, nostack),
        );
    }
}

/// The same while a Guest goes through these steps; line 5 ends its last HALT.
fn beside(bench: &mut Bench, what: &str, steps: fn(&mut Bare)) -> Result<()> {
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        let guest = scope.spawn(move || -> Result<End> {
            let mut guest = Bare::new()?;
            guest.limit = Duration::from_secs(1_000_000);
            steps(&mut guest);
            let device = guest.initialize()?;
            sender.send(Device(device.0.try_clone()?))?;
            guest.go_on(&device, |_, _, _| Ok(()))
        });
        let device = receiver.recv()?;
        // It has come to its HALT long before that.
        thread::sleep(Duration::from_secs(10));
        sleep(bench, what)?;
        let answer = device.request(&[IRQ, 5]);
        ensure!(answer == Ok(16), "IRQ: {answer:?}");
        let end = guest.join().expect("it does not panic")?;
        ensure!(end == End::Off, "{end:?}");
        Ok(())
    })
}

/// Woken once each second, as long as a window takes.
fn woken(guest: &mut Bare) {
    let mut handlers = Bare::usual_handlers();
    handlers.push((32, 1 | 1 << 9));
    guest.handlers(&handlers);
    for _ in 0..WINDOW + 20 {
        guest.call(SET_CLOCKEVENT, [1_000_000_000, 0, 0, 0]);
        guest.call(HALT, [0; 4]);
        guest.call(NEXT_IRQ, [0; 4]);
    }
    guest.call(HALT, [0; 4]);
}

/// The stretches, in turns; each is said with its name and its nanoseconds.
///
/// # Errors
///
/// When a Guest does not do what it should.
pub fn idle(bench: &mut Bench) -> Result<()> {
    prepare()?;
    with_module(|| {
        // In which the counter and the clock must agree.
        window(bench, "computing", compute)?;
        for _ in 0..ROUNDS {
            thread::sleep(Duration::from_secs(10));
            sleep(bench, "without")?;
            beside(bench, "halted", |guest| {
                guest.call(HALT, [0; 4]);
            })?;
        }
        // One that does a little: to see that it would be seen.
        beside(bench, "woken", woken)
    })
}
