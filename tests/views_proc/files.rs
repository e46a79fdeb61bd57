//! `kscope files` against /proc/PID/fd and fdinfo.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{guests, number, text};

/// What readlink(1) says of a file.
fn link(file: &Value, path: &str) -> String {
    let deleted = if file["deleted"] == true {
        " (deleted)"
    } else {
        ""
    };
    format!("{}{deleted}", text(file, path))
}

/// The flags as open(2) has them; octal, from its manual.
fn bits(file: &Value) -> u64 {
    let flags = file["flags"].as_array().expect("flags").iter();
    let access = match text(file, "access") {
        "w" => 1,
        "rw" => 2,
        _ => 0,
    };
    flags.fold(access, |bits, flag| {
        bits | match flag.as_str().expect("a flag") {
            "append" => 0o2_000,
            "nonblock" => 0o4_000,
            "largefile" => 0o100_000,
            "directory" => 0o200_000,
            "cloexec" => 0o2_000_000,
            "sync" => 0o4_010_000,
            "path" => 0o10_000_000,
            other => panic!("the workload does not open with {other}"),
        }
    })
}

/// `stat -c %F`, as a kind.
fn kind(described: &str) -> &str {
    match described {
        "regular file" | "regular empty file" => "file",
        "directory" => "dir",
        "character special file" => "char",
        "fifo" => "fifo",
        "socket" => "socket",
        other => panic!("an unexpected kind: {other}"),
    }
}

#[test]
#[ignore = "needs a kernel"]
fn files_are_those_of_proc() {
    for (mut guest, workload) in guests() {
        let mut kinds = BTreeMap::new();
        let mut sockets = Vec::new();
        for pid in [1, workload] {
            let pid = pid.to_string();
            let view = guest.view(&["files", &pid]);
            assert_eq!(view["pid"].to_string(), pid);
            let readlink = |guest: &mut crate::Session, file: &str| {
                let said = guest.ask(&format!("readlink /proc/{pid}/{file}"));
                said.trim_end_matches('\n').to_owned()
            };
            for which in ["cwd", "root", "exe"] {
                assert_eq!(link(&view[which], "path"), readlink(&mut guest, which));
            }
            let files = view["files"].as_array().expect("files");
            let listed = guest.ask(&format!("ls /proc/{pid}/fd | sort -n"));
            let fds: Vec<_> = files.iter().map(|file| file["fd"].to_string()).collect();
            assert_eq!(fds, listed.lines().collect::<Vec<_>>());
            for file in files {
                let fd = number(file, "fd");
                assert_eq!(
                    link(file, "name"),
                    readlink(&mut guest, &format!("fd/{fd}"))
                );
                // `pos:\t0` and so on.
                let info = guest.ask(&format!("cat /proc/{pid}/fdinfo/{fd}"));
                let field = |name: &str| {
                    let line = info.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_else(|| panic!("no {name} in {info}")).trim()
                };
                assert_eq!(file["pos"].to_string(), field("pos:"), "{file}");
                assert_eq!(format!("0{:o}", bits(file)), field("flags:"), "{file}");
                assert_eq!(file["mount"].to_string(), field("mnt_id:"), "{file}");
                // Inode, size, device (its major and minor number), kind.
                let stat = format!("stat -L -c '%i %s %Hd:%Ld %Hr:%Lr %F' /proc/{pid}/fd/{fd}");
                let stat = guest.ask(&stat);
                let parts: Vec<_> = stat.trim().splitn(5, ' ').collect();
                assert_eq!(file["inode"].to_string(), parts[0], "{file}");
                let name = text(file, "name");
                if let Some(anonymous) = name.strip_prefix("anon_inode:") {
                    assert_eq!(text(file, "type"), "anon");
                    *kinds.entry(anonymous.to_owned()).or_insert(0) += 1;
                    continue;
                }
                assert_eq!(text(file, "type"), kind(parts[4]), "{file}");
                let is_socket = text(file, "type") == "socket";
                assert_eq!(file["socket"].is_string(), is_socket, "{file}");
                sockets.extend(file["socket"].as_str().map(str::to_owned));
                *kinds.entry(text(file, "type").to_owned()).or_insert(0) += 1;
                match text(file, "type") {
                    "file" => assert_eq!(file["size"].to_string(), parts[1], "{file}"),
                    "char" => assert_eq!(text(file, "rdev"), parts[3], "{file}"),
                    _ => assert_eq!(file["rdev"], Value::Null),
                }
                // Overlay tells of a file the device of the layer that it is in.
                if !text(file, "name").starts_with('/') {
                    assert_eq!(text(file, "device"), parts[2], "{file}");
                }
            }
            let human = guest.kscope(&["files", &pid]).expect(0).text();
            let rows: Vec<_> = human.lines().skip(4).collect();
            assert_eq!(rows.len(), files.len(), "{human}");
            for (row, file) in rows.iter().zip(files) {
                let mut end = link(file, "name");
                if let Some(socket) = file["socket"].as_str() {
                    end = format!("{end} {socket}");
                }
                assert!(row.ends_with(&end), "{row}: {file}");
            }
        }
        for socket in [
            "tcp 127.0.0.1:8080 listen",
            "udp 0.0.0.0:5353",
            "raw 0.0.0.0:1",
            "unix stream socket listen",
            "unix dgram @an abstract name",
            "packet *:lo",
        ] {
            assert!(sockets.iter().any(|of| of == socket), "{sockets:#?}");
        }
        for start in [
            "tcp 127.0.0.1:8080 -> 127.0.0.1:",
            "unix seqpacket -> socket:[",
            "netlink route:",
        ] {
            assert!(
                sockets.iter().any(|of| of.starts_with(start)),
                "{sockets:#?}"
            );
        }
        // The workload did have some of everything.
        for kind in [
            "file",
            "dir",
            "char",
            "fifo",
            "socket",
            "[eventpoll]",
            "[eventfd]",
            "[timerfd]",
            "inotify",
        ] {
            assert!(kinds.contains_key(kind), "no {kind} in {kinds:?}");
        }
    }
}
