//! `kscope net` against the tables in /proc/net, /proc/PID/fd, and what system calls say.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::common::kernels;
use crate::common::session::Session;
use crate::{number, text};

mod net_lines;

use net_lines::{lines, of_view};

/// The lists of /proc/net.
const TABLES: &str = "cd /proc/net; grep -H ^ tcp tcp6 udp udp6 udplite udplite6 raw raw6 icmp \
                      icmp6 unix netlink packet 2>/dev/null";

/// Boots every kernel, so that the addresses in /proc are those of the kernel, and starts a process
/// with many sockets (`sockets.py`); returns the guest, and what the process says of its sockets.
fn guests() -> impl Iterator<Item = (Session, Vec<Value>)> {
    kernels().iter().map(|kernel| {
        // Shown when the test fails.
        eprintln!("on {}", kernel.name);
        let mut guest = Session::start(kernel, &["-a", "no_hash_pointers"]);
        let said = guest.ask(&format!(
            "mkdir -p /tmp/w; cd /tmp/w; ulimit -n 1024; \
             python3 {SCRIPT} >said 2>&1 & \
             until grep -qs '^ready\\|Error' said; do sleep 0.1; done; cat said"
        ));
        let (facts, ready) = said.trim().rsplit_once('\n').expect("sockets");
        assert!(ready.starts_with("ready "), "{said}");
        let facts = facts
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        (guest, facts.collect())
    })
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/views_proc/sockets.py");

/// Whether a socket is in a list of the kernel's: those are not that have no port.
fn is_listed(socket: &Value) -> bool {
    match text(socket, "protocol") {
        "tcp" => text(socket, "state") != "unconnected",
        "udp" | "udplite" | "ping" => number(&socket["address"]["inet"]["local"], "port") != 0,
        "netlink" => {
            let netlink = &socket["address"]["netlink"];
            number(netlink, "port") != 0 || socket["processes"] == Value::Array(Vec::new())
        }
        _ => true,
    }
}

fn sockets(view: &Value) -> &[Value] {
    view["sockets"].as_array().expect("sockets")
}

#[test]
#[ignore = "needs kernels"]
fn sockets_are_those_of_proc() {
    for (mut guest, _) in guests() {
        // They stay for a minute.
        let mut left = BTreeSet::new();
        for _ in 0..10 {
            let said = guest.ask(&format!("cd /tmp/w; python3 {SCRIPT} fleeting"));
            assert_eq!(said, "");
            let view = guest.view(&["net"]);
            let nobodys = sockets(&view).iter().filter(|s| s["inode"].is_null());
            left.extend(nobodys.map(|socket| text(socket, "state").to_owned()));
            if ["time_wait", "syn_recv", "fin_wait2"]
                .iter()
                .all(|state| left.contains(*state))
            {
                break;
            }
        }
        assert!(left.len() >= 3, "{left:?}");
        guest.compare(TABLES, &["net"], |before, view, after| {
            let (before, after) = (lines(before), lines(after));
            let seen: BTreeMap<_, _> = sockets(view).iter().map(|s| (of_view(s), s)).collect();
            assert_eq!(seen.len(), sockets(view).len());
            // What was there all the time.
            if let Some(missing) = before
                .intersection(&after)
                .find(|line| !seen.contains_key(*line))
            {
                return Err(format!("`{missing}` is missing in {:#?}", seen.keys()));
            }
            // And nothing that was never there.
            let invented = seen.iter().find(|(line, socket)| {
                is_listed(socket) && !before.contains(*line) && !after.contains(*line)
            });
            match invented {
                Some((line, _)) => Err(format!("`{line}` is not in the guest")),
                None => Ok(()),
            }
        });
    }
}

/// The socket with an inode number.
#[track_caller]
fn find<'a>(view: &'a Value, inode: &Value) -> &'a Value {
    let found = sockets(view)
        .iter()
        .find(|socket| socket["inode"] == *inode);
    found.unwrap_or_else(|| panic!("no socket {inode} in {view:#}"))
}

