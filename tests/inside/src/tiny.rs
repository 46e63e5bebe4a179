// SPDX-License-Identifier: GPL-2.0-only

//! Guests of a few instructions, set up without a Launcher.
//!
//! What a Launcher can do to the Host is best tried by a program that does one thing at a time and
//! knows what must follow. Each Guest here has one page of code and three of page tables, and says
//! something by sending a DMA record whose key is a number.

use std::arch::global_asm;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use anyhow::{Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::device::{Device, INITIALIZE};

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Guest-virtual address of the first byte of Guest memory.
const BASE: u64 = 0x4000_0000;
/// Where the code lies in Guest memory.
const CODE: usize = 0x1000;
/// The DMA record that is sent; its contents do not matter to the Host.
const RECORD: u64 = 0x2000;
/// Words that test and Guest exchange: see the programs.
const WORDS: usize = 0x3000;
/// The records that [`BOUND`] binds.
pub const BOUND_RECORDS: u64 = 0x4000;
/// The key that it binds them to.
pub const BOUND_KEY: u64 = 7;
/// How many they are: as many as fit a page.
pub const BOUND_COUNT: u64 = 24;
/// The line that goes with them.
pub const BOUND_LINE: u32 = 5;
/// The line that wakes [`NAP`].
pub const NAP_LINE: u64 = 3;
/// The first page that [`TOUCH`] touches.
pub const TOUCHED: usize = 16;
/// How often [`KEEP`] counts before it says so.
pub const KEPT_ROUNDS: u64 = 10;

// RBX holds the address of the words; R12 counts. There is no stack.
global_asm!(
    ".pushsection .rodata.tiny, \"a\"",
    ".macro tiny_call number",
    "mov eax, \\number",
    "int 0x1f",
    ".endm",
    ".macro tiny_start",
    "mov edi, 1",
    "tiny_call 1", // INIT, version 1
    "mov ebx, 0x40003000",
    "xor r12d, r12d",
    ".endm",
    ".macro tiny_send",
    "mov esi, 0x2000",
    "tiny_call 13", // SEND_DMA, key in RDI
    ".endm",
    // The end of a round of sums: number and sum are left in the first two words, the number is sent.
    ".macro tiny_sum_end",
    "dec ebp",
    "jnz 3b",
    "tiny_use",
    "mov [rbx], r12",
    "mov [rbx + 8], r13",
    "mov rdi, r12",
    "tiny_send",
    "jmp 2b",
    ".endm",
    // Gives itself a segment whose base is what it has counted to, and remembers that.
    ".macro tiny_own",
    "mov r15, r12",
    "and r15d, 0xffffff",
    "mov rcx, 0x40f3000000ffff",
    "mov rax, r15",
    "shl rax, 16",
    "or rax, rcx",
    "mov [rbx + 0x800], rax",
    "mov qword ptr [rbx + 0x808], 0",
    "mov qword ptr [rbx + 0x810], 0",
    "mov edi, 0x3800",
    "tiny_call 16",
    ".endm",
    // Loads it into FS, and looks whether it is still that one.
    ".macro tiny_use",
    "mov eax, 0x63",
    "mov fs, eax",
    "rdfsbase rax",
    "cmp rax, r15",
    "jne tiny_wrong",
    ".endm",
    ".globl tiny_begin, tiny_end, tiny_count, tiny_spin, tiny_halt, tiny_end_as, tiny_die",
    ".globl tiny_touch, tiny_mirror, tiny_bound, tiny_port, tiny_ring",
    ".globl tiny_sum, tiny_nap, tiny_keep",
    "tiny_begin:",
    // Sends 0, 1, 2 and so on.
    "tiny_count:",
    "tiny_start",
    "2: mov rdi, r12",
    "tiny_send",
    "inc r12",
    "jmp 2b",
    // Computes.
    "tiny_spin:",
    "tiny_start",
    "2: inc r12",
    "jmp 2b",
    // Sleeps; whenever it wakes up, takes a line and sleeps again.
    "tiny_halt:",
    "tiny_start",
    "2: tiny_call 10",
    "tiny_call 32",
    "jmp 2b",
    // Calls SHUTDOWN as the first word says, with a message of four bytes.
    "tiny_end_as:",
    "tiny_start",
    "mov edi, 0x3008",
    "mov rsi, [rbx]",
    "mov edx, 4",
    "tiny_call 2",
    // Does what nobody handles.
    "tiny_die:",
    "ud2",
    // Adds 1 to the first word of every page up to the address in the first word, forgets all
    // translations, sends how often it has done so, and again.
    "tiny_touch:",
    "tiny_start",
    "2: mov ecx, 0x40010000",
    "3: cmp rcx, [rbx]",
    "jae 4f",
    "add qword ptr [rcx], 1",
    "add rcx, 4096",
    "jmp 3b",
    "4: mov edi, 1",
    "tiny_call 5",
    "inc r12",
    "mov rdi, r12",
    "tiny_send",
    "jmp 2b",
    // Counts in the first word of every page up to the address in the first word, and never
    // forgets a translation. Sends how far it has come after ten rounds; or -1 for ever, if a page
    // has another number than it should, with the two numbers in words 1 and 3.
    "tiny_keep:",
    "tiny_start",
    "2: mov r13d, 10",
    "3: mov ecx, 0x40010000",
    "4: cmp rcx, [rbx]",
    "jae 5f",
    "mov rdx, [rcx]",
    "cmp rdx, r12",
    "jne 6f",
    "add qword ptr [rcx], 1",
    "add rcx, 4096",
    "jmp 4b",
    "5: inc r12",
    "dec r13d",
    "jnz 3b",
    "mov rdi, r12",
    "tiny_send",
    "jmp 2b",
    "6: mov [rbx + 8], rdx",
    "mov [rbx + 24], r12",
    "mov rdi, -1",
    "tiny_send",
    "jmp 6b",
    // Sends the first word, having copied it to the second.
    "tiny_mirror:",
    "tiny_start",
    "2: mov rdi, [rbx]",
    "mov [rbx + 8], rdi",
    "tiny_send",
    "jmp 2b",
    // Binds records, and goes on as `tiny_count`.
    "tiny_bound:",
    "tiny_start",
    "mov edi, 7",
    "mov esi, 0x4000",
    "mov edx, 24",
    "mov ecx, 5",
    "tiny_call 12",
    "2: mov rdi, r12",
    "tiny_send",
    "inc r12",
    "jmp 2b",
    // Writes to the port that ends this machine, and sends what it reads there.
    "tiny_port:",
    "tiny_start",
    "2: mov edx, 0xf4",
    "xor eax, eax",
    "out dx, eax",
    "in eax, dx",
    "mov edi, eax",
    "tiny_send",
    "jmp 2b",
    // Sends 0, 1, 2 and so on by way of the ring, 64 at a time. INIT has left the address of the
    // shared page in RAX.
    "tiny_ring:",
    "tiny_start",
    "mov r13, rax",
    "2: xor ecx, ecx",
    "lea rdx, [r13 + 0x140]",
    "3: mov qword ptr [rdx], 13",
    "mov [rdx + 8], r12",
    "mov qword ptr [rdx + 16], 0x2000",
    "mov byte ptr [r13 + rcx + 0x100], 0",
    "inc r12",
    "add rdx, 40",
    "inc ecx",
    "cmp ecx, 64",
    "jb 3b",
    "tiny_call 0",
    "jmp 2b",
    // Adds up 1, 2, 3 and so on, by way of memory; after 20,000 of them it leaves number and sum in
    // the first two words, and sends the number.
    "tiny_sum:",
    "tiny_start",
    "xor r13d, r13d",
    "2: tiny_own",
    "mov ebp, 20000",
    "3: inc r12",
    "add r13, r12",
    "mov [rbx + 16], r13",
    "mov r14, [rbx + 16]",
    "cmp r13, r14",
    "jne tiny_die",
    "tiny_sum_end",
    // Sends the base that it found, with bit 63.
    "tiny_wrong:",
    "mov rdi, rax",
    "bts rdi, 63",
    "tiny_send",
    "jmp tiny_wrong",
    // The same, with a sleep before each thousand: line 3 wakes it.
    "tiny_nap:",
    "tiny_start",
    "xor r13d, r13d",
    "mov edi, 35",
    "lea rsi, [rip + tiny_die]",
    "mov edx, 0x201",
    "tiny_call 6",
    "2: tiny_own",
    "4: tiny_call 10",
    "tiny_call 32",
    "test rax, rax",
    "jz 4b",
    "mov ebp, 1000",
    "3: inc r12",
    "add r13, r12",
    "tiny_sum_end",
    "tiny_end:",
    ".popsection",
);

/// A Guest's program: the place of its first instruction.
#[derive(Clone, Copy, Debug)]
pub struct Program(unsafe extern "C" fn());

/// Declares the programs by the labels above.
macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident = $label:ident;)*) => {
        unsafe extern "C" {
            fn tiny_begin();
            fn tiny_end();
            $(fn $label();)*
        }
        $($(#[$doc])* pub const $name: Program = Program($label);)*
    };
}

programs! {
    /// Sends 0, 1, 2 and so on.
    COUNT = tiny_count;
    /// Sends the same through the asynchronous ring.
    RING = tiny_ring;
    /// Computes for ever.
    SPIN = tiny_spin;
    /// Halts for ever.
    HALT = tiny_halt;
    /// Ends as word 0 says: 1 off, 2 restart, 3 crash.
    END_AS = tiny_end_as;
    /// Dies of an instruction that does not exist.
    DIE = tiny_die;
    /// Touches all pages from [`TOUCHED`] on up to the guest-virtual address in word 0, flushes
    /// everything, and sends how often it has done so.
    TOUCH = tiny_touch;
    /// Counts in all pages from [`TOUCHED`] on up to the address in word 0, and sends how far it
    /// has come after [`KEPT_ROUNDS`]; -1 if a page has lost count, with what it has and should
    /// have in words 1 and 3.
    KEEP = tiny_keep;
    /// Copies word 0 to word 1 and sends it.
    MIRROR = tiny_mirror;
    /// Binds records and goes on like [`COUNT`].
    BOUND = tiny_bound;
    /// Writes to the port that ends this machine, and sends what it reads there.
    PORT = tiny_port;
    /// Adds up all numbers; sends every 20,000th, with number and sum in words 0 and 1.
    SUM = tiny_sum;
    /// The same with every 1,000th, and a sleep before each until line [`NAP_LINE`] wakes it.
    NAP = tiny_nap;
}

/// Memory that is lent to a Guest.
#[derive(Debug)]
pub struct Memory {
    /// The address. Every use of it is a single volatile access, so threads may share it.
    base: usize,
    bytes: usize,
}

impl Memory {
    /// Fresh memory of this process alone.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn new(pages: usize) -> Result<Self> {
        let length = (pages * PAGE).try_into()?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: The kernel chooses a fresh place, so nothing that exists is replaced.
        let base = unsafe { mmap_anonymous(None, length, protection, flags) }?;
        Ok(Self {
            base: base.as_ptr() as usize,
            bytes: pages * PAGE,
        })
    }

    /// Memory that somebody else has mapped, and leaves to this structure to unmap.
    ///
    /// # Safety
    ///
    /// The mapping is whole, writable if anything is written, and nobody else's.
    pub unsafe fn adopt(base: NonNull<libc::c_void>, pages: usize) -> Self {
        let bytes = pages * PAGE;
        let base = base.as_ptr() as usize;
        Self { base, bytes }
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.base
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.bytes / PAGE
    }

    fn place(&self, at: usize) -> *mut u64 {
        assert!(at.is_multiple_of(8) && at < self.bytes);
        (self.base + at) as *mut u64
    }

    /// Writes a word at a guest-physical address.
    pub fn write(&self, at: usize, value: u64) {
        // SAFETY: The place is aligned and inside; a Guest may change it at any time.
        unsafe { self.place(at).write_volatile(value) }
    }

    /// Reads a word at a guest-physical address.
    pub fn read(&self, at: usize) -> u64 {
        // SAFETY: As above.
        unsafe { self.place(at).read_volatile() }
    }

    /// Writes one of the words that the programs look at.
    pub fn set_word(&self, n: usize, value: u64) {
        self.write(WORDS + 8 * n, value);
    }

    /// Reads one of them.
    pub fn word(&self, n: usize) -> u64 {
        self.read(WORDS + 8 * n)
    }

    /// The page of the words, as an offset in memory.
    pub const WORDS: usize = WORDS;

    /// Puts code, tables and words in their places; gives INITIALIZE's request.
    pub fn load(&self, program: Program) -> [u64; 7] {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 0x80;
        let begin = tiny_begin as *const () as usize;
        let length = tiny_end as *const () as usize - begin;
        assert!(length <= PAGE && self.pages() > TOUCHED);
        // SAFETY: The code lies between the two labels; the page for it is inside this memory.
        unsafe {
            ptr::copy_nonoverlapping(begin as *const u8, self.place(CODE).cast(), length);
        }
        let [root, third, second] = [1, 2, 3].map(|n| self.bytes - n * PAGE);
        self.write(root, third as u64 | PRESENT_WRITABLE);
        self.write(third + 8, second as u64 | PRESENT_WRITABLE);
        for n in 0..self.bytes.div_ceil(512 * PAGE).min(512) {
            let at = (n * 512 * PAGE) as u64;
            self.write(second + 8 * n, at | PRESENT_WRITABLE | LARGE);
        }
        self.set_word(0, BASE + self.bytes as u64 - 3 * PAGE as u64);
        let start = program.0 as *const () as usize - begin;
        let pages = self.pages() as u64;
        let entry = BASE + (CODE + start) as u64;
        let base = self.address() as u64;
        [INITIALIZE, base, pages, pages, entry, root as u64, 4]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The mapping is this structure's own, and nobody has a reference into it.
        let _ = NonNull::new(self.base as *mut _).map(|base| unsafe { munmap(base, self.bytes) });
    }
}

