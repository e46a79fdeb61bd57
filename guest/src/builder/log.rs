//! What a build says: its log, and what can be read from it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::StorageError;

/// How many lines of a failed build's log are shown.
pub(super) const TAIL: usize = 20;

/// Whether a line of kbuild's output is a step: `  CC      init/main.o`.
pub(super) fn is_step(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("  ") else {
        return false;
    };
    let word = rest.split(' ').next().unwrap_or_default();
    word.len() >= 2
        && word.len() < rest.len()
        && word
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

/// The log of a build: a file, and its last lines.
pub(super) struct Log {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) tail: VecDeque<String>,
}

impl Log {
    pub(super) fn create(path: &Path) -> Result<Self, StorageError> {
        Ok(Self {
            path: path.to_owned(),
            file: File::create(path).map_err(StorageError::at(path))?,
            tail: VecDeque::new(),
        })
    }

    pub(super) fn command(&mut self, command: &Command) -> Result<(), StorageError> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        self.line(&format!("+ {}", words.join(" ")))
    }

    pub(super) fn line(&mut self, line: &str) -> Result<(), StorageError> {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .map_err(StorageError::at(&self.path))
    }

    pub(super) fn tail(&self) -> String {
        let lines: Vec<String> = self.tail.iter().map(|line| format!("  {line}")).collect();
        lines.join("\n")
    }
}