/// What the system calls say of a socket, and what the view does.
#[track_caller]
fn assert_as_said(fact: &Value, view: &Value) {
    let socket = find(view, &fact["inode"]);
    let what = format!("{fact}: {socket:#}");
    let family = text(fact, "family").strip_prefix("AF_").expect("a family");
    assert_eq!(text(socket, "family"), family.to_lowercase(), "{what}");
    let kind = text(fact, "type").strip_prefix("SOCK_").expect("a type");
    assert_eq!(text(socket, "type"), kind.to_lowercase(), "{what}");
    assert_eq!(socket["uid"], fact["uid"], "{what}");
    let state = text(socket, "state");
    assert_eq!(state == "listen", fact["listens"] == true, "{what}");
    let address = &socket["address"];
    match family {
        "INET" | "INET6" => {
            let protocol = match (kind, number(fact, "protocol")) {
                ("STREAM", _) => "tcp",
                ("RAW", _) => "raw",
                (_, 1 | 58) => "ping",
                (_, 136) => "udplite",
                _ => "udp",
            };
            assert_eq!(text(socket, "protocol"), protocol, "{what}");
            let inet = &address["inet"];
            assert_eq!(inet["local"]["address"], fact["local"]["address"], "{what}");
            match protocol {
                // It has the protocol of the IP header there.
                "raw" => assert_eq!(inet["local"]["port"], fact["protocol"], "{what}"),
                _ => {
                    assert_eq!(inet["local"]["port"], fact["local"]["port"], "{what}");
                    if fact["moves"] == false {
                        assert_eq!(inet["remote"], fact["remote"], "{what}");
                    }
                }
            }
            let on_lo = fact["local"]["address"] == "ff02::1";
            assert_eq!(inet["interface"] == "lo", on_lo, "{what}");
        }
        "UNIX" => {
            let (unix, local) = (&address["unix"], &fact["local"]);
            let name = unix["name"].as_str().unwrap_or_default();
            assert_eq!(name, text(local, "name"), "{what}");
            assert_eq!(unix["abstract"], local["abstract"], "{what}");
            let peer = fact["remote"].is_object();
            assert!(!peer || !unix["peer"].is_null(), "{what}");
        }
        "NETLINK" => {
            let (netlink, local) = (&address["netlink"], &fact["local"]);
            assert_eq!(netlink["port"], local["port"], "{what}");
            let groups = netlink["groups"].as_array().expect("groups").iter();
            let bits = groups.map(|group| 1 << (group.as_u64().expect("a group") - 1));
            assert_eq!(bits.sum::<u64>(), number(local, "groups"), "{what}");
        }
        "PACKET" => {
            let (packet, local) = (&address["packet"], &fact["local"]);
            assert_eq!(packet["ethertype"], local["ethertype"], "{what}");
            let interface = packet["interface"].as_str().unwrap_or_default();
            assert_eq!(interface, text(local, "interface"), "{what}");
        }
        other => panic!("the process opens no {other}"),
    }
    if fact["moves"] == true {
        return;
    }
    // Of the others, the buffers are counted: /proc has them.
    let recv = number(socket, "recv_queue") - u64::from(state == "close_wait");
    match (family, kind) {
        // The end of a connection is counted like a byte.
        ("INET" | "INET6", "STREAM") | ("UNIX", _) if !fact["unread"].is_null() => {
            assert_eq!(recv, number(fact, "unread"), "{what}");
        }
        _ => {}
    }
    if state != "listen" && !fact["unsent"].is_null() {
        assert_eq!(socket["send_queue"], fact["unsent"], "{what}");
    }
}

#[test]
#[ignore = "needs kernels"]
fn sockets_are_what_the_system_calls_say() {
    for (guest, facts) in guests() {
        let view = guest.view(&["net"]);
        let mut seen = BTreeMap::new();
        for fact in &facts {
            assert_as_said(fact, &view);
            let socket = find(&view, &fact["inode"]);
            let key = [text(socket, "protocol"), text(socket, "state")].join(" ");
            *seen.entry(key).or_insert(0) += 1;
        }
        for key in [
            "tcp listen",
            "tcp established",
            "tcp fin_wait2",
            "tcp close_wait",
            "tcp unconnected",
            "udp established",
            "udp unconnected",
            "raw unconnected",
            "ping unconnected",
            "unix listen",
            "unix established",
            "unix unconnected",
            "netlink unconnected",
            "packet unconnected",
        ] {
            assert!(seen.contains_key(key), "no {key} in {seen:?}");
        }
        let listening = sockets(&view)
            .iter()
            .filter(|s| text(s, "state") == "listen");
        let mut backlogs: Vec<_> = listening.map(|s| number(s, "send_queue")).collect();
        backlogs.sort_unstable();
        // As the process has asked for.
        assert!(
            backlogs.contains(&7) && backlogs.contains(&9),
            "{backlogs:?}"
        );
        let of_listening = |protocol: &str, many: u64| {
            let mut all = sockets(&view).iter();
            all.any(|socket| {
                text(socket, "protocol") == protocol
                    && text(socket, "state") == "listen"
                    && number(socket, "recv_queue") == many
            })
        };
        assert!(
            of_listening("tcp", 1) && of_listening("unix", 1),
            "{view:#}"
        );
        // Each UNIX socket's other end says the same of it.
        let mut pairs = 0;
        for socket in sockets(&view) {
            let unix = &socket["address"]["unix"];
            if unix["peer"].is_null() || text(socket, "type") == "dgram" {
                continue;
            }
            let mut others = sockets(&view).iter();
            let Some(other) = others.find(|other| other["addr"] == unix["peer"]) else {
                // Closed.
                continue;
            };
            assert_eq!(other["inode"], unix["peer_inode"]);
            assert_eq!(
                other["address"]["unix"]["peer"], socket["addr"],
                "{socket:#}"
            );
            pairs += 1;
        }
        assert!(pairs >= 6, "{pairs}");
    }
}

