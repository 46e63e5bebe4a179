// SPDX-License-Identifier: GPL-2.0-only

//! Page tables made to do harm, the Switcher's pages from inside, and the Host's half of the
//! address space.

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::Bench;
use super::sweep::reserved;
use crate::bare::reg::{RAX, RBP, RDI};
use crate::bare::{
    Bare, DATA1, END, End, FREE, LINEAR, LOWER, Outcome, PAGE, RING1_STACK, ROOT, RW, RWU, Ring,
    USER_DATA, with_module,
};
use crate::{code, host};

/// What must come of reading a word, or of writing one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// This word is there.
    Word(u64),
    /// A page fault with this error code.
    Fault(u64),
    /// The Guest dies, with this in the reason.
    Dies(&'static str),
}

use Comes::{Dies, Fault, Word};

/// One try: what it is about, the entries written into tables before the Guest starts
/// (guest-physical place, value), the address, whether it is written, and what must come of it.
type Try = (String, Vec<(u64, u64)>, u64, bool, Comes);

/// Jumps that one Guest is to make.
const JUMPS: usize = 64;
const MARK: u64 = 0x0123_4567_89ab_cdef;
/// The page with the mark.
const MARKED: u64 = FREE;
/// Tables of levels 3, 2 and 1 that lead from slot 300 to `MARKED`.
const TABLES: [u64; 3] = [FREE + PAGE, FREE + 2 * PAGE, FREE + 3 * PAGE];
/// The address that slot 300 of the top-level table begins at.
const HERE: u64 = 0xffff_0000_0000_0000 | 300 << 39;
const SLOT: u64 = ROOT + 8 * 300;
const NX: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;

/// The way to the mark, as good entries.
fn path() -> Vec<(u64, u64)> {
    vec![
        (SLOT, TABLES[0] | RW),
        (TABLES[0], TABLES[1] | RW),
        (TABLES[1], TABLES[2] | RW),
        (TABLES[2], MARKED | RW),
        (MARKED, MARK),
    ]
}

/// The same with the entry of one level replaced.
fn path_with(level: usize, entry: u64) -> Vec<(u64, u64)> {
    let mut path = path();
    path[4 - level].1 = entry;
    path
}

