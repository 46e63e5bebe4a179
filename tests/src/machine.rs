// SPDX-License-Identifier: GPL-2.0-only

//! QEMU with a Linux in it, and the channels that lead inside.
//!
//! Every channel is a Unix socket in a folder of this run's own, so any number of machines can
//! run side by side. This side listens before QEMU starts and QEMU connects: nobody polls for a
//! file to appear.
//!
//! | channel | inside | carries |
//! |---|---|---|
//! | log | `/dev/ttyS0` | the kernel's messages, into a file |
//! | user | `/dev/hvc0` | the user's terminal |
//! | shell | `/dev/hvc1` | the Host's shell |
//! | beside2, beside3... | `/dev/hvc2`, `/dev/hvc3`... | the terminals of more Guests, if there are |
//! | control | a port of that name | lines, see [`crate::control`] |
//! | input, output, errors | ports of these names | a Guest's console both ways and its Launcher's complaints, when there is no terminal |
//! | qmp | nothing | QEMU's own control, for NMIs |

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use inside::protocol::Injection;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::chapters::last_words_of;
use crate::cleanup;
use crate::control::Message;

/// What kind of machine is wanted.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program: QEMU, or something that becomes it.
    pub qemu: PathBuf,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The bytes of its first file system.
    pub initramfs: Vec<u8>,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// The processor's model and features, as QEMU names them.
    pub cpu: String,
    /// How many processors.
    pub cpus: u32,
    /// More words for the kernel's command line.
    pub append: String,
    /// Whether to count instructions: time then passes by the instruction, on one thread.
    pub count_instructions: bool,
    /// A plugin of QEMU's, with what it is told.
    pub plugin: Option<String>,
    /// Where the kernel's messages go.
    pub log: PathBuf,
    /// A file that is a disk of its, if it is to have one: `/dev/vda` inside.
    pub disk: Option<PathBuf>,
    /// Whether a debugger can be attached, see [`Machine::debugger`].
    pub debugger: bool,
    /// How many Guests there will be beside the user's own.
    pub beside: u32,
}

impl Settings {
    /// The usual machine: 1 GiB, two CPUs, five levels.
    pub fn new(kernel: &Path, initramfs: Vec<u8>, log: &Path) -> Self {
        Self {
            qemu: "qemu-system-x86_64".into(),
            kernel: kernel.to_path_buf(),
            initramfs,
            memory_mib: 1024,
            cpu: "max".to_owned(),
            cpus: 2,
            append: String::new(),
            count_instructions: false,
            plugin: None,
            log: log.to_path_buf(),
            disk: None,
            debugger: false,
            beside: 0,
        }
    }
}

/// The channels by name, and whether each is a terminal inside.
const CHANNELS: [(&str, bool); 6] = [
    ("user", true),
    ("shell", true),
    ("control", false),
    ("input", false),
    ("output", false),
    ("errors", false),
];

/// The channels of Guests beside the user's, each a terminal: of Guest 2 and those after it.
fn beside(count: u32) -> impl Iterator<Item = String> {
    (2..2 + count).map(|number| format!("beside{number}"))
}

/// The name of the debugger's socket.
const DEBUGGER: &str = "gdb";

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    // Holds the sockets; removed with the machine.
    folder: TempDir,
    log: PathBuf,
    complaints: PathBuf,
    /// The user's terminal, `/dev/hvc0` inside.
    pub user: UnixStream,
    /// The Host's shell, `/dev/hvc1` inside.
    pub shell: UnixStream,
    /// To a Guest's console without a terminal. Closed for writing, it is the end of a file inside.
    pub input: UnixStream,
    /// From a Guest's console without a terminal.
    pub output: UnixStream,
    /// What the Launcher complains of, without a terminal.
    pub errors: UnixStream,
    /// The terminals of the Guests beside the user's own: of Guest 2 and those after it.
    pub beside: Vec<UnixStream>,
    control: UnixStream,
    messages: Receiver<Message>,
    qmp: Qmp,
}

impl Machine {
    /// Starts QEMU and connects the channels. The Linux inside is then about to boot.
    ///
    /// # Errors
    ///
    /// When QEMU is missing, or ends before it has connected, with what it said.
    pub fn start(settings: &Settings) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("lguest-").tempdir()?;
        cleanup::note_folder(folder.path());
        let at = |name: &str| folder.path().join(name);
        fs::write(at("initramfs"), &settings.initramfs)?;
        let mut listeners = Vec::new();
        for (name, _) in CHANNELS {
            listeners.push(UnixListener::bind(at(name))?);
        }
        for name in beside(settings.beside) {
            listeners.push(UnixListener::bind(at(&name))?);
        }
        let qmp_listener = UnixListener::bind(at("qmp"))?;

