// SPDX-License-Identifier: GPL-2.0

//! From a function and an offset, as a kernel's log gives them, to the line in a source file.
//!
//! A kernel module is a *relocatable* file: its sections have no addresses yet, and what its line
//! tables say about addresses is left to be filled in. So every section is given an address of its
//! own here, far from the others, and the relocations of the line tables are carried out with
//! those.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addr2line::Context;
use gimli::{EndianArcSlice, LittleEndian};
use object::read::elf::{ElfFile64, FileHeader};
use object::{
    Object as _, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex,
    SectionKind, SymbolIndex, elf,
};

type Elf<'a> = ElfFile64<'a, object::Endianness>;
type Bytes = EndianArcSlice<LittleEndian>;

/// A place in the code of a module, as a log names it: `read_iter+0x1c/0x90`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// The function, under its name in the symbol table.
    pub symbol: String,
    /// How far into it.
    pub offset: u64,
    /// How long the kernel takes it to be: up to the next symbol.
    pub size: Option<u64>,
    /// Whether the address is the one after a call, as in a backtrace, and the call is meant.
    pub after_call: bool,
}

/// A line of a source file, and the function that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The function, readable, if it is known.
    pub function: Option<String>,
    /// The file, as the compiler knew it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

/// Why a spot has no line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no such file, or it cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(String, String),
    /// It has no line tables.
    #[error("{0} was built without line tables")]
    NoLines(String),
    /// It has no such symbol.
    #[error("{file} has no symbol {symbol}: it is not the module that the log is about")]
    NoSymbol {
        /// The module.
        file: String,
        /// What was looked for.
        symbol: String,
    },
    /// The symbol has another size there.
    #[error(
        "{symbol} has {here:#x} bytes in {file}, not {said:#x}: it is not the module that the log \
         is about"
    )]
    OtherSize {
        /// The module.
        file: String,
        /// What was looked for.
        symbol: String,
        /// Its size in the file.
        here: u64,
        /// Its size in the log.
        said: u64,
    },
    /// Nothing is known about the address.
    #[error("{file} has no line for {symbol}+{offset:#x}")]
    NoLine {
        /// The module.
        file: String,
        /// What was looked for.
        symbol: String,
        /// How far into it.
        offset: u64,
    },
}

/// A symbol of a section with code.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    section: SectionIndex,
    /// Within its section.
    address: u64,
    size: u64,
}

/// An object file with line tables, relocatable or not.
pub struct Lines {
    path: String,
    context: Context<Bytes>,
    symbols: HashMap<String, Vec<Symbol>>,
    /// The addresses of all symbols of a section, sorted, and the section's end.
    starts: HashMap<SectionIndex, (Vec<u64>, u64)>,
    /// Where code uses a symbol that is not in the file.
    uses: HashMap<String, Vec<u64>>,
    relocatable: bool,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Lines {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or has no line tables.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let name = path.display().to_string();
        let unreadable = |why: String| Problem::Unreadable(name.clone(), why);
        let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let elf = Elf::parse(bytes.as_slice()).map_err(|error| unreadable(error.to_string()))?;
        if elf.section_by_name(".debug_line").is_none() {
            return Err(Problem::NoLines(name));
        }
        let relocatable = elf.elf_header().e_type(elf.endian()) == elf::ET_REL;
        let dwarf = gimli::Dwarf::load(|id| relocated(&elf, id.name(), relocatable))
            .map_err(|error| unreadable(error.to_string()))?;
        let context = Context::from_dwarf(dwarf).map_err(|error| unreadable(error.to_string()))?;
        let mut lines = Self {
            path: name,
            context,
            symbols: HashMap::new(),
            starts: HashMap::new(),
            uses: HashMap::new(),
            relocatable,
        };
        lines.note_symbols(&elf);
        lines.note_uses(&elf);
        Ok(lines)
    }

    fn note_symbols(&mut self, elf: &Elf<'_>) {
        for symbol in elf.symbols() {
            let Some(section) = symbol.section_index() else { continue };
            let Ok(name) = symbol.name() else { continue };
            if name.is_empty() || !is_code(elf, section) {
                continue;
            }
            let base = self.base_of(elf, section);
            let address = symbol.address() - base;
            let known = Symbol { section, address, size: symbol.size() };
            self.symbols.entry(name.to_owned()).or_default().push(known);
            self.starts.entry(section).or_default().0.push(address);
        }
        for (section, (starts, end)) in &mut self.starts {
            starts.sort_unstable();
            starts.dedup();
            *end = elf.section_by_index(*section).map_or(0, |section| section.size());
        }
    }

    /// What a linked file adds to the offset in a section.
    fn base_of(&self, elf: &Elf<'_>, section: SectionIndex) -> u64 {
        if self.relocatable {
            return 0;
        }
        elf.section_by_index(section).map_or(0, |section| section.address())
    }

