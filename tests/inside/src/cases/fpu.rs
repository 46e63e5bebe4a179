// SPDX-License-Identifier: GPL-2.0-only

//! The FPU: a Guest's registers, its Launcher's, and those of programs that have nothing to do with
//! either.
//!
//! Here the Launcher is this process. It fills every register of the FPU that the machine has with
//! a pattern, enters the system call that runs the Guest with it, and looks at every register
//! afterwards.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::guests::{OFF, pin, time_to_die};
use super::sweep::Numbers;
use super::{Bench, NotHere};
use crate::bare::reg::RAX;
use crate::bare::{Bare, DATA1, DATA3, DIRECT, FREE, Outcome, Ring, StepNumber, with_module};
use crate::code;
use crate::device::Device;
use crate::guest::Guest;
use crate::host;

/// The hypercall.
const TS: u64 = 8;
/// Trips with its registers that a Guest gets for one trap.
const TRIPS: u64 = 16;
/// Bytes of the part that every processor has.
const LEGACY: usize = 512;

/// An area as XSAVE writes it.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Area(pub(super) [u8; 4096]);

/// What of the state this machine has: a name, where it is in an area, and how long.
pub(super) struct Machine {
    /// x87, SSE, AVX and the three parts of AVX-512, as far as XCR0 has them.
    mask: u64,
    parts: Vec<(String, usize, usize)>,
}

impl Machine {
    pub(super) fn new() -> Result<Self> {
        if __cpuid(1).ecx & 1 << 27 == 0 {
            return Err(NotHere("needs XSAVE, to look at all registers".into()).into());
        }
        // SAFETY: OSXSAVE is on, as has just been asked.
        let mask = unsafe { _xgetbv(0) } & 0xe7;
        let mut parts = vec![
            ("x87 control words".to_owned(), 0, 5),
            ("MXCSR".to_owned(), 24, 4),
        ];
        parts.extend((0..8).map(|n| (format!("x87 register {n}"), 32 + 16 * n, 10)));
        parts.extend((0..16).map(|n| (format!("XMM{n}"), 160 + 16 * n, 16)));
        for part in (2..8).filter(|part| mask & 1 << part != 0) {
            let leaf = __cpuid_count(0xd, part);
            let name = match part {
                2 => "the upper halves of YMM",
                _ => "a part of AVX-512",
            };
            parts.push((name.to_owned(), leaf.ebx as usize, leaf.eax as usize));
        }
        let end = parts.iter().map(|(_, at, bytes)| at + bytes).max();
        ensure!(end <= Some(4096), "an area of {end:?} bytes");
        Ok(Self { mask, parts })
    }

    /// Random contents for everything, with no exception enabled.
    pub(super) fn pattern(&self, numbers: &mut Numbers) -> Area {
        let mut area = Area([0; 4096]);
        for (_, at, bytes) in &self.parts {
            for byte in &mut area.0[*at..at + bytes] {
                *byte = (numbers.next() >> 32) as u8;
            }
        }
        let turn = (numbers.next() >> 32) as u16 & 3;
        area.0[..2].copy_from_slice(&(0x037f_u16 | turn << 10).to_le_bytes());
        area.0[2..5].copy_from_slice(&[0x01, 0x28, 0xff]);
        area.0[24..28].copy_from_slice(&(0x1fa1_u32 | u32::from(turn) << 13).to_le_bytes());
        area.0[LEGACY..LEGACY + 8].copy_from_slice(&self.mask.to_le_bytes());
        area
    }

    /// Compares what was filled in with what was found.
    fn compare(&self, before: &Area, after: &Area) -> Result<()> {
        for (name, at, bytes) in &self.parts {
            let range = *at..at + bytes;
            let (before, after) = (&before.0[range.clone()], &after.0[range]);
            ensure!(before == after, "{name}: {before:x?} became {after:x?}");
        }
        Ok(())
    }

