// SPDX-License-Identifier: GPL-2.0-only

//! Measures the figures that the book tells, and writes them to `bench/figures.json`.
//!
//! What runs in the emulated machine is counted in instructions, which come out the same each
//! time. What runs on this machine is timed: the median of several runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use lguest_tests::artifacts::{self, root};
use lguest_tests::cleanup;
use lguest_tests::costs::{self, Costs};
use lguest_tests::figures::{FIGURES, Goal};
use lguest_tests::idle;
use lguest_tests::trip::{self, Counted};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

#[derive(Debug, Parser)]
#[command(about = "Measures the figures and writes bench/figures.json")]
struct Options {
    /// Only these; the others keep what was measured before
    figures: Vec<String>,
}

/// One figure: its name, how it is measured, and what it has to be.
struct Figure {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    command: &'static str,
    measure: fn() -> Result<f64>,
}

const FIGURES_KNOWN: &[Figure] = &[
    Figure {
        name: "hypercall_round_trip",
        unit: "instructions",
        goal: Goal::AtMost(trip::AT_MOST as f64),
        command: "a Guest reads the TSC, calls FLUSH_ASYNC, reads the TSC again, under \
                  `-icount shift=0,sleep=off`: the least of 10 rounds of 1,000",
        measure: || Ok(trips()?.lguest as f64),
    },
    Figure {
        name: "shadow_fault",
        unit: "instructions",
        goal: Goal::AtMost(trip::FAULT_AT_MOST as f64),
        command: "in the same boot a Guest reads the TSC, reads a word that its tables map and the \
                  shadow does not, reads the TSC again: the least of 10 rounds of 1,000",
        measure: || Ok(trips()?.fault as f64),
    },
    Figure {
        name: "kvm_vmmcall_round_trip",
        unit: "instructions",
        goal: Goal::None,
        command: "the same with `vmmcall` in a machine of KVM's, in the same boot: the least of \
                  5 rounds of 1,000",
        measure: || Ok(trips()?.kvm as f64),
    },
    Figure {
        name: "kvm_over_lguest",
        unit: "times",
        goal: Goal::AtLeast(trip::TIMES_KVM as f64),
        command: "the second of these by the first, rounded down to two places",
        measure: || {
            let Counted { lguest, kvm, .. } = trips()?;
            Ok((kvm as f64 / lguest as f64 * 100.0).floor() / 100.0)
        },
    },
    Figure {
        name: "guest_syscall_int80",
        unit: "instructions",
        goal: Goal::AtMost(trip::INT80_AT_MOST as f64),
        command: "a Guest's program reads the TSC, does a system call by `int 0x80` that returns at \
                  once, reads the TSC again, in the same boot: the least of 10 rounds of 1,000",
        measure: || Ok(trips()?.calls[0] as f64),
    },
    Figure {
        name: "guest_syscall_syscall",
        unit: "instructions",
        goal: Goal::AtMost(trip::SYSCALL_AT_MOST as f64),
        command: "the same by `syscall`",
        measure: || Ok(trips()?.calls[1] as f64),
    },
    Figure {
        name: "guest_syscall_int80_reflected",
        unit: "instructions",
        goal: Goal::None,
        command: "the first of these two with a gate that is not direct",
        measure: || Ok(trips()?.calls[2] as f64),
    },
    Figure {
        name: "guest_syscall_syscall_reflected",
        unit: "instructions",
        goal: Goal::None,
        command: "the second of them with a gate that is not direct",
        measure: || Ok(trips()?.calls[3] as f64),
    },
    Figure {
        name: "guest_fpu_switch",
        unit: "instructions",
        goal: Goal::None,
        command: "what the first of these figures grows by when the trip is made with the Guest's \
                  FPU registers, in the same boot: the least of 1,000 rounds of 8",
        measure: || {
            let [without, with, _] = trips()?.fpu;
            Ok(with as f64 - without as f64)
        },
    },
    Figure {
        name: "guest_fpu_trap",
        unit: "instructions",
        goal: Goal::None,
        command: "a Guest without them reads the TSC, moves a word into XMM0, reads the TSC \
                  again, in the same boot: the least of 1,000",
        measure: || Ok(trips()?.fpu[2] as f64),
    },
    Figure {
        name: "idle_guest_instructions_per_s",
        unit: "instructions",
        goal: Goal::AtMost(idle::AT_MOST),
        command: "what the whole machine executes in 400 s with a halted Guest and without, by turns, 6 \
                  times each, as a plugin of QEMU's counts it: the most with, less the least without",
        measure: || Ok(idle::count()?.at_most().ceil()),
    },
    Figure {
        name: "guest_block_read",
        unit: "instructions",
        goal: Goal::AtMost(trip::BLOCK_AT_MOST as f64),
        command: "a Guest reads the TSC, reads 4 KiB of a disk that is a file in the Host's \
                  memory, reads the TSC again, in the same boot: the least of 300",
        measure: || Ok(trips()?.devices[0] as f64),
    },
    Figure {
        name: "guest_sector_read",
        unit: "instructions",
        goal: Goal::None,
        command: "the same with the first 512 bytes of them",
        measure: || Ok(trips()?.devices[2] as f64),
    },
    Figure {
        name: "guest_console_write",
        unit: "instructions",
        goal: Goal::AtMost(trip::CONSOLE_AT_MOST as f64),
        command: "the same with 62 bytes to the console, which goes to a file in the Host's memory",
        measure: || Ok(trips()?.devices[1] as f64),
    },
    Figure {
        name: "program_null_call",
        unit: "instructions",
        goal: Goal::None,
        command: "a program of the Guest's (`bench`) reads the TSC, asks for its pid, reads the TSC \
                  again, under `-icount shift=0,sleep=off`: the least of 1,000",
        measure: || cost("guest null_call"),
    },
    Figure {
        name: "linux_null_call",
        unit: "instructions",
        goal: Goal::None,
        command: "the same by a program of the Host's Linux, in the same boot",
        measure: || cost("linux null_call"),
    },
    Figure {
        name: "program_fault",
        unit: "instructions",
        goal: Goal::None,
        command: "the same two programs: the first write to a page of the heap, the least of 1,000",
        measure: || cost("guest fault"),
    },
    Figure {
        name: "linux_fault",
        unit: "instructions",
        goal: Goal::None,
        command: "the other of the two",
        measure: || cost("linux fault"),
    },
    Figure {
        name: "program_fork_exit_wait",
        unit: "instructions",
        goal: Goal::None,
        command: "the same two programs: a process that only ends, and waiting for it, the least of \
                  100",
        measure: || cost("guest fork_exit_wait"),
    },
    Figure {
        name: "linux_fork_exit_wait",
        unit: "instructions",
        goal: Goal::None,
        command: "the other of the two",
        measure: || cost("linux fork_exit_wait"),
    },
    Figure {
        name: "program_pipe_ping_pong",
        unit: "instructions",
        goal: Goal::None,
        command: "the same two programs: a byte through a pipe to another process and one back, the \
                  least of 1,000",
        measure: || cost("guest pipe_ping_pong"),
    },
    Figure {
        name: "linux_pipe_ping_pong",
        unit: "instructions",
        goal: Goal::None,
        command: "the other of the two",
        measure: || cost("linux pipe_ping_pong"),
    },
    Figure {
        name: "cr3_writes_per_trip",
        unit: "writes",
        goal: Goal::Exactly(trip::LOADS as f64),
        command: "the same call, instruction by instruction with a debugger, 100 times",
        measure: || loads("CR3"),
    },
    Figure {
        name: "cr4_writes_per_trip",
        unit: "writes",
        goal: Goal::Exactly(trip::LOADS as f64),
        command: "the same",
        measure: || loads("CR4"),
    },
    Figure {
        name: "tangle_full_ms",
        unit: "ms",
        goal: Goal::AtMost(60.0),
        command: "`tangle tangle` of a book of 30,000 lines and 1,200 chunks with no output \
                  there yet: the median of 15",
        measure: tangle_full,
    },
    Figure {
        name: "tangle_unchanged_ms",
        unit: "ms",
        goal: Goal::AtMost(30.0),
        command: "the same once more, with nothing changed: the median of 15, and no file is \
                  touched",
        measure: tangle_unchanged,
    },
    Figure {
        name: "edit_to_result_s",
        unit: "s",
        goal: Goal::AtMost(40.0),
        command: "a line of book/host/hypercalls.md is changed in a copy of the tree, then \
                  `make programs` and `boot case hello`: the median of 3",
        measure: edit_to_result,
    },
];

