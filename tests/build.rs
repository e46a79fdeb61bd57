//! `kscope build` as a user meets it, on a tiny tree that plays a kernel's
//! part: exit codes, output, interruption, and a full disk.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../guest/tests/fake_tree/mod.rs"]
mod fake_tree;

/// How long anything here may take on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

const KSCOPE: &str = env!("CARGO_BIN_EXE_kscope");

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fake_tree::create(&dir.path().join("linux"));
        Self { dir }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("linux")
    }

    fn touch(&self, file: &str) {
        fs::write(self.tree().join(file), "").unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        // Whoever runs the tests in the background of a script ignores SIGINT, and kscope would, too.
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT", KSCOPE, "build"])
            .args(args)
            .env("XDG_CACHE_HOME", self.dir.path().join("cache"))
            .current_dir(self.tree());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Starts a build that stops in the middle; returns when it is there, with
    /// the process of the build that stopped.
    fn start_stuck_build(&self) -> (Child, i32) {
        self.touch("wait");
        let mut child = self
            .command(&[])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let building = stderr
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("Building"));
        assert!(building);
        let kernels = self.dir.path().join("cache/kscope/kernels");
        let pid = wait_for("the build to start", || {
            let dirs = fs::read_dir(&kernels).ok()?.flatten();
            dirs.filter_map(|dir| fs::read_to_string(dir.path().join("build/pid")).ok())
                .find_map(|pid| pid.trim().parse().ok())
        });
        (child, pid)
    }

    fn states(&self) -> Vec<String> {
        let output = self.run(&["--list", "--format", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(list["version"], 1);
        let kernels = list["kernels"].as_array().unwrap();
        let mut states: Vec<String> = kernels
            .iter()
            .map(|kernel| kernel["state"].as_str().unwrap().to_owned())
            .collect();
        states.sort();
        states
    }
}

fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "no end of waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_end_of(pid: i32) {
    wait_for("the build's processes to end", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        // In a container nobody may reap orphans: a zombie has ended too.
        stat.map_or(Some(()), |stat| stat.contains(") Z ").then_some(()))
    });
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn prints_the_path_of_the_kernel_last() {
    let world = World::new();
    let output = world.run(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let path = stdout.lines().last().unwrap();
    assert!(path.ends_with("/build/linux"), "{stdout}");
    assert!(Path::new(path).is_file());

    let output = world.run(&["--format", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["linux"], path);
    assert_eq!(document["release"], "6.12.5");

    let list = String::from_utf8(world.run(&["--list"]).stdout).unwrap();
    assert!(list.starts_with("SOURCE") && list.contains(path), "{list}");
}

#[test]
fn every_failure_has_its_code() {
    let world = World::new();
    let code = |args: &[&str]| {
        let output = world.run(args);
        (output.status.code(), stderr(&output))
    };
    let (status, text) = code(&["--source", "/no/such/tree"]);
    assert_eq!(status, Some(96));
    assert!(text.contains("/no/such/tree"), "{text}");

    let (status, text) = code(&["--preset", "fast"]);
    assert_eq!(status, Some(2));
    assert!(text.contains("timetravel"), "{text}");

    let (status, text) = code(&["--preset", "debug,smp"]);
    assert_eq!(status, Some(96));
    assert!(text.contains("6.19") && text.contains("6.12.5"), "{text}");
    let (status, text) = code(&["--preset", "smp,timetravel"]);
    assert_eq!(status, Some(96));
    assert!(text.contains("exclude each other"), "{text}");
    assert!(!world.dir.path().join("cache").exists());

    fs::write(world.tree().join("my.config"), "CONFIG_DROPPED=y\n").unwrap();
    let (status, text) = code(&["--config", "my.config"]);
    assert_eq!(status, Some(101));
    assert!(text.contains("CONFIG_DROPPED=y (my.config:1)"), "{text}");

    world.touch("fail");
    let (status, text) = code(&[]);
    assert_eq!(status, Some(101));
    assert!(
        text.contains("error: sad") && text.contains("build.log"),
        "{text}"
    );

    fs::remove_file(world.tree().join("fail")).unwrap();
    assert_eq!(code(&[]).0, Some(0));
    assert_eq!(world.states(), ["incomplete", "whole"]);
    let pruned = String::from_utf8(world.run(&["--prune"]).stdout).unwrap();
    assert!(pruned.contains("(incomplete, "), "{pruned}");
    assert_eq!(world.states(), ["whole"]);
}

#[test]
fn a_signal_ends_the_build_and_kscope_dies_of_it() {
    for signal in ["INT", "TERM"] {
        let world = World::new();
        let (mut child, pid) = world.start_stuck_build();
        assert_eq!(world.states(), ["building"]);
        kill(signal, &child);
        let status = child.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(if signal == "INT" { 2 } else { 15 }),
            "{status}"
        );
        wait_for_end_of(pid);
        assert_eq!(world.states(), ["incomplete"]);
    }
}

#[test]
fn a_killed_kscope_leaves_no_build_behind() {
    let world = World::new();
    let (mut child, pid) = world.start_stuck_build();
    kill("KILL", &child);
    child.wait().unwrap();
    wait_for_end_of(pid);
    wait_for("the lock", || {
        (world.states() == ["incomplete"]).then_some(())
    });
    world.touch("go");
    let output = world.run(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(world.states(), ["whole"]);
}

fn kill(signal: &str, child: &Child) {
    let status = Command::new("kill")
        .args([format!("-{signal}"), child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_full_disk_is_named() {
    let world = World::new();
    let script = "mount -t tmpfs -o size=64k tmpfs \"$XDG_CACHE_HOME\" || exit 77
        # Fills the small disk up to its last pages.
        dd if=/dev/zero of=\"$XDG_CACHE_HOME/big\" bs=4k count=13 2>/dev/null
        exec \"$0\" build";
    let cache = world.dir.path().join("small");
    fs::create_dir(&cache).unwrap();
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            KSCOPE,
        ])
        .env("XDG_CACHE_HOME", &cache)
        .current_dir(world.tree())
        .output()
        .unwrap();
    let text = stderr(&output);
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        eprintln!("skipped: no user namespaces here: {text}");
        return;
    }
    assert_eq!(output.status.code(), Some(96), "{text}");
    assert!(text.contains(cache.to_str().unwrap()), "{text}");
    assert!(text.contains("No space left"), "{text}");
}
