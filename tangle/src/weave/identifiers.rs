// SPDX-License-Identifier: GPL-2.0

//! The page of all names: what the code defines, where, and where it is used.
//!
//! Definitions are found by how a line begins, which is enough for code that rustfmt has laid out;
//! uses by the name alone, so only those of names that are defined once are said.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::index::{STUB, heading};
use super::links::{Links, NAMES_PAGE};
use super::words::{prose, text};
use crate::book::{Book, Output, OutputId, PartId};
use crate::parse::LineKind;

/// How many uses of a name are listed.
const USES: usize = 8;

/// The page, before it is filled.
pub(super) fn stub() -> String {
    format!(
        "# All names\n\nFunctions, types, constants, macros and labels that the code of this book \
         defines, without\nthose of tests: the piece that defines each, the line of its file, and, \
         where a name is\ndefined only once, the pieces that it occurs in.\n\n{STUB}\n"
    )
}

/// Something that is defined.
struct Definition<'a> {
    name: &'a str,
    kind: &'static str,
    /// The type whose method it is.
    owner: Option<&'a str>,
    part: PartId,
    output: OutputId,
    line: u32,
}

/// All names.
pub(super) fn all(book: &Book, links: &Links<'_>) -> String {
    let mut found = Vec::new();
    for (id, output) in (0..).map(OutputId).zip(book.outputs()) {
        definitions(book, id, output, &mut found);
    }
    // A chunk that lands twice defines twice.
    found.sort_by_cached_key(|d| {
        let letters = d.name.trim_start_matches('_').to_ascii_lowercase();
        (letters, d.name, d.output, d.line)
    });
    let uses = uses(book, &found);
    let mut out = String::new();
    let letter = |d: &Definition<'_>| {
        let first = d.name.trim_start_matches('_').chars().next();
        first.map_or('_', |c| c.to_ascii_uppercase())
    };
    let mut rest = found.as_slice();
    let mut open = None;
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|other| other.name == first.name).count();
        let (same, after) = rest.split_at(count);
        rest = after;
        let initial = letter(first);
        if open != Some(initial) {
            if open.is_some() {
                out.push_str("</dl>\n");
            }
            out.push_str(&heading(2, &format!("letter-{initial}"), &initial.to_string()));
            out.push_str("<dl class=\"chunk-index\">");
            open = Some(initial);
        }
        entry(book, links, same, uses.get(first.name), &mut out);
    }
    if open.is_some() {
        out.push_str("</dl>\n");
    }
    out
}

fn entry(
    book: &Book,
    links: &Links<'_>,
    same: &[Definition<'_>],
    uses: Option<&Vec<PartId>>,
    out: &mut String,
) {
    let _ = write!(out, "<dt><code>{}</code></dt><dd>", text(same[0].name));
    for (index, definition) in same.iter().enumerate() {
        out.push_str(if index > 0 { "<br>" } else { "" });
        let part = book.part(definition.part);
        let title = match &part.block.title {
            Some(title) => prose(&title.text),
            None => text(part.block.target.name()),
        };
        let owner = definition.owner.map(|owner| format!(" of <code>{}</code>", text(owner)));
        let _ = write!(
            out,
            "{}{}: <a href=\"{}\">{title}</a>, <a href=\"{}\">{}, line {}</a>",
            definition.kind,
            owner.unwrap_or_default(),
            links.to_part(NAMES_PAGE, definition.part),
            links.to_line(NAMES_PAGE, definition.output, definition.line),
            text(&book.output(definition.output).path),
            definition.line,
        );
    }
    let uses = uses.map(Vec::as_slice).unwrap_or_default();
    if uses.is_empty() {
        out.push_str("</dd>");
        return;
    }
    out.push_str("<br>used in ");
    for (index, &part) in uses.iter().take(USES).enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        let link = links.to_part(NAMES_PAGE, part);
        let name = text(book.chunk(book.part(part).chunk).target.name());
        let _ = write!(out, "{comma}<a href=\"{link}\">{name}</a>");
    }
    if uses.len() > USES {
        let _ = write!(out, " and {} more", uses.len() - USES);
    }
    out.push_str("</dd>");
}

