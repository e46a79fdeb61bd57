//! Sockets as the lines of /proc/net have them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::{address, number, text};

/// include/net/tcp_states.h: STATES[1] is TCP_ESTABLISHED.
const STATES: [&str; 12] = [
    "",
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "unconnected",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
];

fn state(socket: &Value) -> usize {
    let state = STATES
        .iter()
        .position(|state| *state == text(socket, "state"));
    state.unwrap_or_else(|| panic!("an unknown state: {socket}"))
}

/// include/linux/net.h: TYPES[1] is SOCK_STREAM.
const TYPES: [&str; 6] = ["", "stream", "dgram", "raw", "rdm", "seqpacket"];

fn kind(socket: &Value) -> usize {
    let kind = TYPES.iter().position(|kind| *kind == text(socket, "type"));
    kind.unwrap_or_else(|| panic!("an unknown type: {socket}"))
}

/// A number that may be null, which /proc has as 0.
fn or_zero(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// As in /proc/net/tcp: words of 32 bits in the order of the machine, and the port.
fn endpoint(socket: &Value, which: &str) -> String {
    let end = &socket["address"]["inet"][which];
    let unknown = if text(socket, "family") == "inet6" {
        "::"
    } else {
        "0.0.0.0"
    };
    let address = end["address"].as_str().unwrap_or(unknown);
    let bytes = match address.parse().expect("an address") {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let words = bytes.chunks(4).map(|word| {
        let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
        format!("{word:08X}")
    });
    let port = match (text(socket, "protocol"), which) {
        ("raw", "remote") => 0,
        _ => or_zero(&end["port"]),
    };
    format!("{}:{port:04X}", words.collect::<String>())
}

/// A line of /proc/net as far as it can be compared, after the name of its file.
fn of_proc(line: &str) -> Option<String> {
    let (table, line) = line.split_once(':').expect("a table");
    let fields: Vec<_> = line.split_whitespace().collect();
    // Titles.
    if ["sl", "Num", "sk"].contains(&fields[0]) {
        return None;
    }
    let pick = |columns: &[usize]| {
        columns
            .iter()
            .map(|&at| fields[at])
            .collect::<Vec<_>>()
            .join(" ")
    };
    let compared = match table {
        "unix" => {
            // The name may contain blanks, and ends the line.
            let name = (0..7).fold(line, |line, _| {
                let line = line.trim_start();
                line.find(' ').map_or("", |end| &line[end..])
            });
            let path = name.strip_prefix(' ').unwrap_or_default();
            format!("{} {path}", pick(&[0, 1, 3, 4, 5, 6]))
        }
        // Not the dump that runs, and what was dropped.
        "netlink" => pick(&[0, 1, 2, 3, 4, 5, 7, 9]),
        // Not whether it runs.
        "packet" => pick(&[0, 1, 2, 3, 4, 6, 7, 8]),
        // Local and remote end, state, queues, user, inode, references, address.
        _ => pick(&[1, 2, 3, 4, 7, 9, 10, 11]),
    };
    Some(format!("{table} {compared}"))
}

/// The line of /proc/net that a socket of the view should have.
pub fn of_view(socket: &Value) -> String {
    let addr = format!("{:016x}", address(socket, "addr"));
    let refs = number(socket, "refs");
    let inode = or_zero(&socket["inode"]);
    let uid = or_zero(&socket["uid"]);
    let (recv, send) = (number(socket, "recv_queue"), number(socket, "send_queue"));
    let addresses = &socket["address"];
    match text(socket, "protocol") {
        "unix" => {
            let unix = &addresses["unix"];
            // SS_UNCONNECTED and others of include/uapi/linux/net.h.
            let connected = match (socket["inode"].is_null(), text(socket, "state")) {
                (false, "established") => 3,
                (false, _) => 1,
                (true, "established") => 2,
                (true, _) => 4,
            };
            let listens = u64::from(text(socket, "state") == "listen") << 16;
            let name = unix["name"].as_str().unwrap_or_default();
            let name = match unix["abstract"] == true {
                true => format!("@{}", name.replace('\0', "@")),
                false => name.to_owned(),
            };
            let kind = kind(socket);
            format!(
                "unix {addr}: {refs:08X} {listens:08X} {kind:04X} {connected:02X} {inode} {name}"
            )
        }
        "netlink" => {
            let netlink = &addresses["netlink"];
            let protocol = match text(netlink, "protocol") {
                "route" => 0,
                "usersock" => 2,
                "sock_diag" => 4,
                "audit" => 9,
                "fib_lookup" => 10,
                "kobject_uevent" => 15,
                "generic" => 16,
                other => panic!("unexpected in a guest: {other}"),
            };
            let groups = netlink["groups"].as_array().expect("groups").iter();
            let groups = groups.map(|group| group.as_u64().expect("a group"));
            let groups = groups.filter(|group| *group <= 32);
            let groups = groups.fold(0, |bits, group| bits | 1_u64 << (group - 1));
            let port = number(netlink, "port");
            format!("netlink {addr} {protocol} {port} {groups:08x} {recv} {send} {refs} {inode}")
        }
        "packet" => {
            let packet = &addresses["packet"];
            let interface = match packet["interface"].as_str() {
                None => 0,
                Some("lo") => 1,
                Some(other) => panic!("unexpected in a guest: {other}"),
            };
            let (ethertype, kind) = (number(packet, "ethertype"), kind(socket));
            format!("packet {addr} {refs} {kind} {ethertype:04x} {interface} {recv} {uid} {inode}")
        }
        protocol => {
            let six = if text(socket, "family") == "inet6" {
                "6"
            } else {
                ""
            };
            let table = if protocol == "ping" { "icmp" } else { protocol };
            let (local, remote) = (endpoint(socket, "local"), endpoint(socket, "remote"));
            let listens = text(socket, "state") == "listen";
            let state = state(socket);
            let send = if listens { 0 } else { send };
            // A request has neither a user nor references in /proc.
            let refs = if state == 3 { 0 } else { refs };
            format!(
                "{table}{six} {local} {remote} {state:02X} {send:08X}:{recv:08X} {uid} {inode} \
                 {refs} {addr}"
            )
        }
    }
}

/// The lines of several tables, as `grep -H` prints them.
pub fn lines(tables: &str) -> BTreeSet<String> {
    tables.lines().filter_map(of_proc).collect()
}
