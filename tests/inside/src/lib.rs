// SPDX-License-Identifier: GPL-2.0-only

//! What runs inside the Linux in QEMU, as its first process.
//!
//! It reads lines from the control channel and does what they say: run one case of [`cases`], or
//! give the user a Guest. The library half lets the test command know the cases by name without
//! booting anything.

pub mod bare;
pub mod beside;
pub mod cases;
pub mod device;
pub mod exchange;
pub mod fail_nth;
pub mod guest;
pub mod host;
pub mod kvm;
pub mod nets;
pub mod patience;
pub mod progress;
pub mod protocol;
pub mod standin;
pub mod stuck;
pub mod swap;
pub mod tiny;

pub use hostile::random;
