// SPDX-License-Identifier: GPL-2.0-only

//! The Guest's memory: where things lie in it, free pages, and page tables.

use abi::boot::LINEAR_BASE;

use crate::{Global, boot};

/// Where the linker script puts guest-physical 0, guest-virtual.
pub const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// In a table's entry: it is valid.
pub const PRESENT: u64 = 1;
/// It may be written.
pub const WRITABLE: u64 = 1 << 1;
/// Ring 3 may use it.
pub const USER: u64 = 1 << 2;
/// It has been used.
pub const ACCESSED: u64 = 1 << 5;
/// It has been written.
pub const DIRTY: u64 = 1 << 6;
/// It maps 2 MiB, in a table of the second level.
pub const LARGE: u64 = 1 << 7;
/// It may not be executed.
pub const NO_EXECUTE: u64 = 1 << 63;
/// The bits of an entry that are an address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The guest-physical address of something that lies in the kernel's image, in bytes.
pub fn physical<T>(pointer: *const T) -> u64 {
    (pointer as u64).wrapping_sub(IMAGE_BASE)
}

/// Where a guest-physical address is seen.
pub fn linear<T>(physical: u64) -> *mut T {
    (LINEAR_BASE + physical) as *mut T
}

static NEXT_FREE: Global<u64> = Global::new(0);

/// Takes a free page, full of zeros; gives its guest-physical address.
pub fn page() -> u64 {
    pages(1, PAGE)
}

/// Takes that many pages that lie together on a boundary of `align` bytes, full of zeros; gives
/// the guest-physical address of the first.
pub fn pages(count: u64, align: u64) -> u64 {
    let info = boot::info();
    let start = NEXT_FREE.get().max(info.free_start).next_multiple_of(align);
    let end = start + count * PAGE;
    assert!(end <= info.free_end, "out of memory");
    NEXT_FREE.set(end);
    // SAFETY: The pages lie in the free part of memory and were given to nobody before.
    unsafe { linear::<u8>(start).write_bytes(0, (count * PAGE) as usize) };
    start
}

/// The tables that the Launcher made, guest-physical.
pub fn first_root() -> u64 {
    boot::info().page_table_root
}

/// The place of an entry of a page table, which lies in this Guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(*mut u64);

impl Entry {
    /// Number `index` of the table at a guest-physical address.
    ///
    /// # Panics
    ///
    /// When that is not in this Guest's memory.
    pub fn of_table(table: u64, index: u64) -> Self {
        assert!(
            table < boot::info().memory_bytes && index < 512,
            "no table at {table:#x}"
        );
        Self(linear(table + index * 8))
    }
}

/// The place of the entry for a virtual address in the last table but `level`: 1 is the level
/// that maps 4 KiB, 2 the one that maps 2 MiB. Tables on the way are made, open to all rings.
pub fn entry(root: u64, address: u64, level: u32) -> Entry {
    let mut table = root & ADDRESS;
    for step in (level..=4).rev() {
        let index = (address >> (12 + 9 * (step - 1))) & 511;
        let place = Entry::of_table(table, index);
        if step == level {
            return place;
        }
        let mut value = read_entry(place);
        if value & PRESENT == 0 {
            value = page() | PRESENT | WRITABLE | USER;
            write_entry(place, value);
        }
        assert!(
            value & LARGE == 0 || step == 4,
            "{address:#x} lies in a large page"
        );
        table = value & ADDRESS;
    }
    unreachable!("a level is 1 to 4");
}

/// Reads an entry.
pub fn read_entry(place: Entry) -> u64 {
    // SAFETY: `Entry::of_table` has checked that the place is mapped, and it is aligned.
    unsafe { place.0.read_volatile() }
}

/// Writes an entry. Whoever makes one weaker must flush.
pub fn write_entry(place: Entry, value: u64) {
    // SAFETY: As in `read_entry`; what is mapped by it is the business of the test.
    unsafe { place.0.write_volatile(value) };
}

/// A copy of a top-level table; gives its guest-physical address.
pub fn copy_root(root: u64) -> u64 {
    let copy = page();
    // SAFETY: Both are whole pages of this Guest, and the new one is nobody else's.
    unsafe { linear::<u8>(copy).copy_from(linear::<u8>(root), PAGE as usize) };
    copy
}
