// SPDX-License-Identifier: GPL-2.0-only

//! Hostile Guests, made up from a seed.
//!
//! A [`plan::Plan`] is a list of steps, each of which does one thing that a Guest might do to hurt
//! its Host: a hypercall, an instruction, an entry in a page table. [`generate`] makes one from a
//! number, always the same from the same; [`shrink`] takes steps away from one that has found
//! something, as long as it still finds it. What is left is a text, and is kept in [`corpus`].
//!
//! Nothing here needs a kernel. The program `inside` makes a Guest of a plan, runs it in the machine
//! of the tests, and judges.

pub mod corpus;
pub mod generate;
pub mod layout;
pub mod plan;
pub mod random;
pub mod shrink;
