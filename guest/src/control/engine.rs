//! The engine thread: attaching, stopping, letting go. What happens while the guest runs is in [`super::running`].

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use kscope_kernel::{CpuId, Image, Kernel, KernelAddr, Registers};

use super::breakpoints::{Breakpoints, Owner};
use super::running::Job;
use super::sys::{self, Wait, Waker};
use super::threads::{State, Stop, Thread};
use super::watchpoints::Watchpoints;
use super::{
    Command, ControlError, Ending, Event, EventSink, ExitStatus, HostTid, Options, StopReason,
    VCpu, WatchKind, registers,
};
use crate::mem::ProcMem;

/// How long stopping may take where no caller says.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A kernel that is to be held at its start.
struct StartHold {
    addr: KernelAddr,
    reached: bool,
    waiters: Vec<Sender<()>>,
}

/// The state of the engine thread.
pub(super) struct Engine {
    pub(super) pid: HostTid,
    image: Image,
    options: Options,
    commands: Receiver<Command>,
    waker: Arc<Waker>,
    ending: Arc<Ending>,
    pidfd: OwnedFd,
    /// Open while attached.
    memory: Option<ProcMem>,
    pub(super) threads: BTreeMap<HostTid, Thread>,
    /// How many need the guest attached.
    references: usize,
    pub(super) job: Job,
    pub(super) breakpoints: Breakpoints,
    pub(super) watchpoints: Watchpoints,
    debugger: Option<EventSink>,
    start: Option<StartHold>,
    /// Which thread is which CPU, where there are several; found anew at every stop.
    cpus: Vec<VCpu>,
}

impl Engine {
    pub(super) fn new(
        pid: HostTid,
        image: Image,
        options: Options,
        commands: Receiver<Command>,
        waker: Arc<Waker>,
        ending: Arc<Ending>,
    ) -> Result<Self, ControlError> {
        Ok(Self {
            pid,
            image,
            options,
            commands,
            waker,
            ending,
            pidfd: sys::pidfd_open(pid)?,
            memory: None,
            threads: BTreeMap::new(),
            references: 0,
            job: Job::Free,
            breakpoints: Breakpoints::default(),
            watchpoints: Watchpoints::default(),
            debugger: None,
            start: None,
            cpus: Vec::new(),
        })
    }

