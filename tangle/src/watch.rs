// SPDX-License-Identifier: GPL-2.0

//! Tangles whenever a chapter is saved.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use notify::{Config, Event, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};

use crate::config;
use crate::write::{self, Options, Run};

/// Editors save in several steps: a run waits until nothing has happened for so long...
const QUIET: Duration = Duration::from_millis(40);
/// ... but not longer than that.
const LONGEST: Duration = Duration::from_secs(1);
/// How often files are looked at where the system does not tell of changes.
const LOOK: Duration = Duration::from_millis(500);

/// Why watching ended.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The system does not let us watch.
    #[error("cannot watch {path}: {reason}")]
    Watch {
        /// The folder.
        path: String,
        /// What the system said.
        reason: String,
    },
}

/// Tangles once, then after each change of `book.toml` or of anything among the chapters, for ever;
/// `said` is told of each run. `poll` looks at the files now and then, for file systems that do not
/// tell of changes.
///
/// # Errors
///
/// When the system does not let us watch the folders.
pub fn watch(
    root: &Path,
    options: &Options,
    poll: bool,
    mut said: impl FnMut(Run),
) -> Result<(), Failure> {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    loop {
        let folder = config::chapters_folder(&root).map(|folder| root.join(folder));
        let (send, changes) = mpsc::channel();
        let mut watcher = watcher(send, poll, &root)?;
        let mut add =
            |path: &Path, mode| watcher.watch(path, mode).map_err(|error| failure(path, &error));
        // Not the file alone: an editor may put a new one in its place.
        add(&root, RecursiveMode::NonRecursive)?;
        match &folder {
            Some(folder) if folder.is_dir() => add(folder, RecursiveMode::Recursive)?,
            _ => {}
        }
        // What changes from now on is seen, so nothing can happen between this run and the next.
        said(write::run(&root, options));
        while wait(&changes, &root, folder.as_deref()) {
            said(write::run(&root, options));
            if config::chapters_folder(&root).map(|folder| root.join(folder)) != folder {
                break;
            }
        }
    }
}

fn failure(path: &Path, error: &notify::Error) -> Failure {
    Failure::Watch { path: path.display().to_string(), reason: error.to_string() }
}

fn watcher(
    send: mpsc::Sender<notify::Result<Event>>,
    poll: bool,
    root: &Path,
) -> Result<Box<dyn Watcher>, Failure> {
    if !poll {
        // Where there are no more inotify watches to be had, looking still works.
        if let Ok(watcher) = RecommendedWatcher::new(send.clone(), Config::default()) {
            return Ok(Box::new(watcher));
        }
    }
    let config = Config::default().with_poll_interval(LOOK).with_compare_contents(true);
    match PollWatcher::new(send, config) {
        Ok(watcher) => Ok(Box::new(watcher)),
        Err(error) => Err(failure(root, &error)),
    }
}

/// Waits for a change and then for quiet. Says no when nothing will come any more.
fn wait(changes: &Receiver<notify::Result<Event>>, root: &Path, folder: Option<&Path>) -> bool {
    loop {
        match changes.recv() {
            Ok(event) if counts(&event, root, folder) => break,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    let first = Instant::now();
    while first.elapsed() < LONGEST {
        match changes.recv_timeout(QUIET) {
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
    true
}

/// Whether an event is about the book. What tangle itself writes lies elsewhere, and to read a file
/// is no change.
fn counts(event: &notify::Result<Event>, root: &Path, folder: Option<&Path>) -> bool {
    let Ok(event) = event else { return true };
    if event.need_rescan() {
        return true;
    }
    let ours = |path: &PathBuf| {
        path == &root.join("book.toml") || folder.is_some_and(|folder| path.starts_with(folder))
    };
    !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(ours)
}
