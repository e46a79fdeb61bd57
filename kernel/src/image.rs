//! One kernel binary: symbols, types, source lines and where they came from.

mod cache;
mod file;
mod lines;
mod symbols;
mod tls;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSection, elf};

use crate::addr::KernelAddr;
use crate::layout::dwarf::DebugInfo;
use crate::layout::{Descriptions, KnownScopes, Layout, LayoutError};

pub(crate) use cache::Cache;
pub(crate) use file::{ElfFile, Slice};
use lines::Lines;
pub use lines::SourceFrame;
pub(crate) use lines::normalize;
pub use symbols::Symbol;
use symbols::Symbols;

/// A User Mode Linux kernel on disk: the `linux` file that `make ARCH=um` leaves in its build
/// directory.
///
/// Opening maps the file and reads its symbol table; types and source lines are parsed when first
/// asked for. Cloning shares everything.
#[derive(Clone)]
pub struct Image(Arc<Inner>);

struct Inner {
    build_id: Option<String>,
    symbols: Symbols,
    has_dwarf: bool,
    lines: Mutex<Lines>,
    layout: Layout,
    directories: OnceLock<(Option<PathBuf>, Option<PathBuf>)>,
    /// Where `lines` and `layout` keep what they found out.
    cache: Option<Cache>,
    file: Arc<ElfFile>,
}

/// What the host does with a kernel when it starts it.
pub(crate) struct Program {
    /// Where the first instruction is.
    pub(crate) entry: KernelAddr,
    /// Where the program headers are, and how many.
    pub(crate) headers: KernelAddr,
    pub(crate) headers_count: u64,
    /// The dynamic linker; `None` of a static kernel.
    pub(crate) interpreter: Option<PathBuf>,
}

/// Why a file cannot be used as a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is no such file.
    #[error("no kernel at `{path}`: the file does not exist; `kscope build` makes one", path = path.display())]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The file exists and cannot be read.
    #[error("cannot read the kernel `{path}`: {error}", path = path.display())]
    Unreadable {
        /// The path as it was given.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// The file is something else.
    #[error(
        "`{path}` is not a kernel: {found}; pass the `linux` file that `make ARCH=um` leaves in \
         its build directory",
        path = path.display()
    )]
    NotElf {
        /// The path as it was given.
        path: PathBuf,
        /// What the file looks like instead.
        found: &'static str,
    },
    /// The file is an ELF file whose tables contradict it.
    #[error("the kernel `{path}` is damaged: {reason}; build it again", path = path.display())]
    Damaged {
        /// The path as it was given.
        path: PathBuf,
        /// Which table, and how.
        reason: String,
    },
    /// An ELF file for another machine.
    #[error(
        "`{path}` is a program for {machine}, but kscope runs x86-64 kernels only",
        path = path.display()
    )]
    WrongMachine {
        /// The path as it was given.
        path: PathBuf,
        /// What it was built for.
        machine: String,
    },
    /// An x86-64 program or kernel, but not User Mode Linux.
    #[error(
        "`{path}` is not a User Mode Linux kernel: {found}; build one with `kscope build` or \
         `make ARCH=um`",
        path = path.display()
    )]
    NotUserModeLinux {
        /// The path as it was given.
        path: PathBuf,
        /// What the file looks like instead.
        found: &'static str,
    },
    /// A User Mode Linux kernel without a symbol table.
    #[error(
        "the kernel `{path}` is stripped: it has no symbol table; use the `linux` file from the \
         build directory as the linker left it",
        path = path.display()
    )]
    Stripped {
        /// The path as it was given.
        path: PathBuf,
    },
}

impl Image {
    /// Opens the kernel at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not an x86-64 User Mode Linux kernel, or has no symbols. A
    /// kernel without DWARF opens; [`layout`](Image::layout) then fails.
    pub fn open(path: &Path) -> Result<Image, ImageError> {
        Image::open_in(path, None)
    }

    /// As [`open`](Image::open), and what is found out about types and source lines is kept in a
    /// file in `directory`, by build-id, so that the next command need not look it up in the DWARF
    /// (see [`save`](Image::save)).
    ///
    /// # Errors
    ///
    /// As `open`. A cache that cannot be read is one that is empty.
    pub fn open_with_cache(path: &Path, directory: &Path) -> Result<Image, ImageError> {
        Image::open_in(path, Some(directory))
    }