#[rustfmt::skip]
fn tries() -> Vec<Try> {
    let mut tries: Vec<Try> = Vec::new();
    let mut add = |name: String, path: Vec<(u64, u64)>, address: u64, write: bool, comes: Comes| {
        tries.push((name, path, address, write, comes));
    };
    add("the good way".into(), path(), HERE, false, Word(MARK));
    let good = [MARKED, TABLES[2], TABLES[1], TABLES[0]];
    for level in 1..=4 {
        let entry = good[level - 1] | RW;
        // Bits that a processor ignores: 8 to 11, and 52 to 62, the protection key among them,
        // because CR4.PKE is off in a Guest.
        for bit in (8..=11).chain(52..=62) {
            add(format!("bit {bit} at level {level}"), path_with(level, entry | 1 << bit), HERE, false, Word(MARK));
        }
        // Caching: PWT and PCD, and PAT in the lowest entry.
        add(format!("PWT and PCD at level {level}"), path_with(level, entry | 0x18), HERE, false, Word(MARK));
        add(format!("nothing at level {level}"), path_with(level, entry & !1), HERE, false, Fault(0));
        add(format!("write, nothing at level {level}"), path_with(level, entry & !1), HERE, true, Fault(2));
        add(format!("write, read-only at level {level}"), path_with(level, entry & !2), HERE, true, Fault(3));
        // Frames out of memory: the first beyond, and those of the Host if it were fooled.
        let far = if level == 1 { "mapped to bad guest-physical" } else { "bad guest-physical" };
        for frame in [END, END + PAGE, 1 << 30, 1 << 32, 1 << 40, 1 << 51, 0x000f_ffff_ffff_f000] {
            add(format!("frame {frame:#x} at level {level}"), path_with(level, frame | RW), HERE, false, Dies(far));
        }
        // A loop: this entry leads back to the top-level table.
        if level > 1 {
            let ends = [Word(LOWER[1] | RWU), Word(0), Fault(0)];
            add(format!("a loop at level {level}"), path_with(level, ROOT | RW), HERE, false, ends[level - 2]);
        }
    }
    add("PAT in the lowest entry".into(), path_with(1, MARKED | RW | LARGE), HERE, false, Word(MARK));
    // Large pages: none at level 4; at 3 and 2 only on their own boundary, PAT (bit 12) apart.
    add("large at level 4".into(), path_with(4, TABLES[0] | RW | LARGE), HERE, false, Fault(9));
    add("write, large at level 4".into(), path_with(4, LARGE | RW), HERE, true, Fault(0xb));
    for bit in 13..30 {
        add(format!("1 GiB off its boundary, bit {bit}"), path_with(3, RW | LARGE | 1 << bit), HERE, false, Fault(9));
    }
    for bit in 13..21 {
        add(format!("2 MiB off its boundary, bit {bit}"), path_with(2, RW | LARGE | 1 << bit), HERE, false, Fault(9));
    }
    for level in [2, 3] {
        let pages = path_with(level, RW | LARGE | 1 << 12);
        add(format!("a large page with PAT, level {level}"), pages.clone(), HERE + MARKED, false, Word(MARK));
        add(format!("its last word in memory, level {level}"), pages, HERE + END - 8, false, Word(0));
        let readonly = path_with(level, 1 | LARGE);
        add(format!("write, a large page, level {level}"), readonly, HERE + MARKED, true, Fault(3));
        for bit in [52, 58, 59, 62] {
            add(format!("a large page with bit {bit}, level {level}"), path_with(level, RW | LARGE | 1 << bit), HERE + MARKED, false, Word(MARK));
        }
    }
    // A gigabyte of which the Guest has two megabytes; two megabytes just beyond.
    add("1 GiB over the end".into(), path_with(3, RW | LARGE), HERE + END, false, Dies("mapped to bad guest-physical"));
    add("the last of 1 GiB".into(), path_with(3, RW | LARGE), HERE + (1 << 30) - 8, false, Dies("mapped to bad guest-physical"));
    add("the second GiB".into(), path_with(3, RW | LARGE | 1 << 30), HERE, false, Dies("mapped to bad guest-physical"));
    add("the highest GiB".into(), path_with(3, RW | LARGE | 0x000f_ffff_c000_0000), HERE, false, Dies("mapped to bad guest-physical"));
    add("2 MiB beyond".into(), path_with(2, RW | LARGE | END), HERE, false, Dies("mapped to bad guest-physical"));
    add("the highest 2 MiB".into(), path_with(2, RW | LARGE | 0x000f_ffff_ffe0_0000), HERE, false, Dies("mapped to bad guest-physical"));
    // The table maps itself: the last slot of the top-level table leads to the table, so that its
    // own entries are a page of data. Read, write, and read-only.
    let own = 0xffff_0000_0000_0000 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12;
    add("self-map, its own entry".into(), vec![(SLOT, ROOT | RW | 0x20)], own + 8 * 300, false, Word(ROOT | RW | 0x20));
    add("self-map, read-only".into(), vec![(SLOT, ROOT | 1)], own, true, Fault(3));
    add("self-map, not executable, read".into(), vec![(SLOT, ROOT | RW | NX)], own + 8 * 299, false, Word(0));
    // Where the Guest's tables and the program's rights meet.
    add("ring 1 in ring 3's page".into(), vec![(MARKED, MARK)], USER_DATA, false, Word(0));
    tries
}

pub fn evil_tables(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let tries = tries();
        for (name, entries, address, write, comes) in &tries {
            let mut guest = Bare::new()?;
            for (place, value) in entries {
                guest.write(*place, *value);
            }
            let step = if *write {
                guest.poke(*address, 1)
            } else {
                guest.peek(*address)
            };
            let end = guest.run()?;
            let outcome = guest.outcome(step);
            let fits = match (comes, &outcome, &end) {
                (Word(word), Outcome::Done(got), End::Off) => word == got,
                (Fault(code), Outcome::Trapped(trap), End::Off) => {
                    (trap.vector, trap.error) == (14, *code)
                        && guest.after(step).fault_address == *address
                }
                (Dies(text), Outcome::Never, End::Dead(reason)) => reason.contains(text),
                _ => false,
            };
            ensure!(fits, "{name}: {outcome:x?}, {end:?}, not {comes:x?}");
        }
        self_map()?;
        bad_roots()?;
        execution()?;
        bench
            .control
            .say("note", &format!("{} entries", tries.len()))
    })
}

