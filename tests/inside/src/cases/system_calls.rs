// SPDX-License-Identifier: GPL-2.0-only

//! The ways from ring 3 into a Guest's kernel: `int 0x80` and `syscall`, directly and through the
//! Host; and `sysenter`, which is none.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::tables::pin;
use crate::bare::reg::{R8, RBP, RCX, RDX};
use crate::bare::{Bare, FREE, LINEAR, Outcome, Ring, handler, with_module};
use crate::{code, host};

/// Where the engine's own handler of invalid opcodes is: see [`invalid_opcode`].
const ENGINE_6: u64 = 0xffff_8880_0000_8060;

/// A handler for vector 0x80: the answer is one more than the argument.
fn system_call() -> &'static [u8] {
    code!("lea rax, [rdi + 1]", "iretq")
}

/// A handler for invalid opcodes that does a system call when the instruction was `syscall` and
/// came from ring 3, and leaves everything else to the engine's own.
fn invalid_opcode() -> &'static [u8] {
    assert!(handler(6) == ENGINE_6, "the engine is elsewhere");
    code!(
        // CS on the stack: bit 1 is set for ring 3, not for ring 1.
        "test byte ptr [rsp + 8], 2",
        "jz 4f",
        "push rcx",
        "mov rcx, [rsp + 8]",
        "cmp word ptr [rcx], 0x050f",
        "jne 3f",
        // Past it, with the address in RCX and the flags, without RF, in R11.
        "add rcx, 2",
        "add rsp, 8",
        "mov [rsp], rcx",
        "and dword ptr [rsp + 16], 0xfffeffff",
        "mov r11, [rsp + 16]",
        "lea rax, [rdi + 1]",
        "iretq",
        "3: pop rcx",
        "4: push rax",
        "mov rax, 0xffff888000008060",
        "xchg rax, [rsp]",
        "ret",
    )
}

/// One way to call.
struct Way {
    name: &'static str,
    vector: u64,
    flags: u64,
    handler: fn() -> &'static [u8],
    /// The loop: RDX calls. RBP collects what is not as it should be.
    code: &'static [u8],
    /// Trips that each call takes.
    trips: u64,
}

fn ways() -> [Way; 4] {
    const DIRECT: u64 = 0x100;
    const MASK: u64 = 0x200;
    let interrupt = code!(
        "2: mov rdi, rdx",
        "int 0x80",
        "dec rax",
        "sub rax, rdi",
        "or rbp, rax",
        "dec rdx",
        "jnz 2b",
    );
    // RCX comes back as the address after the instruction.
    let syscall = code!(
        "lea r9, [rip + 3f]",
        "2: mov rdi, rdx",
        "syscall",
        "3: dec rax",
        "sub rax, rdi",
        "or rbp, rax",
        "sub rcx, r9",
        "or rbp, rcx",
        "dec rdx",
        "jnz 2b",
    );
    let way = |name, vector, flags, handler, code, trips| Way {
        name,
        vector,
        flags,
        handler,
        code,
        trips,
    };
    [
        way("int 0x80", 0x80, 3 | DIRECT, system_call, interrupt, 0),
        way("syscall", 6, 1 | DIRECT, invalid_opcode, syscall, 0),
        way(
            "int 0x80 through the Host",
            0x80,
            3 | MASK,
            system_call,
            interrupt,
            1,
        ),
        way(
            "syscall through the Host",
            6,
            1 | MASK,
            invalid_opcode,
            syscall,
            1,
        ),
    ]
}

/// Makes so many calls, checks what came back, and gives the trips that the Guest took in all.
fn calls(way: &Way, count: u64) -> Result<u64> {
    const FLAGS: u64 = 0x202 | 0x44;
    let mut guest = Bare::new()?;
    guest.write_bytes(FREE, (way.handler)());
    guest.set_stack();
    guest.call(6, [way.vector, LINEAR + FREE, way.flags, 0]);
    let mut with = guest.registers(Ring::Three);
    with.general[RDX] = count;
    with.general[RBP] = 0;
    with.general[RCX] = 0x1234;
    with.rflags = FLAGS;
    let step = guest.go_with(way.code, &with, 0);
    let before = host::counter("world_switches")?;
    guest.survive()?;
    let trips = host::counter("world_switches")? - before;
    let after = guest.after(step).general;
    let Outcome::Trapped(trap) = guest.outcome(step) else {
        bail!("not reached");
    };
    ensure!(trap.vector == 3 && trap.cs == 0x33, "{trap:?}");
    ensure!(after[RBP] == 0, "wrong answers: {:#x}", after[RBP]);
    ensure!(after[RDX] == 0, "{} calls are left", after[RDX]);
    if way.vector == 0x80 {
        let kept = (after[RCX], after[R8 + 3]);
        ensure!(
            kept == (0x1234, with.general[R8 + 3]),
            "RCX and R11 after `int`: {kept:x?}"
        );
    } else if count == 1 {
        // A reflected frame shows the Guest's own interrupt flag, which is off here.
        let wanted = if way.trips == 0 {
            FLAGS
        } else {
            FLAGS & !0x200
        };
        let flags = after[R8 + 3];
        ensure!(
            flags == wanted,
            "R11 after `syscall`: {flags:#x}, not {wanted:#x}"
        );
    }
    Ok(trips)
}

