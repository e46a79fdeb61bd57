//! A guest that stands still for a client.

use std::sync::Arc;
use std::time::Duration;

use kscope_kernel::{CpuId, Registers};

use super::{Channel, Connection, RemoteError, Request, Response, ask, out_of_turn};

/// Every CPU of the guest is stopped, until this is released or dropped, the connection ends, or
/// [`MAX_HOLD`](super::MAX_HOLD) has passed.
///
/// The connection that it comes from stays usable, from the same thread.
#[derive(Debug)]
pub struct Hold {
    /// The registers of each CPU.
    pub registers: Vec<(CpuId, Registers)>,
    /// A debugger had stopped the guest already: it does not run on after this.
    pub debugged: bool,
    channel: Arc<Channel>,
    released: bool,
}

impl Connection {
    /// Stops every CPU of the guest. One that a debugger has stopped is held at once, and left to the debugger after.
    ///
    /// # Errors
    ///
    /// The guest cannot be stopped, is held by this connection already, or is gone.
    pub fn hold(&self) -> Result<Hold, RemoteError> {
        match ask(&self.channel, &Request::Hold)? {
            Response::Held {
                registers,
                debugged,
            } => Ok(Hold {
                registers,
                debugged,
                channel: Arc::clone(&self.channel),
                released: false,
            }),
            other => Err(out_of_turn(&other)),
        }
    }
}

impl Hold {
    /// Lets the guest run on, and tells how long it stood still.
    ///
    /// # Errors
    ///
    /// [`RemoteError::HoldExpired`] when it did not stand still until now, so that what was read may not fit together;
    /// or its supervisor is gone.
    pub fn release(mut self) -> Result<Duration, RemoteError> {
        self.end()
    }

    /// Holds the guest for up to another [`MAX_HOLD`](super::MAX_HOLD) from now.
    ///
    /// # Errors
    ///
    /// The hold has ended already, or the supervisor is gone.
    pub fn keep(&self) -> Result<(), RemoteError> {
        match ask(&self.channel, &Request::KeepHolding)? {
            Response::Kept => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }

    fn end(&mut self) -> Result<Duration, RemoteError> {
        self.released = true;
        match ask(&self.channel, &Request::Release)? {
            Response::Released { expired: true, .. } => Err(RemoteError::HoldExpired),
            Response::Released { stood_ns, .. } => Ok(Duration::from_nanos(stood_ns)),
            other => Err(out_of_turn(&other)),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // The answer has to be taken off the connection; a failure means that it is gone, and the hold with it.
        if !self.released
            && let Err(error) = self.end()
        {
            log::debug!("releasing the guest: {error}");
        }
    }
}
