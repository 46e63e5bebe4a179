// SPDX-License-Identifier: GPL-2.0-only

//! From a seed to a plan.
//!
//! A plan is a row of *ideas*, each of a few steps about one topic. Most of what an idea does is in
//! order, so that the Guest lives and what has gone before lies deeper and deeper behind it; here
//! and there a value is not. Ideas that can end the Guest are rare, and what an idea spoils it
//! repairs, where it can.

mod entries;
mod instructions;
mod machine;
mod memory;

use crate::layout::{LINEAR, RING1_STACK, ROOT, TABLES, TRAP_STACK, USER_DATA, handler};
use crate::plan::{Action, Must, Plan, Race, Run, Step, Topic, Word};
use crate::random::Random;

/// What the numbers in [`crate::plan::Run::with`] mean.
mod reg {
    pub const RAX: usize = 0;
    pub const RBX: usize = 1;
    pub const RCX: usize = 2;
    pub const RDX: usize = 3;
    pub const RSI: usize = 4;
    pub const RDI: usize = 5;
}

/// An idea: it adds steps to a plan.
type Idea = fn(&mut Maker);

/// The ideas, and how often each is had.
const IDEAS: [(u64, Topic, Idea); 20] = [
    (12, Topic::Hypercall, machine::hypercall),
    (5, Topic::Ring, machine::ring),
    (10, Topic::Instruction, instructions::instruction),
    (8, Topic::Bytes, instructions::bytes),
    (8, Topic::Memory, memory::addresses),
    (8, Topic::Switcher, memory::switcher),
    (14, Topic::Tables, entries::tables),
    (5, Topic::Roots, entries::roots),
    (5, Topic::Hints, entries::hints),
    (5, Topic::Descriptors, machine::descriptors),
    (6, Topic::Selectors, instructions::selectors),
    (7, Topic::Gates, machine::gates),
    (7, Topic::Stacks, machine::stacks),
    (6, Topic::Flags, instructions::flags),
    (5, Topic::Frames, instructions::frames),
    (7, Topic::Interrupts, machine::interrupts),
    (3, Topic::Loops, machine::loops),
    (6, Topic::Fpu, instructions::fpu),
    (7, Topic::Dma, machine::dma),
    (3, Topic::Scribble, memory::scribble),
];

/// How many ideas a plan has, at least and at most.
const FEW: u64 = 6;
const MANY: u64 = 60;

/// What makes a plan.
struct Maker {
    random: Random,
    plan: Plan,
    topic: Topic,
    /// The next slot of the top-level table that nothing was mapped through yet.
    slot: u64,
    /// The next page for a table.
    table: u64,
    /// The next slot of the ring, if nothing was scribbled there.
    ring: u64,
    /// Interrupts have handlers.
    lines: bool,
}

