// SPDX-License-Identifier: GPL-2.0

//! Addresses: which page and which anchor each part has, and how one page links to another.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use super::Page;
use crate::book::{Book, ChunkId, OutputId, Part, PartId};
use crate::parse::Target;
use crate::source::SourceId;

/// The page of all chunks, as mdBook's source path and as a URL.
pub(super) const CHUNKS: &str = "chunks.md";
pub(super) const CHUNKS_PAGE: &str = "chunks.html";

/// The page of all files.
pub(super) const FILES: &str = "files.md";
pub(super) const FILES_PAGE: &str = "files.html";

/// The page of all identifiers.
pub(super) const NAMES: &str = "names.md";
pub(super) const NAMES_PAGE: &str = "names.html";

/// The page of the audit.
pub(super) const AUDIT: &str = "audit.md";
pub(super) const AUDIT_PAGE: &str = "audit.html";

/// The folder of the pages that show a file each.
pub(super) const CODE: &str = "code";

/// Whether a chapter of this path would be in the way.
pub(super) fn is_taken(path: &Path) -> bool {
    [CHUNKS, FILES, NAMES, AUDIT].iter().any(|page| path == Path::new(page))
        || path.starts_with(CODE)
}

/// The addresses of everything that can be linked to.
pub(super) struct Links<'a> {
    book: &'a Book,
    /// Path of each chapter's page, as a URL from the top of the rendered book.
    pages: Vec<String>,
    names: Vec<&'a str>,
    /// Path of the page that shows each file.
    codes: Vec<String>,
    /// Anchor of each part, which is unique in the whole book: the print page is one page.
    anchors: Vec<String>,
}

impl<'a> Links<'a> {
    pub(super) fn new(book: &'a Book, pages: &'a [Page]) -> Self {
        let mut taken = HashSet::new();
        let mut anchors = vec![String::new(); book.parts().len()];
        // First parts come first: `#chunk-name` is theirs whatever other chunks are called. What
        // does not go into a file comes last.
        let rank = |part: &Part| match (part.active, part.index) {
            (true, 0) => 0,
            (true, _) => 1,
            (false, _) => 2,
        };
        for round in 0..3 {
            for (anchor, part) in anchors.iter_mut().zip(book.parts()) {
                if rank(part) == round {
                    let mut wanted = base(&book.chunk(part.chunk).target);
                    if part.index > 0 {
                        let _ = write!(wanted, "-{}", part.index + 1);
                    }
                    if !part.active {
                        wanted.push_str("-before");
                    }
                    // No name has this character.
                    while !taken.insert(wanted.clone()) {
                        wanted.push('_');
                    }
                    *anchor = wanted;
                }
            }
        }
        Self {
            book,
            pages: pages.iter().map(|page| url(&page.path.with_extension("html"))).collect(),
            codes: book.outputs().iter().map(|output| code(&output.path)).collect(),
            names: pages.iter().map(|page| page.name.as_str()).collect(),
            anchors,
        }
    }

    /// The title of a chapter.
    pub(super) fn name(&self, chapter: SourceId) -> &'a str {
        self.names[chapter.0 as usize]
    }

    /// The page of a chapter.
    pub(super) fn page(&self, chapter: SourceId) -> &str {
        &self.pages[chapter.0 as usize]
    }

    /// The anchor of a part on its chapter's page.
    pub(super) fn anchor(&self, part: PartId) -> &str {
        &self.anchors[part.0 as usize]
    }

    /// The anchor of a chunk or a file on its index page: that of its first part.
    pub(super) fn anchor_of(&self, chunk: ChunkId) -> &str {
        self.anchor(self.book.chunk(chunk).parts[0])
    }

    /// The page that shows a file.
    pub(super) fn code(&self, output: OutputId) -> &str {
        &self.codes[output.0 as usize]
    }

    /// How the page `from` links to a line of a file; 0 is for the file as a whole.
    pub(super) fn to_line(&self, from: &str, output: OutputId, line: u32) -> String {
        let anchor = if line == 0 { String::new() } else { format!("L{line}") };
        relative(from, self.code(output), &anchor)
    }

    /// How the page `from` links to a part.
    pub(super) fn to_part(&self, from: &str, part: PartId) -> String {
        let page = self.page(self.book.part(part).source);
        relative(from, page, self.anchor(part))
    }
}

/// How the page `from` links to an anchor on the page `to`.
pub(super) fn relative(from: &str, to: &str, anchor: &str) -> String {
    let mut link = String::new();
    if from != to {
        let same = from
            .bytes()
            .zip(to.bytes())
            .take_while(|(a, b)| a == b)
            .enumerate()
            .filter(|&(_, (byte, _))| byte == b'/')
            .last()
            .map_or(0, |(at, _)| at + 1);
        for _ in from[same..].matches('/') {
            link.push_str("../");
        }
        link.push_str(&to[same..]);
    }
    if !anchor.is_empty() {
        link.push('#');
        link.push_str(anchor);
    }
    link
}

/// The page that shows a file, as a URL.
fn code(path: &str) -> String {
    format!("{CODE}/{}.html", url(Path::new(path)))
}

/// The anchor of a first part. mdBook takes `.md` in a link for a page, so there is no dot in it.
fn base(target: &Target) -> String {
    match target {
        Target::Chunk(name) => format!("chunk-{name}"),
        Target::File(path) => {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
            format!("file-{}", path.chars().map(plain).collect::<String>())
        }
    }
}

/// A path as a URL: what is not plain is written as `%` and two digits.
fn url(path: &Path) -> String {
    let mut out = String::new();
    for byte in super::slashes(path).bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
