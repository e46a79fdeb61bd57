//! A client's socket: packets in, packets out, acknowledged as long as the client wants.
//!
//! GDB manual, "Packet Acknowledgment". Everything is buffered: a system call per byte would limit memory dumps to a
//! fifth of a megabyte a second.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::encode::{Reply, checksum};
use super::frame::{Framer, Item};
use crate::connection::Stream;

/// The longest packet either way, as `PacketSize` says it; twice the most memory that is read at once, and some.
pub(crate) const PACKET_SIZE: usize = 0x4_0400;

/// The most that is read from the socket at once.
const READ_SIZE: usize = 64 * 1024;

/// What has come of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Something has arrived.
    Some,
    /// The stream has ended.
    End,
    /// A signal came first.
    Interrupted,
}

/// A client's socket.
#[derive(Debug)]
pub(crate) struct Link {
    stream: Stream,
    framer: Framer,
    buf: Box<[u8]>,
    out: Vec<u8>,
    /// Whether packets are acknowledged. The last one is then kept until the next is sent.
    acknowledges: bool,
    last: Vec<u8>,
}

impl Link {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            framer: Framer::new(PACKET_SIZE),
            buf: vec![0; READ_SIZE].into(),
            out: Vec::new(),
            acknowledges: true,
            last: Vec::new(),
        }
    }

    /// Who is at the other end, in words.
    pub(crate) fn peer(&self) -> String {
        self.stream.peer()
    }

    /// Reads what has arrived, or waits for it. What is for the link itself is dealt with; the rest goes to `items`.
    pub(crate) fn read(&mut self, items: &mut VecDeque<Item>) -> io::Result<Arrival> {
        let read = match self.stream.read(&mut self.buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Ok(Arrival::Interrupted);
            }
            result => result?,
        };
        let mut found = VecDeque::new();
        self.framer.push(&self.buf[..read], &mut found);
        let mut again = false;
        for item in found {
            match item {
                Item::Ack => {}
                // Once, however often it was asked for.
                Item::Nak if self.acknowledges => again = true,
                Item::Nak => {}
                // It comes again.
                Item::Damaged if self.acknowledges => self.out.push(b'-'),
                Item::Interrupt => items.push_back(item),
                Item::Packet(_) | Item::TooLong | Item::Damaged => {
                    if self.acknowledges {
                        self.out.push(b'+');
                    }
                    items.push_back(item);
                }
            }
        }
        if again {
            self.out.extend_from_slice(&self.last);
        }
        Ok(match read {
            0 => Arrival::End,
            _ => Arrival::Some,
        })
    }

    /// Packets are not acknowledged any more, in either direction, after what has been sent so far.
    pub(crate) fn stop_acknowledging(&mut self) {
        self.acknowledges = false;
        self.last = Vec::new();
    }

    /// Sends a notification, which is never acknowledged: GDB manual, "Notification Packets".
    pub(crate) fn notify(&mut self, body: &[u8]) {
        log::trace!("notified {}", body.escape_ascii());
        let sum = format!("#{:02x}", checksum(body));
        self.out.push(b'%');
        self.out.extend_from_slice(body);
        self.out.extend_from_slice(sum.as_bytes());
    }

    /// Sends a packet, with the next [`Link::flush_at_once`].
    pub(crate) fn send(&mut self, reply: Reply) {
        self.send_raw(&reply.finish());
    }

    /// Sends a packet that has its frame and its checksum.
    pub(crate) fn send_raw(&mut self, packet: &[u8]) {
        log::trace!("sent {}", packet.escape_ascii());
        self.out.extend_from_slice(packet);
        if self.acknowledges {
            self.last.clear();
            self.last.extend_from_slice(packet);
        }
    }

    /// Has the socket take as much as it takes without waiting. Whether that is everything.
    pub(crate) fn flush_at_once(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match self.stream.write_at_once(&self.out)? {
                0 => break,
                taken => drop(self.out.drain(..taken)),
            }
        }
        Ok(self.out.is_empty())
    }

    /// Bytes that are yet to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Waits until the socket takes something, or the time has passed.
    pub(crate) fn wait_for_room(&self, timeout: Duration) -> io::Result<()> {
        self.stream.has_room(timeout).map(drop)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, Link) {
        let (client, stream) = UnixStream::pair().unwrap();
        (client, Link::new(Stream::Unix(stream)))
    }

    fn answer(client: &mut UnixStream, link: &mut Link, len: usize) -> Vec<u8> {
        assert!(link.flush_at_once().unwrap());
        let mut bytes = vec![0; len];
        client.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_not_acknowledged_comes_again() {
        let (mut client, mut link) = pair();
        let mut items = VecDeque::new();
        link.send(Reply::ok());
        assert_eq!(answer(&mut client, &mut link, 6), b"$OK#9a");
        for _ in 0..3 {
            client.write_all(b"-").unwrap();
            assert_eq!(link.read(&mut items).unwrap(), Arrival::Some);
            assert_eq!(answer(&mut client, &mut link, 6), b"$OK#9a");
        }
        client.write_all(b"$g#68$g#67").unwrap();
        assert_eq!(link.read(&mut items).unwrap(), Arrival::Some);
        assert_eq!(answer(&mut client, &mut link, 2), b"-+");
        assert_eq!(items, [Item::Packet(b"g".to_vec())]);
        drop(client);
        assert_eq!(link.read(&mut items).unwrap(), Arrival::End);
    }

    #[test]
    fn without_acknowledgements_damage_is_told_in_its_place() {
        let (mut client, mut link) = pair();
        let mut items = VecDeque::new();
        link.stop_acknowledging();
        client.write_all(b"-+$g#67$g#68\x03").unwrap();
        assert_eq!(link.read(&mut items).unwrap(), Arrival::Some);
        assert_eq!(
            items,
            [Item::Packet(b"g".to_vec()), Item::Damaged, Item::Interrupt]
        );
        link.send(Reply::ok());
        assert_eq!(answer(&mut client, &mut link, 6), b"$OK#9a");
    }
}
