// SPDX-License-Identifier: GPL-2.0

//! What happens on the disk: nothing is lost, nothing is half written.

use std::fs;

use crate::common::{Project, fence, fences};

const CHAPTER: &str = "Prose.\n\n```text,file:out/a\none\n# <<x>>\nthree\n```\n\n\
                       ```text,chunk:x\ntwo\n```\n";

fn refused(project: &Project) -> String {
    let ran = project.run(&[]);
    assert_eq!(ran.status, 1, "{}{}", ran.out, ran.err);
    ran.err
}

#[test]
fn an_output_edited_by_hand_stops_everything_and_points_at_the_chapter() {
    let project = Project::one(&format!("{CHAPTER}\n{}", fence("text,file:out/b", "b\n")));
    project.tangle();
    project.put("out/a", "one\nTWO\nthree\n");
    let text = project.get("book/a.md").replace("\nb\n", "\nB\n");
    project.put("book/a.md", text);
    let said = refused(&project);
    assert!(said.contains("out/a was changed by hand (line 2)"), "{said}");
    assert!(said.contains("book/a.md:10:1"), "{said}");
    assert!(said.contains("tangle sync"), "{said}");
    assert_eq!(project.get("out/a"), "one\nTWO\nthree\n", "the edit is still there");
    assert_eq!(project.get("out/b"), "b\n", "and nothing else was written");
}

#[test]
fn an_output_with_a_line_more_points_at_the_last_line() {
    let project = Project::one(CHAPTER);
    project.tangle();
    project.put("out/a", "one\ntwo\nthree\nfour\n");
    let said = refused(&project);
    assert!(said.contains("(line 4)") && said.contains("book/a.md:6:1"), "{said}");
}

#[test]
fn an_edit_that_the_chapter_caught_up_with_is_no_conflict() {
    let project = Project::one(CHAPTER);
    project.tangle();
    project.put("out/a", "one\nTWO\nthree\n");
    project.put("book/a.md", CHAPTER.replace("two", "TWO"));
    assert_eq!(project.tangle(), "tangle: 1 file, nothing changed\n");
    assert_eq!(project.tangle(), "tangle: 1 file, nothing changed\n");
}

#[test]
fn an_edited_stale_output_is_not_removed() {
    let project = Project::one(CHAPTER);
    project.tangle();
    project.put("out/a", "mine\n");
    project.put("book/a.md", "No code any more.\n");
    let said = refused(&project);
    assert!(said.contains("out/a was changed by hand, and no chapter writes it"), "{said}");
    assert_eq!(project.get("out/a"), "mine\n");
    fs::remove_file(project.path("out/a")).expect("removed");
    assert_eq!(project.tangle(), "tangle: 0 files, nothing changed\n");
}

#[test]
fn a_foreign_file_is_not_overwritten() {
    let project = Project::one(CHAPTER);
    project.put("out/a", "foreign\n");
    let said = project.fails();
    assert!(said.contains("out/a is in the way: tangle did not write it"), "{said}");
    assert_eq!(project.get("out/a"), "foreign\n");
}

#[test]
fn a_foreign_file_with_the_same_text_is_taken_over() {
    let project = Project::one(CHAPTER);
    project.put("out/a", "one\ntwo\nthree\n");
    assert_eq!(project.tangle(), "tangle: 1 file, nothing changed\n");
    project.put("book/a.md", CHAPTER.replace("two", "TWO"));
    assert_eq!(project.tangle(), "tangle: 1 file, 1 written\n");
}