        let complaints = settings.log.with_extension("qemu");
        let mut command = command(settings, folder.path());
        if settings.debugger {
            // The user's ^C is for the debugger.
            command.process_group(0);
        }
        // SAFETY: The one system call made between fork and exec takes no pointers, and neither
        // allocates nor locks.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&complaints)?)
            .spawn()
            .with_context(|| {
                format!("cannot start {}: is it installed?", settings.qemu.display())
            })?;

        let mut accept = |listener: &UnixListener| {
            let accepted = accept_from(listener, &mut child);
            accepted.with_context(|| fs::read_to_string(&complaints).unwrap_or_default())
        };
        let mut streams = Vec::new();
        for listener in &listeners {
            streams.push(accept(listener)?);
        }
        let beside = streams.split_off(CHANNELS.len());
        let qmp = Qmp::new(accept(&qmp_listener)?)?;
        let Ok([user, shell, control, input, output, errors]) =
            <[UnixStream; 6]>::try_from(streams)
        else {
            unreachable!("one stream for each of six channels");
        };
        let messages = read_messages(control.try_clone()?);
        Ok(Self {
            child,
            folder,
            log: settings.log.clone(),
            complaints,
            user,
            shell,
            input,
            output,
            errors,
            beside,
            control,
            messages,
            qmp,
        })
    }

    /// Sends one line to the program inside.
    ///
    /// # Errors
    ///
    /// When the machine is gone.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.control, "{line}").context("the machine is gone")
    }

    /// Waits for the next line from inside.
    ///
    /// # Errors
    ///
    /// When none comes in time, or the machine has ended.
    pub fn hear(&mut self, patience: Duration) -> Result<Message> {
        match self.messages.recv_timeout(patience) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "nothing was heard from the machine for {} seconds",
                    patience.as_secs()
                )
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.death()),
        }
    }

    /// The next line from inside, if one is there already.
    ///
    /// # Errors
    ///
    /// When the machine has ended.
    pub fn overhear(&mut self) -> Result<Option<Message>> {
        match self.messages.try_recv() {
            Ok(message) => Ok(Some(message)),
            Err(mpsc::TryRecvError::Empty) => Ok(None),
            Err(mpsc::TryRecvError::Disconnected) => Err(self.death()),
        }
    }

    /// Waits until the program inside says that the machine is up; gives what it says.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn wait_until_ready(&mut self, patience: Duration) -> Result<String> {
        let log = self.log.display().to_string();
        match self
            .hear(patience)
            .with_context(|| format!("Linux did not come up; log: {log}"))?
        {
            Message::Ready(facts) => Ok(facts),
            other => bail!("the machine began with {other:?}"),
        }
    }

    /// Injects something, as fast as QEMU takes it.
    ///
    /// # Errors
    ///
    /// When QEMU refuses.
    pub fn inject(&mut self, what: Injection) -> Result<()> {
        match what {
            Injection::Nmi { count } => {
                for _ in 0..count {
                    self.qmp.execute("inject-nmi", Value::Null)?;
                }
            }
            Injection::MachineCheck {
                count,
                cpu,
                global,
                status,
            } => {
                // Bank 1, because Linux treats bank 0 of some processors specially; no address.
                let line = format!("mce {cpu} 1 {status:#x} {global:#x} 0 0");
                let arguments = serde_json::json!({ "command-line": line });
                for _ in 0..count {
                    let command = "human-monitor-command";
                    let answer = self.qmp.execute(command, arguments.clone())?;
                    // It has nothing to say unless something is wrong.
                    let said = answer.as_str().unwrap_or_default().trim();
                    ensure!(said.is_empty(), "QEMU answers `{line}` with {said:?}");
                }
            }
        }
        Ok(())
    }

    /// Stops all processors until a debugger, or nobody, lets them go on.
    ///
    /// # Errors
    ///
    /// When QEMU refuses.
    pub fn pause(&mut self) -> Result<()> {
        self.qmp.execute("stop", Value::Null).map(drop)
    }

    /// The folder of this machine's files, removed with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The socket at which QEMU waits for a debugger, if the machine was started with one.
    pub fn debugger(&self) -> PathBuf {
        self.folder.path().join(DEBUGGER)
    }

    /// Asks the program inside to end the machine, and waits until it has.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn quit(mut self, patience: Duration) -> Result<ExitStatus> {
        // If it is gone already the waiting below finds that out.
        let _ = self.tell("quit");
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!(
                    "the machine did not end within {} seconds",
                    patience.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The file with the kernel's messages.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An error that says how QEMU ended.
    fn death(&mut self) -> anyhow::Error {
        let end = Instant::now() + Duration::from_secs(2);
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break format!(" ({status})"),
                _ if Instant::now() > end => break String::new(),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        };
        let complaints = fs::read_to_string(&self.complaints).unwrap_or_default();
        let words = last_words_of(&self.log);
        let log = self.log.display();
        anyhow!("the machine ended{status}; the kernel's log is {log}\n{words}\n{complaints}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Either may fail only because it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        cleanup::forget_folder(self.folder.path());
        if fs::metadata(&self.complaints).is_ok_and(|file| file.len() == 0) {
            let _ = fs::remove_file(&self.complaints);
        }
    }
}

