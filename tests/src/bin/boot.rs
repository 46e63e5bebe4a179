// SPDX-License-Identifier: GPL-2.0-only

//! Boots the Linux of the tests in QEMU and gives the user a Guest in it, or runs single cases.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use lguest_tests::artifacts::{self, Artifacts};
use lguest_tests::attach::{self, Hub, Names};
use lguest_tests::chapters::in_chapters;
use lguest_tests::control::{Message, Verdict};
use lguest_tests::hosts::{KINDS, Kind};
use lguest_tests::machine::{Machine, drain};
use lguest_tests::runs::{self, Entry};
use lguest_tests::terminal::{PREFIX, Raw};
use lguest_tests::{cleanup, gdb};
use nix::sys::signal::{SigHandler, Signal, signal};

/// How long Linux may take to come up. It is usually there after ten seconds.
const BOOT: Duration = Duration::from_secs(180);
/// How long a machine may take to end.
const END: Duration = Duration::from_secs(30);
/// How long the first Guest waits for the others at most.
const UP: Duration = Duration::from_secs(60);
/// The exit status of a user who left.
const LEFT: i32 = 130;

/// What tells the Launcher of the Guest's initial disk.
const INITRD: &str = " --initrd=/guests/initrd.cpio";
/// And of the network that several Guests share.
const NETWORK: &str = " --sharenet=/tmp/network";

#[derive(Debug, Parser)]
#[command(about = "Boots a Linux in QEMU, for a Guest or for single test cases")]
struct Options {
    #[command(subcommand)]
    what: What,
    /// The kind of Host, as the tests call it: 5, 4, 1...
    #[arg(long, global = true, default_value = "5", value_parser = kind)]
    host: &'static Kind,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run a Guest and talk to it
    Run(Run),
    /// Join the console of a Guest beside the first one of a run
    Attach {
        /// Its number, from 2 on; the first one has its console where the run was started
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(runs::MOST)))]
        number: u32,
        /// Which run, if several are under way: the number of its process
        #[arg(long)]
        run: Option<u32>,
    },
    /// Run test cases and print what they say
    Case {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Attach gdb to a Host that runs a Guest, and stop at the Guest's first exit
    Gdb,
    /// Print the names of all test cases
    List,
}

#[derive(Debug, Args)]
struct Run {
    /// Have the Host's shell beside the Guest
    #[arg(long)]
    host_shell: bool,
    /// How many Guests; a network joins them, and the user has the first one's console
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(runs::MOST)))]
    guests: u32,
    /// A Guest's memory in MiB
    #[arg(long, default_value_t = 64)]
    mem: u32,
    /// Have the kernel's monitor instead of the shell: no initial disk
    #[arg(long)]
    monitor: bool,
    /// The Guest's kernel: an ELF file here; without it, the one that is built
    #[arg(long)]
    guest: Option<PathBuf>,
    /// The first Guest's command line
    #[arg(trailing_var_arg = true)]
    args: Vec<String>,
}

/// The kind of Host of that name.
fn kind(name: &str) -> Result<&'static Kind> {
    Kind::named(name).with_context(|| {
        let names = KINDS
            .iter()
            .map(|kind| format!("{} ({})", kind.section, kind.about));
        format!("there is: {}", names.collect::<Vec<_>>().join(", "))
    })
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.what {
        What::Run(run) => run_guest(&options, run),
        What::Attach { number, run } => attach::attach(*number, *run),
        What::Case { names } => run_cases(&options, names),
        What::Gdb => debug(),
        What::List => {
            for case in inside::cases::CASES {
                println!("{:24} {}", case.name, case.about);
            }
            Ok(0)
        }
    };
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(error) => {
            let module = options.host.kernel.module();
            let text = in_chapters(&format!("{error:#}"), Some(&module));
            eprintln!("boot: {text}");
            ExitCode::from(3)
        }
    }
}

