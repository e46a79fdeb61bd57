//! Starting a guest.

mod process;
mod surroundings;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IsTerminal, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use kscope_kernel::Image;
use kscope_wire::{Job, OUTPUT_WINDOW, Stream};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::confine::image_to_confine;
use crate::console::{Mailbox, User};
use crate::control::ControlError;
use crate::guest::{Guest, Life};
use crate::janitor::Janitor;
use crate::kernel_log::KernelLog;
use crate::launcher::{CONSOLE_IN, CONSOLE_OUT, INITRD, Spec};
use crate::pin::{self, Pin, PinError};
use crate::processors::{self, Mode, ProcessorsError};
use crate::registry::{GuestDir, Registry, RegistryError};
use crate::signals::Signals;
use crate::streams::{Writer, same_target, terminal_size};
use crate::{delay, initramfs};

use process::{Rest, Start, supervise};
use surroundings::{current_umask, environment};

/// A guest's memory when nothing else is asked for, in bytes.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// Less memory does not boot, in bytes.
pub const MIN_MEMORY: u64 = 24 << 20;
/// How long a guest may take to come up, unless told otherwise.
pub const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// The shell that runs without a command, if the user has none of their own.
const DEFAULT_SHELL: &str = "/bin/sh";
/// File name of the kernel's log in the guest's directory.
pub const KERNEL_LOG: &str = "kernel.log";
const UML_DIR: &str = "uml";
const SCRATCH: &str = "mem";
/// The console's pipe holds what the guest may send ahead, on both streams.
const PIPE: usize = 4 * OUTPUT_WINDOW;

/// What to start. All fields have sensible values in [`Launch::new`].
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub image: Image,
    /// The guest's name; `None` for the first free one of `g1`, `g2`, …
    pub name: Option<String>,
    /// Bytes of memory, at least [`MIN_MEMORY`].
    pub memory: u64,
    /// How many CPUs it has, at least 1.
    pub cpus: u32,
    /// How its processes are run; ptrace mode when `None`, unless several CPUs
    /// need the other.
    pub mode: Option<Mode>,
    /// More kernel parameters; each may hold several, separated by spaces.
    pub append: Vec<OsString>,
    /// The command and its arguments; the user's shell when empty.
    pub command: Vec<OsString>,
    /// Which host CPU it stays on.
    pub pin: Pin,
    /// Hold the kernel at `start_kernel` until a debugger lets it go.
    pub wait: bool,
    /// How long the guest may take to come up.
    pub boot_timeout: Duration,
    /// How long the command may take.
    pub timeout: Option<Duration>,
    /// Pass the kernel's messages to standard error.
    pub kmsg: bool,
    /// Where the kernel's messages are kept; in the guest's directory, and no
    /// longer than that, when `None`.
    pub log: Option<PathBuf>,
    /// The program with the hidden verbs: `kscope` itself.
    pub program: PathBuf,
}

/// A guest could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The guest has no directory, or its name is taken.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The host CPU that was asked for cannot be had.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The kernel cannot have so many CPUs, or run its processes that way.
    #[error(transparent)]
    Processors(#[from] ProcessorsError),
    /// Too little memory.
    #[error("{} MiB are too little memory: a guest needs at least {} MiB", memory >> 20, MIN_MEMORY >> 20)]
    Memory {
        /// What was asked for, in bytes.
        memory: u64,
    },
    /// More memory than there is.
    #[error("{} MiB are more memory than this machine has ({} MiB)", memory >> 20, total >> 20)]
    TooMuchMemory {
        /// What was asked for, in bytes.
        memory: u64,
        /// What the host has, with its swap, in bytes.
        total: u64,
    },
    /// Something is not text that can be an argument.
    #[error("{0:?} contains a NUL byte, which no argument can")]
    Nul(OsString),
    /// A file of the guest cannot be made.
    #[error("cannot make {}: {error}{}", path.display(), match error.raw_os_error() {
        Some(libc::ENOSPC) => ": the disk is full",
        _ => "",
    })]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The host refused something that never fails on a healthy machine.
    #[error("cannot {action}: {error}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// The launched process gave up.
    #[error("{0}")]
    Launcher(String),
    /// The launched process cannot be controlled.
    #[error(transparent)]
    Control(#[from] ControlError),
}

