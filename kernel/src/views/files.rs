//! The open files of a process, as /proc/PID/fd and fdinfo show them.

use std::fmt;

use serde::Serialize;

use crate::addr::{GuestPid, KernelAddr};
use crate::kernel::Corruption;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError, unreadable};
use crate::table::Table;
use crate::views::device::Device;
use crate::views::net::Sockets;
use crate::views::path::{FilePath, Paths};

/// What a process has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Files {
    /// The task.
    pub pid: GuestPid,
    /// Its name.
    pub comm: String,
    /// The directory that it is in. `None` when it has ended.
    pub cwd: Option<FilePath>,
    /// Its root directory. `None` when it has ended.
    pub root: Option<FilePath>,
    /// The program that it runs. `None` for the kernel's threads.
    pub exe: Option<FilePath>,
    /// Its open files by their numbers.
    pub files: Vec<OpenFile>,
}

/// An open file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenFile {
    /// Its number in the process.
    pub fd: u32,
    /// What kind of file it is.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// What it was opened for: `r`, `w`, `rw`, or `path` (O_PATH: only as a place).
    pub access: &'static str,
    /// How it was opened: the flags of open(2) without the `O_`, in lower case.
    pub flags: Vec<&'static str>,
    /// Where reading or writing goes on, bytes.
    pub pos: i64,
    /// The file's size in bytes.
    pub size: i64,
    /// Its path, as the process sees it, or a name such as `socket:[7]`.
    #[serde(rename = "name")]
    pub path: String,
    /// Whether the path leads to the file no longer.
    pub deleted: bool,
    /// The device of its file system.
    pub device: Device,
    /// Its inode number.
    pub inode: u64,
    /// The device that it stands for, if it does.
    pub rdev: Option<Device>,
    /// What kind of socket it is, its addresses, and its state, if it is one:
    /// `tcp 127.0.0.1:80 listen`.
    pub socket: Option<String>,
    /// The mount that it was opened through, as `kscope mounts` numbers them.
    pub mount: i64,
    /// The address of its `struct file`.
    pub addr: KernelAddr,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A pipe, with or without a name.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Link,
    /// Something that is used like a file: epoll, eventfd.
    Anon,
    /// Something else: memory is corrupt.
    Unknown,
}

impl FileKind {
    /// From an inode's mode, S_IFMT of inode(7).
    fn from_mode(mode: u64) -> FileKind {
        match mode & 0o170_000 {
            0o100_000 => FileKind::File,
            0o040_000 => FileKind::Dir,
            0o020_000 => FileKind::Char,
            0o060_000 => FileKind::Block,
            0o010_000 => FileKind::Fifo,
            0o140_000 => FileKind::Socket,
            0o120_000 => FileKind::Link,
            0 => FileKind::Anon,
            _ => FileKind::Unknown,
        }
    }

    /// As in JSON.
    fn name(self) -> &'static str {
        match self {
            FileKind::File => "file",
            FileKind::Dir => "dir",
            FileKind::Char => "char",
            FileKind::Block => "block",
            FileKind::Fifo => "fifo",
            FileKind::Socket => "socket",
            FileKind::Link => "link",
            FileKind::Anon => "anon",
            FileKind::Unknown => "?",
        }
    }
}

/// The flags of open(2) that a file keeps; ABI, include/uapi/asm-generic/fcntl.h.
const FLAGS: [(u64, &str); 12] = [
    (0o2_000, "append"),
    (0o4_000, "nonblock"),
    (0o20_000, "async"),
    (0o40_000, "direct"),
    (0o100_000, "largefile"),
    (0o200_000, "directory"),
    (0o400_000, "nofollow"),
    (0o1_000_000, "noatime"),
    (0o10_000_000, "path"),
    (0o20_000_000, "tmpfile"),
    // Two bits, of which one alone means another thing.
    (0o4_010_000, "sync"),
    (0o10_000, "dsync"),
];

const O_PATH: u64 = 0o10_000_000;

fn flag_names(flags: u64) -> Vec<&'static str> {
    let mut rest = flags;
    let mut names = Vec::new();
    for (bits, name) in FLAGS {
        if rest & bits == bits {
            rest &= !bits;
            names.push(name);
        }
    }
    names
}

/// A file in the table of a process.
pub(super) struct Slot<'r, M> {
    pub(super) fd: u32,
    pub(super) file: Object<'r, M>,
    pub(super) close_on_exec: bool,
}

/// Slots that are read at once.
const CHUNK: u64 = 512;

/// The highest limit that `fs.nr_open` can be set to is 2^30; nobody comes near.
const MAX_SLOTS: u64 = 1 << 24;

/// More files than a guest has room for, if they are not all the same one.
const MAX_FILES: usize = 1 << 16;

