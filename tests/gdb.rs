//! The real gdb on booted guests: what `target remote` can do, and that the guest survives all of it.
//!
//! Needs gdb and a kernel of the debug preset: the one that `KSCOPE_TEST_KERNEL` names, or the cached build.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

#[path = "gdb/client.rs"]
mod client;
#[path = "gdb/guest.rs"]
mod guest;
#[path = "common/kernels.rs"]
mod kernels;

use client::Mi;
use guest::{DEADLINE, Guest};

/// Opens a file, and says that it is alive, for ever.
const TICKS: &str =
    "n=0; while :; do n=$((n+1)); cat /etc/hostname >/dev/null; echo tick $n; sleep 0.05; done";

/// The kernel's executable sections in its file.
fn text_of(kernel: &Path) -> Vec<(u64, Vec<u8>)> {
    let bytes = fs::read(kernel).expect("the kernel");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    file.sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .map(|section| (section.address(), section.data().expect("section").to_vec()))
        .collect()
}

/// The guest runs on after a debugger has left it: nobody traces it, its text is its own, and time goes on.
fn assert_unharmed(guest: &Guest) {
    guest.wait_until_untraced();
    let before = guest.last_tick();
    guest.wait_for("ticks", |out| out.last_tick() > before + 3);
    let memory = File::open(format!("/proc/{}/mem", guest.pid())).expect("the guest's memory");
    for (addr, text) in text_of(kernels::kernel()) {
        let mut now = vec![0; text.len()];
        memory.read_exact_at(&mut now, addr).expect("text");
        let differs = text
            .iter()
            .zip(&now)
            .position(|(file, memory)| file != memory);
        assert_eq!(differs.map(|at| format!("{:#x}", addr + at as u64)), None);
    }
}

#[test]
fn every_task_is_a_thread_and_sleeping_ones_unwind() {
    let guest = Guest::boot(
        &[],
        "sleep 1000 & (sleep 1001 | cat) & \
         sleep 1; for t in /proc/[0-9]*; do \
           echo task ${t#/proc/} $(sed 's/.*) //;s/ .*//' $t/stat || echo gone) $(cat $t/comm); \
         done 2>/dev/null; echo done; sleep 1000",
    );
    guest.wait_for("the list of tasks", |out| out.has_line("done"));
    // What the guest says itself: pid -> (state, name).
    let mut known = BTreeMap::new();
    for line in guest.lines() {
        let mut words = line.split(' ');
        if words.next() != Some("task") {
            continue;
        }
        let (pid, state) = (words.next().expect("pid"), words.next().expect("state"));
        known.insert(
            pid.to_owned(),
            (state.to_owned(), words.collect::<Vec<_>>().join(" ")),
        );
    }
    assert!(known.len() > 15, "{known:?}");
    let out = guest.gdb(&["info threads", "thread apply all -q bt 40", "detach"]);
    let (list, stacks) = out.split_once("\n#0").expect("stacks");
    let mut asked = 0;
    for (pid, (state, name)) in &known {
        // The loop's own processes are gone by now.
        if state == "gone" {
            continue;
        }
        let Some(thread) = list
            .lines()
            .find(|line| line.contains(&format!("Thread 1.{pid} \"")))
        else {
            assert!(
                name == "cat" || name == "sh",
                "task {pid} {name} is missing:\n{list}"
            );
            continue;
        };
        // gdb's names are the kernel's `comm`, 15 bytes; workqueue workers have longer ones in /proc.
        let short: String = name.chars().take(10).collect();
        assert!(thread.contains(&short), "{name} is not in {thread}");
        if state != "R" {
            asked += 1;
            assert!(
                thread.contains(&format!("[{state}]")),
                "{state} is not in {thread}"
            );
        }
    }
    assert!(asked > 12, "only {asked} tasks sleep: {known:?}");
    for (name, function) in [("kthreadd [S]", "kthreadd"), ("cat [S]", "pipe_read")] {
        let waits = |line: &str| line.contains(name) && line.contains(function);
        assert!(
            list.lines().any(waits),
            "{name} is not in {function}:\n{list}"
        );
    }
    let sleeper = list
        .lines()
        .find(|line| line.contains("\"sleep [S]"))
        .expect("a sleeper");
    assert!(sleeper.contains("nanosleep"), "{sleeper}");
    // Each stack reaches the kernel's entry.
    let complete = stacks.matches(" in new_thread_handler (").count()
        + stacks.matches(" in fork_handler (").count();
    assert!(
        complete >= known.len() - 5,
        "{complete} of {}:\n{stacks}",
        known.len()
    );
    assert!(!stacks.contains("corrupt stack"), "{stacks}");
}

