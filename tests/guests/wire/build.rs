// SPDX-License-Identifier: GPL-2.0

//! Hands the linker the script of the book's Guest.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../guest/guest.ld");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rerun-if-changed={script}");
}
