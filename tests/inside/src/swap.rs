// SPDX-License-Identifier: GPL-2.0-only

//! A place to swap to: a file in memory that is not swapped itself, behind a loop device.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount, umount};

/// Where the file system is that Linux does not swap.
const PLACE: &str = "/tmp/not-swapped";
/// The device that the file becomes.
const DEVICE: &str = "/dev/loop0";
/// Bytes in a page.
const PAGE: u64 = 4096;

/// Swap that is there until this is dropped.
#[derive(Debug)]
pub struct Swap {
    device: File,
}

impl Swap {
    /// Gives the machine so many pages of swap.
    ///
    /// # Errors
    ///
    /// When the machine lacks what it takes.
    pub fn new(pages: u64) -> Result<Self> {
        if !Path::new(PLACE).exists() {
            fs::create_dir(PLACE)?;
        }
        let none: Option<&str> = None;
        mount(Some("none"), PLACE, Some("ramfs"), MsFlags::empty(), none).context("no ramfs")?;
        let mut opened = OpenOptions::new();
        let opened = opened.read(true).write(true).create(true).truncate(false);
        let file = opened.open(format!("{PLACE}/swap"))?;
        file.set_len(pages * PAGE)?;
        // What mkswap writes: version, the last page, no bad pages, and a word at the page's end.
        file.write_all_at(&1_u32.to_le_bytes(), 1024)?;
        file.write_all_at(&u32::try_from(pages - 1)?.to_le_bytes(), 1028)?;
        file.write_all_at(b"SWAPSPACE2", PAGE - 10)?;
        let device = opened.open(DEVICE).context(DEVICE)?;
        // SAFETY: Both are open files, and the call takes no pointers.
        let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) };
        ensure!(set == 0, "{DEVICE}: {}", std::io::Error::last_os_error());
        let swap = Self { device };
        let path = CString::new(DEVICE)?;
        // SAFETY: The path is a string that lives as long as the call.
        let on = unsafe { libc::swapon(path.as_ptr(), 0) };
        ensure!(on == 0, "swapon: {}", std::io::Error::last_os_error());
        Ok(swap)
    }
}

/// Gives a loop device its file, and takes it away.
const LOOP_SET_FD: libc::Ioctl = 0x4c00;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;

impl Drop for Swap {
    fn drop(&mut self) {
        let path = CString::new(DEVICE).unwrap_or_default();
        // What cannot be given back here is gone with the machine.
        // SAFETY: The path is a string that lives as long as the call.
        unsafe { libc::swapoff(path.as_ptr()) };
        // SAFETY: An open file, and no pointers.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD, 0) };
        let _ = fs::remove_file(format!("{PLACE}/swap"));
        let _ = umount(PLACE);
    }
}
