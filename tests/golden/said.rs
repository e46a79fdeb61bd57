//! What a stored guest's own /proc had, against what kscope finds in its core.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Files of the guest's /proc by their paths; see tests/golden/guest.c.
pub struct Said(BTreeMap<String, String>);

impl Said {
    pub fn read(file: &Path) -> Said {
        let all = fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let all = String::from_utf8_lossy(&all).into_owned();
        let mut files = BTreeMap::new();
        // None of what is recorded has a line like this.
        for part in all.split("@@ ").skip(1) {
            let (path, content) = part.split_once('\n').expect("a path");
            files.insert(path.to_owned(), content.to_owned());
        }
        Said(files)
    }

    fn file(&self, path: &str) -> &str {
        self.0.get(path).unwrap_or_else(|| panic!("no {path}"))
    }

    /// Threads by pid and tid: name, state and parent.
    fn threads(&self) -> BTreeMap<(i64, i64), (String, String, i64)> {
        let thread = |(path, stat): (&String, &String)| {
            let path = path.strip_prefix("/proc/")?.strip_suffix("/stat")?;
            let (pid, tid) = path.split_once("/task/")?;
            let (before, after) = stat.rsplit_once(')')?;
            let mut fields = after.split_whitespace();
            let name = before.split_once('(')?.1.to_owned();
            let state = fields.next()?.to_owned();
            let parent = fields.next()?.parse().ok()?;
            Some((
                (pid.parse().ok()?, tid.parse().ok()?),
                (name, state, parent),
            ))
        };
        self.0.iter().filter_map(thread).collect()
    }

    /// The pid of the first process of this name.
    pub fn pid(&self, name: &str) -> i64 {
        let threads = self.threads();
        let found = threads.iter().find(|(_, (other, ..))| other == name);
        found.unwrap_or_else(|| panic!("no task {name}")).0.1
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key}: {value}"))
}

fn number(value: &Value, key: &str) -> i64 {
    value[key]
        .as_i64()
        .unwrap_or_else(|| panic!("{key}: {value}"))
}

fn array(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no array: {value}"))
}

/// Compares the views that `view` gives with what the guest said.
pub fn compare(file: &Path, view: impl Fn(&[&str]) -> Value) {
    let said = Said::read(file);
    tasks(&said, &view(&["ps", "--threads"]));
    mounts(&said, &view(&["mounts"]));
    let server = said.pid("server").to_string();
    maps(
        said.file(&format!("/proc/{server}/maps")),
        &view(&["maps", &server]),
    );
    files(&said, &server, &view(&["files", &server]));
    modules(&said, &view(&["lsmod"]));
    log(said.file("/dev/kmsg"), &view(&["dmesg"]));
    slabs(said.file("/proc/slabinfo"), &view(&["slab"]));
    sockets(&said, array(&view(&["net"])["sockets"]));
    waits(&said, &view(&["why", "--all"]));
}

/// What runs when it is looked at, and what comes and goes by itself.
fn is_fleeting(name: &str) -> bool {
    name.starts_with("kworker/") || ["init", "guest", "busy", "batch"].contains(&name)
}

