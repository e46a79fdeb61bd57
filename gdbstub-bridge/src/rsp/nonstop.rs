//! `QNonStop`, `vStopped`, `vCtrlC`, `QThreadEvents`, and `vCont` while others run: each thread of a process stops by
//! itself.
//!
//! GDB manual, "Remote Non-Stop", "Notification Packets" and, in "Packets", `vCont`, `vCtrlC` and `?`: what happens to a
//! thread is put into a queue, whose first entry is sent as `%Stop:...`. The client answers with `vStopped`, again and
//! again, and gets the next each time, until there is none (`OK`). Everything else is answered at once, whatever runs.
//!
//! A thread that has stopped is held until the client has heard of it and says what becomes of it: an action for all
//! threads does not touch one whose news still wait, because the client takes it to be running. gdbstub knows none of
//! this. It is never told that anything runs.

use std::collections::{BTreeMap, VecDeque};

use gdbstub::common::{Signal, Tid};
use kscope_guest::control::{Action, ControlError, HostTid, Resume, StopReason, VCpu};

use super::encode::{self, Reply};
use super::resume::{self, Said};
use super::{Answer, Client, EINVAL};
use crate::arch::Number;
use crate::process::{self, News as What};
use crate::target::{GuestTarget, Stop};

/// What has happened, in the words of the protocol.
#[derive(Debug, PartialEq, Eq)]
struct News {
    /// The thread that has stopped, if one has.
    stopped: Option<Tid>,
    /// What it has forked, which has not run.
    child: Option<HostTid>,
    /// Everything has ended with it.
    is_last: bool,
    body: Vec<u8>,
}

/// What the client has been told, and what it is yet to be told.
#[derive(Debug, Default)]
pub(crate) struct NonStop {
    on: bool,
    /// What it has not acknowledged. The first has been sent.
    queue: VecDeque<News>,
    /// The threads that it knows to be stopped, and the words in which it was told.
    stopped: BTreeMap<Tid, Vec<u8>>,
    /// It has acknowledged the end of the process.
    is_over: bool,
}

impl NonStop {
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether the process has ended and the client knows it.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Queues news. Returns what is to be sent now, if the client does not wait for more already.
    fn push(&mut self, news: News) -> Option<Vec<u8>> {
        let notification = self
            .queue
            .is_empty()
            .then(|| [b"Stop:", &news.body[..]].concat());
        self.queue.push_back(news);
        notification
    }

    /// The client has heard of the first in the queue.
    fn acknowledge(&mut self) {
        let Some(news) = self.queue.pop_front() else {
            return;
        };
        self.is_over |= news.is_last;
        if let Some(tid) = news.stopped {
            self.stopped.insert(tid, news.body);
        }
        if let Some((child, tid)) = news
            .child
            .and_then(|pid| Some((pid, process::number(pid)?)))
        {
            let body = format!("T00thread:p{child:x}.{child:x};", child = child.0);
            self.stopped.insert(tid, body.into_bytes());
        }
    }

    /// The first in the queue, which the client is now told.
    fn next(&self) -> Reply {
        let news = self.queue.front();
        news.map_or_else(Reply::ok, |news| Reply::raw(&news.body))
    }

    /// Tells everything anew.
    fn tell_again(&mut self) -> Reply {
        let stopped = std::mem::take(&mut self.stopped);
        self.queue
            .extend(stopped.into_iter().map(|(tid, body)| News {
                stopped: Some(tid),
                child: None,
                is_last: false,
                body,
            }));
        self.next()
    }

    /// Only these threads are left. The client acknowledges the first in the queue all the same.
    fn retain(&mut self, is_left: impl Fn(Tid) -> bool) {
        self.stopped.retain(|&tid, _| is_left(tid));
        let mut is_first = true;
        self.queue
            .retain(|news| std::mem::take(&mut is_first) || news.stopped.is_none_or(&is_left));
    }

    /// Threads that are no more are forgotten.
    pub(super) fn forget_others(&mut self, target: &mut GuestTarget) {
        let left: Vec<_> = target.vcpus().into_iter().map(process::tid).collect();
        self.retain(|tid| left.contains(&tid));
    }

    /// Whether the thread has stopped, whether or not the client has heard of that.
    fn has_stopped(&self, tid: Tid) -> bool {
        let waits = |news: &News| news.stopped == Some(tid);
        self.stopped.contains_key(&tid) || self.queue.iter().any(waits)
    }
}

