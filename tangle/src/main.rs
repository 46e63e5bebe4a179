// SPDX-License-Identifier: GPL-2.0

//! The `tangle` command.

mod commands;

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tangle::check::Checked;
use tangle::filter::Filter;
use tangle::locate::{self, Answer, Query};
use tangle::map::Map;
use tangle::symbols::{self, Frame, Lines, Spot};
use tangle::write::{self, Options};
use tangle::{Book, Finding, Selection, check, config, weave};

use commands::{Form, count, print_findings, say};

/// Takes the code out of the chapters of a book, and finds its way back.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 done, 1 something is wrong with the book, 2 wrong usage."
)]
struct Cli {
    /// The folder of book.toml [default: the nearest one at or above the current folder]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// How what is wrong is said, on standard error
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORM")]
    message_format: Form,
    #[command(flatten)]
    tangle: TangleArgs,
    #[command(subcommand)]
    command: Option<Cmd>,
}

#[derive(clap::Args, Clone)]
struct TangleArgs {
    /// Only this chapter, named as in SUMMARY.md, those before it, and those that they need
    #[arg(long, value_name = "CHAPTER", requires = "out")]
    until: Option<String>,
    /// The starter of this lab, and the solutions of all others
    #[arg(long, value_name = "N")]
    lab: Option<u32>,
    /// Another folder for the outputs, with records of its own
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write over files that were changed by hand, after copying them to .tangle/kept/
    #[arg(long)]
    force: bool,
    /// Say nothing when all is well
    #[arg(short, long)]
    quiet: bool,
}

impl TangleArgs {
    /// With what stands before the name of the command, too.
    fn or(self, before: Self) -> Self {
        Self {
            until: self.until.or(before.until),
            lab: self.lab.or(before.lab),
            out: self.out.or(before.out),
            force: self.force || before.force,
            quiet: self.quiet || before.quiet,
        }
    }

    /// Whether any of them was given.
    fn says_something(&self) -> bool {
        let Self { until, lab, out, force, quiet } = self;
        until.is_some() || lab.is_some() || out.is_some() || *force || *quiet
    }

    fn options(&self) -> Options {
        let mut options = Options::default();
        options.force = self.force;
        options.selection = Selection { until: self.until.clone(), lab: self.lab };
        options.out.clone_from(&self.out);
        options
    }
}

#[derive(Subcommand)]
enum Cmd {
    /// Write what changed (the same as no command)
    Tangle(TangleArgs),
    Sync(commands::sync::Args),
    /// Tangle whenever a chapter is saved
    Watch {
        #[command(flatten)]
        tangle: TangleArgs,
        /// Look at the files twice a second, where the file system does not tell of changes
        #[arg(long)]
        poll: bool,
    },
    Fmt(commands::fmt::Args),
    /// Look for what CI refuses: formatting, traps of mdBook, unexplained hidden code, old outputs
    Check {
        /// Say nothing when all is well
        #[arg(short, long)]
        quiet: bool,
        /// Print the audit as JSON
        #[arg(long)]
        json: bool,
        /// Try `--until` for each chapter, too: does it name what it needs?
        #[arg(long)]
        each_chapter: bool,
    },
    /// Say where a line of a generated file comes from, or where a line of a chapter goes to
    Locate {
        /// A place in a generated file or in a chapter; or, from a kernel's log,
        /// SYMBOL+OFFSET[/SIZE], alone or in the line as it is
        #[arg(value_name = "PATH:LINE[:COL]", required = true)]
        places: Vec<Asked>,
        /// The module that a SYMBOL is in [default: module/lguest.ko]
        #[arg(long, value_name = "FILE")]
        module: Option<PathBuf>,
        /// Print JSON, one array for each place asked for
        #[arg(long)]
        json: bool,
        /// The folder that the outputs are in, if it is another than the book's
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Copy standard input to standard output, with places in generated files as places in chapters
    Filter {
        /// The folder that paths are relative to [default: the current one]
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        /// The module that a kernel's log is about [default: module/lguest.ko]
        #[arg(long, value_name = "FILE")]
        module: Option<PathBuf>,
        /// The folder that the outputs are in, if it is another than the book's
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Put captions, links and indexes into the book: mdBook runs this, see book.toml
    Weave {
        #[command(subcommand)]
        question: Option<Question>,
    },
}

/// What `locate` can be asked.
#[derive(Debug, Clone)]
enum Asked {
    Place(Query),
    Symbol(Spot),
}

impl std::str::FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match symbols::spot_in(text) {
            Some((spot, ..)) => Ok(Self::Symbol(spot)),
            None => text.parse().map(Self::Place),
        }
    }
}

