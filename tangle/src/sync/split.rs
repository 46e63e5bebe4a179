// SPDX-License-Identifier: GPL-2.0

//! Which new lines belong to which old ones, where a change goes over the border of a chunk.
//!
//! The border lies between two words of the old lines. If both words are in the new lines, too, and
//! a line ends between them, the border lies there.

use std::ops::Range;

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// A word or a sign, and its line.
struct Word<'a> {
    text: &'a str,
    line: usize,
}

fn words<'a>(lines: &[&'a str]) -> Vec<Word<'a>> {
    let mut found = Vec::new();
    for (line, text) in lines.iter().enumerate() {
        let mut rest = *text;
        while let Some(first) = rest.chars().next() {
            let in_word = |c: char| c.is_alphanumeric() || c == '_';
            let len = match first {
                c if in_word(c) => rest.find(|c| !in_word(c)).unwrap_or(rest.len()),
                c => c.len_utf8(),
            };
            let (word, after) = rest.split_at(len);
            if !word.trim().is_empty() {
                found.push(Word { text: word, line });
            }
            rest = after;
        }
    }
    found
}

/// Splits `new` at the lines that correspond to the borders of `old`. A border is the first line
/// after it. Nothing comes back where that cannot be seen.
pub(super) fn split(old: &[&str], borders: &[usize], new: &[&str]) -> Option<Vec<Range<usize>>> {
    let (before, after) = (words(old), words(new));
    let texts = |words: &[Word<'_>]| words.iter().map(|word| word.text.to_owned()).collect();
    let (a, b): (Vec<String>, Vec<String>) = (texts(&before), texts(&after));
    let mut counterpart = vec![None; before.len()];
    for op in capture_diff_slices(Algorithm::Myers, &a, &b) {
        if let DiffOp::Equal { old_index, new_index, len } = op {
            for n in 0..len {
                counterpart[old_index + n] = Some(new_index + n);
            }
        }
    }
    let mut found = Vec::new();
    let mut start = 0;
    for &border in borders {
        let next = before.partition_point(|word| word.line < border);
        // The line of the last word before the border, as one more than it; then of the first after.
        let from = match next.checked_sub(1) {
            Some(last) => after[counterpart[last]?].line + 1,
            None => 0,
        };
        let to = match before.get(next) {
            Some(_) => after[counterpart[next]?].line,
            None => new.len(),
        };
        if to < from.max(start) {
            return None;
        }
        // Lines between the two words are nobody's, unless they are empty.
        if !new[from..to].iter().all(|line| line.trim().is_empty()) {
            return None;
        }
        let blank = old[..border].iter().rev().take_while(|line| line.trim().is_empty()).count();
        let end = (from + blank).min(to);
        found.push(start..end);
        start = end;
    }
    found.push(start..new.len());
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_is_between_the_same_words() {
        let old = ["let a = f(one, two);", "let b = 2;"];
        let new = ["let a = f(", "    one,", "    two,", ");", "let b =", "    2;"];
        assert_eq!(split(&old, &[1], &new), Some(vec![0..4, 4..6]));
        let new = ["let a = f(one, two); let b = 2;"];
        assert_eq!(split(&old, &[1], &new), None, "no line ends there");
        let new = ["let a = f(one, two);", "new();", "let b = 2;"];
        assert_eq!(split(&old, &[1], &new), None, "whose is the new line?");
        let new = ["let a = f(one);", "let c = 2;", "d();"];
        assert_eq!(split(&old, &[1], &new), Some(vec![0..1, 1..3]));
        assert_eq!(split(&old, &[1], &["gone"]), None);
    }

    #[test]
    fn empty_lines_stay_where_they_were() {
        let new = ["a", "", "", "b", "c"];
        assert_eq!(split(&["a", "", "b"], &[2], &new), Some(vec![0..2, 2..5]));
        assert_eq!(split(&["a", "b"], &[1], &new), Some(vec![0..1, 1..5]));
        assert_eq!(split(&["", "b"], &[1], &["b", "c"]), Some(vec![0..0, 0..2]));
    }

    #[test]
    fn several_borders() {
        let new = ["a1", "b", "c", "c2"];
        assert_eq!(split(&["a1", "b", "c"], &[1, 2], &new), Some(vec![0..1, 1..2, 2..4]));
    }
}
