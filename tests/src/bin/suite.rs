// SPDX-License-Identifier: GPL-2.0-only

//! The test command: everything that says whether the project is in order.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use lguest_tests::artifacts::{self, Artifacts, root};
use lguest_tests::checks::{cargo_test, command, command_or_skip};
use lguest_tests::hosts::KINDS;
use lguest_tests::list::{self, List};
use lguest_tests::report::Report;
use lguest_tests::{
    browser, cleanup, durable, errors, figures, fit, gdb, prompt, release, setup, soak, supply,
    trace, trip,
};

#[derive(Debug, Parser)]
#[command(about = "Runs the tests; the last line says how many passed, failed and were skipped")]
struct Options {
    /// Run everything, not only a sample of what takes long
    #[arg(long)]
    long: bool,
    /// Run the cases in QEMU, all of them on every kind of Host, so many times in a row, up to the
    /// first failure; nothing else
    #[arg(long, value_name = "TIMES")]
    repeat: Option<u32>,
    /// Run only what has one of these in its name; names are section/test
    filters: Vec<String>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match suite(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the tests could not be run: {error:#}");
            println!("0 passed, 1 failed, 0 skipped");
            ExitCode::FAILURE
        }
    }
}

fn suite(options: &Options) -> Result<bool> {
    cleanup::watch_signals()?;
    let directory = artifacts::log_directory()?;
    forget_old_logs(&directory);
    let mut report = Report::new(directory, options.filters.clone());
    if let Some(times) = options.repeat {
        repeat(&mut report, options, times)?;
        return Ok(report.end());
    }
    tools(&mut report)?;
    let all = options.long || report.is_filtered();
    setup::run(&mut report, &artifacts::commit(), all)?;
    book(&mut report, options.long)?;
    browser::test(&mut report, &artifacts::commit(), options.long)?;
    workspace(&mut report, options.long)?;
    supply::test(&mut report, options.long)?;
    fuzz(&mut report, options.long)?;
    home(&mut report, options)?;
    host(&mut report, options)?;
    unfit(&mut report, options)?;
    durable::test(&mut report)?;
    gdb::test(&mut report)?;
    trace::test(&mut report, options.long)?;
    round_trip(&mut report)?;
    Ok(report.end())
}

