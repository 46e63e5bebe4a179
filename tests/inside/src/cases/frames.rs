// SPDX-License-Identifier: GPL-2.0-only

//! Frames: those that the processor makes on a direct gate, against those that the Host makes when
//! it reflects a trap.
//!
//! Two Guests are the same to the byte but for one flag of LOAD_IDT_ENTRY. A handler writes down
//! what it finds before it changes anything: the words on its stack, RSP, SS, CS and RFLAGS.

use std::arch::global_asm;

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions};

use super::Bench;
use crate::bare::reg::{R8, RAX, RCX, RDX};
use crate::bare::{
    Bare, DIRECT, FREE, LINEAR, Outcome, PAGE, RING1_STACK, Ring, STATE, TRAP_STACK, USER_STACK,
    handler, with_module,
};
use crate::code;

const TF: u64 = 1 << 8;
const IF: u64 = 1 << 9;
const NT: u64 = 1 << 14;
const RF: u64 = 1 << 16;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

/// Where the handler lies, with its notes before it.
const NOTES: u64 = FREE + 30 * PAGE;

global_asm!(
    ".pushsection .rodata.frames, \"a\"",
    ".globl frames_notes, frames_handler, frames_end",
    "frames_notes:",
    ".rept 16",
    ".quad 0",
    ".endr",
    "frames_handler:",
    "mov [rip + frames_notes], rax",
    "mov [rip + frames_notes + 8], rsp",
    "mov eax, ss",
    "mov [rip + frames_notes + 16], rax",
    "mov eax, cs",
    "mov [rip + frames_notes + 24], rax",
    ".set place, 0",
    ".rept 6",
    "mov rax, [rsp + place]",
    "mov [rip + frames_notes + 48 + place], rax",
    ".set place, place + 8",
    ".endr",
    "pushfq",
    "pop rax",
    "mov [rip + frames_notes + 32], rax",
    "movabs rax, {state}",
    "mov rax, [rax + 8]",
    "mov eax, [rax]",
    "mov [rip + frames_notes + 40], rax",
    "mov rax, [rip + frames_notes]",
    // A jump to the engine's own handler follows.
    "frames_end:",
    ".popsection",
    state = const LINEAR + STATE,
);

unsafe extern "C" {
    static frames_notes: u8;
    static frames_handler: u8;
    static frames_end: u8;
}

/// What a handler finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    rsp: u64,
    ss: u64,
    cs: u64,
    rflags: u64,
    /// The virtual flag.
    enabled: u64,
    /// As many as the vector has, and then zeros.
    words: [u64; 6],
    /// The general registers.
    general: [u64; 15],
    /// Where the step's first instruction is.
    start: u64,
}

/// A way to a trap.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    vector: u8,
    ring: Ring,
    code: &'static [u8],
}

/// How the Guest is when it traps.
#[derive(Clone, Copy, Debug)]
struct State {
    rflags: u64,
    enabled: bool,
    rsp: u64,
}

/// Has a new Guest trap; `None` if that is not the trap that came.
fn trap(way: &Way, state: State, flags: u64) -> Result<Option<Found>> {
    let mut guest = Bare::new()?;
    guest.set_stack();
    let [begin, start, end] = [
        &raw const frames_notes,
        &raw const frames_handler,
        &raw const frames_end,
    ];
    let length = end.addr() - begin.addr();
    // SAFETY: The bytes between the two labels are constants of this program.
    let bytes = unsafe { std::slice::from_raw_parts(begin, length) };
    guest.write_bytes(NOTES, bytes);
    let jump = NOTES + length as u64;
    let distance = handler(way.vector).wrapping_sub(LINEAR + jump + 5);
    let distance = i32::try_from(distance.cast_signed())?;
    guest.write_bytes(jump, &[0xe9]);
    guest.write_bytes(jump + 1, &distance.to_le_bytes());
    let entry = LINEAR + NOTES + (start.addr() - begin.addr()) as u64;
    guest.call(6, [way.vector.into(), entry, flags, 0]);
    // A single step leaves the virtual flag as it is.
    guest.call(6, [1, handler(1), 1, 0]);
    // The FPU is on.
    guest.call(8, [0; 4]);
    guest.poke_shared(0, if state.enabled { IF } else { 0 });
    let mut with = guest.registers(way.ring);
    with.rflags = state.rflags;
    with.rsp -= state.rsp;
    with.general[RCX] = 0;
    with.general[RAX] = 5;
    with.general[RDX] = 0x5000_0000;
    with.general[R8] = 1 << 47;
    // Single steps are only passed by.
    let step = guest.go_with(way.code, &with, 1 << 1);
    guest.survive()?;
    match guest.outcome(step) {
        Outcome::Trapped(trap) if trap.vector == u64::from(way.vector) => (),
        Outcome::Trapped(_) => return Ok(None),
        other => bail!("{other:?}"),
    }
    let word = |place: u64| guest.read(NOTES + 8 * place);
    let mut words = std::array::from_fn(|place| word(6 + place as u64));
    if !has_code(way.vector) {
        words[5] = 0;
    }
    Ok(Some(Found {
        rsp: word(1),
        ss: word(2),
        cs: word(3),
        rflags: word(4),
        enabled: word(5),
        words,
        general: guest.after(step).general,
        start: with.rip,
    }))
}

