// SPDX-License-Identifier: GPL-2.0-only

//! The runs of this checkout that are under way, so that another terminal finds them.
//!
//! Each has a link in a folder of the checkout, named by the number of its process. It leads to
//! the folder of the run's machine, where a socket waits for those who want to attach to a Guest.
//! The link goes when the run ends. What a killed run has left behind leads nowhere, or to a
//! socket at which nobody listens, and whoever finds that removes it.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::artifacts::target_directory;
use crate::cleanup;

/// The socket's name in the machine's folder.
const SOCKET: &str = "attach";

/// The most Guests in a run. The Makefile knows them by number, too.
pub const MOST: u32 = 4;

/// Where the links are: a folder of the build's, or what `LGUEST_RUNS` says. The tests say it, to
/// be among themselves.
fn folder() -> PathBuf {
    match env::var_os("LGUEST_RUNS") {
        Some(folder) => folder.into(),
        None => target_directory().join("runs"),
    }
}

/// A run that can be found. When this is dropped it cannot any more.
#[derive(Debug)]
pub struct Entry {
    link: PathBuf,
}

impl Entry {
    /// Lets this process be found as the run with the machine of that folder. Who finds it comes
    /// to the listener.
    ///
    /// # Errors
    ///
    /// When the link or the socket cannot be made.
    pub fn new(machine: &Path) -> Result<(Self, UnixListener)> {
        let listener = UnixListener::bind(machine.join(SOCKET))?;
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let link = folder.join(std::process::id().to_string());
        // A killed run may have had the same number.
        forget(&link);
        symlink(machine, &link).with_context(|| format!("cannot make {}", link.display()))?;
        cleanup::note_folder(&link);
        Ok((Self { link }, listener))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        forget(&self.link);
        cleanup::forget_folder(&self.link);
    }
}

/// Removes a link that may be gone already.
fn forget(link: &Path) {
    let _ = fs::remove_file(link);
}

/// Connects to the run that is under way, or to this one of several.
///
/// # Errors
///
/// When there is none, or it is not clear which.
pub fn find(wanted: Option<u32>) -> Result<UnixStream> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder()).into_iter().flatten().flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let socket = entry.path().join(SOCKET);
        match UnixStream::connect(&socket) {
            Ok(stream) => runs.push((number, stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                forget(&entry.path());
            }
            Err(error) => {
                let place = socket.display().to_string();
                return Err(error).with_context(|| format!("cannot connect to {place}"));
            }
        }
    }
    if runs.is_empty() {
        bail!("no `make run` of this checkout is under way: start one, as `make run GUESTS=2`");
    }
    runs.sort_by_key(|(number, _)| *number);
    let numbers: Vec<_> = runs.iter().map(|(number, _)| number.to_string()).collect();
    let numbers = numbers.join(", ");
    match wanted {
        Some(wanted) => match runs.into_iter().find(|(number, _)| *number == wanted) {
            Some((_, stream)) => Ok(stream),
            None => bail!("no run {wanted} of this checkout is under way, but {numbers}"),
        },
        None if runs.len() > 1 => {
            let (first, _) = runs.swap_remove(0);
            bail!(
                "several runs of this checkout are under way, {numbers}: say which, as RUN={first}"
            )
        }
        None => Ok(runs.swap_remove(0).1),
    }
}