/// A thousand calls of each kind, and how many trips more than one call they take: exactly none if
/// they are direct. A tick of the Host's clock is a trip as well, so the least of several tries
/// counts.
pub fn system_calls(bench: &mut Bench) -> Result<()> {
    const CALLS: u64 = 1000;
    pin(std::iter::once(0))?;
    let result = with_module(|| {
        for way in ways() {
            let mut least = [u64::MAX; 2];
            let wanted = way.trips * (CALLS - 1);
            let mut more = u64::MAX;
            for turn in 0..100 {
                for (least, count) in least.iter_mut().zip([1, CALLS]) {
                    let trips = calls(&way, count);
                    *least = trips.with_context(|| way.name)?.min(*least);
                }
                more = least[1].wrapping_sub(least[0]);
                if turn >= 5 && more == wanted {
                    break;
                }
            }
            // A thousand trips take so long that a tick or two are always among them.
            let ticks = if way.trips == 0 { 0 } else { 20 };
            ensure!(
                (wanted..=wanted + ticks).contains(&more),
                "{}: one call takes {} trips and {CALLS} calls {}, not {wanted} more",
                way.name,
                least[0],
                least[1]
            );
            let said = format!("{}: {CALLS} calls, {more} trips more than one", way.name);
            bench.control.say("note", &said)?;
        }
        not_system_calls()
    });
    pin(0..host::cpus())?;
    result
}

/// What is an invalid opcode but no `syscall` of ring 3 is none to the handler either.
fn not_system_calls() -> Result<()> {
    for (ring, code) in [
        (Ring::Three, code!("ud2")),
        (Ring::One, code!("syscall")),
        (Ring::Three32, &[0x0f, 0x0b][..]),
    ] {
        let mut guest = Bare::new()?;
        guest.write_bytes(FREE, invalid_opcode());
        guest.set_stack();
        guest.call(6, [6, LINEAR + FREE, 0x101, 0]);
        let step = guest.go(ring, code);
        guest.survive()?;
        let outcome = guest.outcome(step);
        let start = guest.code_at(ring, step);
        let fits = matches!(outcome, Outcome::Trapped(t) if (t.vector, t.rip) == (6, start));
        ensure!(fits, "{ring:?}: {outcome:?}");
        let kept = guest.after(step).general[RCX];
        ensure!(kept == 0, "{ring:?}: RCX is {kept:#x}");
    }
    Ok(())
}

/// SYSENTER_CS, SYSENTER_ESP and SYSENTER_EIP of each processor.
struct Msrs {
    files: Vec<File>,
    before: Vec<[u64; 3]>,
}

const SYSENTER: u64 = 0x174;

impl Msrs {
    fn open() -> Result<Self> {
        // Without this Linux says in its log that somebody writes to MSRs.
        fs::write("/sys/module/msr/parameters/allow_writes", "on")?;
        let mut files = Vec::new();
        for cpu in 0..host::cpus() {
            let path = format!("/dev/cpu/{cpu}/msr");
            let file = File::options().read(true).write(true).open(&path);
            files.push(file.with_context(|| path)?);
        }
        let mut msrs = Self {
            files,
            before: Vec::new(),
        };
        msrs.before = msrs.get()?;
        Ok(msrs)
    }

    fn get(&self) -> Result<Vec<[u64; 3]>> {
        let one = |file: &File| -> Result<[u64; 3]> {
            let mut values = [0; 3];
            for (value, msr) in values.iter_mut().zip(SYSENTER..) {
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, msr)?;
                *value = u64::from_le_bytes(bytes);
            }
            Ok(values)
        };
        self.files.iter().map(one).collect()
    }

    fn set(&self, all: &[[u64; 3]]) -> Result<()> {
        for (file, values) in self.files.iter().zip(all) {
            for (value, msr) in values.iter().zip(SYSENTER..) {
                file.write_all_at(&value.to_le_bytes(), msr)?;
            }
        }
        Ok(())
    }
}

impl Drop for Msrs {
    fn drop(&mut self) {
        let _ = self.set(&self.before);
    }
}

/// `sysenter` faults in rings 1 and 3, also where the Host has said where it should lead; and the
/// Host's MSRs are what they were.
pub fn sysenter(bench: &mut Bench) -> Result<()> {
    let msrs = Msrs::open()?;
    let mut said = Vec::new();
    for set in [false, true] {
        if set {
            // Ring 0's code, and an address that is mapped in no Guest: a processor that took it
            // would not come back.
            let wanted = [0x10, 0xffff_8880_0000_0f00, 0xffff_ffff_8100_0000];
            msrs.set(&vec![wanted; msrs.files.len()])?;
        }
        // The module reads SYSENTER_CS when it is loaded: Linux sets it once, at boot.
        if host::module_loaded() {
            host::unload_module()?;
        }
        let before = msrs.get()?;
        ensure!(!set || before[0][0] == 0x10, "not set: {before:x?}");
        with_module(|| {
            for ring in [Ring::One, Ring::Three, Ring::Three32] {
                let mut guest = Bare::new()?;
                guest.set_stack();
                let steps: Vec<_> = (0..50).map(|_| guest.go(ring, &[0x0f, 0x34])).collect();
                guest.survive()?;
                for step in steps {
                    let Outcome::Trapped(trap) = guest.outcome(step) else {
                        bail!("{ring:?}: not reached");
                    };
                    let start = guest.code_at(ring, step);
                    let refused = matches!((trap.vector, trap.error), (6 | 13, 0));
                    ensure!(
                        refused && trap.rip == start && trap.cs == ring.cs(),
                        "{ring:?}: {trap:?}"
                    );
                    if !said.contains(&trap.vector) {
                        said.push(trap.vector);
                    }
                }
            }
            Ok(())
        })?;
        let after = msrs.get()?;
        ensure!(before == after, "{before:x?} became {after:x?}");
        host::unload_module()?;
    }
    let said = format!("{}: it is trap {said:?}", host::vendor());
    bench.control.say("note", &said)
}