#[test]
fn folders_and_links_in_the_way_are_reported() {
    let project = Project::one(CHAPTER);
    project.put("out/a/kept", "x\n");
    assert!(project.fails().contains("out/a is in the way: it is a folder"));
    assert_eq!(project.get("out/a/kept"), "x\n");

    let project = Project::one(CHAPTER);
    project.put("out/target", "x\n");
    std::os::unix::fs::symlink("target", project.path("out/a")).expect("link made");
    assert!(project.fails().contains("out/a is in the way: it is a symbolic link"));
    assert_eq!(project.get("out/target"), "x\n");

    let project = Project::one(CHAPTER);
    project.put("out", "x\n");
    assert!(project.fails().contains("out is in the way: it is a file where a folder must be"));
    assert_eq!(project.get("out"), "x\n");
}

#[test]
fn force_keeps_a_copy() {
    let project = Project::one(CHAPTER);
    project.tangle();
    project.put("out/a", "mine\n");
    let ran = project.run(&["--force"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(project.get("out/a"), "one\ntwo\nthree\n");
    let copy = ran.err.trim().rsplit(' ').next().expect("a path").to_owned();
    assert!(copy.starts_with(".tangle/kept/out/a."), "{}", ran.err);
    assert_eq!(project.get(&copy), "mine\n");

    // The same for a stale one.
    project.put("out/a", "mine again\n");
    project.put("book/a.md", "Nothing.\n");
    let ran = project.run(&["--force"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(!project.has("out"));
    let copy = ran.err.trim().rsplit(' ').next().expect("a path").to_owned();
    assert_eq!(project.get(&copy), "mine again\n");
}

#[test]
fn a_deleted_output_comes_back() {
    let project = Project::one(CHAPTER);
    project.tangle();
    fs::remove_file(project.path("out/a")).expect("removed");
    assert_eq!(project.tangle(), "tangle: 1 file, 1 written\n");
    fs::remove_dir_all(project.path(".tangle")).expect("removed");
    assert_eq!(project.tangle(), "tangle: 1 file, nothing changed\n");
}

#[test]
fn a_stale_file_gives_way_to_a_folder_and_back() {
    let project = Project::one(&fence("text,file:out/a", "1\n"));
    project.tangle();
    project.put("book/a.md", fence("text,file:out/a/b", "2\n"));
    assert_eq!(project.tangle(), "tangle: 1 file, 1 written, 1 removed\n");
    assert_eq!(project.get("out/a/b"), "2\n");
    project.put("book/a.md", fence("text,file:out/a", "3\n"));
    assert_eq!(project.tangle(), "tangle: 1 file, 1 written, 1 removed\n");
    assert_eq!(project.get("out/a"), "3\n");
}

#[test]
fn a_folder_with_a_foreign_file_does_not_give_way() {
    let project = Project::one(&fence("text,file:out/a/b", "1\n"));
    project.tangle();
    project.put("out/a/mine", "x\n");
    project.put("book/a.md", fence("text,file:out/a", "2\n"));
    assert!(refused(&project).contains("out/a is in the way: it is a folder"));
    assert_eq!(project.get("out/a/mine"), "x\n");
    assert_eq!(project.get("out/a/b"), "1\n");
}

#[test]
fn an_interrupted_run_is_not_taken_for_an_edit() {
    let project = Project::one(&fences(&[("text,file:a", "1\n"), ("text,file:b", "1\n")]));
    project.tangle();
    // As if the next run had been killed after it wrote its intentions and one file.
    let state = project.get(".tangle/state.json");
    project.put("book/a.md", fences(&[("text,file:a", "2\n"), ("text,file:b", "2\n")]));
    project.tangle();
    let after: serde_json::Value =
        serde_json::from_str(&project.get(".tangle/state.json")).expect("JSON");
    let mut between: serde_json::Value = serde_json::from_str(&state).expect("JSON");
    between["pending"] = after["outputs"].clone();
    project.put(".tangle/state.json", between.to_string());
    project.put("b", "1\n");
    // And then the chapter changed once more.
    project.put("book/a.md", fences(&[("text,file:a", "3\n"), ("text,file:b", "3\n")]));
    assert_eq!(project.tangle(), "tangle: 2 files, 2 written\n");
    assert_eq!((project.get("a"), project.get("b")), ("3\n".into(), "3\n".into()));
}

#[test]
fn no_temporary_file_stays_and_files_are_readable_by_all() {
    use std::os::unix::fs::PermissionsExt;
    let project = Project::one(CHAPTER);
    project.tangle();
    let names = |folder: &str| {
        let entries = fs::read_dir(project.path(folder)).expect("a folder");
        let mut names: Vec<_> = entries
            .map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("out"), ["a"]);
    assert_eq!(names(".tangle"), ["lock", "map.json", "state.json", "written"]);
    let mode = |path: &str| fs::metadata(project.path(path)).expect("there").permissions().mode();
    assert_eq!(mode("out/a"), mode("book/a.md"));
}

#[test]
fn runs_at_the_same_time_do_not_disturb_each_other() {
    let blocks: String =
        (0..50).map(|n| fence(&format!("text,file:out/{n}"), &format!("{n}\n"))).collect();
    let project = Project::one(&blocks);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let ran = project.run(&[]);
                assert_eq!((ran.status, ran.err.as_str()), (0, ""));
            });
        }
    });
    assert_eq!(project.tangle(), "tangle: 50 files, nothing changed\n");
}

