//! What the stub answers itself, in front of gdbstub.
//!
//! gdbstub keeps the base of the protocol: registers, memory in hexadecimal written (`M`), threads chosen and asked
//! after, resumption, plain breakpoints, `monitor`. Its table of packets is closed, so what it lacks is answered here
//! before it gets to see it, one file per family; and what it says it supports is completed with that.

mod breakpoints;
mod command;
pub(crate) mod encode;
mod forks;
mod form;
pub(crate) mod frame;
mod host_info;
mod host_io;
mod ids;
mod libraries;
pub(crate) mod link;
mod memory;
pub(crate) mod nonstop;
mod regions;
mod registers;
mod resume;
mod search;
mod signals;
mod stops;
pub(crate) mod stub;
mod suffix;
mod supported;
mod symbols;
mod threads;
mod xfer;

pub(crate) use breakpoints::Actions;
use gdbstub::common::Tid;
pub(crate) use host_io::Files;

use crate::target::GuestTarget;
use encode::Reply;
use form::Processes;
pub(crate) use form::Threads;

/// `EINVAL`, in the remote protocol's numbers.
pub(crate) const EINVAL: u8 = 22;
/// `EFAULT`, in the remote protocol's numbers.
pub(crate) const EFAULT: u8 = 14;

/// What is known of the client.
#[derive(Debug, Default)]
pub(crate) struct Client {
    /// Replies to `x` begin with a `b`: GDB 16 and later. LLDB's did not when it introduced the packet.
    marks_binary: bool,
    /// It is GDB.
    is_gdb: bool,
    /// Thread ids have a process's in front.
    multiprocess: bool,
    /// What is being read in pieces.
    document: Option<xfer::Document>,
    /// The thread that `Hg` has chosen; None means any.
    thread: Option<Tid>,
    /// The thread that `Hc` has chosen; None means any.
    resumed: Option<Tid>,
    /// It follows a process that becomes another program.
    follows_exec: bool,
    /// It understands that nothing runs any more.
    expects_none_runs: bool,
    /// Threads stop one by one.
    pub(crate) non_stop: nonstop::NonStop,
    /// It follows what a process forks.
    follows_forks: bool,
    /// Every thread is to go along with the news of a stop.
    lists_threads: bool,
    /// It has told where symbols of a kernel are.
    has_symbols: bool,
    /// It is LLDB.
    pub(crate) is_lldb: bool,
    /// The signal of the last stop, and the address that was watched.
    last_signal: Option<u8>,
    last_watched: Option<u64>,
}

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This is the reply.
    Reply(Reply),
    /// This is the reply, and the last packet that is acknowledged is the one it replies to.
    LastAcknowledged(Reply),
    /// These are the replies.
    Replies(Vec<Reply>),
    /// This is the reply, and the last: the process is to be killed.
    Exit(Reply),
    /// gdbstub has to handle it.
    Theirs,
    /// gdbstub has to handle this instead.
    TheirsAs(Vec<u8>),
    /// gdbstub has to handle these, of which the last one's reply counts.
    TheirsAll([Vec<u8>; 2]),
}

impl Client {
    /// Answers a packet, unless it is gdbstub's. The guest is stopped.
    pub(crate) fn answer(&mut self, target: &mut GuestTarget, packet: &[u8]) -> Answer {
        if packet == b"QStartNoAckMode" {
            return Answer::LastAcknowledged(Reply::ok());
        }
        if let Some(features) = packet.strip_prefix(b"qSupported") {
            self.marks_binary = supported::marks_binary(features);
            self.is_gdb = supported::is_gdb(features);
            self.multiprocess = supported::multiprocess(features);
            self.follows_exec = supported::follows_exec(features);
            self.expects_none_runs = supported::expects_none_runs(features);
            self.follows_forks = target.process.is_some() && supported::follows_forks(features);
            if let Err(error) = target.debugger.follow_forks(self.follows_forks) {
                log::debug!("{error}");
            }
            return Answer::Theirs;
        }
        if packet == b"QThreadSuffixSupported" {
            return Answer::Reply(Reply::ok());
        }
        if packet == b"QListThreadsInStopReply" {
            self.lists_threads = true;
            return Answer::Reply(Reply::ok());
        }
        let processes = self.processes(target);
        let suffix = suffix::split(packet);
        if !form::is_right(suffix.map_or(packet, |(_, plain)| plain), &processes) {
            return Answer::Reply(Reply::error(EINVAL));
        }
        if let Some((tid, plain)) = suffix {
            self.thread = target.choose(Threads::One(tid));
            return Answer::TheirsAll([format!("Hg{tid:x}").into_bytes(), plain.to_vec()]);
        }
        if packet.starts_with(b"vKill;") && target.process.is_none() {
            return Answer::Exit(Reply::ok());
        }
        if let Some(thread) = packet.strip_prefix(b"Hg") {
            self.thread = processes
                .threads(thread)
                .and_then(|named| target.choose(named));
        }
        if let Some(thread) = packet.strip_prefix(b"Hc") {
            self.resumed = processes.threads(thread).and_then(Threads::one);
        }
        if let Some(answer) = self.answer_for_process(target, &processes, packet) {
            return answer;
        }
        let reply = None
            .or_else(|| memory::answer(self, target, packet))
            .or_else(|| breakpoints::answer(self, target, packet))
            .or_else(|| registers::answer(self, target, packet))
            .or_else(|| search::answer(self, target, packet))
            .or_else(|| host_info::answer(self, target, packet))
            .or_else(|| stops::answer(self, target, packet))
            .or_else(|| symbols::answer(self, target, packet))
            .or_else(|| regions::answer(target, packet))
            .or_else(|| xfer::answer(self, target, packet));
        reply.map_or(Answer::Theirs, Answer::Reply)
    }

