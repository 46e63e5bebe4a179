// SPDX-License-Identifier: GPL-2.0-only

//! What lies where in the bare Guest that a plan is carried out in: see `bare.rs` of the crate
//! `inside`, which asserts that these numbers are its own.

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// The end of the Guest's memory, guest-physical.
pub const END: u64 = 512 * PAGE;
/// Where guest-physical 0 is mapped for ring 1.
pub const LINEAR: u64 = 0xffff_8880_0000_0000;
/// The top-level table.
pub const ROOT: u64 = PAGE;
/// The lowest table for ring 3's addresses.
pub const LOWER2: u64 = 7 * PAGE;
/// The stubs of the Guest's handlers, 16 bytes each.
pub const ENGINE: u64 = 8 * PAGE;
/// The top of the stack on which ring-1 instructions run.
pub const RING1_STACK: u64 = 14 * PAGE;
/// The top of the stack for traps from ring 3.
pub const TRAP_STACK: u64 = 16 * PAGE;
/// A page of data for ring 1.
pub const DATA1: u64 = 16 * PAGE;
/// Where ring 3 finds its page of data.
pub const USER_DATA: u64 = 0x40_0000;
/// The top of ring 3's stack.
pub const USER_STACK: u64 = 0x40_2000;
/// Pages that the engine does not use, up to [`STEPS`].
pub const FREE: u64 = 84 * PAGE;
/// Where the steps begin.
pub const STEPS: u64 = 128 * PAGE;

/// DMA records of the Guest's own.
pub const RECORDS: u64 = FREE;
/// A copy of the top-level table.
pub const OTHER_ROOT: u64 = FREE + PAGE;
/// Descriptors: zeros at first.
pub const SEGMENTS: u64 = FREE + 2 * PAGE;
/// A page that other hostile Guests have as well: keys in it lead to them.
pub const KEYS: u64 = FREE + 9 * PAGE;
/// Two pages of data that tables may lead to.
pub const TARGETS: u64 = FREE + 10 * PAGE;
/// Pages for tables, up to [`TABLES_END`].
pub const TABLES: u64 = FREE + 12 * PAGE;
/// The end of those.
pub const TABLES_END: u64 = FREE + 40 * PAGE;
/// Tables of levels 3, 2 and 1 for [`RACED`]; the Launcher changes entries of the last.
pub const RACED_TABLES: [u64; 3] = [FREE + 41 * PAGE, FREE + 42 * PAGE, FREE + 43 * PAGE];
/// The slot of the top-level table for [`RACED`].
pub const RACED_SLOT: u64 = 299;
/// Eight pages whose entries the Launcher changes while the Guest runs.
pub const RACED: u64 = 0xffff_0000_0000_0000 | RACED_SLOT << 39;

/// The handler of a vector, guest-virtual.
pub const fn handler(vector: u64) -> u64 {
    LINEAR + ENGINE + 16 * vector
}

/// The first slot of the top-level table that plans map something through.
pub const FIRST_SLOT: u64 = 300;
/// The end of those slots.
pub const END_SLOT: u64 = 500;