#[derive(Subcommand)]
enum Question {
    /// Whether books for a renderer can be woven, as the exit status
    Supports {
        /// The renderer's name
        renderer: String,
    },
    /// Add the pages that mdBook does not make: as a renderer of mdBook's, see book.toml
    Render,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // mdBook says where the book is.
    if let Some(Cmd::Weave { question }) = &cli.command {
        return run_weave(question.as_ref(), cli.message_format);
    }
    let form = cli.message_format;
    let given = cli.root.is_some();
    let Some(root) = root(cli.root) else {
        if matches!(cli.command, Some(Cmd::Filter { .. })) && !given {
            // What a compiler says must not get lost because of where it was said.
            return done(io::copy(&mut io::stdin(), &mut io::stdout()).map(drop));
        }
        eprintln!("tangle: no book.toml here or above; say where it is with --root");
        return ExitCode::from(2);
    };
    let takes = matches!(cli.command, None | Some(Cmd::Tangle(_) | Cmd::Watch { .. }));
    if !takes && cli.tangle.says_something() {
        eprintln!("tangle: --until, --lab, --out, --force and -q stand after the command's name");
        return ExitCode::from(2);
    }
    match cli.command {
        None => tangle(&root, &cli.tangle, form),
        Some(Cmd::Tangle(args)) => tangle(&root, &args.or(cli.tangle), form),
        Some(Cmd::Sync(args)) => commands::sync::run(&root, &args, form),
        Some(Cmd::Watch { tangle, poll }) => {
            let quiet = tangle.quiet;
            commands::watch::run(&root, &tangle.or(cli.tangle).options(), poll, quiet, form)
        }
        Some(Cmd::Fmt(args)) => commands::fmt::run(&root, &args, form),
        Some(Cmd::Check { quiet, json, each_chapter }) => {
            print_checked(check::run(&root, each_chapter), quiet, json, form)
        }
        Some(Cmd::Locate { places, module, json, out }) => {
            run_locate(&folder(root, out), &places, module.as_deref(), json)
        }
        Some(Cmd::Filter { from, module, out }) => {
            done(run_filter(&folder(root, out), from.as_deref(), module.as_deref()))
        }
        Some(Cmd::Weave { question }) => run_weave(question.as_ref(), form),
    }
}

/// Where the outputs are.
fn folder(root: PathBuf, out: Option<PathBuf>) -> PathBuf {
    out.map_or(root, |out| out.canonicalize().unwrap_or(out))
}

