// SPDX-License-Identifier: GPL-2.0-only

//! The first instructions, and the last.

use core::arch::global_asm;
use core::fmt::Write;
use core::panic::PanicInfo;

use abi::hypercall::{MESSAGE_BYTES, Shutdown};

use crate::{boot, console, hypercall, memory, traps};

global_asm!(
    ".section .text.start, \"ax\"",
    ".globl rt_start",
    "rt_start:",
    "lea rsp, [rip + {stack} + {size}]",
    "xor ebp, ebp",
    "call {begin}",
    "ud2",
    ".text",
    stack = sym STACK,
    size = const STACK_BYTES,
    begin = sym begin,
);

/// Bytes of the stack that a Guest runs on.
const STACK_BYTES: usize = 64 * 1024;

#[repr(C, align(4096))]
struct Stack([u8; STACK_BYTES]);

static STACK: crate::Global<Stack> = crate::Global::new(Stack([0; STACK_BYTES]));

unsafe extern "Rust" {
    /// What the program does; made by [`crate::main!`].
    safe fn rt_main(command_line: &'static str);
}

/// Names the function that a Guest begins with. It gets the command line; when it comes back the
/// Guest powers off.
#[macro_export]
macro_rules! main {
    ($function:path) => {
        // SAFETY: No other function is called `rt_main`: a program uses this macro once.
        #[unsafe(no_mangle)]
        fn rt_main(command_line: &'static str) {
            $function(command_line)
        }
    };
}

extern "C" fn begin() -> ! {
    let line = boot::command_line();
    // A word of this kind has the test do even the first call by itself.
    if !line.split(' ').any(|word| word == "raw") {
        hypercall::init();
        traps::install();
    }
    rt_main(line);
    power_off()
}

/// Ends the Guest in good order.
pub fn power_off() -> ! {
    shutdown(Shutdown::PowerOff, "")
}

/// Asks to be started again.
pub fn restart() -> ! {
    shutdown(Shutdown::Restart, "")
}

/// Ends the Guest with last words, of which the first 256 bytes are heard.
pub fn crash(message: &str) -> ! {
    shutdown(Shutdown::Crash, message)
}

fn shutdown(how: Shutdown, message: &str) -> ! {
    console::flush();
    let address = memory::physical(message.as_ptr());
    hypercall::call(
        abi::hypercall::SHUTDOWN,
        [address, how as u64, message.len() as u64, 0],
    );
    // The Host never comes back from that call; if it does, nothing here can be relied on.
    loop {
        core::hint::spin_loop();
    }
}

/// A text of limited length that a panic is put into.
struct LastWords {
    bytes: [u8; MESSAGE_BYTES],
    used: usize,
}

static LAST_WORDS: crate::Global<LastWords> = crate::Global::new(LastWords {
    bytes: [0; MESSAGE_BYTES],
    used: 0,
});

impl Write for LastWords {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            if self.used < self.bytes.len() {
                self.bytes[self.used] = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    // SAFETY: This is the end of the program: nobody else uses the variable, and it is not used
    // again.
    let words = unsafe { &mut *LAST_WORDS.pointer() };
    let _ = write!(words, "{info}");
    let text = core::str::from_utf8(&words.bytes[..words.used]).unwrap_or("a panic");
    crash(text)
}
