// SPDX-License-Identifier: GPL-2.0

//! Links from the first use of a term in each chapter to the glossary.
//!
//! The glossary is a chapter with definition lists; `book.toml` names it. A title of a list may
//! hold several terms, with commas between them. Where a chapter uses one of them for the first
//! time in its text, the word becomes a quiet link, whose title is what the glossary says. Words in
//! headings, in links, in code and in HTML stay as they are.
//!
//! Some terms are everyday words as well, and most of their uses mean nothing special. The glossary
//! lists them in a comment, `<!-- only in italics: line, record -->`, and they are linked where a
//! chapter has them in italics. A chapter that means something else by a term says so in a comment
//! of its own, `<!-- not as in the glossary: vector -->`, and has no link for it from there on.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use super::links::{Links, relative};
use super::words::push_text;
use super::{Failure, Page};
use crate::book::Book;
use crate::scan;
use crate::source::SourceId;

/// What the comment begins with that lists the everyday words.
const ONLY_IN_ITALICS: &str = "only in italics:";
/// And the one in a chapter that means something else.
const SOMETHING_ELSE: &str = "not as in the glossary:";

/// The terms of a book.
pub(super) struct Glossary {
    chapter: SourceId,
    entries: Vec<Entry>,
    /// The forms by their first word, in small letters; longer ones first.
    forms: HashMap<String, Vec<Form>>,
}

/// What is said together: one or several terms.
struct Entry {
    anchor: String,
    meaning: String,
}

/// A term as it may stand in a text.
struct Form {
    text: String,
    entry: usize,
    /// It is linked in italics only.
    everyday: bool,
}

/// A place in a chapter's text, and what is to be put there.
pub(super) type Insertion = (usize, String);

impl Glossary {
    /// Reads the chapter that is the glossary.
    pub(super) fn of(book: &Book, pages: &[Page], path: &Path) -> Result<Self, Failure> {
        let failed = |why: String| Failure::Glossary(path.display().to_string(), why);
        let chapter = (0..)
            .map(SourceId)
            .zip(pages)
            .find(|(_, page)| page.path == path)
            .ok_or_else(|| failed("is no chapter of the book".to_owned()))?
            .0;
        let mut glossary = Self { chapter, entries: Vec::new(), forms: HashMap::new() };
        let mut everyday: Vec<String> = Vec::new();
        let mut titles: Vec<(String, usize)> = Vec::new();
        let (mut title, mut meaning) = (None, None);
        let (mut links, mut html) = (0, String::new());
        for event in Parser::new_ext(&book.source(chapter).text, scan::options()) {
            let text = match event {
                Event::Start(Tag::DefinitionListTitle) => {
                    title = Some(String::new());
                    continue;
                }
                Event::End(TagEnd::DefinitionListTitle) => {
                    let name = title.take().unwrap_or_default();
                    let entry = glossary.entries.len();
                    titles.extend(name.split(',').map(|term| (term.trim().to_owned(), entry)));
                    glossary.entries.push(Entry { anchor: anchor(&name), meaning: String::new() });
                    continue;
                }
                Event::Start(Tag::DefinitionListDefinition) => {
                    meaning = Some(String::new());
                    continue;
                }
                Event::End(TagEnd::DefinitionListDefinition) => {
                    let text = meaning.take().unwrap_or_default();
                    // What was in the brackets was a link to the chapter that explains it.
                    let text = text.trim().trim_end_matches("()").trim_end();
                    if let Some(entry) = glossary.entries.last_mut() {
                        text.clone_into(&mut entry.meaning);
                    }
                    continue;
                }
                Event::Start(Tag::Link { .. }) => {
                    links += 1;
                    continue;
                }
                Event::End(TagEnd::Link) => {
                    links -= 1;
                    continue;
                }
                Event::Start(Tag::HtmlBlock) => {
                    html.clear();
                    continue;
                }
                Event::Html(part) => {
                    html.push_str(&part);
                    continue;
                }
                Event::End(TagEnd::HtmlBlock) => {
                    everyday.extend(listed(&html, ONLY_IN_ITALICS));
                    continue;
                }
                Event::Text(text) | Event::Code(text) => text,
                Event::SoftBreak => " ".into(),
                _ => continue,
            };
            if links == 0
                && let Some(to) = title.as_mut().or(meaning.as_mut())
            {
                to.push_str(&text);
            }
        }
        for word in &everyday {
            if !titles.iter().any(|(term, _)| term == word) {
                return Err(failed(format!("has no term `{word}` to be linked in italics only")));
            }
        }
        for (term, entry) in titles {
            glossary.add(&term, entry, everyday.contains(&term));
        }
        Ok(glossary)
    }

