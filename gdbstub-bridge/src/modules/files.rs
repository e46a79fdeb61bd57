//! Where modules' files are, and what of them a client is given.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kscope_guest::mem::ProcMem;
use kscope_kernel::views::modules::LoadedSection;
use kscope_kernel::{KernelAddr, MemoryExt, ModuleFile, Reader, printable};

use super::Modules;
use crate::target::GuestTarget;

/// Bytes of the largest file that is taken for a module's.
const MAX_FILE: u64 = 1 << 28;

/// Entries of a directory and those below it that are looked at.
const MAX_ENTRIES: usize = 200_000;

/// The files below some directories that may be modules', by the modules' names.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<String, Vec<PathBuf>>);

impl Files {
    /// Looks through the directories, for all modules at once.
    pub(super) fn below<'d>(directories: impl IntoIterator<Item = &'d PathBuf>) -> Files {
        let mut files = Files::default();
        for directory in directories {
            files.add(directory);
        }
        files
    }

    fn add(&mut self, directory: &Path) {
        let mut directories = vec![directory.to_owned()];
        let mut entries = 0;
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                entries += 1;
                if entries > MAX_ENTRIES {
                    return;
                }
                // Links are not followed: `source` would lead out of it.
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                    Ok(kind) if kind.is_file() => {
                        let name = entry.file_name();
                        if let Some(module) =
                            name.to_str().and_then(|name| name.strip_suffix(".ko"))
                        {
                            // A hyphen in a file's name is an underscore in the module's.
                            let files = self.0.entry(module.replace('-', "_")).or_default();
                            files.push(entry.path());
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Those of a module.
    pub(super) fn of(&self, module: &str) -> &[PathBuf] {
        self.0.get(module).map_or(&[], Vec::as_slice)
    }
}

/// The most bytes of files that are made in one session, which a guest with a corrupt list of modules would have no end
/// of.
const MOST_MADE: u64 = 1 << 28;

/// A module's file, placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) path: PathBuf,
    /// It is made of what the guest's memory has: there was no other.
    pub(super) is_made: bool,
}

/// A module that is loaded.
pub(super) struct Loaded<'r> {
    pub(super) reader: &'r Reader<'r, ProcMem>,
    /// Of its `struct module`.
    pub(super) addr: KernelAddr,
    pub(super) sections: Vec<LoadedSection>,
    pub(super) areas: &'r [Range<u64>],
}

impl Loaded<'_> {
    /// The file at `path` with its sections where they are. None when it is not of this module.
    pub(super) fn placed(&self, path: &Path) -> Option<Vec<u8>> {
        let data = fs::metadata(path).ok()?;
        // What the guest names may be a file in /proc, which has no size and may have no end.
        let bytes = (data.is_file() && (1..=MAX_FILE).contains(&data.len()))
            .then(|| fs::read(path).ok())??;
        let file = ModuleFile::new(&bytes)?;
        let read = |addr, len| self.reader.kernel().read_vec(addr, len).ok();
        let is_it = file.is_build_of(&self.sections, read);
        is_it.then(|| file.placed(&self.sections, |addr| self.is_in_use(addr)))?
    }

    /// A file of what is in memory.
    pub(super) fn made(&self) -> Option<Vec<u8>> {
        let symbols = self.reader.module_symbols(self.addr, self.areas);
        let symbols = symbols
            .inspect_err(|error| log::debug!("symbols of the module at {}: {error}", self.addr))
            .ok()?;
        let read = |addr, len| self.reader.kernel().read_vec(addr, len).ok();
        ModuleFile::from_memory(&self.sections, self.areas, &symbols, read)
    }

    fn is_in_use(&self, addr: KernelAddr) -> bool {
        self.areas.iter().any(|area| area.contains(&addr.get()))
    }
}

impl GuestTarget {
    /// Says, once of each module, that there is no file of it.
    pub(super) fn tell_of_missing_files(&mut self) {
        let mut names: [Vec<String>; 2] = Default::default();
        for known in self.modules.known.iter_mut().filter(|known| !known.is_told) {
            let list = match &known.file {
                Some(file) if file.is_made => 0,
                Some(_) => continue,
                None => 1,
            };
            known.is_told = true;
            names[list].push(printable(&known.name));
        }
        let what = [
            "symbols from memory only, without types and lines,",
            "no symbols",
        ];
        for (names, what) in names
            .iter()
            .zip(what)
            .filter(|(names, _)| !names.is_empty())
        {
            let text = format!(
                "kscope: {what} of module {}: no .ko file of it is found; `monitor module-path DIR` says where\n",
                names.join(", ")
            );
            self.console.print(text.as_bytes());
        }
    }