/// Starts the machine and waits until it is up.
fn start(
    options: &Options,
    artifacts: &Artifacts,
    log: PathBuf,
    beside: u32,
) -> Result<(Machine, String)> {
    cleanup::watch_signals()?;
    if let Some(why) = options.host.missing()? {
        bail!("{}: {why}", options.host.section);
    }
    let mut settings = options.host.settings(artifacts)?;
    settings.log = log;
    settings.beside = beside;
    let mut machine = Machine::start(&settings)?;
    let facts = machine.wait_until_ready(BOOT * options.host.patience)?;
    options.host.check(&facts)?;
    Ok((machine, facts))
}

/// A name for the log of this run alone.
fn log_file(what: &str) -> Result<PathBuf> {
    Ok(artifacts::log_directory()?.join(format!("{what}-{}.log", std::process::id())))
}

/// Runs gdb until the user leaves it; the machine ends with it.
fn debug() -> Result<i32> {
    // ^C stops the Host, and gdb is who does that.
    // SAFETY: No handler is installed, only the one that ignores.
    unsafe { signal(Signal::SIGINT, SigHandler::SigIgn)? };
    let (log, console) = (log_file("gdb")?, log_file("gdb-console")?);
    eprintln!("Linux boots in QEMU; that takes about ten seconds.");
    let (machine, mut gdb) = gdb::start(&Artifacts::collect()?, &log, &console)?;
    eprintln!("The Host's log:      {}", log.display());
    eprintln!("The Guest's console: {}", console.display());
    eprintln!("`continue` goes on to the next exit; `help lguest` lists what else there is.");
    let status = gdb.status().context("cannot start gdb")?;
    drop(machine);
    Ok(status.code().unwrap_or(3))
}

/// Runs cases one after another and prints what they say.
fn run_cases(options: &Options, names: &[String]) -> Result<i32> {
    let artifacts = Artifacts::collect()?.with_test_guests()?;
    let (mut machine, facts) = start(options, &artifacts, log_file("case")?, 0)?;
    println!("up: Linux {facts}; its log: {}", machine.log().display());
    let mut status = 0;
    for name in names {
        machine.tell(&format!("case {name} scan"))?;
        let mut at = String::new();
        loop {
            let message = machine.hear(Duration::from_secs(600) * options.host.patience);
            match message.with_context(|| format!("it was at: {at}"))? {
                Message::Start(name) => println!("case {name}"),
                Message::Note(text) => println!("  {text}"),
                // What kills the machine is what was said last.
                Message::At(text) => at = text,
                Message::Inject(what) => {
                    machine.inject(what)?;
                    machine.tell("done")?;
                }
                Message::End(verdict, text) => {
                    println!("{verdict:?} {name} {text}");
                    if verdict == Verdict::Fail {
                        status = 1;
                    }
                    break;
                }
                other => bail!("the machine says {other:?}"),
            }
        }
    }
    machine.quit(END)?;
    Ok(status)
}

/// Runs a Guest with the user at its console; gives the exit status of its Launcher.
fn run_guest(options: &Options, run: &Run) -> Result<i32> {
    let mut artifacts = Artifacts::collect()?;
    if let Some(path) = &run.guest {
        ensure!(path.is_file(), "there is no Guest at {}", path.display());
        artifacts.guests = vec![("guest".to_owned(), path.clone())];
    }
    artifacts.complete()?;
    ensure!(
        run.monitor || artifacts.initrd.is_some(),
        "the Guest's initial disk is not packed: `make initrd`, or --monitor to do without it"
    );
    if run.host_shell {
        ensure!(
            artifacts.busybox.is_some(),
            "no busybox for the Host's shell: `make setup`"
        );
    }
    let words = run.args.join(" ");
    ensure!(
        !words.contains(['\n', '\r']),
        "a Guest's command line is one line"
    );

    let terminal = io::stdin().is_terminal();
    introduce(terminal, run);
    let log = log_file("run")?;
    let (mut machine, facts) = start(options, &artifacts, log.clone(), run.guests - 1)?;
    let names = Names {
        addresses: run.addresses(),
    };
    let (entry, listener) = Entry::new(machine.folder())?;
    let hub = Hub::start(listener, mem::take(&mut machine.beside), names)?;
    match run.guests {
        1 => eprintln!("Linux {facts} is up. The Guest starts."),
        _ => eprintln!("Linux {facts} is up. The Guests start."),
    }
    run.start_beside(&mut machine, &hub)?;
    let mode = if terminal { "terminal" } else { "pipe" };
    let shell = if run.host_shell { "shell" } else { "alone" };
    let line = format!("guest {mode} {shell}{} {words}", run.launcher_words(1));
    machine.tell(line.trim_end())?;

    let raw = Raw::enter()?;
    let mut talk = Talk::new(machine, hub, terminal, run.host_shell)?;
    let result = talk.hold();
    let finished = result.and_then(|status| talk.finish().map(|()| status));
    drop(raw);
    drop(entry);
    match &finished {
        // The Guest switched itself off, or the user left: nobody asks what went wrong.
        Ok(0 | LEFT) => fs::remove_file(&log).context("cannot remove the log")?,
        Ok(_) | Err(_) => eprintln!("The Host's log: {}", log.display()),
    }
    finished
}

