// SPDX-License-Identifier: GPL-2.0-only

//! What every test Guest needs, and no more: a start, hypercalls, a console, traps, page tables
//! and a way into ring 3.
//!
//! It shares nothing with the Guest of the book but the crate `abi`, on purpose. A mistake that
//! the Host and the book's Guest have in common would not be seen by tests built on either.

#![no_std]

pub mod boot;
pub mod console;
pub mod hypercall;
pub mod memory;
pub mod start;
pub mod traps;
pub mod user;

use core::cell::UnsafeCell;

/// A global variable of a program that has one thread of control.
///
/// A trap is no second thread: its handler runs to its end before what it interrupted goes on,
/// and the handlers touch only what is made for them.
#[derive(Debug)]
#[repr(transparent)]
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: A test Guest has one processor and one thread of control; see the type's documentation.
unsafe impl<T> Sync for Global<T> {}

impl<T> Global<T> {
    /// A variable with its first value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where it lies.
    pub const fn pointer(&self) -> *mut T {
        self.0.get()
    }
}

impl<T: Copy> Global<T> {
    /// Its value now.
    pub fn get(&self) -> T {
        // SAFETY: The pointer is that of a live value, and nobody writes at the same time.
        unsafe { self.0.get().read_volatile() }
    }

    /// Gives it another value.
    pub fn set(&self, value: T) {
        // SAFETY: As in `get`.
        unsafe { self.0.get().write_volatile(value) }
    }
}
