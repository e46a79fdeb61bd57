//! Record files: reading and writing.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::profile::{Profile, VERSION};

/// What the first field of a record file says.
const FORMAT: &str = "kscope-profile";

/// Bytes of the largest file that is read: far more than a bounded recording can make.
const MAX_FILE: u64 = 2 << 30;

#[derive(Serialize)]
struct Written<'a> {
    format: &'a str,
    version: u32,
    #[serde(flatten)]
    profile: &'a Profile,
}

/// What every version of the format has.
#[derive(Deserialize)]
struct Envelope {
    format: String,
    version: u32,
}

/// Why a record file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadProfileError {
    /// It cannot be opened or read.
    #[error("cannot read the recording {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the host said.
        error: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a kscope recording (`kscope record` makes one)")]
    NotARecording {
        /// The file.
        path: PathBuf,
    },
    /// It is of another version.
    #[error(
        "{path} is a recording of format version {found}, this kscope reads version {VERSION}: use the kscope that recorded it, or record again"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It ends too early.
    #[error("{path} is not whole: it ends in line {line}, column {column}; was the disk full?")]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// Its contents make no sense.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is too large to be a recording.
    #[error("{path} is larger than the {MAX_FILE} bytes a recording may have")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Why a record file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the recording {path}: {error}")]
pub struct WriteProfileError {
    /// The file.
    pub path: PathBuf,
    /// What the host said.
    pub error: io::Error,
}

impl Profile {
    /// Writes the recording to `path`. A file that is there is replaced at once or not at all.
    ///
    /// # Errors
    ///
    /// The directory is missing or not writable, or the disk is full.
    pub fn write(&self, path: &Path) -> Result<(), WriteProfileError> {
        self.write_to_path(path).map_err(|error| WriteProfileError {
            path: path.to_owned(),
            error,
        })
    }

    /// Finds out, before there is a recording, whether one can be written to `path`. What is there stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Profile::write`].
    pub fn check_writable(path: &Path) -> Result<(), WriteProfileError> {
        try_path(path).map_err(|error| WriteProfileError {
            path: path.to_owned(),
            error,
        })
    }

    fn write_to_path(&self, path: &Path) -> io::Result<()> {
        // Something that is no regular file, such as /dev/stdout or a pipe, is written to, not replaced.
        if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
            let file = File::options().write(true).open(path)?;
            return self.write_json(BufWriter::new(file));
        }
        let temporary = temporary_beside(path)?;
        self.write_json(BufWriter::new(temporary.as_file()))?;
        temporary.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    fn write_json(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer(
            &mut out,
            &Written {
                format: FORMAT,
                version: VERSION,
                profile: self,
            },
        )?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Reads the recording at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be opened, is something else, of another version, or damaged.
    pub fn read(path: &Path) -> Result<Self, ReadProfileError> {
        let io_error = |error| ReadProfileError::Io {
            path: path.to_owned(),
            error,
        };
        let file = File::open(path).map_err(io_error)?;
        let mut bytes = Vec::new();
        BufReader::new(file)
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(io_error)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(ReadProfileError::TooLarge {
                path: path.to_owned(),
            });
        }
        Self::from_bytes(&bytes, path)
    }

    /// Reads a recording from memory; `path` is what errors call it.
    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, ReadProfileError> {
        let not_ours = || ReadProfileError::NotARecording {
            path: path.to_owned(),
        };
        let begins_as_ours = bytes.starts_with(format!("{{\"format\":\"{FORMAT}\"").as_bytes());
        let json_error = |error: serde_json::Error| {
            if error.is_eof() && begins_as_ours {
                ReadProfileError::CutShort {
                    path: path.to_owned(),
                    line: error.line(),
                    column: error.column(),
                }
            } else if begins_as_ours {
                ReadProfileError::Damaged {
                    path: path.to_owned(),
                    reason: error.to_string(),
                }
            } else {
                not_ours()
            }
        };
        // Told apart first, so that another version is called that, and not damaged.
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(json_error)?;
        if envelope.format != FORMAT {
            return Err(not_ours());
        }
        if envelope.version != VERSION {
            return Err(ReadProfileError::Version {
                path: path.to_owned(),
                found: envelope.version,
            });
        }
        let damaged = |reason| ReadProfileError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let profile: Self =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        profile.check().map_err(damaged)?;
        Ok(profile)
    }
}

/// A file to write before it takes the place of `path`.
fn temporary_beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kscope-");
    // As any other output file; the umask takes its part.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory)
}

