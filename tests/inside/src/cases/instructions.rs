// SPDX-License-Identifier: GPL-2.0-only

//! Every instruction that is privileged, or that shows or changes what a Guest must not see or
//! change, from ring 1 and from ring 3.
//!
//! One line of [`TABLE`] is one instruction with what it may come to in each ring. Some may come to
//! more than one thing, because processors differ; the line says so.

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use crate::bare::reg::{RAX, RCX, RDX};
use crate::bare::{Bare, Outcome, ROOT, Ring, Trap, with_module};
use crate::code;

/// What may come of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    /// It does what it does, and the next one follows.
    Run,
    /// It traps with this vector and error code, and changes nothing.
    Trap(u64, u64),
    /// It is a trap on purpose: it arrives with this vector, after the instruction.
    After(u64),
}

use May::{After, Run};

/// General protection with error code 0.
const GP: &[May] = &[May::Trap(13, 0)];
/// Invalid opcode.
const UD: &[May] = &[May::Trap(6, 0)];
/// It is allowed.
const RUNS: &[May] = &[Run];
/// The processor may not have it, or not for this ring: an Intel processor says so in one way, one
/// of AMD's in the other, and a Host with KVM loaded (EFER.SVME on) may differ from one without.
const GP_UD: &[May] = &[May::Trap(13, 0), May::Trap(6, 0)];
/// The processor may not have it.
const RUNS_UD: &[May] = &[Run, May::Trap(6, 0)];
/// Processors and QEMU 7.2 refuse it; QEMU 10.0 runs INVD and WBINVD in every ring.
const GP_QEMU: &[May] = &[May::Trap(13, 0), Run];
/// Processors and QEMU 7.2 refuse it; QEMU 10.0 goes past it and does nothing.
const REFUSED_QEMU: &[May] = &[May::Trap(13, 0), May::Trap(6, 0), Run];
/// With CR4.UMIP, which Linux sets where there is such a thing, general protection; else it is
/// allowed, and shows what is known anyway.
const UMIP: &[May] = &[May::Trap(13, 0), Run];
/// Not tried.
const HALTS: &[May] = &[];
/// A debug trap on purpose, where the processor knows it.
const ICEBP: &[May] = &[After(1), May::Trap(6, 0)];

/// One line: what is tried, its bytes, registers other than the usual ones, and what may come of it
/// in ring 1 and in ring 3.
type Line = (
    &'static str,
    &'static [u8],
    &'static [(usize, u64)],
    &'static [May],
    &'static [May],
);

