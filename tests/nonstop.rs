//! `kscope gdbserver` in non-stop mode: one thread is looked at while others run.
//!
//! What the real gdb makes of it is in GDB's own test suite, too (`scripts/conformance`).

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use common::PATIENCE;
use common::gdbserver::Server;
use common::programs::{Built, program_with};

fn debuggee() -> Built {
    program_with("nonstop", &["-O0", "-g", "-pthread", "-no-pie"])
}

/// The address of a symbol.
fn address(program: &Path, name: &str) -> u64 {
    let output = Command::new("nm").arg(program).output().expect("nm runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text
        .lines()
        .find(|line| line.ends_with(&format!(" {name}")))
        .expect("the symbol");
    let digits = line.split_whitespace().next().expect("an address");
    u64::from_str_radix(digits, 16).expect("a number")
}

/// A client that speaks the protocol by hand.
struct Client {
    stream: BufReader<TcpStream>,
    /// Notifications that nobody has asked for yet.
    news: VecDeque<String>,
}

impl Client {
    /// Connected, in non-stop, with every thread's state known.
    fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut client = Client {
            stream: BufReader::new(stream),
            news: VecDeque::new(),
        };
        let features = client.ask("qSupported:multiprocess+;swbreak+;no-resumed+;QThreadEvents+");
        for feature in ["QNonStop+", "QThreadEvents+", "no-resumed+"] {
            assert!(features.contains(feature), "{features}");
        }
        client.ok("QStartNoAckMode");
        client.ok("QNonStop:1");
        client
    }

    /// The next packet or notification, with its first character.
    fn receive(&mut self) -> String {
        let mut text = Vec::new();
        self.stream.read_until(b'#', &mut text).expect("a packet");
        assert!(!text.is_empty(), "the server has hung up");
        self.stream.read_exact(&mut [0; 2]).expect("a checksum");
        text.pop();
        let begin = text
            .iter()
            .position(|byte| matches!(byte, b'$' | b'%'))
            .expect("a beginning");
        let mut plain = Vec::new();
        let mut rest = text[begin..].iter();
        while let Some(&byte) = rest.next() {
            if byte == b'*' {
                let count = rest.next().expect("a count") - 29;
                let &last = plain.last().expect("a byte to repeat");
                plain.extend(vec![last; count.into()]);
            } else {
                plain.push(byte);
            }
        }
        String::from_utf8(plain).expect("text")
    }

    fn ask(&mut self, packet: &str) -> String {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        let packet = format!("${packet}#{sum:02x}");
        self.stream
            .get_mut()
            .write_all(packet.as_bytes())
            .expect("the server listens");
        loop {
            let received = self.receive();
            match received.strip_prefix('$') {
                Some(reply) => return reply.to_owned(),
                None => self.news.push_back(received[1..].to_owned()),
            }
        }
    }

    fn ok(&mut self, packet: &str) {
        assert_eq!(self.ask(packet), "OK", "{packet}");
    }

    /// The next news, and, as it is acknowledged with each of them, all that come with it.
    fn news(&mut self) -> Vec<String> {
        let first = match self.news.pop_front() {
            Some(news) => news,
            None => self.receive().replacen('%', "", 1),
        };
        let mut all = vec![first.strip_prefix("Stop:").expect("a stop").to_owned()];
        loop {
            let next = self.ask("vStopped");
            if next == "OK" {
                return all;
            }
            all.push(next);
        }
    }

    /// A number in the program's memory.
    fn number(&mut self, addr: u64) -> u64 {
        let reply = self.ask(&format!("m{addr:x},8"));
        u64::from_str_radix(&reply, 16)
            .expect("memory")
            .swap_bytes()
    }
}

/// The value of a key in the news of a stop.
fn value<'n>(news: &'n str, key: &str) -> &'n str {
    let pair = news
        .split(';')
        .find_map(|pair| pair.split_once(':').filter(|(k, _)| k.ends_with(key)));
    pair.map_or("", |(_, value)| value)
}

