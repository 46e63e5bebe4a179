// SPDX-License-Identifier: GPL-2.0

//! Writes a synthetic book of 30,000 lines and 1,200 chunks, to measure tangle with.
//!
//! `cargo run -p tangle --example big_book -- DIR` makes `DIR/book.toml` and 40 chapters. Each
//! chapter has one file root and 29 chunks, three deep, about half prose and half code. With
//! `noweb` or `entangled` after `DIR` the same book is written in the syntax of that tool.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs, io, process};

const CHAPTERS: usize = 40;
const CHUNKS: usize = 29;
const CODE_LINES: usize = 13;

/// Whose syntax the book is in.
#[derive(Clone, Copy, PartialEq)]
enum Syntax {
    Ours,
    Noweb,
    Entangled,
}

fn main() -> io::Result<()> {
    let usage = || {
        eprintln!("usage: big_book DIR [ours|noweb|entangled]");
        process::exit(2)
    };
    let Some(dir) = env::args_os().nth(1).map(PathBuf::from) else { usage() };
    let syntax = match env::args().nth(2).as_deref() {
        None | Some("ours") => Syntax::Ours,
        Some("noweb") => Syntax::Noweb,
        Some("entangled") => Syntax::Entangled,
        Some(_) => usage(),
    };
    fs::create_dir_all(dir.join("book"))?;
    let mut summary = String::from("# Summary\n\n");
    let mut lines = 0;
    let end = if syntax == Syntax::Noweb { "nw" } else { "md" };
    for chapter in 0..CHAPTERS {
        let text = chapter_text(chapter, syntax);
        lines += text.lines().count();
        fs::write(dir.join(format!("book/c{chapter:02}.{end}")), text)?;
        let _ = writeln!(summary, "- [Chapter {chapter}](c{chapter:02}.md)");
    }
    match syntax {
        Syntax::Ours => {
            let config = "[book]\ntitle = \"A synthetic book\"\nsrc = \"book\"\n";
            fs::write(dir.join("book.toml"), config)?;
            fs::write(dir.join("book/SUMMARY.md"), summary)?;
        }
        Syntax::Noweb => {}
        Syntax::Entangled => {
            // `naked`: no marks in the files, as with the other two.
            let config =
                "version = \"2.0\"\nwatch_list = [\"book/*.md\"]\nannotation = \"naked\"\n";
            fs::write(dir.join("entangled.toml"), config)?;
        }
    }
    println!("{lines} lines, {} chunks", CHAPTERS * (CHUNKS + 1));
    Ok(())
}

impl Syntax {
    /// The line that begins a file or a chunk.
    fn open(self, file: bool, name: &str) -> String {
        match (self, file) {
            (Self::Ours, true) => format!("```rust,ignore,file:{name}\n"),
            (Self::Ours, false) => format!("```rust,ignore,chunk:{name}\n"),
            (Self::Noweb, _) => format!("<<{name}>>=\n"),
            (Self::Entangled, true) => format!("``` {{.rust file={name}}}\n"),
            (Self::Entangled, false) => format!("``` {{.rust #{name}}}\n"),
        }
    }

    /// The line that ends it.
    fn close(self) -> &'static str {
        if self == Self::Noweb { "@\n" } else { "```\n" }
    }

    fn reference(self, name: &str) -> String {
        let comment = if self == Self::Ours { "// " } else { "" };
        format!("{comment}<<{name}>>\n")
    }
}

fn chapter_text(chapter: usize, syntax: Syntax) -> String {
    let mut text = format!("# Chapter {chapter}\n");
    prose(&mut text, chapter);
    text.push_str(&syntax.open(true, &format!("out/c{chapter:02}.rs")));
    for chunk in (0..CHUNKS).step_by(4) {
        text.push_str(&syntax.reference(&format!("c{chapter}-{chunk}")));
    }
    text.push_str(syntax.close());
    for chunk in 0..CHUNKS {
        prose(&mut text, chapter * 31 + chunk);
        let _ = writeln!(text, "<!-- title: What function {chunk} does -->");
        text.push_str(&syntax.open(false, &format!("c{chapter}-{chunk}")));
        let _ = writeln!(text, "fn f_{chapter}_{chunk}(n: u64) -> u64 {{");
        for line in 0..CODE_LINES - 3 {
            let _ =
                writeln!(text, "    let n = n.rotate_left({line}) ^ {:#x};", line * 7919 + chunk);
        }
        // Three of four chunks hang below the one before them.
        if chunk % 4 != 3 && chunk + 1 < CHUNKS {
            let _ = write!(text, "    {}", syntax.reference(&format!("c{chapter}-{}", chunk + 1)));
        }
        text.push_str("    n\n}\n");
        text.push_str(syntax.close());
    }
    text
}

fn prose(text: &mut String, seed: usize) {
    text.push('\n');
    for line in 0..8 {
        let _ = writeln!(
            text,
            "The {} step, *as it were*, needs `{}` and [what came before](c00.md), because {}.",
            ["first", "second", "third"][(seed + line) % 3],
            ["rdi", "the frame", "a page"][(seed / 3 + line) % 3],
            ["it is so", "the tick stops", "nobody else does"][(seed / 7 + line) % 3],
        );
    }
    text.push('\n');
}