#[test]
fn it_works_from_a_folder_below_and_with_a_root() {
    let project = Project::one(CHAPTER);
    fs::create_dir(project.path("below")).expect("folder made");
    let ran = project.run_in(&project.path("below"), &["tangle", "-q"], "");
    assert!(ran.status.success() && ran.stdout.is_empty());
    assert!(project.has("out/a"));
    let root = project.root();
    let elsewhere = std::env::temp_dir();
    let ran = project.run_in(&elsewhere, &["--root", root.to_str().expect("UTF-8")], "");
    assert!(ran.status.success());
}

#[test]
fn wrong_usage_is_status_2() {
    let project = Project::one(CHAPTER);
    for args in [
        &["--bogus"][..],
        &["nonsense"],
        &["locate"],
        &["locate", "x"],
        &["--root", "/dev"],
        &["--force", "sync"],
        &["--lab", "1", "check"],
        &["--until", "a.md", "--out", "x", "fmt"],
    ] {
        assert_eq!(project.run(args).status, 2, "{args:?}");
    }
    let nowhere = tempfile::TempDir::new().expect("a temporary folder");
    let ran = project.run_in(nowhere.path(), &[], "");
    assert_eq!(ran.status.code(), Some(2));
}

#[test]
fn a_broken_book_toml_or_summary_is_said_with_its_place() {
    let project = Project::one(CHAPTER);
    project.put("book.toml", "[book]\nsrc = 3\n");
    let said = project.fails();
    assert!(said.contains("book.toml:2:7"), "{said}");

    let project = Project::one(CHAPTER);
    project.list(&["a.md", "gone.md", "a.md", "../../x.md"]);
    let said = project.fails();
    for code in ["missing-chapter", "chapter-twice", "chapter-outside"] {
        assert!(said.contains(&format!("tangle::{code}")), "{said}");
    }
    assert!(said.contains("book/SUMMARY.md:4:3"), "{said}");

    let project = Project::one(CHAPTER);
    fs::remove_file(project.path("book/SUMMARY.md")).expect("removed");
    assert!(project.fails().contains("cannot read book/SUMMARY.md"));
}

#[test]
fn a_stale_output_behind_a_link_out_of_the_tree_is_not_removed() {
    let project = Project::one(CHAPTER);
    project.tangle();
    let outside = tempfile::TempDir::new().expect("a temporary folder");
    fs::rename(project.path("out/a"), outside.path().join("a")).expect("moved");
    fs::remove_dir(project.path("out")).expect("removed");
    std::os::unix::fs::symlink(outside.path(), project.path("out")).expect("link made");
    project.put("book/a.md", "Nothing.\n");
    project.tangle();
    assert!(outside.path().join("a").exists());
}
