//! `kscope gdbserver`: the real gdb drives an ordinary process through it, as it would through its own server.
//!
//! The whole ruler is GDB's own test suite (`scripts/conformance`); this is what is worth knowing in seconds.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::gdbserver::{Server, assert_says, gdb, kscope};
use common::programs::{Built, program_with};

fn debuggee() -> Built {
    program_with("debuggee", &["-O0", "-g", "-pthread"])
}

#[test]
fn a_program_is_debugged_to_its_end() {
    let built = debuggee();
    let program = built.path("debuggee");
    let server = Server::start(&["--once"], &program, &["one", "two words"]);
    let said = gdb(
        server.port,
        &program,
        &[
            "break tick if by == 1 && counter == 41",
            "continue",
            "print counter",
            "backtrace",
            "finish",
            "watch counter",
            "continue",
            "print tick(100)",
            "delete",
            "print counter",
            "set var counter = 1000 - 958",
            "continue",
            "print $_siginfo.si_signo == 10",
            "break joined",
            "continue",
            "print shared",
            "break tick",
            "continue",
        ],
    );
    assert_says(
        &said,
        &[
            "Breakpoint 1, tick (by=1)",
            "$1 = 41",
            "in main (argc=3",
            "Value returned is $2 = 42",
            "Hardware watchpoint 2: counter",
            "Old value = 42",
            "New value = 43",
            "$3 = 143",
            "$4 = 143",
            "received signal SIGUSR1",
            "$5 = 1",
            "Breakpoint 3, joined",
            "$6 = 300",
            // That of the child is taken out of it.
            "exited with code 03",
        ],
    );
    let (printed, server_said) = server.end();
    assert_eq!(
        printed,
        "argc 3, last two words, children 1 5, handled 10\n"
    );
    assert!(
        server_said.contains("Child exited with status 3"),
        "{server_said}"
    );
}

#[test]
fn threads_are_the_hosts_and_each_is_stepped_for_itself() {
    let built = debuggee();
    let program = built.path("debuggee");
    let server = Server::start(&["--once"], &program, &[]);
    let said = gdb(
        server.port,
        &program,
        &[
            "handle SIGUSR1 nostop noprint pass",
            "break work",
            "continue",
            "set scheduler-locking on",
            "next",
            "next",
            "info threads",
            "set scheduler-locking off",
            "delete",
            "continue",
        ],
    );
    assert_says(
        &said,
        &[
            "hit Breakpoint 1, work",
            "__atomic_fetch_add",
            "debuggee",
            "exited with code 03",
        ],
    );
    let (printed, _) = server.end();
    assert_eq!(
        printed,
        format!(
            "argc 1, last {}, children 7 5, handled 10\n",
            program.display()
        )
    );
}

#[test]
fn a_process_waits_for_the_next_debugger_or_runs_on_alone() {
    let built = debuggee();
    let program = built.path("debuggee");
    let server = Server::start(&[], &program, &[]);
    let said = gdb(
        server.port,
        &program,
        &["break joined", "continue", "continue", "disconnect"],
    );
    assert_says(&said, &["received signal SIGUSR1", "Breakpoint 1, joined"]);
    // It has not moved since.
    let said = gdb(server.port, &program, &["bt", "print handled", "detach"]);
    assert_says(&said, &["joined ()", "main (", "$1 = 10"]);
    let (printed, said) = server.end();
    assert!(printed.contains("children 7 5, handled 10"), "{printed}");
    assert!(said.contains("Detaching from process"), "{said}");
}

#[test]
fn a_process_that_becomes_another_program_is_followed() {
    let built = debuggee();
    let program = built.path("debuggee");
    let command = format!("exec {} last", program.display());
    let server = Server::start(&["--once"], Path::new("/bin/sh"), &["-c", &command]);
    let said = gdb(
        server.port,
        Path::new("/bin/sh"),
        &[
            "catch exec",
            "continue",
            "handle SIGUSR1 nostop noprint pass",
            "break joined",
            "continue",
            "print counter",
            "continue",
        ],
    );
    assert_says(
        &said,
        &[
            "is executing new program",
            "Catchpoint 1 (exec'd",
            "Breakpoint 2, joined",
            "$1 = 1000",
            "exited with code 03",
        ],
    );
    let (printed, _) = server.end();
    assert_eq!(printed, "argc 2, last last, children 7 5, handled 10\n");
}

#[test]
fn a_client_without_files_gets_them_from_the_server() {
    let built = debuggee();
    let program = built.path("debuggee");
    let server = Server::start(&["--once"], &program, &[]);
    let mut gdb = Command::new("timeout");
    gdb.args(["120", "gdb", "-nx", "-batch", "-iex", "set sysroot target:"]);
    gdb.args(["-iex", "set debuginfod enabled off"]);
    for command in [
        &*format!("target remote localhost:{}", server.port),
        "break joined",
        "handle SIGUSR1 nostop noprint pass",
        "continue",
        "info sharedlibrary",
        "print handled",
        "kill",
    ] {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().expect("gdb runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_says(
        &said,
        &[
            "Breakpoint 1, joined",
            "target:/lib",
            "libc.so.6",
            "$1 = 10",
        ],
    );
    let (printed, said) = server.end();
    assert!(printed.is_empty(), "{printed}");
    assert!(said.contains("Killing process(es):"), "{said}");
}

#[test]
fn what_is_no_program_is_told_as_gdbserver_does() {
    let output = kscope()
        .args(["gdbserver", "stdio", "non-existing-program"])
        .stdin(Stdio::null())
        .output()
        .expect("kscope runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.ends_with(
            "exec: non-existing-program: not found\n\
             During startup program exited with code 127.\nExiting\n"
        ),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_taken_port_is_told_as_gdbserver_does() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = kscope()
        .args(["gdbserver", &address, "true"])
        .output()
        .expect("kscope runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("Can't bind address: Address already in use.\n"),
        "{said}"
    );
}
