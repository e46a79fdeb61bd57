//! The modules of a guest's kernel process, from its memory map.

use std::cell::Cell;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Unwinder, UnwinderError};
use crate::addr::KernelAddr;
use crate::core::Core;
use crate::host_maps::{self, Mapping};
use crate::image::ElfFile;
use crate::memory::{Memory, MemoryExt};

/// More shared objects than the process of any kernel maps: libc, and some that it loads.
const MAX_MODULES: usize = 64;

/// The most bytes of shared objects that are kept in memory, as those of a core are.
const MAX_KEPT: usize = 128 << 20;

impl Unwinder {
    /// Adds every shared object that the text of `/proc/PID/maps` names. The vDSO, which has no
    /// file, is read from `memory`. What is already known, and the kernel itself, is passed over.
    ///
    /// Returns the objects that could not be added: unwinding works without them, less well.
    pub fn add_modules_from_maps<M: Memory + ?Sized>(
        &mut self,
        maps: &str,
        memory: &M,
    ) -> Vec<UnwinderError> {
        self.add_mappings(maps, memory, Unwinder::add_mapping)
    }

    /// Adds every shared object that the kernel's process had when the core was taken: as it was on
    /// that host, where the core has it, else from this host's file system.
    ///
    /// Returns the objects that could not be added: unwinding works without them, less well.
    pub fn add_modules_from_core(&mut self, core: &Core) -> Vec<UnwinderError> {
        let kept = Cell::new(0);
        self.add_mappings(core.maps(), core, |unwinder, mapping| {
            let Some(bytes) = core.library(mapping.path) else {
                return unwinder.add_mapping(mapping);
            };
            kept.set(kept.get() + bytes.len());
            if kept.get() > MAX_KEPT {
                return Err(UnwinderError::Unusable {
                    path: mapping.path.into(),
                    reason: "the core has more libraries than a kernel's process".to_owned(),
                });
            }
            let file = ElfFile::from_bytes(Path::new(mapping.path), bytes);
            unwinder.add_file(Arc::new(file), mapping.range.clone(), mapping.offset)
        })
    }

    fn add_mappings<M: Memory + ?Sized>(
        &mut self,
        maps: &str,
        memory: &M,
        add: impl Fn(&mut Unwinder, &Mapping<'_>) -> Result<(), UnwinderError>,
    ) -> Vec<UnwinderError> {
        let mut errors = Vec::new();
        for mapping in maps.lines().filter_map(executable) {
            if self
                .modules
                .iter()
                .any(|module| overlap(&module.range, &mapping.range))
            {
                continue;
            }
            let added = match mapping.path {
                "[vdso]" => self.add_vdso(mapping.range, memory),
                path if path.starts_with('/') => add(self, &mapping),
                // Guest RAM, code made at run time.
                _ => continue,
            };
            errors.extend(added.err());
            if self.modules.len() + errors.len() >= MAX_MODULES {
                break;
            }
        }
        errors
    }

    fn add_mapping(&mut self, mapping: &Mapping<'_>) -> Result<(), UnwinderError> {
        let path = Path::new(mapping.path);
        let unusable = |reason: &str| UnwinderError::Unusable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        // Guest RAM is such a file, and executable.
        if mapping.path.ends_with(" (deleted)") {
            return Err(unusable("the file was deleted while it was mapped"));
        }
        let file = std::fs::metadata(path).map_err(|source| UnwinderError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        if file.ino() != mapping.inode {
            return Err(unusable("the file was replaced while it was mapped"));
        }
        self.add_module(path, mapping.range.clone(), mapping.offset)
    }

    fn add_vdso<M: Memory + ?Sized>(
        &mut self,
        range: Range<u64>,
        memory: &M,
    ) -> Result<(), UnwinderError> {
        // Two pages on today's hosts.
        const MAX: u64 = 1 << 20;
        let name = PathBuf::from("[vdso]");
        let len = (range.end - range.start).min(MAX) as usize;
        let bytes = memory
            .read_vec(KernelAddr(range.start), len)
            .map_err(|error| UnwinderError::Unusable {
                path: name.clone(),
                reason: error.to_string(),
            })?;
        self.add_file(Arc::new(ElfFile::from_bytes(&name, bytes)), range, 0)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The line when it is of code that is a library's.
fn executable(line: &str) -> Option<Mapping<'_>> {
    // Guest RAM is mapped shared; libraries are private.
    host_maps::line(line).filter(|mapping| mapping.mode.starts_with("r-xp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_code_counts() {
        let libc = "7f0c4a026000-7f0c4a17b000 r-xp 00026000 fe:00 1234   /usr/lib/lib c.so.6";
        assert_eq!(
            executable(libc).map(|mapping| mapping.path),
            Some("/usr/lib/lib c.so.6")
        );
        let vdso = "7ffff7fc9000-7ffff7fcb000 r-xp 00000000 00:00 0    [vdso]";
        assert_eq!(executable(vdso).map(|mapping| mapping.path), Some("[vdso]"));
        for other in [
            "",
            "nonsense",
            "60000000-60001000 r--p 00000000 fe:00 7 /k/linux",
            "60001000-60022000 rwxs 00001000 00:01 9 /dev/shm/vm_file-AbCdEf (deleted)",
            "20-10 r-xp 0 0:0 0 /backwards",
        ] {
            assert_eq!(executable(other), None, "{other}");
        }
    }
}