const fn has_code(vector: u8) -> bool {
    matches!(vector, 10..=14 | 17)
}

/// All ways to traps whose gates may be direct.
fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    let mut way = |name, vector, rings: &[Ring], code| {
        for ring in rings {
            let ring = *ring;
            ways.push(Way {
                name,
                vector,
                ring,
                code,
            });
        }
    };
    let both = [Ring::One, Ring::Three];
    way("div", 0, &both, code!("div ecx"));
    way("div", 0, &[Ring::Three32], code!("div ecx"));
    way("int3", 3, &both, code!("int3"));
    way("int 3", 3, &both, &[0xcd, 3]);
    way("int 4", 4, &both, &[0xcd, 4]);
    way("into", 4, &[Ring::Three32], &[0xce]);
    way("bound", 5, &[Ring::Three32], &[0x62, 0x07]);
    way("ud2", 6, &both, code!("ud2"));
    way("ud2", 6, &[Ring::Three32], code!("ud2"));
    way("syscall", 6, &[Ring::Three], code!("syscall"));
    let x87 = code!(
        "fninit",
        "push 0x37b",
        "fldcw [rsp]",
        "add rsp, 8",
        "fld1",
        "fldz",
        "fdivp",
        "fwait"
    );
    way("x87", 16, &both, x87);
    let sse = code!(
        "push 0x1f00",
        "ldmxcsr [rsp]",
        "add rsp, 8",
        "xorps xmm0, xmm0",
        "divps xmm0, xmm0"
    );
    way("SSE", 19, &both, sse);
    way("alignment", 17, &[Ring::Three], code!("mov eax, [rdi + 1]"));
    way("int 0x80", 0x80, &both, code!("int 0x80"));
    way("int 0x80", 0x80, &[Ring::Three32], code!("int 0x80"));
    ways
}

pub fn frames(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let (mut pairs, mut without) = (0, Vec::new());
        for way in ways() {
            let what = format!("{} in {:?}", way.name, way.ring);
            let mut here = 0;
            for (bits, enabled) in [
                (0, false),
                (0, true),
                (0xcd5, true),
                (TF, true),
                (NT, false),
                (RF, true),
                (AC | ID, true),
                (TF | NT | RF | AC | ID | 0xcd5, false),
            ] {
                let mut rflags = 0x202 | bits;
                match way.name {
                    "into" => rflags |= 1 << 11,
                    "alignment" => rflags |= AC,
                    _ => (),
                }
                // From ring 1 the frame goes on from where the stack is, which is anywhere.
                let odd = if way.ring == Ring::One { 3 } else { 0 };
                for rsp in [0, odd] {
                    let state = State {
                        rflags,
                        enabled,
                        rsp,
                    };
                    let what = || format!("{what}, {state:x?}");
                    let direct = trap(&way, state, 3 | DIRECT).with_context(what)?;
                    let reflected = trap(&way, state, 3 | 1 << 9).with_context(what)?;
                    match (direct, reflected) {
                        (Some(direct), Some(reflected)) => {
                            alike(direct, reflected, enabled, has_code(way.vector))
                                .with_context(what)?;
                            here += 1;
                        }
                        (None, None) => (),
                        other => bail!("{}: {other:x?}", what()),
                    }
                }
            }
            pairs += here;
            if here == 0 {
                without.push(what);
            }
        }
        // QEMU's own processor has neither the alignment check nor traps of SSE.
        let known = |what: &String| what.starts_with("alignment") || what.starts_with("SSE");
        let known = without.iter().all(known);
        ensure!(known, "no trap at all: {without:?}");
        let note = format!("{pairs} pairs of frames are alike; no trap: {without:?}");
        bench.control.say("note", &note)?;
        let others = with_codes()?;
        bench
            .control
            .say("note", &format!("{others} frames with an error code"))
    })
}

