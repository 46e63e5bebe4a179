// SPDX-License-Identifier: GPL-2.0-only

//! Ideas about single instructions: privileged ones, any bytes, selectors, flags, frames, the FPU.

use super::{Maker, dressed, memory, reg};
use crate::layout::{DATA1, LINEAR, TARGETS, USER_DATA};
use crate::plan::{Action, Must, Ring, Run, Word, loads_ss};

/// Instructions that ring 3 must not get past.
const KERNELS: [&[u8]; 34] = [
    b"\xfa",             // cli
    b"\xfb",             // sti
    b"\xe4\x60",         // in al, 0x60
    b"\xe7\xf4",         // out 0xf4, eax
    b"\xec",             // in al, dx
    b"\xee",             // out dx, al
    b"\x66\xed",         // in ax, dx
    b"\x6c",             // insb
    b"\xf3\x6e",         // rep outsb
    b"\x0f\x01\x13",     // lgdt [rbx]
    b"\x0f\x01\x1b",     // lidt [rbx]
    b"\x0f\x01\xf0",     // lmsw ax
    b"\x0f\x00\xd0",     // lldt ax
    b"\x0f\x00\xd8",     // ltr ax
    b"\x0f\x06",         // clts
    b"\x0f\x09",         // wbinvd
    b"\x0f\x20\xc0",     // mov rax, cr0
    b"\x0f\x20\xd0",     // mov rax, cr2
    b"\x0f\x20\xd8",     // mov rax, cr3
    b"\x0f\x20\xe0",     // mov rax, cr4
    b"\x44\x0f\x20\xc0", // mov rax, cr8
    b"\x0f\x22\xc0",     // mov cr0, rax
    b"\x0f\x22\xd8",     // mov cr3, rax
    b"\x0f\x22\xe0",     // mov cr4, rax
    b"\x0f\x21\xc0",     // mov rax, dr0
    b"\x0f\x21\xf8",     // mov rax, dr7
    b"\x0f\x23\xf8",     // mov dr7, rax
    b"\x0f\x30",         // wrmsr
    b"\x0f\x32",         // rdmsr
    b"\x0f\x33",         // rdpmc
    b"\x0f\x01\x3b",     // invlpg [rbx]
    b"\x0f\x01\xf8",     // swapgs
    b"\x48\x0f\x07",     // sysretq
    b"\xcd\x1f",         // int 0x1f: a hypercall
];

/// And others, of which each may come to something.
const OTHERS: [&[u8]; 36] = [
    b"\x0f\x05",             // syscall
    b"\x0f\x34",             // sysenter
    b"\x0f\x35",             // sysexit
    b"\x48\x0f\x35",         // sysexitq
    b"\x0f\x07",             // sysretl
    b"\x0f\x01\x03",         // sgdt [rbx]
    b"\x0f\x01\x0b",         // sidt [rbx]
    b"\x0f\x00\xc0",         // sldt eax
    b"\x0f\x00\xc8",         // str eax
    b"\x0f\x01\xe0",         // smsw eax
    b"\x0f\xa2",             // cpuid
    b"\x0f\x31",             // rdtsc
    b"\x0f\x01\xf9",         // rdtscp
    b"\x0f\x01\xd0",         // xgetbv
    b"\x0f\x01\xd1",         // xsetbv
    b"\x0f\x01\xee",         // rdpkru
    b"\x0f\x01\xef",         // wrpkru
    b"\x0f\x01\xca",         // clac
    b"\x0f\x01\xcb",         // stac
    b"\x0f\x01\xc8",         // monitor
    b"\x0f\x01\xc9",         // mwait
    b"\x0f\x01\xd8",         // vmrun
    b"\x0f\x01\xd9",         // vmmcall
    b"\x0f\x01\xc1",         // vmcall
    b"\x0f\x01\xdc",         // stgi
    b"\x0f\x01\xdd",         // clgi
    b"\x66\x0f\x38\x82\x03", // invpcid rax, [rbx]
    b"\x0f\xae\x23",         // xsave [rbx]
    b"\x0f\xaa",             // rsm
    b"\xf1",                 // icebp
    b"\xce",                 // into
    b"\xcd\x02",             // int 2
    b"\xcd\x08",             // int 8
    b"\xcd\x12",             // int 18
    b"\xcd\xec",             // int 0xec
    b"\xf3\x0f\xc7\xf8",     // rdpid rax
];

/// Whether this may change the ground under all that follows, in ring 1: control registers, MSRs,
/// debug registers.
fn is_deep(ring: Ring, code: &[u8]) -> bool {
    let deep = |pair: &[u8]| pair[0] == 0x0f && matches!(pair[1], 0x22 | 0x23 | 0x30);
    let lmsw = |three: &[u8]| three[..2] == [0x0f, 0x01] && three[2] >> 3 & 7 == 6;
    ring == Ring::One && (code.windows(2).any(deep) || code.windows(3).any(lmsw))
}