    /// Keeps what was found out about types and source lines, when there is something new and the
    /// image was opened with a cache.
    ///
    /// # Errors
    ///
    /// What the host says when the file cannot be written. Nothing but time is lost then.
    pub fn save(&self) -> io::Result<()> {
        let Some(cache) = &self.0.cache else {
            return Ok(());
        };
        // A panic elsewhere has not made the facts wrong.
        let lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (types, lines) = (self.0.layout.known(), lines.known());
        cache.save(types.len + lines.len(), &(&*types, lines))?;
        drop(types);
        self.0.layout.save_descriptions()
    }

    fn open_in(path: &Path, cache: Option<&Path>) -> Result<Image, ImageError> {
        let file = ElfFile::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound {
                path: path.to_owned(),
            },
            _ => ImageError::Unreadable {
                path: path.to_owned(),
                error,
            },
        })?;
        Image::from_file(Arc::new(file), cache)
    }

    fn from_file(file: Arc<ElfFile>, cache: Option<&Path>) -> Result<Image, ImageError> {
        let path = || file.path().to_owned();
        let bytes = file.bytes();
        check_header(&file)?;
        let damaged = |error: object::Error| ImageError::Damaged {
            path: path(),
            reason: error.to_string(),
        };
        let elf = ElfFile64::<LittleEndian>::parse(bytes).map_err(damaged)?;
        let symbols = Symbols::parse(bytes).map_err(damaged)?;
        // The linker script's own sections survive stripping.
        let has_uml_sections = elf.section_by_name(".uml.setup.init").is_some();
        if symbols.is_empty() {
            return Err(if has_uml_sections {
                ImageError::Stripped { path: path() }
            } else {
                ImageError::NotUserModeLinux {
                    path: path(),
                    found: "a program without symbols",
                }
            });
        }
        let has = |name| symbols.named(bytes, name).next().is_some();
        if !(has("uml_physmem") && has("linux_main") && has("init_task")) {
            let found = if has("start_kernel") {
                "a Linux kernel for bare metal or a virtual machine (a vmlinux)"
            } else {
                "an ordinary program"
            };
            return Err(ImageError::NotUserModeLinux {
                path: path(),
                found,
            });
        }
        let build_id: Option<String> = elf
            .build_id()
            .ok()
            .flatten()
            .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect());
        let has_dwarf = elf
            .section_by_name(".debug_info")
            .is_some_and(|section| section.size() > 0);
        let of_kind = |kind| {
            let (directory, build_id) = cache.zip(build_id.as_deref())?;
            Some(Cache::new(directory, build_id, kind, bytes.len() as u64))
        };
        let cache = of_kind("facts");
        let (types, lines) = cache.as_ref().and_then(Cache::load).unwrap_or_default();
        let descriptions = Descriptions::new(of_kind("types"), of_kind("names"));
        let scopes = KnownScopes::new(of_kind("scopes"));
        let debug = Arc::new(DebugInfo::new(Arc::clone(&file)));
        Ok(Image(Arc::new(Inner {
            build_id,
            symbols,
            has_dwarf,
            lines: Mutex::new(Lines::new(Arc::clone(&debug), lines)),
            layout: Layout::new(debug, types, descriptions, scopes, file.path()),
            directories: OnceLock::new(),
            cache,
            file,
        })))
    }

    /// The path the kernel was opened with.
    pub fn path(&self) -> &Path {
        self.0.file.path()
    }

    /// The linker's fingerprint of this very binary, in hexadecimal.
    pub fn build_id(&self) -> Option<String> {
        self.0.build_id.clone()
    }

    /// The address of the symbol `name`. When several have this name, the lowest; see
    /// [`symbols_named`](Image::symbols_named).
    pub fn symbol(&self, name: &str) -> Option<KernelAddr> {
        self.symbols_named(name).next().map(|symbol| symbol.addr)
    }

    /// The size in bytes of the symbol `name`; `None` when there is no such symbol or the symbol
    /// table does not know.
    pub fn symbol_size(&self, name: &str) -> Option<u64> {
        self.symbols_named(name)
            .next()
            .map(|symbol| symbol.size)
            .filter(|&size| size > 0)
    }

    /// Every symbol called `name`, by address: static functions of different files may share one.
    pub fn symbols_named(&self, name: &str) -> impl Iterator<Item = Symbol<'_>> + '_ {
        self.0.symbols.named(self.0.file.bytes(), name)
    }

    /// The name of the symbol that covers `addr`, and how far into it `addr` is, in bytes.
    pub fn symbol_at(&self, addr: KernelAddr) -> Option<(&str, u64)> {
        let symbol = self.0.symbols.at(self.0.file.bytes(), addr.get())?;
        Some((symbol.name, addr - symbol.addr))
    }

    /// Every function, variable and label, by address.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> + '_ {
        self.0.symbols.iter(self.0.file.bytes())
    }

    /// Whether `addr` is in a section of kernel code. Loaded modules and the host's libraries are
    /// not in this file.
    pub fn is_text(&self, addr: KernelAddr) -> bool {
        self.0.symbols.is_text(addr.get())
    }

    /// Copies what the binary has at `addr` and no running kernel writes to, its text and constants:
    /// as many bytes as there are, at most `buf`'s length.
    pub fn read_text(&self, addr: KernelAddr, buf: &mut [u8]) -> usize {
        let bytes = self.0.file.bytes();
        let header = elf::FileHeader64::<LittleEndian>::parse(bytes);
        let segments = header.and_then(|header| header.program_headers(LittleEndian, bytes));
        let text = segments.unwrap_or_default().iter().find_map(|segment| {
            let loaded = segment.p_type(LittleEndian) == elf::PT_LOAD;
            let written = segment.p_flags(LittleEndian).0 & elf::PF_W.0 != 0;
            let within = addr.get().checked_sub(segment.p_vaddr(LittleEndian))?;
            let data = segment.data(LittleEndian, bytes).ok()?;
            let rest = data.get(usize::try_from(within).ok()?..)?;
            (loaded && !written && !rest.is_empty()).then_some(rest)
        });
        let Some(text) = text else {
            return 0;
        };
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text[..len]);
        len
    }

    /// How the host starts the kernel. `None` when its headers are damaged.
    pub(crate) fn program(&self) -> Option<Program> {
        let bytes = self.0.file.bytes();
        let header = elf::FileHeader64::<LittleEndian>::parse(bytes).ok()?;
        let segments = header.program_headers(LittleEndian, bytes).ok()?;
        let find = |kind| {
            let is = |segment: &&elf::ProgramHeader64<LittleEndian>| {
                segment.p_type(LittleEndian) == kind
            };
            segments.iter().find(is)
        };
        let interpreter = find(elf::PT_INTERP).and_then(|segment| {
            let path = segment.data(LittleEndian, bytes).ok()?;
            let path = path.split(|&byte| byte == 0).next()?;
            Some(PathBuf::from(std::str::from_utf8(path).ok()?))
        });
        Some(Program {
            entry: KernelAddr(header.e_entry(LittleEndian)),
            headers: KernelAddr(find(elf::PT_PHDR)?.p_vaddr(LittleEndian)),
            headers_count: segments.len() as u64,
            interpreter,
        })
    }

    /// Whether the kernel has debug information (CONFIG_DEBUG_INFO).
    pub fn has_dwarf(&self) -> bool {
        self.0.has_dwarf
    }

    /// The functions at `addr`, the innermost inlined one first and the one that has the code
    /// last. Without DWARF for `addr`, one frame with the symbol's name; without a symbol, none.
    ///
    /// To look up a return address, ask for the byte before it: the call is what is meant.
    pub fn locate(&self, addr: KernelAddr) -> Vec<SourceFrame> {
        // A cache is as good after a panic as before.
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut frames = match self.0.has_dwarf {
            true => lines.locate(addr.get()),
            false => Vec::new(),
        };
        drop(lines);
        let symbol = || self.symbol_at(addr).map(|(name, _)| name.to_owned());
        match frames.last_mut() {
            Some(outer) if outer.function.is_empty() => {
                outer.function = symbol().unwrap_or_else(|| addr.to_string());
            }
            Some(_) => {}
            None => frames.extend(symbol().map(|function| SourceFrame {
                function,
                file: None,
                line: None,
            })),
        }
        frames
    }

    /// The directory of the kernel's sources, as the compiler saw it.
    pub fn source_root(&self) -> Option<&Path> {
        self.directories().0.as_deref()
    }

    /// The directory the kernel was built in (`O=`), as the compiler saw it.
    pub fn build_dir(&self) -> Option<&Path> {
        self.directories().1.as_deref()
    }

    fn directories(&self) -> &(Option<PathBuf>, Option<PathBuf>) {
        let find = || match self.0.has_dwarf {
            true => self.0.layout.directories(),
            false => (None, None),
        };
        self.0.directories.get_or_init(find)
    }

    /// `file` relative to the source tree or, for generated files, to the build directory; as it
    /// is when it lies in neither.
    pub fn relative_path<'a>(&self, file: &'a str) -> &'a str {
        let under = |root: Option<&Path>| {
            Path::new(file)
                .strip_prefix(root?)
                .ok()
                .and_then(Path::to_str)
        };
        under(self.source_root())
            .or_else(|| under(self.build_dir()))
            .unwrap_or(file)
    }

    /// The kernel's types, as its DWARF describes them.
    ///
    /// # Errors
    ///
    /// When the kernel has no DWARF. One that cannot be read is found out when something is
    /// looked up.
    pub fn layout(&self) -> Result<&Layout, LayoutError> {
        if self.0.has_dwarf {
            return Ok(&self.0.layout);
        }
        Err(LayoutError::NoDwarf {
            path: self.path().to_owned(),
        })
    }

    pub(crate) fn file(&self) -> &Arc<ElfFile> {
        &self.0.file
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("path", &self.path())
            .field("build_id", &self.build_id())
            .finish()
    }
}

