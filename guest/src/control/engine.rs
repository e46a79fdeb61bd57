//! The engine thread: attaching, stopping, letting go. What happens while the guest runs is in [`super::running`].

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use kscope_kernel::{CpuId, Image, KernelAddr};

use super::clock::Clock;
use super::debugger::EventSink;
use super::forks::Child;
use super::processes::{Processes, Space};
use super::running::Job;
use super::sys::{self, Wait};
use super::threads::{State, Stop, Thread};
use super::wake::{Ticker, Waker};
use super::{Command, ControlError, Ending, Event, ExitStatus, HostTid, Options, VCpu, visit};
use crate::mem::ProcMem;

/// How long stopping may take where no caller says.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A kernel that is to be held at its start.
pub(super) struct StartHold {
    /// None when it is the first instruction of a process.
    pub(super) addr: Option<KernelAddr>,
    pub(super) reached: bool,
    /// How many times a process has yet to exec.
    pub(super) execs: usize,
    pub(super) waiters: Vec<Sender<()>>,
}

/// The state of the engine thread.
pub(super) struct Engine {
    pub(super) pid: HostTid,
    /// None when it is an ordinary process.
    pub(super) image: Option<Image>,
    pub(super) options: Options,
    pub(super) commands: Receiver<Command>,
    pub(super) waker: Arc<Waker>,
    pub(super) ending: Arc<Ending>,
    pub(super) pidfd: OwnedFd,
    /// The processes whose threads are traced: the guest's, and those that a debugged process has forked.
    pub(super) processes: Processes,
    /// The process that the debugger's requests are about.
    pub(super) selected: HostTid,
    /// Processes that have ended while others go on, of which the debugger is yet to be told.
    pub(super) ends: VecDeque<(HostTid, ExitStatus)>,
    pub(super) threads: BTreeMap<HostTid, Thread>,
    /// Those that were there before the news of their start.
    early_threads: Vec<HostTid>,
    /// How many need the guest attached.
    pub(super) references: usize,
    pub(super) job: Job,
    /// How many want the guest to stand still, whatever its job is.
    pub(super) holds: usize,
    /// Signals of a process that the debugger is not told of.
    pub(super) pass_signals: Vec<i32>,
    /// Each thread of a process stops by itself ([`super::nonstop`]).
    pub(super) non_stop: bool,
    /// The debugger is told of threads that begin and end.
    pub(super) thread_events: bool,
    /// The leaders of processes that were dead at the last tick.
    pub(super) leaders_seem_dead: Vec<HostTid>,
    /// A thread that ran has ended.
    pub(super) lost_runner: bool,
    /// The debugger detaches: a process is let go when it does.
    pub(super) detaching: bool,
    /// The debugger is told of what a process forks, which is traced then.
    pub(super) follows_forks: bool,
    /// Processes that ours has started, which are yet to be let go.
    pub(super) children: Vec<Child>,
    /// Those that were there before the news of their start.
    pub(super) early_children: Vec<HostTid>,
    /// The debugger wants interrupts to be taken while it steps.
    pub(super) step_irq: bool,
    pub(super) debugger: Option<EventSink>,
    /// The debugger is on this thread.
    pub(super) is_visited: bool,
    /// The guest's clock, when it is to stand still while the guest is stopped.
    pub(super) clock: Option<Clock>,
    pub(super) start: Option<StartHold>,
    /// Made by the thread itself when it first waits.
    ticker: Option<Ticker>,
    /// Which thread is which CPU; found anew at every stop.
    pub(super) cpus: Vec<VCpu>,
    /// Where a thread keeps the number of its CPU, from its thread pointer, in a kernel that can have several.
    pub(super) cpu_number: Option<i64>,
}

