//! `kscope gdbserver`: the debugger stub for one ordinary process, with the command line and the words of GDB's own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use kscope_gdbstub_bridge::{Connection, Listeners, Parting, bind_tcp, serve_process};
use kscope_guest::control::{Control, ExitStatus, HostTid, Spawned, block_sigchld, give_terminal};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const EXAMPLES: &str = "\
Examples:
  kscope gdbserver :2345 ./program one two
  gdb ./program -ex 'target remote :2345'

  kscope gdbserver --once localhost:2345 ./program
  gdb -ex 'target remote | kscope gdbserver stdio ./program' ./program

What debugs kernels in kscope, on one process of the host: the command line, the messages
and the `monitor` commands (`monitor help`) are gdbserver's. The program is stopped before
its first instruction and has this command's terminal. It is killed when this command
ends, unless the debugger has detached from it; then this command waits for its end.";

/// How long a process may take to become its program.
const EXEC: Duration = Duration::from_secs(60);
/// How long a killed process may take to end.
const END: Duration = Duration::from_secs(30);
/// The exit code of a process that could not become its program.
const NO_PROGRAM: u8 = 127;

/// Debug an ordinary program with gdb: gdbserver's command line.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// End when the first debugger has gone.
    #[arg(long)]
    once: bool,

    /// Tell on standard error what is done.
    #[arg(long)]
    debug: bool,

    /// Tell on standard error what is said between the debugger and this.
    #[arg(long)]
    remote_debug: bool,

    /// Where to listen: HOST:PORT, where only loopback is allowed and HOST may be left out, or `stdio`.
    #[arg(value_name = "HOST:PORT")]
    comm: String,

    /// The program and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROG"
    )]
    program: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    log_to_stderr(&args)?;
    block_sigchld().context("cannot prepare to start the program")?;
    let comm = Comm::open(&args.comm)?;
    let (program, arguments) = args.program.split_first().context("no program")?;
    let spawned = Spawned::new(program, arguments).context("cannot start a process")?;
    let pid = spawned.pid();
    let control = Control::start_process(pid)?;
    control.hold_at_exec()?;
    let exec = spawned.exec().context("the process is gone")?;
    let started = control.wait_start(EXEC);
    if control.exit_status().is_some() || started.is_err() {
        // Whatever it waits for: there is nobody to debug it.
        end(&control, pid)?;
        let name = program.to_string_lossy();
        match exec.failure() {
            Some(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("kscope gdbserver: exec: {name}: not found");
            }
            Some(error) => eprintln!("kscope gdbserver: exec: {name}: {error}"),
            None => started?,
        }
        eprintln!("During startup program exited with code {NO_PROGRAM}.");
        eprintln!("Exiting");
        return Ok(1);
    }
    eprintln!("Process {} created; pid = {pid}", program.to_string_lossy());
    // Without a terminal there is nothing to be given.
    let _given = give_terminal(pid);
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
    if parting.is_err() {
        end(&control, pid)?;
    }
    match parting? {
        Parting::Detached => {
            eprintln!("Detaching from process {pid}");
            control.wait_exit(None);
        }
        Parting::Killed => {
            eprintln!("Killing process(es): {pid}");
            end(&control, pid)?;
        }
        Parting::Ended => match control.wait_exit(Some(END)) {
            Some(ExitStatus::Exited(code)) => eprintln!("\nChild exited with status {code}"),
            Some(ExitStatus::Signaled(signal)) => {
                eprintln!("\nChild terminated with signal = {signal:#x}");
            }
            _ => {}
        },
    }
    Ok(0)
}

fn end(control: &Control, pid: HostTid) -> anyhow::Result<()> {
    if control.exit_status().is_none() {
        match kill(Pid::from_raw(pid.0), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => bail!("cannot kill process {pid}: {errno}"),
        }
    }
    control.wait_exit(Some(END));
    Ok(())
}

/// Where a debugger is waited for.
struct Comm {
    listeners: Listeners,
    port: Option<u16>,
}

impl Comm {
    fn open(comm: &str) -> anyhow::Result<Self> {
        if matches!(comm, "stdio" | "-") {
            return Ok(Self {
                listeners: Listeners {
                    pair: Some(take_stdio().context("cannot use standard input and output")?)
                        .into(),
                    ..Listeners::default()
                },
                port: None,
            });
        }
        let address = address(comm)?;
        match bind_tcp(address, 1) {
            Ok(listener) => Ok(Self {
                port: Some(listener.local_addr()?.port()),
                listeners: Listeners {
                    tcp: Some(listener),
                    ..Listeners::default()
                },
            }),
            Err(kscope_gdbstub_bridge::BindError::Tcp { error, .. })
                if error.kind() == io::ErrorKind::AddrInUse =>
            {
                // GDB's test suite waits for just this.
                eprintln!("Can't bind address: Address already in use.");
                bail!("{comm} is taken")
            }
            Err(error) => Err(error.into()),
        }
    }

    fn listening(&self) {
        if let Some(port) = self.port {
            eprintln!("Listening on port {port}");
        }
    }
}

fn address(comm: &str) -> anyhow::Result<SocketAddr> {
    let usage = || anyhow!("{comm} is no place to listen: it has to be HOST:PORT, :PORT or stdio");
    let (host, port) = comm.rsplit_once(':').ok_or_else(usage)?;
    let port: u16 = port.parse().map_err(|_| usage())?;
    if host.is_empty() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = (host, port).to_socket_addrs();
    let mut found = found.with_context(|| format!("{host}: cannot resolve name"))?;
    // `localhost` may be both; clients try both.
    let all: Vec<_> = found.by_ref().collect();
    let ipv4 = all.iter().find(|address| address.is_ipv4());
    ipv4.or(all.first()).copied().ok_or_else(usage)
}

/// The debugger has standard input and output; the program gets nothing for the one and standard error for the other.
fn take_stdio() -> anyhow::Result<(File, File)> {
    let own = |fd: OwnedFd| File::from(fd);
    // Not for the program.
    let input = own(io::stdin().as_fd().try_clone_to_owned()?);
    let output = own(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(io::stderr())?;
    eprintln!("stdin/stdout redirected");
    Ok((input, output))
}

/// Writes to standard error what is logged.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("kscope")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // Where nobody reads it, nobody needs it.
            let _ = writeln!(
                io::stderr(),
                "{}: {}",
                record.level().as_str().to_lowercase(),
                record.args()
            );
        }
    }

    fn flush(&self) {}
}

fn log_to_stderr(args: &Args) -> anyhow::Result<()> {
    log::set_logger(&Stderr).map_err(|error| anyhow!("cannot log: {error}"))?;
    log::set_max_level(match (args.remote_debug, args.debug) {
        (true, _) => log::LevelFilter::Trace,
        (false, true) => log::LevelFilter::Debug,
        (false, false) => log::LevelFilter::Error,
    });
    Ok(())
}