    /// Adds a term in its forms: one, and many.
    fn add(&mut self, term: &str, entry: usize, everyday: bool) {
        if term.is_empty() {
            return;
        }
        let mut forms = vec![term.to_owned(), format!("{term}s"), format!("{term}es")];
        if let Some(stem) = term.strip_suffix('y') {
            forms.push(format!("{stem}ies"));
        }
        for text in forms {
            let first = text.split(' ').next().unwrap_or_default().to_lowercase();
            let same = self.forms.entry(first).or_default();
            same.push(Form { text, entry, everyday });
            same.sort_by_key(|form| std::cmp::Reverse(form.text.len()));
        }
    }

    /// What makes links of the first uses in a chapter, in the order of its text.
    pub(super) fn links(
        &self,
        book: &Book,
        links: &Links<'_>,
        chapter: SourceId,
    ) -> Vec<Insertion> {
        if chapter == self.chapter {
            return Vec::new();
        }
        let text = book.source(chapter).text.as_str();
        let mut scan = Scan {
            glossary: self,
            page: links.page(chapter),
            target: links.page(self.chapter),
            met: vec![false; self.entries.len()],
            run: String::new(),
            places: Vec::new(),
            insertions: Vec::new(),
        };
        let (mut closed, mut html, mut italics) = (0_usize, 0_usize, false);
        for (event, range) in Parser::new_ext(text, scan::options()).into_offset_iter() {
            match event {
                Event::Text(ref words) if closed == 0 && html == 0 => {
                    // What is written in another way than it is shown ends a word.
                    if text.get(range.clone()) == Some(words) {
                        scan.push(&text[range.clone()], range.start);
                    } else {
                        scan.end(italics);
                    }
                    continue;
                }
                Event::SoftBreak if closed == 0 && html == 0 => {
                    scan.push(" ", range.start);
                    continue;
                }
                _ => scan.end(italics),
            }
            match event {
                Event::Start(tag) if is_closed(&tag) => closed += 1,
                Event::End(tag) if is_closed_end(tag) => closed = closed.saturating_sub(1),
                Event::Start(Tag::Emphasis) => italics = true,
                Event::End(TagEnd::Emphasis) => italics = false,
                Event::InlineHtml(tag) if !tag.starts_with("<!") && !tag.ends_with("/>") => {
                    html = if tag.starts_with("</") { html.saturating_sub(1) } else { html + 1 };
                }
                Event::End(TagEnd::Paragraph) => html = 0,
                Event::Html(comment) => scan.leave(&listed(&comment, SOMETHING_ELSE)),
                _ => {}
            }
        }
        scan.end(false);
        scan.insertions
    }
}

/// The words in a comment that begins like this.
fn listed(html: &str, begin: &str) -> Vec<String> {
    let inner = html.trim().strip_prefix("<!--").and_then(|rest| rest.strip_suffix("-->"));
    let words = inner.and_then(|inner| inner.trim().strip_prefix(begin));
    let words = words.into_iter().flat_map(|words| words.split(','));
    words.map(|word| word.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The anchor that mdBook gives a title of a definition list.
fn anchor(title: &str) -> String {
    let letter = |c: char| match c {
        c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c),
        c if c.is_whitespace() => Some('-'),
        _ => None,
    };
    title.trim().to_lowercase().chars().filter_map(letter).collect()
}

/// Whether words inside of this are left alone.
fn is_closed(tag: &Tag<'_>) -> bool {
    matches!(
        tag,
        Tag::Heading { .. }
            | Tag::Link { .. }
            | Tag::Image { .. }
            | Tag::CodeBlock(_)
            | Tag::HtmlBlock
            | Tag::TableHead
            | Tag::DefinitionListTitle
            | Tag::MetadataBlock(_)
    )
}

fn is_closed_end(tag: TagEnd) -> bool {
    matches!(
        tag,
        TagEnd::Heading(_)
            | TagEnd::Link
            | TagEnd::Image
            | TagEnd::CodeBlock
            | TagEnd::HtmlBlock
            | TagEnd::TableHead
            | TagEnd::DefinitionListTitle
            | TagEnd::MetadataBlock(_)
    )
}

/// A chapter that is being read, word by word.
struct Scan<'a> {
    glossary: &'a Glossary,
    page: &'a str,
    target: &'a str,
    /// Which entries have been linked.
    met: Vec<bool>,
    /// Words that follow each other.
    run: String,
    /// Where pieces of them are: in `run`, and in the chapter's text.
    places: Vec<(usize, usize)>,
    insertions: Vec<Insertion>,
}

