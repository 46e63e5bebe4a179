// SPDX-License-Identifier: GPL-2.0-only

//! An interrupt at every instruction of the Guest's stubs and of its return window.
//!
//! What runs here is the text of the book's own Guest, taken out of its image: a stub, the common
//! part that it leads to, and the way back. It is laid into a bare Guest so that one chosen
//! instruction is the first of a page, and that page is flushed. The Guest gets there without an
//! exit; there it must have one, since the Host's shadow has no such page. An interrupt line is
//! pending and the Guest has not been told: so for the Host this is the moment at which it comes.
//!
//! The Guest's program makes one system call, straight into ring 1. Whatever the instruction was,
//! the interrupt must be taken once, in the program and never in the kernel's own code, on a stack
//! that has not grown; and the program must not notice.

use std::arch::global_asm;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use object::{Object, ObjectSection, ObjectSymbol};

use super::Bench;
use super::exits::folders;
use crate::bare::reg::RBX;
use crate::bare::{
    Bare, End, FREE, LINEAR, LOWER, Outcome, PAGE, RING1_STACK, RW, RWU, Registers, Ring, STATE,
    StepNumber, TRAP_STACK, UPPER, in_engine, with_module,
};
use crate::code;

/// The book's Guest.
const IMAGE: &str = "/guests/guest";
/// The two lines, which are taken in this order.
const LINES: [u64; 2] = [5, 9];
/// Bytes of a stub.
const STUB: u64 = 16;
/// Bytes from a frame's lowest word to its end, as the stubs make it.
const FRAME: u64 = 176;
/// In place of the Guest's Rust: it writes the frame down.
const HANDLER: u64 = FREE + 36 * PAGE;
/// The number of frames written down, and from 64 bytes on the frames.
const FRAMES: u64 = FREE + 38 * PAGE;
/// So many have room.
const MOST_FRAMES: u64 = 120;
/// Two words: RSP as a trap from ring 3 leaves it, and the top of the task's stack.
const WORDS: u64 = FREE + 40 * PAGE;
/// The top of the stack to which a trap from ring 3 is taken.
const TASK_STACK: u64 = FREE + 43 * PAGE;
/// Bytes of what a stub has on the trap stack when it is taken from there.
const LANDED: u64 = 56;
/// Where ring 3 finds its program.
const USER_PROGRAM: u64 = 0x40_2000;
/// Flags that must come back: all of the arithmetic ones, the direction, and interrupts on.
const FLAGS: u64 = 0xed7;
const IF: u64 = 0x200;

global_asm!(
    ".pushsection .rodata.window, \"a\"",
    ".globl window_handler, window_handler_end",
    "window_handler:",
    "movabs r8, {frames}",
    "mov rcx, [r8]",
    "inc qword ptr [r8]",
    "cmp rcx, {most}",
    "jae 2f",
    "shl rcx, 6",
    "lea r8, [r8 + rcx + 64]",
    // The step, then vector, RIP, CS, RFLAGS, RSP and SS, and where they were.
    "movabs rax, {state}",
    "mov rax, [rax]",
    "mov [r8], rax",
    "mov rax, [rdi + 120]",
    "mov [r8 + 8], rax",
    "mov rax, [rdi + 136]",
    "mov [r8 + 16], rax",
    "mov rax, [rdi + 144]",
    "mov [r8 + 24], rax",
    "mov rax, [rdi + 152]",
    "mov [r8 + 32], rax",
    "mov rax, [rdi + 160]",
    "mov [r8 + 40], rax",
    "mov rax, [rdi + 168]",
    "mov [r8 + 48], rax",
    "mov [r8 + 56], rdi",
    "2: ret",
    "window_handler_end:",
    ".popsection",
    frames = const LINEAR + FRAMES,
    most = const MOST_FRAMES,
    state = const LINEAR + STATE,
);

unsafe extern "C" {
    static window_handler: u8;
    static window_handler_end: u8;
}

/// A stretch of the Guest's text.
#[derive(Debug)]
struct Piece {
    /// Where the image has it.
    linked: u64,
    end: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn instructions(&self) -> Vec<Instruction> {
        Decoder::with_ip(64, &self.bytes, self.linked, DecoderOptions::NONE)
            .into_iter()
            .collect()
    }

    fn contains(&self, linked: u64) -> bool {
        (self.linked..self.end).contains(&linked)
    }
}

// The pieces' numbers: two stubs of interrupts, that of the system call, what they lead to, and
// last the program, which is not the Guest's.
const INTERRUPT: usize = 0;
const CALL: usize = 2;
const COMMON: usize = 3;
const PROGRAM: usize = 4;

