//! Core files: the memory of a kernel that is not there any more, or not now.
//!
//! A core is an ELF file (`ET_CORE`) as gdb knows them, with a segment per area of memory and an
//! `NT_PRSTATUS` note per task; or the same compressed with zstd, which is read without being
//! decompressed as a whole. docs/cores.md describes what kscope writes. Any other core of a User
//! Mode Linux process can be read as well, such as the `gcore` command's.
//!
//! A core file is not trusted: whatever is in it ends in an error, or in memory that is missing.

mod bytes;
mod compress;
mod contents;
mod elf;
mod host_threads;
mod notes;
mod plan;
mod seekable;
#[cfg(test)]
mod tests;
mod threads;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object::elf::{PT_LOAD, PT_NOTE};

use crate::addr::{CpuId, KernelAddr};
use crate::image::Image;
use crate::memory::{Memory, ReadError};
use crate::registers::Registers;
use bytes::{Bytes, BytesError};
pub use compress::{CORE_FRAME, FrameCompressor, FrameTable};
pub use contents::HostFile;
use elf::Segment;
use notes::{About, NT_KSCOPE_ABOUT, NT_PRSTATUS};
pub use plan::{CoreInput, CorePart, CorePlan, PartContent};

/// The most bytes of notes that are looked at. A guest with a thousand tasks has half a megabyte.
const MAX_NOTES: u64 = 64 << 20;
/// The most bytes of a library in a core.
const MAX_LIBRARY: u64 = 64 << 20;
/// The most CPUs: NR_CPUS of the largest kernels.
const MAX_CPUS: usize = 8192;

/// A core file: memory and registers of a kernel at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Core {
    inner: Arc<Inner>,
    /// What was left out of the core because the kernel's binary has it is read from there.
    image: Option<Image>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    bytes: Bytes,
    /// Sorted by address, not overlapping.
    areas: Vec<Area>,
    about: Option<About>,
    cpus: Vec<(CpuId, Registers)>,
    warnings: Vec<String>,
}

/// Memory that is in the file.
#[derive(Clone, Copy, Debug)]
struct Area {
    start: u64,
    end: u64,
    offset: u64,
}

/// Why a core file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// There is no such file.
    #[error("no core file at `{path}`: the file does not exist; `kscope dump -o FILE` makes one", path = path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The file exists and cannot be read.
    #[error("cannot read the core file `{path}`: {source}", path = path.display())]
    Unreadable {
        /// The path as it was given.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("`{path}` is not a core file of a kernel: {found}", path = path.display())]
    NotCore {
        /// The path as it was given.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// The file is a core, and cannot be used.
    #[error("the core file `{path}` is damaged: {reason}", path = path.display())]
    Damaged {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The core is of another kernel.
    #[error(
        "the core file `{path}` is of another kernel than `{kernel}`: build-id {expected}, not \
         {found}; pass the `linux` file that the guest ran",
        path = path.display(),
        kernel = kernel.display(),
        found = found.as_deref().unwrap_or("unknown")
    )]
    OtherKernel {
        /// The core.
        path: PathBuf,
        /// The kernel that was to be used.
        kernel: PathBuf,
        /// The core's build-id.
        expected: String,
        /// The kernel's.
        found: Option<String>,
    },
}

impl CoreError {
    fn not_core(found: &str) -> CoreError {
        CoreError::NotCore {
            path: PathBuf::new(),
            found: found.to_owned(),
        }
    }

    fn damaged(reason: &str) -> CoreError {
        CoreError::Damaged {
            path: PathBuf::new(),
            reason: reason.to_owned(),
        }
    }

    /// The same, with the file's path.
    fn of(mut self, file: &Path) -> CoreError {
        match &mut self {
            CoreError::NotFound { path }
            | CoreError::Unreadable { path, .. }
            | CoreError::NotCore { path, .. }
            | CoreError::Damaged { path, .. }
            | CoreError::OtherKernel { path, .. } => file.clone_into(path),
        }
        self
    }
}

