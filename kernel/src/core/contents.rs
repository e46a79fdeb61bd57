//! What memory is in a core, and where its content comes from.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use object::elf::{PF_R, PF_W, PF_X};

use super::notes::AboutLibrary;
use super::plan::{CoreInput, PAGE, PartContent};
use super::{MAX_LIBRARY, host_threads};
use crate::addr::KernelAddr;
use crate::host_maps::{self, Mapping, ram_inode};
use crate::image::{ElfFile, Image};
use crate::kernel::Kernel;
use crate::memory::{Memory, MemoryExt};

/// Memory that is to be in the core.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) range: Range<u64>,
    pub(super) flags: u32,
    /// The part that has it, and where in that.
    pub(super) part: usize,
    pub(super) within: u64,
}

/// The parts and what of the memory is in them.
pub(super) struct Contents<'a> {
    pub(super) image: &'a Image,
    pub(super) parts: Vec<(u64, PartContent)>,
    pub(super) loads: Vec<Load>,
    /// Files by path: their part, or that they are not the ones that are mapped.
    files: HashMap<&'a str, Option<usize>>,
    pub(super) warnings: Vec<String>,
}

/// The part that is the guest's RAM.
const RAM: usize = 0;

/// A file of the host that is in the core as a whole.
#[derive(Clone, Debug)]
pub struct HostFile(Arc<ElfFile>);

impl HostFile {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl<'a> Contents<'a> {
    /// Finds what is to be in the core of a kernel that stands still.
    pub(super) fn gather<M: Memory>(kernel: &'a Kernel<M>, input: &CoreInput<'a>) -> Contents<'a> {
        let mut contents = Contents {
            image: kernel.image(),
            parts: vec![(input.ram_len, PartContent::Ram)],
            loads: Vec::new(),
            files: HashMap::new(),
            warnings: Vec::new(),
        };
        let ram = ram_inode(input.maps);
        for mapping in host_maps::parse(input.maps) {
            if Some(mapping.inode) == ram && mapping.is_shared() {
                contents.ram(mapping.range.clone(), mapping.offset, flags(&mapping));
            } else if !mapping.is_shared() {
                contents.private(kernel.memory(), &mapping);
            }
        }
        contents.not_mapped_yet(kernel);
        for list in host_threads::lists(input.maps, &contents.files()) {
            contents.patch(kernel.memory(), list, &host_threads::empty(list));
        }
        contents
            .loads
            .sort_by_key(|load| (load.range.start, load.range.end));
        contents
    }

    /// Guest RAM at some address.
    fn ram(&mut self, range: Range<u64>, offset: u64, flags: u32) {
        let Some((len, _)) = self.parts.get(RAM) else {
            return;
        };
        // A mapping may be longer than the file, where it must not be touched.
        let len = (range.end - range.start).min(len.saturating_sub(offset));
        if len > 0 {
            self.loads.push(Load {
                range: range.start..range.start + len,
                flags,
                part: RAM,
                within: offset,
            });
        }
    }

    /// What the kernel's page tables map and the host does not: it would at the first touch.
    fn not_mapped_yet<M: Memory>(&mut self, kernel: &Kernel<M>) {
        let (mappings, corruption) = kernel.own_mappings();
        self.warnings
            .extend(corruption.iter().map(ToString::to_string));
        let mut there: Vec<_> = self.loads.iter().map(|load| load.range.clone()).collect();
        there.sort_by_key(|range| range.start);
        for mapping in mappings {
            let start = mapping.virt.get();
            let Some(end) = start.checked_add(mapping.len) else {
                continue;
            };
            let mut at = start;
            let first = there.partition_point(|range| range.end <= start);
            let mut blocks = there[first..].iter().take_while(|range| range.start < end);
            while at < end {
                let (hole_end, next) = match blocks.next() {
                    Some(block) => (block.start.max(at), block.end),
                    None => (end, end),
                };
                if at < hole_end {
                    let offset = mapping.phys.get() + (at - start);
                    self.ram(at..hole_end, offset, PF_R.0 | PF_W.0 | PF_X.0);
                }
                at = next.max(at);
            }
        }
    }