fn try_path(path: &Path) -> io::Result<()> {
    let slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if path.is_dir() || slash || path.file_name().is_none() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    match path.symlink_metadata() {
        // A link to nowhere cannot be written to.
        Ok(meta) if meta.is_symlink() && path.metadata()?.is_file() => {
            File::options().write(true).open(path).map(drop)
        }
        // A pipe or a device: opening it may wait, or do something.
        Ok(meta) if !meta.is_file() => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // Goes away at once.
        _ => temporary_beside(path).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::profile::{
        End, Function, FunctionKind, GuestInfo, Lost, ProfileFrame, SampleGroup, Sampling,
        StackNode, State, TaskLabel,
    };

    fn example() -> Profile {
        Profile {
            guest: GuestInfo {
                name: "calm-otter".into(),
                kernel: "/k/linux".into(),
                build_id: Some("ab12".into()),
                release: Some("6.12.30".into()),
                command: vec!["dd".into()],
            },
            sampling: Sampling {
                hz: 997,
                duration_ns: 1_000_000_000,
                samples: 5,
                idle: 1,
                stolen: 0,
                user: 0,
                lost: Lost::default(),
                truncated: [("no registers".to_owned(), 1)].into(),
                end: End::Done,
                failure: None,
            },
            functions: vec![Function {
                name: "schedule".into(),
                file: Some("kernel/sched/core.c".into()),
                kind: FunctionKind::Kernel,
            }],
            frames: vec![ProfileFrame {
                function: 0,
                line: Some(7),
                inlined: false,
            }],
            stacks: vec![
                StackNode {
                    parent: None,
                    frame: 0,
                },
                StackNode {
                    parent: Some(0),
                    frame: 0,
                },
            ],
            tasks: vec![TaskLabel {
                pid: 31,
                tgid: 31,
                comm: "dd".into(),
                kernel_thread: false,
            }],
            samples: vec![
                SampleGroup {
                    stack: Some(1),
                    task: Some(0),
                    cpu: 0,
                    state: State::Kernel,
                    count: 4,
                },
                SampleGroup {
                    stack: None,
                    task: None,
                    cpu: 0,
                    state: State::Idle,
                    count: 1,
                },
            ],
        }
    }

    fn bytes_of(profile: &Profile) -> Vec<u8> {
        let mut bytes = Vec::new();
        profile.write_json(&mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Profile, ReadProfileError> {
        Profile::from_bytes(bytes, Path::new("x.kscope"))
    }

    #[test]
    fn a_place_that_cannot_be_written_is_known_before() {
        let directory = tempfile::tempdir().unwrap();
        let inside = |name: &str| directory.path().join(name);
        std::fs::write(inside("old"), "old").unwrap();
        for good in ["new", "old"] {
            Profile::check_writable(&inside(good)).unwrap();
        }
        assert_eq!(std::fs::read(inside("old")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let long = "x".repeat(300);
        for bad in ["", "new/", "missing/new", "old/new", &long] {
            assert!(Profile::check_writable(&inside(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.kscope");
        example().write(&path).unwrap();
        example().write(&path).unwrap();
        assert_eq!(Profile::read(&path).unwrap(), example());
        // No temporary file is left.
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = example()
            .write(Path::new("/nonexistent/x.kscope"))
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot write the recording /nonexistent/x.kscope: ")
        );
    }

    #[test]
    fn other_files_are_told_apart() {
        for other in [
            "",
            "{}",
            "hello",
            "[1]",
            "{\"format\":\"other\",\"version\":1}",
            "\u{7f}ELF",
        ] {
            let error = read(other.as_bytes()).unwrap_err();
            assert!(
                matches!(error, ReadProfileError::NotARecording { .. }),
                "{other}: {error}"
            );
        }
        let newer = br#"{"format":"kscope-profile","version":2,"all":"different"}"#;
        assert!(matches!(
            read(newer),
            Err(ReadProfileError::Version { found: 2, .. })
        ));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = bytes_of(&example());
        // All but the line break at the end is needed.
        for len in 0..bytes.len() - 1 {
            let error = read(&bytes[..len]).unwrap_err();
            let beginning = len < br#"{"format":"kscope-profile""#.len();
            match error {
                ReadProfileError::NotARecording { .. } => assert!(beginning, "{len}"),
                ReadProfileError::CutShort { .. } => assert!(!beginning, "{len}"),
                other => panic!("{len}: {other}"),
            }
        }
    }

    #[test]
    fn indexes_out_of_range_are_found() {
        let damage: [fn(&mut Profile); 7] = [
            |p| p.frames[0].function = 1,
            |p| p.stacks[1].frame = 1,
            |p| p.stacks[1].parent = Some(1),
            |p| p.stacks[0].parent = Some(1),
            |p| p.samples[0].stack = Some(2),
            |p| p.samples[0].task = Some(1),
            |p| p.samples[0].count = u64::MAX,
        ];
        for damage in damage {
            let mut profile = example();
            damage(&mut profile);
            let error = read(&bytes_of(&profile)).unwrap_err();
            assert!(matches!(error, ReadProfileError::Damaged { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_harmless(at in 0usize..2000, byte: u8) {
            let mut bytes = bytes_of(&example());
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(profile) = read(&bytes) {
                for group in &profile.samples {
                    prop_assert!(profile.frames_of(group.stack).count() <= profile.stacks.len());
                }
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&bytes).is_err());
        }
    }
}
