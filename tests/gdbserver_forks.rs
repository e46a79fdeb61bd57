//! `kscope gdbserver` and what a program forks: the real gdb follows the one, the other, or both.

mod common;

use common::gdbserver::{Server, assert_says, gdb};
use common::programs::{Built, program_with};

fn forks() -> Built {
    program_with("forks", &["-O0", "-g", "-pthread"])
}

/// What gdb says when it does `commands` with the program, and what the program prints.
fn debug(arguments: &[&str], commands: &[&str]) -> (String, String) {
    let built = forks();
    let program = built.path("forks");
    let server = Server::start(&["--once"], &program, arguments);
    let said = gdb(server.port, &program, commands);
    let (printed, _) = server.end();
    (said, printed)
}

#[test]
fn a_fork_is_told_and_the_child_let_go_without_breakpoints() {
    let commands = [
        "break in_child",
        "catch fork",
        "catch vfork",
        "continue",
        "continue",
        "continue",
    ];
    let (said, printed) = debug(&[], &commands);
    let catches = [
        "Catchpoint 2 (forked process ",
        "Catchpoint 3 (vforked process ",
        "exited normally",
    ];
    assert_says(&said, &catches);
    assert_eq!(printed, "child 7\nanother 9\n");
}

#[test]
fn a_child_is_followed_and_its_parent_let_go() {
    let commands = [
        "set follow-fork-mode child",
        "break in_child",
        "continue",
        "print code",
        "backtrace",
        "set var code = 6",
        "continue",
    ];
    let (said, printed) = debug(&[], &commands);
    let wanted = [
        "Breakpoint 1, ",
        "in_child (code=7)",
        "$1 = 7",
        "in main (argc=1",
        "exited with code 06",
    ];
    assert_says(&said, &wanted);
    assert_eq!(printed, "child 6\nanother 9\n");
}

#[test]
fn a_child_with_its_parents_memory_is_followed_into_its_program() {
    let commands = [
        "break outcome",
        "continue",
        "delete",
        "set follow-fork-mode child",
        "break in_child",
        "continue",
        "print code",
        "continue",
    ];
    let (said, printed) = debug(&[], &commands);
    let wanted = [
        "Breakpoint 1, outcome",
        "is executing new program",
        "in_child (code=9)",
        "$1 = 9",
        "exited with code 011",
    ];
    assert_says(&said, &wanted);
    assert_eq!(printed, "child 7\nanother 9\n");
}

#[test]
fn parent_and_child_are_debugged_side_by_side() {
    let commands = [
        "set detach-on-fork off",
        "set schedule-multiple on",
        "break in_child",
        "continue",
        "print code",
        "print counter = 70",
        "info threads",
        "inferior 1",
        "print counter",
        "inferior 2",
        "set var code = 4",
        "continue",
        "info inferiors",
        "inferior 1",
        "continue",
        "continue",
        "kill inferiors 1",
    ];
    let (said, printed) = debug(&[], &commands);
    let wanted = [
        "Thread 2.1",
        "in_child (code=7)",
        "$1 = 7",
        "$2 = 70",
        "1.1",
        "2.1",
        // Each has its own.
        "$3 = 0",
        "exited with code 04",
        "<null>",
        "in_child (code=9)",
    ];
    assert_says(&said, &wanted);
    assert_eq!(printed, "child 4\n");
}

/// Forks and vforks of several threads while a breakpoint is hit whose condition never holds.
fn many_survive(events: &str) {
    const EACH: &str = "100";
    let commands = [
        &*format!("set remote fork-event-feature-packet {events}"),
        &*format!("set remote vfork-event-feature-packet {events}"),
    ];
    let built = forks();
    let program = built.path("forks");
    let server = Server::start(&["--once"], &program, &[EACH]);
    let connect = format!("target remote localhost:{}", server.port);
    let mut gdb = std::process::Command::new("timeout");
    gdb.args(["300", "gdb", "-nx", "-batch", "-iex", "set sysroot /"]);
    gdb.args(["-iex", "set debuginfod enabled off"]);
    for command in commands {
        gdb.args(["-iex", command]);
    }
    for command in [&connect, "break tick if counter < 0", "continue"] {
        gdb.args(["-ex", command]);
    }
    let output = gdb.arg(&program).output().expect("gdb runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_says(&said, &["Breakpoint 1 at", "exited normally"]);
    let (printed, _) = server.end();
    assert_eq!(printed, "killed 0 0\n");
}

#[test]
fn no_child_keeps_a_breakpoint_when_its_debugger_follows_forks() {
    many_survive("on");
}

#[test]
fn no_child_keeps_a_breakpoint_when_its_debugger_knows_nothing_of_forks() {
    many_survive("off");
}
