//! Pid 1 of every guest: sets up the root, relays one command, powers off.
//!
//! It talks to the supervisor in frames (`kscope-wire`) over `/dev/tty1`, a raw
//! console line; what it prints itself goes to `/dev/console`, the kernel log's
//! line. It keeps going where a kernel lacks a feature that only some commands
//! need, and says so; it gives up, with the reason, where nothing could work.

mod command;
mod line;
mod relay;
mod root;

use std::fs;
use std::process;

use kscope_wire::{JOB_PATH, Job, ToHost, VERSION};
use nix::sys::reboot::{RebootMode, reboot};

use line::Line;

fn main() {
    if process::id() != 1 {
        eprintln!("kscope-init: this is a guest's pid 1, started by the kernel");
        process::exit(1);
    }
    if let Err(reason) = run() {
        eprintln!("kscope-init: {reason}");
    }
    power_off();
}

fn run() -> Result<(), String> {
    let mut line = Line::open()?;
    let result = serve(&mut line);
    if let Err(reason) = &result {
        // The line may be what failed; then the console has the reason.
        let _ = line.send(&ToHost::Failed(reason.clone()));
        // The frame is lost if the power goes before the supervisor has it.
        let _ = line.wait_for_bye();
    }
    result
}

fn serve(line: &mut Line) -> Result<(), String> {
    let job = fs::read(format!("/{JOB_PATH}")).map_err(|e| format!("cannot read the job: {e}"))?;
    let job = Job::decode(&job).ok_or("the job in the initramfs is damaged")?;
    let mut warnings = Vec::new();
    let root = root::set_up(&job.hostname, &mut warnings)?;
    for warning in warnings {
        line.send(&ToHost::Warning(warning))?;
    }
    line.send(&ToHost::Hello {
        version: VERSION,
        root,
    })?;
    relay::run(line, &job)
}

/// Never returns: pid 1 that ends is a panic.
fn power_off() -> ! {
    // Disks that the user attached keep what was written to them.
    nix::unistd::sync();
    let error = reboot(RebootMode::RB_POWER_OFF).unwrap_err();
    panic!("cannot power off: {error}");
}