impl Maker {
    fn one_in(&mut self, many: u64) -> bool {
        self.random.one_in(many)
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        self.random.pick(list)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    /// Adds a step that has to come to something.
    fn judged(&mut self, must: Must, action: Action) {
        let topic = self.topic;
        self.plan.steps.push(Step {
            topic,
            must,
            spoils: false,
            action,
        });
    }

    /// Adds a step.
    fn step(&mut self, action: Action) {
        self.judged(Must::Any, action);
    }

    /// Adds a step after which nothing is certain.
    fn spoil(&mut self, action: Action) {
        self.step(action);
        if let Some(step) = self.plan.steps.last_mut() {
            step.spoils = true;
        }
    }

    /// Makes a call of which nobody says what it comes to.
    fn try_call(&mut self, number: u64, args: [u64; 4]) {
        self.step(Action::Call(number, args.map(Word::from)));
    }

    /// Makes a call that has to do as agreed.
    fn call(&mut self, number: u64, args: [u64; 4]) {
        self.judged(Must::Agree, Action::Call(number, args.map(Word::from)));
    }

    fn poke(&mut self, at: impl Into<Word>, value: impl Into<Word>) {
        self.step(Action::Poke(at.into(), value.into()));
    }

    fn peek(&mut self, at: impl Into<Word>) {
        self.step(Action::Peek(at.into()));
    }

    fn run(&mut self, run: Run) {
        self.step(Action::Run(run));
    }

    /// Has one idea. What could load SS is dropped, and another idea had.
    fn idea(&mut self, topic: Topic, idea: Idea) {
        let before = self.plan.steps.len();
        let state = (self.slot, self.table, self.ring);
        loop {
            self.topic = topic;
            idea(self);
            if !self.plan.steps[before..].iter().any(Step::loads_ss) {
                return;
            }
            self.plan.steps.truncate(before);
            (self.slot, self.table, self.ring) = state;
        }
    }

    fn any_idea(&mut self) {
        let all: u64 = IDEAS.iter().map(|(weight, ..)| weight).sum();
        let mut at = self.below(all);
        for (weight, topic, idea) in IDEAS {
            if at < weight {
                return self.idea(topic, idea);
            }
            at -= weight;
        }
    }
}

/// The plan of this seed and number: always the same one.
pub fn plan(seed: u64, number: u64) -> Plan {
    let mut start = Random::new(seed ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let mut maker = Maker {
        random: Random::new(start.word()),
        plan: Plan::default(),
        topic: Topic::Hypercall,
        slot: crate::layout::FIRST_SLOT,
        table: TABLES,
        ring: 0,
        lines: false,
    };
    maker.lines = !maker.one_in(4);
    if maker.lines {
        maker.idea(Topic::Interrupts, machine::handlers);
    }
    if maker.one_in(4) {
        races(&mut maker);
    }
    memory::every_byte(&mut maker, number);
    for _ in 0..FEW + maker.below(MANY - FEW) {
        maker.any_idea();
    }
    if maker.one_in(4) {
        maker.idea(Topic::End, machine::end);
    }
    maker.plan
}

/// What the Launcher does meanwhile.
fn races(maker: &mut Maker) {
    use crate::layout::{DATA1, END, FREE, KEYS, RACED_TABLES, RECORDS, SEGMENTS, TARGETS};
    let segment = 0x00cf_f300_0000_ffff;
    let good = [TARGETS | 3, (TARGETS + 4096) | 3, TARGETS | 7, DATA1 | 3];
    let bad = [
        0,
        END | 3,
        TARGETS | 1,
        (1 << 40) | 3,
        ROOT | 1,
        FREE | 3 | 1 << 63,
    ];
    for _ in 0..1 + maker.below(4) {
        let race = match maker.below(8) {
            0..4 => {
                let at = RACED_TABLES[2] + 8 * maker.below(8);
                let other = match maker.one_in(3) {
                    true => maker.pick(&bad),
                    false => maker.pick(&[0, TARGETS | 1, (TARGETS + 4096) | 3]),
                };
                Race {
                    at,
                    one: maker.pick(&good),
                    other,
                }
            }
            // The table that leads there.
            4 => Race {
                at: RACED_TABLES[1],
                one: RACED_TABLES[2] | 7,
                other: maker.pick(&[0, 0x80 | 7, TARGETS | 7]),
            },
            5 => Race {
                at: RECORDS + 8 * maker.below(21),
                one: 0,
                other: maker.pick(&[u64::MAX, 8, END - 8, END, 0x10_0000_0010]),
            },
            6 => Race {
                at: KEYS + 8 * maker.below(32),
                one: 0,
                other: maker.random.word(),
            },
            _ => Race {
                at: SEGMENTS + 8 * maker.below(16),
                one: maker.pick(&[0, segment]),
                other: maker.pick(&[segment, 0x00cf_fb00_0000_ffff, 0x0000_8900_0000_ffff]),
            },
        };
        maker.plan.races.push(race);
    }
    if maker.lines {
        maker.plan.raises = maker.pick(&[0, 2, 0x21, 0x8000_0000_0000_0022]);
    }
}

/// Registers for instructions that look at memory: they point to data, to what is not there, or
/// anywhere.
fn dressed(maker: &mut Maker, mut run: Run) -> Run {
    for register in [reg::RAX, reg::RCX, reg::RDX] {
        let word = maker.random.word();
        let value = match maker.below(5) {
            0 => word,
            1 => 1 << (word % 64),
            2 => 0xc000_0080 + word % 0x90,
            3 => word % 0x100,
            _ => 0,
        };
        run = run.with(register, value);
    }
    if maker.one_in(5) {
        let register = maker.pick(&[reg::RBX, reg::RSI, reg::RDI]);
        let address = memory::address(maker).0;
        run = run.with(register, address);
    }
    run
}

/// The good stack for traps from ring 3.
fn good_stack(maker: &mut Maker) {
    maker.call(7, [LINEAR + TRAP_STACK, 1, 0, 0]);
}

/// The good handler of a vector.
fn good_handler(maker: &mut Maker, vector: u64) {
    let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 1 };
    maker.call(6, [vector, handler(vector), 0x200 | dpl, 0]);
}

/// Addresses that ring 1 may write.
const WRITABLE: [u64; 4] = [
    LINEAR + RING1_STACK - 64,
    LINEAR + crate::layout::TARGETS,
    LINEAR + crate::layout::DATA1,
    USER_DATA,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::TOPICS;
    use std::collections::BTreeMap;

    #[test]
    fn the_same_from_the_same() {
        for number in 0..100 {
            assert_eq!(plan(7, number), plan(7, number));
            assert_eq!(
                plan(7, number).to_string().as_bytes(),
                plan(7, number).to_string().as_bytes()
            );
            assert_ne!(plan(7, number), plan(8, number));
            assert_ne!(plan(7, number), plan(7, number + 1));
        }
    }

    #[test]
    fn a_plan_survives_being_a_text() {
        for number in 0..500 {
            let plan = plan(1, number);
            let again: Plan = plan.to_string().parse().expect("its own text");
            assert_eq!(plan, again);
        }
    }

    #[test]
    fn every_topic_and_every_action_comes_up() {
        let mut topics: BTreeMap<Topic, u64> = BTreeMap::new();
        let (mut judged, mut all, mut spoilt) = (0, 0, 0);
        for number in 0..300 {
            let mut sure = true;
            for step in plan(3, number).steps {
                *topics.entry(step.topic).or_default() += 1;
                all += 1;
                sure &= !step.spoils;
                spoilt += u64::from(!sure);
                judged += u64::from(sure && step.must != Must::Any);
            }
        }
        for (topic, name) in TOPICS {
            let count = topics.get(&topic).copied().unwrap_or(0);
            assert!(count >= 50, "{name} comes up {count} times in 300 plans");
        }
        assert!(judged * 5 > all, "{judged} of {all} steps are judged");
        assert!(spoilt * 2 < all, "{spoilt} of {all} steps are spoilt");
    }

    #[test]
    fn plans_fit_into_a_guest() {
        for number in 0..1000 {
            let plan = plan(11, number);
            let words: usize = plan
                .steps
                .iter()
                .map(|step| match &step.action {
                    Action::Queue(..) => 6,
                    _ => 1,
                })
                .sum();
            assert!((8..2000).contains(&words), "{words} steps");
            assert!(!plan.steps.iter().any(Step::loads_ss));
            for step in &plan.steps {
                if let Action::Run(run) = &step.action {
                    assert!(run.code.len() <= crate::plan::CODE_BYTES);
                }
            }
        }
    }

    #[test]
    fn every_byte_of_the_switcher_is_written_to() {
        use crate::plan::Base;
        let mut there = BTreeMap::new();
        for number in 0..memory::PLANS_FOR_EVERY_BYTE {
            for step in plan(5, number).steps {
                let Action::Poke(at, _) = step.action else {
                    continue;
                };
                if matches!(at.base, Base::Text | Base::Pages) {
                    for byte in at.offset..at.offset + 8 {
                        there.insert((at.base == Base::Text, byte), ());
                    }
                }
            }
        }
        for page in 0..memory::SWITCHER_PAGES {
            let text = page == 0;
            // The first of the others is the shared page, which is there to be written.
            let first = match page {
                0 => 0,
                page => page * 4096,
            };
            for byte in first..first + 4096 {
                assert!(there.contains_key(&(text, byte)), "page {page}: {byte:#x}");
            }
        }
    }
}
