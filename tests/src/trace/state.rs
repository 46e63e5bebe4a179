// SPDX-License-Identifier: GPL-2.0-only

//! What a processor holds, as QEMU's monitor tells it.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use iced_x86::Register;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number that is written as one usually sees it, `0x` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'a> Deserialize<'a> for Hex {
    fn deserialize<D: Deserializer<'a>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.strip_prefix("0x");
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let wrong = || de::Error::custom(format!("{text:?} is not 0x and hexadecimal digits"));
        number.map(Self).ok_or_else(wrong)
    }
}

/// A part of the state: what it is called here, what a reader sees, how many bytes it has, and
/// where QEMU tells it: before which word, and the how manieth of the numbers there.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its name in the data.
    pub name: &'static str,
    /// Its name for a reader.
    pub title: &'static str,
    /// Its size.
    pub bytes: usize,
    before: &'static str,
    which: usize,
}

const fn part(
    name: &'static str,
    title: &'static str,
    bytes: usize,
    before: &'static str,
    which: usize,
) -> Part {
    Part {
        name,
        title,
        bytes,
        before,
        which,
    }
}

/// How many parts there are.
pub const COUNT: usize = 36;

/// All that a trip is told by.
pub const PARTS: [Part; COUNT] = [
    part("rip", "RIP", 8, "RIP=", 0),
    part("rsp", "RSP", 8, "RSP=", 0),
    part("rflags", "RFLAGS", 4, "RFL=", 0),
    part("ring", "ring (CPL)", 0, "CPL=", 0),
    part("cs", "CS", 2, "CS =", 0),
    part("ss", "SS", 2, "SS =", 0),
    part("cr3", "CR3", 8, "CR3=", 0),
    part("gdt", "GDT", 8, "GDT=", 0),
    part("gdt_limit", "GDT limit", 2, "GDT=", 1),
    part("idt", "IDT", 8, "IDT=", 0),
    part("idt_limit", "IDT limit", 2, "IDT=", 1),
    part("tr", "TR", 2, "TR =", 0),
    part("tr_base", "TR base", 8, "TR =", 1),
    part("cr0", "CR0", 4, "CR0=", 0),
    part("cr4", "CR4", 4, "CR4=", 0),
    part("fs_base", "FS base", 8, "FS =", 1),
    part("gs_base", "GS base", 8, "GS =", 1),
    part("ds", "DS", 2, "DS =", 0),
    part("es", "ES", 2, "ES =", 0),
    part("fs", "FS", 2, "FS =", 0),
    part("gs", "GS", 2, "GS =", 0),
    part("rax", "RAX", 8, "RAX=", 0),
    part("rbx", "RBX", 8, "RBX=", 0),
    part("rcx", "RCX", 8, "RCX=", 0),
    part("rdx", "RDX", 8, "RDX=", 0),
    part("rsi", "RSI", 8, "RSI=", 0),
    part("rdi", "RDI", 8, "RDI=", 0),
    part("rbp", "RBP", 8, "RBP=", 0),
    part("r8", "R8", 8, "R8 =", 0),
    part("r9", "R9", 8, "R9 =", 0),
    part("r10", "R10", 8, "R10=", 0),
    part("r11", "R11", 8, "R11=", 0),
    part("r12", "R12", 8, "R12=", 0),
    part("r13", "R13", 8, "R13=", 0),
    part("r14", "R14", 8, "R14=", 0),
    part("r15", "R15", 8, "R15=", 0),
];

/// The whole state at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Values", try_from = "Values")]
pub struct State([u64; COUNT]);

/// Some parts of a state, by their names.
pub type Values = BTreeMap<String, Hex>;

impl State {
    /// Out of what the monitor says to `info registers`.
    ///
    /// # Errors
    ///
    /// When something is not there.
    pub fn parse(text: &str) -> Result<Self> {
        let mut state = Self([0; COUNT]);
        for (value, part) in state.0.iter_mut().zip(PARTS) {
            let found = text.split_once(part.before).map(|(_, rest)| rest);
            let word = found.and_then(|rest| rest.split_whitespace().nth(part.which));
            let number = word.and_then(|word| u64::from_str_radix(word, 16).ok());
            *value = number.with_context(|| format!("no {} in {text:?}", part.title))?;
        }
        Ok(state)
    }

    fn index(name: &str) -> Option<usize> {
        PARTS.iter().position(|part| part.name == name)
    }

    /// A part of it.
    ///
    /// # Panics
    ///
    /// When none has that name.
    pub fn get(&self, name: &str) -> u64 {
        self.0[Self::index(name).unwrap_or_else(|| panic!("nothing is called {name}"))]
    }