    /// `monitor module-path`: shows, or adds to, where modules' files are looked for.
    pub(crate) fn module_path(&mut self, directory: Option<&str>) -> Result<String, String> {
        if let Some(directory) = directory {
            let path = PathBuf::from(directory);
            if !path.is_absolute() || !path.is_dir() {
                return Err(format!("{directory} is not the full path of a directory"));
            }
            self.modules.search.retain(|known| *known != path);
            self.modules.search.push(path);
            self.modules.files = None;
        }
        let kernel = self.kernel.clone().ok_or_else(crate::monitor::no_types)?;
        let reader = Reader::new(&kernel);
        let mut text = String::new();
        // The client has them until it has asked again.
        let mut replaced = Vec::new();
        for mut known in std::mem::take(&mut self.modules.known) {
            if known.file.as_ref().is_none_or(|file| file.is_made) {
                let file = self.place(&reader, known.addr, &known.name, &known.areas, None);
                replaced.extend(std::mem::replace(&mut known.file, file));
            }
            let has = match &known.file {
                Some(file) if file.is_made => "symbols from memory",
                Some(_) => "symbols",
                None => "no symbols",
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}: {has}", known.name);
            self.modules.known.push(known);
        }
        self.modules.stale.extend(replaced);
        if directory.is_some() {
            text += "`sharedlibrary` makes gdb read them\n";
        }
        for directory in self.modules.search.iter().map(|path| path.display()) {
            let _ = writeln!(text, "looked for in {directory}");
        }
        let build = self.image.as_ref().and_then(|image| image.path().parent());
        let build = build.map(Path::display);
        let _ = writeln!(
            text,
            "looked for in {}",
            build.map_or_else(String::new, |path| path.to_string())
        );
        Ok(text)
    }

    /// Finds a module's file and writes it, placed, for the client to read; or else what the guest's memory has of it.
    pub(super) fn place(
        &mut self,
        reader: &Reader<'_, ProcMem>,
        addr: KernelAddr,
        name: &str,
        areas: &[Range<u64>],
        source: Option<&Path>,
    ) -> Option<Placed> {
        self.modules.drop_stale();
        let directory = self.modules.directory.clone()?;
        let name = file_name(name)?;
        let sections = reader.module_sections(addr);
        let sections = sections
            .inspect_err(|error| log::debug!("sections of {name}: {error}"))
            .ok()?;
        let module = Loaded {
            reader,
            addr,
            sections,
            areas,
        };
        let placed = source.and_then(|path| module.placed(path)).or_else(|| {
            let files = self.files_of(name);
            files.iter().find_map(|path| module.placed(path))
        });
        let is_made = placed.is_none();
        let placed = match placed {
            Some(placed) => placed,
            None => {
                let room = MOST_MADE.saturating_sub(self.modules.made);
                let made = module.made().filter(|made| made.len() as u64 <= room)?;
                self.modules.made += made.len() as u64;
                made
            }
        };
        // Each in a place of its own: a client may keep what it has read under one name.
        self.modules.placed += 1;
        let directory = directory.join(self.modules.placed.to_string());
        let path = directory.join(format!("{name}.ko"));
        match fs::create_dir_all(&directory).and_then(|()| fs::write(&path, placed)) {
            Ok(()) => Some(Placed { path, is_made }),
            Err(error) => {
                log::warn!("{}: {error}", path.display());
                None
            }
        }
    }

    /// The files that may be a module's.
    fn files_of(&mut self, name: &str) -> &[PathBuf] {
        let Modules { files, search, .. } = &mut self.modules;
        let build = self.image.as_ref().and_then(|image| image.path().parent());
        let build = build.map(Path::to_owned);
        let files = files.get_or_insert_with(|| Files::below(search.iter().chain(&build)));
        files.of(name)
    }
}

/// A module's name as a file's, unless it has been made up to be something else.
fn file_name(name: &str) -> Option<&str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    (!name.is_empty() && name.chars().all(is_plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_their_modules_names() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["a/b/one-two.ko", "a/three.ko"].map(|name| dir.path().join(name));
        fs::create_dir_all(one.parent().unwrap()).unwrap();
        for file in [&one, &two, &dir.path().join("a/three.ko.cmd")] {
            fs::write(file, "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/again")).unwrap();
        let files = Files::below([&dir.path().to_owned(), &dir.path().join("none")]);
        assert_eq!(files.of("one_two"), [one]);
        assert_eq!(files.of("three"), [two]);
        assert!(files.of("four").is_empty());
    }
}
