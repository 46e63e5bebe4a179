// SPDX-License-Identifier: GPL-2.0-only

//! What the Host does in place of a Guest's kernel: privileged instructions, and what comes of
//! them, compared with a table of what must.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind, Register};

use super::Bench;
use super::instructions::frame_is_right;
use crate::bare::reg::{R8, RAX, RBP, RBX, RCX, RDI, RDX, RSI};
use crate::bare::{
    Bare, CODE_BYTES, DIRECT, End, FREE, LINEAR, LOWER, Outcome, PAGE, ROOT, RW, Ring, UPPER,
    USER_DATA, must_die, with_module,
};
use crate::code;
use crate::device::IRQ;
use crate::random::Random;

const CR0: u64 = 0x8005_0033;
/// A mark whose parts can all be told apart.
const MARK: u64 = 0x1111_2222_3333_4444;
const MASK: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;

/// What must come of a line.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// All of it is done, and these registers have changed, no others.
    Done(&'static [(usize, u64)]),
    /// The instruction so many bytes into it is refused.
    Gp(u64),
}

use Want::{Done, Gp};

type Line = (&'static str, &'static [u8], &'static [(usize, u64)], Want);

const NONE: &[(usize, u64)] = &[];

/// One Guest does all of these in turn, so what one writes another may read.
#[rustfmt::skip]
fn table() -> Vec<Line> {
    const EFER: u64 = 0xc000_0080;
    const FS: u64 = 0xc000_0100;
    const GS: u64 = 0xc000_0101;
    const KERNEL_GS: u64 = 0xc000_0102;
    const HIGH: u64 = 0xffff_8000_1234_5678;
    vec![
        // CR0, by all ways to it.
        ("cr0 at first", code!("mov rax, cr0"), &[(RAX, MARK)], Done(&[(RAX, CR0)])),
        ("cr0 to r15 and back", code!("mov r15, cr0", "mov cr0, r15", "mov r15, rbp"), NONE, Done(&[(14, 0x1111_0006)])),
        ("cr0 with TS", code!("mov cr0, rax", "mov rcx, cr0"), &[(RAX, CR0 | 8)], Done(&[(RCX, CR0 | 8)])),
        ("clts", code!("clts", "mov rcx, cr0"), NONE, Done(&[(RCX, CR0)])),
        ("lmsw sets", code!("lmsw ax", "mov rcx, cr0"), &[(RAX, 0xfff8)], Done(&[(RCX, CR0 & !2 | 8)])),
        ("lmsw clears", code!("lmsw ax", "mov rcx, cr0"), &[(RAX, 2)], Done(&[(RCX, CR0)])),
        ("lmsw with EM", code!("lmsw ax"), &[(RAX, 4)], Gp(0)),
        ("cr0 without WP", code!("mov cr0, rax"), &[(RAX, CR0 & !(1 << 16))], Gp(0)),
        ("cr0 without PG", code!("mov cr0, rax"), &[(RAX, CR0 & 0x7fff_ffff)], Gp(0)),
        ("cr0, upper half", code!("mov cr0, rax"), &[(RAX, CR0 | 1 << 32)], Gp(0)),
        ("cr0 with CD", code!("mov cr0, rax", "mov rcx, cr0", "mov cr0, rdx"), &[(RAX, CR0 | 1 << 30), (RDX, CR0)], Done(&[(RCX, CR0 | 1 << 30)])),
        ("cr0 is as before", code!("mov rax, cr0"), NONE, Done(&[(RAX, CR0)])),
        // CR2 and CR3.
        ("cr2", code!("mov cr2, rbp", "mov rax, cr2"), NONE, Done(&[(RAX, 0x1111_0006)])),
        ("cr3 at first", code!("mov rax, cr3"), NONE, Done(&[(RAX, ROOT)])),
        ("cr3 again", code!("mov cr3, rax", "mov rcx, cr3"), &[(RAX, ROOT | 0x18)], Done(&[(RCX, ROOT)])),
        ("cr3 with bit 63", code!("mov cr3, rax"), &[(RAX, 1 << 63 | ROOT)], Gp(0)),
        ("cr3 with bit 52", code!("mov cr3, rax"), &[(RAX, 1 << 52 | ROOT)], Gp(0)),
        ("cr3 by NEW_PGTABLE", code!("int 0x1f", "mov rcx, cr3", "mov edi, 0x1000", "mov eax, 4", "int 0x1f"), &[(RAX, 4), (RDI, 1 << 63 | ROOT | 5)], Done(&[(RAX, 0), (RDI, ROOT), (RCX, ROOT | 5)])),
        // CR4.
        ("cr4 at first", code!("mov rax, cr4"), NONE, Done(&[(RAX, 0x20)])),
        ("cr4 with PGE, DE", code!("mov cr4, rax", "mov rcx, cr4"), &[(RAX, 0xa8)], Done(&[(RCX, 0xa8)])),
        ("cr4 with tags", code!("mov cr4, rax", "mov cr3, rcx", "mov rdx, cr3"), &[(RAX, 0x2_0020), (RCX, 1 << 63 | ROOT | 7)], Done(&[(RDX, ROOT | 7)])),
        ("cr4, tags off", code!("mov cr3, rcx", "mov cr4, rax", "mov rdx, cr4"), &[(RAX, 0x20), (RCX, ROOT)], Done(&[(RDX, 0x20)])),
        ("cr4 without PAE", code!("mov cr4, rax"), &[(RAX, 0)], Gp(0)),
        ("cr4 with VMXE", code!("mov cr4, rax"), &[(RAX, 1 << 13 | 0x20)], Gp(0)),
        ("cr4 with TSD", code!("mov cr4, rax"), &[(RAX, 1 << 2 | 0x20)], Gp(0)),
        ("cr4 with SMAP", code!("mov cr4, rax"), &[(RAX, 1 << 21 | 0x20)], Gp(0)),
        ("cr4 with bit 63", code!("mov cr4, rax"), &[(RAX, 1 << 63 | 0x20)], Gp(0)),
        // CR8.
        ("cr8", code!("mov rax, cr8", "mov cr8, rcx", "mov r8, cr8"), &[(RAX, MARK), (RCX, 15)], Done(&[(RAX, 0), (R8 , 15)])),
        ("cr8 of 16", code!("mov cr8, rcx"), &[(RCX, 16)], Gp(0)),
        // Debug registers.
        ("dr0 to dr3", code!("mov dr0, rsi", "mov dr1, rdi", "mov dr2, rbp", "mov dr3, r8", "mov rax, dr3", "mov rcx, dr2"), &[(RSI, 1), (RDI, 2), (R8, 3)], Done(&[(RAX, 3), (RCX, 0x1111_0006)])),
        ("dr0 and dr1", code!("mov rax, dr0", "mov rcx, dr1"), NONE, Done(&[(RAX, 1), (RCX, 2)])),
        ("dr6", code!("mov rax, dr6", "mov dr6, rcx", "mov rdx, dr6"), &[(RCX, 0x4001)], Done(&[(RAX, 0xffff_0ff0), (RDX, 0xffff_4ff1)])),
        ("dr7", code!("mov rax, dr7", "mov dr7, rcx", "mov rdx, dr7"), &[(RCX, 0xffff_ffff)], Done(&[(RAX, 0x400), (RDX, 0xffff_07ff)])),
        ("dr7, upper half", code!("mov dr7, rcx"), &[(RCX, 1 << 32)], Gp(0)),
        ("dr4 of old", &[0x0f, 0x21, 0xe0], NONE, Gp(0)),
        // The machine status word.
        ("smsw ax", code!("smsw ax"), &[(RAX, MARK)], Done(&[(RAX, MARK & !0xffff | 0x33)])),
        ("smsw eax", code!("smsw eax"), &[(RAX, MARK)], Done(&[(RAX, CR0)])),
        ("smsw r9", code!("smsw r9"), NONE, Done(&[(8, CR0)])),
        // Caches and addresses.
        ("caches", code!("invd", "wbinvd", ".byte 0xf3, 0x0f, 0x09"), NONE, Done(NONE)),
        ("invlpg", code!("invlpg [rbx]", "invlpg [rbx+rcx*8+0x12345678]", "invlpg [rip]", "invlpg gs:[0x7fff]"), NONE, Done(NONE)),
        ("invlpg of no address", code!("invlpg [rcx]"), &[(RCX, 1 << 63)], Done(NONE)),
        // MSRs.
        ("EFER", code!("rdmsr"), &[(RAX, MARK), (RCX, 5 << 32 | EFER), (RDX, MARK)], Done(&[(RAX, 0xd00), (RDX, 0)])),
        ("EFER again", code!("wrmsr"), &[(RAX, 0xd00), (RCX, EFER)], Done(NONE)),
        ("EFER with SCE", code!("wrmsr"), &[(RAX, 0xd01), (RCX, EFER)], Gp(0)),
        ("PAT", code!("rdmsr", "wrmsr"), &[(RCX, 0x277)], Done(&[(RAX, 0x0007_0406), (RDX, 0x0007_0406)])),
        ("PAT of nonsense", code!("wrmsr"), &[(RCX, 0x277), (RAX, 3)], Gp(0)),
        ("APIC base", code!("rdmsr"), &[(RCX, 0x1b)], Done(&[(RAX, 0xfee0_0100)])),
        ("MISC_ENABLE", code!("rdmsr"), &[(RCX, 0x1a0)], Done(&[(RAX, 0x1801)])),
        ("microcode", code!("wrmsr", "rdmsr"), &[(RCX, 0x8b)], Done(NONE)),
        ("SYSENTER", code!("wrmsr"), &[(RCX, 0x174), (RAX, 0x10)], Gp(0)),
        ("LSTAR", code!("rdmsr"), &[(RCX, 0xc000_0082)], Done(NONE)),
        ("an MSR that is none", code!("rdmsr"), &[(RCX, 0x4b56_4d00)], Gp(0)),
        ("TSC_AUX", code!("rdmsr"), &[(RCX, 0xc000_0103)], Gp(0)),
        ("FS base", code!("wrmsr", "rdfsbase rsi"), &[(RCX, FS), (RAX, HIGH & 0xffff_ffff), (RDX, HIGH >> 32)], Done(&[(RSI, HIGH)])),
        ("FS base, read", code!("wrfsbase rbp", "rdmsr"), &[(RCX, FS), (RDX, 1)], Done(&[(RAX, 0x1111_0006), (RDX, 0)])),
        ("GS base", code!("wrmsr", "rdgsbase rsi", "rdmsr"), &[(RCX, GS), (RAX, 7)], Done(&[(RSI, 7)])),
        ("GS base of no address", code!("wrmsr"), &[(RCX, GS), (RDX, 1 << 15)], Gp(0)),
        ("KERNEL_GS_BASE", code!("wrmsr", "xor eax, eax", "rdmsr"), &[(RCX, KERNEL_GS), (RAX, 9)], Done(NONE)),
        ("swapgs", code!("swapgs"), NONE, Gp(0)),
        // Ports.
        ("in", code!("in al, dx"), &[(RAX, MARK)], Done(&[(RAX, MARK | 0xff)])),
        ("in of 32 bits", code!("in eax, 0x64"), &[(RAX, MARK)], Done(&[(RAX, 0xffff_ffff)])),
        ("insb", code!("insb"), NONE, Gp(0)),
        ("rep outsw", code!("rep outsw"), &[(RCX, 2)], Gp(0)),
        // Only then what is unknown: it is reflected where it stands.
        ("after some that are done", code!("clts", "wbinvd", "lidt [rbx]"), NONE, Gp(4)),
        ("xsetbv's neighbour", code!("cli", "rdpmc"), NONE, Gp(1)),
    ]
}

fn judge(guest: &Bare, step: usize, line: &Line, with: [u64; 15]) -> Result<()> {
    let (_, code, _, want) = line;
    let Outcome::Trapped(trap) = guest.outcome(step) else {
        bail!("the Guest never came to it");
    };
    frame_is_right(&trap, Ring::One)?;
    let start = guest.code_at(Ring::One, step);
    let after = guest.after(step).general;
    match want {
        Done(changes) => {
            let end = start + code.len() as u64;
            ensure!((trap.vector, trap.rip) == (3, end + 1), "{trap:?}");
            // QEMU 10.0 runs WBINVD and INVD in ring 1, and leaves RF on.
            let left = line.0 == "caches";
            ensure!(left || trap.rflags & RF == 0, "RF is on: {trap:?}");
            let mut want = with;
            for (register, value) in *changes {
                want[*register] = *value;
            }
            ensure!(after == want, "registers {after:x?}, not {want:x?}");
        }
        Gp(at) => {
            let got = (trap.vector, trap.error, trap.rip);
            ensure!(got == (13, 0, start + at), "{trap:?}, begun at {start:#x}");
            ensure!(after == with, "registers {with:x?} became {after:x?}");
        }
    }
    Ok(())
}

pub fn emulated(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let table = table();
        let mut guest = Bare::new()?;
        let mut steps = Vec::new();
        for line in &table {
            let mut with = guest.registers(Ring::One);
            for (register, value) in line.2 {
                with.general[*register] = *value;
            }
            // What was done leaves no RF behind.
            with.rflags |= RF;
            steps.push((guest.go_with(line.1, &with, 0), line, with.general));
        }
        guest.survive()?;
        let mut wrong = Vec::new();
        for (step, line, with) in steps {
            if let Err(error) = judge(&guest, step, line, with) {
                wrong.push(format!("{}: {error:#}", line.0));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ring_3(&table)?;
        registers()?;
        translations()?;
        edges()?;
        interrupts()?;
        halts()?;
        stepping()?;
        let note = format!("{} lines in ring 1, and in ring 3", table.len());
        bench.control.say("note", &note)
    })
}

/// A program gets a fault for the first instruction of each line that has a privileged one there.
fn ring_3(table: &[Line]) -> Result<()> {
    let mut guest = Bare::new()?;
    guest.set_stack();
    let mut steps = Vec::new();
    for line in table {
        let mut with = guest.registers(Ring::Three);
        for (register, value) in line.2 {
            with.general[*register] = *value;
        }
        steps.push((guest.go_with(line.1, &with, 0), line, with.general));
    }
    guest.survive()?;
    for (step, line, with) in steps {
        let Outcome::Trapped(trap) = guest.outcome(step) else {
            bail!("ring 3, {}: never", line.0);
        };
        // Some begin with what a program may do; QEMU 10.0 runs WBINVD and INVD.
        if ["FS base, read", "caches", "cr3 by NEW_PGTABLE"].contains(&line.0) {
            continue;
        }
        // Without CR4.UMIP a program may look at the machine status word.
        if line.0.starts_with("smsw") && trap.vector == 3 {
            continue;
        }
        let start = guest.code_at(Ring::Three, step);
        let got = (trap.vector, trap.error, trap.rip);
        ensure!(got == (13, 0, start), "ring 3, {}: {trap:?}", line.0);
        let after = guest.after(step).general;
        ensure!(after == with, "ring 3, {}: {after:x?}", line.0);
    }
    Ok(())
}

/// CR2 to and from each general register, and DR0.
fn registers() -> Result<()> {
    let mut guest = Bare::new()?;
    let mut steps = Vec::new();
    // The engine's order of registers, by the processor's numbers; RSP is not among them.
    let numbers = [0, 3, 1, 2, 6, 7, 5, 8, 9, 10, 11, 12, 13, 14, 15_u8];
    for (place, number) in numbers.into_iter().enumerate() {
        let rex = 0x40 | number >> 3;
        let modrm = 0xc0 | number & 7;
        // To CR2 and DR0 from the register; then both into RBX, or RCX if it is RBX.
        let (other, to) = if number == 3 { (RCX, 1) } else { (RBX, 3) };
        let mut code = Vec::new();
        code.extend([rex, 0x0f, 0x22, modrm | 2 << 3]);
        code.extend([rex, 0x0f, 0x23, modrm]);
        code.extend([0x0f, 0x20, 0xc0 | 2 << 3 | to]);
        // And from CR4 into the register.
        code.extend([rex, 0x0f, 0x20, modrm | 4 << 3]);
        let mut with = guest.registers(Ring::One);
        let value = 0x1234_0000 + place as u64;
        with.general[place] = value;
        let step = guest.go_with(&code, &with, 0);
        let mut want = with.general;
        want[other] = value;
        want[place] = 0x20;
        steps.push((step, want));
    }
    // RSP is: a wrong one would be seen at once.
    let mut with = guest.registers(Ring::One);
    with.general[RCX] = with.rsp;
    let rsp = guest.go_with(
        code!(
            "mov cr2, rsp",
            "mov rsp, cr4",
            "mov rax, rsp",
            "mov rsp, cr2"
        ),
        &with,
        0,
    );
    let mut want = with.general;
    want[RAX] = 0x20;
    steps.push((rsp, want));
    guest.survive()?;
    for (step, want) in steps {
        let after = guest.after(step).general;
        ensure!(after == want, "step {step}: {after:x?}, not {want:x?}");
    }
    Ok(())
}

/// A page whose translation the Guest changes: each of these must make it forget the old one.
fn translations() -> Result<()> {
    let (one, two) = (FREE, FREE + PAGE);
    let lower = (USER_DATA + 0x10_0000, LOWER[2] + 8 * 0x100);
    // In the kernel's half, as the engine maps all of memory.
    let upper = FREE + 2 * PAGE;
    let upper = (LINEAR + upper, UPPER[2] + 8 * (upper / PAGE));
    for (name, (place, entry), code) in [
        ("invlpg", lower, code!("invlpg [rcx]")),
        (
            "invlpg, all parts",
            lower,
            code!("invlpg fs:[rdx*8+rbp-0x10]"),
        ),
        ("mov cr3", lower, code!("mov cr3, rsi")),
        ("mov cr4", lower, code!("mov cr4, rdi")),
        ("invlpg above", upper, code!("invlpg fs:[rdx*8+rbp-0x10]")),
        ("mov cr3 without PGE", upper, code!("mov cr3, rsi")),
        ("mov cr4 above", upper, code!("mov cr4, rdi")),
    ] {
        let mut guest = Bare::new()?;
        guest.write(entry, one | RW);
        guest.write(one, 1);
        guest.write(two, 2);
        let before = guest.peek(place);
        guest.poke(LINEAR + entry, two | RW);
        let mut with = guest.registers(Ring::One);
        with.general[RCX] = place;
        with.general[RSI] = ROOT;
        with.general[RDI] = 0xa0;
        with.general[RBP] = 0x1010;
        with.general[RDX] = 0x200;
        with.general[R8] = place - 0x2000;
        let set = code!("wrfsbase r8");
        let step = guest.go_with(&[set, code].concat(), &with, 0);
        let after = guest.peek(place);
        guest.survive().with_context(|| name)?;
        let done = matches!(guest.outcome(step), Outcome::Trapped(t) if t.vector == 3);
        ensure!(done, "{name}: {:?}", guest.outcome(step));
        let read = (guest.outcome(before), guest.outcome(after));
        ensure!(
            read == (Outcome::Done(1), Outcome::Done(2)),
            "{name}: read {read:?}"
        );
    }
    // A root that is no memory is the end, as by NEW_PGTABLE.
    let mut guest = Bare::new()?;
    let mut with = guest.registers(Ring::One);
    with.general[RAX] = 1 << 40;
    guest.go_with(code!("mov cr3, rax"), &with, 0);
    must_die(&mut guest, "a root that is no memory", "NEW_PGTABLE")
}

/// Instructions over a page's edge, at every place; and the second page taken away.
fn edges() -> Result<()> {
    const PLACE: u64 = USER_DATA + 0x10_0000;
    let entry = LOWER[2] + 8 * 0x100;
    let insns: [&[u8]; 4] = [
        // invlpg gs:[rbx+rcx*8+0x11223344], with prefixes up to 15 bytes.
        &[
            0x65, 0x66, 0x2e, 0x3e, 0x26, 0x67, 0x40, 0x0f, 0x01, 0xbc, 0xcb, 0x44, 0x33, 0x22,
            0x11,
        ],
        &[0xe5, 0x80],
        &[0x44, 0x0f, 0x20, 0xc0],
        &[0x0f, 0x32],
    ];
    for insn in insns {
        for first in 0..=insn.len() as u64 {
            for missing in [false, true] {
                let mut guest = Bare::new()?;
                // Two pages that lie apart.
                let (low, high) = (FREE + 4 * PAGE, FREE);
                guest.write(entry, low | RW);
                guest.write(entry + 8, high | RW);
                let (head, tail) = insn.split_at(first as usize);
                guest.write_bytes(low + PAGE - first, head);
                guest.write_bytes(high, &[tail, &[0xcc; 16]].concat());
                let mut with = guest.registers(Ring::One);
                with.general[RCX] = 0x1b;
                with.rip = PLACE + PAGE - first;
                // Once to have it in the shadow; then without the page in the Guest's own tables.
                let step = guest.go_with(&[0xcc], &with, 0);
                let again = guest.steps();
                if missing {
                    guest.poke(LINEAR + entry + 8, 0);
                    guest.go_with(&[0xcc], &with, 0);
                }
                guest
                    .survive()
                    .with_context(|| format!("{insn:x?} cut at {first}"))?;
                let end = with.rip + insn.len() as u64;
                let Outcome::Trapped(trap) = guest.outcome(step) else {
                    bail!("{insn:x?} cut at {first}: never");
                };
                ensure!(
                    (trap.vector, trap.rip) == (3, end + 1),
                    "{insn:x?} cut at {first}: {trap:?}"
                );
                if missing && first < insn.len() as u64 {
                    let Outcome::Trapped(trap) = guest.outcome(again + 1) else {
                        bail!("{insn:x?} cut at {first}: never the second time");
                    };
                    // A shadow may have forgotten the page meanwhile.
                    let fits = (trap.vector, trap.rip) == (13, with.rip) || trap.vector == 14;
                    ensure!(fits, "{insn:x?} cut at {first}, no second page: {trap:?}");
                }
            }
        }
    }
    Ok(())
}

/// An interrupt that waits: where it comes after `sti`.
fn interrupts() -> Result<()> {
    const LINE: u64 = 5;
    const VECTOR: u64 = 32 + LINE;
    // The code, and the vector that ends it and where; the bytes of `sti` are 1.
    let tries: &[(&str, &'static [u8], u64, u64)] = &[
        ("nop", code!("sti", "nop", "nop"), VECTOR, 2),
        ("hlt", code!("sti", "hlt", "nop"), VECTOR, 2),
        ("a move", code!("sti", "mov rax, [rbx]", "nop"), VECTOR, 4),
        (
            "a fresh page",
            code!("sti", "mov [rcx], rax", "nop"),
            VECTOR,
            4,
        ),
        ("a jump", code!("sti", "jmp 2f", "nop", "2: nop"), VECTOR, 4),
        ("sti", code!("sti", "sti", "nop"), VECTOR, 2),
        ("cli", code!("sti", "cli", "nop"), 3, 4),
        (
            "cli, much later",
            code!("sti", "cli", "clts", "sti", "clts", "nop"),
            VECTOR,
            7,
        ),
        ("in", code!("sti", "in al, 0x60", "nop"), VECTOR, 3),
        ("a hypercall", code!("sti", "int 0x1f", "nop"), VECTOR, 3),
        ("pushfq", code!("sti", "pushfq", "nop"), VECTOR, 1),
        ("popfq", code!("sti", "popfq", "nop"), VECTOR, 1),
        ("an invalid opcode", code!("sti", "ud2"), 6, 1),
        ("a division by 0", code!("sti", "div ecx"), 0, 1),
        ("a refused one", code!("sti", "lldt ax"), 13, 1),
        (
            "a page that is not there",
            code!("sti", "mov rax, [rdx]"),
            14,
            1,
        ),
    ];
    for direct in [0, DIRECT] {
        for (name, code, vector, at) in tries {
            let mut guest = Bare::new()?;
            let mut handlers = Bare::usual_handlers();
            for (vector, flags) in &mut handlers {
                if matches!(vector, 0 | 3 | 6) {
                    *flags |= direct;
                }
            }
            handlers.push((VECTOR, MASK | 1));
            guest.handlers(&handlers);
            guest.call(13, [0, FREE, 0, 0]);
            let mut with = guest.registers(Ring::One);
            with.general[RAX] = 0;
            with.general[RCX] = LINEAR + FREE + PAGE;
            with.general[RDX] = 0x5000_0000;
            if name.starts_with("a div") {
                with.general[RCX] = 0;
            }
            let step = guest.go_with(code, &with, 0);
            let raise = |_: &mut Bare, device: &crate::device::Device, _| {
                let raised = device.request(&[IRQ, LINE]);
                ensure!(raised == Ok(16), "IRQ: {raised:?}");
                Ok(())
            };
            let end = guest.run_with(raise).with_context(|| *name)?;
            ensure!(end == End::Off, "sti, {name}: {end:?}");
            let Outcome::Trapped(trap) = guest.outcome(step) else {
                bail!("sti, {name}: never");
            };
            let start = guest.code_at(Ring::One, step);
            ensure!(
                (trap.vector, trap.rip) == (*vector, start + at),
                "sti, {name}: {trap:?}, begun at {start:#x}"
            );
            // The step that the Host took is not seen.
            ensure!(trap.rflags & TF == 0, "sti, {name}: TF is on, {trap:?}");
            let seen = guest.log().iter().filter(|trap| trap.vector == 1).count();
            ensure!(seen == 0, "sti, {name}: {seen} debug traps");
            let after = guest.after(step);
            ensure!(after.debug_status == 0, "sti, {name}: DR6 {after:x?}");
            ensure!(guest.traps(step) == 1, "sti, {name}: more than one trap");
        }
    }
    Ok(())
}

/// `hlt` with interrupts off; a `cli` and a `sti` that the flag shows.
fn halts() -> Result<()> {
    let mut guest = Bare::new()?;
    guest.go(Ring::One, code!("hlt"));
    must_die(
        &mut guest,
        "hlt",
        "with interrupts off: it would never wake",
    )?;
    let mut guest = Bare::new()?;
    let on = guest.go(Ring::One, code!("sti", "ud2"));
    let off = guest.go(Ring::One, code!("sti", "cli", "ud2"));
    guest.survive()?;
    for (step, want) in [(on, 0x200), (off, 0)] {
        let Outcome::Trapped(trap) = guest.outcome(step) else {
            bail!("never at step {step}");
        };
        ensure!(trap.rflags & 0x200 == want, "step {step}: {trap:?}");
    }
    // It sleeps, and the alarm gets it out; nothing but that.
    let mut guest = Bare::new()?;
    guest.limit = Duration::from_millis(300);
    guest.go(Ring::One, code!("sti", "hlt"));
    let end = guest.run()?;
    ensure!(end == End::Running, "a sleeping Guest: {end:?}");
    Ok(())
}

/// Single steps: one debug trap after each that is done, none after one that is refused.
fn stepping() -> Result<()> {
    for (code, at, last) in [
        (code!("mov rax, cr0", "wbinvd", "nop"), vec![3, 5, 6], 3),
        (code!("clts", "lgdt [rbx]"), vec![2], 13),
        (code!("sti", "cli", "out dx, al"), vec![1, 2, 3], 3),
        (code!("rdmsr"), vec![], 13),
    ] {
        let mut guest = Bare::new()?;
        let mut with = guest.registers(Ring::One);
        with.rflags |= TF;
        with.general[RAX] = 0;
        let step = guest.go_with(code, &with, 1 << 1);
        guest.survive()?;
        let start = guest.code_at(Ring::One, step);
        let log = guest.log();
        let steps: Vec<u64> = log
            .iter()
            .filter(|trap| trap.vector == 1)
            .map(|trap| trap.rip - start)
            .collect();
        ensure!(steps == at, "{code:x?}: steps at {steps:?}, not {at:?}");
        let end = log.last().map(|trap| trap.vector);
        ensure!(end == Some(last), "{code:x?}: ended by {end:?}");
        let after = guest.after(step);
        let status = if at.is_empty() { 0 } else { 0xffff_4ff0 };
        ensure!(
            after.debug_status == status,
            "{code:x?}: DR6 {:#x}",
            after.debug_status
        );
    }
    // `hlt` that is stepped over does not sleep. The handler leaves interrupts on.
    let mut guest = Bare::new()?;
    let mut handlers = Bare::usual_handlers();
    for (vector, flags) in &mut handlers {
        if *vector == 1 {
            *flags &= !MASK;
        }
    }
    guest.handlers(&handlers);
    let mut with = guest.registers(Ring::One);
    with.rflags |= TF;
    let step = guest.go_with(code!("sti", "hlt", "nop"), &with, 1 << 1);
    guest.survive().context("hlt, stepped over")?;
    // After sti, hlt and nop, and the last one is the breakpoint.
    let traps = guest.traps(step);
    ensure!(traps == 4, "hlt, stepped over: {traps} traps");
    Ok(())
}

/// Seeds that have shown something, and their rounds. With the first a `ret` with a number laid the
/// stack over the engine's own instructions, and the next trap's frame overwrote them.
const KNOWN: [(u64, u64); 2] = [(241_369_176, 34), (545_790_052, 30)];

/// Bytes at random, as instructions, one step of each string.
pub fn random_code(bench: &mut Bench) -> Result<()> {
    let given = bench.number("seed");
    let seed = bench.seed();
    let rounds = bench.number("rounds");
    let rounds = rounds.unwrap_or(if bench.long() { 2_000 } else { 60 });
    with_module(|| {
        if given.is_none() {
            stack_over_engine()?;
            for (seed, rounds) in KNOWN {
                rounds_of_code(bench, seed, rounds)?;
            }
        }
        rounds_of_code(bench, seed, rounds)
    })
}

/// So many Guests, with strings that this seed gives.
fn rounds_of_code(bench: &mut Bench, seed: u64, rounds: u64) -> Result<()> {
    bench
        .control
        .say("note", &format!("seed={seed} rounds={rounds}"))?;
    let mut random = Random::new(seed);
    let (mut run, mut dead, mut done, mut spoilt) = (0, 0, 0, 0);
    for round in 0..rounds {
        let round =
            round_of_code(&mut random).with_context(|| format!("seed={seed}, round {round}"))?;
        run += round.run;
        done += round.done;
        dead += u64::from(round.dead);
        spoilt += u64::from(round.spoilt);
    }
    let note = format!(
        "{run} strings in {rounds} Guests, {dead} of them killed, {spoilt} spoilt; {done} done"
    );
    bench.control.say("note", &note)?;
    // Of the stacks that a `ret` makes, about one in eighty lies there.
    ensure!(spoilt <= 1 + rounds / 100, "too many are spoilt: {note}");
    ensure!(done >= rounds, "too few are judged: {note}");
    Ok(())
}

/// A trap whose frame would lie over the engine's instructions: the Guest dies of it, and they are
/// what they were.
fn stack_over_engine() -> Result<()> {
    let mut guest = Bare::new()?;
    guest.protect();
    let place = crate::bare::handler(255) + 0x100;
    let before = guest.read_bytes(place - LINEAR - PAGE, PAGE as usize);
    let mut with = guest.registers(Ring::One);
    with.general[RCX] = place;
    let step = guest.go_with(code!("mov rsp, rcx", "ud2"), &with, 0);
    must_die(&mut guest, "a stack over the engine", "stack")?;
    ensure!(guest.reached() == step, "at step {}", guest.reached());
    let after = guest.read_bytes(place - LINEAR - PAGE, PAGE as usize);
    ensure!(
        before == after && guest.is_whole(),
        "the engine has changed"
    );
    Ok(())
}

/// What became of one Guest.
#[derive(Debug, Default)]
struct Round {
    /// How many strings it ran.
    run: u64,
    /// How many of them the Host has done.
    done: u64,
    /// It has died.
    dead: bool,
    /// A string has ruined what the engine needs to tell what the others did: none is judged.
    spoilt: bool,
}

/// One Guest.
fn round_of_code(random: &mut Random) -> Result<Round> {
    let mut guest = Bare::new()?;
    guest.limit = Duration::from_millis(500) * crate::host::patience();
    guest.protect();
    guest.set_stack();
    let mut strings = Vec::new();
    for _ in 0..60 {
        let ring = match random.below(4) {
            0 => Ring::Three,
            _ => Ring::One,
        };
        let bytes = string(random);
        let mut with = guest.registers(ring);
        for register in [RAX, RCX, RDX] {
            let word = random.word();
            with.general[register] = match random.below(4) {
                0 => word,
                1 => 1 << (word % 64),
                2 => 0xc000_0080 + word % 0x90,
                _ => 0,
            };
        }
        // One instruction, and a debug trap.
        with.rflags |= TF;
        strings.push((guest.go_with(&bytes, &with, 0), ring, bytes));
    }
    let end = guest.run()?;
    match &end {
        End::Dead(reason) => ensure!(reason.len() > 10, "the reason: {reason:?}"),
        End::Off | End::Restart | End::Running => {}
    }
    let mut round = Round {
        dead: matches!(end, End::Dead(_)),
        spoilt: !guest.is_whole(),
        ..Round::default()
    };
    if round.spoilt {
        return Ok(round);
    }
    let mut last = None;
    for (step, ring, bytes) in strings {
        let Outcome::Trapped(trap) = guest.outcome(step) else {
            continue;
        };
        let before = last.replace((bytes.clone(), trap));
        round.run += 1;
        if !is_done_for_it(&bytes) || ring != Ring::One {
            continue;
        }
        // What the Host does for it: it has the right length, or is refused where it stands.
        let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        let start = guest.code_at(ring, step);
        let past = (trap.vector, trap.rip) == (1, start + insn.len() as u64);
        let refused = (trap.vector, trap.error, trap.rip) == (13, 0, start);
        // QEMU 10.0 calls some an invalid opcode that have a prefix without a meaning.
        let invalid = (trap.vector, trap.rip) == (6, start);
        ensure!(
            past || refused || invalid,
            "{bytes:x?}: {trap:?}, begun at {start:#x}; before it {before:x?}; {end:?}"
        );
        round.done += u64::from(past);
    }
    Ok(round)
}

/// Whether these bytes begin with an instruction that the Host may do and that always traps.
fn is_done_for_it(bytes: &[u8]) -> bool {
    let insn = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let known = matches!(
        insn.code(),
        Code::Clts
            | Code::Cli
            | Code::Sti
            | Code::Rdmsr
            | Code::Wrmsr
            | Code::Mov_r64_cr
            | Code::Mov_cr_r64
            | Code::Invlpg_m
            | Code::In_AL_imm8
            | Code::In_EAX_imm8
            | Code::In_AL_DX
            | Code::In_AX_DX
            | Code::In_EAX_DX
            | Code::Out_imm8_AL
            | Code::Out_DX_AL
            | Code::Out_DX_EAX
    );
    known && !insn.has_lock_prefix()
}

fn string(random: &mut Random) -> Vec<u8> {
    const PREFIXES: [u8; 10] = [0x66, 0x67, 0x48, 0x41, 0x44, 0xf2, 0xf3, 0x64, 0x65, 0x2e];
    // No `hlt`: that is a quick end.
    const ONE: [u8; 11] = [
        0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef, 0xfa, 0xfb, 0x6c,
    ];
    const TWO: [u8; 12] = [
        0x00, 0x01, 0x06, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x32, 0x33,
    ];
    let pick = |random: &mut Random, list: &[u8]| list[random.below(list.len() as u64) as usize];
    let mut bytes = Vec::new();
    for _ in 0..random.below(4) {
        bytes.push(pick(random, &PREFIXES));
    }
    match random.below(4) {
        0 => bytes.push(pick(random, &ONE)),
        1 | 2 => bytes.extend([0x0f, pick(random, &TWO)]),
        _ => {}
    }
    while bytes.len() < 20 {
        bytes.push(random.word() as u8);
    }
    assert!(bytes.len() < CODE_BYTES, "no room");
    // QEMU 7.2 takes the ring from the null descriptor that a load of SS leaves, and that is ring 0:
    // see the case `null-ss`. Then the next instruction is the Host's, and it may be any. So there
    // is no such load at any place: a `popf` switches the single steps off, and a jump may lead
    // into the middle of another string.
    if (0..bytes.len()).any(|at| loads_ss(&bytes[at..])) {
        return string(random);
    }
    bytes
}

/// Whether these bytes begin with an instruction that loads SS.
fn loads_ss(bytes: &[u8]) -> bool {
    let insn = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    insn.op0_kind() == OpKind::Register && insn.op0_register() == Register::SS
        || matches!(insn.mnemonic(), Mnemonic::Lss)
}
