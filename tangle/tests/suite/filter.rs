// SPDX-License-Identifier: GPL-2.0

//! What compilers say, about chapters instead of generated files.

use std::process::Command;

use crate::common::{Project, Ran, fence, fences};

/// Ninety-seven lines of prose, then code, so that line numbers have one digit on one side and
/// three on the other.
fn project() -> Project {
    let mut chapter = "Prose.\n".repeat(97);
    chapter.push_str(&fences(&[
        ("rust,ignore,file:module/x.rs", "fn main() {\n    // <<body>>\n}\n"),
        ("rust,ignore,chunk:body", "let c: u8 = \"y\";\n"),
        ("asm,file:switcher/z.S", "\tnop\n\tmovv %eax, %ebx\n"),
        ("make,file:module/Makefile", "all:\n\t@false\n"),
        ("c,file:module/y.c", "int main(void)\n{\n\treturn foo;\n}\n"),
    ]));
    chapter.push_str(&fence("rust,ignore,file:logic/src/lib.rs", "fn l() {}\n"));
    chapter.push_str(&fence("rust,ignore,file:abi/src/lib.rs", "fn a() {}\n"));
    let project = Project::one(&chapter);
    project.tangle();
    project
}

fn filter(project: &Project, text: &str) -> String {
    let ran = Ran::from(project.run_in(&project.root(), &["filter"], text));
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    ran.out
}

#[test]
fn rustc_for_people() {
    let said = "\
error[E0308]: mismatched types
 --> module/x.rs:2:17
  |
2 |     let c: u8 = \"y\";
  |            --   ^^^ expected `u8`, found `&str`
  |            |
  |            expected due to this
  |
  = note: a note

error: aborting due to 1 previous error
";
    let expected = "\
error[E0308]: mismatched types
   --> book/a.md:105:13 (module/x.rs:2)
    |
105 |     let c: u8 = \"y\";
    |            --   ^^^ expected `u8`, found `&str`
    |            |
    |            expected due to this
    |
    = note: a note

error: aborting due to 1 previous error
";
    assert_eq!(filter(&project(), said), expected);
}

#[test]
fn lines_of_two_chapters_in_one_message() {
    let project = Project::new(&[
        ("a.md", &fence("rust,ignore,file:a.rs", "fn f( {\n    // <<x>>\n}\n")),
        ("b.md", &fence("rust,ignore,chunk:x", "g();\n")),
    ]);
    project.tangle();
    let said = "\
error: unclosed
 --> a.rs:2:1
  |
1 | fn f( {
  |     - unclosed
2 |     g();
  |     ^
3 | }
";
    let expected = "\
error: unclosed
 --> book/b.md:2:1 (a.rs:2)
  |
 ::: book/a.md:2
2 | fn f( {
  |     - unclosed
 ::: book/b.md:2
2 |     g();
  |     ^
 ::: book/a.md:4
4 | }
";
    assert_eq!(filter(&project, said), expected);
}

#[test]
fn rustc_itself_in_all_its_forms() {
    let project = project();
    let rustc = |args: &[&str]| {
        let done = Command::new("rustc")
            .args(["--edition", "2021", "--emit", "metadata", "--out-dir", "out"])
            .args(args)
            .arg("module/x.rs")
            .current_dir(project.root())
            .output()
            .expect("rustc runs");
        String::from_utf8(done.stderr).expect("UTF-8")
    };
    let human = filter(&project, &rustc(&[]));
    assert!(human.contains("   --> book/a.md:105:13 (module/x.rs:2)\n"), "{human}");
    assert!(human.contains("105 |     let c: u8 = \"y\";\n"), "{human}");

    let coloured = filter(&project, &rustc(&["--color", "always"]));
    assert!(coloured.contains("book/a.md:105:13 (module/x.rs:2)"), "{coloured}");
    assert!(coloured.contains("105\u{1b}[0m \u{1b}"), "{coloured:?}");

    let short = filter(&project, &rustc(&["--error-format", "short"]));
    assert!(short.starts_with("book/a.md:105:13: error[E0308]"), "{short}");
    assert!(short.contains("(module/x.rs:2)\n"), "{short}");

    let json = filter(&project, &rustc(&["--error-format", "json"]));
    let first = json.lines().find(|line| line.contains("E0308")).expect("the error");
    let message: serde_json::Value = serde_json::from_str(first).expect("JSON");
    let spans = message["spans"].as_array().expect("spans");
    let span = spans.iter().find(|span| span["is_primary"] == true).expect("the span");
    assert_eq!(span["file_name"], "book/a.md");
    assert_eq!((&span["line_start"], &span["column_start"]), (&105.into(), &13.into()));
    let bytes = |key: &str| usize::try_from(span[key].as_u64().expect("a number")).expect("small");
    let chapter = project.get("book/a.md");
    assert_eq!(&chapter[bytes("byte_start")..bytes("byte_end")], "\"y\"");
    let rendered = message["rendered"].as_str().expect("text");
    assert!(rendered.contains("--> book/a.md:105:13 (module/x.rs:2)"), "{rendered}");
}

#[test]
fn json_of_cargo_is_one_deeper() {
    let said = "{\"reason\":\"compiler-message\",\"message\":{\"spans\":[{\"file_name\":\
                \"module/x.rs\",\"line_start\":1,\"line_end\":1,\"column_start\":4,\
                \"column_end\":8}],\"rendered\":null}}\n";
    let out = filter(&project(), said);
    assert!(out.contains("\"file_name\":\"book/a.md\",\"line_start\":99"), "{out}");
    assert!(out.starts_with("{\"reason\":"), "the order of the fields stays: {out}");
}

#[test]
fn gcc_as_and_make() {
    let said = "\
module/y.c: In function 'main':
module/y.c:3:16: error: 'foo' undeclared
    3 |         return foo;
      |                ^~~
switcher/z.S: Assembler messages:
switcher/z.S:2: Error: no such instruction: `movv %eax,%ebx'
make[1]: *** [module/Makefile:2: all] Error 1
";
    let expected = "\
module/y.c: In function 'main':
book/a.md:121:16: error: 'foo' undeclared (module/y.c:3)
  121 |         return foo;
      |                ^~~
switcher/z.S: Assembler messages:
book/a.md:110: Error: no such instruction: `movv %eax,%ebx' (switcher/z.S:2)
make[1]: *** [book/a.md:115: all] Error 1 (module/Makefile:2)
";
    assert_eq!(filter(&project(), said), expected);
}

#[test]
fn panics_and_backtraces() {
    let said = "\
thread 'main' panicked at module/x.rs:2:5:
index out of bounds
   1: x::main
             at ./module/x.rs:2:9
[    1.23] rust_kernel: panicked at module/x.rs:1:1:
[    1.24] RIP: 0010:run+0x12/0x30 (module/x.rs:1) [lguest]
";
    let expected = "\
thread 'main' panicked at book/a.md:105:1: (module/x.rs:2)
index out of bounds
   1: x::main
             at book/a.md:105:5 (module/x.rs:2)
[    1.23] rust_kernel: panicked at book/a.md:99:1: (module/x.rs:1)
[    1.24] RIP: 0010:run+0x12/0x30 (book/a.md:99) [lguest] (module/x.rs:1)
";
    assert_eq!(filter(&project(), said), expected);
}

#[test]
fn what_a_kernel_says_is_about_the_module() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:abi/src/device.rs", "fn a() {}\n"),
        ("rust,ignore,file:module/device.rs", "fn m() {}\n"),
        ("asm,file:switcher/z.S", "\tnop\n"),
    ]));
    project.tangle();
    let said = "device.rs:1:1: x\n[    1.2] rust_kernel: panicked at device.rs:1:4:\n";
    let expected = "device.rs:1:1: x\n\
                    [    1.2] rust_kernel: panicked at book/a.md:6:4: (module/device.rs:1)\n";
    assert_eq!(filter(&project, said), expected);
    // The same for what is built in the module's folder, which make need not say.
    let said = "device.rs:1:1: error: x\n../switcher/z.S:1: Error: y\n";
    let expected = "book/a.md:6:1: error: x (module/device.rs:1)\n\
                    book/a.md:10: Error: y (switcher/z.S:1)\n";
    let args = ["filter", "--from", "module"];
    let ran = Ran::from(project.run_in(&project.root(), &args, said));
    assert_eq!((ran.status, ran.out.as_str()), (0, expected));
}

