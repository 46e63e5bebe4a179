// SPDX-License-Identifier: GPL-2.0

//! Writes the outputs: only what changed, never half a file, and nothing that is not ours.
//!
//! `.tangle/state.json` remembers the hash of each output as it was written. A file on the disk
//! with another hash was changed by somebody, and then nothing at all is written. Before the first
//! output is touched the state also notes the hashes that are about to be written, so that an
//! interrupted run is not taken for somebody's edit.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base;
use crate::book::Book;
use crate::config::Input;
use crate::map::{self, Map};
use crate::problem::{Finding, Problem};
use crate::select::Selection;
use crate::source::{Place, hash};
use crate::target;

/// Where tangle keeps its records, from the project root.
pub const FOLDER: &str = ".tangle";
/// The hashes of what was written.
pub const STATE: &str = ".tangle/state.json";
const LOCK: &str = ".tangle/lock";
const KEPT: &str = ".tangle/kept";
/// How the name of a file ends that is about to take another's place.
const NEW: &str = ".new";
const VERSION: u32 = 1;

/// A hash, as it stands in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Hash(#[serde(with = "map::hex")] u128);

/// What tangle remembers from run to run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// [`Input::key`] of the last run that left everything in order.
    inputs: Option<Hash>,
    /// Which chapters and variants counted in the last run.
    #[serde(default, skip_serializing_if = "Selection::is_whole")]
    selection: Selection,
    /// Git's index then, by length and time of change.
    index: Option<(u64, String)>,
    /// What the texts kept in `.tangle/written` are: a hash of the hashes of then.
    #[serde(default)]
    kept: Option<Hash>,
    /// Each output with its hash.
    outputs: BTreeMap<String, Hash>,
    /// Outputs that a run was about to write and may not have written.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pending: BTreeMap<String, Hash>,
}

impl State {
    pub(crate) fn read(root: &Path) -> Self {
        let state: Option<Self> =
            fs::read(root.join(STATE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        state.filter(|state| state.version == VERSION).unwrap_or_default()
    }

    fn write(&self, root: &Path) -> Result<(), Problem> {
        let mut text = serde_json::to_vec(self).map_err(|e| failed("write", STATE, &e.into()))?;
        text.push(b'\n');
        replace(root, STATE, &text)
    }

    /// Whether tangle wrote a file with this hash at this path.
    pub(crate) fn wrote(&self, path: &str, hash: u128) -> bool {
        [self.outputs.get(path), self.pending.get(path)].contains(&Some(&Hash(hash)))
    }

    pub(crate) fn knows(&self, path: &str) -> bool {
        self.outputs.contains_key(path) || self.pending.contains_key(path)
    }

    /// Which chapters and variants the outputs are of.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Every path that tangle wrote or was about to write.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &String> {
        let more = self.pending.keys().filter(|path| !self.outputs.contains_key(*path));
        self.outputs.keys().chain(more)
    }

    /// The hash of what was written at a path; nothing if a run was interrupted and it may be one
    /// or the other.
    pub(crate) fn written(&self, path: &str) -> Option<u128> {
        let written = self.outputs.get(path)?;
        let pending = self.pending.get(path);
        pending.is_none_or(|pending| pending == written).then_some(written.0)
    }

    /// Takes a file as it is on the disk for one that may be written over.
    pub(crate) fn accept(&mut self, path: &str, hash: u128) {
        self.outputs.insert(path.to_owned(), Hash(hash));
    }
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Number of outputs.
    pub files: usize,
    /// Outputs written.
    pub written: Vec<String>,
    /// Outputs that no chapter writes any more, removed.
    pub removed: Vec<String>,
    /// Files that `--force` wrote over or removed, and where their copies are.
    pub kept: Vec<(String, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.files;
        let plural = if files == 1 { "" } else { "s" };
        write!(f, "tangle: {files} file{plural}, ")?;
        match (self.written.len(), self.removed.len()) {
            (0, 0) => f.write_str("nothing changed"),
            (written, 0) => write!(f, "{written} written"),
            (written, removed) => write!(f, "{written} written, {removed} removed"),
        }
    }
}

/// A run: the book where it had to be built, what it found, what it did.
#[derive(Debug)]
pub struct Run {
    /// What was wrong; when any of it is an error nothing was written.
    pub findings: Vec<Finding>,
    /// The sources the findings are about.
    pub sources: Vec<crate::source::Source>,
    /// What was done, if nothing was wrong.
    pub report: Option<Report>,
    /// The rest of the book. To give it back piece by piece takes as long as to build it, and
    /// whoever ends after a run can leave that to the system.
    _book: Option<Box<Book>>,
}

/// How to run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Write over what was changed by hand, after putting a copy into `.tangle/kept/`.
    pub force: bool,
    /// Which chapters and variants count.
    pub selection: Selection,
    /// Another folder than that of `book.toml` for the outputs, with records of its own.
    pub out: Option<PathBuf>,
    /// Files that are left as they are if they were changed by hand, and are no reason to stop.
    pub(crate) leave: BTreeSet<String>,
}

