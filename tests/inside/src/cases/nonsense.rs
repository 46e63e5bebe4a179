// SPDX-License-Identifier: GPL-2.0-only

//! A Guest that begins at nonsense, whose stack is nonsense when something happens, or that steps
//! through itself one instruction at a time.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use super::sweep::reserved;
use crate::bare::reg::{R8, RAX, RCX, RDX};
use crate::bare::{
    Bare, DIRECT, END, End, FREE, LINEAR, Outcome, PAGE, RING1_STACK, ROOT, RW, Ring, TRAP_STACK,
    USER_DATA, must_die, with_module,
};
use crate::device::{Device, INITIALIZE, IRQ};
use crate::{code, host};

/// Pages mapped by the Guest itself, at a place of their own: one that may be written, one that may
/// only be read, and nothing after that.
const OWN: u64 = 0xffff_0000_0000_0000 | 300 << 39;
const READ_ONLY: u64 = OWN + PAGE;
const NOTHING: u64 = OWN + 2 * PAGE;

fn with_pages() -> Result<Bare> {
    let mut guest = Bare::new()?;
    let tables = [FREE + PAGE, FREE + 2 * PAGE, FREE + 3 * PAGE];
    guest.write(ROOT + 8 * 300, tables[0] | RW);
    guest.write(tables[0], tables[1] | RW);
    guest.write(tables[1], tables[2] | RW);
    guest.write(tables[2], (FREE + 4 * PAGE) | RW);
    guest.write(tables[2] + 8, (FREE + 5 * PAGE) | 1);
    Ok(guest)
}

pub fn starts(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let ranges = reserved()?;
        let [text, _, pages, pages_end] = ranges;
        let normal = Bare::new()?.start[2];
        // An entry that is no address at all is refused.
        for entry in [
            1 << 47,
            1 << 63,
            0xffff_7fff_ffff_ffff,
            0x7fff_ffff_ffff_ffff,
        ] {
            let mut guest = Bare::new()?;
            guest.start[2] = entry;
            let device = Device::open()?;
            let [count, limit, entry, root, levels] = guest.start;
            // The base is not looked at before; it is in order.
            let words = [INITIALIZE, 1 << 30, count, limit, entry, root, levels];
            let answer = device.request(&words);
            ensure!(answer == Err(libc::EINVAL), "entry {entry:#x}: {answer:?}");
        }
        // The others are addresses, and end where they lead.
        let mut entries = vec![
            0,
            1,
            0x7fff_ffff_f000,
            0x7fff_ffff_ffff,
            0xffff_8000_0000_0000,
            u64::MAX,
            u64::MAX - 4095,
            LINEAR,
            LINEAR + END - 1,
            LINEAR + END,
            LINEAR + ROOT,
            USER_DATA,
            OWN,
            READ_ONLY,
            NOTHING - 1,
        ];
        // In the middle of instructions, and in the Switcher's pages.
        entries.extend((1..64).map(|n| normal + n));
        entries.extend((0..PAGE).step_by(0x155).map(|n| text + n));
        entries.extend((pages..pages_end).step_by(0x800));
        // With five levels the Host's pages are where a Guest has no addresses.
        entries.retain(|entry| matches!(entry.cast_signed() >> 47, 0 | -1));
        let (mut dead, mut others) = (0, 0);
        for entry in &entries {
            let mut guest = with_pages()?;
            guest.limit = Duration::from_millis(200) * host::patience();
            guest.start[2] = *entry;
            match guest.run().with_context(|| format!("entry {entry:#x}"))? {
                End::Dead(reason) => {
                    let known = ["trap ", "hypercall ", "page tables", "mapped to", "("];
                    ensure!(known.iter().any(|word| reason.contains(word)), "{reason:?}");
                    dead += 1;
                }
                _ => others += 1,
            }
        }
        ensure!(dead >= 30, "only {dead} of {} died", entries.len());
        bench.control.say(
            "note",
            &format!("{dead} died at once, {others} ran on from there"),
        )
    })
}