/// Finds what a file defines.
fn definitions<'a>(
    book: &'a Book,
    id: OutputId,
    output: &'a Output,
    found: &mut Vec<Definition<'a>>,
) {
    let root = book.chunk(output.chunk).parts[0];
    let find: fn(&str) -> Option<(&'static str, &str)> =
        match book.part(root).block.language.as_str() {
            "rust" => rust,
            "x86asm" | "asm" | "gas" => label,
            _ => return,
        };
    // What the lines are inside of: its column and its name; a test module has none.
    let mut inside: Option<(usize, Option<&str>)> = None;
    let mut test = false;
    let mut pieces = output.pieces.iter().peekable();
    let mut part = root;
    for (number, line) in (1..).zip(output.text.lines()) {
        if let Some(piece) = pieces.next_if(|piece| piece.first == number) {
            part = piece.part;
        }
        let body = line.trim_start();
        let column = line.len() - body.len();
        if body.is_empty() || body.starts_with("//") {
            continue;
        }
        if let Some((at, _)) = inside
            && column <= at
            && body.starts_with('}')
        {
            inside = None;
        }
        if body.starts_with("#[") {
            test |= body.starts_with("#[test]") || body.starts_with("#[cfg(test)]");
            continue;
        }
        let tested = std::mem::take(&mut test);
        let depth = inside.map_or(0, |(at, _)| at + 4);
        let owner = inside.and_then(|(_, owner)| owner);
        let in_tests = matches!(inside, Some((_, None)));
        if column == depth
            && !tested
            && !in_tests
            && let Some((kind, name)) = find(body)
        {
            found.push(Definition { name, kind, owner, part, output: id, line: number });
        }
        if inside.is_none() && body.ends_with('{') {
            if tested && body.starts_with("mod ") {
                inside = Some((column, None));
            } else if let Some(owner) = owner_of(body) {
                inside = Some((column, Some(owner)));
            }
        }
    }
}

/// The type that `impl A {`, `impl B for A<'_> {` or `trait A {` is about.
fn owner_of(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").or(line.strip_prefix("pub(crate) ")).unwrap_or(line);
    let line = line.strip_prefix("unsafe ").unwrap_or(line);
    let rest = line.strip_prefix("impl").or(line.strip_prefix("trait "))?;
    // Parameters of the implementation stand before what it is for.
    let rest = match rest.strip_prefix('<') {
        Some(inner) => {
            let mut depth = 1;
            let end = inner.find(|c| {
                match c {
                    '<' => depth += 1,
                    '>' => depth -= 1,
                    _ => {}
                }
                depth == 0
            })?;
            &inner[end + 1..]
        }
        None => rest,
    };
    let name = rest.split_once(" for ").map_or(rest, |(_, name)| name).trim_start();
    let name = name.trim_start_matches('&');
    let name = &name[..name.find(|c: char| !part_of_path(c)).unwrap_or(name.len())];
    let name = name.trim_end_matches(':');
    let name = name.rsplit("::").next().unwrap_or(name);
    (!name.is_empty()).then_some(name)
}

fn part_of_path(c: char) -> bool {
    part_of_name(c) || c == ':'
}

fn part_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What a line of Rust defines.
fn rust(line: &str) -> Option<(&'static str, &str)> {
    let mut rest = line;
    if let Some(after) = rest.strip_prefix("pub") {
        rest = match after.strip_prefix('(') {
            Some(inner) => inner.split_once(')')?.1,
            None => after,
        };
        rest = rest.strip_prefix(' ')?;
    }
    for word in ["const fn", "async fn", "unsafe fn", "const unsafe fn", "unsafe trait"] {
        if let Some(after) = rest.strip_prefix(word) {
            let kind = if word.ends_with("fn") { "function" } else { "trait" };
            return named(kind, after.strip_prefix(' ')?);
        }
    }
    if let Some(after) = rest.strip_prefix("unsafe extern \"C\" fn ") {
        return named("function", after);
    }
    if let Some(after) = rest.strip_prefix("extern \"C\" fn ") {
        return named("function", after);
    }
    if let Some(after) = rest.strip_prefix("static mut ") {
        return named("static", after);
    }
    for (word, kind) in [
        ("fn ", "function"),
        ("struct ", "struct"),
        ("enum ", "enum"),
        ("union ", "union"),
        ("trait ", "trait"),
        ("type ", "type"),
        ("const ", "constant"),
        ("static ", "static"),
        ("mod ", "module"),
        ("macro_rules! ", "macro"),
    ] {
        if let Some(after) = rest.strip_prefix(word) {
            return named(kind, after);
        }
    }
    None
}

/// The label that a line of assembler begins with.
fn label(line: &str) -> Option<(&'static str, &str)> {
    let (name, _) = line.split_once(':')?;
    let good = name.chars().all(part_of_name) && !name.starts_with(|c: char| c.is_ascii_digit());
    (good && !name.is_empty()).then_some(("label", name))
}

fn named<'a>(kind: &'static str, rest: &'a str) -> Option<(&'static str, &'a str)> {
    let name = &rest[..rest.find(|c| !part_of_name(c)).unwrap_or(rest.len())];
    (!name.is_empty() && name != "_").then_some((kind, name))
}

