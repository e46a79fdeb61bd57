//! Names for code of the host's libraries, in which a User Mode Linux kernel makes its host system calls.

use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

/// Executable mappings read from one `/proc/PID/maps` at most.
const MAX_MAPPINGS: usize = 4096;

/// Bytes of the largest library that is read for its names.
const MAX_LIBRARY: u64 = 256 << 20;

/// The libraries of a guest's kernel process.
#[derive(Debug, Default)]
pub(crate) struct HostCode {
    mappings: Vec<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    begin: u64,
    end: u64,
    file_offset: u64,
    path: PathBuf,
    /// `libc.so.6` of `/lib/…/libc.so.6`.
    label: String,
    /// Read when first needed.
    symbols: Option<Symbols>,
}

#[derive(Debug, Default)]
struct Symbols {
    /// Segments: file offset, size in the file, address.
    segments: Vec<(u64, u64, u64)>,
    /// Functions by address: begin, end, name.
    functions: Vec<(u64, u64, String)>,
}

impl HostCode {
    /// Executable mappings in the text of a `/proc/PID/maps`, without those of `kernel` itself.
    pub(crate) fn parse(maps: &str, kernel: &Path) -> Self {
        let mappings = maps
            .lines()
            .filter_map(Mapping::parse)
            .filter(|mapping| mapping.path != kernel)
            .take(MAX_MAPPINGS)
            .collect();
        Self { mappings }
    }

    /// The function at `addr`, as `wait4 [libc.so.6]`; `None` when no library is mapped there.
    pub(crate) fn name(&mut self, addr: u64) -> Option<String> {
        let mapping = self
            .mappings
            .iter_mut()
            .find(|mapping| (mapping.begin..mapping.end).contains(&addr))?;
        let symbols = mapping
            .symbols
            .get_or_insert_with(|| Symbols::read(&mapping.path).unwrap_or_default());
        let name = (addr - mapping.begin)
            .checked_add(mapping.file_offset)
            .and_then(|offset| symbols.function_at(offset));
        Some(match name {
            Some(name) => format!("{name} [{}]", mapping.label),
            None => format!("[{}]", mapping.label),
        })
    }
}

impl Mapping {
    /// `begin-end perms offset dev inode path`; only executable mappings with a path.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        if !fields.next()?.contains('x') {
            return None;
        }
        let file_offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let path = fields.skip(2).collect::<Vec<_>>().join(" ");
        if path.is_empty() || path.ends_with(" (deleted)") {
            // Guest memory: a file in TMPDIR that is deleted at once.
            return None;
        }
        let label = path
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        Some(Self {
            begin: u64::from_str_radix(begin, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            file_offset,
            path: path.into(),
            label,
            symbols: None,
        })
    }
}

impl Symbols {
    fn read(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        if !meta.is_file() || meta.len() > MAX_LIBRARY {
            return None;
        }
        let bytes = fs::read(path).ok()?;
        let elf = object::File::parse(&*bytes).ok()?;
        let segments = elf
            .segments()
            .map(|segment| {
                let (offset, size) = segment.file_range();
                (offset, size, segment.address())
            })
            .collect();
        let mut functions: Vec<(u64, u64, String)> = elf
            .symbols()
            .chain(elf.dynamic_symbols())
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
            .filter_map(|symbol| {
                let begin = symbol.address();
                let end = begin.checked_add(symbol.size())?;
                Some((begin, end, symbol.name().ok()?.to_owned()))
            })
            .collect();
        // Of several names for one function, the plainest: `wait4` before `__wait4`.
        functions.sort_by(|a, b| {
            let underscores = |name: &str| name.len() - name.trim_start_matches('_').len();
            (a.0, underscores(&a.2), &a.2).cmp(&(b.0, underscores(&b.2), &b.2))
        });
        functions.dedup_by_key(|function| function.0);
        Some(Self {
            segments,
            functions,
        })
    }

    fn function_at(&self, file_offset: u64) -> Option<&str> {
        let (offset, _, address) = self
            .segments
            .iter()
            .find(|(offset, size, _)| file_offset >= *offset && file_offset - offset < *size)?;
        let address = address.checked_add(file_offset - offset)?;
        let index = self
            .functions
            .partition_point(|(begin, _, _)| *begin <= address)
            .checked_sub(1)?;
        let (_, end, name) = &self.functions[index];
        (address < *end).then_some(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_names_its_own_libc() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut code = HostCode::parse(&maps, Path::new("/none"));
        // Whatever libc this runs on, its function is in a mapping that is a library, or in the test itself.
        let wait = crate::host::tests::wait4_address();
        let name = code.name(wait).unwrap();
        assert!(name.starts_with("wait4 ["), "{name}");
    }

    fn wait4_address() -> u64 {
        unsafe extern "C" {
            fn wait4() -> i32;
        }
        wait4 as *const () as u64
    }

    #[test]
    fn hostile_maps_are_skipped() {
        let maps = "nonsense\n1-2\nzz-1 r-xp 0 0 0 /x\n\u{0}\n10-20 r-xp 0 0 0 /x (deleted)\n";
        assert_eq!(HostCode::parse(maps, Path::new("/none")).mappings.len(), 0);
    }

    #[test]
    fn unreadable_libraries_keep_their_label() {
        let maps = "1000-2000 r-xp 00000000 00:00 0    /nonexistent/lib x.so\n3000-4000 r-xp 0 00:00 0 [vdso]\n";
        let mut code = HostCode::parse(maps, Path::new("/none"));
        assert_eq!(code.name(0x1800).unwrap(), "[lib x.so]");
        assert_eq!(code.name(0x3000).unwrap(), "[vdso]");
        assert_eq!(code.name(0x2000), None);
    }
}