/// A Guest that changes its tables through themselves: stronger without a flush, weaker with one.
fn self_map() -> Result<()> {
    let own = 0xffff_0000_0000_0000 | 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12;
    let mut guest = Bare::new()?;
    guest.write(SLOT, ROOT | RW);
    for (place, value) in path().into_iter().skip(1) {
        guest.write(place, value);
    }
    let there = 0xffff_0000_0000_0000 | 301 << 39;
    let before = guest.peek(there);
    guest.poke(own + 8 * 301, TABLES[0] | RW);
    let mapped = guest.peek(there);
    // Read-only from now on, by itself; then writable again, which it must do elsewhere.
    guest.poke(own + 8 * 300, ROOT | 1);
    guest.call(5, [1, 0, 0, 0]);
    let refused = guest.poke(own + 8 * 301, 0);
    guest.poke(LINEAR + SLOT, ROOT | RW);
    let again = guest.poke(own + 8 * 301, 0);
    guest.call(5, [1, 0, 0, 0]);
    let gone = guest.peek(there);
    guest.survive()?;
    let vector = |step| match guest.outcome(step) {
        Outcome::Trapped(trap) => Some((trap.vector, trap.error)),
        _ => None,
    };
    ensure!(vector(before) == Some((14, 0)), "mapped before it was");
    ensure!(
        guest.outcome(mapped) == Outcome::Done(MARK),
        "not mapped through the tables themselves: {:?}",
        guest.outcome(mapped)
    );
    ensure!(vector(refused) == Some((14, 3)), "written though read-only");
    ensure!(
        matches!(guest.outcome(again), Outcome::Done(_)),
        "made stronger, and yet: {:?}",
        guest.outcome(again)
    );
    ensure!(vector(gone) == Some((14, 0)), "there after a flush");
    Ok(())
}

/// Roots that lead nowhere, at the start and later.
fn bad_roots() -> Result<()> {
    for root in [0, FREE, END - PAGE] {
        let mut guest = Bare::new()?;
        guest.start[3] = root;
        dies(&mut guest, &format!("root {root:#x}"), &["trap 14"])?;
        let mut guest = Bare::new()?;
        guest.call(4, [root, 0, 0, 0]);
        guest.call(5, [1, 0, 0, 0]);
        let texts = ["trap 14", "no stack"];
        dies(&mut guest, &format!("NEW_PGTABLE {root:#x}"), &texts)?;
    }
    // Its own kernel taken away, by itself.
    let mut guest = Bare::new()?;
    guest.poke(LINEAR + ROOT + 8 * (LINEAR >> 39 & 511), 0);
    guest.call(5, [1, 0, 0, 0]);
    dies(&mut guest, "no kernel left", &["trap 14", "no stack"])
}

fn dies(guest: &mut Bare, what: &str, texts: &[&str]) -> Result<()> {
    match guest.run().with_context(|| what.to_owned())? {
        End::Dead(reason) if texts.iter().any(|text| reason.contains(text)) => Ok(()),
        other => bail!("{what}: {other:?}, not dead of {texts:?}"),
    }
}

/// Execution: of what must not be executed, and of ring 3's pages by ring 1.
fn execution() -> Result<()> {
    let mut guest = Bare::new()?;
    for (place, value) in path_with(1, MARKED | RW | NX) {
        guest.write(place, value);
    }
    let mut with = guest.registers(Ring::One);
    with.rip = HERE;
    let no_execute = guest.go_with(&[], &with, 0);
    with.rip = USER_DATA;
    let users = guest.go_with(&[], &with, 0);
    with.rip = HERE + PAGE;
    let nothing = guest.go_with(&[], &with, 0);
    guest.survive()?;
    for (step, code, what) in [
        (no_execute, 0x11, "a page that may not be executed"),
        (users, 0x11, "ring 3's page, by ring 1"),
        (nothing, 0x10, "nothing"),
    ] {
        match guest.outcome(step) {
            Outcome::Trapped(trap) if (trap.vector, trap.error) == (14, code) => {}
            other => bail!("{what} executed: {other:?}"),
        }
    }
    Ok(())
}

