// SPDX-License-Identifier: GPL-2.0-only

//! Faults of every kind, put into a copy of the book on purpose: each must be reported at its
//! line in the chapter.
//!
//! The copy is kept under the target folder, so that each run builds only what changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::artifacts::{self, Artifacts, root, target_directory};
use crate::chapters::{in_chapters, last_words_of};
use crate::machine::{Machine, Settings};
use crate::report::Report;
use crate::sample;

/// What the section is called.
pub const SECTION: &str = "errors";

/// One in so many of the expensive faults is tried by an ordinary run.
const SAMPLE: u64 = 6;

/// A fault on purpose.
#[derive(Debug)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// Which chapter it is put into.
    chapter: &'static str,
    /// The line, without its indentation, after which it is put.
    after: &'static str,
    /// The lines that are put there.
    insert: &'static str,
    /// The one among them, or the text in the chapter, that must be reported.
    mark: &'static str,
    /// What shows it.
    how: How,
    /// What must be said of it, in the line with the place or the line before.
    says: &'static str,
    /// Whether it belongs to the long set.
    long: bool,
}

/// What shows a fault.
#[derive(Clone, Copy, Debug)]
enum How {
    /// `make` with this target fails.
    Make(&'static str),
    /// A command in the folder of the tangled workspace fails, `tangle filter` behind it.
    Cargo(&'static str),
    /// The Launcher is built, and fails when it is started.
    Launcher,
    /// The Guest is built, and crashes.
    Guest,
    /// The module is built, and the Host dies of it in a case of that name.
    Host(&'static str),
}

const MODULE: &str = "book/host/module.md";
const DEVICE: &str = "book/host/dev-lguest.md";
const BOUNDS: &str = "book/guest-memory/bounds.md";
const SWITCHER: &str = "book/switcher/switcher.md";
const OBJECTS: &str = "lguest-y += logic.o abi.o bitflags.o";
const LOADED: &str = "let folder = fit().and_then(|()| Folder::new(c\"lguest\", None));";
const OWNER: &str = "fn check_owner(&self) -> Result {";

/// All faults.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "rustc-module",
        chapter: DEVICE,
        after: OWNER,
        insert: "let wrong: u8 = \"text\";",
        mark: "let wrong",
        how: How::Make("module"),
        says: "mismatched types",
        long: false,
    },
    Fault {
        name: "rustc-logic",
        chapter: BOUNDS,
        after: "pub const fn address_ok(&self, addr: GuestPhys, len: u64) -> bool {",
        insert: "let wrong: u8 = nowhere;",
        mark: "let wrong",
        how: How::Make("module"),
        says: "cannot find value `nowhere`",
        long: false,
    },
    Fault {
        name: "rustc-abi",
        chapter: "book/preparation/the-agreement.md",
        after: "pub const TRAP_ENTRY: u8 = 0x1f;",
        insert: "pub const WRONG: u8 = 0x1ff;",
        mark: "WRONG",
        how: How::Make("module"),
        says: "literal out of range",
        long: false,
    },
    Fault {
        name: "kbuild",
        chapter: MODULE,
        after: OBJECTS,
        insert: "no rule and no variable",
        mark: "no rule and",
        how: How::Make("module"),
        says: "missing separator",
        long: false,
    },
    Fault {
        name: "kbuild-missing-source",
        chapter: MODULE,
        after: OBJECTS,
        insert: "lguest-y += nowhere.o",
        mark: "nowhere.o",
        how: How::Make("module"),
        says: "No rule to make target 'nowhere.o'",
        long: false,
    },
    Fault {
        name: "as",
        chapter: SWITCHER,
        after: "rdfsbase %rax",
        insert: "\tnowhere\t%rax",
        mark: "nowhere",
        how: How::Make("module"),
        says: "no such instruction",
        long: false,
    },
    Fault {
        name: "as-in-a-macro",
        chapter: SWITCHER,
        after: ".macro\tNOTE flag",
        insert: "\tnowhere\t%rax",
        mark: "nowhere",
        how: How::Make("module"),
        says: "no such instruction",
        long: false,
    },
    Fault {
        name: "as-in-the-header",
        chapter: "book/switcher/layout.md",
        after: "#define REGS_GS_BASE\t\t0x00",
        insert: "\tnowhere\t%rax",
        mark: "\tnowhere",
        how: How::Make("module"),
        says: "no such instruction",
        long: false,
    },
    Fault {
        name: "cpp",
        chapter: SWITCHER,
        after: "#include \"layout.h\"",
        insert: "#include \"nowhere.h\"",
        mark: "nowhere.h",
        how: How::Make("module"),
        says: "nowhere.h: No such file",
        long: false,
    },
    Fault {
        name: "modpost-undefined",
        chapter: MODULE,
        after: LOADED,
        insert: "extern \"C\" {\n    fn nowhere();\n}\n// SAFETY: None: a fault on purpose.\nunsafe { \
                 nowhere() };",
        mark: "unsafe { nowhere() }",
        how: How::Make("module"),
        says: "'nowhere' undefined",
        long: false,
    },
    Fault {
        name: "ld-duplicate",
        chapter: MODULE,
        after: LOADED,
        insert: "#[no_mangle]\npub extern \"C\" fn switch_to_guest() {}",
        mark: "fn switch_to_guest",
        how: How::Make("module"),
        says: "multiple definition of `switch_to_guest'",
        long: false,
    },
    Fault {
        name: "cargo-syntax",
        chapter: "book/launcher/starting.md",
        after: "[dependencies]",
        insert: "nowhere = = \"1\"",
        mark: "nowhere",
        how: How::Make("launcher"),
        says: "",
        long: false,
    },
    Fault {
        name: "cargo-no-such-path",
        chapter: "book/launcher/starting.md",
        after: "[dependencies]",
        insert: "nowhere = { path = \"../nowhere\" }",
        mark: "nowhere",
        how: How::Make("launcher"),
        says: "failed to load manifest for dependency `nowhere`",
        long: false,
    },
    Fault {
        name: "cargo-workspace",
        chapter: "book/appendix/building.md",
        after: "[profile.dev]",
        insert: "opt-level = \"nowhere\"",
        mark: "opt-level = ",
        how: How::Make("launcher"),
        says: "nowhere",
        long: false,
    },
    Fault {
        name: "rustc-launcher",
        chapter: "book/launcher/starting.md",
        after: "let options = Options::parse();",
        insert: "let wrong: u8 = \"text\";",
        mark: "let wrong",
        how: How::Make("launcher"),
        says: "mismatched types",
        long: true,
    },
    Fault {
        name: "rustc-guest",
        chapter: "book/guest/prompt.md",
        after: "pub fn main(boot: &'static BootInfo) -> ! {",
        insert: "let wrong: u8 = \"text\";",
        mark: "let wrong",
        how: How::Make("guest"),
        says: "mismatched types",
        long: true,
    },
    Fault {
        name: "linker-script",
        chapter: "book/guest/first-instruction.md",
        after: "guest_image_start = .;",
        insert: ". = NOWHERE(1);",
        mark: "NOWHERE",
        how: How::Make("guest"),
        says: "rust-lld: error:",
        long: true,
    },
    Fault {
        name: "lld-undefined",
        chapter: "book/guest/prompt.md",
        after: "pub fn main(boot: &'static BootInfo) -> ! {",
        insert: "extern \"C\" {\n    fn nowhere();\n}\nunsafe { nowhere() };",
        mark: "unsafe { nowhere() }",
        how: How::Make("guest"),
        says: "undefined symbol: nowhere",
        long: true,
    },
    Fault {
        name: "clippy",
        chapter: BOUNDS,
        after: "pub const fn address_ok(&self, addr: GuestPhys, len: u64) -> bool {",
        insert: "if len == len {}",
        mark: "if len == len",
        how: How::Cargo("clippy --quiet --package logic -- -Dwarnings"),
        says: "equal expressions",
        long: true,
    },
    Fault {
        name: "cargo-test",
        chapter: BOUNDS,
        after: "fn the_last_byte_is_the_last() {",
        insert: "panic!(\"a fault on purpose\");",
        mark: "panic!(",
        how: How::Cargo("test --quiet --package logic the_last_byte_is_the_last"),
        says: "panicked at",
        long: true,
    },
    Fault {
        name: "panic-launcher",
        chapter: "book/launcher/starting.md",
        after: "let options = Options::parse();",
        insert: "let memory: Option<u8> = std::env::args().nth(9).map(|_| 1);\nmemory.expect(\"a \
                 fault on purpose\");",
        mark: "memory.expect",
        how: How::Launcher,
        says: "panicked at",
        long: true,
    },
    Fault {
        name: "panic-guest",
        chapter: "book/guest/prompt.md",
        after: "pub fn main(boot: &'static BootInfo) -> ! {",
        insert: "assert!(core::hint::black_box(1) == 2, \"a fault on purpose\");",
        mark: "assert!(core::hint",
        how: How::Guest,
        says: "the Guest crashed: a fault on purpose",
        long: true,
    },
    Fault {
        name: "panic-module",
        chapter: DEVICE,
        after: OWNER,
        insert: "assert!(core::hint::black_box(1) == 2, \"a fault on purpose\");",
        mark: "black_box(1)",
        how: How::Host("requests"),
        says: "rust_kernel: panicked at",
        long: true,
    },
    Fault {
        name: "oops",
        chapter: DEVICE,
        after: OWNER,
        insert: "// SAFETY: None: a fault on purpose.\nunsafe { (0x10 as *mut \
                 u64).write_volatile(1) };",
        mark: "write_volatile",
        how: How::Host("requests"),
        says: "RIP: 0010:",
        long: false,
    },
    Fault {
        name: "oops-in-the-switcher",
        chapter: SWITCHER,
        after: "endbr64",
        insert: "\tmovq\t%rax, 0x10",
        mark: "%rax, 0x10",
        how: How::Host("hello"),
        says: "RIP: 0010:switch_to_guest",
        long: true,
    },
];

impl Fault {
    /// Whether an ordinary run at this commit tries it.
    pub fn samples(&self, commit: &str) -> bool {
        !self.long || sample::chosen(commit, self.name, SAMPLE)
    }

