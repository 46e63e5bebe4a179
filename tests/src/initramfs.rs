// SPDX-License-Identifier: GPL-2.0-only

//! A writer of `cpio` archives in the `newc` form, which Linux unpacks as its first file system.
//!
//! The form is described in the kernel's `Documentation/driver-api/early-userspace/
//! buffer-format.rst`: for each file a header of 110 ASCII characters, its name, its bytes, and
//! zeros up to a multiple of four after each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The mode bits of a directory, as in `stat`.
const DIRECTORY: u32 = 0o040_000;
/// The mode bits of a regular file.
const REGULAR: u32 = 0o100_000;
/// The mode bits of a symbolic link.
const LINK: u32 = 0o120_000;
/// The mode bits of a character device.
const CHARACTER: u32 = 0o020_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; its parent must have been added before.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file with these permissions and bytes.
    pub fn file(&mut self, name: &str, permissions: u32, bytes: &[u8]) {
        self.entry(name, REGULAR | permissions, (0, 0), bytes);
    }

    /// Adds a copy of a file of this machine, executable.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(name, 0o755, &bytes);
        Ok(())
    }

    /// Adds a symbolic link called `name` that points to `target`.
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, name: &str, numbers: (u32, u32)) {
        self.entry(name, CHARACTER | 0o600, numbers, &[]);
    }

    /// Ends the archive and hands out its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// Adds one entry: `mode` as in `stat`, `numbers` those of a device.
    fn entry(&mut self, name: &str, mode: u32, numbers: (u32, u32), bytes: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(bytes.len()).expect("a file of the initramfs is under 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a name is short");
        let fields = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time: always 0, so that the same files give the same archive
            size,
            0, // device of the file system
            0,
            numbers.0,
            numbers.1,
            name_size,
            0, // checksum, which this form does not have
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Fills up to a multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn a_header_has_110_characters_and_everything_is_aligned() {
        let mut archive = Archive::new();
        archive.file("abc", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"abc\0");
        // 114 rounded up to 116.
        assert_eq!(&bytes[116..121], b"12345");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_system_s_own_cpio_reads_it() {
        let busybox = Path::new("/usr/bin/busybox");
        let program = if busybox.exists() {
            busybox
        } else {
            Path::new("cpio")
        };
        let mut command = Command::new(program);
        if program == busybox {
            command.arg("cpio");
        }
        let spawned = command
            .args(["-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = spawned else {
            // Neither is installed; the test above covers the form.
            return;
        };
        let mut archive = Archive::new();
        archive.directory("bin");
        archive.file("bin/one", 0o755, b"1");
        archive.link("init", "bin/one");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "bin\nbin/one\ninit\n"
        );
    }
}
