// SPDX-License-Identifier: GPL-2.0

//! Rewrites what compilers say about generated files, so that it is about the chapters.
//!
//! It knows the text of rustc with its line numbers in the margin, the short `path:line:col` form
//! that rustc, gcc, as, ld and make share, rustc's and cargo's JSON, and the messages of panics.
//! Four kinds of message name no line at all, and it is looked for: an oops or a warning of the
//! kernel (a function and an offset, see [`crate::symbols`]), a symbol that a module uses and
//! nobody has, a file that make does not know how to make, and a word in a manifest of cargo's.
//! Everything else passes unchanged.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::config::normal;
use crate::map::Map;
use crate::source::{Role, Source};
use crate::symbols::{self, Frame, Lines, Problem};

/// A filter for one stream of lines.
#[derive(Debug)]
pub struct Filter {
    map: Arc<Map>,
    root: PathBuf,
    cwd: PathBuf,
    /// Folders that make said it entered and has not left.
    entered: Vec<PathBuf>,
    /// What a path in a message was found to be.
    known: HashMap<String, Option<String>>,
    /// Lines of one message of rustc, kept until it ends: the width of its margin may change.
    message: Vec<String>,
    /// The output that gcc spoke about last: its margin has line numbers too.
    spoken: Option<String>,
    chapters: HashMap<String, Option<Source>>,
    /// The kernel module that a log may be about, and what it has been found to be.
    module: PathBuf,
    objects: HashMap<PathBuf, Result<Arc<Lines>, Problem>>,
    /// A line of rust-lld's about a crate that only the next line names.
    referenced: Option<String>,
    /// The manifests that an error of cargo's has named so far.
    manifests: Vec<String>,
}

impl Filter {
    /// A filter for outputs below `root`, started in the folder `cwd`.
    #[must_use]
    pub fn new(map: impl Into<Arc<Map>>, root: &Path, cwd: &Path) -> Self {
        Self {
            map: map.into(),
            root: root.to_path_buf(),
            cwd: cwd.to_path_buf(),
            entered: Vec::new(),
            known: HashMap::new(),
            message: Vec::new(),
            spoken: None,
            chapters: HashMap::new(),
            module: symbols::default_module(root),
            objects: HashMap::new(),
            referenced: None,
            manifests: Vec::new(),
        }
    }

    /// Takes another file than `module/lguest.ko` for the module that a log is about.
    #[must_use]
    pub fn with_module(mut self, module: &Path) -> Self {
        self.module = module.to_path_buf();
        self
    }

    /// Takes one line, without its line end; gives what can be printed now.
    pub fn line(&mut self, line: &str) -> String {
        let mut out = String::new();
        if !self.message.is_empty() {
            if !plain(line).trim().is_empty() {
                self.message.push(line.to_owned());
                return out;
            }
            out.push_str(&self.finish());
        }
        if let Some(before) = self.referenced.take() {
            out.push_str(&self.reference(&before, line));
        }
        if line.trim_start().starts_with(">>> ")
            && line.ends_with(')')
            && self.find(line).is_empty()
        {
            self.referenced = Some(line.to_owned());
            return out;
        }
        if line.starts_with('{')
            && let Ok(mut value) = serde_json::from_str::<Value>(line)
        {
            self.json(&mut value);
            out.push_str(&value.to_string());
            out.push('\n');
            return out;
        }
        self.follow_make(line);
        let arrow = plain(line).trim_start().starts_with("--> ");
        if arrow && self.first_place(line).is_some() {
            self.message.push(line.to_owned());
            return out;
        }
        let text = self.places(line);
        let changed = text != line;
        out.push_str(&text);
        if !changed && let Some(place) = self.quoted(line) {
            out.push_str(&format!(" ({place})"));
        }
        out.push('\n');
        for place in self.lines_of_symbols(line) {
            out.push_str(&place);
            out.push('\n');
        }
        out
    }

