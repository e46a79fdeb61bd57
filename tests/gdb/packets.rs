//! A client that speaks the remote protocol by hand, for what no debugger sends.

// Each test file compiles this for itself and uses its own part.
#![allow(dead_code)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::guest::{DEADLINE, Guest};

pub struct Packets {
    socket: UnixStream,
    received: Vec<u8>,
    acknowledges: bool,
    sent: String,
}

pub fn packet(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

impl Packets {
    pub fn connect(guest: &Guest) -> Packets {
        let socket = guest.connect();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("timeout");
        Packets {
            socket,
            received: Vec::new(),
            acknowledges: true,
            sent: String::new(),
        }
    }

    /// As gdb begins, without acknowledgements.
    pub fn connect_as_gdb(guest: &Guest) -> (Packets, String) {
        let mut client = Packets::connect(guest);
        let features = client.ask(b"qSupported:multiprocess+;swbreak+;qRelocInsn+;vContSupported+");
        assert_eq!(client.ask(b"QStartNoAckMode"), b"OK");
        client.send(b"+");
        client.acknowledges = false;
        (client, String::from_utf8(features).expect("text"))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        if bytes != b"+" {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            self.sent = format!(
                "{}, {shown}",
                self.sent.rsplit(", ").next().unwrap_or_default()
            );
        }
        self.socket.write_all(bytes).expect("the stub listens");
    }

    fn next(&mut self) -> u8 {
        let deadline = Instant::now() + DEADLINE;
        while self.received.is_empty() {
            let mut buf = vec![0; 1 << 16];
            match self.socket.read(&mut buf) {
                Ok(0) => panic!("the stub has hung up after {}", self.sent),
                Ok(read) => {
                    self.received.extend_from_slice(&buf[..read]);
                    self.received.reverse();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "no reply to {}", self.sent);
                }
                Err(error) => panic!("{error}"),
            }
        }
        self.received.pop().expect("a byte")
    }

    /// The body of the next packet, without run lengths and escapes. What is in front of it is dropped.
    pub fn receive(&mut self) -> Vec<u8> {
        while self.next() != b'$' {}
        let (mut body, mut sum) = (Vec::new(), 0_u8);
        loop {
            let byte = self.next();
            if byte == b'#' {
                break;
            }
            sum = sum.wrapping_add(byte);
            match byte {
                b'*' => {
                    let count = self.next();
                    sum = sum.wrapping_add(count);
                    let last = *body.last().expect("a character");
                    body.extend(std::iter::repeat_n(last, (count - 29).into()));
                }
                b'}' => {
                    let escaped = self.next();
                    sum = sum.wrapping_add(escaped);
                    body.push(escaped ^ 0x20);
                }
                byte => body.push(byte),
            }
        }
        let digits = [self.next(), self.next()];
        let said = std::str::from_utf8(&digits).expect("digits");
        assert_eq!(u8::from_str_radix(said, 16), Ok(sum));
        if self.acknowledges {
            // After the last packet the stub hangs up without waiting for it.
            let _ = self.socket.write_all(b"+");
        }
        body
    }

    /// Sends a packet and returns the reply.
    pub fn ask(&mut self, body: &[u8]) -> Vec<u8> {
        self.send(&packet(body));
        self.receive()
    }

    /// As `ask`, in text.
    pub fn ask_text(&mut self, body: &str) -> String {
        String::from_utf8_lossy(&self.ask(body.as_bytes())).into_owned()
    }

    /// Drops what else comes, such as what was sent again.
    fn drain(&mut self) {
        self.received.clear();
        let mut buf = [0; 4096];
        while self.socket.read(&mut buf).is_ok_and(|read| read > 0) {}
    }

    /// The session goes on: the stub answers a question that is asked of it.
    pub fn assert_alive(&mut self, after: &[u8]) {
        // Whatever is still to come belongs to what was sent before.
        self.send(&packet(b"qAttached"));
        for _ in 0..8 {
            if self.receive() == b"1" {
                self.drain();
                return;
            }
        }
        panic!("no answer after {}", String::from_utf8_lossy(after));
    }
}
