//! A guest to be debugged, with a runtime directory of its own.

// Each test file compiles this for itself and uses its own part.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::kernels::{self, TestKernel};

pub const KSCOPE: &str = env!("CARGO_BIN_EXE_kscope");

/// Longer than anything takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// What the guest has printed so far.
pub struct Output<'a>(&'a [String]);

impl Output<'_> {
    pub fn has_line(&self, line: &str) -> bool {
        self.0.iter().any(|known| known == line)
    }

    pub fn last_tick(&self) -> u64 {
        let tick = |line: &String| line.strip_prefix("tick ")?.parse().ok();
        self.0.iter().rev().find_map(tick).unwrap_or(0)
    }
}

pub struct Guest {
    child: Child,
    /// Taken to end it.
    stdin: Option<ChildStdin>,
    name: String,
    runtime: Arc<TempDir>,
    lines: Arc<Mutex<Vec<String>>>,
    errors: Arc<Mutex<Vec<String>>>,
}

fn collect(source: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            sink.lock().expect("lock").push(line);
        }
    });
    lines
}

impl Guest {
    /// Boots a guest that runs a shell script.
    pub fn boot(options: &[&str], script: &str) -> Guest {
        let runtime = Arc::new(TempDir::new().expect("a runtime directory"));
        Guest::boot_in(runtime, "one", options, script)
    }

    /// As [`Guest::boot`], on one of the [`kernels`].
    pub fn boot_on(kernel: &TestKernel, options: &[&str], script: &str) -> Guest {
        let runtime = Arc::new(TempDir::new().expect("a runtime directory"));
        let options = [kernel.args, options].concat();
        Guest::boot_kernel(&kernel.path, runtime, "one", &options, script)
    }

    /// Ends the script's standard input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Boots a second guest in the same runtime directory.
    pub fn boot_beside(other: &Guest, options: &[&str], script: &str) -> Guest {
        Guest::boot_in(Arc::clone(&other.runtime), "two", options, script)
    }

    fn boot_in(runtime: Arc<TempDir>, name: &str, options: &[&str], script: &str) -> Guest {
        let more = kernels::options();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let options = [&more, options].concat();
        Guest::boot_kernel(kernels::kernel(), runtime, name, &options, script)
    }

    fn boot_kernel(
        kernel: &Path,
        runtime: Arc<TempDir>,
        name: &str,
        options: &[&str],
        script: &str,
    ) -> Guest {
        let mut child = Command::new(KSCOPE)
            .env("XDG_RUNTIME_DIR", runtime.path())
            .args([
                "run", "--no-gdb", "--name", name, "--memory", "128M", "--kernel",
            ])
            .arg(kernel)
            .args(["--boot-timeout", "120"])
            .args(options)
            .args(["--", "/bin/sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kscope runs");
        let stdin = child.stdin.take();
        let lines = collect(child.stdout.take().expect("stdout"));
        let errors = collect(child.stderr.take().expect("stderr"));
        let guest = Guest {
            child,
            stdin,
            name: name.to_owned(),
            runtime,
            lines,
            errors,
        };
        guest.until("the guest to be listed", || guest.record().is_some());
        guest
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("lock").clone()
    }

    /// What its kscope has said on standard error.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().expect("lock").clone()
    }

    pub fn last_tick(&self) -> u64 {
        Output(&self.lines()).last_tick()
    }

    /// Waits until the guest's output is as it should be.
    pub fn wait_for(&self, what: &str, condition: impl Fn(Output<'_>) -> bool) {
        self.until(what, || condition(Output(&self.lines())));
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}\nstdout: {:?}\nstderr: {:?}",
                self.lines(),
                self.errors.lock().expect("lock"),
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn record(&self) -> Option<serde_json::Value> {
        let output = self
            .kscope()
            .args(["list", "--format", "json"])
            .output()
            .expect("kscope");
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let is_this = |guest: &&serde_json::Value| guest["name"] == self.name.as_str();
        list["guests"].as_array()?.iter().find(is_this).cloned()
    }

    fn kscope(&self) -> Command {
        let mut command = Command::new(KSCOPE);
        command
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .stdin(Stdio::null());
        command
    }

    /// The guest's kernel process.
    pub fn pid(&self) -> u64 {
        self.record().expect("a record")["pid"]
            .as_u64()
            .expect("a pid")
    }

    pub fn wait_until_untraced(&self) {
        let status = format!("/proc/{}/status", self.pid());
        self.until("the tracer to go", || {
            let status = std::fs::read_to_string(&status).expect("the guest lives");
            status.lines().any(|line| line == "TracerPid:\t0")
        });
    }

    /// `kscope gdb NAME -- ARGUMENTS`.
    pub fn gdb_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.kscope();
        command
            .args(["gdb", &self.name, "--", "-nx", "-q"])
            .args(arguments);
        command
    }

    /// What gdb prints for a list of commands.
    pub fn gdb(&self, commands: &[&str]) -> String {
        let script = self.runtime.path().join("script.gdb");
        let text = format!(
            "set pagination off\nset confirm off\nset width 0\n{}\n",
            commands.join("\n")
        );
        std::fs::write(&script, text).expect("a script");
        let output = Command::new("timeout")
            .arg(DEADLINE.as_secs().to_string())
            .env("XDG_RUNTIME_DIR", self.runtime.path())
            .arg(KSCOPE)
            .args(["gdb", &self.name, "--", "-nx", "-q", "-batch", "-x"])
            .arg(&script)
            .stdin(Stdio::null())
            .output()
            .expect("gdb runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text + &String::from_utf8_lossy(&output.stderr)
    }

    fn failure(mut command: Command) -> (Option<i32>, String) {
        let output = command.output().expect("kscope runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Exit code and stderr of `kscope gdb ARGUMENTS`.
    pub fn kscope_gdb_fails(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.kscope();
        command.arg("gdb").args(arguments);
        Guest::failure(command)
    }

    /// As [`Guest::kscope_gdb_fails`], where no program is found.
    pub fn kscope_gdb_without_path(&self) -> (Option<i32>, String) {
        let mut command = self.kscope();
        command
            .args(["gdb", &self.name])
            .env("PATH", self.runtime.path());
        Guest::failure(command)
    }

    /// Where the guest's stub listens.
    pub fn socket(&self) -> PathBuf {
        let guests = self.runtime.path().join("kscope");
        guests.join(&self.name).join("gdb.sock")
    }

    /// The runtime directory.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// Kills the guest's kscope.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// A bare connection to the guest's stub.
    pub fn connect(&self) -> UnixStream {
        let path = self.socket();
        let deadline = Instant::now() + DEADLINE;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
            }
        }
    }

    /// The exit code of `kscope run`.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            assert!(
                Instant::now() < deadline,
                "the guest does not end: {:?}",
                self.lines()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Which takes the guest along.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