    /// Gives what is still held back, at the end of the stream.
    pub fn finish(&mut self) -> String {
        let mut out = match self.referenced.take() {
            Some(line) => line + "\n",
            None => String::new(),
        };
        let lines = std::mem::take(&mut self.message);
        out.push_str(&self.message_text(&lines));
        out
    }

    /// Whether a message is held back.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.message.is_empty() || self.referenced.is_some()
    }

    /// What a log says by symbol and offset, or modpost by symbol alone: a line for each place.
    fn lines_of_symbols(&mut self, line: &str) -> Vec<String> {
        if let Some(symbol) = undefined(line) {
            let Ok(lines) = self.object(&self.module.with_extension("o")) else {
                return Vec::new();
            };
            let uses = lines.uses(symbol);
            return uses.iter().filter_map(|frame| self.said(frame, "used at")).collect();
        }
        let Some((spot, _, module)) = symbols::spot_in(line) else { return Vec::new() };
        // What names no module is the kernel's own.
        if module.is_none() || module != self.module.file_stem().and_then(|name| name.to_str()) {
            return Vec::new();
        }
        match self.object(&self.module.clone()).and_then(|lines| lines.find(&spot)) {
            Ok(frames) => frames.iter().filter_map(|frame| self.said(frame, "at")).collect(),
            Err(problem) => vec![format!("{FURTHER}({problem})")],
        }
    }

    fn object(&mut self, path: &Path) -> Result<Arc<Lines>, Problem> {
        let read = || Lines::read(path).map(Arc::new);
        self.objects.entry(path.to_path_buf()).or_insert_with(read).clone()
    }

    /// A line that says where a frame is, if that is in a chapter.
    fn said(&self, frame: &Frame, how: &str) -> Option<String> {
        let (path, found) = self.map.of_source(&frame.file, frame.line)?;
        let (chapter, line) = (found.path, found.line);
        let within = frame.function.as_ref().map_or(String::new(), |name| format!(", in {name}"));
        Some(format!("{FURTHER}{how} {chapter}:{line} ({path}:{}{within})", frame.line))
    }

    /// A line of rust-lld's, with the crate from the line after it.
    fn reference(&mut self, line: &str, next: &str) -> String {
        let short = line.rfind(" (").map(|at| (at + 2, line.len() - 1));
        let place = short.and_then(|(start, end)| {
            let (path, number) = line[start..end].rsplit_once(':')?;
            let object = next.trim_start().strip_prefix(">>>")?.rsplit_once("/deps/")?.1;
            let object = object.strip_prefix("lib").unwrap_or(object);
            let path = format!("{}/{path}", object.split_once('-')?.0);
            let found = self.map.to_chapter(&path, number.parse().ok()?, None)?;
            let (chapter, at) = (found.path, found.line);
            Some(format!("{}{chapter}:{at} ({path}:{number})\n", &line[..start - 1]))
        });
        place.unwrap_or_else(|| format!("{line}\n"))
    }

    /// The place of something in a manifest or a makefile that a message quotes without its line.
    fn quoted(&mut self, line: &str) -> Option<String> {
        if line.starts_with("error") || line.starts_with("warning") {
            self.manifests.clear();
        }
        let mut among = self.manifests.clone();
        let quoted = if line.contains("*** No rule to make target '") {
            among = self.map.files.keys().filter(|path| is_makefile(path)).cloned().collect();
            vec![line.split('\'').nth(1)?]
        } else {
            line.split('`').skip(1).step_by(2).collect()
        };
        for word in &quoted {
            let manifest = ["", "/Cargo.toml"].iter().find_map(|end| {
                let found = self.output(&format!("{word}{end}"))?;
                found.ends_with("Cargo.toml").then_some(found)
            });
            if let Some(manifest) = manifest {
                self.manifests.push(manifest);
                return None;
            }
        }
        // What stands there once says more than what stands there often.
        let mut best: Option<(usize, String)> = None;
        for word in quoted {
            let Some((count, path, number)) = self.word(&among, word) else { continue };
            let Some(found) = self.map.to_chapter(&path, number, None) else { continue };
            if best.as_ref().is_none_or(|(least, _)| count < *least) {
                let place = format!("{}:{}, {path}:{number}", found.path, found.line);
                best = Some((count, place));
            }
        }
        best.map(|(_, place)| place)
    }

    /// How often a word, or the longest end of a path, is in the last of these files that has it,
    /// and its first line there.
    fn word(&self, files: &[String], word: &str) -> Option<(usize, String, u32)> {
        let word = word.trim_end_matches("/Cargo.toml");
        let parts: Vec<&str> = word.trim_start_matches("../").split('/').collect();
        let ends = (0..parts.len()).map(|from| parts[from..].join("/"));
        for wanted in ends.filter(|end| !end.is_empty()) {
            for path in files.iter().rev() {
                let text = std::fs::read_to_string(self.root.join(path)).unwrap_or_default();
                let lines = text.lines().zip(1..);
                let mut found = lines.filter(|(line, _)| has_word(line, &wanted));
                if let Some((_, number)) = found.next() {
                    return Some((1 + found.count(), path.clone(), number));
                }
            }
        }
        None
    }

    fn follow_make(&mut self, line: &str) {
        let Some(at) = line.find(" directory '") else { return };
        let folder = line[at + " directory '".len()..].trim_end().trim_end_matches('\'');
        if line[..at].ends_with(": Entering") {
            self.entered.push(PathBuf::from(folder));
            self.known.clear();
        } else if line[..at].ends_with(": Leaving") {
            self.entered.pop();
            self.known.clear();
        }
    }

    /// The output that a path in a message means.
    fn output(&mut self, path: &str) -> Option<String> {
        if let Some(known) = self.known.get(path) {
            return known.clone();
        }
        let found = self.look_up(path);
        self.known.insert(path.to_owned(), found.clone());
        found
    }

    fn look_up(&self, path: &str) -> Option<String> {
        let ours = |full: &Path| {
            let below = full.strip_prefix(&self.root).ok()?;
            normal(below).filter(|path| self.map.files.contains_key(path))
        };
        let given = Path::new(path);
        if given.is_absolute() {
            let lexical = PathBuf::from(format!("/{}", normal(given.strip_prefix("/").ok()?)?));
            return ours(&lexical).or_else(|| ours(&lexical.canonicalize().ok()?));
        }
        let from = self.entered.last().into_iter().chain([&self.cwd, &self.root]);
        for folder in from {
            let full = folder.join(given);
            let lexical =
                normal(full.strip_prefix("/").ok()?).map(|p| PathBuf::from(format!("/{p}")));
            if let Some(found) = lexical.and_then(|full| ours(&full)) {
                return Some(found);
            }
            if full.exists() {
                return None;
            }
        }
        // A tool that ran elsewhere: the path fits the end of exactly one output.
        let tail = path.trim_start_matches("../").trim_start_matches("./");
        let below = format!("/{tail}");
        let fits = |path: &&String| *path == tail || path.ends_with(&below);
        let mut fitting = self.map.files.keys().filter(fits);
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Some(one.clone()),
            _ => None,
        }
    }

    /// All places `path:line` or `path:line:col` of a line that are in outputs.
    fn find(&mut self, line: &str) -> Vec<Hit> {
        let bytes = line.as_bytes();
        let escapes = escapes(line);
        let in_path = |at: usize| {
            !escapes.iter().any(|e| e.contains(&at))
                && (bytes[at].is_ascii_alphanumeric() || b"._/+~-".contains(&bytes[at]))
        };
        let digits = |from: usize| {
            let end =
                (from..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
            line[from..end].parse::<u32>().ok().map(|number| (number, end))
        };
        // The kernel says of a module's files only what they are called in the module's folder.
        let kernel = line.contains("rust_kernel: ") || line.contains(" [lguest]");
        let mut hits = Vec::new();
        let mut at = 0;
        while let Some(colon) = bytes[at..].iter().position(|&b| b == b':').map(|n| n + at) {
            at = colon + 1;
            let start = (0..colon).rev().take_while(|&i| in_path(i)).last().unwrap_or(colon);
            let Some((number, end)) = digits(colon + 1) else { continue };
            if start == colon {
                continue;
            }
            let col = (bytes.get(end) == Some(&b':')).then(|| digits(end + 1)).flatten();
            let given = &line[start..colon];
            let near = kernel.then(|| normal(Path::new(&format!("module/{given}")))).flatten();
            let near = near.filter(|path| self.map.files.contains_key(path));
            let Some(path) = near.or_else(|| self.output(given)) else { continue };
            let end = col.map_or(end, |(_, end)| end);
            let Some(found) = self.map.to_chapter(&path, number, col.map(|(col, _)| col)) else {
                continue;
            };
            let mut place = format!("{}:{}", found.path, found.line);
            if let Some(col) = found.col {
                place.push_str(&format!(":{col}"));
            }
            hits.push(Hit { span: start..end, place, was: format!("{path}:{number}"), path });
            at = end;
        }
        hits
    }

    fn first_place(&mut self, line: &str) -> Option<Hit> {
        self.find(line).into_iter().next()
    }

    /// A line with its places rewritten, and what they were at its end.
    fn places(&mut self, line: &str) -> String {
        let hits = self.find(line);
        let Some(last) = hits.last() else {
            return self.gcc_margin(line).unwrap_or_else(|| line.to_owned());
        };
        self.spoken = Some(last.path.clone());
        let mut out = String::with_capacity(line.len() + 40);
        let mut at = 0;
        let mut was: Vec<&str> = Vec::new();
        for hit in &hits {
            out.push_str(&line[at..hit.span.start]);
            out.push_str(&hit.place);
            at = hit.span.end;
            if !was.contains(&hit.was.as_str()) {
                was.push(&hit.was);
            }
        }
        out.push_str(line[at..].trim_end());
        out.push_str(&format!(" ({})", was.join(", ")));
        out
    }

    /// A line `    3 |  code` under a message of gcc. Its margin is wide enough for any number.
    fn gcc_margin(&mut self, line: &str) -> Option<String> {
        let text = line.trim_start_matches(' ');
        let (number, rest) = text.split_once(" |")?;
        if text.len() == line.len() || number.is_empty() {
            // No margin at all, or one without a number: the message may go on.
            if !number.trim().is_empty() {
                self.spoken = None;
            }
            return None;
        }
        let found = self.map.to_chapter(self.spoken.as_ref()?, number.parse().ok()?, None)?;
        let width = line.len() - text.len() + number.len();
        Some(format!("{:>width$} |{rest}", found.line))
    }

    /// A whole message of rustc, from its first `-->` to the empty line after it.
    fn message_text(&mut self, lines: &[String]) -> String {
        let Some(first) = lines.first() else { return String::new() };
        // The margin is as wide as the longest line number; the arrow stands at its end.
        let old = plain(first).find("-->").unwrap_or(0);
        let mut file: Option<String> = None;
        // The chapter that the lines shown are from. A file has lines of many.
        let mut chapter: Option<String> = None;
        let mut shaped = Vec::with_capacity(lines.len());
        for line in lines {
            let (escape, rest) = split(line);
            let trimmed = plain(rest);
            let trimmed = trimmed.trim_start();
            if trimmed.starts_with("--> ") || trimmed.starts_with("::: ") {
                let hit = self.first_place(line);
                chapter =
                    hit.as_ref().and_then(|hit| Some(hit.place.split_once(':')?.0.to_owned()));
                file = hit.map(|hit| hit.path);
                shaped.push(Shaped::Indented(escape.to_owned(), self.places(rest)));
                continue;
            }
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number = rest[..digits].parse::<u32>().ok().filter(|_| margin(&rest[digits..]));
            if let Some(number) = number {
                let mapped = file.as_ref().and_then(|path| self.map.to_chapter(path, number, None));
                if let Some(found) = &mapped
                    && chapter.as_deref() != Some(found.path)
                {
                    let margin = " ".repeat(old);
                    let here = format!("{margin}::: {}:{}", found.path, found.line);
                    shaped.push(Shaped::Indented(String::new(), here));
                    chapter = Some(found.path.to_owned());
                }
                let number = mapped.map_or(number, |found| found.line);
                // The blanks after a number fill the margin, also within colours.
                let after = rest[digits..].to_owned();
                shaped.push(Shaped::Numbered(escape.to_owned(), number, digits, after));
            } else if escape.is_empty() && rest.starts_with(&" ".repeat(old + 1)) {
                shaped.push(Shaped::Indented(String::new(), rest.to_owned()));
            } else {
                shaped.push(Shaped::Plain(self.places(line)));
            }
        }
        let widest = shaped.iter().filter_map(|line| match line {
            Shaped::Numbered(_, number, ..) => Some(number.to_string().len()),
            _ => None,
        });
        let new = widest.max().unwrap_or(old);
        let mut out = String::new();
        for line in shaped {
            match line {
                Shaped::Plain(line) => out.push_str(&line),
                Shaped::Indented(escape, line) => {
                    let kept = line.trim_start_matches(' ');
                    let blanks = (line.len() - kept.len() + new).saturating_sub(old);
                    out.push_str(&escape);
                    out.push_str(&" ".repeat(blanks));
                    out.push_str(kept);
                }
                Shaped::Numbered(escape, number, digits, after) => {
                    let number = number.to_string();
                    out.push_str(&escape);
                    out.push_str(&number);
                    out.push_str(&refill(&after, old - digits.min(old), new - number.len()));
                }
            }
            out.push('\n');
        }
        out
    }

    /// rustc's or cargo's JSON: every span in an output, and the rendered text.
    fn json(&mut self, value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(fields) => {
                if let Some(Value::String(text)) = fields.get_mut("rendered") {
                    let mut inner = Self::new(Arc::clone(&self.map), &self.root, &self.cwd);
                    inner.entered.clone_from(&self.entered);
                    let ended = text.ends_with('\n');
                    let mut all: String = text.lines().map(|line| inner.line(line)).collect();
                    all.push_str(&inner.finish());
                    if !ended {
                        all.truncate(all.trim_end_matches('\n').len());
                    }
                    *text = all;
                }
                if fields.contains_key("file_name") && fields.contains_key("line_start") {
                    self.span(fields);
                }
                fields.iter_mut().for_each(|(_, field)| self.json(field));
            }
            _ => {}
        }
    }

    /// One span of rustc's JSON.
    fn span(&mut self, fields: &mut serde_json::Map<String, Value>) {
        let number = |key: &str| fields.get(key)?.as_u64().and_then(|n| u32::try_from(n).ok());
        let name = fields.get("file_name").and_then(Value::as_str).map(str::to_owned);
        let (Some(name), Some(line)) = (name, number("line_start")) else { return };
        let col = number("column_start");
        let ends = (number("line_end").unwrap_or(line), number("column_end"));
        let Some(path) = self.output(&name) else { return };
        let Some(start) = self.map.to_chapter(&path, line, col) else { return };
        let chapter = start.path.to_owned();
        // The end may lie in another chapter, which a span cannot say: it ends with its start then.
        let end = self.map.to_chapter(&path, ends.0, ends.1).filter(|end| end.path == chapter);
        let start = (start.line, start.col);
        let end = end.map_or(start, |end| (end.line, end.col));
        for (key, (line, col)) in [("byte_start", start), ("byte_end", end)] {
            if let Some(offset) = self.offset(&chapter, line, col.unwrap_or(1)) {
                fields.insert(key.into(), offset.into());
            }
        }
        fields.insert("file_name".into(), chapter.into());
        for (key, value) in [
            ("line_start", Some(start.0)),
            ("column_start", start.1),
            ("line_end", Some(end.0)),
            ("column_end", end.1),
        ] {
            if let Some(value) = value {
                fields.insert(key.into(), value.into());
            }
        }
    }

    /// Byte offset of a place in a chapter, if the chapter is still what it was.
    fn offset(&mut self, chapter: &str, line: u32, col: u32) -> Option<usize> {
        let hash = self.map.chapters.iter().find(|c| c.path == chapter)?.hash;
        let root = self.map.book.as_ref().unwrap_or(&self.root);
        let source = self.chapters.entry(chapter.to_owned()).or_insert_with(|| {
            let bytes = std::fs::read(root.join(chapter)).ok()?;
            Some(Source::new(chapter, Role::Chapter, bytes)).filter(|source| source.hash == hash)
        });
        let source = source.as_ref()?;
        let span = source.line_span(line);
        let mut chars = source.text[span.clone()].char_indices();
        let within = chars.nth(col as usize - 1).map_or(span.len(), |(at, _)| at);
        Some(span.start + within)
    }
}

