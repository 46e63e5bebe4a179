// SPDX-License-Identifier: GPL-2.0-only

//! What a hostile Guest is going to do, as data and as text.

use std::fmt;
use std::str::FromStr;

/// Where a number is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// From 0.
    Zero,
    /// From the Switcher's text, which lies elsewhere on every Host.
    Text,
    /// From the Switcher's other pages.
    Pages,
    /// From the page that is shared with the Host.
    Shared,
}

/// The bases that have a name.
const BASES: [(Base, &str); 3] = [
    (Base::Text, "text"),
    (Base::Pages, "pages"),
    (Base::Shared, "shared"),
];

/// A number, which may be known on the Host only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it is counted from.
    pub base: Base,
    /// How far from there.
    pub offset: u64,
}

impl Word {
    /// That many bytes from a base.
    pub const fn at(base: Base, offset: u64) -> Self {
        Self { base, offset }
    }
}

impl From<u64> for Word {
    fn from(offset: u64) -> Self {
        Self {
            base: Base::Zero,
            offset,
        }
    }
}

/// A ring to run instructions in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The Guest's kernel.
    One,
    /// Its program.
    Three,
    /// Its program, in a 32-bit segment.
    Three32,
}

/// The rings' names.
const RINGS: [(Ring, &str); 3] = [
    (Ring::One, "one"),
    (Ring::Three, "three"),
    (Ring::Three32, "three32"),
];

/// The names of the general registers, in the order of [`Run::general`].
pub const REGISTERS: [&str; 15] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Instructions, and the registers that they begin with. What is not said is as it usually is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The ring.
    pub ring: Ring,
    /// The instructions; `int3` follows them.
    pub code: Vec<u8>,
    /// General registers: which, and what is in them.
    pub general: Vec<(usize, Word)>,
    /// Somewhere else than at those instructions.
    pub rip: Option<Word>,
    /// Another stack.
    pub rsp: Option<Word>,
    /// Other flags.
    pub rflags: Option<u64>,
    /// Another selector for CS.
    pub cs: Option<u64>,
    /// Another selector for SS.
    pub ss: Option<u64>,
    /// Vectors after which it goes on, as bits.
    pub resume: u64,
}

/// Bytes of instructions that a step has room for, with the `int3` behind them.
pub const CODE_BYTES: usize = 47;

impl Run {
    /// These instructions, and everything else as usual.
    pub fn new(ring: Ring, code: &[u8]) -> Self {
        Self {
            ring,
            code: code.to_vec(),
            general: Vec::new(),
            rip: None,
            rsp: None,
            rflags: None,
            cs: None,
            ss: None,
            resume: 0,
        }
    }

    /// The same with a register.
    #[must_use]
    pub fn with(mut self, register: usize, word: impl Into<Word>) -> Self {
        self.general.retain(|(known, _)| *known != register);
        self.general.push((register, word.into()));
        self.general.sort_by_key(|(register, _)| *register);
        self
    }
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A hypercall: number and arguments.
    Call(u64, [Word; 4]),
    /// A hypercall in a slot of the ring; the next direct one drains it.
    Queue(u64, u64, [Word; 4]),
    /// Ring 1 writes a word.
    Poke(Word, Word),
    /// Ring 1 reads a word.
    Peek(Word),
    /// Ring 1 writes a word of the shared page, at an offset.
    Share(u64, u64),
    /// Ring 1 writes a byte of it.
    ShareByte(u64, u8),
    /// Instructions.
    Run(Run),
}

/// What must become of a step, as far as the Guest comes to it and nothing has spoilt the ground
/// that the judgement stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// That is not known.
    Any,
    /// It must not come about.
    Fail,
    /// It must come about.
    Work,
    /// As the agreement says of a hypercall.
    Agree,
}