/// Where the Guest's own addresses are, or the Switcher's: whatever comes is no secret.
fn known(address: u64, reserved: &[u64; 4]) -> bool {
    let [a, b, c, d] = *reserved;
    let ours = (LINEAR..LINEAR + END).contains(&address);
    ours || (a..b).contains(&address) || (c..d).contains(&address)
}

pub fn host_half(bench: &mut Bench) -> Result<()> {
    let long = bench.long();
    with_module(|| {
        let reserved = reserved()?;
        let mut addresses = Vec::new();
        // Every slot of the top-level table that the Host has its own things in, at its beginning,
        // a gigabyte on, in its middle, and at its end.
        for slot in 256..512_u64 {
            let base = 0xffff_0000_0000_0000 | slot << 39;
            addresses.extend([
                base,
                base + (1 << 30),
                base + (1 << 38),
                base + (1 << 39) - PAGE,
            ]);
        }
        // The top two gigabytes: the Host's text and data, its modules and fixed mappings.
        let step = if long { 1 << 16 } else { 1 << 21 };
        addresses.extend((0xffff_ffff_8000_0000..=u64::MAX - 8).step_by(step));
        // The CPU entry areas, page by page.
        addresses.extend((0..64).map(|page| 0xffff_fe00_0000_0000 + page * PAGE));
        // Beside the Switcher's pages: what else the Host has there.
        for border in reserved {
            addresses.extend((1..32).map(|page| border.wrapping_sub(page * PAGE)));
            addresses.extend((0..32).map(|page| border.wrapping_add(page * PAGE)));
        }
        // What only a Host with five levels has: there it is not even an address for a Guest.
        for slot in 256..512_u64 {
            addresses.push(0xfe00_0000_0000_0000 | slot << 48 | 1 << 47);
            addresses.push(0xfe00_0000_0000_0000 | slot << 48);
        }
        for slot in 0..256_u64 {
            addresses.push(slot << 48 | 1 << 47);
            addresses.push(slot << 48 | 0x8880_0000_0000);
        }
        addresses.retain(|address| !known(*address, &reserved));
        let total = addresses.len();
        for some in addresses.chunks(700) {
            let mut guest = Bare::new()?;
            // So that everything of the Guest's own is in the shadow.
            guest.peek(LINEAR);
            let steps: Vec<_> = some.iter().map(|at| (*at, guest.peek(*at))).collect();
            guest.survive()?;
            for (address, step) in steps {
                let Outcome::Trapped(trap) = guest.outcome(step) else {
                    bail!("{address:#x} was read: {:x?}", guest.outcome(step));
                };
                let canonical = matches!(address.cast_signed() >> 47, 0 | -1);
                let wanted = if canonical { (14, 0) } else { (13, 0) };
                let got = (trap.vector, trap.error);
                ensure!(got == wanted, "{address:#x}: {trap:?}");
            }
        }
        bench.control.say("note", &format!("{total} addresses"))
    })
}

