// SPDX-License-Identifier: GPL-2.0-only

//! A Guest under its Launcher, with pipes in place of a terminal.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::{self, LAUNCHER};
use crate::patience::Patience;
use crate::standin::STAND_IN;
use crate::stuck;

/// How long anything may take. Generous: the machine is emulated and may share its processors.
pub fn patience() -> Duration {
    Duration::from_secs(120) * host::patience()
}

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// What a stream has brought so far.
#[derive(Debug, Default)]
struct Collected {
    bytes: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

impl Collected {
    /// Reads a stream to its end in a thread of its own.
    fn from(mut stream: impl Read + Send + 'static) -> Arc<Self> {
        let collected = Arc::new(Self::default());
        let writer = Arc::clone(&collected);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let n = stream.read(&mut buffer).unwrap_or(0);
                let mut guard = writer.bytes.lock().expect("no reader panics");
                guard.0.extend_from_slice(&buffer[..n]);
                guard.1 = n == 0;
                writer.more.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        collected
    }

    /// Waits until `done` says so of the text, or the stream ends, or patience does.
    fn wait(&self, patience: Duration, done: impl Fn(&str) -> bool) -> (String, bool) {
        let mut left = Patience::new(patience);
        let mut guard = self.bytes.lock().expect("no reader panics");
        loop {
            let text = String::from_utf8_lossy(&guard.0).into_owned();
            let met = done(&text);
            if met || guard.1 || left.is_over() {
                return (text, met);
            }
            guard = self
                .more
                .wait_timeout(guard, left.wait())
                .expect("no reader panics")
                .0;
        }
    }

    /// Waits for the end of the stream and gives all of it.
    fn all(&self, patience: Duration) -> String {
        self.wait(patience, |_| false).0
    }
}

/// A Guest that is running.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    /// Whether it is the Launcher, which forks a process that runs the Guest.
    launcher: bool,
    input: Option<ChildStdin>,
    output: Arc<Collected>,
    errors: Arc<Collected>,
}

/// A Guest that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How the Launcher ended.
    pub status: ExitStatus,
    /// What the Guest printed.
    pub output: String,
    /// What the Launcher complained of.
    pub errors: String,
}

