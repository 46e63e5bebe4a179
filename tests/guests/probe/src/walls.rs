// SPDX-License-Identifier: GPL-2.0-only

//! What ring 3 cannot do to ring 1, and ring 1 cannot do to the Host.

use abi::data::{MAX_RESERVED, RING_FREE, RING_READY, RING_SLOTS, Range, RingCall};
use abi::dma::CONSOLE_IRQ;
use rt::memory::{self, PAGE};
use rt::traps::{self, Fault};
use rt::user::{Attempt, attempt};
use rt::{console, hypercall, println, share, shared};

/// A page fault from ring 3, with this error code.
fn is_user_fault(result: Result<u64, Fault>, error: u64, what: &str) {
    match result {
        Ok(value) => panic!("{what}: ring 3 got {value:#x}"),
        Err(fault) => {
            let from_user = fault.cs == u64::from(abi::segments::GUEST_USER_CS);
            assert!(fault.vector == 14 && from_user, "{what}: {fault:?}");
            // 1: it is there; 2: a write; 4: from ring 3; 16: an instruction.
            assert!(
                fault.error == error,
                "{what}: error {:#x}, {fault:?}",
                fault.error
            );
        }
    }
}

/// The ranges that the Host keeps for itself.
fn reserved() -> impl Iterator<Item = Range> {
    let count = shared!(reserved_count) as usize;
    assert!(
        0 < count && count <= MAX_RESERVED,
        "{count} reserved ranges"
    );
    (0..count).map(|number| shared!(reserved[number]))
}

/// Ring 3: what it may do works, what it may not does not.
pub fn user() {
    let done = attempt(Attempt::SystemCalls, 0);
    assert!(done == Ok(1000), "1,000 system calls: {done:?}");
    assert!(
        attempt(Attempt::Read, rt::user::DATA) == Ok(0),
        "its own data"
    );
    assert!(
        attempt(Attempt::Write, rt::user::DATA).is_ok(),
        "its own data"
    );

    // Ring 1's memory, in the image and in the linear map, is there but not for ring 3.
    let secret = 0x5ec4e7_u64;
    let image = &raw const secret as u64;
    let line = abi::boot::LINEAR_BASE;
    for (address, name) in [(image, "the kernel's stack"), (line, "the linear map")] {
        is_user_fault(attempt(Attempt::Read, address), 5, name);
        is_user_fault(attempt(Attempt::Write, address), 7, name);
    }
    let code = user as *const () as u64;
    is_user_fault(attempt(Attempt::Execute, code), 0x15, "the kernel's code");

    // The Switcher's pages and the shared page.
    for range in reserved() {
        let mut address = range.start;
        let mut steps = 0;
        while address < range.end && steps < 64 {
            for what in [Attempt::Read, Attempt::Write] {
                let result = attempt(what, address);
                let fault = result.expect_err("ring 3 touched a reserved page");
                assert!(fault.vector == 14, "{address:#x}: {fault:?}");
                assert!(fault.error & 4 == 4, "{address:#x}: {fault:?}");
            }
            address += PAGE;
            steps += 1;
        }
    }
    let data = hypercall::data() as u64;
    let fault = attempt(Attempt::Read, data).expect_err("ring 3 read the shared page");
    assert!(fault.vector == 14, "{fault:?}");

    // A hypercall, ports and HLT are general protection faults in ring 3; SYSCALL is an opcode
    // that is not there.
    for (what, vector) in [
        (Attempt::Hypercall, 13),
        (Attempt::Halt, 13),
        (Attempt::In, 13),
        (Attempt::Syscall, 6),
    ] {
        match attempt(what, 0) {
            Err(fault) => assert!(fault.vector == vector, "{what:?}: {fault:?}"),
            Ok(value) => panic!("{what:?} went through with {value:#x}"),
        }
    }
    println!("good: ring 3 stays where it is");
}

