// SPDX-License-Identifier: GPL-2.0-only

//! Hypercalls with arguments that no sane Guest would pass.
//!
//! Each is one run of the test Guest. It must be killed, with a reason that names the call, or
//! live on where the argument is odd but in order; the Host must not care.

use anyhow::{Context, Result, bail};

use super::Bench;
use super::guests::{CRASHED, KILLED, OFF, run};
use crate::host;

/// What must become of a Guest.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The Host kills it and names the call.
    Killed,
    /// It crashes by its own wish.
    Crashes,
    /// Nothing bad happens to it.
    Lives,
}

use Fate::{Crashes, Killed, Lives};

/// One call: its arguments as words, and what must become of the Guest.
type Try = (&'static str, Fate);

/// Makes every call of a list, all of one number.
fn all(number: u64, name: &str, tries: &[Try]) -> Result<()> {
    host::load_module()?;
    for (words, fate) in tries {
        let number = format!("number={number}");
        let mut line = vec!["case=hostile", &number];
        line.extend(words.split(' '));
        one(&line, name, *fate).with_context(|| format!("{name} with {words}"))?;
    }
    host::wait_until_free()
}

fn one(line: &[&str], name: &str, fate: Fate) -> Result<()> {
    let ended = run(line)?;
    match fate {
        Killed => {
            ended
                .expect_code(KILLED)?
                .expect_error("the Host killed the Guest")?;
            ended.expect_error(name)?;
        }
        Crashes => {
            ended.expect_code(CRASHED)?;
        }
        Lives => {
            ended.expect_code(OFF)?.expect_output("lived on")?;
        }
    }
    Ok(())
}

/// Addresses at which a record of 168 bytes does not lie in memory as it should.
const BAD_RECORDS: [&str; 12] = [
    "end-1",
    "end-8",
    "end-160",
    "end+0",
    "end+8",
    "0x100000000",
    // Across a page inside of memory; off its boundary; both.
    "0x200fc0",
    "0x200004",
    "0x200fff",
    // The end of the address space; not an address at all.
    "0xffffffffffffffff",
    "0xfffffffffffffff8",
    "0x8000000000000000",
];

pub fn shutdown(_: &mut Bench) -> Result<()> {
    all(
        2,
        "SHUTDOWN",
        &[
            ("a=end-1 b=3 c=1", Crashes),
            ("a=end-256 b=3 c=256", Crashes),
            // Only the first 256 bytes are read.
            ("a=end-256 b=3 c=0xffffffffffffffff", Crashes),
            ("a=0 b=3 c=0", Crashes),
            ("a=end-1 b=3 c=2", Killed),
            ("a=end-255 b=3 c=256", Killed),
            ("a=end+0 b=3 c=1", Killed),
            ("a=0x100000000 b=3 c=16", Killed),
            ("a=0xffffffffffffffff b=3 c=1", Killed),
            ("a=0xffffffffffffffff b=3 c=2", Killed),
            ("a=0xffffffffffffff80 b=3 c=256", Killed),
            ("a=0x8000000000000000 b=3 c=1", Killed),
            ("a=0 b=0 c=0", Killed),
            ("a=0 b=4 c=0", Killed),
            ("a=0 b=0xffffffffffffffff c=0", Killed),
        ],
    )
}

pub fn new_pgtable(_: &mut Bench) -> Result<()> {
    all(
        4,
        "NEW_PGTABLE",
        &[
            ("a=root", Lives),
            ("a=end+0", Killed),
            ("a=0x100000000", Killed),
            ("a=0x000ffffffffff000", Killed),
            ("a=0xfffffffffffff000", Killed),
            ("a=0xffffffffffffffff", Killed),
        ],
    )
}

pub fn load_idt_entry(_: &mut Bench) -> Result<()> {
    all(
        6,
        "LOAD_IDT_ENTRY",
        &[
            ("a=50 b=0xffffffff80100000 c=0x201", Lives),
            ("a=256 b=0xffffffff80100000 c=0x201", Killed),
            ("a=0xffffffffffffffff b=0xffffffff80100000 c=0x201", Killed),
            ("a=0x100000003 b=0xffffffff80100000 c=0x201", Killed),
            ("a=2 b=0xffffffff80100000 c=0x201", Killed),
            ("a=8 b=0xffffffff80100000 c=0x201", Killed),
            ("a=18 b=0xffffffff80100000 c=0x201", Killed),
            ("a=31 b=0xffffffff80100000 c=0x201", Killed),
            // A handler that is no address: with a direct gate the processor itself would jump.
            ("a=50 b=0x8000000000000000 c=0x201", Killed),
            ("a=0x80 b=0x0000800000000000 c=0x103", Killed),
            ("a=3 b=0xffff7fffffffffff c=0x103", Killed),
            // Direct where the Host must see it first, and flags that mean nothing.
            ("a=14 b=0xffffffff80100000 c=0x101", Killed),
            ("a=13 b=0xffffffff80100000 c=0x101", Killed),
            ("a=1 b=0xffffffff80100000 c=0x101", Killed),
            ("a=50 b=0xffffffff80100000 c=0x101", Killed),
            ("a=50 b=0xffffffff80100000 c=0xfffffffffffff001", Killed),
        ],
    )
}

pub fn set_stack(_: &mut Bench) -> Result<()> {
    all(
        7,
        "SET_STACK",
        &[
            ("a=0xffff888000300000 b=1", Lives),
            ("a=0xffff888000300000 b=2", Lives),
            // The kernel's own code, which cannot be written.
            ("a=0xffffffff80102000 b=1", Killed),
            ("a=0x8000000000000000 b=1", Killed),
            ("a=0x0000800000000000 b=1", Killed),
            ("a=0xfffffffffffffff8 b=1", Killed),
            ("a=0xffffffff80102001 b=1", Killed),
            ("a=0xffffffff80102000 b=0", Killed),
            ("a=0xffffffff80102000 b=3", Killed),
            ("a=0xffffffff80102000 b=0xffffffffffffffff", Killed),
            // Below the first page, at the very end, and where nothing is mapped.
            ("a=0x1000 b=2", Killed),
            ("a=0 b=1", Killed),
            ("a=0x50001000 b=1", Killed),
        ],
    )
}

pub fn bind_dma(_: &mut Bench) -> Result<()> {
    all(
        12,
        "BIND_DMA",
        &[
            ("a=7 b=end-168 c=1 d=1", Lives),
            ("a=7 b=0x200000 c=24 d=1", Lives),
            ("a=7 b=0x200000 c=25 d=1", Killed),
            ("a=7 b=0x200000 c=0xffffffffffffffff d=1", Killed),
            ("a=7 b=0x200000 c=0x0186186186186187 d=1", Killed),
            ("a=7 b=0x200000 c=1 d=64", Killed),
            ("a=7 b=0x200000 c=1 d=0xffffffffffffffff", Killed),
            ("a=7 b=0x200000 c=1 d=0x100000001", Killed),
        ],
    )?;
    for address in BAD_RECORDS {
        let place = format!("b={address}");
        let line = ["case=hostile", "number=12", "a=7", &place, "c=1", "d=1"];
        one(&line, "BIND_DMA", Killed).with_context(|| format!("records at {address}"))?;
    }
    host::wait_until_free()
}

pub fn send_dma(_: &mut Bench) -> Result<()> {
    host::load_module()?;
    for address in BAD_RECORDS {
        let place = format!("b={address}");
        let line = ["case=hostile", "number=13", "a=0", &place];
        one(&line, "SEND_DMA", Killed).with_context(|| format!("a record at {address}"))?;
    }
    // A record in its place whose piece is not: the Launcher finds that out.
    for piece in [
        "end-8",
        "end+0",
        "0x100000000",
        "0xfffffffffffffff8",
        "0x8000000000000000",
    ] {
        let piece = format!("piece={piece}");
        let into = [
            "number=13",
            "a=0",
            "b=0x200000",
            "into=0x200000",
            &piece,
            "bytes=16",
        ];
        let ended = run(&[&["case=hostile"][..], &into[..]].concat())?;
        ended
            .expect_code(KILLED)?
            .expect_error("the Guest sent")
            .context(piece.clone())?;
    }
    // A piece at the very end of memory is in order.
    let into = [
        "number=13",
        "a=0",
        "b=0x200000",
        "into=0x200000",
        "piece=end-16",
        "bytes=16",
    ];
    run(&[&["case=hostile"][..], &into[..]].concat())?.expect_code(OFF)?;
    host::wait_until_free()
}

pub fn flush_address(_: &mut Bench) -> Result<()> {
    all(
        33,
        "FLUSH_ADDRESS",
        &[
            ("a=0", Lives),
            ("a=0x7fffffffffff", Lives),
            ("a=0xffff800000000000", Lives),
            ("a=0xffffffffffffffff", Lives),
            ("a=0xffffffff80100000", Lives),
            ("a=0x0100000000000000", Killed),
            ("a=0xfeffffffffffffff", Killed),
            ("a=0x8000000000000000", Killed),
        ],
    )
}

pub fn others(_: &mut Bench) -> Result<()> {
    all(
        5,
        "FLUSH_TLB",
        &[
            ("a=0", Lives),
            ("a=1", Lives),
            ("a=2", Killed),
            ("a=0x100000000", Killed),
        ],
    )?;
    all(1, "INIT", &[("a=1", Killed)])?;
    all(8, "TS", &[("a=1", Lives), ("a=0", Lives), ("a=2", Killed)])?;
    all(
        9,
        "SET_CLOCKEVENT",
        &[
            ("a=0", Lives),
            ("a=1", Lives),
            ("a=0x7fffffffffffffff", Lives),
            ("a=0x8000000000000000", Killed),
        ],
    )?;
    for number in [11_u64, 17, 20, 31, 34, 0x1_0000_0000, u64::MAX] {
        all(number, "unknown hypercall", &[("a=0", Killed)])?;
    }
    // Before INIT: another call, and INIT with the wrong version.
    let before = run(&["case=hostile", "raw", "number=0"])?;
    before.expect_code(KILLED)?.expect_error("before INIT")?;
    for version in ["a=0", "a=2", "a=0xffffffffffffffff"] {
        let ended = run(&["case=hostile", "raw", "number=1", version])?;
        ended
            .expect_code(KILLED)?
            .expect_error("INIT")?
            .expect_error("version")?;
    }
    // The Guest must have been told apart from a crash of its own each time.
    if run(&["case=crash"])?.code() == KILLED {
        bail!("a crash looks like a kill");
    }
    host::wait_until_free()
}
