// SPDX-License-Identifier: GPL-2.0

//! Input that somebody made to do harm, and things that happen at the wrong moment: a clear error or
//! the right result, outputs old or new, never half.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Project, fence, fences, thorough};
use crate::syntax::{build, codes, output};

#[test]
fn markdown_nested_without_end() {
    let inner = "```c,file:a.c\nint a;\n```\n";
    for opening in ["> ", "- ", "1. ", "  - ", ">", "* > "] {
        let text = format!("{}{inner}", opening.repeat(3000));
        let book = build(&[("book/a.md", &text)]);
        assert!(book.outputs().is_empty(), "{opening:?}: it is not at the top level");
    }
    for text in [
        "[".repeat(20_000),
        "*a_ ".repeat(20_000),
        "<!-- ".repeat(20_000),
        "x".to_owned() + &"`".repeat(50_000),
        "![](".repeat(20_000),
        "\\".repeat(50_000),
        "&".repeat(50_000),
        "|-".repeat(20_000),
    ] {
        // Whatever it is, the block after it counts, unless a comment never ends.
        let expected = usize::from(!text.starts_with("<!--"));
        let text = format!("{text}\n\n{inner}");
        assert_eq!(build(&[("book/a.md", &text)]).outputs().len(), expected, "{:.9}", text);
    }
}

#[test]
fn many_fences_and_long_lines() {
    let blocks: String = (0..5000).map(|n| fence("c,chunk:x", &format!("{n};\n"))).collect();
    let text = fence("c,file:a.c", "/* <<x>> */\n") + &blocks;
    assert_eq!(output(&text).lines().count(), 5000);
    let long = "x".repeat(500_000) + "\n";
    assert_eq!(output(&fence("c,file:a.c", &long)), long);
    let info = format!("c,file:a.c {}", ",ignore".repeat(10_000));
    assert_eq!(output(&fence(&info, "1\n")), "1\n");
    assert_eq!(codes(&fence(&format!("c,file:{}", "a/../".repeat(10_000)), "")), ["bad-path"]);
}

#[test]
fn indentation_multiplied_by_references() {
    // Each level puts 200 blanks before the next: 200 levels would be 40,000 for every line.
    let blanks = " ".repeat(200);
    let mut text = fence("c,file:a.c", "/* <<x0>> */\n");
    for n in 0..200 {
        let body = format!("{blanks}/* <<x{}>> */\n", n + 1);
        text += &fence(&format!("c,chunk:x{n}"), &body);
    }
    text += &fence("c,chunk:x200", &"1;\n".repeat(100_000));
    assert_eq!(codes(&text), ["too-large"]);
}

#[test]
fn tabs_are_kept_and_a_tab_before_a_fence_makes_it_none() {
    let chapter =
        fences(&[("c,file:a.c", "\tif\t(x)\n\t  /* <<x>> */\n"), ("c,chunk:x", "\ty;\t\n\n\t\n")]);
    assert_eq!(output(&chapter), "\tif\t(x)\n\t  \ty;\t\n\n\t  \t\n");
    assert!(build(&[("book/a.md", "\t```c,file:a.c\n\t```\n")]).outputs().is_empty());
    // A fence that is indented by two takes two columns off a tab, and leaves the other two.
    assert_eq!(output("  ```c,file:a.c\n\tx\n  ```\n"), "  x\n");
}

#[test]
fn line_ends_and_marks_of_other_systems() {
    let text = "\u{feff}Text.\r\n\r\n```c,file:a.c\r\n/* <<x>> */\r\nb;\r\n```\r\n\r\n\
                ```c,chunk:x\na;\n\r\n```\n";
    assert_eq!(output(text), "a;\n\nb;\n");
}

#[test]
fn names_and_paths_that_mean_something_to_a_shell() {
    for path in ["-rf", "$(reboot)", "a;b", "~root", "a|b", "*", "con", "a'b", "\u{202e}txt.exe"] {
        let text = fence(&format!("text,file:{path}"), "x\n");
        let project = Project::one(&text);
        let ran = project.run(&[]);
        let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-~".contains(&b));
        assert_eq!(ran.status == 0, plain, "{path}: {}", ran.err);
        assert_eq!(project.has(path), plain, "{path}");
    }
}