/// The parts that names occur in that are defined once, beside the one that defines them.
fn uses<'a>(book: &Book, found: &[Definition<'a>]) -> HashMap<&'a str, Vec<PartId>> {
    let mut once: HashMap<&'a str, (Option<PartId>, Vec<PartId>)> = HashMap::new();
    for definition in found {
        let entry = once.entry(definition.name).or_insert((Some(definition.part), Vec::new()));
        if entry.0 != Some(definition.part) {
            entry.0 = None;
        }
    }
    for (id, part) in (0..).map(PartId).zip(book.parts()) {
        if !part.active
            || !matches!(part.block.language.as_str(), "rust" | "x86asm" | "asm" | "gas")
        {
            continue;
        }
        let source = book.source(part.source).text.as_str();
        for line in &part.block.lines {
            let body = source[line.span.clone()].trim_start();
            if body.starts_with("//") || matches!(line.kind, LineKind::Reference(_)) {
                continue;
            }
            for word in body.split(|c| !part_of_name(c)).filter(|word| word.len() > 2) {
                if let Some((Some(home), parts)) = once.get_mut(word)
                    && *home != id
                    && parts.last() != Some(&id)
                {
                    parts.push(id);
                }
            }
        }
    }
    once.into_iter().map(|(name, (_, parts))| (name, parts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_define() {
        for (line, wanted) in [
            ("fn a(x: u8) {", Some(("function", "a"))),
            ("pub(super) const fn b<T>() {", Some(("function", "b"))),
            ("pub unsafe fn c() {", Some(("function", "c"))),
            ("unsafe extern \"C\" fn d() {", Some(("function", "d"))),
            ("pub struct E<'a> {", Some(("struct", "E"))),
            ("const F: u8 = 1;", Some(("constant", "F"))),
            ("const _: () = assert!(true);", None),
            ("static mut G: u8 = 0;", Some(("static", "G"))),
            ("macro_rules! h {", Some(("macro", "h"))),
            ("pub mod i;", Some(("module", "i"))),
            ("pub use j::K;", None),
            ("let fn_ = 1;", None),
            ("x.fn_name();", None),
        ] {
            assert_eq!(rust(line), wanted, "{line}");
        }
        assert_eq!(label("start:\tmov %rax, %rbx"), Some(("label", "start")));
        assert_eq!(label("1:"), None);
        assert_eq!(label(".Lx:"), None);
    }

    #[test]
    fn whose_methods_they_are() {
        for (line, wanted) in [
            ("impl A {", Some("A")),
            ("impl<T: Into<u8>> b::C<T> {", Some("C")),
            ("unsafe impl Send for D {", Some("D")),
            ("impl<'a> Iterator for &E<'a> {", Some("E")),
            ("pub trait F: G {", Some("F")),
            ("fn x() {", None),
        ] {
            assert_eq!(owner_of(line), wanted, "{line}");
        }
    }
}
