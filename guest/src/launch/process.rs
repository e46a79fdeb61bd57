//! The kernel's process, and the thread that stays with it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use kscope_kernel::Image;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{LaunchError, host};
use crate::console::{Console, Event, Mailbox, Message, Parts, User};
use crate::control::{Control, HostTid};
use crate::janitor::Janitor;
use crate::kernel_log::KernelLog;
use crate::launcher::{self, Answer, Handle, Spec};
use crate::pidfd::PidFd;
use crate::signals::SignalReader;
use crate::streams::Writer;

/// How long a kernel with gcov may take to come to `start_kernel`.
const CONSTRUCTORS: Duration = Duration::from_secs(10);

/// What it takes to start the kernel's process.
pub(super) struct Start {
    pub(super) spec: Spec,
    pub(super) program: PathBuf,
    pub(super) image: Image,
    pub(super) dir: PathBuf,
    pub(super) output_end: OwnedFd,
    pub(super) console: (OwnedFd, OwnedFd),
    pub(super) initrd: OwnedFd,
    pub(super) wait: bool,
}

/// What the loop needs besides.
pub(super) struct Rest {
    pub(super) to_guest: File,
    pub(super) from_guest: File,
    pub(super) kernel_output: File,
    pub(super) user: User,
    pub(super) stdout: Writer,
    pub(super) stderr: Writer,
    pub(super) log: KernelLog,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) boot_timeout: Duration,
    pub(super) timeout: Option<Duration>,
}

/// The supervisor's thread: starts the kernel's process and stays with it.
/// Returns the kernel's last lines, and the janitor for whoever cleans up.
pub(super) fn supervise(
    start: Start,
    rest: Rest,
    mut janitor: Janitor,
    signals: SignalReader,
    messages: Receiver<Message>,
    events: Sender<Event>,
    started: &Sender<Result<(Control, Option<String>), LaunchError>>,
) -> (Vec<String>, Janitor) {
    let begun = match start.begin(&mut janitor) {
        Ok(begun) => begun,
        Err(e) => {
            let _ = started.send(Err(e));
            return (Vec::new(), janitor);
        }
    };
    let Begun {
        pid,
        pidfd,
        control,
        note,
        tmpdir,
    } = begun;
    let console = Console::new(Parts {
        to_guest: rest.to_guest,
        from_guest: rest.from_guest,
        kernel_output: rest.kernel_output,
        user: rest.user,
        stdout: rest.stdout,
        stderr: rest.stderr,
        signals: Some(signals),
        pidfd,
        pid,
        control: control.clone(),
        log: rest.log,
        mailbox: rest.mailbox,
        messages,
        events,
        boot_timeout: rest.boot_timeout,
        timeout: rest.timeout,
    });
    let _ = started.send(Ok((control, note)));
    let tail = console.run();
    if let Some(tmpdir) = tmpdir {
        let _ = fs::remove_dir(tmpdir);
    }
    (tail, janitor)
}

struct Begun {
    pid: HostTid,
    pidfd: PidFd,
    control: Control,
    note: Option<String>,
    /// A directory outside of the guest's own that is to be removed.
    tmpdir: Option<PathBuf>,
}

impl Start {
    fn begin(self, janitor: &mut Janitor) -> Result<Begun, LaunchError> {
        let (ours, theirs) = UnixStream::pair().map_err(host("make a socket"))?;
        let output = File::from(self.output_end);
        let error = output.try_clone().map_err(host("duplicate a descriptor"))?;
        let child = Command::new(&self.program)
            .arg0_kscope()
            .arg(launcher::VERB)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(error))
            .spawn()
            .map_err(host("start the launcher"))?;
        // Ends the child on every way out but the good one.
        let child = Unreaped(Some(child));
        let act = host("hand over to the janitor");
        let pidfd = PidFd::open(child.pid()).map_err(host("open the guest's process"))?;
        janitor.guest(child.pid(), &pidfd).map_err(&act)?;
        let handle = Handle::new(ours);
        let act = host("talk to the launcher");
        let (input, output) = &self.console;
        handle
            .send(&self.spec, [input, output, &self.initrd])
            .map_err(&act)?;
        // Their ends are the launched process's from here on: their closing
        // tells of its end.
        drop(self.console);
        drop(self.initrd);
        let (note, tmpdir) = match handle.answer().map_err(&act)? {
            Some(Answer::Ready { note, tmpdir }) => {
                (note, PathBuf::from(OsString::from_vec(tmpdir)))
            }
            Some(Answer::Failed(reason)) => return Err(LaunchError::Launcher(reason)),
            None => return Err(LaunchError::Launcher("the launcher died".to_owned())),
        };
        let tmpdir = (!tmpdir.starts_with(&self.dir)).then_some(tmpdir);
        if let Some(tmpdir) = &tmpdir {
            janitor.directory(tmpdir).map_err(&act)?;
        }
        let pid = HostTid(child.pid() as i32);
        // The engine sees to it that such a kernel survives its constructors.
        let has_gcov = self.image.symbol("gcov_info_head").is_some();
        let control = Control::start(pid, self.image)?;
        if self.wait || has_gcov {
            control.hold_at_start()?;
        }
        match handle.go().map_err(&act)? {
            None => {}
            Some(Answer::Failed(reason)) => return Err(LaunchError::Launcher(reason)),
            Some(Answer::Ready { .. }) => {
                return Err(LaunchError::Launcher("the launcher is confused".to_owned()));
            }
        }
        // The engine reaps it.
        child.release();
        if has_gcov && !self.wait {
            control.wait_start(CONSTRUCTORS)?;
            control.release()?;
        }
        Ok(Begun {
            pid,
            pidfd,
            control,
            note,
            tmpdir,
        })
    }
}

/// A child that is killed and reaped unless it is released.
struct Unreaped(Option<Child>);

impl Unreaped {
    fn pid(&self) -> u32 {
        self.0.as_ref().map_or(0, Child::id)
    }

    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Unreaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// Process lists show the program by its name and not as /proc/self/exe.
trait ProgramName {
    fn arg0_kscope(&mut self) -> &mut Self;
}

impl ProgramName for Command {
    fn arg0_kscope(&mut self) -> &mut Self {
        use std::os::unix::process::CommandExt;
        self.arg0("kscope")
    }
}
