//! One file per verb, each as thin as its manual.

pub mod bt;
pub mod build;
pub mod config;
pub mod coverage;
pub mod dmesg;
pub mod dump;
pub mod files;
pub mod gdb;
pub mod gdbserver;
pub mod irq;
pub mod launch_args;
pub mod list;
pub mod lsmod;
pub mod maps;
pub mod mounts;
pub mod net;
mod panic_dump;
#[allow(dead_code, reason = "the verbs that look at tasks use it")]
pub mod pid_args;
pub mod print;
pub mod ps;
pub mod record;
pub mod report;
pub mod run;
pub mod runq;
pub mod slab;
pub mod timers;
pub mod types;
pub mod why;
