//! `kscope why`: what tasks wait for, against what they know about themselves.

mod common;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Child;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use common::programs::{self, Built};
use common::{PATIENCE, Place, TestKernel, collect, finish, kernels, until};
use kscope_guest::mem::ProcMem;
use kscope_guest::remote::Connection;
use kscope_kernel::{Image, Kernel, KernelAddr, Memory, ReadError, Reader};
use serde_json::Value;

/// A guest whose output is read line by line.
struct Guest {
    place: Place,
    child: Option<Child>,
    lines: Receiver<String>,
}

impl Guest {
    fn start(kernel: &TestKernel, script: &str) -> Guest {
        let place = Place::new();
        let mut child = place
            .shell_on(kernel, &["--name", "waits"], script)
            .spawn()
            .expect("kscope starts");
        let stdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Guest {
            place,
            child: Some(child),
            lines,
        }
    }

    /// The lines up to `end`, without that.
    #[track_caller]
    fn until(&mut self, end: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line == end => return lines,
                Ok(line) => lines.push(line),
                Err(_) => {
                    let mut child = self.child.take().expect("a guest");
                    let _ = child.kill();
                    panic!("no {end:?}: {lines:?}\n{}", collect(child).stderr);
                }
            }
        }
    }

    fn why(&self, args: &[&str]) -> String {
        let mut kscope = self.place.kscope();
        finish(kscope.arg("why").args(args)).expect(0).text()
    }

    fn all(&self) -> Why {
        let text = self.why(&["--all", "--format", "json"]);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["torn"], false);
        Why(value["why"].clone())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a process said of itself: its pid, and more.
#[derive(Debug)]
struct Said {
    pid: i64,
    more: HashMap<String, String>,
}

impl Said {
    fn text(&self, key: &str) -> &str {
        self.more
            .get(key)
            .unwrap_or_else(|| panic!("{key}: {self:?}"))
    }

    fn number(&self, key: &str) -> i64 {
        self.text(key).parse().expect("a number")
    }

    fn numbers(&self, key: &str) -> Vec<i64> {
        let numbers = self.text(key).split(',');
        numbers
            .map(|number| number.parse().expect("a number"))
            .collect()
    }
}

/// `MODE PID key=value ...`, by mode.
fn said(lines: &[String]) -> HashMap<String, Said> {
    let parse = |line: &String| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let (mode, pid) = (words.next()?, words.next()?.parse().ok()?);
        let pairs = words.filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        });
        let more = pairs.collect();
        Some((mode, Said { pid, more }))
    };
    lines.iter().filter_map(parse).collect()
}

struct Why(Value);

impl Why {
    #[track_caller]
    fn task(&self, pid: i64) -> &Value {
        let tasks = self.0["tasks"].as_array().expect("tasks");
        let task = tasks.iter().find(|task| task["task"]["pid"] == pid);
        task.unwrap_or_else(|| panic!("no task {pid}: {:#}", self.0))
    }

    /// Pids of those that can end a task's wait.
    fn wakers(&self, pid: i64) -> Vec<i64> {
        let wakers = self.task(pid)["wait"]["wakers"].as_array().expect("wakers");
        let pids = wakers.iter().map(|waker| waker["task"]["pid"].as_i64());
        pids.map(|pid| pid.expect("a pid")).collect()
    }

    /// The circles as sorted pids.
    fn circles(&self) -> Vec<Vec<i64>> {
        let deadlocks = self.0["deadlocks"].as_array().expect("deadlocks").iter();
        let circles = deadlocks.map(|deadlock| {
            let links = deadlock["links"].as_array().expect("links").iter();
            let pids = links.map(|link| link["task"]["pid"].as_i64().expect("a pid"));
            let mut pids: Vec<_> = pids.collect();
            pids.sort_unstable();
            pids
        });
        circles.collect()
    }

    fn kind(&self, pid: i64) -> &str {
        let kind = &self.task(pid)["wait"]["reason"]["kind"];
        kind.as_str().expect("a kind")
    }
}

