// SPDX-License-Identifier: GPL-2.0-only

//! What the test command and `make run` share: a Linux in QEMU that can be talked to.
//!
//! [`artifacts`] finds or builds what goes into the machine, [`initramfs`] packs it, [`machine`]
//! starts QEMU and holds its channels, [`control`] speaks with the program inside, and
//! [`terminal`] puts the user's terminal into raw mode and back. [`attach`] has the consoles of
//! further Guests, which another terminal finds by [`runs`].

pub mod artifacts;
pub mod attach;
pub mod browser;
#[cfg(test)]
mod bugs;
pub mod cases;
pub mod chapters;
pub mod checks;
pub mod cleanup;
pub mod control;
pub mod costs;
pub mod counts;
pub mod durable;
pub mod errors;
pub mod figures;
pub mod fit;
pub mod gdb;
pub mod hosts;
#[cfg(test)]
mod hypercalls;
pub mod idle;
pub mod initramfs;
pub mod initrd;
pub mod list;
pub mod machine;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod promises;
pub mod prompt;
pub mod recording;
pub mod release;
pub mod remote;
pub mod report;
pub mod runs;
pub mod sample;
pub mod setup;
pub mod soak;
pub mod supply;
pub mod terminal;
pub mod tour;
pub mod trace;
pub mod trip;
pub mod walk;
