//! The initramfs that every guest boots from: the init and its job.

use std::io::{self, Write};

use cpio::newc::{self, Builder, ModeFileType};
use kscope_wire::{JOB_PATH, Job};

/// The init, a static program built by this crate's build script.
const INIT: &[u8] = include_bytes!(env!("KSCOPE_INIT"));

/// The archive, uncompressed: it is read from memory, and unpacking costs more
/// time than it saves.
///
/// # Errors
///
/// None in practice: it is written to memory.
pub(crate) fn build(job: &Job) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(INIT.len() + 64 * 1024);
    entry(&mut out, "dev", ModeFileType::Directory, 0o755, None, &[])?;
    // The init's standard streams, and its line to the supervisor. The real
    // /dev is mounted later and elsewhere.
    for (name, major, minor) in [("dev/console", 5, 1), ("dev/tty1", 4, 1)] {
        let device = Some((major, minor));
        entry(&mut out, name, ModeFileType::Char, 0o600, device, &[])?;
    }
    let job = job.encode();
    entry(&mut out, JOB_PATH, ModeFileType::Regular, 0o600, None, &job)?;
    entry(&mut out, "init", ModeFileType::Regular, 0o755, None, INIT)?;
    newc::trailer(&mut out)?;
    Ok(out)
}

fn entry(
    out: &mut Vec<u8>,
    name: &str,
    kind: ModeFileType,
    mode: u32,
    device: Option<(u32, u32)>,
    content: &[u8],
) -> io::Result<()> {
    let (major, minor) = device.unwrap_or((0, 0));
    let mut writer = Builder::new(name)
        .mode(mode)
        .set_mode_file_type(kind)
        .nlink(1)
        .rdev_major(major)
        .rdev_minor(minor)
        .write(out, content.len() as u32);
    writer.write_all(content)?;
    writer.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_init_and_its_job() {
        let job = Job {
            argv: vec![b"true".to_vec()],
            ..Job::default()
        };
        let archive = build(&job).unwrap();
        let mut rest = &archive[..];
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            let mut content = Vec::new();
            let is_job = reader.entry().name() == JOB_PATH;
            rest = reader.to_writer(&mut content).unwrap();
            if is_job {
                assert_eq!(Job::decode(&content), Some(job.clone()));
            }
        }
        assert_eq!(
            names,
            [
                ("dev".to_owned(), 0o040755),
                ("dev/console".to_owned(), 0o020600),
                ("dev/tty1".to_owned(), 0o020600),
                ("job".to_owned(), 0o100600),
                ("init".to_owned(), 0o100755),
            ]
        );
    }
}
