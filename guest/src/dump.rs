//! Writing core files: of a guest that is held for it, or of another core.

mod copy;
mod output;
mod sink;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use kscope_kernel::{
    Core, CoreInput, CorePlan, Image, Kernel, LayoutError, MemoryExt, PartContent, ram_inode,
};

use crate::hostjob::Cancel;
use crate::mem::ProcMem;
use crate::progress::{Amount, Event, Progress, Unit};
use crate::remote::{Connection, Hold, MAX_HOLD, RemoteError};
use copy::{Sources, Stopped};
use output::Output;
use sink::Sink;

/// Where a core goes.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The file. Compressed when its name ends in `.zst`.
    pub path: &'a Path,
    /// A file that is there is replaced.
    pub force: bool,
}

/// What a core was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dumped {
    /// Bytes that the file takes.
    pub size: u64,
    /// The length of its content, decompressed.
    pub content: u64,
    /// Threads in it; `None` of a core that was copied.
    pub threads: Option<usize>,
    /// How long the guest stood still.
    pub stood: Option<Duration>,
    /// A debugger had stopped it before.
    pub debugged: bool,
    /// What is missing.
    pub warnings: Vec<String>,
}

/// Why there is no core.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file is there.
    #[error("`{}` exists: choose another name, or replace it with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Something is there that cannot be replaced.
    #[error("`{}` is not a regular file: a core cannot be written there", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file cannot be written.
    #[error("cannot write the core `{}`: {error}{}", path.display(), hint(error))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The guest's RAM cannot be read.
    #[error("cannot read the guest's RAM: {0}")]
    Ram(io::Error),
    /// A core that is to be copied cannot be read to its end.
    #[error("the core file `{}` is damaged: it cannot be read at {offset:#x}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Where, in its decompressed content.
        offset: u64,
    },
    /// The guest cannot be held or asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The kernel does not tell where it keeps its tasks.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The user has enough.
    #[error("interrupted: no core was written")]
    Cancelled,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": make room, or name a file elsewhere; a name that ends in .zst makes it a tenth as large"
        }
        io::ErrorKind::NotFound => ": its directory is not there",
        _ => "",
    }
}

/// Dumps the guest behind a connection, whose kernel is `image`. It is held until its memory is
/// copied; what is written after that does not hold it up.
///
/// # Errors
///
/// See [`DumpError`]. No file is left then.
pub fn dump(
    connection: &mut Connection,
    image: &Image,
    panicked: Option<&str>,
    target: Target<'_>,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Dumped, DumpError> {
    let output = begin(target)?;
    let name = connection.describe()?.name;
    let memory = connection.memory()?;
    let kernel = Kernel::new(image.clone(), memory.clone())?;
    let mut sink = output.sink(target)?;
    let hold = connection.hold()?;
    let taken_at = SystemTime::now();
    let maps = connection.maps()?;
    // Before `setup_arch()` there is none.
    let ram = match ram_inode(&maps) {
        Some(_) => Some(connection.physical_memory()?),
        None => None,
    };
    let meta = ram.as_ref().map(|ram| ram.metadata()).transpose();
    let meta = meta.map_err(DumpError::Ram)?;
    let panicked = match panicked {
        Some(reason) => Some(reason.to_owned()),
        None => panic_reason(&kernel),
    };
    let plan = CorePlan::new(
        &kernel,
        &CoreInput {
            guest: &name,
            taken_at,
            panicked: panicked.as_deref(),
            maps: &maps,
            cpus: &hold.registers,
            ram_len: meta.as_ref().map_or(0, fs::Metadata::len),
        },
    );
    let mut ticker = Ticker::new(progress, cancel, target, stored(&plan, meta.as_ref()));
    let sources = Sources {
        ram: ram.as_ref(),
        memory: &memory,
    };
    let mut renewed = Instant::now();
    let copied = copy::parts(&plan, &sources, &mut sink, &mut |sink| {
        renew(&hold, &mut renewed)?;
        ticker.step(sink)
    });
    let debugged = hold.debugged;
    let stood = hold.release()?;
    let size = ticker.finish(copied, sink, plan.len)?;
    output.publish(target.force).map_err(target.failed())?;
    Ok(Dumped {
        size,
        content: plan.len,
        threads: Some(plan.threads),
        stood: Some(stood),
        debugged,
        warnings: plan.warnings,
    })
}

/// Writes the content of a core anew: compresses it, or decompresses it.
///
/// # Errors
///
/// See [`DumpError`]. No file is left then.
pub fn convert(
    core: &Core,
    target: Target<'_>,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Dumped, DumpError> {
    let output = begin(target)?;
    let mut sink = output.sink(target)?;
    let len = core.content_len();
    let mut ticker = Ticker::new(progress, cancel, target, len);
    let copied = copy::content(core, &mut sink, &mut |sink| ticker.step(sink));
    let size = ticker.finish(copied, sink, len)?;
    output.publish(target.force).map_err(target.failed())?;
    Ok(Dumped {
        size,
        content: len,
        threads: None,
        stood: None,
        debugged: false,
        warnings: core.warnings().to_vec(),
    })
}

