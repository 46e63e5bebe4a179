// SPDX-License-Identifier: GPL-2.0-only

//! Memory and page tables, as a Guest's kernel changes them.

use core::arch::asm;

use abi::hypercall::{FLUSH_ADDRESS, FLUSH_TLB, NEW_PGTABLE};
use rt::memory::{
    self, ACCESSED, DIRTY, Entry, LARGE, NO_EXECUTE, PAGE, PRESENT, WRITABLE, copy_root, entry,
    linear, read_entry, write_entry,
};
use rt::{boot, hypercall, println, traps};

/// An address in the upper half that nothing else uses.
const HIGH: u64 = 0xffff_a000_0000_0000;
/// One in the lower half.
const LOW: u64 = 0x7000_0000;

/// Reads a word at an address that is mapped.
fn read(address: u64) -> u64 {
    match traps::attempt_read(address) {
        Ok(value) => value,
        Err(fault) => panic!("cannot read {address:#x}: {fault:?}"),
    }
}

/// Writes a word at an address that is mapped.
fn write(address: u64, value: u64) {
    if let Err(fault) = traps::attempt_write(address, value) {
        panic!("cannot write {address:#x}: {fault:?}");
    }
}

/// Every free page of memory, written and read again.
pub fn memory() {
    let info = boot::info();
    let mut pages = 0_u64;
    for address in (info.free_start..info.free_end).step_by(PAGE as usize) {
        // SAFETY: The page is free and mapped by the Launcher's tables.
        unsafe { linear::<u64>(address).write_volatile(!address) };
        pages += 1;
    }
    for address in (info.free_start..info.free_end).step_by(PAGE as usize) {
        // SAFETY: As above.
        let value = unsafe { linear::<u64>(address).read_volatile() };
        assert!(value == !address, "{address:#x} holds {value:#x}");
    }
    if boot::option("then") == Some("spin") {
        crate::spin();
    }
    println!("good: {pages} pages of {} bytes in all", info.memory_bytes);
}

/// Changes of page tables, each with the flush it needs and no other.
pub fn tables() {
    let root = memory::first_root();
    let [one, two] = [memory::page(), memory::page()];
    // SAFETY: Both pages are fresh and this program's own.
    unsafe {
        linear::<u64>(one).write_volatile(111);
        linear::<u64>(two).write_volatile(222);
    }

    // Stronger needs no call: nothing, then read-only, then writable.
    let place = entry(root, HIGH, 1);
    assert!(traps::attempt_read(HIGH).is_err(), "nothing was mapped yet");
    write_entry(place, one | PRESENT | NO_EXECUTE);
    assert!(read(HIGH) == 111);
    assert!(
        traps::attempt_write(HIGH, 1).is_err(),
        "it was mapped read-only"
    );
    write_entry(place, one | PRESENT | WRITABLE | NO_EXECUTE);
    write(HIGH, 112);
    // SAFETY: The page is mapped there as well.
    let value = unsafe { linear::<u64>(one).read_volatile() };
    assert!(value == 112, "the write went elsewhere, here is {value}");

    // Accessed and dirty, kept as a processor keeps them.
    let value = read_entry(place);
    assert!(
        value & (ACCESSED | DIRTY) == ACCESSED | DIRTY,
        "after a write: {value:#x}"
    );
    write_entry(place, one | PRESENT | WRITABLE);
    hypercall::call(FLUSH_ADDRESS, [HIGH, 0, 0, 0]);
    assert!(
        read_entry(place) & (ACCESSED | DIRTY) == 0,
        "set by the flush itself"
    );
    assert!(read(HIGH) == 112);
    let value = read_entry(place);
    assert!(
        value & (ACCESSED | DIRTY) == ACCESSED,
        "after a read: {value:#x}"
    );
    write(HIGH, 113);
    assert!(
        read_entry(place) & DIRTY != 0,
        "after a write that follows a read"
    );

    // Another page at the same address, flushed by address.
    write_entry(place, two | PRESENT | WRITABLE);
    hypercall::call(FLUSH_ADDRESS, [HIGH, 0, 0, 0]);
    assert!(
        read(HIGH) == 222,
        "the old page is still there after FLUSH_ADDRESS"
    );
    // Weaker: gone, by a flush of everything.
    write_entry(place, 0);
    hypercall::call(FLUSH_TLB, [1, 0, 0, 0]);
    assert!(
        traps::attempt_read(HIGH).is_err(),
        "it was taken away and flushed"
    );

    // The lower half, flushed by itself.
    let place = entry(root, LOW, 1);
    write_entry(place, one | PRESENT | WRITABLE);
    assert!(read(LOW) == 113);
    write_entry(place, two | PRESENT | WRITABLE);
    hypercall::call(FLUSH_TLB, [0, 0, 0, 0]);
    assert!(
        read(LOW) == 222,
        "the old page is still there after a flush of the lower half"
    );

    large(root);
    roots(root, one, two);
    println!("good: the tables were followed");
}

