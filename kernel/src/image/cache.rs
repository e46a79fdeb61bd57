//! What was found out about a kernel's types and source lines, kept on disk.
//!
//! DWARF describes some 700 files over and over; a command asks for a few hundred facts in it, and
//! they never change for one binary. A few files per build-id keep them: what every command needs
//! in one, and what only some need in others.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Raised when what is in a file changes its meaning.
const VERSION: u32 = 4;

/// Bytes of the largest file that is read.
const MAX_FILE: u64 = 64 << 20;

/// One file of one kernel.
pub(crate) struct Cache {
    path: PathBuf,
    /// A rebuilt binary with an old build-id (of a linker that was told to invent one) mostly has
    /// another length.
    image_len: u64,
    /// How many facts the file has.
    kept: AtomicUsize,
}

#[derive(Serialize, Deserialize)]
struct Content<T> {
    version: u32,
    image_len: u64,
    facts: usize,
    content: T,
}

impl Cache {
    /// The file whose name ends in `kind`.
    pub(crate) fn new(directory: &Path, build_id: &str, kind: &str, image_len: u64) -> Cache {
        Cache {
            path: directory.join(format!("{build_id}.{kind}")),
            image_len,
            kept: AtomicUsize::new(0),
        }
    }

    /// `None` when there is no file, or none of this version and kernel.
    pub(crate) fn load<T: DeserializeOwned>(&self) -> Option<T> {
        let mut bytes = Vec::new();
        let file = File::open(&self.path).ok()?;
        file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
        let (version, _) = postcard::take_from_bytes::<u32>(&bytes).ok()?;
        if version != VERSION {
            return None;
        }
        let content: Content<T> = postcard::from_bytes(&bytes).ok()?;
        if content.image_len != self.image_len {
            return None;
        }
        self.kept.store(content.facts, Ordering::Relaxed);
        Some(content.content)
    }

    /// Writes the file when there are more `facts` than it has. Two commands at once: the last one
    /// wins, and the other's facts are found out again.
    pub(crate) fn save<T: Serialize>(&self, facts: usize, content: &T) -> io::Result<()> {
        if facts == self.kept.load(Ordering::Relaxed) {
            return Ok(());
        }
        let bytes = postcard::to_stdvec(&Content {
            version: VERSION,
            image_len: self.image_len,
            facts,
            content,
        })
        .map_err(io::Error::other)?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&bytes)?;
        file.persist(&self.path)?;
        self.kept.store(facts, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use super::*;
    use crate::image::SourceFrame;

    type SourceLines = HashMap<u64, Vec<SourceFrame>>;

    #[test]
    fn what_is_kept_is_read_by_the_same_kernel_only() {
        let dir = tempfile::tempdir().unwrap();
        let frame = SourceFrame {
            function: "schedule".to_owned(),
            file: None,
            line: Some(7),
        };
        let lines = HashMap::from([(0x6000_0000, vec![frame])]);
        let at = |len| Cache::new(&dir.path().join("new"), "ab12", "facts", len);
        let cache = at(100);
        assert!(cache.load::<SourceLines>().is_none());
        cache.save(1, &lines).unwrap();
        let again = at(100);
        assert_eq!(again.load::<SourceLines>(), Some(lines));
        assert!(at(101).load::<SourceLines>().is_none());
        // Cut at any byte it is no cache, and no more than that.
        let bytes = fs::read(&again.path).unwrap();
        for len in 0..bytes.len() {
            fs::write(&again.path, &bytes[..len]).unwrap();
            assert!(again.load::<SourceLines>().is_none(), "{len}");
        }
    }
}
