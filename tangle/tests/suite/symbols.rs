// SPDX-License-Identifier: GPL-2.0

//! From a symbol and an offset to a chapter, with an object file that rustc makes here.

use std::process::Command;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget};

use crate::common::{Project, Ran, fence, fences};

/// `spot` calls `nowhere` on line 12 of the file, within a function that is inlined.
const CODE: &str = "\
#![no_std]
extern \"C\" {
    fn nowhere(n: u32) -> u32;
}
#[no_mangle]
#[link_section = \".text\"]
pub extern \"C\" fn spot(n: u32) -> u32 {
    inner(n) + 1
}
#[inline(always)]
fn inner(n: u32) -> u32 {
    unsafe { nowhere(n) }
}
#[no_mangle]
#[link_section = \".text\"]
pub extern \"C\" fn other() {}
";

/// A book with that file, and the module made of it; and the address after the call, in `spot`.
fn project() -> (Project, u64) {
    let mut chapter = "Prose.\n".repeat(50);
    chapter.push_str(&fence("rust,ignore,file:module/x.rs", CODE));
    let project = Project::one(&chapter);
    project.tangle();
    let module = project.path("module");
    let done = Command::new("rustc")
        .current_dir(&module)
        .args([
            "--edition=2021",
            "--crate-type=lib",
            "--emit=obj",
            "-Cpanic=abort",
            "-Copt-level=2",
        ])
        .args(["-Cdebuginfo=line-tables-only", "-Coverflow-checks=no", "x.rs", "-o", "lguest.o"])
        .status();
    assert!(done.expect("rustc runs").success());
    std::fs::copy(module.join("lguest.o"), module.join("lguest.ko")).expect("copied");
    let bytes = std::fs::read(module.join("lguest.ko")).expect("the module");
    let elf = object::read::elf::ElfFile64::<object::Endianness>::parse(&*bytes).expect("an ELF");
    let spot = elf.symbols().find(|symbol| symbol.name() == Ok("spot")).expect("spot");
    let section = elf.section_by_index(spot.section_index().expect("defined")).expect("a section");
    let call = section.relocations().find(|(_, relocation)| {
        let RelocationTarget::Symbol(index) = relocation.target() else { return false };
        elf.symbol_by_index(index).is_ok_and(|symbol| symbol.name() == Ok("nowhere"))
    });
    // The relocation is the last four bytes of the call.
    let after = call.expect("the call").0 + 4 - spot.address();
    (project, after)
}

fn filter(project: &Project, text: &str) -> String {
    let ran = Ran::from(project.run_in(&project.root(), &["filter"], text));
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    ran.out
}

#[test]
fn a_backtrace_and_an_oops() {
    let (project, after) = project();
    // The line of the call is 51 + 12, that of the call of `inner` 51 + 8.
    let said = format!("[    1.5]  spot+{after:#x} [lguest]\n");
    let expected = format!(
        "{said}        at book/a.md:63 (module/x.rs:12, in inner)\n        \
         at book/a.md:59 (module/x.rs:8, in spot)\n"
    );
    assert_eq!(filter(&project, &said), expected);
    // In an oops the address is the instruction itself, and that after the call adds 1.
    let said = format!("[    1.5] RIP: 0010:spot+{after:#x} [lguest]\n");
    let expected = format!("{said}        at book/a.md:59 (module/x.rs:8, in spot)\n");
    assert_eq!(filter(&project, &said), expected);
    // The kernel's own functions, and those of other modules, pass as they are.
    for said in ["RIP: 0010:spot+0x1/0x8\n", " ? spot+0x1/0x8 [other]\n", "a+0x1 b\n"] {
        assert_eq!(filter(&project, said), said);
    }
}

#[test]
fn locate_takes_a_symbol_or_the_whole_line() {
    let (project, after) = project();
    let locate = |text: &str| project.run(&["locate", text]);
    let ran = locate(&format!("[    1.5]  ? spot+{after:#x} [lguest]"));
    assert_eq!(
        ran.out,
        "book/a.md:63 (module/x.rs:12, in inner)\nbook/a.md:59 (module/x.rs:8, in spot)\n"
    );
    assert_eq!(locate(&format!("spot+{after:#x}")).out, "book/a.md:59 (module/x.rs:8, in spot)\n");
    let ran = project.run(&["locate", "--json", "spot+0x0"]);
    assert!(ran.out.starts_with("[{\"place\":\"book/a.md:5"), "{}", ran.out);
}

