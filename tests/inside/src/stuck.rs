// SPDX-License-Identifier: GPL-2.0-only

//! What all programs are at, for a report about one that does not end.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A line for each thread of each program: its numbers, its state, what it waits for in the kernel,
/// the system call it is in, and how long it has run, in ticks of user and kernel time. What cannot
/// be read, since it ended meanwhile, is left out.
pub fn programs() -> String {
    let mut text = String::new();
    for process in numbered(Path::new("/proc")) {
        // A kernel thread has no command line.
        if fs::read(process.join("cmdline")).is_ok_and(|line| !line.is_empty()) {
            for thread in numbered(&process.join("task")) {
                let _ = line(&mut text, &process, &thread);
            }
        }
    }
    text
}

/// The folders in this one whose names are numbers, in their order.
fn numbered(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Adds a thread's line.
fn line(text: &mut String, process: &Path, thread: &Path) -> Option<()> {
    let read = |name: &str| fs::read_to_string(thread.join(name)).ok();
    let stat = read("stat")?;
    // The name is in parentheses, and may have blanks.
    let (head, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let (state, parent) = (fields.first()?, fields.get(1)?);
    let (user, kernel) = (fields.get(11)?, fields.get(12)?);
    let waits = read("wchan").unwrap_or_default();
    let call = read("syscall").unwrap_or_default();
    let name = head.split_once('(')?.1;
    let _ = writeln!(
        text,
        "{} {} of {parent}: {name}, {state}, in {waits}, call {}, {user}+{kernel} ticks",
        process.file_name()?.display(),
        thread.file_name()?.display(),
        call.trim_end(),
    );
    Some(())
}

#[cfg(test)]
mod tests {
    use super::programs;

    #[test]
    fn this_thread_runs() {
        let id = std::process::id();
        let all = programs();
        let mine = all.lines().find(|line| line.starts_with(&format!("{id} ")));
        let mine = mine.expect("this process");
        assert!(mine.contains("ticks") && mine.contains(", in "), "{mine}");
    }
}
