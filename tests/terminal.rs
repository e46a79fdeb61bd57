//! `kscope run` on a terminal: a shell's job control, full-screen programs, the
//! window's size, and the terminal's state afterwards.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::thread;

use common::terminal::{on_terminal, size};
use common::{Place, until, wait};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

/// A terminal with a kscope on it.
struct Session {
    place: Place,
    child: Child,
    master: File,
    /// Kept, so that the settings can be looked at after the end.
    slave: OwnedFd,
    before: Termios,
    seen: Arc<Mutex<String>>,
}

impl Session {
    fn start(command: &[&str]) -> Session {
        let place = Place::new();
        let pty = openpty(Some(&size(24, 80)), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let mut kscope = place.run(&["-q"], command);
        on_terminal(&mut kscope, &pty.slave);
        let child = kscope.spawn().unwrap();
        drop(kscope);
        let master = File::from(pty.master);
        let seen = Arc::new(Mutex::new(String::new()));
        let mut reader = master.try_clone().unwrap();
        let sink = Arc::clone(&seen);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                sink.lock().unwrap().push_str(&text);
            }
        });
        Session {
            place,
            child,
            master,
            slave: pty.slave,
            before,
            seen,
        }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn seen(&self) -> String {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for a text; what comes before it is forgotten.
    #[track_caller]
    fn expect(&self, text: &str) {
        until(text, || {
            let mut seen = self.seen.lock().unwrap();
            match seen.find(text) {
                Some(at) => {
                    seen.drain(..at + text.len());
                    true
                }
                None => false,
            }
        });
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = size(rows, columns);
        // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
        let done =
            unsafe { nix::libc::ioctl(self.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &size) };
        assert_eq!(done, 0);
    }

    fn is_raw(&self) -> bool {
        let flags = tcgetattr(self.slave.as_fd()).unwrap().local_flags;
        !flags.intersects(LocalFlags::ISIG | LocalFlags::ECHO)
    }

    /// Waits for the end; the terminal is as it was.
    #[track_caller]
    fn end(mut self, code: i32) {
        let status = wait(&mut self.child);
        assert_eq!(status.code(), Some(code), "{}", self.seen());
        assert_eq!(tcgetattr(&self.slave).unwrap(), self.before);
        self.place.assert_clean();
    }
}

#[test]
fn a_shell_has_job_control() {
    let mut session = Session::start(&["bash", "--norc", "--noediting"]);
    session.types("PS1='<%>'; tty; echo $((6 * 7))\n");
    session.expect("/dev/pts/0");
    session.expect("42");
    // Ctrl-C ends the command and not the shell.
    session.types("sleep 1000; echo after=$?\n");
    session.expect("sleep 1000");
    // Nothing tells from outside that it has been executed.
    thread::sleep(std::time::Duration::from_millis(300));
    session.types("\x03");
    session.expect("<%>");
    // Ctrl-Z stops one.
    session.types("sleep 1000\n");
    session.expect("sleep 1000");
    thread::sleep(std::time::Duration::from_millis(300));
    session.types("\x1a");
    session.expect("Stopped");
    session.types("jobs; kill %1; wait; echo gone\n");
    session.expect("gone");
    // Ctrl-D ends the shell, with its last command's code.
    session.types("(exit 5)\n");
    session.expect("<%>");
    session.types("\x04");
    session.end(5);
}

#[test]
fn the_window_has_a_size_and_changes_it() {
    let mut session = Session::start(&["sh"]);
    session.types("stty size\n");
    session.expect("24 80");
    session.resize(50, 132);
    session.types("until [ \"$(stty size)\" = '50 132' ]; do :; done; echo it is\n");
    session.expect("it is");
    session.types("exit 3\n");
    session.end(3);
}

#[test]
fn full_screen_programs_work() {
    let mut session = Session::start(&["less", "/etc/passwd"]);
    session.expect("root:");
    session.types("q");
    session.end(0);
}

#[test]
fn the_escape_key_ends_a_guest_that_does_not_react() {
    let mut session = Session::start(&["sh", "-c", "stty raw -echo; echo deaf; sleep 1000"]);
    session.expect("deaf");
    session.types("\x1d\x1d\x1d");
    session.end(128 + 9);
}

#[test]
fn a_killed_kscope_leaves_the_terminal_usable() {
    let mut session = Session::start(&["sh", "-c", "echo up; sleep 1000"]);
    session.expect("up");
    assert!(session.is_raw());
    kill(Pid::from_raw(session.child.id() as i32), Signal::SIGKILL).unwrap();
    session.child.wait().unwrap();
    session.place.assert_clean();
    assert_eq!(tcgetattr(&session.slave).unwrap(), session.before);
}

#[test]
fn a_terminal_that_goes_away_ends_the_guest() {
    let session = Session::start(&["sh", "-c", "echo up; sleep 1000"]);
    session.expect("up");
    let Session {
        place,
        mut child,
        master,
        slave,
        seen,
        ..
    } = session;
    drop((slave, seen));
    // The reader thread has a copy of the master; the host hangs up when
    // kscope's session loses its leader's terminal.
    kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
    let status = wait(&mut child);
    assert_eq!(status.code(), Some(129));
    drop(master);
    place.assert_clean();
}

#[test]
fn a_panic_on_a_terminal_is_readable() {
    let session = Session::start(&["sh", "-c", "echo c > /proc/sysrq-trigger"]);
    session.expect("g1 panicked: sysrq triggered crash\r\n");
    session.end(102);
}
