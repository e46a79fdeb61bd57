//! `kscope dmesg` against the guest's /dev/kmsg and dmesg(1), and before there is a console.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::session::Session;
use crate::common::{Place, TestKernel, collect, finish, kernels};
use crate::{number, text};

/// The numbers of levels and facilities, from syslog(3).
const LEVELS: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug",
];
const FACILITIES: [&str; 4] = ["kern", "user", "mail", "daemon"];

/// A record as /dev/kmsg has it: Documentation/ABI/testing/dev-kmsg.
fn kmsg(record: &Value) -> String {
    let place = |names: &[&str], key: &str| {
        let place = names.iter().position(|name| *name == text(record, key));
        place.unwrap_or_else(|| panic!("an unknown {key}: {record}"))
    };
    let escaped: String = text(record, "text")
        .bytes()
        .map(|byte| match byte {
            b'\\' => "\\x5c".to_owned(),
            b' '..127 => char::from(byte).to_string(),
            byte => format!("\\x{byte:02x}"),
        })
        .collect();
    let mut lines = format!(
        "{},{},{},{};{escaped}\n",
        place(&FACILITIES, "facility") * 8 + place(&LEVELS, "level"),
        number(record, "seq"),
        number(record, "time_ns") / 1000,
        if record["continued"] == true {
            'c'
        } else {
            '-'
        },
    );
    for (name, key) in [("SUBSYSTEM", "subsystem"), ("DEVICE", "device")] {
        if !record[key].is_null() {
            lines += &format!(" {name}={}\n", text(record, key));
        }
    }
    lines
}

/// All of /dev/kmsg; dd ends when there is no more.
fn ask_kmsg(guest: &mut Session) -> String {
    guest.ask("dd if=/dev/kmsg iflag=nonblock bs=8192 2>/dev/null")
}

#[track_caller]
fn assert_same(guest: &mut Session) -> Vec<Value> {
    let log = guest.view(&["dmesg"]);
    let log = log.as_array().expect("records").clone();
    let seen: String = log.iter().map(kmsg).collect();
    let said = ask_kmsg(guest);
    let lines = seen.lines().zip(said.lines());
    for (seen, said) in lines {
        assert_eq!(seen, said);
    }
    // Unless the kernel has said something in between.
    let missing = seen.lines().nth(said.lines().count());
    assert_eq!(missing, None, "only kscope has it");
    log
}

#[test]
#[ignore = "needs a kernel"]
fn the_log_is_that_of_dev_kmsg() {
    for kernel in kernels() {
        let name = kernel.name;
        eprintln!("on {name}");
        let mut guest = Session::start(kernel, &[]);
        guest.ask(
            "echo on >/proc/sys/kernel/printk_devkmsg
             printf '<11>a mail: \\303\\244 \\001 back\\\\slash\\nits second line\\n' >/dev/kmsg
             printf '<30>a daemon' >/dev/kmsg
             printf '\\n' >/dev/kmsg
             dmesg -n 1; echo h >/proc/sysrq-trigger",
        );
        let log = assert_same(&mut guest);
        let first = &log[0];
        assert!(number(first, "seq") == 0 && text(first, "text").starts_with("Linux version"));
        assert_eq!(text(first, "caller"), "T0");
        // People read what dmesg(1) prints, whose second lines are indented.
        let human = guest.kscope(&["dmesg"]).expect(0).text();
        let said = guest.ask("dmesg --color=never --notime");
        let stripped = human.lines().map(|line| {
            let (time, line) = line.split_once("] ").unwrap_or((line, ""));
            assert!(time.starts_with('[') && time.len() >= 13, "{line}");
            line.trim()
        });
        let plain = |line: &str| !line.contains("\\x") && !line.contains('\u{fffd}');
        let stripped: Vec<_> = stripped.filter(|line| plain(line)).collect();
        let said: Vec<_> = said
            .lines()
            .map(str::trim)
            .filter(|line| plain(line))
            .collect();
        for (seen, said) in stripped.iter().zip(&said) {
            assert_eq!(seen, said);
        }
        assert_eq!(stripped.len(), said.len());
        // One level, and from one up.
        for (levels, wanted) in [
            ("info,err", "info,err"),
            ("notice+", "emerg,alert,crit,err,warn,notice"),
        ] {
            let some = guest.view(&["dmesg", "--level", levels]);
            let wanted: Vec<_> = wanted.split(',').collect();
            let all = log
                .iter()
                .filter(|record| wanted.contains(&text(record, "level")));
            assert_eq!(
                some.as_array().expect("records"),
                &all.cloned().collect::<Vec<_>>()
            );
        }
        guest
            .kscope(&["dmesg", "--level", "loud"])
            .expect(2)
            .says(&["no level `loud`"]);
    }
}