    /// Puts it into the copy, has it found, takes it out again, and reports how that went.
    ///
    /// # Errors
    ///
    /// When the report cannot be kept.
    pub fn test(&self, report: &mut Report, tree: &Tree) -> Result<()> {
        let begun = Instant::now();
        let full = format!("{SECTION}/{}", self.name);
        match self.attempt(report, tree) {
            Ok((place, text)) => {
                report.keep(SECTION, self.name, text.as_bytes())?;
                report.pass(&format!(
                    "{full}: {place} ({:.1} s)",
                    begun.elapsed().as_secs_f32()
                ));
            }
            Err(error) => {
                let why = format!("{error:#}");
                let log = report.keep(SECTION, self.name, why.as_bytes())?;
                report.fail(&full, &why, &log);
            }
        }
        Ok(())
    }

    /// Gives the place and what was said, if that is right.
    fn attempt(&self, report: &Report, tree: &Tree) -> Result<(String, String)> {
        let path = tree.root.join(self.chapter);
        let good = fs::read_to_string(&path)?;
        let (bad, line) = self.put_into(&good)?;
        fs::write(&path, bad)?;
        let said = self.provoke(report, tree);
        fs::write(&path, good)?;
        let said = said?;
        let place = format!("{}:{line}", self.chapter);
        self.check(&said, &place)?;
        Ok((place, said))
    }