/// The judgements' names.
const MUSTS: [(Must, &str); 4] = [
    (Must::Any, "any"),
    (Must::Fail, "fail"),
    (Must::Work, "work"),
    (Must::Agree, "agree"),
];

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words say it")]
pub enum Topic {
    Hypercall,
    Ring,
    Instruction,
    Bytes,
    Memory,
    Switcher,
    Tables,
    Roots,
    Hints,
    Descriptors,
    Selectors,
    Gates,
    Stacks,
    Flags,
    Frames,
    Interrupts,
    Loops,
    Fpu,
    Dma,
    Scribble,
    End,
}

/// All topics, and their names.
pub const TOPICS: [(Topic, &str); 21] = [
    (Topic::Hypercall, "hypercall"),
    (Topic::Ring, "ring"),
    (Topic::Instruction, "instruction"),
    (Topic::Bytes, "bytes"),
    (Topic::Memory, "memory"),
    (Topic::Switcher, "switcher"),
    (Topic::Tables, "tables"),
    (Topic::Roots, "roots"),
    (Topic::Hints, "hints"),
    (Topic::Descriptors, "descriptors"),
    (Topic::Selectors, "selectors"),
    (Topic::Gates, "gates"),
    (Topic::Stacks, "stacks"),
    (Topic::Flags, "flags"),
    (Topic::Frames, "frames"),
    (Topic::Interrupts, "interrupts"),
    (Topic::Loops, "loops"),
    (Topic::Fpu, "fpu"),
    (Topic::Dma, "dma"),
    (Topic::Scribble, "scribble"),
    (Topic::End, "end"),
];

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is about.
    pub topic: Topic,
    /// What must become of it.
    pub must: Must,
    /// After it nothing is known of this Guest any more: later steps are not judged.
    pub spoils: bool,
    /// What it does.
    pub action: Action,
}

/// A word in the Guest's memory that the Launcher changes all the time while the Guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Race {
    /// Where, guest-physical.
    pub at: u64,
    /// One value.
    pub one: u64,
    /// And the other.
    pub other: u64,
}

/// What a hostile Guest is going to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What the Launcher changes meanwhile.
    pub races: Vec<Race>,
    /// The lines that it raises meanwhile, as bits.
    pub raises: u64,
    /// The steps.
    pub steps: Vec<Step>,
}

/// Whether a processor that takes its ring from a null SS, as QEMU 7.2 does, could find an
/// instruction in these bytes that loads SS. The tests run in that emulator, and the mistake is not
/// the Host's; the case `null-ss` is about it.
pub fn loads_ss(bytes: &[u8]) -> bool {
    let moves = |pair: &[u8]| pair[0] == 0x8e && pair[1] >> 3 & 7 == 2;
    let loads = |pair: &[u8]| pair == [0x0f, 0xb2];
    bytes.last() == Some(&0x8e) || bytes.windows(2).any(|pair| moves(pair) || loads(pair))
}

impl Step {
    /// All bytes of the plan's own choosing that a Guest could come to execute.
    fn bytes(&self) -> Vec<u8> {
        let words: Vec<u64> = match &self.action {
            Action::Call(number, args) | Action::Queue(_, number, args) => {
                let args = args.iter().map(|word| word.offset);
                std::iter::once(*number).chain(args).collect()
            }
            Action::Poke(at, value) => vec![at.offset, value.offset],
            Action::Peek(at) => vec![at.offset],
            Action::Share(_, value) => vec![*value],
            Action::ShareByte(..) => vec![],
            Action::Run(run) => {
                let others = [run.rip, run.rsp].into_iter().flatten();
                let general = run.general.iter().map(|(_, word)| *word);
                general.chain(others).map(|word| word.offset).collect()
            }
        };
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Action::Run(run) = &self.action {
            bytes.push(0);
            bytes.extend(&run.code);
        }
        bytes
    }

    /// Whether [`loads_ss`] is true of anything in it.
    pub fn loads_ss(&self) -> bool {
        loads_ss(&self.bytes())
    }
}

