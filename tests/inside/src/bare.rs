// SPDX-License-Identifier: GPL-2.0-only

//! A bare Guest: no kernel and no Launcher, but a page of assembler and a list of steps.
//!
//! The test Guest of `tests/guests` is a program of its own, started by the real Launcher; that
//! shows the whole chain, and takes a tenth of a second. Here this process is the Launcher. It
//! lays the Guest's memory out by hand, writes a list of steps into it (a hypercall, a write, a
//! stretch of instructions to run in ring 1 or 3), and runs it. The assembler below, the *engine*,
//! takes one step after another. Whatever trap a step ends in, the engine's one handler puts down
//! all registers beside the step and goes on with the next. When the Host kills the Guest, memory
//! still tells which step did it. A thousand such Guests take seconds.

use std::arch::global_asm;
use std::fmt;
use std::ptr::NonNull;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::device::{Device, INITIALIZE};
use crate::host;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Pages that a bare Guest has: 2 MiB.
pub const PAGES: u64 = 512;
/// The end of its memory, guest-physical.
pub const END: u64 = PAGES * PAGE;
/// Where guest-physical 0 is mapped, guest-virtual, for ring 1.
pub const LINEAR: u64 = 0xffff_8880_0000_0000;

// What lies in which page of its memory.
/// The top-level table.
pub const ROOT: u64 = PAGE;
/// The tables of levels 3 to 1 for all of memory.
pub const UPPER: [u64; 3] = [2 * PAGE, 3 * PAGE, 4 * PAGE];
/// The tables of levels 3 to 1 for ring 3's addresses.
pub const LOWER: [u64; 3] = [5 * PAGE, 6 * PAGE, 7 * PAGE];
const ENGINE: u64 = 8 * PAGE;
/// The engine's variables.
pub const STATE: u64 = 10 * PAGE;
const ENGINE_STACK: u64 = 12 * PAGE;
/// The top of the stack on which ring-1 instructions run.
pub const RING1_STACK: u64 = 14 * PAGE;
/// The top of the stack for traps from ring 3.
pub const TRAP_STACK: u64 = 16 * PAGE;
/// A page of data for ring 1.
pub const DATA1: u64 = 16 * PAGE;
/// A page of data for ring 3, at [`USER_DATA`].
pub const DATA3: u64 = 17 * PAGE;
const STACK3: u64 = 18 * PAGE;
/// Where every trap is written down: 64 bytes each, up to [`LOG_ENTRIES`].
const LOG: u64 = 20 * PAGE;
/// So many traps are written down.
pub const LOG_ENTRIES: u64 = 4096;
/// Pages that nothing here uses, up to [`STEPS`].
pub const FREE: u64 = 84 * PAGE;
/// Where the steps begin.
pub const STEPS: u64 = 128 * PAGE;
/// Bytes of one step.
pub const STEP: u64 = 512;

/// Steps that a Guest has room for.
pub const MOST_STEPS: usize = ((END - STEPS) / STEP) as usize - 1;

/// Where ring 3 finds [`DATA3`].
pub const USER_DATA: u64 = 0x40_0000;
/// The top of ring 3's stack.
pub const USER_STACK: u64 = 0x40_2000;
/// Where ring 3 finds the steps, and with them its instructions.
const USER_STEPS: u64 = 0x60_0000;

/// Present and writable, in a table's entry.
pub const RW: u64 = 3;
/// And open to ring 3.
pub const RWU: u64 = 7;

// The words of a step.
const KIND: usize = 0;
const ARGS: usize = 1;
const COUNT: usize = 7;
const DONE: usize = 8;
const ANSWER: usize = 9;
const FRAME: usize = 10;
const CR2: usize = 17;
const DR6: usize = 18;
const REGISTERS: usize = 19;
const SELECTORS: usize = 34;
const UNUSED: usize = 35;
const INPUT: usize = 36;
const CODE: usize = 58;
/// Bytes of instructions that a step has room for.
pub const CODE_BYTES: usize = 48;

