// SPDX-License-Identifier: GPL-2.0-only

//! The consoles of the Guests beside the user's own, and how another terminal gets at them.
//!
//! A run has a [`Hub`]: a thread that reads what these Guests print and waits at a socket. Whoever
//! connects says `attach` and a number, and is told no, with the reason, or has that Guest's
//! console from then on. What a Guest prints while nobody is attached is kept for the next one
//! who is, the newest [`KEPT`] bytes of it, so a Guest never waits for a reader.
//!
//! To the Guest go bytes as they are. The other way go frames, since a run has something to say of
//! its own too:
//!
//! ```text
//! | kind, a byte | length, two bytes, the lower first | so many bytes |
//! ```

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cleanup;
use crate::runs;
use crate::terminal::{PREFIX, Raw};

/// How much of a Guest's output is kept while nobody reads it, in bytes.
pub const KEPT: usize = 1 << 16;
/// How much of a line that is not finished is shown again.
const LINE: usize = 512;
/// The most in one frame.
const FRAME: usize = 4096;
/// How often a hub looks whether a Guest or the run is over.
const LOOK: u16 = 50;
/// How long somebody may take to say what he wants, or to take the last of it.
const MANNERS: Duration = Duration::from_secs(2);

/// What a Guest prints when it waits for its user.
const PROMPTS: [&[u8]; 2] = [b"$ ", b"guest> "];

/// One message to somebody who is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Frame {
    /// The Guest printed this.
    Output(Vec<u8>),
    /// The run remarks something.
    Remark(String),
    /// No, and why.
    Refusal(String),
    /// It is over: the exit status that attaching has, and why.
    End(u8, String),
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let (kind, status, text): (u8, &[u8], &[u8]) = match self {
            Self::Output(bytes) => (0, &[], bytes),
            Self::Remark(text) => (1, &[], text.as_bytes()),
            Self::Refusal(text) => (2, &[], text.as_bytes()),
            Self::End(status, text) => (3, std::slice::from_ref(status), text.as_bytes()),
        };
        let length = u16::try_from(status.len() + text.len()).expect("frames are short");
        [&[kind], &length.to_le_bytes()[..], status, text].concat()
    }

    /// Reads one; `None` at the end of the stream.
    fn read(stream: &mut impl Read) -> Result<Option<Self>> {
        let mut head = [0; 3];
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let [kind, low, high] = head;
        let mut bytes = vec![0; usize::from(u16::from_le_bytes([low, high]))];
        stream.read_exact(&mut bytes)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Some(match (kind, bytes.split_first()) {
            (0, _) => Self::Output(bytes),
            (1, _) => Self::Remark(text(&bytes)),
            (2, _) => Self::Refusal(text(&bytes)),
            (3, Some((status, rest))) => Self::End(*status, text(rest)),
            _ => bail!("the run sends a frame of an unknown kind, {kind}"),
        }))
    }
}

/// Whom a hub can tell of.
#[derive(Clone, Debug)]
pub struct Names {
    /// The Guests' addresses, from the first Guest on; empty without a network.
    pub addresses: Vec<String>,
}

impl Names {
    /// What a Guest is called: `Guest 2, 10.0.0.2`.
    fn of(&self, number: u32) -> String {
        match self.addresses.get(number as usize - 1) {
            Some(address) => format!("Guest {number}, {address}"),
            None => format!("Guest {number}"),
        }
    }
}

/// What the hub's thread is told, and what it tells.
#[derive(Debug, Default)]
struct State {
    /// Whether each Guest has come to a prompt.
    up: Vec<bool>,
    /// The end of each, for those who are attached to it or want to be.
    over: Vec<Option<(u8, String)>>,
    /// The end of the run.
    end: Option<String>,
}

