// SPDX-License-Identifier: GPL-2.0

//! The real book, woven: every link leads somewhere, and mdBook has nothing to say against it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mdbook_preprocessor::book::{Book as MdBook, BookItem, Chapter};
use tangle::{Book, Target, weave};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Values of an attribute in some HTML.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    html.split(&start).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// Links that lead nowhere: `pages` has the anchors and the links of each page.
fn dead(pages: &HashMap<String, (HashSet<String>, Vec<String>)>, files: &Path) -> Vec<String> {
    let mut dead = Vec::new();
    for (page, (_, links)) in pages {
        for link in links {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let mut target: Vec<&str> = page.split('/').collect();
            if !path.is_empty() {
                target.pop();
                for part in path.split('/') {
                    match part {
                        ".." => drop(target.pop()),
                        "." => {}
                        part => target.push(part),
                    }
                }
            }
            let target = target.join("/");
            let there = match pages.get(&target) {
                Some((anchors, _)) => anchor.is_empty() || anchors.contains(anchor),
                None => anchor.is_empty() && files.join(&target).is_file(),
            };
            if !there {
                dead.push(format!("{page}: {link}"));
            }
        }
    }
    dead.sort();
    dead
}

/// The book as mdBook would hand it over.
fn handed_over(book: &Book) -> MdBook {
    let items = book.chapters().map(|(_, source)| {
        let path = source.path.strip_prefix("book/").expect("chapters lie in book/");
        BookItem::from(Chapter::new(path, source.body().to_owned(), path, Vec::new()))
    });
    MdBook::new_with_items(items.collect())
}

#[test]
fn weave_links_resolve_in_the_real_book() {
    let book = Book::load(&root());
    let woven = weave::weave(Path::new("book"), handed_over(&book)).expect("no errors");
    let mut pages = HashMap::new();
    let mut ids = 0;
    for chapter in woven.chapters() {
        let path = chapter.path.as_ref().expect("no draft").with_extension("html");
        let mut anchors: HashSet<String> = HashSet::new();
        // The headings of the index pages carry theirs in Markdown.
        let marked = chapter.content.split("{#").skip(1).filter_map(|rest| rest.split('}').next());
        for id in values(&chapter.content, "id").into_iter().chain(marked) {
            assert!(anchors.insert(id.to_owned()), "{}: {id} twice", path.display());
            ids += 1;
        }
        let links = values(&chapter.content, "href").into_iter().map(str::to_owned).collect();
        pages.insert(path.display().to_string(), (anchors, links));
    }
    // What mdBook does not make is checked with what it makes, below.
    for (id, output) in (0..).map(tangle::OutputId).zip(book.outputs()) {
        let lines = (1..=book.output(id).lines).map(|line| format!("L{line}")).collect();
        pages.insert(format!("code/{}.html", output.path), (lines, Vec::new()));
    }
    let chunks = book.chunks().iter().filter_map(|chunk| match &chunk.target {
        Target::Chunk(name) => Some(format!("chunk-{name}")),
        Target::File(_) => None,
    });
    pages.get_mut("chunks.html").expect("the list").0.extend(chunks);
    let links: usize = pages.values().map(|(_, links): &(_, Vec<String>)| links.len()).sum();
    // Each part is there; each reference is a link.
    assert!(ids >= book.parts().len(), "{ids} anchors");
    assert!(links > book.references().len() + 2 * book.parts().len(), "{links} links");
    assert_eq!(dead(&pages, Path::new("/nowhere")), Vec::<String>::new());
}

#[test]
fn weave_shows_every_reference_and_every_line() {
    let book = Book::load(&root());
    let woven = weave::weave(Path::new("book"), handed_over(&book)).expect("no errors");
    let all: String = woven.chapters().map(|chapter| chapter.content.as_str()).collect();
    assert_eq!(all.matches("class=\"chunk-ref\"").count(), book.references().len());
    let lines: usize = book.parts().iter().map(|part| part.block.lines.len()).sum();
    let shown = |code: &str| code.matches("&#10;").count() + code.matches('\n').count();
    let codes = all.split("<!---->").skip(1).filter_map(|rest| rest.split("</code>").next());
    assert_eq!(codes.map(shown).sum::<usize>(), lines);
}

