// SPDX-License-Identifier: GPL-2.0-only

//! The cases, by name.

mod clock;
mod device;
mod drivers;
mod emulated;
mod exchange;
mod exits;
mod faults;
mod fit;
mod former;
mod fpu;
mod frames;
mod fuzz_device;
mod gates;
mod guests;
mod high;
mod hints;
mod hostile;
mod hostile_bugs;
mod hostile_guests;
pub mod idle_counted;
mod instructions;
mod irqs;
mod kvm_after;
mod launcher;
mod leaks;
mod leaving;
mod many;
mod measures;
mod misuse;
mod neighbours;
mod network;
mod newborn;
mod nonsense;
mod own_segments;
mod processes;
mod programs;
mod reasons;
mod reclaim;
mod requests;
mod ring;
mod segments;
mod soak;
mod state;
mod storm;
mod sweep;
mod system_calls;
mod tables;
mod tags;
mod timer;
mod window;

pub use requests::{WITH_LDT, with_ldt};

use std::mem;

use anyhow::{Result, ensure};

use crate::host::{self, Control, KernelLog, Record, WARNING};
use crate::nets;

/// What a case can work with.
#[derive(Debug)]
pub struct Bench {
    /// The channel to the test command.
    pub control: Control,
    /// The kernel's log, read up to the end of the last case.
    pub log: KernelLog,
    /// What the kernel said while it booted.
    pub boot: Vec<Record>,
    /// What was said after the case's name: `long`, `scan`, or `word=number`.
    pub words: Vec<String>,
    /// The cases after which lost memory was not looked for yet.
    pub unscanned: Vec<&'static str>,
}

impl Bench {
    /// What is looked at after a case.
    fn look_round(&mut self) -> Result<()> {
        if host::module_loaded() {
            host::wait_until_free()?;
        }
        nets::look()?;
        if self.words.iter().any(|word| word == "scan") {
            let cases = mem::take(&mut self.unscanned);
            nets::scan(cases[0])?;
        }
        Ok(())
    }

    /// Whether this is the long set, in which a case may take its time.
    pub fn long(&self) -> bool {
        self.words.iter().any(|word| word == "long")
    }

    /// The number given as `word=number`.
    pub fn number(&self, word: &str) -> Option<u64> {
        let mut numbers = self.words.iter().filter_map(|w| w.split_once('='));
        numbers.find_map(|(name, value)| (name == word).then(|| value.parse().ok())?)
    }

    /// The seed given as `seed=number`, or another one each time: a failure names it.
    pub fn seed(&self) -> u64 {
        self.number("seed").unwrap_or_else(|| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed();
            now.map_or(1, |now| now.as_nanos() as u64 % 1_000_000_007)
        })
    }
}

/// How a case went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Pass,
    /// Not so; the text says what.
    Fail(String),
    /// It could not be tried; the text says why.
    Skip(String),
}

/// An error that says that a case cannot be tried here, and why.
#[derive(Debug)]
pub struct NotHere(pub String);

impl std::fmt::Display for NotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotHere {}

/// What a case does: an error is a failure, but [`NotHere`] a skip.
type Body = fn(&mut Bench) -> Result<()>;

/// One case.
#[derive(Debug)]
pub struct Case {
    /// What it is called: lower case and dashes.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub about: &'static str,
    body: Body,
}

/// A case that lies in this list.
const fn case(name: &'static str, about: &'static str, body: Body) -> Case {
    Case { name, about, body }
}