/// A closed pipe is no reason to complain; anything else is.
fn done(result: io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("tangle: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

fn root(given: Option<PathBuf>) -> Option<PathBuf> {
    match given {
        Some(root) => root.join("book.toml").is_file().then_some(root)?.canonicalize().ok(),
        None => config::find_root(&std::env::current_dir().ok()?),
    }
}

fn tangle(root: &Path, args: &TangleArgs, form: Form) -> ExitCode {
    let run = write::run(root, &args.options());
    print_findings(form, &run.findings, &run.sources, "; nothing was written");
    let Some(report) = &run.report else { return ExitCode::FAILURE };
    for (path, copy) in &report.kept {
        eprintln!("tangle: {path} was not tangle's; a copy is {copy}");
    }
    if !args.quiet {
        say(&report.to_string());
    }
    std::mem::forget(run);
    ExitCode::SUCCESS
}

fn print_checked(checked: Checked, quiet: bool, json: bool, form: Form) -> ExitCode {
    print_findings(form, &checked.findings, &checked.sources, "");
    if let Some(audit) = checked.audit {
        if json {
            say(&serde_json::to_string(&audit).unwrap_or_default());
        } else if !quiet {
            say(&format!(
                "tangle: {} lines in {} from {}: {} shown, {} hidden with a reason, {} hidden \
                 without",
                audit.lines,
                count(audit.files, "file"),
                count(audit.blocks, "block"),
                audit.shown,
                audit.hidden,
                audit.unexplained
            ));
        }
    }
    if checked.findings.iter().any(Finding::is_error) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run_locate(root: &Path, places: &[Asked], module: Option<&Path>, json: bool) -> ExitCode {
    let Some(map) = Map::read(root) else {
        eprintln!("tangle: no map yet; run `tangle` first");
        return ExitCode::FAILURE;
    };
    let cwd = std::env::current_dir().unwrap_or_else(|_| root.to_path_buf());
    let mut status = ExitCode::SUCCESS;
    let module = module.map_or_else(|| symbols::default_module(root), Path::to_path_buf);
    for asked in places {
        let query = match asked {
            Asked::Place(query) => query,
            Asked::Symbol(spot) => {
                match Lines::read(&module).and_then(|lines| lines.find(spot)) {
                    Ok(frames) => say_frames(&map, &frames, json),
                    Err(problem) => {
                        eprintln!("tangle: {problem}");
                        status = ExitCode::FAILURE;
                    }
                }
                continue;
            }
        };
        let found = match locate::locate(&map, root, &cwd, query) {
            Answer::Places(found) => found,
            Answer::NoLine(path) => {
                let book = map.book.as_deref().unwrap_or(root);
                eprintln!("{}", no_line(book, &path, query.line));
                status = ExitCode::FAILURE;
                Vec::new()
            }
            Answer::NoFile => {
                eprintln!("tangle: {} is neither a generated file nor a chapter", query.path);
                status = ExitCode::FAILURE;
                Vec::new()
            }
        };
        let mut paths: Vec<&str> = found.iter().map(|found| found.path).collect();
        paths.push(&query.path);
        for chapter in locate::changed(&map, root, &paths) {
            eprintln!("tangle: {chapter} changed since the last run: its lines are those of then");
        }
        if json {
            say(&serde_json::to_string(&found).unwrap_or_default());
            continue;
        }
        for place in found {
            let col = place.col.map_or(String::new(), |col| format!(":{col}"));
            say(&format!("{}:{}{col}", place.path, place.line));
        }
    }
    status
}

/// Prints the lines that a symbol and an offset stand for, the innermost first.
fn say_frames(map: &Map, frames: &[Frame], json: bool) {
    let mut places = Vec::new();
    for frame in frames {
        let found = map.of_source(&frame.file, frame.line);
        let chapter = found.as_ref().map(|(_, found)| format!("{}:{}", found.path, found.line));
        let path = found.map_or(frame.file.as_str(), |(path, _)| path);
        let source = format!("{path}:{}", frame.line);
        if json {
            places.push(serde_json::json!({
                "place": chapter, "source": source, "function": frame.function,
            }));
            continue;
        }
        let within = frame.function.as_ref().map_or(String::new(), |name| format!(", in {name}"));
        match chapter {
            Some(chapter) => say(&format!("{chapter} ({source}{within})")),
            None => say(&format!("{source}{within}")),
        }
    }
    if json {
        say(&serde_json::to_string(&places).unwrap_or_default());
    }
}

/// Why a line leads nowhere.
fn no_line(root: &Path, path: &str, line: u32) -> String {
    let book = Book::load(root);
    let chapter = book.chapter_named(path);
    let reference = book.references().iter().find(|reference| {
        reference.line == line && Some(book.part(reference.part).source) == chapter
    });
    let defined = reference.and_then(|reference| {
        let part = book.part(*book.chunk(reference.target?).parts.first()?);
        let place = format!("{}:{}", book.source(part.source).path, part.block.fence_line);
        Some(format!("is the reference <<{}>>, which is defined at {place}", reference.name))
    });
    let what = defined.unwrap_or_else(|| "is in no other file".to_owned());
    format!("tangle: line {line} of {path} {what}")
}

fn run_weave(question: Option<&Question>, form: Form) -> ExitCode {
    if let Some(Question::Supports { renderer }) = question {
        return if weave::supports(renderer) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let woven = match question {
        Some(Question::Render) => weave::render(io::stdin().lock()),
        _ => weave::run(io::stdin().lock(), io::stdout().lock()),
    };
    match woven {
        Ok(()) => ExitCode::SUCCESS,
        Err(weave::Failure::Book { findings, sources }) => {
            print_findings(form, &findings, &sources, "; the book cannot be woven");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tangle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_filter(root: &Path, from: Option<&Path>, module: Option<&Path>) -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut output = io::stdout().lock();
    let Some(map) = Map::read(root) else {
        return io::copy(&mut input, &mut output).map(drop);
    };
    let cwd = std::env::current_dir()?;
    let cwd = from.map_or_else(|| cwd.clone(), |from| cwd.join(from));
    let mut filter = Filter::new(map, root, &cwd);
    if let Some(module) = module {
        filter = filter.with_module(module);
    }
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let ended = bytes.last() == Some(&b'\n');
        if ended {
            bytes.pop();
        }
        match std::str::from_utf8(&bytes) {
            Ok(line) => {
                let mut text = filter.line(line);
                if !ended && !filter.is_holding() {
                    text.pop();
                }
                output.write_all(text.as_bytes())?;
            }
            Err(_) => {
                output.write_all(filter.finish().as_bytes())?;
                output.write_all(&bytes)?;
                output.write_all(if ended { b"\n" } else { b"" })?;
            }
        }
        output.flush()?;
    }
    output.write_all(filter.finish().as_bytes())?;
    output.flush()
}
