//! Writes `.gcda` files below a directory, for GCC's own tools.
//!
//! Their names come from the guest's memory, so they decide nothing but which
//! file below the directory is meant.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::{fs, io::Write};

use crate::counters::ObjectCounters;
use crate::gcda;

/// Why an object's `.gcda` file was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The guest's name for it could lead elsewhere.
    #[error("{0:?} is no path of a .gcda file, or leads out of the directory")]
    Name(String),
    /// A directory on the way is something else, such as a link.
    #[error("{} is there and is no directory: remove it", .0.display())]
    NoDirectory(PathBuf),
    /// It cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
}

/// Writes the `.gcda` file of `object` to its own path below `dir`, and beside it a link to `notes`.
///
/// A file or a link that has one of the names is replaced, never followed.
///
/// # Errors
///
/// When the object's name is not a plain path, or something cannot be written.
pub fn write(dir: &Path, object: &ObjectCounters, notes: Option<&Path>) -> Result<(), ExportError> {
    let name =
        plain(&object.data_file).ok_or_else(|| ExportError::Name(object.data_file.clone()))?;
    let data = dir.join(&name);
    let failed = |error| ExportError::Write {
        path: data.clone(),
        error,
    };
    fs::create_dir_all(dir).map_err(failed)?;
    let mut parent = dir.to_owned();
    for component in name.parent().into_iter().flat_map(Path::components) {
        parent.push(component);
        match fs::create_dir(&parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        if !parent.symlink_metadata().map_err(failed)?.is_dir() {
            return Err(ExportError::NoDirectory(parent));
        }
    }
    let write = || -> io::Result<()> {
        let mut temporary = tempfile::Builder::new()
            .prefix(".kscope-")
            // As any other output file; the umask takes its part.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(&parent)?;
        temporary.write_all(&gcda::write(object))?;
        temporary.persist(&data).map_err(|error| error.error)?;
        let link = data.with_extension("gcno");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        notes.map_or(Ok(()), |notes| symlink(notes, link))
    };
    write().map_err(failed)
}

/// The path without its root and with its `..` resolved by name alone, when it
/// stays below the root. (Kbuild makes names such as `um/../lib/csum.gcda`.)
fn plain(data_file: &str) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for component in Path::new(data_file).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir if plain.pop() => {}
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    let named = plain
        .extension()
        .is_some_and(|extension| extension == "gcda");
    (named && !data_file.contains('\0')).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcno::GccVersion;

    fn object(data_file: &str) -> ObjectCounters {
        let version = GccVersion(u32::from_be_bytes(*b"B22*"));
        ObjectCounters::new(version, 7, 0, data_file.to_owned())
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_directory() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("a/b");
        for name in [
            "../x.gcda",
            "/../../x.gcda",
            "c/../../x.gcda",
            "x",
            "",
            "/",
            "..",
            "x\0.gcda",
        ] {
            let result = write(&dir, &object(name), None);
            assert!(matches!(result, Err(ExportError::Name(_))), "{name:?}");
        }
        assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_may_go_up_inside_the_directory() {
        let path = plain("/build/arch/x86/um/../lib/csum.gcda");
        assert_eq!(path, Some(PathBuf::from("build/arch/x86/lib/csum.gcda")));
    }

    #[test]
    fn links_are_replaced_and_not_followed() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("dir");
        let victim = outer.path().join("victim");
        fs::create_dir_all(dir.join("mm")).unwrap();
        fs::write(&victim, "whole").unwrap();
        symlink(&victim, dir.join("mm/util.gcda")).unwrap();
        symlink(outer.path(), dir.join("fs")).unwrap();

        write(
            &dir,
            &object("/mm/util.gcda"),
            Some(Path::new("/o/mm/util.gcno")),
        )
        .unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "whole");
        let written = fs::read(dir.join("mm/util.gcda")).unwrap();
        assert_eq!(written, gcda::write(&object("/mm/util.gcda")));
        let link = fs::read_link(dir.join("mm/util.gcno")).unwrap();
        assert_eq!(link, Path::new("/o/mm/util.gcno"));

        let result = write(&dir, &object("/fs/x.gcda"), None);
        assert!(matches!(result, Err(ExportError::NoDirectory(_))));
        assert!(!outer.path().join("x.gcda").exists());
    }
}