/// Ring 1: it cannot change what the Switcher relies on, nor see the Host.
pub fn walls() {
    let data = hypercall::data() as u64;
    let mut refused = 0;
    let mut written = 0;
    let mut pages = 0;
    let mut ranges = 0;
    for range in reserved() {
        ranges += 1;
        assert!(
            range.start % PAGE == 0 && range.end % PAGE == 0,
            "{range:?} is not whole pages"
        );
        assert!(range.start < range.end, "{range:?} is empty");
        for address in (range.start..range.end).step_by(PAGE as usize) {
            pages += 1;
            if address == data {
                continue;
            }
            let before = traps::attempt_read(address);
            // What is there goes back as it was, so that a page that may be written is not hurt.
            match traps::attempt_write(address, before.unwrap_or(0)) {
                Ok(()) => written += 1,
                Err(fault) => {
                    assert!(fault.vector == 14 && fault.address == address, "{fault:?}");
                    refused += 1;
                }
            }
        }
    }
    own_page_at_reserved();

    // A flush of the Switcher's own addresses must not take it away.
    for range in reserved() {
        for address in (range.start..range.end).step_by(PAGE as usize) {
            hypercall::call(abi::hypercall::FLUSH_ADDRESS, [address, 0, 0, 0]);
        }
    }
    println!("{pages} pages in {ranges} ranges: {refused} refused, {written} written");
    // The one page that ring 1 may write besides the shared one is that of the register frame of
    // the processor it runs on, which may change between two attempts.
    assert!(written <= 2, "{written} reserved pages could be written");
    assert!(
        refused >= 3,
        "only {refused} reserved pages refused a write"
    );

    // The Host's own places, from its kernel's text to its fixed mappings.
    let ranges_hold = |address: u64| reserved().any(|range| range.contains(address));
    for (address, name) in [
        (0xffff_ffff_8100_0000_u64, "the Host's text"),
        (0xffff_ffff_8200_0000, "the Host's data"),
        (0xffff_ffff_a000_0000, "the Host's modules"),
        (0xffff_ffff_ff5f_d000, "the Host's fixed mappings"),
        (0xffff_fe00_0000_0000, "the Host's CPU entry area"),
        (0xffff_fe00_0000_1000, "the Host's task state"),
        (0xffff_c900_0000_0000, "the Host's vmalloc area"),
        (0xffff_ea00_0000_0000, "the Host's page descriptors"),
        (
            0xff11_0000_0000_0000,
            "the Host's linear map with five levels",
        ),
        (
            0xffa0_0000_0000_0000,
            "the Host's vmalloc area with five levels",
        ),
    ] {
        if ranges_hold(address) {
            continue;
        }
        match traps::attempt_read(address) {
            Ok(value) => panic!("{name}: ring 1 read {value:#x} at {address:#x}"),
            Err(fault) => {
                // Nothing is mapped there; with four levels the last two are not even addresses.
                let expected = fault.vector == 14 && fault.error & 1 == 0 || fault.vector == 13;
                assert!(expected, "{name}: {fault:?}");
            }
        }
    }
    // Beyond the end of its own memory and devices in the linear map.
    let end = abi::boot::LINEAR_BASE + rt::boot::end();
    let fault = traps::attempt_read(end).expect_err("memory beyond the end was read");
    assert!(fault.vector == 14 && fault.error == 0, "{fault:?}");
    // An own page-table entry that points at an address beyond the end must not give anything:
    // the Host ends this Guest for it, so it is the last attempt.
    if rt::boot::option("beyond").is_some() {
        let place = memory::entry(memory::first_root(), 0x7800_0000, 1);
        let beyond = rt::boot::number("beyond").unwrap_or(0);
        memory::write_entry(place, beyond | memory::PRESENT | memory::WRITABLE);
        let result = traps::attempt_read(0x7800_0000);
        panic!("a page beyond memory gave {result:?}");
    }
    println!("good: ring 1 stays where it is");
}

/// A page of this Guest's own, put into its tables where the Switcher is: the Switcher stays.
fn own_page_at_reserved() {
    const MARK: u64 = 0x0bad_cafe_0bad_cafe;
    let page = memory::page();
    // SAFETY: The page is fresh and this program's own.
    unsafe { memory::linear::<u64>(page).write_volatile(MARK) };
    let data = hypercall::data() as u64;
    for range in reserved() {
        for address in (range.start..range.end).step_by(PAGE as usize) {
            let place = memory::entry(memory::first_root(), address, 1);
            memory::write_entry(place, page | memory::PRESENT | memory::WRITABLE);
            hypercall::call(abi::hypercall::FLUSH_ADDRESS, [address, 0, 0, 0]);
            let value = traps::attempt_read(address);
            assert!(
                value != Ok(MARK),
                "{address:#x} shows this Guest's own page"
            );
            if address != data {
                let _ = traps::attempt_write(address, value.unwrap_or(0));
            }
            memory::write_entry(place, 0);
            hypercall::call(abi::hypercall::FLUSH_ADDRESS, [address, 0, 0, 0]);
        }
    }
    // SAFETY: As above.
    let value = unsafe { memory::linear::<u64>(page).read_volatile() };
    assert!(
        value == MARK,
        "a write to a reserved address went to this Guest's page: {value:#x}"
    );
}

/// After a flush and a sleep, which may have been on two processors, the reserved pages of only
/// one are there. Says which pages can be read each time something was typed.
pub fn former_cpu() {
    console::bind_input();
    println!("waiting");
    let rounds = rt::boot::number("rounds").unwrap_or(10);
    for round in 1..=rounds {
        hypercall::enable_interrupts();
        while traps::irqs()[CONSOLE_IRQ as usize] < round {
            // Both in one trip: the flush is done, and this Guest sleeps before it runs again.
            let slot = (round - 1) as usize % RING_SLOTS;
            let flush = RingCall {
                number: abi::hypercall::FLUSH_ADDRESS,
                args: [abi::boot::LINEAR_BASE, 0, 0, 0],
            };
            share!(flush => ring[slot]);
            share!(RING_READY => ring_status[slot]);
            hypercall::call(abi::hypercall::HALT, [0; 4]);
            assert!(
                shared!(ring_status[slot]) == RING_FREE,
                "the flush was not done"
            );
        }
        let mut readable = 0_u64;
        let mut bit = 1;
        for range in reserved() {
            for address in (range.start..range.end).step_by(PAGE as usize) {
                if traps::attempt_read(address).is_ok() {
                    readable |= bit;
                }
                bit <<= 1;
            }
        }
        let mut bytes = [0; 64];
        console::take_input(&mut bytes);
        println!("round {round}: readable {readable:#x}");
    }
    println!("good: {rounds} rounds");
}