/// The consoles of the Guests from the second on.
#[derive(Debug)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Waits at `listener` for those who want to attach to one of the consoles.
    ///
    /// # Errors
    ///
    /// When a stream is gone.
    pub fn start(listener: UnixListener, consoles: Vec<UnixStream>, names: Names) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let mut all = Vec::new();
        for stream in consoles {
            stream.set_nonblocking(true)?;
            all.push(Console::new(stream));
        }
        let state = Arc::new(Mutex::new(State {
            up: vec![false; all.len()],
            over: vec![None; all.len()],
            end: None,
        }));
        let desk = Desk {
            listener,
            names,
            consoles: all,
            callers: Vec::new(),
            state: Arc::clone(&state),
        };
        Ok(Self {
            state,
            thread: Some(thread::spawn(move || desk.work())),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a hub does not panic")
    }

    /// Whether every Guest has come to a prompt, or is over.
    pub fn all_up(&self) -> bool {
        let state = self.state();
        let mut each = state.up.iter().zip(&state.over);
        each.all(|(up, over)| *up || over.is_some())
    }

    /// A Guest is over by itself.
    pub fn over(&self, number: u32, status: i32) {
        let text = format!("Guest {number} is over, status {status}");
        self.note(number, u8::try_from(status).unwrap_or(u8::MAX), text);
    }

    /// A Guest was stopped, because the first one is over.
    pub fn stopped(&self, number: u32) {
        let text = format!("Guest 1 is over, and so Guest {number} was stopped");
        self.note(number, 0, text);
    }

    fn note(&self, number: u32, status: u8, text: String) {
        let at = (number as usize).wrapping_sub(2);
        if let Some(over) = self.state().over.get_mut(at) {
            *over = Some((status, text));
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state().end = Some("the run is over".to_owned());
        if let Some(thread) = self.thread.take() {
            // It has told those who are attached, and does not panic.
            let _ = thread.join();
        }
    }
}

/// The hub's thread.
struct Desk {
    listener: UnixListener,
    names: Names,
    consoles: Vec<Console>,
    callers: Vec<Caller>,
    state: Arc<Mutex<State>>,
}

/// Somebody who has not said yet what he wants.
struct Caller {
    stream: UnixStream,
    said: Vec<u8>,
    since: Instant,
}

impl Desk {
    fn work(mut self) {
        loop {
            self.sleep();
            // Looked at before the consoles are read: what a Guest printed before its end comes
            // before the news of it.
            let (over, end) = {
                let state = self.state.lock().expect("nobody panics with it");
                (state.over.clone(), state.end.clone())
            };
            self.answer(&over);
            for (at, console) in self.consoles.iter_mut().enumerate() {
                console.turn();
                if console.is_up() {
                    self.state.lock().expect("nobody panics with it").up[at] = true;
                }
                if let Some((status, text)) = &over[at] {
                    console.say_goodbye(&Frame::End(*status, text.clone()));
                }
            }
            if let Some(text) = end {
                for console in &mut self.consoles {
                    console.say_goodbye(&Frame::End(0, text.clone()));
                }
                return;
            }
        }
    }

    /// Sleeps until there may be something to do.
    fn sleep(&self) {
        let mut wanted = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        for caller in &self.callers {
            wanted.push(PollFd::new(caller.stream.as_fd(), PollFlags::POLLIN));
        }
        for console in &self.consoles {
            console.want(&mut wanted);
        }
        // A signal, or no memory: then this turn comes early.
        let _ = poll(&mut wanted, PollTimeout::from(LOOK));
    }

    /// Takes in who comes, and answers those who have said what they want.
    fn answer(&mut self, over: &[Option<(u8, String)>]) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.callers.push(Caller {
                    stream,
                    said: Vec::new(),
                    since: Instant::now(),
                });
            }
        }
        for mut caller in std::mem::take(&mut self.callers) {
            let alive = receive(&mut caller.stream, FRAME, |bytes| caller.said.extend(bytes));
            let line = caller.said.iter().position(|byte| *byte == b'\n');
            match line {
                Some(end) => {
                    let rest = caller.said.split_off(end + 1);
                    let line = String::from_utf8_lossy(&caller.said).into_owned();
                    self.decide(caller.stream, line.trim_end(), rest, over);
                }
                None if alive && caller.said.len() < FRAME && caller.since.elapsed() < MANNERS => {
                    self.callers.push(caller);
                }
                None => {}
            }
        }
    }

    /// Attaches somebody, or says why not.
    fn decide(
        &mut self,
        mut stream: UnixStream,
        line: &str,
        rest: Vec<u8>,
        over: &[Option<(u8, String)>],
    ) {
        let count = self.consoles.len() + 1;
        let number = line
            .strip_prefix("attach ")
            .and_then(|word| word.parse::<u32>().ok());
        let at = number.and_then(|number| (number as usize).checked_sub(2));
        let console = at.and_then(|at| Some((self.consoles.get_mut(at)?, over.get(at)?)));
        let why = match (number, console) {
            (Some(_), Some((_, Some((_, text))))) => text.clone(),
            (Some(number), Some((console, None))) if console.is_attached() => {
                format!("somebody is attached to Guest {number} already")
            }
            (Some(number), Some((console, None))) => {
                let name = self.names.of(number);
                let text = format!("{name}; Ctrl-] q leaves it, and it goes on");
                console.attach(stream, &text, rest);
                return;
            }
            (Some(1), None) => {
                "Guest 1 is where `make run` was started: in that terminal, or at that pipe"
                    .to_owned()
            }
            (Some(number), None) if count == 1 => format!(
                "there is no Guest {number}: this run has one Guest, and `make run GUESTS=2` has two"
            ),
            (Some(number), None) => {
                format!("there is no Guest {number}: this run has {count} Guests")
            }
            (None, _) => format!("not understood: {line:?}"),
        };
        // It fits into what a socket takes at once, unless the other side is gone.
        let _ = stream.write_all(&Frame::Refusal(why).bytes());
    }
}

