// SPDX-License-Identifier: GPL-2.0-only

//! More Guests beside the one that the user is given, each with a terminal of its own.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios;
use nix::unistd::Pid;

use crate::guest::{child_of, exit_code};
use crate::host::{self, LAUNCHER, Voice};

/// The argument with which this program is the leader of a Launcher's terminal.
pub const LEADER: &str = "leader";

/// How long a Guest may take to end when it is told to.
const END: Duration = Duration::from_secs(10);

/// Opens a terminal without making it anybody's.
///
/// # Errors
///
/// When there is none of that name.
pub fn open_terminal(path: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .with_context(|| format!("cannot open {path}"))
}

/// Makes a command the leader of a session of its own, with its standard input as the terminal,
/// so that ^C and job control reach it.
pub fn own_terminal(command: &mut Command) {
    // SAFETY: Between fork and exec only two system calls are made, both of which may be made
    // there (signal-safety(7) lists setsid; ioctl is a bare system call in glibc). No memory is
    // allocated and no lock is taken.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// The leader of a terminal: starts the Launcher with these words and gives its exit status. It
/// outlives the Launcher, because what is on its way to a terminal is lost when its leader ends.
///
/// # Errors
///
/// When there is no Launcher.
pub fn lead(words: &[String]) -> Result<i32> {
    let status = Command::new(LAUNCHER)
        .args(words)
        .status()
        .context("the Launcher is not in this machine")?;
    termios::tcdrain(std::io::stdin().as_fd())?;
    Ok(exit_code(status))
}

/// The Guests beside the user's.
#[derive(Debug, Default)]
pub struct Beside {
    guests: Vec<Running>,
    /// Whether they are being stopped: then it is no news that they end.
    stopping: Arc<AtomicBool>,
}

/// One of them.
#[derive(Debug)]
struct Running {
    number: u32,
    leader: Pid,
    waiter: JoinHandle<i32>,
}

impl Beside {
    /// Starts Guest `number`, on the terminal of that number, with these words for the Launcher.
    /// `voice` says so when it ends by itself.
    ///
    /// # Errors
    ///
    /// When there is no such terminal, or the Host takes no Guest.
    pub fn start<'a>(
        &mut self,
        number: u32,
        words: impl Iterator<Item = &'a str>,
        mut voice: Voice,
    ) -> Result<()> {
        host::load_module()?;
        let terminal = open_terminal(&format!("/dev/hvc{number}"))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(LEADER).args(words);
        command
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal.try_clone()?);
        own_terminal(&mut command);
        let mut child = command.spawn().context("cannot start a Guest beside")?;
        let leader = Pid::from_raw(child.id().cast_signed());
        let stopping = Arc::clone(&self.stopping);
        let waiter = thread::spawn(move || {
            let status = child.wait().map_or(3, exit_code);
            // The leader drained it, and the terminal is kept until here.
            drop(terminal);
            if !stopping.load(Ordering::Acquire) {
                // If nobody listens the machine is about to end.
                let _ = voice.say("over", &format!("{number} {status}"));
            }
            status
        });
        self.guests.push(Running {
            number,
            leader,
            waiter,
        });
        Ok(())
    }

    /// Ends those that still run, as `kill` would, and says so of each.
    ///
    /// # Errors
    ///
    /// When nobody listens.
    pub fn stop(self, voice: &mut Voice) -> Result<()> {
        let running = self.guests.into_iter();
        let running: Vec<_> = running
            .filter(|guest| !guest.waiter.is_finished())
            .collect();
        self.stopping.store(true, Ordering::Release);
        for Running {
            number,
            leader,
            waiter,
        } in running
        {
            let status = stop(leader, &waiter);
            let status = status.and_then(|()| waiter.join().ok()).unwrap_or(3);
            voice.say("stopped", &format!("{number} {status}"))?;
        }
        Ok(())
    }
}

/// Ends the Launcher under this leader; nothing if it cannot be ended.
fn stop(leader: Pid, waiter: &JoinHandle<i32>) -> Option<()> {
    let gentle = Instant::now() + END * host::patience();
    let last = gentle + END * host::patience();
    let mut told = None;
    while !waiter.is_finished() {
        let (how, overdue) = match Instant::now() {
            now if now > last => return None,
            now if now > gentle => (Signal::SIGKILL, true),
            _ => (Signal::SIGTERM, false),
        };
        // The leader may not have started it yet, or it may have ended just now.
        if let Some(launcher) = child_of(leader)
            && told != Some(how)
            && kill(launcher, how).is_ok()
        {
            told = Some(how);
        } else if overdue && told != Some(how) {
            // Then there is the leader alone.
            let _ = kill(leader, how);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Some(())
}

/// Makes this process the leader of a session with this terminal, so that ^C and job control reach
/// its children. The Launcher must not be the leader: when a leader ends, the terminal is hung up
/// and what it printed last is lost.
///
/// # Errors
///
/// When another session has the terminal.
pub fn lead_terminal(terminal: &File) -> Result<()> {
    // It is the leader already if this is the second Guest.
    if nix::unistd::setsid().is_ok() {
        // SAFETY: The descriptor is open, and this request takes a number, not a pointer.
        let set = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
        nix::errno::Errno::result(set).context("cannot lead the Guest's terminal")?;
    }
    Ok(())
}
