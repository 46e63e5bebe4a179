// SPDX-License-Identifier: GPL-2.0-only

//! Hostile Guests by the thousand.
//!
//! The crate `hostile` makes a plan of a seed and a number; here a plan becomes a bare Guest, which
//! is run. Two run at a time, so that they hit each other as well as the Host, and beside them an
//! honest Guest adds up numbers. Each must end in a way that there is, and what its plan knows must
//! have come about. After every few dozen the kernel's log is read, and the honest Guest's sums
//! are compared; over the whole run the kernel's memory is counted. A plan that has found something
//! is made smaller and told in full.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hostile::corpus::CORPUS;
use hostile::layout;
use hostile::plan::{Action, Base, Must, Plan, Race, Ring as PlanRing, Step, Topic, Word};
use hostile::shrink::shrink;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::exits::numbers;
use super::leaks::{fit, sample};
use super::sweep::{Fate, fate, reserved};
use super::{Bench, unexpected};
use crate::bare::{self, Bare, End, Outcome, PAGE, ROOT, RW, RWU, Ring, UPPER};
use crate::device::{Device, GETDMA, IRQ};
use crate::host;
use crate::tiny::{NAP, NAP_LINE, Tiny, say};

/// Guests of an ordinary run: every byte of the Switcher has its turn.
const GUESTS: u64 = 1_024;
/// Their seed.
const SEED: u64 = 42;
/// And of the long set, on each kind of Host; there are six as fast as this, and three others.
const MANY_GUESTS: u64 = 17_000;
/// On a Host that is so many times slower, fewer.
const SLOW_GUESTS: u64 = 1_024;
/// Guests between two looks at the kernel's log.
const CHUNK: u64 = 64;
/// How often memory is counted in a run.
const COUNTS: u64 = 8;
/// Guests of which the exits are told by reason.
const WATCHED: u64 = 48;
/// Records that a Guest may send.
const MOST_SENT: u32 = 200;
/// How often a smaller plan is tried.
const MOST_TRIES: usize = 400;
/// How often a plan is run to see whether it finds it again.
const AGAIN: usize = 6;

// The numbers that both crates must agree on.
const _: () = {
    assert!(layout::PAGE == bare::PAGE && layout::END == bare::END);
    assert!(layout::LINEAR == bare::LINEAR && layout::ROOT == bare::ROOT);
    assert!(layout::LOWER2 == bare::LOWER[2] && layout::FREE == bare::FREE);
    assert!(layout::RING1_STACK == bare::RING1_STACK && layout::DATA1 == bare::DATA1);
    assert!(layout::TRAP_STACK == bare::TRAP_STACK && layout::STEPS == bare::STEPS);
    assert!(layout::USER_DATA == bare::USER_DATA && layout::USER_STACK == bare::USER_STACK);
    assert!(layout::RECORDS == super::sweep::RECORDS);
    assert!(layout::OTHER_ROOT == super::sweep::OTHER_ROOT);
    assert!(layout::SEGMENTS == super::sweep::SEGMENTS);
    assert!(layout::RACED_TABLES[2] + PAGE == bare::STEPS);
};

/// What is known of this Host only.
#[derive(Clone, Copy, Debug)]
struct Facts {
    text: u64,
    pages: u64,
    shared: u64,
    five: bool,
}

impl Facts {
    fn new() -> Result<Self> {
        let [text, _, pages, _] = reserved()?;
        let mut guest = Bare::new()?;
        guest.survive()?;
        Ok(Self {
            text,
            pages,
            shared: guest.read(bare::STATE + 8),
            five: host::five_levels(),
        })
    }

    fn word(&self, word: Word) -> u64 {
        let base = match word.base {
            Base::Zero => 0,
            Base::Text => self.text,
            Base::Pages => self.pages,
            Base::Shared => self.shared,
        };
        base.wrapping_add(word.offset)
    }

    fn words(&self, words: [Word; 4]) -> [u64; 4] {
        words.map(|word| self.word(word))
    }
}

