// SPDX-License-Identifier: GPL-2.0-only

//! Faults: resolved, delivered, and fatal ones.

use core::arch::asm;

use rt::memory::{self, PRESENT, WRITABLE, entry, write_entry};
use rt::traps::{self, Frame, expect};
use rt::{Global, println, shared};

/// An address that nothing is mapped at.
const NOWHERE: u64 = 0x5000_0000;

static SEEN: Global<[u64; 4]> = Global::new([0; 4]);

/// Maps a page where the fault was, as a kernel does.
fn resolve(frame: &mut Frame) -> bool {
    if frame.vector != 14 {
        return false;
    }
    let address = shared!(fault_address);
    SEEN.set([frame.vector, frame.error, address, frame.cs]);
    let place = entry(memory::first_root(), address, 1);
    write_entry(place, memory::page() | PRESENT | WRITABLE);
    true
}

/// A fault that the Guest itself resolves: it must see the right address and error code, and the
/// instruction must be done again with the page there.
pub fn fault() {
    let pointer = (NOWHERE + 0x678) as *mut u64;
    expect(resolve);
    // SAFETY: The handler maps a page of this program's own there.
    unsafe { pointer.write_volatile(0x1234) };
    let [vector, error, address, cs] = SEEN.get();
    assert!(vector == 14, "no page fault came");
    assert!(
        error == 2,
        "the error code of a write to nowhere is {error:#x}"
    );
    assert!(address == NOWHERE + 0x678, "the address is {address:#x}");
    assert!(
        cs == u64::from(abi::segments::GUEST_KERNEL_CS),
        "CS is {cs:#x}"
    );
    // SAFETY: The page is there now.
    let value = unsafe { pointer.read_volatile() };
    assert!(value == 0x1234, "read back {value:#x}");
    expect(|_| false);

    // A read of nowhere, caught.
    let fault = traps::attempt_read(NOWHERE + memory::PAGE);
    let fault = fault.expect_err("a page that nobody mapped was read");
    assert!(fault.vector == 14 && fault.error == 0, "{fault:?}");
    assert!(fault.address == NOWHERE + memory::PAGE, "{fault:?}");

    // A write to a page that is read-only; ring 1 is bound by that as ring 0 is with CR0.WP.
    let place = entry(memory::first_root(), NOWHERE + 2 * memory::PAGE, 1);
    write_entry(place, memory::page() | PRESENT);
    let read = traps::attempt_read(NOWHERE + 2 * memory::PAGE);
    assert!(read == Ok(0), "{read:?}");
    let fault = traps::attempt_write(NOWHERE + 2 * memory::PAGE, 1);
    let fault = fault.expect_err("a page that may only be read was written");
    assert!(fault.vector == 14 && fault.error == 3, "{fault:?}");
    println!("good: faults resolved and delivered");
}

fn record(frame: &mut Frame) -> bool {
    SEEN.set([frame.vector, frame.error, frame.rip, frame.rflags]);
    // The instructions below are followed by a jump target in R15.
    if matches!(frame.vector, 0 | 6 | 13) {
        frame.rip = frame.registers[14];
    }
    true
}

/// The exceptions that an instruction of ring 1 can bring about, each with what comes with it.
pub fn traps() {
    expect(record);
    // SAFETY: Each trap is taken by `record`, which goes on at the label in R15; only the
    // registers named are touched.
    unsafe {
        asm!("int3");
        assert!(SEEN.get()[0] == 3, "int3 came as trap {}", SEEN.get()[0]);
        asm!("lea r15, [rip + 2f]", "xor ecx, ecx", "xor edx, edx", "div ecx", "2:",
            inout("eax") 1 => _, out("ecx") _, out("edx") _, out("r15") _);
        assert!(
            SEEN.get()[0] == 0,
            "division by 0 came as trap {}",
            SEEN.get()[0]
        );
        asm!("lea r15, [rip + 2f]", "ud2", "2:", out("r15") _);
        assert!(SEEN.get()[0] == 6, "ud2 came as trap {}", SEEN.get()[0]);
        // A non-canonical address: general protection, error code 0.
        asm!("lea r15, [rip + 2f]", "mov rax, [rax]", "2:",
            inout("rax") 0x8000_0000_0000_0000_u64 => _, out("r15") _);
        assert!(
            SEEN.get()[0] == 13,
            "a non-canonical read came as trap {}",
            SEEN.get()[0]
        );
        assert!(SEEN.get()[1] == 0, "its error code is {:#x}", SEEN.get()[1]);
    }
    // The frame of a reflected trap shows the virtual interrupt flag.
    rt::hypercall::enable_interrupts();
    // SAFETY: As above.
    unsafe { asm!("int3") };
    assert!(SEEN.get()[3] & 0x200 != 0, "the frame shows interrupts off");
    assert!(
        shared!(irq_enabled) == 0x200,
        "interrupts are off after the return"
    );
    rt::hypercall::disable_interrupts();
    // SAFETY: As above.
    unsafe { asm!("int3") };
    assert!(SEEN.get()[3] & 0x200 == 0, "the frame shows interrupts on");
    assert!(
        shared!(irq_enabled) == 0,
        "interrupts are on after the return"
    );
    println!("good: every trap came as it should");
}

