// SPDX-License-Identifier: GPL-2.0-only

//! One trip from the Host into a Guest and back, recorded instruction by instruction, for the book.
//!
//! [`record`] has it made in QEMU, [`Trace`] is what is kept of it, and [`page`] makes the part of
//! the chapter that shows it. Two tests say whether it is still true: one compares the recorded
//! instructions with the module's, one records anew.

mod page;
mod state;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction};
use iced_x86::{InstructionInfoFactory, Mnemonic, OpAccess};
use object::{Object, ObjectSection, ObjectSymbol};
use serde::{Deserialize, Serialize};

use self::state::{Hex, State, Values};
use crate::artifacts::{self, Artifacts, root};
use crate::machine::{Machine, Settings};
use crate::remote::Debugger;
use crate::report::Report;
use crate::trip::{self, BOOT, CALL, Symbols};

/// The tests' section.
pub const SECTION: &str = "trace";
/// Where the trace is kept.
const DATA: &str = "book/switcher/trip.json";
/// Where the part of the chapter is kept that shows it.
const PAGE: &str = "book/switcher/trip.inc";
/// How to make both anew.
const ANEW: &str = "`make trace` records anew";

/// How long the machine may take for anything.
const PATIENCE: Duration = Duration::from_secs(600);
/// So many hypercalls are let pass: what is recorded is not the first of its kind.
const SETTLE: usize = 20;
/// So many trips are recorded, to take one that is as nearly all are.
const TRIPS: usize = 5;
/// A trip has fewer instructions than this.
const MOST: usize = 2000;

const PAGE_BYTES: u64 = 0x1000;
/// The stack of a task of the Host's, and how it is aligned.
const STACK_BYTES: u64 = 0x4000;

/// What is kept of a trip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// What this is, for somebody who finds the file.
    pub what: String,
    /// The Host's kernel.
    pub linux: String,
    /// The machine.
    pub qemu: String,
    /// The XXH3 of the Switcher's page, 128 bits.
    pub text: String,
    /// Where that page is.
    pub switcher: Hex,
    /// Where this CPU's pages are: registers, state, IDT.
    pub pages: Hex,
    /// The state before the Host's call.
    pub begin: State,
    /// What was executed.
    pub steps: Vec<Step>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its bytes, in hexadecimal.
    pub bytes: String,
    /// What it is.
    pub text: String,
    /// What it has changed.
    pub changes: Values,
    /// What it has read and written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Access>,
}

/// Something read or written by an instruction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Access {
    /// Whether it was written. What is read and written again is that too.
    pub writes: bool,
    /// Where.
    pub at: Hex,
    /// How many bytes.
    pub bytes: usize,
    /// What was there afterwards, if it is a number: at most 8 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Hex>,
}

/// Which tables are in force, and which part of memory everything is in. The parts have names,
/// which are those of the boxes in the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Whether CR3 is the Guest's.
    pub guest: bool,
    /// Where RIP is.
    pub code: &'static str,
    /// Where RSP is.
    pub stack: &'static str,
    /// Where the GDT is.
    pub gdt: &'static str,
    /// Where the IDT is.
    pub idt: &'static str,
    /// Where the task state is.
    pub task: &'static str,
    /// Whether CR4 is the Guest's.
    pub cr4: bool,
    /// The ring.
    pub ring: u64,
}

