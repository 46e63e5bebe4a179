// SPDX-License-Identifier: GPL-2.0-only

//! Records the trip that the book shows step by step.

use anyhow::Result;
use clap::Parser;
use lguest_tests::artifacts::root;
use lguest_tests::cleanup;
use lguest_tests::trace::{Trace, record, write_page};

#[derive(Debug, Parser)]
#[command(about = "Records a trip into a Guest and back, and makes the book's page of it")]
struct Options {
    /// Keep the trace that is there, and make only the page anew
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<()> {
    let Options { keep } = Options::parse();
    cleanup::watch_signals()?;
    let trace = if keep {
        Trace::read(&root())?
    } else {
        eprintln!("QEMU boots Linux, and is led through five trips, step by step.");
        let trace = record()?;
        let path = trace.write(&root())?;
        println!("{}: {} instructions", path.display(), trace.steps.len());
        trace
    };
    println!("{}", write_page(&trace)?.display());
    Ok(())
}