fn main() -> Result<()> {
    let options = Options::parse();
    cleanup::watch_signals()?;
    for name in &options.figures {
        let known = FIGURES_KNOWN.iter().any(|figure| figure.name == name);
        ensure!(known, "no figure is called {name}");
    }
    let path = root().join(FIGURES);
    let mut figures: Map<String, Value> = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string())?,
        Err(_) => Map::new(),
    };
    let mut beyond = Vec::new();
    for figure in FIGURES_KNOWN {
        if !options.figures.is_empty() && !options.figures.iter().any(|name| name == figure.name) {
            continue;
        }
        let value = (figure.measure)().with_context(|| figure.name.to_owned())?;
        println!(
            "{:24} {value} {} (goal: {})",
            figure.name, figure.unit, figure.goal
        );
        if !figure.goal.holds(value) {
            beyond.push(figure.name);
        }
        let value = json!({
            "value": number(value),
            "unit": figure.unit,
            "goal": figure.goal.to_string(),
            "command": figure.command,
            "versions": versions(),
        });
        figures.insert(figure.name.to_owned(), value);
        let text = serde_json::to_string_pretty(&figures)?;
        fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
    }
    ensure!(
        beyond.is_empty(),
        "short of their goals: {}",
        beyond.join(", ")
    );
    Ok(())
}

