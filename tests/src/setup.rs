// SPDX-License-Identifier: GPL-2.0-only

//! Set-up: what `make doctor` finds and says, and which kernel trees are used.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::{place, root};
use crate::report::Report;
use crate::sample;

/// The name of this section.
pub const SECTION: &str = "setup";

/// One in so many of the tools is taken away in an ordinary run.
const SAMPLE: u64 = 3;

/// A command; the row in which the doctor must miss it; what the mending command must have.
type Tool = (&'static str, &'static str, &'static str);

const TOOLS: &[Tool] = &[
    ("rustc", "rustc", "rust"),
    ("cargo", "cargo", "rust"),
    ("gcc", "build-essential", "build-essential"),
    ("make", "build-essential", "build-essential"),
    ("ld", "build-essential", "build-essential"),
    ("flex", "flex", "flex"),
    ("bison", "bison", "bison"),
    ("bc", "bc", "bc"),
    ("cpio", "cpio", "cpio"),
    ("lz4", "lz4", "lz4"),
    ("xz", "xz-utils", "xz-utils"),
    ("qemu-system-x86_64", "qemu-system-x86", "qemu-system-x86"),
    ("busybox", "busybox-static", "busybox-static"),
    ("curl", "curl", "curl"),
];

/// Runs the section.
///
/// # Errors
///
/// When its logs cannot be kept.
pub fn run(report: &mut Report, commit: &str, all: bool) -> Result<()> {
    if report.wants_section(SECTION).is_none() {
        return Ok(());
    }
    report.section("setup: what the doctor says, and which trees are used");
    judge(report, "doctor-whole", whole)?;
    for tool in TOOLS {
        let name = format!("doctor-without-{}", tool.0);
        if all || sample::chosen(commit, &name, SAMPLE) {
            judge(report, &name, || without(tool))?;
        }
    }
    judge(report, "doctor-empty", empty)?;
    for tree in TREES {
        judge(report, &format!("kdir-{}", tree.0), || refused(tree))?;
    }
    judge(report, "kdir-good", good)?;
    judge(report, "kdir-relative", relative)
}

/// Runs one test and reports it.
fn judge(report: &mut Report, name: &str, test: impl FnOnce() -> Result<()>) -> Result<()> {
    if !report.wants(SECTION, name) {
        return Ok(());
    }
    let full = format!("{SECTION}/{name}");
    match test() {
        Ok(()) => report.pass(&full),
        Err(error) => {
            let why = format!("{error:#}");
            let log = report.keep(SECTION, name, why.as_bytes())?;
            report.fail(&full, &why, &log);
        }
    }
    Ok(())
}

/// A script of the project, without what `make` has handed down to this program.
fn script(name: &str) -> Command {
    let mut command = Command::new(root().join(name));
    command.current_dir(root());
    for name in [
        "KDIR",
        "BZIMAGE",
        "LGUEST_BUSYBOX",
        "LGUEST_TOOLS",
        "MAKEFLAGS",
        "MFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// All that a command says, and whether it was content.
fn outcome(command: &mut Command) -> Result<(String, bool)> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((text, output.status.success()))
}

/// With all there, which `make test` has just seen to.
fn whole() -> Result<()> {
    let mut doctor = script("setup/doctor");
    if let Some(tree) = env::var_os("KDIR") {
        doctor.env("KDIR", tree);
    }
    let (text, content) = outcome(&mut doctor)?;
    ensure!(content, "not content:\n{text}");
    ensure!(!text.contains("MISSING"), "{text}");
    for what in [
        "rustc 1.",
        "gcc ",
        "make ",
        "qemu-system-x86_64 ",
        "MiB free",
        "/dev/kvm",
    ] {
        ensure!(text.contains(what), "nothing is said of {what:?}:\n{text}");
    }
    Ok(())
}

/// What the doctor says of an empty cache, which it must not fill.
fn diagnose(doctor: &mut Command) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let cache = folder.path().join("cache");
    doctor.arg("--offline").env("LGUEST_CACHE", &cache);
    let (text, content) = outcome(doctor)?;
    ensure!(!content, "content although something is missing:\n{text}");
    ensure!(!cache.exists(), "it has made {}", cache.display());
    Ok(text)
}

/// Checks that something is missed by name, and that the line below has a command against it.
fn missed(text: &str, row: &str, mended_by: &str) -> Result<()> {
    let mut lines = text.lines();
    let found = lines.any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("MISSING") && words.next() == Some(row)
    });
    ensure!(found, "{row} is not missed:\n{text}");
    let mending = lines
        .next()
        .and_then(|line| line.split_once("to mend it: "));
    ensure!(
        mending.is_some_and(|(_, command)| command.contains(mended_by)),
        "no command with {mended_by:?} mends {row}:\n{text}"
    );
    Ok(())
}

