//! Stored dumps of small kernels: every verb says of them what it said before, and that is what
//! the guests said of themselves when they were dumped.
//!
//! `tests/golden/VERSION` has the core and its kernel, `proc.txt` (what the guest's /proc had), and
//! in `expected` what every verb prints. `scripts/golden` makes all of it, `scripts/golden --expect`
//! only what is expected: this test with KSCOPE_GOLDEN_WRITE=1.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Finished, finish};
use serde_json::Value;

#[path = "golden/said.rs"]
mod said;

/// Every verb that looks at a core, without the core. `@NAME` is the pid of the task called NAME.
/// A new verb is added here; `scripts/golden --expect` then writes down what it says.
const VERBS: &[&[&str]] = &[
    &["bt"],
    &["bt", "--all", "--no-args"],
    &["bt", "@lock-a", "@server", "--locals"],
    &["config"],
    &["dmesg"],
    &["files", "@server"],
    &["irq"],
    &["lsmod"],
    &["maps", "@server"],
    &["mounts"],
    &["net"],
    &["print", "init_task.comm"],
    &["print", "list(init_task.tasks)->comm"],
    &["print", "*$task(@lock-a)", "--depth", "1"],
    &["ps"],
    &["ps", "--threads"],
    &["ps", "--tree"],
    &["runq"],
    &["slab"],
    &["timers"],
    &["types", "list_head"],
    &["types", "task_struct"],
    &["why", "--all"],
];

/// Verbs that take a core and print nothing of it.
const NO_VIEWS: [&str; 1] = ["dump"];

/// One stored guest, unpacked, with a cache of its own.
struct Golden {
    version: &'static str,
    dir: tempfile::TempDir,
}

impl Golden {
    fn unpack(version: &'static str) -> Golden {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["core", "linux"] {
            let from = stored(version).join(format!("{name}.zst"));
            let packed =
                fs::File::open(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            let mut unpacked = fs::File::create(dir.path().join(name)).expect("a file");
            zstd::stream::copy_decode(packed, &mut unpacked).expect("a zstd file");
        }
        Golden { version, dir }
    }

    /// Runs a verb on the core; nothing of the machine that it runs on may show.
    fn kscope(&self, verb: &[&str], format: &str) -> Finished {
        let mut kscope = Command::new(env!("CARGO_BIN_EXE_kscope"));
        kscope
            .args(verb.iter().map(|word| self.with_pids(word)))
            .args(["-k", "linux", "--format", format])
            .current_dir(self.dir.path())
            .env_clear()
            .env("XDG_CACHE_HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // It looks at the kernel only.
        if verb[0] != "types" {
            kscope.args(["--core", "core"]);
        }
        finish(&mut kscope)
    }

    /// What a verb prints, all of it.
    fn text(&self, verb: &[&str]) -> String {
        let done = self.kscope(verb, "human");
        let mut text = done.text();
        for line in done.stderr.lines() {
            text.push_str(&format!("stderr: {line}\n"));
        }
        if done.code() != 0 {
            text.push_str(&format!("exit code: {}\n", done.code()));
        }
        text
    }

    /// What a verb says as JSON, below its own name.
    fn view(&self, verb: &[&str]) -> Value {
        let done = self.kscope(verb, "json").expect(0);
        let document: Value = serde_json::from_slice(&done.stdout).expect("JSON");
        document[verb[0]].clone()
    }

    /// A word with pids in place of names.
    fn with_pids(&self, word: &str) -> String {
        let Some((before, rest)) = word.split_once('@') else {
            return word.to_owned();
        };
        let end = rest.find([')', ' ']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let said = said::Said::read(&stored(self.version).join("proc.txt"));
        format!("{before}{}{after}", said.pid(name))
    }
}

/// Where what belongs to a version is stored.
fn stored(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(version)
}

/// The name of the files with what a verb should say.
fn file_name(verb: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let words = verb
        .iter()
        .map(|word| word.trim_start_matches('-').replace(|c| !plain(c), ""));
    words.collect::<Vec<_>>().join("-")
}

/// What is different, as diff(1) tells it.
fn difference(expected: &Path, found: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), found).expect("a file");
    let diff = Command::new("diff")
        .arg("-u")
        .arg(expected)
        .arg(file.path())
        .output();
    let diff = String::from_utf8_lossy(&diff.expect("diff(1)").stdout).into_owned();
    let lines: Vec<_> = diff.lines().skip(2).take(60).collect();
    format!("{}:\n{}\n", expected.display(), lines.join("\n"))
}

/// Runs every verb on a version's core.
fn verbs_say_what_they_said(version: &'static str) {
    let golden = Golden::unpack(version);
    let directory = stored(version).join("expected");
    let writes = std::env::var_os("KSCOPE_GOLDEN_WRITE").is_some();
    let mut unexpected = String::new();
    let mut known = BTreeSet::new();
    if writes {
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("a directory");
    }
    for verb in VERBS {
        let json = golden.kscope(verb, "json");
        for (extension, found) in [("txt", golden.text(verb)), ("json", json.text())] {
            let name = format!("{}.{extension}", file_name(verb));
            let path = directory.join(&name);
            assert!(known.insert(name), "{} twice", path.display());
            if writes {
                fs::write(&path, &found).expect("a file");
            } else if fs::read(&path).ok() != Some(found.clone().into_bytes()) {
                unexpected.push_str(&difference(&path, &found));
            }
        }
    }
    for entry in fs::read_dir(&directory).expect("a directory") {
        let name = entry
            .expect("a file")
            .file_name()
            .into_string()
            .expect("a name");
        assert!(known.contains(&name), "{version}: {name} is of no verb");
    }
    assert!(
        unexpected.is_empty(),
        "if it is as it should be: scripts/golden --expect\n{unexpected}"
    );
    said::compare(&stored(version).join("proc.txt"), |verb| golden.view(verb));
}

#[test]
fn linux_6_1() {
    verbs_say_what_they_said("6.1");
}

#[test]
fn linux_6_12() {
    verbs_say_what_they_said("6.12");
}

#[test]
fn linux_7_3() {
    verbs_say_what_they_said("7.3");
}

#[test]
fn every_view_is_expected_to_say_something() {
    let help = |words: &[&str]| {
        let mut kscope = Command::new(env!("CARGO_BIN_EXE_kscope"));
        let done = kscope.args(words).arg("--help").output().expect("kscope");
        String::from_utf8(done.stdout).expect("text")
    };
    let help_of_all = help(&[]);
    let (_, commands) = help_of_all.split_once("Commands:\n").expect("commands");
    let verbs = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|verb| !verb.is_empty() && *verb != "help");
    let views: BTreeSet<_> = verbs
        .filter(|verb| help(&[verb]).contains("--core"))
        .collect();
    let tested = VERBS.iter().map(|verb| verb[0]).chain(NO_VIEWS).collect();
    assert_eq!(views, tested, "left: the views; right: what VERBS here has");
}
