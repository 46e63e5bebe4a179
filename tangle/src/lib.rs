// SPDX-License-Identifier: GPL-2.0

//! Takes the code out of the chapters of a book, and finds its way back.
//!
//! The chapters are Markdown; code blocks marked `file:path` or `chunk:name` are put together into
//! files. [`Book`] is the model of all that, built from [`config::Input`]; [`write::run`] brings
//! the files on the disk up to date; [`map::Map`] leads from a line of a file back to its chapter.

mod base;
pub mod book;
pub mod check;
pub mod config;
mod expand;
pub mod filter;
pub mod fmt;
mod graph;
pub mod locate;
pub mod map;
pub mod parse;
pub mod problem;
mod scan;
pub mod select;
pub mod settings;
pub mod source;
pub mod symbols;
pub mod sync;
mod target;
pub mod watch;
pub mod weave;
pub mod write;

pub use book::{
    Book, Chunk, ChunkId, Origin, Output, OutputId, Part, PartId, Piece, Placement, RefId,
    Reference,
};
pub use parse::{Block, LineKind, Target, Variant};
pub use problem::{Finding, Problem, Severity};
pub use select::Selection;
pub use source::{Place, Source, SourceId};

/// The examples of the README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