global_asm!(
    ".pushsection .rodata.bare, \"a\"",
    ".balign 4096",
    ".globl bare_begin, bare_start, bare_iretq, bare_end",
    // A stub for each vector, 16 bytes each, and one page in all.
    "bare_begin:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)",
    "push 0",
    ".endif",
    ".byte 0x68",
    ".long vector",
    ".byte 0xe9",
    ".long bare_trap - . - 4",
    ".set vector, vector + 1",
    ".endr",
    ".balign 4096",
    // The first instruction.
    "bare_start:",
    "movabs rbx, {state}",
    "movabs rsp, {stack}",
    "cmp qword ptr [rbx + 24], 0",
    "jne bare_next",
    "mov eax, 1",
    "mov edi, 1",
    "int 0x1f",
    "mov [rbx + 8], rax",
    // The handlers: a number of pairs of a vector and its flags.
    "lea r12, [rbx + 264]",
    "mov r13, [rbx + 256]",
    "2: test r13, r13",
    "jz bare_next",
    "mov eax, 6",
    "mov rdi, [r12]",
    "mov rdx, [r12 + 8]",
    "mov rsi, rdi",
    "shl rsi, 4",
    "movabs rcx, {engine}",
    "add rsi, rcx",
    "int 0x1f",
    "add r12, 16",
    "dec r13",
    "jmp 2b",
    // One step after another.
    "bare_next:",
    "movabs rbx, {state}",
    "movabs rsp, {stack}",
    "push 2",
    "popfq",
    "add qword ptr [rbx], {step}",
    "mov rbp, [rbx]",
    "mov rax, [rbp]",
    "cmp rax, 1",
    "je bare_call",
    "cmp rax, 2",
    "je bare_poke",
    "cmp rax, 3",
    "je bare_poke_shared",
    "cmp rax, 4",
    "je bare_poke_byte",
    "cmp rax, 5",
    "je bare_peek",
    "cmp rax, 6",
    "je bare_go",
    "cmp rax, 7",
    "je bare_peek_shared",
    // The end: power off.
    "mov eax, 2",
    "xor edi, edi",
    "mov esi, 1",
    "xor edx, edx",
    "int 0x1f",
    "ud2",
    "bare_call:",
    "mov rax, [rbp + 8]",
    "mov rdi, [rbp + 16]",
    "mov rsi, [rbp + 24]",
    "mov rdx, [rbp + 32]",
    "mov rcx, [rbp + 40]",
    "int 0x1f",
    "bare_done:",
    "movabs rbx, {state}",
    "mov rbp, [rbx]",
    "mov [rbp + 72], rax",
    "mov qword ptr [rbp + 64], 1",
    "jmp bare_next",
    "bare_poke:",
    "mov rdi, [rbp + 8]",
    "mov rax, [rbp + 16]",
    "mov [rdi], rax",
    "jmp bare_done",
    "bare_poke_shared:",
    "mov rdi, [rbx + 8]",
    "add rdi, [rbp + 8]",
    "mov rax, [rbp + 16]",
    "mov [rdi], rax",
    "jmp bare_done",
    "bare_poke_byte:",
    "mov rdi, [rbx + 8]",
    "add rdi, [rbp + 8]",
    "mov rax, [rbp + 16]",
    "mov [rdi], al",
    "jmp bare_done",
    "bare_peek:",
    "mov rdi, [rbp + 8]",
    "mov rax, [rdi]",
    "jmp bare_done",
    "bare_peek_shared:",
    "mov rdi, [rbx + 8]",
    "add rdi, [rbp + 8]",
    "mov rax, [rdi]",
    "jmp bare_done",
    // With all registers of the step: RIP, CS, RFLAGS, RSP and SS come last.
    "bare_go:",
    "push qword ptr [rbp + 8 * ({input} + 19)]",
    "push qword ptr [rbp + 8 * ({input} + 18)]",
    "push qword ptr [rbp + 8 * ({input} + 17)]",
    "push qword ptr [rbp + 8 * ({input} + 16)]",
    "push qword ptr [rbp + 8 * ({input} + 15)]",
    "mov rax, [rbp + 8 * ({input} + 0)]",
    "mov rbx, [rbp + 8 * ({input} + 1)]",
    "mov rcx, [rbp + 8 * ({input} + 2)]",
    "mov rdx, [rbp + 8 * ({input} + 3)]",
    "mov rsi, [rbp + 8 * ({input} + 4)]",
    "mov rdi, [rbp + 8 * ({input} + 5)]",
    "mov r8, [rbp + 8 * ({input} + 7)]",
    "mov r9, [rbp + 8 * ({input} + 8)]",
    "mov r10, [rbp + 8 * ({input} + 9)]",
    "mov r11, [rbp + 8 * ({input} + 10)]",
    "mov r12, [rbp + 8 * ({input} + 11)]",
    "mov r13, [rbp + 8 * ({input} + 12)]",
    "mov r14, [rbp + 8 * ({input} + 13)]",
    "mov r15, [rbp + 8 * ({input} + 14)]",
    "mov rbp, [rbp + 8 * ({input} + 6)]",
    "bare_iretq:",
    "iretq",
    // Every trap. On the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    "bare_trap:",
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
    "movabs rbx, {state}",
    "mov rbp, [rbx]",
    // First into the log, if it has room.
    "mov rcx, [rbx + 32]",
    "cmp rcx, {entries}",
    "jae 3f",
    "inc qword ptr [rbx + 32]",
    "shl rcx, 6",
    "movabs rdi, {log}",
    "add rdi, rcx",
    "lea rsi, [rsp + 120]",
    "mov ecx, 7",
    "rep movsq",
    "3: inc qword ptr [rbp + 8 * {count}]",
    // A vector whose bit is set in the step's last argument: back to where it came from.
    "mov rcx, [rsp + 120]",
    "cmp rcx, 63",
    "ja 4f",
    "bt [rbp + 48], rcx",
    "jnc 4f",
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
    "add rsp, 16",
    "iretq",
    // The others end the step.
    "4: lea rdi, [rbp + 8 * {frame}]",
    "lea rsi, [rsp + 120]",
    "mov ecx, 7",
    "rep movsq",
    "lea rdi, [rbp + 8 * {registers}]",
    "mov rsi, rsp",
    "mov ecx, 15",
    "rep movsq",
    "mov word ptr [rbp + 8 * {selectors}], ds",
    "mov word ptr [rbp + 8 * {selectors} + 2], es",
    "mov word ptr [rbp + 8 * {selectors} + 4], fs",
    "mov word ptr [rbp + 8 * {selectors} + 6], gs",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov rcx, [rbx + 8]",
    "mov rax, [rcx + 8]",
    "mov [rbp + 8 * {cr2}], rax",
    "mov rax, [rcx + 16]",
    "mov [rbp + 8 * {dr6}], rax",
    "mov qword ptr [rbp + 64], 2",
    "jmp bare_next",
    "bare_end:",
    ".popsection",
    state = const LINEAR + STATE,
    stack = const LINEAR + ENGINE_STACK,
    engine = const LINEAR + ENGINE,
    log = const LINEAR + LOG,
    entries = const LOG_ENTRIES,
    step = const STEP,
    input = const INPUT,
    count = const COUNT,
    frame = const FRAME,
    registers = const REGISTERS,
    selectors = const SELECTORS,
    cr2 = const CR2,
    dr6 = const DR6,
);

