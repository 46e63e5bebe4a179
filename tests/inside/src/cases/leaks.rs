// SPDX-License-Identifier: GPL-2.0-only

//! Whether anything is lost, a little with every Guest.
//!
//! After each of a number of rounds the pages that are in use and the objects of each of the
//! kernel's slab caches are counted, and a straight line is laid through each series. What is lost
//! with every round is the line's slope. A round that loses one page or one object has a slope of
//! 1, and the limit is half of that.
//!
//! A count of free pages alone says little: this very program grows by one or two pages a round for
//! some sixty rounds, the kernel's own mappings get another page table every other round until they
//! have been everywhere, and a slab cache that has got back its objects may keep their pages. So a
//! page counts as in use when it is not free in a zone, nor in a CPU's stock, nor a slab cache's
//! (of which the objects are counted), nor of another kind that the kernel counts and that shows
//! otherwise. Before each count the kernel does what it has put off, and the slab caches let go of
//! what they keep for later; nothing waits for a time to pass. In a clean run the pages in use are
//! then the same number in nearly every round.
//!
//! What noise is left is mostly single values far off, so the slope is the median of the slopes
//! between all pairs of values (Theil and Sen), on which a few such values have no influence. The
//! noise is judged in the same way, by the median distance from the line, and gives the slope's
//! standard error. A series loses only if its slope is also four of those errors, and it is a
//! failure only if that is so in three attempts one after another. Where the error is more than an
//! eighth, the limit is fewer than four of them away from nothing and from one, so the series
//! decides nothing and is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::Bench;
use super::guests::{OFF, run, time_to_die};
use crate::guest::Guest;
use crate::host;

const ROUNDS: usize = 20;
/// Lost by a round, in pages or objects: less than this is nothing.
const LIMIT: f64 = 0.5;
/// A standard error of the slope above which a series decides nothing.
const TOO_NOISY: f64 = LIMIT / 4.0;
/// How often a loss must be seen, and how often it is tried to have a quiet series.
const TRIES: usize = 3;
/// Pages that are free, and in use of a kind that is looked after otherwise: programs' memory, page
/// tables (of programs, and of the kernel's mappings), and memory that the kernel maps for itself
/// (the stacks of its threads above all). Whoever loses one of these loses an object of a slab
/// cache with it, an `mm_struct` or a `vmap_area`, or leaves a page pinned.
const KINDS: [&str; 4] = [
    "nr_free_pages",
    "nr_anon_pages",
    "nr_page_table_pages",
    "nr_vmalloc",
];
/// What a debug kernel keeps books in about all other objects; they grow for a while by themselves.
const BOOKS: [&str; 2] = ["debug_objects_cache", "kmemleak_object"];
/// The name of the series of pages.
pub(super) const PAGES: &str = "pages in use";

/// A straight line through values at 0, 1, 2...
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) slope: f64,
    /// The slope's standard error.
    pub(super) error: f64,
}

impl Line {
    /// Whether something is lost with every round.
    pub(super) fn loses(&self) -> bool {
        self.slope > LIMIT && self.slope > 4.0 * self.error
    }
}

/// The value in the middle, of at least one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        values[half]
    } else {
        f64::midpoint(values[half - 1], values[half])
    }
}

/// The line of Theil and Sen. Of fewer than three values nothing can be said.
pub(super) fn fit(values: &[f64]) -> Option<Line> {
    if values.len() < 3 {
        return None;
    }
    let mut slopes = Vec::new();
    for (x, y) in values.iter().enumerate() {
        for (step, later) in values[x + 1..].iter().enumerate() {
            slopes.push((later - y) / (step + 1) as f64);
        }
    }
    let slope = median(slopes);
    let along = |(x, y): (usize, &f64)| y - slope * x as f64;
    let start = median(values.iter().enumerate().map(along).collect());
    let off = |point| (along(point) - start).abs();
    // For noise of the normal kind, 1.4826 median distances are a standard deviation.
    let noise = 1.4826 * median(values.iter().enumerate().map(off).collect());
    let n = values.len() as f64;
    let spread = n * (n * n - 1.0) / 12.0;
    Some(Line {
        slope,
        error: noise / spread.sqrt(),
    })
}