/// The Guest's text, in pieces, and the addresses that it tells the Host.
#[derive(Debug)]
struct Text {
    pieces: Vec<Piece>,
    stubs_end: u64,
    window: [u64; 2],
    /// Where the image keeps [`WORDS`]' first, and where its trap stack begins.
    landed: u64,
    trap_stack: u64,
}

impl Text {
    fn read() -> Result<Self> {
        let image = fs::read(IMAGE).with_context(|| format!("{IMAGE} is not there"))?;
        let file = object::File::parse(&*image)?;
        let symbol = |name: &str| -> Result<u64> {
            let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
            let symbol = symbol.with_context(|| format!("{IMAGE} has no {name}"))?;
            Ok(symbol.address())
        };
        let piece = |from: u64, to: u64| -> Result<Piece> {
            for section in file.sections() {
                let data = section.data_range(from, to - from)?;
                if let Some(data) = data.filter(|_| section.address() != 0) {
                    return Ok(Piece {
                        linked: from,
                        end: to,
                        bytes: data.to_vec(),
                    });
                }
            }
            bail!("{IMAGE} has nothing at {from:#x}");
        };
        let stub = |table: u64, vector: u64| {
            let from = table + STUB * vector;
            piece(from, from + STUB)
        };
        let (stubs, direct) = (symbol("guest_stubs")?, symbol("guest_direct_stubs")?);
        let program = Piece {
            linked: 0,
            end: 0,
            bytes: code!("nop", "nop", "int 0x80", "nop", "nop", "int3").to_vec(),
        };
        let mut pieces = vec![
            stub(stubs, 32 + LINES[0])?,
            stub(stubs, 32 + LINES[1])?,
            stub(direct, 0x80)?,
            piece(symbol("guest_trap_common")?, symbol("guest_catch")?)?,
            program,
        ];
        // A stub ends with its jump, which is made a long one here if it was short.
        for piece in &mut pieces[..COMMON] {
            let mut all = piece.instructions().into_iter();
            let jump = all.find(|i| i.mnemonic() == Mnemonic::Jmp);
            let jump = jump.context("a stub without a jump")?;
            piece.end = jump.next_ip();
            piece.bytes.truncate((jump.ip() - piece.linked) as usize);
            let distance = jump.near_branch64().wrapping_sub(jump.ip() + 5);
            piece.bytes.push(0xe9);
            let distance = i32::try_from(distance.cast_signed())?;
            piece.bytes.extend(distance.to_le_bytes());
        }
        Ok(Self {
            pieces,
            stubs_end: symbol("guest_stubs_end")?,
            window: [symbol("guest_window_start")?, symbol("guest_window_end")?],
            landed: symbol("guest_landed")?,
            trap_stack: symbol("guest_trap_stack_top")?,
        })
    }
}

/// An instruction: the piece, and the offset in it.
type Place = (usize, u64);

/// The first of two pages in which a piece lies, guest-physical.
const fn room(piece: usize) -> u64 {
    FREE + (4 * piece as u64 + 2) * PAGE
}

/// Where a piece begins when this instruction is to be the first of a page.
const fn base(piece: usize, forced: Place) -> u64 {
    if piece == forced.0 {
        room(piece) + PAGE - forced.1
    } else {
        room(piece)
    }
}

