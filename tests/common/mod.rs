//! What the end-to-end tests share: a place of their own, a kernel, and a look
//! at what is left behind.

// Each test file compiles this for itself and uses its own part.
#![allow(dead_code, unused_imports)]

pub mod gdbserver;
pub mod session;
pub mod terminal;
pub mod verbs;

pub mod programs;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub mod kernels;
pub use kernels::{TestKernel, kernel, kernels, options};

/// No test waits longer for anything: a loaded machine is slow, a broken kscope hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A runtime directory of the test's own, so that tests do not see each other's guests.
pub struct Place {
    dir: tempfile::TempDir,
}

/// What a finished kscope leaves to look at.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The exit code.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| {
            panic!(
                "killed by signal {:?}: {}",
                self.status.signal(),
                self.stderr
            )
        })
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text")
    }

    /// Asserts the exit code; what was said is shown otherwise.
    #[track_caller]
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(
            self.code(),
            code,
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// Asserts that standard error contains each of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Finished {
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "no {part:?} in: {}",
                self.stderr
            );
        }
        self
    }
}

impl Place {
    /// A new one.
    pub fn new() -> Place {
        let dir = tempfile::Builder::new()
            .prefix("kt")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .expect("a temporary directory");
        Place { dir }
    }

    /// The runtime directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `kscope`, without anything around it.
    pub fn kscope(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kscope"));
        self.surround(&mut command);
        command
    }

    /// Gives a command the test's surroundings.
    pub fn surround(&self, command: &mut Command) {
        command
            .env("XDG_RUNTIME_DIR", self.path())
            .env_remove("KBUILD_OUTPUT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// `kscope run` with the test kernel, no TCP port, and `options` before `--`.
    pub fn run<S: AsRef<OsStr>>(&self, options: &[&str], command: &[S]) -> Command {
        let mut kscope = self.kscope();
        kscope.arg("run").arg("-k").arg(kernel());
        kscope.args(self::options());
        kscope.arg("--no-gdb").args(options).arg("--").args(command);
        kscope
    }

    /// As [`Place::run`], with one of [`kernels`] and a shell script.
    pub fn shell_on(&self, kernel: &TestKernel, options: &[&str], script: &str) -> Command {
        let mut kscope = self.kscope();
        kscope.arg("run").arg("-k").arg(&kernel.path);
        kscope.arg("--no-gdb").args(kernel.args).args(options);
        kscope.args(["--", "sh", "-c", script]);
        kscope
    }

    /// `kscope run -- sh -c SCRIPT`.
    pub fn shell(&self, options: &[&str], script: &str) -> Command {
        self.run(options, &["sh", "-c", script])
    }

    /// Asserts that no process of this place is left, and nothing in its directory.
    #[track_caller]
    pub fn assert_clean(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.processes();
            let files: Vec<_> = fs::read_dir(self.path())
                .expect("the runtime directory")
                .flatten()
                .map(|e| e.path())
                .collect();
            if processes.is_empty() && files.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left behind: processes {processes:?}, files {files:?}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes that have this place in their arguments or environment.
    pub fn processes(&self) -> Vec<(i32, String)> {
        processes_of(self.path())
    }

    /// Waits until `kscope list` has a guest of this name; returns its record.
    pub fn await_guest(&self, name: &str) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let guests = self.guests();
            if let Some(guest) = guests.iter().find(|g| g["name"] == name) {
                return guest.clone();
            }
            assert!(Instant::now() < deadline, "{name} is not in {guests:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `kscope list --format json` has.
    pub fn guests(&self) -> Vec<serde_json::Value> {
        let listed = finish(self.kscope().args(["list", "--format", "json"])).expect(0);
        let value: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        assert_eq!(value["version"], 1);
        value["guests"].as_array().expect("an array").clone()
    }
}

/// Processes, but for this one, that have a path in their arguments or environment.
pub fn processes_of(path: &Path) -> Vec<(i32, String)> {
    let needle = path.as_os_str().as_encoded_bytes();
    let contains = |bytes: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let line = read("cmdline");
        if pid != own && (contains(&line) || contains(&read("environ"))) {
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: &mut Command) -> Finished {
    collect(command.spawn().expect("the command starts"))
}

/// Runs a command with this standard input.
#[track_caller]
pub fn finish_with(command: &mut Command, input: &[u8]) -> Finished {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // Not every command reads all of it.
    thread::spawn(move || stdin.write_all(&input));
    collect(child)
}

/// Waits for a child's end and all it says.
#[track_caller]
pub fn collect(mut child: Child) -> Finished {
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = read(child.stderr.take().map(|p| Box::new(p) as _));
    let status = wait(&mut child);
    Finished {
        status,
        stdout: stdout.join().expect("the reader"),
        stderr: String::from_utf8_lossy(&stderr.join().expect("the reader")).into_owned(),
    }
}

/// Waits for a child's end, but not for ever.
#[track_caller]
pub fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