    fn note_uses(&mut self, elf: &Elf<'_>) {
        for section in elf.sections().filter(|section| is_code(elf, section.index())) {
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                let Ok(symbol) = elf.symbol_by_index(index) else { continue };
                if let (true, Ok(name)) = (symbol.is_undefined(), symbol.name()) {
                    let at = place(section.index()) + offset;
                    self.uses.entry(name.to_owned()).or_default().push(at);
                }
            }
        }
    }

    /// The lines that a spot stands for, the innermost of inlined functions first.
    ///
    /// # Errors
    ///
    /// When the file does not have them.
    pub fn find(&self, spot: &Spot) -> Result<Vec<Frame>, Problem> {
        let (file, symbol) = (self.path.clone(), spot.symbol.clone());
        let Some(all) = self.symbols.get(&spot.symbol) else {
            return Err(Problem::NoSymbol { file, symbol });
        };
        let sizes = |s: &Symbol| (self.size(s), spot.size);
        let fitting = all.iter().find(|s| match sizes(s) {
            (_, None) => true,
            // What comes after the last symbol of a section is not known before it is loaded.
            ((here, true), Some(said)) => said >= here,
            ((here, false), Some(said)) => said == here,
        });
        let Some(found) = fitting else {
            let here = all.first().map_or(0, |s| self.size(s).0);
            let said = spot.size.unwrap_or(0);
            return Err(Problem::OtherSize { file, symbol, here, said });
        };
        let offset = spot.offset.saturating_sub(u64::from(spot.after_call));
        let section = if self.relocatable { place(found.section) } else { 0 };
        let frames = self.frames(section + found.address + offset);
        if frames.is_empty() {
            return Err(Problem::NoLine { file, symbol, offset: spot.offset });
        }
        Ok(frames)
    }

    /// A symbol's size as the kernel counts it, and whether it is the last of its section.
    fn size(&self, symbol: &Symbol) -> (u64, bool) {
        let Some((starts, end)) = self.starts.get(&symbol.section) else {
            return (symbol.size, true);
        };
        match starts.get(starts.partition_point(|&start| start <= symbol.address)) {
            Some(next) => (next - symbol.address, false),
            None => (symbol.size.max(end.saturating_sub(symbol.address)), true),
        }
    }

    /// The lines that use a symbol which this file does not have.
    #[must_use]
    pub fn uses(&self, symbol: &str) -> Vec<Frame> {
        let mut found = Vec::new();
        for &at in self.uses.get(symbol).map_or(&[][..], Vec::as_slice) {
            for frame in self.frames(at) {
                if !found.contains(&frame) {
                    found.push(frame);
                }
            }
        }
        found
    }

    fn frames(&self, address: u64) -> Vec<Frame> {
        let mut found = Vec::new();
        let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() else {
            return found;
        };
        while let Ok(Some(frame)) = frames.next() {
            let Some(at) = frame.location else { continue };
            let (Some(file), Some(line)) = (at.file, at.line) else { continue };
            let function = frame.function.as_ref().and_then(|name| name.raw_name().ok());
            let function = function.map(|name| readable(&name));
            found.push(Frame { function, file: file.to_owned(), line });
        }
        found
    }
}

/// A Rust name without its mangling.
#[must_use]
pub fn readable(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// The address that a section of a relocatable file is given here.
fn place(section: SectionIndex) -> u64 {
    (section.0 as u64 + 1) << 32
}

fn is_code(elf: &Elf<'_>, section: SectionIndex) -> bool {
    elf.section_by_index(section).is_ok_and(|section| section.kind() == SectionKind::Text)
}

/// The bytes of a section of debugging information, with its relocations carried out.
fn relocated(elf: &Elf<'_>, name: &str, relocatable: bool) -> Result<Bytes, object::Error> {
    let Some(section) = elf.section_by_name(name) else {
        return Ok(Bytes::new(Arc::from([]), LittleEndian));
    };
    let mut bytes = section.data()?.to_vec();
    if relocatable {
        for (offset, relocation) in section.relocations() {
            let target = match relocation.target() {
                RelocationTarget::Symbol(index) => address(elf, index)?,
                _ => 0,
            };
            let value = target.wrapping_add_signed(relocation.addend()).to_le_bytes();
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            let width = match r_type {
                elf::R_X86_64_64 => 8,
                elf::R_X86_64_32 => 4,
                _ => continue,
            };
            let at = offset as usize;
            if let Some(to) = bytes.get_mut(at..at + width) {
                to.copy_from_slice(&value[..width]);
            }
        }
    }
    Ok(Bytes::new(Arc::from(bytes), LittleEndian))
}

/// The address of a symbol: one of ours for code, its offset for everything else.
fn address(elf: &Elf<'_>, index: SymbolIndex) -> Result<u64, object::Error> {
    let symbol = elf.symbol_by_index(index)?;
    let section = symbol.section_index().filter(|&section| is_code(elf, section));
    Ok(section.map_or(0, place).wrapping_add(symbol.address()))
}

/// The first spot that a line of a log names, where it is in the line, and the module it belongs
/// to if the line says so.
#[must_use]
pub fn spot_in(line: &str) -> Option<(Spot, std::ops::Range<usize>, Option<&str>)> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || "_.$".contains(c);
    let hex = |text: &str| {
        let digits = text.strip_prefix("0x")?;
        let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        Some((u64::from_str_radix(&digits[..end], 16).ok()?, end + 2))
    };
    for (plus, _) in line.match_indices("+0x") {
        let start = line[..plus].rfind(|c| !in_name(c)).map_or(0, |at| at + 1);
        let Some((offset, len)) = hex(&line[plus + 1..]).filter(|_| start < plus) else { continue };
        let mut end = plus + 1 + len;
        let size = line[end..].strip_prefix('/').and_then(hex);
        if let Some((_, len)) = size {
            end += 1 + len;
        }
        let module = line[end..].strip_prefix(" [").and_then(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            Some(&rest[..end])
        });
        let before = line[..start].trim_end();
        // An address alone, the one that was being executed, and the one that warns are exact.
        let exact = before.is_empty() && start == 0
            || before.ends_with(" at")
            || before.rsplit_once("RIP: ").is_some_and(|(_, cs)| cs.ends_with(':'));
        let symbol = line[start..plus].to_owned();
        let size = size.map(|(size, _)| size);
        return Some((Spot { symbol, offset, size, after_call: !exact }, start..end, module));
    }
    None
}

/// The module whose symbols are meant if none is named.
#[must_use]
pub fn default_module(root: &Path) -> PathBuf {
    root.join("module/lguest.ko")
}