/// Removes the logs of earlier runs, so that what lies there belongs to this one.
fn forget_old_logs(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let hosts = KINDS.iter().map(|kind| kind.section);
        if OTHERS
            .into_iter()
            .chain(hosts)
            .any(|section| name.starts_with(&format!("{section}-")))
        {
            // A log that stays does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The sections beside the kinds of Host.
const OTHERS: [&str; 14] = [
    "tools",
    "book",
    browser::SECTION,
    "workspace",
    "prompt",
    durable::SECTION,
    gdb::SECTION,
    errors::SECTION,
    fit::SECTION,
    setup::SECTION,
    supply::SECTION,
    trace::SECTION,
    trip::SECTION,
    "fuzz",
];

/// A cargo command in a directory of the checkout, free of settings meant for other builds.
fn cargo(directory: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(root().join(directory))
        .args(arguments)
        .env_remove("RUSTFLAGS");
    command
}

/// The tools: what is not in the book.
fn tools(report: &mut Report) -> Result<()> {
    report.section("tools: formatted, without a warning, and their own tests");
    command(
        report,
        "tools",
        "formatted",
        &mut cargo("", &["fmt", "--all", "--check"]),
    )?;
    let clippy = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-Dwarnings",
    ];
    command(report, "tools", "clippy", &mut cargo("", &clippy))?;
    command(
        report,
        "tools",
        "fuzz-formatted",
        &mut cargo("fuzz", &["fmt", "--check"]),
    )?;
    let guests = [
        "fmt", "-p", "drive", "-p", "probe", "-p", "rt", "-p", "wire", "--check",
    ];
    command(
        report,
        "tools",
        "test-guests-formatted",
        &mut cargo("tests/guests", &guests),
    )?;
    let target = artifacts::target_directory().join("bare-clippy");
    let mut clippy = cargo(
        "tests/guests",
        &["clippy", "--quiet", "--release", "--target-dir"],
    );
    clippy.arg(target).args(["--", "-Dwarnings"]);
    // Clippy is a compiler of its own; it is told where the library's sources are.
    clippy
        .env("RUSTC_BOOTSTRAP", "1")
        .env("SYSROOT", artifacts::guest_sysroot()?);
    command(report, "tools", "test-guests-clippy", &mut clippy)?;
    cargo_test(report, "tools", &mut cargo("", &["test", "--workspace"]))
}

/// The book: in order, and its figures are those measured.
fn book(report: &mut Report, long: bool) -> Result<()> {
    report.section("book: in order");
    let check = [
        "run",
        "--quiet",
        "--release",
        "--package",
        "tangle",
        "--",
        "check",
    ];
    command(report, "book", "check", &mut cargo("", &check))?;
    let root = root();
    type Compare = fn(&Path) -> Result<usize>;
    let compared: [(&str, Compare); 2] = [("figures", figures::compare), ("soak", soak::compare)];
    for (name, compare) in compared {
        // There are data of a soak once one has come to its end.
        let there = name != "soak" || root.join(soak::DATA).exists();
        if !there || !report.wants("book", name) {
            continue;
        }
        match compare(&root) {
            Ok(count) => {
                report.remark(&format!("{count} figures"));
                report.pass(&format!("book/{name}"));
            }
            Err(error) => {
                let why = format!("{error:#}");
                let log = report.keep("book", name, why.as_bytes())?;
                report.fail(&format!("book/{name}"), &why, &log);
            }
        }
    }
    if report.wants("book", "renders") {
        let destination = artifacts::target_directory().join("test-book");
        let mut build = Command::new(browser::mdbook());
        build
            .current_dir(&root)
            .arg("build")
            .arg("--dest-dir")
            .arg(&destination);
        command(report, "book", "renders", &mut build)?;
    }
    if (long || report.is_filtered()) && report.wants("book", "release") {
        match release::twice() {
            Ok(remark) => {
                report.remark(&remark);
                report.pass("book/release");
            }
            Err(error) => {
                let why = format!("{error:#}");
                let log = report.keep("book", "release", why.as_bytes())?;
                report.fail("book/release", &why, &log);
            }
        }
    }
    Ok(())
}

/// Cases of each property in the long set, 16 times the usual. Another number in the environment
/// goes before it.
const LONG_CASES: &str = "4096";

/// What came out of the chapters and can be tested without a machine; in the long set with as many
/// random cases as take minutes.
fn workspace(report: &mut Report, long: bool) -> Result<()> {
    report.section("workspace: what came out of the chapters");
    let clippy = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-Dwarnings",
    ];
    command(
        report,
        "workspace",
        "clippy",
        &mut cargo("workspace", &clippy),
    )?;
    // What is compiled for the Guest only, with a compiler of its own, as for the test Guests.
    let target = artifacts::target_directory().join("bare-clippy");
    let bare = ["clippy", "--quiet", "--release"];
    let mut clippy = cargo("workspace", &bare);
    clippy
        .args(["--config", "../guest/bare.toml"])
        .args(["--package", "guest", "--package", "programs"])
        .arg("--target-dir")
        .arg(target)
        .args(["--", "-Dwarnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("SYSROOT", artifacts::guest_sysroot()?);
    command(report, "workspace", "guest-clippy", &mut clippy)?;
    let mut test = cargo("workspace", &["test", "--workspace"]);
    if long && std::env::var_os("PROPTEST_CASES").is_none() {
        test.env("PROPTEST_CASES", LONG_CASES);
    }
    cargo_test(report, "workspace", &mut test)?;
    if long || report.names("workspace/miri") {
        command_or_skip(
            report,
            "workspace",
            "miri",
            &mut Command::new(root().join("setup/miri")),
        )?;
    }
    Ok(())
}

/// What is tried by libFuzzer, in the long set, and for so many seconds each.
const TARGETS: [&str; 5] = ["kernel", "program", "archive", "book", "instruction"];
const FUZZ_SECONDS: &str = "20";

/// What reads bytes from strangers, under libFuzzer.
fn fuzz(report: &mut Report, long: bool) -> Result<()> {
    let named = report.is_filtered() && TARGETS.iter().any(|name| report.wants("fuzz", name));
    if !long && !named {
        return Ok(());
    }
    report.section("fuzz: files and instructions from anybody");
    for name in TARGETS {
        let mut run = Command::new(root().join("fuzz/run"));
        run.args([FUZZ_SECONDS, name]).env_remove("RUSTFLAGS");
        command(report, "fuzz", name, &mut run)?;
    }
    Ok(())
}

/// The cases in the machine, on every kind of Host, and the user's side of it.
fn host(report: &mut Report, options: &Options) -> Result<()> {
    let commit = artifacts::commit();
    let plan = list::plan(report, options.long, &commit);
    let prompts: Vec<_> = prompt::TESTS
        .iter()
        .filter(|test| report.wants("prompt", test.name))
        .filter(|test| options.long || report.is_filtered() || test.samples(&commit))
        .collect();
    if plan.is_empty() && prompts.is_empty() {
        return Ok(());
    }
    let list = List {
        artifacts: Artifacts::collect()?.with_test_guests()?,
        sampled: (!report.is_filtered()).then_some(commit),
        long: options.long,
    };
    list.run(report, plan)?;
    report.section("prompt: what a user sees");
    for test in prompts {
        test.run(report)?;
    }
    Ok(())
}

/// The list of cases on every kind of Host, so many times, or up to the first round in which
/// something fails.
fn repeat(report: &mut Report, options: &Options, times: u32) -> Result<()> {
    let list = List {
        artifacts: Artifacts::collect()?.with_test_guests()?,
        sampled: None,
        long: options.long,
    };
    for round in 1..=times {
        let begun = Instant::now();
        list.run(report, list::whole(report, options.long))?;
        let seconds = begun.elapsed().as_secs();
        let counts = report.counts();
        println!("\nround {round} of {times}: {counts} so far, {seconds} s");
        if counts.failed > 0 {
            break;
        }
    }
    Ok(())
}

/// Faults on purpose, each to be reported at its chapter's line.
fn home(report: &mut Report, options: &Options) -> Result<()> {
    let faults = errors::wanted(report, options.long);
    let long = options.long || report.is_filtered();
    let walk = long && report.wants(errors::SECTION, errors::WALK);
    if faults.is_empty() && !walk {
        return Ok(());
    }
    report.section("errors: faults on purpose, reported at their chapter's line");
    let all = errors::FAULTS.len();
    if faults.len() < all && !report.is_filtered() {
        let tried = faults.len();
        report.remark(&format!("{tried} of {all} kinds; all with --long"));
    }
    let tree = errors::Tree::new()?;
    for fault in faults {
        fault.test(report, &tree)?;
    }
    if walk {
        errors::walk(report, &tree)?;
    }
    Ok(())
}

/// Machines that cannot be a Host.
fn unfit(report: &mut Report, options: &Options) -> Result<()> {
    let commit = artifacts::commit();
    let all = options.long || report.is_filtered();
    let machines: Vec<_> = fit::MACHINES
        .iter()
        .filter(|machine| report.wants(fit::SECTION, machine.name))
        .filter(|machine| all || machine.samples(&commit))
        .collect();
    if machines.is_empty() {
        return Ok(());
    }
    report.section("fit: machines that cannot be a Host");
    let artifacts = Artifacts::collect()?;
    for machine in machines {
        machine.test(report, &artifacts)?;
    }
    Ok(())
}

/// What a hypercall costs.
fn round_trip(report: &mut Report) -> Result<()> {
    let tests = trip::TESTS;
    let tests = tests.map(|(name, body)| (report.wants(trip::SECTION, name), name, body));
    if !tests.iter().any(|(wanted, ..)| *wanted) {
        return Ok(());
    }
    report.section("trip: what a hypercall costs, and what it loads");
    for (_, name, body) in tests.into_iter().filter(|(wanted, ..)| *wanted) {
        trip::test(report, name, body)?;
    }
    Ok(())
}
