// SPDX-License-Identifier: GPL-2.0

//! The pages that mdBook does not make: lists that it would copy into its search and its print
//! page, and a page for each file. mdBook runs this as a renderer, after its own for HTML.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use mdbook_preprocessor::book::Book as MdBook;
use mdbook_preprocessor::config::Config;
use serde::Deserialize;

use super::index::STUB;
use super::links::{CHUNKS_PAGE, FILES_PAGE, Links, NAMES_PAGE};
use super::shell::Shell;
use super::{Failure, Pages, code, identifiers, index, search};
use crate::book::OutputId;

/// What mdBook tells a renderer, as far as it is needed.
#[derive(Deserialize)]
struct Context {
    book: MdBook,
    config: Config,
    destination: PathBuf,
}

/// Reads what mdBook tells a renderer, and adds pages to those that it has rendered as HTML.
///
/// # Errors
///
/// When mdBook cannot be understood, has rendered no HTML, or the book has errors.
pub fn render(mut input: impl Read) -> Result<(), Failure> {
    let bytes = super::read_patiently(&mut input)?;
    let context: Context =
        serde_json::from_slice(&bytes).map_err(|error| Failure::Protocol(error.to_string()))?;
    let html = context.destination.parent().unwrap_or(Path::new("")).join("html");
    let book = &context.config.book;
    pages(&book.src, book.title.as_deref().unwrap_or_default(), &context.book, &html)
}

/// Adds the pages of a book to those in the folder `html`.
fn pages(src: &Path, title: &str, book: &MdBook, html: &Path) -> Result<(), Failure> {
    slim_search(html)?;
    let (model, pages) = Pages::of(src, book).model()?;
    if model.parts().is_empty() {
        return Ok(());
    }
    let links = Links::new(&model, &pages);
    let mut shell = None;
    for (page, list) in [
        (CHUNKS_PAGE, index::chunks(&model, &links)),
        (FILES_PAGE, index::files(&model, &links)),
        (NAMES_PAGE, identifiers::all(&model, &links)),
    ] {
        let path = html.join(page);
        let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error.to_string()))?;
        if page == FILES_PAGE {
            shell = Some(Shell::of(&text).map_err(|missing| failed(&path, missing))?);
        }
        let (before, after) = text
            .split_once(STUB)
            .ok_or_else(|| failed(&path, "mdBook has changed what the list stands for"))?;
        write(&path, &[before, &list, after].concat())?;
    }
    let Some(shell) = shell else { return Ok(()) };
    for (id, output) in (0..).map(OutputId).zip(model.outputs()) {
        let path = html.join(super::links::CODE).join(format!("{}.html", output.path));
        let depth = links.code(id).matches('/').count();
        let main = code::page(&model, &links, id);
        let name = format!("{} - {title}", output.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| failed(folder, &error.to_string()))?;
        }
        write(&path, &shell.page(&name, &main, depth))?;
    }
    Ok(())
}

/// Takes out of the search index what it holds twice. Its name is that of the whole, which is as
/// good: other words make another name.
fn slim_search(html: &Path) -> Result<(), Failure> {
    let entries = fs::read_dir(html).map_err(|error| failed(html, &error.to_string()))?;
    for entry in entries {
        let path = entry.map_err(|error| failed(html, &error.to_string()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("searchindex") && name.ends_with(".js") {
            let index =
                fs::read_to_string(&path).map_err(|error| failed(&path, &error.to_string()))?;
            if let Some(slim) = search::slim(&index) {
                write(&path, &slim)?;
            }
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| failed(path, &error.to_string()))
}

fn failed(path: &Path, why: &str) -> Failure {
    Failure::Page(path.to_owned(), why.to_owned())
}
