//! An ordinary process in the place of a guest: its threads are the host's, and so are its signals.

use std::fs;
use std::path::PathBuf;

use gdbstub::common::{Signal, Tid};
use kscope_guest::control::{
    Action, ControlError, ExitStatus, HostTid, Resume, Step, StopReason, VCpu,
};

use crate::rsp::Threads;
use crate::rsp::encode::Reply;
use crate::signals::to_gdb;
use crate::space::Space;
use crate::target::GuestTarget;

/// What a stop can be about, besides signals and breakpoints.
#[derive(Debug)]
pub(crate) enum News {
    /// The process has become this program.
    Exec(PathBuf),
    /// The thread has just begun.
    Created,
    /// The process has forked this one.
    Fork(HostTid),
    /// The process has started this one, which has its memory.
    Vfork(HostTid),
    /// The process has its memory back.
    VforkDone,
    /// This one of several processes has ended.
    Exited(HostTid, ExitStatus),
}

/// What is known of the process, of those that are debugged, that the client has chosen.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: HostTid,
    /// What the next resumption does.
    pub(crate) resumes: Vec<Resume>,
    /// What the last stop is about.
    pub(crate) news: Option<News>,
    /// The signal, in GDB's numbers, of the last stop.
    pub(crate) last_signal: u8,
    /// Files that the client has open.
    pub(crate) files: crate::rsp::Files,
}

impl Process {
    pub(crate) fn new(pid: HostTid) -> Self {
        Self {
            pid,
            resumes: Vec::new(),
            news: None,
            last_signal: Signal::SIGTRAP.0,
            files: crate::rsp::Files::default(),
        }
    }

    /// The file in the host's directory of the process.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }
}

/// The thread's id for the client.
pub(crate) fn tid(vcpu: VCpu) -> Tid {
    number(vcpu.tid).unwrap_or(Tid::MIN)
}

/// The id of a thread of the host for the client.
pub(crate) fn number(tid: HostTid) -> Option<Tid> {
    Tid::new(usize::try_from(tid.0).ok()?)
}

/// The name of a thread.
pub(crate) fn name(pid: HostTid, tid: HostTid) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
    comm.map(|comm| comm.trim_end().to_owned())
        .unwrap_or_default()
}

impl GuestTarget {
    /// Lets the process run as the client has said.
    pub(crate) fn resume_process(&mut self) -> Result<(), ControlError> {
        self.forget();
        let resumes = self
            .process
            .as_mut()
            .map(|process| std::mem::take(&mut process.resumes));
        self.debugger.resume(resumes.unwrap_or_default())
    }

    /// Has each thread stop by itself, or all of them with the first.
    pub(crate) fn set_non_stop(&mut self, on: bool) -> Result<(), ControlError> {
        self.debugger.set_non_stop(on)?;
        self.non_stop = on;
        self.forget();
        Ok(())
    }

    /// Takes note of a stop of the process.
    pub(crate) fn note(&mut self, reason: StopReason) {
        let Some(process) = &mut self.process else {
            return;
        };
        process.last_signal = match reason {
            StopReason::Signal(signal) => to_gdb(signal).0,
            StopReason::Interrupt => Signal::SIGINT.0,
            StopReason::Halt => Signal::SIGZERO.0,
            _ => Signal::SIGTRAP.0,
        };
        process.news = match reason {
            StopReason::Exec => fs::read_link(process.file("exe")).ok().map(News::Exec),
            StopReason::Fork(child) => Some(News::Fork(child)),
            StopReason::Vfork(child) => Some(News::Vfork(child)),
            StopReason::VforkDone => Some(News::VforkDone),
            StopReason::Created => Some(News::Created),
            _ => None,
        };
        if reason == StopReason::Exec {
            // The engine has dropped them with the old program.
            let pid = process.pid;
            self.watchpoints.retain(|watchpoint| watchpoint.pid != pid);
            self.select(pid);
        }
    }

    /// One of several processes has ended. Returns a thread of those that are left.
    pub(crate) fn note_end(&mut self, pid: HostTid, status: ExitStatus) -> Option<Tid> {
        self.has_lost(pid);
        self.process.as_mut()?.news = Some(News::Exited(pid, status));
        self.running().ok()?.ids().first().copied()
    }

