//! Reads `.gcno` files: the flow graphs that GCC leaves beside each object.
//!
//! The format is described in GCC's `gcov-io.h`. What changed over the years
//! and matters here:
//!
//! | GCC | change |
//! |---|---|
//! | 7  | a function names its file and first line only; one word per block |
//! | 8  | `has_unexecuted_blocks` in the header; functions gain `artificial`, column and last line; BLOCKS holds a number |
//! | 9  | the header gains the compiler's working directory, functions their last column |
//! | 12 | the header gains a checksum; lengths count bytes, not words; strings are no longer padded, so what follows is unaligned |
//! | 14 | condition records (skipped) |
//! | 15 | path records (skipped) |

mod cursor;

use std::fmt;
use std::ops::Range;

use cursor::Cursor;

/// `gcno`, as a little-endian word.
const MAGIC: u32 = 0x6763_6e6f;
const TAG_FUNCTION: u32 = 0x0100_0000;
const TAG_BLOCKS: u32 = 0x0141_0000;
const TAG_ARCS: u32 = 0x0143_0000;
const TAG_LINES: u32 = 0x0145_0000;

const ARC_ON_TREE: u32 = 1;
const ARC_FAKE: u32 = 2;
const ARC_FALLTHROUGH: u32 = 4;

/// The compiler's version word, as in `.gcno`, `.gcda` and `struct gcov_info`.
///
/// Four ASCII characters, the first in the most significant byte: `B22*` is
/// GCC 12.2 (tens of the major version from `A`, its ones, the minor version,
/// the release status).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GccVersion(pub u32);

impl GccVersion {
    /// The major version, or `None` when the word is no version of GCC ≥ 5.
    pub fn major(self) -> Option<u32> {
        let [tens, ones, minor, _] = self.0.to_be_bytes();
        let known = tens.is_ascii_uppercase() && ones.is_ascii_digit() && minor.is_ascii_digit();
        known.then(|| u32::from(tens - b'A') * 10 + u32::from(ones - b'0'))
    }

    /// Whether the files have a checksum and count in bytes (GCC 12 and later).
    pub(crate) fn counts_bytes(self) -> bool {
        self.major().is_some_and(|m| m >= 12)
    }
}

impl fmt::Display for GccVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.major() {
            Some(major) => write!(f, "{major}.{}", self.0.to_be_bytes()[2] - b'0'),
            None => write!(f, "0x{:08x}", self.0),
        }
    }
}

impl fmt::Debug for GccVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GccVersion({self})")
    }
}

/// Why a `.gcno` file could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotesError {
    /// The file does not begin as a little-endian `.gcno` does.
    #[error("not a gcov notes file")]
    NotNotes,
    /// The compiler is older than GCC 7, or no GCC.
    #[error("written by an unknown compiler (version word 0x{0:08x}; GCC 7 or later is needed)")]
    Version(u32),
    /// The file ends inside a record.
    #[error("truncated at byte {0}")]
    Truncated(usize),
    /// A record contradicts an earlier one.
    #[error("corrupt at byte {at}: {what}")]
    Corrupt {
        /// Where the record begins.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// One object's notes.
#[derive(Debug, Clone)]
pub struct Notes {
    /// The compiler that wrote them.
    pub version: GccVersion,
    /// Identifies the compilation; `struct gcov_info` carries the same word.
    pub stamp: u32,
    /// The compiler's working directory (GCC 9 and later).
    pub cwd: Option<String>,
    /// The files that functions and lines refer to by index, without `.` and
    /// `..`; relative to the compiler's working directory, or absolute.
    pub sources: Vec<String>,
    /// In the order of the file.
    pub functions: Vec<NotedFunction>,
}

/// A function's flow graph.
#[derive(Debug, Clone)]
pub struct NotedFunction {
    /// Unique within the object; `struct gcov_fn_info` carries the same word.
    pub ident: u32,
    /// Checksum over the function's place in the source.
    pub lineno_checksum: u32,
    /// Checksum over the flow graph.
    pub cfg_checksum: u32,
    /// The assembler name.
    pub name: String,
    /// Made by the compiler, not written in the source: gcov leaves it out.
    pub artificial: bool,
    /// Index into [`Notes::sources`].
    pub source: u32,
    /// First line, from 1.
    pub start_line: u32,
    /// Column of the beginning; 0 before GCC 8.
    pub start_column: u32,
    /// Last line; before GCC 8, the last line of the function's file that a block names.
    pub end_line: u32,
    /// Column of the end; 0 before GCC 9.
    pub end_column: u32,
    /// Arcs, those of one block together.
    pub arcs: Vec<NotedArc>,
    /// For each block, its arcs; block 0 is the entry, block 1 the exit.
    pub blocks: Vec<Range<u32>>,
    /// Where blocks come from, in the order of the file.
    pub locations: Vec<Location>,
    /// The line numbers that [`Location::lines`] points into.
    pub lines: Vec<u32>,
}

/// An arc between two blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotedArc {
    /// The block that it leads to.
    pub target: u32,
    /// Part of the spanning tree: has no counter, its count is inferred.
    pub on_tree: bool,
    /// Not a jump of the program: a call that may not return, or one that returns twice.
    pub fake: bool,
    /// The block after this one in the code.
    pub fallthrough: bool,
}