const MODES: [&str; 28] = [
    "two-mutexes",
    "pi-mutex",
    "join",
    "condition",
    "futex",
    "futex-shared",
    "futex-waitv",
    "pipe-read",
    "pipe-write",
    "pipe-self",
    "pipe-and-wait",
    "fifo",
    "poll",
    "select",
    "epoll",
    "wait-any",
    "wait-one",
    "vfork",
    "flock",
    "posix-lock",
    "message",
    "semaphore",
    "socket",
    "accept",
    "nanosleep",
    "sigsuspend",
    "sigwait",
    "stopped",
];

#[test]
#[ignore = "needs a kernel"]
fn processes_wait_for_what_they_say() {
    let program = programs::program("waits");
    for kernel in kernels() {
        println!("{}", kernel.name);
        let waits = program.path("waits");
        let script = format!("exec {} {}", waits.display(), MODES.join(" "));
        let mut guest = Guest::start(kernel, &script);
        let said = said(&guest.until("ready"));
        // Asleep twice is not yet where they are going to stay.
        let settled = |why: &Why| {
            let is = |mode: &str, kind: &str| why.kind(said[mode].pid) == kind;
            is("pipe-write", "pipe")
                && is("flock", "file_lock")
                && is("posix-lock", "file_lock")
                && is("two-mutexes", "futex")
                && is("b-then-a", "futex")
                && is("wants-pi", "futex")
                && is("stopped", "stopped")
                && why.circles().len() == 3
        };
        let mut why = guest.all();
        until("everybody waits", || {
            why = guest.all();
            settled(&why)
        });
        futexes(&why, &said);
        pipes(&why, &said);
        files(&why, &said);
        others(&why, &said);
        // The same in words.
        let text = guest.why(&[&said["wants-pi"].pid.to_string()]);
        let owner = said["pi-mutex"].pid;
        assert!(
            text.contains(&format!("held by pi-mutex[{owner}] -> signal")),
            "{text}"
        );
        assert!(text.contains("futex_lock_pi"), "{text}");
        let text = guest.why(&["--all"]);
        let own = said["pipe-self"].pid;
        assert!(text.starts_with("deadlock: ") || text.starts_with("probable deadlock: "));
        let circle = format!("(empty) with its other end at pipe-self[{own}]\n");
        assert!(text.contains(&circle), "{text}");
    }
}

fn futexes(why: &Why, said: &HashMap<String, Said>) {
    let futex = |mode: &str, usage: &str, key: &str| {
        let said = &said[mode];
        let reason = &why.task(said.pid)["wait"]["reason"];
        assert_eq!(reason["kind"], "futex", "{mode}");
        assert_eq!(reason["usage"], usage, "{mode}");
        if !key.is_empty() {
            assert_eq!(reason["uaddr"], said.text(key), "{mode}");
        }
        reason.clone()
    };
    let (one, other) = (&said["two-mutexes"], &said["b-then-a"]);
    futex("two-mutexes", "lock", "wants");
    futex("b-then-a", "lock", "wants");
    assert_eq!(why.wakers(one.pid), [other.pid]);
    assert_eq!(why.wakers(other.pid), [one.pid]);
    let mut circle = vec![one.pid, other.pid];
    circle.sort_unstable();
    assert!(why.circles().contains(&circle), "{:?}", why.circles());
    let at = why.task(one.pid)["deadlock"].as_u64().expect("a deadlock");
    // Only the C library says who has a mutex of user space.
    assert_eq!(why.0["deadlocks"][at as usize]["certain"], false);

    futex("wants-pi", "priority_lock", "wants");
    assert_eq!(why.wakers(said["wants-pi"].pid), [said["pi-mutex"].pid]);
    let waiter = why.task(said["wants-pi"].pid);
    assert_eq!(waiter["wait"]["wakers"][0]["certain"], true);
    assert_eq!(waiter["stuck"], false);
    futex("join", "join", "");
    assert_eq!(why.wakers(said["join"].pid), [said["joined"].pid]);
    futex("condition", "other", "");
    assert!(why.wakers(said["condition"].pid).is_empty());
    let private = futex("futex", "other", "uaddr");
    assert_eq!(
        (&private["value"], &private["shared"]),
        (&77.into(), &false.into())
    );
    let hours = why.task(said["futex"].pid)["wait"]["timeout_ns"].as_i64();
    assert!(
        hours.is_some_and(|left| (1..=36_000_000_000_000).contains(&left)),
        "{hours:?}"
    );
    let shared = futex("futex-shared", "other", "uaddr");
    assert_eq!(
        (&shared["value"], &shared["shared"]),
        (&77.into(), &true.into())
    );
    assert_eq!(futex("futex-waitv", "other", "uaddr")["words"], 2);
}

