//! The options of every verb that boots a guest, and what happens around one.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use kscope_gdbstub_bridge::{self as gdb_server, Listeners};
use kscope_guest::control::Clock;
use kscope_guest::guest::{Guest, Outcome, signal_name};
use kscope_guest::launch::{DEFAULT_BOOT_TIMEOUT, Launch, Prepared};
use kscope_guest::locate::{Found, locate};
use kscope_guest::pin::Pin;
use kscope_guest::presets::Preset;
use kscope_guest::processors::Mode;
use kscope_guest::registry::{CONTROL_SOCKET, GDB_SOCKET};
use kscope_guest::remote::Description;
use kscope_guest::report::Report;
use kscope_guest::server::{GuestEndpoint, Server};

use super::panic_dump;
use crate::exit::{self, Coded};
use crate::target::open_image;

/// Where gdb is expected to look first.
const GDB_PORT: u16 = 1234;
/// Ports tried after it.
const GDB_PORTS: u16 = 100;
/// Kernel messages shown with a report.
const LOG_LINES: usize = 20;

/// How to boot the guest.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Guest options")]
pub struct LaunchArgs {
    /// The kernel to boot: a `linux` file of `make ARCH=um`.
    ///
    /// Default: ./linux, $KBUILD_OUTPUT/linux, ./.kunit/linux, or the kernel
    /// that `kscope build` has made.
    #[arg(short, long, value_name = "LINUX")]
    pub kernel: Option<PathBuf>,

    /// The guest's memory: a number with K, M or G; without a letter, of MiB.
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub memory: u64,

    /// How many CPUs the guest has; more than one takes a kernel with the
    /// preset smp.
    #[arg(short = 'p', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,

    /// How the guest's processes are run.
    ///
    /// Default: ptrace, which every kernel can do; seccomp with several CPUs,
    /// which have no other. seccomp is the faster, is there from Linux 6.16 on,
    /// and lets a process that wants to reach its kernel's memory.
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<ModeArg>,

    /// The same as --mode seccomp.
    #[arg(long, conflicts_with = "mode")]
    pub seccomp: bool,

    /// More kernel parameters; repeatable.
    #[arg(short, long, value_name = "PARAMS", allow_hyphen_values = true)]
    pub append: Vec<OsString>,

    /// Where gdb connects: `[HOST:]PORT`, on this machine only.
    ///
    /// Default: 127.0.0.1:1234, or the next free port.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub gdb: Option<SocketAddr>,

    /// No TCP port for gdb; the guest's gdb.sock is there nevertheless.
    #[arg(long, conflicts_with = "gdb")]
    pub no_gdb: bool,

    /// Hold the kernel before its first instruction in start_kernel, until a
    /// debugger continues it.
    #[arg(long)]
    pub wait: bool,

    /// Whose time the guest has while a debugger has it stopped.
    ///
    /// host: the host's, which goes on; what the guest waits for is late when it
    /// runs again. frozen: none passes, so that no timer runs out and nothing is
    /// taken for stalled; the guest's clocks are then behind the host's. While
    /// the guest runs, there is no difference.
    #[arg(long, value_enum, value_name = "CLOCK", default_value = "host")]
    pub clock: ClockArg,

    /// End the guest when the command has run for this long.
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,

    /// End the guest when it is not up after this long. [default: 60]
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub boot_timeout: Option<Duration>,

    /// The guest's name. [default: g1, g2, ...]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Print the kernel's messages to stderr.
    #[arg(long)]
    pub kmsg: bool,

    /// Keep the kernel's messages in this file.
    ///
    /// Default: kernel.log in the guest's directory (see `kscope list`), which
    /// goes with the guest.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,

    /// Keep the guest on this host CPU.
    ///
    /// Default: on one that no other guest of yours has; a guest with several
    /// CPUs runs anywhere.
    #[arg(long, value_name = "CPU")]
    pub pin: Option<u32>,

    /// Let the guest run on any host CPU.
    #[arg(long, conflicts_with = "pin")]
    pub no_pin: bool,

    /// When the guest panics, write its memory to DIR/NAME-TIME.core.zst.
    ///
    /// The directory is made if it is not there. See `kscope dump`.
    #[arg(long, value_name = "DIR")]
    pub dump_on_panic: Option<PathBuf>,

    /// Say nothing on stderr but errors and warnings.
    #[arg(short, long)]
    pub quiet: bool,
}

