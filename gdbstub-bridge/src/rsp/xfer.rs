//! `qXfer:OBJECT:read`: documents in pieces.
//!
//! GDB manual, "General Query Packets", `qXfer read`. A document is made when its beginning is read, and kept until
//! another is or the guest runs on, so that its pieces fit each other.

use super::encode::{Reply, address_and_length, number, split, unescape};
use super::link::PACKET_SIZE;
use super::{Client, EFAULT, EINVAL, libraries, threads};
use crate::target::GuestTarget;

/// The most bytes of one piece: all of them may need an escape.
const MOST: usize = (PACKET_SIZE - 16) / 2;

/// The document that is being read.
#[derive(Debug)]
pub(crate) struct Document {
    object: &'static str,
    bytes: Vec<u8>,
}

pub(super) fn answer(
    client: &mut Client,
    target: &mut GuestTarget,
    packet: &[u8],
) -> Option<Reply> {
    let (object, rest) = split(packet.strip_prefix(b"qXfer:")?, b':')?;
    let is_process = target.process.is_some();
    let object = match object {
        b"auxv" => "auxv",
        b"threads" => "threads",
        b"libraries-svr4" => "libraries-svr4",
        b"siginfo" if is_process && rest.starts_with(b"write") => {
            return Some(write_signal(client, target, rest));
        }
        b"siginfo" if is_process => "siginfo",
        b"exec-file" => "exec-file",
        // gdbstub's: the target description.
        _ => return None,
    };
    let place = rest.strip_prefix(b"read:").and_then(|rest| {
        let (annex, place) = split(rest, b':')?;
        // The annex of that names a process.
        let is_right = annex.is_empty() || (object == "exec-file" && number(annex).is_some());
        is_right.then(|| Some((annex, address_and_length(place)?)))?
    });
    let Some((annex, (offset, len))) = place else {
        return Some(Reply::error(EINVAL));
    };
    let kept = client
        .document
        .take()
        .filter(|document| offset > 0 && document.object == object);
    let document = match kept {
        Some(document) => document,
        None => match bytes(client, target, object, annex) {
            Some(bytes) => Document { object, bytes },
            None => return Some(Reply::error(EFAULT)),
        },
    };
    let reply = piece(&document.bytes, offset, len);
    client.document = Some(document);
    Some(reply)
}

/// The document, unless the host has none.
fn bytes(client: &Client, target: &mut GuestTarget, object: &str, annex: &[u8]) -> Option<Vec<u8>> {
    match object {
        "threads" => return Some(threads::document(client, target).into_bytes()),
        "libraries-svr4" => return Some(libraries::document(client, target).into_bytes()),
        "auxv" if target.process.is_none() => return Some(auxv(target)),
        _ => {}
    }
    if object == "exec-file"
        && let Some(image) = &target.image
    {
        // A GDB that was started without a file takes it from there.
        let path = std::path::absolute(image.path()).ok()?;
        return Some(path.into_os_string().into_encoded_bytes());
    }
    let process = target.process.as_ref()?;
    match object {
        "auxv" => std::fs::read(process.file("auxv")).ok(),
        "exec-file" => {
            // Of the process that the annex names, if it does.
            let pid = match annex {
                b"" => target.pid(),
                digits => client.processes(target).named(digits)?,
            };
            let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            Some(path.into_os_string().into_encoded_bytes())
        }
        _ => {
            let cpu = target.cpu_of(client.thread)?;
            let info = target.debugger.signal_info(cpu);
            info.inspect_err(|error| log::debug!("{error}")).ok()
        }
    }
}

/// `siginfo:write::OFFSET:BYTES`.
fn write_signal(client: &Client, target: &mut GuestTarget, request: &[u8]) -> Reply {
    let parsed = request.strip_prefix(b"write::").and_then(|rest| {
        let (offset, bytes) = split(rest, b':')?;
        let offset = usize::try_from(number(offset)?).ok()?;
        Some((offset, unescape(bytes)?))
    });
    let Some((offset, bytes)) = parsed else {
        return Reply::error(EINVAL);
    };
    let len = bytes.len();
    let written = target
        .cpu_of(client.thread)
        .map(|cpu| target.debugger.set_signal_info(cpu, offset, bytes));
    match written {
        Some(Ok(())) => Reply::text(&format!("{len:x}")),
        _ => Reply::error(EFAULT),
    }
}

/// The auxiliary vector of the kernel's process: GDB manual, `qXfer auxiliary vector read`.
fn auxv(target: &GuestTarget) -> Vec<u8> {
    /// Where the vDSO is. GDB would look for it in /proc, by the number that the process has here.
    const AT_SYSINFO_EHDR: u64 = 33;
    const AT_IGNORE: u64 = 1;
    let pid = target.debugger.control().pid();
    let mut vector = std::fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    for [kind, _] in vector.as_chunks_mut::<8>().0.as_chunks_mut::<2>().0 {
        if *kind == AT_SYSINFO_EHDR.to_le_bytes() {
            *kind = AT_IGNORE.to_le_bytes();
        }
    }
    vector
}

fn piece(bytes: &[u8], offset: u64, len: u64) -> Reply {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..));
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
            // Not in any document, not even by their numbers.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => "?".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join() {
        let text = b"<threads>a}b#c</threads>";
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
        assert_eq!(whole, text);
        assert_eq!(piece(text, 24, 5).body(), b"l");
        assert_eq!(piece(text, 25, 5), Reply::error(EINVAL));
        assert_eq!(piece(text, u64::MAX, u64::MAX), Reply::error(EINVAL));
    }

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(
            xml("a<b>\"&'\n\u{85}\u{ffff}"),
            "a&lt;b&gt;&quot;&amp;&apos;???"
        );
        assert_eq!(xml("\u{e9}\u{4e2d}"), "\u{e9}\u{4e2d}");
    }
}
