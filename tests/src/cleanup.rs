// SPDX-License-Identifier: GPL-2.0-only

//! Leaving nothing behind when a signal ends the program.
//!
//! Destructors do not run then. So what must be undone is also noted here, and a thread that
//! waits for the signals undoes it: the terminal's mode, and the folder of each machine. The
//! machines themselves end with this process, since QEMU asks the kernel to be killed then.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::Result;
use nix::sys::termios::Termios;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::terminal;

/// What is to be undone.
static NOTES: Mutex<Notes> = Mutex::new(Notes {
    terminal: None,
    folders: Vec::new(),
});

struct Notes {
    terminal: Option<Termios>,
    folders: Vec<PathBuf>,
}

/// Notes how the terminal was, or that it is so again.
pub fn note_terminal(before: Option<Termios>) {
    if let Ok(mut notes) = NOTES.lock() {
        notes.terminal = before;
    }
}

/// Notes a folder to be removed.
pub fn note_folder(folder: &Path) {
    if let Ok(mut notes) = NOTES.lock() {
        notes.folders.push(folder.to_path_buf());
    }
}

/// Forgets a folder that has been removed.
pub fn forget_folder(folder: &Path) {
    if let Ok(mut notes) = NOTES.lock() {
        notes.folders.retain(|noted| noted != folder);
    }
}

/// From now on a signal that ends the program undoes what is noted first. The exit status is
/// then 128 and the signal's number, as a shell would report it.
///
/// # Errors
///
/// When the signals cannot be watched.
pub fn watch_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            undo();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// Undoes all that is noted.
fn undo() {
    if let Ok(mut notes) = NOTES.lock() {
        if let Some(before) = notes.terminal.take() {
            terminal::restore(&before);
        }
        for folder in notes.folders.drain(..) {
            // The machine may be removing it itself at this moment.
            let _ = fs::remove_dir_all(folder);
        }
    }
}
