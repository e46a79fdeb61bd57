//! The real lldb on booted guests: `kscope gdb --lldb`.
//!
//! Needs lldb and the test kernels.

mod common;

use common::session::Session;
use common::{finish, kernels};

/// What lldb says to a list of commands.
fn lldb(guest: &Session, commands: &[&str]) -> String {
    let mut lldb = guest.command(&["gdb", "--lldb"]);
    lldb.args(["--", "--no-lldbinit", "--no-use-colors", "--batch"]);
    for command in commands {
        lldb.args(["-o", command]);
    }
    finish(&mut lldb).text()
}

/// What follows a command, up to the next one.
#[track_caller]
fn after<'s>(said: &'s str, command: &str) -> &'s str {
    let (_, rest) = said
        .split_once(&format!("(lldb) {command}\n"))
        .unwrap_or_else(|| panic!("no {command}: {said}"));
    rest.split("\n(lldb) ").next().unwrap_or(rest)
}

#[track_caller]
fn contains(kernel: &str, said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{kernel}: no {part:?}: {said}");
    }
}

#[test]
fn lldb_names_threads_unwinds_stops_at_breakpoints_and_steps() {
    for kernel in kernels() {
        let name = kernel.name;
        let mut guest = Session::start(kernel, &[]);
        guest.begin("until [ -e /tmp/end ]; do cat /proc/uptime >/dev/null; sleep 0.1; done");
        let said = lldb(
            &guest,
            &[
                "thread list",
                "thread backtrace all",
                "breakpoint set --name vfs_read",
                "continue",
                "thread backtrace",
                "breakpoint disable 1",
                "thread step-over",
                "thread step-in",
                "thread step-inst",
                "thread step-out",
                "register read rip",
                "memory region $rip",
                "breakpoint delete --force",
                "detach",
            ],
        );
        let list = after(&said, "thread list");
        contains(
            name,
            list,
            &["name = 'kthreadd [S] kthreadd'", "name = 'init ["],
        );
        assert!(list.lines().count() > 15, "{name}: {list}");
        let stacks = after(&said, "thread backtrace all");
        let mut stacks = stacks.split("thread #");
        let running = stacks.clone().nth(1).unwrap_or_default();
        // Whatever it is doing: it has come from where all tasks begin.
        let begins = [
            "`start_kernel",
            "`fork_handler",
            "`new_thread_handler",
            "`start_secondary",
        ];
        assert!(
            begins.iter().any(|function| running.contains(function)),
            "{name}: {running}"
        );
        let sleeping = stacks.find(|stack| stack.contains("'kthreadd [S] kthreadd'"));
        contains(
            name,
            sleeping.unwrap_or_default(),
            &[
                "linux`__schedule",
                "linux`kthreadd",
                "linux`new_thread_handler",
            ],
        );
        contains(name, &said, &["stop reason = breakpoint 1."]);
        let (_, hit) = said
            .split_once("stop reason = breakpoint 1.")
            .expect("a hit");
        contains(
            name,
            hit,
            &[
                "linux`vfs_read",
                "linux`ksys_read",
                "linux`userspace",
                "count=",
            ],
        );
        let stepped = after(&said, "thread step-over");
        contains(name, stepped, &["stop reason = step over", "vfs_read"]);
        contains(
            name,
            after(&said, "thread step-inst"),
            &["stop reason = instruction step into"],
        );
        contains(
            name,
            after(&said, "thread step-out"),
            &["stop reason = step out"],
        );
        contains(name, &said, &["r-x", "Process 1 detached"]);
        guest.kill();
    }
}
