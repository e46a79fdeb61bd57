//! The guest as gdbstub's target. What resumes it is in [`crate::resume`], the monitor's commands in [`crate::monitor`].

use gdbstub::common::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use kscope_guest::control::{ControlError, WatchKind as Watch};
use kscope_kernel::{CpuId, KernelAddr, Registers};

use crate::arch::{Amd64, Number, Values};
use crate::rsp::{EFAULT, EINVAL};
use crate::target::{Fatal, GuestTarget, Watchpoint};
use crate::threads::Description;

/// `EPERM`, in the remote protocol's numbers.
const EPERM: u8 = 1;
/// `ESRCH`, in the remote protocol's numbers.
const ESRCH: u8 = 3;

impl GuestTarget {
    fn values(&mut self, tid: Tid, with_fp: bool) -> TargetResult<Values, Self> {
        let thread = self
            .thread(tid)
            .map_err(non_fatal)?
            .ok_or(TargetError::Errno(ESRCH))?;
        if let Some(vcpu) = thread.cpu {
            let known = self
                .threads
                .as_ref()
                .and_then(|threads| threads.registers(vcpu.cpu));
            let general = match known {
                Some(registers) => *registers,
                None => self.debugger.registers(vcpu.cpu).map_err(non_fatal)?,
            };
            let fxsave = match with_fp {
                true => Some(self.debugger.fp_registers(vcpu.cpu).map_err(non_fatal)?),
                false => None,
            };
            return Ok(Values { general, fxsave });
        }
        let (Some(kernel), Some(task)) = (&self.kernel, &thread.task) else {
            return Err(TargetError::Errno(ESRCH));
        };
        let general = kernel.saved_registers(task).map_err(|error| {
            log::debug!("registers of task {}: {error}", task.pid);
            TargetError::Errno(EFAULT)
        })?;
        Ok(Values {
            general,
            fxsave: None,
        })
    }

    /// The general registers of a thread, as far as they are known.
    pub(crate) fn general_registers(&mut self, tid: Tid) -> Option<Registers> {
        self.values(tid, false).ok().map(|values| values.general)
    }

    /// The CPU of a thread whose registers are to be written.
    fn writable(&mut self, tid: Tid) -> TargetResult<CpuId, Self> {
        let thread = self
            .thread(tid)
            .map_err(non_fatal)?
            .ok_or(TargetError::Errno(ESRCH))?;
        match thread.cpu {
            Some(vcpu) => Ok(vcpu.cpu),
            None => {
                log::info!("registers of a sleeping task cannot be written");
                Err(TargetError::Errno(EPERM))
            }
        }
    }
}

/// An error that the client is told of with a number, and the log with words.
pub(crate) fn non_fatal<E>(error: ControlError) -> TargetError<E> {
    log::warn!("{error}");
    TargetError::Errno(EFAULT)
}

impl Target for GuestTarget {
    type Arch = Amd64;
    type Error = Fatal;

