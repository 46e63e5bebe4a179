// SPDX-License-Identifier: GPL-2.0-only

//! Runs the case `soak` for as long as one likes, and keeps what it has counted.

use std::fs;

use anyhow::{Context, Result};
use clap::Parser;
use lguest_tests::artifacts::root;
use lguest_tests::soak::{DATA, data, soak, versions};

#[derive(Debug, Parser)]
#[command(about = "Runs Guests of every kind under everything that can be done to them")]
struct Options {
    /// For how long
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// What chance does; another each time without it
    #[arg(long)]
    seed: Option<u64>,
    /// Leave the figures of the book as they are
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<()> {
    let Options {
        minutes,
        seed,
        keep,
    } = Options::parse();
    let mut figures = None;
    let linux = soak(minutes, seed, &mut figures)?;
    let figures = figures.context("the case has told no figures")?;
    let text = serde_json::to_string_pretty(&data(minutes, &figures, versions(&linux)?)?)?;
    println!("{text}");
    if !keep {
        let path = root().join(DATA);
        fs::write(&path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