impl Core {
    /// Opens a core file, plain or compressed with zstd.
    ///
    /// A file that is cut off opens when its program headers are there; what is beyond its end
    /// counts as memory that is missing, and [`warnings`](Core::warnings) tells.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is no x86-64 core, or its headers make no sense.
    pub fn open(path: &Path) -> Result<Core, CoreError> {
        let unreadable = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => CoreError::NotFound {
                path: path.to_owned(),
            },
            _ => CoreError::Unreadable {
                path: path.to_owned(),
                source,
            },
        };
        // Before it is opened: opening a pipe waits for a writer.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(unreadable(error));
        }
        let file = File::open(path).map_err(unreadable)?;
        let (bytes, warning) = Bytes::new(&file).map_err(|error| match error {
            BytesError::Io(error) => unreadable(error),
            BytesError::Damaged(reason) => CoreError::damaged(&reason).of(path),
        })?;
        Core::parse(path, bytes, warning).map_err(|error| error.of(path))
    }

    fn parse(path: &Path, bytes: Bytes, warning: Option<String>) -> Result<Core, CoreError> {
        let mut warnings: Vec<_> = warning.into_iter().collect();
        let segments = elf::segments(&bytes)?;
        let areas = areas(&segments, bytes.len(), &mut warnings);
        let (about, threads) = read_notes(&segments, &bytes, &mut warnings);
        let cpus = match &about {
            Some(about) => about
                .cpus
                .iter()
                .take(MAX_CPUS)
                .map(|cpu| (CpuId(cpu.cpu), cpu.registers()))
                .collect(),
            // Of another maker: its first thread is the process's own, which is CPU 0.
            None => threads
                .first()
                .map(|&(_, registers)| (CpuId(0), registers))
                .into_iter()
                .collect(),
        };
        Ok(Core {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                bytes,
                areas,
                about,
                cpus,
                warnings,
            }),
            image: None,
        })
    }

    /// Joins the core with the binary of its kernel, which has what was left out of the core
    /// because it is in there: the text.
    ///
    /// # Errors
    ///
    /// [`CoreError::OtherKernel`] when the build-ids differ. A core that does not tell its build-id
    /// is believed to fit.
    pub fn with_image(self, image: &Image) -> Result<Core, CoreError> {
        if let Some(expected) = self.build_id()
            && image.build_id().as_deref() != Some(expected)
        {
            return Err(CoreError::OtherKernel {
                path: self.inner.path.clone(),
                kernel: image.path().to_owned(),
                expected: expected.to_owned(),
                found: image.build_id(),
            });
        }
        Ok(Core {
            image: Some(image.clone()),
            ..self
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The build-id of the kernel in hexadecimal, if the core tells.
    pub fn build_id(&self) -> Option<&str> {
        self.inner.about.as_ref()?.build_id.as_deref()
    }

    /// Where the kernel binary was when the core was taken.
    pub fn kernel_path_hint(&self) -> Option<&Path> {
        let path = Path::new(&self.inner.about.as_ref()?.kernel);
        (!path.as_os_str().is_empty()).then_some(path)
    }

    /// The name of the guest.
    pub fn guest(&self) -> Option<&str> {
        let about = self.inner.about.as_ref()?;
        Some(about.guest.as_str()).filter(|name| !name.is_empty())
    }

    /// When the core was taken.
    pub fn taken_at(&self) -> Option<SystemTime> {
        let seconds = Duration::from_secs(self.inner.about.as_ref()?.taken_at);
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    }

    /// What the kernel had panicked with; `None` when it had not, or the core does not tell.
    pub fn panicked(&self) -> Option<&str> {
        self.inner.about.as_ref()?.panicked.as_deref()
    }

    /// The CPUs of which the core has registers, in their order.
    pub fn cpus(&self) -> &[(CpuId, Registers)] {
        &self.inner.cpus
    }

    /// The registers of a CPU, which are those of the task that ran on it.
    pub fn registers(&self, cpu: CpuId) -> Option<&Registers> {
        let of = |&&(other, _): &&(CpuId, Registers)| other == cpu;
        self.inner
            .cpus
            .iter()
            .find(of)
            .map(|(_, registers)| registers)
    }

    /// The memory map of the kernel's process, as `/proc/PID/maps` had it; empty when the core does
    /// not tell.
    pub fn maps(&self) -> &str {
        let about = self.inner.about.as_ref();
        about.map_or("", |about| about.maps.as_str())
    }

    /// The file of a host library that the kernel's process had mapped, as it was on that host.
    /// `path` is as in [`maps`](Core::maps).
    pub fn library(&self, path: &str) -> Option<Vec<u8>> {
        let about = self.inner.about.as_ref()?;
        let library = about.libraries.iter().find(|known| known.path == path)?;
        let end = library.offset.checked_add(library.size)?;
        if library.size > MAX_LIBRARY || end > self.inner.bytes.len() {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(library.size).ok()?];
        self.inner
            .bytes
            .read_at(library.offset, &mut bytes)
            .then_some(bytes)
    }

    /// What is missing or wrong in the file, in sentence fragments.
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// The length of the core file's content, decompressed, in bytes.
    pub fn content_len(&self) -> u64 {
        self.inner.bytes.len()
    }

    /// Fills `buf` with what is at `offset` of the core file's content, decompressed; tells whether
    /// all of it could be had.
    pub fn read_content(&self, offset: u64, buf: &mut [u8]) -> bool {
        self.inner.bytes.read_at(offset, buf)
    }

    /// Bytes of memory that are in the core.
    pub fn size(&self) -> u64 {
        let len = |area: &Area| area.end - area.start;
        self.inner
            .areas
            .iter()
            .map(len)
            .fold(0, u64::saturating_add)
    }

    /// As much of what is missing at `addr` as the kernel's binary has: number of bytes.
    fn read_image(&self, addr: u64, buf: &mut [u8]) -> usize {
        let image = self.image.as_ref();
        image.map_or(0, |image| image.read_text(KernelAddr(addr), buf))
    }
}

impl Memory for Core {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let error = ReadError {
            addr,
            len: buf.len(),
        };
        let areas = &self.inner.areas;
        let (mut at, mut buf) = (addr.get(), buf);
        while !buf.is_empty() {
            let index = areas.partition_point(|area| area.end <= at);
            let len = match areas.get(index) {
                Some(area) if area.start <= at => {
                    let len = area.end.saturating_sub(at).min(buf.len() as u64) as usize;
                    let offset = area.offset.saturating_add(at - area.start);
                    if !self.inner.bytes.read_at(offset, &mut buf[..len]) {
                        return Err(error);
                    }
                    len
                }
                next => {
                    let hole = next.map_or(u64::MAX, |area| area.start) - at;
                    let len = hole.min(buf.len() as u64) as usize;
                    self.read_image(at, &mut buf[..len])
                }
            };
            if len == 0 {
                return Err(error);
            }
            buf = &mut buf[len..];
            at = at.checked_add(len as u64).ok_or(error)?;
        }
        Ok(())
    }
}

/// The memory that is in a file of `file_len` bytes.
fn areas(segments: &[Segment], file_len: u64, warnings: &mut Vec<String>) -> Vec<Area> {
    let mut missing = 0_u64;
    let mut nonsense = 0_usize;
    let mut areas: Vec<_> = segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD.0)
        .filter_map(|segment| {
            let len = segment.file_len.min(segment.mem_len);
            let there = len.min(file_len.saturating_sub(segment.offset));
            missing = missing.saturating_add(len - there);
            let end = segment.addr.checked_add(there);
            nonsense += usize::from(end.is_none());
            Some(Area {
                start: segment.addr,
                end: end?,
                offset: segment.offset,
            })
        })
        .filter(|area| area.start < area.end)
        .collect();
    areas.sort_by_key(|area| area.start);
    // Of areas that overlap, the one that begins first has what they share.
    let mut end = 0;
    for area in &mut areas {
        if area.start < end {
            nonsense += 1;
            let by = (end - area.start).min(area.end - area.start);
            area.start += by;
            area.offset = area.offset.saturating_add(by);
        }
        end = end.max(area.end);
    }
    areas.retain(|area| area.start < area.end);
    if missing > 0 {
        warnings.push(format!(
            "the file is cut off: {missing} bytes of memory are missing at its end"
        ));
    }
    if nonsense > 0 {
        warnings.push(format!(
            "{nonsense} of its segments overlap others or lie beyond all addresses"
        ));
    }
    areas
}

