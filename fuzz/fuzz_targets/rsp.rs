//! The debugger stub survives any client, and so does its guest: it runs on, and the next client is served.
//!
//! An input is what a client sends, in lines. One that begins with `$` is the body of a packet, which gets its frame and
//! its checksum; another is sent as it is, without its newline. The guest is a process that is none (`stand_in.c`).

#![no_main]

use std::cell::RefCell;
use std::io::{PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kscope_fuzz::limits::Counting;
use kscope_gdbstub_bridge::{Listeners, Server, bind_unix, serve};
use kscope_guest::control::{Control, HostTid};
use kscope_kernel::Image;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How long anything may take: a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes that the guest is sent for each input.
const STEPS: &[u8] = &[7; 16];

/// A directory with the guest's program.
struct Program {
    directory: TempDir,
    image: Image,
}

/// A guest and its stub.
struct Guest {
    control: Control,
    socket: std::path::PathBuf,
    steps: PipeWriter,
    _server: Server,
}

impl Program {
    fn compile() -> Program {
        // A guest that was killed does not read. As in every Rust program but for the fuzzer's own main().
        // SAFETY: nothing is called when the signal comes.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("linux");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("stand_in.c");
        let compiled = Command::new("gcc")
            .args([
                "-no-pie",
                "-O1",
                "-g",
                "-fno-omit-frame-pointer",
                "-DVERSION=612",
            ])
            .arg("-o")
            .arg(&path)
            .arg(source)
            .status()
            .expect("gcc");
        assert!(compiled.success());
        let image = Image::open(&path).expect("a kernel");
        Program { directory, image }
    }

    fn start(&self) -> Guest {
        let (read, steps) = std::io::pipe().expect("a pipe");
        let child = Command::new(self.directory.path().join("linux"))
            .stdin(Stdio::from(read))
            .spawn()
            .expect("it starts");
        // Its end is waited for by the engine.
        let pid = HostTid(child.id() as i32);
        let control = Control::start(pid, self.image.clone()).expect("an engine");
        let socket = self.directory.path().join(format!("gdb-{pid}"));
        // Of a guest before, which had the same pid.
        let _ = std::fs::remove_file(&socket);
        let listeners = Listeners {
            unix: Some(bind_unix(&socket).expect("a socket")),
            ..Listeners::default()
        };
        let server = serve(listeners, control.clone()).expect("a stub");
        Guest {
            control,
            socket,
            steps,
            _server: server,
        }
    }
}

impl Guest {
    /// Sends all of `bytes`, and reads what comes until the stub closes the connection.
    fn talk(&self, bytes: &[u8]) -> Vec<u8> {
        let Ok(mut stream) = UnixStream::connect(&self.socket) else {
            return Vec::new();
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut sender = stream.try_clone().expect("a socket");
        let bytes = bytes.to_vec();
        // On a thread of its own: the stub may wait for somebody to read.
        let sent = std::thread::spawn(move || {
            let _ = sender.write_all(&bytes);
            let _ = sender.shutdown(std::net::Shutdown::Write);
        });
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("the stub says nothing any more")
            }
            // It has closed the connection with something unread.
            Err(_) => {}
        }
        sent.join().expect("the sender");
        answer
    }

    /// Whether it is there, and not stopped.
    fn runs(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.control.pid()));
        let state = stat.ok().and_then(|stat| {
            let (_, rest) = stat.rsplit_once(')')?;
            rest.trim_start().chars().next()
        });
        matches!(state, Some('S' | 'R' | 'D'))
    }

    fn has_ended(&self) -> bool {
        self.control.exit_status().is_some()
    }
}

impl Drop for Guest {
    /// Ends it, and waits for that: an engine that is gone reaps nobody, and there are many guests.
    fn drop(&mut self) {
        // SAFETY: the call takes numbers only; the process is a child that has not been waited for, or the engine
        // knows of its end.
        if !self.has_ended() {
            unsafe { libc::kill(self.control.pid().0, libc::SIGKILL) };
        }
        assert!(
            self.control.wait_exit(Some(PATIENCE)).is_some(),
            "the guest's end is not noticed"
        );
    }
}

fn framed(input: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for line in input.split(|&byte| byte == b'\n') {
        stream.extend_from_slice(line);
        if let Some(body) = line.strip_prefix(b"$") {
            let sum = body.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
            stream.extend(format!("#{sum:02x}").into_bytes());
        }
    }
    stream
}

thread_local! {
    static PROGRAM: Program = Program::compile();
    static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    GUEST.with_borrow_mut(|guest| {
        let running = guest.get_or_insert_with(|| PROGRAM.with(Program::start));
        let _ = running.steps.write_all(STEPS);
        running.talk(&framed(input));
        let deadline = Instant::now() + PATIENCE;
        while !running.runs() && !running.has_ended() {
            assert!(Instant::now() < deadline, "the guest stands still");
            std::thread::sleep(Duration::from_millis(1));
        }
        let answer = running.talk(b"$?#3f");
        if running.has_ended() || !running.runs() {
            // It was killed, or made to do what it may not. The next one is as good.
            *guest = None;
            return;
        }
        assert!(
            answer.starts_with(b"+$"),
            "the next client is not served: {answer:?}"
        );
        // A guest that does not read any more has been made another one.
        let mut waiting = 0;
        // SAFETY: `waiting` is an int to write to.
        let asked = unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(&running.steps),
                libc::FIONREAD,
                &raw mut waiting,
            )
        };
        if asked != 0 || waiting > 4 * STEPS.len() as libc::c_int {
            *guest = None;
        }
    });
});