/// A page of 2 MiB, read at both ends and across its middle.
fn large(root: u64) {
    let block = memory::pages(512, 512 * PAGE);
    let address = HIGH + (1 << 30);
    write_entry(entry(root, address, 2), block | PRESENT | WRITABLE | LARGE);
    for offset in [0, 8, 0x0f_fff8, 0x10_0000, 0x1f_f000, 0x1f_fff8] {
        write(address + offset, offset ^ 0x5555);
        // SAFETY: The block is this program's own and mapped by the Launcher as well.
        let value = unsafe { linear::<u64>(block + offset).read_volatile() };
        assert!(
            value == offset ^ 0x5555,
            "at {offset:#x} of a large page: {value:#x}"
        );
    }
    let value = read_entry(entry(root, address, 2));
    assert!(
        value & (ACCESSED | DIRTY) == ACCESSED | DIRTY,
        "a large page's entry: {value:#x}"
    );
}

/// Two sets of tables that differ at one address.
fn roots(root: u64, one: u64, two: u64) {
    let other = copy_root(root);
    // The lower half of the copy is its own.
    for index in 0..256 {
        write_entry(Entry::of_table(other, index), 0);
    }
    write_entry(entry(other, LOW, 1), one | PRESENT | WRITABLE);
    write_entry(entry(root, LOW, 1), two | PRESENT | WRITABLE);
    hypercall::call(FLUSH_TLB, [1, 0, 0, 0]);
    for round in 0..50 {
        hypercall::call(NEW_PGTABLE, [other, 0, 0, 0]);
        assert!(
            read(LOW) == 113,
            "round {round}: the wrong page under the second tables"
        );
        hypercall::call(NEW_PGTABLE, [root, 0, 0, 0]);
        assert!(
            read(LOW) == 222,
            "round {round}: the wrong page under the first tables"
        );
    }
    // More sets than the Host may want to remember, in turn.
    let mut many = [0; 12];
    for (number, slot) in many.iter_mut().enumerate() {
        *slot = copy_root(root);
        for index in 0..256 {
            write_entry(Entry::of_table(*slot, index), 0);
        }
        let page = memory::page();
        // SAFETY: The page is fresh and this program's own.
        unsafe { linear::<u64>(page).write_volatile(1000 + number as u64) };
        write_entry(entry(*slot, LOW, 1), page | PRESENT);
    }
    for round in 0..5 {
        for (number, root) in many.iter().enumerate() {
            hypercall::call(NEW_PGTABLE, [*root, 0, 0, 0]);
            let value = read(LOW);
            assert!(
                value == 1000 + number as u64,
                "round {round}, set {number}: {value}"
            );
        }
    }
    hypercall::call(NEW_PGTABLE, [root, 0, 0, 0]);
}

/// The time-stamp counter, on both sides of one read.
fn timed_read(address: u64) -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: The caller has mapped the address; RDTSC changes RAX and RDX only.
    unsafe {
        asm!(
            "rdtsc",
            "mov esi, eax",
            "mov rcx, [rdi]",
            "rdtsc",
            out("rsi") before,
            out("rax") after,
            out("rdx") _,
            out("rcx") _,
            in("rdi") address,
        );
    }
    (after as u32).wrapping_sub(before as u32).into()
}

/// Measures a page fault that only the shadow lacks an entry for: the fewest ticks seen. The page
/// is mapped for reading, its entry has been used before, and the entry beside it, which is left
/// alone, keeps the shadow's table.
pub fn shadow_fault() {
    let rounds = boot::number("rounds").unwrap_or(5);
    let root = memory::first_root();
    let [page, beside] = [memory::page(), memory::page()];
    write_entry(entry(root, HIGH, 1), page | PRESENT | ACCESSED);
    let next = HIGH + 16 * PAGE;
    write_entry(entry(root, next, 1), beside | PRESENT | ACCESSED);
    read(HIGH);
    read(next);
    let mut best = u64::MAX;
    for round in 0..rounds {
        let mut least = u64::MAX;
        let mut most = 0;
        for _ in 0..1000 {
            hypercall::call(FLUSH_ADDRESS, [HIGH, 0, 0, 0]);
            let ticks = timed_read(HIGH);
            least = least.min(ticks);
            most = most.max(ticks);
        }
        println!("round {round}: {least} to {most}");
        best = best.min(least);
    }
    println!("good: shadow fault {best}");
}