/// The table. In all lines but those that say otherwise RAX, RCX and RDX are 0, and RBX, RSI and
/// RDI point to a page of data.
#[rustfmt::skip]
fn table() -> Vec<Line> {
    let efer: &[_] = &[(RCX, 0xc000_0080)];
    vec![
        // Interrupts, and waiting for them.
        // `hlt` in ring 1 is in the case `emulated`: with interrupts off it ends the Guest.
        ("hlt of ring 3", code!("hlt"), &[], HALTS, GP),
        ("cli", code!("cli"), &[], RUNS, GP),
        ("sti", code!("sti", "cli"), &[], RUNS, GP),
        ("monitor", code!("monitor"), &[], GP_UD, GP_UD),
        ("mwait", code!("mwait"), &[], GP_UD, GP_UD),
        ("pause", code!("pause"), &[], RUNS, RUNS),
        // Ports: ring 3 has none. In ring 1 these and others that run and are privileged are done by
        // the Host; what they do is checked by the case `emulated`.
        ("in al, dx", code!("in al, dx"), &[], RUNS, GP),
        ("in ax, dx", code!("in ax, dx"), &[], RUNS, GP),
        ("in eax, dx", code!("in eax, dx"), &[], RUNS, GP),
        ("in al, imm", code!("in al, 0x60"), &[], RUNS, GP),
        ("in ax, imm", code!("in ax, 0x60"), &[], RUNS, GP),
        ("in eax, imm", code!("in eax, 0x60"), &[], RUNS, GP),
        ("rex.w in eax, dx", &[0x48, 0xed], &[], RUNS, GP),
        ("out dx, al", code!("out dx, al"), &[(RDX, 0xf4)], RUNS, GP),
        ("out dx, ax", code!("out dx, ax"), &[(RDX, 0xf4)], RUNS, GP),
        ("out dx, eax", code!("out dx, eax"), &[(RDX, 0xf4)], RUNS, GP),
        ("out imm, al", code!("out 0xf4, al"), &[], RUNS, GP),
        ("out imm, ax", code!("out 0xf4, ax"), &[], RUNS, GP),
        ("out imm, eax", code!("out 0xf4, eax"), &[], RUNS, GP),
        // Not an instruction; QEMU 7.2 looks at the right to the port first.
        ("lock in al, dx", &[0xf0, 0xec], &[], GP_UD, GP_UD),
        ("insb", code!("insb"), &[], GP, GP),
        ("insw", code!("insw"), &[], GP, GP),
        ("insd", code!("insd"), &[], GP, GP),
        ("rep insb", code!("rep insb"), &[(RCX, 4)], GP, GP),
        ("outsb", code!("outsb"), &[], GP, GP),
        ("outsw", code!("outsw"), &[], GP, GP),
        ("outsd", code!("outsd"), &[], GP, GP),
        ("rep outsb", code!("rep outsb"), &[(RCX, 4), (RDX, 0xf4)], GP, GP),
        // Descriptor tables and the task.
        ("lgdt", code!("lgdt [rbx]"), &[], GP, GP),
        ("lidt", code!("lidt [rbx]"), &[], GP, GP),
        ("lldt", code!("lldt ax"), &[], GP, GP),
        ("lldt mem", code!("lldt word ptr [rbx]"), &[], GP, GP),
        ("ltr", code!("ltr ax"), &[(RAX, 0x40)], GP, GP),
        ("ltr mem", code!("ltr word ptr [rbx]"), &[], GP, GP),
        ("lmsw", code!("lmsw ax"), &[], RUNS, GP),
        ("lmsw mem", code!("lmsw word ptr [rbx]"), &[], GP, GP),
        ("sgdt", code!("sgdt [rbx]"), &[], UMIP, UMIP),
        ("sidt", code!("sidt [rbx]"), &[], UMIP, UMIP),
        ("sldt", code!("sldt eax"), &[], UMIP, UMIP),
        ("sldt mem", code!("sldt word ptr [rbx]"), &[], UMIP, UMIP),
        ("str", code!("str eax"), &[], UMIP, UMIP),
        ("str mem", code!("str word ptr [rbx]"), &[], UMIP, UMIP),
        ("smsw", code!("smsw eax"), &[], RUNS, UMIP),
        ("smsw mem", code!("smsw word ptr [rbx]"), &[], UMIP, UMIP),
        // Control registers.
        ("mov cr0, rax", code!("mov cr0, rax"), &[], GP, GP),
        ("mov cr2, rax", code!("mov cr2, rax"), &[], RUNS, GP),
        // A root that is none would be the end of it; the others are 0, and refused for that.
        ("mov cr3, rax", code!("mov cr3, rax"), &[(RAX, ROOT)], RUNS, GP),
        ("mov cr4, rax", code!("mov cr4, rax"), &[], GP, GP),
        ("mov cr8, rax", code!("mov cr8, rax"), &[], RUNS, GP),
        ("mov rax, cr0", code!("mov rax, cr0"), &[], RUNS, GP),
        ("mov rax, cr2", code!("mov rax, cr2"), &[], RUNS, GP),
        ("mov rax, cr3", code!("mov rax, cr3"), &[], RUNS, GP),
        ("mov rax, cr4", code!("mov rax, cr4"), &[], RUNS, GP),
        ("mov rax, cr8", code!("mov rax, cr8"), &[], RUNS, GP),
        ("mov cr1, rax", &[0x0f, 0x22, 0xc8], &[], GP_UD, GP_UD),
        ("mov cr7, rax", &[0x0f, 0x22, 0xf8], &[], GP_UD, GP_UD),
        // AMD's other way to CR8 is a lock prefix on CR0's.
        ("lock mov cr0, rax", &[0xf0, 0x0f, 0x22, 0xc0], &[], GP_UD, GP_UD),
        ("clts", code!("clts"), &[], RUNS, GP),
        // Debug registers.
        ("mov dr0, rax", code!("mov dr0, rax"), &[], RUNS, GP),
        ("mov dr1, rax", code!("mov dr1, rax"), &[], RUNS, GP),
        ("mov dr2, rax", code!("mov dr2, rax"), &[], RUNS, GP),
        ("mov dr3, rax", code!("mov dr3, rax"), &[], RUNS, GP),
        ("mov dr4, rax", &[0x0f, 0x23, 0xe0], &[], GP_UD, GP_UD),
        ("mov dr5, rax", &[0x0f, 0x23, 0xe8], &[], GP_UD, GP_UD),
        ("mov dr6, rax", code!("mov dr6, rax"), &[], RUNS, GP),
        ("mov dr7, rax", code!("mov dr7, rax"), &[], RUNS, GP),
        ("mov rax, dr0", code!("mov rax, dr0"), &[], RUNS, GP),
        ("mov rax, dr1", code!("mov rax, dr1"), &[], RUNS, GP),
        ("mov rax, dr2", code!("mov rax, dr2"), &[], RUNS, GP),
        ("mov rax, dr3", code!("mov rax, dr3"), &[], RUNS, GP),
        ("mov rax, dr4", &[0x0f, 0x21, 0xe0], &[], GP_UD, GP_UD),
        ("mov rax, dr5", &[0x0f, 0x21, 0xe8], &[], GP_UD, GP_UD),
        ("mov rax, dr6", code!("mov rax, dr6"), &[], RUNS, GP),
        ("mov rax, dr7", code!("mov rax, dr7"), &[], RUNS, GP),
        // The TLB and the caches.
        ("invlpg", code!("invlpg [rbx]"), &[], RUNS, GP),
        ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x03], &[], GP_UD, GP_UD),
        ("invlpga", code!("invlpga rax, ecx"), &[], GP_UD, GP_UD),
        ("invlpgb", &[0x0f, 0x01, 0xfe], &[], GP_UD, GP_UD),
        ("tlbsync", &[0x0f, 0x01, 0xff], &[], GP_UD, GP_UD),
        ("invd", code!("invd"), &[], RUNS, GP_QEMU),
        ("wbinvd", code!("wbinvd"), &[], RUNS, GP_QEMU),
        ("wbnoinvd", &[0xf3, 0x0f, 0x09], &[], RUNS, GP_QEMU),
        ("clflush", code!("clflush [rbx]"), &[], RUNS, RUNS),
        ("prefetcht0", code!("prefetcht0 [rbx]"), &[], RUNS, RUNS),
        // Model-specific registers and counters.
        ("rdmsr", code!("rdmsr"), &[], GP, GP),
        ("rdmsr of EFER", code!("rdmsr"), efer, RUNS, GP),
        ("wrmsr", code!("wrmsr"), &[], GP, GP),
        ("wrmsr to EFER", code!("wrmsr"), efer, GP, GP),
        ("rdmsrlist", &[0xf2, 0x0f, 0x01, 0xc6], &[], GP_UD, GP_UD),
        ("wrmsrlist", &[0xf3, 0x0f, 0x01, 0xc6], &[], GP_UD, GP_UD),
        ("wrmsrns", &[0x0f, 0x01, 0xc6], &[], GP_UD, GP_UD),
        ("rdpmc", code!("rdpmc"), &[], GP, GP),
        ("rdtsc", code!("rdtsc"), &[], RUNS, RUNS),
        ("rdtscp", code!("rdtscp"), &[], RUNS_UD, RUNS_UD),
        ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf8], &[], RUNS_UD, RUNS_UD),
        ("rdpru", &[0x0f, 0x01, 0xfd], &[], RUNS_UD, RUNS_UD),
        ("cpuid", code!("cpuid"), &[], RUNS, RUNS),
        // Other doors into ring 0.
        ("swapgs", code!("swapgs"), &[], GP, GP),
        ("syscall", code!("syscall"), &[], UD, UD),
        ("sysret", code!("sysret"), &[], GP_UD, GP_UD),
        ("sysretq", &[0x48, 0x0f, 0x07], &[], GP_UD, GP_UD),
        ("sysenter", code!("sysenter"), &[], GP_UD, GP_UD),
        ("sysexit", code!("sysexit"), &[], GP_UD, GP_UD),
        ("eretu", &[0xf3, 0x0f, 0x01, 0xca], &[], GP_UD, GP_UD),
        ("erets", &[0xf2, 0x0f, 0x01, 0xca], &[], GP_UD, GP_UD),
        ("lkgs", &[0xf2, 0x0f, 0x00, 0xf0], &[], GP_UD, GP_UD),
        ("clac", code!("clac"), &[], GP_UD, GP_UD),
        ("stac", code!("stac"), &[], GP_UD, GP_UD),
        ("rsm", code!("rsm"), &[], GP_UD, GP_UD),
        // Other machines inside the machine.
        ("vmcall", code!("vmcall"), &[], GP_UD, GP_UD),
        ("vmmcall", code!("vmmcall"), &[], GP_UD, GP_UD),
        ("vmlaunch", code!("vmlaunch"), &[], GP_UD, GP_UD),
        ("vmresume", code!("vmresume"), &[], GP_UD, GP_UD),
        ("vmxoff", code!("vmxoff"), &[], GP_UD, GP_UD),
        ("vmxon", code!("vmxon [rbx]"), &[], REFUSED_QEMU, REFUSED_QEMU),
        ("vmclear", code!("vmclear [rbx]"), &[], REFUSED_QEMU, REFUSED_QEMU),
        ("vmptrld", code!("vmptrld [rbx]"), &[], REFUSED_QEMU, REFUSED_QEMU),
        ("vmptrst", code!("vmptrst [rbx]"), &[], REFUSED_QEMU, REFUSED_QEMU),
        ("vmread", code!("vmread rax, rcx"), &[], GP_UD, GP_UD),
        ("vmwrite", code!("vmwrite rax, rcx"), &[], GP_UD, GP_UD),
        ("vmfunc", code!("vmfunc"), &[], GP_UD, GP_UD),
        ("invept", code!("invept rax, [rbx]"), &[], GP_UD, GP_UD),
        ("invvpid", code!("invvpid rax, [rbx]"), &[], GP_UD, GP_UD),
        ("vmrun", code!("vmrun rax"), &[], GP_UD, GP_UD),
        ("vmload", code!("vmload rax"), &[], GP_UD, GP_UD),
        ("vmsave", code!("vmsave rax"), &[], GP_UD, GP_UD),
        ("stgi", code!("stgi"), &[], GP_UD, GP_UD),
        ("clgi", code!("clgi"), &[], GP_UD, GP_UD),
        ("skinit", code!("skinit eax"), &[], GP_UD, GP_UD),
        ("getsec", code!("getsec"), &[], GP_UD, GP_UD),
        ("encls", &[0x0f, 0x01, 0xcf], &[], GP_UD, GP_UD),
        ("enclu", &[0x0f, 0x01, 0xd7], &[], GP_UD, GP_UD),
        ("enclv", &[0x0f, 0x01, 0xc0], &[], GP_UD, GP_UD),
        ("pconfig", &[0x0f, 0x01, 0xc5], &[], GP_UD, GP_UD),
        ("seamcall", &[0x66, 0x0f, 0x01, 0xcf], &[], GP_UD, GP_UD),
        ("tdcall", &[0x66, 0x0f, 0x01, 0xcc], &[], GP_UD, GP_UD),
        ("psmash", &[0xf3, 0x0f, 0x01, 0xff], &[], GP_UD, GP_UD),
        ("pvalidate", &[0xf2, 0x0f, 0x01, 0xff], &[], GP_UD, GP_UD),
        // Processor state that nobody saves, so that it is switched off.
        ("xgetbv", code!("xgetbv"), &[], UD, UD),
        ("xsetbv", code!("xsetbv"), &[], GP_UD, GP_UD),
        ("xsave", code!("xsave [rbx]"), &[], UD, UD),
        ("xrstor", code!("xrstor [rbx]"), &[], UD, UD),
        ("xsaves", code!("xsaves [rbx]"), &[], REFUSED_QEMU, REFUSED_QEMU),
        ("xrstors", code!("xrstors [rbx]"), &[], REFUSED_QEMU, REFUSED_QEMU),
        ("vpxor", code!("vpxor xmm0, xmm0, xmm0"), &[], UD, UD),
        ("rdpkru", code!("rdpkru"), &[], UD, UD),
        ("wrpkru", code!("wrpkru"), &[], UD, UD),
        ("wrussd", &[0x66, 0x0f, 0x38, 0xf5, 0x03], &[], UD, UD),
        ("setssbsy", &[0xf3, 0x0f, 0x01, 0xe8], &[], UD, UD),
        ("incsspd", &[0xf3, 0x0f, 0xae, 0xe8], &[], RUNS_UD, RUNS_UD),
        ("senduipi", &[0xf3, 0x0f, 0xc7, 0xf0], &[], UD, UD),
        ("enqcmds", &[0xf3, 0x0f, 0x38, 0xf8, 0x03], &[], GP_UD, GP_UD),
        // Bases of FS and GS: the Guest's own.
        ("rdfsbase", code!("rdfsbase rax"), &[], RUNS, RUNS),
        ("rdgsbase", code!("rdgsbase rax"), &[], RUNS, RUNS),
        ("wrfsbase", code!("wrfsbase rbx"), &[], RUNS, RUNS),
        ("wrgsbase", code!("wrgsbase rbx"), &[], RUNS, RUNS),
        // Flags: nothing of what counts changes; the flags have a case of their own.
        ("pushfq", code!("pushfq", "popfq"), &[], RUNS, RUNS),
        ("cld, std", code!("std", "cld"), &[], RUNS, RUNS),
        // Traps on purpose, and no instructions at all.
        // QEMU 7.2 does not know ICEBP.
        ("icebp", &[0xf1], &[], ICEBP, ICEBP),
        ("int3", &[0xcc], &[], &[After(3)], &[After(3)]),
        ("int 3", &[0xcd, 3], &[], &[After(3)], &[After(3)]),
        ("int 0x80", &[0xcd, 0x80], &[], &[After(0x80)], &[After(0x80)]),
        ("into", &[0xce], &[], REFUSED_QEMU, REFUSED_QEMU),
        ("bound", &[0x62, 0x03], &[], UD, UD),
        ("arpl's old place", code!("movsxd rax, dword ptr [rbx]"), &[], RUNS, RUNS),
        ("ud0", &[0x0f, 0xff, 0xc0], &[], UD, UD),
        ("ud1", &[0x0f, 0xb9, 0xc0], &[], UD, UD),
        ("ud2", code!("ud2"), &[], UD, UD),
        ("push es", &[0x06], &[], UD, UD),
        ("pop ds", &[0x1f], &[], UD, UD),
        ("aaa", &[0x37], &[], UD, UD),
        ("far call of old", &[0x9a, 0, 0, 0, 0, 8, 0], &[], UD, UD),
        ("far jump of old", &[0xea, 0, 0, 0, 0, 8, 0], &[], UD, UD),
        ("salc", &[0xd6], &[], REFUSED_QEMU, REFUSED_QEMU),
        // Lock prefixes.
        ("lock add [rbx], eax", &[0xf0, 0x01, 0x03], &[], RUNS, RUNS),
        ("lock add eax, eax", &[0xf0, 0x01, 0xc0], &[], UD, UD),
        // QEMU 7.2 overlooks this prefix.
        ("lock mov [rbx], eax", &[0xf0, 0x89, 0x03], &[], RUNS_UD, RUNS_UD),
        ("lock cmpxchg8b eax", &[0xf0, 0x0f, 0xc7, 0xc8], &[], UD, UD),
        ("lock hlt", &[0xf0, 0xf4], &[], GP_UD, GP_UD),
        // Fifteen bytes are the longest instruction there is.
        ("nop of 15 bytes", &PREFIXED_NOP, &[], RUNS, RUNS),
        ("nop of 16 bytes", &TOO_LONG_NOP, &[], GP_UD, GP_UD),
        ("in of 15 bytes", &PREFIXED_IN, &[], RUNS, GP),
        ("in of 16 bytes", &TOO_LONG_IN, &[], GP_UD, GP_UD),
        // Arithmetic.
        ("division by 0", code!("div ecx"), &[(RAX, 1)], &[May::Trap(0, 0)], &[May::Trap(0, 0)]),
        ("a far address", code!("mov rax, [rcx]"), &[(RCX, 1 << 63)], GP, GP),
    ]
}