    /// Changes some of it.
    ///
    /// # Errors
    ///
    /// When there is a name that is not one.
    pub fn change(&mut self, changes: &Values) -> Result<()> {
        for (name, value) in changes {
            let index = Self::index(name).with_context(|| format!("nothing is called {name:?}"))?;
            self.0[index] = value.0;
        }
        Ok(())
    }

    /// What another one has that this has not.
    pub fn changes(&self, after: &Self) -> Values {
        let all = PARTS.iter().zip(self.0.iter().zip(after.0));
        all.filter(|(_, (before, after))| **before != *after)
            .map(|(part, (_, after))| (part.name.to_owned(), Hex(after)))
            .collect()
    }

    /// What an instruction finds in a register, or in a segment's base.
    pub fn register(&self, register: Register) -> Option<u64> {
        let name = match register {
            Register::CS | Register::DS | Register::ES | Register::SS => return Some(0),
            Register::FS | Register::GS => format!("{register:?}_base"),
            _ => format!("{:?}", register.full_register()),
        };
        Self::index(&name.to_lowercase()).map(|index| self.0[index])
    }
}

impl From<State> for Values {
    fn from(state: State) -> Self {
        let all = PARTS.iter().zip(state.0);
        all.map(|(part, value)| (part.name.to_owned(), Hex(value)))
            .collect()
    }
}

impl TryFrom<Values> for State {
    type Error = anyhow::Error;

    fn try_from(values: Values) -> Result<Self> {
        let mut state = Self([0; COUNT]);
        state.change(&values)?;
        ensure!(values.len() == COUNT, "not all of a state is there");
        Ok(state)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As QEMU writes it.
    pub(crate) const TEXT: &str = "\r
CPU#0\r
RAX=0000000000000001 RBX=0000000000000002 RCX=0000000000000003 RDX=0000000000000004\r
RSI=0000000000000005 RDI=ffffc90000100000 RBP=0000000000000007 RSP=ffffc90000203fc8\r
R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b\r
R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=000000000000000f\r
RIP=ffffffffc0205000 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r
ES =0000 0000000000000000 ffffffff 00c00000\r
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
DS =0000 0000000000000000 ffffffff 00c00000\r
FS =0000 000000000061f3c0 ffffffff 00c00000\r
GS =0000 ffff88803ec00000 ffffffff 00c00000\r
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\r
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy\r
GDT=     fffffe0000001000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=00007ffc11111111 CR3=0000000003a5c000 CR4=00772ef0\r
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000 \r
EFER=0000000000000d01\r
";

    #[test]
    fn the_monitors_words_are_a_state() {
        let state = State::parse(TEXT).unwrap();
        for (name, value) in [
            ("rip", 0xffff_ffff_c020_5000),
            ("r8", 8),
            ("ring", 0),
            ("ss", 0x18),
            ("tr_base", 0xffff_fe00_0000_3000),
            ("gdt_limit", 0x7f),
            ("idt", 0xffff_fe00_0000_0000),
            ("gs_base", 0xffff_8880_3ec0_0000),
            ("cr4", 0x0077_2ef0),
        ] {
            assert_eq!(state.get(name), value, "{name}");
        }
        assert!(State::parse(&TEXT.replace("GDT=", "XXX=")).is_err());
    }

    #[test]
    fn a_state_and_its_changes_are_the_next_state() {
        let before = State::parse(TEXT).unwrap();
        let after = State::parse(&TEXT.replace("CR4=00772ef0", "CR4=00500070")).unwrap();
        let changes = before.changes(&after);
        assert_eq!(changes.len(), 1);
        let mut state = before.clone();
        state.change(&changes).unwrap();
        assert_eq!(state, after);
        assert!(
            state
                .change(&Values::from([("cr5".into(), Hex(1))]))
                .is_err()
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        let state = State::parse(TEXT).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        let less = text.replace("\"rip\":\"0xffffffffc0205000\",", "");
        assert_ne!(less, text);
        assert!(serde_json::from_str::<State>(&less).is_err());
        assert!(serde_json::from_str::<State>(&text.replace("0x", "")).is_err());
    }

    #[test]
    fn instructions_find_their_registers() {
        let state = State::parse(TEXT).unwrap();
        assert_eq!(state.register(Register::EAX), Some(1));
        assert_eq!(state.register(Register::R8D), Some(8));
        assert_eq!(state.register(Register::RIP), Some(state.get("rip")));
        assert_eq!(state.register(Register::GS), Some(state.get("gs_base")));
        assert_eq!(state.register(Register::DS), Some(0));
        assert_eq!(state.register(Register::XMM0), None);
    }
}
