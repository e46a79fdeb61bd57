//! What one connection holds of the guest: all of it, for a while.

use std::time::{Duration, Instant};

use super::{Endpoint, Held};
use crate::remote::{MAX_HOLD, Response};

const NOT_HELD: &str = "this connection does not hold the guest";

/// A connection's hold, if it has one. Dropping it lets the guest run.
#[derive(Default)]
pub(super) struct Holding {
    held: Option<Held>,
    /// How long a hold lasted that has ended at its deadline.
    expired: Option<Duration>,
}

impl Holding {
    pub(super) fn begin(&mut self, endpoint: &dyn Endpoint) -> Response {
        if self.held.is_some() {
            return Response::Failed("this connection holds the guest already".to_owned());
        }
        self.expired = None;
        match endpoint.hold() {
            Ok(held) => {
                let response = Response::Held {
                    registers: held.registers.clone(),
                    debugged: held.debugged,
                };
                self.held = Some(held);
                response
            }
            Err(reason) => Response::Failed(reason),
        }
    }

    /// Puts the deadline off.
    pub(super) fn keep(&mut self) -> Response {
        match &mut self.held {
            Some(held) => {
                held.deadline = Instant::now() + MAX_HOLD;
                Response::Kept
            }
            None => Response::Failed(NOT_HELD.to_owned()),
        }
    }

    pub(super) fn end(&mut self) -> Response {
        let expired = self.expired.take();
        let stood = match self.held.take() {
            Some(held) => Some(let_go(held)),
            None => expired,
        };
        match stood {
            Some(stood) => Response::Released {
                stood_ns: u64::try_from(stood.as_nanos()).unwrap_or(u64::MAX),
                expired: expired.is_some(),
            },
            None => Response::Failed(NOT_HELD.to_owned()),
        }
    }

    /// How long the hold may go on; none when there is no hold.
    pub(super) fn left(&self) -> Option<Duration> {
        let held = self.held.as_ref()?;
        Some(held.deadline.saturating_duration_since(Instant::now()))
    }

    /// Lets the guest run if the time is up, and tells whether it was.
    pub(super) fn expire(&mut self) -> bool {
        let due = |held: &mut Held| held.deadline <= Instant::now();
        match self.held.take_if(due) {
            Some(held) => {
                log::warn!("a client has held the guest for too long: it runs again");
                self.expired = Some(let_go(held));
                true
            }
            None => false,
        }
    }
}

/// Lets the guest run; tells how long it stood still.
fn let_go(held: Held) -> Duration {
    let stood = held.since.elapsed();
    drop(held.guard);
    stood
}