const PREFIXED_NOP: [u8; 15] = prefixed(0x90);
const TOO_LONG_NOP: [u8; 16] = prefixed(0x90);
const PREFIXED_IN: [u8; 15] = prefixed(0xec);
const TOO_LONG_IN: [u8; 16] = prefixed(0xec);

/// An opcode after prefixes of operand size.
const fn prefixed<const N: usize>(opcode: u8) -> [u8; N] {
    let mut bytes = [0x66; N];
    bytes[N - 1] = opcode;
    bytes
}

/// What came of one line in one ring, compared with what may.
fn judge(guest: &Bare, step: usize, ring: Ring, line: &Line, may: &[May]) -> Result<()> {
    let (_, code, ..) = line;
    let Outcome::Trapped(trap) = guest.outcome(step) else {
        bail!("the Guest never came to it");
    };
    let start = guest.code_at(ring, step);
    let end = start + code.len() as u64;
    let fits = |may: &May| match *may {
        Run => trap.vector == 3 && trap.rip == end + 1,
        May::Trap(vector, error) => (trap.vector, trap.error, trap.rip) == (vector, error, start),
        After(vector) => (trap.vector, trap.rip) == (vector, end),
    };
    let Some(what) = may.iter().find(|may| fits(may)) else {
        bail!("{trap:?}, the instruction being at {start:#x}");
    };
    frame_is_right(&trap, ring)?;
    // What trapped has changed nothing.
    if *what != Run {
        let mut with = guest_registers(guest, ring, line);
        let after = guest.after(step).general;
        // A repeated instruction that stops may have counted.
        with[RCX] = after[RCX].min(with[RCX]);
        ensure!(after == with, "registers {with:x?} became {after:x?}");
    }
    Ok(())
}

