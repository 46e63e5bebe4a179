// SPDX-License-Identifier: GPL-2.0-only

//! The four segments that a Guest may set: what is copied when, what survives a trip, and a
//! selector whose segment was taken away.

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::tables::pin;
use crate::bare::reg::{R8, RAX, RBP, RCX, RDX};
use crate::bare::{Bare, End, FREE, Outcome, PAGE, Ring, must_die, with_module};
use crate::{code, host};

const LOAD_GDT: u64 = 3;
const LOAD_TLS: u64 = 16;
const LOAD_GDT_ENTRY: u64 = 18;
/// Where tables of descriptors lie, a free page, guest-physical.
const TABLES: u64 = FREE + PAGE;

/// A 32-bit data segment, present and writable, with this base and limit (below 64 KiB).
fn data(dpl: u64, base: u64, limit: u64) -> u64 {
    let attributes = 0x0040_9300_0000_0000 | dpl << 45;
    attributes | (base & 0xff_ffff) << 16 | base >> 24 << 56 | limit
}

/// What the module has copied so far: IDTs, all segments, the TLS trio.
fn copies() -> Result<[u64; 3]> {
    Ok([
        host::counter("idt_copies")?,
        host::counter("gdt_copies")?,
        host::counter("tls_copies")?,
    ])
}

/// What is copied while a Guest runs that does some calls after the usual beginning. The process
/// stays on one processor and nobody else has a Guest, so nothing else copies.
fn copied(calls: impl Fn(&mut Bare)) -> Result<[u64; 3]> {
    let mut guest = Bare::new()?;
    guest.set_stack();
    calls(&mut guest);
    let before = copies()?;
    guest.survive()?;
    let after = copies()?;
    Ok(std::array::from_fn(|n| after[n] - before[n]))
}

/// Hypercalls that do nothing, one trip each.
fn trips(guest: &mut Bare, count: u64) {
    let mut with = guest.registers(Ring::One);
    with.general[RDX] = count;
    let code = code!("2: mov eax, 0", "int 0x1f", "dec edx", "jnz 2b");
    guest.go_with(code, &with, 0);
}

/// Nothing that has not changed is copied, and what has changed is copied once.
pub fn copied_once(bench: &mut Bench) -> Result<()> {
    pin(std::iter::once(0))?;
    let result = with_module(|| {
        let one = copied(|guest| trips(guest, 1))?;
        let many = copied(|guest| trips(guest, 5000))?;
        ensure!(
            one == many,
            "one trip copies {one:?} (IDT, GDT, TLS), 5,000 trips {many:?}"
        );
        // The TLS trio a hundred times: the same each time, and another each time.
        let tls = |different: bool| {
            copied(move |guest| {
                trips(guest, 1);
                for n in 0..2 {
                    guest.write(TABLES + 24 * n, data(3, n << 16, 0));
                }
                for n in 0..100 {
                    let at = if different { n % 2 } else { 0 };
                    guest.call(LOAD_TLS, [TABLES + 24 * at, 0, 0, 0]);
                }
            })
        };
        let (same, other) = (tls(false)?, tls(true)?);
        let plus = |tls| [one[0], one[1], one[2] + tls];
        ensure!(same == plus(1), "the same TLS 100 times: {same:?}");
        ensure!(other == plus(100), "another TLS 100 times: {other:?}");
        // One entry, five times.
        let entry = copied(|guest| {
            trips(guest, 1);
            for n in 0..5 {
                guest.call(LOAD_GDT_ENTRY, [15, data(3, n, 0), 0, 0]);
            }
        })?;
        ensure!(
            entry == [one[0], one[1] + 5, one[2]],
            "an entry five times: {entry:?}"
        );
        let said = format!("one trip and 5,000 both copy {one:?} (IDT, GDT, TLS)");
        bench.control.say("note", &said)
    });
    pin(0..host::cpus())?;
    result
}

/// Four segments that differ by a number.
fn four(number: u64) -> [u64; 4] {
    std::array::from_fn(|n| {
        let slot = n as u64;
        data(
            3,
            (number << 12 | slot << 28) & 0xffff_ffff,
            0x100 * (slot + 1) + number,
        )
    })
}