    /// Makes a system call with all registers full and works a while. What was in the registers
    /// comes back in `after`; the caller's own are as before.
    fn filled_call(
        &self,
        call: [u64; 4],
        fill: &Area,
        after: &mut Area,
        work: u64,
    ) -> Result<u64, i32> {
        let mut own = Area([0; 4096]);
        let [number, a, b, c] = call;
        let answer: i64;
        // SAFETY: The areas are large enough for all parts of the mask, and aligned. The caller's
        // registers are stored first and loaded last. The system call is one of this file's, whose
        // pointers are good.
        unsafe {
            asm!(
                "mov eax, r12d",
                "xor edx, edx",
                "xsave64 [r13]",
                "mov eax, r12d",
                "xrstor64 [r14]",
                "mov rax, r8",
                "mov rdx, r9",
                "syscall",
                "mov r8, rax",
                "2: dec r10",
                "jnz 2b",
                "mov eax, r12d",
                "xor edx, edx",
                "xsave64 [r15]",
                "mov eax, r12d",
                "xor edx, edx",
                "xrstor64 [r13]",
                inout("r8") number => answer,
                in("rdi") a,
                in("rsi") b,
                in("r9") c,
                inout("r10") work.max(1) => _,
                in("r12") self.mask,
                in("r13") &raw mut own,
                in("r14") fill,
                in("r15") after,
                out("rax") _, out("rcx") _, out("rdx") _, out("r11") _,
            );
        }
        u64::try_from(answer).map_err(|_| -answer as i32)
    }

    /// Runs a Guest to its end, with other patterns in the registers at each `read()`. It must power
    /// off. Says how often `read()` returned.
    pub(super) fn run_filled(&self, device: &Device, numbers: &mut Numbers) -> Result<u64> {
        let mut record = vec![0_u8; 512];
        let mut after = Area([0; 4096]);
        for turn in 1.. {
            let fill = self.pattern(numbers);
            let call = [
                libc::SYS_read as u64,
                device.0.as_raw_fd() as u64,
                record.as_mut_ptr() as u64,
                record.len() as u64,
            ];
            let answer = self.filled_call(call, &fill, &mut after, 1);
            self.compare(&fill, &after)
                .with_context(|| format!("the Launcher's registers, read() number {turn}"))?;
            match answer {
                Ok(_) | Err(libc::EINTR) => {}
                Err(libc::ESHUTDOWN) => return Ok(turn),
                Err(libc::ENOENT) => {
                    let reason = device.read(512).unwrap_or_default();
                    bail!("the Guest died: {}", String::from_utf8_lossy(&reason));
                }
                Err(number) => bail!("read() failed with error {number}"),
            }
        }
        unreachable!("the loop has no end")
    }
}

/// Where ring 1's and ring 3's data lie in memory.
fn data(ring: Ring) -> u64 {
    if ring == Ring::One { DATA1 } else { DATA3 }
}

/// Both ways of the module: as it decides itself, and with the registers loaded on every trip.
pub(super) fn both_ways(body: impl Fn(bool) -> Result<()>) -> Result<()> {
    for eager in [false, true] {
        if host::module_loaded() {
            host::unload_module()?;
        }
        host::load_module_with(if eager { c"eager_fpu=1" } else { c"" })?;
        body(eager).with_context(|| format!("eager: {eager}"))?;
        host::wait_until_free()?;
    }
    host::unload_module()?;
    host::load_module()
}

/// What a new Guest must find in the first 512 bytes.
pub(super) fn initial() -> [u64; 52] {
    let mut words = [0; 52];
    words[0] = 0x037f;
    words[3] = 0x1f80;
    words
}

