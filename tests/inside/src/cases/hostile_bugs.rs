// SPDX-License-Identifier: GPL-2.0-only

//! Mistakes that other hypervisors have made, each tried here.
//!
//! The chapter "Hostile Guests" lists them all, and which case tries which. Most are a part of some
//! other case; these are the ones that had none.

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::sweep::{OTHER_ROOT, RECORDS};
use crate::bare::reg::{RAX, RCX};
use crate::bare::{
    Bare, DATA3, DIRECT, End, FREE, LINEAR, LOWER, Outcome, PAGE, ROOT, RW, RWU, Ring, TRAP_STACK,
    USER_DATA, must_die, with_module,
};
use crate::code;

const NT: u64 = 1 << 14;
const IOPL: u64 = 3 << 12;
const IF: u64 = 1 << 9;

/// Nested-task flag on at every way into the Host (XSA-339: `iretq` faults with it, and a
/// hypervisor that does not clear it faults in ring 0).
pub fn nested_task(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let mut tried = 0;
        for direct in [0, DIRECT] {
            for ring in [Ring::One, Ring::Three] {
                let mut guest = Bare::new()?;
                let mut handlers = Bare::usual_handlers();
                for (vector, flags) in &mut handlers {
                    if matches!(vector, 3 | 6 | 0x80) {
                        *flags |= direct;
                    }
                }
                guest.handlers(&handlers);
                guest.set_stack();
                let ways: [&[u8]; 8] = [
                    code!("int 0x80"),
                    code!("int3"),
                    code!("ud2"),
                    code!("syscall"),
                    code!("sysenter"),
                    code!("in al, dx"),
                    code!("mov rax, [0x50000000]"),
                    code!("xor eax, eax", "int 0x1f"),
                ];
                let mut steps = Vec::new();
                for way in ways {
                    let mut with = guest.registers(ring);
                    with.rflags |= NT;
                    steps.push((guest.go_with(way, &with, 0), way));
                }
                // Long enough for a real interrupt.
                let mut with = guest.registers(ring);
                with.rflags |= NT;
                with.general[RCX] = 3_000_000;
                steps.push((guest.go_with(code!("2: loop 2b"), &with, 0), &[]));
                guest.survive()?;
                for (step, way) in steps {
                    tried += 1;
                    let Outcome::Trapped(trap) = guest.outcome(step) else {
                        anyhow::bail!("{way:x?} in {ring:?}: not reached");
                    };
                    // The frame has the flag as it was, and it is off in the handler.
                    ensure!(
                        trap.rflags & NT != 0 && trap.rflags & IOPL == 0,
                        "{way:x?} in {ring:?}: {trap:?}"
                    );
                }
                // `iretq` with it is general protection, of the Guest.
                let mut guest = Bare::new()?;
                guest.set_stack();
                let mut with = guest.registers(ring);
                with.rflags |= NT;
                let step = guest.go_with(code!("iretq"), &with, 0);
                guest.survive()?;
                let outcome = guest.outcome(step);
                ensure!(
                    matches!(outcome, Outcome::Trapped(trap) if (trap.vector, trap.error) == (13, 0)),
                    "iretq in {ring:?}: {outcome:x?}"
                );
            }
        }
        bench
            .control
            .say("note", &format!("{tried} ways in with NT on"))
    })
}

/// `int 0x80` and its like before there is a handler (XSA-259: the hypervisor followed a null
/// pointer).
pub fn no_handler_yet(_: &mut Bench) -> Result<()> {
    with_module(|| {
        for vector in [0x80_u8, 0, 4, 5, 16, 19, 32, 200] {
            for ring in [Ring::One, Ring::Three] {
                // With one for general protection it is that.
                let mut guest = Bare::new()?;
                guest.handlers(&[(3, 3 | IF), (13, 1 | IF)]);
                guest.set_stack();
                let step = guest.go(ring, &[0xcd, vector]);
                if vector == 4 {
                    // The gate is open to programs; nobody is there to take it.
                    must_die(&mut guest, "int 4", "unhandled trap 4")?;
                    continue;
                }
                guest.survive().with_context(|| format!("int {vector}"))?;
                let outcome = guest.outcome(step);
                ensure!(
                    matches!(outcome, Outcome::Trapped(trap) if trap.vector == 13),
                    "int {vector} in {ring:?}: {outcome:x?}"
                );
                // Without any it is the end, with a reason.
                let mut guest = Bare::new()?;
                guest.handlers(&[(3, 3 | IF)]);
                guest.set_stack();
                guest.go(ring, &[0xcd, vector]);
                must_die(&mut guest, "no handler", "unhandled trap 13")?;
            }
        }
        // Before INIT, too: nothing is loaded, no stack is set.
        for code in [code!("int 0x80"), code!("int3"), code!("syscall")] {
            let mut guest = Bare::new()?;
            guest.raw();
            guest.go(Ring::One, code);
            match guest.run()? {
                End::Dead(reason) => ensure!(reason.contains("unhandled trap"), "{reason}"),
                other => anyhow::bail!("{code:x?} before INIT: {other:?}"),
            }
        }
        Ok(())
    })
}