impl Scan<'_> {
    fn push(&mut self, text: &str, at: usize) {
        self.places.push((self.run.len(), at));
        self.run.push_str(text);
    }

    /// Looks through the words that were gathered; something else follows.
    fn end(&mut self, italics: bool) {
        let run = std::mem::take(&mut self.run);
        let mut at = 0;
        while let Some(start) = run[at..].find(char::is_alphanumeric).map(|next| at + next) {
            // What mdBook puts something in the place of is no text.
            if run[..start].ends_with("{{#") {
                at = run[start..].find("}}").map_or(run.len(), |len| start + len);
                continue;
            }
            let len = run[start..].find(|c| !is_letter(c)).unwrap_or(run.len() - start);
            at = start + len;
            if is_bound(&run[..start], &run[start..]) {
                continue;
            }
            let glossary = self.glossary;
            let word = &run[start..at];
            let forms = match word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
                true => glossary.forms.get(word),
                false => glossary.forms.get(&word.to_lowercase()),
            };
            let Some(forms) = forms else { continue };
            let Some(form) = forms.iter().find(|form| stands(&form.text, &run[start..])) else {
                continue;
            };
            let end = start + form.text.len();
            at = at.max(end);
            let whole = italics && run.trim() == &run[start..end];
            if !self.met[form.entry] && (!form.everyday || whole) {
                self.met[form.entry] = true;
                self.link(form.entry, self.place(start)..self.place(end - 1) + 1);
            }
        }
        self.places.clear();
    }

    /// Leaves these terms without a link.
    fn leave(&mut self, terms: &[String]) {
        let forms = self.glossary.forms.values().flatten();
        for form in forms.filter(|form| terms.contains(&form.text)) {
            self.met[form.entry] = true;
        }
    }

    /// Where a byte of the run is in the chapter's text.
    fn place(&self, at: usize) -> usize {
        let piece = self.places.partition_point(|&(from, _)| from <= at) - 1;
        let (from, place) = self.places[piece];
        place + (at - from)
    }

    fn link(&mut self, entry: usize, range: Range<usize>) {
        let entry = &self.glossary.entries[entry];
        let mut link = String::from("<a class=\"term\" href=\"");
        link.push_str(&relative(self.page, self.target, &entry.anchor));
        link.push_str("\" title=\"");
        let mut meaning = String::new();
        push_text(&entry.meaning, &mut meaning);
        for c in meaning.chars() {
            // It stands in Markdown, maybe in a table.
            match c {
                '`' | '|' | '*' | '_' | '[' | '\\' => {
                    let _ = write!(link, "&#{};", c as u32);
                }
                c => link.push(c),
            }
        }
        link.push_str("\">");
        self.insertions.push((range.start, link));
        self.insertions.push((range.end, "</a>".to_owned()));
    }
}

/// Whether a letter belongs to a word.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '-' || c == '_'
}

/// Whether a word is a part of something longer: a path, a number, a name.
fn is_bound(before: &str, rest: &str) -> bool {
    let len = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
    let mut after = rest[len..].chars();
    let dotted = after.next() == Some('.') && after.next().is_some_and(char::is_alphanumeric);
    dotted || before.ends_with(|c| is_letter(c) || "/.<&#$@\\".contains(c))
}

/// Whether a text begins with a term as a whole; a small first letter may be a capital there.
fn stands(term: &str, text: &str) -> bool {
    let Some(begin) = text.get(..term.len()) else { return false };
    let mut pair = term.chars().zip(begin.chars());
    let first = pair.next().is_some_and(|(t, b)| t == b || b.to_lowercase().eq([t]));
    first && pair.all(|(t, b)| t == b) && !text[term.len()..].starts_with(is_letter)
}