pub fn fresh(bench: &mut Bench) -> Result<()> {
    let machine = Machine::new()?;
    let names = machine.parts.len();
    both_ways(|_| {
        let mut numbers = Numbers(0x5eed_f00d);
        for ring in [Ring::One, Ring::Three] {
            // A Guest before it leaves its own numbers in there, the way it likes.
            let mut former = Bare::new()?;
            former.set_stack();
            let pattern = machine.pattern(&mut numbers);
            former.write_bytes(data(ring), &pattern.0[..LEGACY]);
            former.go(ring, code!("fxrstor64 [rbx]"));
            former.call(0, [0; 4]);
            former.survive().context("the Guest before")?;

            let mut guest = Bare::new()?;
            guest.set_stack();
            // Its pages are there before, so that the first use of the FPU stores at once, and no
            // page fault lies between.
            guest.go(ring, code!("mov qword ptr [rbx], 0"));
            // With the second instruction it has had a use of the FPU already.
            let first = guest.go(ring, code!("fxsave64 [rbx]", "fxsave64 [rbx + 512]"));
            guest.call(13, [3, FREE, 0, 0]);
            let avx = guest.go(ring, code!("vaddps ymm0, ymm0, ymm0"));
            let tells = guest.go(ring, code!("xgetbv"));
            let saves = guest.go(ring, code!("xsave64 [rbx]"));
            let device = guest.initialize()?;
            let reads = machine.run_filled(&device, &mut numbers)?;
            ensure!(reads == 2, "{reads} calls of read()");
            ran(&guest, first)?;
            for (at, what) in [(0, "first"), (512, "second")] {
                for (word, wanted) in (0..).zip(initial()) {
                    // The MXCSR mask is in the upper half.
                    let mask = if word == 3 { 0xffff_ffff } else { !0 };
                    let found = guest.read(data(ring) + at + 8 * word) & mask;
                    ensure!(
                        found == wanted,
                        "{ring:?}: word {word} of its {what} image is {found:#x}"
                    );
                }
            }
            for (step, what) in [(avx, "AVX"), (tells, "XGETBV"), (saves, "XSAVE")] {
                trapped(&guest, step, 6, 0).with_context(|| format!("{ring:?}: {what}"))?;
            }
        }
        Ok(())
    })?;
    let note = format!(
        "{names} parts of the Launcher's, XCR0's part {:#x}",
        machine.mask
    );
    bench.control.say("note", &note)
}

/// A step of instructions that all ran.
fn ran(guest: &Bare, step: StepNumber) -> Result<()> {
    match guest.outcome(step) {
        Outcome::Trapped(trap) if trap.vector == 3 => Ok(()),
        other => bail!("step {step}: {other:?}"),
    }
}

/// A step that trapped at a place of its code.
fn trapped(guest: &Bare, step: StepNumber, vector: u64, place: u64) -> Result<()> {
    let Outcome::Trapped(mut trap) = guest.outcome(step) else {
        bail!("step {step} was never reached");
    };
    let ring = if trap.cs == Ring::One.cs() {
        Ring::One
    } else {
        Ring::Three
    };
    let wanted = (vector, 0, guest.code_at(ring, step) + place);
    ensure!(
        (trap.vector, trap.error, trap.rip) == wanted,
        "step {step}: {trap:?}, not trap {vector} at byte {place}"
    );
    // After a direct trap the interrupt flag is the real one.
    trap.rflags &= !0x200;
    super::instructions::frame_is_right(&trap, ring)
}

/// The two counters: trips with registers, and traps that the Guest did not hear of.
fn counts() -> Result<[u64; 2]> {
    Ok([host::counter("fpu_trips")?, host::counter("fpu_traps")?])
}

pub fn ts(bench: &mut Bench) -> Result<()> {
    both_ways(|eager| {
        // Whether the module is lazy of its own accord hangs on who made the processor.
        let before = counts()?;
        let mut guest = Bare::new()?;
        (0..100).for_each(|_| _ = guest.call(0, [0; 4]));
        guest.survive()?;
        let [trips, traps] = counts()?;
        ensure!(traps == before[1], "a trap without the FPU");
        let lazy = trips == before[0];
        let amd = std::fs::read_to_string("/proc/cpuinfo")?.contains("AuthenticAMD");
        ensure!(
            lazy == (amd && !eager),
            "{} trips with registers for a Guest that has no use for them",
            trips - before[0]
        );
        if lazy {
            one_use()?;
        }
        for ring in [Ring::One, Ring::Three] {
            on_and_off(ring).with_context(|| format!("{ring:?}"))?;
        }
        Ok(())
    })?;
    let mut guest = Bare::new()?;
    guest.go(Ring::One, code!("fld1"));
    guest.survive()?;
    bench.control.say("note", "TS on and off, both ways")?;
    host::wait_until_free()
}