impl Trace {
    /// Reads what is kept.
    ///
    /// # Errors
    ///
    /// When it is not there, or not what [`Self::write`] has written.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join(DATA);
        let text = fs::read(&path).with_context(|| format!("no trace at {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// As it is kept: an instruction a line.
    fn to_text(&self) -> Result<String> {
        let value = serde_json::to_value(self)?;
        let fields = value.as_object().context("a trace is an object")?;
        let lines: Vec<String> = fields
            .iter()
            .map(|(name, value)| match value.as_array() {
                Some(items) => {
                    let items: Vec<_> = items.iter().map(|item| format!("\n    {item}")).collect();
                    format!("  \"{name}\": [{}\n  ]", items.join(","))
                }
                None => format!("  \"{name}\": {value}"),
            })
            .collect();
        Ok(format!("{{\n{}\n}}\n", lines.join(",\n")))
    }

    /// Keeps it.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, root: &Path) -> Result<PathBuf> {
        let path = root.join(DATA);
        let text = self.to_text()?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The states: the one before the first step, and that after each.
    ///
    /// # Errors
    ///
    /// When a step changes something that is not in a state.
    pub fn states(&self) -> Result<Vec<State>> {
        let mut states = vec![self.begin.clone()];
        for (n, step) in self.steps.iter().enumerate() {
            let mut state = states[n].clone();
            state.change(&step.changes)?;
            states.push(state);
        }
        Ok(states)
    }

    /// What lies at an address: the box in the drawing, what a reader sees, where it begins.
    fn place(&self, address: u64) -> Option<(&'static str, &'static str, u64)> {
        let pages = self.pages.0;
        let stack = self.begin.get("rsp") & !(STACK_BYTES - 1);
        let all = [
            ("text", "Switcher", self.switcher.0, PAGE_BYTES),
            ("shared", "shared page", pages - PAGE_BYTES, PAGE_BYTES),
            ("registers", "register page", pages, PAGE_BYTES),
            ("state", "state page", pages + PAGE_BYTES, PAGE_BYTES),
            ("idt", "IDT page", pages + 2 * PAGE_BYTES, PAGE_BYTES),
            ("host-stack", "Host's stack", stack, STACK_BYTES),
        ];
        all.into_iter()
            .find(|(.., start, bytes)| (*start..start + bytes).contains(&address))
            .map(|(name, title, start, _)| (name, title, start))
    }

    /// The places that matter.
    pub fn at(&self, state: &State) -> At {
        let hosts = |part: &str| state.get(part) == self.begin.get(part);
        let place = |part: &str| self.place(state.get(part)).map(|(name, ..)| name);
        let ring = state.get("ring");
        At {
            guest: !hosts("cr3"),
            code: match place("rip") {
                Some("text") => "text",
                _ if ring > 0 => "guest-code",
                _ => "host-code",
            },
            stack: match place("rsp") {
                Some(name) if ring == 0 => name,
                _ => "guest-stack",
            },
            // The Host's is mapped twice, and is the Host's at both places.
            gdt: place("gdt").unwrap_or("host-gdt"),
            idt: place("idt").unwrap_or("host-idt"),
            task: place("tr_base").unwrap_or("host-gdt"),
            cr4: !hosts("cr4"),
            ring,
        }
    }

    /// What two trips of one boot have in common: every instruction, and what is in force after it.
    fn exact(&self) -> Result<Vec<String>> {
        let states = self.states()?;
        let steps = self.steps.iter().zip(states.windows(2));
        let line = |(step, states): (&Step, &[State])| {
            let (rip, at) = (Hex(states[0].get("rip")), self.at(&states[1]));
            format!("{rip} {}, then {at:?}", step.text)
        };
        Ok(steps.map(line).collect())
    }

    /// What a trip has to have in common with one of another day: that of the Switcher, wherever it
    /// is. Of the Host's instructions and the Guest's only what is in force, since their compiler
    /// may have others next time.
    fn shape(&self) -> Result<Vec<String>> {
        let states = self.states()?;
        let steps = self.steps.iter().zip(states.windows(2));
        let line = |(step, states): (&Step, &[State])| {
            let (rip, at) = (states[0].get("rip"), self.at(&states[1]));
            match self.at(&states[0]).code {
                "text" => {
                    let offset = Hex(rip - self.switcher.0);
                    format!("Switcher + {offset} {}, then {at:?}", step.bytes)
                }
                code => format!("{code}, then {at:?}"),
            }
        };
        let mut lines: Vec<_> = steps.map(line).collect();
        lines.dedup();
        Ok(lines)
    }

    /// Whether the instructions of the Switcher are those in a module; gives how many they are.
    fn check(&self, page: &[u8]) -> Result<usize> {
        let states = self.states()?;
        let mut count = 0;
        for (step, state) in self.steps.iter().zip(&states) {
            let rip = state.get("rip");
            if !matches!(self.place(rip), Some(("text", ..))) {
                continue;
            }
            let offset = usize::try_from(rip - self.switcher.0)?;
            let here: String = page[offset..]
                .iter()
                .take(step.bytes.len() / 2)
                .map(hex)
                .collect();
            let Step { bytes, text, .. } = step;
            ensure!(
                here == *bytes,
                "{DATA} has {bytes} ({text}) at {offset:#x} of the Switcher, the module {here}; {ANEW}"
            );
            count += 1;
        }
        ensure!(count > 0, "{DATA} has nothing of the Switcher");
        let now = hash(page);
        ensure!(
            now == self.text,
            "{DATA} was made from a Switcher whose page has the hash {}, the module's has {now}; \
             {ANEW}",
            self.text
        );
        Ok(count)
    }
}

fn hex(byte: &u8) -> String {
    format!("{byte:02x}")
}

fn hash(page: &[u8]) -> String {
    format!("{:032x}", tangle::source::hash(page))
}

/// Where a label is in a module, in its section.
fn label(module: &Path, name: &str) -> Result<u64> {
    let bytes = fs::read(module).with_context(|| format!("no module at {}", module.display()))?;
    let file = object::File::parse(&*bytes)?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    let symbol = symbol.with_context(|| format!("{} has no {name}", module.display()))?;
    Ok(symbol.address())
}

/// The Switcher's page of a module.
fn page_of(module: &Path) -> Result<Vec<u8>> {
    let range = label(module, "switcher_start")?..label(module, "switcher_end")?;
    ensure!(
        range.end - range.start == PAGE_BYTES,
        "the Switcher has {} bytes",
        range.end - range.start
    );
    let bytes = fs::read(module)?;
    let file = object::File::parse(&*bytes)?;
    let section = file.section_by_name(".text").context("no .text")?;
    ensure!(
        !section
            .relocations()
            .any(|(offset, _)| range.contains(&offset)),
        "the Switcher's page would be changed when the module is loaded"
    );
    let text = section.data_range(range.start, PAGE_BYTES)?;
    Ok(text.context("the Switcher is not in .text")?.to_vec())
}

/// Records a trip.
///
/// # Errors
///
/// When something that is needed is not built, or the trips differ.
pub fn record() -> Result<Trace> {
    let artifacts = Artifacts::collect()?.with_test_guests()?;
    artifacts.complete()?;
    let probe = artifacts.guests.iter().find(|(name, _)| name == "probe");
    let (_, probe) = probe.context("no test Guest")?;
    // The hypercall is the last but one of those instructions.
    let call = trip::place(&fs::read(probe)?, CALL.bytes)? + (CALL.bytes.len() - 4) as u64;

    let log = artifacts::log_directory()?.join("trace-boot.log");
    let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, &log);
    settings.cpus = 1;
    settings.debugger = true;
    // Linux is where it always is, so that two recordings do not differ in every number.
    settings.append = "nokaslr".to_owned();
    let mut machine = Machine::start(&settings)?;
    let facts = machine.wait_until_ready(BOOT)?;
    let symbols = Symbols::parse(&trip::run(&mut machine, "symbols")?)?;
    let mut recorder = Recorder {
        debugger: Debugger::connect(&machine.debugger())?,
        switcher: symbols.label("switcher_start")?,
        entry: symbols.label("switch_to_guest")?,
    };
    recorder.debugger.patience(PATIENCE)?;
    recorder.debugger.breakpoint(call, true)?;
    recorder.debugger.run()?;
    machine.tell(&format!("case {}", CALL.case))?;
    recorder.debugger.stopped()?;
    for _ in 0..SETTLE {
        recorder.debugger.run()?;
        recorder.debugger.stopped()?;
    }
    recorder.debugger.breakpoint(call, false)?;
    let from = recorder.find_call()?;
    let mut trips = Vec::new();
    for _ in 0..TRIPS {
        recorder.debugger.breakpoint(from, true)?;
        recorder.debugger.run()?;
        recorder.debugger.stopped()?;
        recorder.debugger.breakpoint(from, false)?;
        trips.push(recorder.trip(&facts, &artifacts)?);
    }
    usual(trips)
}

/// One of those that nearly all are like.
fn usual(trips: Vec<Trace>) -> Result<Trace> {
    let all: Vec<_> = trips.iter().map(Trace::exact).collect::<Result<_>>()?;
    for (trip, lines) in trips.into_iter().zip(&all) {
        let alike = all.iter().filter(|other| *other == lines).count();
        if alike + 1 >= all.len() {
            return Ok(trip);
        }
    }
    let lengths: Vec<_> = all.iter().map(Vec::len).collect();
    bail!("the trips differ; they have {lengths:?} instructions");
}

/// Somebody who goes through a stopped machine one instruction at a time.
struct Recorder {
    debugger: Debugger,
    /// Where the Switcher's page is.
    switcher: u64,
    /// Where it is called.
    entry: u64,
}

impl Recorder {
    fn state(&mut self) -> Result<State> {
        State::parse(&self.debugger.monitor("info registers")?)
    }

