// SPDX-License-Identifier: GPL-2.0

//! Writes a synthetic book of 30,000 lines and 1,200 chunks, to measure tangle with.
//!
//! `cargo run -p tangle --example big_book -- DIR` makes `DIR/book.toml` and 40 chapters. Each
//! chapter has one file root and 29 chunks, three deep, about half prose and half code.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs, io, process};

const CHAPTERS: usize = 40;
const CHUNKS: usize = 29;
const CODE_LINES: usize = 13;

fn main() -> io::Result<()> {
    let Some(dir) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: big_book DIR");
        process::exit(2);
    };
    fs::create_dir_all(dir.join("book"))?;
    fs::write(dir.join("book.toml"), "[book]\ntitle = \"A synthetic book\"\nsrc = \"book\"\n")?;
    let mut summary = String::from("# Summary\n\n");
    let mut lines = 0;
    for chapter in 0..CHAPTERS {
        let text = chapter_text(chapter);
        lines += text.lines().count();
        fs::write(dir.join(format!("book/c{chapter:02}.md")), text)?;
        let _ = writeln!(summary, "- [Chapter {chapter}](c{chapter:02}.md)");
    }
    fs::write(dir.join("book/SUMMARY.md"), summary)?;
    println!("{lines} lines, {} chunks", CHAPTERS * (CHUNKS + 1));
    Ok(())
}

fn chapter_text(chapter: usize) -> String {
    let mut text = format!("# Chapter {chapter}\n");
    prose(&mut text, chapter);
    let root: String = (0..CHUNKS)
        .step_by(4)
        .fold(String::new(), |root, chunk| root + &format!("// <<c{chapter}-{chunk}>>\n"));
    let _ = write!(text, "```rust,ignore,file:out/c{chapter:02}.rs\n{root}```\n");
    for chunk in 0..CHUNKS {
        prose(&mut text, chapter * 31 + chunk);
        let _ = writeln!(text, "<!-- title: What function {chunk} does -->");
        let _ = writeln!(text, "```rust,ignore,chunk:c{chapter}-{chunk}");
        let _ = writeln!(text, "fn f_{chapter}_{chunk}(n: u64) -> u64 {{");
        for line in 0..CODE_LINES - 3 {
            let _ =
                writeln!(text, "    let n = n.rotate_left({line}) ^ {:#x};", line * 7919 + chunk);
        }
        // Three of four chunks hang below the one before them.
        if chunk % 4 != 3 && chunk + 1 < CHUNKS {
            let _ = writeln!(text, "    // <<c{chapter}-{}>>", chunk + 1);
        }
        text.push_str("    n\n}\n```\n");
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