/// Sets the four segments, by the trio and by the entry or all at once.
fn set_four(guest: &mut Bare, number: u64) {
    let table = TABLES + 128 * (number % 32);
    let words = four(number);
    for (n, word) in (12..).zip(words) {
        guest.write(table + 8 * n, word);
    }
    // What else is in the table is the Host's, and must be ignored: here, a call gate.
    for n in 0..12 {
        guest.write(table + 8 * n, 0x0000_ec00_0010_0000);
    }
    if number.is_multiple_of(2) {
        guest.call(LOAD_GDT, [table, 16, 0, 0]);
    } else {
        guest.call(LOAD_TLS, [table + 96, 0, 0, 0]);
        guest.call(LOAD_GDT_ENTRY, [15, words[3], 0, 0]);
    }
}

/// A step that loads all four selectors, sends something (so that the Launcher runs), and looks at
/// limits and bases afterwards.
fn send_with_selectors(guest: &mut Bare) -> usize {
    let mut with = guest.registers(Ring::One);
    with.general[RAX] = 0x63;
    with.general[RCX] = 0x6b;
    with.general[RDX] = 0x73;
    with.general[RBP] = 0x7b;
    with.general[R8] = FREE;
    let code = code!(
        "mov ds, eax",
        "mov es, ecx",
        "mov fs, edx",
        "mov gs, ebp",
        "mov eax, 13",
        "mov edi, 3",
        "mov esi, r8d",
        "int 0x1f",
        "lsl r9d, ecx",
        "lsl r10d, edx",
        "lsl r11d, ebp",
        "rdfsbase r12",
        "rdgsbase r13",
    );
    guest.go_with(code, &with, 0)
}

fn check_four(guest: &Bare, step: usize, number: u64) -> Result<()> {
    let after = guest.after(step);
    let general = after.general;
    ensure!(
        matches!(guest.outcome(step), Outcome::Trapped(trap) if trap.vector == 3),
        "{:?}",
        guest.outcome(step)
    );
    let selectors = after.selectors;
    ensure!(
        selectors == [0x63, 0x6b, 0x73, 0x7b],
        "DS, ES, FS, GS are {selectors:x?}"
    );
    let limits = &general[R8 + 1..R8 + 4];
    let wanted = [1, 2, 3].map(|n| 0x100 * (n + 1) + number);
    ensure!(limits == wanted, "limits {limits:x?}, not {wanted:x?}");
    let bases = &general[R8 + 4..R8 + 6];
    let wanted = [2, 3].map(|n: u64| (number << 12 | n << 28) & 0xffff_ffff);
    ensure!(
        bases == wanted,
        "bases of FS and GS {bases:x?}, not {wanted:x?}"
    );
    Ok(())
}

/// Selectors and bases survive, whoever ran in between and wherever it goes on.
pub fn selectors_survive(_: &mut Bench) -> Result<()> {
    const ROUNDS: u64 = 12;
    let result = with_module(|| {
        let mut guest = Bare::new()?;
        let mut steps = Vec::new();
        for number in 1..=ROUNDS {
            set_four(&mut guest, number);
            steps.push((number, send_with_selectors(&mut guest)));
        }
        let device = guest.initialize()?;
        let mut turn = 0;
        let end = guest.go_on(&device, |_, _, _| {
            // Another Guest, with others, on this processor and then on the next; the first one
            // goes on where its own segments are not, or are of long ago.
            turn += 1;
            for cpu in [turn, turn + 1] {
                pin(std::iter::once(cpu % host::cpus()))?;
                let mut other = Bare::new()?;
                set_four(&mut other, 77);
                let step = send_with_selectors(&mut other);
                other.survive()?;
                check_four(&other, step, 77).context("the other Guest")?;
            }
            Ok(())
        })?;
        ensure!(end == End::Off, "{end:?}");
        for (number, step) in steps {
            check_four(&guest, step, number).with_context(|| format!("round {number}"))?;
        }
        ensure!(turn as u64 == ROUNDS, "{turn} times in between");
        Ok(())
    });
    pin(0..host::cpus())?;
    result
}