/// How the guest's processes are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ModeArg {
    /// The kernel traces them.
    Ptrace,
    /// They call the kernel, behind a filter.
    Seccomp,
}

/// Whose time a guest has while it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClockArg {
    /// The host's.
    Host,
    /// None.
    Frozen,
}

/// A guest with its servers. Dropping it ends all of that.
#[derive(Debug)]
pub struct Running {
    /// The guest.
    pub guest: Guest,
}

impl LaunchArgs {
    /// Finds the kernel and claims the guest's name, directory and CPU.
    /// `needed` are the presets that the verb cannot do without.
    pub fn prepare(&self, command: &[OsString], needed: &[Preset]) -> anyhow::Result<Prepared> {
        let mut needed = needed.to_vec();
        needed.extend((self.cpus > 1).then_some(Preset::Smp));
        let located = locate(self.kernel.as_deref(), &needed)?;
        let image = open_image(&located.path)?;
        if located.found != Found::Named {
            self.say(format_args!(
                "kernel {} ({})",
                located.path.display(),
                located.found
            ));
        }
        if !image.has_dwarf() {
            self.say(format_args!(
                "{} has no debug information: no source lines, tasks or types (CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y)",
                located.path.display()
            ));
        }
        let mut launch = Launch::new(image);
        launch.name = self.name.clone();
        launch.memory = self.memory;
        launch.cpus = self.cpus;
        launch.mode = match (self.mode, self.seccomp) {
            (_, true) | (Some(ModeArg::Seccomp), _) => Some(Mode::Seccomp),
            (Some(ModeArg::Ptrace), _) => Some(Mode::Ptrace),
            (None, false) => None,
        };
        launch.append = self.append.clone();
        launch.command = command.to_vec();
        launch.pin = match (self.pin, self.no_pin) {
            (Some(cpu), _) => Pin::Cpu(cpu),
            (None, true) => Pin::No,
            (None, false) => Pin::Auto,
        };
        launch.wait = self.wait;
        launch.boot_timeout = self.boot_timeout.unwrap_or(DEFAULT_BOOT_TIMEOUT);
        launch.timeout = self.timeout;
        launch.kmsg = self.kmsg;
        launch.log = self.log.clone();
        Ok(launch.prepare()?)
    }

    /// Boots the guest and makes it reachable. Its command waits for
    /// [`Guest::go`].
    ///
    /// Must be called before the process has other threads: see
    /// [`Prepared::start`].
    pub fn start(&self, command: &[OsString], needed: &[Preset]) -> anyhow::Result<Running> {
        let prepared = self.prepare(command, needed)?;
        if let Some(dir) = &self.dump_on_panic {
            panic_dump::prepare(dir)?;
        }
        // Before the guest is there: an address that is taken is the user's
        // mistake, and nothing has happened yet.
        let tcp = self.listen()?;
        let gdb = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let dir = prepared.dir().to_owned();
        let listeners = Listeners {
            tcp,
            unix: Some(gdb_server::bind_unix(&dir.join(GDB_SOCKET))?),
            ..Listeners::default()
        };
        let clock = match self.clock {
            ClockArg::Host => None,
            ClockArg::Frozen => Some(Clock::of(prepared.image())?),
        };
        let mut guest = prepared.start()?;
        if let Some(clock) = clock {
            guest.control().freeze_clock(clock)?;
        }
        serve(&mut guest, listeners)?;
        guest.publish(gdb.map(|a| a.to_string()))?;
        if let Some(dir) = &self.dump_on_panic {
            panic_dump::arrange(&mut guest, dir);
        }
        if let Some(gdb) = gdb {
            if self.wait {
                self.say(format_args!(
                    "{} waits before start_kernel: gdb {} -ex 'target remote {gdb}'",
                    guest.name(),
                    guest.kernel().display()
                ));
            } else if io::stderr().is_terminal() || gdb.port() != GDB_PORT {
                self.say(format_args!("{}, gdb at {gdb}", guest.name()));
            }
        }
        Ok(Running { guest })
    }

    /// A status line.
    pub fn say(&self, line: std::fmt::Arguments<'_>) {
        if !self.quiet {
            eprintln!("kscope: {line}");
        }
    }

