//! `kscope run`: boots a guest for one command, or for a shell.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use kscope_guest::presets::Preset;

use super::launch_args::{LaunchArgs, Running, conclude};

const EXAMPLES: &str = "\
Examples:
  kscope run                                a root shell on your own files
  kscope run -- uname -a                    one command; its exit code is kscope's
  kscope run -k ./linux -m 1G -- make check
  kscope run -- dmesg | grep -i hostfs      stdin, stdout and stderr are the command's
  kscope run --cpus 2 -- make -j2 check     two CPUs; the kernel: kscope build --preset smp ...
  kscope run --timeout 60 --log boot.log -- ./test.sh
  kscope run --wait                         and, elsewhere: kscope gdb
  kscope run --clock frozen                 no timer runs out while gdb has the guest stopped
  kscope run -a 'loglevel=8 foo.bar=1' --dry-run

The command runs as root, in the directory you are in, with PATH, HOME, TERM, the
locale and a few more of your variables. Its root is your own / under an overlay in
memory: everything is there, and nothing that it changes outlives the guest. /proc,
/sys, /dev and /run are the guest's own. The guest ends with the command, and takes
background processes along.

SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the command; a second one ends
the guest, and so do two seconds after SIGTERM or SIGHUP. On a terminal, Ctrl-] three
times within a second ends a guest that does not react.

Exit codes: the command's own (128+N when signal N killed it; 126 and 127 as in a
shell), 96 setup, 102 panic, 103 timeout, 104 no boot, 105 killed from outside, 106 by
the debugger.";

/// Boot a guest and run a command, or a shell, in it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    launch: LaunchArgs,

    /// Print the kernel's command line and do nothing.
    #[arg(long)]
    dry_run: bool,

    /// The command; a shell when left out.
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let needed = [Preset::Base];
    if args.dry_run {
        let prepared = args.launch.prepare(&args.command, &needed)?;
        let mut out = io::stdout().lock();
        let words: Vec<_> = prepared.command_line().iter().map(quote).collect();
        out.write_all(&words.join(&b' '))?;
        writeln!(out)?;
        return Ok(0);
    }
    let Running { mut guest, .. } = args.launch.start(&args.command, &needed)?;
    if args.command.is_empty() && io::stdin().is_terminal() && io::stdout().is_terminal() {
        args.launch.say(format_args!(
            "exit ends the guest; so does Ctrl-] three times"
        ));
    }
    let outcome = guest.wait();
    for warning in guest.take_warnings() {
        eprintln!("kscope: warning: {warning}");
    }
    let name = guest.name().to_owned();
    guest.finish();
    conclude(&name, outcome)
}

/// A word as a shell would have to read it.
fn quote(word: &OsString) -> Vec<u8> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(b);
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        return word.as_bytes().to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        if byte == b'\'' {
            quoted.extend_from_slice(b"'\\''");
        } else {
            quoted.push(byte);
        }
    }
    quoted.push(b'\'');
    quoted
}
