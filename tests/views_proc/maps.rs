//! `kscope maps` against /proc/PID/maps and smaps.

use serde_json::Value;

use crate::{address, guests, number, text};

/// A line of /proc/PID/maps, without the blanks before the name.
fn line(mapping: &Value) -> String {
    let (major, minor) = text(mapping, "device").split_once(':').expect("a device");
    let hex = |number: &str| number.parse::<u32>().expect("a number");
    format!(
        "{:08x}-{:08x} {} {:08x} {:02x}:{:02x} {} {}{}",
        address(mapping, "start"),
        address(mapping, "end"),
        text(mapping, "perms"),
        number(mapping, "offset"),
        hex(major),
        hex(minor),
        number(mapping, "inode"),
        text(mapping, "name"),
        if mapping["deleted"] == true {
            " (deleted)"
        } else {
            ""
        },
    )
}

/// A line of the guest's, without the blanks before the name.
fn squeezed(line: &str) -> String {
    let mut parts = line.splitn(6, ' ');
    let mut next = || parts.next().expect("six parts").trim_start();
    let start = [next(), next(), next(), next(), next()].join(" ");
    format!("{start} {}", next())
}

#[test]
#[ignore = "needs a kernel"]
fn maps_are_those_of_proc() {
    for (mut guest, workload) in guests() {
        let mut kinds = String::new();
        for pid in [1, workload] {
            let pid = pid.to_string();
            let maps = guest.view(&["maps", &pid]);
            let in_guest = guest.ask(&format!("cat /proc/{pid}/maps"));
            let mappings = maps["mappings"].as_array().expect("mappings");
            let lines: Vec<_> = mappings.iter().map(line).collect();
            let expected: Vec<_> = in_guest.lines().map(squeezed).collect();
            assert_eq!(lines, expected);
            // What is in memory, mapping by mapping.
            let smaps = guest.ask(&format!("grep ^Rss: /proc/{pid}/smaps"));
            let rss = smaps.lines().map(|line| {
                let kib = line.split_whitespace().nth(1).expect("a number");
                kib.parse::<u64>().expect("a number") * 1024
            });
            let resident = mappings.iter().map(|mapping| number(mapping, "resident"));
            assert_eq!(resident.collect::<Vec<_>>(), rss.collect::<Vec<_>>());
            // People read the same.
            let human = guest.kscope(&["maps", &pid]).expect(0).text();
            let rows: Vec<_> = human.lines().skip(1).collect();
            assert_eq!(rows.len(), mappings.len(), "{human}");
            for (row, line) in rows.iter().zip(&lines) {
                let name = line.splitn(6, ' ').last().expect("a name");
                let range = line.split(' ').next().expect("a range");
                assert!(
                    row.starts_with(range) && row.ends_with(name),
                    "{row}: {line}"
                );
            }
            kinds += &lines.join("\n");
        }
        for kind in [
            "[heap]",
            "[stack]",
            "[vdso]",
            " /dev/zero (deleted)",
            " /tmp/w/gone (deleted)",
            " /tmp/w/mapped file",
            " /memfd:a memfd (deleted)",
            " ---p ",
        ] {
            assert!(kinds.contains(kind), "no {kind} in {kinds}");
        }
    }
}

#[test]
#[ignore = "needs a kernel"]
fn who_has_no_memory_is_told() {
    let (mut guest, _) = guests().next().expect("a guest");
    let kthreadd = guest.kscope(&["maps", "2"]);
    kthreadd
        .expect(96)
        .says(&["task 2 (kthreadd)", "kernel's threads"]);
    let nobody = guest.kscope(&["maps", "99999"]);
    nobody
        .expect(96)
        .says(&["no task of the guest has pid 99999"]);
    // A zombie: its parent sleeps and does not wait for it.
    let said = guest.ask(
        "sh -c 'sleep 0.2 & echo $!; exec sleep 1000' >pid & \
         until grep -q '^State:.Z' /proc/$(cat pid)/status; do sleep 0.1; done; cat pid",
    );
    let zombie = said.lines().last().expect("a pid");
    guest
        .kscope(&["maps", zombie])
        .expect(96)
        .says(&["has ended"]);
}
