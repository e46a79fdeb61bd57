//! gdb's machine interface, for what takes timing: interrupts and kills.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use crate::guest::{DEADLINE, Guest};

pub struct Mi {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Mi {
    /// A gdb that is connected to the guest, which it has stopped.
    pub fn connect(guest: &Guest) -> Mi {
        let mut child = guest
            .gdb_command(&["--interpreter=mi3"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("gdb runs");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut gdb = Mi {
            child,
            stdin,
            lines,
            seen: Vec::new(),
        };
        gdb.say("-data-evaluate-expression 6*7");
        gdb.wait_for("value=\"42\"");
        gdb
    }

    pub fn say(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").expect("gdb listens");
    }

    /// The next line that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no {text} in\n{}", self.transcript()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("gdb has ended:\n{}", self.transcript())
                }
            }
        }
    }

    /// Whether gdb has said that the guest stopped, since the last wait.
    pub fn has_stopped(&mut self) -> bool {
        let new: Vec<_> = self.lines.try_iter().collect();
        let stopped = new.iter().any(|line| line.contains("*stopped"));
        self.seen.extend(new);
        stopped
    }

    pub fn transcript(&self) -> String {
        self.seen.join("\n")
    }

    /// Ctrl-C.
    pub fn interrupt(&mut self) {
        let status = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Mi {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
