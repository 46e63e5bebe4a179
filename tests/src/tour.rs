// SPDX-License-Identifier: GPL-2.0-only

//! The page of the book that says where each stop of the original's tour is, and each function.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The page, from the root of the checkout.
pub const PAGE: &str = "book/appendix/tour.md";
/// The original's functions, a name to a line.
pub const FUNCTIONS: &str = "tests/seed-functions.txt";
/// So many stops may have no counterpart.
pub const MOST_WITHOUT: usize = 10;

/// The stops that must be there, in their order.
const STOPS: [(char, &[u16]); 7] = [
    ('P', &[10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900]),
    (
        'G',
        &[10, 20, 30, 31, 32, 33, 34, 35, 38, 45, 50, 55, 60, 70],
    ),
    (
        'D',
        &[
            10, 100, 110, 120, 130, 140, 200, 300, 310, 320, 340, 350, 360, 370, 380, 400, 410,
            420, 425, 430, 440, 450, 460, 470, 480, 490, 495, 500, 510, 520, 530, 550, 560, 570,
            580,
        ],
    ),
    (
        'L',
        &[
            0, 10, 20, 30, 35, 40, 50, 60, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 195,
            200, 210, 220, 300, 305, 310, 315, 320, 330, 340, 350, 360, 370, 380, 385, 390, 400,
            410,
        ],
    ),
    (
        'H',
        &[
            0, 10, 30, 100, 110, 120, 130, 200, 210, 220, 230, 235, 240, 250, 260, 300, 310, 320,
            330, 340, 350, 360, 400, 410, 420, 430, 435, 440, 450, 460, 470, 480, 500, 510, 520,
            600, 610,
        ],
    ),
    ('S', &[10, 100]),
    ('M', &[2, 3, 4, 5, 6, 7, 8, 11, 999]),
];

/// What is on the page.
#[derive(Debug, PartialEq, Eq)]
pub struct Tour {
    /// Stops.
    pub stops: usize,
    /// Those of them without a counterpart.
    pub without: Vec<String>,
    /// Functions whose names are in the chapters.
    pub functions: usize,
}

/// Reads the page of a checkout and everything that it speaks of.
///
/// # Errors
///
/// When a stop or a function is missing, or a link leads nowhere.
pub fn check(root: &Path) -> Result<Tour> {
    let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let (stops, names) = page
        .split_once("\n## Functions\n")
        .context("no Functions")?;
    let chapters = chapters(&root.join("book"))?;
    let without = check_stops(stops, &chapters)?;
    let listed = fs::read_to_string(root.join(FUNCTIONS)).context(FUNCTIONS)?;
    let functions = check_functions(names, &listed, &chapters)?;
    let stops = rows(stops).count();
    Ok(Tour {
        stops,
        without,
        functions,
    })
}

/// All chapters by their place below `book/`.
fn chapters(book: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![book.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                let text = fs::read_to_string(&path)?;
                all.insert(path.strip_prefix(book)?.to_owned(), text);
            }
        }
    }
    Ok(all)
}

/// The rows of a table, as three cells, without its head.
fn rows(text: &str) -> impl Iterator<Item = [&str; 3]> {
    text.lines().filter_map(|line| {
        let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let cells: Vec<_> = cells.splitn(3, " | ").collect();
        let row: [&str; 3] = cells.try_into().ok()?;
        (!["stop", "function"].contains(&row[0])).then_some(row)
    })
}

fn check_stops(text: &str, chapters: &BTreeMap<PathBuf, String>) -> Result<Vec<String>> {
    let wanted = STOPS.iter().flat_map(|(letter, numbers)| {
        numbers
            .iter()
            .map(move |number| format!("{letter}:{number:03}"))
    });
    let found: Vec<_> = rows(text).map(|row| row[0].to_owned()).collect();
    let wanted: Vec<_> = wanted.collect();
    for stop in &wanted {
        ensure!(found.contains(stop), "stop {stop} is not in {PAGE}");
    }
    ensure!(
        found == wanted,
        "{PAGE} has other stops, or in another order"
    );
    let mut without = Vec::new();
    for [stop, _, here] in rows(text) {
        match here.strip_prefix("none: ") {
            Some(reason) => {
                ensure!(reason.len() > 10, "stop {stop} has no reason");
                without.push(stop.to_owned());
            }
            None => check_links(here, chapters).with_context(|| format!("stop {stop}"))?,
        }
    }
    let count = without.len();
    ensure!(
        count <= MOST_WITHOUT,
        "{count} stops have no counterpart: {without:?}"
    );
    Ok(without)
}