/// A stack and what must come of it when a trap needs it: `None` if it is good.
type Stack = (u64, Option<&'static str>);

/// What the reason says before the address.
const NO_STACK: &str = "no stack at";

/// Whether the Guest's own tables let ring 1 write a word there.
fn may_write(address: u64) -> bool {
    let in_pages = |first: u64, pages: u64| (first..first + pages * PAGE).contains(&address);
    in_pages(LINEAR, END / PAGE) || in_pages(OWN, 1) || in_pages(USER_DATA, 2)
}

/// The lowest word of a frame on this stack that cannot be written: the reason names it.
fn first_missing(stack: u64, words: u64) -> Option<u64> {
    let lowest = (stack & !15).wrapping_sub(8 * words);
    let mut all = (0..words).map(|word| lowest.wrapping_add(8 * word));
    all.find(|address| !may_write(*address))
}

/// What the reason must say for a frame of so many words, if the stack is not a good one.
fn reason(stack: u64, words: u64) -> Option<String> {
    first_missing(stack, words).map(|address| format!("{NO_STACK} {address:#x} to push on"))
}

fn bad_stacks(ranges: &[u64; 4]) -> Vec<Stack> {
    let [text, _, pages, pages_end] = *ranges;
    let bad = Some(NO_STACK);
    let mut stacks = vec![
        // In order, though odd: off their boundary, over the border of two pages, ring 3's page.
        (LINEAR + RING1_STACK - 1, None),
        (LINEAR + RING1_STACK - 3, None),
        (LINEAR + RING1_STACK - 8, None),
        (LINEAR + RING1_STACK - PAGE + 16, None),
        (OWN + PAGE, None),
        // Right below the end of memory.
        (LINEAR + END, None),
        // Half on a page that may be written, and the words below it on none.
        (OWN + 16, bad),
        (LINEAR + 16, bad),
        // The lower words may be written, and the upper ones not.
        (READ_ONLY + 16, bad),
        (LINEAR + END + 16, bad),
        (USER_DATA + 2 * PAGE + 16, bad),
        (USER_DATA + PAGE, None),
        // Nothing there, at the borders of all kinds of things; the frame goes below.
        (0, bad),
        (8, bad),
        (16, bad),
        (0x28, bad),
        (PAGE, bad),
        (0x5000_0000, bad),
        (READ_ONLY + PAGE, bad),
        (OWN, bad),
        (OWN + 32, bad),
        (LINEAR, bad),
        (LINEAR + 24, bad),
        (LINEAR + END + 256, bad),
        (u64::MAX, bad),
        (u64::MAX - 15, bad),
        (0x7fff_ffff_ffff, bad),
        (1 << 47, bad),
        ((1 << 47) + 64, bad),
        (1 << 63, bad),
        (0xffff_7fff_ffff_fff0, bad),
        (0xffff_8000_0000_0010, bad),
        (text + PAGE, bad),
        (text + 64, bad),
    ];
    stacks.extend(
        (pages..=pages_end)
            .step_by(PAGE as usize)
            .map(|at| (at, bad)),
    );
    stacks
}

pub fn stacks(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let ranges = reserved()?;
        let stacks = bad_stacks(&ranges);
        let mut tried = 0;
        for (stack, says) in &stacks {
            // A hypercall needs no stack of the Guest's at all.
            let mut guest = with_pages()?;
            let mut with = guest.registers(Ring::One);
            with.general[RCX] = *stack;
            let call = guest.go_with(
                code!(
                    "mov r8, rsp",
                    "mov rsp, rcx",
                    "xor eax, eax",
                    "int 0x1f",
                    "mov rdx, rsp",
                    "mov rsp, r8"
                ),
                &with,
                0,
            );
            guest
                .survive()
                .with_context(|| format!("a call on {stack:#x}"))?;
            ensure!(guest.after(call).general[RDX] == *stack, "RSP changed");

            // Traps that the Host reflects: an opcode, a page fault, general protection.
            for (what, words, code) in [
                ("an opcode", 5, code!("mov rsp, rcx", "ud2")),
                ("a page fault", 6, code!("mov rsp, rcx", "mov rax, [rdx]")),
                ("lldt", 6, code!("mov rsp, rcx", "lldt ax")),
                ("int 0x80", 5, code!("mov rsp, rcx", "int 0x80")),
            ] {
                tried += 1;
                let mut guest = with_pages()?;
                let mut with = guest.registers(Ring::One);
                with.general[RCX] = *stack;
                with.general[RDX] = 0x5000_0000;
                let step = guest.go_with(code, &with, 0);
                let says = reason(*stack, words);
                after_trap(&mut guest, step, *stack, says.as_deref(), what)?;
            }
            // Traps that the processor takes by itself. Where it cannot push, that is a fault of its
            // own, and it all ends at the Host; or it can push, into the register page, which is the
            // Guest's to spoil.
            for vector in [0, 3, 0x80] {
                tried += 1;
                let mut guest = with_pages()?;
                let mut handlers = Bare::usual_handlers();
                for (number, flags) in &mut handlers {
                    if *number == vector {
                        *flags = 3 | DIRECT;
                    }
                }
                guest.handlers(&handlers);
                guest.limit = Duration::from_millis(200) * host::patience();
                let mut with = guest.registers(Ring::One);
                with.general[RCX] = *stack;
                let code = match vector {
                    0 => code!("mov rsp, rcx", "xor ecx, ecx", "div ecx"),
                    3 => code!("mov rsp, rcx", "int3"),
                    _ => code!("mov rsp, rcx", "int 0x80"),
                };
                let step = guest.go_with(code, &with, 0);
                let end = guest
                    .run()
                    .with_context(|| format!("direct {vector} on {stack:#x}"))?;
                let ours = (ranges[2]..=ranges[3]).contains(stack);
                let fits = match (&end, says) {
                    (End::Off, None) => {
                        matches!(guest.outcome(step), Outcome::Trapped(trap) if trap.vector == vector)
                    }
                    (End::Dead(reason), Some(_)) => ["no stack at", "unhandled trap"]
                        .iter()
                        .any(|text| reason.contains(text)),
                    _ => ours,
                };
                ensure!(fits, "direct {vector} on {stack:#x}: {end:?}");
            }
            // An interrupt: the Launcher raises line 5 while the Guest makes a call on that stack.
            tried += 1;
            let mut guest = with_pages()?;
            let mut handlers = Bare::usual_handlers();
            handlers.push((37, 0x201));
            guest.handlers(&handlers);
            guest.poke_shared(0, 0x200);
            let mut with = guest.registers(Ring::One);
            with.general[RCX] = *stack;
            with.general[R8] = FREE;
            let step = guest.go_with(
                code!(
                    "mov rsp, rcx",
                    "mov eax, 13",
                    "xor edi, edi",
                    "mov rsi, r8",
                    "int 0x1f",
                    "ud2"
                ),
                &with,
                0,
            );
            let end = guest.run_with(|_, device, _| {
                let raised = device.request(&[IRQ, 5]);
                ensure!(raised == Ok(16), "IRQ 5: {raised:?}");
                Ok(())
            })?;
            match (&end, says) {
                (End::Off, None) => match guest.outcome(step) {
                    Outcome::Trapped(trap) if trap.vector == 37 && trap.rsp == *stack => {}
                    other => bail!("an interrupt on {stack:#x}: {other:?}"),
                },
                (End::Dead(said), Some(_))
                    if reason(*stack, 5).is_some_and(|wanted| said.contains(&wanted)) => {}
                other => bail!("an interrupt on {stack:#x}: {other:?}"),
            }
            // The list and the model agree.
            ensure!(
                says.is_some() == first_missing(*stack, 5).is_some(),
                "{stack:#x} is on the wrong side of the list"
            );
        }
        kernel_stacks(&ranges)?;
        bench
            .control
            .say("note", &format!("{tried} traps on {} stacks", stacks.len()))
    })
}