/// The command line of QEMU.
fn command(settings: &Settings, folder: &Path) -> Command {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut command = Command::new(&settings.qemu);
    if settings.count_instructions {
        command.args([
            "-accel",
            "tcg,thread=single",
            "-icount",
            "shift=0,sleep=off",
        ]);
    } else {
        command.args(["-accel", "tcg"]);
    }
    if let Some(plugin) = &settings.plugin {
        command.args(["-plugin", plugin]);
    }
    command.args([
        "-cpu",
        &settings.cpu,
        "-smp",
        &settings.cpus.to_string(),
        "-m",
        &format!("{}M", settings.memory_mib),
    ]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.args([
        "-chardev",
        &format!("file,id=log,path={}", settings.log.display()),
    ]);
    command.args(["-serial", "chardev:log"]);
    command.args(["-device", "virtio-serial-pci"]);
    let own = CHANNELS.map(|(name, terminal)| (name.to_owned(), terminal));
    let all = own
        .into_iter()
        .chain(beside(settings.beside).map(|name| (name, true)));
    for (name, terminal) in all {
        let device = if terminal {
            "virtconsole"
        } else {
            "virtserialport"
        };
        command.args(["-chardev", &format!("socket,id={name},path={}", at(&name))]);
        command.args([
            "-device",
            &format!("{device},chardev={name},name=lguest.{name}"),
        ]);
    }
    command.args(["-chardev", &format!("socket,id=qmp,path={}", at("qmp"))]);
    command.args(["-mon", "chardev=qmp,mode=control"]);
    if let Some(disk) = &settings.disk {
        let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
        command.args(["-drive", &drive]);
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    if settings.debugger {
        let socket = format!("socket,id=gdb,path={},server=on,wait=off", at(DEBUGGER));
        command.args(["-chardev", &socket, "-gdb", "chardev:gdb"]);
    }
    command
        .arg("-kernel")
        .arg(&settings.kernel)
        .arg("-initrd")
        .arg(folder.join("initramfs"));
    // A Host that panics ends the machine at once, and that fails the case. Linux looks early
    // whether its timer ticks, and on a busy machine QEMU's may come too late: it is not asked to.
    let words = "console=ttyS0 loglevel=7 panic=-1 oops=panic no_timer_check rdinit=/init";
    command.args(["-append", &format!("{words} {}", settings.append)]);
    command
}

/// Waits for QEMU to connect, or to end.
fn accept_from(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended at once ({status})");
        }
        if Instant::now() > end {
            bail!("QEMU did not connect within a minute");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Reads lines in a thread of their own. The receiver is disconnected when the machine ends.
fn read_messages(stream: UnixStream) -> Receiver<Message> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { break };
            if sender.send(Message::parse(&line)).is_err() {
                break;
            }
        }
    });
    receiver
}

/// QEMU's machine protocol: a JSON object a line, each way.
#[derive(Debug)]
struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: stream,
        };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Runs one command and gives its answer, passing over events.
    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = serde_json::json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        writeln!(self.writer, "{request}")?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.reader
            .read_line(&mut line)
            .context("QEMU does not answer")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU answers {line:?}"))
    }
}

/// Reads what is left in a channel after the machine has ended.
///
/// # Errors
///
/// When reading fails.
pub fn drain(stream: &mut UnixStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.set_nonblocking(false)?;
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}
