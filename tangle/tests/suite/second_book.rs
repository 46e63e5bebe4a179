// SPDX-License-Identifier: GPL-2.0

//! A small book that is not ours: sundials, in Python, HTML and make. It uses the whole syntax, and
//! what comes out of it runs.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::Project;

/// A copy of the book in a folder of its own.
fn book() -> Project {
    let project = Project::new(&[]);
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/second-book");
    fs::remove_dir_all(project.path("book")).expect("removed");
    let mut folders = vec![from.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let path = entry.path();
            let name = path.strip_prefix(&from).expect("below it").to_str().expect("UTF-8");
            project.put(name, fs::read(&path).expect("read"));
        }
    }
    project
}

/// What the script says the shadow's angle is at three o'clock, if Python is there.
fn at_three(project: &Project, folder: &str, latitude: &str) -> Option<String> {
    let mut run = Command::new("python3");
    run.arg("dial.py").arg(latitude).current_dir(project.path(folder));
    let run = run.output().map_err(|error| eprintln!("skipped: python3: {error}")).ok()?;
    let said = String::from_utf8(run.stdout).expect("UTF-8");
    let found = said.lines().find_map(|line| line.strip_prefix("15 "));
    let failed = String::from_utf8_lossy(&run.stderr);
    Some(found.map_or_else(|| failed.lines().last().unwrap_or_default().to_owned(), str::to_owned))
}

#[test]
fn it_tangles_checks_and_runs() {
    let project = book();
    assert_eq!(project.tangle(), "tangle: 3 files, 3 written\n");
    let ran = project.run(&["check"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert_eq!(project.get("Makefile"), ".PHONY: berlin\nberlin:\n\tpython3 dial.py 52.5\n");
    let svg = project.get("dial.svg.in");
    assert!(svg.contains("\n  <style>\n    line {"), "{svg}");
    assert!(svg.contains("\n  <!-- <<the lines come here>> -->\n"), "{svg}");
    assert!(!project.get("dial.py").contains("return 0"), "the quotation goes nowhere");
    // At the pole the shadow goes as fast as the sun, at the equator it does not go at all.
    for (latitude, angle) in [("90", "45.0"), ("0", "0.0"), ("52.5", "38.43")] {
        if let Some(said) = at_three(&project, ".", latitude) {
            assert_eq!(said, angle);
        }
    }
}

#[test]
fn up_to_a_chapter_and_the_starter_of_its_lab() {
    let project = book();
    let ran = project.run(&["--until", "shadow.md", "--out", "early"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("`the-drawing` is needed, but dial.md is left out"), "{}", ran.err);
    // As its author would mend it.
    let text = project.get("text/what.md");
    project.put("text/what.md", format!("{text}\n<!-- needs: running.md, dial.md -->\n"));
    let ran = project.run(&["--until", "what.md", "--out", "early"]);
    assert!(ran.err.contains("`the-sun` is needed, but sun.md is left out"), "{}", ran.err);

    let text = text.replace("# <<the-drawing>>\n\n", "");
    project.put("text/what.md", format!("{text}\n<!-- needs: running.md -->\n"));
    let drawing = project.get("text/dial.md").replace("\n    # <<tangent>>", "");
    let used = "```python,file:drawing.py\n# <<the-drawing>>\n# <<tangent>>\n```\n";
    project.put("text/dial.md", drawing + "\n" + used);
    let ran = project.run(&["--until", "shadow.md", "--out", "early"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(!project.has("early/dial.svg.in"));
    if let Some(said) = at_three(&project, "early", "0") {
        assert_eq!(said, "45.0", "before the latitude counted");
    }

    let project = book();
    let ran = project.run(&["--lab", "1", "--out", "lab"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    if let Some(said) = at_three(&project, "lab", "0") {
        assert_eq!(said, "NotImplementedError: sine of the latitude");
    }
}

#[test]
fn a_change_of_the_script_comes_back() {
    let project = book();
    project.tangle();
    let script = project
        .get("dial.py")
        .replace("round(shadow(hour, latitude), 2)", "shadow(hour, latitude)");
    project.put("dial.py", &script);
    let ran = project.run(&["sync"]);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    assert!(ran.out.starts_with("text/running.md:8: 1 line changed (dial.py:"), "{}", ran.out);
    assert_eq!(project.get("dial.py"), script);
    assert!(project.get("text/running.md").contains("\n    print(hour, shadow(hour, latitude))\n"));
}

#[test]
fn its_own_limits_count() {
    let project = book();
    let long = "x = 1\n".repeat(14);
    let wide = format!("x = {}\n", "1".repeat(60));
    let more = format!("\n```python,file:more.py\n{long}{wide}```\n");
    project.put("text/what.md", project.get("text/what.md") + &more);
    project.tangle();
    let said = project.run(&["check", "--message-format", "short"]).err;
    assert!(said.contains("error[too-long]: a block of 15 lines"), "{said}");
    assert!(said.contains("error[too-wide]: a line of 64 columns"), "{said}");
}
