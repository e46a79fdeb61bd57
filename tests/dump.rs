//! Core files, as gdb, drgn and kscope itself read them.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::session::Session;
use common::verbs::VIEWS;
use common::{Finished, Place, collect, finish, kernel, kernels, until};
use kscope_guest::remote::Connection;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Tasks of all sorts: asleep in a pipe and in a timer, stopped, dead, with threads, at work.
const CROWD: &str = "sleep 1000 & sleep 1000 | cat & sleep 1001 & kill -STOP $!; \
    perl -e 'fork or exit; sleep 1000' & (while :; do :; done) & sleep 1";

/// What gdb says, batch by batch command.
fn gdb(arguments: &[&str], commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for command in BACKTRACES.iter().chain(commands) {
        gdb.args(["-ex", command]);
    }
    finish(&mut gdb).expect(0).text()
}

/// Frames without what depends on registers that are not known of a sleeping task.
const BACKTRACES: [&str; 3] = [
    "set width 0",
    "set print frame-arguments none",
    "set print thread-events off",
];

/// The functions and lines of each thread, by thread id, from `thread apply all bt`.
fn backtraces(text: &str) -> BTreeMap<u32, Vec<String>> {
    let mut threads = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Thread ") {
            // `Thread 3 (LWP 2):` of a core, `Thread 3 (Thread 1.2 (kthreadd [S] ...)):` of the stub.
            let id = rest
                .split_once("(LWP ")
                .or_else(|| rest.split_once("(Thread 1."))
                .map(|(_, id)| id.chars().take_while(char::is_ascii_digit));
            let id: String = id.expect(line).collect();
            current = Some(id.parse().expect(line));
        } else if line.starts_with('#')
            && let Some(id) = current
        {
            let frames: &mut Vec<String> = threads.entry(id).or_default();
            frames.push(line.to_owned());
        }
    }
    threads
}

/// Pids and names, as the guest's own ps has them; itself excluded.
fn ps(session: &mut Session) -> BTreeMap<u32, String> {
    let text = session.ask("ps -eo pid=,comm=");
    text.lines()
        .map(|line| line.trim().split_once(' ').expect("a pid and a name"))
        .map(|(pid, comm)| (pid.parse().expect("a pid"), comm.trim().to_owned()))
        .filter(|(_, comm)| comm != "ps")
        .collect()
}

