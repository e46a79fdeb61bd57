//! The views of processes, their files, mounts and sockets, and of the kernel's log, against what
//! the guest's own /proc says.

mod common;
#[path = "views_proc/dmesg.rs"]
mod dmesg;
#[path = "views_proc/files.rs"]
mod files;
#[path = "views_proc/maps.rs"]
mod maps;
#[path = "views_proc/mounts.rs"]
mod mounts;
#[path = "views_proc/net.rs"]
mod net;

use common::kernels;
use common::session::Session;
use serde_json::Value;

/// Boots every kernel and starts a process in it that has some of everything (`workload.py`);
/// returns the guest and the pid of the process.
fn guests() -> impl Iterator<Item = (Session, u64)> {
    kernels().iter().map(|kernel| {
        // Shown when the test fails.
        eprintln!("on {}", kernel.name);
        let mut guest = Session::start(kernel, &[]);
        let workload = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/views_proc/workload.py");
        let said = guest.ask(&format!(
            "mkdir -p /tmp/w; cd /tmp/w; \
             python3 {workload} >said & until test -s said; do sleep 0.1; done; cat said"
        ));
        let pid = said.trim().strip_prefix("ready ");
        let pid = pid.and_then(|pid| pid.parse().ok());
        let pid = pid.unwrap_or_else(|| panic!("the workload says {said:?}"));
        (guest, pid)
    })
}

/// A member of a JSON object that is a string.
#[track_caller]
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    let text = value[key].as_str();
    text.unwrap_or_else(|| panic!("no string `{key}` in {value}"))
}

/// A member of a JSON object that is a number.
#[track_caller]
fn number(value: &Value, key: &str) -> u64 {
    let number = value[key].as_u64();
    number.unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

/// A member of a JSON object that is an address.
#[track_caller]
fn address(value: &Value, key: &str) -> u64 {
    let digits = text(value, key).strip_prefix("0x");
    let address = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    address.unwrap_or_else(|| panic!("no address `{key}` in {value}"))
}