    /// One of several processes is debugged no more.
    pub(crate) fn has_lost(&mut self, pid: HostTid) {
        self.forget();
        self.watchpoints.retain(|watchpoint| watchpoint.pid != pid);
        if self.pid() == pid {
            self.select(self.debugger.control().pid());
        }
    }

    /// The process that memory, breakpoints and watchpoints are those of: the one that the client has chosen, or the
    /// guest's.
    pub(crate) fn pid(&self) -> HostTid {
        let process = self.process.as_ref();
        process.map_or_else(|| self.debugger.control().pid(), |process| process.pid)
    }

    /// Has a process be that one.
    pub(crate) fn select(&mut self, pid: HostTid) {
        let Some(process) = &mut self.process else {
            return;
        };
        match self.debugger.select(pid) {
            Ok(memory) => {
                process.pid = pid;
                self.space = Space::new(memory, None);
            }
            Err(error) => log::debug!("process {pid}: {error}"),
        }
    }

    /// The client's packets are about this from now on. Returns the thread, if it is one.
    pub(crate) fn choose(&mut self, threads: Threads) -> Option<Tid> {
        let tid = match threads {
            Threads::Any => None,
            Threads::One(tid) => Some(tid),
            Threads::Of(_) if self.process.is_none() => None,
            Threads::Of(pid) => self.first_of(pid),
        };
        if self.process.is_some() && tid.is_some() {
            let pid = self.process_of(tid);
            if pid != self.pid() {
                self.select(pid);
            }
        }
        tid
    }

    /// The processes that are debugged.
    pub(crate) fn pids(&mut self) -> Vec<HostTid> {
        let mut pids: Vec<_> = self.vcpus().iter().map(|vcpu| vcpu.pid).collect();
        pids.dedup();
        if pids.is_empty() {
            pids.push(self.pid());
        }
        pids
    }

    /// A process's first thread.
    pub(crate) fn first_of(&mut self, pid: HostTid) -> Option<Tid> {
        let vcpu = self.vcpus().into_iter().find(|vcpu| vcpu.pid == pid)?;
        Some(tid(vcpu))
    }

    /// The process that a thread is one of; of none that is known, the chosen one.
    pub(crate) fn process_of(&mut self, thread: Option<Tid>) -> HostTid {
        let vcpu = self
            .vcpus()
            .into_iter()
            .find(|&vcpu| Some(tid(vcpu)) == thread);
        vcpu.map_or(self.pid(), |vcpu| vcpu.pid)
    }

    /// Every thread, those of a process behind each other.
    pub(crate) fn vcpus(&mut self) -> Vec<VCpu> {
        let Ok(threads) = self.running() else {
            return Vec::new();
        };
        let vcpu = |&id: &Tid| threads.get(id)?.cpu;
        threads.ids().iter().filter_map(vcpu).collect()
    }

    /// What the process did last, for a client that asks.
    pub(crate) fn last_stop(&mut self) -> Option<Reply> {
        let thread = self
            .stopped_thread()
            .or_else(|| self.running().ok()?.ids().first().copied())?;
        let pid = self.process_of(Some(thread)).0;
        let signal = self.process.as_ref()?.last_signal;
        Some(Reply::text(&format!(
            "T{signal:02x}thread:p{pid:x}.{thread:x};"
        )))
    }

    /// Every thread runs, and one of them steps if that is wanted; for a client that does not say it for each.
    pub(crate) fn all_run(
        &mut self,
        stepped: Option<Tid>,
        signal: i32,
    ) -> Result<Vec<Resume>, ControlError> {
        let stopped = stepped.or(self.stopped_thread());
        let threads = self.running()?;
        let mut resumes = Vec::new();
        for &id in threads.ids() {
            let Some(vcpu) = threads.get(id).and_then(|thread| thread.cpu) else {
                continue;
            };
            let steps = stepped == Some(id);
            resumes.push(Resume {
                tid: vcpu.tid,
                action: match steps {
                    true => Action::Step(Step::Instruction),
                    false => Action::Run,
                },
                signal: if stopped == Some(id) { signal } else { 0 },
            });
        }
        Ok(resumes)
    }
}
