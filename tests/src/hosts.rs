// SPDX-License-Identifier: GPL-2.0-only

//! The kinds of Host that the cases run on: one row of [`KINDS`] each.
//!
//! A kind is a section of the test's output. Its row says which machine is put together, what the
//! Linux in it must say of itself once it is up (a machine that should have something and does not
//! is a failure, not a pass of the wrong thing), and how much of the list is run when.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artifacts::{Artifacts, kvm_modules, place, root};
use crate::machine::Settings;
use crate::sample;

/// One kind of Host.
#[derive(Debug)]
pub struct Kind {
    /// What its section is called: `host-` and a word, none the beginning of another's.
    pub section: &'static str,
    /// What is special about it.
    pub about: &'static str,
    /// The processor's model and features, as QEMU names them.
    pub cpu: &'static str,
    /// How many processors.
    pub cpus: u32,
    /// How much memory, in MiB.
    pub memory_mib: u32,
    /// More words for the kernel's command line.
    pub append: &'static str,
    /// Which QEMU.
    pub qemu: Qemu,
    /// Which Linux, and the module that was built for it.
    pub kernel: Kernel,
    /// How many times slower than the first kind it may be.
    pub patience: u32,
    /// Whether it is tried in the long set only (or when asked for by name).
    pub long: bool,
    /// An ordinary run takes one in so many of the cases, and of the slow ones fewer; 1 is all but
    /// of those.
    pub one_in: u64,
    /// What the machine must say of itself when it is up; see `inside::host::facts`.
    pub facts: &'static [&'static str],
}

/// Which QEMU runs a Host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qemu {
    /// The machine's own.
    Own,
    /// Version 10 out of the cache, on a machine whose own is older; `setup/qemu.sh` puts it there.
    Ten,
}

/// Which Linux a Host is. All of a kind are built the same way: an image, and a module for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The one of `make run`, with the module of `make module`.
    Plain,
    /// The same, with the checked build of the module, which watches the Host's state.
    Checked,
    /// The one of `kernel/debug.config`.
    Debug,
    /// The one of `kernel/kasan.config`.
    Kasan,
}

/// The first kind: the one that everything else is a change of.
const FIRST: Kind = Kind {
    section: "host-5",
    about: "page tables of five levels, two processors",
    cpu: "max",
    cpus: 2,
    memory_mib: 1024,
    append: "",
    qemu: Qemu::Own,
    kernel: Kernel::Plain,
    patience: 1,
    long: false,
    one_in: 1,
    facts: &["five levels", "2 CPUs"],
};

/// All kinds, in the order in which they are tried.
pub const KINDS: &[Kind] = &[
    FIRST,
    Kind {
        section: "host-4",
        about: "page tables of four levels",
        cpu: "max,la57=off",
        one_in: 4,
        facts: &["four levels", "2 CPUs"],
        ..FIRST
    },
    Kind {
        section: "host-1",
        about: "one processor",
        cpus: 1,
        one_in: 6,
        facts: &["five levels", "1 CPU,"],
        ..FIRST
    },
    Kind {
        section: "host-large",
        about: "two GiB of memory",
        memory_mib: 2048,
        one_in: 24,
        facts: &["2 CPUs", "2 GiB"],
        ..FIRST
    },
    Kind {
        section: "host-high",
        about: "six GiB of memory, most of it above four",
        memory_mib: 6144,
        one_in: 24,
        facts: &["2 CPUs", "6 GiB"],
        ..FIRST
    },
    Kind {
        section: "host-intel",
        about: "a processor that says it is Intel's, so that it has `sysenter`",
        cpu: "max,vendor=GenuineIntel",
        one_in: 12,
        facts: &["GenuineIntel"],
        ..FIRST
    },
    Kind {
        section: "host-checked",
        about: "the checked module, which watches the Host's state",
        kernel: Kernel::Checked,
        append: CHECKED_WORD,
        patience: 3,
        one_in: 16,
        ..FIRST
    },
    Kind {
        section: "host-debug",
        about: "a kernel with lockdep, kmemleak, page poisoning and more",
        append: DEBUG_WORDS,
        kernel: Kernel::Debug,
        patience: 8,
        long: true,
        facts: &[
            "five levels",
            "2 CPUs",
            " PTI",
            "lockdep",
            "kmemleak",
            "slab poisoning",
        ],
        ..FIRST
    },
    Kind {
        section: "host-kasan",
        about: "a kernel built by clang with KASAN, four levels",
        cpu: "max,la57=off",
        // A quarter of it is KASAN's own: its map of the rest, and what it keeps from reuse.
        memory_mib: 1536,
        append: KASAN_WORDS,
        kernel: Kernel::Kasan,
        patience: 8,
        long: true,
        facts: &["four levels", "2 CPUs", "KASAN"],
        ..FIRST
    },
    Kind {
        section: "host-qemu10",
        about: "a newer emulator",
        qemu: Qemu::Ten,
        long: true,
        ..FIRST
    },
];