/// Reads what is there, up to about so much; whether there may be more later.
fn receive(stream: &mut UnixStream, most: usize, mut take: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; FRAME];
    let mut so_far = 0;
    while so_far < most {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => {
                so_far += n;
                take(&buffer[..n]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// Writes as much as the stream takes; whether it is still there.
fn send(stream: &mut UnixStream, bytes: &mut VecDeque<u8>) -> bool {
    while !bytes.is_empty() {
        match stream.write(bytes.as_slices().0) {
            Ok(n) => drop(bytes.drain(..n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// One Guest's console.
#[derive(Debug)]
struct Console {
    guest: UnixStream,
    /// Whether the Guest's side is gone.
    closed: bool,
    up: bool,
    client: Option<Client>,
    /// What the Guest has printed and nobody was sent.
    kept: VecDeque<u8>,
    /// How much of that was too old to be kept.
    lost: u64,
    /// The line that the last one who was attached saw unfinished: most often a prompt.
    line: Vec<u8>,
    /// What was typed and the Guest has not taken.
    typed: VecDeque<u8>,
}

/// Somebody who is attached.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// Frames on their way.
    outbox: VecDeque<u8>,
    /// Whether he has said goodbye and is only owed what is on its way.
    leaving: bool,
}

impl Console {
    fn new(guest: UnixStream) -> Self {
        Self {
            guest,
            closed: false,
            up: false,
            client: None,
            kept: VecDeque::new(),
            lost: 0,
            line: Vec::new(),
            typed: VecDeque::new(),
        }
    }

    fn is_attached(&self) -> bool {
        self.client.is_some()
    }

    /// Whether the Guest has shown a prompt.
    fn is_up(&mut self) -> bool {
        if !self.up {
            // Until then nobody can be attached for long: what it has printed is still here.
            let so_far = self.kept.make_contiguous();
            let has = |prompt: &&[u8]| so_far.windows(prompt.len()).any(|part| part == *prompt);
            self.up = self.lost > 0 || PROMPTS.iter().any(has);
        }
        self.up
    }

    /// What this console waits for.
    fn want<'a>(&'a self, wanted: &mut Vec<PollFd<'a>>) {
        let when = |yes: bool, flags| if yes { flags } else { PollFlags::empty() };
        if !self.closed {
            let out = when(!self.typed.is_empty(), PollFlags::POLLOUT);
            wanted.push(PollFd::new(self.guest.as_fd(), PollFlags::POLLIN | out));
        }
        if let Some(client) = &self.client {
            let more = !client.outbox.is_empty() || !self.kept.is_empty();
            let listening = self.typed.len() < KEPT && !client.leaving;
            let flags = when(more, PollFlags::POLLOUT) | when(listening, PollFlags::POLLIN);
            wanted.push(PollFd::new(client.stream.as_fd(), flags));
        }
    }

    fn attach(&mut self, stream: UnixStream, text: &str, typed: Vec<u8>) {
        let mut outbox = VecDeque::from(Frame::Remark(text.to_owned()).bytes());
        if self.lost == 0 {
            outbox.extend(Frame::Output(self.line.clone()).bytes());
        }
        self.typed.extend(typed);
        self.client = Some(Client {
            stream,
            outbox,
            leaving: false,
        });
    }

    /// Moves bytes both ways, as far as they go.
    fn turn(&mut self) {
        let Self { guest, kept, .. } = self;
        if !self.closed {
            self.closed = !receive(guest, KEPT, |bytes| kept.extend(bytes));
        }
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        self.lost += surplus as u64;
        if let Some(client) = &mut self.client
            && self.typed.len() < KEPT
            && !client.leaving
        {
            let typed = &mut self.typed;
            client.leaving = !receive(&mut client.stream, FRAME, |bytes| typed.extend(bytes));
        }
        if !send(&mut self.guest, &mut self.typed) {
            self.typed.clear();
        }
        self.serve();
    }

    /// Sends whoever is attached what he is owed.
    fn serve(&mut self) {
        while let Some(client) = &mut self.client {
            let there = send(&mut client.stream, &mut client.outbox);
            let done = client.outbox.is_empty();
            if !there || (done && client.leaving) {
                self.client = None;
            } else if !done || self.kept.is_empty() {
                return;
            } else {
                let frames = self.next_frames();
                if let Some(client) = &mut self.client {
                    client.outbox.extend(frames);
                }
            }
        }
    }

    /// Makes frames of the oldest of what is kept.
    fn next_frames(&mut self) -> Vec<u8> {
        let mut frames = Vec::new();
        if self.lost > 0 {
            let text = format!(
                "{} older bytes of what it printed were not kept",
                std::mem::take(&mut self.lost)
            );
            frames.extend(Frame::Remark(text).bytes());
            self.line.clear();
        }
        let count = self.kept.len().min(FRAME);
        let bytes: Vec<u8> = self.kept.drain(..count).collect();
        self.line.extend(&bytes);
        if let Some(end) = self.line.iter().rposition(|byte| *byte == b'\n') {
            self.line.drain(..=end);
        }
        let surplus = self.line.len().saturating_sub(LINE);
        self.line.drain(..surplus);
        frames.extend(Frame::Output(bytes).bytes());
        frames
    }

    /// Sends whoever is attached the rest and the news that it is over.
    fn say_goodbye(&mut self, end: &Frame) {
        if self.client.is_none() {
            return;
        }
        let mut rest = Vec::new();
        while !self.kept.is_empty() {
            rest.extend(self.next_frames());
        }
        let Some(mut client) = self.client.take() else {
            return;
        };
        client.outbox.extend(rest);
        client.outbox.extend(end.bytes());
        // Who does not take it in time goes without. A stopped process, for example.
        let _ = client.stream.set_nonblocking(false);
        let _ = client.stream.set_write_timeout(Some(MANNERS));
        let _ = client.stream.write_all(client.outbox.make_contiguous());
    }
}

/// What happens to somebody who is attached.
enum Event {
    Frame(Result<Option<Frame>>),
    Leave,
}

/// Attaches this terminal to the console of a Guest; gives the exit status.
///
/// # Errors
///
/// When there is no such Guest, it is taken, or this is no terminal.
pub fn attach(number: u32, run: Option<u32>) -> Result<i32> {
    let mut stream = runs::find(run)?;
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "attaching needs a terminal on both sides, and this is a pipe or a file"
    );
    stream.set_read_timeout(Some(MANNERS * 5))?;
    writeln!(stream, "attach {number}")?;
    let first = Frame::read(&mut stream).context("the run does not answer")?;
    let text = match first {
        Some(Frame::Remark(text)) => text,
        Some(Frame::Refusal(why)) => bail!("{why}"),
        _ => bail!("the run ended just now"),
    };
    stream.set_read_timeout(None)?;
    cleanup::watch_signals()?;
    let raw = Raw::enter()?;
    let result = remark(&text).and_then(|()| converse(&stream));
    drop(raw);
    if result.as_ref().is_ok_and(Option::is_none) {
        eprintln!("\nGuest {number} goes on.");
    }
    Ok(result?.map_or(0, i32::from))
}

/// Talks until the Guest is over, whose status is given, or the user leaves.
fn converse(stream: &UnixStream) -> Result<Option<u8>> {
    let (sender, events) = mpsc::channel();
    let (mut incoming, frames) = (stream.try_clone()?, sender.clone());
    thread::spawn(move || {
        loop {
            let frame = Frame::read(&mut incoming);
            let last = !matches!(frame, Ok(Some(_)));
            if frames.send(Event::Frame(frame)).is_err() || last {
                return;
            }
        }
    });
    let keys = stream.try_clone()?;
    thread::spawn(move || type_in(keys, &sender));
    let mut left = false;
    loop {
        let event = match left {
            false => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            true => events.recv_timeout(MANNERS),
        };
        match event {
            Ok(Event::Leave) => left = true,
            Ok(Event::Frame(Ok(Some(Frame::Output(bytes))))) => print(&bytes)?,
            Ok(Event::Frame(Ok(Some(Frame::Remark(text) | Frame::Refusal(text))))) => {
                remark(&text)?;
            }
            Ok(Event::Frame(Ok(Some(Frame::End(status, text))))) => {
                remark(&text)?;
                return Ok(Some(status));
            }
            // It has sent all that was on its way, or it does not answer any more.
            _ if left => return Ok(None),
            Ok(Event::Frame(Err(error))) => return Err(error).context("the run is gone"),
            _ => bail!("the run is gone: somebody has killed it"),
        }
    }
}

/// Sends what the user types, until he leaves.
fn type_in(mut stream: UnixStream, to: &Sender<Event>) {
    let mut prefixed = false;
    let mut buffer = [0; 256];
    'typing: while let Ok(n @ 1..) = io::stdin().read(&mut buffer) {
        let mut keys = Vec::new();
        for byte in &buffer[..n] {
            match (prefixed, *byte) {
                (false, PREFIX) => prefixed = true,
                (false, byte) => keys.push(byte),
                (true, b'q' | b'Q') => break 'typing,
                (true, byte) => {
                    prefixed = false;
                    if byte == PREFIX {
                        keys.push(byte);
                    }
                }
            }
        }
        // The other thread sees it when the run is gone.
        if stream.write_all(&keys).is_err() {
            return;
        }
    }
    let _ = to.send(Event::Leave);
    // Now the run sends what is on its way, and closes.
    let _ = stream.shutdown(Shutdown::Write);
}

/// Says something of our own between the Guest's lines.
fn remark(text: &str) -> Result<()> {
    print(format!("\r\n[{text}]\r\n").as_bytes())
}

/// Prints at once.
fn print(bytes: &[u8]) -> Result<()> {
    let mut output = io::stdout().lock();
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .context("nobody reads the output")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (Console, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        ours.set_nonblocking(true).expect("it is ours");
        (Console::new(ours), theirs)
    }

    /// Attaches; gives the other side.
    fn join(console: &mut Console) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        ours.set_nonblocking(true).expect("it is ours");
        console.attach(ours, "hello", Vec::new());
        theirs
    }

    /// All frames that were sent, pieces of output joined.
    fn sent(mut stream: UnixStream) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = Frame::read(&mut stream) {
            match (frames.last_mut(), frame) {
                (Some(Frame::Output(so_far)), Frame::Output(more)) => so_far.extend(more),
                (_, frame) => frames.push(frame),
            }
        }
        frames
    }

    #[test]
    fn frames_come_back() {
        let frames = [
            Frame::Output(b"\x00\xff\r\n".to_vec()),
            Frame::Remark(String::new()),
            Frame::Refusal("no".to_owned()),
            Frame::End(5, "Guest 2 is over".to_owned()),
        ];
        let bytes = frames.iter().flat_map(Frame::bytes).collect::<Vec<_>>();
        let mut rest = &bytes[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut rest).expect("it is whole"), Some(frame));
        }
        assert_eq!(Frame::read(&mut rest).expect("nothing is left"), None);
        assert!(Frame::read(&mut &b"\x09\x00\x00"[..]).is_err());
        assert!(Frame::read(&mut &b"\x00\x05\x00ab"[..]).is_err());
    }

    #[test]
    fn what_nobody_sees_is_kept_up_to_a_limit() {
        let (mut console, mut guest) = console();
        guest.write_all(b"first\r\n").expect("there is room");
        for _ in 0..KEPT / FRAME {
            guest.write_all(&[b'x'; FRAME]).expect("there is room");
            console.turn();
        }
        guest.write_all(b"\r\n$ ").expect("there is room");
        console.turn();
        assert!(console.is_up());
        let client = join(&mut console);
        let reader = thread::spawn(move || sent(client));
        while !console.kept.is_empty() || !console.client.as_ref().expect("here").outbox.is_empty()
        {
            console.turn();
        }
        console.say_goodbye(&Frame::End(0, "bye".to_owned()));
        let frames = reader.join().expect("it does not panic");
        let [hello, lost, Frame::Output(bytes), end] = &frames[..] else {
            panic!("{frames:?}");
        };
        assert_eq!(*hello, Frame::Remark("hello".to_owned()));
        // The first line and as much again as is behind the last x.
        let text = "11 older bytes of what it printed were not kept";
        assert_eq!(*lost, Frame::Remark(text.to_owned()));
        assert_eq!(bytes.len(), KEPT);
        assert!(bytes.starts_with(b"xxx") && bytes.ends_with(b"x\r\n$ "));
        assert_eq!(*end, Frame::End(0, "bye".to_owned()));
    }

    #[test]
    fn who_comes_back_sees_the_prompt_again_and_what_came_meanwhile() {
        let (mut console, mut guest) = console();
        guest.write_all(b"old\r\n$ ").expect("there is room");
        console.turn();
        for (meanwhile, seen) in [
            (&b""[..], &b"old\r\n$ "[..]),
            (b"", b"$ "),
            (b"ls\r\n$ ", b"$ ls\r\n$ "),
        ] {
            guest.write_all(meanwhile).expect("there is room");
            console.turn();
            let client = join(&mut console);
            console.turn();
            assert!(console.is_attached());
            client.shutdown(Shutdown::Write).expect("it is open");
            console.turn();
            console.turn();
            assert!(!console.is_attached());
            let frames = sent(client);
            assert_eq!(frames.last(), Some(&Frame::Output(seen.to_vec())));
        }
    }
}