/// A Guest made of a plan, and the number of each step in it.
fn prepared(plan: &Plan, facts: &Facts, keys: &File) -> Result<(Bare, Vec<usize>)> {
    use layout::{KEYS, OTHER_ROOT, RACED_SLOT, RACED_TABLES, TARGETS};
    let mut guest = Bare::new()?;
    guest.protect();
    guest.write(UPPER[2] + 8 * (ROOT / PAGE), ROOT | RW);
    guest.share_page(KEYS, keys, 0)?;
    let [upper, middle, lower] = RACED_TABLES;
    guest.write(ROOT + 8 * RACED_SLOT, upper | RWU);
    guest.write(upper, middle | RWU);
    guest.write(middle, lower | RWU);
    for page in 0..8 {
        guest.write(lower + 8 * page, (TARGETS + page % 2 * PAGE) | RWU);
    }
    for slot in 0..512 {
        let entry = guest.read(ROOT + 8 * slot);
        if entry != 0 {
            guest.write(OTHER_ROOT + 8 * slot, entry);
        }
    }
    guest.set_stack();
    let add = |step: &Step| add(&mut guest, step, facts);
    let numbers = plan.steps.iter().map(add).collect();
    Ok((guest, numbers))
}

/// Adds a step of a plan; gives the number of its last.
fn add(guest: &mut Bare, step: &Step, facts: &Facts) -> usize {
    match &step.action {
        Action::Call(number, args) => guest.call(*number, facts.words(*args)),
        Action::Queue(slot, number, args) => {
            guest.queue(slot % 64, *number, facts.words(*args));
            guest.steps() - 1
        }
        Action::Poke(at, value) => guest.poke(facts.word(*at), facts.word(*value)),
        Action::Peek(at) => guest.peek(facts.word(*at)),
        Action::Share(at, value) => guest.poke_shared((at % PAGE) & !7, *value),
        Action::ShareByte(at, value) => guest.poke_shared_byte(at % PAGE, *value),
        Action::Run(run) => {
            let mut with = guest.registers(ring(run.ring));
            for (register, word) in &run.general {
                with.general[*register] = facts.word(*word);
            }
            with.rip = run.rip.map_or(with.rip, |word| facts.word(word));
            with.rsp = run.rsp.map_or(with.rsp, |word| facts.word(word));
            with.rflags = run.rflags.unwrap_or(with.rflags);
            with.cs = run.cs.unwrap_or(with.cs);
            with.ss = run.ss.unwrap_or(with.ss);
            guest.go_with(&run.code, &with, run.resume)
        }
    }
}

fn ring(ring: PlanRing) -> Ring {
    match ring {
        PlanRing::One => Ring::One,
        PlanRing::Three => Ring::Three,
        PlanRing::Three32 => Ring::Three32,
    }
}

/// A signal for one thread's system calls.
#[derive(Debug)]
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> Result<Self> {
        extern "C" fn nothing(_: libc::c_int) {}
        let handler = SigHandler::Handler(nothing);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: The handler does nothing, which may be done at any time.
        unsafe { sigaction(Signal::SIGUSR2, &action) }?;
        // SAFETY: The structure is one of numbers, all of which may be 0.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR2;
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: Both structures are alive; the timer is written into the second.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        ensure!(made == 0, "no timer: {}", std::io::Error::last_os_error());
        Ok(Self(timer))
    }

    /// From then on every so often; never for zero.
    fn set(&self, every: Duration) {
        let every = libc::timespec {
            tv_sec: every.as_secs().cast_signed(),
            tv_nsec: every.subsec_nanos().into(),
        };
        let spec = libc::itimerspec {
            it_interval: every,
            it_value: every,
        };
        // SAFETY: The timer is this structure's own, and nothing is written back.
        let set = unsafe { libc::timer_settime(self.0, 0, &raw const spec, std::ptr::null_mut()) };
        assert!(set == 0, "the timer cannot be set");
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: The timer is this structure's own, and nobody uses it any more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// How often one looks whether a Guest gets on.
const LOOK: Duration = Duration::from_millis(20);
/// After so many looks at the same step it is stopped.
const SAME: u32 = 4;
/// And after so many in all.
const LOOKS: u32 = 400;

/// Where a Guest is; 0 before its first step.
fn reached(guest: &Bare) -> usize {
    let step = guest.reached();
    if step < bare::MOST_STEPS { step } else { 0 }
}

/// Runs a Guest to its end, or to the end of its time, with the Launcher's part of its plan.
fn execute(guest: &Bare, device: &Device, plan: &Plan, timer: &Timer) -> Result<End> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        if !plan.races.is_empty() || plan.raises != 0 {
            let (memory, over) = (guest.address(), &over);
            scope.spawn(move || race(memory, device, plan, over));
        }
        timer.set(LOOK * host::patience());
        let end = attend(guest, device);
        timer.set(Duration::ZERO);
        over.store(true, Ordering::Release);
        end
    })
}