/// A Guest that can run.
#[derive(Debug)]
pub struct Tiny {
    /// The open file. It is closed before the memory goes.
    pub device: Device,
    /// The memory it was lent.
    pub memory: Memory,
}

impl Tiny {
    /// A Guest with this program, in fresh memory.
    ///
    /// # Errors
    ///
    /// When the Host does not take it.
    pub fn new(pages: usize, program: Program) -> Result<Self> {
        Self::within(Memory::new(pages)?, program)
    }

    /// The same in memory that is there.
    ///
    /// # Errors
    ///
    /// When the Host does not take it.
    pub fn within(memory: Memory, program: Program) -> Result<Self> {
        let device = Device::open()?;
        let words = memory.load(program);
        let answer = device.request(&words);
        ensure!(answer == Ok(56), "INITIALIZE: {}", say(answer));
        Ok(Self { device, memory })
    }

    /// Runs it until it has sent something; gives the key.
    ///
    /// # Errors
    ///
    /// When `read()` fails, with its error number, or returns something else.
    pub fn next(&self) -> Result<u64, i32> {
        self.device.next_key()
    }

    /// Runs it, and checks the key that it sends.
    ///
    /// # Errors
    ///
    /// When it sends another or ends.
    pub fn expect(&self, what: &str, key: u64) -> Result<()> {
        let answer = self.next();
        ensure!(
            answer == Ok(key),
            "{what}: {} instead of key {key}",
            say(answer)
        );
        Ok(())
    }

