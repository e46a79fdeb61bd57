//! `kscope gdbserver`'s command line: processes that run already, and what a program is run through.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use common::PATIENCE;
use common::gdbserver::{Server, gdb, kscope};
use common::programs::{Built, program_with};

/// A program that runs already.
struct Running {
    built: Built,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start() -> Running {
        let built = program_with("attached", &["-O0", "-g", "-pthread"]);
        let mut child = Command::new(built.path("attached"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n");
        Running {
            built,
            child,
            stdout,
        }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn attach(&self, options: &[&str]) -> Server {
        let options = [options, &["--attach"]].concat();
        Server::start(&options, Path::new(&self.pid()), &[])
    }

    fn gdb(&self, server: &Server, commands: &[&str]) -> String {
        gdb(server.port, &self.built.path("attached"), commands)
    }

    /// The host's word for what the main thread does.
    fn is_traced(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        !status.expect("it is there").contains("TracerPid:\t0\n")
    }

    /// The program ends by itself, as it was told to.
    fn end(mut self) {
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).expect("text");
        assert_eq!(text, "stopped\n");
        let status = self.child.wait().expect("it ends");
        assert_eq!(status.code(), Some(3));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_process_that_runs_is_attached_to_and_let_go() {
    let running = Running::start();
    let server = running.attach(&[]);
    assert!(running.is_traced());
    let said = running.gdb(
        &server,
        &["info threads", "break tick", "continue", "bt", "disconnect"],
    );
    for wanted in ["tick ()", "counting (", "Id", "* 1"] {
        assert!(said.contains(wanted), "no {wanted} in {said}");
    }
    let said = running.gdb(
        &server,
        &["break tick", "continue", "set var stop = 1", "detach"],
    );
    assert!(said.contains("hit Breakpoint 1, tick"), "{said}");
    let (_, said) = server.end();
    assert!(said.contains("Attached; pid = "), "{said}");
    assert!(said.contains("Detaching from process"), "{said}");
    running.end();
}

#[test]
fn a_process_lives_on_without_its_only_debugger() {
    let running = Running::start();
    let server = running.attach(&["--once"]);
    let said = running.gdb(&server, &["break tick", "continue", "disconnect"]);
    assert!(said.contains("hit Breakpoint 1, tick"), "{said}");
    server.end();
    assert!(!running.is_traced());
    // Without breakpoints, which it would not survive: it comes by there all the time.
    let server = running.attach(&["--once"]);
    running.gdb(&server, &["set var stop = 1"]);
    server.end();
    running.end();
}

#[test]
fn a_signal_to_the_server_lets_the_process_go() {
    let running = Running::start();
    let server = running.attach(&[]);
    running.gdb(&server, &["break tick", "continue", "disconnect"]);
    let status = Command::new("kill")
        .args(["-TERM", &server.pid().to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success());
    let deadline = Instant::now() + PATIENCE;
    while running.is_traced() {
        assert!(Instant::now() < deadline, "it is still traced");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let server = running.attach(&["--once"]);
    running.gdb(&server, &["set var stop = 1"]);
    server.end();
    running.end();
}

#[test]
fn a_debugger_kills_what_it_has_attached_to() {
    let mut running = Running::start();
    let server = running.attach(&[]);
    running.gdb(&server, &["kill"]);
    let (_, said) = server.end();
    assert!(said.contains("Killing process(es):"), "{said}");
    let status = running.child.wait().expect("it ends");
    assert_eq!(status.code(), None, "{status}");
}

/// What a program prints that is run to its end.
fn printed(options: &[&str], program: &str, arguments: &[&str]) -> String {
    let server = Server::start(options, Path::new(program), arguments);
    let said = gdb(server.port, Path::new("/bin/sh"), &["continue"]);
    assert!(said.contains("exited normally"), "{said}");
    server.end().0
}

#[test]
fn programs_are_run_through_what_is_wanted() {
    let shell = |script| ["-c", script];
    let word = printed(
        &["--once", "--wrapper", "env", "WORD=through env", "--"],
        "/bin/sh",
        &shell("echo $WORD"),
    );
    assert_eq!(word, "through env\n");
    // The arguments are the shell's, or they are not.
    let stars = ["*.nothing", "$0"];
    assert_eq!(printed(&["--once"], "/bin/echo", &stars), "*.nothing $0\n");
    let expanded = printed(&["--once", "--startup-with-shell"], "/bin/echo", &stars);
    assert!(expanded.starts_with("*.nothing ") && !expanded.contains("$0"));
    let both = printed(
        &[
            "--once",
            "--startup-with-shell",
            "--wrapper",
            "env",
            "A=1",
            "--",
        ],
        "/usr/bin/printenv",
        &["A"],
    );
    assert_eq!(both, "1\n");
    // The one bit of the personality that says whether addresses are random.
    let personality = ["/proc/self/personality"];
    let plain = printed(&["--once"], "/bin/cat", &personality);
    assert_eq!(plain, "00040000\n");
    let random = printed(
        &["--once", "--no-disable-randomization"],
        "/bin/cat",
        &personality,
    );
    assert_eq!(random, "00000000\n");
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    for (arguments, reason) in [
        (
            &["--attach", "localhost:0", "none"][..],
            "takes localhost:0 and a PID",
        ),
        (&["--attach", "localhost:0", "999999999"], "there is none"),
        (&["--multi", "localhost:0"], "--multi is not supported"),
        (
            &["--disable-packet=T", "localhost:0", "true"],
            "all packets are served",
        ),
        (
            &["--debug-format=x", "localhost:0", "true"],
            "Unknown debug-format argument",
        ),
        (&["localhost:0"], "no program"),
        (&["/dev/ttyS0", "true"], "is no place to listen"),
    ] {
        let output = kscope()
            .arg("gdbserver")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("kscope runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(reason), "{arguments:?}: {said}");
        assert!(!output.status.success());
    }
    // Whatever the program is run through has its own reasons.
    let output = kscope()
        .args([
            "gdbserver",
            "--wrapper",
            "env",
            "A=1",
            "--",
            "localhost:0",
            "/nothing/there",
        ])
        .stdin(Stdio::null())
        .output()
        .expect("kscope runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("/nothing/there") && said.contains("exited with code 127"),
        "{said}"
    );
    let version = kscope().args(["gdbserver", "--version"]).output();
    let version = version.expect("kscope runs").stdout;
    assert!(String::from_utf8_lossy(&version).contains(env!("CARGO_PKG_VERSION")));
}