/// Nothing fetched and nothing built.
fn empty() -> Result<()> {
    let text = diagnose(&mut script("setup/doctor"))?;
    for step in ["rust-src", "bindgen", "kernel", "mdbook", "crates"] {
        missed(&text, step, "make setup")?;
    }
    Ok(())
}

/// One command taken away.
fn without(&(tool, row, mended_by): &Tool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tools = place("LGUEST_TOOLS").ok();
    let mut known = BTreeSet::new();
    for directory in env::split_paths(&env::var_os("PATH").context("no PATH")?) {
        if Some(&directory) == tools.as_ref() {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name != tool && known.insert(name.clone()) {
                symlink(entry.path(), folder.path().join(name))?;
            }
        }
    }
    let text = diagnose(script("setup/doctor").env("PATH", folder.path()))?;
    missed(&text, row, mended_by)?;
    // Without gcc no header can be looked for, and without rustc no step be judged; else nothing
    // else may be missed but the caches, which are empty.
    if tool != "gcc" {
        let others = text.lines().filter(|line| {
            let mut words = line.split_whitespace();
            let missing = words.next() == Some("MISSING");
            let name = words.next().unwrap_or_default();
            let caches = ["rust-src", "bindgen", "kernel", "mdbook", "crates"];
            missing && name != row && !caches.contains(&name)
        });
        let others: Vec<_> = others.collect();
        ensure!(others.is_empty(), "without {tool} it misses {others:?}");
    }
    Ok(())
}

/// A kernel tree in a folder of its own: copies of what is read, links to the rest.
struct Tree {
    // Removed with the tree.
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Tree {
    /// A tree as good as the one that set-up has built.
    fn new() -> Result<Self> {
        let real = place("KDIR")?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("linux");
        for directory in ["include/config", "arch/x86/boot", "rust"] {
            fs::create_dir_all(path.join(directory))?;
        }
        for file in [".config", "include/config/kernel.release"] {
            fs::copy(real.join(file), path.join(file))?;
        }
        for file in [
            "Makefile",
            "Module.symvers",
            "arch/x86/boot/bzImage",
            "rust/libkernel.rmeta",
        ] {
            symlink(real.join(file), path.join(file))?;
        }
        Ok(Self {
            _folder: folder,
            path,
        })
    }

    /// Takes a file away.
    fn lose(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.path.join(file))?)
    }

    /// Replaces a text in a file of which there is a copy.
    fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{file} of the kernel has no {from:?}");
        Ok(fs::write(path, text.replace(from, to))?)
    }

    /// Unsets an option of its configuration.
    fn unset(&self, option: &str) -> Result<()> {
        let line = format!("\nCONFIG_{option}=y\n");
        self.edit(
            ".config",
            &line,
            &format!("\n# CONFIG_{option} is not set\n"),
        )
    }

    /// Puts a Makefile of its own in.
    fn makefile(&self, text: &str) -> Result<()> {
        self.lose("Makefile")?;
        Ok(fs::write(self.path.join("Makefile"), text)?)
    }
}

/// What is done to a good tree; it may say that another path is to be given.
type Damage = fn(&mut Tree) -> Result<()>;

