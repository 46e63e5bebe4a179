// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/lguest`, spoken to without a Launcher.
//!
//! The numbers are those of the crate `abi`, written here a second time on purpose: a number that
//! is changed there by mistake is noticed here. It also lets this crate build before anything has
//! been tangled.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use anyhow::{Context, Result};

use crate::host::DEVICE;
use crate::tiny::key_of;

/// Set up memory and the first instruction.
pub const INITIALIZE: u64 = 0;
/// Find a free DMA record.
pub const GETDMA: u64 = 1;
/// Raise an interrupt.
pub const IRQ: u64 = 2;
/// Stop a `read()` from another thread.
pub const BREAK: u64 = 3;

/// The device, open: a Guest that may not have begun.
#[derive(Debug)]
pub struct Device(pub File);

impl Device {
    /// Opens it for reading and writing.
    ///
    /// # Errors
    ///
    /// When the module is not loaded, or this process may not.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE);
        Ok(Self(file.with_context(|| format!("cannot open {DEVICE}"))?))
    }

    /// Writes machine words; gives what `write()` returned, or its error number.
    pub fn request(&self, words: &[u64]) -> Result<usize, i32> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// Writes bytes as they are; gives what `write()` returned, or its error number.
    pub fn bytes(&self, bytes: &[u8]) -> Result<usize, i32> {
        (&self.0).write(bytes).map_err(number)
    }

    /// Runs the Guest until it has sent a record; gives the key, or the error number.
    pub fn next_key(&self) -> Result<u64, i32> {
        key_of(&self.read(24)?).map_err(|_| 0)
    }

    /// Reads into a buffer of `size` bytes; gives the bytes, or the error number.
    pub fn read(&self, size: usize) -> Result<Vec<u8>, i32> {
        let mut buffer = vec![0; size];
        let n = (&self.0).read(&mut buffer).map_err(number)?;
        buffer.truncate(n);
        Ok(buffer)
    }
}

/// The number of an error that the system gave.
fn number(error: io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}
