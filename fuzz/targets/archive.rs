// SPDX-License-Identifier: GPL-2.0-only

//! An archive, as the Guest's kernel reads its initial disk: it comes to an end, and no byte belongs
//! to two files.

#![no_main]

use guest::cpio::Items;
use libfuzzer_sys::fuzz_target;

/// Bytes of a header.
const HEADER: usize = 110;

fuzz_target!(|bytes: &[u8]| {
    let mut used = 0;
    for (n, item) in Items::new(bytes).enumerate() {
        assert!(n < bytes.len() / HEADER + 1, "it has no end");
        let Ok(item) = item else {
            continue;
        };
        used += HEADER + item.name.len() + 1 + item.bytes.len();
        assert!(used <= bytes.len());
        let files = bytes.as_ptr_range();
        let file = item.bytes.as_ptr_range();
        assert!(files.start <= file.start && file.end <= files.end);
    }
});
