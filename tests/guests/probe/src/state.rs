// SPDX-License-Identifier: GPL-2.0-only

//! Everything that a Guest can change of a processor's state, changed, on every kind of exit.
//!
//! Each round fills the registers, selectors, bases, flags and a stack with what a stream of
//! numbers says, goes to one of many short pieces of code, in ring 1 or in ring 3, and comes back
//! by a trap or a jump. What the Host makes of that is not looked at here: it is the Host that is
//! watched meanwhile.

use core::arch::global_asm;

use abi::addresses::PAGE_SIZE;
use abi::dma::CONSOLE_IRQ;
use abi::hypercall::{FLUSH_ADDRESS, FLUSH_ASYNC, FLUSH_TLB, NEW_PGTABLE};
use abi::segments::{GUEST_KERNEL_CS, GUEST_KERNEL_DS, GUEST_USER_CS, GUEST_USER_DS};
use rt::memory::{self, PRESENT, USER, WRITABLE, entry, write_entry};
use rt::traps::{self, Frame, expect};
use rt::{Global, boot, hypercall, println, shared, user};

use crate::registers::Numbers;

/// What is loaded before a piece of code runs.
#[repr(C)]
struct Turmoil {
    /// RAX, RBX, RCX, RDX, RSI, RBP, R8 to R15 and, last, RDI.
    registers: [u64; 15],
    fs_base: u64,
    gs_base: u64,
    /// DS, ES, FS and GS.
    selectors: [u64; 4],
    flags: u64,
    /// The stack of ring 1.
    stack: u64,
    /// Where to go.
    code: u64,
    /// CS, or 0 to stay in ring 1.
    cs: u64,
    /// SS and RSP of ring 3.
    user_ss: u64,
    user_stack: u64,
}

global_asm!(
    ".globl probe_turmoil, probe_turmoil_back",
    "probe_turmoil:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + {saved}], rsp",
    // A selector that cannot be loaded is a trap like any other: it ends the round.
    "mov eax, [rdi + 136]",
    "mov ds, eax",
    "mov eax, [rdi + 144]",
    "mov es, eax",
    "mov eax, [rdi + 152]",
    "mov fs, eax",
    "mov eax, [rdi + 160]",
    "mov gs, eax",
    "mov rax, [rdi + 120]",
    "wrfsbase rax",
    "mov rax, [rdi + 128]",
    "wrgsbase rax",
    "mov rsp, [rdi + 176]",
    "cmp qword ptr [rdi + 192], 0",
    "jne 3f",
    "push [rdi + 184]",
    "push [rdi + 168]",
    "call 2f",
    "popfq",
    "ret",
    "3:",
    "push [rdi + 200]",
    "push [rdi + 208]",
    "push [rdi + 168]",
    "push [rdi + 192]",
    "push [rdi + 184]",
    "call 2f",
    "iretq",
    "2:",
    "mov rax, [rdi]",
    "mov rbx, [rdi + 8]",
    "mov rcx, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov rsi, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov r8, [rdi + 48]",
    "mov r9, [rdi + 56]",
    "mov r10, [rdi + 64]",
    "mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rdi, [rdi + 112]",
    "ret",
    // Wherever it ended: the stack, the flags, the selectors and the base of GS as they were.
    "probe_turmoil_back:",
    "mov rsp, [rip + {saved}]",
    "push 2",
    "popfq",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rax, [rip + {gs}]",
    "wrgsbase rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    saved = sym SAVED,
    gs = sym GS,
);

unsafe extern "C" {
    fn probe_turmoil(what: *const Turmoil);
    static probe_turmoil_back: u8;
    static state_user: u8;
    static state_user_end: u8;
}

static SAVED: Global<u64> = Global::new(0);
static GS: Global<u64> = Global::new(0);

/// Declares pieces of code between two symbols, and a table of where each begins.
macro_rules! pieces {
    ($start:ident, $end:ident, $table:ident, $count:ident, $ending:literal, [$($code:literal,)+]) => {
        const $count: usize = [$($code),+].len();

        global_asm!(
            concat!(".globl ", stringify!($start), ", ", stringify!($end)),
            concat!(".globl ", stringify!($table)),
            concat!(stringify!($start), ":"),
            // A macro of the assembler gives each piece a local name and writes the table.
            concat!(".pushsection .rodata.", stringify!($table), ",\"a\""),
            ".balign 8",
            concat!(stringify!($table), ":"),
            ".popsection",
            $(
                concat!(".pushsection .rodata.", stringify!($table), ",\"a\""),
                ".quad 2f",
                ".popsection",
                "2:",
                $code,
                $ending,
            )+
            concat!(stringify!($end), ":"),
        );

        unsafe extern "C" {
            static $table: [u64; $count];
        }
    };
}