fn pipes(why: &Why, said: &HashMap<String, Said>) {
    for (mode, side, bytes) in [("pipe-read", "read", 0), ("pipe-write", "write", 65536)] {
        let said = &said[mode];
        let reason = &why.task(said.pid)["wait"]["reason"];
        assert_eq!(reason["kind"], "pipe", "{mode}");
        assert_eq!(reason["side"], side, "{mode}");
        assert_eq!(reason["fd"], said.number("fd"), "{mode}");
        assert_eq!(reason["inode"], said.number("inode"), "{mode}");
        assert_eq!(reason["bytes"], bytes, "{mode}");
        assert_eq!(why.wakers(said.pid), [said.number("other")], "{mode}");
        assert_eq!(why.task(said.pid)["stuck"], false, "{mode}");
    }
    let own = said["pipe-self"].pid;
    assert!(why.circles().contains(&vec![own]));
    let (parent, child) = (
        said["pipe-and-wait"].pid,
        said["pipe-and-wait"].number("child"),
    );
    let mut circle = vec![parent, child];
    circle.sort_unstable();
    assert!(why.circles().contains(&circle), "{:?}", why.circles());
    let fifo = &why.task(said["fifo"].pid)["wait"]["reason"];
    assert_eq!(
        (&fifo["kind"], &fifo["side"]),
        (&"pipe".into(), &"open".into())
    );
    let socket = &said["socket"];
    let reason = &why.task(socket.pid)["wait"]["reason"];
    assert_eq!(
        (&reason["kind"], &reason["family"]),
        (&"socket".into(), &"unix".into())
    );
    assert_eq!(reason["fd"], socket.number("fd"));
    assert_eq!(why.wakers(socket.pid), [socket.number("other")]);
    assert_eq!(why.kind(said["accept"].pid), "socket");
    assert!(why.wakers(said["accept"].pid).is_empty());
}

fn files(why: &Why, said: &HashMap<String, Said>) {
    for mode in ["poll", "select", "epoll"] {
        let said = &said[mode];
        let reason = &why.task(said.pid)["wait"]["reason"];
        assert_eq!(
            (&reason["kind"], &reason["call"]),
            (&"files".into(), &mode.into())
        );
        assert_eq!(reason["count"], 2, "{mode}");
        let files = reason["files"].as_array().expect("files").iter();
        let fds = files.map(|file| file["fd"].as_i64().expect("a descriptor"));
        let mut fds: Vec<_> = fds.collect();
        fds.sort_unstable();
        assert_eq!(fds, said.numbers("fds"), "{mode}");
    }
    for mode in ["flock", "posix-lock"] {
        let said = &said[mode];
        let reason = &why.task(said.pid)["wait"]["reason"];
        assert_eq!(reason["kind"], "file_lock", "{mode}");
        let name = said.text("path").rsplit('/').next().expect("a name");
        assert!(
            reason["file"].as_str().expect("a file").contains(name),
            "{mode}"
        );
        assert_eq!(why.wakers(said.pid), [said.number("holder")], "{mode}");
    }
}

