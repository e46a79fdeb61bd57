//! What the guest's kernel prints.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Lines kept for reports.
const TAIL: usize = 200;
/// A line is cut here, in bytes; the kernel's own are at most 1 KiB.
const MAX_LINE: usize = 4096;
/// How a panic begins, in every kernel.
pub(crate) const PANIC: &str = "Kernel panic - not syncing: ";

/// The log file, and the last lines.
#[derive(Debug)]
pub(crate) struct KernelLog {
    path: PathBuf,
    file: Option<File>,
    partial: Vec<u8>,
    tail: VecDeque<String>,
    panic: Option<String>,
}

impl KernelLog {
    /// Writes to a new or emptied file at `path`.
    pub(crate) fn create(path: &Path) -> io::Result<KernelLog> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        Ok(KernelLog {
            path: path.to_owned(),
            file: Some(file),
            partial: Vec::new(),
            tail: VecDeque::new(),
            panic: None,
        })
    }

    /// Adds what the kernel has printed.
    ///
    /// # Errors
    ///
    /// The file cannot be written; it is given up, and the lines for reports
    /// are still kept.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), (PathBuf, io::Error)> {
        for &byte in bytes {
            if byte == b'\n' || self.partial.len() >= MAX_LINE {
                self.end_line();
            }
            if byte != b'\n' && byte != b'\r' {
                self.partial.push(byte);
            }
        }
        if let Some(file) = &mut self.file
            && let Err(e) = file.write_all(bytes)
        {
            self.file = None;
            return Err((self.path.clone(), e));
        }
        Ok(())
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        if self.panic.is_none()
            && let Some(at) = line.find(PANIC)
        {
            self.panic = Some(line[at + PANIC.len()..].trim().to_owned());
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The reason of the panic that the kernel says it is in. Any program in
    /// the guest can write such a line.
    pub(crate) fn panic(&self) -> Option<&str> {
        self.panic.as_deref()
    }

    /// Forgets a panic that turned out to be none.
    pub(crate) fn dismiss_panic(&mut self) {
        self.panic = None;
    }

    /// The last lines, with one that is not finished.
    pub(crate) fn tail(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.tail.iter().cloned().collect();
        if !self.partial.is_empty() {
            lines.push(String::from_utf8_lossy(&self.partial).into_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_pieces_and_with_timestamps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = KernelLog::create(&path).unwrap();
        log.add(b"[    0.1] hello\r\n[    0.2] Kernel panic - not")
            .unwrap();
        assert_eq!(log.panic(), None);
        log.add(b" syncing: sysrq triggered crash\n[    0.3] CPU")
            .unwrap();
        assert_eq!(log.panic(), Some("sysrq triggered crash"));
        assert_eq!(log.tail().len(), 3);
        assert_eq!(log.tail()[2], "[    0.3] CPU");
        log.dismiss_panic();
        assert_eq!(log.panic(), None);
        assert!(std::fs::read(&path).unwrap().ends_with(b"CPU"));
    }

    #[test]
    fn endless_lines_and_endless_logs_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = KernelLog::create(&dir.path().join("log")).unwrap();
        log.add(&vec![b'x'; 1 << 20]).unwrap();
        assert!(log.tail().len() <= TAIL + 1);
        assert!(log.tail().iter().all(|l| l.len() <= MAX_LINE));
    }
}