/// One use of the FPU, and many trips after it.
fn one_use() -> Result<()> {
    let before = counts()?;
    let mut guest = Bare::new()?;
    let step = guest.go(Ring::One, code!("fld1"));
    (0..100).for_each(|_| _ = guest.call(0, [0; 4]));
    guest.survive()?;
    ran(&guest, step)?;
    let [trips, traps] = counts()?;
    let (trips, traps) = (trips - before[0], traps - before[1]);
    ensure!(
        (trips, traps) == (TRIPS, 1),
        "one use: {trips} trips with registers and {traps} traps, not {TRIPS} and 1"
    );
    Ok(())
}

/// How a Guest reaches its TS.
#[derive(Clone, Copy)]
enum Way {
    Call,
    Ring,
    Cr0,
}

/// TS on and off again, in every way, with a value that must outlive it.
fn on_and_off(ring: Ring) -> Result<()> {
    const MARK: u64 = 0x0123_4567_89ab_cdef;
    let mut guest = Bare::new()?;
    guest.set_stack();
    let mut with = guest.registers(ring);
    with.general[RAX] = MARK;
    let mut run = vec![guest.go_with(code!("movq xmm3, rax", "fldpi"), &with, 0)];
    // Longer than the registers stay loaded unasked.
    (0..2 * TRIPS).for_each(|_| _ = guest.call(0, [0; 4]));
    let mut marked = vec![guest.go(ring, code!("movq rax, xmm3", "fst st(1)"))];
    let mut stopped = Vec::new();
    let mut cr0 = Vec::new();
    for way in [Way::Call, Way::Ring, Way::Cr0] {
        match way {
            Way::Call => _ = guest.call(TS, [1, 0, 0, 0]),
            Way::Ring => {
                guest.queue(0, TS, [1, 0, 0, 0]);
                guest.call(0, [0; 4]);
            }
            Way::Cr0 => {
                let set = code!("mov rax, cr0", "or eax, 8", "mov cr0, rax");
                run.push(guest.go(Ring::One, set));
            }
        }
        cr0.push((guest.go(Ring::One, code!("mov rax, cr0")), 8));
        for instruction in [
            code!("fldz"),
            code!("fwait"),
            code!("movq rax, xmm3"),
            code!("ldmxcsr [rbx]"),
            code!("fxsave64 [rbx]"),
        ] {
            stopped.push(guest.go(ring, instruction));
        }
        (0..TRIPS).for_each(|_| _ = guest.call(0, [0; 4]));
        stopped.push(guest.go(ring, code!("pxor xmm3, xmm3")));
        match way {
            Way::Call => _ = guest.call(TS, [0; 4]),
            Way::Ring => {
                guest.queue(1, TS, [0; 4]);
                guest.call(0, [0; 4]);
            }
            Way::Cr0 => run.push(guest.go(Ring::One, code!("clts"))),
        }
        cr0.push((guest.go(Ring::One, code!("mov rax, cr0")), 0));
        marked.push(guest.go(ring, code!("movq rax, xmm3")));
    }
    run.extend(&marked);
    guest.survive()?;
    for step in run {
        ran(&guest, step)?;
    }
    for step in marked {
        let mark = guest.after(step).general[RAX];
        ensure!(mark == MARK, "step {step}: XMM3 is {mark:#x}");
    }
    for step in stopped {
        trapped(&guest, step, 7, 0)?;
    }
    for (step, ts) in cr0 {
        let found = guest.after(step).general[RAX];
        ensure!(found & 8 == ts, "step {step}: CR0 is {found:#x}");
    }
    Ok(())
}

