// SPDX-License-Identifier: GPL-2.0-only

//! The smallest virtual machines under KVM: one to measure beside a Guest of ours, and one that
//! computes and halts, to take turns with Guests of ours.
//!
//! Each has 12 KiB of memory, one page of them code. The first is otherwise made as the well-known
//! users of KVM make theirs: with an interrupt controller in the kernel, switched on, and with all
//! of CPUID that KVM supports. (Without these two a call takes 196 instructions less, and no system
//! could run in the machine.) Its program does what the test Guest does for its own round trip:
//! read the TSC, call the hypervisor for nothing, read the TSC again. The least of each round is
//! left in its memory. The second has neither, so that its HLT ends a run.

use std::arch::global_asm;
use std::ffi::CString;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::slice;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::kmod::{self, DeleteModuleFlags, ModuleInitFlags};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::host;

/// KVM's modules, in the order in which they are loaded, as they lie under `/lib`.
pub const MODULES: [&str; 3] = ["irqbypass.ko", "kvm.ko", "kvm-amd.ko"];

/// Rounds of 1,000 calls.
const ROUNDS: usize = 5;
/// Bytes of memory.
const MEMORY: usize = 0x3000;
/// Where the program begins.
const CODE: usize = 0x1000;
/// Where it leaves a word for each round.
const RESULTS: usize = 0x2000;

// 32-bit code, for a processor in protected mode without paging. Hypercall 1 is
// KVM_HC_VAPIC_POLL_IRQ: KVM returns 0 and does nothing.
global_asm!(
    ".pushsection .rodata",
    ".code32",
    "kvm_program:",
    "    mov edi, {results}",
    "2:  mov ebx, -1",
    "    mov ebp, 1000",
    "3:  rdtsc",
    "    mov esi, eax",
    "    mov eax, 1",
    "    vmmcall",
    "    rdtsc",
    "    sub eax, esi",
    "    cmp eax, ebx",
    "    jae 4f",
    "    mov ebx, eax",
    "4:  dec ebp",
    "    jnz 3b",
    "    mov [edi], ebx",
    "    add edi, 4",
    "    cmp edi, {end}",
    "    jb 2b",
    "    out 0xf4, al",
    "kvm_program_end:",
    ".code64",
    ".popsection",
    results = const RESULTS,
    end = const RESULTS + 4 * ROUNDS,
);

// Also 32-bit code. From the word at EBX it computes another, as `Sums::expected` does, puts that
// into the next word, and halts; run again, it starts over.
global_asm!(
    ".pushsection .rodata",
    ".code32",
    "kvm_sums:",
    "    mov eax, [ebx]",
    "    mov ecx, {steps}",
    "2:  imul eax, eax, {factor}",
    "    add eax, ecx",
    "    dec ecx",
    "    jnz 2b",
    "    mov [ebx + 4], eax",
    "    hlt",
    "    jmp kvm_sums",
    "kvm_sums_end:",
    ".code64",
    ".popsection",
    steps = const STEPS,
    factor = const FACTOR,
);

/// How often the second program multiplies, and by what.
const STEPS: u32 = 200;
const FACTOR: u32 = 1_664_525;

/// The bytes between two labels.
///
/// # Safety
///
/// Both must be in one block of assembly in read-only memory, in this order.
unsafe fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: The caller's promise.
    unsafe { slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The first program, as the assembler made it.
fn program() -> &'static [u8] {
    unsafe extern "C" {
        static kvm_program: u8;
        static kvm_program_end: u8;
    }
    // SAFETY: As asked.
    unsafe { between(&raw const kvm_program, &raw const kvm_program_end) }
}

/// The second.
fn sums() -> &'static [u8] {
    unsafe extern "C" {
        static kvm_sums: u8;
        static kvm_sums_end: u8;
    }
    // SAFETY: As asked.
    unsafe { between(&raw const kvm_sums, &raw const kvm_sums_end) }
}