/// Threads of the kernel that come and go by themselves.
fn is_fleeting(comm: &str) -> bool {
    comm.starts_with("kworker/")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
#[ignore = "needs kernels"]
fn every_task_is_a_thread_for_gdb_and_drgn() {
    for kernel in kernels() {
        let name = kernel.name;
        let mut session = Session::start(kernel, &[]);
        session.ask(CROWD);
        let there = ps(&mut session);
        let core = session.place().path().join("core");
        let kscope = env!("CARGO_BIN_EXE_kscope");
        let socket = session.place().path().join("kscope/asked/gdb.sock");
        // One look at the same moment: the guest stands still for gdb.
        let live = gdb(
            &[path(&kernel.path)],
            &[
                &format!("target remote {}", socket.display()),
                "thread apply all bt",
                &format!(
                    "shell XDG_RUNTIME_DIR={} {kscope} dump asked -o {}",
                    session.place().path().display(),
                    core.display()
                ),
                "detach",
            ],
        );
        let dead = gdb(
            &[path(&kernel.path), path(&core)],
            &["thread apply all bt", "info threads"],
        );
        let (live, dead) = (backtraces(&live), backtraces(&dead));
        let ids = |threads: &BTreeMap<u32, _>| threads.keys().copied().collect::<BTreeSet<_>>();
        assert_eq!(ids(&dead), ids(&live), "{name}");
        for (id, frames) in &live {
            assert_eq!(dead[id], *frames, "{name}: thread {id}");
        }
        for (pid, comm) in &there {
            let is_there = dead.contains_key(pid);
            assert!(is_there || is_fleeting(comm), "{name}: {pid} {comm}");
        }
        drgn(name, &kernel.path, &core, &there, &dead);
        session.ask("kill -KILL %1 %2 %3 %4 %5");
        fs::remove_file(&core).expect("a core");
    }
}

/// What drgn is asked.
const DRGN: &str = r#"
import json
from drgn.helpers.linux import for_each_task, get_dmesg

def functions(tid):
    return [frame.name for frame in prog.stack_trace(tid)]

print(json.dumps({
    "tasks": {task.pid.value_(): task.comm.string_().decode() for task in for_each_task(prog)},
    "threads": {thread.tid: functions(thread.tid) for thread in prog.threads()},
    "dmesg": get_dmesg(prog).decode(),
    "size": prog.type("struct task_struct").size,
}))
"#;

fn drgn(
    name: &str,
    linux: &Path,
    core: &Path,
    ps: &BTreeMap<u32, String>,
    gdb: &BTreeMap<u32, Vec<String>>,
) {
    let program = std::env::var_os("KSCOPE_TEST_DRGN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/drgn"),
        PathBuf::from,
    );
    assert!(program.exists(), "no drgn: run scripts/setup");
    let mut drgn = Command::new(program);
    drgn.args(["-q", "-c", path(core), "-s", path(linux), "-e", DRGN])
        .env("DRGN_DEBUGINFOD", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let said: Value = serde_json::from_slice(&finish(&mut drgn).expect(0).stdout).expect("JSON");
    let tasks = said["tasks"].as_object().expect("tasks");
    for (pid, comm) in ps {
        let task = &tasks.get(&pid.to_string()).unwrap_or(&Value::Null);
        // drgn has names as the kernel keeps them, cut; ps knows more of kworkers.
        let same = task.as_str().is_some_and(|name| comm.starts_with(name));
        assert!(same || is_fleeting(comm), "{name}: {pid} {comm}: {task}");
    }
    let threads = said["threads"].as_object().expect("threads");
    let ids: BTreeSet<u32> = threads
        .keys()
        .map(|id| id.parse().expect("an id"))
        .collect();
    assert_eq!(ids, gdb.keys().copied().collect(), "{name}");
    for (id, frames) in gdb {
        let functions = threads[&id.to_string()].as_array().expect("functions");
        // Libc is no business of drgn's here, nor what is beyond it.
        let known = |function: &&str| !function.starts_with("0x");
        let functions = functions.iter().filter_map(Value::as_str);
        for (frame, function) in frames.iter().zip(functions.take_while(known)) {
            assert!(
                frame.contains(&format!("{function} (")),
                "{name}: thread {id}: {frame}: {function}"
            );
        }
    }
    let dmesg = said["dmesg"].as_str().expect("text");
    assert!(dmesg.contains("Linux version "), "{name}: {dmesg}");
}

#[test]
#[ignore = "needs kernels"]
fn every_view_of_a_core_is_that_of_the_guest() {
    for kernel in kernels() {
        let mut session = Session::start(kernel, &[]);
        session.ask(CROWD);
        let place = session.place();
        let socket = place.path().join("kscope/asked/control.sock");
        // Held from here on, so that all of them see the same.
        let connection = Connection::connect(&socket).expect("a connection");
        let hold = connection.hold().expect("held");
        let compressed = place.path().join("core.zst");
        let plain = place.path().join("core");
        for core in [&compressed, &plain] {
            session.kscope(&["dump", "-o", path(core)]).expect(0);
        }
        for view in VIEWS {
            hold.keep().expect("held still");
            let (verb, options) = view.split_first().expect("a verb");
            // It is the only guest, so that its name need not be given.
            let of_guest = |more: &[&str]| {
                let mut kscope = place.kscope();
                finish(kscope.arg(verb).args(options).arg("--stop").args(more))
            };
            let (live, json) = (of_guest(&[]), of_guest(&["--format", "json"]));
            for core in [&compressed, &plain] {
                let of_core = |more: &[&str]| {
                    let mut kscope = place.kscope();
                    kscope.arg(verb).args(options).args(more);
                    finish(kscope.arg("--core").arg(core))
                };
                let what = format!("{} {view:?} {core:?}", kernel.name);
                let dead = of_core(&[]);
                assert_eq!(dead.text(), live.text(), "{what}: {}", dead.stderr);
                assert_eq!(dead.code(), live.code(), "{what}: {}", dead.stderr);
                let dead = of_core(&["--format", "json"]);
                assert_eq!(document(&dead), document(&json), "{what}");
            }
        }
        hold.release().expect("released");
        session.ask("kill -KILL %1 %2 %3 %4 %5");
        for core in [compressed, plain] {
            fs::remove_file(core).expect("a core");
        }
    }
}

/// A view's JSON without what says how it was read.
fn document(finished: &Finished) -> Value {
    let mut value: Value = serde_json::from_slice(&finished.stdout).expect("JSON");
    let object = value.as_object_mut().expect("an object");
    object.remove("core");
    object.remove("stopped_ms");
    value
}

#[test]
#[ignore = "needs a kernel"]
fn an_idle_guest_takes_little_room() {
    let place = Place::new();
    let guest = place
        .shell(&["--name", "idle", "-m", "128M"], "sleep 1000")
        .spawn()
        .expect("kscope starts");
    place.await_guest("idle");
    let dump = |file: &str| {
        let core = place.path().join(file);
        let mut kscope = place.kscope();
        kscope.args(["dump", "idle", "--format", "json", "-o", path(&core)]);
        let finished = finish(&mut kscope)
            .expect(0)
            .says(&["idle stood still for "]);
        let said: Value = serde_json::from_slice(&finished.stdout).expect("JSON");
        assert_eq!(
            (&said["version"], &said["guest"]),
            (&1.into(), &"idle".into())
        );
        assert_eq!(said["core"], path(&core));
        assert_eq!(said["warnings"], Value::Array(Vec::new()));
        assert!(said["stopped_ms"].as_f64().expect("a time") > 0.0);
        assert!(said["threads"].as_u64().expect("a number") > 10);
        let meta = fs::metadata(&core).expect("a core");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        (core, meta, said)
    };
    let (compressed, meta, said) = dump("core.zst");
    assert_eq!(said["size"], meta.len());
    assert!(meta.len() < 10 << 20, "{}", meta.len());
    let (plain, meta, said) = dump("core");
    assert_eq!(said["content"], meta.len());
    assert!(meta.len() > 128 << 20, "{}", meta.len());
    assert!(meta.blocks() * 512 < 40 << 20, "{}", meta.blocks());
    // The one made of the other is the same, either way.
    let convert = |from: &Path, to: &str| {
        let to = place.path().join(to);
        let mut kscope = place.kscope();
        kscope.args(["dump", "--core", path(from), "-o", path(&to)]);
        finish(&mut kscope).expect(0);
        to
    };
    let again = convert(&convert(&plain, "again.zst"), "again");
    assert!(fs::read(&again).expect("a core") == fs::read(&plain).expect("a core"));
    assert!(fs::metadata(&again).expect("a core").blocks() * 512 < 40 << 20);
    // A core is not replaced by accident.
    let mut kscope = place.kscope();
    kscope.args(["dump", "idle", "-o", path(&compressed)]);
    finish(&mut kscope)
        .expect(96)
        .says(&["core.zst` exists", "--force"]);
    finish(kscope.arg("--force")).expect(0);
    for (file, word) in [
        ("/dev/full", "not a regular file"),
        ("/nowhere/core", "its directory is not there"),
        (path(place.path()), "not a regular file"),
    ] {
        let mut kscope = place.kscope();
        kscope.args(["dump", "idle", "--force", "-o", file]);
        finish(&mut kscope).expect(96).says(&[file, word]);
    }
    for core in [compressed, plain, again, place.path().join("again.zst")] {
        fs::remove_file(core).expect("a core");
    }
    end(&place, "idle", guest);
}

/// Ends a guest from outside.
fn end(place: &Place, name: &str, guest: std::process::Child) {
    let supervisor = place.await_guest(name)["supervisor"]
        .as_i64()
        .expect("a pid");
    kill(Pid::from_raw(supervisor as i32), Signal::SIGTERM).expect("a signal");
    collect(guest);
    place.assert_clean();
}

#[test]
#[ignore = "needs a kernel"]
fn a_dump_that_breaks_off_leaves_nothing() {
    let place = Place::new();
    // Enough that does not compress for a dump to take its time.
    let script = "mount -t tmpfs t /tmp; head -c 200M /dev/urandom > /tmp/x; echo full; sleep 1000";
    let mut guest = place.shell(&["--name", "full", "-m", "512M"], script);
    let mut guest = guest.spawn().expect("kscope starts");
    let mut line = [0; 5];
    std::io::Read::read_exact(guest.stdout.as_mut().expect("a pipe"), &mut line).expect("a line");
    let dir = tempfile::tempdir().expect("a directory");
    let core = dir.path().join("core.zst");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut dump = place.kscope();
        dump.args(["dump", "full", "-o", path(&core)]);
        let dump = dump.spawn().expect("kscope starts");
        std::thread::sleep(Duration::from_millis(100));
        kill(Pid::from_raw(dump.id() as i32), signal).expect("a signal");
        let finished = collect(dump);
        if finished.status.success() {
            // It was faster.
            fs::remove_file(&core).expect("a core");
        }
        let left: Vec<_> = fs::read_dir(dir.path()).expect("a directory").collect();
        assert!(left.is_empty(), "{signal}: {left:?}");
    }
    // A disk that is too small: of a mount namespace of its own.
    let kscope = env!("CARGO_BIN_EXE_kscope");
    let script = format!(
        "mount -t tmpfs -o size=4m small {0} && {kscope} dump full -o {0}/core.zst; \
         code=$?; ls -A {0}; exit $code",
        dir.path().display()
    );
    let mut small = Command::new("unshare");
    small.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    place.surround(&mut small);
    let small = finish(&mut small)
        .expect(96)
        .says(&["core.zst`: No space left on device", "make room"]);
    assert_eq!(small.text(), "");
    // None of that has hurt the guest.
    finish(place.kscope().args(["dump", "full", "-o", path(&core)])).expect(0);
    assert!(fs::metadata(&core).expect("a core").len() > 200 << 20);
    end(&place, "full", guest);
}

