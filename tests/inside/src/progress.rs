// SPDX-License-Identifier: GPL-2.0-only

//! How far a stand-in's Guest has come, in a file that a case may read at any time.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Numbers that only grow, but for the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records that the Guest has sent, each with the right sum.
    pub records: u64,
    /// How often `read()` ended with EINTR.
    pub interrupted: u64,
    /// How often BREAK ended it.
    pub breaks: u64,
    /// Signals that were handled, alarms aside.
    pub signals: u64,
    /// How often it was on another processor than before.
    pub moves: u64,
    /// The processor, and 1.
    pub cpu: u64,
}

/// Where a process writes its progress.
pub fn path_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/progress-{pid}"))
}

impl Progress {
    /// Notes the processor that it is on.
    pub fn seen_on(&mut self, cpu: u64) {
        self.moves += u64::from(self.cpu != cpu + 1);
        self.cpu = cpu + 1;
    }

    /// As it stands in the file.
    pub fn bytes(&self) -> Vec<u8> {
        let words = [
            self.records,
            self.interrupted,
            self.breaks,
            self.signals,
            self.moves,
            self.cpu,
        ];
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// What a process has written last. One that has not begun has come to nothing.
    ///
    /// # Errors
    ///
    /// When there is something else in the file.
    pub fn of(pid: u32) -> Result<Self> {
        let Ok(bytes) = fs::read(path_of(pid)) else {
            return Ok(Self::default());
        };
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let words = bytes
            .chunks_exact(8)
            .map(|chunk| Ok(u64::from_ne_bytes(chunk.try_into()?)))
            .collect::<Result<Vec<_>>>()?;
        let &[records, interrupted, breaks, signals, moves, cpu] = words
            .first_chunk::<6>()
            .context("half a line of progress")?;
        Ok(Self {
            records,
            interrupted,
            breaks,
            signals,
            moves,
            cpu,
        })
    }
}