/// All cases, in the order in which they are run.
pub const CASES: &[Case] = &[
    case(
        "linux",
        "the Linux itself comes up without a warning",
        linux,
    ),
    case(
        "hello",
        "a Guest starts, prints and powers off",
        guests::hello,
    ),
    case(
        "endings",
        "power-off, crash and restart are told apart",
        guests::endings,
    ),
    case(
        "hypercalls",
        "10,000 hypercalls, every register checked",
        guests::hypercalls,
    ),
    case(
        "ring",
        "the asynchronous ring is drained in order",
        guests::ring,
    ),
    case("fault", "page faults resolved and delivered", guests::fault),
    case(
        "traps",
        "exceptions of ring 1 arrive with the right frame",
        guests::traps,
    ),
    case(
        "privileged",
        "instructions that ring 1 may not use fault",
        guests::privileged,
    ),
    case("ports", "IN and OUT of every size", guests::ports),
    case(
        "newborn",
        "what a Guest finds at its first instruction, in every register",
        newborn::newborn,
    ),
    case(
        "fpu-fresh",
        "a new Guest's FPU registers, and the Launcher's",
        fpu::fresh,
    ),
    case(
        "fpu-ts",
        "the Guest's TS, and when it has registers",
        fpu::ts,
    ),
    case(
        "fpu-exceptions",
        "exceptions of x87 and SSE, rings 1 and 3",
        fpu::exceptions,
    ),
    case(
        "fpu-busy",
        "Guests and programs calculate, move and are killed",
        fpu::busy,
    ),
    case("memory", "every page of memory can be used", guests::memory),
    case(
        "tables",
        "page tables, flushes, large pages, many roots",
        guests::tables,
    ),
    case("user", "ring 3 works and cannot touch ring 1", guests::user),
    case(
        "walls",
        "ring 1 cannot change the Switcher nor see the Host",
        guests::walls,
    ),
    case(
        "random",
        "a Guest gets random bytes, others each time",
        drivers::random,
    ),
    case("disk", "64 MiB to a disk and back", drivers::disk),
    case(
        "disk-waits",
        "a disk that makes one wait, and what a flush promises",
        drivers::disk_waits,
    ),
    case(
        "disk-errors",
        "bytes anywhere on a disk, and what cannot be",
        drivers::disk_errors,
    ),
    case(
        "disk-impossible",
        "a Guest that asks its disk for the impossible is ended",
        drivers::disk_impossible,
    ),
    case(
        "device-costs",
        "the least instructions of a read from a disk and of a line on the console",
        drivers::costs,
    ),
    case(
        "disk-locked",
        "a disk has one writer or many readers",
        drivers::disk_locked,
    ),
    case(
        "input-spinning",
        "input interrupts a Guest that spins",
        guests::input_spinning,
    ),
    case(
        "input-halting",
        "input wakes a Guest that halts",
        guests::input_halting,
    ),
    case(
        "input-blocked",
        "an interrupt waits while it is not wanted",
        guests::input_blocked,
    ),
    case(
        "window",
        "an interrupt at every instruction of the stubs and of the return window",
        window::window,
    ),
    case(
        "frames",
        "direct and reflected frames, word by word",
        frames::frames,
    ),
    case(
        "gates",
        "every gate of the processor's own table, as a Guest's wishes make it",
        gates::gates,
    ),
    case(
        "irq-race",
        "numbered interrupts of another thread: none lost, none twice",
        irqs::race_of_threads,
    ),
    case(
        "irq-kick",
        "an interrupt of another thread breaks in at once",
        irqs::kicked,
    ),
    case(
        "bad-record",
        "the Launcher refuses a bad input record",
        guests::bad_record,
    ),
    case(
        "spin",
        "a spinning Guest is preempted and can be killed",
        guests::spin,
    ),
    case(
        "killed",
        "kill -9 of the Launcher frees everything",
        guests::killed,
    ),
    case(
        "leaks",
        "20 rounds lose no page and no object of a slab cache",
        leaks::leaks,
    ),
    case("two", "two Guests at once", guests::two),
    case("nmi", "every NMI reaches the Host", storm::nmi),
    case(
        "nmi-storm",
        "NMIs without end, on Guest and Switcher",
        storm::nmi_storm,
    ),
    case("mce", "machine checks, on Guest and Switcher", storm::mce),
    case(
        "mce-fatal",
        "a machine check that ends the Launcher",
        storm::mce_fatal,
    ),
    case(
        "former-cpu",
        "a former CPU's pages are out of reach",
        former::former_cpu,
    ),
    case(
        "state",
        "a Guest that changes all it can, and the Host's state",
        state::state,
    ),
    case(
        "disturbed",
        "a change of the Host's state is found and named",
        state::disturbed,
    ),
    case(
        "instructions",
        "what privileged instructions do in rings 1 and 3",
        instructions::instructions,
    ),
    case(
        "emulated",
        "what the Host does for a Guest's kernel, and what comes of it",
        emulated::emulated,
    ),
    case(
        "random-code",
        "bytes at random as instructions, seeded",
        emulated::random_code,
    ),
    case(
        "hostile-shutdown",
        "SHUTDOWN with bad messages",
        hostile::shutdown,
    ),
    case(
        "hostile-new-pgtable",
        "NEW_PGTABLE with bad roots",
        hostile::new_pgtable,
    ),
    case(
        "hostile-load-idt-entry",
        "LOAD_IDT_ENTRY with bad entries",
        hostile::load_idt_entry,
    ),
    case(
        "hostile-set-stack",
        "SET_STACK with bad stacks",
        hostile::set_stack,
    ),
    case(
        "hostile-bind-dma",
        "BIND_DMA with bad records",
        hostile::bind_dma,
    ),
    case(
        "hostile-send-dma",
        "SEND_DMA with bad records and pieces",
        hostile::send_dma,
    ),
    case(
        "hostile-flush-address",
        "FLUSH_ADDRESS of non-addresses",
        hostile::flush_address,
    ),
    case(
        "hostile-others",
        "unknown calls, calls before INIT",
        hostile::others,
    ),
    case(
        "hostile-guests",
        "a thousand Guests that a seed makes up, beside an honest one",
        hostile_guests::guests,
    ),
    case(
        "hostile-corpus",
        "the plans that once found something",
        hostile_guests::corpus,
    ),
    case(
        "hostile-noticed",
        "what hostile Guests must not do is noticed when it is done",
        hostile_guests::noticed,
    ),
    case(
        "bug-nested-task",
        "every way in with the flag NT",
        hostile_bugs::nested_task,
    ),
    case(
        "bug-no-handler",
        "`int n` before there is a handler",
        hostile_bugs::no_handler_yet,
    ),
    case(
        "bug-root-zero",
        "a top-level table at guest-physical 0",
        hostile_bugs::root_at_zero,
    ),
    case(
        "bug-late-flush",
        "a flush that waits in the ring while its page is used",
        hostile_bugs::flush_in_the_ring,
    ),
    case(
        "bug-users-stack",
        "ring 1's stack on a page of ring 3's",
        hostile_bugs::stack_of_the_users,
    ),
    case(
        "bug-far-tables",
        "descriptors and records outside of the linear map",
        hostile_bugs::tables_anywhere,
    ),
    case(
        "guest-to-guest",
        "DMA between Guests, against byte vectors, and who dies of what",
        exchange::guest_to_guest,
    ),
    case(
        "net-frames",
        "two Guests in one network, 10,000 frames each way, none lost",
        network::frames,
    ),
    case(
        "net-pressure",
        "receivers that are slow or deaf: the sender is told, and waits",
        network::back_pressure,
    ),
    case("net-three", "three Guests in one network", network::three),
    case(
        "net-slots",
        "slots of a network, and that of a Guest that was killed",
        network::slots,
    ),
    case(
        "net-cards",
        "a network card that could not be bound leaves nothing behind",
        network::cards,
    ),
    case(
        "net-scribbler",
        "a Guest that writes over everybody's MAC hurts nobody",
        network::scribbler,
    ),
    case(
        "net-udp",
        "10,000 UDP packets each way between two Guests' sockets",
        network::udp,
    ),
    case(
        "net-programs",
        "ping and udp at the shells of two Guests, and over a tap",
        network::programs,
    ),
    case(
        "net-tap",
        "the Host pings a Guest behind a tap, and the Guest the Host",
        network::tap,
    ),
    case(
        "net-bridge",
        "Guests at a bridge of the Host's ping each other",
        network::bridge,
    ),
    case(
        "net-refused",
        "networks that cannot be: the error says why",
        network::refused,
    ),
    case(
        "guests-talk",
        "two Launchers: thousands of packets each way, slow receivers, taken-back records",
        exchange::talk,
    ),
    case(
        "guests-talk-killed",
        "kill -9 of either of two that talk, at moments which `seed=` chooses",
        exchange::talk_killed,
    ),
    case(
        "null-ss",
        "a null selector in SS does not change the ring",
        segments::null_in_ss,
    ),
    case(
        "selectors",
        "every selector, in every way to load it",
        segments::selectors,
    ),
    case("flags", "every flag, in rings 1 and 3", segments::flags),
    case(
        "vectors",
        "all 256 `int n`, and none is the Host's",
        segments::vectors,
    ),
    case(
        "cpuid",
        "CPUID is the Host's but for two bits",
        segments::cpuid,
    ),
    case(
        "compatibility",
        "what ring 3 can do in a 32-bit segment",
        segments::compatibility,
    ),
    case(
        "segments-copied",
        "segments are copied when they change, and only then",
        own_segments::copied_once,
    ),
    case(
        "segments-survive",
        "a Guest's selectors survive other Guests and moves",
        own_segments::selectors_survive,
    ),
    case(
        "segments-taken",
        "a selector whose segment is gone ends that Guest",
        own_segments::taken_away,
    ),
    case(
        "bases",
        "bases of FS and GS that are no addresses",
        own_segments::bases,
    ),
    case(
        "system-calls",
        "`int 0x80` and `syscall` without an exit",
        system_calls::system_calls,
    ),
    case(
        "sysenter",
        "`sysenter` never reaches ring 0",
        system_calls::sysenter,
    ),
    case(
        "starts",
        "a Guest that begins at nonsense",
        nonsense::starts,
    ),
    case(
        "stacks",
        "every kind of trap on every kind of stack",
        nonsense::stacks,
    ),
    case("steps", "single steps over everything", nonsense::steps),
    case(
        "evil-tables",
        "page tables made to do harm",
        tables::evil_tables,
    ),
    case(
        "tags",
        "many roots: tags, bit 63, eviction, and no table for a known one",
        tags::tags,
    ),
    case(
        "neighbours",
        "what comes into the shadow with a page that was touched",
        neighbours::neighbours,
    ),
    case(
        "hints",
        "SET_PTE and SET_PMD in the ring, right and wrong ones",
        hints::hints,
    ),
    case(
        "reclaim",
        "the shadow's tables: how many, and given back for memory",
        reclaim::reclaim,
    ),
    case(
        "high",
        "a Guest of five GiB, and what lies above four",
        high::high,
    ),
    case(
        "host-half",
        "nothing of the Host's can be read",
        tables::host_half,
    ),
    case(
        "switcher-text",
        "a jump to every byte of the Switcher",
        tables::switcher_text,
    ),
    case(
        "register-page",
        "nonsense and forged frames in the register page",
        tables::register_page,
    ),
    case(
        "sweep",
        "every argument of every hypercall at every border",
        sweep::sweep,
    ),
    case("fuzz", "hypercalls at random, seeded", sweep::fuzz),
    case(
        "reasons",
        "every reason a hypercall can end a Guest for, word for word",
        reasons::reasons,
    ),
    case(
        "ring-end",
        "SHUTDOWN in the ring, a full ring, nonsense in it",
        sweep::ring_end,
    ),
    case(
        "ring-order",
        "calls are made in order, from the ring and directly",
        ring::order,
    ),
    case(
        "ring-scribbled",
        "another thread writes where the Host reads",
        ring::scribbled,
    ),
    case(
        "requests",
        "bad requests to /dev/lguest",
        requests::requests,
    ),
    case(
        "wrong-task",
        "only the opener runs a Guest; BREAK is for all",
        requests::wrong_task,
    ),
    case("ldt", "a Launcher with an LDT runs no Guest", requests::ldt),
    case(
        "bad-memory",
        "memory that is not the Launcher's",
        requests::bad_memory,
    ),
    case(
        "device-lengths",
        "every length and every split of a request and of a record",
        device::lengths,
    ),
    case(
        "device-others",
        "system calls that the device does not have",
        device::other_calls,
    ),
    case(
        "device-pointers",
        "bad buffers, and buffers that go away: nothing is lost",
        device::pointers,
    ),
    case(
        "device-order",
        "every request at every time, from many threads",
        device::order,
    ),
    case(
        "device-tasks",
        "children, clones, other programs, an orphan: who may what",
        device::tasks,
    ),
    case(
        "device-memory",
        "memory of every kind, changed while the Guest runs",
        device::lent_memory,
    ),
    case(
        "lent",
        "a Guest's memory is swapped, moved, joined and shared while it runs",
        device::lent,
    ),
    case(
        "device-storm",
        "a storm of signals loses no record",
        device::storm,
    ),
    case(
        "device-signals",
        "stopped, traced, frozen, and killed by other signals",
        device::signals,
    ),
    case(
        "exits",
        "exits by reason and the last of them, against what a Guest did",
        exits::exits,
    ),
    case(
        "debugfs-open",
        "an open file of debugfs holds the module",
        exits::held_open,
    ),
    case(
        "leaving-signals",
        "signals, stops, debuggers and BREAK: the sums stay right",
        leaving::signals,
    ),
    case(
        "leaving-freezer",
        "both freezers, on Guests that spin, sleep and work",
        leaving::freezer,
    ),
    case(
        "leaving-suspend",
        "the Host is suspended as far as each test level goes",
        leaving::suspend,
    ),
    case(
        "leaving-hotplug",
        "the processor under a Guest goes away and comes back",
        leaving::hotplug,
    ),
    case(
        "leaving-migration",
        "Guests moved between processors as fast as possible",
        leaving::migration,
    ),
    case(
        "leaving-module",
        "the module stays while anybody holds the device",
        leaving::module,
    ),
    case(
        "killed-anywhere",
        "kill -9 at 50 moments, which `seed=` chooses",
        device::killed_anywhere,
    ),
    case(
        "fuzz-device",
        "any call on the device in any order, by threads, children and signals, seeded",
        fuzz_device::fuzz_device,
    ),
    case(
        "memory-taken",
        "memory that is unmapped, protected or cut off under a Guest, at moments which `seed=` chooses",
        faults::memory_taken,
    ),
    case(
        "initialize-signals",
        "INITIALIZE under signals goes on, if they ask for that",
        faults::initialize_signals,
    ),
    case(
        "disk-full",
        "a disk's file system is full: the Guest is told",
        faults::disk_full,
    ),
    case(
        "output-full",
        "the console goes to a file system that is full",
        faults::output_full,
    ),
    case(
        "soak",
        "for `minutes=`: Guests of all kinds, and all that can be done to them; nothing grows",
        soak::soak,
    ),
    case(
        "out-of-memory",
        "the kernel kills the Launcher for its memory",
        device::out_of_memory,
    ),
    case(
        "limits",
        "the Launcher under resource limits",
        device::limits,
    ),
    case(
        "clock",
        "the time that a Guest is told, against the Host's",
        clock::clock,
    ),
    case(
        "timer",
        "the timer: once, never early, and for whom it wakes",
        timer::timer,
    ),
    case(
        "timer-storm",
        "timers of a nanosecond, and Guests that end with one set",
        timer::timer_storm,
    ),
    case(
        "programs-first",
        "process 1 beside a driver's task, its words, and its end",
        misuse::first,
    ),
    case(
        "programs-misuse",
        "bad addresses, an orphan's fault, two who read the console",
        misuse::misuse,
    ),
    case(
        "programs-hungry",
        "programs that want all memory leave the kernel and the shell alive",
        misuse::hungry,
    ),
    case(
        "initial-disk",
        "the initial disk, byte by byte, and what is refused",
        launcher::initial_disk,
    ),
    case(
        "shell",
        "the Guest's shell: words, jobs, files, statuses and mistakes",
        programs::shell,
    ),
    case(
        "shell-interrupt",
        "what `^C` ends, and what it does not",
        programs::interrupt,
    ),
    case(
        "program-files",
        "programs that work on files, their output to the letter",
        programs::files,
    ),
    case(
        "program-devices",
        "programs that read and write disks and random bytes",
        programs::devices,
    ),
    case(
        "program-machine",
        "programs about the machine, sleep, kill and halt",
        programs::machine,
    ),
    case(
        "program-stress",
        "forks with no frame lost, copies apart, stacks that end",
        programs::stress,
    ),
    case(
        "program-share",
        "processes that compute share the processor fairly",
        programs::share,
    ),
    case(
        "lives",
        "restarts when every file that was named has gone",
        launcher::lives,
    ),
    case(
        "parent-killed",
        "kill -9 of parent or life, at moments which `seed=` chooses: nothing survives",
        launcher::parent_killed,
    ),
    case(
        "confined",
        "a life cannot open, start, connect or become anything",
        launcher::confined,
    ),
    case(
        "rights",
        "a life as another user, in a folder of its own",
        launcher::rights,
    ),
    case(
        "names",
        "addresses in last words get the names of functions",
        launcher::names,
    ),
    case("hundred", "many Guests at once", device::hundred),
    case(
        "many",
        "200 Guests of 16 MiB, and the memory of an idle one",
        many::many,
    ),
    case(
        "idle",
        "a Guest that has halted: nothing is done for it in ten seconds",
        many::idle,
    ),
    case("usage", "the Launcher used wrongly", requests::usage),
    case(
        "no-device",
        "no permission, and no module",
        requests::no_device,
    ),
    case(
        "kvm-after",
        "KVM, loaded beside running Guests, and taking turns with them",
        kvm_after::kvm_after,
    ),
    case(
        "unlisted",
        "a kernel that is not of the list is refused",
        fit::unlisted,
    ),
    case(
        "reload",
        "load and unload 20 times, nothing left",
        guests::reload,
    ),
    case(
        "programs-fork",
        "processes made and ended, and no frame lost",
        processes::forks,
    ),
    case(
        "programs-fair",
        "programs that compute get equal shares",
        processes::fair,
    ),
    case(
        "programs-preempted",
        "the shell answers while others spin; ^C and kill end them",
        processes::preempted,
    ),
    case(
        "programs-numbers",
        "each program finds its own numbers in the FPU",
        processes::numbers_kept,
    ),
    case(
        "programs-faults",
        "a program's fault ends that program with a message",
        processes::program_faults,
    ),
    case(
        "panic",
        "a panic of the Guest's kernel says who called whom",
        processes::panic_text,
    ),
];

