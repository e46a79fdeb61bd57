//! Where modules' files are, and what of them a client is given.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use kscope_guest::mem::ProcMem;
use kscope_kernel::views::modules::LoadedSection;
use kscope_kernel::{KernelAddr, MemoryExt, ModuleFile, Reader};

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

/// A module that is loaded.
pub(super) struct Loaded<'r> {
    pub(super) reader: &'r Reader<'r, ProcMem>,
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

    fn is_in_use(&self, addr: KernelAddr) -> bool {
        self.areas.iter().any(|area| area.contains(&addr.get()))
    }
}

/// A module's name as a file's, unless it has been made up to be something else.
pub(super) fn file_name(name: &str) -> Option<&str> {
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