/// Changes what the plan says, until it is over.
fn race(memory: usize, device: &Device, plan: &Plan, over: &AtomicBool) {
    let mut turn: u64 = 0;
    let mut lines = plan.raises;
    while !over.load(Ordering::Acquire) {
        for Race { at, one, other } in &plan.races {
            if *at < bare::END {
                let place = (memory + (*at & !7) as usize) as *mut u64;
                let value = if turn.is_multiple_of(2) { *other } else { *one };
                // SAFETY: The place is aligned and in the Guest's memory, which is there for as
                // long as this thread; the Guest may change it at any time as well.
                unsafe { place.write_volatile(value) };
            }
        }
        if turn.is_multiple_of(512) && lines != 0 {
            // A Guest that has ended may refuse it.
            let _ = device.request(&[IRQ, lines.trailing_zeros().into()]);
            lines &= lines - 1;
            lines = if lines == 0 { plan.raises } else { lines };
        }
        turn += 1;
        std::hint::spin_loop();
    }
}

/// The Launcher's loop.
fn attend(guest: &Bare, device: &Device) -> Result<End> {
    let mut sent = 0;
    let (mut step, mut same, mut looks) = (0, 0, 0);
    loop {
        match device.read(512) {
            Ok(record) => {
                sent += 1;
                if sent == MOST_SENT {
                    return Ok(End::Running);
                }
                let key = record.get(16..24).context("a short record")?;
                let key = u64::from_ne_bytes(key.try_into()?);
                match device.request(&[GETDMA, key]) {
                    Ok(_) | Err(libc::ENOENT) => {}
                    Err(number) => bail!("GETDMA: {}", say::<()>(Err(number))),
                }
            }
            Err(libc::ESHUTDOWN) => return Ok(End::Off),
            Err(libc::ERESTART) => return Ok(End::Restart),
            Err(libc::EINTR) => {
                looks += 1;
                same = if reached(guest) == step { same + 1 } else { 0 };
                step = reached(guest);
                // One that has not begun has to wait for others; this machine is emulated.
                let waits = step == 0 && looks < LOOKS / 4;
                if looks == LOOKS || same >= SAME && !waits {
                    return Ok(End::Running);
                }
            }
            Err(libc::ENOENT) => {
                let reason = device.read(512);
                let reason = reason.map_err(|n| anyhow!("no reason: {}", say::<()>(Err(n))))?;
                let reason = String::from_utf8_lossy(&reason).into_owned();
                ensure!(!reason.is_empty(), "it died without a reason");
                return Ok(End::Dead(reason));
            }
            Err(number) => bail!("read(): {}", say::<()>(Err(number))),
        }
    }
}

/// Parts of a reason that say that something is wrong with the Host, and not with the Guest.
const HOSTS: [&str; 4] = [
    "the Host's ",
    "the Switcher did not",
    "the Switcher lost",
    "in the Switcher at",
];

/// Whether all that the plan knows has come about.
fn judge(plan: &Plan, steps: &[usize], guest: &Bare, end: &End, facts: &Facts) -> Result<u64> {
    if let End::Dead(reason) = end {
        let host = HOSTS.iter().find(|part| reason.contains(**part));
        ensure!(host.is_none(), "the Host's reason: {reason:?}");
    }
    if !guest.is_whole() {
        return Ok(0);
    }
    let mut judged = 0;
    // Whether a death would be in order although no step so far is to blame.
    let mut mortal = !plan.races.is_empty();
    for (number, step) in steps.iter().zip(&plan.steps) {
        let outcome = guest.outcome(*number);
        let here = reached(guest) == *number;
        let died = outcome == Outcome::Never && here && matches!(end, End::Dead(_)) && !mortal;
        let wrong = match step.must {
            Must::Any => false,
            Must::Fail => succeeded(guest, *number, step, &outcome),
            Must::Work => match outcome {
                Outcome::Done(_) => false,
                Outcome::Trapped(trap) => trap.vector < 32,
                Outcome::Never => died,
            },
            Must::Agree => disagrees(step, &outcome, end, here, mortal, facts),
        };
        ensure!(
            !wrong,
            "{step}\ncame to {outcome:x?}, and the end was {end:?}"
        );
        judged += u64::from(step.must != Must::Any && outcome != Outcome::Never);
        if step.spoils || outcome == Outcome::Never {
            break;
        }
        mortal |= is_mortal(step);
    }
    Ok(judged)
}