/// For machines that cannot be a Host, where no other case makes sense.
pub const REFUSED: &[Case] = &[case(
    "refused",
    "the module is not loaded, says why, and leaves nothing",
    fit::refused,
)];

/// What the bench has measured, and what is asked for by name; not run as tests.
pub const MEASURES: &[Case] = &[
    case(
        "round-trip",
        "the least instructions of a hypercall",
        measures::round_trip,
    ),
    case(
        "shadow-fault",
        "the least instructions of a fault that only fills the shadow",
        measures::shadow_fault,
    ),
    case(
        "recorded-round-trip",
        "the same while every exit is recorded",
        measures::recorded_round_trip,
    ),
    case(
        "program-costs",
        "what a Guest's program pays, and one of this Linux",
        programs::costs,
    ),
    case(
        "kvm-round-trip",
        "the least instructions of KVM's vmmcall",
        measures::kvm_round_trip,
    ),
    case(
        "system-calls-counted",
        "the least instructions of a system call of ring 3",
        measures::system_calls,
    ),
    case(
        "fpu-trips",
        "the least instructions of a trip with the FPU's registers",
        measures::fpu_trips,
    ),
    case(
        "idle-counted",
        "what the machine executes beside a Guest that has halted",
        idle_counted::idle,
    ),
    case(
        "disk-durable",
        "a Guest that writes until somebody ends the machine",
        launcher::durable,
    ),
    case(
        "symbols",
        "where the module's functions are",
        measures::symbols,
    ),
    // These two are to become tests of the debug kernel's, once they have been run to their end.
    case(
        "fail-nth-load",
        "the n-th allocation of loading the module fails, for all n",
        faults::load,
    ),
    case(
        "fail-nth-guest",
        "the n-th allocation or copy of open, INITIALIZE and a thousand exits fails, for all n",
        faults::guest,
    ),
];