/// Writes all the pieces into the Guest, mended so that they find each other there.
fn lay(guest: &mut Bare, text: &Text, forced: Place) -> Result<()> {
    let moved = |linked: u64| {
        let mut pieces = text.pieces[..PROGRAM].iter().enumerate();
        let (number, piece) = pieces.find(|(_, piece)| piece.contains(linked))?;
        Some(LINEAR + base(number, forced) + linked - piece.linked)
    };
    for (number, piece) in text.pieces.iter().enumerate() {
        let mut bytes = piece.bytes.clone();
        for instruction in piece.instructions() {
            let target = if instruction.is_ip_rel_memory_operand() {
                let linked = instruction.ip_rel_memory_address();
                let below = text.trap_stack.wrapping_sub(linked);
                if linked == text.landed {
                    LINEAR + WORDS
                } else if below <= LANDED {
                    LINEAR + TRAP_STACK - below
                } else if instruction.op0_register() == Register::RSP {
                    LINEAR + WORDS + 8
                } else {
                    // Where the Guest keeps the address of the shared page; the engine does so too.
                    LINEAR + STATE + 8
                }
            } else if instruction.mnemonic() == Mnemonic::Call {
                LINEAR + HANDLER
            } else if instruction.mnemonic() == Mnemonic::Jmp
                && !piece.contains(instruction.near_branch64())
            {
                moved(instruction.near_branch64()).context("a jump to nowhere")?
            } else {
                continue;
            };
            let next = instruction.next_ip() - piece.linked;
            let offset = target.wrapping_sub(LINEAR + base(number, forced) + next);
            let offset = i32::try_from(offset.cast_signed())?;
            // In all three the distance comes last.
            let end = next as usize;
            bytes[end - 4..end].copy_from_slice(&offset.to_le_bytes());
        }
        guest.write_bytes(base(number, forced), &bytes);
    }
    let [begin, end] = [&raw const window_handler, &raw const window_handler_end];
    let length = end.addr() - begin.addr();
    // SAFETY: The bytes between the two labels are constants of this program.
    let handler = unsafe { std::slice::from_raw_parts(begin, length) };
    guest.write_bytes(HANDLER, handler);

    for (offset, linked) in (0x60..).step_by(8).zip(text.window) {
        guest.poke_shared(offset, moved(linked).context("no window")?);
    }
    let first = text.pieces[INTERRUPT].linked;
    guest.poke_shared(0x70, moved(first).context("no stubs")?);
    guest.poke_shared(0x78, moved(text.stubs_end).context("no end of the stubs")?);
    for (number, line) in LINES.iter().enumerate() {
        let stub = moved(text.pieces[number].linked).context("no stub")?;
        guest.call(6, [32 + line, stub, 0x201, 0]);
    }
    let stub = moved(text.pieces[CALL].linked).context("no stub")?;
    guest.call(6, [0x80, stub, 0x103, 0]);
    for page in 0..2 {
        let entry = (room(PROGRAM) + page * PAGE) | RWU;
        guest.write(LOWER[2] + 8 * (USER_PROGRAM / PAGE % 512 + page), entry);
    }
    guest.write(WORDS, LINEAR + TRAP_STACK - LANDED);
    guest.write(WORDS + 8, LINEAR + TASK_STACK);
    // In the shadow from now on.
    guest.peek(LINEAR + WORDS);
    for number in 0..PROGRAM {
        guest.peek(LINEAR + room(number));
        guest.peek(LINEAR + room(number) + PAGE);
    }
    Ok(())
}

/// How an interrupt finds the Guest.
#[derive(Clone, Copy, Debug)]
struct Way {
    ring: Ring,
    /// How many lines are pending.
    lines: usize,
    /// Whether `irq_pending` says so already.
    told: bool,
    /// Whether the program has interrupts on.
    on: bool,
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for ring in [Ring::Three, Ring::One] {
        for (lines, told) in [(1, false), (1, true), (2, false), (2, true), (0, true)] {
            let on = true;
            ways.push(Way {
                ring,
                lines,
                told,
                on,
            });
        }
    }
    for told in [false, true] {
        let (ring, lines, on) = (Ring::One, 1, false);
        ways.push(Way {
            ring,
            lines,
            told,
            on,
        });
    }
    ways
}

/// One way's steps.
#[derive(Debug)]
struct Trial {
    way: Way,
    with: Registers,
    step: StepNumber,
    last: StepNumber,
    left: [StepNumber; 2],
}

/// Where the program is in its ring.
fn program(ring: Ring, forced: Place) -> u64 {
    match ring {
        Ring::One => LINEAR + base(PROGRAM, forced),
        _ => USER_PROGRAM + base(PROGRAM, forced) - room(PROGRAM),
    }
}

fn prepare(guest: &mut Bare, way: Way, forced: Place) -> Trial {
    let mut with = guest.registers(way.ring);
    with.rip = program(way.ring, forced);
    with.rflags = FLAGS;
    if way.ring == Ring::One {
        with.rsp = LINEAR + RING1_STACK - 8;
    }
    // Once with nothing pending, so that the shadow has all that is needed.
    guest.poke_shared(0x40, 0);
    guest.poke_shared(0, 0);
    guest.go_with(code!("nop"), &with, 0);
    // Eight steps lie in a page, and from the flush on there must be no miss but that which is
    // wanted.
    while guest.steps() % 8 > 3 {
        guest.peek(LINEAR + STATE);
    }
    // An entry that says that it was not used.
    let (piece, _) = forced;
    let physical = room(piece) + PAGE;
    if piece == PROGRAM && way.ring == Ring::Three {
        let page = USER_PROGRAM / PAGE % 512 + 1;
        guest.poke(LINEAR + LOWER[2] + 8 * page, physical | RWU);
        guest.call(33, [USER_PROGRAM + PAGE, 0, 0, 0]);
    } else {
        guest.poke(LINEAR + UPPER[2] + 8 * (physical / PAGE), physical | RW);
        guest.call(33, [LINEAR + physical, 0, 0, 0]);
    }
    let lines: u64 = LINES[..way.lines].iter().map(|line| 1 << line).sum();
    guest.poke_shared(0x40, lines);
    let enabled = if way.on { IF } else { 0 };
    guest.poke_shared(0, enabled | u64::from(way.told) << 32);
    let step = guest.go_with(code!("nop"), &with, 0);
    // What has not come by now comes here.
    let mut registers = guest.registers(Ring::One);
    registers.general[RBX] = LINEAR + STATE;
    let last = guest.go_with(
        code!(
            "mov r14, [rbx + 8]",
            "mov dword ptr [r14], 0x200",
            "xor eax, eax",
            "int 0x1f",
            "mov dword ptr [r14], 0"
        ),
        &registers,
        0,
    );
    let left = [guest.peek_shared(0), guest.peek_shared(0x40)];
    Trial {
        way,
        with,
        step,
        last,
        left,
    }
}