/// A counter of the kernel's memory management.
pub(super) fn vmstat(name: &str) -> Result<u64> {
    // The kernel counts on each CPU for itself; reading this file has it add them up.
    fs::read_to_string("/proc/sys/vm/stat_refresh")?;
    let text = fs::read_to_string("/proc/vmstat")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(line
        .with_context(|| format!("no {name} in /proc/vmstat"))?
        .trim()
        .parse()?)
}

/// Pages that are pinned in the whole kernel, by its own count.
fn kernel_pins() -> Result<u64> {
    Ok(vmstat("nr_foll_pin_acquired")?.wrapping_sub(vmstat("nr_foll_pin_released")?))
}

/// Pages in use that are of none of these kinds, and up to a constant, which is how many pages the
/// machine has.
fn pages_but(slabs: f64) -> Result<f64> {
    let mut known = slabs;
    for kind in KINDS {
        known += vmstat(kind)? as f64;
    }
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    known += zones
        .lines()
        .filter_map(|line| line.trim().strip_prefix("count:"))
        .filter_map(|count| count.trim().parse::<f64>().ok())
        .sum::<f64>();
    Ok(-known)
}

/// How many objects each slab cache has given out, and how many pages all of them have.
fn slabs(text: &str) -> Result<(BTreeMap<String, f64>, f64)> {
    let (mut all, mut pages) = (BTreeMap::new(), 0.0);
    for line in text.lines().skip(2) {
        // name active all size in-a-slab pages-of-a-slab : tunables a b c : slabdata used all x
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| -> Result<f64> {
            let word = words.get(index).with_context(|| format!("{line:?}"))?;
            Ok(word.parse()?)
        };
        let name = words.first().context("an empty line in slabinfo")?;
        if !BOOKS.contains(name) {
            *all.entry(format!("slab {name}")).or_default() += number(1)?;
        }
        pages += number(5)? * number(14)?;
    }
    Ok((all, pages))
}

/// Everything that is counted, after what is kept only for later has been given back.
pub(super) fn counted() -> Result<BTreeMap<String, f64>> {
    // What was unmapped is purged when the kernel next changes a page's protection, which it does
    // for every module that it loads.
    host::unload_module()?;
    host::load_module()?;
    let mut samples: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..3 {
        for (name, value) in sample()? {
            samples.entry(name).or_default().push(value);
        }
    }
    let samples = samples.into_iter();
    Ok(samples
        .map(|(name, values)| (name, median(values)))
        .collect())
}

/// Has the kernel do what it put off until after a grace period (see `rcu_barrier()`).
fn settle() -> Result<()> {
    fs::write("/sys/module/rcutree/parameters/do_rcu_barrier", "1")
        .context("this kernel offers no RCU barrier")
}

/// Has the kernel give back what it keeps for later.
pub(super) fn give_back() -> Result<()> {
    settle()?;
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    // Twice, for what one cache keeps its objects in are objects of another.
    for _ in 0..2 {
        settle()?;
        for cache in fs::read_dir("/sys/kernel/slab")?.flatten() {
            // Some are other names of the same cache; and one may go away meanwhile.
            let _ = fs::write(cache.path().join("shrink"), "1");
        }
    }
    Ok(())
}

/// One count of it.
pub(super) fn sample() -> Result<BTreeMap<String, f64>> {
    give_back()?;
    let text = fs::read_to_string("/proc/slabinfo").context("this kernel has no slabinfo")?;
    let (mut all, pages) = slabs(&text)?;
    all.insert(PAGES.to_owned(), pages_but(pages)?);
    Ok(all)
}

/// A bit of everything: a Guest that uses all its memory and powers off, one that is killed while
/// it computes, and one that ends with an error.
fn round() -> Result<()> {
    run(&["case=memory"])?.expect_code(OFF)?;
    let guest = Guest::probe(&["case=work"])?;
    guest.wait_for("working")?;
    guest.signal(Signal::SIGKILL)?;
    guest.finish_within(time_to_die())?;
    run(&["case=crash"])?;
    host::wait_until_free()
}

/// The lines through all series of a number of rounds.
fn measured() -> Result<BTreeMap<String, Line>> {
    let mut series: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for done in 0..ROUNDS {
        round()?;
        for (name, value) in counted()? {
            // A cache that came later had no objects before.
            let values = series.entry(name).or_default();
            values.resize(done, 0.0);
            values.push(value);
        }
    }
    let line = |(name, values): (String, Vec<f64>)| Some((name, fit(&values)?));
    Ok(series.into_iter().filter_map(line).collect())
}

