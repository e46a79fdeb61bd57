//! Turns raw samples of a guest into stacks with task, CPU and time.
//!
//! A [`Recorder`] takes the [`RawSample`](kscope_guest::remote::RawSample)s that a guest's supervisor sends, unwinds
//! each over the copied stack, tells apart kernel work, guest user code and idling, and counts equal stacks together.
//! [`Recorder::finish`] names every function and line and makes a [`Profile`]: a self-contained file, for which neither
//! the guest nor its kernel is needed any more.

mod classify;
mod file;
mod host;
mod profile;
mod recorder;
mod regions;
mod session;
mod table;
mod totals;

pub use file::{ReadProfileError, WriteProfileError};
pub use profile::{
    End, Function, FunctionKind, GuestInfo, Lost, Profile, ProfileFrame, SampleGroup, Sampling,
    StackNode, State, TaskLabel, VERSION,
};
pub use recorder::{Recorder, Tally};
pub use session::{Progress, RecordError, Recording};
pub use totals::{FunctionTotal, TaskTotal};
