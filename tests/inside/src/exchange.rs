// SPDX-License-Identifier: GPL-2.0-only

//! What two Guests that exchange packets say of themselves, in the file that they share.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Result;

use crate::bare::PAGE;

/// Pages of the file: one to meet in, and one with the words of each.
pub const PAGES: u64 = 3;
/// Words in such a page that are used.
pub const WORDS: u64 = 20;
/// A verdict that no Guest comes to.
pub const BAD: u64 = 99;

/// The words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Packets that the other has taken.
    pub sent: u64,
    /// Packets that came.
    pub received: u64,
    /// Sends that nobody took.
    pub refused: u64,
    /// How often the other began anew.
    pub resets: u64,
    /// How often it slept.
    pub sleeps: u64,
    /// How often it took its records back.
    pub rebound: u64,
    /// 0 if all was well, or what was not.
    pub verdict: u64,
    /// The last word it looked at.
    pub found: u64,
    /// The number of the last packet.
    pub last: u64,
}

/// Where the Guest looks whether it is to end.
const ENOUGH: u64 = 104;

impl Words {
    /// Reads those of one of the two.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn of(file: &File, role: u64) -> Result<Self> {
        let mut bytes = [0; 8 * WORDS as usize];
        file.read_exact_at(&mut bytes, PAGE * (1 + role))?;
        let word = |at: usize| {
            bytes[at..][..8]
                .iter()
                .rev()
                .fold(0, |n, b| n << 8 | u64::from(*b))
        };
        Ok(Self {
            sent: word(0),
            received: word(8),
            refused: word(16),
            resets: word(56),
            sleeps: word(80),
            rebound: word(128),
            verdict: word(136),
            found: word(144),
            last: word(152),
        })
    }

    /// Has one of the two end.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn end(file: &File, role: u64) -> Result<()> {
        Ok(file.write_all_at(&1_u64.to_le_bytes(), PAGE * (1 + role) + ENOUGH)?)
    }
}
