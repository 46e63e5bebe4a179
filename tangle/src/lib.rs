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
mod graph;
pub mod locate;
pub mod map;
pub mod parse;
pub mod problem;
pub mod source;
pub mod symbols;
pub mod sync;
mod target;
pub mod weave;
pub mod write;

pub use book::{
    Book, Chunk, ChunkId, Origin, Output, OutputId, Part, PartId, Piece, Placement, RefId,
    Reference,
};
pub use parse::{Block, LineKind, Target};
pub use problem::{Finding, Problem, Severity};
pub use source::{Place, Source, SourceId};