    /// The chapter with the fault, and the line that must be reported.
    fn put_into(&self, chapter: &str) -> Result<(String, usize)> {
        let mut lines: Vec<&str> = chapter.lines().collect();
        let anchor = lines.iter().position(|line| line.trim() == self.after);
        let anchor = anchor.with_context(|| {
            let (chapter, after) = (self.chapter, self.after);
            format!(
                "{chapter} has no line {after:?} any more: choose another in tests/src/errors.rs"
            )
        })?;
        lines.splice(anchor + 1..anchor + 1, self.insert.lines());
        let among = self.insert.lines().count();
        let mark = lines[anchor + 1..=anchor + among]
            .iter()
            .position(|line| line.contains(self.mark))
            .context("the mark is not in what is put in")?;
        // Lines are counted from 1.
        Ok((lines.join("\n") + "\n", anchor + 2 + mark))
    }

    /// What is said when the fault shows.
    fn provoke(&self, report: &Report, tree: &Tree) -> Result<String> {
        match self.how {
            How::Make(target) => {
                let (said, good) = tree.make(target)?;
                ensure!(!good, "`make {target}` does not fail:\n{said}");
                Ok(said)
            }
            How::Cargo(words) => tree.cargo(words),
            How::Launcher => {
                tree.build("launcher")?;
                let output = Command::new(tree.launcher())
                    .args(["64", "/nowhere"])
                    .output()?;
                ensure!(!output.status.success(), "the Launcher does not fail");
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Ok(in_chapters(&said, Some(&tree.module())))
            }
            How::Guest => {
                tree.build("guest")?;
                tree.run_guest(&report.log_path(SECTION, &format!("boot {}", self.name)))
            }
            How::Host(case) => {
                tree.build("module")?;
                tree.kill_host(
                    case,
                    &report.log_path(SECTION, &format!("boot {}", self.name)),
                )
            }
        }
    }

