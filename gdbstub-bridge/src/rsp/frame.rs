//! Packets out of a stream of bytes.
//!
//! GDB manual, "Overview" and "Packet Acknowledgment" of the remote protocol. Whatever comes, the framer finds its way
//! to the next packet: garbage between packets is dropped, a packet that is cut off by the beginning of the next is
//! forgotten, and one that is too long or has the wrong sum is told of as such.

use std::collections::VecDeque;

use super::encode::nibble;

/// What a client has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// The body of a packet, with its escapes.
    Packet(Vec<u8>),
    /// A packet whose checksum is not that of its body.
    Damaged,
    /// A packet longer than any that is served.
    TooLong,
    /// `+`: the last packet from here has arrived.
    Ack,
    /// `-`: the last packet from here is to be sent again.
    Nak,
    /// The byte 3, between packets: the guest is to stop.
    Interrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between packets.
    Outside,
    /// In a body.
    Body,
    /// Behind the `#`.
    Sum,
    /// Behind the first digit of the checksum, which had this value (None: it was no digit).
    SecondDigit(Option<u8>),
}

/// The state between two pieces of the stream.
#[derive(Debug)]
pub(crate) struct Framer {
    state: State,
    body: Vec<u8>,
    /// The body was longer than `longest`, and is not kept any more.
    overflown: bool,
    longest: usize,
}

impl Framer {
    /// For packets with bodies of at most `longest` bytes.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            state: State::Outside,
            body: Vec::new(),
            overflown: false,
            longest,
        }
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, mut bytes: &[u8], items: &mut VecDeque<Item>) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.state {
                State::Outside => self.outside(byte, items),
                State::Body => {
                    let len = bytes
                        .iter()
                        .position(|&byte| matches!(byte, b'#' | b'$'))
                        .unwrap_or(bytes.len());
                    self.keep(&bytes[..len]);
                    bytes = &bytes[len..];
                    if let Some((&end, rest)) = bytes.split_first() {
                        match end {
                            b'#' => self.state = State::Sum,
                            // In a body it would be escaped: the end of the last packet is lost.
                            _ => self.begin(),
                        }
                        bytes = rest;
                    }
                    continue;
                }
                State::Sum => self.state = State::SecondDigit(nibble(byte)),
                State::SecondDigit(first) => {
                    self.state = State::Outside;
                    let sum = first.zip(nibble(byte)).map(|(high, low)| high << 4 | low);
                    items.push_back(self.end(sum));
                }
            }
            bytes = rest;
        }
    }

    fn outside(&mut self, byte: u8, items: &mut VecDeque<Item>) {
        match byte {
            b'$' => self.begin(),
            b'+' => items.push_back(Item::Ack),
            b'-' => items.push_back(Item::Nak),
            3 => items.push_back(Item::Interrupt),
            _ => {}
        }
    }

    fn begin(&mut self) {
        self.state = State::Body;
        self.body.clear();
        self.overflown = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.overflown || self.body.len() + bytes.len() > self.longest {
            self.overflown = true;
            self.body = Vec::new();
        } else {
            self.body.extend_from_slice(bytes);
        }
    }

    fn end(&mut self, sum: Option<u8>) -> Item {
        let body = std::mem::take(&mut self.body);
        if self.overflown {
            Item::TooLong
        } else if sum == Some(super::encode::checksum(&body)) {
            Item::Packet(body)
        } else {
            Item::Damaged
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The items of a stream, however it is cut up.
    fn items(stream: &[u8]) -> Vec<Item> {
        let (mut whole, mut single) = (VecDeque::new(), VecDeque::new());
        Framer::new(16).push(stream, &mut whole);
        let mut framer = Framer::new(16);
        for byte in stream {
            framer.push(&[*byte], &mut single);
        }
        assert_eq!(whole, single);
        whole.into()
    }

    fn packet(body: &[u8]) -> Item {
        Item::Packet(body.to_vec())
    }

    #[test]
    fn packets_acks_and_interrupts() {
        assert_eq!(
            items(b"+$g#67\x03-$#00"),
            [
                Item::Ack,
                packet(b"g"),
                Item::Interrupt,
                Item::Nak,
                packet(b"")
            ]
        );
        // An interrupt's byte in a body is data.
        assert_eq!(items(b"$\x03#03"), [packet(b"\x03")]);
    }

    #[test]
    fn garbage_does_not_hide_the_next_packet() {
        assert_eq!(items(b"\xff\xfe\x00#$g#67"), [packet(b"g")]);
        assert_eq!(items(b"$m60,$g#67"), [packet(b"g")]);
        assert_eq!(items(b"$g#00$g#67"), [Item::Damaged, packet(b"g")]);
        assert_eq!(items(b"$g#6x$g#67"), [Item::Damaged, packet(b"g")]);
        assert_eq!(items(b"$g##7$g#67"), [Item::Damaged, packet(b"g")]);
        let long = [&b"$"[..], &[b'a'; 17], b"#00$g#67"].concat();
        assert_eq!(items(&long), [Item::TooLong, packet(b"g")]);
    }

    proptest! {
        #[test]
        fn any_stream_is_survived_and_the_next_packet_found(
            stream in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'$'), Just(b'#')], 0..60)
        ) {
            // Enough to end whatever the stream has begun.
            let all = [&stream[..], b"#00#00$g#67"].concat();
            let found = items(&all);
            prop_assert_eq!(found.last(), Some(&packet(b"g")));
        }
    }
}
