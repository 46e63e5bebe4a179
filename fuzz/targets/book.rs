// SPDX-License-Identifier: GPL-2.0-only

//! Two chapters, as tangle reads them; a form feed divides one from the other. Whatever is in them,
//! there is a book or there are findings, and every line of a file comes from a chapter's line.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tangle::Book;
use tangle::config::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut chapters = bytes.splitn(2, |byte| *byte == b'\x0c');
    let [one, two] = [(); 2].map(|()| chapters.next().unwrap_or_default());
    let book = Book::build(Input::from_chapters([
        ("book/one.md", one),
        ("book/two.md", two),
    ]));
    if book.has_errors() {
        assert!(!book.findings().is_empty());
        return;
    }
    for (index, output) in book.outputs().iter().enumerate() {
        let id = tangle::OutputId(index as u32);
        for line in 1..=output.text.lines().count() as u32 {
            let origin = book
                .origin(id, line)
                .expect("every line comes from somewhere");
            let source = book.source(origin.source);
            assert!(origin.line >= 1, "{}", source.path);
            let placed = book.lines_from(origin.source, origin.line);
            assert!(
                placed.contains(&(id, line)),
                "{}:{}",
                source.path,
                origin.line
            );
        }
    }
});