impl<M: Memory> Reader<'_, M> {
    /// What the task with this pid has open.
    ///
    /// # Errors
    ///
    /// When there is no such task, or this kernel's types are not known.
    pub fn files(&self, pid: GuestPid) -> Result<Files, ViewError> {
        let (task, object) = self.find_task(pid)?;
        let paths = self.paths_of(&object)?;
        let directory = |fs: &Object<'_, M>, which| {
            let place = super::path::Place::read(&fs.member(which)?)?;
            paths.path(place)
        };
        let (cwd, root) = match object.follow("fs")? {
            Some(fs) => (
                self.or_warn(directory(&fs, "pwd")),
                self.or_warn(directory(&fs, "root")),
            ),
            None => (None, None),
        };
        let exe = match object.follow("mm")? {
            Some(mm) => mm.follow("exe_file")?,
            None => None,
        };
        let exe = exe.and_then(|file| self.or_warn(paths.file(&file)));
        let mut files = Vec::new();
        // None in a kernel without network.
        let sockets = Sockets::new(self).ok();
        for slot in self.open_files(&object)? {
            if self.is_hopeless() {
                break;
            }
            let Some(mut file) = self.or_warn(open_file(&slot, &paths)) else {
                continue;
            };
            if let (FileKind::Socket, Some(sockets)) = (file.kind, &sockets) {
                let socket = sockets.describe(&slot.file);
                file.socket = self.or_warn(socket).flatten();
            }
            files.push(file);
        }
        Ok(Files {
            pid,
            comm: task.comm,
            cwd,
            root,
            exe,
            files,
        })
    }

    /// The files in a task's table. None when it has ended.
    pub(super) fn open_files(&self, task: &Object<'_, M>) -> Result<Vec<Slot<'_, M>>, ViewError> {
        let mut slots = Vec::new();
        let Some(files) = task.follow("files")? else {
            return Ok(slots);
        };
        let table = files.deref("fdt")?;
        let count = table.u64("max_fds")?.min(MAX_SLOTS);
        let array = table.pointer("fd")?;
        let close_on_exec = table.pointer("close_on_exec")?;
        let mut first = 0;
        while first < count && !self.is_hopeless() {
            if slots.len() >= MAX_FILES {
                self.warn(Corruption::TooLong {
                    what: "open file",
                    limit: MAX_FILES,
                });
                break;
            }
            let len = CHUNK.min(count - first);
            let words = self.words(array + first * 8, len);
            // The end of what is there: nothing beyond it is worth a try.
            let Some(words) = self.or_warn(words) else {
                break;
            };
            let bits = self.words(close_on_exec + first / 8, len.div_ceil(64));
            let bits = self.or_warn(bits).unwrap_or_default();
            for (fd, _) in (first..).zip(words).filter(|&(_, word)| word != 0) {
                // Again, so that it is noticed when it changes.
                let file = self.pointer(array + fd * 8, "open file");
                let Some(file) = self.or_warn(file).filter(|file| !file.is_null()) else {
                    continue;
                };
                let at = fd - first;
                let word = bits.get((at / 64) as usize).copied().unwrap_or(0);
                slots.push(Slot {
                    fd: fd as u32,
                    file: self.object("struct file", file),
                    close_on_exec: word >> (at % 64) & 1 == 1,
                });
            }
            first += len;
        }
        Ok(slots)
    }

    fn words(&self, at: KernelAddr, count: u64) -> Result<Vec<u64>, ViewError> {
        let bytes = self.kernel().read_vec(at, count as usize * 8);
        let bytes = bytes.map_err(|source| unreadable("table of open files", source))?;
        let words = bytes.chunks_exact(8);
        Ok(words
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect())
    }
}

fn open_file<M: Memory>(slot: &Slot<'_, M>, paths: &Paths<'_, M>) -> Result<OpenFile, ViewError> {
    let file = &slot.file.clone().fetched();
    let inode = file.deref("f_inode")?.fetched();
    let path = paths.file(file)?;
    let bits = file.u64("f_flags")?;
    let mut flags = flag_names(bits);
    if slot.close_on_exec {
        flags.push("cloexec");
    }
    // Anonymous inodes have the mode of a regular file from 6.17.
    let kind = match path.path.starts_with("anon_inode:") {
        true => FileKind::Anon,
        false => FileKind::from_mode(inode.u64("i_mode")?),
    };
    let rdev = match kind {
        FileKind::Char | FileKind::Block => Some(Device::from_bits(inode.u64("i_rdev")?)),
        _ => None,
    };
    let mount = file.deref("f_path.mnt")?;
    Ok(OpenFile {
        fd: slot.fd,
        kind,
        access: match (bits & O_PATH, bits & 3) {
            (0, 0) => "r",
            (0, 1) => "w",
            (0, _) => "rw",
            _ => "path",
        },
        flags,
        pos: file.i64("f_pos")?,
        size: inode.i64("i_size")?,
        path: path.path,
        deleted: path.deleted,
        device: Device::from_bits(inode.deref("i_sb")?.u64("s_dev")?),
        inode: inode.u64("i_ino")?,
        rdev,
        socket: None,
        mount: mount.container("struct mount", "mnt")?.i64("mnt_id")?,
        addr: file.addr(),
    })
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["FD", "TYPE", "MODE", "FLAGS", ">POS", ">SIZE", "NAME"]);
        let places = [
            ("cwd", "dir", &self.cwd),
            ("root", "dir", &self.root),
            ("exe", "file", &self.exe),
        ];
        for (which, kind, path) in places {
            if let Some(path) = path {
                table.row([which, kind, "-", "-", "-", "-", &path.to_string()]);
            }
        }
        for file in &self.files {
            // Every file of a 64-bit process has it.
            let flags = file.flags.iter().filter(|&&flag| flag != "largefile");
            let flags: Vec<_> = flags.copied().collect();
            let deleted = if file.deleted { " (deleted)" } else { "" };
            let socket = file.socket.as_ref();
            let socket = socket.map_or(String::new(), |socket| format!(" {socket}"));
            table.row([
                file.fd.to_string(),
                file.kind.name().to_owned(),
                file.access.to_owned(),
                match flags.is_empty() {
                    true => "-".to_owned(),
                    false => flags.join(","),
                },
                file.pos.to_string(),
                match file.kind {
                    FileKind::File => file.size.to_string(),
                    _ => "-".to_owned(),
                },
                format!("{}{deleted}{socket}", file.path),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_bits_of_sync_is_dsync() {
        assert_eq!(flag_names(0o4_012_001), ["append", "sync"]);
        assert_eq!(flag_names(0o10_000), ["dsync"]);
        assert_eq!(flag_names(0), [""; 0]);
    }
}