unsafe extern "C" {
    static bare_begin: u8;
    static bare_start: u8;
    static bare_iretq: u8;
    static bare_end: u8;
}

/// The bytes of the instructions given.
#[macro_export]
macro_rules! code {
    ($($insn:literal),+ $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: The instructions given are jumped over. The others put two addresses into
        // registers, and touch nothing else.
        unsafe {
            core::arch::asm!(
                "lea {0}, [rip + 72f]",
                "lea {1}, [rip + 73f]",
                "jmp 73f",
                "72:",
                $($insn,)+
                "73:",
                out(reg) start,
                out(reg) end,
                options(nomem, nostack, preserves_flags),
            );
        }
        let length = end.addr() - start.addr();
        // SAFETY: The bytes between the two labels are this program's own code.
        let code = unsafe { core::slice::from_raw_parts::<'static, u8>(start, length) };
        code
    }};
}

/// The address of the engine's `iretq`, guest-virtual: a step whose registers it cannot load stops
/// there.
pub fn iretq() -> u64 {
    let [begin, here] = [&raw const bare_begin, &raw const bare_iretq];
    LINEAR + ENGINE + (here.addr() - begin.addr()) as u64
}

/// Whether an instruction is the engine's own.
pub fn in_engine(rip: u64) -> bool {
    (LINEAR + ENGINE..LINEAR + ENGINE + 2 * PAGE).contains(&rip)
}

/// The address of the handler of a vector, guest-virtual.
pub fn handler(vector: u8) -> u64 {
    LINEAR + ENGINE + 16 * u64::from(vector)
}

/// A ring for a step's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The Guest's kernel.
    One,
    /// Its program.
    Three,
    /// Its program in a 32-bit segment.
    Three32,
}

impl Ring {
    /// CS in this ring.
    pub const fn cs(self) -> u64 {
        match self {
            Self::One => 0x09,
            Self::Three => 0x33,
            Self::Three32 => 0x23,
        }
    }

    /// SS in this ring.
    pub const fn ss(self) -> u64 {
        match self {
            Self::One => 0x39,
            _ => 0x2b,
        }
    }
}