    fn instruction(&mut self, at: u64) -> Result<(Instruction, Vec<u8>)> {
        let mut bytes = self.debugger.memory(at, 15)?;
        let instruction = Decoder::with_ip(64, &bytes, at, DecoderOptions::NONE).decode();
        ensure!(
            !instruction.is_invalid(),
            "no instruction at {at:#x}: {bytes:x?}"
        );
        bytes.truncate(instruction.len());
        Ok((instruction, bytes))
    }

    /// Goes on to the Switcher's entry; gives where the call is that led there.
    fn find_call(&mut self) -> Result<u64> {
        let mut call = None;
        for _ in 0..MOST {
            let at = self.debugger.rip()?;
            if at == self.entry {
                return call.context("nobody has called the Switcher");
            }
            let (instruction, _) = self.instruction(at)?;
            if matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            ) {
                call = Some(at);
            }
            self.debugger.step()?;
        }
        bail!("the Switcher is not called within {MOST} instructions");
    }

    /// Goes from the call to where it returns to, by way of a Guest.
    fn trip(&mut self, linux: &str, artifacts: &Artifacts) -> Result<Trace> {
        let begin = self.state()?;
        let (call, _) = self.instruction(begin.get("rip"))?;
        let mut trace = Trace {
            what: "One trip from the Host into a Guest and back: the state before it, then every \
                   instruction with what it changed. `make trace` records it."
                .to_owned(),
            linux: linux
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            qemu: qemu_version()?,
            text: hash(&page_of(artifacts.module.as_deref().context("no module")?)?),
            switcher: Hex(self.switcher),
            pages: Hex(0),
            begin: begin.clone(),
            steps: Vec::new(),
        };
        let mut state = begin;
        while state.get("rip") != call.next_ip() {
            if state.get("rip") == self.entry {
                trace.pages = Hex(state.get("rdi"));
            }
            let (step, after) = self.step(&state)?;
            trace.steps.push(step);
            state = after;
            ensure!(trace.steps.len() < MOST, "no end of the trip");
        }
        ensure!(trace.pages.0 > 0, "the call did not lead to the Switcher");
        Ok(trace)
    }

