// SPDX-License-Identifier: GPL-2.0-only

//! A Guest's timer: once, not early, and never after its Guest.
//!
//! The Guest sends a record right before it sets its timer and right after it came. The clock that
//! is read then is the Host's, so that neither side has to believe the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

use super::Bench;
use super::guests::{OFF, pin, time_to_die, unpin};
use crate::bare::{Bare, DATA1, End, FREE, LINEAR, Outcome, Ring, STATE, USER_STACK, with_module};
use crate::device::{Device, IRQ};
use crate::guest::Guest;
use crate::{code, host};

const FLUSH_ASYNC: u64 = 0;
const SET_CLOCKEVENT: u64 = 9;
const HALT: u64 = 10;
const SEND_DMA: u64 = 13;
const NEXT_IRQ: u64 = 32;
/// Where the shared page has the pending lines.
const PENDING: u64 = 0x40;
/// The timer's vector.
const VECTOR: u64 = 32;
/// A line that somebody else raises to end a HALT, and its bit.
const OTHER: u64 = 5;
/// The timer's bit.
const TIMER: u64 = 1;

const MS: u64 = 1_000_000;

/// A Guest with a handler for line 0.
fn with_handler() -> Result<Bare> {
    let mut guest = Bare::new()?;
    guest.limit = Duration::from_secs(100) * host::patience();
    let mut handlers = Bare::usual_handlers();
    handlers.push((VECTOR, 1 | 1 << 9));
    guest.handlers(&handlers);
    Ok(guest)
}

fn send(guest: &mut Bare, key: u64) {
    guest.call(SEND_DMA, [key, FREE, 0, 0]);
}

fn set(guest: &mut Bare, ns: u64) {
    guest.call(SET_CLOCKEVENT, [ns, 0, 0, 0]);
}

/// Halts, and gives the steps that look at the pending lines and take the first that is handled.
fn sleep(guest: &mut Bare) -> [usize; 2] {
    guest.call(HALT, [0; 4]);
    let pending = guest.peek_shared(PENDING);
    [pending, guest.call(NEXT_IRQ, [0; 4])]
}

fn done(guest: &Bare, step: usize) -> Result<u64> {
    match guest.outcome(step) {
        Outcome::Done(value) => Ok(value),
        other => bail!("step {step}: {other:?}"),
    }
}

/// Checks what a sleep was ended by.
fn ended_by(guest: &Bare, [pending, next]: [usize; 2], lines: u64) -> Result<()> {
    let (found, handler) = (done(guest, pending)?, done(guest, next)?);
    ensure!(found == lines, "pending {found:#x}, not {lines:#x}");
    let timer = lines & TIMER != 0;
    ensure!((handler != 0) == timer, "NEXT_IRQ: {handler:#x}");
    Ok(())
}

/// Runs a Guest to its end, and gives the times at which it sent its records: for key 0 when it was
/// about to go on, for others when they came. `at` is called with each key.
fn timed(guest: &mut Bare, mut at: impl FnMut(&Device, u64) -> Result<()>) -> Result<Vec<Instant>> {
    let mut times = Vec::new();
    let end = guest.run_with(|_, device, (key, _)| {
        let came = Instant::now();
        at(device, key)?;
        times.push(if key == 0 { Instant::now() } else { came });
        Ok(())
    })?;
    ensure!(end == End::Off, "{end:?} at step {}", guest.reached());
    Ok(times)
}

/// Every length from a nanosecond to a tenth of a second, asleep: never early, and once.
fn lengths(bench: &mut Bench) -> Result<()> {
    for ns in [1, 1000, 100_000, MS, 4 * MS, 20 * MS, 100 * MS] {
        let rounds = if ns > 10 * MS { 5 } else { 25 };
        let mut guest = with_handler()?;
        let mut sleeps = Vec::new();
        for _ in 0..rounds {
            send(&mut guest, 0);
            set(&mut guest, ns);
            sleeps.push(sleep(&mut guest));
            send(&mut guest, 1);
        }
        let times = timed(&mut guest, |_, _| Ok(()))?;
        for sleep in sleeps {
            ended_by(&guest, sleep, TIMER)?;
        }
        let took = times.chunks(2).map(|pair| pair[1] - pair[0]);
        let mut late = Vec::new();
        for took in took {
            let least = Duration::from_nanos(ns);
            ensure!(took >= least, "{ns} ns were over after {took:?}");
            late.push(took - least);
        }
        late.sort_unstable();
        let (first, half, last) = (late[0], late[late.len() / 2], late[late.len() - 1]);
        let text = format!("{ns} ns: late by {first:.0?}, half by {half:.0?}, all by {last:.0?}");
        bench.control.say("note", &text)?;
        // On a busy machine the emulator is late for the timer itself. So only the long set asks
        // whether one of many is faster than the Host's clock, which ticks every 4 ms.
        let quiet = bench.long() && host::patience() == 1 && rounds > 20;
        let most = Duration::from_millis(if quiet { 2 } else { 500 }) * host::patience();
        ensure!(first < most, "{text}");
    }
    Ok(())
}