/// mdBook, on the path or where set-up puts it.
fn mdbook() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let set_up = std::env::var_os("LGUEST_CACHE")
        .map(PathBuf::from)
        .or_else(|| cache.map(|cache| cache.join("lguest-rs")))
        .map(|cache| cache.join("tools/bin/mdbook"));
    let on_path = std::env::var_os("PATH");
    let on_path = on_path.iter().flat_map(std::env::split_paths).map(|dir| dir.join("mdbook"));
    on_path.chain(set_up).find(|path| path.is_file())
}

fn html_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            html_files(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "html") {
            found.push(path);
        }
    }
}

#[test]
fn weave_passes_mdbook_without_a_warning_or_a_dead_link() {
    let Some(mdbook) = mdbook() else {
        eprintln!("mdbook is not here; `make setup` brings it. Only the woven text was checked.");
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = fs::read_to_string(root().join("book.toml")).expect("book.toml");
    let command = concat!(env!("CARGO_BIN_EXE_tangle"), " weave");
    let here = config.replace("target/release/tangle weave", command);
    assert_eq!(here.matches(command).count(), 2, "book.toml has other commands");
    fs::write(dir.path().join("book.toml"), here).expect("book.toml written");
    std::os::unix::fs::symlink(root().join("book"), dir.path().join("book")).expect("linked");
    let run = Command::new(mdbook).arg("build").current_dir(&dir).output().expect("mdbook runs");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    // That the search index has more than ten million bytes is said before it is made slim.
    let bad = |line: &&str| line.contains("WARN") || line.contains("ERROR");
    let bad = said.lines().filter(bad).find(|line| !line.contains("search index is very large"));
    assert_eq!(bad, None, "{said}");

    let out = dir.path().join("book-out/html");
    let mut files = Vec::new();
    html_files(&out, &mut files);
    let mut pages = HashMap::new();
    for file in files {
        let name = file.strip_prefix(&out).expect("below").display().to_string();
        if matches!(name.as_str(), "404.html" | "toc.html") {
            continue; // Written for another address than their own.
        }
        let html = fs::read_to_string(&file).expect("HTML");
        let main = &html[html.find("<main>").expect("a page has a main part")..];
        let main = &main[..main.find("</main>").expect("it ends")];
        let ids = values(main, "id");
        let anchors: HashSet<String> = ids.iter().map(|&id| id.to_owned()).collect();
        assert_eq!(anchors.len(), ids.len(), "{name}: an anchor twice");
        assert!(!main.contains("class=\"boring\""), "{name}: mdBook hides a line");
        let links = values(main, "href").into_iter().map(str::to_owned).collect();
        pages.insert(name, (anchors, links));
    }
    assert!(pages.contains_key("print.html") && pages.contains_key("files.html"));
    assert_eq!(dead(&pages, &out), Vec::<String>::new());
    terms(&pages, &out);
    search(&out);
    whole_files(&Book::load(&root()), &out);
}

/// Each chapter leads to the glossary from the first use of a term, and from no other; most of what
/// the glossary explains is led to from somewhere.
fn terms(pages: &HashMap<String, (HashSet<String>, Vec<String>)>, out: &Path) {
    let glossary = "appendix/glossary.html";
    let mut met = HashSet::new();
    for page in pages.keys().filter(|page| !page.starts_with("code/") && *page != "print.html") {
        let html = fs::read_to_string(out.join(page)).expect("a page");
        let mut here = HashSet::new();
        for link in html.split("<a class=\"term\" href=\"").skip(1) {
            let anchor = link.split(['#', '"']).nth(1).expect("an anchor");
            assert!(here.insert(anchor.to_owned()), "{page}: {anchor} twice");
            assert_ne!(page, glossary);
        }
        met.extend(here);
    }
    let html = fs::read_to_string(out.join(glossary)).expect("the glossary");
    let all: HashSet<String> = html
        .split("<dt id=\"")
        .skip(1)
        .filter_map(|dt| dt.split('"').next())
        .map(str::to_owned)
        .collect();
    assert!(all.len() > 100, "{} terms", all.len());
    // Some stand only in headings and in code, and everyday words maybe never in italics.
    let mut unused: Vec<_> = all.difference(&met).collect();
    unused.sort();
    assert!(unused.len() * 6 < all.len(), "no chapter leads to {unused:?}");
}

/// The search index is whole without what it had twice.
fn search(out: &Path) {
    let entries = fs::read_dir(out).expect("the pages").flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| path.to_string_lossy().contains("/searchindex-");
    let path = entries.filter(|path| path.is_file()).find(named).expect("a search index");
    let index = fs::read_to_string(path).expect("the search index");
    assert!(index.len() < 10_000_000, "{} bytes", index.len());
    let (from, to) = (index.find("JSON.parse('"), index.rfind("')"));
    let json = &index[from.expect("its text") + 12..to.expect("its end")];
    let json = json.replace("\\'", "'").replace("\\\\", "\\");
    let index: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let fields = index["index"]["index"].as_object().expect("trees of words");
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["breadcrumbs", "title"]);
    // A word that stands in a text, far from any title: each letter is a branch of the tree.
    let mut node = &fields["breadcrumbs"]["root"];
    for letter in ["g", "u", "e", "s", "s"] {
        node = &node[letter];
    }
    assert!(node["df"].as_u64().is_some_and(|sections| sections > 0), "{node}");
}

