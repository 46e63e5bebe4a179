// SPDX-License-Identifier: GPL-2.0-only

//! The Linux that this runs in: its file systems, module, log and counters.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::kmod::{self, DeleteModuleFlags, ModuleInitFlags};
use nix::mount::{MsFlags, mount};

use crate::nets;
use crate::patience::Patience;
use crate::protocol::{Injection, escape};

/// Where the module lies.
pub const MODULE: &str = "/lib/lguest.ko";
/// The Launcher.
pub const LAUNCHER: &str = "/bin/lguest";
/// The device.
pub const DEVICE: &str = "/dev/lguest";
/// The module's counters, a name and a number a line.
const COUNTERS: &str = "/sys/kernel/debug/lguest/counters";

/// Mounts the file systems that everything else takes for granted.
///
/// # Errors
///
/// When the kernel refuses one.
pub fn mount_all() -> Result<()> {
    let none: Option<&str> = None;
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("debugfs", "/sys/kernel/debug"),
        ("tmpfs", "/tmp"),
    ] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("cannot mount {kind} at {target}"))?;
    }
    Ok(())
}

/// Opens the virtio port called `lguest.<name>`, waiting for it to appear.
///
/// # Errors
///
/// When it does not appear within ten seconds.
pub fn open_port(name: &str) -> Result<File> {
    let wanted = format!("lguest.{name}");
    let mut left = Patience::new(Duration::from_secs(10) * patience());
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
        {
            let label = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if label.trim() == wanted {
                let path = Path::new("/dev").join(entry.file_name());
                let opened = OpenOptions::new().read(true).write(true).open(&path);
                return opened.with_context(|| format!("cannot open {}", path.display()));
            }
        }
        if left.is_over() {
            bail!(
                "there is no virtio port {wanted}: this kernel needs CONFIG_VIRTIO_PCI=y and \
                 CONFIG_VIRTIO_CONSOLE=y"
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the machine says of itself: `7.3.4 with five levels of page tables, 2 CPUs, 1 GiB`...
pub fn facts(boot: &[Record]) -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // Linux takes a flag away when it does not use the thing.
    let levels = if has_flag("la57") { "five" } else { "four" };
    let cpus = cpus();
    let plural = if cpus == 1 { "" } else { "s" };
    let pti = if has_flag("pti") { "PTI" } else { "no PTI" };
    format!(
        "{} with {levels} levels of page tables, {cpus} CPU{plural}, {} GiB, {}, {pti}{}",
        release.trim(),
        meminfo("MemTotal").unwrap_or_default().div_ceil(1 << 20),
        vendor(),
        nets::facts(boot)
    )
}

/// What Linux keeps the time with.
pub fn clock_source() -> String {
    let folder = "/sys/devices/system/clocksource/clocksource0";
    let name = fs::read_to_string(format!("{folder}/current_clocksource")).unwrap_or_default();
    name.trim().to_owned()
}

/// A line of `/proc/meminfo`, in KiB.
///
/// # Errors
///
/// When there is no such line.
pub fn meminfo(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let line = lines.into_iter().find(|(known, _)| *known == name);
    let (_, value) = line.with_context(|| format!("no {name} in /proc/meminfo"))?;
    let number = value.trim().trim_end_matches(" kB");
    Ok(number.parse()?)
}

/// Who the processor says has made it.
pub fn vendor() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = processors
        .lines()
        .find(|line| line.starts_with("vendor_id"));
    let name = line.and_then(|line| line.split_once(':'));
    name.map_or("an unknown vendor", |(_, name)| name.trim())
        .to_owned()
}

/// Whether `/proc/cpuinfo` has a flag.
pub fn has_flag(wanted: &str) -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processors
        .lines()
        .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == wanted))
}

/// Whether page tables have five levels here.
pub fn five_levels() -> bool {
    has_flag("la57")
}

/// How many CPUs there are.
pub fn cpus() -> usize {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let begins = |line: &&str| line.starts_with("processor");
    processors.lines().filter(begins).count().max(1)
}

/// So many times slower than the usual machine this one may be; it is said on the kernel's command
/// line.
pub fn patience() -> u32 {
    let said = std::env::var("patience").ok();
    said.and_then(|word| word.parse().ok()).unwrap_or(1)
}

