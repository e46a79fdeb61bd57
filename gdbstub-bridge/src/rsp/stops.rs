//! `jThreadsInfo`, `qThreadStopInfo`, `QListThreadsInStopReply`: every thread with its name, why it stopped, and the
//! registers that are looked at first, for LLDB.
//!
//! LLDB, "GDB Remote Protocol Extensions": `jThreadsInfo`, `qThreadStopInfo<tid>`, `QListThreadsInStopReply`; "Stop reply
//! packet extensions": `threads`, `thread-pcs`, `jstopinfo`, which spare a packet for each thread. One thread has a reason, the one that
//! the last stop was reported for. Without `reason`, LLDB finds out from its own breakpoints what a trap is.

use std::fmt::Write;

use gdbstub::common::Tid;
use kscope_kernel::Reg;

use super::encode::{self, Reply, number};
use super::{Client, EINVAL, hex};
use crate::arch::Number;
use crate::target::GuestTarget;

/// The registers that go along: those of the frame.
const REGISTERS: [Reg; 3] = [Reg::Rip, Reg::Rsp, Reg::Rbp];

/// GDB's and LLDB's number for a trap.
const SIGTRAP: u8 = 5;

pub(super) fn answer(client: &Client, target: &mut GuestTarget, packet: &[u8]) -> Option<Reply> {
    if packet == b"jThreadsInfo" {
        let ids = target.threads().map(|threads| threads.ids().to_vec());
        let threads: Vec<_> = ids
            .unwrap_or_default()
            .into_iter()
            .filter_map(|tid| one(client, target, tid))
            .map(|thread| thread.json())
            .collect();
        return Some(Reply::text(&format!("[{}]", threads.join(","))));
    }
    let tid = number(packet.strip_prefix(b"qThreadStopInfo")?);
    let tid = tid.and_then(|tid| Tid::new(usize::try_from(tid).ok()?));
    let thread = tid.and_then(|tid| {
        // All of them are known from here on.
        target.threads().ok()?;
        one(client, target, tid)
    });
    Some(match thread {
        Some(thread) => Reply::text(&thread.reply()),
        None => Reply::error(EINVAL),
    })
}

/// The news of a stop with every thread, where it is, and that all but one have no reason to have stopped.
pub(super) fn complete(client: &Client, target: &mut GuestTarget, stop: Vec<u8>) -> Vec<u8> {
    let Some(body) = encode::body(&stop).filter(|body| body.starts_with(b"T")) else {
        return stop;
    };
    let Ok(ids) = target.threads().map(|threads| threads.ids().to_vec()) else {
        return stop;
    };
    let stopped = target
        .stopped_thread()
        .and_then(|tid| one(client, target, tid));
    let (mut threads, mut places) = (Vec::new(), Vec::new());
    for tid in ids {
        let pc = target
            .general_registers(tid)
            .and_then(|general| general.pc());
        threads.push(format!("{tid:x}"));
        places.push(format!("{:x}", pc.unwrap_or(0)));
    }
    let reasons = stopped.map_or_else(String::new, |thread| thread.json());
    let list = format!(
        "threads:{};thread-pcs:{};jstopinfo:{};",
        threads.join(","),
        places.join(","),
        hex(format!("[{reasons}]").as_bytes())
    );
    let mut reply = Reply::default();
    reply.append(body);
    reply.append(list.as_bytes());
    reply.finish()
}

struct Thread {
    tid: Tid,
    name: String,
    signal: u8,
    /// The address that was watched.
    watched: Option<u64>,
    /// By their numbers.
    registers: Vec<(usize, [u8; 8])>,
}

fn one(client: &Client, target: &mut GuestTarget, tid: Tid) -> Option<Thread> {
    let name = target.describe(tid)?.name;
    let general = target.general_registers(tid)?;
    let value = |reg| {
        Some((
            Number::of(reg).raw().into(),
            general.get(reg)?.to_le_bytes(),
        ))
    };
    let stopped = target
        .stopped_thread()
        .or(target.running().ok()?.ids().first().copied());
    let is_it = stopped == Some(tid);
    Some(Thread {
        tid,
        name,
        signal: if is_it {
            client.last_signal.unwrap_or(SIGTRAP)
        } else {
            0
        },
        watched: client.last_watched.filter(|_| is_it),
        registers: REGISTERS.into_iter().filter_map(value).collect(),
    })
}

impl Thread {
    fn json(&self) -> String {
        let registers: Vec<_> = self
            .registers
            .iter()
            .map(|(number, bytes)| format!("\"{number}\":\"{}\"", hex(bytes)))
            .collect();
        let mut text = format!(
            "{{\"tid\":{},\"name\":\"{}\",\"registers\":{{{}}}",
            self.tid,
            plain(&self.name),
            registers.join(",")
        );
        // Writing to a string does not fail.
        if self.signal != 0 {
            let _ = write!(text, ",\"signal\":{}", self.signal);
        }
        if let Some(watched) = self.watched {
            let _ = write!(
                text,
                ",\"reason\":\"watchpoint\",\"description\":\"{watched} 0 {watched}\""
            );
        }
        text + "}"
    }

    fn reply(&self) -> String {
        let mut text = format!(
            "T{:02x}thread:{:x};hexname:{};",
            self.signal,
            self.tid,
            hex(self.name.as_bytes())
        );
        for (number, bytes) in &self.registers {
            let _ = write!(text, "{number:02x}:{};", hex(bytes));
        }
        if let Some(watched) = self.watched {
            let description = format!("{watched} 0 {watched}");
            let _ = write!(
                text,
                "reason:watchpoint;description:{};",
                hex(description.as_bytes())
            );
        }
        text
    }
}

/// A name without what means something in JSON.
fn plain(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '"' | '\\' => '\'',
            c if c.is_ascii_control() || !c.is_ascii() => '?',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        let thread = Thread {
            tid: Tid::new(7).unwrap(),
            name: "a\"}\\ [R]".to_owned(),
            signal: 5,
            watched: None,
            registers: vec![(16, 0x6000_0000_u64.to_le_bytes())],
        };
        assert_eq!(
            thread.json(),
            "{\"tid\":7,\"name\":\"a'}' [R]\",\"registers\":{\"16\":\"0000006000000000\"},\"signal\":5}"
        );
        assert_eq!(
            thread.reply(),
            "T05thread:7;hexname:61227d5c205b525d;10:0000006000000000;"
        );
    }
}