    /// Whether the fault is reported at its place, and not only somewhere.
    fn check(&self, said: &str, place: &str) -> Result<()> {
        let lines: Vec<&str> = said.lines().collect();
        let here = |line: &str| {
            line.match_indices(place)
                .any(|(at, _)| !line[at + place.len()..].starts_with(|c: char| c.is_ascii_digit()))
        };
        let found = (0..lines.len()).any(|n| {
            here(lines[n])
                && (lines[n].contains(self.says) || n > 0 && lines[n - 1].contains(self.says))
        });
        ensure!(
            found,
            "{place} and {:?} do not stand together in what is said:\n{said}",
            self.says
        );
        Ok(())
    }
}

/// A copy of what the book needs to be built.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    tangle: PathBuf,
}

/// What is copied. `book.toml` is what makes it a book.
const COPIED: [&str; 5] = ["Makefile", "book.toml", "book", "kernel", "setup"];

impl Tree {
    /// Brings the copy up to date with the checkout.
    ///
    /// # Errors
    ///
    /// When a file cannot be copied, or tangle cannot be built.
    pub fn new() -> Result<Self> {
        let copy = target_directory().join("errors");
        for name in COPIED {
            mirror(&root().join(name), &copy.join(name))
                .with_context(|| format!("cannot copy {name}"))?;
        }
        let status = Command::new(env!("CARGO"))
            .current_dir(root())
            .args(["build", "--quiet", "--release", "--package", "tangle"])
            .env_remove("RUSTFLAGS")
            .status()?;
        ensure!(status.success(), "tangle does not build");
        let tangle = target_directory().join("release/tangle");
        Ok(Self { root: copy, tangle })
    }

    fn module(&self) -> PathBuf {
        self.root.join("module/lguest.ko")
    }

    fn launcher(&self) -> PathBuf {
        self.root
            .join("workspace/target/x86_64-unknown-linux-gnu/release/lguest")
    }

    /// Runs make; gives all it says, and whether it ended well.
    fn make(&self, target: &str) -> Result<(String, bool)> {
        let mut command = Command::new("make");
        command
            .arg(target)
            .arg(format!("TANGLE={}", self.tangle.display()));
        self.run(&mut command)
    }

    /// Makes something that must work.
    fn build(&self, target: &str) -> Result<()> {
        let (said, good) = self.make(target)?;
        ensure!(good, "`make {target}` fails:\n{said}");
        Ok(())
    }

    /// Tangles and runs a command of cargo's that must fail; gives what `tangle filter` makes of
    /// it.
    fn cargo(&self, words: &str) -> Result<String> {
        self.build("workspace")?;
        let mut command = Command::new("bash");
        let cargo = env!("CARGO");
        let tangle = self.tangle.display();
        let line = format!("set -o pipefail; cd workspace; {cargo} {words} 2>&1 | {tangle} filter");
        command.args(["-c", &line]);
        let (said, good) = self.run(&mut command)?;
        ensure!(!good, "`cargo {words}` does not fail:\n{said}");
        Ok(said)
    }

    /// Adds the hypercall of the chapter, and builds all that is changed by it; gives what the
    /// tests of the pure part say.
    fn walked(&self) -> Result<String> {
        crate::walk::change(&self.root)?;
        self.build("module")?;
        self.build("guest")?;
        let line = format!("cd workspace; {} test -p logic exits", env!("CARGO"));
        let (said, good) = self.run(Command::new("bash").args(["-c", &line]))?;
        ensure!(good, "the tests of `logic` fail:\n{said}");
        let test = "a_guest_may_ask_for_what_is_counted ... ok";
        ensure!(
            said.contains(test),
            "the chapter's test is not there:\n{said}"
        );
        Ok(said)
    }