/// Only this processor for this process.
pub(super) fn pin(cpus: impl Iterator<Item = usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

pub fn switcher_text(bench: &mut Bench) -> Result<()> {
    pin(std::iter::once(0))?;
    let result = with_module(|| into_the_text(bench));
    pin(0..host::cpus())?;
    result
}

/// Jumps to every byte of the Switcher's text, with data in the registers, and with what the
/// Switcher itself would have there.
fn into_the_text(bench: &mut Bench) -> Result<()> {
    let [text, _, pages, _] = reserved()?;
    // This CPU's pages: registers, state, IDT. The shared page is before those of the first CPU.
    let own = pages + PAGE;
    let stacks = [
        (LINEAR + DATA1, LINEAR + RING1_STACK - 512),
        (own, own + PAGE - 224),
        (LINEAR + DATA1, own + PAGE - 64),
    ];
    let (mut guests, mut died, mut hung, mut tried) = (0, 0, 0, 0_u64);
    for (number, (data, rsp)) in stacks.into_iter().enumerate() {
        // On its own pages as a stack nearly every trap is a Guest's end, because its tables have
        // nothing there: an ordinary run makes do with one byte in 31.
        let step = if number == 0 || bench.long() { 1 } else { 31 };
        let mut offset = 0;
        while offset < PAGE {
            guests += 1;
            let mut guest = Bare::new()?;
            guest.limit = std::time::Duration::from_millis(150) * host::patience();
            let first = offset;
            while offset < PAGE && guest.steps() < JUMPS {
                let mut with = guest.registers(Ring::One);
                with.rip = text + offset;
                with.rsp = rsp;
                with.general[RDI] = data;
                // Not null: there is a `mov ss, eax`, and the case `null-ss` says what QEMU makes
                // of that.
                with.general[RAX] = 0x18;
                guest.go_with(&[], &with, 0);
                offset += step;
                tried += 1;
            }
            let last = offset;
            let end = guest.run()?;
            let reached = first + step * guest.reached() as u64;
            match &end {
                End::Off => continue,
                End::Dead(_) => died += 1,
                End::Running => hung += 1,
                End::Restart => bail!("a restart from {reached:#x}"),
            }
            // On with the one after that which ended this Guest.
            let next = last.min(reached + step);
            tried -= (last - next) / step;
            offset = next;
        }
    }
    // Ring 3 gets in nowhere.
    let mut guest = Bare::new()?;
    guest.set_stack();
    let steps: Vec<_> = (0..PAGE)
        .step_by(8)
        .map(|offset| {
            let mut with = guest.registers(Ring::Three);
            with.rip = text + offset;
            guest.go_with(&[], &with, 0)
        })
        .collect();
    guest.survive()?;
    for step in steps {
        match guest.outcome(step) {
            Outcome::Trapped(trap) if (trap.vector, trap.error) == (14, 0x15) => {}
            other => bail!("ring 3 in the Switcher's text: {other:?}"),
        }
    }
    bench.control.say(
        "note",
        &format!("{tried} jumps by {guests} Guests, of which {died} died and {hung} were stopped"),
    )
}

/// The register page is a Guest's to write while it runs. Whatever it writes there, the next trap
/// overwrites what counts.
pub fn register_page(_: &mut Bench) -> Result<()> {
    pin(std::iter::once(0))?;
    let result = with_module(|| {
        let [_, _, pages, _] = reserved()?;
        let own = pages + PAGE;
        for value in [0, u64::MAX, 0x10, 1 << 63, own, LINEAR] {
            let mut guest = Bare::new()?;
            guest.set_stack();
            // From the top down: the frame is what was pushed last.
            for word in (0..512).rev() {
                guest.poke(own + 8 * word, value);
            }
            let call = guest.call(0, [0; 4]);
            let trap = guest.go(Ring::One, code!("mov rax, 77", "ud2"));
            // A forged frame, complete: ring 0's selectors, and a trap that the Host would take for
            // its own. Then a call at once.
            let mut with = guest.registers(Ring::One);
            with.general[RBP] = with.rsp;
            with.rsp = own + PAGE;
            let forged = guest.go_with(
                code!(
                    "push 0x18",
                    "push rsp",
                    "push 0x3002",
                    "push 0x10",
                    "push rdi",
                    "push -126",
                    "push -126",
                    "xor eax, eax",
                    "int 0x1f",
                    "mov rsp, rbp",
                ),
                &with,
                0,
            );
            let user = guest.go(Ring::Three, code!("int 0x80"));
            guest.survive().with_context(|| format!("{value:#x}"))?;
            ensure!(guest.outcome(call) == Outcome::Done(0), "a call went wrong");
            for (step, vector) in [(trap, 6), (forged, 3), (user, 0x80)] {
                match guest.outcome(step) {
                    Outcome::Trapped(trap) if trap.vector == vector => {}
                    other => bail!("{value:#x}, step {step}: {other:?}"),
                }
            }
            ensure!(guest.after(trap).general[0] == 77, "RAX is lost");
        }
        // The others of this CPU's pages can be read and not written; another CPU's are not there.
        let mut guest = Bare::new()?;
        let mut steps = Vec::new();
        for page in 0..1 + 3 * host::cpus() as u64 {
            let at = pages + page * PAGE + 8;
            steps.push((page, guest.peek(at), guest.poke(at, 0)));
        }
        guest.survive()?;
        for (page, read, write) in steps {
            let can = |step| matches!(guest.outcome(step), Outcome::Done(_));
            let wanted = match page {
                0 | 1 => (true, true),
                2 | 3 => (true, false),
                _ => (false, false),
            };
            let got = (can(read), can(write));
            ensure!(got == wanted, "page {page}: can be read, written: {got:?}");
        }
        Ok(())
    });
    pin(0..host::cpus())?;
    result
}