fn others(why: &Why, said: &HashMap<String, Said>) {
    let any = &said["wait-any"];
    assert_eq!(why.task(any.pid)["wait"]["reason"]["which"], "any");
    assert_eq!(why.wakers(any.pid), any.numbers("children"));
    let one = &said["wait-one"];
    let child = one.numbers("children")[0];
    let which = &why.task(one.pid)["wait"]["reason"]["which"];
    assert_eq!(which, &format!("pid {child}"));
    assert_eq!(why.wakers(one.pid), [child]);
    assert_eq!(why.kind(said["vfork"].pid), "completion");
    assert_eq!(why.wakers(said["vfork"].pid), [said["vforked"].pid]);
    for (mode, kind) in [
        ("message", "message"),
        ("semaphore", "semaphores"),
        ("nanosleep", "sleep"),
        ("sigsuspend", "signal"),
        ("sigwait", "signal"),
        ("stopped", "stopped"),
    ] {
        assert_eq!(why.kind(said[mode].pid), kind, "{mode}");
    }
    let hours = why.task(said["nanosleep"].pid)["wait"]["timeout_ns"].as_i64();
    assert!(
        hours.is_some_and(|left| (1..=36_000_000_000_000).contains(&left)),
        "{hours:?}"
    );
    // kthreadd, which always is the second.
    assert_eq!(why.kind(2), "work");
}

/// Who takes what, in this order: what a process keeps before the next one comes.
const HOLDERS: [(&str, &str); 6] = [
    ("writer", "w0"),
    ("reader", "r1"),
    ("down", "s0"),
    ("rt", "t0"),
    ("percpu-writer", "p0"),
    ("percpu-reader", "v1"),
];

/// And who waits for it, or for one another.
const WAITERS: [(&str, &str); 16] = [
    ("a", "m0 b3 m1"),
    ("b", "m1 b3 m0"),
    ("behind", "b3 m0"),
    ("orphan", "m3"),
    ("named", "n0 n0"),
    ("reads", "r0"),
    ("writes", "w1"),
    ("downs", "s0"),
    ("rts", "t0"),
    ("percpu-reads", "v0"),
    ("percpu-writes", "p1"),
    ("completion", "c1"),
    ("queue", "q2"),
    ("exclusive", "x3"),
    ("bit", "o1"),
    ("flushes", "m2 f2"),
];

#[test]
#[ignore = "needs a kernel"]
fn locks_of_the_kernel_have_owners() {
    let program = programs::program("waits");
    for kernel in kernels() {
        println!("{}", kernel.name);
        let module = programs::module("locks", &kernel.path);
        let script = lock_script(&program, &module);
        let mut guest = Guest::start(kernel, &script);
        let mut lines = guest.until("ready");
        // Nobody's lines come between those of the module, which end with that of the last lock.
        let pids: HashMap<_, _> = said(&lines).into_iter().map(|(k, v)| (k, v.pid)).collect();
        lines.retain(|line| line.contains(" 0x"));
        let locks = Locks::parse(&lines);
        let mut why = guest.all();
        until("everybody waits", || {
            why = guest.all();
            let waits = |(name, _): &(&str, _)| why.task(pids[*name])["wait"]["object"].is_object();
            WAITERS.iter().all(waits) && why.circles().len() == 3
        });
        owners(&why, &pids, &locks);
        let circle = |names: &[&str]| {
            let mut circle: Vec<_> = names.iter().map(|name| pids[*name]).collect();
            circle.sort_unstable();
            circle
        };
        let circles = why.circles();
        assert!(circles.contains(&circle(&["a", "b"])), "{circles:?}");
        assert!(circles.contains(&circle(&["named"])), "{circles:?}");
        // The work's function wants what its flusher has.
        let flush = circles
            .iter()
            .find(|circle| circle.contains(&pids["flushes"]));
        assert_eq!(flush.expect("a deadlock with a worker").len(), 2);
        for deadlock in why.0["deadlocks"].as_array().expect("deadlocks") {
            assert_eq!(deadlock["certain"], true);
        }
        // Who waits for one of these is stuck as well, but no part of the circle.
        let behind = why.task(pids["behind"]);
        assert_eq!(
            (&behind["stuck"], &behind["deadlock"]),
            (&true.into(), &Value::Null)
        );
        assert_eq!(why.task(pids["downs"])["deadlock"], Value::Null);
        // A mutex that nobody gives back.
        let orphan = why.task(pids["orphan"]);
        assert_eq!(
            (&orphan["stuck"], &orphan["deadlock"]),
            (&true.into(), &Value::Null)
        );
        assert_eq!(why.kind(pids["gone"]), "zombie");
        let text = guest.why(&[&pids["behind"].to_string()]);
        let chain = format!("held by a[{}] -> mutex mutexes+0x", pids["a"]);
        assert!(
            text.contains(&chain) && text.contains("none of them can go on"),
            "{text}"
        );
        assert!(text.contains("  step+0x"), "{text}");
    }
}