#[test]
fn a_breakpoint_in_a_system_call_shows_its_source_and_can_be_stepped() {
    let guest = Guest::boot(&[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    let out = guest.gdb(&[
        "break do_sys_openat2",
        "continue",
        "echo @bt\\n",
        "bt",
        "echo @args\\n",
        "info args",
        "info locals",
        "print how->flags",
        "print *how",
        "echo @steps\\n",
        "set $task = $_thread",
        "set $start = $pc",
        "next",
        "next",
        "printf \"next %d %d\\n\", $task == $_thread, $pc > $start",
        "set $start = $pc",
        "stepi",
        "printf \"stepi %d %d\\n\", $task == $_thread, $pc != $start",
        "tbreak getname",
        "continue",
        "step",
        "printf \"step %d\\n\", $task == $_thread",
        "delete",
        "finish",
        "printf \"finish %d\\n\", $task == $_thread",
        "detach",
    ]);
    assert!(out.contains("Breakpoint 1, do_sys_openat2 ("), "{out}");
    let bt = out
        .split("@bt")
        .nth(1)
        .and_then(|rest| rest.split("@args").next())
        .expect("bt");
    for frame in [
        "fs/open.c:",
        "handle_syscall (",
        "arch/um/kernel/skas/syscall.c:",
        "userspace (",
    ] {
        assert!(bt.contains(frame), "no {frame} in {bt}");
    }
    assert!(
        out.contains("dfd = -100") && out.contains("flags = "),
        "{out}"
    );
    for line in [
        "next 1 1",
        "stepi 1 1",
        "step 1",
        "finish 1",
        "Value returned is",
    ] {
        assert!(out.contains(line), "no {line:?} in {out}");
    }
    assert_unharmed(&guest);
}

#[test]
fn variables_and_registers_can_be_written() {
    let guest = Guest::boot(
        &[],
        "n=0; while :; do n=$((n+1)); echo panic $(cat /proc/sys/kernel/panic); echo tick $n; sleep 0.1; done",
    );
    guest.wait_for("a zero", |out| out.has_line("panic 0"));
    let out = guest.gdb(&[
        "print panic_timeout",
        "set var panic_timeout = 77",
        "print panic_timeout",
        "break do_sys_openat2",
        "continue",
        "set $old = $r11",
        "set var $r11 = 0x1234567887654321",
        "print/x $r11",
        "stepi",
        "print/x $r11",
        "set var $r11 = $old",
        "print $xmm0.uint128",
        "detach",
    ]);
    for value in ["$1 = 0", "$2 = 77", "= 0x1234567887654321\n"] {
        assert!(out.contains(value), "no {value:?} in {out}");
    }
    guest.wait_for("what gdb wrote", |out| out.has_line("panic 77"));
    assert_unharmed(&guest);
}

#[test]
fn an_interrupt_stops_and_the_guests_own_signals_do_not() {
    let guest = Guest::boot(&[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    let mut gdb = Mi::connect(&guest);
    for _ in 0..3 {
        gdb.say("-exec-continue");
        gdb.wait_for("*running");
        // Timer, device and page fault signals come by the hundred meanwhile.
        let before = guest.last_tick();
        guest.wait_for("ticks", |out| out.last_tick() > before + 10);
        assert!(!gdb.has_stopped(), "{}", gdb.transcript());
        gdb.interrupt();
        let stop = gdb.wait_for("*stopped");
        assert!(stop.contains("signal-name=\"SIGINT\""), "{stop}");
        let stopped_at = guest.last_tick();
        assert_eq!(guest.last_tick(), stopped_at);
    }
    gdb.say("-target-detach");
    gdb.wait_for("^done");
    drop(gdb);
    assert_unharmed(&guest);
    // And again, from the beginning.
    let out = guest.gdb(&["info threads", "detach"]);
    assert!(out.contains("Thread 1.1 \""), "{out}");
    assert_unharmed(&guest);
}

#[test]
fn a_killed_gdb_leaves_the_guest_running_with_its_own_bytes() {
    let guest = Guest::boot(&[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    // While stopped.
    let mut gdb = Mi::connect(&guest);
    gdb.say("-break-insert do_sys_openat2");
    gdb.say("-exec-continue");
    let stop = gdb.wait_for("*stopped");
    assert!(stop.contains("breakpoint-hit"), "{stop}");
    gdb.kill();
    assert_unharmed(&guest);
    // While it runs, and its breakpoints are hit and stepped over all the time.
    for _ in 0..3 {
        let mut gdb = Mi::connect(&guest);
        for place in ["do_sys_openat2", "vfs_write", "ksys_read"] {
            gdb.say(&format!("-break-insert -c 0 {place}"));
            gdb.wait_for("^done,bkpt");
        }
        gdb.say("-exec-continue");
        gdb.wait_for("*running");
        let before = guest.last_tick();
        guest.wait_for("ticks", |out| out.last_tick() > before + 3);
        gdb.kill();
        assert_unharmed(&guest);
    }
}

#[test]
fn waiting_guests_wait_at_the_first_instruction_of_start_kernel() {
    for kernel in kernels::kernels() {
        let mut guest = Guest::boot_on(kernel, &["--wait"], "echo up; exit 7");
        let out = guest.gdb(&[
            "printf \"at start %d\\n\", $pc == (unsigned long) start_kernel",
            "bt",
            // Of the code that is freed after the boot.
            "break vfs_caches_init",
            "break rest_init",
            "continue",
            "next",
            "finish",
            "continue",
            "info threads",
            "detach",
        ]);
        for part in [
            "at start 1",
            "Breakpoint 1, vfs_caches_init",
            "Breakpoint 2, rest_init",
            "start_kernel_proc",
        ] {
            assert!(out.contains(part), "{}: no {part} in {out}", kernel.name);
        }
        assert_eq!(guest.wait(), Some(7), "{}", kernel.name);
        assert!(guest.lines().contains(&"up".to_owned()));
    }
}

#[test]
fn a_second_debugger_is_refused_and_told_why() {
    let guest = Guest::boot(&[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    let mut first = Mi::connect(&guest);
    let out = guest.gdb(&["info threads"]);
    let refusal = "another debugger is connected to this guest, gdb (process ";
    assert!(out.contains(refusal), "{out}");
    // The first one has not noticed.
    first.say("-data-evaluate-expression 6*7");
    first.wait_for("value=\"42\"");
    first.say("-target-detach");
    first.wait_for("^done");
    drop(first);
    assert_unharmed(&guest);
}

#[test]
fn a_sleeping_task_can_be_stepped_and_memory_watched() {
    let guest = Guest::boot(&[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    let out = guest.gdb(&[
        // Where a child of the shell goes to sleep, the shell will soon, too.
        "break do_nanosleep",
        "continue",
        "delete",
        "echo @ps\\n",
        "monitor ps",
        "watch jiffies_64",
        "continue",
        "continue",
        "delete",
        "monitor help",
        "monitor info version",
        "monitor bt all",
        "detach",
    ]);
    assert!(
        out.matches("Hardware watchpoint 2: jiffies_64").count() >= 3,
        "{out}"
    );
    assert!(out.contains("New value = "), "{out}");
    assert!(
        out.contains("[kthreadd]") && out.contains("monitor bt"),
        "{out}"
    );
    assert!(out.contains("kscope "), "{out}");
    assert!(out.contains("new_thread_handler"), "{out}");
    let shell = out
        .lines()
        .find(|line| line.contains(" /bin/sh -c "))
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or_else(|| panic!("no shell: {out}"))
        .to_owned();
    let out = guest.gdb(&[
        &format!("python t = [t for t in gdb.selected_inferior().threads() if t.ptid[1] == {shell} or t.ptid[2] == {shell}]"),
        "python t[0].switch()",
        "set $task = $_thread",
        "set $start = $pc",
        "stepi",
        "printf \"stepped %d %d\\n\", $task == $_thread, $pc != $start",
        "printf \"rax %d\\n\", $rax",
        "detach",
    ]);
    assert!(out.contains("stepped 1 1"), "{out}");
    assert_unharmed(&guest);
}

#[test]
fn the_end_of_the_guest_is_the_end_of_the_inferior() {
    let mut guest = Guest::boot(&["--wait"], "exit 0");
    let out = guest.gdb(&["continue", "info threads"]);
    assert!(
        out.contains("exited normally") || out.contains("exited with code"),
        "{out}"
    );
    assert_eq!(guest.wait(), Some(0));
}

#[test]
fn a_guest_that_gdb_kills_has_ended_by_its_debugger() {
    for arguments in [&[][..], &["set remote multiprocess-feature-packet off"]] {
        let mut guest = Guest::boot(&[], TICKS);
        guest.wait_for("ticks", |out| out.last_tick() > 3);
        let target = format!("target remote {}", guest.socket().display());
        let commands = [arguments, &["disconnect", &target, "kill", "info threads"]].concat();
        let out = guest.gdb(&commands);
        assert!(out.contains("No threads."), "{out}");
        assert_eq!(guest.wait(), Some(106), "{out}");
        let said = guest.errors().join("\n");
        assert!(said.contains("one was killed by its debugger"), "{said}");
    }
}

/// Where a kernel has that function.
fn vfs_read(kernel: &Path) -> u64 {
    let bytes = fs::read(kernel).expect("the kernel");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name() == Ok("vfs_read"));
    symbol.expect("the symbol").address()
}

#[test]
fn plain_gdb_is_told_of_wrong_symbols_and_finds_the_right_ones() {
    let [right, others @ ..] = kernels::kernels() else {
        panic!("a kernel");
    };
    let guest = Guest::boot_on(right, &[], TICKS);
    let target = format!("target remote {}", guest.socket().display());
    // Wherever it takes that to be.
    let stop = format!("tbreak *{:#x}", vfs_read(&right.path));
    let gdb = |commands: &[&str], file: Option<&Path>| {
        let mut gdb = Command::new("timeout");
        gdb.arg(DEADLINE.as_secs().to_string());
        gdb.args(["gdb", "-nx", "-q", "-batch", "-ex", "set width 0"]);
        let then = [&*target, "print &vfs_read", &stop, "continue", "detach"];
        for command in commands.iter().chain(&then) {
            gdb.args(["-ex", command]);
        }
        let output = gdb.args(file).output().expect("gdb runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text + &String::from_utf8_lossy(&output.stderr)
    };
    let wrong = "kscope: these are not the symbols of the kernel that the guest runs: ";
    let path = right.path.display();
    let symbol = |out: &str| {
        out.lines()
            .find(|line| line.ends_with("<vfs_read>"))
            .map(str::to_owned)
    };
    // Its own, by name and by itself.
    let known = gdb(&[], Some(&right.path));
    let found = gdb(&[], None);
    for out in [&known, &found] {
        assert!(!out.contains(wrong), "{out}");
        assert!(symbol(out).is_some(), "{out}");
    }
    assert_eq!(symbol(&known), symbol(&found));
    let other = others.iter().find(|other| other.path != right.path);
    let other = &other.expect("another kernel").path;
    // gdb asks, and is told to take what it has found.
    let out = gdb(&[], Some(other));
    assert!(
        out.contains("Build ID mismatch") && !out.contains(wrong),
        "{out}"
    );
    assert_eq!(symbol(&known), symbol(&out), "{out}");
    // Where it does not ask, it is told as soon as the guest runs.
    let out = gdb(&["set exec-file-mismatch off"], Some(other));
    let right = format!("The right ones: file {path}");
    assert!(out.contains(wrong) && out.contains(&right), "{out}");
}

#[test]
fn a_guest_has_to_be_named_when_there_are_several() {
    let first = Guest::boot(&[], "sleep 1000");
    let second = Guest::boot_beside(&first, &[], "sleep 1000");
    let (code, err) = first.kscope_gdb_fails(&[]);
    assert_eq!(code, Some(96), "{err}");
    assert!(
        err.contains(first.name()) && err.contains(second.name()),
        "{err}"
    );
    let (code, err) = first.kscope_gdb_fails(&["nobody"]);
    assert_eq!(code, Some(96), "{err}");
    assert!(err.contains("nobody"), "{err}");
    drop(second);
    // Without gdb, the message names the package.
    let (code, err) = first.kscope_gdb_without_path();
    assert_eq!(code, Some(96), "{err}");
    assert!(err.contains("install the package gdb"), "{err}");
}

#[test]
fn malformed_packets_and_a_client_that_goes_do_not_harm_the_guest() {
    use std::io::{Read, Write};
    let guest = Guest::boot(&[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    for garbage in [
        &b"$g#00"[..],
        b"+$Hg-1#e0",
        b"$vCont;t#b9",
        b"\xff\xfe\x00$$$###",
        b"$vCont;s:p1.7fffffff#a5",
        b"$m0,ffffffffffffffff#a4",
    ] {
        let mut socket = guest.connect();
        socket.write_all(garbage).expect("sending");
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("timeout");
        let _ = socket.read(&mut [0; 256]);
        drop(socket);
        assert_unharmed(&guest);
    }
    let out = guest.gdb(&["info threads", "detach"]);
    assert!(out.contains("Thread 1.1 \""), "{out}");
}