/// Reads the book in `root` and writes its outputs.
#[must_use]
pub fn run(root: &Path, options: &Options) -> Run {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let out = options.out.as_deref().map(|out| output_folder(&Input::read(&root), out));
    let out = match out.transpose() {
        Ok(out) => out,
        Err(problem) => {
            let findings = vec![Finding::nowhere(problem)];
            return Run { findings, sources: Vec::new(), report: None, _book: None };
        }
    };
    let folder = out.as_deref().unwrap_or(&root);
    // Before anything is read: of two runs the later one has the later chapters. Where there can
    // be no lock nothing can be written, which matters only if there is something to write.
    let locked = lock(folder);
    let input = Input::read(&root);
    let state = State::read(folder);
    let key = options.selection.key(input.key());
    if let Some(report) = unchanged(&input, &state, key, folder) {
        let Input { findings, sources, .. } = input;
        return Run { findings, sources, report: Some(report), _book: None };
    }
    let mut book = Book::checked_with(input, &options.selection, out.as_deref());
    let mut findings = book.findings().to_vec();
    let mut report = None;
    if !book.has_errors() {
        let locked = locked.map_err(|problem| vec![Finding::nowhere(problem)]);
        match locked.and_then(|_lock| write_locked(&book, key, state, options)) {
            Ok(done) => report = Some(done),
            Err(more) => findings.extend(more),
        }
    }
    let sources = book.take_sources();
    Run { findings, sources, report, _book: Some(Box::new(book)) }
}

/// A folder for outputs, absolute. It is made if it does not exist; one with other people's files in
/// it is none, and neither is one that the book or another output may be in.
fn output_folder(input: &Input, given: &Path) -> Result<PathBuf, Problem> {
    let refused = |reason| {
        let folder = given.display().to_string();
        Problem::BadFolder { folder, reason }
    };
    let io = |action| move |error: io::Error| failed(action, &given.display().to_string(), &error);
    if given.exists() && !given.is_dir() {
        return Err(refused("it is a file"));
    }
    let made = !given.exists();
    fs::create_dir_all(given).map_err(io("create"))?;
    let real = given.canonicalize().map_err(io("read"))?;
    let reason = if input.root.starts_with(&real) {
        Some("the book is in it")
    } else if input.sources.iter().any(|source| {
        let folder = source.path.rsplit_once('/').map(|(folder, _)| input.root.join(folder));
        folder.is_some_and(|folder| real.starts_with(folder))
    }) {
        Some("it is among the chapters")
    } else if [".git", FOLDER].iter().any(|name| real.starts_with(input.root.join(name))) {
        Some("git's and tangle's own records are there")
    } else if !real.join(STATE).is_file() && !only_records(&real).map_err(io("read"))? {
        Some("it has files that tangle did not write")
    } else {
        None
    };
    match reason {
        Some(reason) => {
            if made {
                let _ = fs::remove_dir(&real);
            }
            Err(refused(reason))
        }
        None => Ok(real),
    }
}

