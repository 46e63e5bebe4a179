// SPDX-License-Identifier: GPL-2.0-only

//! Asking the Host.

use core::arch::asm;

use abi::data::LguestData;
use abi::hypercall::{ABI_VERSION, FLUSH_ASYNC, INIT};

use crate::Global;

static DATA: Global<*mut LguestData> = Global::new(core::ptr::null_mut());

/// One hypercall: its number, its four arguments, and the Host's answer.
pub fn call(number: u64, arguments: [u64; 4]) -> u64 {
    let answer;
    // SAFETY: The trap changes RAX and nothing else of this program's registers. What the Host
    // does to this program's memory is what the caller asked for; a test Guest risks only itself.
    unsafe {
        asm!(
            "int 0x1f",
            inlateout("rax") number => answer,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("rcx") arguments[3],
        );
    }
    answer
}

/// The first call. From here on [`data`] is the shared page, and GS begins there.
pub fn init() {
    let address = call(INIT, [ABI_VERSION, 0, 0, 0]);
    DATA.set(address as *mut LguestData);
    // SAFETY: The instruction is allowed in ring 1 (the Host leaves CR4.FSGSBASE on), and nothing
    // in this program uses GS for anything else.
    unsafe { asm!("wrgsbase {}", in(reg) address) };
}

/// The page shared with the Host.
///
/// # Panics
///
/// Before [`init`].
pub fn data() -> *mut LguestData {
    let data = DATA.get();
    assert!(!data.is_null(), "the shared page is not known before INIT");
    data
}

/// A field of the shared page, read once.
#[macro_export]
macro_rules! shared {
    ($($field:tt)+) => {{
        let data = $crate::hypercall::data();
        // SAFETY: The page is mapped and aligned as long as the Guest lives.
        unsafe { (&raw const (*data).$($field)+).read_volatile() }
    }};
}

/// Writes a field of the shared page.
#[macro_export]
macro_rules! share {
    ($value:expr => $($field:tt)+) => {{
        let data = $crate::hypercall::data();
        let value = $value;
        // SAFETY: The page is mapped and aligned as long as the Guest lives.
        unsafe { (&raw mut (*data).$($field)+).write_volatile(value) }
    }};
}

/// Lets interrupts come: those that wait come at once.
pub fn enable_interrupts() {
    share!(0x200 => irq_enabled);
    if shared!(irq_pending) != 0 {
        call(FLUSH_ASYNC, [0; 4]);
    }
}

/// Holds interrupts back.
pub fn disable_interrupts() {
    share!(0 => irq_enabled);
}
