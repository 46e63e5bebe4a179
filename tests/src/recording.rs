// SPDX-License-Identifier: GPL-2.0-only

//! The picture in the README: what a terminal shows of a real run.
//!
//! [`converse`] is the run, with somebody at the keys. [`Screen`] is the terminal, as far
//! as one is needed that is never full and has no colours. [`draw`] makes a picture of its lines,
//! and [`lines_of`] reads them out of it again, for the test that says whether they are still true.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::artifacts::root;
use crate::prompt::Session;

/// What the picture is a picture of.
pub const COMMAND: &str = "make run GUESTS=2";
/// What is typed at the shell's prompt, a line after the other, the last of which ends the Guest.
const TYPED: [&str; 7] = [
    "ls",
    "cat /etc/motd",
    "ls /bin | wc",
    "ps",
    "mem",
    "ping 10.0.0.2 3",
    "exit",
];
/// What must have come of it.
const COME: [&str; 2] = ["\n3 of 3 answered", "[Guest 2 was stopped]"];
/// The first line that is shown. Before it `make` tells what it has built.
const FIRST: &str = "To leave: ";
/// The Guest's prompt.
const PROMPT: &str = "$ ";

/// The terminal's width, in characters.
const COLUMNS: usize = 80;

/// Where the picture is kept.
pub fn picture() -> PathBuf {
    root().join("book/recording.svg")
}

/// Runs `make run GUESTS=2` with somebody at a terminal; gives the lines that the terminal shows.
///
/// # Errors
///
/// When anything goes wrong in the run.
pub fn record() -> Result<Vec<String>> {
    let mut command = Command::new("make");
    command.current_dir(root()).args(COMMAND.split(' ').skip(1));
    // This may be make's child, and what that was told is not for this one.
    for name in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        command.env_remove(name);
    }
    converse(&mut Session::of(command)?)
}

/// Types at a run's terminal; gives the lines that it shows.
///
/// # Errors
///
/// When the run does not answer, or does not end well.
pub fn converse(session: &mut Session) -> Result<Vec<String>> {
    for (before, line) in TYPED.iter().enumerate() {
        session.at(&format!("\n{PROMPT}"), before + 1, &format!("{line}\r"))?;
    }
    session.expect(0)?;
    for come in COME {
        session.wait_for(come)?;
    }
    let text = session.text();
    let mut screen = Screen::default();
    screen.show(&text);
    let lines = screen.lines();
    let first = lines.iter().position(|line| line.starts_with(FIRST));
    Ok(lines[first.with_context(|| format!("no {FIRST:?} in {text:?}"))?..].to_vec())
}

/// A terminal without end.
#[derive(Debug, Default)]
struct Screen {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Screen {
    fn show(&mut self, text: &str) {
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => self.row += 1,
                '\u{8}' => self.column = self.column.saturating_sub(1),
                // A sequence of characters that says something to the terminal. None is needed.
                '\u{1b}' => drop(rest.find(|c| c.is_ascii_alphabetic())),
                c if c.is_control() => {}
                c => self.put(c),
            }
        }
    }

    fn put(&mut self, c: char) {
        if self.column == COLUMNS {
            (self.row, self.column) = (self.row + 1, 0);
        }
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Vec::new());
        }
        let line = &mut self.lines[self.row];
        if line.len() <= self.column {
            line.resize(self.column + 1, ' ');
        }
        line[self.column] = c;
        self.column += 1;
    }

    fn lines(&self) -> Vec<String> {
        let text = |line: &Vec<char>| line.iter().collect::<String>().trim_end().to_owned();
        self.lines.iter().map(text).collect()
    }
}

/// Sizes, in pixels at the picture's own size.
const FONT: usize = 14;
const LINE: usize = 19;
const MARGIN: usize = 18;
const TITLE: usize = 34;
/// A character's width, in tenths.
const WIDTH: usize = 84;

