// SPDX-License-Identifier: GPL-2.0-only

//! The console: lines out, bytes in.

use core::fmt::{self, Write};

use abi::dma::{CONSOLE_IRQ, CONSOLE_KEY, Dma};
use abi::hypercall::{BIND_DMA, SEND_DMA};

use crate::memory::physical;
use crate::{Global, hypercall};

/// A page, so that no piece of a record crosses one.
#[repr(C, align(4096))]
struct Buffer([u8; 4096]);

/// A record that does not cross a page.
#[repr(C, align(256))]
struct Record(Dma);

const EMPTY: Dma = Dma {
    used_len: 0,
    reserved: 0,
    addr: [0; 16],
    len: [0; 16],
};

static OUT: Global<Buffer> = Global::new(Buffer([0; 4096]));
static OUT_USED: Global<usize> = Global::new(0);
static OUT_RECORD: Global<Record> = Global::new(Record(EMPTY));
static IN: Global<Buffer> = Global::new(Buffer([0; 4096]));
static IN_RECORD: Global<Record> = Global::new(Record(EMPTY));

/// The console as something that can be written to.
#[derive(Debug)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let used = OUT_USED.get();
            // SAFETY: `used` is less than the buffer's size: it is flushed when it is full.
            unsafe { OUT.pointer().cast::<u8>().add(used).write(byte) };
            OUT_USED.set(used + 1);
            if byte == b'\n' || used + 1 == 4096 {
                flush();
            }
        }
        Ok(())
    }
}

/// Sends what has been printed and not yet sent.
pub fn flush() {
    let used = OUT_USED.get();
    if used == 0 {
        return;
    }
    let mut record = EMPTY;
    record.addr[0] = physical(OUT.pointer());
    record.len[0] = used as u16;
    // SAFETY: The record is this module's, and the Host looks at it only during the call.
    unsafe { OUT_RECORD.pointer().write_volatile(Record(record)) };
    hypercall::call(
        SEND_DMA,
        [CONSOLE_KEY, physical(OUT_RECORD.pointer()), 0, 0],
    );
    OUT_USED.set(0);
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($words:tt)*) => {{
        use core::fmt::Write;
        // The console takes everything.
        let _ = writeln!($crate::console::Console, $($words)*);
    }};
}

/// Offers the Launcher a buffer for what is typed.
pub fn bind_input() {
    let mut record = EMPTY;
    record.addr[0] = physical(IN.pointer());
    record.len[0] = 4096;
    // SAFETY: Nobody knows the record yet.
    unsafe { IN_RECORD.pointer().write_volatile(Record(record)) };
    let line = u64::from(CONSOLE_IRQ);
    hypercall::call(
        BIND_DMA,
        [CONSOLE_KEY, physical(IN_RECORD.pointer()), 1, line],
    );
}

/// Takes what has been typed into `bytes`; gives how many there were. The buffer is free again.
pub fn take_input(bytes: &mut [u8]) -> usize {
    // SAFETY: The record is mapped and aligned; the Launcher may write it at any time, and the
    // one field that it uses as a signal is read once.
    let used = unsafe { (&raw const (*IN_RECORD.pointer()).0.used_len).read_volatile() };
    let used = (used as usize).min(4096).min(bytes.len());
    // SAFETY: The buffer is the Guest's until `used_len` is 0 again.
    unsafe { IN.pointer().cast::<u8>().copy_to(bytes.as_mut_ptr(), used) };
    // SAFETY: As above.
    unsafe { (&raw mut (*IN_RECORD.pointer()).0.used_len).write_volatile(0) };
    used
}

/// Makes the record for input name other memory, as a broken Guest would.
pub fn spoil_input(address: u64, bytes: u16) {
    let record = IN_RECORD.pointer();
    // SAFETY: The record is mapped and aligned; what the Launcher does with it is the test.
    unsafe {
        (&raw mut (*record).0.addr[0]).write_volatile(address);
        (&raw mut (*record).0.len[0]).write_volatile(bytes);
    }
}
