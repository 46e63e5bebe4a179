// SPDX-License-Identifier: GPL-2.0

//! Tests of tangle from outside: the library on texts, the command on books in temporary folders.

mod check;
mod common;
mod corners;
mod documented;
mod editor;
mod filter;
mod fmt;
mod hostile;
mod lit_rs;
mod locate;
mod messages;
mod outputs;
mod property;
mod second_book;
mod select;
mod symbols;
mod sync;
mod syntax;
mod watch;