pub(super) fn answer(
    client: &mut Client,
    target: &mut GuestTarget,
    packet: &[u8],
) -> Option<Answer> {
    if let Some(on) = packet.strip_prefix(b"QNonStop:") {
        return Some(Answer::Reply(switch(client, target, on)));
    }
    if let Some(on) = packet.strip_prefix(b"QThreadEvents:") {
        let done = match on {
            b"0" | b"1" => target.debugger.set_thread_events(on == b"1"),
            _ => return Some(Answer::Reply(Reply::error(EINVAL))),
        };
        return Some(Answer::Reply(done_or_ended(done)));
    }
    if !client.non_stop.on {
        return None;
    }
    let reply = match packet {
        b"vStopped" => {
            client.non_stop.acknowledge();
            client.non_stop.next()
        }
        b"?" => client.non_stop.tell_again(),
        b"vCtrlC" => interrupt(client, target),
        _ => {
            if packet.starts_with(b"qXfer:threads:read") || packet.starts_with(b"T") {
                // Threads begin and end without a word.
                target.forget();
            }
            return None;
        }
    };
    Some(Answer::Reply(reply))
}

fn switch(client: &mut Client, target: &mut GuestTarget, on: &[u8]) -> Reply {
    let on = match on {
        b"0" => false,
        b"1" => true,
        _ => return Reply::error(EINVAL),
    };
    if on == client.non_stop.on {
        return Reply::ok();
    }
    if let Err(error) = target.set_non_stop(on) {
        log::warn!("{error}");
        return Reply::error(EINVAL);
    }
    client.non_stop = NonStop {
        on,
        ..NonStop::default()
    };
    if on {
        let ids = target.running().map(|threads| threads.ids().to_vec());
        let ids = ids.unwrap_or_default();
        let last = target.stopped_thread().or(ids.first().copied());
        for tid in ids {
            // All but one have stopped on account of that one.
            let signal = match &target.process {
                Some(process) if last == Some(tid) => Signal(process.last_signal),
                _ => Signal::SIGZERO,
            };
            let body = body(client, target, &Stop::SignalWithThread { tid, signal }, &[]);
            client.non_stop.stopped.insert(tid, body);
        }
    }
    Reply::ok()
}

/// Has one of the threads that run stop, whichever.
fn interrupt(client: &Client, target: &mut GuestTarget) -> Reply {
    let runs = |vcpu: &VCpu| !client.non_stop.has_stopped(process::tid(*vcpu));
    match target
        .debugger
        .cpus()
        .unwrap_or_default()
        .into_iter()
        .find(runs)
    {
        Some(vcpu) => done_or_ended(target.debugger.halt(vec![vcpu.tid], StopReason::Interrupt)),
        // The client is about to hear why.
        None => Reply::ok(),
    }
}

/// Does what `vCont` says, of which each thread heeds what comes first.
pub(super) fn resume(client: &mut Client, target: &mut GuestTarget, said: &[Said]) -> Reply {
    let non_stop = &mut client.non_stop;
    let (mut resumes, mut halts) = (Vec::new(), Vec::new());
    // When it has just ended, there are none.
    for vcpu in target.debugger.cpus().unwrap_or_default() {
        let id = process::tid(vcpu);
        let Some(said) = resume::for_thread(said, vcpu) else {
            continue;
        };
        if said.action == Action::Hold {
            if !non_stop.has_stopped(id) {
                halts.push(vcpu.tid);
            }
        } else if non_stop.stopped.remove(&id).is_some() {
            resumes.push(Resume {
                tid: vcpu.tid,
                action: said.action.clone(),
                signal: said.signal,
            });
        }
    }
    target.forget();
    let done = target.debugger.resume_some(resumes);
    done_or_ended(done.and_then(|()| target.debugger.halt(halts, StopReason::Halt)))
}

/// What has happened. Returns the notification that is to be sent now, if there is one.
pub(crate) fn on_stop(
    client: &mut Client,
    target: &mut GuestTarget,
    stop: &Stop,
    registers: &[(Number, Vec<u8>)],
) -> Option<Vec<u8>> {
    let is_last = matches!(stop, Stop::Exited(_) | Stop::Terminated(_));
    let news = target
        .process
        .as_ref()
        .and_then(|process| process.news.as_ref());
    let child = match news {
        Some(What::Fork(child) | What::Vfork(child)) => Some(*child),
        _ => None,
    };
    let stopped = target.stopped_thread().filter(|_| !is_last);
    if is_last {
        client.non_stop.retain(|_| false);
    } else if matches!(news, Some(What::Exec(_) | What::Exited(..))) {
        client.non_stop.forget_others(target);
        client.non_stop.retain(|tid| Some(tid) != stopped);
    }
    let body = body(client, target, stop, registers);
    client.non_stop.push(News {
        stopped,
        child,
        is_last,
        body,
    })
}

