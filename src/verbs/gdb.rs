//! `kscope gdb`: gdb, connected to a running guest.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use kscope_guest::control::unblock_sigchld;
use kscope_guest::registry::{Entry, Registry};

const EXAMPLES: &str = "\
Examples:
  kscope gdb                                the one guest that is running
  kscope gdb build-7
  kscope gdb build-7 -- -batch -ex 'info threads' -ex detach
  kscope gdb -- --interpreter=mi2

The guest stops when gdb connects, and runs on when gdb detaches, quits or dies. Every
task of the guest is a thread: `info threads`, `thread N`, `bt`. `monitor help` lists
what the stub can tell besides. When the kernel's own gdb scripts are in its build
directory (`make scripts_gdb`), lx-ps, lx-dmesg and their like are there.

By hand, `gdb LINUX -ex 'target remote :1234'` does the same; `kscope list` has the port.";

/// Mends the kernel's own gdb scripts.
const MENDED_SCRIPTS: &str = include_str!("gdb/scripts.py");

/// Debug a running guest with gdb.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The guest; may be left out when one is running.
    name: Option<String>,

    /// Arguments for gdb, behind kscope's own.
    #[arg(last = true, value_name = "GDB ARGS")]
    gdb_args: Vec<OsString>,
}

/// Runs the verb. Returns only when gdb cannot be started.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let entry = Registry::open()?.find(args.name.as_deref())?;
    let mut gdb = Command::new("gdb");
    gdb.args(arguments(&entry)?).args(args.gdb_args);
    // gdb waits for its own children.
    unblock_sigchld().context("cannot prepare to start gdb")?;
    let error = gdb.exec();
    if error.kind() == io::ErrorKind::NotFound {
        bail!(
            "gdb is not installed: install the package gdb (`apt install gdb`, `dnf install gdb`)"
        );
    }
    Err(error).context("cannot start gdb")
}

/// What gdb is told: the kernel, a few settings, and where the guest is.
fn arguments(entry: &Entry) -> anyhow::Result<Vec<OsString>> {
    let mut arguments = Vec::new();
    let mut option = |name: &str, value: &OsStr| {
        arguments.push(name.into());
        arguments.push(value.to_owned());
    };
    let command = |words: &str, path: &Path| {
        let mut command = OsString::from(words);
        command.push(path);
        command
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
            // As a string on one line, which is how Python reads what Rust escapes.
            let mended = format!("python exec({MENDED_SCRIPTS:?})");
            option("-ex", OsStr::new(&mended));
        }
    }
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