#[test]
#[ignore = "needs kernels"]
fn a_panic_is_dumped() {
    for kernel in kernels() {
        let place = Place::new();
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("made");
        let options = ["--name", "dies", "--dump-on-panic", path(&dir)];
        let finished =
            finish(&mut place.shell_on(kernel, &options, "echo c > /proc/sysrq-trigger"))
                .expect(102)
                .says(&["sysrq triggered crash", "--core"]);
        let mut cores: Vec<_> = fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        let core = cores.pop().expect("a core");
        assert!(cores.is_empty(), "{cores:?}");
        let file = core
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        assert!(
            file.starts_with("dies-2") && file.ends_with("Z.core.zst"),
            "{file}"
        );
        // What is said to be done works.
        let command = finished
            .stderr
            .lines()
            .find_map(|line| line.split_once("kscope bt "));
        let (_, arguments) = command.expect("a command");
        let arguments: Vec<_> = arguments.split(' ').collect();
        let view = |verb: &str| {
            finish(place.kscope().arg(verb).args(&arguments))
                .expect(0)
                .text()
        };
        let stacks = view("bt");
        for function in [" panic+", " sysrq_handle_crash+"] {
            assert!(stacks.contains(function), "{}: {stacks}", kernel.name);
        }
        let log = view("dmesg");
        let last: Vec<_> = log.lines().rev().take(100).collect();
        for part in [
            "Kernel panic - not syncing: sysrq triggered crash",
            "sysrq: Trigger a crash",
        ] {
            assert!(
                last.iter().any(|line| line.contains(part)),
                "{}: no {part:?} in {log}",
                kernel.name
            );
        }
        let plain = dir.join("core");
        finish(
            place
                .kscope()
                .args(["dump", "--core", path(&core), "-o", path(&plain)]),
        )
        .expect(0);
        // Of several CPUs, any may be the one.
        let said = gdb(
            &[path(&kernel.path), path(&plain)],
            &["thread apply all bt"],
        );
        for part in [
            "Core was generated by `linux (guest dies): panic: sysrq triggered crash'",
            "Program terminated with signal SIGABRT",
            " panic (",
            "sysrq_handle_crash (",
        ] {
            assert!(
                said.contains(part),
                "{}: no {part:?} in {said}",
                kernel.name
            );
        }
        place.assert_clean();
    }
}

