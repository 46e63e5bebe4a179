// SPDX-License-Identifier: GPL-2.0

//! What a reader of the book gets: mdBook runs this as a preprocessor before it renders.
//!
//! Each block that goes into a file becomes a figure with a caption (what it is, where it lands),
//! faded lines of what stands round it there, and links (where it is used, where it goes on); each
//! reference inside code becomes a link to the chunk it names. All of it is plain HTML with plain
//! links and works without JavaScript; with it references open in place.
//!
//! Four pages at the end list all chunks, all files and all identifiers, and say where every line
//! comes from. [`run`] leaves them nearly empty: [`render`], which mdBook runs as a renderer after
//! its own, fills them in, and puts a page for each file beside them. So neither the search nor the
//! print page is flooded, and mdBook does not read megabytes of HTML to write them again.
//!
//! The texts come from mdBook and not from the disk, so that what is woven and what is rendered
//! are the same even while a chapter is being saved.
//!
//! ```
//! use mdbook_preprocessor::book::{Book, Chapter};
//!
//! let text = "```rust,ignore,file:a.rs\n// <<body>>\n```\n\n```rust,ignore,chunk:body\nx();\n```\n";
//! let chapter = Chapter::new("A", text.to_owned(), "a.md", Vec::new());
//! let woven = tangle::weave::weave("book".as_ref(), Book::new_with_items(vec![chapter.into()]));
//! let woven = woven.unwrap();
//! let first = woven.chapters().next().unwrap();
//! assert!(first.content.contains(r##"href="#chunk-body""##));
//! ```

mod audit;
mod code;
mod colour;
mod context;
mod figure;
mod glossary;
mod identifiers;
mod index;
mod links;
mod render;
mod search;
mod shell;
#[cfg(test)]
mod tests;
mod words;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::iter::Peekable;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mdbook_preprocessor::PreprocessorContext;
use mdbook_preprocessor::book::{Book as MdBook, BookItem, Chapter};

use crate::book::{Book, PartId};
use crate::config::Input;
use crate::problem::Finding;
use crate::source::{Role, Source, SourceId};
use glossary::{Glossary, Insertion};
use links::Links;

pub use render::render;

/// Why a book could not be woven.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What mdBook sent, or was to be sent, did not pass.
    #[error("cannot talk to mdBook: {0}")]
    Talk(#[from] io::Error),
    /// mdBook's book could not be read: a version that this does not know.
    #[error("mdBook's book cannot be read: {0}")]
    Protocol(String),
    /// mdBook's pages, or the place for more, are not as they should be.
    #[error("{0}: {1}")]
    Page(PathBuf, String),
    /// A chapter has the address of a page that is made here.
    #[error("the chapter {0} stands where the weave puts a page of its own")]
    Taken(String),
    /// What `book.toml` calls the glossary is none.
    #[error("the glossary {0} {1}")]
    Glossary(String, String),
    /// The book has errors of the kind that `tangle` reports.
    #[error("the book has errors")]
    Book {
        /// What is wrong.
        findings: Vec<Finding>,
        /// The files it is wrong in.
        sources: Vec<Source>,
    },
}

/// Whether a renderer of mdBook is one that this can prepare a book for.
#[must_use]
pub fn supports(renderer: &str) -> bool {
    matches!(renderer, "html" | "test")
}

/// Reads mdBook's book from `input`, weaves it and writes it to `output`.
///
/// # Errors
///
/// When mdBook cannot be understood, or when the book has errors.
pub fn run(mut input: impl Read, mut output: impl Write) -> Result<(), Failure> {
    let bytes = read_patiently(&mut input)?;
    // As `mdbook_preprocessor::parse_input` does, which is slower because it takes any reader.
    let (context, book): (PreprocessorContext, MdBook) =
        serde_json::from_slice(&bytes).map_err(|error| Failure::Protocol(error.to_string()))?;
    // `mdbook test` wants the examples as they are.
    let glossary: Option<PathBuf> = context
        .config
        .get("preprocessor.weave.glossary")
        .map_err(|error| Failure::Protocol(error.to_string()))?;
    let book = match context.renderer.as_str() {
        "test" => book,
        _ => weave_with(&context.config.book.src, glossary.as_deref(), book)?,
    };
    let bytes = serde_json::to_vec(&book).map_err(io::Error::from)?;
    output.write_all(&bytes)?;
    Ok(output.flush()?)
}