#[test]
fn another_module_than_that_of_the_log_is_noticed() {
    let (project, _) = project();
    for (asked, why) in
        [("nobody+0x1/0x2", "has no symbol nobody"), ("spot+0xfff0", "has no line for spot+0xfff0")]
    {
        let ran = project.run(&["locate", asked]);
        assert!(ran.err.contains(why), "{asked}: {} {}", ran.out, ran.err);
        assert_eq!(ran.status, 1);
    }
    // How far the last function of a section reaches is not known before it is loaded: only the
    // other one can be told by its size.
    let wrong =
        ["spot+0x0/0xfff0", "other+0x0/0xfff0"].map(|asked| project.run(&["locate", asked]));
    assert_eq!(wrong.iter().filter(|ran| ran.status == 1).count(), 1);
    assert!(wrong.iter().any(|ran| ran.err.contains("bytes in")));
    let log = "RIP: 0010:nobody+0x1/0x2 [lguest]\n";
    assert!(filter(&project, log).contains("not the module that the log is about"));
    std::fs::remove_file(project.path("module/lguest.ko")).expect("removed");
    assert!(filter(&project, log).contains("cannot be read"));
}

#[test]
fn a_symbol_that_nobody_has_is_where_it_is_used() {
    let (project, _) = project();
    for said in [
        "ERROR: modpost: lguest.ko: symbol 'nowhere' undefined!\n",
        "ERROR: modpost: \"nowhere\" [/x/module/lguest.ko] undefined!\n",
    ] {
        let out = filter(&project, said);
        let expected = format!(
            "{said}        used at book/a.md:63 (module/x.rs:12, in inner)\n        \
             used at book/a.md:59 (module/x.rs:8, in spot)\n"
        );
        assert_eq!(out, expected);
    }
}

#[test]
fn make_and_cargo_quote_what_has_no_line() {
    let manifest = "[package]\nname = \"g\"\n\n[dependencies]\nmissing = { path = \"../none\" }\n";
    let workspace = "[workspace]\nmembers = [\"../guest\", \"../gone\"]\n\n[profile.dev]\npanic = \
                     \"abrt\"\n";
    let project = Project::one(&fences(&[
        ("make,file:module/Kbuild", "obj-m := l.o\nl-y := a.o\nl-y += none.o\n"),
        ("toml,file:guest/Cargo.toml", manifest),
        ("toml,file:workspace/Cargo.toml", workspace),
    ]));
    project.tangle();
    let root = project.root();
    let root = root.display();
    let all = project.get("book/a.md");
    let line = |text: &str| 1 + all.lines().position(|line| line.contains(text)).expect("there");
    for (said, place) in [
        (
            "make[3]: *** No rule to make target 'none.o', needed by 'l.o'.  Stop.\n".to_owned(),
            format!("(book/a.md:{}, module/Kbuild:3)", line("none.o")),
        ),
        (
            format!(
                "error: failed to load manifest for workspace member `{root}/workspace/../guest`\n\
                 referenced by workspace at `{root}/workspace/Cargo.toml`\n\nCaused by:\n  failed to \
                 load manifest for dependency `missing`\n"
            ),
            format!("(book/a.md:{}, guest/Cargo.toml:5)", line("missing")),
        ),
        (
            format!(
                "error: failed to load manifest for workspace member `{root}/workspace/../gone`\n\
                 referenced by workspace at `{root}/workspace/Cargo.toml`\n\nCaused by:\n  failed to \
                 read `{root}/gone/Cargo.toml`\n"
            ),
            format!("(book/a.md:{}, workspace/Cargo.toml:2)", line("gone")),
        ),
        (
            format!(
                "error: failed to parse manifest at `{root}/workspace/Cargo.toml`\n\nCaused by:\n  \
                 `panic` setting of `abrt` is not a valid setting\n"
            ),
            format!("(book/a.md:{}, workspace/Cargo.toml:5)", line("abrt")),
        ),
    ] {
        let out = filter(&project, &said);
        assert!(out.ends_with(&format!("{place}\n")), "{out}wanted: {place}");
    }
}

#[test]
fn rust_lld_names_the_crate_on_the_next_line() {
    let project = Project::one(&fences(&[
        ("rust,ignore,file:guest/src/main.rs", "fn a() {}\nfn b() {}\n"),
        ("rust,ignore,file:launcher/src/main.rs", "fn c() {}\n"),
    ]));
    project.tangle();
    let said = "\
rust-lld: error: undefined symbol: nowhere
>>> referenced by main.rs:2 (src/main.rs:2)
>>>               /x/release/deps/guest-0eac83c482618210.guest.rcgu.o:(guest::b)
>>> referenced by main.rs:2 (src/main.rs:2)
";
    let expected = "\
rust-lld: error: undefined symbol: nowhere
>>> referenced by main.rs:2 book/a.md:3 (guest/src/main.rs:2)
>>>               /x/release/deps/guest-0eac83c482618210.guest.rcgu.o:(guest::b)
>>> referenced by main.rs:2 (src/main.rs:2)
";
    assert_eq!(filter(&project, said), expected);
}
