//! `qXfer:OBJECT:read`: documents in pieces.
//!
//! GDB manual, "General Query Packets", `qXfer read`. A document is made when its beginning is read, and kept until
//! another is or the guest runs on, so that its pieces fit each other.

use super::encode::{Reply, address_and_length, split};
use super::link::PACKET_SIZE;
use super::{Client, EINVAL, libraries, threads};
use crate::target::GuestTarget;

/// The most bytes of one piece: all of them may need an escape.
const MOST: usize = (PACKET_SIZE - 16) / 2;

/// The document that is being read.
#[derive(Debug)]
pub(crate) struct Document {
    object: &'static str,
    text: String,
}

pub(super) fn answer(
    client: &mut Client,
    target: &mut GuestTarget,
    packet: &[u8],
) -> Option<Reply> {
    let (object, rest) = split(packet.strip_prefix(b"qXfer:")?, b':')?;
    let object = match object {
        b"threads" => "threads",
        b"libraries-svr4" => "libraries-svr4",
        // gdbstub's: the target description.
        _ => return None,
    };
    let place = rest.strip_prefix(b"read::").and_then(address_and_length);
    let Some((offset, len)) = place else {
        return Some(Reply::error(EINVAL));
    };
    let kept = client
        .document
        .take()
        .filter(|document| offset > 0 && document.object == object);
    let document = kept.unwrap_or_else(|| Document {
        object,
        text: match object {
            "threads" => threads::document(client, target),
            _ => libraries::document(target),
        },
    });
    let reply = piece(&document.text, offset, len);
    client.document = Some(document);
    Some(reply)
}

fn piece(text: &str, offset: u64, len: u64) -> Reply {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| text.as_bytes().get(offset..));
    let Some(rest) = rest else {
        return Reply::error(EINVAL);
    };
    let len = usize::try_from(len).unwrap_or(MOST).min(MOST);
    let (kind, bytes) = match rest.get(..len) {
        Some(bytes) if len < rest.len() => ("m", bytes),
        _ => ("l", rest),
    };
    let mut reply = Reply::text(kind);
    reply.escaped(bytes);
    reply
}

/// Text for an attribute or between tags.
pub(super) fn xml(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            '\'' => "&apos;".to_owned(),
            c if c.is_ascii_control() || !c.is_ascii() => "?".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join() {
        let text = "<threads>a}b#c</threads>";
        let mut whole = Vec::new();
        loop {
            let reply = piece(text, whole.len() as u64, 5);
            let (&kind, body) = reply.body().split_first().unwrap();
            whole.extend(super::super::encode::unescape(body).unwrap());
            if kind == b'l' {
                break;
            }
            assert_eq!(kind, b'm');
        }
        assert_eq!(whole, text.as_bytes());
        assert_eq!(piece(text, 24, 5).body(), b"l");
        assert_eq!(piece(text, 25, 5), Reply::error(EINVAL));
        assert_eq!(piece(text, u64::MAX, u64::MAX), Reply::error(EINVAL));
    }

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(xml("a<b>\"&'\n\u{e9}"), "a&lt;b&gt;&quot;&amp;&apos;??");
    }
}
