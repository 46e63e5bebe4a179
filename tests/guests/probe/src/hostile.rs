// SPDX-License-Identifier: GPL-2.0-only

//! One hypercall with whatever the command line says: `number=`, and `a=`, `b=`, `c=`, `d=` for
//! its arguments. An argument can be given relative to the end of memory (`end-1`, `end+0`), and
//! `record` is a DMA record in good order.

use rt::{boot, hypercall, memory, println, traps};

/// Makes the call. If the Guest lives on, it says what came back.
pub fn hostile() {
    let number = boot::number("number").expect("which hypercall?");
    let arguments = ["a", "b", "c", "d"].map(|name| argument(boot::option(name).unwrap_or("0")));
    if boot::option("into").is_some() {
        write_record();
    }
    let answer = hypercall::call(number, arguments);
    // A call may have gone well in itself, and yet have left something that cannot be used.
    let _ = traps::attempt_read(0x1234_5000);
    println!("lived on; the answer was {answer:#x}");
}

/// A number, decimal or `0x`, or a place relative to the end of memory and devices.
fn argument(text: &str) -> u64 {
    let number = |digits: &str| match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).expect("a number"),
        None => digits.parse().expect("a number"),
    };
    let end = boot::end();
    if text == "root" {
        memory::first_root()
    } else if let Some(rest) = text.strip_prefix("end-") {
        end - number(rest)
    } else if let Some(rest) = text.strip_prefix("end+") {
        end + number(rest)
    } else {
        number(text)
    }
}

/// Puts a DMA record at `into=`, with one piece at `piece=` of `bytes=` bytes.
fn write_record() {
    let place = argument(boot::option("into").unwrap_or("0"));
    let mut record = abi::dma::Dma {
        used_len: 0,
        reserved: 0,
        addr: [0; 16],
        len: [0; 16],
    };
    record.addr[0] = argument(boot::option("piece").unwrap_or("0"));
    record.len[0] = argument(boot::option("bytes").unwrap_or("16")) as u16;
    // SAFETY: The test names a place in this Guest's own memory that nothing else uses.
    unsafe { memory::linear::<abi::dma::Dma>(place).write_volatile(record) };
}