// What ring 1 does. What does not trap comes back by the jump at its end.
pieces!(
    state_kernel,
    state_kernel_end,
    state_kernel_table,
    KERNEL_PIECES,
    "jmp probe_turmoil_back",
    [
        // Hypercalls: flush the ring.
        "mov eax, 0; int 0x1f",
        "mov eax, 0; int 0x1f; mov eax, 0; int 0x1f",
        // Straight into ring 1.
        "int 0x80",
        // Page faults: for the Guest, and for the Host's shadow.
        "mov eax, 0x50000000; mov [rax], rax",
        "mov eax, 0x50000000; jmp rax",
        "mov eax, 0x51000000; add qword ptr [rax], 1",
        // General protection: emulated, or refused for what is in the registers. (`hlt` with
        // interrupts off ends a Guest, and so does a root that is none.)
        "in al, dx",
        "in eax, 0x60",
        "out dx, ax",
        "cli",
        "sti; nop; cli",
        "clts",
        "wbinvd",
        "swapgs",
        "rdmsr",
        "wrmsr",
        "rdpmc",
        "mov cr0, rax",
        "mov cr2, rax",
        "mov rax, cr3; mov cr3, rax",
        "mov cr4, rax",
        "mov cr8, rax",
        "mov rax, cr0",
        "mov rax, cr4",
        "mov dr0, rax",
        "mov dr6, rax",
        "mov dr7, rax",
        "mov rax, dr7",
        "mov ecx, 0xc0000080; xor eax, eax; xor edx, edx; wrmsr",
        "lldt ax",
        "ltr ax",
        "lgdt [rsp]",
        "lidt [rsp]",
        "lmsw ax",
        "invlpg [rax]",
        "mov rax, 0x8000000000000000; mov rax, [rax]",
        "mov rbp, 0x8000000000000000; mov rax, [rbp]",
        // With NT on, IRETQ faults before it pops anything.
        "pushfq; or qword ptr [rsp], 0x4000; popfq; iretq",
        // Undefined.
        "ud2",
        "syscall",
        "sysenter",
        "stac",
        "clac",
        "rdpkru",
        "wrpkru",
        "xgetbv",
        "xsetbv",
        "vmmcall",
        "monitor",
        // Vectors that are not a Guest's, and those that are.
        "int 0",
        "int 1",
        "int 2",
        "int 8",
        "int 13",
        "int 14",
        "int 18",
        "int 0x20",
        "int 0x30",
        "int 0xec",
        "int 0xff",
        "int3",
        ".byte 0xf1",
        "xor edx, edx; xor ecx, ecx; div ecx",
        // Single steps from here on.
        "pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop; int 0x80",
        "pushfq; or qword ptr [rsp], 0x100; popfq; mov eax, 0; int 0x1f; nop",
        // The shadow of a load of SS. What is not here is a load of a null selector, `mov ss, 1`:
        // QEMU 7.2 takes the ring from the descriptor that it then has not got, which is ring 0.
        "mov eax, 0x39; pushfq; or qword ptr [rsp], 0x100; popfq; mov ss, eax; int 0x80",
        // Unprivileged, but curious.
        "sgdt [rsp]; sidt [rsp]; str ax; smsw ax; sldt ax",
        "wrfsbase r8; wrgsbase r9; mov eax, 0; int 0x1f",
        // R8 is a page that may be the register page: what is there is overwritten.
        "mov rdi, r8; mov ecx, 512; cld; rep stosq",
        "mov rdi, r8; mov ecx, 480; cld; rep stosq; mov eax, 0; int 0x1f",
        // Long enough to be interrupted.
        "mov ecx, 20000; 4: dec ecx; jnz 4b",
        "mov ecx, 200000; 4: dec ecx; jnz 4b",
    ]
);