/// The lines of one file that a block belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The block.
    pub block: u32,
    /// Index into [`Notes::sources`].
    pub source: u32,
    /// Into [`NotedFunction::lines`].
    pub lines: Range<u32>,
}

impl NotedFunction {
    /// How many arc counters the function has.
    pub fn counters(&self) -> usize {
        self.arcs.iter().filter(|a| !a.on_tree).count()
    }
}

impl Notes {
    /// Reads the contents of a `.gcno` file.
    ///
    /// # Errors
    ///
    /// When it is none, is of an unknown version, or is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotesError> {
        let mut cursor = Cursor {
            bytes,
            at: 0,
            end: bytes.len(),
            unit: 4,
        };
        if cursor.word() != Ok(MAGIC) {
            return Err(NotesError::NotNotes);
        }
        let version = GccVersion(cursor.word()?);
        let major = version
            .major()
            .filter(|m| *m >= 7)
            .ok_or(NotesError::Version(version.0))?;
        if version.counts_bytes() {
            cursor.unit = 1;
        }
        let stamp = cursor.word()?;
        if version.counts_bytes() {
            cursor.word()?;
        }
        let cwd = if major >= 9 {
            cursor.string()?.map(lossy)
        } else {
            None
        };
        if major >= 8 {
            // Whether gcov's text output may mark lines with unexecuted
            // blocks; its JSON output, which kscope follows, always does.
            cursor.word()?;
        }
        let mut notes = Notes {
            version,
            stamp,
            cwd,
            sources: Vec::new(),
            functions: Vec::new(),
        };
        notes.records(cursor, major)?;
        Ok(notes)
    }

    fn records<'a>(&mut self, mut cursor: Cursor<'a>, major: u32) -> Result<(), NotesError> {
        let mut sources = Sources {
            names: Vec::new(),
            last: 0,
        };
        // Blocks are known for the function at hand.
        let mut open = false;
        // Every block but the exits has a record of its own, so a number that
        // does not fit the file is damage, and no reason to allocate gigabytes.
        let mut room = cursor.end / 8;
        while cursor.at < cursor.end {
            let at = cursor.at;
            let tag = cursor.word()?;
            if tag == 0 {
                break;
            }
            let length = cursor.word()? as usize;
            let end = length
                .checked_mul(cursor.unit)
                .and_then(|l| cursor.at.checked_add(l))
                .filter(|end| *end <= cursor.end)
                .ok_or(NotesError::Truncated(cursor.end))?;
            let mut record = Cursor { end, ..cursor };
            cursor.at = end;
            match tag {
                TAG_FUNCTION => {
                    self.functions
                        .push(function(&mut record, major, &mut sources)?);
                    open = true;
                }
                TAG_BLOCKS | TAG_ARCS | TAG_LINES if open => {
                    let Some(function) = self.functions.last_mut() else {
                        continue;
                    };
                    match tag {
                        TAG_BLOCKS => blocks(function, &mut record, major, at, &mut room)?,
                        TAG_ARCS => arcs(function, &mut record, at)?,
                        _ => lines(function, &mut record, at, &mut sources)?,
                    }
                }
                // Conditions, paths and whatever comes next belong to the
                // function too (their tags differ from its only in the lower
                // bits); anything else ends it.
                _ => open = open && tag & 0xff00_0000 == TAG_FUNCTION,
            }
        }
        self.name_sources(&sources.names);
        if major < 8 {
            for function in &mut self.functions {
                function.end_line = last_line(function);
            }
        }
        Ok(())
    }
}

impl Notes {
    /// Sets the names of the sources, each file under one name. Includes such
    /// as `fs/proc/../mount.h` give a file as many names as there are ways to it.
    fn name_sources(&mut self, names: &[&[u8]]) {
        let mut places = Vec::with_capacity(names.len());
        for name in names {
            let name = tidy(&lossy(name));
            let place = self.sources.iter().position(|n| *n == name);
            places.push(place.unwrap_or(self.sources.len()) as u32);
            if place.is_none() {
                self.sources.push(name);
            }
        }
        for function in &mut self.functions {
            function.source = places[function.source as usize];
            for location in &mut function.locations {
                location.source = places[location.source as usize];
            }
        }
    }
}

/// Removes `.`, doubled slashes, and `..` with what precedes it.
///
/// gcov does the same, but keeps a `..` after a directory that does not exist
/// where gcov happens to run.
pub(crate) fn tidy(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match parts.last() {
            Some(last) if part == ".." && *last != ".." => {
                parts.pop();
            }
            // There is nothing above the root.
            None if part == ".." && name.starts_with('/') => {}
            _ => parts.push(part),
        }
    }
    let root = if name.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

