// SPDX-License-Identifier: GPL-2.0-only

//! What a Guest was told is on its disk is there, whatever becomes of the machine.
//!
//! A Guest in a Launcher in a Linux in QEMU writes to its disk, which is a disk of that Linux,
//! which is a file here. After each flush it says so. At a moment of chance QEMU is killed, with
//! all that Linux still had in its memory. Then the file must have what was told.
//!
//! The same is tried with a Launcher that is cheated: Linux answers its `fdatasync()` without doing
//! it. Then something must be missing, or this would be no test.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::artifacts::Artifacts;
use crate::control::Message;
use crate::hosts::{KINDS, Kind};
use crate::machine::Machine;
use crate::report::Report;

/// The name of this section.
pub const SECTION: &str = "durable";

/// Blocks of the disk that are written over and over.
const BLOCKS: u64 = 97;
/// Bytes of one.
const BLOCK: usize = 4096;
/// How long the machine may take to come up, or to say the next word.
const PATIENCE: Duration = Duration::from_secs(180);

/// The tests of this section, by name: with how many rounds, and whether Linux cheats.
const TESTS: [(&str, u64, bool); 3] = [
    ("flushed-is-there", 30, false),
    ("flushed-is-there-later", 170, false),
    ("without-fdatasync-it-is-not", 60, true),
];

/// Runs all of it, on the first kind of Host.
///
/// # Errors
///
/// When something is not built, or the report cannot be kept.
pub fn test(report: &mut Report) -> Result<()> {
    if !TESTS.iter().any(|(name, ..)| report.wants(SECTION, name)) {
        return Ok(());
    }
    report.section("durable: what a Guest was told is on its disk, when QEMU is killed");
    let artifacts = Artifacts::collect()?.with_test_guests()?;
    for (name, rounds, cheated) in TESTS {
        if !report.wants(SECTION, name) {
            continue;
        }
        let full = format!("{SECTION}/{name}");
        let log = report.log_path(SECTION, name);
        match attempt(&artifacts, &KINDS[0], &log, rounds, cheated) {
            Ok((told, Ok(()))) if !cheated => {
                report.remark(&format!("{told} rounds were told, all of them are there"));
                report.pass(&full);
            }
            Ok((told, Err(lost))) if cheated => {
                report.remark(&format!("{told} rounds were told; {lost}"));
                report.pass(&full);
            }
            Ok((told, Ok(()))) => {
                let why = format!("{told} rounds were told, and nothing is missing");
                report.fail(&full, &why, &log);
            }
            Ok((_, Err(lost))) => report.fail(&full, &lost, &log),
            Err(error) => report.fail(&full, &format!("{error:#}"), &log),
        }
    }
    Ok(())
}

/// One machine, killed in the middle; how many rounds it had told, and what the disk has.
fn attempt(
    artifacts: &Artifacts,
    kind: &Kind,
    log: &Path,
    rounds: u64,
    cheated: bool,
) -> Result<(u64, Result<(), String>)> {
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("disk");
    File::create(&image)?.set_len(16 << 20)?;
    let mut settings = kind.settings(artifacts)?;
    settings.log = log.to_path_buf();
    settings.disk = Some(image.clone());
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(PATIENCE * kind.patience)?;
    let how = if cheated { "cheated" } else { "honest" };
    machine.tell(&format!("case disk-durable {how}"))?;
    let mut told = 0;
    let end = Instant::now() + PATIENCE * kind.patience;
    while told < rounds {
        let left = end.saturating_duration_since(Instant::now());
        match machine.hear(left)? {
            Message::Start(_) => {}
            Message::Note(text) => told = text.trim().parse()?,
            Message::End(_, why) => bail!("it ended by itself: {why}"),
            other => bail!("the machine says {other:?}"),
        }
    }
    // With SIGKILL, and what is in Linux's memory is gone.
    drop(machine);
    let disk = fs::read(&image)?;
    ensure!(disk.len() == 16 << 20, "the disk has {} bytes", disk.len());
    Ok((told, check(&disk, told)))
}

/// Whether all rounds up to `told` are on the disk, or have been written over by later ones.
fn check(disk: &[u8], told: u64) -> Result<(), String> {
    let mut missing = Vec::new();
    for block in 0..BLOCKS {
        // The last round that was told of this block, if any.
        let last = (1..=told).rev().find(|round| round % BLOCKS == block);
        let Some(last) = last else { continue };
        let at = block as usize * BLOCK;
        // A sector is written as a whole. One that is older than what was told has been lost.
        for (n, sector) in disk[at..at + BLOCK].chunks(512).enumerate() {
            let words: Vec<u64> = sector
                .as_chunks()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word))
                .collect();
            let round = words[0];
            let right = (n as u64 * 64..)
                .zip(&words)
                .skip(1)
                .all(|(n, word)| *word == round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n);
            if !right || round < last || round % BLOCKS != block {
                missing.push(format!("{block}.{n}"));
            }
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} sectors of them are not there, the first is {first}",
            missing.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk after so many rounds.
    fn disk(rounds: u64) -> Vec<u8> {
        let mut disk = vec![0; BLOCKS as usize * BLOCK];
        for round in 1..=rounds {
            let at = (round % BLOCKS) as usize * BLOCK;
            for (n, word) in (0_u64..).zip(disk[at..at + BLOCK].as_chunks_mut().0) {
                let mix = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n;
                *word = if n % 64 == 0 { round } else { mix }.to_le_bytes();
            }
        }
        disk
    }

    #[test]
    fn what_is_missing_is_found() {
        for rounds in [0, 1, 50, 97, 98, 250] {
            assert_eq!(check(&disk(rounds), rounds), Ok(()));
            // More than was told.
            assert_eq!(check(&disk(rounds + 3), rounds), Ok(()));
            // Less.
            assert!(check(&disk(rounds), rounds + 1).is_err());
        }
        let mut torn = disk(50);
        torn[20 * BLOCK + 700] ^= 1;
        let lost = check(&torn, 50).unwrap_err();
        assert!(lost.contains("first is 20.1"), "{lost}");
    }
}
