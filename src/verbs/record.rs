//! `kscope record`: samples where a guest's CPUs spend their time.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use kscope_guest::guest::Guest;
use kscope_guest::presets::Preset;
use kscope_guest::registry::{CONTROL_SOCKET, Registry};
use kscope_guest::remote::{Connection, MAX_HZ, MIN_HZ, SampleRequest, SampleStopper};
use kscope_profiler::{End, Profile, Progress, Recording};
use nix::sys::signal::{SigSet, Signal};

use super::launch_args::{LaunchArgs, Running, conclude};
use super::report::{doubt, summary};
use crate::exit;

const EXAMPLES: &str = "\
Examples:
  kscope record -- dd if=/dev/zero of=/dev/null bs=1M count=20000
  kscope record -F 4000 -o sha.kscope -- sha256sum /usr/bin/gcc-12
  kscope record                  the one running guest, until Ctrl-C
  kscope record -d 10 web        the guest called web, for 10 seconds
  kscope report record.kscope --flamegraph flame.svg

Sampled is the whole kernel: system calls, interrupts, kernel threads. Time in guest
user code is counted as one frame, [guest user], of its task. With a command, exactly
its run is recorded, not the boot. Needs no privilege, on the host or in the guest.

A sample stops the guest for some 10 to 50 microseconds. Ticks at which that was not
possible (the machine too busy, a debugger at work) are counted as lost. When stops take
long, there are fewer: the guest runs at least about half of the time.

What is said of the samples:
  late                 lost, because the one before took until then, or the guest had a rest
  without a host CPU   the host ran something else instead of the guest; not shown
  not fully unwound    their outermost callers are not known; the inner ones are shown

Exit codes: with a command, its own, as with `kscope run`; else 0, or 96 when the guest
cannot be recorded.";

/// Record where the kernel spends its time, in a running guest or during a command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Samples per second and CPU.
    ///
    /// Not a round number, so as not to run in step with the guest's timer.
    #[arg(
        short = 'F', long = "frequency", value_name = "HZ", default_value_t = 997,
        value_parser = clap::value_parser!(u32).range(i64::from(MIN_HZ)..=i64::from(MAX_HZ))
    )]
    hz: u32,

    /// Stop recording after this long. [default: until the command ends, or Ctrl-C]
    #[arg(short, long, value_name = "SECS", value_parser = parse_seconds)]
    duration: Option<Duration>,

    /// Where to write the recording.
    #[arg(short, long, value_name = "FILE", default_value = "record.kscope")]
    output: PathBuf,

    /// The running guest. [default: the only one]
    #[arg(value_name = "NAME", conflicts_with = "command")]
    guest: Option<String>,

    #[command(flatten)]
    launch: LaunchArgs,

    /// Boot a guest for this command, and record its run.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    // Found out now, not after the work.
    Profile::check_writable(&args.output)?;
    if args.command.is_empty() {
        record_running(&args)
    } else {
        record_command(&args)
    }
}

/// Records a guest that somebody else has started.
fn record_running(args: &Args) -> anyhow::Result<u8> {
    let entry = Registry::open()?.find(args.guest.as_deref())?;
    let recording = Recording::prepare(Connection::to(&entry)?, Vec::new())?;
    let name = recording.guest().name.clone();
    stop_on_signal(recording.stopper())?;
    let status = io::stderr().is_terminal() && !args.launch.quiet;
    let profile = recording.run(args.request(), |progress| {
        if let Progress::Counts { tally, counts } = progress
            && status
        {
            eprint!(
                "\r\x1b[Kkscope: recording {name} for {} s: {} samples, {} idle, {} lost (Ctrl-C ends it)",
                counts.duration_ns / 1_000_000_000,
                tally.samples,
                tally.idle,
                counts.lost(),
            );
        }
    });
    if status {
        eprint!("\r\x1b[K");
    }
    let profile = profile?;
    args.save(&profile)?;
    whole(&name, &profile).map(|()| exit::OK)
}

