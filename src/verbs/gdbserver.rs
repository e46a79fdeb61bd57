//! `kscope gdbserver`: the debugger stub for one ordinary process, with the command line and the words of GDB's own.

mod comm;
mod log;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use kscope_gdbstub_bridge::{Connection, Parting, serve_process};
use kscope_guest::control::{Control, ExitStatus, HostTid, Spawned, block_sigchld, give_terminal};
use nix::sys::signal::{SigSet, Signal};

use comm::Comm;

const EXAMPLES: &str = "\
Examples:
  kscope gdbserver :2345 ./program one two
  gdb ./program -ex 'target remote :2345'

  kscope gdbserver --attach :2345 $(pidof -s program)
  kscope gdbserver --once localhost:2345 ./program
  gdb -ex 'target remote | kscope gdbserver stdio ./program' ./program

What debugs kernels in kscope, on one process of the host: the command line, the messages
and the `monitor` commands (`monitor help`) are gdbserver's. The program is stopped before
its first instruction and has this command's terminal. It is killed when this command
ends, unless the debugger has detached from it; then this command waits for its end. One
that was attached to is stopped where it is, and runs on when this command ends.";

/// How long a process may take to become its program.
const EXEC: Duration = Duration::from_secs(60);
/// How long a killed process may take to end.
const END: Duration = Duration::from_secs(30);
/// The exit code of a process that could not become its program.
const NO_PROGRAM: u8 = 127;

/// Debug an ordinary program with gdb: gdbserver's command line.
#[derive(Debug, clap::Args)]
#[command(version, after_help = EXAMPLES)]
pub struct Args {
    /// Debug a process that runs already: in the place of the program comes its PID.
    #[arg(long)]
    attach: bool,

    /// Serve debuggers that start programs themselves: not supported.
    #[arg(long, hide = true)]
    multi: bool,

    /// End when the first debugger has gone.
    #[arg(long)]
    once: bool,

    /// Run the program through another, as in `--wrapper env LD_PRELOAD=lib.so --`.
    #[arg(
        long,
        num_args = 1..,
        value_terminator = "--",
        allow_hyphen_values = true,
        value_name = "WRAPPER"
    )]
    wrapper: Vec<OsString>,

    /// Run the program with addresses that are the same each time. (default)
    #[arg(long, overrides_with = "no_disable_randomization")]
    disable_randomization: bool,

    /// Run the program with addresses that are random.
    #[arg(long)]
    no_disable_randomization: bool,

    /// Run the program through $SHELL, which sees `*` and `$` in its arguments.
    #[arg(long, overrides_with = "no_startup_with_shell")]
    startup_with_shell: bool,

    /// Run the program as it is named. (default)
    #[arg(long)]
    no_startup_with_shell: bool,

    #[command(flatten)]
    log: log::Args,

    /// For tests of GDB's own: not supported.
    #[arg(long, hide = true, value_name = "PACKETS")]
    disable_packet: Option<String>,

    /// Where to listen: HOST:PORT, where only loopback is allowed and HOST may be left out, or `stdio`.
    #[arg(value_name = "HOST:PORT")]
    comm: String,

    /// The program and its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROG"
    )]
    program: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    if args.multi {
        bail!("--multi is not supported: name the program, or attach to it with --attach");
    }
    if args.disable_packet.is_some() {
        bail!("--disable-packet is not supported: all packets are served");
    }
    args.log.begin()?;
    block_sigchld().context("cannot prepare to start the program")?;
    let comm = Comm::open(&args.comm)?;
    let Some(control) = args.process()? else {
        return Ok(1);
    };
    let pid = control.pid();
    // Without a terminal there is nothing to be given.
    let _given = (!control.is_attached()).then(|| give_terminal(pid));
    let once = args.once || comm.listeners.has_pair();
    comm.listening();
    let mut said = |connection: Connection<'_>| match connection {
        Connection::Begun(peer) => eprintln!("Remote debugging: client {peer}"),
        Connection::Lost(_) => {
            eprintln!(
                "Remote side has terminated connection.  GDBserver will reopen the connection."
            );
            comm.listening();
        }
    };
    let parting = serve_process(&comm.listeners, &control, once, &mut said);
    match parting {
        Ok(Parting::Detached) => {
            eprintln!("Detaching from process {pid}");
            if control.is_attached() {
                let_go(&control)?;
            } else {
                control.wait_exit(None);
            }
        }
        Ok(Parting::Killed) => {
            eprintln!("Killing process(es): {pid}");
            end(&control);
        }
        Ok(Parting::Gone) => leave(&control, pid)?,
        Ok(Parting::Ended) => match control.wait_exit(Some(END)) {
            Some(ExitStatus::Exited(code)) => eprintln!("\nChild exited with status {code}"),
            Some(ExitStatus::Signaled(signal)) => {
                eprintln!("\nChild terminated with signal = {signal:#x}");
            }
            _ => {}
        },
        Err(error) => {
            leave(&control, pid)?;
            return Err(error.into());
        }
    }
    Ok(0)
}

