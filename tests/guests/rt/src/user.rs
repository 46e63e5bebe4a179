// SPDX-License-Identifier: GPL-2.0-only

//! A few instructions in ring 3.

use core::arch::global_asm;

use abi::hypercall::SET_STACK;
use abi::segments::{GUEST_USER_CS, GUEST_USER_DS};

use crate::memory::{self, PRESENT, USER, WRITABLE, entry, write_entry};
use crate::traps::{Fault, Frame, RAX, expect};
use crate::{Global, hypercall, shared};

/// Where the instructions lie, guest-virtual.
pub const CODE: u64 = 0x40_0000;
/// A page that they may write, guest-virtual.
pub const DATA: u64 = 0x60_0000;

/// What the instructions are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Attempt {
    /// Read eight bytes.
    Read = 0,
    /// Write eight bytes.
    Write = 1,
    /// Jump there.
    Execute = 2,
    /// A hypercall.
    Hypercall = 3,
    /// Many system calls, straight into ring 1.
    SystemCalls = 4,
    /// `in al, dx`.
    In = 5,
    /// `hlt`.
    Halt = 6,
    /// The instruction `syscall`.
    Syscall = 7,
    /// Run on without end.
    Spin = 8,
}

global_asm!(
    // What runs in ring 3, copied to CODE. RDI is the attempt, RSI its address. When all went
    // well it says so with system call 1 and the value read.
    ".globl rt_user, rt_user_end, rt_enter, rt_left",
    "rt_user:",
    "cmp rdi, 0",
    "jne 2f",
    "mov rsi, [rsi]",
    "jmp 20f",
    "2: cmp rdi, 1",
    "jne 3f",
    "mov [rsi], rsi",
    "jmp 20f",
    "3: cmp rdi, 2",
    "jne 4f",
    "jmp rsi",
    "4: cmp rdi, 3",
    "jne 5f",
    "xor eax, eax",
    "int 0x1f",
    "jmp 20f",
    "5: cmp rdi, 4",
    "jne 6f",
    // System call 2 answers with one more than RSI, which must come back in RAX.
    "xor ebx, ebx",
    "8: mov eax, 2",
    "mov rsi, rbx",
    "int 0x80",
    "inc rbx",
    "cmp rax, rbx",
    "jne 9f",
    "cmp rbx, 1000",
    "jne 8b",
    "9: mov rsi, rbx",
    "jmp 20f",
    "6: cmp rdi, 5",
    "jne 7f",
    "in al, dx",
    "jmp 20f",
    "7: cmp rdi, 6",
    "jne 30f",
    "hlt",
    "jmp 20f",
    "30: cmp rdi, 7",
    "jne 31f",
    "syscall",
    "jmp 20f",
    "31: jmp 31b",
    "20: mov eax, 1",
    "int 0x80",
    "ud2",
    "rt_user_end:",
    // Into ring 3 and, by the trap function, back out: RDI and RSI go on to the instructions,
    // RDX is their address, RCX their stack.
    "rt_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + {saved}], rsp",
    "push {ss}",
    "push rcx",
    "push 0x202",
    "push {cs}",
    "push rdx",
    "iretq",
    // The trap function makes its frame return to here, on the stack saved above.
    "rt_left:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    saved = sym SAVED,
    ss = const GUEST_USER_DS,
    cs = const GUEST_USER_CS,
);

unsafe extern "C" {
    static rt_user: u8;
    static rt_user_end: u8;
    static rt_left: u8;
    fn rt_enter(attempt: u64, address: u64, code: u64, stack: u64);
}

static SAVED: Global<u64> = Global::new(0);
static RESULT: Global<Option<Result<u64, Fault>>> = Global::new(None);
static READY: Global<bool> = Global::new(false);

#[repr(C, align(4096))]
struct TrapStack([u8; 8192]);

static TRAP_STACK: Global<TrapStack> = Global::new(TrapStack([0; 8192]));

/// Maps code, data and stack for ring 3 and tells the Host the stack for traps from there.
pub fn prepare() {
    if READY.get() {
        return;
    }
    let root = memory::first_root();
    let start = &raw const rt_user;
    let length = (&raw const rt_user_end) as usize - start as usize;
    let code = memory::page();
    // SAFETY: The instructions lie between two symbols of this image, and fit the fresh page.
    unsafe { memory::linear::<u8>(code).copy_from(start, length) };
    write_entry(entry(root, CODE, 1), code | PRESENT | USER);
    write_entry(
        entry(root, DATA, 1),
        memory::page() | PRESENT | USER | WRITABLE,
    );
    let top = TRAP_STACK.pointer() as u64 + 8192;
    hypercall::call(SET_STACK, [top, 2, 0, 0]);
    READY.set(true);
}

/// Traps that come from ring 3.
fn handler(frame: &mut Frame) -> bool {
    if frame.cs & 3 != 3 {
        return false;
    }
    // RSI is the fifth of the registers.
    let rsi = frame.registers[4];
    let result = match (frame.vector, frame.registers[RAX]) {
        (0x80, 2) => {
            frame.registers[RAX] = rsi + 1;
            return true;
        }
        (0x80, _) => Ok(rsi),
        _ => Err(Fault {
            vector: frame.vector,
            error: frame.error,
            address: shared!(fault_address),
            cs: frame.cs,
        }),
    };
    RESULT.set(Some(result));
    frame.rip = (&raw const rt_left) as u64;
    frame.rsp = SAVED.get();
    frame.cs = u64::from(abi::segments::GUEST_KERNEL_CS);
    frame.ss = u64::from(abi::segments::GUEST_KERNEL_DS);
    true
}

/// Tries something in ring 3; gives the value it came back with.
///
/// # Errors
///
/// The fault that it ran into.
pub fn attempt(what: Attempt, address: u64) -> Result<u64, Fault> {
    run(CODE, what as u64, address)
}

/// Runs other instructions in ring 3, with two numbers in RDI and RSI, until a trap or until
/// system call 1.
///
/// # Errors
///
/// The trap that it ended with.
pub fn run(code: u64, rdi: u64, rsi: u64) -> Result<u64, Fault> {
    prepare();
    expect(handler);
    RESULT.set(None);
    // SAFETY: Code and stack for ring 3 are mapped, and every way out of it is a trap whose
    // handler comes back here with this stack and the saved registers.
    unsafe { rt_enter(rdi, rsi, code, DATA + memory::PAGE) };
    expect(|_| false);
    RESULT
        .get()
        .expect("every way out of ring 3 leaves a result")
}
