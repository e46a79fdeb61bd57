//! Finding and starting the command.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kscope_wire::Job;

/// Why the command did not start, as a shell reports it.
pub(crate) struct NotStarted {
    /// 127 when there is no such program, 126 when it cannot be executed.
    pub(crate) code: u8,
    pub(crate) message: String,
}

/// What the command's standard streams are.
pub(crate) enum Streams {
    /// Three pipes, whose other ends `Child` has.
    Pipes,
    /// A pipe for input; all output goes to this one pipe.
    Merged(OwnedFd),
    /// The slave side of a pseudo terminal, which becomes the controlling one.
    Terminal(OwnedFd),
}

/// Starts the command in its own process group (with a terminal: session).
pub(crate) fn start(job: &Job, streams: Streams) -> Result<Child, NotStarted> {
    let name = OsStr::from_bytes(&job.argv[0]);
    let program = find(name, &job.env)?;
    match spawn(&program, name, &job.argv[1..], job, &streams) {
        // A script without a `#!` line: run by the shell, as execvp does.
        Err(e) if e.raw_os_error() == Some(libc::ENOEXEC) => {
            let mut args = vec![program.clone().into_os_string().into_vec()];
            args.extend_from_slice(&job.argv[1..]);
            spawn(Path::new("/bin/sh"), OsStr::new("sh"), &args, job, &streams)
        }
        other => other,
    }
    .map_err(|e| NotStarted {
        // A missing interpreter or loader is reported as ENOENT as well.
        code: if e.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        },
        message: format!("{}: {}", program.display(), reason(&e)),
    })
}

fn spawn(
    program: &Path,
    name: &OsStr,
    args: &[Vec<u8>],
    job: &Job,
    streams: &Streams,
) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(args.iter().map(|a| OsStr::from_bytes(a)))
        .env_clear();
    for variable in &job.env {
        if let Some(at) = variable.iter().position(|&b| b == b'=') {
            command.env(
                OsStr::from_bytes(&variable[..at]),
                OsStr::from_bytes(&variable[at + 1..]),
            );
        }
    }
    match streams {
        Streams::Pipes => {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0);
        }
        Streams::Merged(output) => {
            command
                .stdin(Stdio::piped())
                .stdout(output.try_clone()?)
                .stderr(output.try_clone()?)
                .process_group(0);
        }
        Streams::Terminal(slave) => {
            command
                .stdin(slave.try_clone()?)
                .stdout(slave.try_clone()?)
                .stderr(slave.try_clone()?);
            // SAFETY: the closure makes two system calls and touches no memory,
            // so it is safe between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    nix::unistd::setsid()?;
                    if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                    Ok(())
                });
            }
        }
    }
    command.spawn()
}

/// Looks a program up as a shell does: a name with a slash is a path, any other
/// is searched for in the job's PATH.
fn find(name: &OsStr, env: &[Vec<u8>]) -> Result<PathBuf, NotStarted> {
    if name.as_bytes().contains(&b'/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(e) => Err(NotStarted {
                code: if e.kind() == io::ErrorKind::NotFound {
                    127
                } else {
                    126
                },
                message: format!("{}: {}", name.display(), reason(&e)),
            }),
        };
    }
    let path = env
        .iter()
        .find_map(|v| v.strip_prefix(b"PATH="))
        .map(|v| OsString::from_vec(v.to_vec()))
        .unwrap_or_default();
    let mut denied = None;
    for dir in std::env::split_paths(&path) {
        let candidate = dir.join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The search goes on, since a later directory may have a program;
            // if none has, this is what the user should hear about.
            Err(e) => {
                denied.get_or_insert((candidate, e));
            }
        }
    }
    Err(match denied {
        Some((candidate, e)) if e.raw_os_error() != Some(libc::ENOTDIR) => NotStarted {
            code: 126,
            message: format!("{}: {}", candidate.display(), reason(&e)),
        },
        _ => NotStarted {
            code: 127,
            message: format!("{}: command not found", name.display()),
        },
    })
}

/// Whether a file can be executed, in the words of the error execve would give.
fn check(path: &Path) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// An error without Rust's "(os error 2)".
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}
