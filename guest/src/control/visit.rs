//! Work on the engine's own thread that asks the engine for one thing after the other.
//!
//! A command costs two wake-ups, one of the engine and one of who has asked, and a debugger's client has the guest step
//! and read thousands of times a second. Who visits the engine's thread gets what it asks for at once, there.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::engine::Engine;
use super::running::Job;
use super::{Command, Control, ControlError};

/// How long a visitor waits for the guest to stop. One that looks for other things meanwhile need not hurry, and most
/// of what a debugger lets the guest do on the way from line to line is done long before.
const PATIENCE: Duration = Duration::from_millis(3);

thread_local! {
    /// The engine of this thread, while somebody visits it.
    static VISITED: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// Lets a visitor onto the calling thread, which is the engine's. The engine is gone if the visitor has taken it along.
pub(super) fn receive(mut engine: Engine, visitor: Box<dyn FnOnce() + Send>) -> Option<Engine> {
    engine.is_visited = true;
    VISITED.set(Some(engine));
    visitor();
    let mut engine = VISITED.take()?;
    engine.is_visited = false;
    Some(engine)
}

impl Control {
    /// Runs `f` on the engine's thread, where all that is asked of this control is done without waiting for another
    /// thread. Everybody else who wants something of the engine waits: `f` is to return when
    /// [`Visit::is_in_the_way`].
    ///
    /// # Errors
    ///
    /// [`ControlError::Ended`] when there is no engine any more.
    ///
    /// # Panics
    ///
    /// When `f` does; the engine goes on all the same.
    pub fn visit<T, F>(&self, f: F) -> Result<T, ControlError>
    where
        F: FnOnce(&Visit) -> T + Send + 'static,
        T: Send + 'static,
    {
        let visit = Visit {
            control: self.clone(),
        };
        let (sender, receiver) = bounded(1);
        self.push(Command::Visit(Box::new(move || {
            // What has woken the engine for this is dealt with.
            visit.control.shared.waker.clear();
            let outcome = catch_unwind(AssertUnwindSafe(|| f(&visit)));
            drop(visit);
            // The caller waits: it cannot be gone.
            let _ = sender.send(outcome);
        })));
        let outcome = self.answer(&receiver)?;
        outcome.map_err(|panic| resume_unwind(panic))
    }

    /// Has the engine do `f` here and now, when this is its thread and it is visited; else `f` comes back.
    pub(super) fn visited<T, F: FnOnce(&mut Engine) -> T>(&self, f: F) -> Result<T, F> {
        VISITED.with(|visited| {
            // While the engine is at work, it is asked by others only.
            let Ok(mut visited) = visited.try_borrow_mut() else {
                return Err(f);
            };
            let own = |engine: &&mut Engine| Arc::ptr_eq(&engine.waker, &self.shared.waker);
            let Some(engine) = visited.as_mut().filter(own) else {
                return Err(f);
            };
            let answer = f(engine);
            // Where nothing runs there is nothing to see to; the visitor catches up from time to time.
            if engine.job != Job::Held {
                engine.catch_up();
            }
            Ok(answer)
        })
    }
}

/// A stay on the engine's thread.
#[derive(Debug)]
pub struct Visit {
    control: Control,
}

impl Visit {
    /// Whether somebody else waits for the engine.
    pub fn is_in_the_way(&self) -> bool {
        self.control
            .visited(|engine| !engine.commands.is_empty())
            .unwrap_or(true)
    }

    /// Makes a call that blocks, unless somebody else wants something of the engine already. A signal interrupts the
    /// call (`EINTR`) when somebody does, and ten times a second in any case.
    ///
    /// # Errors
    ///
    /// The host is out of timers: then nothing would interrupt it.
    pub fn block<T>(&self, call: impl FnOnce() -> T) -> std::io::Result<Option<T>> {
        let begun = self.control.visited(Engine::begin_blocking);
        let answer = match begun {
            Ok(Ok(true)) => Some(call()),
            Ok(Err(error)) => return Err(error),
            _ => None,
        };
        self.control.shared.waker.set_waiting(None);
        Ok(answer)
    }

    /// Has the engine take note of what has happened to the guest: to be called whenever a call was interrupted.
    pub fn catch_up(&self) {
        let _ = self.control.visited(Engine::catch_up);
    }

    /// Waits for the guest to stop, if it runs: for some milliseconds at most, and not when somebody else wants
    /// something of the engine.
    pub fn wait_for_stop(&self) {
        let waited = self
            .control
            .visited(|engine| engine.wait_for_stop(PATIENCE));
        if let Ok(Err(error)) = waited {
            log::debug!("guest {}: {error}", self.control.pid());
        }
    }
}

impl Engine {
    /// Has whoever wants something kick the thread, as the clock does. False when somebody has wanted something before.
    fn begin_blocking(&mut self) -> std::io::Result<bool> {
        let ticker = self.ticker()?;
        ticker.set(true)?;
        let thread = ticker.thread();
        self.waker.set_waiting(Some(thread));
        Ok(self.commands.is_empty())
    }

    /// Waits until the guest is held, for about as long as said.
    fn wait_for_stop(&mut self, patience: Duration) -> Result<(), ControlError> {
        let runs = |engine: &Self| engine.job != Job::Held && engine.debugger.is_some();
        if runs(self) {
            self.ticker()?.tick_in(patience)?;
            self.wait_while(patience, runs)?;
        }
        Ok(())
    }
}