    fn listen(&self) -> anyhow::Result<Option<TcpListener>> {
        if self.no_gdb {
            return Ok(None);
        }
        if let Some(addr) = self.gdb {
            return Ok(Some(gdb_server::bind_tcp(addr, 1)?));
        }
        let first = SocketAddr::from((Ipv4Addr::LOCALHOST, GDB_PORT));
        match gdb_server::bind_tcp(first, GDB_PORTS) {
            Ok(listener) => Ok(Some(listener)),
            // A machine without a loopback interface still has gdb.sock.
            Err(error) => {
                self.say(format_args!("{error}"));
                Ok(None)
            }
        }
    }
}

/// Starts the gdb server and the control server, which last as long as the guest.
fn serve(guest: &mut Guest, listeners: Listeners) -> anyhow::Result<()> {
    let gdb = gdb_server::serve(listeners, guest.control().clone())
        .context("cannot start the gdb server")?;
    guest.keep(gdb);
    let description = Description {
        name: guest.name().to_owned(),
        pid: guest.pid().0.unsigned_abs(),
        supervisor: std::process::id(),
        kernel: guest.kernel().to_owned(),
        build_id: guest.image().build_id(),
        command: guest.command(),
    };
    let endpoint = GuestEndpoint::new(description, guest.control().clone(), guest.stopper());
    let server = Server::start(&guest.dir().join(CONTROL_SOCKET), Arc::new(endpoint))?;
    guest.keep(server);
    Ok(())
}

/// The exit code for how a guest ended; what there is to tell is told.
pub fn conclude(name: &str, outcome: Outcome) -> anyhow::Result<u8> {
    let coded = |code, text: String| {
        Err(Coded {
            code,
            error: anyhow!(text),
        }
        .into())
    };
    let with_report = |code, what: String, report: &Report| {
        let body = report.render(LOG_LINES);
        let text = format!("{what}: {}\n{body}", report.reason);
        coded(code, text.trim_end().to_owned())
    };
    match outcome {
        Outcome::Exited(status) => Ok(status.shell_code()),
        Outcome::NotStarted { code, message } => coded(code, message),
        Outcome::PoweredOff(code) => {
            eprintln!("kscope: {name} powered itself off before the command ended");
            Ok(u8::try_from(code & 0xff).unwrap_or(0))
        }
        Outcome::Panicked(report) => with_report(exit::PANIC, format!("{name} panicked"), &report),
        Outcome::BootFailed(report) => {
            with_report(exit::BOOT, format!("{name} did not boot"), &report)
        }
        Outcome::TimedOut(report) => {
            with_report(exit::TIMEOUT, format!("{name} was ended"), &report)
        }
        Outcome::Killed(signal) => coded(
            exit::KILLED,
            format!(
                "{name} was killed by {} from outside{}",
                signal_name(signal),
                match signal {
                    // SIGKILL
                    9 => " (out of memory, perhaps: see the host's dmesg)",
                    _ => "",
                }
            ),
        ),
        Outcome::KilledByDebugger => {
            coded(exit::DEBUGGER, format!("{name} was killed by its debugger"))
        }
        Outcome::Interrupted(signal) => Ok(128u8.saturating_add(signal as i32 as u8)),
        Outcome::Lost(reason) => coded(exit::KILLED, format!("{name} was lost: {reason}")),
        other => bail!("{name} ended in an unknown way: {other:?}"),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "K" | "KIB" => 1 << 10,
        "" | "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        other => return Err(format!("unknown unit {other}: use K, M or G")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| "not a size, such as 512M".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .filter(|d| !d.is_zero())
        .ok_or_else(|| "not a number of seconds above 0".to_owned())
}

/// A gdb server is a shell for whoever reaches it, so it listens on this
/// machine only.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let ip = match host {
        "" | "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .map_err(|_| format!("{host} is no IP address"))?,
    };
    if !ip.is_loopback() {
        return Err(format!(
            "{ip} can be reached from outside: use 127.0.0.1, and ssh -L from elsewhere"
        ));
    }
    let port = port.parse().map_err(|_| format!("{port} is no port"))?;
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("64"), Ok(64 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("1024k"), Ok(1 << 20));
        for bad in ["", "M", "-1M", "1T", "1.5G", "99999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn gdb_listens_on_this_machine_only() {
        assert_eq!(parse_address("99").unwrap().to_string(), "127.0.0.1:99");
        assert_eq!(parse_address(":99").unwrap().to_string(), "127.0.0.1:99");
        assert_eq!(parse_address("[::1]:9").unwrap().to_string(), "[::1]:9");
        for bad in ["0.0.0.0:1", "x:1", "127.0.0.1:", "127.0.0.1:70000"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_positive() {
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