#[test]
fn targets_outside_the_tree_by_every_way() {
    let outside = tempfile::TempDir::new().expect("a temporary folder");
    let inside = outside.path().join("target");
    fs::create_dir(&inside).expect("made");
    for (link, to, path) in [
        ("out", inside.clone(), "out/x"),
        ("out/a/b", inside.clone(), "out/a/b/c/x"),
        ("out", "../..".into(), "out/x"),
        ("out", "/".into(), "out/tmp/tangle-was-here"),
        ("out", "/proc/self/cwd/..".into(), "out/x"),
        ("out", "/nowhere/at/all".into(), "out/x"),
    ] {
        let project = Project::one(&fence(&format!("text,file:{path}"), "x\n"));
        let full = project.path(link);
        fs::create_dir_all(full.parent().expect("a folder")).expect("made");
        std::os::unix::fs::symlink(&to, &full).expect("linked");
        let said = project.fails();
        assert!(said.contains("leaves the project"), "{link} to {to:?}: {said}");
    }
    // A ring of links leads nowhere.
    let project = Project::one(&fence("text,file:out/x", "x\n"));
    std::os::unix::fs::symlink("other", project.path("out")).expect("linked");
    std::os::unix::fs::symlink("out", project.path("other")).expect("linked");
    assert!(project.fails().contains("leaves the project: out is a link"));
    assert_eq!(fs::read_dir(&inside).expect("there").count(), 0);
}

#[test]
fn a_read_only_output_is_written_and_stays_read_only_a_program_stays_one() {
    let both = |text: &str| fences(&[("sh,file:run", text), ("text,file:out/a", text)]);
    let project = Project::one(&both("one\n"));
    project.tangle();
    let mode = |path: &str| fs::metadata(project.path(path)).expect("there").permissions().mode();
    let set = |path: &str, mode| {
        fs::set_permissions(project.path(path), fs::Permissions::from_mode(mode)).expect("set");
    };
    set("run", 0o755);
    set("out/a", 0o444);
    project.put("book/a.md", both("two\n"));
    assert_eq!(project.tangle(), "tangle: 2 files, 2 written\n");
    assert_eq!((project.get("run"), project.get("out/a")), ("two\n".into(), "two\n".into()));
    assert_eq!((mode("run") & 0o777, mode("out/a") & 0o777), (0o755, 0o444));
}

#[test]
fn a_write_that_fails_leaves_old_or_new() {
    let long = "n".repeat(300);
    let project = Project::one(&fences(&[("text,file:a", "1\n"), ("text,file:z", "1\n")]));
    project.tangle();
    // A name that no file system takes: what comes before it is new, what comes after it is old.
    let more = format!("text,file:b/{long}");
    let blocks = [("text,file:a", "2\n"), (more.as_str(), "2\n"), ("text,file:z", "2\n")];
    project.put("book/a.md", fences(&blocks));
    let ran = project.run(&["--message-format", "short"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.starts_with("tangle: error[io]: cannot write b/nnn"), "{}", ran.err);
    let end = "tangle: error[half-way]: not everything was written\ntangle: 2 errors\n";
    assert!(ran.err.ends_with(end), "{}", ran.err);
    assert_eq!((project.get("a"), project.get("z")), ("2\n".into(), "1\n".into()));
    // When the reason is gone all is well: nothing is taken for somebody's edit.
    project.put("book/a.md", fences(&[("text,file:a", "3\n"), ("text,file:z", "3\n")]));
    project.tangle();
    assert_eq!((project.get("a"), project.get("z")), ("3\n".into(), "3\n".into()));
}

#[test]
fn a_folder_that_may_not_be_written() {
    let project = Project::one(&fences(&[("text,file:a/x", "1\n"), ("text,file:b/x", "1\n")]));
    project.tangle();
    let folder = project.path("b");
    let set = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).expect("set");
    set(0o555);
    if fs::write(folder.join("probe"), "").is_ok() {
        eprintln!("skipped: this user may write everywhere");
        return;
    }
    project.put("book/a.md", fences(&[("text,file:a/x", "2\n"), ("text,file:b/x", "2\n")]));
    let ran = project.run(&[]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("cannot write b/x: Permission denied"), "{}", ran.err);
    assert_eq!(project.get("b/x"), "1\n");
    set(0o755);
    project.tangle();
    assert_eq!(project.get("b/x"), "2\n");
}