/// Two frames are the same but for what is documented: the interrupt flag, which is the virtual
/// one only if the Host has made the frame, and what becomes of that one.
fn alike(direct: Found, reflected: Found, enabled: bool, code: bool) -> Result<()> {
    let flags = if code { 3 } else { 2 };
    let on = if enabled { IF } else { 0 };
    ensure!(direct.words[flags] & IF != 0, "direct: {direct:x?}");
    ensure!(
        reflected.words[flags] & IF == on,
        "reflected: {reflected:x?}"
    );
    ensure!(
        (direct.enabled, reflected.enabled) == (on, 0),
        "the virtual flag: {direct:x?}, {reflected:x?}"
    );
    let mut wanted = direct;
    wanted.words[flags] = reflected.words[flags];
    wanted.enabled = 0;
    if !enabled {
        wanted.words[flags] = direct.words[flags] & !IF;
    }
    ensure!(
        reflected == wanted,
        "direct {direct:x?}\nreflected {reflected:x?}"
    );
    Ok(())
}

/// Traps with an error code never have a direct gate, alignment apart: their frames are compared
/// with what the manual says. Gives how many there were.
fn with_codes() -> Result<usize> {
    let mut count = 0;
    for ring in [Ring::One, Ring::Three] {
        let user = if ring == Ring::Three { 4 } else { 0 };
        let mut tries: Vec<(u8, u64, &'static [u8])> = vec![
            // A selector outside the table, one in the LDT, an address that is none.
            (13, 0xffe8, code!("mov eax, 0xffeb", "mov ds, eax")),
            (13, 0xc, code!("mov eax, 0xf", "mov ds, eax")),
            (13, 0, code!("mov rax, [r8]")),
            (14, user, code!("mov rax, [rdx]")),
            (14, 2 | user, code!("mov [rdx], rax")),
            (14, 0x10 | user, code!("jmp rdx")),
        ];
        if ring == Ring::Three {
            tries.push((13, 0, code!("hlt")));
            tries.push((
                14,
                5,
                code!("mov rax, 0xffff888000000000", "mov rax, [rax]"),
            ));
        }
        for (vector, error, code) in tries {
            let state = State {
                rflags: 0x2 | IF | AC | ID | 0xcd5,
                enabled: true,
                rsp: 0,
            };
            let name = "with a code";
            let way = Way {
                name,
                vector,
                ring,
                code,
            };
            let what = || format!("{code:x?} in {ring:?}");
            let found = trap(&way, state, 3 | 1 << 9).with_context(what)?;
            let found = found.with_context(|| format!("{}: another trap", what()))?;
            let (stack, ss) = match ring {
                Ring::One => (LINEAR + RING1_STACK, 0x39),
                _ => (LINEAR + TRAP_STACK, 0x01),
            };
            let old = if ring == Ring::One { stack } else { USER_STACK };
            let [got, rip, cs, rflags, rsp, old_ss] = found.words;
            // All of them are faults, at the last instruction, or at where that one went.
            let instructions = Decoder::with_ip(64, code, found.start, DecoderOptions::NONE);
            let last = instructions.into_iter().last();
            let last = last.with_context(what)?.ip();
            let last = if error & 0x10 != 0 && vector == 14 {
                0x5000_0000
            } else {
                last
            };
            let right = (got, rip) == (error, last)
                && (cs, rsp, old_ss) == (ring.cs(), old, ring.ss())
                && rflags & !RF == state.rflags
                && (found.rsp, found.ss, found.cs) == (stack - 48, ss, 0x09)
                && found.rflags == state.rflags
                && found.enabled == 0;
            ensure!(right, "{}: {found:x?}, error {error:#x}", what());
            count += 1;
        }
    }
    Ok(count)
}
