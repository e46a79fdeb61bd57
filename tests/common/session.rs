//! A guest whose shell does what a test says, to compare what kscope sees with what the guest
//! says of itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Finished, PATIENCE, Place, TestKernel, finish, wait};

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
    pub fn start(kernel: &TestKernel, options: &[&str]) -> Session {
        let place = Place::new();
        let mut kscope = place.kscope();
        kscope.arg("run").arg("-k").arg(&kernel.path);
        kscope
            .args(["--no-gdb", "--name", NAME])
            .args(kernel.args)
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
        self.begin(command);
        self.end()
    }

    /// Ends a guest that would not end by itself.
    pub fn kill(mut self) {
        self.child.kill().expect("kscope runs");
    }

    /// Begins a command of the guest's shell.
    #[track_caller]
    pub fn begin(&mut self, command: &str) {
        self.asked += 1;
        let mark = self.mark();
        // The mark is on a line of its own also after output that does not end with one.
        let script = format!("{{ {command}\n}} </dev/null 2>&1; echo; echo '{mark}'\n");
        let stdin = self.stdin.as_mut().expect("a pipe");
        stdin.write_all(script.as_bytes()).expect("a shell");
    }

    /// What the command that was begun has printed when it has ended.
    #[track_caller]
    pub fn end(&mut self) -> String {
        let mark = self.mark();
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
                Err(RecvTimeoutError::Timeout) => panic!("the command does not end: {answer}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the guest has ended: {answer}"),
            }
        }
        answer.pop();
        answer
    }

    /// What is printed after the last command.
    fn mark(&self) -> String {
        format!("--- {} of the session ---", self.asked)
    }

    /// The guest's files and processes on the host.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A verb on the guest: `verb` and its options.
    pub fn command(&self, verb: &[&str]) -> Command {
        let (verb, options) = verb.split_first().expect("a verb");
        let mut kscope = self.place.kscope();
        kscope.arg(verb).arg(NAME).args(options);
        kscope
    }

    /// Runs a verb on the guest: `verb` and its options.
    #[track_caller]
    pub fn kscope(&self, verb: &[&str]) -> Finished {
        finish(&mut self.command(verb))
    }

    /// Runs gdb's Python on the guest, which stands still meanwhile; returns what it prints. The
    /// function `view("ps", OPTION...)` is what `kscope ps OPTION... --format json` has under `ps`.
    #[track_caller]
    pub fn gdb_python(&self, script: &str) -> String {
        let kscope = env!("CARGO_BIN_EXE_kscope");
        let prelude = format!(
            "import gdb, json, subprocess\n\
             gdb.execute('set pagination off')\n\
             def view(verb, *options):\n\
             \x20   command = ['{kscope}', verb, *options, '--format', 'json']\n\
             \x20   seen = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)\n\
             \x20   return seen[verb]\n"
        );
        let file = self.place.path().join("script.py");
        std::fs::write(&file, prelude + script).expect("a script");
        let mut gdb = self.command(&["gdb"]);
        gdb.args(["--", "-batch", "-x"]).arg(&file);
        let finished = finish(&mut gdb);
        std::fs::remove_file(&file).expect("the script");
        let text = finished.text();
        assert!(
            !finished.stderr.contains("Traceback"),
            "{text}{}",
            finished.stderr
        );
        text
    }

    /// Asks the guest, a view, and the guest again, until the view fits between the two answers:
    /// until `check` does not complain of it.
    #[track_caller]
    pub fn compare(
        &mut self,
        command: &str,
        verb: &[&str],
        check: impl Fn(&str, &Value, &str) -> Result<(), String>,
    ) {
        let mut complaint = String::new();
        // What the guest does by itself can come in between, but not always.
        for _ in 0..20 {
            let before = self.ask(command);
            let view = self.view(verb);
            let after = self.ask(command);
            match check(&before, &view, &after) {
                Ok(()) => return,
                Err(wrong) => complaint = format!("{wrong}\n{before}\n{view:#}\n{after}"),
            }
        }
        panic!("{complaint}");
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
