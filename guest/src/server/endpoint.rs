//! A real guest behind `control.sock`.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use kscope_kernel::KernelAddr;

use super::Endpoint;
use crate::control::Control;
use crate::remote::Description;
use crate::sampling::{GuestSource, Source};

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

    fn stop_guest(&self) -> Result<(), String> {
        (self.stop)();
        Ok(())
    }
}
