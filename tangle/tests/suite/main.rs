// SPDX-License-Identifier: GPL-2.0

//! Tests of tangle from outside: the library on texts, the command on books in temporary folders.

mod check;
mod common;
mod corners;
mod filter;
mod lit_rs;
mod locate;
mod messages;
mod outputs;
mod property;
mod symbols;
mod sync;
mod syntax;
