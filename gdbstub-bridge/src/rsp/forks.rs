//! What a debugged process forks, and what becomes of each process.
//!
//! GDB manual, "Stop Reply Packets": `fork`, `vfork`, `vforkdone`, `exec`, and `W` and `X` with `process:`; "Packets":
//! `D;PID` and `vKill;PID`. The child stands still until the client has it run or lets it go, and has the breakpoints
//! that its parent had: a client that lets it go takes them out, and so does the stub.

use kscope_guest::control::{ExitStatus, HostTid};

use super::encode::{self, Reply};
use super::form::Processes;
use super::{Answer, Client, EINVAL};
use crate::process::News;
use crate::signals::to_gdb;
use crate::target::GuestTarget;

/// `D;PID` and `vKill;PID` of one of several processes.
pub(super) fn answer(
    client: &mut Client,
    target: &mut GuestTarget,
    processes: &Processes,
    packet: &[u8],
) -> Option<Answer> {
    let (kills, digits) = match packet.strip_prefix(b"D;") {
        Some(digits) => (false, digits),
        None => (true, packet.strip_prefix(b"vKill;")?),
    };
    let pid = processes.named(digits)?;
    if processes.pids.len() == 1 {
        return Some(match kills {
            true => Answer::Exit(Reply::ok()),
            false => Answer::TheirsAs(b"D;1".to_vec()),
        });
    }
    let done = match kills {
        true => target.debugger.kill_process(pid),
        false => target.debugger.detach_process(pid),
    };
    target.has_lost(pid);
    client.non_stop.forget_others(target);
    Some(Answer::Reply(match done {
        Ok(()) => Reply::ok(),
        Err(error) => {
            log::warn!("{error}");
            Reply::error(EINVAL)
        }
    }))
}

/// The news of a stop, with what there is to say of processes.
pub(super) fn complete(client: &Client, target: &mut GuestTarget, stop: Vec<u8>) -> Vec<u8> {
    let news = target
        .process
        .as_mut()
        .and_then(|process| process.news.take());
    let Some(body) = encode::body(&stop) else {
        return stop;
    };
    let mut reply = match news {
        Some(News::Exited(pid, status)) => return ended(client, pid, status).finish(),
        None if client.multiprocess && (body.starts_with(b"W") || body.starts_with(b"X")) => {
            let mut reply = Reply::raw(body);
            let pid = target.debugger.control().pid();
            reply.escaped(format!(";process:{pid:x}", pid = pid.0).as_bytes());
            return reply.finish();
        }
        Some(News::Exec(path)) if client.follows_exec => {
            let mut reply = Reply::text("T05exec:");
            reply.plain(path.as_os_str().as_encoded_bytes());
            reply
        }
        Some(News::Fork(child)) => Reply::text(&format!("T05fork:p{0:x}.{0:x}", child.0)),
        Some(News::Vfork(child)) => Reply::text(&format!("T05vfork:p{0:x}.{0:x}", child.0)),
        Some(News::VforkDone) => Reply::text("T05vforkdone:"),
        Some(News::Created) => Reply::text("T05create:"),
        _ => return stop,
    };
    let Some(rest) = body.strip_prefix(b"T05") else {
        return stop;
    };
    reply.escaped(b";");
    reply.append(rest);
    reply.finish()
}

/// One of several processes has ended.
fn ended(client: &Client, pid: HostTid, status: ExitStatus) -> Reply {
    let how = match status {
        ExitStatus::Exited(code) => format!("W{:02x}", code as u8),
        ExitStatus::Signaled(signal) => format!("X{:02x}", to_gdb(signal).0),
        ExitStatus::Unknown => "W00".to_owned(),
    };
    match client.multiprocess {
        true => Reply::text(&format!("{how};process:{:x}", pid.0)),
        false => Reply::text(&how),
    }
}