/// The last line of the function's own file that one of its blocks names.
fn last_line(function: &NotedFunction) -> u32 {
    let own = function
        .locations
        .iter()
        .filter(|l| l.source == function.source);
    own.flat_map(|l| &function.lines[l.lines.start as usize..l.lines.end as usize])
        .copied()
        .max()
        .unwrap_or(function.start_line)
        .max(function.start_line)
}

fn function<'a>(
    record: &mut Cursor<'a>,
    major: u32,
    sources: &mut Sources<'a>,
) -> Result<NotedFunction, NotesError> {
    let ident = record.word()?;
    let lineno_checksum = record.word()?;
    let cfg_checksum = record.word()?;
    let name = lossy(record.string()?.unwrap_or_default());
    let artificial = major >= 8 && record.word()? != 0;
    let source = sources.index(record.string()?.unwrap_or(b"<unknown>"));
    let start_line = record.word()?;
    let (start_column, end_line) = if major >= 8 {
        (record.word()?, record.word()?)
    } else {
        (0, start_line)
    };
    let end_column = if major >= 9 { record.word()? } else { 0 };
    Ok(NotedFunction {
        ident,
        lineno_checksum,
        cfg_checksum,
        name,
        artificial,
        source,
        start_line,
        start_column,
        end_line,
        end_column,
        arcs: Vec::new(),
        blocks: Vec::new(),
        locations: Vec::new(),
        lines: Vec::new(),
    })
}

fn blocks(
    function: &mut NotedFunction,
    record: &mut Cursor<'_>,
    major: u32,
    at: usize,
    room: &mut usize,
) -> Result<(), NotesError> {
    if !function.blocks.is_empty() {
        return Err(NotesError::Corrupt {
            at,
            what: "a function's blocks are given twice",
        });
    }
    let count = if major >= 8 {
        record.word()? as usize
    } else {
        (record.end - record.at) / 4
    };
    *room = room.checked_sub(count).ok_or(NotesError::Corrupt {
        at,
        what: "more blocks than the file has room for",
    })?;
    function.blocks = vec![0..0; count];
    Ok(())
}

fn arcs(
    function: &mut NotedFunction,
    record: &mut Cursor<'_>,
    at: usize,
) -> Result<(), NotesError> {
    let block = record.word()? as usize;
    let count = function.blocks.len();
    let Some(slot) = function.blocks.get_mut(block) else {
        return Err(NotesError::Corrupt {
            at,
            what: "arcs of a block that does not exist",
        });
    };
    if slot.start != slot.end {
        return Err(NotesError::Corrupt {
            at,
            what: "a block's arcs are given twice",
        });
    }
    let first = function.arcs.len() as u32;
    for _ in 0..(record.end - record.at) / 8 {
        let target = record.word()?;
        let flags = record.word()?;
        if target as usize >= count {
            return Err(NotesError::Corrupt {
                at,
                what: "an arc to a block that does not exist",
            });
        }
        function.arcs.push(NotedArc {
            target,
            on_tree: flags & ARC_ON_TREE != 0,
            fake: flags & ARC_FAKE != 0,
            fallthrough: flags & ARC_FALLTHROUGH != 0,
        });
    }
    *slot = first..function.arcs.len() as u32;
    Ok(())
}

fn lines<'a>(
    function: &mut NotedFunction,
    record: &mut Cursor<'a>,
    at: usize,
    sources: &mut Sources<'a>,
) -> Result<(), NotesError> {
    let block = record.word()?;
    if block as usize >= function.blocks.len() {
        return Err(NotesError::Corrupt {
            at,
            what: "lines of a block that does not exist",
        });
    }
    let mut location: Option<Location> = None;
    loop {
        let line = record.word()?;
        if line != 0 {
            let Some(location) = &mut location else {
                return Err(NotesError::Corrupt {
                    at,
                    what: "a line before its file",
                });
            };
            function.lines.push(line);
            location.lines.end += 1;
            continue;
        }
        function.locations.extend(location.take());
        let Some(name) = record.string()? else { break };
        let start = function.lines.len() as u32;
        location = Some(Location {
            block,
            source: sources.index(name),
            lines: start..start,
        });
    }
    Ok(())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The names of the files, each once.
struct Sources<'a> {
    names: Vec<&'a [u8]>,
    /// The one that was asked for last is asked for most.
    last: usize,
}

impl<'a> Sources<'a> {
    fn index(&mut self, name: &'a [u8]) -> u32 {
        if self.names.get(self.last) != Some(&name) {
            // Objects refer to tens of files, seldom hundreds.
            self.last = self
                .names
                .iter()
                .position(|n| *n == name)
                .unwrap_or_else(|| {
                    self.names.push(name);
                    self.names.len() - 1
                });
        }
        self.last as u32
    }
}

#[cfg(test)]
mod tests;
