// SPDX-License-Identifier: GPL-2.0-only

//! What a system call costs: from ring 3 into ring 1 and back, in ticks of the time-stamp counter.

use core::arch::global_asm;

use rt::memory::{self, PRESENT, USER, entry, write_entry};
use rt::{boot, println, traps, user};

/// Where ring 3 finds the loops, guest-virtual.
const CODE: u64 = 0x42_0000;

global_asm!(
    ".globl probe_timed, probe_timed_end, probe_timed_call, probe_timed_invalid",
    // In ring 3. RDI: 0 for `int 0x80`, 1 for `syscall`. RSI: how often. The least is left in DATA.
    "probe_timed:",
    "mov r13, rsi",
    "mov r14d, -1",
    "test edi, edi",
    "jnz 3f",
    "2: rdtsc",
    "mov esi, eax",
    "mov eax, 39",
    "int 0x80",
    "rdtsc",
    "sub eax, esi",
    "cmp eax, r14d",
    "cmovb r14d, eax",
    "dec r13",
    "jnz 2b",
    "jmp 4f",
    "3: rdtsc",
    "mov esi, eax",
    "mov eax, 39",
    "syscall",
    "rdtsc",
    "sub eax, esi",
    "cmp eax, r14d",
    "cmovb r14d, eax",
    "dec r13",
    "jnz 3b",
    "4: mov eax, {data}",
    "mov [rax], r14",
    "int3",
    "probe_timed_end:",
    // The shortest system call there is.
    "probe_timed_call:",
    "lea rax, [rdi + 1]",
    "iretq",
    // An invalid opcode: the same, if it was `syscall` in ring 3.
    "probe_timed_invalid:",
    "test byte ptr [rsp + 8], 2",
    "jz rt_stubs + 16 * 6",
    "push rcx",
    "mov rcx, [rsp + 8]",
    "cmp word ptr [rcx], 0x050f",
    "jne 5f",
    "add rcx, 2",
    "add rsp, 8",
    "mov [rsp], rcx",
    "and dword ptr [rsp + 16], 0xfffeffff",
    "mov r11, [rsp + 16]",
    "lea rax, [rdi + 1]",
    "iretq",
    "5: pop rcx",
    "jmp rt_stubs + 16 * 6",
    data = const user::DATA,
);

unsafe extern "C" {
    static probe_timed: u8;
    static probe_timed_end: u8;
    static probe_timed_call: u8;
    static probe_timed_invalid: u8;
}

/// Measures both instructions, straight and through the Host.
pub fn syscalls() {
    let rounds = boot::number("rounds").unwrap_or(5);
    user::prepare();
    let (start, end) = (&raw const probe_timed, &raw const probe_timed_end);
    let page = memory::page();
    // SAFETY: The loops lie between two symbols of this image, and fit the fresh page.
    unsafe { memory::linear::<u8>(page).copy_from(start, end as usize - start as usize) };
    write_entry(entry(memory::first_root(), CODE, 1), page | PRESENT | USER);
    let handlers = [
        (0x80, &raw const probe_timed_call as u64, 3),
        (6, &raw const probe_timed_invalid as u64, 1),
    ];
    for direct in [true, false] {
        let way = if direct { "" } else { " reflected" };
        for (vector, handler, dpl) in handlers {
            traps::load(vector, handler, dpl, direct, false);
        }
        for (instruction, name) in [(0, "int80"), (1, "syscall")] {
            let mut best = u64::MAX;
            for _ in 0..rounds {
                let ended = user::run(CODE, instruction, 1000);
                let fault = ended.expect_err("the loop ends with a breakpoint");
                assert!(fault.vector == 3, "{name}{way}: {fault:?}");
                // SAFETY: The page is mapped for ring 3, and ring 1 may read it too.
                best = best.min(unsafe { (user::DATA as *const u64).read_volatile() });
            }
            println!("good: {name}{way} {best}");
        }
    }
}
