// SPDX-License-Identifier: GPL-2.0

//! mdBook's own page as the frame of others: its menus, its themes, its search.

use std::fmt::Write as _;

use super::words::text;

/// Where the main part of mdBook's pages is.
const MAIN: (&str, &str) = ("<main>", "</main>");

/// A page that mdBook rendered at the top of the book, cut where something else is to stand.
pub(super) struct Shell {
    before: String,
    after: String,
}

/// What a shell could not be made of.
pub(super) type Missing = &'static str;

impl Shell {
    /// Takes a page apart.
    pub(super) fn of(page: &str) -> Result<Self, Missing> {
        let (before, rest) = page.split_once(MAIN.0).ok_or("there is no <main> in it")?;
        let (_, after) = rest.split_once(MAIN.1).ok_or("its <main> does not end")?;
        let mut before = without(before, "<title>", "</title>").ok_or("it has no title")?;
        // What leads to a neighbour, or to a source, is another page's.
        if let Some(at) = before.find("id=\"git-edit-button\"")
            && let Some(from) = before[..at].rfind("<a ")
            && let Some(len) = before[from..].find("</a>")
        {
            before.replace_range(from..from + len + 4, "");
        }
        let mut after = after.to_owned();
        while let Some(shorter) = without(&after, "<nav ", "</nav>") {
            after = shorter;
        }
        Ok(Self { before, after })
    }

    /// A page of this title and main part, `depth` folders below the top.
    pub(super) fn page(&self, title: &str, main: &str, depth: usize) -> String {
        let up = "../".repeat(depth);
        let mut out = String::with_capacity(self.before.len() + main.len() + self.after.len());
        let before = moved(&self.before, &up);
        // The title goes where the old one was.
        let (head, rest) = before.split_once("</head>").unwrap_or((&before, ""));
        let _ = write!(out, "{head}<title>{}</title>\n</head>{rest}", text(title));
        out.push_str(MAIN.0);
        out.push_str(main);
        out.push_str(MAIN.1);
        out.push_str(&moved(&self.after, &up));
        out
    }
}

/// A text without what is from `from` to `to`.
fn without(text: &str, from: &str, to: &str) -> Option<String> {
    let (before, rest) = text.split_once(from)?;
    let (_, after) = rest.split_once(to)?;
    Some(format!("{before}{after}"))
}

/// HTML whose relative addresses are those of a page in another folder.
fn moved(html: &str, up: &str) -> String {
    let mut out = html
        .replace("const path_to_root = \"", &format!("const path_to_root = \"{up}"))
        .replace("path_to_searchindex_js = \"", &format!("path_to_searchindex_js = \"{up}"));
    for attribute in [" href=\"", " src=\""] {
        let mut next = String::with_capacity(out.len() + 1024);
        let mut pieces = out.split(attribute);
        next.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            next.push_str(attribute);
            let value = piece.split('"').next().unwrap_or_default();
            let elsewhere = value.starts_with(['#', '/']) || value.contains(':');
            if !elsewhere {
                next.push_str(up);
            }
            next.push_str(piece);
        }
        out = next;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "<head><title>x</title><link href=\"a.css\"><script>const path_to_root = \
                        \"\"; window.path_to_searchindex_js = \"s.js\";</script></head><body>\
                        <a href=\"#m\">skip</a><a href=\"e\"><b id=\"git-edit-button\"></b></a>\
                        <main>old</main><nav a><a href=\"n\"></a></nav><nav b></nav>\
                        <script src=\"b.js\"></script><img src=\"data:x\"></body>";

    #[test]
    fn a_page_keeps_the_frame_and_nothing_else() {
        let page = Shell::of(PAGE).expect("a shell").page("a & b", "<p>new</p>", 2);
        assert_eq!(
            page,
            "<head><link href=\"../../a.css\"><script>const path_to_root = \"../../\"; \
             window.path_to_searchindex_js = \"../../s.js\";</script><title>a &amp; b</title>\n\
             </head><body><a href=\"#m\">skip</a><main><p>new</p></main>\
             <script src=\"../../b.js\"></script><img src=\"data:x\"></body>"
        );
    }

    #[test]
    fn another_template_is_said_to_be_one() {
        assert_eq!(Shell::of("<title></title>").err(), Some("there is no <main> in it"));
        assert_eq!(Shell::of("<main></main>").err(), Some("it has no title"));
    }
}
