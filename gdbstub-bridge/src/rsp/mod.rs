//! What the stub answers itself, in front of gdbstub.
//!
//! gdbstub keeps the base of the protocol: registers, memory in hexadecimal written (`M`), threads chosen and asked
//! after, resumption, plain breakpoints, `monitor`. Its table of packets is closed, so what it lacks is answered here
//! before it gets to see it, one file per family; and what it says it supports is completed with that.

mod breakpoints;
pub(crate) mod encode;
pub(crate) mod frame;
mod libraries;
pub(crate) mod link;
mod memory;
mod search;
pub(crate) mod stub;
mod supported;
mod threads;
mod xfer;

pub(crate) use breakpoints::Actions;
use gdbstub::common::Tid;

use crate::target::GuestTarget;
use encode::Reply;

/// `EINVAL`, in the remote protocol's numbers.
pub(crate) const EINVAL: u8 = 22;
/// `EFAULT`, in the remote protocol's numbers.
pub(crate) const EFAULT: u8 = 14;

/// What is known of the client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Replies to `x` begin with a `b`: GDB 16 and later. LLDB's did not when it introduced the packet.
    marks_binary: bool,
    /// Thread ids have a process's in front.
    multiprocess: bool,
    /// What is being read in pieces.
    document: Option<xfer::Document>,
    /// The thread that `Hg` has chosen; None means any.
    thread: Option<Tid>,
}

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This is the reply.
    Reply(Reply),
    /// This is the reply, and the last packet that is acknowledged is the one it replies to.
    LastAcknowledged(Reply),
    /// gdbstub has to handle it.
    Theirs,
}

impl Client {
    /// Answers a packet, unless it is gdbstub's. The guest is stopped.
    pub(crate) fn answer(&mut self, target: &mut GuestTarget, packet: &[u8]) -> Answer {
        if matches!(packet, b"vCont" | b"vCont;") {
            // gdbstub would take no action for a resumption.
            return Answer::Reply(Reply::error(EINVAL));
        }
        if packet == b"QStartNoAckMode" {
            return Answer::LastAcknowledged(Reply::ok());
        }
        if let Some(features) = packet.strip_prefix(b"qSupported") {
            self.marks_binary = supported::marks_binary(features);
            self.multiprocess = supported::multiprocess(features);
            return Answer::Theirs;
        }
        if let Some(thread) = packet.strip_prefix(b"Hg") {
            self.thread = thread_id(thread);
            return Answer::Theirs;
        }
        let reply = None
            .or_else(|| memory::answer(self, target, packet))
            .or_else(|| breakpoints::answer(target, packet))
            .or_else(|| search::answer(self, target, packet))
            .or_else(|| xfer::answer(self, target, packet));
        reply.map_or(Answer::Theirs, Answer::Reply)
    }

    /// The guest has run, and stopped for this thread.
    pub(crate) fn on_stop(&mut self, thread: Option<Tid>) {
        self.thread = thread;
        self.document = None;
    }

    /// Completes what gdbstub has answered to a packet.
    pub(crate) fn complete(&self, packet: &[u8], answer: Vec<u8>) -> Vec<u8> {
        if packet.starts_with(b"qSupported") {
            return supported::complete(&answer, self.marks_binary);
        }
        answer
    }
}

/// The thread of `[pPID.]TID`, unless that means any or all.
fn thread_id(text: &[u8]) -> Option<Tid> {
    let tid = match text.strip_prefix(b"p") {
        Some(text) => encode::split(text, b'.')?.1,
        None => text,
    };
    Tid::new(usize::try_from(encode::number(tid)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_ids_of_both_kinds() {
        assert_eq!(thread_id(b"p1.1f"), Tid::new(0x1f));
        assert_eq!(thread_id(b"1f"), Tid::new(0x1f));
        for any in [&b"p1.0"[..], b"0", b"-1", b"p1.-1", b"p1", b""] {
            assert_eq!(thread_id(any), None);
        }
    }
}