/// Whether the module is in the kernel.
pub fn module_loaded() -> bool {
    Path::new("/sys/module/lguest").exists()
}

/// Loads the module if it is not loaded.
///
/// # Errors
///
/// When there is none, or the kernel refuses it.
pub fn load_module() -> Result<()> {
    if module_loaded() {
        return Ok(());
    }
    load_module_with(c"")
}

/// Loads the module with these parameters.
///
/// # Errors
///
/// When there is none, it is loaded already, or the kernel refuses it.
pub fn load_module_with(parameters: &CStr) -> Result<()> {
    let file = File::open(MODULE).context("the module is not in this machine: `make module`")?;
    kmod::finit_module(&file, parameters, ModuleInitFlags::empty())
        .with_context(|| format!("the kernel refuses {MODULE}"))?;
    Ok(())
}

/// Loads the module and says where its sections are: names and addresses by turns.
///
/// # Errors
///
/// When it cannot be loaded, or the kernel does not say.
pub fn module_sections() -> Result<String> {
    load_module()?;
    let mut words = String::new();
    for entry in fs::read_dir("/sys/module/lguest/sections")? {
        let entry = entry?;
        let address = fs::read_to_string(entry.path())?;
        let name = entry.file_name();
        words.push_str(&format!("{} {} ", name.to_string_lossy(), address.trim()));
    }
    Ok(words.trim_end().to_owned())
}

/// Takes the module out of the kernel.
///
/// # Errors
///
/// When the kernel refuses, for instance because the device is open.
pub fn unload_module() -> Result<()> {
    kmod::delete_module(c"lguest", DeleteModuleFlags::O_NONBLOCK)
        .context("the kernel does not let go of the module")
}

/// The module's own counters.
///
/// # Errors
///
/// When they cannot be read, or a line is not a name and a number.
pub fn counters() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(COUNTERS).with_context(|| format!("cannot read {COUNTERS}"))?;
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').with_context(|| format!("{line:?}"))?;
            Ok((name.to_owned(), value.trim().parse()?))
        })
        .collect()
}

/// One counter by name.
///
/// # Errors
///
/// When there is none of that name.
pub fn counter(name: &str) -> Result<u64> {
    let all = counters()?;
    all.get(name)
        .copied()
        .ok_or_else(|| anyhow!("no counter {name} among {:?}", all.keys()))
}

/// The counters that must be 0 when no Guest is alive.
pub const RESOURCES: [&str; 4] = ["guests", "pinned_pages", "shadow_pages", "bound_dma"];

/// Waits until no Guest, no pinned and no shadow page, and no binding of a Guest's is left.
///
/// # Errors
///
/// When something is still held after ten seconds.
pub fn wait_until_free() -> Result<()> {
    let mut left = Patience::new(Duration::from_secs(10) * patience());
    loop {
        let all = counters()?;
        let held: Vec<_> = RESOURCES
            .iter()
            .filter(|name| all.get(**name) != Some(&0))
            .map(|name| format!("{name} {:?}", all.get(*name)))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        if left.is_over() {
            bail!("still held with no Guest alive: {}", held.join(", "));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// How many NMIs a CPU has taken.
///
/// # Errors
///
/// When `/proc/interrupts` does not say.
pub fn nmi_count(cpu: usize) -> Result<u64> {
    interrupts("NMI:", cpu)
}

/// How many machine checks a CPU has taken.
///
/// # Errors
///
/// When `/proc/interrupts` does not say.
pub fn mce_count(cpu: usize) -> Result<u64> {
    interrupts("MCE:", cpu)
}

/// How many interrupts of a kind a CPU has taken.
fn interrupts(kind: &str, cpu: usize) -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(kind));
    let line = line.with_context(|| format!("/proc/interrupts has no line {kind}"))?;
    let count = line
        .split_whitespace()
        .nth(cpu)
        .context("no such CPU in /proc/interrupts")?;
    Ok(count.parse()?)
}

/// A model-specific register of a CPU.
///
/// # Errors
///
/// When the kernel has no driver for them (CONFIG_X86_MSR), or the register cannot be read.
pub fn msr(cpu: usize, register: u32) -> Result<u64> {
    let path = format!("/dev/cpu/{cpu}/msr");
    let file = File::open(&path).with_context(|| format!("no {path}"))?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, u64::from(register))
        .with_context(|| format!("{path}: register {register:#x}"))?;
    Ok(u64::from_le_bytes(bytes))
}