    fn run(&self, command: &mut Command) -> Result<(String, bool)> {
        // What a make above this one has set is not meant for the copy.
        for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
            command.env_remove(name);
        }
        for name in ["CARGO_TARGET_DIR", "RUSTFLAGS", "MODULE_OUT"] {
            command.env_remove(name);
        }
        let output = command
            .current_dir(&self.root)
            .env("LC_ALL", "C")
            .output()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((said, output.status.success()))
    }

    /// Boots a Host with the copy's module and has it die of a case; gives the last words of it.
    fn kill_host(&self, case: &str, log: &Path) -> Result<String> {
        let mut artifacts = Artifacts::collect()?.with_test_guests()?;
        artifacts.module = Some(self.module());
        let mut machine = boot(&artifacts, log)?;
        machine.tell(&format!("case {case}"))?;
        loop {
            use crate::control::Message;
            match machine.hear(Duration::from_secs(120)) {
                Ok(Message::Start(_) | Message::Note(_)) => {}
                Ok(other) => bail!("the Host does not die of it, but says {other:?}"),
                Err(_) => break,
            }
        }
        let words = last_words_of(log);
        ensure!(
            !words.is_empty(),
            "the Host's log is silent: {}",
            log.display()
        );
        Ok(in_chapters(&words, Some(&self.module())))
    }

    /// Boots a good Host with the copy's Guest; gives what the Launcher complains of.
    fn run_guest(&self, log: &Path) -> Result<String> {
        use std::io::Read;
        let mut artifacts = Artifacts::collect()?;
        let guest = self
            .root
            .join("workspace/target/x86_64-unknown-none/release/guest");
        artifacts.guests = vec![("guest".to_owned(), guest)];
        artifacts.complete()?;
        let mut machine = boot(&artifacts, log)?;
        machine.tell("guest pipe alone 64 /guests/guest")?;
        let answer = machine.hear(Duration::from_secs(120))?;
        let mut errors = machine.errors.try_clone()?;
        let mut output = machine.output.try_clone()?;
        machine.quit(Duration::from_secs(30))?;
        let mut said = format!("{answer:?}\n");
        output.read_to_string(&mut said)?;
        errors.read_to_string(&mut said)?;
        Ok(in_chapters(&said, Some(&self.module())))
    }
}

/// The name of the test that goes the way of the chapter which adds a hypercall.
pub const WALK: &str = "walk";

/// Changes the copy as that chapter does, builds what comes of it, and takes it back.
///
/// # Errors
///
/// When the report cannot be kept, or the copy not be made good again.
pub fn walk(report: &mut Report, tree: &Tree) -> Result<()> {
    let begun = Instant::now();
    let full = format!("{SECTION}/{WALK}");
    let built = tree.walked();
    mirror(&root().join("book"), &tree.root.join("book"))?;
    match built {
        Ok(said) => {
            report.keep(SECTION, WALK, said.as_bytes())?;
            let time = begun.elapsed().as_secs_f32();
            report.pass(&format!("{full}: module, kernel and tests ({time:.1} s)"));
        }
        Err(error) => {
            let why = format!("{error:#}");
            let log = report.keep(SECTION, WALK, why.as_bytes())?;
            report.fail(&full, &why, &log);
        }
    }
    Ok(())
}

fn boot(artifacts: &Artifacts, log: &Path) -> Result<Machine> {
    let settings = Settings::new(&artifacts.kernel, artifacts.pack()?, log);
    let mut machine = Machine::start(&settings)?;
    machine.wait_until_ready(Duration::from_secs(180))?;
    Ok(machine)
}

/// Makes `to` what `from` is, writing only what differs, so that make sees only that.
fn mirror(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let bytes = fs::read(from)?;
        if fs::read(to).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(to, bytes)?;
        return Ok(fs::set_permissions(to, fs::metadata(from)?.permissions())?);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if !from.join(entry.file_name()).exists() {
            let path = entry.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
    }
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        mirror(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

/// The faults that a run tries.
pub fn wanted(report: &Report, long: bool) -> Vec<&'static Fault> {
    let commit = artifacts::commit();
    let chosen = |fault: &&Fault| report.wants(SECTION, fault.name);
    let all = long || report.is_filtered();
    let tried = |fault: &&Fault| all || fault.samples(&commit);
    FAULTS.iter().filter(chosen).filter(tried).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: Fault = Fault {
        name: "x",
        chapter: "book/a.md",
        after: "one",
        insert: "two\nthree",
        mark: "three",
        how: How::Make("module"),
        says: "wrong",
        long: false,
    };

    #[test]
    fn a_fault_is_put_in_and_its_line_counted() {
        let (bad, line) = FAULT.put_into("zero\n  one\nfour\n").unwrap();
        assert_eq!((bad.as_str(), line), ("zero\n  one\ntwo\nthree\nfour\n", 4));
        assert!(FAULT.put_into("zero\n").is_err());
    }

    #[test]
    fn a_place_that_is_only_nearly_right_is_not_taken() {
        let check = |said| FAULT.check(said, "book/a.md:4").is_ok();
        assert!(check("book/a.md:4: wrong"));
        assert!(check("wrong\n  --> book/a.md:4:9 (x.rs:1)"));
        assert!(!check("book/a.md:5: wrong"));
        assert!(!check("book/a.md:44: wrong"));
        assert!(!check("book/a.md:4: fine\nwrong"));
    }

    #[test]
    fn every_fault_has_its_place_in_the_book() {
        for fault in FAULTS {
            let chapter = fs::read_to_string(root().join(fault.chapter)).unwrap();
            if let Err(error) = fault.put_into(&chapter) {
                panic!("{}: {error}", fault.name);
            }
        }
    }
}