    /// Memory of the kernel's process that is no RAM of the guest.
    fn private<M: Memory>(&mut self, memory: &M, mapping: &Mapping<'a>) {
        // Those cannot be read, and are the host's.
        if mapping.path.starts_with("[vvar") || mapping.path == "[vsyscall]" {
            return;
        }
        if !mapping.mode.starts_with('r') && !mapping.is_writable() {
            return;
        }
        let flags = flags(mapping);
        if !mapping.is_of_file() || mapping.is_writable() {
            return self.memory(mapping.range.clone(), flags);
        }
        let image = self.image;
        let first = KernelAddr(mapping.range.start);
        if image.read_text(first, &mut [0]) > 0 {
            let text = |at, page: &mut [u8]| image.read_text(KernelAddr(at), page);
            for (_, range) in runs(memory, &mapping.range, text).filter(|&(same, _)| !same) {
                self.memory(range, flags);
            }
            return;
        }
        match self.file(mapping) {
            Some((part, file)) => self.library(memory, mapping, part, &file),
            None => self.memory(mapping.range.clone(), flags),
        }
    }

    /// Memory that a library was mapped to, and may not be as in the library's file any more.
    fn library<M: Memory>(
        &mut self,
        memory: &M,
        mapping: &Mapping<'a>,
        part: usize,
        file: &HostFile,
    ) {
        let flags = flags(mapping);
        let within = |at: u64| mapping.offset.saturating_add(at - mapping.range.start);
        let content = |at, page: &mut [u8]| file.read(within(at), page);
        for (same, range) in runs(memory, &mapping.range, content) {
            if same {
                let within = within(range.start);
                self.loads.push(Load {
                    range,
                    flags,
                    part,
                    within,
                });
            } else {
                // Relocated.
                self.memory(range, flags);
            }
        }
    }

    /// Memory that is stored as it is.
    fn memory(&mut self, range: Range<u64>, flags: u32) {
        let addr = KernelAddr(range.start);
        self.store(range, flags, PartContent::Memory(addr));
    }

    /// Memory of this content.
    fn store(&mut self, range: Range<u64>, flags: u32, content: PartContent) {
        if range.is_empty() {
            return;
        }
        self.parts.push((range.end - range.start, content));
        self.loads.push(Load {
            range,
            flags,
            part: self.parts.len() - 1,
            within: 0,
        });
    }

    /// Has other bytes than the memory at an address, which is stored as it is otherwise.
    fn patch<M: Memory>(&mut self, memory: &M, addr: u64, bytes: &[u8]) {
        let page = addr - addr % PAGE;
        let Some(index) = self
            .loads
            .iter()
            .position(|load| load.range.contains(&addr))
        else {
            return;
        };
        let part = self.loads.get(index).map(|load| load.part);
        let content = part.and_then(|part| Some(&self.parts.get(part)?.1));
        let mut content = match content {
            // Of an earlier patch.
            Some(PartContent::Bytes(bytes)) => bytes.to_vec(),
            Some(PartContent::Memory(_)) => {
                match memory.read_vec(KernelAddr(page), PAGE as usize) {
                    Ok(content) => content,
                    Err(_) => return,
                }
            }
            _ => return,
        };
        let within = (addr - page) as usize;
        let Some(place) = content.get_mut(within..within + bytes.len()) else {
            return;
        };
        place.copy_from_slice(bytes);
        let whole = self.loads.swap_remove(index);
        // Its part is not used any more.
        if let Some((len, _)) = self.parts.get_mut(whole.part) {
            *len = 0;
        }
        self.memory(whole.range.start..page, whole.flags);
        let content = PartContent::Bytes(content.into());
        self.store(page..page + PAGE, whole.flags, content);
        self.memory(page + PAGE..whole.range.end, whole.flags);
    }

