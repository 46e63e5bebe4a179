// SPDX-License-Identifier: GPL-2.0-only

//! What went wrong, at the lines of the chapters.

use std::fs;
use std::path::Path;

use tangle::filter::Filter;
use tangle::map::Map;

use crate::artifacts::root;

/// A text with places in generated files, and in the module, as places in the chapters. The map
/// is that of the checkout which the module was built in.
pub fn in_chapters(text: &str, module: Option<&Path>) -> String {
    let default = root().join("module/lguest.ko");
    let module = module.unwrap_or(&default);
    let mut above = module.ancestors().skip(1);
    let root = above
        .find(|folder| folder.join(tangle::map::PATH).is_file())
        .map_or_else(root, Path::to_path_buf);
    let Some(map) = Map::read(&root) else {
        return text.to_owned();
    };
    let mut filter = Filter::new(map, &root, &root).with_module(module);
    let mut out: String = text.lines().map(|line| filter.line(line)).collect();
    out.push_str(&filter.finish());
    if !text.ends_with('\n') {
        out.truncate(out.trim_end_matches('\n').len());
    }
    out
}

/// What a kernel says when it is in trouble.
const TROUBLE: [&str; 8] = [
    "rust_kernel: panicked at",
    "kernel BUG at",
    "BUG: ",
    "Oops: ",
    "WARNING: ",
    "general protection fault",
    "Kernel panic",
    "watchdog: ",
];
/// How many lines of it are shown.
const SHOWN: usize = 16;

/// The part of a kernel's log that says what it died of; nothing if it does not say.
pub fn last_words(log: &str) -> String {
    let troubled = |line: &str| TROUBLE.iter().any(|words| line.contains(words));
    let mut said: Vec<&str> = Vec::new();
    let mut after_panic = false;
    for line in log.lines().skip_while(|line| !troubled(line)) {
        let place = line.contains("RIP: 0010:") || line.contains(" [lguest]");
        if (after_panic || place || troubled(line)) && !said.contains(&line) {
            said.push(line);
        }
        // A panic's message is on the next line.
        after_panic = line.contains("rust_kernel: panicked at");
        // The registers are printed once more at the end.
        if said.len() == SHOWN || line.contains("end trace") {
            break;
        }
    }
    said.join("\n")
}

/// [`last_words`] of a file.
pub fn last_words_of(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    last_words(&String::from_utf8_lossy(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_those_that_matter() {
        let log = "\
[    1.0] lguest: switcher at 0x0-0x1000
[    1.1] rust_kernel: panicked at device.rs:3:9:
[    1.1] a fault on purpose
[    1.2] ------------[ cut here ]------------
[    1.2] kernel BUG at rust/helpers/bug.c:7!
[    1.3] RIP: 0010:rust_helper_BUG+0x8/0x10
[    1.3] RAX: 0000000000000000 RBX: 0000000000000000
[    1.4]  vfs_read+0x288/0x360
[    1.4]  read_iter+0x20/0x60 [lguest]
[    1.5] ---[ end trace 0000000000000000 ]---
[    1.5] RIP: 0010:rust_helper_BUG+0x8/0x10
";
        let expected = "\
[    1.1] rust_kernel: panicked at device.rs:3:9:
[    1.1] a fault on purpose
[    1.2] kernel BUG at rust/helpers/bug.c:7!
[    1.3] RIP: 0010:rust_helper_BUG+0x8/0x10
[    1.4]  read_iter+0x20/0x60 [lguest]";
        assert_eq!(last_words(log), expected);
        assert_eq!(last_words("[    1.0] all is well\n"), "");
    }

    #[test]
    fn a_place_in_a_generated_file_becomes_one_in_a_chapter() {
        let said = in_chapters("thread panicked at module/lguest_main.rs:1:1:\nx", None);
        // Without a map, as before the first `make tangle`, nothing is known.
        if Map::read(&root()).is_some() {
            assert!(said.starts_with("thread panicked at book/host/module.md:"));
        }
        assert!(said.ends_with("\nx"));
        assert_eq!(in_chapters("one\ntwo\n", None), "one\ntwo\n");
    }
}