/// A whole number without a decimal point, if it is one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// What the figures depend on.
fn versions() -> BTreeMap<&'static str, String> {
    let first_line = |program: &str| {
        let output = Command::new(program).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.ok()
            .and_then(|text| text.lines().next().map(str::to_owned))
            .unwrap_or_default()
    };
    let release = artifacts::place("KDIR").and_then(|tree| {
        Ok(fs::read_to_string(
            tree.join("include/config/kernel.release"),
        )?)
    });
    BTreeMap::from([
        ("linux", release.unwrap_or_default().trim().to_owned()),
        ("qemu", first_line("qemu-system-x86_64")),
        ("rustc", first_line("rustc")),
    ])
}

/// The middle one of some numbers.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Runs a command that must succeed and gives how long it took.
fn timed(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    let took = begun.elapsed();
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{command:?} failed:\n{}", String::from_utf8_lossy(&text));
    }
    Ok(took)
}

/// The trips, counted once.
fn trips() -> Result<Counted> {
    static COUNTED: OnceLock<Counted> = OnceLock::new();
    if let Some(counted) = COUNTED.get() {
        return Ok(*counted);
    }
    let counted = trip::count()?;
    Ok(*COUNTED.get_or_init(|| counted))
}

/// What programs pay, counted once.
fn cost(what: &str) -> Result<f64> {
    static COSTS: OnceLock<Costs> = OnceLock::new();
    if COSTS.get().is_none() {
        let costs = costs::count()?;
        COSTS.get_or_init(|| costs);
    }
    let cost = COSTS.get().and_then(|costs| costs.get(what));
    Ok(*cost.with_context(|| format!("nothing about {what}"))? as f64)
}

/// How often a trip loads something. The path is followed once, and must have as many instructions
/// as were counted.
fn loads(what: &str) -> Result<f64> {
    static STEPS: OnceLock<Vec<trip::Step>> = OnceLock::new();
    if STEPS.get().is_none() {
        let steps = trip::follow(trip::CALL, 100)?;
        let counted = trips()?.lguest;
        ensure!(
            steps.len() as u64 == counted,
            "a trip has {} instructions, and {counted} were counted",
            steps.len()
        );
        print!("{}", trip::tell(&steps));
        STEPS.get_or_init(|| steps);
    }
    let steps = STEPS.get().context("no trip was followed")?;
    Ok(trip::loads_of(steps, what) as f64)
}

/// Where the programs of this workspace are built.
fn built(name: &str) -> PathBuf {
    artifacts::target_directory().join("release").join(name)
}

/// A book to measure tangle with, and the program.
fn big_book() -> Result<TempDir> {
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root());
    timed(build.args(["build", "--quiet", "--release", "-p", "tangle"]))?;
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root());
    timed(build.args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "tangle",
        "--example",
        "big_book",
    ]))?;
    let folder = tempfile::Builder::new().prefix("lguest-book").tempdir()?;
    cleanup::note_folder(folder.path());
    timed(Command::new(built("examples/big_book")).arg(folder.path()))?;
    Ok(folder)
}

