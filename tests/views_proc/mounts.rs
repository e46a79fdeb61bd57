//! `kscope mounts` against /proc/PID/mounts and mountinfo.

use serde_json::Value;

use crate::{guests, text};

/// The escapes of /proc: `\040` is a blank.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(3);
        out.push(u8::from_str_radix(code, 8).expect("octal") as char);
        out.push_str(rest);
    }
    out
}

fn options(mount: &Value) -> Vec<String> {
    let options = mount["options"].as_array().expect("options");
    let text = |option: &Value| option.as_str().expect("an option").to_owned();
    options.iter().map(text).collect()
}

/// Mounts of all kinds, each at a directory of its own.
const SCRIPT: &str = "
    mkdir -p /tmp/w/m && cd /tmp/w/m
    mkdir t1 t2 'with blank' proc ram debug trace bind hidden chroot host ovl up
    mkdir up/upper up/work low1 low2 cgroup mqueue
    mount -t tmpfs -o size=2m,nr_inodes=77,mode=750,uid=3,gid=4 first t1
    mount -t tmpfs -o ro,noatime,nodiratime,sync tmpfs t2
    mount -t tmpfs 'a source' 'with blank'
    mount -t proc -o hidepid=2,gid=5,subset=pid proc proc
    mount -t ramfs -o mode=700 ramfs ram
    mount -t debugfs -o uid=6 debugfs debug
    mount -t tracefs tracefs trace
    mount --bind t1 bind
    mkdir t1/below && mount --bind -o ro t1/below hidden
    mount -t hostfs -o /usr none host
    mount -t mqueue mqueue mqueue
    mount -t cgroup2 cgroup2 cgroup
    mount -t tmpfs upper up && mkdir up/upper up/work
    mount -t overlay -o lowerdir=low1:low2,upperdir=up/upper,workdir=up/work,redirect_dir=on \
        over ovl
    chroot=/tmp/w/m/chroot
    mount --rbind / $chroot && mount --bind chroot $chroot/mnt
    cp /bin/sleep . ; echo done";

#[test]
#[ignore = "needs a kernel"]
fn mounts_are_those_of_proc() {
    for (mut guest, _) in guests() {
        let said = guest.ask(SCRIPT);
        assert_eq!(said, "done\n");
        // Somebody else's view: another root.
        let chrooted = guest.ask(
            "(chroot /tmp/w/m/chroot sh -c 'cd /; exec sleep 1000') & sleep 0.3; \
             until readlink /proc/$!/exe | grep -q sleep; do sleep 0.1; done; echo $!",
        );
        let chrooted = chrooted.trim().to_owned();
        let mut seen = 0;
        for pid in ["1", &chrooted] {
            let mounts = guest.view(&["mounts", pid]);
            let mounts = mounts.as_array().expect("mounts");
            let in_guest = guest.ask(&format!("cat /proc/{pid}/mounts"));
            let info = guest.ask(&format!("cat /proc/{pid}/mountinfo"));
            let lines: Vec<_> = in_guest.lines().collect();
            assert_eq!(mounts.len(), lines.len(), "{in_guest}");
            for ((mount, line), info) in mounts.iter().zip(lines).zip(info.lines()) {
                let expected: Vec<_> = line.split(' ').map(unescaped).collect();
                let own = ["source", "target", "fstype"].map(|key| text(mount, key));
                assert_eq!(own[..], expected[..3], "{line}");
                let options = options(mount).join(",");
                if mount["complete"] == true {
                    assert_eq!(options, expected[3], "{line}");
                } else {
                    assert!(expected[3].starts_with(&options), "{options}: {line}");
                    assert_eq!(own[2], "cgroup2", "{line}");
                }
                let info: Vec<_> = info.split(' ').map(unescaped).collect();
                assert_eq!(mount["id"].to_string(), info[0]);
                assert_eq!(mount["parent"].to_string(), info[1]);
                assert_eq!(text(mount, "device"), info[2]);
                assert_eq!(text(mount, "root"), info[3]);
            }
            seen += mounts.len();
            // Nothing of what people read is missing.
            let human = guest.kscope(&["mounts", pid]).expect(0).text();
            assert_eq!(human.lines().count(), mounts.len() + 1, "{human}");
        }
        let own = guest.view(&["mounts"]);
        for fstype in [
            "cgroup2", "debugfs", "devpts", "hostfs", "mqueue", "overlay", "proc", "ramfs",
            "sysfs", "tmpfs", "tracefs",
        ] {
            let mut all = own.as_array().expect("mounts").iter();
            assert!(all.any(|mount| text(mount, "fstype") == fstype), "{fstype}");
        }
        assert_eq!(own, guest.view(&["mounts", "1"]));
        assert!(seen > own.as_array().expect("mounts").len() + 10);
    }
}