/// Tells the program inside that it must find the checked module; see `cases::state`.
const CHECKED_WORD: &str = "module=checked";

/// What the debug kernel is told: its nets spread, and the first thing caught is the last. The
/// emulated CPU is an AMD, which would do without PTI.
const DEBUG_WORDS: &str = "page_poison=1 debug_pagealloc=on slab_debug=FZP hash_pointers=always \
    pti=on panic_on_warn=1";
/// What the KASAN kernel is told. It has four levels of page tables, for with five Linux 7.3 boots
/// into a false report now and then: `identify_cpu` empties the list of the CPU's features and
/// fills it anew, and an interrupt between the two finds no LA57 there, takes the levels for four,
/// and KASAN the Host's own memory for a wild address.
const KASAN_WORDS: &str = "kasan.fault=panic panic_on_warn=1";

/// The cases that are part of every sample.
const ALWAYS: [&str; 4] = ["linux", "hello", "walls", "reload"];
/// And these where the module is the checked one.
const CHECKED_ALWAYS: [&str; 2] = ["state", "disturbed"];
/// The case that makes no sense anywhere else.
const CHECKED_ONLY: &str = "disturbed";
/// The case that needs so much memory, and so much time that it is run nowhere else.
const LARGE_ONLY: &str = "many";
/// The cases for a Host with more than four GiB, and of those the one that is always tried. Others
/// would use all of that memory, which is this machine's.
const HIGH: [&str; 12] = [
    "linux",
    "hello",
    "walls",
    "reload",
    "high",
    "memory",
    "tables",
    "evil-tables",
    "neighbours",
    "hints",
    "reclaim",
    "lent",
];
const HIGH_ALWAYS: &str = "high";
/// The case that takes as long as one lets it: a minute in the long set, on the first kind.
pub const SOAK: &str = "soak";
/// The cases that take five seconds and more on the first kind, each; an ordinary run takes fewer
/// of these.
const SLOW: [&str; 19] = [
    "device-storm",
    "fpu-busy",
    "idle",
    "initial-disk",
    "killed-anywhere",
    "kvm-after",
    "leaks",
    "leaving-signals",
    "leaving-suspend",
    "lent",
    "net-pressure",
    "net-programs",
    "net-scribbler",
    "programs-fork",
    "reasons",
    "ring-scribbled",
    "spin",
    "sweep",
    "timer-storm",
];
/// One in so many of those that would have been taken.
const SLOW_ONE_IN: u64 = 4;