    /// The thread's main loop: commands first, then what the guest did, then sleep.
    pub(super) fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => {
                        command(&mut self);
                        self.absorb_all();
                        self.settle();
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.absorb_all();
            self.settle();
            let pidfd = (!self.has_ended()).then_some(&self.pidfd);
            match self.waker.sleep(pidfd, None) {
                Ok(true) => self.check_exit(),
                Ok(false) => {}
                Err(error) => {
                    log::error!("control of guest {}: cannot wait: {error}", self.pid);
                    return;
                }
            }
        }
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
        self.memory.as_ref().ok_or(ControlError::Ended)
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
        self.memory = None;
        self.start = None;
        // The debugger first: whoever waits for the end may end the debugger's server with it.
        if let Some(debugger) = &self.debugger {
            debugger.send(Event::Exited(status));
        }
        self.ending.set(status);
    }

    // Attaching and detaching.

    pub(super) fn attach(&mut self) -> Result<(), ControlError> {
        self.alive()?;
        if self.threads.is_empty() {
            self.seize_and_prepare()?;
        }
        self.references += 1;
        Ok(())
    }

    fn seize_and_prepare(&mut self) -> Result<(), ControlError> {
        self.memory = Some(ProcMem::open(self.pid)?);
        self.seize_new()?;
        if sys::has_default_action(self.pid, libc::SIGCHLD) {
            // The mask can be changed in a stopped thread only.
            if let Err(error) = self.stop_all(STOP_TIMEOUT) {
                self.let_go();
                return Err(error);
            }
            for thread in self.threads.values_mut() {
                block_sigchld_in(thread);
            }
        }
        self.job = Job::Free;
        self.settle();
        Ok(())
    }

    /// Seizes the threads that are not yet traced.
    fn seize_new(&mut self) -> Result<(), ControlError> {
        // A thread may start others while we look; one that does so for ever gets no more than this.
        const ROUNDS: usize = 16;
        let mut options = libc::PTRACE_O_TRACEEXEC;
        if self.options.kill_on_exit {
            options |= libc::PTRACE_O_EXITKILL;
        }
        for _ in 0..ROUNDS {
            let mut found = false;
            for tid in sys::threads(self.pid).map_err(|_| ControlError::Ended)? {
                if self.threads.contains_key(&tid) {
                    continue;
                }
                match sys::seize(tid, options) {
                    Ok(()) => {
                        let mut thread = Thread::new(tid);
                        thread.watchpoints_stale = !self.watchpoints.is_empty();
                        self.threads.insert(tid, thread);
                        found = true;
                    }
                    // Gone since the directory was read.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(error) => {
                        let hint = self.attach_hint(tid, &error);
                        if tid == self.pid {
                            self.let_go();
                            return Err(ControlError::Attach { tid, error, hint });
                        }
                        log::warn!("helper thread {tid} of guest {}: {error}{hint}", self.pid);
                    }
                }
            }
            if !found {
                break;
            }
        }
        if self.threads.is_empty() {
            return Err(ControlError::Ended);
        }
        Ok(())
    }

    fn attach_hint(&self, tid: HostTid, error: &std::io::Error) -> String {
        if error.raw_os_error() != Some(libc::EPERM) {
            return String::new();
        }
        if let Some((tracer, name)) = sys::tracer(tid) {
            return format!(": process {tracer} ({name}) traces it already: detach that one first");
        }
        match sys::ptrace_scope() {
            Some(1) => ": Yama's ptrace_scope is 1, so only a guest's own kscope may attach: use `kscope gdb`, or set \
                        /proc/sys/kernel/yama/ptrace_scope to 0"
                .to_owned(),
            Some(scope @ 2..) => format!(
                ": Yama's ptrace_scope is {scope}: set /proc/sys/kernel/yama/ptrace_scope to 1 or less, as root"
            ),
            _ => ": it must be a process of the same user".to_owned(),
        }
    }

    pub(super) fn drop_attachment(&mut self) {
        self.references = self.references.saturating_sub(1);
        if self.references == 0 && !self.threads.is_empty() {
            if let Err(error) = self.stop_all(STOP_TIMEOUT) {
                // It stays attached, which the next attachment makes use of.
                log::warn!("detaching from guest {}: {error}", self.pid);
                self.settle();
                return;
            }
            self.let_go();
        }
    }

    /// Restores everything in the stopped threads and detaches from them.
    fn let_go(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.breakpoints.lift(&memory);
        }
        self.breakpoints = Breakpoints::default();
        self.watchpoints.clear();
        for mut thread in std::mem::take(&mut self.threads).into_values() {
            let Some(stop) = thread.stop().copied() else {
                // Seized, but never stopped: a thread has to be stopped to be let go.
                if sys::interrupt(thread.tid).is_ok() {
                    let deadline = Instant::now() + STOP_TIMEOUT;
                    while Instant::now() < deadline {
                        match sys::wait(thread.tid) {
                            Ok(None) => {
                                let _ = self.waker.sleep(None, Some(Duration::from_millis(100)));
                            }
                            Ok(Some(Wait::Signal(signal))) => {
                                let _ = sys::detach(thread.tid, signal);
                                break;
                            }
                            _ => {
                                let _ = sys::detach(thread.tid, 0);
                                break;
                            }
                        }
                    }
                }
                continue;
            };
            if thread.sigchld_blocked {
                let unblock = sys::signal_mask(thread.tid).and_then(|mask| {
                    sys::set_signal_mask(thread.tid, mask & !sys::bit(libc::SIGCHLD))
                });
                if let Err(error) = unblock {
                    log::debug!("unblocking SIGCHLD in {}: {error}", thread.tid);
                }
            }
            if thread.watchpoints_stale {
                let _ = self.watchpoints.apply(thread.tid);
            }
            for info in thread.held.drain(..).chain(thread.resent.drain(..)) {
                let _ = sys::tgkill(self.pid, thread.tid, info.signal());
            }
            if let Err(error) = sys::detach(thread.tid, stop.deliver) {
                log::debug!("detaching from {}: {error}", thread.tid);
            }
        }
        self.job = Job::Free;
        self.cpus.clear();
    }

    // Stopping.

    /// Stops every thread, whatever it does.
    pub(super) fn stop_all(&mut self, timeout: Duration) -> Result<(), ControlError> {
        let deadline = Instant::now() + timeout;
        loop {
            self.alive()?;
            let running: Vec<_> = self
                .threads
                .values()
                .filter(|thread| thread.stop().is_none())
                .map(|thread| thread.tid)
                .collect();
            for &tid in &running {
                // A thread that is gone says so in the end.
                let _ = sys::interrupt(tid);
            }
            self.wait_stopped(&running, deadline, timeout)?;
            // On several CPUs, a thread may have come to life while the others were being stopped.
            let before = self.threads.len();
            if self.is_smp() {
                self.seize_new()?;
            }
            if self.threads.len() == before {
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
                    .is_some_and(|thread| thread.stop().is_none())
            });
            let Some(&laggard) = laggard else {
                return Ok(());
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
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
            if self.waker.sleep(Some(&self.pidfd), Some(left))? {
                self.check_exit();
            }
        }
    }

    /// Takes note of everything that has happened to the traced threads.
    pub(super) fn absorb_all(&mut self) {
        let running: Vec<_> = self
            .threads
            .values()
            .filter(|thread| thread.stop().is_none())
            .map(|thread| thread.tid)
            .collect();
        for tid in running {
            match sys::wait(tid) {
                Ok(Some(wait)) => self.absorb(tid, wait),
                Ok(None) => {}
                Err(_) if tid == self.pid => self.ended(ExitStatus::Unknown),
                Err(_) => {
                    self.threads.remove(&tid);
                }
            }
        }
    }

    /// Takes note of one thing that has happened to a thread.
    fn absorb(&mut self, tid: HostTid, wait: Wait) {
        let stop = match wait {
            Wait::Exited(code) if tid == self.pid => return self.ended(ExitStatus::Exited(code)),
            Wait::Signaled(signal) if tid == self.pid => {
                return self.ended(ExitStatus::Signaled(signal));
            }
            Wait::Exited(_) | Wait::Signaled(_) => {
                self.threads.remove(&tid);
                return;
            }
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
            Wait::Exec => {
                self.after_exec(tid);
                Stop::default()
            }
            Wait::OtherEvent(event) => {
                log::debug!("guest thread {tid}: ptrace event {event}");
                Stop::default()
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
        self.breakpoints
            .is_planted(KernelAddr(regs.rip.wrapping_sub(1)))
            && sys::has_pending(tid, libc::SIGTRAP).unwrap_or(false)
    }

    /// The address space is another, and of the threads only the leader is left.
    fn after_exec(&mut self, tid: HostTid) {
        match ProcMem::open(self.pid) {
            Ok(memory) => self.memory = Some(memory),
            Err(error) => log::warn!("after an exec of guest {}: {error}", self.pid),
        }
        self.threads.retain(|&other, _| other == tid);
        self.breakpoints.forget_planted();
        if let Some(start) = &self.start
            && !start.reached
            && self.runs_the_image()
        {
            self.breakpoints.insert(start.addr, Owner::Engine);
            self.silence_gcov();
        }
    }

    /// Keeps a kernel with `GCOV_KERNEL` from announcing its compiler's version: `__gcov_init` does so when it is called
    /// for the first time, which in User Mode Linux is in a constructor, before there is a `current`. 6.12's `printk`
    /// does not survive that. The version that it has announced is kept in a static variable.
    fn silence_gcov(&self) {
        if self.image.symbol("gcov_info_head").is_none() {
            return;
        }
        let announced = self.image.symbols().find(|symbol| {
            let suffix = symbol.name.strip_prefix("gcov_version");
            symbol.size == 4 && suffix.is_some_and(|s| s.is_empty() || s.starts_with('.'))
        });
        if let (Some(announced), Some(memory)) = (announced, &self.memory)
            && let Err(error) = memory.write(announced.addr, &1_u32.to_le_bytes())
        {
            log::warn!("gcov_version of guest {}: {error}", self.pid);
        }
    }

    /// Whether the process has the kernel as its program by now.
    fn runs_the_image(&self) -> bool {
        let running = fs::metadata(format!("/proc/{}/exe", self.pid));
        match (running, fs::metadata(self.image.path())) {
            (Ok(running), Ok(image)) => {
                (running.dev(), running.ino()) == (image.dev(), image.ino())
            }
            // Its own mount namespace may hide the file; its address would then not be mapped elsewhere anyway.
            _ => true,
        }
    }

    // CPUs.

    /// Whether the kernel can have several CPUs.
    fn is_smp(&self) -> bool {
        self.image.symbol("uml_ncpus").is_some()
    }

    /// The guest's CPUs; all threads are stopped.
    pub(super) fn vcpus(&mut self) -> &[VCpu] {
        if self.cpus.is_empty() {
            self.cpus = self.find_vcpus();
        }
        &self.cpus
    }

    fn find_vcpus(&self) -> Vec<VCpu> {
        let only = VCpu {
            cpu: CpuId(0),
            tid: self.pid,
        };
        if !self.is_smp() {
            return vec![only];
        }
        let Some(kernel) = self
            .memory
            .clone()
            .and_then(|memory| Kernel::new(self.image.clone(), memory).ok())
        else {
            return vec![only];
        };
        let mut cpus: Vec<_> = self
            .threads
            .keys()
            .filter_map(|&tid| {
                let sp = sys::registers(tid).ok()?.rsp;
                let cpu = kernel.vcpu_of_stack(sp)?;
                Some(VCpu { cpu, tid })
            })
            .collect();
        cpus.sort_by_key(|vcpu| vcpu.cpu);
        // Before the kernel has set up its stacks, there is the leader alone.
        if cpus.is_empty() { vec![only] } else { cpus }
    }

    pub(super) fn thread_of(&mut self, cpu: CpuId) -> Result<HostTid, ControlError> {
        let vcpu = self.vcpus().iter().find(|vcpu| vcpu.cpu == cpu);
        vcpu.map(|vcpu| vcpu.tid).ok_or(ControlError::NoCpu(cpu))
    }

    pub(super) fn cpu_of(&mut self, tid: HostTid) -> CpuId {
        let vcpu = self.vcpus().iter().find(|vcpu| vcpu.tid == tid);
        vcpu.map_or(CpuId(0), |vcpu| vcpu.cpu)
    }

    // What handles ask for.

    pub(super) fn with_stopped<T>(
        &mut self,
        timeout: Duration,
        f: impl FnOnce(&mut Stopped<'_>) -> T,
    ) -> Result<T, ControlError> {
        self.attach()?;
        let result = self.with_attached_stopped(timeout, f);
        self.drop_attachment();
        result
    }

    fn with_attached_stopped<T>(
        &mut self,
        timeout: Duration,
        f: impl FnOnce(&mut Stopped<'_>) -> T,
    ) -> Result<T, ControlError> {
        if !self.is_held() {
            if let Err(error) = self.stop_all(timeout) {
                self.settle();
                return Err(error);
            }
            let memory = self.memory()?.clone();
            self.breakpoints.lift(&memory);
        }
        let memory = self.memory()?.clone();
        let result = f(&mut Stopped {
            engine: self,
            memory,
        });
        self.settle();
        Ok(result)
    }

    /// The stopped guest, if a debugger holds it.
    pub(super) fn stopped(&mut self) -> Result<Stopped<'_>, ControlError> {
        self.alive()?;
        if !self.is_held() {
            return Err(ControlError::Running);
        }
        let memory = self.memory()?.clone();
        Ok(Stopped {
            engine: self,
            memory,
        })
    }

    pub(super) fn is_held(&self) -> bool {
        self.job == Job::Held
    }

    pub(super) fn has_debugger(&self) -> bool {
        self.debugger.is_some()
    }

    pub(super) fn tell_debugger(&self, event: Event) {
        if let Some(debugger) = &self.debugger {
            debugger.send(event);
        }
    }

    pub(super) fn begin_debug(&mut self, sink: EventSink) -> Result<(), ControlError> {
        self.alive()?;
        if self.debugger.is_some() {
            return Err(ControlError::Busy);
        }
        self.attach()?;
        self.debugger = Some(sink);
        Ok(())
    }

    pub(super) fn end_debug(&mut self) {
        if self.debugger.take().is_none() || self.has_ended() {
            return;
        }
        if !self.is_held()
            && let Err(error) = self.stop_all(STOP_TIMEOUT)
        {
            log::error!(
                "guest {}: the debugger's breakpoints stay: {error}",
                self.pid
            );
        }
        if let Ok(memory) = self.memory().cloned() {
            self.breakpoints.lift(&memory);
        }
        self.breakpoints.drop_debuggers();
        self.watchpoints.clear();
        for thread in self.threads.values_mut() {
            thread.watchpoints_stale = true;
            thread.reported_at = None;
            if let Some(stop) = thread.stop_mut() {
                stop.cause = None;
            }
        }
        // A kernel held at its start has now been taken over and released.
        if self.start.as_ref().is_some_and(|start| start.reached) {
            self.start = None;
            self.references = self.references.saturating_sub(1);
        }
        self.job = Job::Free;
        self.drop_attachment();
    }

    pub(super) fn hold_at_start(&mut self) -> Result<(), ControlError> {
        const SYMBOL: &str = "start_kernel";
        let addr = self
            .image
            .symbol(SYMBOL)
            .ok_or_else(|| ControlError::NoSymbol {
                image: self.image.path().display().to_string(),
                name: SYMBOL,
            })?;
        self.alive()?;
        if self.threads.is_empty() {
            self.memory = Some(ProcMem::open(self.pid)?);
            self.seize_new()?;
        }
        self.references += 1;
        self.start = Some(StartHold {
            addr,
            reached: false,
            waiters: Vec::new(),
        });
        Ok(())
    }

    pub(super) fn notify_start(&mut self, waiter: Sender<()>) {
        // Dropped, and so heard of, when there is nothing to wait for.
        if let Some(start) = &mut self.start {
            if start.reached {
                let _ = waiter.send(());
            } else {
                start.waiters.push(waiter);
            }
        }
    }

    /// The engine's own breakpoint at `addr` was hit. Tells whether the guest is to be held.
    pub(super) fn on_own_breakpoint(&mut self, addr: KernelAddr) -> bool {
        let Some(start) = &mut self.start else {
            return false;
        };
        if start.reached || start.addr != addr {
            return false;
        }
        start.reached = true;
        for waiter in start.waiters.drain(..) {
            let _ = waiter.send(());
        }
        if let Ok(memory) = self.memory().cloned()
            && let Err(error) = self.breakpoints.remove(&memory, addr, Owner::Engine)
        {
            log::warn!("breakpoint at start_kernel: {error}");
        }
        // Until the exec there was no telling what the program would do with it.
        if sys::has_default_action(self.pid, libc::SIGCHLD) {
            for thread in self.threads.values_mut() {
                block_sigchld_in(thread);
            }
        }
        true
    }

    pub(super) fn release(&mut self) -> Result<(), ControlError> {
        self.alive()?;
        if let Some(start) = self.start.take() {
            if !start.reached {
                let memory = self.memory()?.clone();
                self.breakpoints
                    .remove(&memory, start.addr, Owner::Engine)?;
            } else if self.debugger.is_none() {
                self.job = Job::Free;
            }
            self.drop_attachment();
        }
        Ok(())
    }

    // What the debugger asks for, beyond running.

    pub(super) fn insert_breakpoint(&mut self, addr: KernelAddr) -> Result<(), ControlError> {
        let memory = self.memory()?.clone();
        // Now rather than when the guest runs on: this is when somebody is told.
        let mut byte = [0];
        if memory.read_some(addr, &mut byte) == 0 {
            return Err(ControlError::Unmapped { addr });
        }
        self.breakpoints.insert(addr, Owner::Debugger);
        if self.job == Job::Free {
            self.breakpoints.plant(&memory);
        }
        Ok(())
    }

    pub(super) fn remove_breakpoint(&mut self, addr: KernelAddr) -> Result<(), ControlError> {
        let memory = self.memory()?.clone();
        Ok(self.breakpoints.remove(&memory, addr, Owner::Debugger)?)
    }

    pub(super) fn insert_watchpoint(
        &mut self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        self.stopped()?;
        self.watchpoints.insert(addr, len, kind)?;
        self.watchpoints_changed();
        Ok(())
    }

    pub(super) fn remove_watchpoint(
        &mut self,
        addr: KernelAddr,
        len: u64,
        kind: WatchKind,
    ) -> Result<(), ControlError> {
        self.stopped()?;
        self.watchpoints.remove(addr, len, kind);
        self.watchpoints_changed();
        Ok(())
    }

    fn watchpoints_changed(&mut self) {
        for thread in self.threads.values_mut() {
            thread.watchpoints_stale = true;
        }
    }

    pub(super) fn write_memory(
        &mut self,
        addr: KernelAddr,
        bytes: &[u8],
    ) -> Result<(), ControlError> {
        let memory = self.memory()?.clone();
        self.breakpoints.write(&memory, addr, bytes)
    }

    pub(super) fn discard_signal(&mut self, cpu: CpuId) -> Result<(), ControlError> {
        self.stopped()?;
        let tid = self.thread_of(cpu)?;
        if let Some(stop) = self.threads.get_mut(&tid).and_then(Thread::stop_mut) {
            stop.deliver = 0;
        }
        Ok(())
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

/// Blocks SIGCHLD in a stopped thread, unless it is already.
pub(super) fn block_sigchld_in(thread: &mut Thread) {
    let blocked = sys::signal_mask(thread.tid).and_then(|mask| {
        if mask & sys::bit(libc::SIGCHLD) != 0 {
            return Ok(thread.sigchld_blocked);
        }
        sys::set_signal_mask(thread.tid, mask | sys::bit(libc::SIGCHLD)).map(|()| true)
    });
    match blocked {
        Ok(blocked) => thread.sigchld_blocked = blocked,
        Err(error) => log::debug!("blocking SIGCHLD in {}: {error}", thread.tid),
    }
}

/// A guest whose every CPU is stopped.
pub struct Stopped<'e> {
    engine: &'e mut Engine,
    memory: ProcMem,
}

impl Stopped<'_> {
    /// The guest's CPUs.
    pub fn cpus(&mut self) -> Vec<VCpu> {
        self.engine.vcpus().to_vec()
    }

    /// The registers of a CPU.
    ///
    /// # Errors
    ///
    /// There is no such CPU, or its thread was killed at this moment.
    pub fn registers(&mut self, cpu: CpuId) -> Result<Registers, ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        sys::registers(tid)
            .map(registers::from_host)
            .map_err(|error| failed("reading the registers", tid, error))
    }

    /// Sets those registers of a CPU that are known in `registers`.
    ///
    /// # Errors
    ///
    /// There is no such CPU, or the host refuses a value.
    pub fn set_registers(&mut self, cpu: CpuId, registers: &Registers) -> Result<(), ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        let set = |error| failed("setting the registers", tid, error);
        let mut regs = sys::registers(tid).map_err(set)?;
        let pc = regs.rip;
        registers::into_host(registers, &mut regs);
        sys::set_registers(tid, &regs).map_err(set)?;
        if regs.rip != pc
            && let Some(thread) = self.engine.threads.get_mut(&tid)
        {
            thread.reported_at = None;
        }
        Ok(())
    }

    /// The x87 and SSE registers of a CPU, as FXSAVE lays them out.
    ///
    /// # Errors
    ///
    /// As [`Stopped::registers`].
    pub fn fp_registers(&mut self, cpu: CpuId) -> Result<Box<[u8; 512]>, ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        sys::fp_registers(tid)
            .map(Box::new)
            .map_err(|error| failed("reading the floating point registers", tid, error))
    }

    /// Sets the x87 and SSE registers of a CPU.
    ///
    /// # Errors
    ///
    /// As [`Stopped::set_registers`].
    pub fn set_fp_registers(&mut self, cpu: CpuId, area: &[u8; 512]) -> Result<(), ControlError> {
        let tid = self.engine.thread_of(cpu)?;
        sys::set_fp_registers(tid, area)
            .map_err(|error| failed("setting the floating point registers", tid, error))
    }

    /// The guest's memory, with its own bytes where breakpoints are.
    pub fn memory(&self) -> &ProcMem {
        &self.memory
    }

    /// The kernel that the guest runs.
    pub fn image(&self) -> &Image {
        &self.engine.image
    }

    /// Whether a debugger holds the guest, so that it does not run on after this.
    pub fn is_held(&self) -> bool {
        self.engine.is_held()
    }
}

pub(super) fn failed(request: &'static str, tid: HostTid, error: std::io::Error) -> ControlError {
    ControlError::Ptrace {
        request,
        tid,
        error,
    }
}

/// The reason as the debugger is told it.
pub(super) fn stopped_event(cpu: CpuId, reason: StopReason) -> Event {
    Event::Stopped { cpu, reason }
}
