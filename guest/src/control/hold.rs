//! A guest that stands still for a reader, while the engine goes on serving everybody else.

use std::time::{Duration, Instant};

use kscope_kernel::{CpuId, Registers};

use super::engine::{Engine, failed};
use super::{Control, ControlError, registers, sys};

/// Every CPU of the guest is stopped as long as this lives.
///
/// A debugger keeps its say over what comes after: a guest that it has stopped stays so when this is dropped, and one
/// that it continues meanwhile runs when this is dropped. Processes of the guest that are in user mode are the host's
/// and run on until they next need their kernel; nothing of the kernel's changes by that.
#[derive(Debug)]
pub struct Hold {
    control: Control,
    registers: Vec<(CpuId, Registers)>,
    since: Instant,
    debugged: bool,
}

impl Control {
    /// Stops every CPU of the guest until the hold is dropped. Attaches if nobody has.
    ///
    /// `timeout` bounds the stopping. Several may hold a guest at the same time.
    ///
    /// # Errors
    ///
    /// The guest has ended, cannot be attached, or did not stop in time.
    pub fn hold(&self, timeout: Duration) -> Result<Hold, ControlError> {
        // The stop itself counts: the first CPU stands still from then on.
        let since = Instant::now();
        let (registers, debugged) = self.call(move |engine| engine.begin_hold(timeout))??;
        Ok(Hold {
            control: self.clone(),
            registers,
            since,
            debugged,
        })
    }
}

impl Hold {
    /// The registers of each CPU.
    pub fn registers(&self) -> &[(CpuId, Registers)] {
        &self.registers
    }

    /// Since when the guest stands still; a debugger may have stopped it long before.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether a debugger had stopped the guest already, so that it does not run on after this.
    pub fn is_debugged(&self) -> bool {
        self.debugged
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.control.send(Engine::end_hold);
    }
}

impl Engine {
    fn begin_hold(
        &mut self,
        timeout: Duration,
    ) -> Result<(Vec<(CpuId, Registers)>, bool), ControlError> {
        self.attach()?;
        let debugged = self.is_held();
        match self.stop_for_hold(timeout) {
            Ok(registers) => {
                self.holds += 1;
                Ok((registers, debugged))
            }
            Err(error) => {
                self.settle();
                self.drop_attachment();
                Err(error)
            }
        }
    }

    fn stop_for_hold(
        &mut self,
        timeout: Duration,
    ) -> Result<Vec<(CpuId, Registers)>, ControlError> {
        if !self.is_held() && self.holds == 0 {
            self.stop_all(timeout)?;
            self.lift();
        }
        let cpus = self.vcpus().to_vec();
        cpus.into_iter()
            .map(|vcpu| {
                sys::registers(vcpu.tid)
                    .map(|host| (vcpu.cpu, registers::from_host(host)))
                    .map_err(|error| failed("reading the registers", vcpu.tid, error))
            })
            .collect()
    }

    fn end_hold(&mut self) {
        self.holds = self.holds.saturating_sub(1);
        // Where nobody else needs it attached, letting go is what resumes it; otherwise the main loop does.
        self.drop_attachment();
    }
}
