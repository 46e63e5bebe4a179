// SPDX-License-Identifier: GPL-2.0-only

//! The user's terminal: raw while a Guest has it, as it was afterwards.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::termios::{self, SetArg, Termios};

use crate::cleanup;

/// The key that begins a command to the program at this terminal, not to the Guest: Ctrl-].
pub const PREFIX: u8 = 0x1d;

/// A terminal in raw mode. When this is dropped the terminal is as it was before.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Puts the terminal at standard input into raw mode: every key goes through as it is.
    /// `None` when standard input is not a terminal.
    ///
    /// # Errors
    ///
    /// When the terminal refuses.
    pub fn enter() -> Result<Option<Self>> {
        let input = io::stdin();
        if !input.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(input.as_fd()).context("cannot ask the terminal")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        cleanup::note_terminal(Some(before.clone()));
        termios::tcsetattr(input.as_fd(), SetArg::TCSANOW, &raw)
            .context("cannot put the terminal into raw mode")?;
        Ok(Some(Self { before }))
    }
}

/// Puts the terminal at standard input back into a mode that it had.
pub fn restore(before: &Termios) {
    // Nothing sensible can be done if a terminal that has gone away refuses.
    let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, before);
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore(&self.before);
        cleanup::note_terminal(None);
    }
}
