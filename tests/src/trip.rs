// SPDX-License-Identifier: GPL-2.0-only

//! One hypercall, from the Guest to the Host and back, counted and looked at.
//!
//! [`count`] has it counted by the machine itself, whose TSC ticks once per instruction, and KVM's
//! in the same boot. [`follow`] goes through it with a debugger, one instruction at a time, and
//! gives all of them. The two must agree.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction};
use iced_x86::{Mnemonic, OpKind, Register};
use object::{Object, ObjectSegment};

use crate::artifacts::{self, Artifacts};
use crate::control::{Message, Verdict};
use crate::idle;
use crate::machine::{Machine, Settings};
use crate::remote::Debugger;
use crate::report::Report;

/// How long Linux may take to come up in a machine that counts.
pub(crate) const BOOT: Duration = Duration::from_secs(600);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a hypercall may cost, in instructions.
pub const AT_MOST: u64 = 250;
/// What a record of an exit may cost on top of that.
pub const RECORD_AT_MOST: u64 = 250;
/// What a system call of a Guest's program may cost, by `int 0x80` and by `syscall`, if it does not
/// leave the Guest.
pub const INT80_AT_MOST: u64 = 10;
/// See [`INT80_AT_MOST`].
pub const SYSCALL_AT_MOST: u64 = 25;
/// What the case calls them, in the order of [`Counted::calls`].
const CALLS: [&str; 4] = ["int80", "syscall", "int80 reflected", "syscall reflected"];
/// What the case calls those with the FPU, in the order of [`Counted::fpu`].
const FPU: [&str; 3] = ["without", "with", "trap"];
/// How many times as much it must cost under KVM.
pub const TIMES_KVM: u64 = 8;
/// What a page fault may cost for which only the shadow lacks an entry.
pub const FAULT_AT_MOST: u64 = 1400;
/// What a read of 4 KiB from a disk may cost that the Host has in memory.
pub const BLOCK_AT_MOST: u64 = 12_000;
/// What a line of 62 bytes may cost on the console.
pub const CONSOLE_AT_MOST: u64 = 10_000;
/// What the case calls them, in the order of [`Counted::devices`].
const DEVICES: [&str; 3] = ["block read", "console write", "sector read"];
/// How often a trip loads CR3, and how often CR4: the Guest's and the Host's.
pub const LOADS: usize = 2;

/// The tests' section.
pub const SECTION: &str = "trip";
/// Its tests.
pub const TESTS: [(&str, Test); 3] = [
    ("counted", counted),
    ("followed", followed),
    ("idle", idle_guest),
];
type Test = fn() -> Result<String>;

/// Runs one of them and reports it.
///
/// # Errors
///
/// When the report cannot be kept.
pub fn test(report: &mut Report, name: &str, body: Test) -> Result<()> {
    let begun = Instant::now();
    let full = format!("{SECTION}/{name}");
    match body() {
        Ok(said) => {
            report.remark(&said);
            report.pass(&format!("{full} ({:.1} s)", begun.elapsed().as_secs_f32()));
        }
        Err(error) => {
            let why = format!("{error:#}");
            let log = report.keep(SECTION, name, why.as_bytes())?;
            report.fail(&full, &why, &log);
        }
    }
    Ok(())
}

