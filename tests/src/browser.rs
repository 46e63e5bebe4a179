// SPDX-License-Identifier: GPL-2.0-only

//! The rendered book in a browser: every page in both themes and three widths.
//!
//! What is looked at, and how, is in `tests/browser/check.mjs`; this chooses the pages, renders
//! the book, and reports.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::{place, root, target_directory};
use crate::report::Report;
use crate::sample;

/// The name of this section.
pub const SECTION: &str = "browser";

/// Tests of the book as a whole.
const WHOLE: [&str; 7] = [
    "@search",
    "@themes",
    "@no-script",
    "@to-and-fro",
    "@glossary",
    "@trip",
    "@trip-plain",
];

/// An ordinary run looks at so many pages, and makes so many of those tests: it has half a minute.
const SAMPLE: usize = 2;
const TESTS: usize = 3;

/// Runs the section.
///
/// # Errors
///
/// When its logs cannot be kept, or the book does not render.
pub fn test(report: &mut Report, commit: &str, long: bool) -> Result<()> {
    if report.is_filtered() && !report.names(SECTION) {
        return Ok(());
    }
    report.section("browser: the pages as a reader sees them");
    let (browser, driver) = match tools() {
        Ok(tools) => tools,
        Err(why) if long => {
            let why = format!("{why:#}");
            let log = report.keep(SECTION, "tools", why.as_bytes())?;
            report.fail("browser/tools", &why, &log);
            return Ok(());
        }
        Err(why) => {
            report.skip("browser/pages", &format!("{why:#}"));
            return Ok(());
        }
    };
    let book = target_directory().join("test-book");
    render(&book)?;
    let html = book.join("html");
    let all = pages(&html)?;
    let whole = long || report.is_filtered();
    let tests: Vec<String> = WHOLE.iter().map(|name| (*name).to_owned()).collect();
    let names = if whole {
        tests.into_iter().chain(all).collect()
    } else {
        let (of_tests, of_pages) = (tests.len(), all.len());
        let tests = take(&tests.iter().collect::<Vec<_>>(), TESTS, commit);
        let pages = chosen(&all, commit);
        report.remark(&format!(
            "{} of {of_pages} pages, {} of {of_tests} tests of the whole; all with --long",
            pages.len(),
            tests.len()
        ));
        [tests, pages].concat()
    };
    let names: Vec<String> = names
        .into_iter()
        .filter(|name| report.wants(SECTION, name.trim_start_matches('@')))
        .collect();
    let mut check = Command::new("node");
    check
        .arg(root().join("tests/browser/check.mjs"))
        .args([&html, &browser, &driver]);
    check.arg(target_directory().join("pictures"));
    look(report, &mut check, &names)?;
    if whole && report.wants(SECTION, "pdf") {
        match pdf(&html) {
            Ok(remark) => {
                report.remark(&remark);
                report.pass("browser/pdf");
            }
            Err(error) => {
                let why = format!("{error:#}");
                let log = report.keep(SECTION, "pdf", why.as_bytes())?;
                report.fail("browser/pdf", &why, &log);
            }
        }
    }
    Ok(())
}

/// Prints the book into a PDF, twice, and reads it: each chapter is in it with its last section.
fn pdf(html: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let print = |name: &str| -> Result<PathBuf> {
        let file = folder.path().join(name);
        let output = Command::new(root().join("setup/pdf"))
            .args([html, &file])
            .output()
            .context("setup/pdf")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        Ok(file)
    };
    let file = print("book.pdf")?;
    let bytes = fs::read(&file)?;
    ensure!(
        bytes == fs::read(print("again.pdf")?)?,
        "the PDF has other bytes the second time"
    );
    let has = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    ensure!(has("/Outlines"), "the PDF has no outline");
    for address in ["http://127.0.0.1", "file:///"] {
        ensure!(!has(address), "the PDF has links to {address}");
    }
    let output = Command::new("pdftotext")
        .arg(&file)
        .arg("-")
        .output()
        .context("pdftotext, of poppler-utils")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.is_empty(),
        "pdftotext: {said}"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let pages = text.matches('\u{c}').count();
    let text = words(&text);
    let book = tangle::Book::load(&root());
    for (_, chapter) in book.chapters() {
        let headings = chapter.body().lines().filter(|line| line.starts_with('#'));
        let headings: Vec<&str> = headings.filter(|line| !line.starts_with("#[")).collect();
        let plain = |line: &&str| words(&line.trim_matches(['#', ' ']).replace('`', ""));
        // In code such a line is something else; the first one never is.
        let first = headings.first().map(plain).unwrap_or_default();
        ensure!(
            !first.is_empty() && text.contains(&first),
            "{}: {first} is not in the PDF",
            chapter.path
        );
        let last = headings.iter().rfind(|line| line.starts_with("## "));
        if let Some(last) = last.map(plain) {
            ensure!(
                text.contains(&last),
                "{}: {last} is not in the PDF",
                chapter.path
            );
        }
    }
    Ok(format!("{pages} pages in {} KiB", bytes.len() >> 10))
}