/// The colours, for a light and a dark page.
const STYLE: &str = "\
  svg { --paper: #fcfbf8; --bar: #efece4; --edge: #d5d0c4; --ink: #23272e; --dim: #626970; \
--key: #0a50a8; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #14181e; --bar: #20262e; --edge: #3a424d; --ink: #dbe1e8; --dim: #98a2ad; \
--key: #86c1ff; }
  }
  text { font-family: ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', \
'Liberation Mono', monospace; fill: var(--ink); white-space: pre; }
  .d { fill: var(--dim); }
  .k { fill: var(--key); font-weight: 600; }
  .p { fill: var(--paper); stroke: var(--edge); }
  .b { fill: var(--bar); stroke: var(--edge); }
";

/// A picture of lines in a window with a title.
///
/// What the run itself says, before the first prompt and in brackets, is dim; what was typed is
/// in another colour. Each line is as wide as its characters are many, whatever font there is.
pub fn draw(title: &str, lines: &[String]) -> String {
    let width = (COLUMNS * WIDTH).div_ceil(10) + 2 * MARGIN;
    let height = TITLE + MARGIN + lines.len() * LINE + MARGIN / 2;
    let mut out = String::new();
    let mut say = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    say(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-size=\"{FONT}\" role=\"img\">"
    ));
    say(
        "<!-- SPDX-License-Identifier: CC-BY-SA-4.0. `make recording` makes this out of what a \
         real run prints. -->"
            .to_owned(),
    );
    say(format!("<title>A terminal: {}</title>", escape(title)));
    say(format!("<style>\n{STYLE}</style>"));
    let (w, h) = (width - 1, height - 1);
    say(format!(
        "<rect class=\"p\" x=\".5\" y=\".5\" width=\"{w}\" height=\"{h}\" rx=\"8\"/>"
    ));
    say(format!(
        "<path class=\"b\" d=\"M.5 {TITLE}V8.5a8 8 0 0 1 8-8H{}a8 8 0 0 1 8 8V{TITLE}z\"/>",
        w - 8
    ));
    say(format!(
        "<text class=\"d\" x=\"{}\" y=\"22\" text-anchor=\"middle\">{}</text>",
        width / 2,
        escape(title)
    ));
    let typed_from = lines.iter().position(|line| line.starts_with(PROMPT));
    for (n, line) in lines.iter().enumerate() {
        let y = TITLE + MARGIN + n * LINE + LINE / 2;
        let length = line.chars().count() * WIDTH;
        let dim = typed_from.is_none_or(|from| n < from) || line.starts_with('[');
        let class = if dim { " class=\"d\"" } else { "" };
        let text = match line.strip_prefix(PROMPT) {
            Some(typed) => format!("{PROMPT}<tspan class=\"k\">{}</tspan>", escape(typed)),
            None => escape(line),
        };
        say(format!(
            "<text{class} x=\"{MARGIN}\" y=\"{y}\" textLength=\"{}.{}\" \
             xml:space=\"preserve\">{text}</text>",
            length / 10,
            length % 10
        ));
    }
    say("</svg>".to_owned());
    out
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

/// The lines that a picture of [`draw`]'s shows.
pub fn lines_of(picture: &str) -> Vec<String> {
    let texts = picture.lines().filter(|line| line.contains("textLength="));
    texts
        .map(|line| {
            let mut text = String::new();
            let mut within = false;
            for c in line.chars() {
                match c {
                    '<' => within = true,
                    '>' => within = false,
                    c if !within => text.push(c),
                    _ => {}
                }
            }
            let text = text.replace("&lt;", "<").replace("&gt;", ">");
            text.replace("&amp;", "&")
        })
        .collect()
}

/// What two runs have in common: the lines from the first prompt on, with a `#` for each number.
/// A row of a table of numbers, as `ps` prints it, can be another each time and is left out.
fn in_common(lines: &[String]) -> Vec<String> {
    let digit = |c: char| c.is_ascii_digit();
    let shown = lines.iter().skip_while(|line| !line.starts_with(PROMPT));
    shown
        .filter(|line| !(line.starts_with(' ') && line.contains(digit)))
        .map(|line| {
            let mut text = String::new();
            for c in line.chars() {
                match c {
                    c if digit(c) => {
                        // How many blanks are before a number depends on the number.
                        text.truncate(text.trim_end_matches(' ').len());
                        if !text.ends_with('#') {
                            text.push('#');
                        }
                    }
                    '.' if text.ends_with('#') => {}
                    c => text.push(c),
                }
            }
            text
        })
        .collect()
}

/// Whether the picture that is kept shows what this run does.
///
/// # Errors
///
/// When it does not, with the first difference.
pub fn compare(session: &mut Session) -> Result<()> {
    let path = picture();
    let kept = fs::read_to_string(&path);
    let kept = kept.with_context(|| format!("no picture at {}", path.display()))?;
    let kept = in_common(&lines_of(&kept));
    let now = in_common(&converse(session)?);
    let mut why = String::new();
    for n in 0..kept.len().max(now.len()) {
        if kept.get(n) != now.get(n) {
            let nothing = String::new();
            let (kept, now) = (kept.get(n), now.get(n));
            let (kept, now) = (kept.unwrap_or(&nothing), now.unwrap_or(&nothing));
            write!(why, "it shows {kept:?}, a run {now:?}")?;
            break;
        }
    }
    ensure!(
        why.is_empty(),
        "{}: {why}; `make recording` makes a new one",
        path.display()
    );
    ensure!(!kept.is_empty(), "{} shows nothing", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_shows_lines() {
        let mut screen = Screen::default();
        screen.show("one\r\n\r\nt\u{8} \u{8}Two\u{1b}[K  \r\u{7}t\r\n");
        assert_eq!(screen.lines(), ["one", "", "two"]);
        let mut screen = Screen::default();
        screen.show(&format!("{}!\r\n", "x".repeat(COLUMNS)));
        assert_eq!(screen.lines(), ["x".repeat(COLUMNS), "!".to_owned()]);
    }

    #[test]
    fn lines_come_out_of_a_picture_as_they_went_in() {
        let lines = ["booting", "$ cat < a & b > c", "  &amp; 1", "", "[over]"];
        let lines = lines.map(str::to_owned);
        assert_eq!(lines_of(&draw("a < b", &lines)), lines);
    }

    #[test]
    fn numbers_differ_and_words_do_not() {
        let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
        let one = lines("Linux 7\n$ ls\n   1 x 2\nfree   128 KiB\n1: 10.5 ms");
        let other = lines("boot\nLinux\n$ ls\n   1 y 2\nfree 1024 KiB\n2: 9 ms");
        assert_eq!(in_common(&one), in_common(&other));
        let third = lines("$ ls\nfrei   128 KiB\n1: 10.5 ms");
        assert_ne!(in_common(&one), in_common(&third));
    }

    #[test]
    fn the_picture_is_small_and_has_no_script() {
        let picture = fs::read_to_string(picture()).expect("it is in the repository");
        assert!(picture.len() < 60_000, "{} bytes", picture.len());
        assert!(!picture.contains("<script"));
        let lines = lines_of(&picture);
        for typed in TYPED {
            assert!(lines.contains(&format!("{PROMPT}{typed}")), "{typed}");
        }
    }
}
