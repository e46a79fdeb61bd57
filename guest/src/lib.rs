//! One guest's life: build, launch, control and registry.

mod console;
pub mod control;
mod delay;
pub mod guest;
mod initramfs;
pub mod janitor;
mod kernel_log;
mod landlock;
pub mod launch;
pub mod launcher;
pub mod mem;
mod pidfd;
pub mod pin;
pub mod registry;
pub mod remote;
pub mod report;
pub mod sampling;
mod sandbox;
pub mod server;
mod signals;
mod streams;