#[test]
fn threads_stop_and_run_by_themselves() {
    let built = debuggee();
    let program = built.path("nonstop");
    let (here, count) = (address(&program, "here"), address(&program, "count"));
    let server = Server::start(&["--once"], &program, &[]);
    let mut client = Client::connect(server.port);

    // One thread, which is stopped.
    let first = client.ask("?");
    assert!(first.starts_with("T05thread:p"), "{first}");
    let main = value(&first, "thread").to_owned();
    client.ok("vStopped");

    client.ok("QThreadEvents:1");
    client.ok(&format!("Z0,{here:x},1"));
    client.ok("vCont;c");
    // Those that begin are held, until the last one comes upon the breakpoint.
    let (mut begun, mut at) = (Vec::new(), String::new());
    while at.is_empty() {
        for news in client.news() {
            let thread = value(&news, "thread").to_owned();
            if news.starts_with("T05create:;") {
                client.ok(&format!("vCont;c:{thread}"));
                begun.push(thread);
            } else {
                assert!(news.starts_with("T05swbreak:;"), "{news}");
                let pc = u64::from_str_radix(value(&news, "10"), 16).expect("a register");
                assert_eq!(pc.swap_bytes(), here);
                at = thread;
            }
        }
    }
    assert_eq!(begun.len(), 2);
    let other = begun.iter().find(|&thread| *thread != at).expect("another");

    // The other one counts on, and the breakpoint does not show.
    let (before, deadline) = (client.number(count), Instant::now() + PATIENCE);
    while client.number(count) == before {
        assert!(Instant::now() < deadline, "nobody counts");
    }
    assert_ne!(client.ask(&format!("m{here:x},1")), "cc");
    // So it says when it is asked again, of that one only.
    let again = client.ask("?");
    assert!(again.starts_with("T05swbreak:;"), "{again}");
    client.ok("vStopped");

    // A step of the one that is stopped.
    client.ok(&format!("z0,{here:x},1"));
    client.ok(&format!("vCont;s:{at}"));
    let step = client.news();
    assert!(step[0].starts_with("T05") && value(&step[0], "thread") == at);
    assert_ne!(
        value(&step[0], "10"),
        format!("{:016x}", here.swap_bytes()),
        "{step:?}"
    );

    // The other two, in both ways.
    client.ok(&format!("vCont;t:{other}"));
    let halt = client.news();
    assert!(halt[0].starts_with("T00") && value(&halt[0], "thread") == other);
    let still = client.number(count);
    client.ok("vCtrlC");
    let interrupt = client.news();
    assert!(interrupt[0].starts_with("T02") && value(&interrupt[0], "thread") == main);
    assert_eq!(client.number(count), still);

    // The first to its end: then nothing runs.
    client.ok(&format!("vCont;c:{at}"));
    let mut ends = client.news();
    while ends.len() < 2 {
        ends.extend(client.news());
    }
    assert_eq!(ends, [format!("w0;{at}"), "N".to_owned()]);

    // And all.
    client.ok("vCont;c");
    let mut ends = client.news();
    while !ends.iter().any(|news| news.starts_with('W')) {
        ends.extend(client.news());
    }
    let pid = main
        .trim_start_matches('p')
        .split('.')
        .next()
        .expect("a pid");
    // The thread may have been on its way out when the process exited.
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert!([format!("w0;{other}"), format!("w3;{other}")].contains(&ends[0]));
    assert_eq!(ends[1], format!("W03;process:{pid}"));
    assert_eq!(server.end().0, "counted: 1\n");
}

#[test]
fn all_stop_again() {
    let built = debuggee();
    let program = built.path("nonstop");
    let (here, count) = (address(&program, "here"), address(&program, "count"));
    let server = Server::start(&["--once"], &program, &[]);
    let mut client = Client::connect(server.port);
    client.ok(&format!("Z0,{here:x},1"));
    // An action does not touch a thread of whose stop the client has yet to hear.
    for _ in 0..2 {
        assert!(client.ask("?").starts_with("T05thread:"));
        client.ok("vCont;c");
    }
    client.ok("vStopped");
    client.ok("vCont;c");
    let news = client.news();
    assert!(news[0].starts_with("T05swbreak:;"), "{news:?}");
    // The older forms say nothing of the threads that run.
    assert!(client.ask("c").starts_with('E'));
    assert!(client.ask("vCont;x").starts_with('E'));
    client.ok("QNonStop:0");
    let still = client.number(count);
    assert!(client.ask("?").starts_with("T05"));
    assert_eq!(client.number(count), still);
    client.ok(&format!("z0,{here:x},1"));
    // One thread alone, to its end: the others are held, and there is nothing to wait for.
    let thread = value(&news[0], "thread");
    assert_eq!(client.ask(&format!("vCont;c:{thread}")), "N");
    let end = client.ask("vCont;c");
    assert!(end.starts_with("W03;process:"), "{end}");
    assert_eq!(server.end().0, "counted: 1\n");
}