impl Run {
    /// The addresses of the Guests, from the first on; none where one is alone.
    fn addresses(&self) -> Vec<String> {
        match self.guests {
            1 => Vec::new(),
            count => (1..=count).map(|n| format!("10.0.0.{n}")).collect(),
        }
    }

    /// What the Launcher of Guest `number` is told, each word after a space.
    fn launcher_words(&self, number: u32) -> String {
        let disk = if self.monitor { "" } else { INITRD };
        let (network, address) = match self.addresses().get(number as usize - 1) {
            Some(address) => (NETWORK, format!(" ip={address}/24")),
            None => ("", String::new()),
        };
        format!("{disk}{network} {} /guests/guest{address}", self.mem)
    }

    /// Starts the Guests beside the first one, says where each is, and waits until they are up, so
    /// that the first one finds them there.
    fn start_beside(&self, machine: &mut Machine, hub: &Hub) -> Result<()> {
        let addresses = self.addresses();
        let Some((own, others)) = addresses.split_first() else {
            return Ok(());
        };
        let others = (2..).zip(others);
        let others: Vec<_> = others
            .map(|(n, address)| format!("Guest {n} {address}"))
            .collect();
        eprintln!(
            "Guest 1, yours, has the address {own}, {}.",
            others.join(", ")
        );
        for number in 2..=self.guests {
            machine.tell(&format!("beside {number}{}", self.launcher_words(number)))?;
        }
        let end = Instant::now() + UP;
        while !hub.all_up() && Instant::now() < end {
            match machine.overhear()? {
                Some(Message::Over(number, status)) => {
                    hub.over(number, status);
                    eprintln!("[Guest {number} is over, status {status}]");
                }
                Some(message) => bail!("the machine says {message:?}"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        Ok(())
    }
}

/// Says how long it takes and which keys leave, before anything else.
fn introduce(terminal: bool, run: &Run) {
    if terminal {
        eprintln!("To leave: `halt` at the Guest's prompt, or three ^C within a second,");
        eprintln!("or Ctrl-] q at any time. Ctrl-] Ctrl-] is one Ctrl-] for the Guest.");
        if run.host_shell {
            eprintln!("Ctrl-] s changes between the Guest and the Host's shell.");
        }
    }
    if run.guests > 1 {
        eprintln!("In another terminal `make attach N=2` joins Guest 2.");
    }
    eprintln!("Linux boots in QEMU; that takes about ten seconds.");
}

/// Which of two consoles the user is looking at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Guest,
    Shell,
}

/// Something to attend to.
#[derive(Debug)]
enum Event {
    /// The user typed, or the pipe brought, bytes.
    Input(Vec<u8>),
    /// There will be no more.
    InputEnd,
    /// A console printed bytes.
    Output(Side, Vec<u8>),
    /// The Launcher complained, without a terminal.
    Complaint(Vec<u8>),
}

/// The conversation between user and Guest.
struct Talk {
    machine: Machine,
    /// The consoles of other Guests.
    hub: Hub,
    /// What became of those, to be said after the first one's last words.
    news: Vec<String>,
    events: Receiver<Event>,
    terminal: bool,
    shell: bool,
    side: Side,
    /// Whether the last key was the prefix.
    prefixed: bool,
    /// What the side that is not looked at has printed; the newest part of it.
    hidden: VecDeque<u8>,
    /// The Guest's exit status, once it is over.
    status: Option<i32>,
    leave: bool,
}

/// How much of a side that is not looked at is kept, in bytes.
const HIDDEN: usize = 1 << 16;

impl Talk {
    fn new(machine: Machine, hub: Hub, terminal: bool, shell: bool) -> Result<Self> {
        let (sender, events) = mpsc::channel();
        if terminal {
            follow(machine.user.try_clone()?, sender.clone(), |b| {
                Event::Output(Side::Guest, b)
            });
            follow(machine.shell.try_clone()?, sender.clone(), |b| {
                Event::Output(Side::Shell, b)
            });
        } else {
            follow(machine.output.try_clone()?, sender.clone(), |b| {
                Event::Output(Side::Guest, b)
            });
            follow(
                machine.errors.try_clone()?,
                sender.clone(),
                Event::Complaint,
            );
        }
        thread::spawn(move || {
            let end = sender.clone();
            pump(io::stdin(), &sender, Event::Input);
            // Nobody listens any more when the Guest is over.
            let _ = end.send(Event::InputEnd);
        });
        Ok(Self {
            machine,
            hub,
            news: Vec::new(),
            events,
            terminal,
            shell,
            side: Side::Guest,
            prefixed: false,
            hidden: VecDeque::new(),
            status: None,
            leave: false,
        })
    }

    /// Talks until the Guest is over or the user leaves; gives the exit status.
    fn hold(&mut self) -> Result<i32> {
        loop {
            match self.events.recv_timeout(Duration::from_millis(20)) {
                Ok(event) => self.attend(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the channels are gone"),
            }
            if let Some(message) = self.machine.overhear()? {
                self.hear(message)?;
            }
            match self.status {
                _ if self.leave => {
                    if self.terminal {
                        print(b"\r\n")?;
                    }
                    return Ok(self.status.unwrap_or(LEFT));
                }
                // With a shell beside it the user may go on there.
                Some(status) if !(self.terminal && self.shell) => return Ok(status),
                _ => {}
            }
        }
    }

    fn hear(&mut self, message: Message) -> Result<()> {
        let status = match message {
            Message::Exit(status) => status,
            Message::Over(number, status) => {
                self.hub.over(number, status);
                return self.say(&format!("Guest {number} is over, status {status}"));
            }
            Message::Stopped(number, _) => {
                self.hub.stopped(number);
                self.news.push(format!("Guest {number} was stopped"));
                return Ok(());
            }
            other => bail!("the machine says {other:?}"),
        };
        self.status = Some(status);
        if self.terminal && self.shell {
            self.announce(&format!(
                "the Guest is over, status {status}; Ctrl-] q leaves"
            ))?;
            for text in mem::take(&mut self.news) {
                self.say(&text)?;
            }
            self.look_at(Side::Shell)?;
        }
        Ok(())
    }

    fn attend(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Input(bytes) if self.terminal => {
                for byte in bytes {
                    self.key(byte)?;
                }
            }
            Event::Input(bytes) => self.machine.input.write_all(&bytes)?,
            // The Launcher sees the end of its input, and so does every later life of its Guest.
            Event::InputEnd if !self.terminal => self.machine.input.shutdown(Shutdown::Write)?,
            Event::InputEnd => self.leave = true,
            Event::Output(side, bytes) if side == self.side => print(&bytes)?,
            Event::Output(_, bytes) => {
                self.hidden.extend(bytes);
                let surplus = self.hidden.len().saturating_sub(HIDDEN);
                self.hidden.drain(..surplus);
            }
            Event::Complaint(bytes) => complain(&bytes)?,
        }
        Ok(())
    }

    /// One key of the user's.
    fn key(&mut self, byte: u8) -> Result<()> {
        if !self.prefixed && byte == PREFIX {
            self.prefixed = true;
            return Ok(());
        }
        if self.prefixed {
            self.prefixed = false;
            match byte {
                b'q' | b'Q' => self.leave = true,
                b's' | b'S' if self.shell && self.side == Side::Guest => {
                    self.look_at(Side::Shell)?;
                }
                b's' | b'S' if self.shell => self.look_at(Side::Guest)?,
                PREFIX => self.pass(byte)?,
                _ => {}
            }
            return Ok(());
        }
        self.pass(byte)
    }

    /// Hands a key on to the side that is looked at.
    fn pass(&mut self, byte: u8) -> Result<()> {
        match self.side {
            Side::Guest if self.status.is_none() => self.machine.user.write_all(&[byte])?,
            Side::Guest => {}
            Side::Shell => self.machine.shell.write_all(&[byte])?,
        }
        Ok(())
    }

    /// Looks at a side and shows what it has printed meanwhile.
    fn look_at(&mut self, side: Side) -> Result<()> {
        if self.side == side {
            return Ok(());
        }
        self.side = side;
        self.announce(match side {
            Side::Guest => "the Guest; Ctrl-] s for the Host's shell",
            Side::Shell => "the Host's shell; Ctrl-] s for the Guest",
        })?;
        let hidden: Vec<u8> = self.hidden.drain(..).collect();
        print(&hidden)
    }

    /// Says something of our own between the lines.
    fn announce(&self, text: &str) -> Result<()> {
        print(format!("\r\n[{text}]\r\n").as_bytes())
    }

    /// The same where there may be no terminal: then not among what the Guest prints.
    fn say(&self, text: &str) -> Result<()> {
        if self.terminal {
            return self.announce(text);
        }
        eprintln!("[{text}]");
        Ok(())
    }

    /// Ends the machine and prints what was still on its way.
    fn finish(self) -> Result<()> {
        if self.leave {
            // The machine goes with all that is in it.
            return Ok(());
        }
        let Self {
            machine,
            hub,
            news,
            events,
            terminal,
            side,
            ..
        } = self;
        let rest = [&machine.user, &machine.output].map(UnixStream::try_clone);
        machine.quit(END)?;
        // The followers end with the machine, so this loop does too, but for the thread that
        // still waits for the user's keys.
        while let Ok(event) = events.recv_timeout(Duration::from_millis(200)) {
            match event {
                Event::Output(from, bytes) if from == side => print(&bytes)?,
                Event::Complaint(bytes) => complain(&bytes)?,
                _ => {}
            }
        }
        let [user, output] = rest;
        print(&drain(&mut if terminal { user } else { output }?)?)?;
        // Who is attached hears of it before the run is gone.
        drop(hub);
        let end = if terminal { "\r\n" } else { "\n" };
        for text in news {
            eprint!("[{text}]{end}");
        }
        Ok(())
    }
}

/// Passes on what the Launcher complains of: a Guest's panic at the line of its chapter.
fn complain(bytes: &[u8]) -> Result<()> {
    let text = in_chapters(&String::from_utf8_lossy(bytes), None);
    Ok(io::stderr().write_all(text.as_bytes())?)
}

/// Prints at once.
fn print(bytes: &[u8]) -> Result<()> {
    let mut output = io::stdout().lock();
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .context("nobody reads the output")
}

/// Turns what a channel brings into events, in a thread of its own.
fn follow(stream: UnixStream, to: Sender<Event>, event: fn(Vec<u8>) -> Event) {
    thread::spawn(move || pump(stream, &to, event));
}

/// Reads until the end of a stream.
fn pump(mut stream: impl Read, to: &Sender<Event>, event: fn(Vec<u8>) -> Event) {
    let mut buffer = [0; 4096];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || to.send(event(buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}