impl Kind {
    /// The kind of that name, with `host-` or without.
    pub fn named(name: &str) -> Option<&'static Self> {
        KINDS
            .iter()
            .find(|kind| kind.section == name || kind.section == format!("host-{name}"))
    }

    /// Whether a case can be tried on it at all.
    pub fn takes(&self, case: &str) -> bool {
        (case != CHECKED_ONLY || self.kernel == Kernel::Checked)
            && (case != LARGE_ONLY || self.is_large())
            && (!self.is_high() || HIGH.contains(&case))
            && (case != SOAK || self.section == FIRST.section)
    }

    fn is_large(&self) -> bool {
        self.memory_mib == 2048
    }

    fn is_high(&self) -> bool {
        self.memory_mib > 4096
    }

    /// Whether an ordinary run at this commit takes a case on it.
    pub fn samples(&self, commit: &str, case: &str) -> bool {
        if case == SOAK {
            return false;
        }
        ALWAYS.contains(&case)
            || (self.kernel == Kernel::Checked && CHECKED_ALWAYS.contains(&case))
            || (self.is_large() && case == LARGE_ONLY)
            || (self.is_high() && case == HIGH_ALWAYS)
            || sample::chosen(
                commit,
                &format!("{}/{case}", self.section),
                self.one_in * if SLOW.contains(&case) { SLOW_ONE_IN } else { 1 },
            )
    }

    /// Why it cannot be tried here, if so. What can be fetched is fetched.
    ///
    /// # Errors
    ///
    /// When it should be possible here and is not.
    pub fn missing(&self) -> Result<Option<String>> {
        Ok(self.qemu.missing()?.or_else(|| self.kernel.missing()))
    }

    /// The module that is loaded on it.
    pub fn module(&self, artifacts: &Artifacts) -> Option<PathBuf> {
        if self.kernel == Kernel::Plain {
            artifacts.module.clone()
        } else {
            Some(self.kernel.module())
        }
    }

    /// The machine for it, with everything packed in.
    ///
    /// # Errors
    ///
    /// When a part cannot be read.
    pub fn settings(&self, artifacts: &Artifacts) -> Result<Settings> {
        let mut artifacts = artifacts.clone();
        if self.kernel != Kernel::Plain {
            self.kernel.build()?;
            artifacts.kernel = self.kernel.image()?;
        }
        artifacts.module = self.module(&artifacts);
        // A kernel without KVM is none that its case can be tried on, which then says so.
        artifacts.modules = kvm_modules(&self.kernel.tree()?).unwrap_or_default();
        let mut settings = Settings::new(&artifacts.kernel, artifacts.pack()?, "".as_ref());
        settings.qemu = self.qemu.program()?;
        settings.cpu = self.cpu.to_owned();
        settings.cpus = self.cpus;
        settings.memory_mib = self.memory_mib;
        settings.append = self.append.to_owned();
        if self.patience > 1 {
            // A word that the kernel does not know ends up in the environment of /init.
            settings.append = format!("{} patience={}", settings.append, self.patience);
        }
        Ok(settings)
    }

    /// Checks what the machine says of itself.
    ///
    /// # Errors
    ///
    /// When it is not of this kind.
    pub fn check(&self, facts: &str) -> Result<()> {
        for fact in self.facts {
            ensure!(
                facts.contains(fact),
                "the machine has {facts:?}, not {fact:?}"
            );
        }
        Ok(())
    }
}

impl Qemu {
    /// The program.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::Own => Ok("qemu-system-x86_64".into()),
            Self::Ten => Ok(place("LGUEST_CACHE")?.join("qemu-10/run")),
        }
    }

    /// What it says of its version: `7.2.22`.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn version(self) -> Result<String> {
        let program = self.program()?;
        let output = Command::new(&program).arg("--version").output();
        let output = output.with_context(|| format!("cannot start {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("QEMU emulator version "))
            .and_then(|rest| rest.split_whitespace().next());
        Ok(version
            .with_context(|| format!("{} says {text:?}", program.display()))?
            .to_owned())
    }

    /// Why it cannot be had, if so; fetches it if need be.
    fn missing(self) -> Result<Option<String>> {
        if self == Self::Own {
            return Ok(None);
        }
        let own = Self::Own.version()?;
        let major = own.split('.').next().and_then(|word| word.parse().ok());
        if major.is_some_and(|major: u32| major >= 10) {
            return Ok(Some(format!(
                "the machine's own QEMU is {own}, and every other kind has been tried with that"
            )));
        }
        let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        if !system.contains("VERSION_CODENAME=bookworm") {
            return Ok(Some(format!(
                "the machine's own QEMU is {own}, and there is a newer one for Debian 12 only"
            )));
        }
        let script = root().join("setup/qemu.sh");
        let status = Command::new(&script).arg("build").status();
        let status = status.with_context(|| format!("cannot start {}", script.display()))?;
        ensure!(status.success(), "QEMU 10 could not be fetched; see above");
        Ok(None)
    }
}

impl Kernel {
    /// The image to boot.
    ///
    /// # Errors
    ///
    /// When nobody knows where it is.
    pub fn image(self) -> Result<PathBuf> {
        match self {
            Self::Plain | Self::Checked => place("BZIMAGE"),
            Self::Debug => Ok(place("LGUEST_KERNEL_DEBUG")?.join("arch/x86/boot/bzImage")),
            Self::Kasan => Ok(place("LGUEST_KERNEL_KASAN")?.join("arch/x86/boot/bzImage")),
        }
    }

