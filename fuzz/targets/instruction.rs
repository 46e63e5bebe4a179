// SPDX-License-Identifier: GPL-2.0-only

//! An instruction of a Guest's, as the Host decodes it. What is decoded has a length that the bytes
//! have, and the bytes behind it do not matter.

#![no_main]

use libfuzzer_sys::fuzz_target;
use logic::decode::{Stop, decode, opcode};

fuzz_target!(|bytes: &[u8]| {
    let _ = opcode(bytes);
    match decode(bytes) {
        Ok(decoded) => {
            let length = usize::from(decoded.len);
            assert!((1..=15).contains(&length) && length <= bytes.len());
            assert_eq!(decode(&bytes[..length]), Ok(decoded));
            for cut in 0..length {
                assert_eq!(
                    decode(&bytes[..cut]),
                    Err(Stop::Short),
                    "{bytes:x?} cut at {cut}"
                );
            }
        }
        Err(Stop::Short) => assert!(bytes.len() < 15),
        Err(_) => {}
    }
});