pub fn exceptions(bench: &mut Bench) -> Result<()> {
    let machine = Machine::new()?;
    let mut simd = 0;
    with_module(|| {
        let mut numbers = Numbers(0xe8ce_9710);
        for direct in [0, DIRECT] {
            for ring in [Ring::One, Ring::Three] {
                let mut guest = Bare::new()?;
                let mut handlers = Bare::usual_handlers();
                for (_, flags) in handlers.iter_mut().filter(|(v, _)| matches!(v, 16 | 19)) {
                    *flags |= direct;
                }
                guest.handlers(&handlers);
                guest.set_stack();
                // Division by zero is to trap: MXCSR, and x87's control word.
                guest.write(data(ring), 0x037b << 32 | 0x1d80);
                let sse = code!(
                    "ldmxcsr [rbx]",
                    "mov eax, 1",
                    "cvtsi2ss xmm0, eax",
                    "xorps xmm1, xmm1",
                    "divss xmm0, xmm1"
                );
                let nineteen = guest.go(ring, sse);
                let x87 = code!("fldcw [rbx + 4]", "fld1", "fldz", "fdivp", "fwait");
                let sixteen = guest.go(ring, x87);
                // It stays pending, over a trip to the Launcher, and when the Guest ends.
                guest.call(13, [3, FREE, 0, 0]);
                let again = guest.go(ring, code!("fwait"));
                let device = guest.initialize()?;
                machine.run_filled(&device, &mut numbers)?;
                let what = || format!("{ring:?}, direct {direct:#x}");
                trapped(&guest, sixteen, 16, x87.len() as u64 - 1).with_context(what)?;
                trapped(&guest, again, 16, 0).with_context(what)?;
                // QEMU's translator does not know exceptions of SSE: it notes them in MXCSR.
                match ran(&guest, nineteen) {
                    Ok(()) => simd += 1,
                    Err(_) => {
                        trapped(&guest, nineteen, 19, sse.len() as u64 - 4).with_context(what)?;
                    }
                }
            }
        }
        Ok(())
    })?;
    let note = match simd {
        0 => "traps 16 and 19, reflected and direct, in rings 1 and 3".to_owned(),
        n => format!(
            "trap 16, reflected and direct, in rings 1 and 3; this processor never raised trap 19 \
             ({n} divisions by zero)"
        ),
    };
    bench.control.say("note", &note)
}

/// How long the processor is shared, in seconds.
const SECONDS: u64 = 6;
const LONG_SECONDS: u64 = 60;

pub fn busy(bench: &mut Bench) -> Result<()> {
    let machine = Machine::new()?;
    let seconds = if bench.long() { LONG_SECONDS } else { SECONDS };
    host::load_module()?;
    let before = counts()?;
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let guests = thread::scope(|scope| {
        let users: Vec<_> = (0..2 * host::cpus())
            .map(|seed| {
                let (machine, over, rounds) = (&machine, &over, &rounds);
                scope.spawn(move || user(machine, seed as u64, over, rounds))
            })
            .collect();
        let filled: Vec<_> = (0..2)
            .map(|seed| {
                let (machine, over) = (&machine, &over);
                scope.spawn(move || launcher(machine, seed, over))
            })
            .collect();
        let mixed = mix(Duration::from_secs(seconds));
        over.store(true, Ordering::Relaxed);
        let joined = users
            .into_iter()
            .map(|thread| thread.join())
            .collect::<Vec<_>>();
        for user in joined {
            user.map_err(|_| anyhow::anyhow!("a program panicked"))??;
        }
        let mut reads = 0;
        for thread in filled {
            reads += thread
                .join()
                .map_err(|_| anyhow::anyhow!("a Launcher panicked"))??;
        }
        mixed.map(|guests| (guests, reads))
    });
    let (said, reads) = guests?;
    let after = counts()?;
    let rounds = rounds.load(Ordering::Relaxed);
    ensure!(rounds > 0 && reads > 0, "{rounds} rounds, {reads} reads");
    for line in said {
        bench.control.say("note", &line)?;
    }
    let note = format!(
        "programs: {rounds} rounds; Launchers: {reads} reads; {} trips with registers, {} traps",
        after[0] - before[0],
        after[1] - before[1]
    );
    bench.control.say("note", &note)?;
    host::wait_until_free()
}