/// A script that takes and waits for locks, each in a process of its name.
fn lock_script(program: &Built, module: &Built) -> String {
    let mut script = format!(
        "waits={}\nmodule={}\n{}",
        program.path("waits").display(),
        module.path("kscope_locks.ko").display(),
        LOCK_FUNCTIONS
    );
    // One ends with what it has, and its parent does not notice.
    script += "ends gone m3\n";
    for (name, steps) in HOLDERS {
        script += &format!("takes {name} '{steps}'\n");
    }
    for (name, steps) in WAITERS {
        script += &format!("wants {name} '{steps}'\n");
    }
    script + "sleep 2; cat $D/locks; echo ready; wait\n"
}

const LOCK_FUNCTIONS: &str = r#"
D=/sys/kernel/debug/kscope_locks; export D
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
rm -f /tmp/never /tmp/held; mkfifo /tmp/never
$waits insmod:$module | (read ready; cat >/dev/null) &
held() { while [ ! -e $1 ]; do sleep 0.1; done; }
held $D/do
steps='printf $0 >/proc/$$/comm; echo $0 $$; echo $1 >$D/do'
wants() { sh -c "$steps; echo \$0 ended" "$@" & }
takes() {
    sh -c "$steps; echo held >/tmp/held; read forever </tmp/never" "$@" &
    held /tmp/held; rm /tmp/held
}
ends() {
    export steps
    sh -c 'sh -c "$steps; echo held >/tmp/held" $0 $1 & read forever </tmp/never' "$@" &
    held /tmp/held; rm /tmp/held
}
"#;

/// A guest's memory, of which some words are others: the same ones at every read.
struct Damaged {
    memory: ProcMem,
    seed: u64,
}