/// Every file has its page with all of its lines, each number in a link to its chunk; and the list
/// of files says of each piece what the expansion did.
fn whole_files(book: &Book, out: &Path) {
    for (id, output) in (0..).map(tangle::OutputId).zip(book.outputs()) {
        let path = out.join("code").join(format!("{}.html", output.path));
        let html = fs::read_to_string(&path).expect("the page of a file");
        let numbers = html.matches("<span id=\"L").count();
        assert_eq!(numbers, output.lines as usize, "{}", output.path);
        let mut links = html.split("<a href=\"").filter(|link| link.contains("<span id=\"L"));
        for line in 1..=output.lines {
            let origin = book.origin(id, line).expect("it comes from somewhere");
            let name = book.chunk(book.part(origin.part).chunk).target.name();
            let mark = format!("<span id=\"L{line}\">");
            // The link of the line before may hold this one, too.
            let link = links.clone().find(|link| link.contains(&mark)).expect("a link");
            let anchor = link.split(['#', '"']).nth(1).unwrap_or_default();
            let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
            let name: String = name.chars().map(plain).collect();
            assert!(anchor.contains(&name), "{}:{line} is linked to {anchor}", output.path);
            if !link.contains(&format!("<span id=\"L{}\">", line + 1)) {
                links.next();
            }
        }
    }
    let files = fs::read_to_string(out.join("files.html")).expect("the list of files");
    let rows = files.split("<li style=\"--depth:").skip(1);
    let lines = |row: &str| Some(row.split_once('>')?.1.split_once('<')?.0.to_owned());
    let mut rows: Vec<String> = rows.filter_map(lines).collect();
    let mut wanted: Vec<String> = Vec::new();
    for (index, _) in book.parts().iter().enumerate() {
        let part = tangle::PartId(u32::try_from(index).expect("few parts"));
        for place in book.placements(part) {
            wanted.push(match place.last.checked_sub(place.first) {
                None => "no lines".to_owned(),
                Some(0) => place.first.to_string(),
                Some(_) => format!("{}\u{2013}{}", place.first, place.last),
            });
        }
    }
    rows.sort();
    wanted.sort();
    assert_eq!(rows, wanted);
    let roots = book.chunks().iter().filter(|chunk| matches!(chunk.target, Target::File(_)));
    assert_eq!(files.matches("<h3 id=\"file-").count(), roots.count());
}