/// Whether a Guest can die of a step later, when nobody expects it.
fn is_mortal(step: &Step) -> bool {
    match &step.action {
        Action::Queue(..) | Action::ShareByte(..) => true,
        Action::Share(at, _) => !matches!(at, 0 | 0x20 | 0x40),
        Action::Run(run) => run.ss.is_some() || run.cs.is_some(),
        _ => matches!(step.topic, Topic::Dma | Topic::Roots | Topic::Bytes),
    }
}

/// Whether something came about that must not.
fn succeeded(guest: &Bare, number: usize, step: &Step, outcome: &Outcome) -> bool {
    match (&step.action, outcome) {
        (Action::Run(run), Outcome::Trapped(trap)) => {
            let at = guest.code_at(ring(run.ring), number);
            (trap.vector, trap.rip) == (3, at + run.code.len() as u64 + 1)
        }
        (_, Outcome::Done(_)) => true,
        _ => false,
    }
}

/// Whether a hypercall came to something else than the agreement says.
fn disagrees(
    step: &Step,
    outcome: &Outcome,
    end: &End,
    here: bool,
    mortal: bool,
    facts: &Facts,
) -> bool {
    let Action::Call(number, args) = &step.action else {
        return false;
    };
    let never = *outcome == Outcome::Never;
    // An interrupt in its place.
    if matches!(outcome, Outcome::Trapped(trap) if trap.vector >= 32) {
        return false;
    }
    match fate(*number, facts.words(*args), facts.five) {
        Fate::Lives(answer) => match outcome {
            Outcome::Done(got) => *number != 12 && answer.is_some_and(|answer| answer != *got),
            Outcome::Trapped(_) => true,
            Outcome::Never => here && matches!(end, End::Dead(_)) && !mortal,
        },
        Fate::Dies(texts) => match end {
            _ if !never => true,
            End::Dead(reason) if here && !mortal => !texts.iter().any(|t| reason.contains(t)),
            _ => false,
        },
        Fate::Ends(wanted) => !never || here && !mortal && *end != wanted,
        Fate::Either(_) | Fate::Doubtful => false,
    }
}

/// What many Guests came to.
#[derive(Debug, Default)]
struct Tally {
    guests: u64,
    steps: u64,
    judged: u64,
    ends: BTreeMap<&'static str, u64>,
    /// Reasons of death, numbers left out.
    reasons: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, reached: usize, judged: u64, end: &End) {
        self.guests += 1;
        self.steps += reached as u64;
        self.judged += judged;
        let name = match end {
            End::Off => "off",
            End::Restart => "restart",
            End::Dead(_) => "dead",
            End::Running => "stopped",
        };
        *self.ends.entry(name).or_default() += 1;
        if let End::Dead(reason) = end {
            *self.reasons.entry(without_numbers(reason)).or_default() += 1;
        }
    }
}

/// A reason with its numbers replaced, and a crash's message.
fn without_numbers(reason: &str) -> String {
    if reason.starts_with("CRASH: ") {
        return "CRASH: ...".to_owned();
    }
    let mut out = String::new();
    for word in reason.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            out.push('#');
            out.extend(word.chars().last().filter(|c| !c.is_ascii_alphanumeric()));
        } else {
            out.push_str(word);
        }
    }
    out
}

/// What everybody who runs hostile Guests needs.
struct Ground {
    facts: Facts,
    keys: File,
}

impl Ground {
    fn new() -> Result<Self> {
        let keys = memfd_create("keys", MFdFlags::empty())?;
        nix::unistd::ftruncate(&keys, PAGE.cast_signed())?;
        Ok(Self {
            facts: Facts::new()?,
            keys: keys.into(),
        })
    }

