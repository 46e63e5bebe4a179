// SPDX-License-Identifier: GPL-2.0-only

//! A program's ELF file, as the Guest's kernel reads it: the beginning of the file, and how long the
//! whole is. The first byte given says how much of it is there.

#![no_main]

use guest::elf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((missing, head)) = bytes.split_first() else {
        return;
    };
    let size = head.len() as u64 + u64::from(*missing);
    let Ok(program) = elf::parse(head, size) else {
        return;
    };
    let mut end = 0;
    let mut holds_entry = false;
    for segment in &program.segments {
        assert!(segment.address >= end, "{program:x?}");
        end = segment.address + segment.bytes;
        assert!(end <= abi::syscall::STACK_TOP);
        assert!(segment.file_bytes <= segment.bytes);
        assert!(segment.offset + segment.file_bytes <= size);
        assert!(!(segment.write && segment.execute));
        holds_entry |= segment.execute && (segment.address..end).contains(&program.entry);
    }
    assert!(holds_entry);
});
