//! `vCont` and its older forms, of an ordinary process: each thread does what is said for it.
//!
//! GDB manual, "Packets", `vCont`: for each thread, the leftmost action that names it counts, and a thread that none
//! names stays stopped. gdbstub reads the same packets, but has no signal for all threads at once, and no stepping of
//! all threads; it is told that everything runs, and hears of the stop.

use kscope_guest::control::{Action, Resume, Step, VCpu};
use kscope_kernel::KernelAddr;

use super::encode::{Reply, number, split};
use super::form::{Processes, Threads};
use super::{Answer, Client, EINVAL, nonstop};
use crate::process;
use crate::signals::from_gdb;
use crate::target::GuestTarget;

/// What is said for some threads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    threads: Threads,
    pub(super) action: Action,
    pub(super) signal: i32,
}

/// What is said for a thread.
pub(super) fn for_thread(said: &[Said], vcpu: VCpu) -> Option<&Said> {
    said.iter().find(|said| match said.threads {
        Threads::Any => true,
        Threads::Of(pid) => pid == vcpu.pid,
        Threads::One(tid) => tid == process::tid(vcpu),
    })
}

pub(super) fn answer(
    client: &mut Client,
    target: &mut GuestTarget,
    packet: &[u8],
) -> Option<Answer> {
    target.process.as_ref()?;
    if packet == b"vCont?" {
        return Some(Answer::Reply(Reply::text("vCont;c;C;s;S;t;r")));
    }
    let resumes = match packet.split_first()? {
        (b'v', rest) => {
            let said = parse(rest.strip_prefix(b"Cont;")?, &client.processes(target))?;
            if client.non_stop.is_on() {
                return Some(Answer::Reply(nonstop::resume(client, target, &said)));
            }
            apply(target, &said)?
        }
        // The older forms say nothing of the threads that run.
        (b'c' | b's' | b'C' | b'S', _) if client.non_stop.is_on() => {
            return Some(Answer::Reply(Reply::error(EINVAL)));
        }
        (kind @ (b'c' | b's' | b'C' | b'S'), rest) => {
            let is_step = matches!(kind, b's' | b'S');
            let stepped = is_step.then(|| client.resumed.or(target.stopped_thread()));
            target
                .all_run(stepped.flatten(), signal(rest).unwrap_or(0))
                .ok()?
        }
        _ => return None,
    };
    if let Some(process) = &mut target.process {
        process.resumes = resumes;
    }
    Some(Answer::TheirsAs(b"vCont;c".to_vec()))
}

fn apply(target: &mut GuestTarget, said: &[Said]) -> Option<Vec<Resume>> {
    let threads = target.running().ok()?;
    let resumes = threads.ids().iter().filter_map(|&id| {
        let vcpu = threads.get(id)?.cpu?;
        let said = for_thread(said, vcpu)?;
        Some(Resume {
            tid: vcpu.tid,
            action: said.action.clone(),
            signal: said.signal,
        })
    });
    Some(resumes.collect())
}

/// What is said, unless it is malformed.
pub(super) fn parse(actions: &[u8], processes: &Processes) -> Option<Vec<Said>> {
    actions
        .split(|&byte| byte == b';')
        .map(|action| {
            let (action, threads) = match split(action, b':') {
                Some((action, threads)) => (action, processes.threads(threads)?),
                None => (action, Threads::Any),
            };
            let (&kind, rest) = action.split_first()?;
            let (action, signal) = match kind {
                b'c' if rest.is_empty() => (Action::Run, 0),
                b'C' => (Action::Run, signal(rest)?),
                b's' if rest.is_empty() => (Action::Step(Step::Instruction), 0),
                b'S' => (Action::Step(Step::Instruction), signal(rest)?),
                b't' if rest.is_empty() => (Action::Hold, 0),
                b'r' => {
                    let (start, end) = split(rest, b',')?;
                    let range = KernelAddr(number(start)?)..KernelAddr(number(end)?);
                    // An empty one is a single step.
                    let step = match range.is_empty() {
                        true => Step::Instruction,
                        false => Step::Range(range),
                    };
                    (Action::Step(step), 0)
                }
                _ => return None,
            };
            Some(Said {
                threads,
                action,
                signal,
            })
        })
        .collect()
}

/// The host's signal of two digits; one that the host has not is none.
pub(super) fn signal(digits: &[u8]) -> Option<i32> {
    let number = u8::try_from(number(digits)?).ok()?;
    Some(from_gdb(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use gdbstub::common::Tid;
    use kscope_guest::control::HostTid;

    use super::*;

    #[test]
    fn actions_are_read() {
        let processes = Processes {
            pids: vec![0x1f],
            multiprocess: true,
        };
        let said = parse(
            b"S1e:p1f.20;r1000,1010:p1f.21;t:p1f.22;c:p1f.-1",
            &processes,
        )
        .unwrap();
        let one = |number| Threads::One(Tid::new(number).unwrap());
        let expected = [
            (one(0x20), Action::Step(Step::Instruction), libc::SIGUSR1),
            (
                one(0x21),
                Action::Step(Step::Range(KernelAddr(0x1000)..KernelAddr(0x1010))),
                0,
            ),
            (one(0x22), Action::Hold, 0),
            (Threads::Of(HostTid(0x1f)), Action::Run, 0),
        ];
        let expected = expected.map(|(threads, action, signal)| Said {
            threads,
            action,
            signal,
        });
        assert_eq!(said, expected);
        for bad in [&b""[..], b"x", b"c1", b"Cg", b"r1000", b"c;;c", b"c:p20.1"] {
            assert_eq!(parse(bad, &processes), None, "{}", bad.escape_ascii());
        }
    }
}
