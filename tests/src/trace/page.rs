// SPDX-License-Identifier: GPL-2.0-only

//! The part of the chapter that shows the trip: plain HTML, to be read from top to bottom. A script
//! of the book's theme makes a stepper of it, out of nothing but what is in it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tangle::symbols::{Lines, Spot};
use tangle::{Book, OutputId, PartId, Target};

use super::state::{PARTS, Part, State};
use super::{Access, At, Step, Trace, label};

/// Where the assembler is, and the Rust that calls it.
const SWITCHER: &str = "switcher/switcher.S";
const CALLER: &str = "module/raw/switcher.rs";
/// Lines of these that no line table has: the call is within a string, and the stubs are bytes.
/// Each with its chunk.
const CALL: (&str, &str) = ("switcher-call", "call_register!(),");
const STUB: (&str, &str) = ("switcher-stubs", ".byte\t0x6a,");

/// What the page is made of.
struct Page<'a> {
    trace: &'a Trace,
    states: Vec<State>,
    book: Book,
    lines: Lines,
    /// How far into the Switcher the stubs begin.
    stubs: u64,
    out: String,
}

/// Where an instruction comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    /// What the steps of one place have in common.
    title: String,
    /// Its address from the chapter's page, if it is in the book.
    href: Option<String>,
    /// The line that it was.
    line: Option<String>,
}

/// A step after which something is as it was not before.
type Station = (&'static str, &'static str, fn(&At, &At) -> bool);

/// The stations, in the order in which they come. The chapter links to them.
const STATIONS: [Station; 12] = [
    ("trip-stack", "the register page is the stack", |_, at| {
        at.stack == "registers"
    }),
    ("trip-idt", "the Guest's IDT", |_, at| at.idt == "idt"),
    ("trip-gdt", "the Guest's GDT", |_, at| at.gdt == "state"),
    ("trip-task", "the Guest's task state", |_, at| {
        at.task == "state"
    }),
    ("trip-cr3", "the Guest's page tables", |_, at| at.guest),
    ("trip-guest", "into ring 1", |_, at| at.ring == 1),
    ("trip-gate", "into ring 0, through a gate", |was, at| {
        was.ring > 0 && at.ring == 0
    }),
    ("trip-cr3-back", "the Host's page tables", |was, at| {
        was.guest && !at.guest
    }),
    ("trip-task-back", "the Host's task state", |was, at| {
        was.task != at.task && at.task == "host-gdt"
    }),
    ("trip-idt-back", "the Host's IDT", |was, at| {
        was.idt != at.idt && at.idt == "host-idt"
    }),
    ("trip-stack-back", "the Host's stack", |was, at| {
        was.stack != at.stack && at.stack == "host-stack"
    }),
    ("trip-home", "back in the Host", |was, at| {
        was.code == "text" && at.code == "host-code"
    }),
];

/// A side of the drawing: its name, its title, and the names and titles of its boxes.
type Side = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// The sides: the Host's alone, what both have, the Guest's alone.
const SIDES: [Side; 3] = [
    (
        "host",
        "only the Host",
        &[
            ("host-code", "Linux, lguest.ko"),
            ("host-stack", "stack"),
            ("host-gdt", "GDT, task state"),
            ("host-idt", "IDT"),
        ],
    ),
    (
        "both",
        "both",
        &[
            ("text", "the Switcher"),
            ("registers", "register page"),
            ("state", "state page: GDT, task state"),
            ("idt", "IDT page"),
        ],
    ),
    (
        "guest",
        "only the Guest",
        &[("guest-code", "its kernel"), ("guest-stack", "stack")],
    ),
];

/// A row of the bars: its title, and what is in force.
type Row = (&'static str, fn(&At) -> &'static str);

/// The rows, in the order in which the Switcher changes what they tell.
const ROWS: [Row; 8] = [
    ("code", |at| whose(at.code)),
    ("CR4", |at| if at.cr4 { "Guest" } else { "Host" }),
    ("stack", |at| whose(at.stack)),
    ("IDT", |at| whose(at.idt)),
    ("GDT", |at| whose(at.gdt)),
    ("TR", |at| whose(at.task)),
    ("CR3", |at| if at.guest { "Guest" } else { "Host" }),
    ("ring", |at| ["0", "1", "2", "3"][at.ring as usize & 3]),
];