/// What stands before a line that is added.
const FURTHER: &str = "        ";

/// The symbol that a line of modpost says nobody has.
fn undefined(line: &str) -> Option<&str> {
    let said = line.split_once("modpost: ")?.1.strip_suffix(" undefined!")?;
    let quote = if said.contains('"') { '"' } else { '\'' };
    said.split(quote).nth(1)
}

fn is_makefile(path: &str) -> bool {
    ["Kbuild", "Makefile"].contains(&path.rsplit('/').next().unwrap_or(path))
}

/// Whether a word is in a line, and not as part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let in_word = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(in_word) && !line[at + word.len()..].starts_with(in_word)
    })
}

/// A place found in a line.
struct Hit {
    span: std::ops::Range<usize>,
    /// In the chapter.
    place: String,
    /// In the output, path and line.
    was: String,
    /// The output.
    path: String,
}

/// A line of a message of rustc, by what its margin holds.
enum Shaped {
    /// Nothing of the margin.
    Plain(String),
    /// Blanks: escape codes before them, and the line.
    Indented(String, String),
    /// A number: escape codes before it, the number, its digits before, what follows.
    Numbered(String, u32, usize, String),
}

/// Whether what follows a number is the rest of a margin: blanks, then `|`, `+`, `-` or `~`.
fn margin(after: &str) -> bool {
    let text = plain(after);
    matches!(text.trim_start_matches(' ').as_bytes(), [b'|' | b'+' | b'-' | b'~', ..])
        && text.starts_with(' ')
}

/// Takes `old` blanks off the first run of blanks and puts `new` there.
fn refill(after: &str, old: usize, new: usize) -> String {
    let Some(at) = after.find(' ') else { return after.to_owned() };
    let run = after[at..].len() - after[at..].trim_start_matches(' ').len();
    let blanks = (run + new).saturating_sub(old);
    format!("{}{}{}", &after[..at], " ".repeat(blanks), &after[at + run..])
}

/// The escape codes at the start of a line, and the rest.
fn split(line: &str) -> (&str, &str) {
    let mut end = 0;
    for escape in escapes(line) {
        if escape.start != end {
            break;
        }
        end = escape.end;
    }
    line.split_at(end)
}

/// Where the escape codes for colours are in a line.
fn escapes(line: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = line[at..].find("\u{1b}[").map(|n| n + at) {
        let len = line[start + 2..].find(|c: char| c.is_ascii_alphabetic());
        let end = len.map_or(line.len(), |len| start + 2 + len + 1);
        found.push(start..end);
        at = end;
    }
    found
}

/// A line without its escape codes.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    for escape in escapes(line) {
        out.push_str(&line[at..escape.start]);
        at = escape.end;
    }
    out.push_str(&line[at..]);
    out
}
