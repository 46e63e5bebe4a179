// SPDX-License-Identifier: GPL-2.0-only

//! What a user sees of `make run MONITOR=1`, at a terminal and with a pipe; of `make run GUESTS=2`,
//! and of `make attach` in another terminal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::artifacts;
use crate::recording;
use crate::report::Report;
use crate::sample;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// One test of the user's side.
#[derive(Debug)]
pub struct Test {
    /// What it is called.
    pub name: &'static str,
    body: fn(&mut Session) -> Result<()>,
    kind: Kind,
}

/// What the user has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pipe,
    Terminal,
    TerminalAndShell,
    /// A terminal, and two Guests with their programs.
    Two,
    /// A pipe, and two Guests.
    PipeAndTwo,
    /// A terminal in which nothing but `attach` is tried.
    Attach,
}

impl Kind {
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Pipe | Self::Terminal => &["run", "--monitor"],
            Self::TerminalAndShell => &["run", "--monitor", "--host-shell"],
            Self::Two => &["run", "--guests=2"],
            Self::PipeAndTwo => &["run", "--monitor", "--guests=2"],
            Self::Attach => &["attach", "2"],
        }
    }
}

/// All of them.
pub const TESTS: &[Test] = &[
    Test {
        name: "pipe",
        body: pipe,
        kind: Kind::Pipe,
    },
    Test {
        name: "pipe-end",
        body: pipe_end,
        kind: Kind::Pipe,
    },
    Test {
        name: "pipe-unfinished",
        body: pipe_unfinished,
        kind: Kind::Pipe,
    },
    Test {
        name: "pipe-restart-end",
        body: pipe_restart_end,
        kind: Kind::Pipe,
    },
    Test {
        name: "pipe-crash",
        body: pipe_crash,
        kind: Kind::Pipe,
    },
    Test {
        name: "pipe-restart",
        body: pipe_restart,
        kind: Kind::Pipe,
    },
    Test {
        name: "terminal",
        body: terminal,
        kind: Kind::Terminal,
    },
    Test {
        name: "terminal-leave",
        body: leave,
        kind: Kind::Terminal,
    },
    Test {
        name: "terminal-interrupts",
        body: interrupts,
        kind: Kind::Terminal,
    },
    Test {
        name: "terminal-signal",
        body: signal,
        kind: Kind::Terminal,
    },
    Test {
        name: "host-shell",
        body: host_shell,
        kind: Kind::TerminalAndShell,
    },
    Test {
        name: "guests",
        body: guests,
        kind: Kind::Two,
    },
    Test {
        name: "guests-pipe",
        body: guests_pipe,
        kind: Kind::PipeAndTwo,
    },
    Test {
        name: "attach-nowhere",
        body: attach_nowhere,
        kind: Kind::Attach,
    },
    Test {
        name: "recording",
        body: recording::compare,
        kind: Kind::Two,
    },
];

/// The test that tries nothing new, only whether a picture is still true, and how often it is tried.
const SELDOM: (&str, u64) = ("recording", 4);

impl Test {
    /// Whether an ordinary run at this commit has it.
    pub fn samples(&self, commit: &str) -> bool {
        let (name, one_in) = SELDOM;
        self.name != name || sample::chosen(commit, &format!("prompt/{name}"), one_in)
    }

    /// Runs it and reports it.
    ///
    /// # Errors
    ///
    /// When the log of a failure cannot be kept.
    pub fn run(&self, report: &mut Report) -> Result<()> {
        let full = format!("prompt/{}", self.name);
        let begun = Instant::now();
        let mut session = match Session::start(self.kind) {
            Ok(session) => session,
            Err(error) => {
                let why = format!("{error:#}");
                let log = report.keep("prompt", self.name, why.as_bytes())?;
                report.fail(&full, &why, &log);
                return Ok(());
            }
        };
        match (self.body)(&mut session) {
            Ok(()) => report.pass(&format!("{full} ({:.1} s)", begun.elapsed().as_secs_f32())),
            Err(error) => {
                let why = format!("{error:#}");
                let text = format!("{why}\n\nAll that was seen:\n{}", session.seen.text());
                let log = report.keep("prompt", self.name, text.as_bytes())?;
                report.fail(&full, &why, &log);
            }
        }
        Ok(())
    }
}

/// What has been seen so far.
#[derive(Debug, Default)]
struct Seen {
    bytes: Mutex<(Vec<u8>, usize)>,
    more: Condvar,
}

impl Seen {
    fn text(&self) -> String {
        let guard = self.bytes.lock().expect("no reader panics");
        String::from_utf8_lossy(&guard.0).into_owned()
    }