    /// Runs one; what it came to, or what is wrong.
    fn one(&self, plan: &Plan, timer: &Timer) -> Result<(usize, u64, End)> {
        let (guest, steps) = prepared(plan, &self.facts, &self.keys)?;
        let device = guest.initialize()?;
        let end = execute(&guest, &device, plan, timer)?;
        drop(device);
        let judged = judge(plan, &steps, &guest, &end, &self.facts)?;
        Ok((reached(&guest), judged, end))
    }

    /// Runs those of these numbers, two at a time; gives the first that something is wrong with.
    fn chunk(
        &self,
        seed: u64,
        numbers: std::ops::Range<u64>,
        tally: &Mutex<Tally>,
    ) -> Result<Option<u64>> {
        let next = AtomicU64::new(numbers.start);
        let wrong = AtomicU64::new(u64::MAX);
        let work = || -> Result<()> {
            let timer = Timer::new()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= numbers.end || wrong.load(Ordering::Relaxed) != u64::MAX {
                    return Ok(());
                }
                let plan = hostile::generate::plan(seed, number);
                match self.one(&plan, &timer) {
                    Ok((reached, judged, end)) => {
                        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                        tally.add(reached, judged, &end);
                    }
                    Err(_) => wrong.store(number, Ordering::Relaxed),
                }
            }
        };
        thread::scope(|scope| {
            let workers = [scope.spawn(work), scope.spawn(work)];
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
        })?;
        let wrong = wrong.into_inner();
        Ok((wrong != u64::MAX).then_some(wrong))
    }
}

/// The honest Guest beside the hostile ones.
struct Neighbour {
    guest: Tiny,
    rounds: u64,
}

impl Neighbour {
    fn new() -> Result<Self> {
        Ok(Self {
            guest: Tiny::new(64, NAP)?,
            rounds: 0,
        })
    }

    /// Wakes it for another thousand numbers, and checks their sum.
    fn round(&mut self) -> Result<()> {
        let answer = self.guest.device.request(&[IRQ, NAP_LINE]);
        ensure!(
            answer == Ok(16),
            "IRQ for the honest Guest: {}",
            say(answer)
        );
        self.rounds += 1;
        let wanted = 1000 * self.rounds;
        loop {
            match self.guest.next() {
                Ok(number) => {
                    let (word, sum) = (self.guest.memory.word(0), self.guest.memory.word(1));
                    ensure!(
                        (number, word, sum) == (wanted, wanted, wanted * (wanted + 1) / 2),
                        "the honest Guest sent {number:#x}, number {word} and sum {sum}, at {wanted}"
                    );
                    return Ok(());
                }
                Err(libc::EINTR) => {}
                Err(libc::ENOENT) => {
                    let reason = self.guest.device.read(256).unwrap_or_default();
                    bail!(
                        "the honest Guest died: {}",
                        String::from_utf8_lossy(&reason)
                    );
                }
                Err(number) => bail!("the honest Guest: {}", say::<()>(Err(number))),
            }
        }
    }
}

/// What the kernel has said since the last time and should not have.
fn complaints(bench: &mut Bench) -> Result<Vec<String>> {
    Ok(unexpected("hostile-guests", &bench.log.new_records()?))
}

/// Whether this plan, run by itself, finds something; and what.
fn finds(bench: &mut Bench, ground: &Ground, plan: &Plan) -> Result<Option<String>> {
    let timer = Timer::new()?;
    let wrong = ground.one(plan, &timer).err();
    let said = complaints(bench)?;
    let held = host::wait_until_free().err();
    let mut all: Vec<String> = wrong
        .into_iter()
        .chain(held)
        .map(|e| format!("{e:#}"))
        .collect();
    all.extend(said);
    Ok((!all.is_empty()).then(|| all.join("\n")))
}

