//! What a core file consists of, before any of the memory is copied.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use object::elf::{PF_R, PT_LOAD, PT_NOTE};

use super::contents::{Contents, HostFile, Load};
use super::elf::{self, Segment};
use super::notes::{self, About, AboutCpu};
use super::threads;
use crate::addr::{CpuId, KernelAddr};
use crate::host_maps::{self, Mapping};
use crate::image::Image;
use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::registers::Registers;

/// What is in a file is at multiples of this, and so are mappings.
pub(super) const PAGE: u64 = 4096;

/// What a core is made of besides memory.
#[derive(Clone, Copy, Debug)]
pub struct CoreInput<'a> {
    /// The name of the guest.
    pub guest: &'a str,
    /// When it stood still.
    pub taken_at: SystemTime,
    /// What it had panicked with, if it had.
    pub panicked: Option<&'a str>,
    /// The text of `/proc/PID/maps` of the kernel's process.
    pub maps: &'a str,
    /// The registers of its CPUs, in their order.
    pub cpus: &'a [(CpuId, Registers)],
    /// The length of the file that is its RAM, bytes.
    pub ram_len: u64,
}

/// A core file that is to be written: `head` at its beginning, then the parts.
#[derive(Clone, Debug)]
pub struct CorePlan {
    /// ELF headers and notes.
    pub head: Vec<u8>,
    /// By offset, not overlapping. What is between them is zero.
    pub parts: Vec<CorePart>,
    /// The length of the file in bytes.
    pub len: u64,
    /// How many threads it has.
    pub threads: usize,
    /// What is missing or cannot be right.
    pub warnings: Vec<String>,
}

/// A part of the file.
#[derive(Clone, Debug)]
pub struct CorePart {
    /// Where in the file it is.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where its content is.
    pub content: PartContent,
}

/// The content of a part. What it has less than the part is long is zero.
#[derive(Clone, Debug)]
pub enum PartContent {
    /// The file that is the guest's RAM, from its beginning.
    Ram,
    /// The memory of the kernel's process.
    Memory(KernelAddr),
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// A file of the host.
    File(HostFile),
}

impl CorePlan {
    /// Plans the core of a kernel that stands still.
    ///
    /// All of the kernel's memory is in it: physical memory, where it is mapped (also where the host
    /// does not map it yet), and the private memory of the kernel's process. Text that is as in the
    /// kernel's binary is left out, and the host's libraries are in it as whole files.
    pub fn new<M: Memory>(kernel: &Kernel<M>, input: &CoreInput<'_>) -> CorePlan {
        let contents = Contents::gather(kernel, input);
        contents.finish(kernel, input)
    }
}

impl Contents<'_> {
    /// Lays all of it out in a file.
    fn finish<M: Memory>(mut self, kernel: &Kernel<M>, input: &CoreInput<'_>) -> CorePlan {
        let threads = threads::threads(kernel, input.cpus, &mut self.warnings);
        let mut about = About {
            version: notes::VERSION,
            guest: input.guest.to_owned(),
            build_id: self.image.build_id(),
            kernel: self.image.path().to_string_lossy().into_owned(),
            taken_at: input
                .taken_at
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            panicked: input.panicked.map(str::to_owned),
            cpus: input
                .cpus
                .iter()
                .map(|(cpu, registers)| AboutCpu::new(cpu.0, registers))
                .collect(),
            maps: input.maps.to_owned(),
            libraries: Vec::new(),
        };
        let notes = |about: &About| {
            let mut content = Vec::new();
            threads::push_notes(&mut content, &threads, input);
            let auxv = notes::auxv(&auxv(self.image, input.maps));
            notes::push(&mut content, notes::CORE, notes::NT_AUXV, &auxv);
            let mapped = host_maps::parse(input.maps)
                .filter(|mapping| mapping.is_of_file() && !mapping.is_shared());
            let files = notes::files(mapped);
            notes::push(&mut content, notes::CORE, notes::NT_FILE, &files);
            let about = serde_json::to_vec(about).unwrap_or_default();
            notes::push(&mut content, notes::KSCOPE, notes::NT_KSCOPE_ABOUT, &about);
            content
        };
        // Where files are is told in the notes, whose length decides where they are: first as if
        // they were as far away as can be.
        let headers = elf::headers_len(self.loads.len() + 1) as u64;
        about.libraries = self.libraries(&vec![u64::MAX; self.parts.len()]);
        let start = (headers + notes(&about).len() as u64).next_multiple_of(PAGE);
        let mut offsets = Vec::new();
        let mut end = start;
        for (len, _) in &self.parts {
            offsets.push(end);
            end = end.saturating_add(*len).next_multiple_of(PAGE);
        }
        about.libraries = self.libraries(&offsets);
        let notes = notes(&about);
        let note = Segment {
            kind: PT_NOTE.0,
            flags: PF_R.0,
            offset: headers,
            file_len: notes.len() as u64,
            ..Segment::default()
        };
        let load = |load: &Load| Segment {
            kind: PT_LOAD.0,
            flags: load.flags,
            offset: offsets.get(load.part).unwrap_or(&end) + load.within,
            addr: load.range.start,
            file_len: load.range.end - load.range.start,
            mem_len: load.range.end - load.range.start,
        };
        let segments: Vec<_> = std::iter::once(note)
            .chain(self.loads.iter().map(load))
            .collect();
        let mut head = elf::headers(&segments);
        head.extend_from_slice(&notes);
        let parts = self.parts.into_iter().zip(offsets);
        CorePlan {
            head,
            parts: parts
                .map(|((len, content), offset)| CorePart {
                    offset,
                    len,
                    content,
                })
                .collect(),
            len: end,
            threads: threads.len(),
            warnings: self.warnings,
        }
    }
}

/// What the host told the kernel's process when it began, as far as debuggers need it to find the
/// libraries.
fn auxv(image: &Image, maps: &str) -> Vec<(u64, u64)> {
    // AT_* of elf.h.
    const PHDR: u64 = 3;
    const PHENT: u64 = 4;
    const PHNUM: u64 = 5;
    const PAGESZ: u64 = 6;
    const BASE: u64 = 7;
    const ENTRY: u64 = 9;
    const SYSINFO_EHDR: u64 = 33;
    let mut pairs = vec![(PAGESZ, PAGE)];
    let start = |is: &dyn Fn(&Mapping<'_>) -> bool| {
        let found = host_maps::parse(maps).find(|mapping| is(mapping));
        found.map(|mapping| mapping.range.start)
    };
    if let Some(program) = image.program() {
        pairs.extend([
            (PHDR, program.headers.get()),
            (PHENT, elf::PROGRAM_HEADER as u64),
            (PHNUM, program.headers_count),
            (ENTRY, program.entry.get()),
        ]);
        let interpreter = program
            .interpreter
            .and_then(|path| std::fs::canonicalize(path).ok());
        if let Some(path) = interpreter {
            let base = start(&|mapping| mapping.offset == 0 && Path::new(mapping.path) == path);
            pairs.extend(base.map(|base| (BASE, base)));
        }
    }
    let vdso = start(&|mapping| mapping.path == "[vdso]");
    pairs.extend(vdso.map(|vdso| (SYSINFO_EHDR, vdso)));
    pairs
}