/// A text in which all blanks are alike.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The browser, and the folder of what drives it.
fn tools() -> Result<(PathBuf, PathBuf)> {
    let output = Command::new(root().join("setup/browser.sh"))
        .arg("show")
        .output()
        .context("setup/browser.sh")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (browser, driver) = text.trim().split_once('\n').context("half an answer")?;
    Ok((browser.into(), driver.into()))
}

/// The command that renders the book.
pub fn mdbook() -> PathBuf {
    match place("LGUEST_TOOLS") {
        Ok(tools) if tools.join("mdbook").is_file() => tools.join("mdbook"),
        _ => "mdbook".into(),
    }
}

/// Renders the book into a folder.
///
/// # Errors
///
/// When that fails.
pub fn render(to: &Path) -> Result<()> {
    let mut build = Command::new(mdbook());
    build.current_dir(root()).arg("build").arg("--dest-dir");
    let output = build.arg(to).output().context("mdbook")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the book does not render:\n{said}");
    Ok(())
}

/// All pages, by their paths from the top of the rendered book.
fn pages(html: &Path) -> Result<Vec<String>> {
    let mut pages = Vec::new();
    let mut folders = vec![html.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "html") {
                let page = path.strip_prefix(html)?.to_string_lossy().into_owned();
                // The first is made for an unknown address; the second stands inside of others.
                if page != "404.html" && page != "toc.html" {
                    pages.push(page);
                }
            }
        }
    }
    pages.sort();
    ensure!(pages.len() > 1, "no pages in {}", html.display());
    Ok(pages)
}

/// The pages that an ordinary run looks at: one that is a chapter, one that shows a file.
fn chosen(all: &[String], commit: &str) -> Vec<String> {
    // The lists and the page for the printer are as long as the book.
    let long = [
        "audit.html",
        "chunks.html",
        "files.html",
        "names.html",
        "print.html",
    ];
    let (files, chapters): (Vec<&String>, Vec<&String>) = all
        .iter()
        .filter(|page| !long.contains(&page.as_str()))
        .partition(|page| page.starts_with("code/"));
    let mut chosen = take(&chapters, SAMPLE / 2, commit);
    chosen.extend(take(&files, SAMPLE / 2, commit));
    chosen
}

/// At most so many of some names, and at least one; which of them, the commit says.
fn take(names: &[&String], count: usize, commit: &str) -> Vec<String> {
    let every = (names.len() / count.max(1)) as u64;
    let taken = names
        .iter()
        .filter(|name| sample::chosen(commit, name, every));
    let mut taken: Vec<String> = taken.take(count).map(|name| (*name).clone()).collect();
    if taken.is_empty() {
        taken.extend(names.first().map(|name| (*name).clone()));
    }
    taken
}

/// Has the pages looked at, and reports what is found.
fn look(report: &mut Report, check: &mut Command, names: &[String]) -> Result<()> {
    let mut check = check
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("node")?;
    let mut asked = check.stdin.take().context("no stdin")?;
    // A pipe holds it, and what goes wrong with it shows below: answers are missing.
    let _ = asked.write_all((names.join("\n") + "\n").as_bytes());
    drop(asked);
    let mut verdicts: Vec<(String, bool, String)> = Vec::new();
    let answers = BufReader::new(check.stdout.take().context("no stdout")?);
    for line in answers.lines() {
        let line = line?;
        if let Some(name) = line.strip_prefix("ok ") {
            verdicts.push((name.to_owned(), true, String::new()));
        } else if let Some(name) = line.strip_prefix("FAIL ") {
            verdicts.push((name.to_owned(), false, String::new()));
        } else if let Some((.., why)) = verdicts.last_mut() {
            why.push_str(line.trim_start());
            why.push('\n');
        }
    }
    let output = check.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let mut passed = 0;
    for (name, good, why) in &verdicts {
        let name = name.trim_start_matches('@');
        if *good && names.len() > 20 {
            passed += 1;
        } else if *good {
            report.pass(&format!("{SECTION}/{name}"));
        } else {
            let log = report.keep(SECTION, name, why.as_bytes())?;
            report.fail(&format!("{SECTION}/{name}"), why, &log);
        }
    }
    if passed > 0 {
        report.pass_many("browser/pages", passed);
    }
    // A page without a word about it is not one that is in order.
    let silent = names
        .iter()
        .filter(|name| !verdicts.iter().any(|(said, ..)| said == *name));
    for name in silent {
        let name = name.trim_start_matches('@');
        let log = report.keep(SECTION, name, said.as_bytes())?;
        report.fail(&format!("{SECTION}/{name}"), "nothing was said of it", &log);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_has_one_of_each_kind() {
        let chapters = (0..90).map(|n| format!("host/{n}.html"));
        let files = (0..200).map(|n| format!("code/{n}.rs.html"));
        let all: Vec<String> = chapters.chain(files).collect();
        let mut met = std::collections::BTreeSet::new();
        for commit in 0..200 {
            let taken = chosen(&all, &format!("commit {commit}"));
            assert_eq!(taken.len(), 2, "{taken:?}");
            assert_eq!(
                taken
                    .iter()
                    .filter(|page| page.starts_with("code/"))
                    .count(),
                1
            );
            met.extend(taken);
        }
        assert!(met.len() > 80, "only {} pages get their turn", met.len());
    }
}