fn tasks(said: &Said, view: &Value) {
    let threads = said.threads();
    let mut seen = BTreeSet::new();
    for task in array(view) {
        let ids = (number(task, "pid"), number(task, "tid"));
        let comm = text(task, "comm");
        let Some((name, state, parent)) = threads.get(&ids) else {
            assert!(is_fleeting(comm), "the guest did not know {task}");
            continue;
        };
        seen.insert(ids);
        // A worker's name in /proc also has what it does at the moment.
        if !is_fleeting(comm) {
            assert_eq!(comm, name);
            assert_eq!(text(task, "state"), state, "{task}");
        }
        assert_eq!(number(task, "ppid"), *parent, "{task}");
        let cmdline = said.0.get(&format!("/proc/{}/cmdline", ids.0));
        let cmdline = cmdline
            .map_or("", String::as_str)
            .trim_end_matches(['\n', '\0']);
        let words: Vec<_> = array(&task["cmdline"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(words.join("\0"), cmdline, "{task}");
    }
    for (ids, (name, ..)) in &threads {
        assert!(
            seen.contains(ids) || is_fleeting(name),
            "{name} {ids:?} is missing"
        );
    }
    assert!(seen.len() > 50, "{} tasks", seen.len());
}

fn mounts(said: &Said, view: &Value) {
    let lines = said.file("/proc/self/mounts").lines();
    let infos = said.file("/proc/self/mountinfo").lines();
    assert_eq!(lines.clone().count(), array(view).len());
    for ((mount, line), info) in array(view).iter().zip(lines).zip(infos) {
        let options: Vec<_> = array(&mount["options"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let own = ["source", "target", "fstype"]
            .map(|key| text(mount, key))
            .join(" ");
        let own = format!("{own} {}", options.join(","));
        assert!(line.starts_with(&own), "{own}: {line}");
        assert!(
            mount["complete"] == false || *line == format!("{own} 0 0"),
            "{line}"
        );
        let own = format!(
            "{} {} {} ",
            mount["id"],
            mount["parent"],
            text(mount, "device")
        );
        assert!(info.starts_with(&own), "{own}: {info}");
    }
}

fn maps(said: &str, view: &Value) {
    let mappings = array(&view["mappings"]);
    assert_eq!(said.lines().count(), mappings.len());
    for (mapping, line) in mappings.iter().zip(said.lines()) {
        let address = |key: &str| text(mapping, key).trim_start_matches("0x").to_owned();
        let deleted = if mapping["deleted"] == true {
            " (deleted)"
        } else {
            ""
        };
        let words = line.splitn(6, ' ').collect::<Vec<_>>();
        let range = words[0]
            .split('-')
            .map(|addr| addr.trim_start_matches('0').to_owned());
        assert_eq!(
            range.collect::<Vec<_>>(),
            [address("start"), address("end")]
        );
        assert_eq!(words[1], text(mapping, "perms"), "{line}");
        assert_eq!(
            i64::from_str_radix(words[2], 16),
            Ok(number(mapping, "offset")),
            "{line}"
        );
        let device = words[3]
            .split(':')
            .map(|part| u32::from_str_radix(part, 16).expect("hex"));
        let device = device
            .map(|part| part.to_string())
            .collect::<Vec<_>>()
            .join(":");
        assert_eq!(device, text(mapping, "device"), "{line}");
        assert_eq!(words[4], number(mapping, "inode").to_string(), "{line}");
        assert_eq!(
            words[5].trim_start(),
            text(mapping, "name").to_owned() + deleted
        );
    }
}

fn files(said: &Said, pid: &str, view: &Value) {
    let prefix = format!("/proc/{pid}/fd/");
    let links = said
        .0
        .range(prefix.clone()..)
        .take_while(|(path, _)| path.starts_with(&prefix));
    let links: BTreeMap<i64, String> = links
        .map(|(path, link)| {
            (
                path[prefix.len()..].parse().expect("a number"),
                link.trim_end().to_owned(),
            )
        })
        .collect();
    let name = |file: &Value| {
        let deleted = if file["deleted"] == true {
            " (deleted)"
        } else {
            ""
        };
        (
            number(file, "fd"),
            format!("{}{deleted}", text(file, "name")),
        )
    };
    let seen: BTreeMap<_, _> = array(&view["files"]).iter().map(name).collect();
    assert_eq!(seen, links);
}

fn modules(said: &Said, view: &Value) {
    let line = |module: &Value| {
        let name = text(module, "name");
        format!("{name} {} {}", module["size"], module["references"])
    };
    let seen: Vec<_> = array(view).iter().map(line).collect();
    let lines = said.file("/proc/modules").lines();
    let expected: Vec<_> = lines
        .map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(seen, expected);
    assert!(!seen.is_empty());
}

/// Lines such as `6,12,340000,-;text`; what begins with a blank belongs to the one before.
fn log(said: &str, view: &Value) {
    let lines: Vec<_> = said.lines().filter(|line| !line.starts_with(' ')).collect();
    let records = array(view);
    assert!(
        records.len() >= lines.len() && lines.len() > 20,
        "{} records",
        records.len()
    );
    for (record, line) in records.iter().zip(lines) {
        let (head, text_said) = line.split_once(';').expect("a text");
        let fields: Vec<_> = head.split(',').collect();
        assert_eq!(record["seq"].to_string(), fields[1]);
        assert_eq!((number(record, "time_ns") / 1000).to_string(), fields[2]);
        if !text_said.contains("\\x") {
            assert_eq!(text(record, "text"), text_said);
        }
    }
}

/// What no longer changes: the names of the caches, and how they are laid out.
fn slabs(said: &str, view: &Value) {
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        [words[0], words[3], words[4], words[5]].join(" ")
    };
    let expected: BTreeSet<_> = said.lines().skip(2).map(line).collect();
    let cache = |cache: &Value| {
        let of = |key: &str| cache[key].to_string();
        let numbers = [of("size"), of("objects_per_slab"), of("pages_per_slab")];
        format!("{} {}", text(cache, "name"), numbers.join(" "))
    };
    let seen: BTreeSet<_> = array(view).iter().map(cache).collect();
    assert_eq!(seen, expected);
}

/// Inodes and local ports of TCP and UDP, inodes and names of UNIX.
fn sockets(said: &Said, view: &[Value]) {
    let of = |protocol: &'static str| {
        let is = move |socket: &&Value| socket["protocol"] == protocol;
        view.iter().filter(is)
    };
    let inode = |socket: &Value| socket["inode"].as_i64().unwrap_or(0);
    for protocol in ["tcp", "udp"] {
        let lines = said.file(&format!("/proc/net/{protocol}")).lines().skip(1);
        let line = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let (_, port) = words[1].split_once(':').expect("a port");
            let port = i64::from_str_radix(port, 16).expect("a port");
            (words[9].parse().expect("an inode"), port)
        };
        let expected: BTreeSet<(i64, i64)> = lines.map(line).collect();
        let port = |socket: &Value| number(&socket["address"]["inet"]["local"], "port");
        let seen = of(protocol).map(|socket| (inode(socket), port(socket)));
        assert_eq!(seen.collect::<BTreeSet<_>>(), expected, "{protocol}");
        assert!(expected.len() > 1);
    }
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(6);
        let inode = words.next().and_then(|word| word.parse::<i64>().ok());
        (
            inode.expect("an inode"),
            words.collect::<Vec<_>>().join(" "),
        )
    };
    let lines = said.file("/proc/net/unix").lines().skip(1);
    let expected: BTreeSet<_> = lines.map(line).collect();
    let name = |socket: &Value| {
        let unix = &socket["address"]["unix"];
        let name = unix["name"].as_str().unwrap_or_default();
        match unix["abstract"] == true {
            true => format!("@{name}"),
            false => name.to_owned(),
        }
    };
    let seen: BTreeSet<_> = of("unix")
        .map(|socket| (inode(socket), name(socket)))
        .collect();
    assert_eq!(seen, expected);
}

/// The guest's deadlocks are by its programs' design.
fn waits(said: &Said, view: &Value) {
    let pids = |circle: &Value| {
        let links = array(&circle["links"]).iter();
        links
            .map(|link| number(&link["task"], "pid"))
            .collect::<BTreeSet<_>>()
    };
    let circles: Vec<_> = array(&view["deadlocks"]).iter().map(pids).collect();
    for names in [["lock-a", "lock-b"], ["two-mutexes", "b-then-a"]] {
        let circle = names.map(|name| said.pid(name)).into();
        assert!(circles.contains(&circle), "{names:?}: {circles:?}");
    }
}