    /// What the client may name.
    fn processes(&self, target: &mut GuestTarget) -> Processes {
        let pids = match target.process {
            Some(_) => target.pids().into_iter().map(|pid| pid.0).collect(),
            // A guest's is the one that gdbstub knows.
            None => vec![1],
        };
        Processes {
            pids,
            multiprocess: self.multiprocess,
        }
    }

    /// Answers what is different for an ordinary process.
    fn answer_for_process(
        &mut self,
        target: &mut GuestTarget,
        processes: &Processes,
        packet: &[u8],
    ) -> Option<Answer> {
        target.process.as_ref()?;
        if let Some(answer) = nonstop::answer(self, target, packet) {
            return Some(answer);
        }
        if packet == b"?" {
            return target.last_stop().map(Answer::Reply);
        }
        if packet.starts_with(b"qAttached") {
            // What was started here is killed by a client that quits; from another it detaches.
            let attached = match target.debugger.control().is_attached() {
                true => "1",
                false => "0",
            };
            return Some(Answer::Reply(Reply::text(attached)));
        }
        if packet == b"qC" {
            let thread = self.thread.or(target.stopped_thread())?;
            let pid = target.process_of(Some(thread)).0;
            return Some(Answer::Reply(Reply::text(&format!(
                "QCp{pid:x}.{thread:x}"
            ))));
        }
        None.or_else(|| forks::answer(self, target, processes, packet))
            .or_else(|| resume::answer(self, target, packet))
            .or_else(|| command::answer(target, packet))
            .or_else(|| signals::answer(target, packet).map(Answer::Reply))
            .or_else(|| host_io::answer(target, packet).map(Answer::Reply))
            .or_else(|| {
                let packet = ids::incoming(target, processes, packet)?;
                Some(Answer::TheirsAs(packet))
            })
    }

    /// The news of a stop, with what the client wants to go along.
    pub(crate) fn with_threads(&self, target: &mut GuestTarget, stop: Vec<u8>) -> Vec<u8> {
        match self.lists_threads {
            true => stops::complete(self, target, stop),
            false => stop,
        }
    }

    /// What is told of a process whose last thread that ran has ended.
    pub(crate) fn none_runs(&self) -> Reply {
        match self.expects_none_runs {
            true => Reply::text("N"),
            false => Reply::text("E.No unwaited-for children left."),
        }
    }

    /// The guest has run, and stopped for this thread.
    pub(crate) fn on_stop(&mut self, thread: Option<Tid>, reply: &[u8]) {
        self.thread = thread;
        (self.last_signal, self.last_watched) = stop_of(reply);
        self.document = None;
    }

    /// Completes what gdbstub has answered to a packet.
    pub(crate) fn complete(
        &self,
        target: &mut GuestTarget,
        packet: &[u8],
        answer: Vec<u8>,
    ) -> Vec<u8> {
        if packet.starts_with(b"qSupported") {
            return supported::complete(&answer, self, target.process.is_some());
        }
        match &target.process {
            Some(_) if packet.starts_with(b"q") => ids::outgoing(target, answer),
            _ => answer,
        }
    }

    /// Completes what gdbstub tells of a stop.
    pub(crate) fn complete_stop(&self, target: &mut GuestTarget, stop: Vec<u8>) -> Vec<u8> {
        if target.process.is_none() {
            return stop;
        }
        let stop = ids::outgoing(target, stop);
        forks::complete(self, target, stop)
    }
}

/// Bytes in hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The signal of a stop, and the address that was watched, from how the client is told: `$T05watch:ADDR;...`.
fn stop_of(reply: &[u8]) -> (Option<u8>, Option<u64>) {
    let text = String::from_utf8_lossy(reply);
    let body = text.strip_prefix("$T").unwrap_or_default();
    let signal = body
        .get(..2)
        .and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let mut pairs = body.get(2..).unwrap_or_default().split(';');
    let watched = pairs.find_map(|pair| {
        let (key, value) = pair.split_once(':')?;
        let is_watch = matches!(key, "watch" | "rwatch" | "awatch");
        is_watch.then(|| encode::number(value.as_bytes()))?
    });
    (signal, watched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_understood() {
        assert_eq!(stop_of(b"$T05thread:p01.07;swbreak:;#00"), (Some(5), None));
        let watch = b"$T05thread:7;watch:60001000;#00";
        assert_eq!(stop_of(watch), (Some(5), Some(0x6000_1000)));
        for other in [&b"$W00#b7"[..], b"", b"$T", b"$Tx"] {
            assert_eq!(stop_of(other), (None, None));
        }
    }
}
