// SPDX-License-Identifier: GPL-2.0

//! `tangle watch`: a saved chapter is tangled without being asked.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::common::{Project, fence};

/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `tangle watch` that ends with the test.
struct Watching {
    child: Child,
    said: Receiver<String>,
}

impl Watching {
    fn new(project: &Project, args: &[&str]) -> Self {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("tangle"))
            .arg("watch")
            .args(args)
            .current_dir(project.root())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tangle runs");
        let (send, said) = mpsc::channel();
        let out = child.stdout.take().expect("a pipe");
        let err = child.stderr.take().expect("a pipe");
        let more = send.clone();
        std::thread::spawn(move || forward(out, &send));
        std::thread::spawn(move || forward(err, &more));
        let watching = Self { child, said };
        watching.until("watching");
        watching
    }

    /// Waits for a line that has `what` in it.
    fn until(&self, what: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.said.recv_timeout(left).unwrap_or_else(|_| panic!("no {what}"));
            if line.contains(what) {
                return line;
            }
        }
    }
}

fn forward(from: impl std::io::Read, to: &mpsc::Sender<String>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let _ = to.send(line);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follows(args: &[&str]) {
    let project = Project::one(&fence("text,file:out/a", "one\n"));
    let watching = Watching::new(&project, args);
    assert_eq!(project.get("out/a"), "one\n");
    project.put("book/a.md", fence("text,file:out/a", "two\n"));
    watching.until("out/a written");
    assert_eq!(project.get("out/a"), "two\n");

    // A mistake is said, and the next save is awaited.
    project.put("book/a.md", fence("text,file:out/a", "# <<gone>>\n"));
    watching.until("no chunk is called `gone`");
    assert_eq!(project.get("out/a"), "two\n");

    // As editors save: a new file in the place of the old one.
    project.put("book/new", fence("text,file:out/a", "three\n"));
    fs::rename(project.path("book/new"), project.path("book/a.md")).expect("renamed");
    watching.until("out/a written");
    assert_eq!(project.get("out/a"), "three\n");

    // A new chapter in a new folder.
    project.put("book/deep/b.md", fence("text,file:out/b", "b\n"));
    project.list(&["a.md", "deep/b.md"]);
    watching.until("out/b written");
    project.put("book/deep/b.md", fence("text,file:out/c", "c\n"));
    watching.until("out/b removed");
    assert_eq!(project.get("out/c"), "c\n");

    // The chapters move.
    fs::rename(project.path("book"), project.path("text")).expect("renamed");
    project.put("book.toml", "[book]\nsrc = \"text\"\n");
    project.put("text/a.md", fence("text,file:out/a", "four\n"));
    watching.until("out/a written");
    project.put("text/a.md", fence("text,file:out/a", "five\n"));
    watching.until("out/a written");
    assert_eq!(project.get("out/a"), "five\n");
}

#[test]
fn a_saved_chapter_is_tangled() {
    follows(&[]);
}

#[test]
fn a_saved_chapter_is_found_by_looking() {
    follows(&["--poll"]);
}

#[test]
fn a_part_of_the_book_is_watched_in_its_folder() {
    let project = Project::one(&fence("text,file:out/a", "one\n"));
    let watching = Watching::new(&project, &["--until", "a.md", "--out", "part"]);
    project.put("book/a.md", fence("text,file:out/a", "two\n"));
    watching.until("out/a written");
    assert_eq!(project.get("part/out/a"), "two\n");
    assert!(!project.has("out"));
}