// What ring 3 does, copied to USER_CODE.
pieces!(
    state_user,
    state_user_end,
    state_user_table,
    USER_PIECES,
    "int 0x80",
    [
        "nop",
        "mov eax, 0; int 0x1f",
        "mov eax, 0x50000000; mov [rax], rax",
        "mov rax, -4096; mov rax, [rax]",
        "mov rax, 0x8000000000000000; mov rax, [rax]",
        "in al, dx",
        "cli",
        "hlt",
        "mov cr3, rax",
        "mov rax, dr6",
        "rdmsr",
        "lgdt [rsp]",
        "ud2",
        "syscall",
        "sysenter",
        "rdpkru",
        "xsetbv",
        "int 2",
        "int 14",
        "int 0xec",
        "int3",
        ".byte 0xf1",
        "xor edx, edx; xor ecx, ecx; div ecx",
        "wrfsbase r8; wrgsbase r9",
        "mov eax, 0x2b; mov ds, eax; mov es, eax; mov fs, eax; mov gs, eax; ud2",
        "mov eax, 0x33; mov ds, eax; mov eax, 3; mov es, eax; mov fs, eax; mov gs, eax; ud2",
        "mov eax, 0x39; mov ds, eax",
        "mov eax, 0x18; mov es, eax",
        "mov eax, 0x10; mov gs, eax",
        "mov eax, 0x7; mov fs, eax",
        // Alignment, which counts in ring 3 (and is not checked by QEMU 7.2).
        "pushfq; or qword ptr [rsp], 0x40000; popfq; mov rax, [rsp + 1]",
        "pushfq; or qword ptr [rsp], 0x244d00; popfq; ud2",
        "pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop; cli",
        // 32-bit code, and out of there by a trap.
        "lea rax, [rip + 4f]; push 0x23; push rax; retfq; 4: ud2",
        "lea rax, [rip + 4f]; push 0x23; push rax; retfq; 4: .byte 0x0f, 0x34; ud2",
        "lea rax, [rip + 4f]; push 0x23; push rax; retfq; 4: .byte 0x0f, 0x05; ud2",
        "lea rax, [rip + 4f]; push 0x23; push rax; retfq; 4: int 0x80",
        "lea rax, [rip + 4f]; push 0x23; push rax; retfq; 4: .byte 0x06, 0x1e, 0x07, 0x1f, 0xce; ud2",
        // Long enough to be interrupted.
        "mov ecx, 20000; 4: dec ecx; jnz 4b",
        "lea rax, [rip + 4f]; push 0x23; push rax; retfq; 4: mov ecx, 20000; 5: dec ecx; jnz 5b",
    ]
);

/// Where ring 3 finds its pieces, guest-virtual.
const USER_CODE: u64 = 0x41_0000;
/// Its stack, below 4 GiB for 32-bit code.
const USER_STACK: u64 = 0x61_0000;
/// Stacks of ring 1, and the bytes of each.
const STACKS: u64 = 4;
const STACK_BYTES: u64 = 16 * 1024;

#[repr(C, align(4096))]
struct Stacks([u8; (STACKS * STACK_BYTES) as usize]);

static STACK: Global<Stacks> = Global::new(Stacks([0; (STACKS * STACK_BYTES) as usize]));

/// How often each trap has come.
static CAME: Global<[u64; 256]> = Global::new([0; 256]);
/// Single steps since the last one that was let go on.
static STEPS: Global<u64> = Global::new(0);
/// Rounds that ended by a trap.
static CALLS: Global<u64> = Global::new(0);

/// Counts a trap. Steps and breakpoints go on; everything else ends the round.
fn handler(frame: &mut Frame) -> bool {
    let vector = frame.vector as usize % 256;
    // SAFETY: A trap is no second thread; the array is this function's until it returns.
    unsafe { (*CAME.pointer())[vector] += 1 };
    if matches!(vector, 1 | 3) {
        STEPS.set(STEPS.get() + 1);
        if STEPS.get().is_multiple_of(4) {
            frame.rflags &= !0x100;
        }
        return true;
    }
    if frame.cs & 3 == 3 && CALLS.get().is_multiple_of(4) {
        // After a direct trap from ring 3 the stack segment is null; an exit with that.
        hypercall::call(FLUSH_ASYNC, [0; 4]);
    }
    CALLS.set(CALLS.get() + 1);
    frame.rip = (&raw const probe_turmoil_back) as u64;
    frame.cs = GUEST_KERNEL_CS.into();
    frame.ss = GUEST_KERNEL_DS.into();
    frame.rsp = SAVED.get();
    frame.rflags &= 0x202;
    true
}

/// One of a list.
fn one<T: Copy>(numbers: &mut Numbers, list: &[T]) -> T {
    list[(numbers.next() >> 16) as usize % list.len()]
}

/// A selector: more often than not one that can be loaded in ring 1.
fn selector(numbers: &mut Numbers) -> u64 {
    // Null with any RPL, and the segments of rings 1 and 3.
    const LOADABLE: [u64; 14] = [
        0, 1, 2, 3, 0x08, 0x09, 0x38, 0x39, 0x20, 0x23, 0x28, 0x2b, 0x30, 0x33,
    ];
    match numbers.next() >> 60 {
        0 => numbers.next() & 0xff,
        _ => one(numbers, &LOADABLE),
    }
}

/// An address that can be translated, with four levels of tables and with five.
fn canonical(numbers: &mut Numbers) -> u64 {
    ((numbers.next() << 16).cast_signed() >> 16).cast_unsigned()
}

/// Flags as they come: arithmetic, DF, NT, AC and ID; IOPL, which ring 1 cannot set; seldom TF.
fn flags(numbers: &mut Numbers) -> u64 {
    let flags = numbers.next() & 0x24_7cd5 | 0x202;
    match numbers.next() >> 61 {
        0 => flags | 0x100,
        _ => flags,
    }
}

