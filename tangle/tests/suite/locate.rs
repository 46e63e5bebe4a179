// SPDX-License-Identifier: GPL-2.0

//! From outputs to chapters and back.

use crate::common::{Project, Ran};

const CHAPTER: &str = "Prose.\n\n```rust,ignore,file:m/a.rs\nfn f() {\n    // <<x>>\n    // <<x>>\n}\n\
                       ```\n\n  ```rust,ignore,chunk:x\n  g(1);\n  ```\n";

fn locate(args: &[&str]) -> Ran {
    let project = Project::one(CHAPTER);
    project.tangle();
    let mut all = vec!["locate"];
    all.extend(args);
    project.run(&all)
}

#[test]
fn from_a_generated_file_to_the_chapter() {
    assert_eq!(locate(&["m/a.rs:1"]).out, "book/a.md:4\n");
    // Four blanks of the reference go, two of the fence come.
    assert_eq!(locate(&["m/a.rs:3:7"]).out, "book/a.md:11:5\n");
    assert_eq!(locate(&["m/a.rs:4:1", "./m/../m/a.rs:4"]).out, "book/a.md:7:1\nbook/a.md:7\n");
}

#[test]
fn from_the_chapter_to_the_generated_file() {
    assert_eq!(locate(&["book/a.md:4:2"]).out, "m/a.rs:1:2\n");
    assert_eq!(locate(&["book/a.md:11:5"]).out, "m/a.rs:2:7\nm/a.rs:3:7\n");
}

#[test]
fn there_and_back_again() {
    let project = Project::one(CHAPTER);
    project.tangle();
    for line in 1..=4 {
        let here = format!("m/a.rs:{line}:9");
        let there = project.run(&["locate", &here]).out;
        let back = project.run(&["locate", there.trim()]).out;
        assert!(back.lines().any(|place| place == here), "{here} {there} {back}");
    }
}

#[test]
fn as_json() {
    let ran = locate(&["--json", "book/a.md:11:5", "m/a.rs:1"]);
    assert_eq!(
        ran.out,
        "[{\"path\":\"m/a.rs\",\"line\":2,\"col\":7,\"chunk\":\"x\"},\
         {\"path\":\"m/a.rs\",\"line\":3,\"col\":7,\"chunk\":\"x\"}]\n\
         [{\"path\":\"book/a.md\",\"line\":4,\"chunk\":\"m/a.rs\"}]\n"
    );
}

#[test]
fn from_another_folder_and_by_an_absolute_path() {
    let project = Project::one(CHAPTER);
    project.tangle();
    let ran = Ran::from(project.run_in(&project.path("m"), &["locate", "a.rs:1"], ""));
    assert_eq!(ran.out, "book/a.md:4\n");
    let absolute = format!("{}:1", project.path("m/a.rs").display());
    assert_eq!(project.run(&["locate", &absolute]).out, "book/a.md:4\n");
}

#[test]
fn what_leads_nowhere_is_said() {
    for (place, said) in [
        ("m/a.rs:5", "line 5 of m/a.rs is in no other file"),
        ("book/a.md:1", "line 1 of book/a.md is in no other file"),
        ("book/a.md:5", "is the reference <<x>>, which is defined at book/a.md:10"),
        ("m/none.rs:1", "m/none.rs is neither a generated file nor a chapter"),
    ] {
        let ran = locate(&[place]);
        assert_eq!((ran.status, ran.out.as_str()), (1, ""), "{place}");
        assert!(ran.err.contains(said), "{place}: {}", ran.err);
    }
    let ran = Project::one(CHAPTER).run(&["locate", "m/a.rs:1"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("run `tangle` first"), "{}", ran.err);
}

#[test]
fn a_chapter_that_changed_since_is_said() {
    let project = Project::one(CHAPTER);
    project.tangle();
    project.put("book/a.md", format!("More.\n{CHAPTER}"));
    let ran = project.run(&["locate", "m/a.rs:1"]);
    assert_eq!(ran.out, "book/a.md:4\n");
    assert!(ran.err.contains("book/a.md changed since the last run"), "{}", ran.err);
}