#[test]
fn records_that_are_garbage_or_from_elsewhere() {
    let project = Project::one(&fence("text,file:out/a", "one\n"));
    let paths = [".tangle/state.json", ".tangle/map.json", ".tangle/written"];
    let garbage = [&b""[..], b"{", b"[]", b"\0\xff", b"{\"version\":1}", b"{\"version\":99}"];
    for (n, bytes) in garbage.into_iter().enumerate() {
        for (m, path) in paths.into_iter().enumerate() {
            // Each file with two of them, each of them in one file; all with all takes long.
            if !thorough() && n % paths.len() != m {
                continue;
            }
            project.tangle();
            project.put(path, bytes);
            project.tangle();
            assert_eq!(project.get("out/a"), "one\n");
            let ran = project.run(&["sync"]);
            assert_eq!(ran.status, 0, "{}", ran.err);
        }
    }
    // Where the records should be is something else.
    fs::remove_dir_all(project.path(".tangle")).expect("removed");
    project.put(".tangle", "a file\n");
    let ran = project.run(&[]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("cannot create .tangle"), "{}", ran.err);

    // A state that names a file of somebody else's must not have it removed.
    let project = Project::one("Nothing.\n");
    project.put("mine", "x\n");
    let outside = project.root().join("../tangle-outside");
    fs::write(&outside, "x\n").expect("written");
    let hash = format!("{:032x}", tangle::source::hash(b"x\n"));
    let chapter = format!("{:032x}", tangle::source::hash(b"Nothing.\n"));
    let state = format!(
        "{{\"version\":1,\"inputs\":null,\"index\":null,\"outputs\":{{\"../tangle-outside\":\
         \"{hash}\",\"/etc/passwd\":\"{hash}\",\"book/a.md\":\"{chapter}\"}}}}"
    );
    project.put(".tangle/state.json", state);
    project.tangle();
    assert!(outside.exists() && project.has("book/a.md") && project.has("mine"));
    fs::remove_file(outside).expect("removed");
}

#[test]
fn two_runs_at_once_that_want_different_things() {
    let blocks: String = (0..40)
        .map(|n| {
            let root = format!("/* <<x{n}>> */\n");
            fences(&[
                (&format!("c,file:out/{n}"), &root),
                (&format!("c,chunk:x{n},lab:1,starter"), "starter\n"),
                (&format!("c,chunk:x{n},lab:1,solution"), "solution\n"),
            ])
        })
        .collect();
    let project = Project::one(&blocks);
    for _ in 0..if thorough() { 20 } else { 1 } {
        std::thread::scope(|scope| {
            for lab in [true, false, true, false] {
                let project = &project;
                scope.spawn(move || {
                    let ran = project.run(if lab { &["--lab", "1"] } else { &[] });
                    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
                });
            }
        });
        let first = project.get("out/0");
        for n in 1..40 {
            assert_eq!(project.get(&format!("out/{n}")), first, "all of one kind");
        }
    }
    project.tangle();
    assert_eq!(project.get("out/0"), "solution\n");
}

/// Starts tangle and kills it after a while; says whether it had ended by itself.
fn killed(project: &Project, args: &[&str], after: Duration) -> bool {
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("tangle"))
        .args(args)
        .current_dir(project.root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tangle runs");
    std::thread::sleep(after);
    let ended = child.try_wait().expect("it can be asked").is_some();
    let _ = child.kill();
    child.wait().expect("it ends");
    ended
}

/// Moments between the start of a run and its end, one after another, for ever.
fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    // Steps of an irrational part of the whole come near every moment.
    (1..).map(move |n| whole.mul_f64(f64::from(n) * 0.618_034 % 1.0))
}