/// A program that has nothing to do with any Guest, and looks after its own registers.
fn user(machine: &Machine, seed: u64, over: &AtomicBool, rounds: &AtomicU64) -> Result<()> {
    let mut numbers = Numbers(0xabcd_ef01 + 2 * seed);
    let mut after = Area([0; 4096]);
    while !over.load(Ordering::Relaxed) {
        let fill = machine.pattern(&mut numbers);
        let work = numbers.below(200_000) as u64;
        let call = [libc::SYS_sched_yield as u64, 0, 0, 0];
        let _ = machine.filled_call(call, &fill, &mut after, work);
        machine
            .compare(&fill, &after)
            .with_context(|| format!("program {seed}"))?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A Launcher with all its registers full; its Guests calculate and send.
fn launcher(machine: &Machine, seed: u64, over: &AtomicBool) -> Result<u64> {
    let mut numbers = Numbers(0x1357_9bdf + 2 * seed);
    let mut reads = 0;
    while !over.load(Ordering::Relaxed) {
        let mut guest = Bare::new()?;
        guest.set_stack();
        let mut steps = Vec::new();
        for round in 0..40_u64 {
            let mark = numbers.next();
            let ring = if round % 2 == 0 {
                Ring::One
            } else {
                Ring::Three
            };
            let mut with = guest.registers(ring);
            with.general[RAX] = mark;
            guest.go_with(
                code!(
                    "movq xmm7, rax",
                    "push rax",
                    "fninit",
                    "fild qword ptr [rsp]"
                ),
                &with,
                0,
            );
            match round % 4 {
                0 => _ = guest.call(13, [3, FREE, 0, 0]),
                1 => _ = guest.call(0, [0; 4]),
                _ => {}
            }
            let back = code!(
                "movq rax, xmm7",
                "sub rsp, 8",
                "fistp qword ptr [rsp]",
                "mov rcx, [rsp]"
            );
            steps.push((guest.go(ring, back), mark));
        }
        let device = guest.initialize()?;
        reads += machine.run_filled(&device, &mut numbers)?;
        for (step, mark) in steps {
            ran(&guest, step)?;
            let general = guest.after(step).general;
            ensure!(
                general[RAX] == mark && general[2] == mark,
                "XMM7 is {:#x}, ST0 {:#x}, and both were {mark:#x}",
                general[RAX],
                general[2]
            );
        }
    }
    Ok(reads)
}

/// Two Guests under real Launchers that calculate, and everybody moved about meanwhile. In the end
/// one is killed, one goes by itself. Gives what the latter said.
fn mix(time: Duration) -> Result<Vec<String>> {
    let mut guests = Vec::new();
    for seed in [77, 88, 99] {
        let guest = Guest::probe(&["case=fpu", &format!("seed={seed}")])?;
        guest.wait_for(&format!("calculating with seed {seed}"))?;
        guests.push((guest, seed));
    }
    let mut numbers = Numbers(0x2468_ace1);
    let end = Instant::now() + time;
    while Instant::now() < end {
        for entry in std::fs::read_dir("/proc/self/task")? {
            let name = entry?.file_name();
            let task = Pid::from_raw(name.to_string_lossy().parse()?);
            // A thread may have ended meanwhile.
            let _ = pin(task, numbers.below(host::cpus()));
        }
        for (guest, _) in &guests {
            pin(guest.pid(), numbers.below(host::cpus()))?;
        }
        thread::sleep(Duration::from_millis(20));
        // One killed in the middle of it all; the others go on.
        if guests.len() == 3 && Instant::now() + time / 2 > end {
            let (victim, _) = guests.remove(1);
            victim.signal(Signal::SIGKILL)?;
            let ended = victim.finish_within(time_to_die())?;
            ended.expect_code(128 + Signal::SIGKILL as i32)?;
        }
    }
    let mut said = Vec::new();
    for (mut guest, seed) in guests {
        guest.send(b"enough\n")?;
        let ended = guest.finish()?;
        ended.expect_code(OFF)?;
        ended.expect_output(&format!("good: seed {seed}, all values right"))?;
        said.push(ended.output.lines().last().unwrap_or_default().to_owned());
    }
    Ok(said)
}
