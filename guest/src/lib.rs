//! One guest's life: build, launch, control and registry.

pub mod control;
pub mod mem;