/// Whether a folder holds nothing, or only what an interrupted first run left.
fn only_records(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if entry?.file_name() != FOLDER {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The quick way out: the same inputs as last time, and all outputs as they were written.
fn unchanged(input: &Input, state: &State, key: u128, folder: &Path) -> Option<Report> {
    let same = input.findings.is_empty()
        && state.pending.is_empty()
        && state.inputs == Some(Hash(key))
        && state.index == index(folder)
        && folder.join(map::PATH).is_file();
    if !same {
        return None;
    }
    // One buffer for all: fresh memory costs more than to read into it.
    let mut bytes = Vec::new();
    for (path, &Hash(written)) in &state.outputs {
        read_plain(&folder.join(path), &mut bytes).ok()?;
        if hash(&bytes) != written {
            return None;
        }
    }
    Some(Report { files: state.outputs.len(), ..Report::default() })
}

/// Reads a plain file. A link is none.
fn read_plain(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut file = fs::File::open(path)?;
    bytes.clear();
    // To its end, however long it is by then.
    bytes.resize(usize::try_from(meta.len()).unwrap_or(0) + 1, 0);
    let mut len = 0;
    loop {
        match io::Read::read(&mut file, &mut bytes[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if len == bytes.len() {
            bytes.resize(2 * len, 0);
        }
    }
    bytes.truncate(len);
    Ok(())
}

fn index(root: &Path) -> Option<(u64, String)> {
    target::index_stamp(root).map(|(len, time)| (len, time.to_string()))
}

/// What lies where an output belongs.
pub(crate) enum OnDisk {
    Nothing,
    /// A file with these bytes.
    File(Vec<u8>),
    /// Something that is no plain file.
    Other(&'static str),
}

pub(crate) fn on_disk(path: &Path) -> Result<OnDisk, io::Error> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        // A file where a folder should be is found when the folder is made, and a name that is too
        // long when the file is written.
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename => return Ok(OnDisk::Nothing),
            _ => return Err(e),
        },
    };
    if meta.is_dir() {
        Ok(OnDisk::Other("it is a folder"))
    } else if meta.is_symlink() {
        Ok(OnDisk::Other("it is a symbolic link"))
    } else if meta.is_file() {
        Ok(OnDisk::File(fs::read(path)?))
    } else {
        Ok(OnDisk::Other("it is no plain file"))
    }
}

/// What has to be done to bring the disk up to date.
#[derive(Default)]
struct Plan {
    /// What is there and is tangle's own, each with its hash.
    found: Vec<(String, u128)>,
    /// Indices of outputs to write.
    write: Vec<usize>,
    /// Stale outputs to remove.
    remove: Vec<String>,
    /// Those of them in whose place is a folder of nothing but stale outputs.
    in_the_way: Vec<usize>,
    /// Files that were changed by hand and are left so.
    left: Vec<String>,
    /// Files that `--force` copies away first.
    keep: Vec<String>,
    /// Why nothing may be done.
    conflicts: Vec<Finding>,
}

/// Waits until no other run writes below `root`; the others wait until what comes back is dropped.
pub(crate) fn lock(root: &Path) -> Result<fs::File, Problem> {
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder).map_err(|e| failed("create", FOLDER, &e))?;
    // It is not emptied: that would count as a change of it.
    let lock =
        fs::OpenOptions::new().write(true).create(true).truncate(false).open(root.join(LOCK));
    let lock = lock.map_err(|e| failed("create", LOCK, &e))?;
    lock.lock().map_err(|e| failed("lock", LOCK, &e))?;
    Ok(lock)
}

/// Removes what a run that was killed had not yet put in its place.
fn remove_left_over(root: &Path) {
    let Ok(entries) = fs::read_dir(root.join(FOLDER)) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().ends_with(NEW) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Brings the disk up to date, while the lock is held.
pub(crate) fn write_locked(
    book: &Book,
    key: u128,
    mut state: State,
    options: &Options,
) -> Result<Report, Vec<Finding>> {
    let root = book.out();
    let one = |problem| vec![Finding::nowhere(problem)];
    let half = |problem| vec![Finding::nowhere(problem), Finding::nowhere(Problem::HalfWay)];
    let plan = plan(book, &state, options)?;
    if !plan.conflicts.is_empty() {
        return Err(plan.conflicts);
    }
    let mut report = Report { files: book.outputs().len(), ..Report::default() };
    for path in &plan.keep {
        let copy = keep(root, path).map_err(one)?;
        report.kept.push((path.clone(), copy));
    }
    let mut hashes: BTreeMap<String, Hash> = book
        .outputs()
        .iter()
        .map(|output| (output.path.clone(), Hash(hash(output.text.as_bytes()))))
        .collect();
    for path in &plan.left {
        // They stay what they are: changed since they were written as they were written then.
        match state.outputs.get(path) {
            Some(&written) => hashes.insert(path.clone(), written),
            None => hashes.remove(path),
        };
    }
    if !plan.write.is_empty() || !plan.remove.is_empty() {
        state.version = VERSION;
        state.inputs = None;
        // After a run that was killed some files are of an older run than others. If this one is
        // killed, too, each of them is still known.
        let found = plan.found.iter().map(|(path, hash)| (path.clone(), Hash(*hash)));
        state.outputs.extend(found);
        state.pending.clone_from(&hashes);
        remove_left_over(root);
        state.write(root).map_err(half)?;
    }
    let kept = Hash(hash(&serde_json::to_vec(&hashes).unwrap_or_default()));
    if state.kept != Some(kept) || !root.join(base::PATH).is_file() {
        write_base(book, &plan, &state).map_err(half)?;
    }
    for path in &plan.remove {
        remove(root, path).map_err(half)?;
        report.removed.push(path.clone());
    }
    let mut made = "";
    for &index in &plan.write {
        let output = &book.outputs()[index];
        // Outputs are sorted, so those of one folder mostly follow one another.
        let folder = output.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder.is_empty() || folder != made || plan.in_the_way.contains(&index) {
            make_folder(root, &output.path).map_err(half)?;
            made = folder;
        }
        replace(root, &output.path, output.text.as_bytes()).map_err(half)?;
        report.written.push(output.path.clone());
    }
    write_map(book).map_err(half)?;
    let quiet = book.findings().is_empty();
    let state = State {
        version: VERSION,
        inputs: quiet.then_some(Hash(key)),
        selection: book.selection().clone(),
        index: index(root),
        kept: Some(kept),
        outputs: hashes,
        pending: BTreeMap::new(),
    };
    state.write(root).map_err(half)?;
    Ok(report)
}

/// Whether the disk could be brought up to date.
pub(crate) fn check(book: &Book, state: &State) -> Result<(), Vec<Finding>> {
    let plan = plan(book, state, &Options::default())?;
    if plan.conflicts.is_empty() { Ok(()) } else { Err(plan.conflicts) }
}

fn plan(book: &Book, state: &State, options: &Options) -> Result<Plan, Vec<Finding>> {
    let root = book.out();
    let mut plan = Plan::default();
    let mut stale: Vec<&String> = state.paths().collect();
    stale.sort();
    stale.retain(|path| book.output_named(path).is_none());
    for path in stale {
        // A record from elsewhere must not make tangle remove what is not below the root.
        let plain = crate::config::normal(Path::new(path)).as_deref() == Some(path);
        if !plain || !inside(root, path) || target::reserved(book, path).is_some() {
            continue;
        }
        match on_disk(&root.join(path)) {
            Ok(OnDisk::Nothing) => {}
            Ok(OnDisk::File(bytes)) if state.wrote(path, hash(&bytes)) => {
                plan.found.push((path.clone(), hash(&bytes)));
                plan.remove.push(path.clone());
            }
            Ok(OnDisk::File(_)) if options.force => {
                plan.keep.push(path.clone());
                plan.remove.push(path.clone());
            }
            Ok(OnDisk::File(_)) if options.leave.contains(path) => plan.left.push(path.clone()),
            Ok(OnDisk::File(_)) => {
                plan.conflicts.push(Finding::nowhere(Problem::EditedStale(path.clone())));
            }
            // A folder or a link that somebody put there: not ours any more.
            Ok(OnDisk::Other(_)) => {}
            Err(error) => plan.conflicts.push(Finding::nowhere(failed("read", path, &error))),
        }
    }
    for (index, output) in book.outputs().iter().enumerate() {
        let path = &output.path;
        match on_disk(&root.join(path)) {
            Ok(OnDisk::Nothing) => {
                if let Some(finding) = blocked(book, path, &plan, output.chunk) {
                    plan.conflicts.push(finding);
                }
                plan.write.push(index);
            }
            Ok(OnDisk::File(bytes)) if bytes == output.text.as_bytes() => {}
            Ok(OnDisk::File(bytes)) if state.wrote(path, hash(&bytes)) => {
                plan.found.push((path.clone(), hash(&bytes)));
                plan.write.push(index);
            }
            Ok(OnDisk::File(_) | OnDisk::Other(_)) if options.leave.contains(path) => {
                plan.left.push(path.clone());
            }
            Ok(OnDisk::File(_)) if options.force => {
                plan.keep.push(path.clone());
                plan.write.push(index);
            }
            Ok(OnDisk::File(bytes)) if state.knows(path) => {
                plan.conflicts.push(edited(book, index, &bytes));
            }
            Ok(OnDisk::File(_)) => {
                let reason = "tangle did not write it";
                plan.conflicts.push(foreign(book, path, reason, output.chunk));
            }
            Ok(OnDisk::Other(reason)) => {
                // A folder that holds nothing but stale outputs goes with them.
                let inside = format!("{path}/");
                let goes = plan.remove.iter().any(|stale| stale.starts_with(&inside))
                    && only_stale(root, path, &plan.remove);
                if goes {
                    plan.write.push(index);
                    plan.in_the_way.push(index);
                } else {
                    plan.conflicts.push(foreign(book, path, reason, output.chunk));
                }
            }
            Err(error) => plan.conflicts.push(Finding::nowhere(failed("read", path, &error))),
        }
    }
    Ok(plan)
}

/// Whether the folder of a path really lies below the root, or does not exist.
fn inside(root: &Path, path: &str) -> bool {
    let full = root.join(path);
    let folder = full.parent().map(Path::canonicalize);
    folder.is_some_and(|real| real.map_or(true, |real| real.starts_with(root)))
}

fn foreign(book: &Book, path: &str, reason: &'static str, chunk: crate::book::ChunkId) -> Finding {
    let problem = Problem::Foreign { path: path.to_owned(), reason };
    Finding::error(problem, book.first_place(chunk))
}

/// A file where a folder of `path` must be.
fn blocked(book: &Book, path: &str, plan: &Plan, chunk: crate::book::ChunkId) -> Option<Finding> {
    path.match_indices('/').map(|(slash, _)| &path[..slash]).find_map(|folder| {
        let meta = fs::symlink_metadata(book.out().join(folder)).ok()?;
        let ours = plan.remove.iter().any(|stale| stale == folder);
        (meta.is_file() && !ours)
            .then(|| foreign(book, folder, "it is a file where a folder must be", chunk))
    })
}

/// Whether a folder holds nothing but files that are about to be removed.
fn only_stale(root: &Path, folder: &str, stale: &[String]) -> bool {
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return false };
    entries.flatten().all(|entry| {
        let Ok(name) = entry.file_name().into_string() else { return false };
        let path = format!("{folder}/{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => only_stale(root, &path, stale),
            _ => stale.contains(&path),
        }
    })
}

/// The finding for an output that was changed by hand, at the line of the chapter that was meant.
fn edited(book: &Book, index: usize, bytes: &[u8]) -> Finding {
    let output = &book.outputs()[index];
    let theirs = String::from_utf8_lossy(bytes);
    let same = output.text.lines().zip(theirs.lines()).take_while(|(a, b)| a == b).count();
    let line = u32::try_from(same + 1).unwrap_or(u32::MAX);
    let problem = Problem::Edited { path: output.path.clone(), line: Some(line) };
    let id = book.output_named(&output.path);
    // A line added at the end belongs to the last line there is.
    let origin = id.and_then(|id| book.origin(id, line).or_else(|| book.origin(id, output.lines)));
    let at = match origin {
        Some(origin) => {
            Place { source: origin.source, span: book.source(origin.source).line_span(origin.line) }
        }
        None => book.first_place(output.chunk),
    };
    Finding::error(problem, at)
}

/// Keeps what is about to be written, for [`crate::sync`].
fn write_base(book: &Book, plan: &Plan, state: &State) -> Result<(), Problem> {
    let root = book.out();
    let mut texts: Vec<(&str, Cow<'_, str>)> = Vec::with_capacity(book.outputs().len());
    for output in book.outputs() {
        texts.push((&output.path, Cow::Borrowed(&output.text)));
    }
    for path in &plan.left {
        texts.retain(|(name, _)| name != path);
        let old = state.written(path).and_then(|written| base::find(root, path, written));
        texts.extend(old.map(|old| (path.as_str(), Cow::Owned(old))));
    }
    replace(root, base::PATH, &base::encode(&texts))
}

fn write_map(book: &Book) -> Result<(), Problem> {
    let mut text =
        serde_json::to_vec(&Map::of(book)).map_err(|e| failed("write", map::PATH, &e.into()))?;
    text.push(b'\n');
    let same = fs::read(book.out().join(map::PATH)).is_ok_and(|old| old == text);
    if same { Ok(()) } else { replace(book.out(), map::PATH, &text) }
}

pub(crate) fn failed(action: &'static str, path: &str, error: &io::Error) -> Problem {
    Problem::Io { action, path: path.to_owned(), reason: error.to_string() }
}

fn make_folder(root: &Path, path: &str) -> Result<(), Problem> {
    let full = root.join(path);
    // A folder in the place of a file is empty by now, or the plan would have refused.
    if full.is_dir() {
        remove_empty(&full);
    }
    match full.parent() {
        Some(folder) => {
            fs::create_dir_all(folder).map_err(|e| failed("create the folder of", path, &e))
        }
        None => Ok(()),
    }
}

fn remove_empty(folder: &Path) {
    if let Ok(entries) = fs::read_dir(folder) {
        for entry in entries.flatten() {
            remove_empty(&entry.path());
        }
    }
    // Fails for a folder with files in it, and then the write says so.
    let _ = fs::remove_dir(folder);
}

/// Puts a whole file in place of another in one step.
pub(crate) fn replace(root: &Path, path: &str, bytes: &[u8]) -> Result<(), Problem> {
    let full = root.join(path);
    let temporary = root.join(format!("{FOLDER}/{}{NEW}", std::process::id()));
    // A script that was made executable stays so.
    let mode = fs::metadata(&full).map(|meta| meta.permissions());
    let written = fs::write(&temporary, bytes).and_then(|()| match mode {
        Ok(mode) => fs::set_permissions(&temporary, mode),
        Err(_) => Ok(()),
    });
    let done = written.and_then(|()| match fs::rename(&temporary, &full) {
        // The target lies on another file system: only there can it be renamed.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let beside = beside(&full);
            fs::copy(&temporary, &beside)?;
            fs::remove_file(&temporary)?;
            fs::rename(&beside, &full)
        }
        done => done,
    });
    done.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed("write", path, &error)
    })
}