/// The name of something in a list of names.
fn name<T: PartialEq>(list: &[(T, &'static str)], wanted: &T) -> &'static str {
    let found = list.iter().find(|(known, _)| known == wanted);
    found.map_or("?", |(_, name)| name)
}

/// What has this name.
fn named<T: Copy>(list: &[(T, &str)], wanted: &str) -> Result<T, String> {
    let found = list.iter().find(|(_, name)| *name == wanted);
    found
        .map(|(known, _)| *known)
        .ok_or_else(|| format!("nothing is called {wanted:?}"))
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(&TOPICS, self))
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            Base::Zero => write!(f, "{:#x}", self.offset),
            base => write!(f, "{}+{:#x}", name(&BASES, &base), self.offset),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spoils = if self.spoils { "!" } else { "" };
        write!(f, "{}{spoils} {} ", self.topic, name(&MUSTS, &self.must))?;
        let words = |f: &mut fmt::Formatter<'_>, words: &[Word]| {
            words.iter().try_for_each(|word| write!(f, " {word}"))
        };
        match &self.action {
            Action::Call(number, args) => {
                write!(f, "call {number:#x}")?;
                words(f, args)
            }
            Action::Queue(slot, number, args) => {
                write!(f, "queue {slot:#x} {number:#x}")?;
                words(f, args)
            }
            Action::Poke(at, value) => write!(f, "poke {at} {value}"),
            Action::Peek(at) => write!(f, "peek {at}"),
            Action::Share(at, value) => write!(f, "share {at:#x} {value:#x}"),
            Action::ShareByte(at, value) => write!(f, "share-byte {at:#x} {value:#x}"),
            Action::Run(run) => run.fmt(f),
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {} ", name(&RINGS, &self.ring))?;
        match self.code.is_empty() {
            true => write!(f, "-")?,
            false => self.code.iter().try_for_each(|b| write!(f, "{b:02x}"))?,
        }
        for (register, word) in &self.general {
            write!(f, " {}={word}", REGISTERS[*register])?;
        }
        for (name, word) in [("rip", self.rip), ("rsp", self.rsp)] {
            word.map_or(Ok(()), |word| write!(f, " {name}={word}"))?;
        }
        for (name, value) in [("rflags", self.rflags), ("cs", self.cs), ("ss", self.ss)] {
            value.map_or(Ok(()), |value| write!(f, " {name}={value:#x}"))?;
        }
        match self.resume {
            0 => Ok(()),
            resume => write!(f, " resume={resume:#x}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.raises != 0 {
            writeln!(f, "raise {:#x}", self.raises)?;
        }
        for Race { at, one, other } in &self.races {
            writeln!(f, "race {at:#x} {one:#x} {other:#x}")?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// A number, in hexadecimal with `0x` or in decimal.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no number"))
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('+') {
            Some((base, offset)) => Ok(Self::at(named(&BASES, base)?, number(offset)?)),
            None => Ok(number(text)?.into()),
        }
    }
}

impl FromStr for Run {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let ring = named(&RINGS, words.next().unwrap_or_default())?;
        let hex = words.next().unwrap_or_default();
        let hex = if hex == "-" { "" } else { hex };
        let digits = hex.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !digits || hex.len() % 2 != 0 || hex.len() / 2 > CODE_BYTES {
            return Err(format!("{hex:?} are no instructions"));
        }
        let code: Result<Vec<u8>, _> = (0..hex.len() / 2)
            .map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16))
            .collect();
        let mut run = Self::new(ring, &code.map_err(|error| error.to_string())?);
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word:?} is no register"))?;
            match name {
                "rip" => run.rip = Some(value.parse()?),
                "rsp" => run.rsp = Some(value.parse()?),
                "rflags" => run.rflags = Some(number(value)?),
                "cs" => run.cs = Some(number(value)?),
                "ss" => run.ss = Some(number(value)?),
                "resume" => run.resume = number(value)?,
                _ => {
                    let place = REGISTERS.iter().position(|known| *known == name);
                    let place = place.ok_or_else(|| format!("no register is called {name:?}"))?;
                    run = run.with(place, value.parse::<Word>()?);
                }
            }
        }
        Ok(run)
    }
}