/// Tells the usual wrong files apart by their first bytes.
fn check_header(file: &ElfFile) -> Result<(), ImageError> {
    let path = || file.path().to_owned();
    let bytes = file.bytes();
    if !bytes.starts_with(&elf::ELFMAG) {
        let found = match bytes {
            [] => "it is empty",
            [b'M', b'Z', ..] => "it is a bootable image (a bzImage)",
            [b'#', b'!', ..] => "it is a script",
            [0x1f, 0x8b, ..] => "it is a gzip archive",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is a zstd archive",
            _ => "it is not an ELF file",
        };
        return Err(ImageError::NotElf {
            path: path(),
            found,
        });
    }
    let not_x86_64 = |machine: String| ImageError::WrongMachine {
        path: path(),
        machine,
    };
    match (bytes.get(4).copied(), bytes.get(5).copied()) {
        (Some(class), _) if class == elf::ELFCLASS32.0 => {
            return Err(not_x86_64("a 32-bit machine".to_owned()));
        }
        (_, Some(data)) if data == elf::ELFDATA2MSB.0 => {
            return Err(not_x86_64("a big-endian machine".to_owned()));
        }
        _ => {}
    }
    let header =
        elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(|error| ImageError::Damaged {
            path: path(),
            reason: error.to_string(),
        })?;
    match header.e_machine(LittleEndian) {
        elf::EM_X86_64 => {}
        elf::EM_AARCH64 => return Err(not_x86_64("64-bit ARM".to_owned())),
        other => return Err(not_x86_64(format!("ELF machine {other}"))),
    }
    match header.e_type(LittleEndian) {
        elf::ET_EXEC | elf::ET_DYN => Ok(()),
        elf::ET_REL => Err(ImageError::NotUserModeLinux {
            path: path(),
            found: "an object file (vmlinux.o, or a module)",
        }),
        elf::ET_CORE => Err(ImageError::NotUserModeLinux {
            path: path(),
            found: "a core file",
        }),
        _ => Err(ImageError::NotUserModeLinux {
            path: path(),
            found: "an unknown kind of ELF file",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_told_once_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [pipe.as_path(), dir.path()] {
            let error = Image::open(path).unwrap_err();
            assert!(std::error::Error::source(&error).is_none());
            let text = error.to_string();
            assert_eq!(text.matches("not a regular file").count(), 1, "{text}");
        }
    }
}
