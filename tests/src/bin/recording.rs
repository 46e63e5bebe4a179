// SPDX-License-Identifier: GPL-2.0-only

//! Makes the picture in the README out of what a real run prints.

use std::fs;

use anyhow::{Context, Result};
use clap::Parser;
use lguest_tests::recording::{COMMAND, draw, picture, record};

#[derive(Debug, Parser)]
#[command(about = "Runs two Guests, and makes the picture in the README of what is seen")]
struct Options {}

fn main() -> Result<()> {
    let Options {} = Options::parse();
    eprintln!("`{COMMAND}` in a terminal of its own: about twenty seconds.");
    let lines = record()?;
    let (path, svg) = (picture(), draw(COMMAND, &lines));
    fs::write(&path, &svg).with_context(|| format!("cannot write {}", path.display()))?;
    let (count, size) = (lines.len(), svg.len());
    println!("{}: {count} lines, {size} bytes", path.display());
    Ok(())
}