/// Reads all of `input`, seldom.
///
/// mdBook writes its book in pieces of a few bytes. A reader that waits for each of them is woken
/// tens of thousands of times, and mdBook pays for each time; one that looks now and then lets the
/// pieces gather in the pipe.
fn read_patiently(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(len) => {
                bytes.extend_from_slice(&buffer[..len]);
                if len < buffer.len() / 4 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Weaves a book whose chapters lie in the folder `src`.
///
/// # Errors
///
/// When the book has errors.
pub fn weave(src: &Path, book: MdBook) -> Result<MdBook, Failure> {
    weave_with(src, None, book)
}

/// As [`weave`], with links to the terms of a glossary: the path of its chapter from `src`.
///
/// # Errors
///
/// When the book has errors, or there is no such glossary.
pub fn weave_with(
    src: &Path,
    glossary: Option<&Path>,
    mut book: MdBook,
) -> Result<MdBook, Failure> {
    let pages = Pages::of(src, &book);
    if let Some(chapter) = pages.pages.iter().find(|page| links::is_taken(&page.path)) {
        return Err(Failure::Taken(slashes(&chapter.path)));
    }
    let (model, pages) = pages.model()?;
    let links = Links::new(&model, &pages);
    let files = context::lines(&model);
    let glossary = glossary.map(|path| Glossary::of(&model, &pages, path)).transpose()?;
    let ids: Vec<SourceId> = model.chapters().map(|(id, _)| id).collect();
    let text = |id: &SourceId| chapter(&model, &links, &files, glossary.as_ref(), *id);
    let woven = side_by_side(&ids, &text);
    let pages_of = ids.iter().map(|id| pages[id.0 as usize].path.as_path());
    let mut texts: HashMap<&Path, String> = pages_of.zip(woven).collect();
    book.for_each_chapter_mut(|chapter| {
        if let Some(text) = chapter.path.as_deref().and_then(|path| texts.remove(path)) {
            chapter.content = text;
        }
    });
    if !model.parts().is_empty() {
        book.push_item(BookItem::PartTitle("Where the code is".to_owned()));
        for (name, path, content) in [
            ("All chunks", links::CHUNKS, index::chunks_stub(&model)),
            ("All files", links::FILES, index::files_stub(&model)),
            ("All names", links::NAMES, identifiers::stub()),
            ("Every line accounted for", links::AUDIT, audit::page(&model, &links)),
        ] {
            let mut chapter = Chapter::new(name, content, path, Vec::new());
            // They have no source of their own; they follow from the order of the chapters.
            chapter.source_path = Some("SUMMARY.md".into());
            book.push_item(chapter);
        }
    }
    Ok(book)
}

/// What becomes of each of some things, on all processors: mdBook waits meanwhile.
fn side_by_side<T: Sync, R: Send>(things: &[T], make: &(impl Fn(&T) -> R + Sync)) -> Vec<R> {
    let hands = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(thing) = things.get(at) else { return made };
            made.push((at, make(thing)));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let others: Vec<_> = (1..hands.min(8)).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            match other.join() {
                Ok(made) => all.extend(made),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_unstable_by_key(|&(at, _)| at);
    all.into_iter().map(|(_, made)| made).collect()
}

/// The chapters as mdBook knows them.
struct Pages {
    pages: Vec<Page>,
    sources: Vec<Source>,
}

impl Pages {
    fn of(src: &Path, book: &MdBook) -> Self {
        let (mut pages, mut sources) = (Vec::new(), Vec::new());
        for chapter in book.chapters() {
            let Some(path) = &chapter.path else { continue };
            let file = src.join(chapter.source_path.as_ref().unwrap_or(path));
            let text = chapter.content.clone().into_bytes();
            sources.push(Source::new(slashes(&file), Role::Chapter, text));
            pages.push(Page { path: path.clone(), name: chapter.name.clone() });
        }
        Self { pages, sources }
    }

    fn model(self) -> Result<(Book, Vec<Page>), Failure> {
        let Self { pages, sources } = self;
        let model = Book::build(Input { root: PathBuf::new(), sources, findings: Vec::new() });
        if model.has_errors() {
            let findings = model.findings().iter().filter(|finding| finding.is_error());
            return Err(Failure::Book {
                findings: findings.cloned().collect(),
                sources: model.sources().to_vec(),
            });
        }
        Ok((model, pages))
    }
}

/// One page of the rendered book.
struct Page {
    /// Path of its Markdown from the folder of the chapters.
    path: PathBuf,
    /// Its title.
    name: String,
}

fn slashes(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

/// A chapter with each tangled block replaced by its figure, and its terms linked.
fn chapter(
    book: &Book,
    links: &Links<'_>,
    files: &[Vec<&str>],
    glossary: Option<&Glossary>,
    id: SourceId,
) -> String {
    let text = book.source(id).text.as_str();
    let parts: Vec<(PartId, _)> = book.parts_in(id).collect();
    let terms = glossary.map(|glossary| glossary.links(book, links, id)).unwrap_or_default();
    let mut terms = terms.iter().peekable();
    let mut out = String::with_capacity(text.len() + (parts.len() + terms.len() / 4) * 1024);
    let mut at = 0;
    for (part_id, part) in parts {
        // The comments before a block are said in its caption.
        let notes = [&part.block.title, &part.block.why];
        let mut notes: Vec<_> = notes.into_iter().flatten().map(|note| note.span.clone()).collect();
        notes.sort_by_key(|span| span.start);
        for span in notes {
            copy(text, at..span.start, &mut terms, &mut out);
            at = span.end;
        }
        copy(text, at..part.block.span.start, &mut terms, &mut out);
        at = part.block.span.end;
        // A block of HTML ends at an empty line and holds none.
        out.push('\n');
        figure::figure(book, links, files, part_id, &mut out);
        out.push_str("\n\n");
    }
    copy(text, at..text.len(), &mut terms, &mut out);
    out
}

/// Copies a piece of a text, with what is to be put into it.
fn copy<'a>(
    text: &str,
    piece: Range<usize>,
    terms: &mut Peekable<impl Iterator<Item = &'a Insertion>>,
    out: &mut String,
) {
    let mut from = piece.start;
    while let Some((at, link)) = terms.next_if(|(at, _)| *at <= piece.end) {
        out.push_str(&text[from..*at]);
        out.push_str(link);
        from = *at;
    }
    out.push_str(&text[from..piece.end]);
}