/// The goals for what the machine counts.
fn counted() -> Result<String> {
    let Counted {
        lguest,
        fault,
        recorded,
        kvm,
        calls,
        fpu,
        devices,
    } = count()?;
    let said = format!(
        "{lguest} instructions under lguest, {recorded} with a record, {kvm} under KVM; a page \
         fault {fault}, system calls {calls:?}; without, with and asking for the FPU {fpu:?}; \
         {DEVICES:?} {devices:?}"
    );
    ensure!(
        devices[0] <= BLOCK_AT_MOST && devices[1] <= CONSOLE_AT_MOST,
        "{said}: devices have to be at most {BLOCK_AT_MOST} and {CONSOLE_AT_MOST}"
    );
    ensure!(
        recorded - lguest <= RECORD_AT_MOST,
        "{said}: a record has to be at most {RECORD_AT_MOST}"
    );
    ensure!(
        calls[0] <= INT80_AT_MOST && calls[1] <= SYSCALL_AT_MOST,
        "{said}: direct ones have to be at most {INT80_AT_MOST} and {SYSCALL_AT_MOST}"
    );
    ensure!(
        lguest <= AT_MOST && lguest * TIMES_KVM <= kvm && fault <= FAULT_AT_MOST,
        "{said}: they have to be at most {AT_MOST}, KVM's {TIMES_KVM} times as many, and at most \
         {FAULT_AT_MOST} for the fault"
    );
    Ok(said)
}

/// The goals for what is loaded. Ten trips are enough to see that they are all the same.
fn followed() -> Result<String> {
    let steps = follow(CALL, 10)?;
    for register in ["CR3", "CR4"] {
        let loads = loads_of(&steps, register);
        ensure!(
            loads == LOADS,
            "a trip loads {register} {loads} times, not {LOADS} times:\n{}",
            tell(&steps)
        );
    }
    Ok(format!(
        "{} instructions, of which {LOADS} load CR3 and {LOADS} load CR4",
        steps.len()
    ))
}

/// The goal for a Guest that does nothing.
fn idle_guest() -> Result<String> {
    let counted = idle::count()?;
    let said = format!(
        "beside an idle Guest at most {:.0} instructions more in a second, with noise of {:.0}: \
         {counted:.0?}",
        counted.at_most(),
        counted.noise(),
    );
    ensure!(
        counted.at_most() <= idle::AT_MOST,
        "{said}: it has to be at most {}",
        idle::AT_MOST
    );
    Ok(said)
}

/// Trips in instructions, the least of each that was seen, all in one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Of a hypercall under lguest.
    pub lguest: u64,
    /// Of a page fault under lguest for which only the shadow lacks an entry.
    pub fault: u64,
    /// The same while every exit is recorded.
    pub recorded: u64,
    /// Of one under KVM.
    pub kvm: u64,
    /// Of system calls of a Guest's program: `int 0x80` and `syscall`, then both through the Host.
    pub calls: [u64; 4],
    /// Of a hypercall without the FPU's registers and with them, and of a use that has to ask for
    /// them.
    pub fpu: [u64; 3],
    /// Of a read of 4 KiB from a disk, of 62 bytes to the console, and of a read of one sector.
    pub devices: [u64; 3],
}

/// Has all of them counted.
///
/// # Errors
///
/// When something that is needed is not built, or a case fails.
pub fn count() -> Result<Counted> {
    let artifacts = Artifacts::collect()?.with_test_guests()?.with_kvm()?;
    artifacts.complete()?;
    let log = artifacts::log_directory()?.join("bench-round-trip.log");
    let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, &log);
    settings.count_instructions = true;
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(BOOT)?;
    let mut least = |case: &str, words: &str| -> Result<u64> {
        let notes = run(&mut machine, case)?;
        let mut numbers = notes.iter().filter_map(|note| note.strip_prefix(words));
        Ok(numbers.next().context("it does not say")?.parse()?)
    };
    let lguest = least("round-trip", "good: round trip ")?;
    let fault = least("shadow-fault", "good: shadow fault ")?;
    let recorded = least("recorded-round-trip", "good: recorded round trip ")?;
    let kvm = least("kvm-round-trip", "good: vmmcall round trip ")?;
    let notes = run(&mut machine, "system-calls-counted")?;
    let mut calls = [0; 4];
    for (count, name) in calls.iter_mut().zip(CALLS) {
        let words = format!("good: {name} ");
        let mut numbers = notes.iter().filter_map(|note| note.strip_prefix(&words));
        // "syscall" is the beginning of "syscall reflected" too, of which no number is left.
        let number = numbers.find_map(|number| number.parse().ok());
        *count = number.with_context(|| format!("nothing about {name}"))?;
    }
    let notes = run(&mut machine, "fpu-trips")?;
    let mut fpu = [0; 3];
    for (count, name) in fpu.iter_mut().zip(FPU) {
        let words = format!("good: fpu {name} ");
        let mut numbers = notes.iter().filter_map(|note| note.strip_prefix(&words));
        let number = numbers
            .next()
            .with_context(|| format!("nothing about {name}"))?;
        *count = number.parse()?;
    }
    let notes = run(&mut machine, "device-costs")?;
    let mut devices = [0; 3];
    for (count, name) in devices.iter_mut().zip(DEVICES) {
        let words = format!("good: {name} ");
        let mut numbers = notes.iter().filter_map(|note| note.strip_prefix(&words));
        let number = numbers.find_map(|number| number.parse().ok());
        *count = number.with_context(|| format!("nothing about {name}"))?;
    }
    machine.quit(Duration::from_secs(60))?;
    Ok(Counted {
        lguest,
        fault,
        recorded,
        kvm,
        calls,
        fpu,
        devices,
    })
}

