//! `kscope gdb`: gdb or lldb, connected to a running guest.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use kscope_guest::control::unblock_sigchld;
use kscope_guest::registry::{Entry, Registry};

use crate::gdb_index;

const EXAMPLES: &str = "\
Examples:
  kscope gdb                                the one guest that is running
  kscope gdb build-7 --tui
  kscope gdb build-7 -- -batch -ex 'info threads' -ex detach
  kscope gdb -- --interpreter=mi2
  kscope gdb --lldb -- --batch -o 'thread list' -o detach

The guest stops when the debugger connects, and runs on when it detaches, quits or dies.
Every task of the guest is a thread: `info threads`, `thread N`, `bt`. `monitor help`
lists what the stub can tell besides (in lldb: `process plugin packet monitor help`).

Modules are shared libraries: a breakpoint in one that is not loaded yet is pending
(`set breakpoint pending on`), and is hit as early as in its init function. What was
loaded before gdb came, from a file outside the kernel's build directory, is found with
`monitor module-path DIR` and `sharedlibrary`.

Where the program has called the kernel: `user-bt`, `user-regs` and $user_regs(\"rip\"),
of the selected thread or of a PID.

The kernel's own gdb scripts (lx-ps, lx-dmesg, $lx_current(), ...) are there when its
build directory has them, as those of `kscope build` have.

A step holds the other CPUs; which task runs is the guest's own decision. So `set
scheduler-locking` cannot keep other tasks from running while the guest continues, as a
`next` over a call or a `finish` has it do: `step` and the like end in their own task in
any case, and a breakpoint `thread N` counts for one task.

By hand, `gdb LINUX -ex 'target remote :1234'` does the same, without the scripts; `kscope
list` has the port.";

/// Mends the kernel's own gdb scripts.
const MENDED_SCRIPTS: &str = include_str!("gdb/scripts.py");

/// Commands of kscope's own.
const COMMANDS: &str = include_str!("gdb/commands.py");

/// Debug a running guest with gdb or lldb.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The guest; may be left out when one is running.
    name: Option<String>,

    /// Show source, registers and commands in windows of the terminal.
    #[arg(long)]
    tui: bool,

    /// lldb instead of gdb.
    #[arg(long, conflicts_with = "tui")]
    lldb: bool,

    /// Arguments for the debugger, behind kscope's own.
    #[arg(last = true, value_name = "ARGS")]
    more: Vec<OsString>,
}

/// Runs the verb. Returns only when gdb cannot be started.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let entry = Registry::open()?.find(args.name.as_deref())?;
    let (program, arguments) = match args.lldb {
        true => ("lldb", lldb_arguments(&entry)?),
        false => ("gdb", gdb_arguments(&entry)?),
    };
    let mut debugger = Command::new(program);
    if args.tui {
        debugger.arg("-tui");
    }
    debugger.args(arguments).args(args.more);
    // It waits for its own children.
    unblock_sigchld().context("cannot prepare to start the debugger")?;
    let error = debugger.exec();
    if error.kind() == io::ErrorKind::NotFound {
        bail!(
            "{program} is not installed: install the package {program} \
             (`apt install {program}`, `dnf install {program}`)"
        );
    }
    Err(error).with_context(|| format!("cannot start {program}"))
}

fn command(words: &str, path: &Path) -> OsString {
    let mut command = OsString::from(words);
    command.push(path);
    command
}

/// What lldb is told.
fn lldb_arguments(entry: &Entry) -> anyhow::Result<Vec<OsString>> {
    let socket = entry.gdb_socket();
    let connect = "process connect --plugin gdb-remote ";
    let connect = match (&entry.record.gdb, socket.exists()) {
        (_, true) => command(&format!("{connect}unix-connect://"), &socket),
        (Some(address), false) => format!("{connect}connect://{address}").into(),
        (None, false) => bail!("guest {} has no gdb server", entry.record.name),
    };
    Ok(vec![
        entry.record.kernel.clone().into(),
        "-o".into(),
        connect,
    ])
}

/// What gdb is told: the kernel, a few settings, and where the guest is.
fn gdb_arguments(entry: &Entry) -> anyhow::Result<Vec<OsString>> {
    let mut arguments = gdb_index::options();
    let mut option = |name: &str, value: &OsStr| {
        arguments.push(name.into());
        arguments.push(value.to_owned());
    };
    // The guest's libraries are the host's.
    option("-iex", OsStr::new("set sysroot /"));
    // gdb reads stacks and code in lines of this size: a page costs hardly more than its default, 64 bytes.
    option("-iex", OsStr::new("set dcache line-size 4096"));
    // Tasks come and go all the time.
    option("-iex", OsStr::new("set print thread-events off"));
    if let Some(dir) = entry.record.kernel.parent() {
        option("-iex", &command("add-auto-load-safe-path ", dir));
        option("-iex", &command("directory ", dir));
        let scripts = dir.join("vmlinux-gdb.py");
        // gdb loads them by itself for a program of the name vmlinux only.
        if scripts.exists() {
            option("-ex", &command("source ", &scripts));
            option("-ex", OsStr::new(&python(MENDED_SCRIPTS)));
        }
    }
    option("-ex", OsStr::new(&python(COMMANDS)));
    let socket = entry.gdb_socket();
    let target = match (&entry.record.gdb, socket.exists()) {
        (_, true) => command("target remote ", &socket),
        (Some(address), false) => format!("target remote {address}").into(),
        (None, false) => bail!("guest {} has no gdb server", entry.record.name),
    };
    option("-ex", &target);
    arguments.push(entry.record.kernel.clone().into());
    Ok(arguments)
}

/// gdb's command that runs a script: as a string on one line, which is how Python reads what Rust
/// escapes.
fn python(script: &str) -> String {
    format!("python exec({script:?})")
}
