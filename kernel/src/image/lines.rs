//! Addresses to functions and source lines.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use addr2line::{Context, LookupResult};
use gimli::{EndianSlice, LittleEndian};

use crate::layout::dwarf::{DebugInfo, Dwarf};

/// One function at one source line. Several describe one address when functions were inlined.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SourceFrame {
    /// The function's name.
    pub function: String,
    /// The source file as an absolute path without `.` and `..` where the DWARF allows;
    /// [`Image::relative_path`](crate::Image::relative_path) shortens it.
    pub file: Option<String>,
    /// The line, counted from 1.
    pub line: Option<u32>,
}

/// The line tables, parsed unit by unit as addresses ask for them.
pub(super) struct Lines {
    tables: OnceCell<Option<Tables>>,
    /// Profiles ask for the same few thousand addresses over and over.
    known: HashMap<u64, Vec<SourceFrame>>,
    debug: Arc<DebugInfo>,
}

struct Tables {
    context: Context<EndianSlice<'static, LittleEndian>>,
    /// Owns what `context` borrows; after it, so that it is dropped last.
    _dwarf: Arc<Dwarf>,
}

/// The cache is emptied when it has this many addresses, some tens of megabytes.
const CACHE_LIMIT: usize = 200_000;

impl Lines {
    /// Reads nothing yet: what is `known` may be all that is wanted.
    pub(super) fn new(debug: Arc<DebugInfo>, known: HashMap<u64, Vec<SourceFrame>>) -> Lines {
        Lines {
            tables: OnceCell::new(),
            known,
            debug,
        }
    }

    /// What was found out so far.
    pub(super) fn known(&self) -> &HashMap<u64, Vec<SourceFrame>> {
        &self.known
    }

    /// The functions at `addr`, innermost first. Empty when the DWARF does not know; one with an
    /// empty name when it knows the line, but not the function.
    pub(super) fn locate(&mut self, addr: u64) -> Vec<SourceFrame> {
        if let Some(known) = self.known.get(&addr) {
            return known.clone();
        }
        let tables = self.tables.get_or_init(|| Tables::new(self.debug.dwarf()?));
        let Some(tables) = tables else {
            return Vec::new();
        };
        let frames = find(&tables.context, addr).unwrap_or_default();
        if self.known.len() >= CACHE_LIMIT {
            self.known.clear();
        }
        self.known.insert(addr, frames.clone());
        frames
    }
}

impl Tables {
    fn new(dwarf: Arc<Dwarf>) -> Option<Tables> {
        // SAFETY: `_dwarf` keeps the sections alive for as long as `context` exists, and what
        // `locate` returns is owned.
        let sections = unsafe { dwarf.sections() };
        let context = Context::from_arc_dwarf(sections).ok()?;
        Some(Tables {
            context,
            _dwarf: dwarf,
        })
    }
}

fn find(
    context: &Context<EndianSlice<'static, LittleEndian>>,
    addr: u64,
) -> Result<Vec<SourceFrame>, gimli::Error> {
    // The kernel's inlining nests some ten deep; the bound is for DWARF that is broken.
    const MAX_INLINED: usize = 128;
    let mut lookup = context.find_frames(addr);
    let mut frames = loop {
        match lookup {
            LookupResult::Output(frames) => break frames?,
            // Split DWARF: Kconfig does not offer it on UML, and the .dwo files are not here.
            LookupResult::Load { continuation, .. } => {
                lookup = addr2line::LookupContinuation::resume(continuation, None);
            }
        }
    };
    let mut found = Vec::new();
    while let Some(frame) = frames.next()? {
        let location = frame.location;
        let function = frame
            .function
            .as_ref()
            .map(|name| name.raw_name())
            .transpose()?;
        found.push(SourceFrame {
            // Code without a function: assembly, and functions that the compiler merged.
            function: function.map(Cow::into_owned).unwrap_or_default(),
            file: location.as_ref().and_then(|at| at.file).map(normalize),
            line: location.and_then(|at| at.line).filter(|&line| line != 0),
        });
        if found.len() == MAX_INLINED {
            break;
        }
    }
    Ok(found)
}

/// Resolves `.` and `..` in a path by its text alone: the directories need not exist here.
pub(crate) fn normalize(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|&last| last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn paths_lose_their_detours() {
        assert_eq!(
            normalize("/b/o/../src/./kernel//fork.c"),
            "/b/src/kernel/fork.c"
        );
        assert_eq!(normalize("../src/kernel/fork.c"), "../src/kernel/fork.c");
        assert_eq!(normalize("/../a"), "/a");
        assert_eq!(normalize("a/../../b"), "../b");
    }
}