/// The whole story of a plan that has found something: what, and the least of it that finds it too.
fn story(bench: &mut Bench, ground: &Ground, plan: &Plan, which: &str) -> Result<String> {
    let mut first = None;
    for _ in 0..AGAIN {
        first = first.or(finds(bench, ground, plan)?);
    }
    let Some(first) = first else {
        return Ok(format!(
            "{which} did not find it again in {AGAIN} runs by itself. It was:\n{plan}"
        ));
    };
    // Where it was a step that came to something else than it should, the same step must do so in
    // the smaller plan, and what its own idea has prepared for it stays.
    let step = |found: &str| found.lines().next().unwrap_or_default().to_owned();
    let blamed = step(&first);
    let last = plan.steps.iter().position(|one| one.to_string() == blamed);
    let topic = last.map(|last| plan.steps[last].topic);
    let begin = last.map_or(0, |last| {
        let before = plan.steps[..last].iter();
        let others = before.rev().take_while(|one| Some(one.topic) == topic);
        last - others.count()
    });
    let needed = |number: usize| last.is_some_and(|last| (begin..=last).contains(&number));
    let smaller = |others: &[usize]| {
        let mut steps = Vec::new();
        for (number, one) in plan.steps.iter().enumerate() {
            if !needed(number) && !others.contains(&number) {
                continue;
            }
            let mut one = one.clone();
            // What another step needs may have gone.
            if one.must == Must::Work && last != Some(number) {
                one.must = Must::Any;
            }
            steps.push(one);
        }
        Plan {
            steps,
            ..plan.clone()
        }
    };
    let others: Vec<usize> = (0..plan.steps.len()).filter(|n| !needed(*n)).collect();
    let mut error = None;
    let others = shrink(&others, MOST_TRIES, |others| {
        let plan = smaller(others);
        let found = (0..2).any(|_| match finds(bench, ground, &plan) {
            Ok(Some(found)) => last.is_none() || step(&found) == blamed,
            Ok(None) => false,
            Err(stop) => {
                error = Some(stop);
                false
            }
        });
        found && error.is_none()
    });
    if let Some(error) = error {
        return Err(error);
    }
    let least = smaller(&others);
    Ok(format!(
        "{which} finds it again: {first}\n{} of its {} steps do. For tests/hostile/corpus:\n# \
         {which}\n{least}",
        least.steps.len(),
        plan.steps.len()
    ))
}

/// A word `name=text` of the case.
fn word<'a>(bench: &'a Bench, name: &str) -> Option<&'a str> {
    let mut words = bench.words.iter().filter_map(|word| word.split_once('='));
    words.find_map(|(known, text)| (known == name).then_some(text))
}

/// Only those steps of a plan: `keep=0,3-5`.
fn kept(plan: Plan, keep: &str) -> Result<Plan> {
    let mut steps = Vec::new();
    for part in keep.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse()?, last.parse()?);
        let part = plan.steps.get(first..=last);
        steps.extend_from_slice(part.with_context(|| format!("there is no step {keep}"))?);
    }
    Ok(Plan { steps, ..plan })
}

/// So many of them.
pub fn guests(bench: &mut Bench) -> Result<()> {
    // An ordinary run is the same every time; what is new is for the long set.
    let seed = match (bench.number("seed"), bench.long()) {
        (Some(seed), _) => seed,
        (None, true) => bench.seed(),
        (None, false) => SEED,
    };
    let from = bench.number("from").unwrap_or(0);
    let rounds = match bench.number("rounds") {
        Some(rounds) => rounds,
        None if !bench.long() => GUESTS,
        None if host::patience() == 1 => MANY_GUESTS,
        None => SLOW_GUESTS,
    };
    bench
        .control
        .say("note", &format!("seed={seed} from={from} rounds={rounds}"))?;
    host::load_module()?;
    let ground = Ground::new()?;
    if let Some(keep) = word(bench, "keep").map(str::to_owned) {
        let plan = kept(hostile::generate::plan(seed, from), &keep)?;
        let found = finds(bench, &ground, &plan)?;
        ensure!(found.is_none(), "{}", found.unwrap_or_default());
        return host::wait_until_free();
    }
    let apart = bench.words.iter().any(|word| word == "apart");
    let tally = Mutex::new(Tally::default());
    let begun = Instant::now();
    let switches = host::counter("world_switches")?;
    let mut neighbour = Neighbour::new()?;
    neighbour.round()?;
    let chunk = if apart { 1 } else { CHUNK };
    let mut counts: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let every = (rounds / COUNTS).max(1);
    let mut counted = 0;
    let mut at = from;
    while at < from + rounds {
        let end = (at + chunk).min(from + rounds);
        // Whoever has to do without this machine from now on knows where it was.
        bench.control.say(
            "at",
            &format!("hostile-guests seed={seed} from={at} rounds={}", end - at),
        )?;
        let wrong = with_neighbour(&mut neighbour, || ground.chunk(seed, at..end, &tally));
        let wrong = wrong.with_context(|| format!("seed={seed} from={at}"))?;
        let said = complaints(bench)?;
        if wrong.is_some() || !said.is_empty() {
            drop(neighbour);
            return culprit(
                bench,
                &ground,
                seed,
                wrong.map_or(at..end, |n| n..n + 1),
                &said,
            );
        }
        at = end;
        if (at - from) / every > counted && !apart {
            counted = (at - from) / every;
            for (name, value) in sample()? {
                counts.entry(name).or_default().push(value);
            }
        }
    }
    drop(neighbour);
    host::wait_until_free()?;
    let switches = host::counter("world_switches")? - switches;
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tell(bench, &tally, switches, begun.elapsed())?;
    if rounds >= WATCHED && !apart {
        watched(bench, &ground, seed)?;
    }
    flat(bench, &counts, every)
}