/// Raises another line after a time, from another thread, whenever the Guest sends key 0; so a
/// sleep ends that the timer does not end.
fn with_other_line(guest: &mut Bare, after: Duration) -> Result<Vec<Instant>> {
    timed(guest, |device, key| {
        if key == 0 {
            let device = Device(device.0.try_clone()?);
            thread::spawn(move || {
                thread::sleep(after);
                device.request(&[IRQ, OTHER])
            });
        }
        Ok(())
    })
}

/// Once, cancelled, set again: what comes and what does not.
fn once() -> Result<()> {
    let after = Duration::from_millis(300) * host::patience();
    let bits = 1 << OTHER;
    // Fires, and does not fire again.
    let mut guest = with_handler()?;
    set(&mut guest, MS);
    let first = sleep(&mut guest);
    send(&mut guest, 0);
    let second = sleep(&mut guest);
    with_other_line(&mut guest, after)?;
    ended_by(&guest, first, TIMER)?;
    ended_by(&guest, second, bits).context("after it has fired")?;
    // Taken back, directly and through the ring.
    for ring in [false, true] {
        let mut guest = with_handler()?;
        send(&mut guest, 0);
        set(&mut guest, 100 * MS);
        if ring {
            guest.queue(0, SET_CLOCKEVENT, [0; 4]);
            guest.call(FLUSH_ASYNC, [0; 4]);
        } else {
            set(&mut guest, 0);
        }
        let only = sleep(&mut guest);
        with_other_line(&mut guest, after)?;
        ended_by(&guest, only, bits).context("taken back")?;
    }
    // A short one in place of a long one, and a long one in place of a short one.
    let longest = i64::MAX.unsigned_abs();
    for (one, two) in [(longest, 20 * MS), (50 * MS, 400 * MS)] {
        let mut guest = with_handler()?;
        send(&mut guest, 0);
        set(&mut guest, one);
        set(&mut guest, two);
        let only = sleep(&mut guest);
        send(&mut guest, 1);
        let times = timed(&mut guest, |_, _| Ok(()))?;
        ended_by(&guest, only, TIMER)?;
        let took = times[1] - times[0];
        ensure!(took >= Duration::from_nanos(two), "{took:?} for {two} ns");
    }
    Ok(())
}

/// Whether a Guest that computes is interrupted, in its kernel and in a program.
fn computing() -> Result<()> {
    // RBX leads to the shared page. Interrupts are turned on as the agreement says.
    let mut guest = with_handler()?;
    let mut with = guest.registers(Ring::One);
    with.general[1] = LINEAR + STATE;
    with.general[5] = 30 * MS;
    let step = guest.go_with(
        code!(
            "mov eax, 9",
            "int 0x1f",
            "mov rbx, [rbx + 8]",
            "mov dword ptr [rbx], 0x200",
            "cmp dword ptr [rbx + 4], 0",
            "je 2f",
            "xor eax, eax",
            "int 0x1f",
            "2: jmp 2b",
        ),
        &with,
        0,
    );
    guest.survive()?;
    let kernel = guest.outcome(step);
    ensure!(
        matches!(kernel, Outcome::Trapped(trap) if trap.vector == VECTOR && trap.cs & 3 == 1),
        "{kernel:?}"
    );
    // The `iretq` goes to the program. On a busy machine the timer may come before that.
    for attempt in 1..=5 {
        let mut guest = with_handler()?;
        guest.set_stack();
        let program = guest.go(Ring::Three, code!("jmp 2f", "2: jmp 2b"));
        // The step is not to be taken in its turn, but where the next one says.
        let there = guest.code_at(Ring::Three, program);
        guest.write(bare_step(program), 1);
        guest.write(bare_step(program) + 8, FLUSH_ASYNC);
        for (place, word) in (0..).zip([there, 0x33, 0x202, USER_STACK, 0x2b]) {
            guest.write(DATA1 + 8 * place, word);
        }
        let mut with = guest.registers(Ring::One);
        with.general[1] = LINEAR + STATE;
        with.general[5] = 30 * MS * attempt;
        with.rsp = LINEAR + DATA1;
        let step = guest.go_with(
            code!(
                "mov eax, 9",
                "int 0x1f",
                "mov rbx, [rbx + 8]",
                "mov dword ptr [rbx], 0x200",
                "iretq",
            ),
            &with,
            0,
        );
        guest.survive()?;
        match guest.outcome(step) {
            Outcome::Trapped(trap) if trap.vector == VECTOR && trap.cs == 0x33 => return Ok(()),
            Outcome::Trapped(trap) if trap.vector == VECTOR && attempt < 5 => {}
            other => bail!("in ring 3: {other:?}"),
        }
    }
    Ok(())
}

/// Where the words of a step begin, as `bare` lays them out.
fn bare_step(step: usize) -> u64 {
    crate::bare::STEPS + crate::bare::STEP * step as u64
}