impl Memory for Damaged {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.memory.read(addr, buf)?;
        for (at, byte) in (addr.get()..).zip(buf) {
            let mut hasher = DefaultHasher::new();
            (self.seed, at / 8).hash(&mut hasher);
            let hash = hasher.finish();
            // One word in 200; of those, a bit is wrong, or a word is like many others.
            match (hash % 200, hash >> 40 & 1) {
                (0, 0) if hash >> 16 & 7 == at % 8 => *byte ^= 1 << (hash >> 24 & 7),
                (0, 1) => *byte = ((0x6080_0000 | (hash >> 8 & 0xffff8)) >> (at % 8 * 8)) as u8,
                _ => {}
            }
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs a kernel"]
fn damaged_memory_costs_no_more_than_answers() {
    let program = programs::program("waits");
    let kernel = &kernels()[0];
    let waits = program.path("waits");
    let script = format!("exec {} {}", waits.display(), MODES.join(" "));
    let mut guest = Guest::start(kernel, &script);
    let pids = said(&guest.until("ready"));
    let record = guest.place.await_guest("waits");
    let socket = PathBuf::from(record["dir"].as_str().expect("a directory")).join("control.sock");
    let (sender, results) = mpsc::channel();
    let path = kernel.path.clone();
    thread::spawn(move || {
        let image = Image::open(&path).expect("the kernel");
        for seed in 0..200 {
            let mut connection = Connection::connect(&socket).expect("a connection");
            let memory = connection.memory().expect("its memory");
            let kernel = Kernel::new(image.clone(), Damaged { memory, seed }).expect("a kernel");
            let reader = Reader::new(&kernel);
            let why = reader
                .why(&[])
                .map(|why| (why.to_string(), why.tasks.len()));
            if sender.send((seed, why)).is_err() {
                return;
            }
        }
    });
    let mut most = 0;
    for _ in 0..200 {
        let (seed, why) = results
            .recv_timeout(PATIENCE)
            .expect("an end, without a panic");
        let (text, tasks) = why.unwrap_or_default();
        assert!(text.len() < 10 << 20, "seed {seed}: {} bytes", text.len());
        most = most.max(tasks);
    }
    // The damage leaves something to see.
    assert!(most > pids.len(), "{most} tasks");
}

/// The module's own account: addresses and pids of holders by name.
struct Locks(HashMap<String, (String, Vec<i64>)>);

impl Locks {
    fn parse(lines: &[String]) -> Locks {
        let parse = |line: &String| {
            let mut words = line.split_whitespace();
            let (name, addr) = (words.next()?.to_owned(), words.next()?.to_owned());
            let pids = words.filter_map(|pid| pid.parse().ok());
            Some((name, (addr, pids.collect())))
        };
        Locks(lines.iter().filter_map(parse).collect())
    }

    fn addr(&self, name: &str) -> &str {
        &self.0[name].0
    }

    fn holders(&self, name: &str) -> &[i64] {
        &self.0[name].1
    }
}

fn owners(why: &Why, pids: &HashMap<String, i64>, locks: &Locks) {
    // Who waits, in which way, for what; and whether the kernel knows who has it.
    for (name, kind, lock, known) in [
        ("a", "mutex", "mutex1", true),
        ("b", "mutex", "mutex0", true),
        ("behind", "mutex", "mutex0", true),
        ("reads", "rwsem", "rwsem0", true),
        ("writes", "rwsem", "rwsem1", true),
        ("downs", "semaphore", "semaphore0", false),
        ("rts", "rt_mutex", "rt_mutex0", true),
        ("percpu-reads", "percpu_rwsem", "percpu0", false),
        ("percpu-writes", "percpu_rwsem", "percpu1", false),
        ("completion", "completion", "completion1", false),
        ("queue", "wait_queue", "queue2", false),
        ("exclusive", "wait_queue", "queue3", false),
        ("bit", "bit", "bits", false),
        ("named", "mutex", "named", false),
        ("orphan", "mutex", "mutex3", true),
    ] {
        let wait = &why.task(pids[name])["wait"];
        assert_eq!(wait["reason"]["kind"], kind, "{name}: {wait:#}");
        assert_eq!(wait["object"]["addr"], locks.addr(lock), "{name}");
        assert_eq!(wait["function"], "step [kscope_locks]", "{name}");
        let wakers = why.wakers(pids[name]);
        match (known, name) {
            (true, _) => assert_eq!(wakers, locks.holders(lock), "{name}"),
            (false, "named") => assert_eq!(wakers, [pids["named"]]),
            // If somebody is named, it is the one.
            (false, _) => {
                let holders = locks.holders(lock);
                assert!(
                    wakers.iter().all(|pid| holders.contains(pid)),
                    "{name}: {wakers:?}"
                );
            }
        }
    }
    let reason = |name: &str| &why.task(pids[name])["wait"]["reason"];
    assert_eq!(reason("reads")["access"], "read");
    assert_eq!(reason("reads")["writer"], true);
    assert_eq!(reason("writes")["access"], "write");
    assert_eq!(reason("writes")["readers"], 1);
    assert_eq!(reason("percpu-reads")["access"], "read");
    assert_eq!(reason("percpu-writes")["access"], "write");
    assert_eq!(reason("bit")["bit"], 1);
    let named = &why.task(pids["named"])["wait"]["object"]["name"];
    assert_eq!(named, "kscope_named_mutex [kscope_locks]");
    let name = &why.task(pids["b"])["wait"]["object"]["name"];
    assert_eq!(name, "mutexes [kscope_locks]");
}
