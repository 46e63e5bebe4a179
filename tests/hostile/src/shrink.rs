// SPDX-License-Identifier: GPL-2.0-only

//! Making a list smaller that something is wrong with.

/// Takes elements away for as long as `fails` is true of the rest: first halves of the list, then
/// quarters, and in the end one by one (Zeller and Hildebrandt, "Simplifying and Isolating
/// Failure-Inducing Input", 2002). After so many tries it stops with what it has.
pub fn shrink<T: Clone>(
    list: &[T],
    most_tries: usize,
    mut fails: impl FnMut(&[T]) -> bool,
) -> Vec<T> {
    let mut list = list.to_vec();
    let mut tries = 0;
    let mut length = list.len().div_ceil(2);
    while length > 0 {
        let mut at = 0;
        let mut fewer = false;
        while at < list.len() {
            if tries == most_tries {
                return list;
            }
            tries += 1;
            let end = (at + length).min(list.len());
            let rest = [&list[..at], &list[end..]].concat();
            if fails(&rest) {
                list = rest;
                fewer = true;
            } else {
                at = end;
            }
        }
        // One by one until nothing more can go.
        if length > 1 || !fewer {
            length /= 2;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_stays() {
        let list: Vec<u32> = (0..60).collect();
        for needed in [vec![], vec![7], vec![0, 59], vec![3, 4, 31, 50]] {
            let rest = shrink(&list, 10_000, |list| {
                needed.iter().all(|one| list.contains(one))
            });
            assert_eq!(rest, needed);
        }
    }

    #[test]
    fn an_element_that_needs_another_goes_after_it() {
        let list: Vec<u32> = (0..40).collect();
        let rest = shrink(&list, 10_000, |list| {
            list.contains(&20) && (list.contains(&5) || !list.contains(&9))
        });
        assert_eq!(rest, [20]);
    }

    #[test]
    fn it_stops_when_it_was_tried_often_enough() {
        let list: Vec<u32> = (0..1000).collect();
        let mut tries = 0;
        let rest = shrink(&list, 25, |_| {
            tries += 1;
            false
        });
        assert_eq!((rest, tries), (list, 25));
    }
}