/// Memory of the virtual machine's, zeroed.
struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> Result<Self> {
        let size = NonZeroUsize::new(MEMORY).context("no memory at all")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping replaces nothing.
        let place = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE) }?;
        Ok(Self(place.cast()))
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        ensure!(at + bytes.len() <= MEMORY, "the program is too long");
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: Inside the mapping, by the check.
            unsafe { self.0.add(at + n).write_volatile(*byte) };
        }
        Ok(())
    }

    fn word(&self, at: usize) -> Result<u32> {
        ensure!(
            at.is_multiple_of(4) && at + 4 <= MEMORY,
            "no word at {at:#x}"
        );
        // SAFETY: Inside the mapping and aligned, by the check.
        Ok(unsafe { self.0.add(at).cast::<u32>().read_volatile() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The mapping is this value's own. A mapping that stays does no harm.
        let _ = unsafe { munmap(self.0.cast(), MEMORY) };
    }
}

/// Loads KVM unless it is there.
///
/// # Errors
///
/// When a module is not in the machine, or is refused.
pub fn load() -> Result<()> {
    if Path::new("/dev/kvm").exists() {
        return Ok(());
    }
    for name in MODULES {
        let path = Path::new("/lib").join(name);
        let file = File::open(&path).with_context(|| format!("no {}", path.display()))?;
        kmod::finit_module(&file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("the kernel refuses {name}"))?;
    }
    Ok(())
}

/// Why KVM cannot be tried in this machine, if so.
pub fn missing() -> Option<String> {
    let lacks = |name: &&&str| !Path::new("/lib").join(name).exists();
    if let Some(name) = MODULES.iter().find(lacks) {
        return Some(format!("there is no {name} for this kernel"));
    }
    if !host::has_flag("svm") {
        return Some("the processor has no SVM".to_owned());
    }
    let vendor = host::vendor();
    let other = vendor == "GenuineIntel";
    other.then(|| format!("kvm-amd does not take a processor of {vendor}"))
}

/// Whether KVM's modules are in the kernel.
pub fn loaded() -> bool {
    Path::new("/sys/module/kvm").exists()
}

/// Takes KVM's modules out of the kernel.
///
/// # Errors
///
/// When the kernel does not let go of one.
pub fn unload() -> Result<()> {
    for name in MODULES.iter().rev() {
        // The kernel's own name for it has no `.ko`, and no dashes.
        let own = name.trim_end_matches(".ko").replace('-', "_");
        let own = CString::new(own)?;
        match kmod::delete_module(&own, DeleteModuleFlags::O_NONBLOCK) {
            // What a kernel has built in, or another program took out.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => bail!("the kernel does not let go of {name}: {error}"),
        }
    }
    ensure!(!loaded(), "KVM is still there");
    Ok(())
}

/// A flat segment over all of the address space.
fn segment(kind: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// A virtual machine of one processor.
struct Machine {
    processor: VcpuFd,
    /// Nobody asks it anything more, but it must be there.
    _machine: VmFd,
    /// The last to be dropped: the machine uses it.
    memory: Memory,
}

impl Machine {
    /// A machine at the beginning of a program; with the interrupt controller and CPUID, or bare.
    fn new(program: &[u8], complete: bool) -> Result<Self> {
        let mut memory = Memory::new()?;
        memory.write(CODE, program)?;
        let kvm = Kvm::new()?;
        let machine = kvm.create_vm()?;
        if complete {
            // The interrupt controllers of the processors in the kernel, the one of the board
            // outside.
            let mut controller = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..kvm_enable_cap::default()
            };
            controller.args[0] = 24;
            machine.enable_cap(&controller)?;
        }
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.addr().get() as u64,
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: The region is `memory`, which outlives the machine.
        unsafe { machine.set_user_memory_region(region) }?;
        let processor = machine.create_vcpu(0)?;
        if complete {
            processor.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
            // Bit 8 of the register at 0xf0 switches it on.
            let mut controller = processor.get_lapic()?;
            controller.regs[0xf1] = 1;
            processor.set_lapic(&controller)?;
        }
        let mut special = processor.get_sregs()?;
        special.cs = segment(11, 8);
        for data in [&mut special.ds, &mut special.es, &mut special.ss] {
            *data = segment(3, 16);
        }
        // Protected mode.
        special.cr0 |= 1;
        processor.set_sregs(&special)?;
        processor.set_regs(&kvm_regs {
            rip: CODE as u64,
            rbx: RESULTS as u64,
            rflags: 2,
            ..kvm_regs::default()
        })?;
        Ok(Self {
            processor,
            _machine: machine,
            memory,
        })
    }
}

/// A machine that computes a word from another whenever it is run.
pub struct Sums(Machine);

impl Sums {
    /// A machine that has not computed anything yet.
    ///
    /// # Errors
    ///
    /// When KVM is not there, or does not make one.
    pub fn new() -> Result<Self> {
        Ok(Self(Machine::new(sums(), false)?))
    }

    /// Runs it up to its HLT, and checks what it has computed and the registers it has not used.
    ///
    /// # Errors
    ///
    /// When it ends otherwise, or something in it is wrong.
    pub fn run(&mut self, word: u32) -> Result<()> {
        let Machine {
            processor, memory, ..
        } = &mut self.0;
        memory.write(RESULTS, &word.to_le_bytes())?;
        let mut before = processor.get_regs()?;
        let kept = u64::from(word) << 1 | 1;
        (before.rsi, before.rdi, before.rbp, before.rdx) = (kept, !kept & 0xffff_ffff, kept, kept);
        processor.set_regs(&before)?;
        match processor.run()? {
            VcpuExit::Hlt => {}
            other => bail!("KVM's machine ended with {other:?}"),
        }
        let result = memory.word(RESULTS + 4)?;
        let expected = Self::expected(word);
        ensure!(
            result == expected,
            "KVM's machine has made {result:#x} of {word:#x}, not {expected:#x}"
        );
        let after = processor.get_regs()?;
        let registers = |regs: &kvm_regs| (regs.rbx, regs.rsi, regs.rdi, regs.rbp, regs.rdx);
        ensure!(
            registers(&after) == registers(&before),
            "registers of KVM's machine have changed from {before:x?} to {after:x?}"
        );
        Ok(())
    }

    /// What its program makes of a word.
    fn expected(word: u32) -> u32 {
        let step = |word: u32, n: u32| word.wrapping_mul(FACTOR).wrapping_add(n);
        (1..=STEPS).rev().fold(word, step)
    }
}

/// The fewest ticks from one reading of the TSC to the other with a call between them, for each
/// round of 1,000.
///
/// # Errors
///
/// When KVM is not there, or the program does not end as it should.
pub fn round_trips() -> Result<[u32; ROUNDS]> {
    let mut machine = Machine::new(program(), true)?;
    match machine.processor.run()? {
        VcpuExit::IoOut(0xf4, _) => {}
        other => bail!("KVM's machine ended with {other:?}"),
    }
    let mut rounds = [0; ROUNDS];
    for (n, round) in rounds.iter_mut().enumerate() {
        *round = machine.memory.word(RESULTS + 4 * n)?;
        ensure!(*round != 0 && *round != u32::MAX, "round {n} was not run");
    }
    Ok(rounds)
}
