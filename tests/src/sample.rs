// SPDX-License-Identifier: GPL-2.0-only

//! Which of the expensive tests an ordinary run takes.
//!
//! The choice hangs on the commit alone: two people who test the same commit test the same, and
//! over the commits everything gets its turn.

/// Whether the test `name` is in the sample for `commit`, if one in `every` is taken.
pub fn chosen(commit: &str, name: &str, every: u64) -> bool {
    hash(commit, name).is_multiple_of(every.max(1))
}

/// FNV-1a over both strings with a byte between them that neither has.
///
/// The standard library's hashers promise nothing from one release to the next.
fn hash(commit: &str, name: &str) -> u64 {
    let mut value: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in commit.bytes().chain([0]).chain(name.bytes()) {
        value ^= u64::from(byte);
        value = value.wrapping_mul(0x0100_0000_01b3);
    }
    // The low bits of FNV are its weak ones.
    value ^ (value >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_repeatable_and_about_one_in_every() {
        let names: Vec<String> = (0..1000).map(|n| format!("case-{n}")).collect();
        let first: Vec<bool> = names.iter().map(|n| chosen("abc123", n, 4)).collect();
        let again: Vec<bool> = names.iter().map(|n| chosen("abc123", n, 4)).collect();
        let other: Vec<bool> = names.iter().map(|n| chosen("abc124", n, 4)).collect();
        assert_eq!(first, again);
        assert_ne!(first, other);
        let taken = first.iter().filter(|taken| **taken).count();
        assert!((200..300).contains(&taken), "{taken} of 1000");
    }

    #[test]
    fn one_in_one_is_all() {
        assert!(chosen("x", "y", 1));
        assert!(chosen("x", "y", 0));
    }
}