#[test]
fn killed_at_any_moment_outputs_are_old_or_new() {
    const FILES: usize = 60;
    let text = |version: usize| -> String {
        let line = format!("version {version} of it\n").repeat(40);
        (0..FILES).map(|n| fence(&format!("text,file:out/{n}"), &line)).collect()
    };
    let read = |project: &Project, n: usize| project.get(&format!("out/{n}"));
    let whole = |version: usize| format!("version {version} of it\n").repeat(40);
    let project = Project::one(&text(0));
    let start = Instant::now();
    assert_eq!(project.run(&[]).status, 0);
    let took = start.elapsed();
    let tries_at_least = if thorough() { 100 } else { 3 };
    let (mut half_way, mut version) = (0, 0);
    for (tries, moment) in moments(took).enumerate() {
        // What a killed run left behind is not put in order in between.
        let before: Vec<String> = (0..FILES).map(|n| read(&project, n)).collect();
        version += 1;
        project.put("book/a.md", text(version));
        killed(&project, &[], moment);
        let after: Vec<String> = (0..FILES).map(|n| read(&project, n)).collect();
        let mut new = 0;
        for (before, after) in before.iter().zip(&after) {
            assert!(after == before || *after == whole(version), "half a file:\n{after}");
            new += usize::from(*after == whole(version));
        }
        half_way += usize::from(new > 0 && new < FILES);
        if tries >= tries_at_least && half_way >= 1 {
            break;
        }
        assert!(tries < 400, "no run was killed half-way: {half_way}");
    }
    project.tangle();
    for n in 0..FILES {
        assert_eq!(read(&project, n), whole(version));
    }
    let left = fs::read_dir(project.path(".tangle")).expect("there").flatten();
    let left = left.filter(|e| e.file_name().to_string_lossy().ends_with(".new"));
    assert_eq!(left.count(), 0, "nothing is left of the killed runs");
}

#[test]
fn sync_killed_at_any_moment_loses_nothing() {
    const CHAPTERS: usize = 12;
    let names: Vec<String> = (0..CHAPTERS).map(|n| format!("{n:02}.md")).collect();
    let text = |n: usize, version: usize| {
        fence(&format!("text,file:out/{n}"), &format!("first\nversion {version}\nlast\n"))
    };
    let chapters: Vec<String> = (0..CHAPTERS).map(|n| text(n, 0)).collect();
    let list: Vec<(&str, &str)> =
        names.iter().zip(&chapters).map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let project = Project::new(&list);
    project.tangle();
    let file = |version: usize| format!("first\nversion {version}\nlast\n");
    let edit = |version| {
        (0..CHAPTERS).for_each(|n| project.put(&format!("out/{n}"), file(version)));
    };
    edit(1);
    let start = Instant::now();
    assert_eq!(project.run(&["sync"]).status, 0);
    let took = start.elapsed();
    let tries_at_least = if thorough() { 100 } else { 2 };
    let mut half_way = 0;
    for (tries, moment) in moments(took).enumerate() {
        let version = tries + 2;
        edit(version);
        killed(&project, &["sync"], moment);
        let mut new = 0;
        for (n, name) in names.iter().enumerate() {
            assert_eq!(project.get(&format!("out/{n}")), file(version), "the edit is still there");
            let chapter = project.get(&format!("book/{name}"));
            assert!(chapter == text(n, version - 1) || chapter == text(n, version), "{chapter}");
            new += usize::from(chapter == text(n, version));
        }
        half_way += usize::from(new > 0 && new < CHAPTERS);
        // The next one does the rest.
        let ran = project.run(&["sync"]);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        for (n, name) in names.iter().enumerate() {
            assert_eq!(project.get(&format!("book/{name}")), text(n, version));
        }
        if tries >= tries_at_least && half_way >= 1 {
            break;
        }
        assert!(tries < 300, "no run was killed half-way: {half_way}");
    }
    assert!(project.tangle().ends_with("nothing changed\n"));
}
