// SPDX-License-Identifier: GPL-2.0-only

//! What a debug kernel has spread under a case, and what is caught in it.
//!
//! Most of what such a kernel finds it says by itself, as a warning or a panic. Three things must be
//! asked for: kmemleak looks for lost memory only when it is told to, the pattern in freed memory
//! is otherwise looked at only when that memory is given out again, and lockdep, once it has found
//! something, is off for good.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host::Record;

/// Told to scan, it lists what no pointer leads to.
const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
/// Says among other things whether lockdep is still on.
const LOCKDEP: &str = "/proc/lockdep_stats";
/// The caches of kmalloc among others: files that say how each is checked, and have it checked.
const SLABS: &str = "/sys/kernel/slab";

/// kmemleak reports nothing younger than five seconds, which may still be on its way to its place.
const YOUNG: Duration = Duration::from_millis(5500);

/// What nets this kernel has, as the end of a sentence: `, lockdep, kmemleak`.
pub fn facts(boot: &[Record]) -> String {
    let mut text = String::new();
    let mut net = |name, there| {
        if there {
            text.push_str(", ");
            text.push_str(name);
        }
    };
    net("lockdep", lockdep_is_on().unwrap_or(false));
    net("kmemleak", Path::new(KMEMLEAK).exists());
    net("slab poisoning", slabs_are_poisoned());
    let kasan = |record: &Record| record.text.contains("KernelAddressSanitizer initialized");
    net("KASAN", boot.iter().any(kasan));
    text
}

/// Looks into the nets after a case.
///
/// # Errors
///
/// When something is caught, or a net cannot be looked into.
pub fn look() -> Result<()> {
    if Path::new(LOCKDEP).exists() && !lockdep_is_on()? {
        bail!("lockdep has turned itself off: what it found is in the kernel's log");
    }
    if slabs_are_poisoned() {
        check_slabs()?;
    }
    Ok(())
}

/// Looks for lost memory, where the kernel can: that takes about ten seconds, and is therefore not
/// done after each case. What is found was lost in a case from `since` on.
///
/// # Errors
///
/// When something is found, or nothing can be looked for.
pub fn scan(since: &str) -> Result<()> {
    if Path::new(KMEMLEAK).exists() {
        let lost = lost_memory()?;
        if !lost.is_empty() {
            bail!("memory that no pointer leads to, since the case `{since}`:\n{lost}");
        }
    }
    Ok(())
}

/// Whether lockdep still looks.
fn lockdep_is_on() -> Result<bool> {
    let text = fs::read_to_string(LOCKDEP)?;
    let on = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("debug_locks:"));
    Ok(on.context("no debug_locks in lockdep_stats")?.trim() == "1")
}

/// Whether what kmalloc gives is filled when it is freed.
fn slabs_are_poisoned() -> bool {
    let poison = Path::new(SLABS).join("kmalloc-64/poison");
    fs::read_to_string(poison).is_ok_and(|text| text.trim() == "1")
}

/// Has the pattern in all free memory of kmalloc's looked at, and the red zones round what is in
/// use. What is wrong goes into the kernel's log, as errors.
fn check_slabs() -> Result<()> {
    for cache in fs::read_dir(SLABS)? {
        let cache = cache?;
        if cache.file_name().to_string_lossy().starts_with("kmalloc") {
            fs::write(cache.path().join("validate"), "1")
                .with_context(|| format!("cannot check {}", cache.path().display()))?;
        }
    }
    Ok(())
}

/// What kmemleak lists now.
fn lost_memory() -> Result<String> {
    thread::sleep(YOUNG);
    // A first scan notes what each object holds, and the second reports those that still hold it
    // and have no pointer to them.
    for _ in 0..2 {
        fs::write(KMEMLEAK, "scan").context("kmemleak does not scan")?;
    }
    let lost = fs::read_to_string(KMEMLEAK).context("kmemleak does not say what it found")?;
    // What was reported is not reported again in the next case.
    fs::write(KMEMLEAK, "clear").context("kmemleak does not forget")?;
    Ok(lost)
}