/// Runs a case and gives its notes.
pub(crate) fn run(machine: &mut Machine, case: &str) -> Result<Vec<String>> {
    machine.tell(&format!("case {case}"))?;
    let mut notes = Vec::new();
    loop {
        match machine.hear(PATIENCE)? {
            Message::Start(_) => {}
            Message::Note(text) => notes.push(text),
            Message::End(Verdict::Pass, _) => return Ok(notes),
            other => bail!("the case {case} ended with {other:?}"),
        }
    }
}

/// One instruction of a trip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it is.
    pub address: u64,
    /// The part of the round trip it belongs to: the Guest, a half of the Switcher, or a function
    /// of the run loop.
    pub part: String,
    /// What it is, as `objdump` would show it.
    pub text: String,
    /// What it loads, if that is something that a world switch has to load.
    pub loads: Option<&'static str>,
}

/// What can be followed: a case, and the bytes of the Guest's instructions that it measures, up to
/// the second reading of the TSC.
#[derive(Clone, Copy, Debug)]
pub struct Trip {
    pub(crate) case: &'static str,
    pub(crate) bytes: &'static [u8],
}

/// The hypercall that does nothing: five instructions.
pub const CALL: Trip = Trip {
    case: "round-trip",
    bytes: &[
        0x0f, 0x31, 0x89, 0xc6, 0xb8, 0, 0, 0, 0, 0xcd, 0x1f, 0x0f, 0x31,
    ],
};

/// The page fault for which only the shadow lacks an entry: four.
pub const FAULT: Trip = Trip {
    case: "shadow-fault",
    bytes: &[0x0f, 0x31, 0x89, 0xc6, 0x48, 0x8b, 0x0f, 0x0f, 0x31],
};

