//! A `kscope gdbserver`, and the real gdb that talks to it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

/// A server, and what it says.
pub struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// Where it listens.
    pub port: u16,
    said: String,
}

/// The command.
pub fn kscope() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kscope"))
}

impl Server {
    pub fn start(options: &[&str], program: &Path, arguments: &[&str]) -> Server {
        let mut child = kscope()
            .arg("gdbserver")
            .args(options)
            .arg("localhost:0")
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kscope runs");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr"));
        let mut said = String::new();
        let port = loop {
            let mut line = String::new();
            let read = stderr.read_line(&mut line).expect("a line");
            assert!(read > 0, "the server has ended: {said}");
            said += &line;
            if let Some(port) = line.trim().strip_prefix("Listening on port ") {
                break port.parse().expect("a port");
            }
        };
        Server {
            child,
            stderr,
            port,
            said,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the program has printed, and everything that the server has said, once both have ended.
    pub fn end(mut self) -> (String, String) {
        let mut said = self.said;
        std::io::Read::read_to_string(&mut self.stderr, &mut said).expect("text");
        let output = self.child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{said}");
        (String::from_utf8_lossy(&output.stdout).into_owned(), said)
    }
}

/// gdb, connected, with commands; it ends when they have been done.
pub fn gdb(port: u16, program: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.args(["120", "gdb", "-nx", "-batch", "-iex", "set sysroot /"]);
    gdb.args(["-iex", "set debuginfod enabled off"]);
    gdb.args(["-ex", &format!("target remote localhost:{port}")]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output: Output = gdb.arg(program).output().expect("gdb runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

/// All of it is in the text, in this order.
#[track_caller]
pub fn assert_says(text: &str, all: &[&str]) {
    let mut rest = text;
    for wanted in all {
        match rest.split_once(wanted) {
            Some((_, after)) => rest = after,
            None => panic!("no {wanted:?} in its place in:\n{text}"),
        }
    }
}