/// gdb's machine interface.
struct Mi {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
    seen: String,
}

impl Mi {
    /// A gdb, which ends by itself if it is to wait for too long.
    fn start(program: &Path) -> Mi {
        let mut child = Command::new("timeout")
            .args([&PATIENCE.as_secs().to_string(), "gdb", "-nx", "-q"])
            .args(["--interpreter=mi3", "-iex", "set sysroot /"])
            .args(["-iex", "set debuginfod enabled off"])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("gdb runs");
        Mi {
            stdin: child.stdin.take().expect("stdin"),
            stdout: BufReader::new(child.stdout.take().expect("stdout")),
            child,
            seen: String::new(),
        }
    }

    /// The first line that begins with `wanted`.
    fn wait_for(&mut self, wanted: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).expect("a line");
            assert!(read > 0, "no {wanted} in\n{}", self.seen);
            self.seen += &line;
            if line.starts_with(wanted) {
                return line;
            }
        }
    }

    /// What a command results in.
    fn ask(&mut self, command: &str) -> String {
        self.seen += &format!("> {command}\n");
        writeln!(self.stdin, "{command}").expect("gdb listens");
        let line = self.wait_for("^");
        assert!(!line.starts_with("^error"), "{}", self.seen);
        line
    }

    fn number(&mut self, expression: &str) -> String {
        self.ask(&format!("-data-evaluate-expression {expression}"))
    }
}

impl Drop for Mi {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With the threads' states as they are, or with gdb's own way of stopping all of them in this mode.
fn debug_with_gdb(mode: &[&str], holds_all: bool) {
    let built = debuggee();
    let program = built.path("nonstop");
    let server = Server::start(&["--once"], &program, &[]);
    let mut gdb = Mi::start(&program);
    gdb.ask("-gdb-set mi-async on");
    for command in mode {
        gdb.ask(command);
    }
    gdb.ask(&format!("-target-select remote localhost:{}", server.port));
    gdb.ask("-break-insert here");
    gdb.ask("-exec-continue --all");
    let stopped = gdb.wait_for("*stopped,reason=\"breakpoint-hit\"");
    let (_, thread) = stopped.split_once("thread-id=\"").expect("a thread");
    let thread = thread.split('"').next().expect("its number").to_owned();
    let info = gdb.ask("-thread-info");
    assert_eq!(info.contains("running"), !holds_all, "{}", gdb.seen);
    let before = gdb.number("count");
    let deadline = Instant::now() + PATIENCE;
    while !holds_all && gdb.number("count") == before {
        assert!(Instant::now() < deadline, "nobody counts:\n{}", gdb.seen);
    }
    assert!(
        gdb.ask(&format!("-stack-list-frames --thread {thread}"))
            .contains("passing")
    );
    gdb.ask(&format!("-exec-finish --thread {thread}"));
    gdb.wait_for("*stopped,reason=\"function-finished\"");
    gdb.ask(&format!("-exec-next --thread {thread}"));
    gdb.wait_for("*stopped,reason=\"end-stepping-range\"");
    gdb.ask(&format!("-exec-continue --thread {thread}"));
    gdb.wait_for("*stopped,reason=\"breakpoint-hit\"");
    if !holds_all {
        gdb.ask("-exec-interrupt --all");
        for _ in 0..2 {
            gdb.wait_for("*stopped,reason=\"signal-received\",signal-name=\"0\"");
        }
    }
    assert!(!gdb.ask("-thread-info").contains("running"), "{}", gdb.seen);
    assert_eq!(gdb.number("count"), gdb.number("count"));
    gdb.ask("-break-delete");
    gdb.ask("-exec-continue --all");
    gdb.wait_for("*stopped,reason=\"exited\",exit-code=\"03\"");
    drop(gdb);
    assert_eq!(server.end().0, "counted: 1\n");
}

#[test]
fn gdb_looks_at_a_thread_while_others_run() {
    debug_with_gdb(&["-gdb-set non-stop on"], false);
}

#[test]
fn gdb_stops_all_by_itself() {
    debug_with_gdb(
        &["-interpreter-exec console \"maint set target-non-stop on\""],
        true,
    );
}