impl Engine {
    pub(super) fn new(
        pid: HostTid,
        image: Option<Image>,
        options: Options,
        commands: Receiver<Command>,
        waker: Arc<Waker>,
        ending: Arc<Ending>,
    ) -> Result<Self, ControlError> {
        let cpu_number = image
            .as_ref()
            .and_then(|image| image.thread_local("__curr_cpu"));
        Ok(Self {
            pid,
            image,
            cpu_number,
            options,
            commands,
            waker,
            ending,
            pidfd: sys::pidfd_open(pid)?,
            processes: Processes::default(),
            selected: pid,
            ends: VecDeque::new(),
            threads: BTreeMap::new(),
            early_threads: Vec::new(),
            references: 0,
            job: Job::Free,
            holds: 0,
            pass_signals: Vec::new(),
            non_stop: false,
            thread_events: false,
            leaders_seem_dead: Vec::new(),
            lost_runner: false,
            detaching: false,
            follows_forks: false,
            children: Vec::new(),
            early_children: Vec::new(),
            step_irq: false,
            debugger: None,
            is_visited: false,
            clock: None,
            start: None,
            ticker: None,
            cpus: Vec::new(),
        })
    }

    /// The thread's main loop: commands first, then what the guest did, then sleep.
    pub(super) fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Work(work)) => work(&mut self),
                    Ok(Command::Visit(visitor)) => match visit::receive(self, visitor) {
                        Some(engine) => self = engine,
                        None => return,
                    },
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
                self.catch_up();
            }
            self.catch_up();
            if let Err(error) = self.sleep() {
                log::error!("control of guest {}: cannot wait: {error}", self.pid);
                return;
            }
        }
    }

    /// Takes note of all that has happened, and does what there is to do about it.
    pub(super) fn catch_up(&mut self) {
        self.absorb_all();
        self.settle();
    }

    /// Waits for something to do.
    fn sleep(&mut self) -> std::io::Result<()> {
        if !self.threads.is_empty() || !self.children.is_empty() {
            // Those that are stopped can still be killed, and the process has ended when each has been waited for.
            return self.wait_for_threads(true);
        }
        if let Some(ticker) = &mut self.ticker {
            ticker.set(false)?;
        }
        let pidfd = (!self.has_ended()).then_some(&self.pidfd);
        if self.waker.sleep(pidfd)? {
            self.check_exit();
        }
        Ok(())
    }

    /// Waits until a thread has something to tell, or a tick has passed, or, with `heed`, a command comes.
    ///
    /// To wait for the threads themselves, rather than for news of them, is what makes breakpoints and steps quick:
    /// the host hands the processor over from the one to the other.
    pub(super) fn wait_for_threads(&mut self, heed: bool) -> std::io::Result<()> {
        let ticker = self.ticker()?;
        ticker.set(true)?;
        let thread = ticker.thread();
        let got = if heed {
            self.waker.set_waiting(Some(thread));
            // Announced first, looked then: whoever comes now kicks.
            let got = sys::wait_any(self.commands.is_empty());
            self.waker.set_waiting(None);
            got
        } else {
            sys::wait_any(true)
        };
        self.on_wait(got);
        Ok(())
    }

    /// Waits for about as long as said, to the next tick, while something holds; a command ends that, too.
    pub(super) fn wait_while(
        &mut self,
        patience: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<(), ControlError> {
        if !holds(self) {
            return Ok(());
        }
        let deadline = Instant::now() + patience;
        while holds(self) && self.commands.is_empty() && Instant::now() < deadline {
            self.wait_for_threads(true)?;
            self.settle();
        }
        Ok(())
    }

    pub(super) fn ticker(&mut self) -> std::io::Result<&mut Ticker> {
        Ok(match &mut self.ticker {
            Some(ticker) => ticker,
            none => none.insert(Ticker::new()?),
        })
    }

    /// Takes note of what a wait has brought. False when that was nothing.
    fn on_wait(&mut self, got: std::io::Result<Option<(HostTid, Wait)>>) -> bool {
        match got {
            Ok(Some((tid, wait))) => self.absorb(tid, wait),
            Ok(None) => {
                self.look_at_leader();
                return false;
            }
            // Not even the leader is left.
            Err(_) => {
                self.ended(ExitStatus::Unknown);
                return false;
            }
        }
        true
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ending.get().is_some()
    }

    pub(super) fn alive(&self) -> Result<(), ControlError> {
        if self.has_ended() {
            Err(ControlError::Ended)
        } else {
            Ok(())
        }
    }

    /// The guest's memory; open while attached.
    pub(super) fn memory(&self) -> Result<&ProcMem, ControlError> {
        let space = self.processes.space(self.pid).ok_or(ControlError::Ended)?;
        Ok(&space.memory)
    }

    /// The address space of a process.
    pub(super) fn space_mut(&mut self, pid: HostTid) -> Result<&mut Space, ControlError> {
        self.processes.space_mut(pid).ok_or(ControlError::Ended)
    }

    /// The address space that a thread is in.
    pub(super) fn space_of(&self, tid: HostTid) -> Option<&Space> {
        self.processes.space(self.pid_of(tid))
    }

    /// The process that a thread is one of.
    pub(super) fn pid_of(&self, tid: HostTid) -> HostTid {
        self.threads.get(&tid).map_or(self.pid, |thread| thread.pid)
    }

    /// The general registers of a thread that stands still.
    pub(super) fn host_registers(&self, tid: HostTid) -> std::io::Result<libc::user_regs_struct> {
        let thread = self
            .threads
            .get(&tid)
            .filter(|thread| thread.stop().is_none());
        match thread.and_then(|thread| thread.loan) {
            Some(loan) => Ok(loan.registers),
            None => sys::registers(tid),
        }
    }

    /// The process's end has been announced: take note, and reap it if it is a child.
    fn check_exit(&mut self) {
        match sys::wait(self.pid) {
            Ok(Some(wait)) => self.absorb(self.pid, wait),
            Ok(None) => {}
            Err(_) => self.ended(ExitStatus::Unknown),
        }
    }

    pub(super) fn ended(&mut self, status: ExitStatus) {
        if self.has_ended() {
            return;
        }
        self.threads.clear();
        self.references = 0;
        self.job = Job::Free;
        self.processes.clear();
        self.start = None;
        // The debugger first: whoever waits for the end may end the debugger's server with it.
        for (pid, status) in std::mem::take(&mut self.ends) {
            self.tell_debugger(Event::ProcessExited { pid, status });
        }
        self.tell_debugger(Event::Exited(status));
        self.ending.set(status);
    }

    // Stopping.

    /// Stops every thread, whatever it does.
    pub(super) fn stop_all(&mut self, timeout: Duration) -> Result<(), ControlError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.alive()?;
            let running = self.running_threads();
            for &tid in &running {
                // A thread that is gone says so in the end.
                let _ = sys::interrupt(tid);
            }
            self.wait_stopped(&running, deadline, timeout)?;
            // On several CPUs, a thread may have come to life while the others were being stopped.
            let before = self.threads.len();
            if self.cpu_number.is_some() {
                self.seize_new()?;
            }
            // One that was just being started is not stopped yet.
            if self.threads.len() == before && self.running_threads().is_empty() {
                break;
            }
        }
        self.cpus.clear();
        Ok(())
    }

    fn wait_stopped(
        &mut self,
        tids: &[HostTid],
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), ControlError> {
        loop {
            self.absorb_all();
            self.alive()?;
            let laggard = tids.iter().find(|tid| {
                self.threads
                    .get(tid)
                    .is_some_and(|thread| !thread.stands_still())
            });
            let Some(&laggard) = laggard else {
                return Ok(());
            };
            if laggard == self.pid_of(laggard) && self.is_process() && sys::is_zombie(laggard) {
                // The leader has ended before its threads.
                self.thread_is_gone(laggard, 0);
                continue;
            }
            if Instant::now() >= deadline {
                let cpu = self
                    .cpus
                    .iter()
                    .find(|vcpu| vcpu.tid == laggard)
                    .map(|vcpu| vcpu.cpu);
                return Err(ControlError::StopTimeout {
                    cpu: cpu.or((laggard == self.pid).then_some(CpuId(0))),
                    timeout,
                    place: sys::whereabouts(self.pid),
                });
            }
            self.wait_for_threads(false)?;
        }
    }

    /// The traced threads that do not stand still.
    fn running_threads(&self) -> Vec<HostTid> {
        self.threads
            .values()
            .filter(|thread| !thread.stands_still())
            .map(|thread| thread.tid)
            .collect()
    }

    /// Takes note of everything that has happened to the traced threads; to those that are stopped, only their end
    /// can: as long as one of them is there to be waited for, the process has not ended.
    pub(super) fn absorb_all(&mut self) {
        let is_attached = |engine: &Self| !engine.threads.is_empty() || !engine.children.is_empty();
        while is_attached(self) && self.on_wait(sys::wait_any(false)) {}
    }

    /// Takes note of one thing that has happened to a thread.
    pub(super) fn absorb(&mut self, tid: HostTid, wait: Wait) {
        if self.is_process() && self.is_of_child(tid, wait) {
            return;
        }
        let stop = match wait {
            Wait::Exited(code) => return self.has_exited(tid, ExitStatus::Exited(code)),
            Wait::Signaled(signal) => return self.has_exited(tid, ExitStatus::Signaled(signal)),
            Wait::EventStop(libc::SIGTRAP) => {
                if self.trap_is_under_way(tid) {
                    // Let it come: the stop that it makes is the one to go by.
                    let _ = sys::cont(tid, 0);
                    return;
                }
                Stop::default()
            }
            Wait::EventStop(_) => Stop {
                group: true,
                ..Stop::default()
            },
            Wait::Exec => self.after_exec(tid),
            Wait::Clone => {
                self.after_clone(tid);
                Stop::default()
            }
            Wait::OtherEvent(event) => {
                log::debug!("guest thread {tid}: ptrace event {event}");
                Stop {
                    cause: self.after_fork(tid, event),
                    ..Stop::default()
                }
            }
            Wait::Signal(signal) => match self.on_signal(tid, signal) {
                Ok(stop) => stop,
                // The thread was killed while stopped, and says so with its next wait.
                Err(error) => {
                    log::debug!("guest thread {tid}, signal {signal}: {error}");
                    return;
                }
            },
        };
        // One that another has just started may be there before the news of it.
        if !self.threads.contains_key(&tid) {
            self.early_threads.push(tid);
            let pid = self.process_with(tid).unwrap_or(self.pid);
            let thread = self.new_thread(pid, tid);
            self.threads.insert(tid, thread);
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.state = State::Stopped(stop);
        }
    }

    /// Whether a thread that an interrupt has stopped has just executed one of our `int3`, whose SIGTRAP is still to
    /// come: the program counter is behind it, in the middle of the real instruction.
    fn trap_is_under_way(&self, tid: HostTid) -> bool {
        let Ok(regs) = sys::registers(tid) else {
            return false;
        };
        let addr = KernelAddr(regs.rip.wrapping_sub(1));
        let space = self.space_of(tid);
        space.is_some_and(|space| space.breakpoints.is_planted(addr))
            && sys::has_pending(tid, libc::SIGTRAP).unwrap_or(false)
    }

    /// A thread has started another, which stops before it does anything.
    fn after_clone(&mut self, tid: HostTid) {
        match sys::started_thread(tid) {
            Ok(started) => {
                if take(&mut self.early_threads, started) {
                    // It was there before, and may be gone by now.
                    return;
                }
                let new = self.new_thread(self.pid_of(tid), started);
                let thread = self.threads.entry(started).or_insert(new);
                // A process to the host, but one that was started as threads are: it was there before, too, and
                // taken for one that is to be let go.
                if take(&mut self.early_children, started) {
                    thread.state = State::Stopped(Stop::default());
                }
            }
            // It was killed at this moment.
            Err(error) => log::debug!("guest thread {tid} started another: {error}"),
        }
    }
}

impl Drop for Engine {
    /// However the engine ends, the guest gets its own text and signal mask back.
    fn drop(&mut self) {
        if self.threads.is_empty() || self.has_ended() {
            return;
        }
        if let Err(error) = self.stop_all(STOP_TIMEOUT) {
            log::warn!("letting go of guest {}: {error}", self.pid);
        }
        self.let_go();
    }
}

/// Takes one out of those that were there before the news of their start. False when it is none of them.
pub(super) fn take(early: &mut Vec<HostTid>, tid: HostTid) -> bool {
    let index = early.iter().position(|&known| known == tid);
    index.map(|index| early.swap_remove(index)).is_some()
}

pub(super) fn failed(request: &'static str, tid: HostTid, error: std::io::Error) -> ControlError {
    ControlError::Ptrace {
        request,
        tid,
        error,
    }
}