/// Names of the places in [`Registers::general`].
#[allow(missing_docs, reason = "they are the registers")]
pub mod reg {
    pub const RAX: usize = 0;
    pub const RBX: usize = 1;
    pub const RCX: usize = 2;
    pub const RDX: usize = 3;
    pub const RSI: usize = 4;
    pub const RDI: usize = 5;
    pub const RBP: usize = 6;
    pub const R8: usize = 7;
}

/// The registers that a stretch of instructions begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP and R8 to R15.
    pub general: [u64; 15],
    /// The instruction.
    pub rip: u64,
    /// Its segment.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack.
    pub rsp: u64,
    /// The stack's segment.
    pub ss: u64,
}

impl Registers {
    fn words(&self) -> [u64; 20] {
        let mut words = [0; 20];
        words[..15].copy_from_slice(&self.general);
        words[15..].copy_from_slice(&[self.rip, self.cs, self.rflags, self.rsp, self.ss]);
        words
    }
}

/// A trap as the engine's handler found it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// Which.
    pub vector: u64,
    /// The error code, 0 if the vector has none.
    pub error: u64,
    /// The instruction.
    pub rip: u64,
    /// Its segment.
    pub cs: u64,
    /// The flags.
    pub rflags: u64,
    /// The stack.
    pub rsp: u64,
    /// Its segment.
    pub ss: u64,
}

impl Trap {
    fn from_words(words: [u64; 7]) -> Self {
        let [vector, error, rip, cs, rflags, rsp, ss] = words;
        Self {
            vector,
            error,
            rip,
            cs,
            rflags,
            rsp,
            ss,
        }
    }
}

impl fmt::Debug for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "trap {} error {:#x} at {:#x}:{:#x}, flags {:#x}, stack {:#x}:{:#x}",
            self.vector, self.error, self.cs, self.rip, self.rflags, self.ss, self.rsp
        )
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The Guest never came to it, or did not survive it.
    Never,
    /// A call or an access: done, with this answer.
    Done(u64),
    /// It ended in a trap; instructions that all ran end in trap 3.
    Trapped(Trap),
}

/// The state in which a step's trap left the Guest, beside the trap itself.
#[derive(Clone, Copy, Debug)]
pub struct After {
    /// General registers, as in [`Registers::general`].
    pub general: [u64; 15],
    /// DS, ES, FS and GS.
    pub selectors: [u16; 4],
    /// The last fault's address, as the shared page has it.
    pub fault_address: u64,
    /// The debug status in the shared page.
    pub debug_status: u64,
}

/// How a Guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It powered off.
    Off,
    /// It asked for a restart.
    Restart,
    /// It is dead, for this reason.
    Dead(String),
    /// It has not ended within its time.
    Running,
}

/// A step, by its number.
pub type StepNumber = usize;

/// A bare Guest: memory, and what is to be done in it.
#[derive(Debug)]
pub struct Bare {
    memory: NonNull<u64>,
    /// Pages of it, the first [`PAGES`] of which are laid out.
    pages: u64,
    steps: usize,
    /// INITIALIZE's words after the base: pages, limit, entry, root, levels.
    pub start: [u64; 5],
    /// What it has sent to the Launcher: key and record.
    pub sent: Vec<(u64, u64)>,
    /// How long a `read()` may run it.
    pub limit: Duration,
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: The mapping is this structure's own, and nobody has a reference into it.
        let _ = unsafe { munmap(self.memory.cast(), (self.pages * PAGE) as usize) };
    }
}

/// The vectors that get a handler, and the outermost ring that may use `int` there.
const HANDLERS: [(u64, u64); 20] = [
    (0, 1),
    (1, 1),
    (3, 3),
    (4, 3),
    (5, 1),
    (6, 1),
    (7, 1),
    (9, 1),
    (10, 1),
    (11, 1),
    (12, 1),
    (13, 1),
    (14, 1),
    (15, 1),
    (16, 1),
    (17, 1),
    (19, 1),
    (20, 1),
    (21, 1),
    (0x80, 3),
];

/// In the flags of LOAD_IDT_ENTRY: interrupts off.
const MASK: u64 = 1 << 9;
/// Straight into ring 1.
pub const DIRECT: u64 = 1 << 8;