fn host(action: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |error| LaunchError::Host { action, error }
}

fn host_errno(action: &'static str) -> impl Fn(nix::Error) -> LaunchError {
    move |errno| LaunchError::Host {
        action,
        error: errno.into(),
    }
}

impl Launch {
    /// A guest with `image` as its kernel and everything else as usual.
    pub fn new(image: Image) -> Launch {
        Launch {
            image,
            name: None,
            memory: DEFAULT_MEMORY,
            cpus: 1,
            mode: None,
            append: Vec::new(),
            command: Vec::new(),
            pin: Pin::Auto,
            wait: false,
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            timeout: None,
            kmsg: false,
            log: None,
            // Also right when the file has been replaced since.
            program: PathBuf::from("/proc/self/exe"),
        }
    }

    /// Claims the guest's name, directory and host CPU.
    ///
    /// # Errors
    ///
    /// Something that was asked for cannot be had; nothing is left behind.
    pub fn prepare(self) -> Result<Prepared, LaunchError> {
        if self.memory < MIN_MEMORY {
            return Err(LaunchError::Memory {
                memory: self.memory,
            });
        }
        let host_memory =
            nix::sys::sysinfo::sysinfo().map_err(|e| host("ask for its memory")(e.into()))?;
        let total = host_memory
            .ram_total()
            .saturating_add(host_memory.swap_total());
        if self.memory > total {
            return Err(LaunchError::TooMuchMemory {
                memory: self.memory,
                total,
            });
        }
        let (mode, processors) = processors::parameters(&self.image, self.cpus, self.mode)?;
        for argument in self.append.iter().chain(&self.command) {
            if argument.as_bytes().contains(&0) {
                return Err(LaunchError::Nul(argument.clone()));
            }
        }
        let kernel =
            std::path::absolute(self.image.path()).map_err(host("find the current directory"))?;
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && !in_background();
        // First, so that there is no moment at which a killed kscope leaves
        // something behind.
        let stdin = io::stdin().dup().map_err(host("duplicate a descriptor"))?;
        let janitor = Janitor::start(&self.program, terminal.then_some(&stdin))
            .map_err(host("start the janitor"))?;
        let registry = Registry::open()?;
        let dir = registry.claim(self.name.as_deref())?;
        let cpu = pin::place(self.pin, self.guest_cpus(), &registry, &dir)?;
        Ok(Prepared {
            launch: self,
            mode,
            processors,
            kernel,
            dir,
            cpu,
            terminal,
            janitor,
        })
    }

    /// The number of CPUs, also when the parameters ask for another.
    fn guest_cpus(&self) -> u32 {
        self.parameters()
            .filter_map(|p| p.strip_prefix(b"ncpus="))
            .filter_map(|n| std::str::from_utf8(n).ok()?.parse().ok())
            .last()
            .unwrap_or(self.cpus)
    }

    fn parameters(&self) -> impl Iterator<Item = &[u8]> {
        self.append
            .iter()
            .flat_map(|a| a.as_bytes().split(u8::is_ascii_whitespace))
            .filter(|p| !p.is_empty())
    }

    /// The command, or what runs in its place.
    pub fn effective_command(&self) -> Vec<OsString> {
        if !self.command.is_empty() {
            return self.command.clone();
        }
        let shell = std::env::var_os("SHELL")
            .filter(|s| Path::new(s).is_absolute() && Path::new(s).exists())
            .unwrap_or_else(|| DEFAULT_SHELL.into());
        vec![shell]
    }
}

/// A guest that has everything but a process. Dropping it gives all back.
#[derive(Debug)]
pub struct Prepared {
    launch: Launch,
    mode: Mode,
    /// The parameters that make it so.
    processors: Vec<OsString>,
    kernel: PathBuf,
    dir: GuestDir,
    cpu: Option<u32>,
    terminal: bool,
    // The last to go, when all that it would have to remove has been removed.
    janitor: Janitor,
}