    fn base_ops(&mut self) -> BaseOps<'_, Amd64, Fatal> {
        BaseOps::MultiThread(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    // A guest's host process forks all the time, which is none of a debugger's business.
    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for GuestTarget {
    fn read_registers(&mut self, regs: &mut Values, tid: Tid) -> TargetResult<(), Self> {
        *regs = self.values(tid, true)?;
        Ok(())
    }

    fn write_registers(&mut self, regs: &Values, tid: Tid) -> TargetResult<(), Self> {
        let cpu = self.writable(tid)?;
        self.debugger
            .set_registers(cpu, regs.general)
            .map_err(non_fatal)?;
        let mut now = Values {
            fxsave: Some(self.debugger.fp_registers(cpu).map_err(non_fatal)?),
            ..Values::default()
        };
        now.set_fp(regs);
        if let Some(area) = now.fxsave {
            self.debugger
                .set_fp_registers(cpu, area)
                .map_err(non_fatal)?;
        }
        self.threads = None;
        Ok(())
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        match self.read_memory(Some(tid), start, data) {
            0 if !data.is_empty() => Err(TargetError::Errno(EFAULT)),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        match self.write_bytes(Some(tid), start, data) {
            true => Ok(()),
            false => Err(TargetError::Errno(EFAULT)),
        }
    }

    fn list_active_threads(&mut self, add: &mut dyn FnMut(Tid)) -> Result<(), Fatal> {
        match self.threads() {
            Ok(threads) => threads.ids().iter().for_each(|&tid| add(tid)),
            // A guest that died at this moment: the client hears of it when it resumes it.
            Err(error) => {
                log::debug!("{error}");
                add(Tid::MIN);
            }
        }
        Ok(())
    }

    fn is_thread_alive(&mut self, tid: Tid) -> Result<bool, Fatal> {
        Ok(self.thread(tid).is_ok_and(|thread| thread.is_some()))
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for GuestTarget {
    fn read_register(
        &mut self,
        tid: Tid,
        number: Number,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let values = self.values(tid, number.general().is_none())?;
        let Some(bytes) = values.get(number) else {
            return Ok(0);
        };
        let len = bytes.len().min(buf.len());
        buf[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn write_register(&mut self, tid: Tid, number: Number, bytes: &[u8]) -> TargetResult<(), Self> {
        if !number.is_of(bytes) {
            return Err(TargetError::Errno(EINVAL));
        }
        let cpu = self.writable(tid)?;
        let mut values = Values::default();
        if number.general().is_some() {
            values.set(number, bytes);
            self.debugger
                .set_registers(cpu, values.general)
                .map_err(non_fatal)?;
            // Which task runs is told by the stack pointer.
            self.threads = None;
            return Ok(());
        }
        values.fxsave = Some(self.debugger.fp_registers(cpu).map_err(non_fatal)?);
        values.set(number, bytes);
        if let Some(area) = values.fxsave {
            self.debugger
                .set_fp_registers(cpu, area)
                .map_err(non_fatal)?;
        }
        Ok(())
    }
}

impl ThreadExtraInfo for GuestTarget {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Fatal> {
        let Some(Description { name, cpu }) = self.describe(tid) else {
            return Ok(0);
        };
        let text = match cpu {
            Some(cpu) => format!("{name} on CPU {cpu}"),
            None => name,
        };
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl Breakpoints for GuestTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for GuestTarget {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.insert_for_client(KernelAddr(addr), None)
            .map_err(non_fatal)?;
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.client_breakpoints.remove(&KernelAddr(addr));
        self.debugger
            .remove_breakpoint(KernelAddr(addr))
            .map_err(non_fatal)?;
        self.restore_trouble(KernelAddr(addr));
        self.restore_modules(KernelAddr(addr));
        Ok(true)
    }
}

/// In this guest all text can be written: a breakpoint by the processor has nothing over one by `int3`, and there are
/// four only.
impl HwBreakpoint for GuestTarget {
    fn add_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Self> {
        self.add_sw_breakpoint(addr, kind)
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, kind: usize) -> TargetResult<bool, Self> {
        self.remove_sw_breakpoint(addr, kind)
    }
}

fn watch(kind: WatchKind) -> Watch {
    match kind {
        WatchKind::Write => Watch::Write,
        WatchKind::Read | WatchKind::ReadWrite => Watch::Access,
    }
}

impl HwWatchpoint for GuestTarget {
    fn add_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        match self
            .debugger
            .insert_watchpoint(KernelAddr(addr), len, watch(kind))
        {
            Ok(()) => {
                let pid = self.pid();
                let watchpoint = Watchpoint {
                    pid,
                    addr,
                    len,
                    kind,
                };
                if !self.watchpoints.contains(&watchpoint) {
                    self.watchpoints.push(watchpoint);
                }
                Ok(true)
            }
            Err(error) => {
                log::info!("{error}");
                Ok(false)
            }
        }
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.debugger
            .remove_watchpoint(KernelAddr(addr), len, watch(kind))
            .map_err(non_fatal)?;
        let watchpoint = Watchpoint {
            pid: self.pid(),
            addr,
            len,
            kind,
        };
        self.watchpoints.retain(|known| *known != watchpoint);
        Ok(true)
    }
}
