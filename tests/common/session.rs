//! A guest whose shell does what a test says, to compare what kscope sees with what the guest
//! says of itself.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Finished, PATIENCE, Place, finish, wait};

/// The guest's name.
const NAME: &str = "asked";

/// A running guest with a shell.
pub struct Session {
    place: Place,
    child: Child,
    /// Taken to end the shell.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    asked: usize,
}

impl Session {
    /// Boots the kernel; `options` are of `kscope run`.
    pub fn start(kernel: &Path, options: &[&str]) -> Session {
        let place = Place::new();
        let mut kscope = place.kscope();
        kscope.arg("run").arg("-k").arg(kernel);
        kscope
            .args(["--no-gdb", "--name", NAME])
            .args(options)
            .args(["--", "sh"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::inherit());
        let mut child = kscope.spawn().expect("kscope starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut session = Session {
            place,
            child,
            stdin,
            lines,
            asked: 0,
        };
        // It is up when it answers.
        assert_eq!(session.ask("echo up"), "up\n");
        session
    }

    /// What a command of the guest's shell prints. What the command leaves in the background lives
    /// on and should not print.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.asked += 1;
        let mark = format!("--- {} of the session ---", self.asked);
        // The mark is on a line of its own also after output that does not end with one.
        let script = format!("{{ {command}\n}} </dev/null 2>&1; echo; echo '{mark}'\n");
        let stdin = self.stdin.as_mut().expect("a pipe");
        stdin.write_all(script.as_bytes()).expect("a shell");
        let deadline = Instant::now() + PATIENCE;
        let mut answer = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line == mark => break,
                Ok(line) => {
                    answer.push_str(&line);
                    answer.push('\n');
                }
                Err(RecvTimeoutError::Timeout) => panic!("no end of: {command}: {answer}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended at: {command}: {answer}"),
            }
        }
        answer.pop();
        answer
    }

    /// The guest's files and processes on the host.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Runs a verb on the guest: `verb` and its options.
    #[track_caller]
    pub fn kscope(&self, verb: &[&str]) -> Finished {
        let (verb, options) = verb.split_first().expect("a verb");
        finish(self.place.kscope().arg(verb).arg(NAME).args(options))
    }

    /// What a view says as JSON, read while it did not change.
    #[track_caller]
    pub fn view(&self, verb: &[&str]) -> Value {
        let verb = [verb, &["--format", "json"]].concat();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.kscope(&verb);
            let value: Value = serde_json::from_slice(&seen.stdout)
                .unwrap_or_else(|e| panic!("{e}: {}{}", seen.text(), seen.stderr));
            assert_eq!(value["version"], 1);
            if value["torn"] == false {
                assert_eq!(value["warnings"], Value::Array(Vec::new()));
                seen.expect(0);
                return value[verb[0]].clone();
            }
            assert!(Instant::now() < deadline, "torn for ever: {verb:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends the guest.
impl Drop for Session {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if thread::panicking() {
            let _ = self.child.kill();
        }
        wait(&mut self.child);
    }
}