pub(super) fn instruction(maker: &mut Maker) {
    for _ in 0..1 + maker.below(3) {
        let ring = maker.pick(&[Ring::One, Ring::One, Ring::Three, Ring::Three32]);
        let private = maker.one_in(2);
        let code = match private {
            true => maker.pick(&KERNELS),
            false => maker.pick(&OTHERS),
        };
        if ring == Ring::One && code == b"\xcd\x1f" {
            // That is what other ideas are about.
            continue;
        }
        let must = match (private, ring) {
            (true, Ring::Three) => Must::Fail,
            _ => Must::Any,
        };
        let mut run = dressed(maker, Run::new(ring, code));
        if maker.one_in(6) {
            run.rflags = Some(0x302);
        }
        // Changes of its own tables and of CR0 are its end as often as not.
        let moves = matches!(code, b"\x0f\x22\xd8" | b"\x0f\x22\xe0" | b"\x0f\x22\xc0");
        if moves && ring == Ring::One && !maker.one_in(8) {
            continue;
        }
        maker.judged(must, Action::Run(run));
        if is_deep(ring, code) {
            maker.plan.steps.last_mut().expect("one was added").spoils = true;
        }
    }
}

/// Bytes at random, beginning like something that matters.
pub(super) fn bytes(maker: &mut Maker) {
    const PREFIXES: [u8; 12] = [
        0x66, 0x67, 0x48, 0x41, 0x44, 0xf0, 0xf2, 0xf3, 0x64, 0x65, 0x2e, 0x4f,
    ];
    const ONE: [u8; 20] = [
        0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef, 0xfa, 0xfb, 0x6c, 0xcf, 0xcb, 0xff, 0xc8,
        0x9d, 0x8c, 0xea, 0xc4, 0x62,
    ];
    const TWO: [u8; 20] = [
        0x00, 0x01, 0x02, 0x03, 0x06, 0x08, 0x09, 0x20, 0x21, 0x22, 0x23, 0x30, 0x32, 0x33, 0xae,
        0xc7, 0xa1, 0xa9, 0xb4, 0x38,
    ];
    let mut code = Vec::new();
    for _ in 0..maker.below(4) {
        code.push(maker.pick(&PREFIXES));
    }
    match maker.below(4) {
        0 => code.push(maker.pick(&ONE)),
        1 | 2 => code.extend([0x0f, maker.pick(&TWO)]),
        _ => {}
    }
    while code.len() < 22 {
        code.push(maker.random.word() as u8);
    }
    if loads_ss(&code) {
        return bytes(maker);
    }
    let ring = maker.pick(&[Ring::One, Ring::One, Ring::Three, Ring::Three32]);
    let mut run = dressed(maker, Run::new(ring, &code));
    // One instruction and a debug trap, or all of them.
    let single = !maker.one_in(4);
    run.rflags = Some(if single { 0x302 } else { 0x202 });
    let deep = is_deep(ring, &run.code);
    let action = Action::Run(run);
    if !deep && single || ring != Ring::One {
        maker.step(action);
    } else {
        maker.spoil(action);
    }
}

/// Selectors, loaded, looked at and jumped through.
pub(super) fn selectors(maker: &mut Maker) {
    let selector = match maker.below(6) {
        0..4 => 8 * (12 + maker.below(4)) + maker.pick(&[0, 1, 3, 3]),
        4 => 8 * maker.below(16) + maker.below(8),
        _ => maker.random.word() & 0xffff,
    };
    let loads: [&[u8]; 16] = [
        b"\x8e\xd8",             // mov ds, eax
        b"\x8e\xc0",             // mov es, eax
        b"\x8e\xe0",             // mov fs, eax
        b"\x8e\xe8",             // mov gs, eax
        b"\x50\x0f\xa1",         // push rax; pop fs
        b"\x50\x0f\xa9",         // push rax; pop gs
        b"\x0f\x02\xc8",         // lar ecx, eax
        b"\x0f\x03\xc8",         // lsl ecx, eax
        b"\x0f\x00\xe0",         // verr ax
        b"\x0f\x00\xe8",         // verw ax
        b"\x50\x53\x48\xcb",     // push rax; push rbx; retfq
        b"\x8e\xe0\x64\x8a\x07", // mov fs, eax; mov al, fs:[rdi]
        b"\xf3\x48\x0f\xae\xd1", // wrfsbase rcx
        b"\xf3\x48\x0f\xae\xd9", // wrgsbase rcx
        b"\xf3\x48\x0f\xae\xc0", // rdfsbase rax
        b"\x48\xff\x2b",         // jmp far [rbx]
    ];
    for _ in 0..1 + maker.below(3) {
        let ring = maker.pick(&[Ring::One, Ring::Three, Ring::Three32]);
        let code = maker.pick(&loads);
        let base = match maker.below(3) {
            0 => maker.random.word(),
            1 => maker.pick(&[0, 1 << 46, 1 << 47, 1 << 63, !0, !0 << 47]),
            _ => LINEAR + TARGETS,
        };
        let mut run = Run::new(ring, code).with(reg::RAX, selector);
        run = run.with(reg::RCX, base);
        if code == b"\x50\x53\x48\xcb" {
            // Anywhere, with one instruction there.
            let to = memory::address(maker).0;
            run = run.with(reg::RBX, to);
            run.rflags = Some(0x302);
        }
        maker.run(run);
    }
}