/// What kscope has noted down, and the registers of the threads.
fn read_notes(
    segments: &[Segment],
    bytes: &Bytes,
    warnings: &mut Vec<String>,
) -> (Option<About>, Vec<(i32, Registers)>) {
    let mut about = None;
    let mut threads = Vec::new();
    let mut left = MAX_NOTES;
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE.0) {
        let there = bytes.len().saturating_sub(segment.offset);
        let len = segment.file_len.min(there).min(left);
        if len < segment.file_len {
            warnings.push("its notes are cut off: registers may be missing".to_owned());
        }
        left -= len;
        let mut content = vec![0; usize::try_from(len).unwrap_or(0)];
        if !bytes.read_at(segment.offset, &mut content) {
            warnings.push("its notes cannot be read: there are no registers".to_owned());
            continue;
        }
        for note in notes::parse(&content) {
            match (note.owner, note.kind) {
                (b"kscope", NT_KSCOPE_ABOUT) => match serde_json::from_slice(note.content) {
                    Ok(parsed) => about = Some(parsed),
                    Err(error) => warnings.push(format!("its kscope note is damaged: {error}")),
                },
                (b"CORE", NT_PRSTATUS) => threads.extend(notes::parse_prstatus(note.content)),
                _ => {}
            }
        }
    }
    let newer = |about: &About| about.version > notes::VERSION;
    if about.as_ref().is_some_and(newer) {
        warnings.push("it was made by a later kscope: some of it may be overlooked".to_owned());
    }
    (about, threads)
}