/// IN and OUT in all their sizes: nothing is there, and nothing else changes.
pub fn ports() {
    let (mut b, mut w, mut d): (u64, u64, u64);
    // SAFETY: The Host emulates these instructions; there is no device behind them.
    unsafe {
        asm!("in al, dx", inout("rax") 0x1111_2222_3333_4444_u64 => b, in("edx") 0x60);
        asm!("in ax, dx", inout("rax") 0x1111_2222_3333_4444_u64 => w, in("edx") 0x60);
        asm!("in eax, dx", inout("rax") 0x1111_2222_3333_4444_u64 => d, in("edx") 0xcf8);
    }
    assert!(b == 0x1111_2222_3333_44ff, "in al, dx gives {b:#x}");
    assert!(w == 0x1111_2222_3333_ffff, "in ax, dx gives {w:#x}");
    assert!(d == 0xffff_ffff, "in eax, dx gives {d:#x}");
    // SAFETY: As above.
    unsafe {
        asm!("in al, 0x60", inout("rax") 0x1111_2222_3333_4444_u64 => b);
        asm!("in ax, 0x60", inout("rax") 0x1111_2222_3333_4444_u64 => w);
        asm!("in eax, 0x60", inout("rax") 0x1111_2222_3333_4444_u64 => d);
    }
    assert!(b == 0x1111_2222_3333_44ff, "in al, imm gives {b:#x}");
    assert!(w == 0x1111_2222_3333_ffff, "in ax, imm gives {w:#x}");
    assert!(d == 0xffff_ffff, "in eax, imm gives {d:#x}");
    let mut rax: u64;
    // Port 0xf4 is the device that ends this test's machine: if an OUT reached it, that would not
    // go unnoticed.
    // SAFETY: As above.
    unsafe {
        asm!("out dx, al", "out dx, ax", "out dx, eax", "out 0xf4, al", "out 0xf4, ax",
            "out 0xf4, eax", inout("rax") 0x1111_2222_3333_4444_u64 => rax, in("edx") 0xf4);
    }
    assert!(rax == 0x1111_2222_3333_4444, "OUT changed RAX to {rax:#x}");
    println!("good: ports read as all ones and swallow everything");
}

/// What ring 1 may not do arrives as general protection, or as the invalid opcode that the
/// processor makes of it.
pub fn privileged() {
    expect(record);
    macro_rules! forbidden {
        ($name:literal, $instruction:literal, $vector:pat) => {{
            SEEN.set([99; 4]);
            // SAFETY: The instruction does nothing but fault; `record` goes on after it.
            unsafe {
                asm!("lea r15, [rip + 2f]", $instruction, "2:", out("r15") _,
                    inout("rax") 0_u64 => _, inout("rcx") 0_u64 => _, inout("rdx") 0_u64 => _);
            }
            let [vector, ..] = SEEN.get();
            assert!(matches!(vector, $vector), "{} came as trap {vector}", $name);
        }};
    }
    // Nothing comes of these: the Host does them. (99 is no trap at all.)
    forbidden!("cli", "cli", 99);
    forbidden!("clts", "clts", 99);
    forbidden!("reading cr3", "mov rax, cr3", 99);
    forbidden!("invlpg", "invlpg [rax]", 99);
    forbidden!("wbinvd", "wbinvd", 99);
    forbidden!("mov dr7", "mov dr7, rax", 99);
    // What nobody has, or the Host cannot give: bits that must stay, a register that is none.
    forbidden!("mov cr0 of 0", "mov cr0, rax", 13);
    forbidden!("mov cr4 of 0", "mov cr4, rax", 13);
    forbidden!("rdmsr of 0", "rdmsr", 13);
    forbidden!("wrmsr of 0", "wrmsr", 13);
    forbidden!("rdpmc", "rdpmc", 13);
    forbidden!("swapgs", "swapgs", 13);
    forbidden!("lldt", "lldt ax", 13);
    forbidden!("ltr", "ltr ax", 13);
    forbidden!("int of the Host's", "int 0x30", 13);
    forbidden!("syscall", "syscall", 6);
    forbidden!("stac", "stac", 6 | 13);
    forbidden!("rdpkru", "rdpkru", 6);
    println!("good: nothing that is forbidden went through");
}
