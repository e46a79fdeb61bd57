//! `qXfer:libraries-svr4:read`: the shared libraries of a process, which may be a kernel's, and the guest's modules.
//!
//! GDB manual, "Library List Format for SVR4 Targets". A program of Linux, which the kernel is to GDB, has its libraries
//! in this list and in no other, with one number that is added to all addresses of a library's file. A module's file has
//! no addresses: the client is given one in which they are those of the module in memory, and 0 to add.
//!
//! The libraries proper are in the dynamic linker's own list (System V ABI, "Dynamic Linking"; `struct r_debug` and
//! `struct link_map` of the C library's link.h).

use std::fmt::Write;

use kscope_guest::mem::ProcMem;
use kscope_kernel::{KernelAddr, MemoryExt};

use super::Client;
use super::xfer::xml;
use crate::target::GuestTarget;

/// Libraries of a process that are listed.
const MAX_LIBRARIES: usize = 1024;

/// Bytes of the longest path.
const MAX_PATH: usize = 4096;

/// `struct link_map`.
#[derive(Debug, PartialEq, Eq)]
struct LinkMap {
    addr: u64,
    bias: u64,
    name: String,
    dynamic: u64,
}

pub(super) fn document(client: &Client, target: &mut GuestTarget) -> String {
    let own = link_maps(target.space.host(), target.pid().0);
    let mut text = String::from("<?xml version=\"1.0\"?>\n<library-list-svr4 version=\"1.0\"");
    let mut own = own.into_iter();
    // The first is the program itself.
    if let Some(main) = own.next() {
        // Writing to a string does not fail.
        let _ = write!(text, " main-lm=\"{:#x}\"", main.addr);
    }
    text += ">\n";
    // The host kernel's part of the process, linux-vdso.so.1, has no file.
    for library in own.filter(|library| library.name.contains('/')) {
        let _ = writeln!(
            text,
            "<library name=\"{}\" lmid=\"0x0\" lm=\"{:#x}\" l_addr=\"{:#x}\" l_ld=\"{:#x}\"/>",
            xml(&library.name),
            library.addr,
            library.bias,
            library.dynamic
        );
    }
    // LLDB gives the sections of such a file addresses of its own.
    let modules = match client.is_lldb {
        true => Vec::new(),
        false => target.libraries(),
    };
    for module in modules {
        let _ = writeln!(
            text,
            "<library name=\"{}\" lmid=\"0x0\" lm=\"{:#x}\" l_addr=\"0x0\" l_ld=\"0x0\"/>",
            xml(&module.name),
            module.addr.get()
        );
    }
    text += "</library-list-svr4>\n";
    text
}

/// The dynamic linker's list. Nothing of a program that is linked statically, or that has not got so far.
fn link_maps(memory: &ProcMem, pid: i32) -> Vec<LinkMap> {
    let word = |addr: u64| memory.read_u64(KernelAddr(addr)).ok();
    let mut maps = Vec::new();
    let first = std::fs::read(format!("/proc/{pid}/auxv"))
        .ok()
        .and_then(|auxv| {
            let debug = word(dynamic_entry(&auxv, word)?)?;
            // r_version, r_map.
            word(debug.checked_add(8)?)
        });
    let mut next = first.unwrap_or(0);
    while next != 0
        && maps.len() < MAX_LIBRARIES
        && !maps.iter().any(|map: &LinkMap| map.addr == next)
    {
        let map = (|| {
            Some(LinkMap {
                addr: next,
                bias: word(next)?,
                name: memory
                    .read_cstr(KernelAddr(word(next.checked_add(8)?)?), MAX_PATH)
                    .ok()?,
                dynamic: word(next.checked_add(16)?)?,
            })
        })();
        let Some(map) = map else {
            break;
        };
        next = next.checked_add(24).and_then(word).unwrap_or(0);
        maps.push(map);
    }
    maps
}

/// Where the program's DT_DEBUG is, which the dynamic linker sets to its `struct r_debug`.
fn dynamic_entry(auxv: &[u8], word: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    const AT_PHDR: u64 = 3;
    const AT_PHNUM: u64 = 5;
    /// An `Elf64_Phdr`: type and flags, offset, vaddr.
    const PHDR: u64 = 56;
    const VADDR: u64 = 16;
    const PT_DYNAMIC: u64 = 2;
    const PT_PHDR: u64 = 6;
    const DT_DEBUG: u64 = 21;
    /// More than any program has.
    const MOST: u64 = 256;
    let (words, _) = auxv.as_chunks::<8>();
    let entry = |kind| {
        let mut pairs = words.chunks_exact(2);
        let pair = pairs.find(|pair| u64::from_le_bytes(pair[0]) == kind)?;
        Some(u64::from_le_bytes(pair[1]))
    };
    let headers = entry(AT_PHDR)?;
    let header = |kind| {
        let mut all = (0..entry(AT_PHNUM)?.min(MOST)).map(|at| headers.wrapping_add(at * PHDR));
        all.find(|&at| word(at).is_some_and(|word| word & 0xffff_ffff == kind))
    };
    let bias = match header(PT_PHDR) {
        Some(own) => headers.wrapping_sub(word(own.checked_add(VADDR)?)?),
        None => 0,
    };
    let dynamic = word(header(PT_DYNAMIC)?.checked_add(VADDR)?)?.wrapping_add(bias);
    let mut entries = (0..MOST).map(|at| dynamic.wrapping_add(at * 16));
    let entry = entries.find(|&at| matches!(word(at), Some(DT_DEBUG | 0) | None))?;
    (word(entry) == Some(DT_DEBUG)).then_some(entry.wrapping_add(8))
}

#[cfg(test)]
mod tests {
    use kscope_guest::control::HostTid;

    use super::*;

    #[test]
    fn this_process_has_a_c_library() {
        let pid = std::process::id() as i32;
        let memory = ProcMem::open(HostTid(pid)).unwrap();
        let maps = link_maps(&memory, pid);
        let libc = maps
            .iter()
            .find(|map| map.name.contains("libc.so"))
            .unwrap();
        let in_maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = in_maps
            .lines()
            .find(|line| line.ends_with(&libc.name))
            .unwrap();
        assert!(
            start.starts_with(&format!("{:x}-", libc.bias)),
            "{libc:x?} {start}"
        );
    }
}