#[test]
fn absolute_paths_and_paths_from_where_make_is() {
    let project = project();
    let root = project.root();
    let root = root.display();
    let said = format!(
        "{root}/module/x.rs:1:1: error: a\n\
         make[1]: Entering directory '{root}/switcher'\n\
         z.S:2: Error: b\n\
         ../module/y.c:3:1: error: c\n\
         make[1]: Leaving directory '{root}/switcher'\n\
         /elsewhere/module/x.rs:1:1: error: d\n"
    );
    let out = filter(&project, &said);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "book/a.md:99:1: error: a (module/x.rs:1)");
    assert_eq!(lines[2], "book/a.md:110: Error: b (switcher/z.S:2)");
    assert_eq!(lines[3], "book/a.md:121:1: error: c (module/y.c:3)");
    assert_eq!(lines[5], "/elsewhere/module/x.rs:1:1: error: d");
}

#[test]
fn a_path_that_may_be_two_files_stays() {
    let project = project();
    let said = "src/lib.rs:1:1: error: whose?\nlogic/src/lib.rs:1:1: error: mine\nz.S:1: x\n";
    let out = filter(&project, said);
    assert!(out.starts_with("src/lib.rs:1:1: error: whose?\nbook/a.md:"), "{out}");
    assert!(out.ends_with("(logic/src/lib.rs:1)\nbook/a.md:109: x (switcher/z.S:1)\n"), "{out}");
}

#[test]
fn everything_else_passes_as_it_is() {
    let project = project();
    let said = "\
12:30:00 host:22 a:b x.rs module/x.rs module/x.rs: module/x.rs:99 module/x.rs:0
 --> other.rs:1:1
  |
1 | fn x()
::: a:1
{not json
http://127.0.0.1:80/x no newline at the end";
    assert_eq!(filter(&project, said), said);
    let bytes = b"\xff\xfe:1\n".to_vec();
    let done = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("tangle"))
        .arg("filter")
        .current_dir(project.root())
        .write_stdin(bytes.clone())
        .output()
        .expect("tangle runs");
    assert_eq!(done.stdout, bytes);
}

#[test]
fn without_a_book_or_a_map_everything_passes() {
    let project = Project::one("Nothing.\n");
    let said = "module/x.rs:1:1: error: x\n";
    assert_eq!(filter(&project, said), said);
    let nowhere = tempfile::TempDir::new().expect("a temporary folder");
    let ran = Ran::from(project.run_in(nowhere.path(), &["filter"], said));
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (0, said, ""));
}
