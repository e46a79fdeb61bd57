//! What the guest is to run.

use crate::bytes::{Reader, put_bytes, put_list};

/// The size of the terminal that the command gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub columns: u16,
}

/// The command and its surroundings, as the initramfs carries them to the init.
///
/// Everything is bytes: neither paths nor arguments need to be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The program and its arguments; never empty.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value` strings.
    pub env: Vec<Vec<u8>>,
    /// The directory to run in; `/` and a warning when the guest lacks it.
    pub cwd: Vec<u8>,
    /// The guest's host name.
    pub hostname: Vec<u8>,
    /// The command's file mode creation mask.
    pub umask: u16,
    /// Standard error goes where standard output goes, in one order.
    pub merge: bool,
    /// A pseudo terminal for the command; pipes when `None`.
    pub terminal: Option<Terminal>,
}

impl Job {
    /// The bytes for [`crate::JOB_PATH`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_list(&mut out, &self.argv);
        put_list(&mut out, &self.env);
        put_bytes(&mut out, &self.cwd);
        put_bytes(&mut out, &self.hostname);
        out.extend_from_slice(&self.umask.to_le_bytes());
        out.push(u8::from(self.merge));
        match self.terminal {
            None => out.push(0),
            Some(Terminal { rows, columns }) => {
                out.push(1);
                out.extend_from_slice(&rows.to_le_bytes());
                out.extend_from_slice(&columns.to_le_bytes());
            }
        }
        out
    }

    /// The reverse of [`Job::encode`]; `None` when the bytes are no job.
    pub fn decode(bytes: &[u8]) -> Option<Job> {
        let mut r = Reader::new(bytes);
        let job = Job {
            argv: r.list()?,
            env: r.list()?,
            cwd: r.bytes()?,
            hostname: r.bytes()?,
            umask: r.u16()?,
            merge: r.u8()? != 0,
            terminal: match r.u8()? {
                0 => None,
                1 => Some(Terminal {
                    rows: r.u16()?,
                    columns: r.u16()?,
                }),
                _ => return None,
            },
        };
        (r.is_empty() && !job.argv.is_empty()).then_some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_trip() {
        let job = Job {
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), vec![0xff, b'\n']],
            env: vec![b"A=b".to_vec(), vec![]],
            cwd: b"/tmp".to_vec(),
            hostname: b"g1".to_vec(),
            umask: 0o027,
            merge: true,
            terminal: Some(Terminal {
                rows: 24,
                columns: 80,
            }),
        };
        assert_eq!(Job::decode(&job.encode()), Some(job));
    }

    #[test]
    fn a_cut_job_is_refused() {
        let bytes = Job {
            argv: vec![b"true".to_vec()],
            ..Job::default()
        }
        .encode();
        assert!(Job::decode(&bytes).is_some());
        for len in 0..bytes.len() {
            assert_eq!(Job::decode(&bytes[..len]), None, "{len} bytes");
        }
    }
}