/// A frame as the handler wrote it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    step: StepNumber,
    vector: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    at: u64,
}

fn frames(guest: &Bare) -> Result<Vec<Frame>> {
    let count = guest.read(FRAMES);
    ensure!(count <= MOST_FRAMES, "{count} frames have no room");
    let frame = |n: u64| {
        let word = |place: u64| guest.read(FRAMES + 64 * (n + 1) + 8 * place);
        Frame {
            step: guest.number_of(word(0)),
            vector: word(1),
            rip: word(2),
            cs: word(3),
            rflags: word(4),
            rsp: word(5),
            ss: word(6),
            at: word(7),
        }
    };
    Ok((0..count).map(frame).collect())
}

/// Where the Guest was stopped after each flush and before the last step, for want of a page in the
/// shadow: in the pages of these addresses.
fn stops(ring: &str, at: &[u64]) -> Result<Vec<Option<u64>>> {
    let mut found = Vec::new();
    let mut open = false;
    for line in ring.lines().skip(1) {
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words.len() == 8, "{line}");
        match (words[2], words[6]) {
            ("hypercall", "0x21") => {
                found.push(None);
                open = true;
            }
            // The call of the last step.
            ("hypercall", "0x0") => open = false,
            ("page-fault", _) if open && words[5] == words[7] => {
                let rip = words[5].trim_start_matches("0x");
                let rip = u64::from_str_radix(rip, 16).with_context(|| line.to_owned())?;
                let place = found.len() - 1;
                if at.get(place).is_some_and(|at| at / PAGE == rip / PAGE) {
                    found[place] = Some(rip);
                }
            }
            _ => (),
        }
    }
    let (flushes, all) = (found.len(), at.len());
    ensure!(flushes == all, "{flushes} flushes of {all} in {ring}");
    Ok(found)
}

/// What became of one instruction.
enum Came {
    /// As it should; so many ways were stopped at it.
    Right(usize),
    /// Somewhere else, as if there had been another exit, which any tick of the Host's clock is.
    Elsewhere(String),
}

fn one(text: &Text, forced: Place) -> Result<Came> {
    let mut guest = Bare::new()?;
    guest.set_stack();
    lay(&mut guest, text, forced)?;
    let trials: Vec<Trial> = ways()
        .into_iter()
        .map(|way| prepare(&mut guest, way, forced))
        .collect();
    let device = guest.initialize()?;
    let folders = folders(std::process::id())?;
    ensure!(folders.len() == 1, "{folders:?} are there for one Guest");
    fs::write(folders[0].join("record"), "1\n")?;
    let end = guest.go_on(&device, |_, _, _| Ok(()))?;
    ensure!(end == End::Off, "step {}: {end:?}", guest.reached());
    let ring = fs::read_to_string(folders[0].join("ring"))?;
    let (piece, offset) = forced;
    let at = |trial: &Trial| match piece {
        PROGRAM => program(trial.way.ring, forced) + offset,
        _ => LINEAR + room(piece) + PAGE,
    };
    let at: Vec<u64> = trials.iter().map(at).collect();
    let stopped = stops(&ring, &at)?;
    let frames = frames(&guest)?;
    for ((trial, stopped), at) in trials.iter().zip(&stopped).zip(&at) {
        let way = trial.way;
        let place = judge(&guest, trial, &frames).with_context(|| format!("{way:?}"))?;
        // After the system call, as the program is found by a kernel that returns to it.
        let after = program(way.ring, forced) + 4;
        let wanted = match (way, piece, offset) {
            (Way { lines: 0, .. }, ..) => None,
            (Way { on: false, .. }, ..) => Some(0),
            (_, PROGRAM, 0..=2) => Some(*at),
            (Way { told: true, .. }, ..) => Some(after),
            (_, PROGRAM, _) => Some(*at),
            _ if stopped.is_some() => Some(after),
            // Nobody noticed: see `last`.
            _ => Some(0),
        };
        if place != wanted {
            return Ok(Came::Elsewhere(format!(
                "{way:?}: taken at {place:x?}, not {wanted:x?}; stopped at {stopped:x?}"
            )));
        }
    }
    let there = stopped.iter().zip(&at).filter(|(s, at)| **s == Some(**at));
    Ok(Came::Right(there.count()))
}