/// Does something while the honest Guest computes in a thread of its own.
fn with_neighbour<T>(
    neighbour: &mut Neighbour,
    body: impl FnOnce() -> Result<T> + Send,
) -> Result<T>
where
    T: Send,
{
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            let result = body();
            over.store(true, Ordering::Release);
            result
        });
        // The one who opened it runs it: that is this thread.
        let mut sums = Ok(());
        while sums.is_ok() && !over.load(Ordering::Acquire) {
            sums = neighbour.round();
            thread::sleep(Duration::from_millis(2));
        }
        let result = work.join().map_err(|_| anyhow!("the work panicked"))?;
        sums.and(result)
    })
}

/// Finds out which of these it was, and tells its story as a failure.
fn culprit(
    bench: &mut Bench,
    ground: &Ground,
    seed: u64,
    numbers: std::ops::Range<u64>,
    said: &[String],
) -> Result<()> {
    let said = said.join("\n");
    for number in numbers.clone() {
        let plan = hostile::generate::plan(seed, number);
        let which = format!("seed={seed} from={number} rounds=1");
        if numbers.clone().count() > 1 && finds(bench, ground, &plan)?.is_none() {
            continue;
        }
        bail!("{said}\n{}", story(bench, ground, &plan, &which)?);
    }
    bail!("seed={seed} {numbers:?}: the kernel said:\n{said}\nNone of them does it by itself.")
}

/// How deep they went.
fn tell(bench: &mut Bench, tally: &Tally, switches: u64, time: Duration) -> Result<()> {
    let Tally {
        guests,
        steps,
        judged,
        ends,
        reasons,
    } = tally;
    ensure!(*guests > 0, "not one Guest ran");
    let seconds = time.as_secs_f32();
    bench.control.say(
        "note",
        &format!(
            "{guests} Guests in {seconds:.0} s: {ends:?}; {steps} steps done, {judged} judged; \
             {switches} world switches with the honest Guest's"
        ),
    )?;
    let mut by_count: Vec<_> = reasons.iter().map(|(name, count)| (count, name)).collect();
    by_count.sort_unstable_by(|a, b| b.cmp(a));
    let shown = if bench.long() { by_count.len() } else { 12 };
    let shown: Vec<String> = by_count
        .iter()
        .take(shown)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    let text = format!("{} reasons of death: {}", reasons.len(), shown.join("; "));
    bench.control.say("note", &text)?;
    // A generator whose Guests die at once, or never, would find little.
    let died = ends.get("dead").copied().unwrap_or(0);
    if *guests >= 500 {
        ensure!(
            *steps > 15 * guests,
            "only {steps} steps by {guests} Guests"
        );
        ensure!(
            *judged > 5 * guests,
            "only {judged} judged of {guests} Guests"
        );
        ensure!(reasons.len() >= 20, "only {} reasons", reasons.len());
        ensure!(
            (guests / 20..guests * 9 / 10).contains(&died),
            "{died} died"
        );
    }
    Ok(())
}

