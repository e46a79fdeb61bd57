//! `kscope coverage` on booted kernels, judged by the system's gcov, lcov and genhtml.
//!
//! Needs a kernel of the coverage preset: the one that
//! `KSCOPE_TEST_COVERAGE_KERNEL` names, or the cached build.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use kscope_coverage::gcda;
use kscope_coverage::gcno::Notes;
use kscope_coverage::object::solve;
use kscope_guest::cache;
use kscope_guest::presets::Preset;
use serde_json::Value;

#[path = "../coverage/tests/gcov/mod.rs"]
mod gcov;

const KSCOPE: &str = env!("CARGO_BIN_EXE_kscope");

/// Long enough on a machine that is busy.
const TIMEOUT: &str = "300";

fn kernel() -> PathBuf {
    std::env::var_os("KSCOPE_TEST_COVERAGE_KERNEL")
        .map(PathBuf::from)
        .or_else(|| cache::find(&[Preset::Coverage]))
        .expect("a kernel: `kscope build --preset coverage`, or KSCOPE_TEST_COVERAGE_KERNEL")
}

/// A kernel without counters.
fn plain_kernel() -> PathBuf {
    std::env::var_os("KSCOPE_TEST_KERNEL")
        .map(PathBuf::from)
        .or_else(|| cache::find(&[Preset::Debug]))
        .expect("a kernel: `kscope build`, or KSCOPE_TEST_KERNEL")
}

fn kscope(verb: &str) -> Command {
    let mut command = Command::new(KSCOPE);
    command.arg(verb).stdin(Stdio::null());
    command
}

