//! `kscope ps` against /proc inside the guest.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::{Finished, Place, TestKernel, collect, finish, kernels, until};
use kscope_kernel::{Image, KernelAddr};
use serde_json::{Value, json};

/// Starts the program. After each line of input, prints what /proc has of every thread: a line
/// that begins with `@`, then a line for every fact. A third line of input ends it.
const DUMP: &str = r#"
PROGRAM one '' 'three words' &
dump() {
    for dir in /proc/[0-9]*/task/[0-9]*; do
        [ -d "$dir" ] || continue
        echo "@ $dir"
        read -r line <"$dir/stat" && echo "stat $line"
        while read -r name rest; do
            case "$name" in Name:|Uid:|Threads:|State:|PPid:|Kthread:) echo "$name $rest" ;; esac
        done <"$dir/status"
        while read -r address function; do echo "stack $function"; done <"$dir/stack"
        read -r line <"$dir/schedstat"; echo "schedstat $line"
        read -r line <"${dir%/task/*}/stat" && echo "group $line"
        echo "cmdline $(od -An -v -tx1 <"$dir/cmdline" | tr -d ' \n')"
    done
    echo "@"
}
read -r line
dump
read -r line
dump
read -r line
"#;

/// What /proc has of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    name: String,
    state: String,
    ppid: i64,
    uids: (u64, u64),
    threads: u64,
    /// The functions it is in, the innermost first.
    stack: Vec<String>,
    runtime: u64,
    delay: u64,
    cpu: u64,
    /// utime and stime of the process, clock ticks.
    ticks: u64,
    cmdline: Vec<String>,
    kernel_thread: bool,
}

/// All of it, by pid and tid.
type Threads = BTreeMap<(i64, i64), Known>;

fn field<T: std::str::FromStr>(fields: &[&str], at: usize) -> T {
    let field = fields.get(at).and_then(|field| field.parse().ok());
    field.unwrap_or_else(|| panic!("field {at} of {fields:?}"))
}