/// A selector whose segment was taken away ends that Guest, and only that; one whose segment is
/// there again before the Guest goes on does not.
pub fn taken_away(_: &mut Bench) -> Result<()> {
    with_module(|| {
        let into: [(&str, &[u8]); 4] = [
            ("DS", code!("mov ds, ebp")),
            ("ES", code!("mov es, ebp")),
            ("FS", code!("mov fs, ebp")),
            ("GS", code!("mov gs, ebp")),
        ];
        let call = code!("mov eax, 18", "mov edi, 12", "mov esi, r8d", "int 0x1f");
        // Nothing, not present, and of an inner ring.
        for (what, word) in [
            ("nothing", 0),
            ("not present", data(3, 0, 0) & !(1 << 47)),
            ("of ring 1", data(1, 0, 0)),
        ] {
            // Only the upper half of a descriptor says anything here.
            let shift = code!("shl r8, 32", "mov rsi, r8");
            for (register, load) in into {
                let mut guest = Bare::new()?;
                guest.call(LOAD_GDT_ENTRY, [12, data(3, 0, 0), 0, 0]);
                let mut with = guest.registers(Ring::One);
                with.general[RBP] = 0x63;
                with.general[R8] = word >> 32;
                let code = [load, &call[..10], shift, &call[call.len() - 2..]].concat();
                guest.go_with(&code, &with, 0);
                let says = format!("{register} holds selector 0x63");
                must_die(&mut guest, what, &says)?;
            }
        }
        let mut guest = Bare::new()?;
        guest.call(LOAD_GDT_ENTRY, [12, data(0, 0, 0), 0, 0]);
        let mut with = guest.registers(Ring::One);
        (with.ss, with.general[R8]) = (0x61, 0);
        guest.go_with(call, &with, 0);
        must_die(&mut guest, "SS", "SS holds selector 0x61")?;
        // Away and back again, in one trip.
        let mut guest = Bare::new()?;
        guest.call(LOAD_GDT_ENTRY, [12, data(3, 0, 0), 0, 0]);
        guest.queue(0, LOAD_GDT_ENTRY, [12, 0, 0, 0]);
        guest.queue(1, LOAD_GDT_ENTRY, [12, data(3, 5, 5), 0, 0]);
        let mut with = guest.registers(Ring::One);
        with.general[RBP] = 0x63;
        let code = code!("mov gs, ebp", "mov eax, 0", "int 0x1f", "lsl r9d, ebp");
        let step = guest.go_with(code, &with, 0);
        guest.survive()?;
        let after = guest.after(step);
        ensure!(
            after.selectors[3] == 0x63 && after.general[R8 + 1] == 5,
            "{after:x?}"
        );
        Ok(())
    })
}

/// Bases that no processor would translate: refused by the instruction, or (QEMU) harmless.
pub fn bases(bench: &mut Bench) -> Result<()> {
    let mine = bases_of_this_thread();
    with_module(|| {
        let mut refused = 0;
        let mut tried = 0;
        for base in [
            1 << 47,
            1 << 56,
            1 << 63,
            0x8000_0000_0000_0000 - 1,
            0xfeff_ffff_ffff_ffff,
        ] {
            for ring in [Ring::One, Ring::Three] {
                let pieces: [&[u8]; 2] = [code!("wrfsbase rbp"), code!("wrgsbase rbp")];
                for code in pieces {
                    let mut guest = Bare::new()?;
                    guest.set_stack();
                    let mut with = guest.registers(ring);
                    with.general[RBP] = base;
                    // The breakpoint after it is reflected: out of the Guest, and in again.
                    let step = guest.go_with(code, &with, 0);
                    guest.survive()?;
                    let Outcome::Trapped(trap) = guest.outcome(step) else {
                        anyhow::bail!("{base:#x}: not reached");
                    };
                    tried += 1;
                    refused += u64::from(trap.vector == 13);
                    ensure!(
                        (trap.vector, trap.error) == (13, 0) || trap.vector == 3,
                        "{base:#x}: {trap:?}"
                    );
                }
            }
        }
        let now = bases_of_this_thread();
        ensure!(now == mine, "bases of FS and GS: {mine:x?}, then {now:x?}");
        let said = format!("{refused} of {tried} were refused by the instruction");
        bench.control.say("note", &said)
    })
}

/// The bases of FS and GS of this very thread.
fn bases_of_this_thread() -> [u64; 2] {
    const ARCH_GET_FS: i32 = 0x1003;
    const ARCH_GET_GS: i32 = 0x1004;
    [ARCH_GET_FS, ARCH_GET_GS].map(|what| {
        let mut base = 0_u64;
        // SAFETY: The kernel writes one word, to a live variable.
        let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, what, &raw mut base) };
        assert!(answer == 0, "arch_prctl");
        base
    })
}
