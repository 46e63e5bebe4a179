// SPDX-License-Identifier: GPL-2.0-only

//! Traps and interrupts in ring 1.
//!
//! Every vector has a stub that pushes what is missing, so that all arrive in one function with
//! one frame. What that function does can be changed by a test: see [`expect`].

use core::arch::global_asm;

use abi::hypercall::{IdtFlags, LOAD_IDT_ENTRY, NEXT_IRQ};
use abi::segments::FIRST_IRQ_VECTOR;

use crate::{Global, hypercall, share, shared};

/// A trap as the handler sees it: lowest address first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP and R8 to R15.
    pub registers: [u64; 15],
    /// Which trap.
    pub vector: u64,
    /// What the processor says about it; 0 where it says nothing.
    pub error: u64,
    /// The instruction.
    pub rip: u64,
    /// Its code segment, whose lowest bits are the ring.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack.
    pub rsp: u64,
    /// The stack's segment.
    pub ss: u64,
}

/// The place of RAX in [`Frame::registers`].
pub const RAX: usize = 0;

/// What a test wants done with traps: `true` when it has dealt with one.
pub type Handler = fn(&mut Frame) -> bool;

/// Vectors that a Guest can get: exceptions, the system call and interrupt lines 0 to 7.
const VECTORS: [u8; 26] = [
    0, 1, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19, 20, 21, 0x80, 32, 33, 34, 35, 36, 37, 38,
    39,
];

// A stub has 16 bytes: push 0 if there is no error code, push the vector, jump.
global_asm!(
    ".globl rt_stubs, rt_stubs_end, rt_window, rt_window_end",
    ".balign 16",
    "rt_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17) && (vector != 21)",
    "push 0",
    ".endif",
    ".byte 0x68",
    ".long vector",
    "jmp rt_trap",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "rt_stubs_end:",
    "rt_trap:",
    "push r15",
    "push r14",
    "push r13",
    "push r12",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rbp",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rbx",
    "push rax",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {trap}",
    "mov rsp, rbx",
    // The answer says whether interrupts are to be on after the return.
    "test eax, eax",
    "pop rax",
    "pop rbx",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "pop rbp",
    "pop r8",
    "pop r9",
    "pop r10",
    "pop r11",
    "pop r12",
    "pop r13",
    "pop r14",
    "pop r15",
    // LEA leaves the flags of the test alone.
    "lea rsp, [rsp + 16]",
    "jnz rt_window",
    "iretq",
    // The window: no register is used, so the Host can send us back to its beginning.
    "rt_window:",
    "mov dword ptr gs:[0], 0x200",
    "cmp dword ptr gs:[4], 0",
    "jne 2f",
    "rt_window_end:",
    "iretq",
    // Something waits: take it here, as if it had come on this frame.
    "2:",
    "mov dword ptr gs:[0], 0",
    "push 0",
    "push {wake}",
    "jmp rt_trap",
    trap = sym trap,
    wake = const WAKE,
);

unsafe extern "C" {
    static rt_stubs: u8;
    static rt_stubs_end: u8;
    static rt_window: u8;
    static rt_window_end: u8;
}

/// The vector that stands for "ask the Host which interrupts wait".
const WAKE: u64 = 0x1f;

static HANDLER: Global<Handler> = Global::new(|_| false);
static IRQS: Global<[u64; 8]> = Global::new([0; 8]);

/// The address of a vector's stub.
pub fn stub(vector: u8) -> u64 {
    (&raw const rt_stubs) as u64 + 16 * u64::from(vector)
}

/// Tells the Host where the stubs are. The stack for traps from ring 3 is set up by
/// [`crate::user`].
pub fn install() {
    let at = |symbol: *const u8| symbol as u64;
    share!(at(&raw const rt_window) => window.start);
    share!(at(&raw const rt_window_end) => window.end);
    share!(at(&raw const rt_stubs) => stubs.start);
    share!(at(&raw const rt_stubs_end) => stubs.end);
    for vector in VECTORS {
        let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 1 };
        let direct = vector == 0x80;
        load(vector, stub(vector), dpl, direct, !direct);
    }
}

/// Sets one vector.
pub fn load(vector: u8, handler: u64, dpl: u64, direct: bool, mask: bool) {
    let mut flags = dpl;
    if direct {
        flags |= IdtFlags::DIRECT.bits();
    }
    if mask {
        flags |= IdtFlags::MASK.bits();
    }
    hypercall::call(LOAD_IDT_ENTRY, [u64::from(vector), handler, flags, 0]);
}