    /// Takes in a stream in a thread of its own.
    fn follow(self: &Arc<Self>, mut stream: impl Read + Send + 'static) {
        let seen = Arc::clone(self);
        seen.bytes.lock().expect("no reader panics").1 += 1;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other side is gone reads as an error.
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                let mut guard = seen.bytes.lock().expect("no reader panics");
                guard.0.extend_from_slice(&buffer[..n]);
                seen.more.notify_all();
            }
            seen.bytes.lock().expect("no reader panics").1 -= 1;
            seen.more.notify_all();
        });
    }

    /// Waits until `text` is there `times` times.
    fn wait_for(&self, text: &str, times: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut guard = self.bytes.lock().expect("no reader panics");
        loop {
            let so_far = String::from_utf8_lossy(&guard.0).into_owned();
            if so_far.matches(text).count() >= times {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || guard.1 == 0 {
                bail!("{text:?} did not come {times} times");
            }
            guard = self
                .more
                .wait_timeout(guard, left)
                .expect("no reader panics")
                .0;
        }
    }
}

/// `boot`, or what starts it, with somebody in front of it.
#[derive(Debug)]
pub struct Session {
    child: Child,
    keys: File,
    seen: Arc<Seen>,
    places: Arc<Places>,
    /// The terminal and how it was before.
    terminal: Option<(File, Termios)>,
}

/// Where a run, and those who attach to it, make what they make.
#[derive(Debug)]
struct Places {
    /// Temporary files.
    temp: TempDir,
    /// What tells of the runs under way.
    runs: TempDir,
}

impl Places {
    fn new() -> Result<Self> {
        let folder = || tempfile::Builder::new().prefix("lgt").tempdir();
        Ok(Self {
            temp: folder()?,
            runs: folder()?,
        })
    }
}

impl Session {
    fn start(kind: Kind) -> Result<Self> {
        let places = Arc::new(Places::new()?);
        let pipe = matches!(kind, Kind::Pipe | Kind::PipeAndTwo);
        Self::spawn(kind.words(), places, pipe)
    }

    /// `boot attach` in a terminal of its own, beside this.
    fn attach(&self, number: &str) -> Result<Self> {
        Self::spawn(&["attach", number], Arc::clone(&self.places), false)
    }

