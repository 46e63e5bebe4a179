// SPDX-License-Identifier: GPL-2.0-only

//! The initial disk: what the boot information says of it, and what is there.

use rt::memory::{PAGE, linear};
use rt::{boot, println};

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
    // Every byte counts by its place, so that none can change places with another.
    let mut sum = 0_u64;
    for place in 0..bytes {
        // SAFETY: The byte is in memory, which is mapped, and nobody else uses it.
        let byte = unsafe { linear::<u8>(start + place).read_volatile() };
        sum = sum.wrapping_mul(31).wrapping_add(u64::from(byte));
    }
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
