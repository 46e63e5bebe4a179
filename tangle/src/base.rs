// SPDX-License-Identifier: GPL-2.0

//! The outputs as they were last written, kept in `.tangle/written`.
//!
//! A hash says that an output was changed by hand; only the text of then says what the change was.
//! The file is one line for each output, its length and its path, then an empty line, then the
//! texts one after another in the same order.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::source::hash;

/// Where they lie, from the folder that the outputs are in.
pub(crate) const PATH: &str = ".tangle/written";

/// The bytes of the file.
pub(crate) fn encode(texts: &[(&str, Cow<'_, str>)]) -> Vec<u8> {
    let mut head = String::new();
    for (path, text) in texts {
        let _ = writeln!(head, "{} {path}", text.len());
    }
    head.push('\n');
    let mut bytes = head.into_bytes();
    bytes.reserve(texts.iter().map(|(_, text)| text.len()).sum());
    for (_, text) in texts {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// What was written at `path`, if that is known and has the hash `written`.
pub(crate) fn find(root: &Path, path: &str, written: u128) -> Option<String> {
    let bytes = fs::read(root.join(PATH)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (head, texts) = text.split_once("\n\n")?;
    let mut at = 0_usize;
    for line in head.lines() {
        let (len, name) = line.split_once(' ')?;
        let end = at.checked_add(len.parse().ok()?)?;
        if name == path {
            let found = texts.get(at..end)?;
            return (hash(found.as_bytes()) == written).then(|| found.to_owned());
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Input;
    use crate::{Book, source};

    #[test]
    fn each_text_is_found_again_and_a_wrong_one_is_not() {
        let chapter = "```text,file:a\n\none\n\n\ntwo\n```\n\n```text,file:b/c\n```\n\n\
                       ```text,file:d\nlast\n```\n";
        let book = Book::build(Input::from_chapters([("book/a.md", chapter.as_bytes())]));
        assert_eq!(book.outputs().len(), 3);
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join(".tangle")).expect("folder made");
        let texts: Vec<_> =
            book.outputs().iter().map(|o| (o.path.as_str(), Cow::Borrowed(&*o.text))).collect();
        fs::write(folder.path().join(PATH), encode(&texts)).expect("written");
        for output in book.outputs() {
            let written = source::hash(output.text.as_bytes());
            let found = find(folder.path(), &output.path, written);
            assert_eq!(found.as_deref(), Some(output.text.as_str()), "{}", output.path);
            assert_eq!(find(folder.path(), &output.path, written ^ 1), None);
        }
        assert_eq!(find(folder.path(), "e", 0), None);
    }
}