    /// The tree that it was built in.
    fn tree(self) -> Result<PathBuf> {
        match self {
            Self::Plain | Self::Checked => place("KDIR"),
            Self::Debug => place("LGUEST_KERNEL_DEBUG"),
            Self::Kasan => place("LGUEST_KERNEL_KASAN"),
        }
    }

    /// Where the module for it is built.
    pub fn module(self) -> PathBuf {
        match self {
            Self::Plain => root().join("module/lguest.ko"),
            Self::Checked => root().join(CHECKED_MODULE).join("lguest.ko"),
            Self::Debug => root().join(DEBUG_MODULE).join("lguest.ko"),
            Self::Kasan => root().join(KASAN_MODULE).join("lguest.ko"),
        }
    }

    /// Builds the module, if nobody else does.
    fn build(self) -> Result<()> {
        let (folder, tree) = match self {
            Self::Plain => return Ok(()),
            Self::Checked => (CHECKED_MODULE, None),
            Self::Debug => (DEBUG_MODULE, Some("LGUEST_KERNEL_DEBUG")),
            Self::Kasan => (KASAN_MODULE, Some("LGUEST_KERNEL_KASAN")),
        };
        let mut make = Command::new("make");
        make.current_dir(root())
            .args(["module", &format!("MODULE_OUT={folder}")]);
        match tree {
            Some(tree) => make.arg(format!("KDIR={}", place(tree)?.display())),
            None => make.arg("CHECKED=1"),
        };
        let output = make.output().context("cannot start make")?;
        ensure!(
            output.status.success(),
            "the module for it cannot be built:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Whether a case that failed leaves a kernel behind that sees less than before: lockdep, for
    /// one, reports once and then never again.
    pub fn worn_by_failure(self) -> bool {
        matches!(self, Self::Debug | Self::Kasan)
    }

    fn missing(self) -> Option<String> {
        if matches!(self, Self::Plain | Self::Checked) {
            return None;
        }
        match self.image() {
            Ok(image) if image.is_file() => None,
            Ok(image) => Some(format!(
                "there is no kernel at {}: `make setup-long` builds it",
                image.display()
            )),
            Err(error) => Some(format!("{error:#}")),
        }
    }
}

/// Where the checked module is built, so that the ordinary one stays as it is.
const CHECKED_MODULE: &str = "target/module-checked";
/// And those for the kernels of the long set.
const DEBUG_MODULE: &str = "target/module-debug";
const KASAN_MODULE: &str = "target/module-kasan";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_section_begins_like_another() {
        for one in KINDS {
            assert!(one.section.starts_with("host-"));
            let like = KINDS
                .iter()
                .filter(|kind| kind.section.starts_with(one.section));
            assert_eq!(like.count(), 1, "{}", one.section);
        }
    }

    #[test]
    fn slow_cases_exist_and_have_their_turn() {
        let commits: Vec<String> = (0..100).map(|n| format!("commit {n}")).collect();
        for slow in SLOW {
            assert!(inside::cases::find(slow).is_some(), "{slow}");
            let taken = commits.iter().filter(|commit| FIRST.samples(commit, slow));
            assert!((5..60).contains(&taken.count()), "{slow}");
        }
        assert!(commits.iter().all(|commit| FIRST.samples(commit, "memory")));
    }

    #[test]
    fn a_kind_is_found_by_either_name() {
        assert_eq!(Kind::named("4").map(|kind| kind.section), Some("host-4"));
        assert_eq!(
            Kind::named("host-1").map(|kind| kind.section),
            Some("host-1")
        );
        assert!(Kind::named("9").is_none());
    }

    #[test]
    fn a_machine_of_another_kind_is_refused() {
        let four = Kind::named("4").expect("there is one");
        assert!(
            four.check("7.3.4 with four levels of page tables, 2 CPUs, no PTI")
                .is_ok()
        );
        assert!(
            four.check("7.3.4 with five levels of page tables, 2 CPUs, no PTI")
                .is_err()
        );
        let one = Kind::named("1").expect("there is one");
        assert!(
            one.check("7.3.4 with five levels of page tables, 1 CPU, no PTI")
                .is_ok()
        );
        assert!(
            one.check("7.3.4 with five levels of page tables, 11 CPUs, no PTI")
                .is_err()
        );
    }
}
