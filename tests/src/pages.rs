// SPDX-License-Identifier: GPL-2.0-only

//! What every page of the book has: a drawing, descriptions for those who cannot see it, questions
//! at the end of each part, and terms that lead to where they are explained.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::artifacts::root;
use crate::tour::headings;

/// The order of the chapters.
const SUMMARY: &str = "SUMMARY.md";
/// The list of terms.
const GLOSSARY: &str = "appendix/glossary.md";
/// How many questions there are to a part.
const QUESTIONS: usize = 10;

fn book() -> PathBuf {
    root().join("book")
}

/// The chapters that the summary names, in its order.
fn chapters() -> Result<Vec<String>> {
    let summary = fs::read_to_string(book().join(SUMMARY))?;
    let links = summary.lines().filter_map(|line| {
        let (_, rest) = line.split_once("](")?;
        let (path, _) = rest.split_once(')')?;
        path.ends_with(".md").then(|| path.to_owned())
    });
    Ok(links.collect())
}

/// Whether there is a picture or a drawing of lines and arrows.
fn has_drawing(text: &str) -> bool {
    let drawn = |fence: &str| {
        let signs = ["+--", "-->", "<--", "--+", " | ", "|\n", "---"];
        let lines = fence.lines().filter(|line| {
            let line = format!("{line}\n");
            signs.iter().any(|sign| line.contains(sign))
        });
        lines.count() >= 2
    };
    let fences = text.split("\n```text\n").skip(1);
    let mut fences = fences.filter_map(|rest| Some(rest.split_once("\n```")?.0));
    // What is included was drawn by a program, from a trace for example.
    let pictures = ["<svg ", ".svg", "{{#include "];
    pictures.iter().any(|picture| text.contains(picture)) || fences.any(drawn)
}

/// Looks for a title and a description in every picture.
fn check_pictures(text: &str) -> Result<usize> {
    let pictures: Vec<_> = text.split("<svg ").skip(1).collect();
    for picture in &pictures {
        let (picture, _) = picture.split_once("</svg>").context("it has no end")?;
        let attribute = |name: &str| {
            let (_, rest) = picture.split_once(&format!(" {name}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        for (name, element) in [("aria-labelledby", "title"), ("aria-describedby", "desc")] {
            let id = attribute(name).with_context(|| format!("no {name}"))?;
            let there = picture.contains(&format!("<{element} id=\"{id}\">"));
            ensure!(
                there,
                "{name} is {id:?}, and there is no {element} of that id"
            );
        }
    }
    Ok(pictures.len())
}

/// Whether the links of a page lead to chapters and to headings in them. Gives how many there are.
fn check_links(page: &str, text: &str) -> Result<usize> {
    let folder = Path::new(page).parent().context("no folder")?;
    let mut links = 0;
    for (_, rest) in text
        .match_indices("](")
        .map(|(at, _)| text.split_at(at + 2))
    {
        let link = rest.split(')').next().unwrap_or_default();
        let (path, heading) = link.split_once('#').unwrap_or((link, ""));
        let chapter = match path {
            "" => text.to_owned(),
            path => fs::read_to_string(book().join(folder).join(path))
                .with_context(|| format!("{page} names {link}"))?,
        };
        let there = heading.is_empty() || headings(&chapter).any(|there| there == heading);
        ensure!(there, "{page}: the link {link} leads to no heading");
        links += 1;
    }
    Ok(links)
}

/// The terms of the glossary, each with what is said of it.
fn terms(text: &str) -> Vec<(&str, &str)> {
    let lines: Vec<_> = text.lines().collect();
    let pairs = lines.windows(2);
    pairs
        .filter_map(|pair| Some((pair[0], pair[1].strip_prefix(": ")?)))
        .collect()
}

fn check_terms(text: &str) -> Result<usize> {
    let terms = terms(text);
    for (term, said) in &terms {
        ensure!(!term.is_empty(), "a term without a name: {said}");
        ensure!(check_links(GLOSSARY, said)? > 0, "{term} leads nowhere");
    }
    for pair in terms.windows(2) {
        let [one, next] = [pair[0].0.to_lowercase(), pair[1].0.to_lowercase()];
        ensure!(one < next, "{next} stands behind {one}");
    }
    Ok(terms.len())
}

fn check_questions(page: &str, text: &str) -> Result<()> {
    let answers: Vec<_> = text.split("<summary>Answer</summary>").skip(1).collect();
    ensure!(
        answers.len() == QUESTIONS,
        "{page} has {} answers",
        answers.len()
    );
    for (index, answer) in answers.iter().enumerate() {
        let asked = text.contains(&format!("\n{}. ", index + 1));
        ensure!(asked, "{page}: no question {}", index + 1);
        let (answer, _) = answer.split_once("</details>").context("no end")?;
        ensure!(check_links(page, answer)? > 0, "{page}: {answer}");
    }
    Ok(())
}

#[test]
fn every_chapter_has_a_drawing_and_every_picture_a_description() {
    let (mut pictures, mut without) = (0, Vec::new());
    for page in chapters().unwrap() {
        let text = fs::read_to_string(book().join(&page)).unwrap();
        // Lists have none.
        let list = page.ends_with("/check.md") || page.starts_with("appendix/");
        pictures += check_pictures(&text).with_context(|| page.clone()).unwrap();
        if !list && !has_drawing(&text) {
            without.push(page);
        }
    }
    assert!(without.is_empty(), "no drawing in {without:?}");
    assert!(pictures > 10, "{pictures} pictures");
    // None of this is said of everything.
    assert!(!has_drawing("\n```text\n$ ls\none | two\n```\n"));
    assert!(check_pictures("<svg aria-labelledby=\"a\"><title id=\"a\"></title></svg>").is_err());
}

#[test]
fn every_part_has_ten_questions() {
    let pages = chapters().unwrap();
    let checks: Vec<_> = pages
        .iter()
        .filter(|page| page.ends_with("/check.md"))
        .collect();
    assert_eq!(checks.len(), 8, "{checks:?}");
    for page in checks {
        let text = fs::read_to_string(book().join(page)).unwrap();
        check_questions(page, &text).unwrap();
        let other = text.replacen("</details>", "", 1).replacen("(", "", 1);
        assert!(check_questions(page, &other).is_err(), "{page}");
    }
}

#[test]
fn every_term_leads_to_its_chapter() {
    let text = fs::read_to_string(book().join(GLOSSARY)).unwrap();
    assert!(check_terms(&text).unwrap() > 100);
    for (from, to) in [
        ("#what-came-back)", "#what-went)"),
        ("../host/roots.md", "../host/trees.md"),
        ("\nwalk\n", "\nAAA\n"),
    ] {
        let other = text.replacen(from, to, 1);
        assert_ne!(other, text, "{from}");
        assert!(check_terms(&other).is_err(), "{from}");
    }
}