    /// Runs it to its violent end; gives the reason.
    ///
    /// # Errors
    ///
    /// When it does not end so.
    pub fn reason(&self) -> Result<String> {
        reason(&self.device)
    }

    /// The descriptor.
    pub fn fd(&self) -> i32 {
        self.device.0.as_raw_fd()
    }
}

/// Runs a Guest until it is dead; gives the reason.
///
/// # Errors
///
/// When it ends otherwise.
pub fn reason(device: &Device) -> Result<String> {
    for _ in 0..1000 {
        match device.read(256) {
            // It may have sent something before.
            Ok(_) | Err(libc::EINTR) => {}
            Err(libc::ENOENT) => return last_words(device),
            Err(number) => bail!("instead of dying it ended with {}", Errno::from_raw(number)),
        }
    }
    bail!("it did not die")
}

/// The reason why a Guest is dead, once `read()` has said ENOENT.
///
/// # Errors
///
/// When there is none.
pub fn last_words(device: &Device) -> Result<String> {
    let text = device.read(256);
    let text = text.map_err(|n| anyhow!("no reason: {}", Errno::from_raw(n)))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The key in a record that `read()` returned.
///
/// # Errors
///
/// When it is no record of a sent DMA from the programs here.
pub fn key_of(record: &[u8]) -> Result<u64> {
    let words: Vec<u64> = record
        .chunks_exact(8)
        .map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("eight bytes")))
        .collect();
    match words[..] {
        [head, RECORD, key] if head == 1 | 24 << 32 => Ok(key),
        _ => bail!("not a record: {words:x?}"),
    }
}

/// An answer of the system, for a message.
pub fn say<T: std::fmt::Debug>(answer: Result<T, i32>) -> String {
    match answer {
        Ok(value) => format!("{value:?}"),
        Err(number) => format!("{}", Errno::from_raw(number)),
    }
}