pub fn leaks(bench: &mut Bench) -> Result<()> {
    host::load_module()?;
    // The first ones fill the kernel's own stores of structures.
    for _ in 0..5 {
        round()?;
    }
    let pins = kernel_pins()?;
    // What was lost in every attempt so far; and whether the pages were ever quiet enough.
    let mut suspects: Option<BTreeSet<String>> = None;
    let mut quiet = false;
    for attempt in 1..=TRIES {
        let lines = measured()?;
        let pinned = kernel_pins()?.wrapping_sub(pins).cast_signed();
        ensure!(
            pinned == 0,
            "{pinned} pages are still pinned, by the kernel's own count"
        );
        let pages = lines.get(PAGES).context("no pages were counted")?;
        quiet |= pages.error <= TOO_NOISY;
        let lost = named(&lines, Line::loses);
        let noisy = named(&lines, |line| line.error > TOO_NOISY);
        let worst = lines
            .iter()
            .filter(|(name, _)| *name != PAGES)
            .max_by(|a, b| a.1.slope.total_cmp(&b.1.slope));
        let worst = worst.map(tell).unwrap_or_default();
        let mut text = format!(
            "attempt {attempt}, {ROUNDS} rounds, lost by each: {}; of {} slab caches most in {worst}",
            tell((&PAGES.to_owned(), pages)),
            lines.len() - 1,
        );
        for (what, which) in [("lost", &lost), ("undecided", &noisy)] {
            if !which.is_empty() {
                let which: Vec<String> = which.iter().map(|n| tell((n, &lines[n]))).collect();
                text += &format!("; {what}: {}", which.join(", "));
            }
        }
        bench.control.say("note", &text)?;
        let still = match suspects {
            None => lost,
            Some(before) => before.intersection(&lost).cloned().collect(),
        };
        if still.is_empty() && quiet {
            return Ok(());
        }
        if attempt == TRIES && !still.is_empty() {
            let which: Vec<String> = still.iter().map(|n| tell((n, &lines[n]))).collect();
            bail!(
                "every round loses, in all of {TRIES} attempts: {}",
                which.join(", ")
            );
        }
        suspects = Some(still);
    }
    bail!("the pages in use were never quiet enough to tell")
}

/// A series and its slope.
pub(super) fn tell((name, line): (&String, &Line)) -> String {
    format!("{name} {:+.2} ± {:.2}", line.slope, line.error)
}

/// The names of the series of which something is true.
fn named(lines: &BTreeMap<String, Line>, is: impl Fn(&Line) -> bool) -> BTreeSet<String> {
    let such = lines.iter().filter(|(_, line)| is(line));
    such.map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_through_noise() {
        let noise = [0.0, 1.0, -1.0, 0.5, -500.0, 1.0, -1.0, 0.0, 0.5, -0.5];
        let flat: Vec<f64> = noise.iter().cycle().take(20).map(|n| 100.0 + n).collect();
        let line = fit(&flat).expect("enough values");
        assert!(line.slope.abs() < 0.1 && line.error < TOO_NOISY, "{line:?}");
        let leak: Vec<f64> = (0..).zip(&flat).map(|(x, y)| y + f64::from(x)).collect();
        let line = fit(&leak).expect("enough values");
        assert!((line.slope - 1.0).abs() < 0.1, "{line:?}");
        assert_eq!(fit(&[1.0, 2.0]), None);
        let line = fit(&[1.0, 3.0, 5.0, 7.0]).expect("enough values");
        assert_eq!((line.slope, line.error), (2.0, 0.0));
        assert!(line.loses());
        let falling = fit(&[7.0, 5.0, 3.0]).expect("enough values");
        assert!(!falling.loses(), "{falling:?}");
    }

    #[test]
    fn slabs_are_counted() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> ...\n\
            dentry 90 105 192 21 1 : tunables 0 0 0 : slabdata 5 5 0\n\
            inode 10 26 600 13 2 : tunables 0 0 0 : slabdata 2 2 0\n";
        let (objects, pages) = slabs(text).expect("as the kernel writes it");
        assert_eq!(objects["slab dentry"], 90.0);
        assert_eq!(objects["slab inode"], 10.0);
        assert_eq!(pages, 5.0 + 4.0);
        assert!(slabs("a\nb\nshort 1 2\n").is_err());
    }
}