/// Flags at random.
pub(super) fn flags(maker: &mut Maker) {
    let all = 0x003f_7fd5;
    let flags = match maker.below(3) {
        0 => maker.random.word() & all,
        1 => 0x202 | maker.random.word() & maker.random.word() & all,
        _ => 0x202 | 1 << maker.pick(&[8, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21]),
    };
    let codes: [&[u8]; 8] = [
        b"\x90\x90\x90",                         // nop; nop; nop
        b"\x9c\x58",                             // pushfq; pop rax
        b"\x50\x9d\x90",                         // push rax; popfq; nop
        b"\xcd\x80\x90",                         // int 0x80; nop
        b"\x0f\x05\x90",                         // syscall; nop
        b"\x6a\x2b\x56\x50\x6a\x33\x56\x48\xcf", // push a frame for ring 3; iretq
        b"\x48\x8b\x47\x01",                     // mov rax, [rdi + 1]
        b"\xf3\x48\xab",                         // rep stosq
    ];
    let code = maker.pick(&codes);
    let ring = maker.pick(&[Ring::One, Ring::Three, Ring::Three32]);
    let mut run = Run::new(ring, code)
        .with(reg::RAX, flags)
        .with(reg::RCX, 3)
        .with(reg::RSI, USER_DATA)
        .with(
            reg::RDI,
            if ring == Ring::One {
                LINEAR + DATA1 + 256
            } else {
                USER_DATA + 256
            },
        );
    run.rflags = Some(flags);
    // Step after step.
    run.resume = if flags & 0x100 != 0 && maker.one_in(2) {
        2
    } else {
        0
    };
    if run.resume != 0 {
        // What it comes back to has to end by itself.
        run.code = b"\x90\x9c\x58\x90".to_vec();
    }
    maker.run(run);
}

/// What `iretq` is given: selectors, instruction and stack at random.
pub(super) fn frames(maker: &mut Maker) {
    let selector = |maker: &mut Maker| match maker.below(4) {
        0 => maker.random.word() & 0xffff,
        1 => 8 * maker.below(17) + maker.below(8),
        _ => maker.pick(&[
            0x09, 0x33, 0x23, 0x39, 0x2b, 1, 3, 0, 0x10, 0x18, 0x63, 0x61,
        ]),
    };
    let ring = maker.pick(&[Ring::One, Ring::Three]);
    let mut run = Run::new(ring, b"\x90");
    run.rflags = Some(0x302);
    if maker.one_in(2) {
        run.cs = Some(selector(maker));
    }
    if maker.one_in(2) {
        run.ss = Some(selector(maker));
    }
    if maker.one_in(2) {
        let rip = memory::address(maker).0;
        run.rip = Some(rip);
    }
    if maker.one_in(3) {
        let rsp = match maker.one_in(4) {
            true => memory::address(maker).0,
            false => Word::from(maker.pick(&[LINEAR + TARGETS + 0x801, USER_DATA + 0x803])),
        };
        run.rsp = Some(rsp);
    }
    maker.run(run);
}

/// The FPU: registers of nonsense, exceptions, and TS.
pub(super) fn fpu(maker: &mut Maker) {
    if maker.one_in(3) {
        let on = maker.below(2);
        maker.call(8, [on, 0, 0, 0]);
    }
    let codes: [&[u8]; 13] = [
        b"\xdb\xe3",                             // fninit
        b"\xd9\xe8\xd9\xee\xde\xf9\x9b",         // fld1; fldz; fdivp; fwait
        b"\xd9\x2f\xd9\xee\xd9\xe8\xde\xf1\x9b", // fldcw [rdi]; divide; fwait
        b"\x0f\xae\x17",                         // ldmxcsr [rdi]
        b"\x0f\xae\x1f",                         // stmxcsr [rdi]
        b"\x0f\xae\x0f",                         // fxrstor [rdi]
        b"\x48\x0f\xae\x0f",                     // fxrstor64 [rdi]
        b"\x0f\xae\x07",                         // fxsave [rdi]
        b"\xdd\x27",                             // frstor [rdi]
        b"\x66\x0f\x6e\xc0\x0f\x5e\xc1",         // movd xmm0, eax; divps xmm0, xmm1
        b"\xc5\xf8\x77",                         // vzeroupper
        b"\x0f\xae\x2f",                         // xrstor [rdi]
        b"\x0f\x06\x0f\x57\xc0",                 // clts; xorps xmm0, xmm0
    ];
    for _ in 0..1 + maker.below(3) {
        let ring = maker.pick(&[Ring::One, Ring::Three]);
        let page = if ring == Ring::One {
            LINEAR + DATA1
        } else {
            USER_DATA
        };
        if maker.one_in(2) {
            let at = LINEAR + DATA1 + 8 * maker.below(64);
            let value = maker.random.word();
            maker.poke(at, value);
        }
        let off = maker.pick(&[0, 0, 0, 16, 8, 1, 0xe00, 0xe10]);
        let code = maker.pick(&codes);
        let run = Run::new(ring, code).with(reg::RDI, page + off);
        maker.run(run);
    }
}