/// A top-level table at guest-physical 0 (in the original it matched an empty slot of the cache of
/// roots, and the Host crashed).
pub fn root_at_zero(_: &mut Bench) -> Result<()> {
    with_module(|| {
        for tag in [0, 1, 0xfff, 1 << 63, 1 << 63 | 5] {
            let mut guest = Bare::new()?;
            for slot in 0..512 {
                guest.write(8 * slot, guest.read(ROOT + 8 * slot));
            }
            let mark = 0x1234_5678_u64;
            guest.write(DATA3, mark);
            let mut steps = Vec::new();
            for root in [tag, ROOT, tag, ROOT | 7, tag] {
                guest.call(4, [root, 0, 0, 0]);
                steps.push(guest.peek(USER_DATA));
                guest.call(5, [0, 0, 0, 0]);
                steps.push(guest.peek(USER_DATA));
                guest.call(33, [USER_DATA, 0, 0, 0]);
                guest.call(5, [1, 0, 0, 0]);
                steps.push(guest.peek(USER_DATA));
            }
            guest.survive().with_context(|| format!("CR3 {tag:#x}"))?;
            for step in steps {
                let outcome = guest.outcome(step);
                ensure!(outcome == Outcome::Done(mark), "CR3 {tag:#x}: {outcome:x?}");
            }
        }
        // From the very start, and one that is empty: a fault that nobody can handle.
        let mut guest = Bare::new()?;
        for slot in 0..512 {
            guest.write(8 * slot, guest.read(ROOT + 8 * slot));
        }
        guest.start[3] = 0;
        guest.survive().context("a start with a root at 0")?;
        let mut guest = Bare::new()?;
        guest.start[3] = 0;
        must_die(&mut guest, "an empty root at 0", "trap 14")
    })
}

/// A flush that waits in the ring while what it is about is used (XSA-286).
pub fn flush_in_the_ring(_: &mut Bench) -> Result<()> {
    const FLUSH_ADDRESS: u64 = 33;
    const FLUSH_TLB: u64 = 5;
    with_module(|| {
        for (number, argument) in [(FLUSH_ADDRESS, USER_DATA), (FLUSH_TLB, 0), (FLUSH_TLB, 1)] {
            // In ring 1's own words: the entry goes, the flush waits, and a call drains the ring.
            let mut guest = Bare::new()?;
            guest.set_stack();
            let before = guest.peek(USER_DATA);
            guest.poke(LINEAR + LOWER[2], 0);
            guest.queue(0, number, [argument, 0, 0, 0]);
            // Until then it may be there or not. A program's trap is no call.
            guest.go(Ring::Three, code!("mov rax, [rdi]"));
            guest.call(0, [0; 4]);
            let after = guest.peek(USER_DATA);
            let program = guest.go(Ring::Three, code!("mov rax, [rdi]"));
            guest.survive()?;
            ensure!(
                guest.outcome(before) == Outcome::Done(0),
                "not there at first"
            );
            for step in [after, program] {
                let outcome = guest.outcome(step);
                ensure!(
                    matches!(outcome, Outcome::Trapped(trap) if trap.vector == 14),
                    "call {number} in the ring, and it is still there: {outcome:x?}"
                );
            }
            // The Host's own use: the page of the stack that a program's traps come to is taken
            // away, with the flush in the ring; the next trap must not be written to it later.
            let mut guest = Bare::new()?;
            let stack = FREE + 5 * PAGE;
            let table = FREE + 4 * PAGE;
            let own = 0xffff_0000_0000_0000 | 300 << 39;
            for (place, value) in [
                (ROOT + 8 * 300, FREE + 2 * PAGE),
                (FREE + 2 * PAGE, FREE + 3 * PAGE),
                (FREE + 3 * PAGE, table),
                (table, stack),
            ] {
                guest.write(place, value | RW);
            }
            guest.call(7, [own + PAGE, 1, 0, 0]);
            guest.go(Ring::Three, code!("ud2"));
            // The frame goes from the page; a second one must not come.
            for word in 1..8 {
                guest.poke(LINEAR + stack + PAGE - 8 * word, 0);
            }
            guest.poke(LINEAR + table, 0);
            let argument = if number == FLUSH_ADDRESS {
                own
            } else {
                argument
            };
            guest.queue(0, number, [argument, 0, 0, 0]);
            guest.call(0, [0; 4]);
            let last = guest.go(Ring::Three, code!("ud2"));
            let end = guest.run()?;
            let all = number == FLUSH_TLB && argument == 1 || number == FLUSH_ADDRESS;
            let untouched = (1..8).all(|word| guest.read(stack + PAGE - 8 * word) == 0);
            if all {
                ensure!(
                    matches!(&end, End::Dead(reason) if reason.contains("SET_STACK")
                        || reason.contains("no stack")),
                    "call {number}({argument:#x}): {end:?}, {:x?}",
                    guest.outcome(last)
                );
                ensure!(untouched, "a frame on a page that is no stack any more");
            } else {
                // The user's half only: the kernel's may stay as it was.
                ensure!(end == End::Off || matches!(end, End::Dead(_)), "{end:?}");
            }
        }
        Ok(())
    })
}