impl Prepared {
    /// The guest's name.
    pub fn name(&self) -> &str {
        self.dir.name()
    }

    /// The guest's directory, where sockets can be made before it starts.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The kernel.
    pub fn image(&self) -> &Image {
        &self.launch.image
    }

    /// The host CPU that the guest will stay on.
    pub fn cpu(&self) -> Option<u32> {
        self.cpu
    }

    /// The exact command line of the kernel, beginning with its path.
    ///
    /// Descriptors 3 and 4 are the line to the init, 5 is the initramfs.
    pub fn command_line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![self.kernel.clone().into()];
        let mut uml_dir = OsString::from("uml_dir=");
        uml_dir.push(self.dir.path().join(UML_DIR));
        line.extend([
            match self.launch.memory % (1 << 20) {
                0 => format!("mem={}M", self.launch.memory >> 20).into(),
                _ => format!("mem={}", self.launch.memory).into(),
            },
            uml_dir,
            format!("umid={}", self.dir.name()).into(),
            format!("initrd=/proc/self/fd/{INITRD}").into(),
            "rdinit=/init".into(),
            "con=null".into(),
            "con0=null,fd:1".into(),
            format!("con1=fd:{CONSOLE_IN},fd:{CONSOLE_OUT}").into(),
            "console=tty0".into(),
            // A reboot ends the guest, as a power-off does.
            "noreboot".into(),
            format!("lpj={}", delay::loops_per_jiffy()).into(),
        ]);
        line.extend(self.processors.iter().cloned());
        line.extend(
            self.launch
                .parameters()
                .map(|p| OsString::from_vec(p.to_vec())),
        );
        line
    }

    fn job(&self) -> Job {
        let bytes = |s: &OsStr| s.as_bytes().to_vec();
        Job {
            argv: self
                .launch
                .effective_command()
                .iter()
                .map(|a| bytes(a))
                .collect(),
            env: environment(self.dir.name()),
            // Gone, perhaps; the init then uses the root.
            cwd: std::env::current_dir().map_or_else(|_| Vec::new(), |d| bytes(d.as_os_str())),
            hostname: self.dir.name().as_bytes().to_vec(),
            umask: current_umask(),
            merge: !self.terminal && same_target(io::stdout(), io::stderr()),
            terminal: self.terminal.then(|| terminal_size(io::stdin().as_fd())),
        }
    }

    /// Boots the guest. Its command waits for [`Guest::go`].
    ///
    /// The signals INT, TERM, HUP, QUIT and WINCH are taken over until the guest
    /// is dropped. For that to work for the whole process, no other thread may
    /// have been started yet without them being blocked in it.
    ///
    /// # Errors
    ///
    /// The kernel's process could not be started; nothing is left behind.
    pub fn start(self) -> Result<Guest, LaunchError> {
        let (signals, reader) = Signals::take().map_err(host_errno("take over signals"))?;
        let archive = initramfs::build(&self.job()).map_err(host("write the initramfs"))?;
        let initrd = memory_file(&archive).map_err(host("keep the initramfs in memory"))?;
        let uml_dir = self.make_dir(UML_DIR)?;
        let scratch = self.make_dir(SCRATCH)?;
        let log_path = match &self.launch.log {
            Some(path) => path.clone(),
            None => self.dir.path().join(KERNEL_LOG),
        };
        let log = KernelLog::create(&log_path).map_err(|error| LaunchError::File {
            path: log_path.clone(),
            error,
        })?;

        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(host_errno("make a pipe"));
        let (console_in, to_guest) = pipe()?;
        let (from_guest, console_out) = pipe()?;
        let (kernel_output, output_end) = pipe()?;
        for fd in [&from_guest, &kernel_output] {
            // Only a matter of speed: an unprivileged user may have too many.
            let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        }
        for fd in [&from_guest, &kernel_output, &to_guest] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(host_errno("make a pipe non-blocking"))?;
        }

        let (sender, messages) = unbounded();
        let mailbox = Arc::new(Mailbox::new(sender).map_err(host_errno("make an eventfd"))?);
        let (event_sender, events) = unbounded();
        let dup = |fd: &dyn AsFdDyn| fd.dup().map_err(host("duplicate a descriptor"));
        let (stdin, stdout, stderr) = (user_input()?, dup(&io::stdout())?, dup(&io::stderr())?);
        let writer = |stream, target| {
            Writer::start(stream, target, Arc::clone(&mailbox)).map_err(host("start a thread"))
        };
        let start = Start {
            spec: Spec {
                parent: std::process::id() as i32,
                kernel: self.kernel.as_os_str().as_bytes().to_vec(),
                argv: self
                    .command_line()
                    .into_iter()
                    .map(OsStringExt::into_vec)
                    .collect(),
                scratch: scratch.as_os_str().as_bytes().to_vec(),
                uml_dir: uml_dir.as_os_str().as_bytes().to_vec(),
                memory: self.launch.memory,
                cpu: self.cpu,
                confined_to: image_to_confine(&self.launch.image),
            },
            program: self.launch.program.clone(),
            image: self.launch.image.clone(),
            dir: self.dir.path().to_owned(),
            output_end,
            console: (console_in, console_out),
            initrd,
            wait: self.launch.wait,
        };
        let rest = Rest {
            to_guest: to_guest.into(),
            from_guest: from_guest.into(),
            kernel_output: kernel_output.into(),
            user: User {
                stdin: stdin.into(),
                terminal: self.terminal,
                kmsg: self.launch.kmsg,
            },
            stdout: writer(Stream::Stdout, stdout)?,
            stderr: writer(Stream::Stderr, stderr)?,
            log,
            mailbox: Arc::clone(&mailbox),
            boot_timeout: self.launch.boot_timeout,
            timeout: self.launch.timeout,
        };
        let janitor = self.janitor;
        let (started_sender, started) = bounded(1);
        // The host kills the guest when the thread that has started it ends, so
        // this thread has to last as long as the guest.
        let thread = thread::Builder::new()
            .name(format!("guest {}", self.dir.name()))
            .spawn(move || {
                supervise(
                    start,
                    rest,
                    janitor,
                    reader,
                    messages,
                    event_sender,
                    &started_sender,
                )
            })
            .map_err(host("start a thread"))?;
        let outcome = started
            .recv()
            .unwrap_or_else(|_| Err(LaunchError::Launcher("the supervisor ended".to_owned())));
        let (control, note) = match outcome {
            Ok(started) => started,
            Err(e) => {
                let janitor = thread.join();
                // Only then is there nothing left for the janitor.
                drop(self.dir);
                drop(janitor);
                return Err(e);
            }
        };
        Ok(Guest::new(Life {
            launch: self.launch,
            kernel: self.kernel,
            dir: self.dir,
            cpu: self.cpu,
            mode: self.mode,
            control,
            note,
            mailbox,
            events,
            thread,
            signals,
        }))
    }

    fn make_dir(&self, name: &str) -> Result<PathBuf, LaunchError> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        fs::create_dir(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
            .map_err(|error| LaunchError::File {
                path: path.clone(),
                error,
            })?;
        Ok(path)
    }
}

/// Duplicates a standard stream.
trait AsFdDyn {
    fn dup(&self) -> io::Result<OwnedFd>;
}

impl<T: AsFd> AsFdDyn for T {
    fn dup(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }
}

/// Whether the terminal on standard input belongs to another job: to read from
/// it, or to change its settings, would stop this one.
fn in_background() -> bool {
    nix::unistd::tcgetpgrp(io::stdin()).is_ok_and(|group| group != nix::unistd::getpgrp())
}

/// The command's input; none for a job in the background.
fn user_input() -> Result<OwnedFd, LaunchError> {
    if in_background() {
        let none = File::open("/dev/null").map_err(host("open /dev/null"))?;
        return Ok(none.into());
    }
    io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(host("duplicate a descriptor"))
}

fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"kscope-initramfs", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}