/// The case of that name.
pub fn find(name: &str) -> Option<&'static Case> {
    let mut all = CASES.iter().chain(REFUSED).chain(MEASURES);
    all.find(|case| case.name == name)
}

impl Case {
    /// Runs it, and looks afterwards whether the module still holds anything, into the nets of the
    /// kernel, if it has some, and for anything in its log that is not allowed.
    pub fn run(&self, bench: &mut Bench) -> Outcome {
        let result = (self.body)(bench);
        bench.unscanned.push(self.name);
        // A case that failed may have left a Guest, and its own reason is the one to tell.
        let result = match result {
            Err(error) if !error.is::<NotHere>() => Err(error),
            good => bench.look_round().and(good),
        };
        let said = bench
            .log
            .new_records()
            .map(|records| unexpected(self.name, &records));
        match (result, said) {
            (Err(error), Ok(said)) if said.is_empty() && error.is::<NotHere>() => {
                Outcome::Skip(format!("{error}"))
            }
            (Err(error), Ok(said)) if !said.is_empty() => Outcome::Fail(format!(
                "{error:#}\nand the kernel said:\n{}",
                said.join("\n")
            )),
            (Err(error), _) => Outcome::Fail(format!("{error:#}")),
            (Ok(()), Err(error)) => Outcome::Fail(format!("{error:#}")),
            (Ok(()), Ok(said)) if !said.is_empty() => {
                Outcome::Fail(format!("the kernel said:\n{}", said.join("\n")))
            }
            (Ok(()), Ok(_)) => Outcome::Pass,
        }
    }
}