/// The fields of a `stat` file behind the name, which may have anything in it.
fn after_name(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

/// Reads one dump up to its end.
fn dump(lines: &mut impl Iterator<Item = String>) -> Threads {
    let mut dumps: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for line in lines {
        match line.split_once(' ') {
            Some(("@", dir)) => dumps.push((dir.to_owned(), BTreeMap::new())),
            Some((key, value)) => {
                let (_, facts) = dumps.last_mut().expect("a directory first");
                let fact = facts.entry(key.trim_end_matches(':').to_owned());
                let fact: &mut String = fact.or_default();
                // The frames of a stack are a line each.
                fact.push_str(value.trim());
                fact.push('\n');
            }
            None => break,
        }
    }
    dumps
        .iter()
        .filter_map(|(dir, facts)| known(dir, facts))
        .collect()
}

/// `None` for a thread that ended while it was looked at.
fn known(dir: &str, facts: &BTreeMap<String, String>) -> Option<((i64, i64), Known)> {
    let parts: Vec<_> = dir.split('/').collect();
    let fact = |name: &str| facts.get(name).map(|fact| fact.trim_end());
    let numbers = |name: &str| fact(name).map(|text| text.split_whitespace().collect::<Vec<_>>());
    let stat = after_name(fact("stat")?)?;
    let group = after_name(fact("group")?)?;
    let uids = numbers("Uid")?;
    let schedstat = numbers("schedstat")?;
    let cmdline = fact("cmdline")?;
    let bytes: Vec<u8> = (0..cmdline.len() / 2)
        .map(|at| u8::from_str_radix(&cmdline[at * 2..at * 2 + 2], 16).expect("od's digits"))
        .collect();
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    let text = String::from_utf8_lossy(bytes).into_owned();
    let cmdline = match text.is_empty() {
        true => Vec::new(),
        false => text.split('\0').map(str::to_owned).collect(),
    };
    let known = Known {
        name: fact("Name")?.to_owned(),
        state: stat[0].to_owned(),
        ppid: field(&stat, 1),
        uids: (field(&uids, 0), field(&uids, 1)),
        threads: fact("Threads")?.parse().ok()?,
        stack: fact("stack")
            .into_iter()
            .flat_map(str::lines)
            .filter_map(|frame| Some(frame.split_once('+')?.0.to_owned()))
            .collect(),
        runtime: field(&schedstat, 0),
        delay: field(&schedstat, 1),
        cpu: field(&stat, 36),
        ticks: field::<u64>(&group, 11) + field::<u64>(&group, 12),
        cmdline,
        // PF_KTHREAD.
        kernel_thread: field::<u64>(&stat, 6) & 0x20_0000 != 0,
    };
    Some(((field(&parts, 2), field(&parts, 4)), known))
}

/// A guest with a family in it.
struct Guest {
    place: Place,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// Where the program is.
    _dir: tempfile::TempDir,
}

impl Guest {
    fn boot(kernel: &TestKernel) -> Guest {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("family");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/family.c");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-O1", "-pthread", "-o"]);
        let status = cc.arg(&program).arg(source).status();
        assert!(status.expect("a compiler").success());
        let place = Place::new();
        let program = program.to_str().expect("a plain path");
        let script = DUMP.replace("PROGRAM", program);
        let mut run = place.shell_on(kernel, &["--name", "family"], &script);
        run.stdin(Stdio::piped());
        let mut child = run.spawn().expect("kscope starts");
        place.await_guest("family");
        let guest = Guest {
            place,
            stdin: child.stdin.take().expect("a pipe"),
            lines: BufReader::new(child.stdout.take().expect("a pipe")).lines(),
            child,
            _dir: dir,
        };
        until("the family sleeps", || {
            let names = ["family", "blocked", "reading", "titled", "a \"b\" (c)"];
            let is_one = |task: &&Value| names.iter().any(|name| task["comm"] == *name);
            let listed = guest.ps(&["--threads", "--format", "json"]);
            let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
            let family = listed["ps"].as_array().into_iter().flatten().filter(is_one);
            let states: Vec<_> = family.map(|task| task["state"].clone()).collect();
            states.len() == 10 && states.iter().all(|state| *state != "R")
        });
        guest
    }

    /// What /proc has now.
    fn dump(&mut self) -> Threads {
        self.go_on();
        dump(&mut self.lines.by_ref().map_while(Result::ok))
    }

    /// Lets the shell go on.
    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").expect("it reads");
    }

    fn ps(&self, options: &[&str]) -> Finished {
        finish(self.place.kscope().arg("ps").args(options))
    }

    fn json(&self, options: &[&str]) -> Vec<Value> {
        let out = self
            .ps(&[options, &["--format", "json"]].concat())
            .expect(0);
        let value: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(value["version"], 1);
        assert_eq!(value["guest"], "family");
        assert_eq!(value["torn"], false);
        assert_eq!(value["warnings"], json!([]));
        value["ps"].as_array().expect("an array").clone()
    }

    fn end(mut self) {
        self.go_on();
        collect(self.child).expect(0);
        self.place.assert_clean();
    }
}

/// What in a kernel is the scheduler's own.
struct Scheduler(Image);

impl Scheduler {
    fn addresses(&self, function: &str) -> Vec<KernelAddr> {
        let symbols = self.0.symbols_named(function);
        symbols.map(|symbol| symbol.addr).collect()
    }

    /// Who called the scheduler, and the functions that only do that for others.
    fn caller<'a>(&self, stack: &'a [String]) -> Option<&'a str> {
        let at = |name| self.0.symbol(name).expect("a section of the scheduler's");
        let section = at("__sched_text_start")..at("__sched_text_end");
        let is_own = |function: &String| {
            let addresses = self.addresses(function);
            addresses.iter().any(|addr| section.contains(addr))
        };
        let inner = stack.iter().position(is_own)?;
        let outer = stack.iter().skip(inner).find(|function| !is_own(function));
        outer.map(String::as_str)
    }
}

/// The ids of a task in a listing.
fn ids(task: &Value) -> (i64, i64) {
    let id = |name: &str| task[name].as_i64().expect("a number");
    (id("pid"), id("tid"))
}

