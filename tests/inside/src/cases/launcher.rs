// SPDX-License-Identifier: GPL-2.0-only

//! The Launcher: what it is given at the start, its two processes, and what it may still do later.

use std::fs;

use anyhow::Result;

use super::Bench;
use crate::guest::Guest;
use crate::host;

/// A disk of an odd size and with a pattern, its sum by the Guest and by this side, and files that
/// are none.
pub fn initial_disk(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    let path = "/tmp/initial-disk";
    let option = format!("--initrd={path}");
    let run = |words: &[&str]| {
        let words = [words, &["16", "/guests/probe", "case=initial-disk"]].concat();
        Guest::launch(&words)?.finish()
    };
    run(&[])?
        .expect_code(0)?
        .expect_output("good: there is no disk")?;
    for bytes in [1_usize, 4096, (1 << 20) + 1] {
        let disk: Vec<u8> = (0..bytes).map(|place| (place % 251 + 1) as u8).collect();
        fs::write(path, &disk)?;
        let add = |sum: u64, byte: &u8| sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
        let sum = disk.iter().fold(0, add);
        run(&[&option])?
            .expect_code(0)?
            .expect_output(&format!("good: a disk of {bytes} bytes, sum {sum:#x}"))?;
    }
    fs::write(path, vec![1; 17 << 20])?;
    let refused = [
        (
            option.as_str(),
            "too small for this kernel and its initial disk",
        ),
        (
            "--initrd=/nowhere",
            "--initrd `/nowhere`: there is no such file",
        ),
        ("--initrd=/tmp", "this is a directory"),
        ("--initrd=/dev/zero", "not a regular file"),
    ];
    for (option, words) in refused {
        run(&[option])?.expect_code(2)?.expect_error(words)?;
    }
    fs::write(path, "")?;
    run(&[&option])?
        .expect_code(2)?
        .expect_error("the file is empty")?;
    fs::remove_file(path)?;
    Ok(())
}