/// A thread is gone.
pub(crate) fn on_thread_exit(
    client: &mut Client,
    pid: HostTid,
    tid: HostTid,
    code: i32,
) -> Option<Vec<u8>> {
    client.non_stop.push(News {
        stopped: None,
        child: None,
        is_last: false,
        body: format!("w{code:x};p{:x}.{:x}", pid.0, tid.0).into_bytes(),
    })
}

/// Nothing runs any more, and nothing has stopped: GDB manual, "Stop Reply Packets", `N`.
pub(crate) fn on_none_runs(client: &mut Client) -> Option<Vec<u8>> {
    client.expects_none_runs.then_some(())?;
    client.non_stop.push(News {
        stopped: None,
        child: None,
        is_last: false,
        body: b"N".to_vec(),
    })
}

/// A stop in the words of the protocol: GDB manual, "Stop Reply Packets".
fn body(
    client: &Client,
    target: &mut GuestTarget,
    stop: &Stop,
    registers: &[(Number, Vec<u8>)],
) -> Vec<u8> {
    let (mut reply, tid) = match stop {
        Stop::Exited(code) => return completed(client, target, &format!("W{code:02x}")),
        Stop::Terminated(signal) => {
            return completed(client, target, &format!("X{:02x}", signal.0));
        }
        Stop::SignalWithThread { tid, signal } => (format!("T{:02x}", signal.0), *tid),
        Stop::SwBreak(tid) => ("T05swbreak:;".to_owned(), *tid),
        Stop::Watch { tid, addr, .. } => (format!("T05watch:{addr:x};"), *tid),
        // None of a process.
        _ => (
            "T05".to_owned(),
            target.stopped_thread().unwrap_or(Tid::MIN),
        ),
    };
    for (number, bytes) in registers {
        reply += &format!("{:02x}:{};", number.raw(), super::hex(bytes));
    }
    // As gdbstub has it, so that the rest is completed as for a stop of all.
    reply += &format!("thread:p01.{tid:x};");
    completed(client, target, &reply)
}

/// The body of a stop's reply, with what there is to say of processes.
fn completed(client: &Client, target: &mut GuestTarget, reply: &str) -> Vec<u8> {
    let packet = client.complete_stop(target, Reply::text(reply).finish());
    encode::body(&packet).unwrap_or_default().to_vec()
}

/// The client hears of the process's end in another way.
fn done_or_ended(done: Result<(), ControlError>) -> Reply {
    match done {
        Ok(()) | Err(ControlError::Ended) => Reply::ok(),
        Err(error) => {
            log::warn!("{error}");
            Reply::error(EINVAL)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(tid: usize) -> News {
        News {
            stopped: Tid::new(tid),
            child: None,
            is_last: false,
            body: format!("T05thread:p1.{tid:x};").into_bytes(),
        }
    }

    #[test]
    fn news_are_told_one_by_one() {
        let mut non_stop = NonStop::default();
        let told = non_stop.push(stop(1));
        assert_eq!(told.as_deref(), Some(&b"Stop:T05thread:p1.1;"[..]));
        // The client will ask.
        assert_eq!(non_stop.push(stop(2)), None);
        let (one, two) = (Tid::new(1).unwrap(), Tid::new(2).unwrap());
        assert!(non_stop.stopped.is_empty() && non_stop.has_stopped(one));
        non_stop.acknowledge();
        assert_eq!(non_stop.next().body(), b"T05thread:p1.2;");
        assert!(non_stop.stopped.contains_key(&one) && !non_stop.stopped.contains_key(&two));
        non_stop.acknowledge();
        assert_eq!(non_stop.next(), Reply::ok());
        // One `vStopped` too many does no harm.
        non_stop.acknowledge();
        assert_eq!(non_stop.next(), Reply::ok());
        assert!(non_stop.push(stop(3)).is_some());
    }

    #[test]
    fn a_client_that_asks_is_told_all_anew() {
        let mut non_stop = NonStop::default();
        for tid in 1..=3 {
            non_stop.push(stop(tid));
        }
        non_stop.acknowledge();
        non_stop.acknowledge();
        let mut told = vec![non_stop.tell_again().body().to_vec()];
        loop {
            non_stop.acknowledge();
            let next = non_stop.next();
            if next == Reply::ok() {
                break;
            }
            told.push(next.body().to_vec());
        }
        told.sort();
        let expected: Vec<_> = (1..=3).map(|tid| stop(tid).body).collect();
        assert_eq!(told, expected);
        assert_eq!(non_stop.stopped.len(), 3);
    }

    #[test]
    fn it_is_over_when_the_client_knows() {
        let mut non_stop = NonStop::default();
        non_stop.push(News {
            stopped: None,
            child: None,
            is_last: true,
            body: b"W0;process:1".to_vec(),
        });
        assert!(!non_stop.is_over());
        non_stop.acknowledge();
        assert!(non_stop.is_over());
    }
}
