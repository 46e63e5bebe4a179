// SPDX-License-Identifier: GPL-2.0-only

//! A kernel's ELF file, as the Launcher reads it. What it takes it can load: every segment's bytes
//! are in the file and fit what is mapped, no two share a page, and the first instruction is in one.

#![no_main]

use abi::addresses::PAGE_SIZE;
use launcher::kernel::Kernel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(kernel) = Kernel::parse(bytes.to_vec()) else {
        return;
    };
    let mut pages = Vec::new();
    for (segment, bytes) in kernel.segments() {
        let size = segment.bytes();
        assert!(size > 0 && bytes.len() as u64 <= size);
        assert_eq!(segment.virt().offset(), segment.phys().offset());
        // The two kinds of address have nothing to do with each other.
        for (kind, start) in [
            ("virtual", segment.virt().0),
            ("physical", segment.phys().0),
        ] {
            let last = start.checked_add(size - 1).expect("it ends somewhere");
            pages.push((kind, start / PAGE_SIZE, last / PAGE_SIZE));
        }
    }
    pages.sort_unstable();
    for pair in pages.windows(2) {
        assert!(
            pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1,
            "{pages:x?}"
        );
    }
    assert!(kernel.has_code_at(kernel.entry().0));
    // What the Launcher says of it with --verbose.
    assert!(!kernel.to_string().is_empty());
});