    /// Executes one instruction.
    fn step(&mut self, before: &State) -> Result<(Step, State)> {
        let (instruction, bytes) = self.instruction(before.get("rip"))?;
        let text = told(&instruction);
        let mut memory = accesses(&instruction, before)?;
        // What is only read may be out of reach afterwards.
        for access in memory.iter_mut().filter(|access| !access.writes) {
            access.value = self.value(access)?;
        }
        let after = self.moved(before)?;
        if instruction.mnemonic() == Mnemonic::Int {
            // The processor's own: SS, RSP, RFLAGS, CS, RIP.
            memory.push(Access {
                writes: true,
                at: Hex(after.get("rsp")),
                bytes: 40,
                value: None,
            });
        }
        for access in memory.iter_mut().filter(|access| access.writes) {
            access.value = self.value(access)?;
        }
        let step = Step {
            bytes: bytes.iter().map(hex).collect(),
            text,
            changes: before.changes(&after),
            memory,
        };
        Ok((step, after))
    }

    /// Steps until something has changed: under the debugger an instruction is now and then begun
    /// twice, and the first step ends where it began.
    fn moved(&mut self, before: &State) -> Result<State> {
        for _ in 0..10 {
            self.debugger.step()?;
            let after = self.state()?;
            if after != *before {
                return Ok(after);
            }
        }
        bail!("the machine stays at {:#x}", before.get("rip"));
    }