impl Args {
    /// The process that is to be debugged, stopped. None when the program cannot be run, which has been told.
    fn process(&self) -> anyhow::Result<Option<Control>> {
        if self.attach {
            return self.attached().map(Some);
        }
        let (program, arguments) = self
            .program
            .split_first()
            .ok_or_else(|| anyhow!("no program: name it behind {}", self.comm))?;
        let (argv, execs) = self.command(program, arguments);
        let (first, rest) = argv.split_first().context("no program")?;
        let spawned = Spawned::new(first, rest, self.no_disable_randomization)
            .context("cannot start a process")?;
        let pid = spawned.pid();
        let control = Control::start_process(pid)?;
        control.hold_at_exec(execs)?;
        let exec = spawned.exec().context("the process is gone")?;
        let started = control.wait_start(EXEC);
        let name = program.to_string_lossy();
        if control.exit_status().is_none() && started.is_ok() {
            eprintln!("Process {name} created; pid = {pid}");
            return Ok(Some(control));
        }
        // Whatever it waits for: there is nobody to debug it.
        end(&control);
        let code = match control.exit_status() {
            // Of what the program was to be run through.
            Some(ExitStatus::Exited(code)) => u8::try_from(code).unwrap_or(NO_PROGRAM),
            _ => NO_PROGRAM,
        };
        match exec.failure() {
            Some(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("kscope gdbserver: exec: {}: not found", first.display());
            }
            Some(error) => eprintln!("kscope gdbserver: exec: {}: {error}", first.display()),
            None if execs > 1 => {}
            None => started?,
        }
        eprintln!("During startup program exited with code {code}.");
        eprintln!("Exiting");
        Ok(None)
    }

    /// What is executed, and how many times until that is the program.
    fn command(&self, program: &OsStr, arguments: &[OsString]) -> (Vec<OsString>, usize) {
        let mut execs = 1;
        let mut argv = self.wrapper.clone();
        execs += usize::from(!argv.is_empty());
        argv.push(program.to_owned());
        argv.extend_from_slice(arguments);
        if !self.startup_with_shell {
            return (argv, execs);
        }
        let shell = env::var_os("SHELL").filter(|shell| !shell.is_empty());
        let shell = shell.unwrap_or_else(|| "/bin/sh".into());
        let mut line = OsString::from("exec");
        for word in &argv {
            line.push(" ");
            line.push(word);
        }
        (vec![shell, "-c".into(), line], execs + 1)
    }

    /// The process that runs already.
    fn attached(&self) -> anyhow::Result<Control> {
        let usage = || anyhow!("--attach takes {} and a PID", self.comm);
        let [pid] = &self.program[..] else {
            return Err(usage());
        };
        let pid = pid.to_str().and_then(|pid| pid.parse().ok());
        let pid = pid.filter(|&pid: &i32| pid > 0).ok_or_else(usage)?;
        let leader = leader(pid).with_context(|| format!("cannot attach to process {pid}"))?;
        let signals = block_signals()?;
        let control = Control::attach_to_process(leader)
            .with_context(|| format!("cannot attach to process {pid}"))?;
        let_go_at(signals, control.clone())?;
        eprintln!("Attached; pid = {leader}");
        Ok(control)
    }
}

/// The process of a thread.
fn leader(tid: i32) -> anyhow::Result<HostTid> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"));
    let status = status.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is none"),
        _ => error.into(),
    })?;
    let mut lines = status.lines();
    let pid = lines.find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    pid.map(HostTid).context("the host does not know it")
}

/// Blocks what ends this command. To be called as long as it has one thread.
fn block_signals() -> anyhow::Result<SigSet> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block()?;
    Ok(signals)
}

/// Ctrl-C or a polite kill ends this command, and not a process that it has attached to, which gets its own bytes back.
fn let_go_at(signals: SigSet, control: Control) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let Ok(signal) = signals.wait() else { return };
            if let Err(error) = control.let_go() {
                ::log::debug!("{error}");
            }
            std::process::exit(128 + signal as i32);
        })?;
    Ok(())
}

/// The last debugger is gone: what was started here goes with it.
fn leave(control: &Control, pid: HostTid) -> anyhow::Result<()> {
    if !control.is_attached() {
        eprintln!("Killing process(es): {pid}");
        end(control);
        return Ok(());
    }
    eprintln!("Detaching from process {pid}");
    let_go(control)
}

/// Waits until the process is free, with its own bytes and debug registers.
fn let_go(control: &Control) -> anyhow::Result<()> {
    control
        .let_go()
        .or_else(|error| match control.exit_status() {
            Some(_) => Ok(()),
            None => Err(error.into()),
        })
}

fn end(control: &Control) {
    if let Err(error) = control.kill() {
        ::log::warn!("{error}");
    }
    control.wait_exit(Some(END));
}
