//! The guest's memory as its host process has it: an open `/proc/PID/mem`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use kscope_kernel::{KernelAddr, Memory, ReadError, ram_inode};

use crate::control::HostTid;

/// The memory of a guest kernel process, by positional reads and writes on its `/proc/PID/mem`.
///
/// `process_vm_readv` would not do: Linux 6.12 maps the vmalloc area, which holds every kernel stack, without read
/// permission; `/proc/PID/mem` reads it, and writes to read-only text, for whoever may trace the process. The descriptor
/// stays bound to the address space that the process had when it was opened: open it anew after an exec.
///
/// Cheap to clone; every clone uses the same descriptor.
#[derive(Clone, Debug)]
pub struct ProcMem {
    file: Arc<File>,
}

/// `/proc/PID/mem` cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open /proc/{pid}/mem: {error}{}", hint(error))]
pub struct OpenError {
    /// The process.
    pub pid: HostTid,
    /// What the host said.
    pub error: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ": it must be a process of the same user, and under Yama's ptrace_scope a child of this one"
        }
        io::ErrorKind::NotFound => ": no such process",
        _ => "",
    }
}

/// Guest memory could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {len} bytes to guest memory at {addr}: {error}")]
pub struct WriteError {
    /// The first address that was to be written.
    pub addr: KernelAddr,
    /// How many bytes were to be written.
    pub len: usize,
    /// What the host said.
    pub error: io::Error,
}

/// Opens, for reading, the file that is the RAM of the guest whose kernel process is `pid`: a file without a name, of
/// which the kernel process maps all.
///
/// # Errors
///
/// The process is gone, may not be traced by this one, or maps no such file.
pub fn open_ram(pid: HostTid) -> io::Result<File> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let ram = ram_inode(&maps)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the kernel process maps no RAM"))?;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // One that was closed meanwhile is not it.
        let Ok(meta) = std::fs::metadata(&path) else {
            continue;
        };
        if meta.is_file() && meta.ino() == ram {
            return File::open(path);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "no descriptor of the kernel process is its RAM",
    ))
}

impl ProcMem {
    /// Opens the memory of `pid` for reading and writing.
    ///
    /// # Errors
    ///
    /// The process is gone, or may not be traced by this one.
    pub fn open(pid: HostTid) -> Result<Self, OpenError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .map(Self::from_file)
            .map_err(|error| OpenError { pid, error })
    }

    /// Takes a descriptor of `/proc/PID/mem` that another process opened.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self::from_file(File::from(fd))
    }

    fn from_file(file: File) -> Self {
        Self {
            file: Arc::new(file),
        }
    }

    /// Reads as many of the bytes at `addr` as there are before the first hole.
    ///
    /// Returns 0 when the first byte is not mapped.
    pub fn read_some(&self, addr: KernelAddr, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(offset) = addr.get().checked_add(done as u64) else {
                break;
            };
            match self.file.read_at(&mut buf[done..], offset) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        done
    }

    /// Writes `bytes` to `addr`, even where the guest has mapped it read-only.
    ///
    /// # Errors
    ///
    /// When any of the bytes is not mapped; the bytes before it have been written.
    pub fn write(&self, addr: KernelAddr, bytes: &[u8]) -> Result<(), WriteError> {
        self.file
            .write_all_at(bytes, addr.get())
            .map_err(|error| WriteError {
                addr,
                len: bytes.len(),
                error,
            })
    }
}

impl Memory for ProcMem {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        if self.read_some(addr, buf) == buf.len() {
            Ok(())
        } else {
            Err(ReadError {
                addr,
                len: buf.len(),
            })
        }
    }
}

impl AsFd for ProcMem {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_this_process() {
        let memory = ProcMem::open(HostTid(std::process::id() as i32)).unwrap();
        let mut value = Box::new(0x1122_3344_u32);
        let addr = KernelAddr(&raw mut *value as u64);
        let mut bytes = [0; 4];
        memory.read(addr, &mut bytes).unwrap();
        assert_eq!(bytes, 0x1122_3344_u32.to_le_bytes());
        memory.write(addr, &7_u32.to_le_bytes()).unwrap();
        // SAFETY: `value` is alive; the volatile read keeps the compiler from assuming its old value.
        assert_eq!(unsafe { std::ptr::read_volatile(&raw const *value) }, 7);
    }

    #[test]
    fn holes_are_errors_that_name_the_address() {
        let memory = ProcMem::open(HostTid(std::process::id() as i32)).unwrap();
        let mut byte = [0];
        let error = memory.read(KernelAddr(8), &mut byte).unwrap_err();
        assert!(error.to_string().contains("0x"), "{error}");
        assert!(memory.write(KernelAddr(8), &byte).is_err());
        assert!(memory.read(KernelAddr(u64::MAX), &mut byte).is_err());
    }

    #[test]
    fn unknown_process_is_named() {
        let error = ProcMem::open(HostTid(i32::MAX)).unwrap_err();
        assert!(error.to_string().contains("no such process"), "{error}");
    }
}