/// Goes through `trips` trips. They must be the same, instruction by instruction; gives the one.
///
/// # Errors
///
/// When they are not, or something that is needed is not built.
pub fn follow(what: Trip, trips: usize) -> Result<Vec<Step>> {
    let artifacts = Artifacts::collect()?.with_test_guests()?;
    artifacts.complete()?;
    let probe = artifacts.guests.iter().find(|(name, _)| name == "probe");
    let (_, probe) = probe.context("no test Guest")?;
    let first = place(&fs::read(probe)?, what.bytes)?;
    let last = first + (what.bytes.len() - 2) as u64;

    let log = artifacts::log_directory()?.join("bench-follow.log");
    let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, &log);
    settings.cpus = 1;
    settings.debugger = true;
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(BOOT)?;
    let symbols = Symbols::parse(&run(&mut machine, "symbols")?)?;
    let mut debugger = Debugger::connect(&machine.debugger())?;
    debugger.patience(PATIENCE)?;
    debugger.breakpoint(first, true)?;
    debugger.run()?;
    machine.tell(&format!("case {}", what.case))?;
    debugger.stopped()?;
    debugger.breakpoint(first, false)?;

    let mut code = BTreeMap::new();
    let mut paths: BTreeMap<Vec<u64>, usize> = BTreeMap::new();
    for _ in 0..trips {
        let path = walk(&mut debugger, &mut code, first, last)?;
        *paths.entry(path).or_default() += 1;
        walk(&mut debugger, &mut code, last, first)?;
    }
    // One trip in five, be it the first, may have been disturbed; what is counted is the trip that
    // all others agree on.
    let lengths: Vec<_> = paths.iter().map(|(path, n)| (path.len(), *n)).collect();
    let most = paths.into_iter().max_by_key(|(_, n)| *n);
    let (path, alike) = most.context("no trips")?;
    ensure!(
        trips - alike <= trips / 5,
        "of {trips} trips only {alike} are alike; lengths and how many: {lengths:?}"
    );
    let parts = symbols.parts(&path, first..=last)?;
    let step = |address: &u64| {
        let mut text = String::new();
        GasFormatter::new().format(&code[address], &mut text);
        Step {
            address: *address,
            part: parts[address].clone(),
            text,
            loads: loads(&code[address]),
        }
    };
    Ok(path.iter().map(step).collect())
}

/// Steps from one address to another; gives the addresses of what was executed.
fn walk(
    debugger: &mut Debugger,
    code: &mut BTreeMap<u64, Instruction>,
    from: u64,
    to: u64,
) -> Result<Vec<u64>> {
    const MOST: u32 = 100_000;
    let mut path = Vec::new();
    let mut steps = 0;
    let mut at = debugger.rip()?;
    ensure!(at == from, "the machine is at {at:#x}, not at {from:#x}");
    while at != to {
        if let std::collections::btree_map::Entry::Vacant(entry) = code.entry(at) {
            let bytes = debugger.memory(at, 15)?;
            entry.insert(Decoder::with_ip(64, &bytes, at, DecoderOptions::NONE).decode());
        }
        // Under the debugger an instruction is now and then begun twice, the more often the busier
        // this machine is: the first step ends where it began. That is one instruction, not two.
        if path.last() != Some(&at) || repeats(&code[&at]) {
            path.push(at);
        }
        steps += 1;
        ensure!(steps < MOST, "no end after {steps} instructions");
        debugger.step()?;
        at = debugger.rip()?;
    }
    Ok(path)
}

/// Whether the next instruction may be this one again.
fn repeats(instruction: &Instruction) -> bool {
    let prefix = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    prefix || instruction.flow_control() != FlowControl::Next
}

/// Where the Guest does what is measured.
pub(crate) fn place(elf: &[u8], call: &[u8]) -> Result<u64> {
    let file = object::File::parse(elf)?;
    let mut places = Vec::new();
    for segment in file.segments() {
        let bytes = segment.data()?;
        let found = bytes.windows(call.len()).enumerate();
        let found = found.filter(|(_, window)| *window == call);
        places.extend(found.map(|(offset, _)| segment.address() + offset as u64));
    }
    match places[..] {
        [place] => Ok(place),
        _ => bail!("the test Guest does it at {} places", places.len()),
    }
}

