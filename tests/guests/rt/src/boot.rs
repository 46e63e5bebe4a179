// SPDX-License-Identifier: GPL-2.0-only

//! What the Launcher left in memory.

use abi::addresses::PAGE_SIZE;
use abi::boot::{BOOT_INFO, BOOT_MAGIC, BootInfo, COMMAND_LINE, LINEAR_BASE};
use abi::devices::{Descriptor, MAX_DEVICES};

/// What the Launcher says of the machine.
pub fn info() -> BootInfo {
    let address = (LINEAR_BASE + BOOT_INFO) as *const BootInfo;
    // SAFETY: The agreement puts a BootInfo there, mapped and aligned, and nobody changes it.
    let info = unsafe { address.read() };
    assert!(
        info.magic == BOOT_MAGIC,
        "no BootInfo at 0: {:#x}",
        info.magic
    );
    info
}

/// The end of all that belongs to this Guest, guest-physical: its memory, and behind it the page of
/// descriptors and the pages of the devices.
pub fn end() -> u64 {
    let info = info();
    if info.devices == 0 {
        return info.memory_bytes;
    }
    let list = (LINEAR_BASE + info.devices) as *const Descriptor;
    let own = |index| {
        // SAFETY: The Launcher has put a whole page of them there.
        let descriptor = unsafe { list.add(index).read_volatile() };
        descriptor.first + u64::from(descriptor.pages) * PAGE_SIZE
    };
    let last = (0..MAX_DEVICES).map(own).max().unwrap_or(0);
    last.max(info.devices + PAGE_SIZE)
}

/// The command line.
pub fn command_line() -> &'static str {
    let length = info().command_line_bytes as usize;
    let address = (LINEAR_BASE + COMMAND_LINE) as *const u8;
    // SAFETY: The agreement puts that many bytes there, in a page that is nobody else's.
    let bytes = unsafe { core::slice::from_raw_parts(address, length) };
    core::str::from_utf8(bytes)
        .unwrap_or("")
        .trim_end_matches('\0')
}

/// The value of `name=value` on the command line.
pub fn option(name: &str) -> Option<&'static str> {
    let mut words = command_line().split(' ');
    words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The number given as `name=number` on the command line, decimal or with `0x`.
pub fn number(name: &str) -> Option<u64> {
    let text = option(name)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