#[test]
#[ignore = "needs a kernel"]
fn a_log_that_was_overwritten_is_what_is_left() {
    for kernel in kernels() {
        let name = kernel.name;
        eprintln!("on {name}");
        let mut guest = Session::start(kernel, &[]);
        // More than the ring holds, in texts of all lengths: blocks that wrap, too.
        guest.ask(
            "echo on >/proc/sys/kernel/printk_devkmsg; dmesg -n 1
             text=; for n in $(seq 90); do text=\"$text$n \"; done
             for n in $(seq 1500); do printf \"%.$((n * 7 % 250))s end\\n\" \"$text\" >/dev/kmsg; done",
        );
        let log = assert_same(&mut guest);
        let first = number(&log[0], "seq");
        assert!(first > 500, "{first}");
        let last = &log[log.len() - 1];
        assert_eq!(number(last, "seq") - first + 1, log.len() as u64);
    }
}

/// What gdb is to do to look at the log of a guest that it has stopped, and the file for it.
fn look(place: &Place, guest: &str, at: usize) -> (PathBuf, [String; 2]) {
    let program = env!("CARGO_BIN_EXE_kscope");
    let file = place.path().join(format!("log{at}"));
    let shell = format!(
        "shell {program} dmesg {guest} --format json >{}",
        file.display()
    );
    (file, ["-ex".to_owned(), shell])
}

/// What gdb has left in the file.
#[track_caller]
fn looked(file: &Path) -> Vec<Value> {
    let json = fs::read_to_string(file).expect("a log");
    let log: Value = serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    assert_eq!(log["warnings"], Value::Array(Vec::new()));
    fs::remove_file(file).expect("a file");
    log["dmesg"].as_array().expect("records").clone()
}

fn has(log: &[Value], part: &str) -> bool {
    log.iter().any(|record| text(record, "text").contains(part))
}

#[test]
#[ignore = "needs a kernel"]
fn the_log_is_there_before_the_console() {
    for TestKernel { name, path, args } in kernels() {
        eprintln!("on {name}");
        let place = Place::new();
        let mut kscope = place.kscope();
        kscope.arg("run").arg("-k").arg(path).args(*args);
        kscope.args(["--name", "early", "--wait", "--no-gdb", "--", "true"]);
        let run = kscope.spawn().expect("kscope starts");
        place.await_guest("early");
        let mut gdb = place.kscope();
        gdb.args(["gdb", "early", "--", "-batch", "-nx"]);
        // Before the first instruction of start_kernel; while the log has its buffer in the
        // kernel's image; and when the console comes.
        let (nothing, start) = look(&place, "early", 0);
        let (first, early) = look(&place, "early", 1);
        let (second, console) = look(&place, "early", 2);
        gdb.args(start)
            .args(["-ex", "tbreak setup_log_buf", "-ex", "continue"]);
        gdb.args(early)
            .args(["-ex", "tbreak console_init", "-ex", "continue"]);
        finish(gdb.args(console).args(["-ex", "detach"])).expect(0);
        assert_eq!(looked(&nothing), [Value::Null; 0]);
        let (first, second) = (looked(&first), looked(&second));
        assert!(has(&first, "Linux version") && has(&second, "Linux version"));
        assert!(!first.is_empty() && first.len() < second.len());
        assert_eq!(first, second[..first.len()]);
        collect(run).expect(0);
        place.assert_clean();
    }
}