    /// The files that are in it, and the paths that they are mapped by.
    fn files(&self) -> Vec<(&'a str, HostFile)> {
        let file = |(path, part): (&&'a str, &Option<usize>)| match self.parts.get((*part)?)? {
            (_, PartContent::File(file)) => Some((*path, file.clone())),
            _ => None,
        };
        self.files.iter().filter_map(file).collect()
    }

    /// The part that is the mapped file; `None` when it is not there any more.
    fn file(&mut self, mapping: &Mapping<'a>) -> Option<(usize, HostFile)> {
        let part = match self.files.get(mapping.path) {
            Some(&known) => known,
            None => {
                let file = HostFile::open(mapping);
                let part = file.map(|file| {
                    let len = (file.bytes().len() as u64).next_multiple_of(PAGE);
                    self.parts.push((len, PartContent::File(file)));
                    self.parts.len() - 1
                });
                self.files.insert(mapping.path, part);
                part
            }
        }?;
        match self.parts.get(part) {
            Some((_, PartContent::File(file))) => Some((part, file.clone())),
            _ => None,
        }
    }

    /// The files among the parts, which are at these offsets.
    pub(super) fn libraries(&self, offsets: &[u64]) -> Vec<AboutLibrary> {
        let mut libraries: Vec<_> = self
            .files
            .iter()
            .filter_map(|(path, part)| {
                let (_, PartContent::File(file)) = self.parts.get((*part)?)? else {
                    return None;
                };
                Some(AboutLibrary {
                    path: (*path).to_owned(),
                    offset: *offsets.get((*part)?)?,
                    size: file.bytes().len() as u64,
                })
            })
            .collect();
        libraries.sort_by(|a, b| a.path.cmp(&b.path));
        libraries
    }
}

impl HostFile {
    /// The file that is mapped, if it has its name still.
    pub(super) fn open(mapping: &Mapping<'_>) -> Option<HostFile> {
        let path = Path::new(mapping.path);
        let meta = std::fs::metadata(path).ok()?;
        let len = meta.len();
        if meta.ino() != mapping.inode || len == 0 || len > MAX_LIBRARY {
            return None;
        }
        let file = ElfFile::open(path).ok()?;
        Some(HostFile(Arc::new(file)))
    }

    /// Fills a page with what is mapped from `offset`; 0 when that is beyond the end.
    fn read(&self, offset: u64, page: &mut [u8]) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.bytes().get(start..).unwrap_or_default();
        let len = rest.len().min(page.len());
        page[..len].copy_from_slice(&rest[..len]);
        // What the last page has beyond the file is zero.
        if len > 0 { page.len() } else { 0 }
    }
}

fn flags(mapping: &Mapping<'_>) -> u32 {
    let flag = |letter, flag: u32| match mapping.mode.contains(letter) {
        true => flag,
        false => 0,
    };
    flag('r', PF_R.0) | flag('w', PF_W.0) | flag('x', PF_X.0)
}

/// Runs of pages that are as `expected` has them (which fills a page, and tells how much of it there
/// is), and runs of pages that are not. Pages that cannot be read are in neither.
fn runs<M: Memory>(
    memory: &M,
    range: &Range<u64>,
    expected: impl Fn(u64, &mut [u8]) -> usize,
) -> impl Iterator<Item = (bool, Range<u64>)> {
    let mut runs: Vec<(bool, Range<u64>)> = Vec::new();
    let (mut page, mut wanted) = ([0; PAGE as usize], [0; PAGE as usize]);
    for at in range.clone().step_by(PAGE as usize) {
        if memory.read(KernelAddr(at), &mut page).is_err() {
            continue;
        }
        wanted.fill(0);
        let len = expected(at, &mut wanted).min(page.len());
        let same = len > 0 && page[..len] == wanted[..len];
        match runs.last_mut() {
            Some((kind, run)) if *kind == same && run.end == at => run.end = at + PAGE,
            _ => runs.push((same, at..at + PAGE)),
        }
    }
    runs.into_iter()
}
