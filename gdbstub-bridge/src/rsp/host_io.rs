//! `vFile`: the host's files, so that a client on another machine finds the program and its libraries.
//!
//! GDB manual, "Host I/O Packets". Of an ordinary process only: whoever may debug it may do this anyway.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use super::encode::{Reply, from_hex, number, split, unescape};
use super::link::PACKET_SIZE;
use crate::target::GuestTarget;

/// The most bytes of one reply: all of them may need an escape.
const MOST: usize = (PACKET_SIZE - 32) / 2;
/// The most files that a client can have open.
const MOST_FILES: usize = 64;

/// Files that the client has open, by its numbers.
#[derive(Debug, Default)]
pub(crate) struct Files(BTreeMap<u64, File>);

pub(super) fn answer(target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    let process = target.process.as_mut()?;
    let request = packet.strip_prefix(b"vFile:")?;
    let (operation, arguments) = split(request, b':')?;
    let arguments: Vec<_> = match operation {
        // The data may have anything in it.
        b"pwrite" => arguments.splitn(3, |&byte| byte == b',').collect(),
        _ => arguments.split(|&byte| byte == b',').collect(),
    };
    let result = match (operation, &arguments[..]) {
        (b"open", [path, flags, mode]) => process.files.open(path, flags, mode),
        (b"close", [fd]) => process.files.close(fd),
        (b"pread", [fd, count, offset]) => process.files.read(fd, count, offset),
        (b"pwrite", [fd, offset, data]) => process.files.write(fd, offset, data),
        (b"fstat", [fd]) => process.files.stat(fd),
        (b"unlink", [path]) => with_path(path, |path| {
            fs::remove_file(path)?;
            Ok((0, None))
        }),
        (b"readlink", [path]) => with_path(path, |path| {
            let target = fs::read_link(path)?;
            let bytes = target.as_os_str().as_bytes().to_vec();
            Ok((bytes.len() as u64, Some(bytes)))
        }),
        // Whose file system is seen: that of this process, as any other is not known here.
        (b"setfs", [_]) => Ok((0, None)),
        _ => return None,
    };
    Some(match result {
        Ok((value, attachment)) => {
            let mut reply = Reply::text(&format!("F{value:x}"));
            if let Some(bytes) = attachment {
                reply.escaped(b";");
                reply.escaped(&bytes);
            }
            reply
        }
        Err(error) => Reply::text(&format!("F-1,{:x}", number_of(&error))),
    })
}

/// A number, and bytes that go with it.
type Outcome = io::Result<(u64, Option<Vec<u8>>)>;

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn argument(digits: &[u8]) -> io::Result<u64> {
    number(digits).ok_or_else(invalid)
}

fn with_path(hex: &[u8], act: impl FnOnce(&OsStr) -> Outcome) -> Outcome {
    let bytes = from_hex(hex).ok_or_else(invalid)?;
    act(OsStr::from_bytes(&bytes))
}

/// The error in the protocol's numbers: GDB manual, "Errno Values".
fn number_of(error: &io::Error) -> i32 {
    const UNKNOWN: i32 = 9999;
    match error.raw_os_error() {
        Some(libc::ENAMETOOLONG) => 91,
        // The oldest have the numbers that they have everywhere.
        Some(
            errno @ (libc::EPERM
            | libc::ENOENT
            | libc::EINTR
            | libc::EIO
            | libc::EBADF
            | libc::EACCES
            | libc::EFAULT
            | libc::EBUSY
            | libc::EEXIST
            | libc::ENODEV
            | libc::ENOTDIR
            | libc::EISDIR
            | libc::EINVAL
            | libc::ENFILE
            | libc::EMFILE
            | libc::EFBIG
            | libc::ENOSPC
            | libc::ESPIPE
            | libc::EROFS),
        ) => errno,
        _ => UNKNOWN,
    }
}

impl Files {
    fn get(&self, fd: &[u8]) -> io::Result<&File> {
        let file = self.0.get(&argument(fd)?);
        file.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    fn open(&mut self, path: &[u8], flags: &[u8], mode: &[u8]) -> Outcome {
        const ACCESS: u64 = 0x3;
        let flags = argument(flags)?;
        let mode = u32::try_from(argument(mode)?).map_err(|_| invalid())?;
        let access = flags & ACCESS;
        let mut options = OpenOptions::new();
        options
            .read(access != 1)
            .write(matches!(access, 1 | 2))
            .append(flags & 0x8 != 0)
            .create(flags & 0x200 != 0)
            .truncate(flags & 0x400 != 0)
            .mode(mode & 0o777)
            // What is no regular file may have nobody at its other end.
            .custom_flags(libc::O_NONBLOCK);
        if flags & 0x800 != 0 {
            options.create_new(true);
        }
        if self.0.len() >= MOST_FILES {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        with_path(path, |path| {
            let file = options.open(path)?;
            let number = (0..).find(|number| !self.0.contains_key(number));
            let number = number.ok_or_else(invalid)?;
            self.0.insert(number, file);
            Ok((number, None))
        })
    }

    fn close(&mut self, fd: &[u8]) -> Outcome {
        self.get(fd)?;
        self.0.remove(&argument(fd)?);
        Ok((0, None))
    }

    fn read(&self, fd: &[u8], count: &[u8], offset: &[u8]) -> Outcome {
        let file = self.get(fd)?;
        let count = usize::try_from(argument(count)?).unwrap_or(MOST).min(MOST);
        let mut bytes = vec![0; count];
        let read = file.read_at(&mut bytes, argument(offset)?)?;
        bytes.truncate(read);
        Ok((read as u64, Some(bytes)))
    }

    fn write(&self, fd: &[u8], offset: &[u8], data: &[u8]) -> Outcome {
        let bytes = unescape(data).ok_or_else(invalid)?;
        let written = self.get(fd)?.write_at(&bytes, argument(offset)?)?;
        Ok((written as u64, None))
    }

    /// GDB manual, "struct stat": every number with its most significant byte first.
    fn stat(&self, fd: &[u8]) -> Outcome {
        let meta = self.get(fd)?.metadata()?;
        let mut bytes = Vec::new();
        let word = |value: u64| (value as u32).to_be_bytes();
        bytes.extend(word(meta.dev()));
        bytes.extend(word(meta.ino()));
        bytes.extend(word(u64::from(meta.mode())));
        bytes.extend(word(meta.nlink()));
        bytes.extend(word(u64::from(meta.uid())));
        bytes.extend(word(u64::from(meta.gid())));
        bytes.extend(word(meta.rdev()));
        bytes.extend(meta.size().to_be_bytes());
        bytes.extend(meta.blksize().to_be_bytes());
        bytes.extend(meta.blocks().to_be_bytes());
        for time in [meta.atime(), meta.mtime(), meta.ctime()] {
            bytes.extend(word(time.cast_unsigned()));
        }
        Ok((bytes.len() as u64, Some(bytes)))
    }
}