/// What the kernel may say.
const ALLOWED: &str = include_str!("../../allowed-log.txt");

/// The texts of those records, of whatever level, that are not allowed in this case.
fn unexpected(case: &str, records: &[Record]) -> Vec<String> {
    let texts = records.iter().map(|record| &record.text);
    let unexpected = texts.filter(|text| !allowed(ALLOWED, case, text));
    unexpected.cloned().collect()
}

/// The lines of a list: a case's name or `*` for all, and a pattern, with a colon and a blank
/// between. Empty lines and those that begin with `#` are for the reader.
fn lines(list: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(": "))
}

/// Whether the list allows a text in a case.
fn allowed(list: &str, case: &str, text: &str) -> bool {
    lines(list).any(|(name, pattern)| (name == "*" || name == case) && matches(pattern, text))
}

/// Whether a pattern is that of the whole text: each `*` in it stands for a run of characters,
/// which may be empty, and everything else for itself.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return text == pattern;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    // What stands between two stars is taken where it comes first: that leaves most to the rest.
    let mut parts = rest.split('*');
    let end = parts.next_back().unwrap_or_default();
    for part in parts {
        match text.split_once(part) {
            Some((_, after)) => text = after,
            None => return false,
        }
    }
    text.ends_with(end)
}

/// The Linux itself: a clean log, and what the other cases rely on.
fn linux(bench: &mut Bench) -> Result<()> {
    host::nmi_count(0)?;
    // Of what a kernel says while it boots, most is about the machine and changes with it.
    let warnings = bench.boot.iter().filter(|record| record.level <= WARNING);
    let warnings: Vec<_> = warnings.cloned().collect();
    let warnings = unexpected("linux", &warnings);
    ensure!(
        warnings.is_empty(),
        "the kernel warned while it booted:\n{}",
        warnings.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_of_one_form() {
        let all = CASES.iter().chain(REFUSED).chain(MEASURES);
        let mut names: Vec<_> = all.map(|case| case.name).collect();
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(names.iter().all(|name| name.chars().all(letters)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len() + REFUSED.len() + MEASURES.len());
    }

    #[test]
    fn a_line_is_allowed_in_its_case_only() {
        let list = "# nmi: not this\n\nnmi: Uhhuh. *\n*: lguest: loading *\n";
        assert!(allowed(list, "nmi", "Uhhuh. NMI received"));
        assert!(!allowed(list, "hello", "Uhhuh. NMI received"));
        assert!(!allowed(list, "nmi", "not this"));
        assert!(allowed(list, "hello", "lguest: loading out-of-tree module"));
        assert!(!allowed(list, "nmi", "and Uhhuh. NMI received"));
    }

    #[test]
    fn a_pattern_is_that_of_the_whole_text() {
        assert!(matches("guests 0", "guests 0"));
        assert!(!matches("guests 0", "guests 01"));
        assert!(!matches("guests 0", "no guests 0"));
        assert!(matches("at 0x*-0x*", "at 0xffa0-0xffb0"));
        assert!(!matches("at 0x*-0x*", "at 0xffa0"));
        assert!(matches("took * ns", "took 27 ns"));
        assert!(!matches("took * ns", "took 27 ns or so"));
        assert!(matches("a*", "a"));
        assert!(matches("*", ""));
        // The parts may not overlap, and the last is looked for at the end.
        assert!(!matches("aba*aba", "ababa"));
        assert!(!matches("*ab*b", "ab"));
        assert!(matches("a*b*c", "abcbc"));
        assert!(!matches("a*b*c", "acb"));
    }

    #[test]
    fn every_line_of_the_list_can_be_used() {
        let known = |name: &str| name == "*" || find(name).is_some();
        for line in ALLOWED.lines() {
            let comment = line.is_empty() || line.starts_with('#');
            let (name, _) = lines(line).next().unwrap_or_default();
            assert!(comment || known(name), "{line:?}");
        }
        // A line for all that stands for everything would make the list useless.
        assert!(!allowed(ALLOWED, "hello", "something that nobody expects"));
        assert!(!allowed(ALLOWED, "hello", "lguest: unloaded, guests 1"));
    }
}