/// From now on traps are shown to this function first.
pub fn expect(handler: Handler) {
    HANDLER.set(handler);
}

/// How often each of the interrupt lines 0 to 7 has come.
pub fn irqs() -> [u64; 8] {
    IRQS.get()
}

/// Every trap. Gives 1 when interrupts are to be on after the return.
extern "C" fn trap(frame: &mut Frame) -> u32 {
    if frame.vector == WAKE {
        loop {
            let handler = hypercall::call(NEXT_IRQ, [0; 4]);
            if handler == 0 {
                return 1;
            }
            interrupt((handler - stub(0)) / 16);
        }
    }
    let first = u64::from(FIRST_IRQ_VECTOR);
    if (first..first + 8).contains(&frame.vector) {
        interrupt(frame.vector);
    } else if !(HANDLER.get())(frame) {
        panic!(
            "trap {} error {:#x} at {:#x} (ring {}), address {:#x}",
            frame.vector,
            frame.error,
            frame.rip,
            frame.cs & 3,
            shared!(fault_address),
        );
    }
    // Traps by DIRECT leave the flag alone, and the frame does not show it.
    if frame.vector == 0x80 {
        return 0;
    }
    u32::from(frame.rflags & abi::segments::RFLAGS_IF != 0)
}

/// Counts an interrupt that came at a vector.
fn interrupt(vector: u64) {
    let line = (vector - u64::from(FIRST_IRQ_VECTOR)) as usize;
    let mut counts = IRQS.get();
    counts[line % 8] += 1;
    IRQS.set(counts);
}

/// A fault that an attempt ran into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which trap.
    pub vector: u64,
    /// What the processor says about it.
    pub error: u64,
    /// The address, of a page fault.
    pub address: u64,
    /// The code segment it happened in.
    pub cs: u64,
}

global_asm!(
    // Reads or writes at RDI; RAX is 1 when it went well. The trap function sends us to
    // rt_attempt_failed instead.
    ".globl rt_attempt_read, rt_attempt_write, rt_attempt_failed",
    "rt_attempt_read:",
    "mov rax, [rdi]",
    "mov [rsi], rax",
    "mov eax, 1",
    "ret",
    "rt_attempt_write:",
    "mov [rdi], rsi",
    "mov eax, 1",
    "ret",
    "rt_attempt_failed:",
    "xor eax, eax",
    "ret",
);

unsafe extern "C" {
    fn rt_attempt_read(address: u64, value: *mut u64) -> u64;
    fn rt_attempt_write(address: u64, value: u64) -> u64;
    static rt_attempt_failed: u8;
}

static FAULT: Global<Option<Fault>> = Global::new(None);

fn attempt_handler(frame: &mut Frame) -> bool {
    let at_attempt = [
        rt_attempt_read as *const () as u64,
        rt_attempt_write as *const () as u64,
    ];
    if !at_attempt.contains(&frame.rip) {
        return false;
    }
    FAULT.set(Some(Fault {
        vector: frame.vector,
        error: frame.error,
        address: shared!(fault_address),
        cs: frame.cs,
    }));
    frame.rip = (&raw const rt_attempt_failed) as u64;
    true
}

/// Tries to read eight bytes.
///
/// # Errors
///
/// The fault that it ran into.
pub fn attempt_read(address: u64) -> Result<u64, Fault> {
    expect(attempt_handler);
    let mut value = 0;
    // SAFETY: The function reads at an address that may be anything; a fault is caught. What it
    // writes to is a live variable.
    let done = unsafe { rt_attempt_read(address, &raw mut value) };
    finish(done).map(|()| value)
}

/// Tries to write eight bytes.
///
/// # Errors
///
/// The fault that it ran into.
pub fn attempt_write(address: u64, value: u64) -> Result<(), Fault> {
    expect(attempt_handler);
    // SAFETY: The test chose the address: it is one that nothing here uses, or one that must
    // fault.
    finish(unsafe { rt_attempt_write(address, value) })
}

fn finish(done: u64) -> Result<(), Fault> {
    expect(|_| false);
    if done == 1 {
        return Ok(());
    }
    Err(FAULT.get().expect("a failed attempt leaves a fault"))
}