/// What comes of a trap on a stack: the frame is there, with the old stack in it, or the Guest is
/// dead and the reason says why.
fn after_trap(
    guest: &mut Bare,
    step: usize,
    stack: u64,
    says: Option<&str>,
    what: &str,
) -> Result<()> {
    let what = format!("{what} on {stack:#x}");
    let Some(says) = says else {
        guest.survive().with_context(|| what.clone())?;
        return match guest.outcome(step) {
            Outcome::Trapped(trap) if trap.rsp == stack => Ok(()),
            other => bail!("{what}: {other:?}"),
        };
    };
    must_die(guest, &what, says)
}

/// Stacks for traps from ring 3: named badly, or taken away later.
fn kernel_stacks(ranges: &[u64; 4]) -> Result<()> {
    let mut bad = vec![
        0,
        PAGE,
        0x5000_0000,
        READ_ONLY + PAGE,
        OWN,
        LINEAR,
        LINEAR + END + PAGE,
    ];
    bad.extend([ranges[0] + PAGE, ranges[2] + PAGE, ranges[2] + 2 * PAGE]);
    for top in bad {
        let mut guest = with_pages()?;
        guest.call(7, [top, 1, 0, 0]);
        guest.go(Ring::Three, code!("int 0x80"));
        must_die(&mut guest, &format!("SET_STACK {top:#x}"), "SET_STACK")?;
    }
    // In order, then gone: it is found at the flush that makes it so.
    for entry in [0, (FREE + 4 * PAGE) | 1] {
        let mut guest = with_pages()?;
        guest.call(7, [OWN + PAGE, 1, 0, 0]);
        let user = guest.go(Ring::Three, code!("int 0x80"));
        guest.poke(LINEAR + FREE + 3 * PAGE, entry);
        guest.call(33, [OWN, 0, 0, 0]);
        guest.go(Ring::Three, code!("int 0x80"));
        must_die(
            &mut guest,
            "a stack that is gone",
            "SET_STACK (7): bad stack page",
        )?;
        let trapped = matches!(guest.outcome(user), Outcome::Trapped(t) if t.vector == 0x80);
        ensure!(trapped, "before: {:?}", guest.outcome(user));
    }
    // No SET_STACK at all.
    let mut guest = Bare::new()?;
    guest.go(Ring::Three, code!("ud2"));
    must_die(&mut guest, "no SET_STACK", "no stack at")?;
    // Ring 3's own page as the kernel's stack: silly, and allowed.
    let mut guest = Bare::new()?;
    guest.call(7, [USER_DATA + PAGE, 1, 0, 0]);
    let user = guest.go(Ring::Three, code!("int 0x80"));
    guest.survive()?;
    let trapped = matches!(guest.outcome(user), Outcome::Trapped(t) if t.vector == 0x80);
    ensure!(trapped, "on its own page: {:?}", guest.outcome(user));
    ensure!(TRAP_STACK > 0, "the usual stack is none");
    Ok(())
}