/// Refuses what must not be overwritten, and begins the file.
fn begin(target: Target<'_>) -> Result<Output, DumpError> {
    let path = target.path;
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() || !meta.is_file() => {
            return Err(DumpError::NotAFile {
                path: path.to_owned(),
            });
        }
        Ok(_) if !target.force => {
            return Err(DumpError::Exists {
                path: path.to_owned(),
            });
        }
        _ => {}
    }
    Output::create(path).map_err(target.failed())
}

impl Target<'_> {
    fn failed(self) -> impl FnOnce(io::Error) -> DumpError {
        let path = self.path.to_owned();
        move |error| match error.kind() {
            // Somebody was faster.
            io::ErrorKind::AlreadyExists => DumpError::Exists { path },
            _ => DumpError::Write { path, error },
        }
    }

    fn is_compressed(self) -> bool {
        self.path.extension().is_some_and(|suffix| suffix == "zst")
    }
}

impl Output {
    fn sink(&self, target: Target<'_>) -> Result<Sink, DumpError> {
        let sink = self
            .file()
            .try_clone()
            .and_then(|file| Sink::new(file, target.is_compressed(), queue_limit()));
        sink.map_err(target.failed())
    }
}

/// Bytes that may wait for the disk while the guest runs on: a quarter of what the host has left.
fn queue_limit() -> usize {
    const LEAST: usize = 64 << 20;
    const MOST: usize = 4 << 30;
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok());
    let available: usize = available.unwrap_or(0);
    (available.saturating_mul(1024) / 4).clamp(LEAST, MOST)
}

/// Keeps the guest held while its memory is still being copied.
fn renew(hold: &Hold, renewed: &mut Instant) -> Result<(), DumpError> {
    if renewed.elapsed() > MAX_HOLD / 3 {
        hold.keep()?;
        *renewed = Instant::now();
    }
    Ok(())
}

/// What the kernel has panicked with, as far as it is known without its log.
fn panic_reason(kernel: &Kernel<ProcMem>) -> Option<String> {
    // PANIC_CPU_INVALID of linux/panic.h is -1.
    let addr = kernel.image().symbol("panic_cpu")?;
    let cpu = kernel.read_u32(addr).ok().filter(|&cpu| cpu != u32::MAX)?;
    Some(format!("on CPU {cpu}"))
}

/// Bytes that are copied, at most.
fn stored(plan: &CorePlan, ram: Option<&fs::Metadata>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // Of RAM, what the host has pages for.
    const BLOCK: u64 = 512;
    let ram = ram.map_or(0, |ram| ram.blocks().saturating_mul(BLOCK));
    let parts = plan.parts.iter().map(|part| match part.content {
        PartContent::Ram => ram,
        _ => part.len,
    });
    parts.fold(plan.head.len() as u64, u64::saturating_add)
}

/// Tells the user how far it is, and hears when he has enough.
struct Ticker<'a> {
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
    target: Target<'a>,
    last: Instant,
}

impl<'a> Ticker<'a> {
    fn new(
        progress: &'a mut dyn Progress,
        cancel: &'a Cancel,
        target: Target<'a>,
        total: u64,
    ) -> Ticker<'a> {
        progress.event(Event::Phase {
            verb: "Dumping",
            what: &target.path.display().to_string(),
            amount: Some(Amount {
                unit: Unit::Bytes,
                total: Some(total),
                exact: false,
            }),
        });
        Ticker {
            progress,
            cancel,
            target,
            last: Instant::now(),
        }
    }

    fn step(&mut self, sink: &Sink) -> Result<(), DumpError> {
        const PERIOD: Duration = Duration::from_millis(100);
        if self.cancel.is_cancelled() {
            return Err(DumpError::Cancelled);
        }
        if self.last.elapsed() >= PERIOD {
            self.last = Instant::now();
            self.progress.event(Event::Advance(sink.written()));
        }
        Ok(())
    }

    /// Waits until what was copied is written; gives the bytes that the file takes.
    fn finish(
        mut self,
        copied: Result<(), Stopped>,
        sink: Sink,
        len: u64,
    ) -> Result<u64, DumpError> {
        match copied {
            Ok(()) => {
                while !sink.is_idle() {
                    self.step(&sink)?;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Err(Stopped::Failed(error)) => return Err(error),
            // The end says why.
            Err(Stopped::Broken) => {}
        }
        sink.finish(len).map_err(self.target.failed())
    }
}