/// Whose a place in memory is, or what it is if it is of both.
fn whose(place: &str) -> &'static str {
    match place {
        "text" => "Switcher",
        "registers" => "register page",
        _ if place.starts_with("host") => "Host",
        _ => "Guest",
    }
}

/// Makes it.
///
/// # Errors
///
/// When the trace does not belong to the chapters and the module in `root`.
pub(super) fn make(trace: &Trace, root: &Path) -> Result<String> {
    let book = Book::load(root);
    ensure!(
        !book.has_errors(),
        "the book has errors: `make check` tells them"
    );
    let module = root.join("module/lguest.ko");
    let mut page = Page {
        trace,
        states: trace.states()?,
        book,
        lines: Lines::read(&module)?,
        stubs: label(&module, "switcher_stubs")? - label(&module, "switcher_start")?,
        out: String::new(),
    };
    page.write()?;
    Ok(page.out)
}

impl Page<'_> {
    fn say(&mut self, text: impl AsRef<str>) {
        self.out.push_str(text.as_ref());
        self.out.push('\n');
    }

    fn write(&mut self) -> Result<()> {
        let steps = self.trace.steps.len();
        let origins: Vec<_> = (0..steps).map(|n| self.origin(n)).collect::<Result<_>>()?;
        let stations = self.stations()?;
        self.say("<!-- `make trace` makes this out of trip.json. -->");
        self.say("<div class=\"trip\">");
        self.made();
        self.strip();
        self.say(format!(
            "<details class=\"trip-all\" open>\n<summary>All {steps} steps</summary>"
        ));
        self.say("<div class=\"trip-part\">");
        self.state(0);
        self.say("</div>");
        let mut first = 0;
        for part in origins.chunk_by(|a, b| (&a.title, &a.href) == (&b.title, &b.href)) {
            self.part(first, part, &stations);
            first += part.len();
        }
        self.say("</details>\n</div>");
        ensure!(
            !self.out.contains("\n\n"),
            "a block of HTML ends at an empty line"
        );
        Ok(())
    }

    /// Which recording this is.
    fn made(&mut self) {
        let count = |code: &str| {
            let before = self.states.iter().take(self.trace.steps.len());
            before
                .filter(|state| self.trace.at(state).code == code)
                .count()
        };
        let (host, switcher, guest) = (count("host-code"), count("text"), count("guest-code"));
        let Trace {
            linux, qemu, text, ..
        } = self.trace;
        let text = format!(
            "<p class=\"trip-made\">{} instructions: {host} of the Host's, {switcher} of the \
             Switcher's, {guest} of the Guest's. Recorded under Linux {linux} in QEMU {}, with the \
             Switcher whose page has the XXH3 hash <span class=\"trip-value\">{text}</span>; \
             <a href=\"trip.json\">the data</a>.</p>",
            self.trace.steps.len(),
            escape(qemu),
        );
        self.say(text);
    }

    /// Which steps are the stations.
    fn stations(&self) -> Result<Vec<(usize, &'static str, &'static str)>> {
        let at: Vec<_> = self
            .states
            .iter()
            .map(|state| self.trace.at(state))
            .collect();
        let mut from = 0;
        let mut found = Vec::new();
        for (id, title, reached) in STATIONS {
            let mut steps = (from..self.trace.steps.len()).filter(|n| reached(&at[*n], &at[n + 1]));
            let step = steps
                .next()
                .with_context(|| format!("the trip does not come to {id}"))?;
            found.push((step, id, title));
            from = step;
        }
        Ok(found)
    }

    /// The chapter's line that an instruction was.
    fn origin(&self, n: usize) -> Result<Origin> {
        let state = &self.states[n];
        let nowhere = |title: &str| Origin {
            title: title.to_owned(),
            href: None,
            line: None,
        };
        Ok(match self.trace.at(state).code {
            "text" => {
                let offset = state.get("rip") - self.trace.switcher.0;
                let output = self.output(SWITCHER)?;
                let line = if offset < self.stubs {
                    self.line(offset)?
                } else {
                    self.line_with(output, STUB)?
                };
                self.of_line(output, line)?
            }
            "guest-code" => nowhere("In the Guest"),
            _ if self.trace.steps[n].text.starts_with("call") => {
                let output = self.output(CALLER)?;
                self.of_line(output, self.line_with(output, CALL)?)?
            }
            _ => nowhere("In Linux"),
        })
    }

    fn output(&self, path: &str) -> Result<OutputId> {
        let output = self.book.output_named(path);
        output.with_context(|| format!("the book has no file {path}"))
    }

    /// The line of the assembler's file that the module has for an offset in the Switcher.
    fn line(&self, offset: u64) -> Result<u32> {
        let frames = self.lines.find(&Spot {
            symbol: "switcher_start".to_owned(),
            offset,
            size: None,
            after_call: false,
        })?;
        let frame = frames.iter().find(|frame| frame.file.ends_with(SWITCHER));
        let frame =
            frame.with_context(|| format!("{offset:#x} is not of {SWITCHER}: {frames:?}"))?;
        Ok(frame.line)
    }

    /// The only line of a file that a chunk has brought there and that has a text in it.
    fn line_with(&self, output: OutputId, (chunk, text): (&str, &str)) -> Result<u32> {
        let id = self.book.chunk_named(chunk);
        let of_chunk = |line: &u32| {
            let origin = self.book.origin(output, *line);
            origin.map(|origin| self.book.part(origin.part).chunk) == id
        };
        let file = self.book.output(output);
        let lines = (1..).zip(file.text.lines());
        let lines = lines.filter(|(_, line)| line.contains(text));
        let found: Vec<_> = lines.map(|(number, _)| number).filter(of_chunk).collect();
        match found[..] {
            [line] => Ok(line),
            _ => bail!(
                "{chunk} has {} lines {text:?} in {}",
                found.len(),
                file.path
            ),
        }
    }

    fn of_line(&self, output: OutputId, line: u32) -> Result<Origin> {
        let file = self.book.output(output);
        let origin = self.book.origin(output, line);
        let origin = origin.with_context(|| format!("{}:{line} is from nowhere", file.path))?;
        let text = file.text.lines().nth(line as usize - 1).unwrap_or_default();
        Ok(Origin {
            title: self.book.part(origin.part).title().to_owned(),
            href: Some(self.href(origin.part)?),
            line: Some(text.trim().trim_end_matches(',').replace('\t', " ")),
        })
    }

    /// The address of a chunk, as the weave gives it.
    fn href(&self, part: PartId) -> Result<String> {
        let part = self.book.part(part);
        let path = &self.book.source(part.source).path;
        let page = path
            .strip_prefix("book/switcher/")
            .and_then(|name| name.strip_suffix(".md"));
        let page = page.with_context(|| format!("{path} is not in the folder of the chapter"))?;
        let Target::Chunk(name) = &part.block.target else {
            bail!("{path} has code without a name");
        };
        let number = match part.index {
            0 => String::new(),
            n => format!("-{}", n + 1),
        };
        Ok(format!("{page}.html#chunk-{name}{number}"))
    }

    /// What is in force, from the first step to the last.
    fn strip(&mut self) {
        let at: Vec<_> = self
            .states
            .iter()
            .map(|state| self.trace.at(state))
            .collect();
        self.say("<div class=\"trip-strip\">");
        for (title, what) in ROWS {
            let names: Vec<_> = at.iter().map(what).collect();
            let mut bars = String::new();
            let mut told = Vec::new();
            let mut end = 0;
            for run in names.chunk_by(|a, b| a == b) {
                let kind = match run[0] {
                    "Host" | "0" => "host",
                    "Guest" | "1" | "2" | "3" => "guest",
                    _ => "both",
                };
                let width = run.len() as f64 * 100.0 / names.len() as f64;
                let name = run[0];
                let _ = write!(
                    bars,
                    "<span class=\"trip-{kind}\" style=\"width:{width:.3}%\">{name}</span>"
                );
                told.push(match end {
                    0 => name.to_owned(),
                    end => format!("{name} after step {end}"),
                });
                end += run.len();
            }
            let told = told.join(", ");
            self.say(format!(
                "<div class=\"trip-row\"><span class=\"trip-label\" aria-hidden=\"true\">{title}</span>\
                 <span class=\"trip-bar\" role=\"img\" aria-label=\"{title}: {told}\">{bars}</span></div>"
            ));
        }
        self.say("</div>");
    }

    /// Steps from one place in the book.
    fn part(&mut self, first: usize, origins: &[Origin], stations: &[(usize, &str, &str)]) {
        let (from, to) = (first + 1, first + origins.len());
        let steps = match origins.len() {
            1 => format!("step {from}"),
            _ => format!("steps {from} to {to}"),
        };
        let title = escape(&origins[0].title);
        let title = match &origins[0].href {
            Some(href) => format!("<a href=\"{href}\">{title}</a>"),
            None => title,
        };
        self.say("<div class=\"trip-part\">");
        self.say(format!(
            "<p class=\"trip-head\"><b>{title}</b>, <span class=\"trip-numbers\">{steps}</span></p>"
        ));
        self.say(format!("<ol class=\"trip-list\" start=\"{from}\">"));
        for (n, origin) in (first..).zip(origins) {
            self.step(n, origin, stations);
        }
        self.say("</ol>");
        self.state(to);
        self.say("</div>");
    }

    fn step(&mut self, n: usize, origin: &Origin, stations: &[(usize, &str, &str)]) {
        let step = &self.trace.steps[n];
        let (before, after) = (&self.states[n], &self.states[n + 1]);
        let rip = before.get("rip");
        let at = self.boxes(&self.trace.at(after), &step.memory);
        let mut text = format!("<li id=\"step-{0}\" value=\"{0}\" data-at=\"{at}\">", n + 1);
        for (_, id, title) in stations.iter().filter(|(step, ..)| *step == n) {
            let _ = write!(
                text,
                "<span class=\"trip-station\" id=\"{id}\">{title}</span> "
            );
        }
        let _ = write!(
            text,
            "<span class=\"trip-where\">{}</span> ",
            self.value(&PARTS[0], rip)
        );
        let _ = write!(
            text,
            "<span class=\"trip-code\">{}</span> ",
            escape(&step.text)
        );
        if let (Some(href), Some(line)) = (&origin.href, &origin.line) {
            let line = escape(line);
            let _ = write!(text, "<a class=\"trip-line\" href=\"{href}\">{line}</a> ");
        }
        text.push_str("<span class=\"trip-changes\">");
        let follows = rip + step.bytes.len() as u64 / 2;
        let mut told = Vec::new();
        for part in &PARTS {
            let Some(value) = step.changes.get(part.name) else {
                continue;
            };
            // That the next instruction comes next need not be said.
            if part.name == "rip" && value.0 == follows {
                continue;
            }
            told.push(format!(
                "<span class=\"trip-change\" data-part=\"{}\">{} {}</span>",
                part.name,
                part.title,
                self.value(part, value.0)
            ));
        }
        told.extend(step.memory.iter().map(|access| self.access(step, access)));
        if told.is_empty() {
            told.push("nothing that is shown".to_owned());
        }
        text.push_str(&told.join(" "));
        text.push_str("</span></li>");
        self.say(text);
    }

    /// What was read or written.
    fn access(&self, step: &Step, access: &Access) -> String {
        let at = match self.trace.place(access.at.0) {
            Some(("host-stack", ..)) => self.note(&PARTS[1], access.at.0).unwrap_or_default(),
            Some((_, title, start)) => format!("{title} + {:#x}", access.at.0 - start),
            None => format!("{}", access.at),
        };
        let what = match access.value {
            Some(value) => format!("<span class=\"trip-value\">{value}</span>"),
            None if step.text.starts_with("int") => "SS, RSP, RFLAGS, CS and RIP".to_owned(),
            None => format!("{} bytes", access.bytes),
        };
        let verb = if access.writes { "writes" } else { "reads" };
        let to = if access.writes { "to" } else { "from" };
        format!("<span class=\"trip-access\">{verb} {what} {to} {at}</span>")
    }

    /// All of a state, with its drawing.
    fn state(&mut self, n: usize) {
        let state = self.states[n].clone();
        let when = match n {
            0 => "The state before step 1".to_owned(),
            n => format!("The state after step {n}"),
        };
        self.say(format!(
            "<details class=\"trip-state\">\n<summary>{when}</summary>"
        ));
        self.drawing(&self.trace.at(&state));
        self.say("<dl class=\"trip-registers\">");
        for part in &PARTS {
            let value = self.value(part, state.get(part.name));
            self.say(format!(
                "<div data-part=\"{}\"><dt>{}</dt><dd>{value}</dd></div>",
                part.name, part.title
            ));
        }
        self.say("</dl>\n</details>");
    }

    /// The names of the boxes that things are in, for the script.
    fn boxes(&self, at: &At, memory: &[Access]) -> String {
        let side = if at.guest { "guest" } else { "host" };
        let At {
            code,
            stack,
            gdt,
            idt,
            task,
            ..
        } = at;
        let mut text = format!("{side} RIP={code} RSP={stack} GDT={gdt} IDT={idt} TR={task}");
        for access in memory {
            let place = match self.trace.place(access.at.0) {
                Some((name, ..)) => name,
                None => continue,
            };
            let verb = if access.writes { "writes" } else { "reads" };
            let _ = write!(text, " {verb}={place}");
        }
        text
    }

    fn drawing(&mut self, at: &At) {
        let boxes = self.boxes(at, &[]);
        self.say(format!("<div class=\"trip-drawing\" data-at=\"{boxes}\">"));
        for (side, title, inside) in SIDES {
            let lit = side == "both" || (side == "guest") == at.guest;
            let class = if lit {
                "trip-side trip-lit"
            } else {
                "trip-side"
            };
            self.say(format!(
                "<div class=\"{class}\" data-side=\"{side}\"><b>{title}</b>"
            ));
            for (name, title) in inside {
                let here = boxes.split(' ').filter_map(|word| word.split_once('='));
                let tags: String = here
                    .filter(|(_, place)| place == name)
                    .map(|(tag, _)| format!(" <i>{tag}</i>"))
                    .collect();
                self.say(format!("<span data-box=\"{name}\">{title}{tags}</span>"));
            }
            self.say("</div>");
        }
        self.say("</div>");
    }

    /// A value as a reader sees it, and what it is, if that can be said.
    fn value(&self, part: &Part, value: u64) -> String {
        let digits = part.bytes * 2;
        let mut text = format!("<span class=\"trip-value\">{value:0digits$x}</span>");
        if let Some(note) = self.note(part, value) {
            let _ = write!(text, " <span class=\"trip-note\">{note}</span>");
        }
        text
    }

    /// What a value is. It hangs on the value alone: what has not changed is what it was.
    fn note(&self, part: &Part, value: u64) -> Option<String> {
        let begin = &self.trace.begin;
        let hosts = value == begin.get(part.name);
        let place = |value: u64| {
            let (name, title, start) = self.trace.place(value)?;
            let call = begin.get("rsp");
            Some(match name {
                "host-stack" if value == call => title.to_owned(),
                "host-stack" if value < call => format!("{title} - {:#x}", call - value),
                "host-stack" => format!("{title} + {:#x}", value - call),
                _ => format!("{title} + {:#x}", value - start),
            })
        };
        match part.name {
            "cr3" | "cr4" | "fs_base" | "gs_base" if hosts => Some("Host's".to_owned()),
            "cr3" | "cr4" | "gs_base" => Some("Guest's".to_owned()),
            "gdt" | "idt" | "tr_base" if hosts => Some("Host's".to_owned()),
            "gdt" if place(value).is_none() => Some("Host's, writable".to_owned()),
            "ss" if value < 4 => Some("empty".to_owned()),
            "cs" | "ss" => Some(format!("ring {}", value & 3)),
            _ if part.bytes == 8 => place(value),
            _ => None,
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