fn check_functions(
    text: &str,
    listed: &str,
    chapters: &BTreeMap<PathBuf, String>,
) -> Result<usize> {
    let mut elsewhere = BTreeMap::new();
    for [name, here, because] in rows(text) {
        let name = name.trim_matches('`');
        ensure!(
            listed.lines().any(|line| line == name),
            "{name} is not in {FUNCTIONS}"
        );
        ensure!(because.len() > 7, "{name}: no reason");
        check_links(here, chapters).context(name.to_owned())?;
        elsewhere.insert(name, here);
    }
    let mut found = 0;
    for name in listed.lines() {
        let named = chapters
            .iter()
            .filter(|(path, _)| !PAGE.ends_with(&*path.to_string_lossy()))
            .any(|(_, text)| has_word(text, name));
        if named {
            found += 1;
        } else if !elsewhere.contains_key(name) {
            bail!("the original's {name} is in no chapter, nor in the table of {PAGE}");
        }
    }
    Ok(found)
}

/// Whether a text has this name in it, and not as a part of another.
fn has_word(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + name.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

/// There must be a link, and each must lead to a chapter and to a heading in it.
fn check_links(text: &str, chapters: &BTreeMap<PathBuf, String>) -> Result<()> {
    let mut links = 0;
    for (_, rest) in text
        .match_indices("](")
        .map(|(at, open)| text.split_at(at + open.len()))
    {
        let link = rest.split(')').next().unwrap_or_default();
        let (path, heading) = link
            .split_once('#')
            .map_or((link, None), |(p, h)| (p, Some(h)));
        let place = path
            .strip_prefix("../")
            .with_context(|| format!("the link {link} leads out of the book"))?;
        let chapter = chapters
            .get(Path::new(place))
            .with_context(|| format!("the link {link} leads to no chapter"))?;
        if let Some(heading) = heading {
            let there = headings(chapter).any(|there| there == heading);
            ensure!(there, "the link {link} leads to no heading of {place}");
        }
        links += 1;
    }
    ensure!(links > 0, "no link in {text:?}");
    Ok(())
}

/// The names by which mdBook can be told to go to a heading.
pub(crate) fn headings(chapter: &str) -> impl Iterator<Item = String> {
    let mut inside = false;
    chapter.lines().filter_map(move |line| {
        if line.starts_with("```") {
            inside = !inside;
        }
        let text = line.trim_start_matches('#').strip_prefix(' ')?;
        (!inside && line.starts_with('#')).then(|| {
            let kept = text.trim().chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || "_-".contains(c) => Some(c.to_ascii_lowercase()),
                _ => None,
            });
            kept.collect()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::root;

    #[test]
    fn every_stop_and_every_function_has_its_place() {
        let tour = check(&root()).unwrap();
        assert_eq!(tour.stops, 145);
        assert!(tour.functions > 15, "{tour:?}");
    }

    fn book() -> BTreeMap<PathBuf, String> {
        let text =
            "# One\n\n```text\n## No heading\n```\n\n## A word, or `two`'s\n\nkill_guests()\n";
        [(PathBuf::from("host/one.md"), text.to_owned())].into()
    }

    #[test]
    fn a_dead_link_is_found() {
        let book = book();
        let says = |text: &str| {
            let said = check_links(text, &book);
            said.map_err(|error| error.to_string())
        };
        assert_eq!(says("[x](../host/one.md)"), Ok(()));
        assert_eq!(says("[x](../host/one.md#a-word-or-twos), y"), Ok(()));
        for (text, why) in [
            ("[x](../host/two.md)", "no chapter"),
            ("[x](../host/one.md#no-heading)", "no heading"),
            ("[x](../host/one.md), [y](one.md)", "out of the book"),
            ("nothing", "no link"),
        ] {
            assert!(says(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_found() {
        let book = book();
        let names = |text, listed| check_functions(text, listed, &book).is_ok();
        assert!(!names("", "kill_guest\n"), "a name in another name");
        assert!(names("", "kill_guests\n"));
        let row = "| `kill_guest` | [x](../host/one.md) | it is `kill` |\n";
        assert!(names(row, "kill_guest\n"));
        assert!(!names(row, "kill_guests\n"), "a name of no list");
        let page = fs::read_to_string(root().join(PAGE)).unwrap();
        let chapters = chapters(&root().join("book")).unwrap();
        let (stops, _) = page.split_once("\n## Functions\n").unwrap();
        assert!(check_stops(stops, &chapters).is_ok());
        let less = stops.replacen("| H:330 |", "| H:331 |", 1);
        assert!(check_stops(&less, &chapters).is_err());
        let mut many = stops.to_owned();
        for stop in [
            "H:100", "H:110", "H:120", "H:130", "H:200", "H:210", "S:100",
        ] {
            let at = many.find(&format!("| {stop} |")).unwrap();
            let end = at + many[at..].find('\n').unwrap();
            many.replace_range(at..end, &format!("| {stop} | x | none: for no reason |"));
        }
        assert!(check_stops(&many, &chapters).is_err());
    }
}