/// What ring 3 needs: its pieces and a stack.
fn prepare() {
    user::prepare();
    let root = memory::first_root();
    let (start, end) = (&raw const state_user, &raw const state_user_end);
    let bytes = end as usize - start as usize;
    assert!(bytes <= PAGE_SIZE as usize, "the pieces are {bytes} bytes");
    let page = memory::page();
    // SAFETY: The pieces lie between two symbols of this image, and fit the fresh page.
    unsafe { memory::linear::<u8>(page).copy_from(start, bytes) };
    write_entry(entry(root, USER_CODE, 1), page | PRESENT | USER);
    let stack = memory::page() | PRESENT | USER | WRITABLE;
    write_entry(entry(root, USER_STACK, 1), stack);
    // A page of ring 1's that the Host forgets now and then.
    let page = memory::page() | PRESENT | WRITABLE;
    write_entry(entry(root, FORGOTTEN, 1), page);
}

/// The page that the Host forgets; one of the pieces writes there.
const FORGOTTEN: u64 = 0x5100_0000;

/// Fills everything, and chooses a piece of code.
fn turmoil(numbers: &mut Numbers, reserved: &[u64]) -> Turmoil {
    let mut registers = [0; 15];
    for register in &mut registers {
        *register = numbers.next();
    }
    // R8 and R9: see the pieces.
    registers[6] = one(numbers, reserved);
    registers[7] = canonical(numbers);
    let offset = STACK_BYTES - 64 - numbers.next() % 1024;
    let stack = STACK.pointer() as u64 + numbers.next() % STACKS * STACK_BYTES + offset;
    let in_user_ring = numbers.next() >> 62 == 0;
    // SAFETY: The tables are constants of this image.
    let (code, cs) = unsafe {
        if in_user_ring {
            let piece = one(numbers, &state_user_table);
            let start = &raw const state_user as u64;
            (USER_CODE + piece - start, GUEST_USER_CS.into())
        } else {
            (one(numbers, &state_kernel_table), 0)
        }
    };
    Turmoil {
        registers,
        fs_base: canonical(numbers),
        gs_base: canonical(numbers),
        selectors: [(); 4].map(|()| selector(numbers)),
        flags: flags(numbers),
        stack,
        code,
        cs,
        user_ss: GUEST_USER_DS.into(),
        user_stack: USER_STACK + PAGE_SIZE - 256,
    }
}

/// Turmoil until something is typed.
pub fn state() {
    let seed = boot::number("seed").unwrap_or(1);
    let mut numbers = Numbers(seed | 1);
    rt::console::bind_input();
    prepare();
    GS.set(hypercall::data() as u64);
    let (reserved, count) = reserved();
    let roots = [
        memory::first_root(),
        memory::copy_root(memory::first_root()),
    ];
    println!("turmoil with seed {seed}");
    let mut round = 0_u64;
    while traps::irqs()[CONSOLE_IRQ as usize] == 0 {
        round += 1;
        match round % 16 {
            3 => drop(hypercall::call(FLUSH_ADDRESS, [FORGOTTEN, 0, 0, 0])),
            7 => drop(hypercall::call(
                NEW_PGTABLE,
                [one(&mut numbers, &roots), 0, 0, 0],
            )),
            11 => drop(hypercall::call(FLUSH_TLB, [round / 16 % 2, 0, 0, 0])),
            _ => {}
        }
        let what = turmoil(&mut numbers, &reserved[..count]);
        expect(handler);
        // SAFETY: Every way out of a piece is the jump or a trap, and both come back with this
        // stack and the registers that a function must keep. What the pieces write to is theirs.
        unsafe { probe_turmoil(&raw const what) };
        expect(|_| false);
        if round.is_multiple_of(32) {
            // Whatever waits comes now.
            hypercall::enable_interrupts();
            hypercall::disable_interrupts();
        }
    }
    hypercall::call(NEW_PGTABLE, [roots[0], 0, 0, 0]);
    let came = CAME.get();
    println!("good: {round} rounds with seed {seed}");
    for (vector, times) in came.iter().enumerate().filter(|(_, times)| **times > 0) {
        println!("trap {vector}: {times}");
    }
    if round > 10_000 {
        for vector in [0, 1, 3, 6, 13, 14, 0x80] {
            assert!(came[vector] > 0, "trap {vector} never came");
        }
    }
}

/// The pages that the Host keeps for itself, but for the shared one.
fn reserved() -> ([u64; 64], usize) {
    let mut pages = [0; 64];
    let mut count = 0;
    for number in 0..shared!(reserved_count) as usize {
        let range = shared!(reserved[number]);
        for page in (range.start..range.end).step_by(PAGE_SIZE as usize) {
            if page != GS.get() && count < pages.len() {
                pages[count] = page;
                count += 1;
            }
        }
    }
    (pages, count)
}