fn beside(full: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(full.file_name().unwrap_or_default());
    name.push(format!(".{}{NEW}", std::process::id()));
    full.with_file_name(name)
}

/// Removes a stale output and the folders that it leaves empty.
fn remove(root: &Path, path: &str) -> Result<(), Problem> {
    let full = root.join(path);
    fs::remove_file(&full).map_err(|e| failed("remove", path, &e))?;
    for folder in full.ancestors().skip(1).take_while(|folder| *folder != root) {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

/// Copies a file into `.tangle/kept/`, under a name that says which version of it it is.
pub(crate) fn keep(root: &Path, path: &str) -> Result<String, Problem> {
    let bytes = fs::read(root.join(path)).map_err(|e| failed("read", path, &e))?;
    let copy = format!("{KEPT}/{path}.{:08x}", hash(&bytes) >> 96);
    make_folder(root, &copy)?;
    replace(root, &copy, &bytes)?;
    Ok(copy)
}

/// What on the disk is not as the book says: each path with what is wrong with it.
#[must_use]
pub(crate) fn out_of_date(book: &Book) -> Vec<(String, &'static str)> {
    let root = book.out();
    let state = State::read(root);
    let mut found = Vec::new();
    for output in book.outputs() {
        match fs::read(root.join(&output.path)) {
            Ok(bytes) if bytes == output.text.as_bytes() => {}
            Ok(_) => found.push((output.path.clone(), "is not what the chapters say")),
            Err(_) => found.push((output.path.clone(), "is missing")),
        }
    }
    for path in state.outputs.keys() {
        if book.output_named(path).is_none() && root.join(path).exists() {
            found.push((path.clone(), "is stale: no chapter writes it any more"));
        }
    }
    found
}
