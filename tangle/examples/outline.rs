// SPDX-License-Identifier: GPL-2.0

//! Prints what the files of a book are made of: `cargo run -p tangle --example outline -- DIR`.
//!
//! It shows how tangle is used as a library: nothing here reads Markdown, and nothing is written.

use std::path::PathBuf;
use std::{env, process};

use tangle::problem::{self, Look};
use tangle::{Book, ChunkId};

fn main() {
    let Some(root) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: outline DIR");
        process::exit(2);
    };
    let book = Book::load(&root);
    eprint!("{}", problem::render(book.findings(), book.sources(), Look::default()));
    for output in book.outputs() {
        println!("{} ({} lines)", output.path, output.lines);
        outline(&book, output.chunk, 1);
    }
    if book.has_errors() {
        process::exit(1);
    }
}

/// The parts of a chunk, and below each the chunks that it refers to. There are no circles: a book
/// with one has no outputs.
fn outline(book: &Book, chunk: ChunkId, depth: usize) {
    for &part in &book.chunk(chunk).parts {
        let part = book.part(part);
        let chapter = &book.source(part.source).path;
        println!(
            "{:depth$}{} ({chapter}:{})",
            "",
            part.title(),
            part.block.fence_line,
            depth = depth * 2
        );
        for &reference in &part.references {
            if let Some(target) = book.reference(reference).target {
                outline(book, target, depth + 1);
            }
        }
    }
}
