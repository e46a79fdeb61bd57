//! A real guest behind `control.sock`.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kscope_kernel::KernelAddr;

use super::{Endpoint, Held};
use crate::control::Control;
use crate::mem;
use crate::remote::{Description, MAX_HOLD};
use crate::sampling::{GuestSource, Source};

/// How long the guest may take to stop for a hold, well within what the client waits for an answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The guest that this process supervises.
pub struct GuestEndpoint {
    description: Description,
    control: Control,
    stop: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for GuestEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestEndpoint")
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

impl GuestEndpoint {
    /// `stop` begins the end of the guest, and must not wait for it.
    pub fn new(
        description: Description,
        control: Control,
        stop: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            description,
            control,
            stop: Box::new(stop),
        }
    }
}

impl Endpoint for GuestEndpoint {
    fn describe(&self) -> Description {
        self.description.clone()
    }

    fn memory(&self) -> io::Result<OwnedFd> {
        // For reading only: what is written goes through the supervisor.
        Ok(File::open(format!("/proc/{}/mem", self.control.pid()))?.into())
    }

    fn maps(&self) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/maps", self.control.pid()))
    }

    fn write_memory(&self, addr: KernelAddr, bytes: &[u8]) -> Result<(), String> {
        // Not with a descriptor of our own: a breakpoint may be where this goes.
        self.control
            .write_memory(addr, bytes)
            .map_err(|error| error.to_string())
    }

    fn sample_source(&self) -> Result<Box<dyn Source>, String> {
        match GuestSource::new(&self.control) {
            Ok(source) => Ok(Box::new(source)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn physical_memory(&self) -> io::Result<OwnedFd> {
        Ok(mem::open_ram(self.control.pid())?.into())
    }

    fn hold(&self) -> Result<Held, String> {
        let hold = self
            .control
            .hold(STOP_TIMEOUT)
            .map_err(|error| error.to_string())?;
        Ok(Held {
            registers: hold.registers().to_vec(),
            debugged: hold.is_debugged(),
            since: hold.since(),
            deadline: hold.since() + MAX_HOLD,
            guard: Box::new(hold),
        })
    }

    fn stop_guest(&self) -> Result<(), String> {
        (self.stop)();
        Ok(())
    }
}