const TF: u64 = 1 << 8;
/// Debug traps are written down, and the Guest goes on.
const STEPS: u64 = 1 << 1;

pub fn steps(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        // Where a debug trap must come, as offsets from the first instruction; the last is the
        // breakpoint, at which TF is still on.
        let tries: Vec<(&str, Ring, &'static [u8], Vec<u64>)> = vec![
            (
                "plain",
                Ring::One,
                code!("nop", "xor eax, eax", "nop"),
                vec![1, 3, 4],
            ),
            (
                "plain",
                Ring::Three,
                code!("nop", "xor eax, eax", "nop"),
                vec![1, 3, 4],
            ),
            // The trap of `int` clears TF; what returns from it steps over one more.
            (
                "a hypercall",
                Ring::One,
                code!("xor eax, eax", "int 0x1f", "nop", "nop"),
                vec![2, 5, 6],
            ),
            (
                "MOV SS",
                Ring::One,
                code!("mov ss, eax", "nop", "nop"),
                vec![3, 4],
            ),
            (
                "MOV SS and a hypercall",
                Ring::One,
                code!("mov ss, ecx", "int 0x1f", "nop", "nop"),
                vec![5, 6],
            ),
            (
                "what the Host does for it",
                Ring::One,
                code!("mov rax, cr4", "clts", "in al, 0x60", "cli", "nop"),
                vec![3, 5, 7, 8, 9],
            ),
            (
                "a page that the Host fills in",
                Ring::Three,
                code!("mov rax, [rdi]", "nop"),
                vec![3, 4],
            ),
        ];
        for (name, ring, code, wanted) in &tries {
            let mut guest = Bare::new()?;
            guest.set_stack();
            let mut with = guest.registers(*ring);
            with.rflags |= TF;
            with.general[RAX] = if name.starts_with("MOV SS and") {
                0
            } else {
                0x39
            };
            with.general[RCX] = 0x39;
            let step = guest.go_with(code, &with, STEPS);
            guest
                .survive()
                .with_context(|| format!("{name} in {ring:?}"))?;
            let start = guest.code_at(*ring, step);
            let log = guest.log();
            let got: Vec<u64> = log
                .iter()
                .filter(|trap| trap.vector == 1)
                .map(|trap| trap.rip - start)
                .collect();
            ensure!(
                got == *wanted,
                "{name} in {ring:?}: steps at {got:?}, not {wanted:?}"
            );
            let flags = log.iter().all(|trap| trap.rflags & TF != 0);
            ensure!(flags, "{name}: TF is lost: {log:?}");
            let after = guest.after(step);
            ensure!(
                after.debug_status & 1 << 14 != 0,
                "{name}: DR6.BS is not shown"
            );
        }
        // Whatever else happens with TF on, the Guest comes through, and so does the Host.
        for ring in [Ring::One, Ring::Three] {
            for code in [
                code!("int 0x80"),
                code!("int3"),
                code!("ud2"),
                code!("in al, dx", "nop"),
                code!("popfq"),
                code!("pushfq", "popfq", "nop"),
                code!("int 0x30"),
                code!("syscall"),
                code!("mov eax, [0x50000000]"),
                code!("mov ecx, 3", "2: loop 2b"),
                code!("mov ax, 0x2b", "mov ss, ax", "int 0x80"),
                code!("mov ax, 0x39", "mov ss, ax", "int3"),
                code!(
                    "push 0x2b",
                    "push rsi",
                    "push 0x302",
                    "push 0x33",
                    "push 0x400000",
                    "iretq"
                ),
            ] {
                let mut guest = Bare::new()?;
                guest.set_stack();
                let mut with = guest.registers(ring);
                with.rflags |= TF;
                let step = guest.go_with(code, &with, STEPS);
                guest.go(Ring::One, code!("nop"));
                guest
                    .survive()
                    .with_context(|| format!("{code:x?} in {ring:?}"))?;
                ensure!(
                    guest.outcome(step) != Outcome::Never,
                    "{code:x?} in {ring:?}"
                );
            }
        }
        // Without a handler for it, a readable end.
        let mut guest = Bare::new()?;
        guest.handlers(&[(13, 0x201), (3, 0x203)]);
        let mut with = guest.registers(Ring::One);
        with.rflags |= TF;
        guest.go_with(code!("nop"), &with, 0);
        must_die(&mut guest, "a step without a handler", "unhandled trap 1")?;
        bench.control.say(
            "note",
            &format!("{} ways checked step by step", tries.len()),
        )
    })
}
