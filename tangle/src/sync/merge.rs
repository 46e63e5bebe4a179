// SPDX-License-Identifier: GPL-2.0

//! Three versions of a file, line by line: as it was written, as it is on the disk, as the chapters
//! have it now.

use std::ops::Range;

use similar::{Algorithm, DiffOp, capture_diff_slices};

/// Lines that both sides changed, each in its own way. The ranges count lines from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clash {
    /// In the file as it was written.
    pub(crate) base: Range<usize>,
    /// In the file on the disk.
    pub(crate) theirs: Range<usize>,
    /// In what the chapters give now.
    pub(crate) ours: Range<usize>,
}

/// A stretch of the base that one side replaced.
struct Change {
    base: Range<usize>,
    side: Range<usize>,
    theirs: bool,
}

/// The lines of a text.
pub(crate) fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// The stretches in which two texts differ.
pub(crate) fn differences<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<DiffOp> {
    let mut ops = capture_diff_slices(Algorithm::Patience, old, new);
    ops.retain(|op| !matches!(op, DiffOp::Equal { .. }));
    ops
}

/// Brings the changes of both sides together.
///
/// # Errors
///
/// The stretches that both sides changed differently. Changes that touch count as one.
pub(crate) fn merge(base: &str, theirs: &str, ours: &str) -> Result<String, Vec<Clash>> {
    if ours == base {
        return Ok(theirs.to_owned());
    }
    let (base, theirs, ours) = (lines(base), lines(theirs), lines(ours));
    let changes = |side: &[&str], is_theirs| -> Vec<Change> {
        let ops = differences(&base, side);
        let change =
            |op: DiffOp| Change { base: op.old_range(), side: op.new_range(), theirs: is_theirs };
        ops.into_iter().map(change).collect()
    };
    let mut all = changes(&theirs, true);
    all.extend(changes(&ours, false));
    all.sort_by_key(|change| (change.base.start, change.base.end));

    let mut out = String::new();
    let mut clashes = Vec::new();
    let mut push = |lines: &[&str]| {
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
    };
    let mut at = 0;
    // How far each side is ahead of the base.
    let (mut of_theirs, mut of_ours) = (0_isize, 0_isize);
    let mut rest = all.as_slice();
    while let Some(first) = rest.first() {
        let mut span = first.base.clone();
        let mut count = 1;
        while let Some(next) = rest.get(count).filter(|next| next.base.start <= span.end) {
            span.end = span.end.max(next.base.end);
            count += 1;
        }
        let (group, after) = rest.split_at(count);
        rest = after;
        push(&base[at..span.start]);
        at = span.end;
        // A stretch of the base as one side has it: moved and grown by that side's changes.
        let stretch = |is_theirs: bool, ahead: &mut isize| {
            let start = span.start.wrapping_add_signed(*ahead);
            for change in group.iter().filter(|change| change.theirs == is_theirs) {
                *ahead += change.side.len() as isize - change.base.len() as isize;
            }
            start..span.end.wrapping_add_signed(*ahead)
        };
        let in_theirs = stretch(true, &mut of_theirs);
        let in_ours = stretch(false, &mut of_ours);
        let only = |is_theirs: bool| group.iter().all(|change| change.theirs == is_theirs);
        let (was, one, other) =
            (&base[span.clone()], &theirs[in_theirs.clone()], &ours[in_ours.clone()]);
        if only(true) || holds(was, one, other) {
            push(one);
        } else if only(false) || holds(was, other, one) {
            push(other);
        } else {
            clashes.push(Clash { base: span, theirs: in_theirs, ours: in_ours });
        }
    }
    push(&base[at..]);
    if clashes.is_empty() { Ok(out) } else { Err(clashes) }
}

/// Whether all that one side changed, line by line, the other changed in the same way: so it is
/// after a `sync` that was killed half-way.
fn holds(base: &[&str], all: &[&str], some: &[&str]) -> bool {
    let mut lines = base.iter().zip(all).zip(some);
    let aligned = base.len() == all.len() && base.len() == some.len();
    all == some || aligned && lines.all(|((base, all), some)| some == all || some == base)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "a\nb\nc\nd\ne\nf\n";

    #[test]
    fn one_side_alone() {
        assert_eq!(merge(BASE, "x\n", BASE), Ok("x\n".to_owned()));
        assert_eq!(merge(BASE, BASE, "x\n"), Ok("x\n".to_owned()));
    }

    #[test]
    fn changes_apart_come_together() {
        let merged = merge(BASE, "a\nB\nc\nd\ne\nf\n", "a\nb\nc\nd\nf\ng\n");
        assert_eq!(merged, Ok("a\nB\nc\nd\nf\ng\n".to_owned()));
        let merged = merge(BASE, "0\n1\na\nb\nc\nd\ne\nf\n", "a\nb\nc\nd\nE\nf\n");
        assert_eq!(merged, Ok("0\n1\na\nb\nc\nd\nE\nf\n".to_owned()));
    }

    #[test]
    fn the_same_change_on_both_sides_is_one() {
        let both = "a\nB\nB2\nc\nd\ne\nf\n";
        assert_eq!(merge(BASE, both, both), Ok(both.to_owned()));
        let merged = merge(BASE, "a\nB\nB2\nc\nd\ne\n", both);
        assert_eq!(merged, Ok("a\nB\nB2\nc\nd\ne\n".to_owned()));
    }

    #[test]
    fn one_side_may_have_done_a_part_of_what_the_other_did() {
        let all = "a\nB\nC\nD\ne\nf\n";
        let some = "a\nB\nc\nD\ne\nf\n";
        assert_eq!(merge(BASE, all, some), Ok(all.to_owned()));
        assert_eq!(merge(BASE, some, all), Ok(all.to_owned()));
        assert!(merge(BASE, all, "a\nB\nx\nD\ne\nf\n").is_err());
    }

    #[test]
    fn two_changes_of_one_line_clash() {
        let clash = merge(BASE, "0\na\nB\nc\nd\ne\nf\n", "a\nb2\nb3\nc\nd\ne\nf\n");
        assert_eq!(clash, Err(vec![Clash { base: 1..2, theirs: 2..3, ours: 1..3 }]));
        let clash = merge(BASE, "a\nb\nc\nx\ne\nf\n", "0\na\nb\nc\ny\nz\ne\nf\n");
        assert_eq!(clash, Err(vec![Clash { base: 3..4, theirs: 3..4, ours: 4..6 }]));
    }

    #[test]
    fn changes_that_touch_clash() {
        assert!(merge(BASE, "a\nB\nc\nd\ne\nf\n", "a\nb\nC\nd\ne\nf\n").is_err());
        assert!(merge(BASE, "a\nb\nx\nc\nd\ne\nf\n", "a\nb\ny\nc\nd\ne\nf\n").is_err());
        assert!(merge(BASE, "a\nb\nd\ne\nf\n", "a\nb\nC\nd\ne\nf\n").is_err());
    }
}