/// Some of them once more, one by one, with their exits by reason.
fn watched(bench: &mut Bench, ground: &Ground, seed: u64) -> Result<()> {
    let timer = Timer::new()?;
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    let (mut most, mut sum) = (0, 0);
    for number in 0..WATCHED {
        let plan = hostile::generate::plan(seed, number);
        let (guest, _) = prepared(&plan, &ground.facts, &ground.keys)?;
        let device = guest.initialize()?;
        let folders = super::exits::folders(std::process::id())?;
        ensure!(folders.len() == 1, "{folders:?} are there for one Guest");
        execute(&guest, &device, &plan, &timer)?;
        let mut text = String::new();
        File::open(folders[0].join("exits"))?.read_to_string(&mut text)?;
        let mut exits = 0;
        for (name, count) in numbers(&text)? {
            // Names of reasons have their vector behind them.
            if name.contains(' ') {
                exits += count;
                *all.entry(name).or_default() += count;
            }
        }
        (most, sum) = (most.max(exits), sum + exits);
    }
    let all: Vec<String> = all.iter().map(|(name, n)| format!("{name}: {n}")).collect();
    let text = format!(
        "of {WATCHED} of them: {} exits each, {most} at most; {}",
        sum / WATCHED,
        all.join(", ")
    );
    ensure!(sum / WATCHED > 50, "too few: {text}");
    bench.control.say("note", &text)
}

/// Whether the kernel's memory is what it was: no series of counts may grow by more than one object
/// in fifty Guests, however little.
fn flat(bench: &mut Bench, counts: &BTreeMap<String, Vec<f64>>, every: u64) -> Result<()> {
    let limit = 2.0 + every as f64 / 50.0;
    let (mut lost, mut looked) = (Vec::new(), 0);
    let mut most = (0.0, "none");
    for (name, values) in counts {
        // Linux puts off the end of a mapping until there is some reason, such as a module that is
        // loaded; the case `leaks` does that, and counts these.
        if name == "slab vmap_area" {
            continue;
        }
        // The first fill the kernel's own stores of structures.
        let Some(line) = values.get(2..).and_then(fit) else {
            continue;
        };
        looked += 1;
        if line.slope > most.0 {
            most = (line.slope, name);
        }
        if line.slope > limit && line.slope > 4.0 * line.error {
            lost.push(format!("{name} {:+.1} ± {:.1}", line.slope, line.error));
        }
    }
    if looked == 0 {
        return bench.control.say("note", "too few Guests to count memory");
    }
    let (slope, name) = most;
    bench.control.say(
        "note",
        &format!("{looked} counts of memory; most is lost of {name}, {slope:.1} in {every} Guests"),
    )?;
    ensure!(lost.is_empty(), "{every} Guests lose: {}", lost.join(", "));
    Ok(())
}

/// The plans that are kept.
pub fn corpus(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    let ground = Ground::new()?;
    for (name, text) in CORPUS {
        let plan: Plan = text.parse().map_err(|error| anyhow!("{name}: {error}"))?;
        for _ in 0..if bench.long() { 200 } else { 20 } {
            let found = finds(bench, &ground, &plan)?;
            ensure!(found.is_none(), "{name}: {}", found.unwrap_or_default());
        }
    }
    bench
        .control
        .say("note", &format!("{} plans", CORPUS.len()))?;
    host::wait_until_free()
}

/// Two that the harness has to notice: a plan that says of a good write that it must fail, and of a
/// bad one that it must work.
pub fn noticed(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let ground = Ground::new()?;
    let timer = Timer::new()?;
    for text in [
        "memory fail poke 0xffff88800005e000 0x1",
        "memory work peek 0x1000",
        "memory work poke text+0x0 0x1",
        "memory fail run one 90",
        "hypercall agree call 0x6 0x3 0x0 0x0 0x0\nmemory work run one 90",
    ] {
        let plan: Plan = text.parse().map_err(|error| anyhow!("{text}: {error}"))?;
        ensure!(ground.one(&plan, &timer).is_err(), "not noticed: {text}");
    }
    host::wait_until_free()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_lose_their_numbers() {
        assert_eq!(
            without_numbers("unhandled trap 14 at 0xffff8880 (address 0x0, error 0x2)"),
            "unhandled trap # at # (address #, error #)"
        );
        assert_eq!(without_numbers("CRASH: 1234"), "CRASH: ...");
    }

    #[test]
    fn steps_are_kept() {
        let plan = hostile::generate::plan(1, 1);
        let some = kept(plan.clone(), "0,2-4").expect("they are there");
        assert_eq!(some.steps[1], plan.steps[2]);
        assert_eq!(some.steps.len(), 4);
        assert!(kept(plan, "100000").is_err());
    }
}