    /// Any command that starts `boot`, in a terminal of its own.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn of(command: Command) -> Result<Self> {
        Self::begin(command, Arc::new(Places::new()?), false)
    }

    fn spawn(words: &[&str], places: Arc<Places>, pipe: bool) -> Result<Self> {
        let mut command = Command::new(boot_program()?);
        command.args(words);
        Self::begin(command, places, pipe)
    }

    fn begin(mut command: Command, places: Arc<Places>, pipe: bool) -> Result<Self> {
        command
            .env("TMPDIR", places.temp.path())
            .env("LGUEST_RUNS", places.runs.path());
        let seen = Arc::new(Seen::default());
        if pipe {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut child = command.spawn().context("cannot start it")?;
            seen.follow(child.stdout.take().context("a pipe was asked for")?);
            seen.follow(child.stderr.take().context("a pipe was asked for")?);
            let input = child.stdin.take().context("a pipe was asked for")?;
            let keys = File::from(std::os::fd::OwnedFd::from(input));
            return Ok(Self {
                child,
                keys,
                seen,
                places,
                terminal: None,
            });
        }
        let pty = openpty(None, None)?;
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(slave.as_fd())?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave.try_clone()?);
        let child = command.spawn().context("cannot start it")?;
        drop(command);
        seen.follow(master.try_clone()?);
        Ok(Self {
            child,
            keys: master,
            seen,
            places,
            terminal: Some((slave, before)),
        })
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        self.keys
            .write_all(text.as_bytes())
            .context("nobody listens to the keys")
    }

    /// Types a line once the Guest's prompt has been there `times` times.
    fn at_prompt(&mut self, times: usize, line: &str) -> Result<()> {
        self.at(PROMPT, times, line)
    }

    /// Types a line once a text has been there `times` times.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn at(&mut self, text: &str, times: usize, line: &str) -> Result<()> {
        self.seen.wait_for(text, times)?;
        self.type_in(line)
    }

    /// Waits for a text.
    ///
    /// # Errors
    ///
    /// When it does not come.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.seen.wait_for(text, 1)
    }

    /// All that has been seen.
    pub fn text(&self) -> String {
        self.seen.text()
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < end, "it did not end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end and checks the status, and that the terminal is as it was.
    ///
    /// # Errors
    ///
    /// When it does not end so.
    pub fn expect(&mut self, code: i32) -> Result<()> {
        let status = self.end()?;
        ensure!(status.code() == Some(code), "{status} instead of {code}");
        if let Some((slave, before)) = &self.terminal {
            let after = tcgetattr(slave.as_fd())?;
            ensure!(after == *before, "the terminal is not as it was");
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A test that fails leaves nothing running. Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Guest's prompt.
const PROMPT: &str = "guest> ";
/// The shell's.
const SHELL: &str = "$ ";
/// The key that begins a command to `boot`.
const CTRL_BRACKET: &str = "\u{1d}";

/// Builds `boot` and gives its path.
fn boot_program() -> Result<PathBuf> {
    Ok(artifacts::build("lguest-tests")?.join("boot"))
}

fn pipe(session: &mut Session) -> Result<()> {
    session.type_in("help\nmem\nfault\nuser\necho one two\nhalt\n")?;
    session.expect(0)?;
    for text in ["one two", "Commands:", "crash"] {
        session.seen.wait_for(text, 1)?;
    }
    ensure!(
        !session.seen.text().contains('\r'),
        "a carriage return came through a pipe"
    );
    Ok(())
}

fn pipe_end(session: &mut Session) -> Result<()> {
    session.type_in("echo the last words\n")?;
    // Nothing more: as if a file had ended.
    session.keys = File::open("/dev/null")?;
    session.expect(0)?;
    session.seen.wait_for("the last words", 1)
}

fn pipe_unfinished(session: &mut Session) -> Result<()> {
    // As `printf halt |` does it: no newline, and then the end.
    session.type_in("halt")?;
    session.keys = File::open("/dev/null")?;
    session.expect(0)
}

fn pipe_restart_end(session: &mut Session) -> Result<()> {
    // The next life finds nothing more to read, either.
    session.type_in("restart\n")?;
    session.keys = File::open("/dev/null")?;
    session.expect(0)?;
    session.seen.wait_for("guest> ", 2)
}

fn pipe_crash(session: &mut Session) -> Result<()> {
    session.type_in("crash\n")?;
    session.expect(5)?;
    session.seen.wait_for("the Guest crashed", 1)
}

fn pipe_restart(session: &mut Session) -> Result<()> {
    session.at_prompt(1, "restart\n")?;
    session.at_prompt(2, "echo here again\n")?;
    session.seen.wait_for("here again", 1)?;
    session.type_in("halt\n")?;
    session.expect(0)
}

fn terminal(session: &mut Session) -> Result<()> {
    session.seen.wait_for("To leave:", 1)?;
    session.at_prompt(1, "echo a  terminal\r")?;
    session.at_prompt(2, "halt\r")?;
    session.expect(0)?;
    let text = session.seen.text();
    let (keys, prompt) = (text.find("To leave:"), text.find(PROMPT));
    ensure!(keys < prompt, "the keys that leave were not said first");
    // The echo of what was typed, and the answer to it.
    ensure!(
        text.matches("a  terminal").count() >= 2,
        "no echo, or no answer: {text:?}"
    );
    // In raw mode nobody adds the carriage returns that a line needs, if the Guest does not.
    let bare = text
        .split("Guest starts")
        .last()
        .unwrap_or("")
        .replace("\r\n", "");
    ensure!(
        !bare.contains('\n'),
        "a line end without a carriage return: {text:?}"
    );
    Ok(())
}

fn leave(session: &mut Session) -> Result<()> {
    session.at_prompt(1, &format!("{CTRL_BRACKET}q"))?;
    session.expect(130)
}

fn interrupts(session: &mut Session) -> Result<()> {
    session.at_prompt(1, "spin\r")?;
    thread::sleep(Duration::from_secs(2));
    session.type_in("\u{3}\u{3}\u{3}")?;
    session.expect(130)
}

fn signal(session: &mut Session) -> Result<()> {
    session.seen.wait_for(PROMPT, 1)?;
    let pid = Pid::from_raw(session.child.id().cast_signed());
    let places = Arc::clone(&session.places);
    let folders = || Ok::<_, std::io::Error>(fs::read_dir(&places.temp)?.count());
    let links = || Ok::<_, std::io::Error>(fs::read_dir(&places.runs)?.count());
    ensure!(folders()? == 1, "the machine has no folder of its own");
    ensure!(links()? == 1, "nobody could find this run");
    kill(pid, Signal::SIGTERM)?;
    session.expect(143)?;
    ensure!(folders()? == 0, "the machine's folder is still there");
    ensure!(links()? == 0, "what leads to this run is still there");
    Ok(())
}

fn host_shell(session: &mut Session) -> Result<()> {
    session.at_prompt(1, &format!("{CTRL_BRACKET}s"))?;
    session.seen.wait_for("host# ", 1)?;
    session.type_in("echo $((6 * 7)) $(uname)\r")?;
    session.seen.wait_for("42 Linux", 1)?;
    session.type_in(&format!("{CTRL_BRACKET}s"))?;
    session.type_in("echo back again\r")?;
    session.seen.wait_for("back again", 2)?;
    session.type_in("halt\r")?;
    session.seen.wait_for("the Guest is over", 1)?;
    session.type_in(&format!("{CTRL_BRACKET}q"))?;
    session.expect(0)
}

/// `attach` that is to fail, and why.
fn refused(session: &Session, number: &str, why: &str) -> Result<()> {
    let mut other = session.attach(number)?;
    other.expect(3)?;
    other.seen.wait_for(why, 1)
}

/// The user's own door to a network of two: they answer each other, and the second one's console
/// is in another terminal.
fn guests(session: &mut Session) -> Result<()> {
    let said = "Guest 1, yours, has the address 10.0.0.1, Guest 2 10.0.0.2.";
    session.seen.wait_for(said, 1)?;
    session.seen.wait_for(SHELL, 1)?;
    session.type_in("ping 10.0.0.2 2\r")?;
    session.seen.wait_for("2 of 2 answered", 1)?;

    refused(session, "1", "Guest 1 is where `make run` was started")?;
    refused(session, "3", "there is no Guest 3: this run has 2 Guests")?;

    let mut second = session.attach("2")?;
    second.seen.wait_for("[Guest 2, 10.0.0.2; Ctrl-] q", 1)?;
    second.seen.wait_for(SHELL, 1)?;
    refused(session, "2", "somebody is attached to Guest 2 already")?;
    second.type_in("ping 10.0.0.1 2\r")?;
    second.seen.wait_for("bytes from 10.0.0.1: 0, ", 1)?;
    // The whole line: one that is not finished would be shown again.
    second.seen.wait_for(" ms\r\n", 1)?;
    second.type_in(&format!("{CTRL_BRACKET}q"))?;
    second.expect(0)?;
    second.seen.wait_for("Guest 2 goes on.", 1)?;
    let early = second.seen.text().contains("2 of 2 answered");
    ensure!(!early, "the rest of the ping was waited for");
    thread::sleep(Duration::from_millis(1500));

    let mut again = session.attach("2")?;
    again.seen.wait_for("2 of 2 answered", 1)?;
    let text = again.seen.text();
    ensure!(!text.contains("10.0.0.1: 0,"), "shown twice: {text:?}");
    session.type_in("halt\r")?;
    again.expect(0)?;
    let why = "[Guest 1 is over, and so Guest 2 was stopped]";
    again.seen.wait_for(why, 1)?;
    session.expect(0)?;
    session.seen.wait_for("[Guest 2 was stopped]", 1)?;
    Ok(())
}

/// The second one's crash is told to both who look at it and who began the run, and that goes on.
fn guests_pipe(session: &mut Session) -> Result<()> {
    session.seen.wait_for(PROMPT, 1)?;
    let mut pipe = Session::spawn(&["attach", "2"], Arc::clone(&session.places), true)?;
    pipe.expect(3)?;
    pipe.seen.wait_for("attaching needs a terminal", 1)?;
    let mut second = session.attach("2")?;
    second.at_prompt(1, "crash\r")?;
    second.expect(5)?;
    second.seen.wait_for("[Guest 2 is over, status 5]", 1)?;
    session.seen.wait_for("[Guest 2 is over, status 5]", 1)?;
    refused(session, "2", "Guest 2 is over, status 5")?;
    session.type_in("echo here still\nhalt\n")?;
    session.seen.wait_for("here still", 1)?;
    session.expect(0)?;
    let text = session.seen.text();
    ensure!(!text.contains("was stopped"), "it was over: {text:?}");
    Ok(())
}

/// Nothing is under way; and numbers of which there is no such Guest.
fn attach_nowhere(session: &mut Session) -> Result<()> {
    session.expect(3)?;
    session
        .seen
        .wait_for("no `make run` of this checkout is under way", 1)?;
    // A run that was killed leaves a link behind that leads nowhere.
    let link = session.places.runs.path().join("123");
    std::os::unix::fs::symlink("/nowhere", &link)?;
    refused(session, "2", "no `make run` of this checkout is under way")?;
    ensure!(link.symlink_metadata().is_err(), "it is still there");
    for (variable, target) in [("GUESTS", "run"), ("N", "attach")] {
        for number in ["0", "x", "9", "2 3", "-1"] {
            let words = [target.to_owned(), format!("{variable}={number}")];
            let output = Command::new("make")
                .current_dir(artifacts::root())
                .args(&words)
                .env_remove("MAKEFLAGS")
                .stdin(Stdio::null())
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success(), "{words:?} goes");
            let why = format!("{variable}={number}: {variable} may be 1, 2, 3 or 4");
            ensure!(said.contains(&why), "{words:?}: {said:?}");
        }
    }
    Ok(())
}
