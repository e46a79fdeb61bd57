//! What libc knows of the threads of the kernel's process.
//!
//! gdb looks the threads of a process up in libc's own lists as well (libthread_db), and those of a
//! kernel's process are none of the guest's tasks: gdb would show one more thread, of which the core
//! has no registers. So a core has these lists empty.

use object::read::elf::{ElfFile64, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol, elf};

use super::contents::HostFile;
use crate::host_maps;

/// The addresses of the heads of libc's lists of threads. None of a libc that has no such lists, or
/// has them elsewhere (glibc before 2.34).
pub(super) fn lists(maps: &str, files: &[(&str, HostFile)]) -> Vec<u64> {
    find(maps, files).unwrap_or_default()
}

/// A list head that is empty: it points to itself.
pub(super) fn empty(head: u64) -> Vec<u8> {
    [head, head]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect()
}

fn find(maps: &str, files: &[(&str, HostFile)]) -> Option<Vec<u64>> {
    // They are in the dynamic linker's `_rtld_global`; libc tells debuggers where in it.
    let global = files.iter().find_map(|(path, file)| {
        let within = symbol(file.bytes(), "_rtld_global")?.addr;
        let first = |mapping: &host_maps::Mapping<'_>| mapping.path == *path && mapping.offset == 0;
        let base = host_maps::parse(maps).find(first)?.range.start;
        base.checked_add(within)
    })?;
    let offsets = ["used", "user"].into_iter().filter_map(|list| {
        let name = format!("_thread_db_rtld_global__dl_stack_{list}");
        files.iter().find_map(|(_, file)| {
            // A `db_desc_t` of nptl_db/db_info.c: size in bits, number, offset; 32 bits each.
            let offset = symbol(file.bytes(), &name)?.offset.checked_add(8)?;
            let field = file.bytes().get(offset..offset.checked_add(4)?)?;
            Some(u64::from(u32::from_le_bytes(field.try_into().ok()?)))
        })
    });
    let heads = offsets.filter_map(|offset| global.checked_add(offset));
    Some(heads.filter(|head| head.is_multiple_of(8)).collect())
}

/// Where a symbol of a library is.
struct Place {
    /// Relative to where the library is loaded.
    addr: u64,
    /// In its file.
    offset: usize,
}

fn symbol(bytes: &[u8], name: &str) -> Option<Place> {
    let elf = ElfFile64::<LittleEndian>::parse(bytes).ok()?;
    let addr = elf
        .dynamic_symbols()
        .find(|symbol| !symbol.is_undefined() && symbol.name() == Ok(name))?
        .address();
    let endian = elf.endian();
    elf.elf_program_headers().iter().find_map(|header| {
        let within = addr.checked_sub(header.p_vaddr(endian))?;
        let loaded = header.p_type(endian) == elf::PT_LOAD;
        let offset = header.p_offset(endian).checked_add(within)?;
        (loaded && within < header.p_memsz(endian)).then_some(Place {
            addr,
            offset: usize::try_from(offset).ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_lists_of_threads() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut files = Vec::new();
        for mapping in host_maps::parse(&maps).filter(host_maps::Mapping::is_of_file) {
            files.extend(HostFile::open(&mapping).map(|file| (mapping.path, file)));
        }
        let lists = lists(&maps, &files);
        assert_eq!(lists.len(), 2);
        for head in lists {
            // SAFETY: two pointers that libc keeps there for as long as the process lives. Threads
            // that come and go may change them, each in one store.
            let first = unsafe { std::ptr::read_volatile(head as *const u64) };
            assert!(first.is_multiple_of(8) && first != 0);
        }
    }
}