/// What an instruction loads of what a world switch has to load.
fn loads(instruction: &Instruction) -> Option<&'static str> {
    let register = |register| {
        instruction.op0_kind() == OpKind::Register && instruction.op0_register() == register
    };
    Some(match instruction.mnemonic() {
        Mnemonic::Mov if register(Register::CR0) => "CR0",
        Mnemonic::Mov if register(Register::CR3) => "CR3",
        Mnemonic::Mov if register(Register::CR4) => "CR4",
        Mnemonic::Clts => "CR0",
        Mnemonic::Mov if register(Register::DR7) => "DR7",
        Mnemonic::Mov if register(Register::SS) => "SS",
        Mnemonic::Mov if register(Register::DS) => "DS",
        Mnemonic::Mov if register(Register::ES) => "ES",
        Mnemonic::Mov if register(Register::FS) => "FS",
        Mnemonic::Mov if register(Register::GS) => "GS",
        Mnemonic::Wrmsr => "an MSR",
        Mnemonic::Ltr => "the task register",
        Mnemonic::Lldt => "the LDT",
        Mnemonic::Lgdt => "the GDT",
        Mnemonic::Lidt => "the IDT",
        Mnemonic::Wrfsbase => "FS base",
        Mnemonic::Wrgsbase => "GS base",
        Mnemonic::Int => "a gate",
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => "a frame (iretq)",
        _ if matches!(instruction.code(), Code::Invlpg_m | Code::Invpcid_r64_m128) => {
            "a TLB entry away"
        }
        _ => return None,
    })
}

/// How often a trip loads one thing.
pub fn loads_of(steps: &[Step], what: &str) -> usize {
    histogram(steps).get(what).copied().unwrap_or_default()
}

/// All of it for a reader: every instruction, then the sums.
pub fn tell(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!(
            "{:x} {:20} {}\n",
            step.address, step.part, step.text
        ));
    }
    for (what, count) in histogram(steps) {
        text.push_str(&format!("{count:4} loads of {what}\n"));
    }
    for (part, count) in by_part(steps) {
        text.push_str(&format!("{count:4} instructions in {part}\n"));
    }
    text
}

/// How often each thing is loaded in a trip.
pub fn histogram(steps: &[Step]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for loads in steps.iter().filter_map(|step| step.loads) {
        *counts.entry(loads).or_default() += 1;
    }
    counts
}

/// How many instructions of a trip are in each part, in the order in which they come up.
pub fn by_part(steps: &[Step]) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for step in steps {
        match counts.iter_mut().find(|(name, _)| *name == step.part) {
            Some((_, count)) => *count += 1,
            None => counts.push((step.part.clone(), 1)),
        }
    }
    counts
}

/// Where the module and its labels are, and which function each instruction belongs to.
#[derive(Debug)]
pub(crate) struct Symbols {
    /// Where its code begins.
    base: u64,
    labels: BTreeMap<String, u64>,
}

impl Symbols {
    /// Out of lines of `/proc/kallsyms` (address, kind, name, module) and one with the base.
    pub(crate) fn parse(lines: &[String]) -> Result<Self> {
        let mut labels = BTreeMap::new();
        let mut base = None;
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["base", address] => base = Some(number(address)?),
                [address, _, name, _] => drop(labels.insert(name.to_owned(), number(address)?)),
                _ => bail!("a symbol reads {line:?}"),
            }
        }
        let base = base.context("nobody says where the module is")?;
        Ok(Self { base, labels })
    }

    pub(crate) fn label(&self, name: &str) -> Result<u64> {
        let address = self.labels.get(name).copied();
        address.with_context(|| format!("the module has no label {name}"))
    }

    /// The part of the round trip that each address belongs to.
    fn parts(&self, addresses: &[u64], call: std::ops::RangeInclusive<u64>) -> Result<Parts> {
        let text = self.label("switcher_start")?..self.label("switcher_end")?;
        let out = self.label("trap_without_code")?;
        let module: Vec<u64> = addresses
            .iter()
            .copied()
            .filter(|at| (self.base..text.start).contains(at))
            .collect();
        let frames = inlined(&module, self.base)?;
        let part = |at: &u64| {
            let name = match at {
                at if call.contains(at) => "the Guest",
                at if text.contains(at) && *at >= out => "the Switcher, out",
                at if text.contains(at) => "the Switcher, in",
                at => match frames.get(at) {
                    Some(frames) => stage(frames),
                    None => "Linux",
                },
            };
            (*at, name.to_owned())
        };
        Ok(addresses.iter().map(part).collect())
    }
}

/// The part of the round trip by address.
type Parts = BTreeMap<u64, String>;