    fn value(&mut self, access: &Access) -> Result<Option<Hex>> {
        if access.bytes > 8 {
            return Ok(None);
        }
        let mut word = [0; 8];
        let bytes = self.debugger.memory(access.at.0, access.bytes)?;
        word[..bytes.len()].copy_from_slice(&bytes);
        Ok(Some(Hex(u64::from_le_bytes(word))))
    }
}

/// An instruction as the chapters write it, but with numbers for names.
fn told(instruction: &Instruction) -> String {
    let mut formatter = GasFormatter::new();
    let options = formatter.options_mut();
    options.set_uppercase_hex(false);
    options.set_signed_immediate_operands(true);
    options.set_space_after_operand_separator(true);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

/// What an instruction will read and write.
fn accesses(instruction: &Instruction, state: &State) -> Result<Vec<Access>> {
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_memory();
    let mut accesses = Vec::new();
    for memory in used {
        let writes = match memory.access() {
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::None | OpAccess::NoMemAccess => continue,
            _ => true,
        };
        let at = memory.virtual_address(0, |register, _, _| state.register(register));
        let bytes = memory.memory_size().size();
        accesses.push(Access {
            writes,
            at: Hex(at.with_context(|| format!("no address for {instruction:?}"))?),
            // What comes back from a frame has no size of its own.
            bytes: if bytes == 0 { 8 } else { bytes },
            value: None,
        });
    }
    Ok(accesses)
}

fn qemu_version() -> Result<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    let output = output.context("cannot start QEMU")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default();
    Ok(line.trim_start_matches("QEMU emulator version ").to_owned())
}