#[test]
#[ignore = "needs kernels"]
fn sockets_belong_to_those_who_have_them_open() {
    for (mut guest, _) in guests() {
        let command = "find /proc/[0-9]*/fd -lname 'socket:*' -printf '%p %l\\n' 2>/dev/null";
        guest.compare(command, &["net"], |before, view, after| {
            // `/proc/20/fd/3 socket:[77]`
            let of_proc =
                |said: &str| -> BTreeSet<String> { said.lines().map(str::to_owned).collect() };
            let mut seen = BTreeSet::new();
            for socket in sockets(view) {
                for process in socket["processes"].as_array().expect("processes") {
                    for fd in process["fds"].as_array().expect("numbers") {
                        let (pid, inode) = (number(process, "pid"), &socket["inode"]);
                        seen.insert(format!("/proc/{pid}/fd/{fd} socket:[{inode}]"));
                    }
                }
            }
            let (before, after) = (of_proc(before), of_proc(after));
            assert!(before.len() > 50, "{before:?}");
            match seen == before || seen == after {
                true => Ok(()),
                false => Err(format!("{:?}", before.symmetric_difference(&seen))),
            }
        });
        // Only those of one process, of one protocol, and those that listen.
        let all = guest.view(&["net"]);
        let pid = guest.ask("tail -1 /tmp/w/said | cut -d' ' -f3");
        let pid = pid.trim();
        let is_of = |socket: &Value| {
            let mut processes = socket["processes"].as_array().expect("processes").iter();
            processes.any(|process| pid == number(process, "pid").to_string())
        };
        for (options, wanted) in [
            (&[pid][..], &is_of as &dyn Fn(&Value) -> bool),
            (&["--tcp"], &|socket| text(socket, "protocol") == "tcp"),
            (&["-ux"], &|socket| {
                ["udp", "unix"].contains(&text(socket, "protocol"))
            }),
            (&["-tl"], &|socket| {
                text(socket, "protocol") == "tcp" && text(socket, "state") == "listen"
            }),
            (&["-ul"], &|socket| {
                let inet = &socket["address"]["inet"];
                text(socket, "protocol") == "udp"
                    && inet["remote"].is_null()
                    && inet["local"]["port"] != 0
            }),
        ] {
            let some = guest.view(&[&["net"], options].concat());
            let expected = sockets(&all).iter().filter(|socket| wanted(socket));
            let expected: Vec<_> = expected.map(|socket| &socket["addr"]).collect();
            assert!(!expected.is_empty() && expected.len() < sockets(&all).len());
            let seen: Vec<_> = sockets(&some)
                .iter()
                .map(|socket| &socket["addr"])
                .collect();
            assert_eq!(seen, expected, "{options:?}");
            let human = guest.kscope(&[&["net"], options].concat()).expect(0).text();
            assert_eq!(human.lines().count(), expected.len() + 1, "{human}");
        }
        let nobody = guest.kscope(&["net", "999999"]).expect(96);
        assert!(
            nobody
                .stderr
                .contains("no task of the guest has pid 999999"),
            "{}",
            nobody.stderr
        );
    }
}

#[test]
#[ignore = "needs kernels"]
fn every_network_namespace_has_its_sockets() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        let own = guest.ask("readlink /proc/1/ns/net");
        let view = guest.view(&["net"]);
        let inodes = |view: &Value| -> BTreeSet<String> {
            let namespaces = view["namespaces"].as_array().expect("namespaces").iter();
            namespaces
                .map(|namespace| format!("net:[{}]\n", namespace["inode"]))
                .collect()
        };
        if own.starts_with("readlink") || own.is_empty() {
            // CONFIG_NET_NS is not set.
            assert_eq!(inodes(&view).len(), 1);
            eprintln!("{} has no network namespaces", kernel.name);
            continue;
        }
        assert_eq!(inodes(&view), BTreeSet::from([own.clone()]));
        let script = "import socket, time; s = socket.socket(); s.bind((\"\", 4321)); s.listen(); \
                      open(\"up\", \"w\").write(\"up\"); time.sleep(1000)";
        let said = guest.ask(&format!(
            "cd /tmp; unshare -n python3 -c '{script}' & until test -s up; do sleep 0.1; done; \
             readlink /proc/$!/ns/net; cat /proc/$!/net/tcp"
        ));
        let (other, table) = said.split_once('\n').expect("two answers");
        assert!(table.contains(":10E1"), "{table}");
        let view = guest.view(&["net"]);
        assert_eq!(inodes(&view), BTreeSet::from([own, format!("{other}\n")]));
        let in_other = sockets(&view).iter().filter(|socket| {
            format!("net:[{}]", socket["netns"]) == other && text(socket, "protocol") == "tcp"
        });
        let ports = in_other.map(|socket| &socket["address"]["inet"]["local"]["port"]);
        assert_eq!(ports.collect::<Vec<_>>(), [4321]);
        let human = guest.kscope(&["net"]).expect(0).text();
        assert!(human.starts_with("NETNS"), "{human}");
    }
}
