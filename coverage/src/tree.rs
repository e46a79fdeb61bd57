//! Finds the `.gcno` files of a kernel: in the tree that it was built in.

use std::path::{Path, PathBuf};

/// The tree of a kernel's objects.
///
/// Objects remember where they were compiled. A tree that was moved since (a
/// cache entry that was built under a temporary name, a build copied from
/// another machine) is found again by what follows its root in the paths.
#[derive(Debug, Clone)]
pub struct BuildTree {
    /// Where the tree is now.
    root: PathBuf,
    /// Where it was when it was compiled, if that is known and elsewhere.
    compiled_at: Option<PathBuf>,
}

impl BuildTree {
    /// The tree in the directory `root`, whose objects say that they are
    /// `data_files` (see [`ObjectCounters::data_file`]).
    ///
    /// [`ObjectCounters::data_file`]: crate::counters::ObjectCounters::data_file
    pub fn locate<'a>(root: &Path, data_files: impl IntoIterator<Item = &'a str>) -> Self {
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        // One object that is found settles it; the first may be in a
        // directory that was cleaned up.
        let compiled_at = data_files
            .into_iter()
            .take(64)
            .find_map(|file| moved_from(&root, file));
        let compiled_at = compiled_at.filter(|c| *c != root);
        Self { root, compiled_at }
    }

    /// Where the notes of an object may be, the likeliest place first.
    pub fn notes_of(&self, data_file: &str) -> Vec<PathBuf> {
        let notes = Path::new(data_file).with_extension("gcno");
        let mut places: Vec<PathBuf> = self.moved(&notes).into_iter().collect();
        if notes.is_absolute() {
            places.push(notes);
        } else {
            places.push(self.root.join(notes));
        }
        places
    }

    /// The absolute path of a source file that an object compiled in `cwd` calls `name`.
    pub fn source(&self, cwd: Option<&str>, name: &str) -> String {
        let path = match (Path::new(name).is_absolute(), cwd) {
            (true, _) => PathBuf::from(name),
            (false, Some(cwd)) => Path::new(cwd).join(name),
            (false, None) => self.root.join(name),
        };
        let path = self.moved(&path).unwrap_or(path);
        crate::gcno::tidy(&path.to_string_lossy())
    }

    /// Where the tree is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn moved(&self, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(self.compiled_at.as_ref()?).ok()?;
        Some(self.root.join(rest))
    }
}

/// The directory that `root` was when it had `data_file` in it.
fn moved_from(root: &Path, data_file: &str) -> Option<PathBuf> {
    let notes = Path::new(data_file).with_extension("gcno");
    // From the longest rest to the shortest: `mm/util.gcno` is not to be
    // taken for `mm/kasan/util.gcno`.
    notes
        .ancestors()
        .skip(1)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .find_map(|ancestor| {
            let rest = notes.strip_prefix(ancestor).ok()?;
            root.join(rest).is_file().then(|| ancestor.to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_with(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let file = dir.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        dir
    }

    #[test]
    fn a_tree_that_was_moved_is_found() {
        let dir = tree_with(&["mm/util.gcno", "util.gcno"]);
        let tree = BuildTree::locate(dir.path(), ["/gone/o/x.gcda", "/gone/o/mm/util.gcda"]);
        assert_eq!(
            tree.notes_of("/gone/o/mm/util.gcda")[0],
            dir.path().join("mm/util.gcno")
        );
        assert_eq!(
            tree.source(Some("/gone/o"), "include/generated/a.h"),
            dir.path().join("include/generated/a.h").to_str().unwrap()
        );
        assert_eq!(tree.source(Some("/gone/o"), "/src/mm/../a.h"), "/src/a.h");
    }

    #[test]
    fn a_tree_that_stayed_is_taken_as_it_is() {
        let dir = tree_with(&["mm/util.gcno"]);
        let file = dir.path().join("mm/util.gcda");
        let file = file.to_str().unwrap();
        let tree = BuildTree::locate(dir.path(), [file]);
        assert_eq!(tree.notes_of(file), [dir.path().join("mm/util.gcno")]);
    }
}