/// A stack for ring 1 on a page that ring 3 may write, and that goes away (XSA-183: a frame was
/// built where the user's tables pointed).
pub fn stack_of_the_users(_: &mut Bench) -> Result<()> {
    with_module(|| {
        // The Guest may have it so: the frame lands in its own page, and nowhere else.
        let mut guest = Bare::new()?;
        guest.call(7, [USER_DATA + PAGE, 1, 0, 0]);
        guest.go(Ring::Three, code!("ud2"));
        let mut with = guest.registers(Ring::One);
        with.rsp = USER_DATA + 0x800;
        guest.go_with(code!("ud2"), &with, 0);
        guest.survive()?;
        let frames = [PAGE, 0x800].map(|top| guest.read(DATA3 + top - 4 * 8));
        ensure!(frames == [0x33, 0x09], "CS in the frames: {frames:x?}");
        // And where the program's tables lead out of memory, or may only be read, it dies.
        for (entry, says) in [
            (crate::bare::END | RWU, "stack"),
            (DATA3 | 5, "no stack"),
            (0, "no stack"),
            (1 << 40 | RWU, "stack"),
        ] {
            let mut guest = Bare::new()?;
            guest.poke(LINEAR + LOWER[2], entry);
            guest.call(5, [1, 0, 0, 0]);
            let mut with = guest.registers(Ring::One);
            with.rsp = USER_DATA + 0x800;
            guest.go_with(code!("ud2"), &with, 0);
            let end = guest.run()?;
            ensure!(
                matches!(&end, End::Dead(reason) if reason.contains(says)
                    || reason.contains("bad guest-physical")),
                "entry {entry:#x}: {end:?}"
            );
        }
        Ok(())
    })
}

/// Calls that point to what is not in straight memory: a descriptor table, a record, a table whose
/// page is mapped elsewhere or nowhere (the original read descriptors through the linear map).
pub fn tables_anywhere(_: &mut Bench) -> Result<()> {
    with_module(|| {
        const GOOD: u64 = 0x00cf_f300_0000_ffff;
        let mut guest = Bare::new()?;
        let table = FREE + 20 * PAGE;
        for slot in 12..16 {
            guest.write(table + 8 * slot, GOOD);
        }
        guest.write(OTHER_ROOT, 0);
        // Its page is taken out of the linear map: guest-physical is guest-physical.
        guest.poke(LINEAR + crate::bare::UPPER[2] + 8 * (table / PAGE), 0);
        guest.poke(LINEAR + crate::bare::UPPER[2] + 8 * (RECORDS / PAGE), 0);
        guest.call(5, [1, 0, 0, 0]);
        let gone = guest.peek(LINEAR + table);
        let load = guest.call(3, [table, 16, 0, 0]);
        let tls = guest.call(16, [table + 96, 0, 0, 0]);
        let bind = guest.call(12, [7, RECORDS, 2, 5]);
        guest.call(7, [LINEAR + TRAP_STACK, 1, 0, 0]);
        let mut with = guest.registers(Ring::Three);
        with.general[RAX] = 0x63;
        let used = guest.go_with(code!("mov fs, eax", "nop"), &with, 0);
        guest.survive()?;
        ensure!(
            matches!(guest.outcome(gone), Outcome::Trapped(trap) if trap.vector == 14),
            "the page is still in the linear map"
        );
        for (step, answer) in [(load, 0), (tls, 0), (bind, 1)] {
            let outcome = guest.outcome(step);
            ensure!(outcome == Outcome::Done(answer), "{outcome:x?}");
        }
        ensure!(
            matches!(guest.outcome(used), Outcome::Trapped(trap) if trap.vector == 3),
            "its segment cannot be loaded: {:x?}",
            guest.outcome(used)
        );
        Ok(())
    })
}
