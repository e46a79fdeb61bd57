//! An ordinary process in the place of a guest: its threads are the host's, and so are its signals.

use std::fs;
use std::path::PathBuf;

use gdbstub::common::{Signal, Tid};
use kscope_guest::control::{Action, ControlError, HostTid, Resume, Step, StopReason, VCpu};

use crate::rsp::encode::Reply;
use crate::signals::to_gdb;
use crate::space::Space;
use crate::target::GuestTarget;

/// What is known of a process that no guest has.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: HostTid,
    /// What the next resumption does.
    pub(crate) resumes: Vec<Resume>,
    /// The program that the process has become, if it has just done so.
    pub(crate) became: Option<PathBuf>,
    /// The last stop is a thread's start.
    pub(crate) created: bool,
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
            became: None,
            created: false,
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
    usize::try_from(vcpu.tid.0)
        .ok()
        .and_then(Tid::new)
        .unwrap_or(Tid::MIN)
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
        process.created = reason == StopReason::Created;
        if reason != StopReason::Exec {
            return;
        }
        process.became = fs::read_link(process.file("exe")).ok();
        // The engine has dropped them with the old program.
        self.client_breakpoints.clear();
        self.watchpoints.clear();
        match self.debugger.control().memory() {
            Ok(memory) => self.space = Space::new(memory, None),
            Err(error) => log::warn!("{error}"),
        }
    }

    /// What the process did last, for a client that asks.
    pub(crate) fn last_stop(&mut self) -> Option<Reply> {
        let thread = self
            .stopped_thread()
            .or_else(|| self.running().ok()?.ids().first().copied())?;
        let process = self.process.as_ref()?;
        let (pid, signal) = (process.pid.0, process.last_signal);
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