impl Bare {
    /// A Guest with the engine, its tables, and handlers for all exceptions and 0x80.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn new() -> Result<Self> {
        Self::with_pages(PAGES)
    }

    /// The same with more memory behind that; Linux is not asked whether it has so much.
    ///
    /// # Errors
    ///
    /// When there is no room for it.
    pub fn with_pages(pages: u64) -> Result<Self> {
        let length = ((pages.max(PAGES) * PAGE) as usize).try_into()?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: The kernel chooses a fresh place, so nothing that exists is replaced.
        let memory = unsafe { mmap_anonymous(None, length, protection, flags) }?;
        let mut guest = Self {
            memory: memory.cast(),
            pages: pages.max(PAGES),
            steps: 0,
            start: [pages, pages, 0, ROOT, 4],
            sent: Vec::new(),
            limit: Duration::from_secs(20) * host::patience(),
        };
        guest.lay_out();
        Ok(guest)
    }

    fn lay_out(&mut self) {
        let [begin, start, end] = [
            &raw const bare_begin,
            &raw const bare_start,
            &raw const bare_end,
        ];
        let length = end.addr() - begin.addr();
        assert!(length <= 2 * PAGE as usize, "the engine has {length} bytes");
        // SAFETY: The bytes between the two labels are constants of this program.
        let engine = unsafe { std::slice::from_raw_parts(begin, length) };
        self.write_bytes(ENGINE, engine);
        self.start[2] = LINEAR + ENGINE + (start.addr() - begin.addr()) as u64;

        for (tables, address, rights) in [(UPPER, LINEAR, RW), (LOWER, 0, RWU)] {
            self.write(ROOT + 8 * (address >> 39 & 511), tables[0] | rights);
            self.write(tables[0], tables[1] | rights);
        }
        self.write(UPPER[1], UPPER[2] | RW);
        for page in 0..PAGES {
            self.write(UPPER[2] + 8 * page, (page * PAGE) | RW);
        }
        // One table of the last level is enough for two megabytes: here 0x40_0000 and 0x60_0000.
        for (slot, table) in [(2, LOWER[2]), (3, 19 * PAGE)] {
            self.write(LOWER[1] + 8 * slot, table | RWU);
        }
        self.write(LOWER[2], DATA3 | RWU);
        self.write(LOWER[2] + 8, STACK3 | RWU);
        for page in 0..(END - STEPS) / PAGE {
            self.write(19 * PAGE + 8 * page, (STEPS + page * PAGE) | RWU);
        }
        self.write(STATE, LINEAR + STEPS - STEP);
        self.handlers(&HANDLERS.map(|(vector, dpl)| (vector, dpl | MASK)));
    }

    /// Other handlers than the usual ones: vectors and their flags.
    pub fn handlers(&mut self, list: &[(u64, u64)]) {
        self.write(STATE + 256, list.len() as u64);
        for (place, (vector, flags)) in (0..).zip(list) {
            self.write(STATE + 264 + 16 * place, *vector);
            self.write(STATE + 272 + 16 * place, *flags);
        }
    }

    /// Takes the engine and the tables from the Guest's writes: a stack that is laid over them, say.
    pub fn protect(&mut self) {
        for page in (1..10).chain([19]) {
            self.write(UPPER[2] + 8 * page, (page * PAGE) | 1);
        }
    }

    /// Whether the engine's variables are as the engine leaves them. A trap's frame over them, for
    /// one, leaves something in the words that nothing uses.
    pub fn is_whole(&self) -> bool {
        let unused = (40..256).step_by(8).all(|at| self.read(STATE + at) == 0);
        let count = self.read(STATE + 256);
        let handlers = (0..).zip(Self::usual_handlers()).all(|(place, want)| {
            let at = STATE + 264 + 16 * place;
            (self.read(at), self.read(at + 8)) == want
        });
        unused && count == HANDLERS.len() as u64 && handlers
    }

    /// The usual handlers.
    pub fn usual_handlers() -> Vec<(u64, u64)> {
        let usual = HANDLERS.map(|(vector, dpl)| (vector, dpl | MASK));
        usual.to_vec()
    }

    /// Leaves INIT and the handlers to the steps.
    pub fn raw(&mut self) {
        self.write(STATE + 24, 1);
    }

    /// Where its memory begins in this process.
    pub fn address(&self) -> usize {
        self.memory.as_ptr().addr()
    }

    /// Puts a page of a file into its memory, shared with whoever does the same.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    ///
    /// # Panics
    ///
    /// When that is no page of its memory.
    pub fn share_page(&mut self, at: u64, file: impl std::os::fd::AsFd, page: u64) -> Result<()> {
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        self.map_page(at, file, page, both, MapFlags::MAP_SHARED)
    }

    /// Puts a page of a file into its memory, mapped in this way.
    ///
    /// # Errors
    ///
    /// When it cannot be mapped.
    ///
    /// # Panics
    ///
    /// When that is no page of its memory.
    pub fn map_page(
        &mut self,
        at: u64,
        file: impl std::os::fd::AsFd,
        page: u64,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> Result<()> {
        assert!(at.is_multiple_of(PAGE) && at < END, "no page at {at:#x}");
        let place = std::num::NonZero::new(self.memory.as_ptr() as usize + at as usize);
        let flags = flags | MapFlags::MAP_FIXED;
        let length = std::num::NonZero::new(PAGE as usize).context("a page has bytes")?;
        let offset = (page * PAGE).cast_signed();
        // SAFETY: It replaces a page of this structure's own memory, which is unmapped with it.
        unsafe { nix::sys::mman::mmap(place, length, protection, flags, file, offset) }?;
        Ok(())
    }

    /// The bytes at a guest-physical address.
    pub fn read_bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let whole = at & !7;
        let words = (at + length as u64 - whole).div_ceil(8);
        let bytes = (0..words).flat_map(|n| self.read(whole + 8 * n).to_le_bytes());
        bytes.skip((at - whole) as usize).take(length).collect()
    }

    fn has_word(&self, at: u64) -> bool {
        at.is_multiple_of(8) && at < self.pages * PAGE
    }

    /// The word at a guest-physical address.
    ///
    /// # Panics
    ///
    /// When that is no word of its memory.
    pub fn read(&self, at: u64) -> u64 {
        assert!(self.has_word(at), "no word at {at:#x}");
        // SAFETY: Inside the mapping and aligned; the Guest is not running.
        unsafe { self.memory.as_ptr().add(at as usize / 8).read_volatile() }
    }

    /// Writes the word at a guest-physical address.
    ///
    /// # Panics
    ///
    /// When that is no word of its memory.
    pub fn write(&mut self, at: u64, value: u64) {
        assert!(self.has_word(at), "no word at {at:#x}");
        let word = self.memory.as_ptr();
        // SAFETY: Inside the mapping and aligned; the Guest is not running.
        unsafe { word.add(at as usize / 8).write_volatile(value) };
    }

    /// Writes bytes at a guest-physical address.
    ///
    /// # Panics
    ///
    /// When they do not fit.
    pub fn write_bytes(&mut self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= END, "no room at {at:#x}");
        let to = self.memory.as_ptr().cast::<u8>();
        // SAFETY: Inside the mapping; the source is no part of it.
        unsafe { to.add(at as usize).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    fn step(&mut self, kind: u64, args: &[u64]) -> StepNumber {
        let number = self.steps;
        assert!(number < MOST_STEPS, "too many steps");
        self.steps += 1;
        self.write(Self::word(number, KIND), kind);
        for (place, value) in args.iter().enumerate() {
            self.write(Self::word(number, ARGS + place), *value);
        }
        number
    }

    fn word(step: StepNumber, word: usize) -> u64 {
        STEPS + STEP * step as u64 + 8 * word as u64
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// A hypercall.
    pub fn call(&mut self, number: u64, args: [u64; 4]) -> StepNumber {
        let [a, b, c, d] = args;
        self.step(1, &[number, a, b, c, d])
    }

    /// Writes a word, guest-virtual.
    pub fn poke(&mut self, address: u64, value: u64) -> StepNumber {
        self.step(2, &[address, value])
    }

    /// Writes a word of the shared page.
    pub fn poke_shared(&mut self, offset: u64, value: u64) -> StepNumber {
        self.step(3, &[offset, value])
    }

    /// Writes a byte of the shared page.
    pub fn poke_shared_byte(&mut self, offset: u64, value: u8) -> StepNumber {
        self.step(4, &[offset, value.into()])
    }

    /// Reads a word, guest-virtual.
    pub fn peek(&mut self, address: u64) -> StepNumber {
        self.step(5, &[address])
    }

    /// Reads a word of the shared page.
    pub fn peek_shared(&mut self, offset: u64) -> StepNumber {
        self.step(7, &[offset])
    }

    /// Puts a call into a slot of the ring.
    pub fn queue(&mut self, slot: u64, number: u64, args: [u64; 4]) {
        let at = 0x140 + 40 * slot;
        self.poke_shared(at, number);
        for (place, value) in (1..).zip(args) {
            self.poke_shared(at + 8 * place, value);
        }
        self.poke_shared_byte(0x100 + slot, 0);
    }

    /// Writes into the pages of the first so many steps, so that none of them is new to the Host
    /// later.
    pub fn touch_steps(&mut self, steps: usize) {
        for page in 0..(STEP * steps as u64).div_ceil(PAGE) {
            self.poke(LINEAR + STEPS + page * PAGE + 8 * UNUSED as u64, 0);
        }
    }

    /// The stack for traps from ring 3, by SET_STACK.
    pub fn set_stack(&mut self) -> StepNumber {
        self.call(7, [LINEAR + TRAP_STACK, 1, 0, 0])
    }

    /// The registers with which instructions of the next step would run in a ring: RBX, RSI and RDI
    /// point to data, the others that are no pointers hold marks.
    pub fn registers(&self, ring: Ring) -> Registers {
        let (code, rsp, data) = match ring {
            Ring::One => (LINEAR + STEPS, LINEAR + RING1_STACK, LINEAR + DATA1),
            _ => (USER_STEPS, USER_STACK, USER_DATA),
        };
        let mut general = [0; 15];
        for (number, value) in general.iter_mut().enumerate().skip(6) {
            *value = 0x1111_0000 + number as u64;
        }
        general[reg::RBX] = data;
        general[reg::RSI] = data;
        general[reg::RDI] = data;
        Registers {
            general,
            rip: code + STEP * self.steps as u64 + 8 * CODE as u64,
            cs: ring.cs(),
            rflags: 0x202,
            rsp,
            ss: ring.ss(),
        }
    }

    /// Runs instructions with these registers, which come from [`Self::registers`]. After them comes
    /// `int3`. Traps whose bit is set in `resume` are only written into the log.
    ///
    /// # Panics
    ///
    /// When there is no room for the instructions.
    pub fn go_with(&mut self, code: &[u8], with: &Registers, resume: u64) -> StepNumber {
        assert!(code.len() < CODE_BYTES, "{} bytes of code", code.len());
        let number = self.step(6, &[0, 0, 0, 0, 0, resume]);
        for (place, value) in with.words().iter().enumerate() {
            self.write(Self::word(number, INPUT + place), *value);
        }
        let at = Self::word(number, CODE);
        self.write_bytes(at, &[0xcc; CODE_BYTES]);
        self.write_bytes(at, code);
        number
    }

    /// Runs instructions in a ring.
    pub fn go(&mut self, ring: Ring, code: &[u8]) -> StepNumber {
        let with = self.registers(ring);
        self.go_with(code, &with, 0)
    }

    /// Starts the Guest on this process's own account, and runs it to its end. What it sends is
    /// noted.
    ///
    /// # Errors
    ///
    /// When the device refuses, or the Guest ends in no known way.
    pub fn run(&mut self) -> Result<End> {
        self.run_with(|_, _, _| Ok(()))
    }

    /// The same; the Launcher's side of each DMA is done by a function.
    ///
    /// # Errors
    ///
    /// As for `run`, and what the function says.
    pub fn run_with(
        &mut self,
        attend: impl FnMut(&mut Self, &Device, (u64, u64)) -> Result<()>,
    ) -> Result<End> {
        let device = self.initialize()?;
        self.go_on(&device, attend)
    }

    /// INITIALIZE, without running it yet.
    ///
    /// # Errors
    ///
    /// When the device refuses.
    pub fn initialize(&self) -> Result<Device> {
        let device = Device::open()?;
        let [pages, limit, entry, root, levels] = self.start;
        let base = self.memory.as_ptr() as u64;
        let words = [INITIALIZE, base, pages, limit, entry, root, levels];
        let answer = device.request(&words);
        ensure!(answer == Ok(56), "INITIALIZE {words:x?}: {answer:?}");
        Ok(device)
    }

    /// Runs it to its end, or to the end of its time.
    ///
    /// # Errors
    ///
    /// When it ends in no known way, and what the function says.
    pub fn go_on(
        &mut self,
        device: &Device,
        mut attend: impl FnMut(&mut Self, &Device, (u64, u64)) -> Result<()>,
    ) -> Result<End> {
        loop {
            let answer = {
                let _alarm = Alarm::after(self.limit)?;
                device.read(512)
            };
            match answer {
                Ok(record) => {
                    let word = |n: usize| -> Result<u64> {
                        let bytes = record.get(8 * n..8 * n + 8).context("a short record")?;
                        Ok(u64::from_ne_bytes(bytes.try_into()?))
                    };
                    let sent = (word(2)?, word(1)?);
                    self.sent.push(sent);
                    attend(self, device, sent)?;
                }
                Err(libc::ESHUTDOWN) => return Ok(End::Off),
                Err(libc::ERESTART) => return Ok(End::Restart),
                Err(libc::EINTR) => return Ok(End::Running),
                Err(libc::ENOENT) => {
                    let reason = device.read(512);
                    let reason =
                        reason.map_err(|number| anyhow::anyhow!("no reason: error {number}"))?;
                    let reason = String::from_utf8_lossy(&reason).into_owned();
                    ensure!(!reason.is_empty(), "the Guest died without a reason");
                    return Ok(End::Dead(reason));
                }
                Err(number) => bail!("read() failed with error {number}"),
            }
        }
    }

    /// Runs it; it must reach its end and power off.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn survive(&mut self) -> Result<()> {
        match self.run()? {
            End::Off => Ok(()),
            other => bail!("step {}: {other:?}", self.reached()),
        }
    }

    /// The step that the Guest was at last.
    pub fn reached(&self) -> StepNumber {
        self.number_of(self.read(STATE))
    }

    /// The step that lies at this address, guest-virtual.
    pub fn number_of(&self, address: u64) -> StepNumber {
        (address.wrapping_sub(LINEAR + STEPS) / STEP) as StepNumber
    }

    /// What became of a step.
    pub fn outcome(&self, step: StepNumber) -> Outcome {
        match self.read(Self::word(step, DONE)) {
            1 => Outcome::Done(self.read(Self::word(step, ANSWER))),
            2 => Outcome::Trapped(Trap::from_words(std::array::from_fn(|n| {
                self.read(Self::word(step, FRAME + n))
            }))),
            _ => Outcome::Never,
        }
    }

    /// How many traps a step has seen, those it came back from among them.
    pub fn traps(&self, step: StepNumber) -> u64 {
        self.read(Self::word(step, COUNT))
    }

    /// The registers after a step that trapped.
    pub fn after(&self, step: StepNumber) -> After {
        let selectors = self.read(Self::word(step, SELECTORS));
        After {
            general: std::array::from_fn(|n| self.read(Self::word(step, REGISTERS + n))),
            selectors: std::array::from_fn(|n| (selectors >> (16 * n)) as u16),
            fault_address: self.read(Self::word(step, CR2)),
            debug_status: self.read(Self::word(step, DR6)),
        }
    }

    /// All traps, in the order in which they came; the first [`LOG_ENTRIES`].
    pub fn log(&self) -> Vec<Trap> {
        let count = self.read(STATE + 32).min(LOG_ENTRIES);
        (0..count)
            .map(|n| {
                let at = LOG + 64 * n;
                Trap::from_words(std::array::from_fn(|word| self.read(at + 8 * word as u64)))
            })
            .collect()
    }

    /// A step whose code is at `rip`: where its instructions begin.
    pub fn code_at(&self, ring: Ring, step: StepNumber) -> u64 {
        let base = match ring {
            Ring::One => LINEAR + STEPS,
            _ => USER_STEPS,
        };
        base + STEP * step as u64 + 8 * CODE as u64
    }
}