/// Makes the part of the chapter from what is kept.
///
/// # Errors
///
/// When the trace is not one of the module and the chapters that are there.
pub fn write_page(trace: &Trace) -> Result<PathBuf> {
    let path = root().join(PAGE);
    let text = page::make(trace, &root())?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

type Body = fn() -> Result<String>;

/// The tests: is what the book shows still so?
///
/// # Errors
///
/// When the report cannot be kept.
pub fn test(report: &mut Report, long: bool) -> Result<()> {
    let long = long || report.is_filtered();
    let tests: [(&str, Body, bool); 2] = [("kept", kept, true), ("anew", anew, long)];
    let wanted = |(name, _, now): &(&str, Body, bool)| *now && report.wants(SECTION, name);
    let tests: Vec<_> = tests.into_iter().filter(wanted).collect();
    if !tests.is_empty() {
        report.section("trace: the recorded trip in the book");
    }
    for (name, body, _) in tests {
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
    }
    Ok(())
}

/// The kept trace is of the module that is built, and the kept page is of both.
fn kept() -> Result<String> {
    let root = root();
    let trace = Trace::read(&root)?;
    let count = trace.check(&page_of(&root.join("module/lguest.ko"))?)?;
    let made = page::make(&trace, &root)?;
    let kept = fs::read_to_string(root.join(PAGE)).with_context(|| format!("no {PAGE}"))?;
    let differ = made
        .lines()
        .zip(kept.lines())
        .find(|(made, kept)| made != kept);
    if let Some((made, kept)) = differ {
        bail!("{PAGE} has {kept:?} for {made:?}; `make trace KEEP=1` makes it anew");
    }
    ensure!(
        made == kept,
        "{PAGE} has another length; `make trace KEEP=1` makes it anew"
    );
    let all = trace.steps.len();
    Ok(format!(
        "{all} instructions, {count} of them the Switcher's, as in the module"
    ))
}

/// A new recording has the same instructions, with the same tables in force.
fn anew() -> Result<String> {
    let now = record()?;
    compare(&Trace::read(&root())?, &now)?;
    let count = now.steps.len();
    Ok(format!("{count} instructions, the Switcher's as recorded"))
}

fn compare(kept: &Trace, now: &Trace) -> Result<()> {
    let (kept, now) = (kept.shape()?, now.shape()?);
    for n in 0..kept.len().max(now.len()) {
        let end = "the end".to_owned();
        let (was, is) = (kept.get(n).unwrap_or(&end), now.get(n).unwrap_or(&end));
        ensure!(was == is, "{DATA} has {was}, a new trip {is}; {ANEW}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8], state: &State) -> Vec<Access> {
        let mut decoder = Decoder::with_ip(64, bytes, state.get("rip"), DecoderOptions::NONE);
        accesses(&decoder.decode(), state).unwrap()
    }

    #[test]
    fn memory_is_where_the_instruction_says() {
        let state = State::parse(state::tests::TEXT).unwrap();
        let [ref push] = decoded(&[0x55], &state)[..] else {
            panic!("push %rbp")
        };
        assert!(push.writes && push.bytes == 8);
        assert_eq!(push.at.0, state.get("rsp") - 8);
        // mov %es,0x1042(%rdi)
        let [ref store] = decoded(&[0x8c, 0x87, 0x42, 0x10, 0, 0], &state)[..] else {
            panic!("mov")
        };
        assert!(store.writes && store.bytes == 2);
        assert_eq!(store.at.0, state.get("rdi") + 0x1042);
        // lidt 0x1096(%rdi)
        let [ref load] = decoded(&[0x0f, 0x01, 0x9f, 0x96, 0x10, 0, 0], &state)[..] else {
            panic!("lidt")
        };
        assert!(!load.writes && load.bytes == 10);
        assert_eq!(decoded(&[0x90], &state), []);
    }

    #[test]
    fn the_kept_trace_goes_there_and_back() {
        let trace = Trace::read(&root()).expect("it is in the repository");
        let text = fs::read_to_string(root().join(DATA)).unwrap();
        assert_eq!(trace.to_text().unwrap(), text);
        let states = trace.states().unwrap();
        let at: Vec<_> = states.iter().map(|state| trace.at(state)).collect();
        let (first, last) = (at[0], at[at.len() - 1]);
        assert_eq!(first, last);
        assert_eq!(
            (first.code, first.stack, first.ring),
            ("host-code", "host-stack", 0)
        );
        let inside = At {
            guest: true,
            code: "guest-code",
            stack: "guest-stack",
            gdt: "state",
            idt: "idt",
            task: "state",
            cr4: true,
            ring: 1,
        };
        assert!(at.contains(&inside), "{at:?}");
        assert_eq!(states[0].get("rsp"), states[states.len() - 1].get("rsp"));
    }

    #[test]
    fn another_trip_is_noticed() {
        let trace = Trace::read(&root()).expect("it is in the repository");
        let mut now = trace.clone();
        compare(&trace, &now).unwrap();
        // Elsewhere, it is the same.
        let inside = now.steps.iter().position(|step| step.text == "int $0x1f");
        let inside = inside.expect("it ends with a hypercall");
        now.steps[inside - 1].text = "nop".to_owned();
        compare(&trace, &now).unwrap();
        // Without an instruction of the Switcher's, or with other tables, it is not.
        let whole = now.clone();
        now.steps.pop();
        assert!(compare(&trace, &now).is_err());
        let mut now = whole;
        let load = now
            .steps
            .iter_mut()
            .find(|step| step.changes.contains_key("idt"));
        load.expect("it loads the IDT").changes.remove("idt");
        assert!(compare(&trace, &now).is_err());
    }

    #[test]
    fn another_switcher_is_noticed() {
        let trace = Trace::read(&root()).expect("it is in the repository");
        let mut page = vec![0xcc; 4096];
        for (step, state) in trace.steps.iter().zip(trace.states().unwrap()) {
            let Some(("text", _, start)) = trace.place(state.get("rip")) else {
                continue;
            };
            let at = (state.get("rip") - start) as usize;
            for (n, pair) in step.bytes.as_bytes().chunks(2).enumerate() {
                let pair = str::from_utf8(pair).unwrap();
                page[at + n] = u8::from_str_radix(pair, 16).unwrap();
            }
        }
        // All that was executed is there, but the rest is not.
        let why = trace.check(&page).unwrap_err().to_string();
        assert!(why.contains("hash"), "{why}");
        page[0] ^= 1;
        let why = trace.check(&page).unwrap_err().to_string();
        assert!(why.contains("at 0x0 of the Switcher"), "{why}");
    }
}
