// SPDX-License-Identifier: GPL-2.0-only

//! A plugin of QEMU's that counts the instructions which the machine executes, all processors and
//! all programs together.
//!
//! A machine with `-icount` has a clock that goes by instructions while there are any, but it jumps
//! when all processors wait. So the clock cannot tell how many instructions an *idle* machine
//! executes; this can. Started with `-plugin liblguest_counter.so,mark=ADDRESS,out=FILE`, it writes
//! a line with its count to the file each time that a program calls the function at the address.
//!
//! Reference: QEMU's `include/qemu/qemu-plugin.h`. Only those of its functions are used that have
//! been the same from QEMU 4.2 on.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// A block of instructions that QEMU translates.
type Block = c_void;
/// What QEMU calls when it translates a block.
type Translated = extern "C" fn(id: u64, block: *mut Block);
/// What QEMU calls when a processor executes a block.
type Executed = extern "C" fn(cpu: c_uint, data: *mut c_void);
/// `QEMU_PLUGIN_CB_NO_REGS`: the function looks at no registers of the machine's.
const NO_REGISTERS: c_uint = 0;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: Translated);
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        call: Executed,
        flags: c_uint,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
}

/// The version of the interface that QEMU finds here: 1, or 2 from QEMU 9 on.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "QEMU looks for it under this name")]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(1);

/// Called when the plugin is loaded, before QEMU asks for the version.
#[used]
// SAFETY: An array of functions that are called without arguments that matter to them.
#[unsafe(link_section = ".init_array")]
static CHOOSE: extern "C" fn() = choose;

/// With version 2 a function went away that version 1 had.
extern "C" fn choose() {
    let name = c"qemu_plugin_register_vcpu_tb_exec_inline";
    // SAFETY: The name is a C string.
    let old = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if old.is_null() {
        qemu_plugin_version.store(2, Ordering::Relaxed);
    }
}

/// The instructions so far. A machine that counts executes on one thread.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// The function whose calls are marks, and where they are written to.
static MARK: OnceLock<(u64, File)> = OnceLock::new();

/// QEMU calls this when it starts: 0 is success.
///
/// # Safety
///
/// Only QEMU may call it: with as many C strings as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    count: c_int,
    words: *const *const c_char,
) -> c_int {
    let (mut mark, mut file) = (None, None);
    for n in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: As the caller promises.
        let word = unsafe { CStr::from_ptr(*words.add(n)) }.to_bytes();
        if let Some(number) = word.strip_prefix(b"mark=") {
            let number = str::from_utf8(number).ok();
            mark = number.and_then(|number| number.parse().ok());
        }
        if let Some(path) = word.strip_prefix(b"out=") {
            file = File::create(OsStr::from_bytes(path)).ok();
        }
    }
    let (Some(mark), Some(file)) = (mark, file) else {
        eprintln!("the counter needs mark=NUMBER and out=FILE, a file that can be written");
        return -1;
    };
    if MARK.set((mark, file)).is_err() {
        eprintln!("the counter can be there only once");
        return -1;
    }
    // SAFETY: The number is the one that QEMU gave, and the function may be called at any time.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
    0
}

extern "C" fn translated(_: u64, block: *mut Block) {
    // SAFETY: QEMU's block, which is there while this function runs. What is registered may be
    // called at any time, and the data is a number and no pointer.
    unsafe {
        let length = std::ptr::without_provenance_mut(qemu_plugin_tb_n_insns(block));
        qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, length);
        if MARK
            .get()
            .is_some_and(|mark| mark.0 == qemu_plugin_tb_vaddr(block))
        {
            let nothing = std::ptr::null_mut();
            qemu_plugin_register_vcpu_tb_exec_cb(block, marked, NO_REGISTERS, nothing);
        }
    }
}

extern "C" fn executed(_: c_uint, length: *mut c_void) {
    COUNT.fetch_add(length.addr() as u64, Ordering::Relaxed);
}

extern "C" fn marked(_: c_uint, _: *mut c_void) {
    if let Some((_, file)) = MARK.get() {
        let mut file = file;
        // A line that is missing will be missed by whoever reads them.
        let _ = writeln!(file, "{}", COUNT.load(Ordering::Relaxed));
    }
}
