// SPDX-License-Identifier: GPL-2.0

//! A book in a temporary folder, and the `tangle` command run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use tangle::write::Options;
use tempfile::TempDir;

/// Whether `TANGLE_CASES` asks for more than an ordinary run does.
pub fn thorough() -> bool {
    std::env::var_os("TANGLE_CASES").is_some()
}

/// A book that a test writes.
pub struct Project {
    dir: TempDir,
}

impl Project {
    /// A book with these chapters, `(name, text)`, in this order.
    pub fn new(chapters: &[(&str, &str)]) -> Self {
        let project = Self { dir: TempDir::new().expect("a temporary folder") };
        project.put("book.toml", "[book]\nsrc = \"book\"\n");
        for (name, text) in chapters {
            project.put(&format!("book/{name}"), text);
        }
        let names: Vec<&str> = chapters.iter().map(|(name, _)| *name).collect();
        project.list(&names);
        project
    }

    /// A book with one chapter, `a.md`.
    pub fn one(text: &str) -> Self {
        Self::new(&[("a.md", text)])
    }

    /// Writes SUMMARY.md.
    pub fn list(&self, names: &[&str]) {
        let lines: String = names.iter().map(|name| format!("- [{name}]({name})\n")).collect();
        self.put("book/SUMMARY.md", format!("# Summary\n\n{lines}"));
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().expect("the folder is there")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let full = self.path(path);
        fs::create_dir_all(full.parent().expect("a file has a folder")).expect("folder made");
        fs::write(full, text).expect("file written");
    }

    pub fn get(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    pub fn run_in(&self, folder: &Path, args: &[&str], stdin: &str) -> Output {
        Command::new(assert_cmd::cargo::cargo_bin!("tangle"))
            .args(args)
            .current_dir(folder)
            .env_remove("NO_COLOR")
            .write_stdin(stdin)
            .output()
            .expect("tangle runs")
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.run_in(&self.root(), args, ""))
    }

    /// Tangles, which must work, by the library: most tests only want it done, and to start the
    /// command takes longer than its work. What it would print comes back.
    pub fn tangle(&self) -> String {
        let run = tangle::write::run(&self.root(), &Options::default());
        let said = tangle::problem::short(&run.findings, &run.sources);
        assert_eq!(said, "");
        let report = run.report.expect("nothing was wrong");
        assert_eq!(report.kept, []);
        format!("{report}\n")
    }

    /// Tangles, which must fail with status 1 and leave no output; gives what it said.
    pub fn fails(&self) -> String {
        let ran = self.run(&[]);
        assert_eq!(ran.status, 1, "{}{}", ran.out, ran.err);
        assert_eq!(ran.out, "");
        assert!(!self.has(".tangle/state.json"), "nothing may be written");
        ran.err
    }
}

/// What a run of the command gave.
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("not killed"),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

/// A fence with an info string round lines.
pub fn fence(info: &str, lines: &str) -> String {
    format!("```{info}\n{lines}```\n\n")
}

/// `fence`s one after another.
pub fn fences(blocks: &[(&str, &str)]) -> String {
    blocks.iter().map(|(info, lines)| fence(info, lines)).collect()
}