/// Checks all that does not depend on when the interrupt came: each line is taken once, at the same
/// place and in order, the stack has not grown, the program goes on with what it had. Gives the
/// place: 0 is after the end.
fn judge(guest: &Bare, trial: &Trial, frames: &[Frame]) -> Result<Option<u64>> {
    let Trial {
        way,
        with,
        step,
        last,
        ..
    } = trial;
    let here: Vec<&Frame> = frames
        .iter()
        // From the step before on, in which interrupts are turned on.
        .filter(|frame| (*step - 1..=*last).contains(&frame.step))
        .collect();
    let (calls, taken): (Vec<&Frame>, Vec<&Frame>) = here.iter().partition(|f| f.vector == 0x80);
    let lines: Vec<u64> = taken
        .iter()
        .map(|frame| frame.vector.wrapping_sub(32))
        .collect();
    ensure!(lines == LINES[..way.lines], "lines {lines:?} were taken");
    ensure!(
        calls.len() == 1,
        "system calls: {calls:x?}, {:?}",
        guest.outcome(*step)
    );
    let enabled = if way.on { IF } else { 0 };
    let rflags = with.rflags & !IF | enabled;
    let top = match way.ring {
        Ring::One => with.rsp & !15,
        _ => LINEAR + TASK_STACK,
    };
    for frame in &here {
        // In the last step, the interrupt's frame is another's; and in the engine it is too early.
        if frame.step == *step && !in_engine(frame.rip) {
            let wanted = Frame {
                step: *step,
                rflags,
                cs: with.cs,
                rsp: with.rsp,
                ss: with.ss,
                at: top - FRAME,
                ..**frame
            };
            ensure!(**frame == wanted, "{frame:x?}, not {wanted:x?}");
        }
    }
    let Outcome::Trapped(trap) = guest.outcome(*step) else {
        bail!("{:?}", guest.outcome(*step));
    };
    let end = with.rip + 7;
    ensure!(trap.vector == 3 && trap.rip == end, "{trap:?}");
    ensure!(
        (trap.cs, trap.rflags, trap.rsp, trap.ss) == (with.cs, rflags, with.rsp, with.ss),
        "{trap:?} of {with:x?}"
    );
    let after = guest.after(*step).general;
    ensure!(after == with.general, "{after:x?} of {:x?}", with.general);
    let left = trial.left.map(|peek| guest.outcome(peek));
    let nothing = [Outcome::Done(0); 2];
    ensure!(left == nothing, "in the shared page: {left:x?}");
    let mut places = taken.iter().map(|frame| {
        let late = frame.step == *last;
        if late { 0 } else { frame.rip }
    });
    let place = places.next();
    ensure!(
        places.all(|other| Some(other) == place),
        "apart: {taken:x?}"
    );
    Ok(place)
}

pub fn window(bench: &mut Bench) -> Result<()> {
    with_module(|| {
        let text = Text::read()?;
        let (mut instructions, mut exits) = (0, 0);
        for (number, piece) in text.pieces.iter().enumerate() {
            // The second stub is like the first.
            if number == INTERRUPT + 1 {
                continue;
            }
            for instruction in piece.instructions() {
                let offset = instruction.ip() - piece.linked;
                let what = || format!("{:?} at {:#x}", instruction.code(), instruction.ip());
                let mut came = one(&text, (number, offset)).with_context(what)?;
                for _ in 0..4 {
                    if matches!(came, Came::Elsewhere(_)) {
                        came = one(&text, (number, offset)).with_context(what)?;
                    }
                }
                match came {
                    Came::Right(0) => bail!("{}: never stopped there", what()),
                    Came::Right(stops) => exits += stops,
                    Came::Elsewhere(text) => bail!("{}: {text}", what()),
                }
                instructions += 1;
            }
        }
        let note = format!(
            "{instructions} instructions, {} ways: {exits} times stopped at one",
            ways().len()
        );
        bench.control.say("note", &note)
    })
}