/// The registers that a line begins with.
fn guest_registers(guest: &Bare, ring: Ring, line: &Line) -> [u64; 15] {
    let mut general = guest.registers(ring).general;
    for (register, value) in line.2 {
        general[*register] = *value;
    }
    general
}

/// The frame of any trap in a ring: its segments, and flags that are right.
pub(super) fn frame_is_right(trap: &Trap, ring: Ring) -> Result<()> {
    ensure!(trap.cs == ring.cs(), "CS: {trap:?}");
    let null_too = ring == Ring::One && trap.ss == 1;
    ensure!(trap.ss == ring.ss() || null_too, "SS: {trap:?}");
    // IOPL, NT, VM, VIF and VIP off; the Guest sees its own interrupt flag, which is off, but after
    // a direct trap the real one.
    ensure!(trap.rflags & 0x1a_7000 == 0, "flags: {trap:?}");
    ensure!(trap.rflags & 0x200 == 0, "the interrupt flag: {trap:?}");
    Ok(())
}

pub fn instructions(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let table = table();
        let mut tried = 0;
        for ring in [Ring::One, Ring::Three] {
            let mut guest = Bare::new()?;
            guest.set_stack();
            let mut steps = Vec::new();
            for line in &table {
                let may = if ring == Ring::One { line.3 } else { line.4 };
                if may.is_empty() {
                    continue;
                }
                let mut with = guest.registers(ring);
                with.general = guest_registers(&guest, ring, line);
                steps.push((guest.go_with(line.1, &with, 0), line, may));
            }
            guest.survive().with_context(|| format!("{ring:?}"))?;
            let mut wrong = Vec::new();
            for (step, line, may) in steps {
                tried += 1;
                if let Err(error) = judge(&guest, step, ring, line, may) {
                    wrong.push(format!("{ring:?} {}: {error:#}", line.0));
                }
            }
            ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
        bench.control.say("note", &format!("{tried} instructions"))
    })
}
