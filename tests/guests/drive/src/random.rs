// SPDX-License-Identifier: GPL-2.0-only

//! Random bytes.

use guest::{println, random};

/// Asks in all lengths, and prints the first that came.
pub fn random() {
    let mut first = [0; 32];
    assert!(random::fill(&mut first) == first.len(), "no random bytes");
    println!("good: random {first:02x?}");
    let mut bytes = [0; 600];
    for length in 1..bytes.len() {
        bytes.fill(0);
        let got = random::fill(&mut bytes[..length]);
        assert!(got == length, "{got} bytes of {length}");
        assert!(
            bytes[length..].iter().all(|byte| *byte == 0),
            "more than {length}"
        );
        let zeros = bytes[..length].iter().filter(|byte| **byte == 0).count();
        // Of 600 random bytes two or three are zero; forty never are.
        assert!(zeros < 8 + length / 20, "{zeros} zeros in {length} bytes");
    }
    println!("good: all lengths");
}