/// One run of tangle in a folder, in milliseconds.
fn tangle(folder: &Path) -> Result<f64> {
    let took = timed(
        Command::new(built("tangle"))
            .current_dir(folder)
            .arg("tangle"),
    )?;
    Ok(took.as_secs_f64() * 1000.0)
}

/// Everything in a folder but the book itself.
fn outputs(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != "book" && name != "book.toml" {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn tangle_full() -> Result<f64> {
    let folder = big_book()?;
    let mut times = Vec::new();
    for _ in 0..15 {
        for output in outputs(folder.path())? {
            if output.is_dir() {
                fs::remove_dir_all(output)?
            } else {
                fs::remove_file(output)?
            }
        }
        times.push(tangle(folder.path())?);
        ensure!(!outputs(folder.path())?.is_empty(), "nothing was written");
    }
    Ok((median(times) * 10.0).round() / 10.0)
}

fn tangle_unchanged() -> Result<f64> {
    let folder = big_book()?;
    tangle(folder.path())?;
    let before = stamps(folder.path())?;
    let mut times = Vec::new();
    for _ in 0..15 {
        times.push(tangle(folder.path())?);
    }
    ensure!(
        stamps(folder.path())? == before,
        "a run with no change touched a file"
    );
    Ok((median(times) * 10.0).round() / 10.0)
}

/// When each file under a folder was last written, and its size.
fn stamps(folder: &Path) -> Result<BTreeMap<PathBuf, (std::time::SystemTime, u64)>> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(place) = waiting.pop() {
        for entry in fs::read_dir(place)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else {
                all.insert(entry.path(), (metadata.modified()?, metadata.len()));
            }
        }
    }
    Ok(all)
}

/// The line that is changed, and what it becomes: a message that a killed Guest would leave.
const EDITED: (&str, &str, &str) = (
    "book/host/hypercalls.md",
    "INIT (1) a second time",
    "INIT (1) once more, round",
);

fn edit_to_result() -> Result<f64> {
    let folder = tempfile::Builder::new().prefix("lguest-copy").tempdir()?;
    cleanup::note_folder(folder.path());
    let copy = folder.path().join("tree");
    // A whole copy, with all that is built, so that only the edit is new. Times of files are
    // kept: make and cargo go by them.
    timed(Command::new("cp").arg("-a").arg(root()).arg(&copy))?;
    let chapter = copy.join(EDITED.0);
    let original = fs::read_to_string(&chapter)?;
    ensure!(
        original.contains(EDITED.1),
        "{} has no line {:?}",
        EDITED.0,
        EDITED.1
    );
    let steps = || -> Result<f64> {
        let begun = Instant::now();
        let make = |target: &str| {
            let mut command = Command::new("make");
            command
                .current_dir(&copy)
                .arg(target)
                .env_remove("CARGO_TARGET_DIR");
            command
        };
        timed(&mut make("programs"))?;
        let mut boot = Command::new(env!("CARGO"));
        boot.current_dir(&copy).env_remove("CARGO_TARGET_DIR");
        boot.args([
            "run",
            "--quiet",
            "--release",
            "-p",
            "lguest-tests",
            "--bin",
            "boot",
            "--",
        ]);
        timed(boot.args(["case", "hello"]))?;
        Ok(begun.elapsed().as_secs_f64())
    };
    // The copy lies elsewhere, so cargo and Kbuild build some of it again: that is not the edit.
    steps()?;
    let mut times = Vec::new();
    for round in 0..3 {
        let edited = original.replace(EDITED.1, &format!("{} {round}", EDITED.2));
        fs::write(&chapter, edited)?;
        let before = fs::metadata(copy.join("module/lguest.ko"))?.modified()?;
        times.push(steps()?);
        let after = fs::metadata(copy.join("module/lguest.ko"))?.modified()?;
        ensure!(after > before, "the module was not built again");
    }
    Ok(median(times).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![5.0]), 5.0);
    }

    #[test]
    fn whole_numbers_have_no_point() {
        assert_eq!(number(470.0).to_string(), "470");
        assert_eq!(number(12.5).to_string(), "12.5");
    }
}