/// That the guest was sampled to the end.
fn whole(name: &str, profile: &Profile) -> anyhow::Result<()> {
    match profile.sampling.end {
        End::Failed => {
            let reason = profile.sampling.failure.as_deref();
            Err(anyhow!(
                "{name} could not be sampled to the end: {}",
                reason.unwrap_or("for a reason that is not known")
            ))
        }
        End::Done | End::GuestEnded => Ok(()),
    }
}

/// Boots a guest for a command and records exactly that command.
fn record_command(args: &Args) -> anyhow::Result<u8> {
    let Running { mut guest, .. } = args.launch.start(&args.command, &[Preset::Base])?;
    let name = guest.name().to_owned();
    let (outcome, profile) = match guest.wait_ready() {
        Err(outcome) => (*outcome, None),
        Ok(()) => {
            let begun = begin(args, &guest)?;
            guest.go();
            let outcome = guest.wait_command();
            begun.stopper.stop();
            (outcome, Some(begun.profile))
        }
    };
    // Before the guest goes, so that the last samples are of the command.
    let profile = profile.map(|thread| {
        thread
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the recorder has failed")))
    });
    for warning in guest.take_warnings() {
        eprintln!("kscope: warning: {warning}");
    }
    guest.finish();
    let saved = profile.transpose().and_then(|profile| match profile {
        Some(profile) => args.save(&profile).and_then(|()| whole(&name, &profile)),
        None => Ok(()),
    });
    // How the command ended comes first; but a recording that is not there does not pass for success.
    match (conclude(&name, outcome), saved) {
        (Ok(exit::OK), Err(error)) => Err(error),
        (concluded, Err(error)) => {
            eprintln!("kscope: error: {error:#}");
            concluded
        }
        (concluded, Ok(())) => concluded,
    }
}

/// A recording that runs.
struct Begun {
    stopper: SampleStopper,
    profile: thread::JoinHandle<anyhow::Result<Profile>>,
}

/// Starts recording; returns when the guest is being sampled.
fn begin(args: &Args, guest: &Guest) -> anyhow::Result<Begun> {
    let connection = Connection::connect(&guest.dir().join(CONTROL_SOCKET))?;
    let recording = Recording::prepare(connection, guest.command())?;
    let stopper = recording.stopper();
    let request = args.request();
    let (started, wait) = std::sync::mpsc::channel();
    let profile = thread::Builder::new()
        .name("recorder".into())
        .spawn(move || {
            let profile = recording.run(request, |progress| {
                if progress == Progress::Started {
                    // The receiver is gone only when nobody waits any more.
                    let _ = started.send(());
                }
            });
            profile.map_err(Into::into)
        })?;
    match wait.recv() {
        Ok(()) => Ok(Begun { stopper, profile }),
        // The recording ended before it began.
        Err(_) => match profile.join() {
            Ok(Err(error)) => Err(error),
            _ => Err(anyhow!(
                "the recording of {} ended before it began",
                guest.name()
            )),
        },
    }
}

/// Ends the recording, not this process, at Ctrl-C or a polite kill; a second one ends the process.
fn stop_on_signal(stopper: SampleStopper) -> anyhow::Result<()> {
    let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    set.thread_block()?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if set.wait().is_ok() {
                stopper.stop();
            }
            let Ok(signal) = set.wait() else { return };
            std::process::exit(128 + signal as i32);
        })?;
    Ok(())
}

impl Args {
    fn request(&self) -> SampleRequest {
        SampleRequest {
            hz: self.hz,
            duration_ms: self.duration.map(|duration| {
                u64::try_from(duration.as_millis())
                    .unwrap_or(u64::MAX)
                    .max(1)
            }),
        }
    }

    fn save(&self, profile: &Profile) -> anyhow::Result<()> {
        profile.write(&self.output)?;
        let file = self.output.display();
        if profile.sampling.end == End::GuestEnded {
            self.launch
                .say(format_args!("the guest ended while it was recorded"));
        }
        self.launch.say(format_args!("{}", summary(profile)));
        if let Some(doubt) = doubt(profile) {
            self.launch.say(format_args!("warning: {doubt}"));
        }
        self.launch.say(format_args!(
            "wrote {file}; to see it: kscope report {file} --flamegraph flame.svg"
        ));
        Ok(())
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "not a number of seconds above 0".to_owned())
}