/// A signal for this thread's system call, after some time or never.
#[derive(Debug)]
pub struct Alarm;

impl Alarm {
    /// Ends it after so long, until this is dropped.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn after(limit: Duration) -> Result<Self> {
        extern "C" fn nothing(_: libc::c_int) {}
        let action = SigAction::new(
            SigHandler::Handler(nothing),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: The handler does nothing, which may be done at any time.
        unsafe { sigaction(Signal::SIGALRM, &action) }?;
        Self::set(limit);
        Ok(Self)
    }

    fn set(limit: Duration) {
        let limit = libc::timeval {
            tv_sec: limit.as_secs().cast_signed(),
            tv_usec: limit.subsec_micros().into(),
        };
        // Again and again: on a busy machine the first may come before the system call has begun.
        let timer = libc::itimerval {
            it_interval: limit,
            it_value: limit,
        };
        // SAFETY: The structure is alive, and nothing is written back.
        let set =
            unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
        assert!(set == 0, "no timer");
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        Self::set(Duration::ZERO);
    }
}

/// Runs a Guest that must die, and checks that its reason has a text in it.
///
/// # Errors
///
/// When it lives, or dies of something else.
pub fn must_die(guest: &mut Bare, what: &str, says: &str) -> Result<()> {
    match guest.run().with_context(|| what.to_owned())? {
        End::Dead(reason) if reason.contains(says) => Ok(()),
        other => bail!(
            "{what}: {other:?} at step {}, not dead of {says:?}",
            guest.reached()
        ),
    }
}

/// Loads the module, and makes sure afterwards that nothing of any Guest is left.
///
/// # Errors
///
/// What the function says, or that something is left.
pub fn with_module(body: impl FnOnce() -> Result<()>) -> Result<()> {
    host::load_module()?;
    body()?;
    host::wait_until_free()
}
