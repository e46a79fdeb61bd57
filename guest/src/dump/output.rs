//! A file that is there when it is whole, or not at all.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use tempfile::{NamedTempFile, TempPath};

/// A file that is being written. Dropping it leaves nothing.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    /// It has this name meanwhile, where the file system has no files without one.
    draft: Option<TempPath>,
    path: PathBuf,
}

impl Output {
    /// Begins a file that will be called `path`, readable by the user alone.
    pub(super) fn create(path: &Path) -> io::Result<Output> {
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(directory(path));
        if let Ok(file) = nameless {
            return Ok(Output {
                file,
                draft: None,
                path: path.to_owned(),
            });
        }
        let (file, draft) =
            NamedTempFile::with_prefix_in(".kscope-", directory(path))?.into_parts();
        Ok(Output {
            file,
            draft: Some(draft),
            path: path.to_owned(),
        })
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name. A file that has this name is replaced when `replace` says so.
    pub(super) fn publish(self, replace: bool) -> io::Result<()> {
        let draft = match self.draft {
            Some(draft) => draft,
            None => {
                let link = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let to = |path: &Path| {
                    let follow = AtFlags::AT_SYMLINK_FOLLOW;
                    linkat(AT_FDCWD, link.as_str(), AT_FDCWD, path, follow)
                };
                if !replace {
                    return Ok(to(&self.path)?);
                }
                // Only a rename replaces.
                tempfile::Builder::new()
                    .prefix(".kscope-")
                    .make_in(directory(&self.path), |path| Ok(to(path)?))?
                    .into_temp_path()
            }
        };
        match replace {
            true => draft.persist(&self.path).map_err(|error| error.error),
            false => draft
                .persist_noclobber(&self.path)
                .map_err(|error| error.error),
        }
    }
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core");
        let output = Output::create(&path).unwrap();
        output.file().write_all(b"half").unwrap();
        drop(output);
        assert_eq!(names(dir.path()), [""; 0]);
        for (text, replace) in [("one", false), ("two", true)] {
            let output = Output::create(&path).unwrap();
            output.file().write_all(text.as_bytes()).unwrap();
            output.publish(replace).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(names(dir.path()), ["core"]);
        }
        let output = Output::create(&path).unwrap();
        let error = output.publish(false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(names(dir.path()), ["core"]);
    }

    #[test]
    fn file_systems_without_nameless_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core");
        for replace in [false, true] {
            let (file, draft) = NamedTempFile::new_in(dir.path()).unwrap().into_parts();
            let output = Output {
                file,
                draft: Some(draft),
                path: path.clone(),
            };
            output.publish(replace).unwrap();
            assert_eq!(names(dir.path()), ["core"]);
        }
    }
}
