// SPDX-License-Identifier: GPL-2.0-only

//! The initial disk: what the boot information says of it, and what is there.

use rt::memory::{PAGE, linear};
use rt::{boot, println, start};

use crate::interrupts;

/// The sum of the disk's bytes. Each counts by its place, so that none can change places.
fn sum() -> u64 {
    let info = boot::info();
    let mut sum = 0_u64;
    for place in 0..info.initrd_bytes {
        // SAFETY: The byte is in memory, which is mapped, and nobody else uses it.
        let byte = unsafe { linear::<u8>(info.initrd + place).read_volatile() };
        sum = sum.wrapping_mul(31).wrapping_add(u64::from(byte));
    }
    sum
}

/// Says what the disk is, and restarts or ends as it is told.
pub fn lives() {
    let bytes = boot::info().initrd_bytes;
    println!("a life with {bytes} bytes, sum {:#x}", sum());
    interrupts::with_lines(|line| match line {
        "again" => start::restart(),
        _ => start::power_off(),
    });
}

/// Adds up the disk's bytes, looks at what is around it, and writes over it.
pub fn initial() {
    let info = boot::info();
    let (start, bytes) = (info.initrd, info.initrd_bytes);
    if bytes == 0 {
        assert!(start == 0, "no disk, but it is at {start:#x}");
        println!("good: there is no disk");
        return;
    }
    assert!(start % PAGE == 0, "a disk at {start:#x}");
    assert!(start >= info.free_end, "a disk in what is free");
    assert!(start + bytes <= info.memory_bytes, "a disk outside memory");
    let sum = sum();
    for place in start + bytes..info.memory_bytes {
        // SAFETY: As above.
        let byte = unsafe { linear::<u8>(place).read_volatile() };
        assert!(byte == 0, "{byte:#x} behind the disk, at {place:#x}");
    }
    for place in (start..start + bytes).step_by(8) {
        // SAFETY: As above; the last word ends in the disk's last page.
        unsafe { linear::<u64>(place).write_volatile(!place) };
    }
    for place in (start..start + bytes).step_by(8) {
        // SAFETY: As above.
        let word = unsafe { linear::<u64>(place).read_volatile() };
        assert!(word == !place, "{word:#x} at {place:#x}");
    }
    println!("good: a disk of {bytes} bytes, sum {sum:#x}");
}

/// Panics, and says where.
#[inline(never)]
pub fn named() {
    let here: fn() = named;
    panic!("I was at {:#x}", here as usize + 1);
}