/// Four arguments, those that are left out 0.
fn arguments<'a>(words: impl Iterator<Item = &'a str>) -> Result<[Word; 4], String> {
    let mut args = [Word::at(Base::Zero, 0); 4];
    for (place, word) in words.enumerate() {
        *args.get_mut(place).ok_or("more than four arguments")? = word.parse()?;
    }
    Ok(args)
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        if verb == "run" {
            return Ok(Self::Run(rest.parse()?));
        }
        let mut words = rest.split_whitespace();
        let mut next = || words.next().ok_or_else(|| format!("{text:?} is too short"));
        let action = match verb {
            "call" => Self::Call(number(next()?)?, arguments(words.by_ref())?),
            "queue" => Self::Queue(
                number(next()?)?,
                number(next()?)?,
                arguments(words.by_ref())?,
            ),
            "poke" => Self::Poke(next()?.parse()?, next()?.parse()?),
            "peek" => Self::Peek(next()?.parse()?),
            "share" => Self::Share(number(next()?)?, number(next()?)?),
            "share-byte" => {
                let (at, value) = (number(next()?)?, number(next()?)?);
                let value = u8::try_from(value).map_err(|_| format!("{value:#x} is no byte"))?;
                Self::ShareByte(at, value)
            }
            _ => return Err(format!("nothing is called {verb:?}")),
        };
        match words.next() {
            None => Ok(action),
            Some(word) => Err(format!("{word:?} is too much")),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.splitn(3, ' ').collect();
        let [topic, must, action] = parts[..] else {
            return Err(format!("{text:?} is no step"));
        };
        let plain = topic.trim_end_matches('!');
        Ok(Self {
            topic: named(&TOPICS, plain)?,
            must: named(&MUSTS, must)?,
            spoils: plain != topic,
            action: action.parse()?,
        })
    }
}

impl FromStr for Plan {
    type Err = String;

    /// Empty lines and those that begin with `#` are for the reader.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut plan = Self::default();
        for (line, text) in text.lines().enumerate() {
            let place = |error: String| format!("line {}: {error}", line + 1);
            let words: Vec<&str> = text.split_whitespace().collect();
            match words[..] {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["raise", lines] => plan.raises = number(lines).map_err(place)?,
                ["race", at, one, other] => plan.races.push(Race {
                    at: number(at).map_err(place)?,
                    one: number(one).map_err(place)?,
                    other: number(other).map_err(place)?,
                }),
                _ => plan.steps.push(text.trim().parse().map_err(place)?),
            }
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_a_text_are_named() {
        for (text, says) in [
            ("tables any poke 1", "too short"),
            ("tables any poke 1 2 3", "too much"),
            ("tables any push 1", "\"push\""),
            ("tables never poke 1 2", "\"never\""),
            ("magic any poke 1 2", "\"magic\""),
            ("bytes any run one 0", "no instructions"),
            ("bytes any run one 0f0b rzx=1", "\"rzx\""),
            ("bytes any run four 0f0b", "\"four\""),
            ("ring any call 1 2 3 4 5 6", "four"),
            ("scribble any share-byte 0 0x100", "no byte"),
            ("memory any peek middle+0x10", "\"middle\""),
        ] {
            let error = text.parse::<Plan>().expect_err(text);
            assert!(error.starts_with("line 1: "), "{error}");
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn loads_of_ss_are_found() {
        assert!(loads_ss(&[0x90, 0x8e, 0xd0]));
        assert!(loads_ss(&[0x8e, 0x14, 0x24]));
        assert!(loads_ss(&[0x48, 0x0f, 0xb2, 0x03]));
        assert!(loads_ss(&[0x8e]));
        assert!(!loads_ss(&[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0]));
        let step: Step = "memory any poke 0x0 0x12d08e".parse().expect("a step");
        assert!(step.loads_ss());
    }
}