/// The kernel's log, record by record.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
}

/// One record of the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its level: 4 is a warning, less is worse.
    pub level: u8,
    /// What it says.
    pub text: String,
}

/// The level of warnings.
pub const WARNING: u8 = 4;

impl KernelLog {
    /// Begins at the oldest record there is.
    ///
    /// # Errors
    ///
    /// When the log cannot be opened.
    pub fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("cannot open /dev/kmsg")?;
        Ok(Self { file })
    }

    /// The records since the last time.
    ///
    /// # Errors
    ///
    /// When reading fails.
    pub fn new_records(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(records),
                Ok(n) => records.extend(record(&String::from_utf8_lossy(&buffer[..n]))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(records),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Records were overwritten before they were read: that must not pass unseen.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    let text = "(records of the kernel's log were lost)".to_owned();
                    records.push(Record {
                        level: WARNING,
                        text,
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Takes one record of `/dev/kmsg` apart: `6,339,5140900,-;text`, then lines of details.
fn record(raw: &str) -> Option<Record> {
    let (head, rest) = raw.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let text = rest.lines().next().unwrap_or_default();
    Some(Record {
        level: (priority & 7) as u8,
        text: text.to_owned(),
    })
}

/// Writes a line into the kernel's log, so that it shows where a case began.
pub fn mark(text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // A mark that is lost harms nobody.
        // One write is one record.
        let _ = log.write_all(format!("<6>inside: {text}\n").as_bytes());
    }
}

/// The control channel, as the cases use it.
#[derive(Debug)]
pub struct Control {
    reader: BufReader<File>,
    voice: Voice,
}

/// What says lines on the control channel; there may be several.
#[derive(Debug)]
pub struct Voice(File);

impl Voice {
    /// Sends a word with a text.
    ///
    /// # Errors
    ///
    /// When the other side is gone.
    pub fn say(&mut self, word: &str, text: &str) -> Result<()> {
        // One write, so that one line arrives as one.
        self.0
            .write_all(format!("{word} {}\n", escape(text)).as_bytes())?;
        Ok(())
    }
}

impl Control {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When there is no such port.
    pub fn open() -> Result<Self> {
        let port = open_port("control")?;
        Ok(Self {
            reader: BufReader::new(port.try_clone()?),
            voice: Voice(port),
        })
    }

    /// Another voice, for another thread.
    ///
    /// # Errors
    ///
    /// When there are too many open files.
    pub fn voice(&self) -> Result<Voice> {
        Ok(Voice(self.voice.0.try_clone()?))
    }

    /// Sends a word with a text.
    ///
    /// # Errors
    ///
    /// When the other side is gone.
    pub fn say(&mut self, word: &str, text: &str) -> Result<()> {
        self.voice.say(word, text)
    }

    /// Reads the next line; `None` when the other side has gone.
    ///
    /// # Errors
    ///
    /// When reading fails.
    pub fn hear(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let n = self.reader.read_line(&mut line)?;
        Ok((n > 0).then(|| line.trim_end().to_owned()))
    }

    /// Has QEMU inject something and waits until that is done.
    ///
    /// # Errors
    ///
    /// When the other side does not do it.
    pub fn inject(&mut self, what: Injection) -> Result<()> {
        self.say("inject", &what.words())?;
        match self.hear()?.as_deref() {
            Some("done") => Ok(()),
            other => bail!("asked for {what:?}, was told {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_apart() {
        let raw = "4,339,5140900,-;lguest: something\n SUBSYSTEM=x\n";
        let expected = Record {
            level: 4,
            text: "lguest: something".into(),
        };
        assert_eq!(record(raw), Some(expected));
        // Facility 3 (daemon) times eight, and level 6.
        assert_eq!(record("30,1,2,-;x").map(|r| r.level), Some(6));
        assert_eq!(record("nonsense"), None);
    }
}
