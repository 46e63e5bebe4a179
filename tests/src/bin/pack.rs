// SPDX-License-Identifier: GPL-2.0-only

//! Packs the Guest's programs into its initial disk, `target/initrd.cpio`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use lguest_tests::artifacts::{self, root};
use lguest_tests::initrd;

#[derive(Debug, Parser)]
#[command(about = "Packs the Guest's programs into its initial disk")]
struct Options {
    /// Where the archive goes
    #[arg(default_value_os_t = artifacts::initrd_path())]
    to: PathBuf,
}

fn main() -> Result<()> {
    let Options { to } = Options::parse();
    let sources = root().join("guest/programs/src/bin");
    let bytes = initrd::pack(&sources, &artifacts::guest_directory())?;
    // What has not changed is left alone.
    if fs::read(&to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))
}