/// The Launcher does not read for a while: the line waits.
fn nobody_reads() -> Result<()> {
    let mut guest = with_handler()?;
    set(&mut guest, 20 * MS);
    send(&mut guest, 0);
    let pending = guest.peek_shared(PENDING);
    let only = sleep(&mut guest);
    timed(&mut guest, |_, _| {
        thread::sleep(Duration::from_millis(200));
        Ok(())
    })?;
    let lines = done(&guest, pending)?;
    ensure!(lines == TIMER, "pending {lines:#x} when the Guest goes on");
    ended_by(&guest, only, TIMER)
}

/// A time that cannot be meant, and one that is just possible.
fn bounds() -> Result<()> {
    for ns in [1 << 63, u64::MAX, u64::MAX - 999] {
        let mut guest = Bare::new()?;
        set(&mut guest, ns);
        crate::bare::must_die(
            &mut guest,
            "over 2^63",
            &format!("SET_CLOCKEVENT (9): {ns} ns"),
        )?;
    }
    let mut guest = with_handler()?;
    set(&mut guest, i64::MAX.unsigned_abs());
    send(&mut guest, 0);
    let only = sleep(&mut guest);
    with_other_line(&mut guest, Duration::from_millis(100))?;
    ended_by(&guest, only, 1 << OTHER).context("292 years")
}

pub fn timer(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        lengths(bench)?;
        once()?;
        computing()?;
        nobody_reads()?;
        bounds()?;
        let ended = Guest::probe(&["case=timer"])?.finish()?;
        ended.expect_code(OFF)?.expect_output("good: 40 timers")?;
        Ok(())
    })
}

/// The processor time of this thread, in milliseconds.
fn mine() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    Ok((usage.user_time() + usage.system_time()).num_milliseconds())
}

/// Guests that set timers of a nanosecond as fast as they can, and a program that shares a
/// processor with them: it has to get its half, or nearly.
fn flood(bench: &mut Bench) -> Result<()> {
    let here = Pid::from_raw(0);
    // By calls alone, and each slept for.
    let calls: &[u8] = code!("2: mov eax, 9", "mov edi, 1", "int 0x1f", "jmp 2b");
    let sleeps: &[u8] = code!(
        "2: mov eax, 9",
        "mov edi, 1",
        "int 0x1f",
        "mov eax, 10",
        "int 0x1f",
        "mov eax, 32",
        "int 0x1f",
        "jmp 2b",
    );
    for (what, code) in [("calls", calls), ("sleeps", sleeps)] {
        let mut guest = with_handler()?;
        guest.go(Ring::One, code);
        guest.limit = Duration::from_secs(4) * host::patience();
        let over = AtomicBool::new(false);
        let share = thread::scope(|scope| -> Result<(i64, i64)> {
            let other = scope.spawn(|| -> Result<i64> {
                // The alarm that ends the Guest is for the thread that runs it.
                SigSet::from(Signal::SIGALRM).thread_block()?;
                pin(here, 0)?;
                let before = mine()?;
                let work = AtomicU64::new(0);
                while !over.load(Ordering::Relaxed) {
                    work.fetch_add(1, Ordering::Relaxed);
                }
                Ok(mine()? - before)
            });
            pin(here, 0)?;
            let before = mine()?;
            let end = guest.run();
            let guests = mine()? - before;
            over.store(true, Ordering::Relaxed);
            unpin(here)?;
            let programs = other.join().expect("it does not panic")?;
            let end = end?;
            ensure!(end == End::Running, "{what}: {end:?}");
            Ok((guests, programs))
        })?;
        let (guests, programs) = share;
        let text = format!("{what}: the Guest had {guests} ms, the program {programs} ms");
        bench.control.say("note", &text)?;
        ensure!(programs * 3 > guests, "{text}");
    }
    Ok(())
}

/// Guests that end in every way with a timer set. Then the module goes at once.
fn endings(bench: &mut Bench) -> Result<()> {
    for round in 0..30_u64 {
        // Closed while it runs, at a moment near that at which the timer fires.
        let mut guest = with_handler()?;
        set(&mut guest, 200_000 + 40_000 * round);
        send(&mut guest, 0);
        let device = guest.initialize()?;
        device.read(512).ok().context("no record")?;
        if round % 3 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        drop(device);
        // Dead by its own hand, with the file still open.
        let mut guest = with_handler()?;
        set(&mut guest, 500_000);
        guest.call(99, [0; 4]);
        let end = guest.run()?;
        let dead = matches!(&end, End::Dead(reason) if reason == "unknown hypercall 99");
        ensure!(dead, "{end:?}");
    }
    let rounds = if bench.long() { 40 } else { 8 };
    for round in 0..rounds {
        let guest = Guest::probe(&["case=timer-always"])?;
        guest.wait_for("always")?;
        thread::sleep(Duration::from_micros(700 * round));
        guest.signal(Signal::SIGKILL)?;
        guest.finish_within(time_to_die())?;
        host::wait_until_free()?;
        host::unload_module()?;
        host::load_module()?;
    }
    Ok(())
}

pub fn timer_storm(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        flood(bench)?;
        endings(bench)?;
        host::wait_until_free()?;
        host::unload_module()?;
        // What fired now would fire into nothing.
        thread::sleep(Duration::from_millis(100));
        host::load_module()
    })
}