#[test]
#[ignore = "needs a kernel"]
fn a_guest_that_was_never_up_is_dumped() {
    let place = Place::new();
    let guest = place
        .shell(&["--name", "early", "--wait"], "echo done")
        .spawn()
        .expect("kscope starts");
    place.await_guest("early");
    let core = place.path().join("core");
    let mut dump = place.kscope();
    dump.args(["dump", "early", "--force", "-o", path(&core)]);
    until("start_kernel", || {
        finish(&mut dump)
            .stderr
            .contains("early was stopped before")
    });
    let said = gdb(&[path(kernel()), path(&core)], &["bt", "info threads"]);
    assert!(said.contains("#0  start_kernel ()"), "{said}");
    fs::remove_file(&core).expect("a core");
    let mut gdb = place.kscope();
    gdb.args(["gdb", "early", "--", "-batch", "-ex", "detach"]);
    finish(&mut gdb).expect(0);
    assert_eq!(collect(guest).expect(0).text(), "done\n");
    place.assert_clean();
}

#[test]
#[ignore = "needs a kernel"]
fn a_core_of_another_maker_is_read() {
    let session = Session::start(&kernels()[0], &["-m", "64M"]);
    let pid = session.place().await_guest("asked")["pid"].to_string();
    let core = session.place().path().join("core");
    let generate = format!("generate-core-file {}", core.display());
    gdb(&["-p", &pid, path(kernel())], &[&generate, "detach"]);
    let live = session.kscope(&["lsmod"]).expect(0);
    let mut dead = session.place().kscope();
    dead.args(["lsmod", "-k", path(kernel()), "--core", path(&core)]);
    assert_eq!(finish(&mut dead).expect(0).text(), live.text());
    fs::remove_file(&core).expect("a core");
}