/// A kind of wrong tree: its name, the damage, the reason that must be given, and the way out.
type Wrong = (&'static str, Damage, &'static str, &'static str);

const TREES: &[Wrong] = &[
    (
        "nowhere",
        |tree| {
            tree.path.push("nowhere");
            Ok(())
        },
        "there is no such folder",
        "full build tree",
    ),
    (
        "file",
        |tree| {
            tree.path.push(".config");
            Ok(())
        },
        "it is a file, not a folder",
        "full build tree",
    ),
    (
        "unconfigured",
        |tree| tree.lose(".config"),
        "not a configured build tree of Linux: no .config",
        "O=",
    ),
    (
        "never-built",
        |tree| tree.lose("include/config/kernel.release"),
        "no include/config/kernel.release",
        "make bzImage modules",
    ),
    (
        "no-linux",
        |tree| tree.lose("Makefile"),
        "no Makefile",
        "full build tree",
    ),
    (
        "source-gone",
        |tree| tree.makefile("export KBUILD_OUTPUT = .\ninclude /gone/linux/Makefile\n"),
        "built with O= from /gone/linux, which is not there",
        "build it again",
    ),
    (
        "old-series",
        |tree| {
            Ok(fs::write(
                tree.path.join("include/config/kernel.release"),
                "6.12.9\n",
            )?)
        },
        "it is Linux 6.12.9, and this project is tested with",
        "such a series",
    ),
    (
        "next-series",
        |tree| {
            Ok(fs::write(
                tree.path.join("include/config/kernel.release"),
                "7.30.0-rc1\n",
            )?)
        },
        "it is Linux 7.30.0-rc1",
        "such a series",
    ),
    (
        "other-processor",
        |tree| tree.unset("X86_64"),
        "it is not for x86-64",
        "x86-64",
    ),
    (
        "no-rust",
        |tree| tree.unset("RUST"),
        "no CONFIG_RUST=y",
        "CONFIG_RUST=y and this rustc",
    ),
    (
        "headers-only",
        |tree| tree.lose("rust/libkernel.rmeta"),
        "rust/libkernel.rmeta is not in it. The header packages",
        "full build tree",
    ),
    (
        "other-rustc",
        |tree| {
            tree.edit(
                ".config",
                "VERSION_TEXT=\"rustc 1.",
                "VERSION_TEXT=\"rustc 0.",
            )
        },
        "it was built by rustc 0.",
        "rustup override",
    ),
    (
        "no-symbols",
        |tree| tree.lose("Module.symvers"),
        "it has no Module.symvers",
        "make bzImage modules",
    ),
    (
        "no-image",
        |tree| tree.lose("arch/x86/boot/bzImage"),
        "it has no arch/x86/boot/bzImage",
        "make bzImage modules",
    ),
    (
        "no-virtio-pci",
        |tree| tree.unset("VIRTIO_PCI"),
        "lacks CONFIG_VIRTIO_PCI=y",
        "kernel/host.config",
    ),
    (
        "virtio-console-a-module",
        |tree| {
            tree.edit(
                ".config",
                "\nCONFIG_VIRTIO_CONSOLE=y\n",
                "\nCONFIG_VIRTIO_CONSOLE=m\n",
            )
        },
        "lacks CONFIG_VIRTIO_CONSOLE=y",
        "kernel/host.config",
    ),
    (
        "no-machine-checks",
        |tree| tree.unset("X86_MCE"),
        "lacks CONFIG_X86_MCE=y",
        "kernel/host.config",
    ),
    (
        "signed-only",
        |tree| {
            tree.edit(
                ".config",
                "\nCONFIG_MODULES=y\n",
                "\nCONFIG_MODULES=y\nCONFIG_MODULE_SIG_FORCE=y\n",
            )
        },
        "no module without a signature",
        "without that option",
    ),
    (
        "blank-in-its-name",
        |tree| {
            let path = tree.path.with_file_name("my linux");
            fs::rename(&tree.path, &path)?;
            tree.path = path;
            Ok(())
        },
        "its name has a blank or a colon",
        "a link to it",
    ),
];

/// Names of all files below a folder, and how long they are.
fn listing(folder: &Path) -> Result<String> {
    let output = Command::new("find")
        .arg(folder)
        .args(["-printf", "%P %s\n"])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A wrong tree: set-up must refuse it with the reason and the way out, before it does anything.
fn refused(&(name, damage, reason, way_out): &Wrong) -> Result<()> {
    let mut tree = Tree::new()?;
    damage(&mut tree)?;
    let before = listing(&tree.path)?;
    let folder = tempfile::tempdir()?;
    let cache = folder.path().join("cache");
    // First the script alone: set-up would begin its work if it took the tree.
    let (text, content) = outcome(script("kernel/check-tree").arg(&tree.path))?;
    ensure!(!content, "it was taken:\n{text}");
    let mut all = script("setup/all");
    all.env("KDIR", &tree.path).env("LGUEST_CACHE", &cache);
    let (text, content) = outcome(&mut all)?;
    ensure!(!content, "it was taken:\n{text}");
    for words in [reason, way_out, "cannot be used", "Leave KDIR away"] {
        ensure!(
            text.contains(words),
            "nothing is said of {words:?}:\n{text}"
        );
    }
    ensure!(
        !cache.exists(),
        "something was done before the tree was looked at"
    );
    ensure!(listing(&tree.path)? == before, "the tree was changed");
    // The doctor asks the same script, so a few kinds will do.
    if !matches!(name, "nowhere" | "other-rustc" | "no-virtio-pci") {
        return Ok(());
    }
    let mut doctor = script("setup/doctor");
    let text = diagnose(doctor.env("KDIR", &tree.path))?;
    missed(&text, "KDIR", "unset KDIR")?;
    ensure!(
        text.contains(reason),
        "the doctor does not say {reason:?}:\n{text}"
    );
    Ok(())
}

/// Where the project's scripts look for a kernel, given this `KDIR`.
fn image_with(tree: &Path) -> Result<PathBuf> {
    let (text, content) = outcome(script("setup/show-env").env("KDIR", tree))?;
    ensure!(content, "{text}");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("export BZIMAGE="));
    Ok(PathBuf::from(line.context("no BZIMAGE")?))
}

/// A good tree of somebody else's is used: for the module, and to be booted. It may lack what only
/// single cases need, and what is of no importance any more.
fn good() -> Result<()> {
    let tree = Tree::new()?;
    for option in ["SCHEDSTATS", "MODIFY_LDT_SYSCALL"] {
        tree.unset(option)?;
    }
    let before = listing(&tree.path)?;
    let (text, content) = outcome(script("kernel/check-tree").arg(&tree.path))?;
    ensure!(content, "refused:\n{text}");
    ensure!(listing(&tree.path)? == before, "the tree was changed");
    let image = image_with(&tree.path)?;
    ensure!(
        image == tree.path.join("arch/x86/boot/bzImage"),
        "{} would be booted",
        image.display()
    );
    // In place of Linux's own Makefile one that says with what it was called.
    tree.makefile("modules:\n\t@echo \"called in $(CURDIR) for $(M)\"\n")?;
    let mut make = Command::new("make");
    make.current_dir(root()).args(["-s", "module"]);
    for name in ["BZIMAGE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        make.env_remove(name);
    }
    make.arg(format!("KDIR={}", tree.path.display()));
    let (text, content) = outcome(&mut make)?;
    ensure!(content, "make module KDIR=...:\n{text}");
    let called = format!("called in {} for ", tree.path.canonicalize()?.display());
    ensure!(text.contains(&called), "the tree was not used:\n{text}");
    Ok(())
}

/// A relative path is counted from where it was given.
fn relative() -> Result<()> {
    let tree = Tree::new()?;
    let Some(parent) = tree.path.parent() else {
        bail!("a folder without a parent");
    };
    let mut show = script("setup/show-env");
    show.current_dir(parent).env("KDIR", "linux");
    let (text, _) = outcome(&mut show)?;
    let wanted = format!("export KDIR={}/linux\n", parent.canonicalize()?.display());
    ensure!(text.contains(&wanted), "{wanted} is not in\n{text}");
    let mut check = script("kernel/check-tree");
    let (text, content) = outcome(check.current_dir(parent).arg("linux"))?;
    ensure!(content, "refused by its relative path:\n{text}");
    Ok(())
}
