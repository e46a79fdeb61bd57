//! One look at a target: a view that is read, with where the CPUs are, and whether it is true.

use std::time::Duration;

use kscope_guest::remote::{Hold, RawSample, RemoteError};
use kscope_kernel::views::bt::Cpus;
use kscope_kernel::{Piece, Reader, RunningCpu, Unwinder, ViewError};

use super::Source;
use super::open::{Subject, Target};

/// How often a view of a running guest is read anew when it was torn.
const ATTEMPTS: usize = 5;

/// A target while a view of it is read.
pub struct Look<'t> {
    target: &'t Target,
    reader: Reader<'t, Source>,
    hold: Option<&'t Hold>,
}

/// A view that was read.
pub(super) struct Seen<V> {
    pub(super) view: V,
    pub(super) warnings: Vec<String>,
    pub(super) torn: bool,
    /// How long the guest stood still for it.
    pub(super) stood: Option<Stood>,
}

/// A guest that was held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stood {
    /// It stood still for so long.
    For(Duration),
    /// As `For`, and a debugger had stopped it before.
    Debugged(Duration),
    /// It was let run before all was read.
    TooLong,
}

impl Look<'_> {
    /// Reads the kernel's structures.
    pub fn reader(&self) -> &Reader<'_, Source> {
        &self.reader
    }
}

impl Cpus for Look<'_> {
    /// The registers of every CPU, in order, and what was running: as the core has them, or as the
    /// held guest's are. Of a guest that runs on, where it was at this call; its stacks have been
    /// copied then.
    ///
    /// # Errors
    ///
    /// When the guest cannot be stopped for a moment. Of a core that has no registers, none come.
    fn running(&self) -> Result<Vec<RunningCpu>, ViewError> {
        let still = |&(cpu, registers): &(_, _)| RunningCpu {
            cpu,
            registers,
            task: self.target.kernel.current(cpu).ok().map(|task| task.addr),
            stacks: Vec::new(),
        };
        match (&self.target.subject, self.hold) {
            (Subject::Core(core), _) => Ok(core.cpus().iter().map(still).collect()),
            (Subject::Guest { .. }, Some(hold)) => Ok(hold.registers.iter().map(still).collect()),
            (Subject::Guest { connection, .. }, None) => {
                let samples = connection.borrow_mut().snapshot().map_err(no_registers)?;
                Ok(samples.into_iter().map(running).collect())
            }
        }
    }

    /// An unwinder that knows the kernel and the libraries of its process.
    ///
    /// # Errors
    ///
    /// When the kernel's binary cannot be used. A library that cannot be had is a warning.
    fn unwinder(&self) -> Result<Unwinder, ViewError> {
        let kernel = &self.target.kernel;
        let mut unwinder =
            Unwinder::new(kernel.image()).map_err(|error| ViewError::Invalid(error.to_string()))?;
        let missing = match &self.target.subject {
            Subject::Core(core) => unwinder.add_modules_from_core(core),
            Subject::Guest { connection, .. } => {
                let maps = connection.borrow_mut().maps();
                let maps = maps.map_err(no_registers)?;
                unwinder.add_modules_from_maps(&maps, kernel.memory())
            }
        };
        for error in missing {
            self.reader.warn(error);
        }
        Ok(unwinder)
    }
}

fn no_registers(error: RemoteError) -> ViewError {
    ViewError::NoRegisters(error.to_string())
}

fn running(sample: RawSample) -> RunningCpu {
    RunningCpu {
        cpu: sample.cpu,
        registers: sample.registers,
        task: sample.task.map(|task| task.addr),
        stacks: sample
            .regions
            .into_iter()
            .map(|copy| Piece {
                addr: copy.addr,
                bytes: copy.bytes,
            })
            .collect(),
    }
}

impl Target {
    /// Reads a view. Of a guest that runs and changed it meanwhile, again, a few times.
    pub(super) fn look<V>(
        &self,
        view: impl Fn(&Look<'_>) -> Result<V, ViewError>,
    ) -> anyhow::Result<Seen<V>> {
        match &self.subject {
            Subject::Core(core) => {
                let mut seen = self.once(None, &view)?;
                let of_core = |warning: &String| format!("the core file: {warning}");
                seen.warnings
                    .splice(0..0, core.warnings().iter().map(of_core));
                Ok(seen)
            }
            Subject::Guest { stop: false, .. } => {
                for _ in 1..ATTEMPTS {
                    let (result, torn) = self.running(&view);
                    if !torn {
                        return result;
                    }
                }
                self.running(&view).0
            }
            Subject::Guest {
                stop: true,
                connection,
                ..
            } => {
                // What it needs of the kernel's binary is looked up now, not while the guest waits.
                let _ = self.running(&view);
                let hold = connection.borrow().hold()?;
                let seen = self.once(Some(&hold), &view);
                let debugged = hold.debugged;
                let released = hold.release();
                let mut seen = seen?;
                seen.stood = Some(match released {
                    Ok(time) if debugged => Stood::Debugged(time),
                    Ok(time) => Stood::For(time),
                    Err(error @ RemoteError::HoldExpired) => {
                        seen.torn = true;
                        seen.warnings.push(error.to_string());
                        Stood::TooLong
                    }
                    Err(error) => return Err(error.into()),
                });
                Ok(seen)
            }
        }
    }

    fn running<V>(
        &self,
        view: &impl Fn(&Look<'_>) -> Result<V, ViewError>,
    ) -> (anyhow::Result<Seen<V>>, bool) {
        let look = self.begin(None);
        let result = view(&look);
        let torn = look.reader.torn();
        let mut warnings = look.reader.warnings();
        warnings.extend(torn.as_ref().map(ToString::to_string));
        let torn = torn.is_some();
        let seen = result.map(|view| Seen {
            view,
            warnings,
            torn,
            stood: None,
        });
        (seen.map_err(Into::into), torn)
    }

    /// Reads a view of what stands still.
    fn once<'t, V>(
        &'t self,
        hold: Option<&'t Hold>,
        view: &impl Fn(&Look<'_>) -> Result<V, ViewError>,
    ) -> Result<Seen<V>, ViewError> {
        let look = self.begin(hold);
        Ok(Seen {
            view: view(&look)?,
            warnings: look.reader.warnings(),
            torn: false,
            stood: None,
        })
    }

    fn begin<'t>(&'t self, hold: Option<&'t Hold>) -> Look<'t> {
        Look {
            target: self,
            reader: Reader::new(&self.kernel),
            hold,
        }
    }
}