fn number(task: &Value, name: &str) -> u64 {
    task[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name} in {task}"))
}

#[test]
#[ignore = "needs a kernel"]
fn processes_are_those_of_proc() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        listing_is_that_of_proc(kernel);
    }
}

fn listing_is_that_of_proc(kernel: &TestKernel) {
    let mut guest = Guest::boot(kernel);
    let before = guest.dump();
    let threads = guest.json(&["--threads"]);
    let processes = guest.json(&[]);
    let tables = [
        &["--threads"][..],
        &[],
        &["--tree"],
        &["--tree", "--threads"],
    ];
    let tables = tables.map(|options| guest.ps(options).expect(0).text());
    let after = guest.dump();

    let listed: Vec<_> = threads.iter().map(ids).collect();
    assert!(listed.is_sorted(), "{listed:?}");
    // Workers of the kernel come and go; the shell's children are gone by now.
    let stayed = before.keys().filter(|&id| after.contains_key(id));
    assert!(stayed.clone().all(|id| listed.contains(id)), "{listed:?}");
    for task in &threads {
        let known = before.contains_key(&ids(task)) || after.contains_key(&ids(task));
        assert!(known || task["kernel_thread"] == true, "{task}");
    }

    let scheduler = Scheduler(Image::open(&kernel.path).expect("the kernel"));
    let mut wchans = 0;
    let mut differences = Vec::new();
    for task in &threads {
        let (Some(before), Some(after)) = (before.get(&ids(task)), after.get(&ids(task))) else {
            continue;
        };
        let mut compare = |what: &str, ours: &Value, theirs: Value| {
            if *ours != theirs {
                differences.push(format!("{what}: {ours}, /proc has {theirs}: {task}"));
            }
        };
        // A worker's name ends with what it did last, also for the shell's output.
        let worker =
            |name: &str| name.split(['-', '+']).next() == before.name.split(['-', '+']).next();
        let is_worker = before.name.starts_with("kworker/") && !before.name.contains("/R-");
        if !is_worker || !worker(task["comm"].as_str().unwrap_or_default()) {
            compare("comm", &task["comm"], json!(before.name));
        }
        compare("ppid", &task["ppid"], json!(before.ppid));
        compare("uid", &task["uid"], json!(before.uids.1));
        compare("ruid", &task["ruid"], json!(before.uids.0));
        // The kernel's own threads may have moved away and back between two looks.
        let moves = before.kernel_thread && kernel.cpus() > 1;
        if task["cpu"] != after.cpu && !moves {
            compare("cpu", &task["cpu"], json!(before.cpu));
        }
        compare("threads", &task["threads"], json!(before.threads));
        compare("cmdline", &task["cmdline"], json!(before.cmdline));
        let kernel_thread = json!(before.kernel_thread);
        compare("kernel_thread", &task["kernel_thread"], kernel_thread);
        // The shell that looks runs while it looks.
        let awake = before.state == "R" || task["state"] == "R";
        if !awake && before.state == after.state {
            compare("state", &task["state"], json!(before.state));
        }
        between(task, "runtime_ns", before.runtime..=after.runtime);
        between(task, "run_delay_ns", before.delay..=after.delay);
        // That of a process that has ended is gone, whatever /proc still finds there.
        let has_stack = before.state != "R" && before.state != "Z";
        let asleep = has_stack && before.stack == after.stack;
        if let Some(caller) = scheduler.caller(&before.stack).filter(|_| asleep) {
            wchans += 1;
            let ours = task["wchan"].as_str().unwrap_or_default();
            // Of functions at one address, either name will do.
            if scheduler.addresses(ours) != scheduler.addresses(caller) {
                compare("wchan", &task["wchan"], json!(caller));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(wchans >= 20, "{wchans}");

    // Processes are what their threads are together.
    let leaders: Vec<_> = threads
        .iter()
        .filter(|task| task["pid"] == task["tid"])
        .collect();
    assert_eq!(processes.len(), leaders.len());
    for (process, leader) in processes.iter().zip(leaders) {
        assert_eq!(ids(process), ids(leader));
        for same in ["comm", "cmdline", "ppid", "uid", "threads", "task"] {
            assert_eq!(process[same], leader[same], "{same}: {process}");
        }
        let (Some(before), Some(after)) = (before.get(&ids(process)), after.get(&ids(process)))
        else {
            continue;
        };
        // Ticks of 10 ms; each of the two numbers is rounded down.
        const TICK: u64 = 10_000_000;
        between(
            process,
            "runtime_ns",
            before.ticks * TICK..=(after.ticks + 2) * TICK,
        );
    }
    let family = |task: &&Value| task["comm"] == "family" && task["threads"] == 3;
    let family = processes.iter().find(family).expect("the family");
    assert!(number(family, "runtime_ns") >= 30_000_000, "{family}");

    for (threads_too, text) in [(true, &tables[0]), (false, &tables[1])] {
        let rows = rows(text);
        let list = if threads_too { &threads } else { &processes };
        assert_eq!(rows.len(), list.len(), "{text}");
        assert!(rows.iter().all(|row| row.depth == 0), "{text}");
    }
    for (threads_too, text) in [(true, &tables[3]), (false, &tables[2])] {
        let depths = |row: &Row| {
            let id = (row.pid, row.tid.unwrap_or(row.pid));
            let depth = depth(&before, id)?;
            Some((row.depth, depth))
        };
        let depths: Vec<_> = rows(text).iter().filter_map(depths).collect();
        assert!(depths.iter().all(|(ours, theirs)| ours == theirs), "{text}");
        assert!(depths.len() >= before.len() / 2 && (!threads_too || depths.len() > 20));
    }
    guest.end();
}

/// What one line of a table is about.
struct Row {
    pid: i64,
    tid: Option<i64>,
    /// How far to the right the command is.
    depth: usize,
}

fn rows(text: &str) -> Vec<Row> {
    let mut lines = text.lines();
    let header = lines.next().expect("a header");
    let command = header.find("COMMAND").expect("the last column");
    let has_tid = header.split_whitespace().nth(1) == Some("TID");
    let row = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let drawn = line.chars().skip(command);
        Row {
            pid: field(&fields, 0),
            tid: has_tid.then(|| field(&fields, 1)),
            depth: drawn.take_while(|&c| " │├└─".contains(c)).count() / 3,
        }
    };
    lines.map(row).collect()
}

/// How many ancestors a thread has, where its process is the first.
fn depth(known: &Threads, (pid, tid): (i64, i64)) -> Option<usize> {
    let mut depth = usize::from(pid != tid);
    let mut pid = pid;
    loop {
        let parent = known.get(&(pid, pid))?.ppid;
        if parent == 0 {
            return Some(depth);
        }
        depth += 1;
        pid = parent;
    }
}

#[track_caller]
fn between(task: &Value, name: &str, range: std::ops::RangeInclusive<u64>) {
    let ours = number(task, name);
    assert!(range.contains(&ours), "{name} is not in {range:?}: {task}");
}

#[test]
#[ignore = "needs a kernel"]
fn some_processes_are_listed_and_others_are_not_there() {
    let place = Place::new();
    let mut guest = place
        .shell(&["--name", "some"], "cat")
        .stdin(Stdio::piped())
        .spawn()
        .expect("kscope starts");
    place.await_guest("some");
    let ps = |words: &[&str]| finish(place.kscope().arg("ps").args(words));
    for words in [&["2", "1"][..], &["some", "1", "2"], &["1", "some", "2"]] {
        let text = ps(words).expect(0).text();
        let pids: Vec<_> = rows(&text).iter().map(|row| row.pid).collect();
        assert_eq!(pids, [1, 2], "{text}");
        assert!(text.contains("  [kthreadd]"), "{text}");
    }
    ps(&["1", "32767"])
        .expect(96)
        .says(&["no task", "pid 32767", "kscope ps"]);
    ps(&["other"]).expect(96).says(&["no guest called other"]);
    ps(&["some", "other"])
        .expect(96)
        .says(&["one guest at a time"]);
    ps(&["--no-such-option"]).expect(2);
    drop(guest.stdin.take());
    collect(guest).expect(0);
    place.assert_clean();
}