/// `kscope coverage OPTIONS -- COMMAND` on a guest of its own.
fn cover(options: &[&str], command: &[&str]) -> Output {
    let output = kscope("coverage")
        .arg("--kernel")
        .arg(kernel())
        .args(["--memory", "256M", "--no-gdb", "--boot-timeout", TIMEOUT])
        .args(options)
        .arg("--")
        .args(command)
        .output()
        .expect("kscope runs");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A tracefile: what each source file's records say.
#[derive(Debug, Default)]
struct Trace {
    lines: BTreeMap<String, BTreeMap<u32, u64>>,
    functions: BTreeMap<String, u64>,
}

fn read_trace(path: &Path) -> Trace {
    let mut trace = Trace::default();
    let mut file = String::new();
    for line in fs::read_to_string(path).expect("a tracefile").lines() {
        let Some((record, value)) = line.split_once(':') else {
            continue;
        };
        match record {
            "SF" => file = value.to_owned(),
            "DA" => {
                let (number, count) = value.split_once(',').expect("DA");
                let lines = trace.lines.entry(file.clone()).or_default();
                lines.insert(number.parse().expect("line"), count.parse().expect("count"));
            }
            "FNDA" => {
                let (count, name) = value.split_once(',').expect("FNDA");
                let sum = trace.functions.entry(name.to_owned()).or_default();
                *sum += count.parse::<u64>().expect("count");
            }
            _ => {}
        }
    }
    trace
}

fn find(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// A path as the report shows it.
fn tidy(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    format!("/{}", parts.join("/"))
}

#[test]
fn every_object_is_solved_as_by_gcov() {
    let dir = tempfile::tempdir().expect("directory");
    let trace = dir.path().join("trace.info");
    let data = dir.path().join("data");
    let workload = "ls -lR /proc/self /etc >/dev/null; find /usr/share -type f | head -n 2000 | \
                    xargs cat | gzip -1 | md5sum; dd if=/dev/zero of=/tmp/x bs=64k count=64; sync";
    let output = cover(
        &[
            "--lcov",
            trace.to_str().expect("text"),
            "--gcda",
            data.to_str().expect("text"),
        ],
        &["sh", "-c", workload],
    );
    assert!(output.status.success());

    let mut objects = Vec::new();
    find(&data, "gcda", &mut objects);
    assert!(objects.len() >= 50, "{} objects", objects.len());
    let judged = gcov::run_gcov(&objects);
    let mut compared = gcov::Compared::default();
    let mut differences = Vec::new();
    let mut expected: BTreeMap<String, BTreeMap<u32, i64>> = BTreeMap::new();
    for (object, theirs) in objects.iter().zip(&judged) {
        let notes = fs::read(object.with_extension("gcno")).expect("notes");
        let notes = Notes::parse(&notes).expect("sound notes");
        let counters = fs::read(object).expect("data");
        let counters = gcda::read(&counters, object.display().to_string()).expect("sound data");
        assert_eq!(notes.stamp, counters.stamp);
        let ours = solve(&notes, Some(&counters));
        assert_eq!(
            (ours.mismatched, ours.unsolvable),
            (0, 0),
            "{}",
            object.display()
        );
        let (amount, found) = gcov::compare(object, &ours, theirs);
        compared += amount;
        differences.extend(found);

        let cwd = theirs["current_working_directory"]
            .as_str()
            .expect("directory");
        for file in theirs["files"].as_array().expect("files") {
            let name = file["file"].as_str().expect("name");
            let path = if name.starts_with('/') {
                tidy(name)
            } else {
                tidy(&format!("{cwd}/{name}"))
            };
            for line in file["lines"].as_array().expect("lines") {
                let number = line["line_number"].as_u64().expect("number") as u32;
                let sum = expected
                    .entry(path.clone())
                    .or_default()
                    .entry(number)
                    .or_default();
                // The tracefile has no counts below 0.
                *sum += line["count"].as_i64().expect("count").max(0);
            }
        }
    }
    eprintln!("{} objects: {compared:?}", objects.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(
        compared.lines > 10_000 && compared.branches > 10_000,
        "{compared:?}"
    );

    // All of them together are what the report says.
    let lines = read_trace(&trace).lines;
    let hit = lines
        .values()
        .flat_map(BTreeMap::values)
        .filter(|c| **c > 0)
        .count();
    assert!(hit > 5_000, "{hit} lines hit");
    for (path, theirs) in &expected {
        let theirs: BTreeMap<u32, u64> = theirs
            .iter()
            .map(|(number, count)| (*number, *count as u64))
            .collect();
        if !theirs.is_empty() {
            assert_eq!(lines.get(path), Some(&theirs), "{path}");
        }
    }
}

/// `mincore` is a system call that nothing but a test makes.
#[test]
fn only_what_the_command_does_is_counted() {
    let dir = tempfile::tempdir().expect("directory");
    let trace = |name: &str, command: &[&str]| {
        let path = dir.path().join(name);
        let output = cover(&["--lcov", path.to_str().expect("text")], command);
        (output, read_trace(&path))
    };
    let calls = "syscall(27, 0, 0, 0) for 1..7; exit 7";
    let (output, with) = trace("with.info", &["perl", "-e", calls]);
    assert_eq!(
        output.status.code(),
        Some(7),
        "the command's code is kscope's"
    );
    assert_eq!(with.functions["__do_sys_mincore"], 7);
    // Neither the boot nor the way down.
    for function in [
        "start_kernel",
        "kernel_init",
        "rest_init",
        "kernel_power_off",
    ] {
        assert_eq!(with.functions[function], 0, "{function}");
    }
    let (output, without) = trace("without.info", &["perl", "-e", "exit 0"]);
    assert!(output.status.success());
    assert_eq!(without.functions["__do_sys_mincore"], 0);
    assert!(without.functions["schedule"] > 0);
}

#[test]
fn what_ran_before_a_panic_or_a_timeout_is_shown() {
    let dir = tempfile::tempdir().expect("directory");
    let trace = dir.path().join("trace.info");
    let call = "perl -e 'syscall(27, 0, 0, 0)'";
    for (ending, options, code) in [
        ("echo c > /proc/sysrq-trigger", &[][..], 102),
        ("sleep 1000", &["--timeout", "10"], 103),
    ] {
        let options = [&["--lcov", trace.to_str().expect("text")], options].concat();
        let output = cover(&options, &["sh", "-c", &format!("{call}; {ending}")]);
        assert_eq!(output.status.code(), Some(code), "{ending}");
        assert_eq!(
            read_trace(&trace).functions["__do_sys_mincore"],
            1,
            "{ending}"
        );
        fs::remove_file(&trace).expect("a tracefile of its own for each");
    }
}

/// A guest in the background; it ends with the test.
struct Background {
    child: Child,
    name: String,
}

impl Background {
    /// Boots a guest and returns when its command runs.
    fn start(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let mut child = kscope("run")
            .arg("--kernel")
            .arg(kernel())
            .args([
                "--memory",
                "128M",
                "--no-gdb",
                "--boot-timeout",
                TIMEOUT,
                "--name",
                &name,
            ])
            .args(["--", "sh", "-c", "echo up; sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kscope runs");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "up\n");
        Self { child, name }
    }

    fn coverage(&self, options: &[&str]) -> Output {
        let output = kscope("coverage")
            .arg(&self.name)
            .args(options)
            .output()
            .expect("kscope runs");
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success());
        output
    }

    fn trace(&self) -> Trace {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("trace.info");
        self.coverage(&["--lcov", path.to_str().expect("text")]);
        read_trace(&path)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_running_guest_is_read_and_reset() {
    let guest = Background::start("coverage-reset");
    let trace = guest.coverage(&["--lcov", "-"]).stdout;
    assert!(trace.starts_with(b"TN:\nSF:/") && trace.ends_with(b"end_of_record\n"));
    let before = guest.trace();
    // Since the first instruction, and without the guest's help.
    for function in ["start_kernel", "kernel_init", "rest_init"] {
        assert_eq!(before.functions[function], 1, "{function}");
    }
    let output = guest.coverage(&["--reset"]);
    assert!(output.stdout.is_empty());
    let after = guest.trace();
    assert_eq!(after.functions["start_kernel"], 0);
    let hit = |trace: &Trace| {
        trace
            .lines
            .values()
            .flat_map(BTreeMap::values)
            .filter(|count| **count > 0)
            .count()
    };
    assert!(
        hit(&after) < hit(&before) / 2,
        "{} of {}",
        hit(&after),
        hit(&before)
    );
}

#[test]
fn the_report_is_json_and_lcovs_too() {
    let guest = Background::start("coverage-lcov");
    let dir = tempfile::tempdir().expect("directory");
    let trace = dir.path().join("trace.info");
    let filter = ["--include", "kernel/time/*", "--exclude", "*.h"];
    let output = guest.coverage(
        &[
            &filter[..],
            &["--format", "json", "--lcov", trace.to_str().expect("text")],
        ]
        .concat(),
    );
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&json["format"], &json["version"]),
        (&"kscope-coverage".into(), &1.into())
    );
    assert!(json["objects"].as_u64().expect("number") >= 50);
    assert_eq!(json["skipped"], Value::Array(Vec::new()));
    assert_eq!(json["directories"].as_array().expect("rows").len(), 1);
    assert_eq!(json["directories"][0]["path"], "kernel/time");
    for file in json["files"].as_array().expect("rows") {
        let path = file["path"].as_str().expect("path");
        assert!(Path::new(path).is_file(), "{path}");
    }

    // lcov counts what kscope counts.
    let summary = Command::new("lcov")
        .args([
            "--rc",
            "lcov_branch_coverage=1",
            "--rc",
            "branch_coverage=1",
            "--summary",
        ])
        .arg(&trace)
        .output()
        .expect("lcov runs");
    assert!(
        summary.status.success(),
        "{}",
        String::from_utf8_lossy(&summary.stderr)
    );
    let text = [summary.stdout, summary.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    for kind in ["lines", "functions", "branches"] {
        let total = &json["total"][kind];
        let figures = format!("({} of {} ", total["hit"], total["found"]);
        let line = text
            .lines()
            .find(|l| l.trim_start().starts_with(kind))
            .expect("a line");
        assert!(line.contains(&figures), "{line}: {figures}");
    }

    let pages = Command::new("genhtml")
        .args(["--branch-coverage", "--quiet", "--output-directory"])
        .arg(dir.path().join("html"))
        .arg(&trace)
        .output()
        .expect("genhtml runs");
    assert!(
        pages.status.success(),
        "{}",
        String::from_utf8_lossy(&pages.stderr)
    );
    assert!(
        pages.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&pages.stderr)
    );
    assert!(dir.path().join("html/index.html").is_file());
}

#[test]
fn a_guest_or_a_kernel_that_is_not_there_is_told() {
    let output = kscope("coverage")
        .arg("no-such-guest")
        .output()
        .expect("kscope runs");
    assert_eq!(output.status.code(), Some(96));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-guest"));

    let output = kscope("coverage")
        .args(["--kernel", "/nowhere/linux", "--", "true"])
        .output()
        .expect("kscope runs");
    assert_eq!(output.status.code(), Some(96));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/linux"));
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_the_guest_boots() {
    let output = cover(&["--lcov", "/nowhere/trace.info"], &["echo", "ran"]);
    assert_eq!(output.status.code(), Some(96));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/trace.info"));
}

#[test]
fn a_kernel_other_than_the_guests_is_told() {
    let guest = Background::start("coverage-other");
    let output = kscope("coverage")
        .arg(&guest.name)
        .arg("--kernel")
        .arg(plain_kernel())
        .output()
        .expect("kscope runs");
    assert_eq!(output.status.code(), Some(96));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("is not the kernel that"), "{text}");
}

#[test]
fn a_kernel_without_counters_is_told_before_it_boots() {
    let plain = plain_kernel();
    let output = kscope("coverage")
        .arg("--kernel")
        .arg(&plain)
        .args(["--", "true"])
        .output()
        .expect("kscope runs");
    assert_eq!(output.status.code(), Some(96));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("kscope build --preset coverage"), "{text}");
    assert!(text.contains(plain.to_str().expect("text")), "{text}");
}