impl Guest {
    /// Starts the Launcher with these arguments.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch(arguments: &[&str]) -> Result<Self> {
        Self::start(Command::new(LAUNCHER).args(arguments))
    }

    /// Starts the Launcher as a user with no rights of any kind.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch_as_nobody(arguments: &[&str]) -> Result<Self> {
        Self::start(
            Command::new(LAUNCHER)
                .args(arguments)
                .uid(NOBODY)
                .gid(NOBODY),
        )
    }

    /// Starts the Launcher as a user with no rights, and with a limit: `memlock`, `as`, `nofile`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn launch_with_limit(limit: &str, value: u64, arguments: &[&str]) -> Result<Self> {
        let resource = match limit {
            "memlock" => libc::RLIMIT_MEMLOCK,
            "as" => libc::RLIMIT_AS,
            "nofile" => libc::RLIMIT_NOFILE,
            other => bail!("no limit is called {other:?}"),
        };
        let mut command = Command::new(LAUNCHER);
        command.args(arguments).uid(NOBODY).gid(NOBODY);
        let limit = libc::rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        // SAFETY: Between fork and exec one system call is made, which reads a copy that the
        // closure owns.
        unsafe {
            command.pre_exec(move || match libc::setrlimit(resource, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Self::start(&mut command)
    }

    /// Starts a stand-in for the Launcher; the first word is its name.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn stand_in(words: &[&str]) -> Result<Self> {
        Self::start(Command::new("/proc/self/exe").arg(STAND_IN).args(words))
    }

    /// Starts a Launcher: any command that is one.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let launcher = command.get_program() != "/proc/self/exe";
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("the Launcher is not in this machine: `make launcher`")?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("a pipe was asked for")?;
        let errors = child.stderr.take().context("a pipe was asked for")?;
        let (output, errors) = (Collected::from(output), Collected::from(errors));
        Ok(Self {
            child,
            launcher,
            input,
            output,
            errors,
        })
    }

    /// Starts the test Guest with 16 MiB and words for its command line.
    ///
    /// # Errors
    ///
    /// When the Launcher cannot be started.
    pub fn probe(words: &[&str]) -> Result<Self> {
        Self::launch(&[&["16", "/guests/probe"], words].concat())
    }

    /// All that the Guest has printed, once `done` says so of it.
    ///
    /// # Errors
    ///
    /// When it ends before, or takes too long.
    pub fn output_until(&self, done: impl Fn(&str) -> bool) -> Result<String> {
        let (so_far, met) = self.output.wait(patience(), done);
        if met {
            return Ok(so_far);
        }
        let errors = self.errors.wait(Duration::ZERO, |_| false).0;
        let stuck = stuck::programs();
        bail!(
            "waited in vain; the Guest printed {so_far:?}, its Launcher {errors:?}\n\
             all programs then:\n{stuck}"
        )
    }

    /// All it has printed, once `done` says so of it; `None` if that takes longer than this.
    pub fn output_within(&self, patience: Duration, done: impl Fn(&str) -> bool) -> Option<String> {
        let (so_far, met) = self.output.wait(patience, done);
        met.then_some(so_far)
    }

    /// Waits until the Guest has printed `text`.
    ///
    /// # Errors
    ///
    /// When it ends before, or takes too long.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        let (so_far, met) = self.output.wait(patience(), |output| output.contains(text));
        if met {
            return Ok(());
        }
        let errors = self.errors.wait(Duration::ZERO, |_| false).0;
        let stuck = stuck::programs();
        bail!(
            "the Guest never printed {text:?}, but {so_far:?}; its Launcher said {errors:?}\n\
             all programs then:\n{stuck}"
        )
    }

    /// Waits until the Guest has printed `text` so many times.
    ///
    /// # Errors
    ///
    /// When it ends before, or takes too long.
    pub fn wait_for_count(&self, text: &str, times: usize) -> Result<()> {
        let often = |output: &str| output.matches(text).count() >= times;
        let (so_far, met) = self.output.wait(patience(), often);
        ensure!(met, "not {times} times {text:?}, but {so_far:?}");
        Ok(())
    }

    /// Waits until the Guest has printed a whole line that has `text` in it; gives what follows.
    ///
    /// # Errors
    ///
    /// When it ends before, or takes too long.
    pub fn line_with(&self, text: &str) -> Result<String> {
        let rest = |output: &str| {
            let (_, after) = output.split_once(text)?;
            let (line, _) = after.split_once('\n')?;
            Some(line.to_owned())
        };
        let (so_far, _) = self
            .output
            .wait(patience(), |output| rest(output).is_some());
        rest(&so_far).with_context(|| format!("the Guest never printed {text:?}, but {so_far:?}"))
    }

    /// Types to the Guest.
    ///
    /// # Errors
    ///
    /// When the Launcher is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let input = self.input.as_mut().context("the input was closed before")?;
        input
            .write_all(bytes)
            .and_then(|()| input.flush())
            .context("the Launcher is gone")
    }

    /// Closes the pipe that the Guest's input comes from.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The process that was started: the Launcher's parent process, or a stand-in.
    pub fn parent(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The process that runs the Guest: the Launcher's life, or a stand-in.
    pub fn pid(&self) -> Pid {
        match self.launcher {
            true => child_of(self.parent()).unwrap_or(self.parent()),
            false => self.parent(),
        }
    }

    /// Whether the Launcher is still there.
    ///
    /// # Errors
    ///
    /// When the system will not say.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends the process that runs the Guest a signal.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal}"))
    }

    /// Waits until the Guest is over.
    ///
    /// # Errors
    ///
    /// When it takes too long; the Launcher is then killed.
    pub fn finish(self) -> Result<Ended> {
        self.finish_within(patience())
    }

    /// Waits so long until the Guest is over.
    ///
    /// # Errors
    ///
    /// When it takes longer; the Launcher is then killed.
    pub fn finish_within(mut self, patience: Duration) -> Result<Ended> {
        let mut left = Patience::new(patience);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break Some(status);
            }
            if left.is_over() {
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let mut stuck = String::new();
        if status.is_none() {
            stuck = stuck::programs();
            // It may end by itself between the look and this.
            let _ = self.child.kill();
        }
        let output = self.output.all(Duration::from_secs(10) * host::patience());
        let errors = self.errors.all(Duration::from_secs(10) * host::patience());
        match status {
            Some(status) => Ok(Ended {
                status,
                output,
                errors,
            }),
            None => bail!(
                "still running after {} seconds; it had printed {output:?}, its Launcher {errors:?}\n\
                 all programs then:\n{stuck}",
                patience.as_secs()
            ),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A case that fails leaves no Guest behind, if the Host lets go of it: one that cannot be
        // killed must not hold up the cases after it.
        let _ = self.child.kill();
        let mut left = Patience::new(Duration::from_secs(10) * host::patience());
        while !left.is_over() && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Ended {
    /// The exit status as a shell counts: 128 and the signal's number if one ended it.
    pub fn code(&self) -> i32 {
        exit_code(self.status)
    }

    /// Checks the exit status.
    ///
    /// # Errors
    ///
    /// When it is another; with all that was printed.
    pub fn expect_code(&self, code: i32) -> Result<&Self> {
        ensure!(
            self.code() == code,
            "exit status {}, not {code}: {}",
            self.code(),
            self.said()
        );
        Ok(self)
    }

    /// Checks that the Guest printed a text.
    ///
    /// # Errors
    ///
    /// When it did not; with all that was printed.
    pub fn expect_output(&self, text: &str) -> Result<&Self> {
        ensure!(
            self.output.contains(text),
            "no {text:?} in what was said: {}",
            self.said()
        );
        Ok(self)
    }

    /// Checks that the Launcher complained with a text, upper and lower case alike.
    ///
    /// # Errors
    ///
    /// When it did not; with all that was printed.
    pub fn expect_error(&self, text: &str) -> Result<&Self> {
        let found = self.errors.to_lowercase().contains(&text.to_lowercase());
        ensure!(
            found,
            "no {text:?} in the Launcher's complaint: {}",
            self.said()
        );
        Ok(self)
    }

    /// All that was said, for a failure's text.
    pub fn said(&self) -> String {
        let Self {
            status,
            output,
            errors,
        } = self;
        format!("{status}\nthe Guest:\n{output}\nthe Launcher:\n{errors}")
    }
}

/// State and parent of a process, if it is there.
pub fn state_and_parent(process: Pid) -> Option<(char, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?.chars().next()?;
    Some((state, Pid::from_raw(words.next()?.parse().ok()?)))
}

/// The first child of a process.
pub fn child_of(parent: Pid) -> Option<Pid> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .map(Pid::from_raw)
        .find(|pid| state_and_parent(*pid).is_some_and(|(_, of)| of == parent))
}

/// An exit status as a shell counts.
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
