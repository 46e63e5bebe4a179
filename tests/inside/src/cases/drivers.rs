// SPDX-License-Identifier: GPL-2.0-only

//! Cases of devices, with a test Guest that is built on the drivers of the book.

use anyhow::{Context, Result, ensure};

use super::{Bench, guests};
use crate::guest::{Ended, Guest};
use crate::host;

/// Runs the test Guest with these options of the Launcher's and these words, to a good end.
fn drive(options: &[&str], words: &[&str]) -> Result<Ended> {
    host::load_module()?;
    let arguments = [&["-v"], options, &["32", "/guests/drive"], words].concat();
    let ended = Guest::launch(&arguments)?.finish()?;
    ended.expect_code(guests::OFF)?;
    Ok(ended)
}

/// The rest of the line that begins so.
fn line<'a>(ended: &'a Ended, start: &str) -> Result<&'a str> {
    let mut lines = ended.output.lines();
    let found = lines.find_map(|line| line.strip_prefix(start));
    found.with_context(|| format!("no line {start:?} in:\n{}", ended.output))
}

/// Random bytes are there, are not zero, and differ from one Guest to the next.
pub fn random(bench: &mut Bench) -> Result<()> {
    let one = drive(&["--rng"], &["case=random"])?;
    let other = drive(&["--rng"], &["case=random"])?;
    one.expect_output("good: all lengths")?;
    other.expect_output("good: all lengths")?;
    let (one, other) = (
        line(&one, "good: random ")?.to_owned(),
        line(&other, "good: random ")?,
    );
    bench
        .control
        .say("note", &format!("first 32 bytes: {one}"))?;
    ensure!(one != other, "the same bytes twice: {one}");

    let works = "lguest: device 1: random, 1 page, driver works";
    let ended = drive(&["--rng"], &["case=random"])?;
    ensure!(ended.errors.contains(works), "{}", ended.errors);
    // Without the option there is no device, and the Guest is told so.
    let none = Guest::launch(&["32", "/guests/drive", "case=random"])?.finish()?;
    none.expect_code(guests::CRASHED)?;
    ensure!(none.errors.contains("no random bytes"), "{}", none.errors);
    host::wait_until_free()
}
