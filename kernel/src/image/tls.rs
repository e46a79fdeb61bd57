//! Where the kernel's thread-local variables are.
//!
//! To the host, User Mode Linux is a program, and its CPUs are threads of it:
//! since 7.x some of what is one CPU's own is in thread-local variables.

use object::LittleEndian;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Sym};

use super::Image;

impl Image {
    /// Where the thread-local variable `name` lies from the thread pointer (the base of the FS
    /// segment) of each of the kernel's host threads; negative, since the program's own variables
    /// are below it (x86-64's variant II of the ELF TLS layout). `None` when there is no such
    /// variable.
    pub fn thread_local(&self, name: &str) -> Option<i64> {
        let file = ElfFile64::<LittleEndian>::parse(self.0.file.bytes()).ok()?;
        let endian = file.endian();
        let table = file.elf_symbol_table();
        let symbol = table.iter().find(|symbol| {
            symbol.st_type() == elf::STT_TLS
                && symbol
                    .name(endian, table.strings())
                    .is_ok_and(|found| found == name.as_bytes())
        })?;
        let header = file
            .elf_header()
            .program_headers(endian, self.0.file.bytes())
            .ok()?
            .iter()
            .find(|header| header.p_type(endian) == elf::PT_TLS)?;
        let align = header.p_align(endian).max(1);
        let size = header.p_memsz(endian).checked_next_multiple_of(align)?;
        let size = i64::try_from(size).ok()?;
        i64::try_from(symbol.st_value(endian))
            .ok()?
            .checked_sub(size)
    }
}