fn number(text: &str) -> Result<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).with_context(|| format!("{text:?}"))
}

/// The functions that an instruction belongs to, innermost first: those that the compiler has put
/// into others as well. The module's line tables know them.
fn inlined(addresses: &[u64], base: u64) -> Result<BTreeMap<u64, Vec<String>>> {
    let module = artifacts::root().join("module/lguest.ko");
    let mut command = Command::new("addr2line");
    command
        .args(["-a", "-i", "-f", "-C", "-j", ".text", "-e"])
        .arg(module);
    command.args(addresses.iter().map(|at| format!("{:#x}", at - base)));
    let output = command.output().context("cannot start addr2line")?;
    ensure!(output.status.success(), "addr2line: {}", output.status);
    let mut frames = BTreeMap::new();
    let mut of = None;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            of = Some(number(line)? + base);
            continue;
        }
        let all: &mut Vec<String> = frames.entry(of.context("no address")?).or_default();
        all.push(short(line).to_owned());
        lines.next();
    }
    Ok(frames)
}

/// A function's own name, out of one with its path and its parameters.
fn short(name: &str) -> &str {
    let name = match name.rsplit_once(">::") {
        Some((_, name)) => name,
        None => name.split('<').next().unwrap_or(name),
    };
    name.rsplit("::").next().unwrap_or(name)
}

/// The step of the run loop that an instruction belongs to.
fn stage(frames: &[String]) -> &str {
    let mut outer = frames
        .iter()
        .rev()
        .map(String::as_str)
        // What the compiler cannot place it gives to the function that all others are in.
        .filter(|name| *name != "read_iter")
        .skip_while(|name| matches!(*name, "run_guest" | "run_once"));
    let first = outer.next();
    first.unwrap_or("run_guest, run_once")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Option<&'static str> {
        loads(&Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode())
    }

    #[test]
    fn a_load_is_told_from_a_look() {
        assert_eq!(decode(&[0x0f, 0x22, 0xd8]), Some("CR3"));
        assert_eq!(decode(&[0x0f, 0x20, 0xd8]), None);
        assert_eq!(decode(&[0x0f, 0x22, 0xe0]), Some("CR4"));
        assert_eq!(decode(&[0x0f, 0x06]), Some("CR0"));
        assert_eq!(decode(&[0x0f, 0x30]), Some("an MSR"));
        assert_eq!(decode(&[0x0f, 0x32]), None);
        assert_eq!(decode(&[0x0f, 0x00, 0xd8]), Some("the task register"));
        assert_eq!(decode(&[0x48, 0xcf]), Some("a frame (iretq)"));
        assert_eq!(decode(&[0x0f, 0x01, 0x3f]), Some("a TLB entry away"));
        assert_eq!(decode(&[0x90]), None);
    }

    #[test]
    fn the_call_is_found_once_or_not_at_all() {
        assert!(place(b"not an ELF file", CALL.bytes).is_err());
    }

    #[test]
    fn names_are_shortened() {
        assert_eq!(short("lguest_main::run_loop::copy_in"), "copy_in");
        assert_eq!(short("core::ptr::drop_in_place<a::b::C>"), "drop_in_place");
        assert_eq!(short("<a::B as c::D<e>>::index"), "index");
        assert_eq!(short("switch_to_guest"), "switch_to_guest");
    }

    #[test]
    fn a_step_is_the_outermost_function_in_the_loop() {
        let frames = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let deep = frames(&[
            "wrmsr",
            "run_guest_once",
            "run_once",
            "run_guest",
            "read_iter",
        ]);
        assert_eq!(stage(&deep), "run_guest_once");
        let lost = frames(&["read_iter", "do_hypercalls", "run_guest", "read_iter"]);
        assert_eq!(stage(&lost), "do_hypercalls");
        assert_eq!(
            stage(&frames(&["run_guest", "read_iter"])),
            "run_guest, run_once"
        );
    }
}
