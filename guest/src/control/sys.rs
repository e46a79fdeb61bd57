//! The host's calls that the engine needs, each with its errors as [`io::Error`].

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use kscope_kernel::KernelAddr;
use libc::{c_int, c_long, c_uint, c_void};

use super::HostTid;

/// The host's description of a signal, to be handed back unchanged.
#[derive(Clone, Copy)]
pub(super) struct SigInfo(libc::siginfo_t);

// SAFETY: pointers in it are the guest's and never followed here.
unsafe impl Send for SigInfo {}

impl SigInfo {
    /// Number of the signal.
    pub(super) fn signal(&self) -> i32 {
        self.0.si_signo
    }

    /// What caused it, as `si_code`.
    pub(super) fn code(&self) -> i32 {
        self.0.si_code
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the structure is plain numbers without padding that anybody would leave uninitialised: the host has
        // written all of it.
        unsafe {
            std::slice::from_raw_parts(
                (&raw const self.0).cast::<u8>(),
                size_of::<libc::siginfo_t>(),
            )
        }
    }

    /// Puts bytes in the place of others. False when there is no such place.
    pub(super) fn patch(&mut self, offset: usize, bytes: &[u8]) -> bool {
        // SAFETY: as above; and every value of every byte is one.
        let all = unsafe {
            std::slice::from_raw_parts_mut(
                (&raw mut self.0).cast::<u8>(),
                size_of::<libc::siginfo_t>(),
            )
        };
        let end = offset.checked_add(bytes.len());
        match end.and_then(|end| all.get_mut(offset..end)) {
            Some(place) => {
                place.copy_from_slice(bytes);
                true
            }
            None => false,
        }
    }

    /// The address that was not there, or not allowed, if that is what it is about.
    pub(super) fn fault(&self) -> Option<KernelAddr> {
        // SAFETY: the field is a number in every variant of the union; of this signal from the host it is the address.
        let addr = || KernelAddr(unsafe { self.0.si_addr() } as u64);
        (self.signal() == libc::SIGSEGV && self.code() > 0).then(addr)
    }

    /// Whether this process has sent it to a thread, with [`tgkill`].
    pub(super) fn is_own(&self) -> bool {
        // SAFETY: the field is a number in every variant of the union, if not always one that means a process.
        let sender = unsafe { self.0.si_pid() };
        self.code() == libc::SI_TKILL && sender == std::process::id().cast_signed()
    }
}

/// What `waitpid` says about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// About to be given this signal.
    Signal(i32),
    /// `PTRACE_EVENT_STOP` with the given signal: SIGTRAP after an interrupt or the end of a group stop, else the
    /// signal that stopped the group.
    EventStop(i32),
    /// `PTRACE_EVENT_EXEC`.
    Exec,
    /// `PTRACE_EVENT_CLONE`: it has started a thread, which is traced.
    Clone,
    /// Another ptrace event.
    OtherEvent(i32),
    /// Exited with a code.
    Exited(i32),
    /// Killed by a signal.
    Signaled(i32),
}

fn decode(status: c_int) -> Option<Wait> {
    if libc::WIFEXITED(status) {
        return Some(Wait::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Some(Wait::Signaled(libc::WTERMSIG(status)));
    }
    if !libc::WIFSTOPPED(status) {
        return None;
    }
    let signal = libc::WSTOPSIG(status);
    Some(match status >> 16 {
        0 => Wait::Signal(signal),
        libc::PTRACE_EVENT_STOP => Wait::EventStop(signal),
        libc::PTRACE_EVENT_EXEC => Wait::Exec,
        libc::PTRACE_EVENT_CLONE => Wait::Clone,
        event => Wait::OtherEvent(event),
    })
}

/// What has happened to `tid` since the last call, without waiting. `Err` with `ECHILD` when it is neither a child nor
/// a tracee.
pub(super) fn wait(tid: HostTid) -> io::Result<Option<Wait>> {
    let wait = wait_for(tid.0, libc::WNOHANG)?;
    Ok(wait.map(|(_, wait)| wait))
}

/// What has happened to any tracee of the calling thread since the last call; with `block`, waits for something to
/// happen, or for a signal to this thread. `Err` with `ECHILD` when it has no tracee.
pub(super) fn wait_any(block: bool) -> io::Result<Option<(HostTid, Wait)>> {
    let options = if block { 0 } else { libc::WNOHANG };
    match wait_for(-1, libc::__WNOTHREAD | options) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        result => result,
    }
}

fn wait_for(which: c_int, options: c_int) -> io::Result<Option<(HostTid, Wait)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let got = unsafe { libc::waitpid(which, &raw mut status, libc::__WALL | options) };
    match got {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        tid => Ok(decode(status).map(|wait| (HostTid(tid), wait))),
    }
}

/// One ptrace request.
///
/// # Safety
///
/// `addr` and `data` must be what `request` expects: for requests that make the host read or write this process's
/// memory, pointers to enough of it.
unsafe fn ptrace(request: c_uint, tid: HostTid, addr: usize, data: usize) -> io::Result<c_long> {
    // SAFETY: by this function's own contract.
    let result = unsafe { libc::ptrace(request, tid.0, addr as *mut c_void, data as *mut c_void) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Starts tracing a thread without stopping it.
pub(super) fn seize(tid: HostTid, options: c_int) -> io::Result<()> {
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_SEIZE, tid, 0, options as usize) }.map(drop)
}

/// Asks a tracee to stop; it does so when it next could take a signal.
pub(super) fn interrupt(tid: HostTid) -> io::Result<()> {
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) }.map(drop)
}

/// Lets a stopped tracee run, delivering `signal` if not 0.
pub(super) fn cont(tid: HostTid, signal: i32) -> io::Result<()> {
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_CONT, tid, 0, signal as usize) }.map(drop)
}

/// Lets a stopped tracee execute one instruction, delivering `signal` if not 0.
pub(super) fn step(tid: HostTid, signal: i32) -> io::Result<()> {
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_SINGLESTEP, tid, 0, signal as usize) }.map(drop)
}

/// Leaves a tracee in its group stop, listening for the end of it.
pub(super) fn listen(tid: HostTid) -> io::Result<()> {
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_LISTEN, tid, 0, 0) }.map(drop)
}

/// Ends the tracing of a stopped tracee, delivering `signal` if not 0.
pub(super) fn detach(tid: HostTid, signal: i32) -> io::Result<()> {
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_DETACH, tid, 0, signal as usize) }.map(drop)
}

/// The general registers of a stopped tracee.
pub(super) fn registers(tid: HostTid) -> io::Result<libc::user_regs_struct> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the host writes one `user_regs_struct` to `regs`.
    unsafe { ptrace(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as usize) }?;
    Ok(regs)
}

/// Sets the general registers of a stopped tracee.
pub(super) fn set_registers(tid: HostTid, regs: &libc::user_regs_struct) -> io::Result<()> {
    // SAFETY: the host reads one `user_regs_struct` from `regs`.
    unsafe {
        ptrace(
            libc::PTRACE_SETREGS,
            tid,
            0,
            std::ptr::from_ref(regs) as usize,
        )
    }
    .map(drop)
}

/// The x87 and SSE registers of a stopped tracee, as FXSAVE lays them out.
pub(super) fn fp_registers(tid: HostTid) -> io::Result<[u8; 512]> {
    let mut area = [0; 512];
    // SAFETY: the host writes one `user_fpregs_struct`, which is 512 bytes, to `area`.
    unsafe { ptrace(libc::PTRACE_GETFPREGS, tid, 0, area.as_mut_ptr() as usize) }?;
    Ok(area)
}

/// Sets the x87 and SSE registers of a stopped tracee.
pub(super) fn set_fp_registers(tid: HostTid, area: &[u8; 512]) -> io::Result<()> {
    // SAFETY: the host reads one `user_fpregs_struct`, which is 512 bytes, from `area`.
    unsafe { ptrace(libc::PTRACE_SETFPREGS, tid, 0, area.as_ptr() as usize) }.map(drop)
}

/// Offset of `u_debugreg[index]` in the host's `struct user`.
fn debug_register_offset(index: usize) -> usize {
    std::mem::offset_of!(libc::user, u_debugreg) + index * size_of::<u64>()
}

/// A debug register of a stopped tracee.
pub(super) fn debug_register(tid: HostTid, index: usize) -> io::Result<u64> {
    // -1 is a possible value: the host's errno tells.
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() = 0 };
    // SAFETY: the request takes numbers only.
    let value = unsafe {
        libc::ptrace(
            libc::PTRACE_PEEKUSER,
            tid.0,
            debug_register_offset(index) as *mut c_void,
            0,
        )
    };
    let error = io::Error::last_os_error();
    if value == -1 && error.raw_os_error() != Some(0) {
        return Err(error);
    }
    Ok(value as u64)
}

/// Sets a debug register of a stopped tracee.
pub(super) fn set_debug_register(tid: HostTid, index: usize, value: u64) -> io::Result<()> {
    let offset = debug_register_offset(index);
    // SAFETY: the request takes numbers only.
    unsafe { ptrace(libc::PTRACE_POKEUSER, tid, offset, value as usize) }.map(drop)
}

/// The thread that a tracee stopped by `PTRACE_EVENT_CLONE` has started.
pub(super) fn started_thread(tid: HostTid) -> io::Result<HostTid> {
    let mut started: libc::c_ulong = 0;
    // SAFETY: the host writes one `unsigned long` to `started`.
    unsafe { ptrace(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut started as usize) }?;
    i32::try_from(started)
        .map(HostTid)
        .map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The signal that a tracee in signal-delivery-stop is about to be given.
pub(super) fn signal_info(tid: HostTid) -> io::Result<SigInfo> {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the host writes one `siginfo_t` to `info`.
    unsafe { ptrace(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize) }?;
    Ok(SigInfo(info))
}

/// Replaces the description of the signal that a tracee in signal-delivery-stop is about to be given.
pub(super) fn set_signal_info(tid: HostTid, info: &SigInfo) -> io::Result<()> {
    // SAFETY: the host reads one `siginfo_t` from `info`.
    unsafe { ptrace(libc::PTRACE_SETSIGINFO, tid, 0, &raw const info.0 as usize) }.map(drop)
}

/// Whether `signal` waits in the thread's own queue of a stopped tracee.
pub(super) fn has_pending(tid: HostTid, signal: i32) -> io::Result<bool> {
    const MOST: usize = 32;
    // SAFETY: the structure is plain numbers, for which zero is a value.
    let mut infos: [libc::siginfo_t; MOST] = unsafe { std::mem::zeroed() };
    let args = libc::ptrace_peeksiginfo_args {
        off: 0,
        flags: 0,
        nr: MOST as i32,
    };
    // SAFETY: the host reads `args` and writes at most `MOST` structures to `infos`.
    let count = unsafe {
        ptrace(
            libc::PTRACE_PEEKSIGINFO,
            tid,
            &raw const args as usize,
            infos.as_mut_ptr() as usize,
        )
    }?;
    let count = usize::try_from(count).unwrap_or(0).min(MOST);
    Ok(infos[..count].iter().any(|info| info.si_signo == signal))
}

/// The mask of blocked signals of a stopped tracee, bit N-1 for signal N.
pub(super) fn signal_mask(tid: HostTid) -> io::Result<u64> {
    let mut mask = 0_u64;
    // SAFETY: the host writes `size_of::<u64>()` bytes to `mask`.
    unsafe {
        ptrace(
            libc::PTRACE_GETSIGMASK,
            tid,
            size_of::<u64>(),
            &raw mut mask as usize,
        )
    }?;
    Ok(mask)
}

/// Sets the mask of blocked signals of a stopped tracee.
pub(super) fn set_signal_mask(tid: HostTid, mask: u64) -> io::Result<()> {
    // SAFETY: the host reads `size_of::<u64>()` bytes from `mask`.
    unsafe {
        ptrace(
            libc::PTRACE_SETSIGMASK,
            tid,
            size_of::<u64>(),
            &raw const mask as usize,
        )
    }
    .map(drop)
}

/// Sends a signal to one thread of a process.
pub(super) fn tgkill(pid: HostTid, tid: HostTid, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_tgkill, pid.0, tid.0, signal) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Kills a process, unless it is gone already.
pub(super) fn kill(pid: HostTid) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::kill(pid.0, libc::SIGKILL) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ESRCH) => Ok(()),
        _ => Err(error),
    }
}

/// Sends a signal that was held back to one thread of a process, with what it carries.
pub(super) fn send_again(pid: HostTid, tid: HostTid, info: &SigInfo) -> io::Result<()> {
    let mut info = *info;
    // What the host or `kill` would have to send, the host takes from neither: only the origin's kind is changed, the
    // rest of the description stays.
    if info.0.si_code >= 0 || info.0.si_code == libc::SI_TKILL {
        info.0.si_code = libc::SI_QUEUE;
    }
    let signal = info.signal();
    // SAFETY: the host reads one `siginfo_t` from `info`; the rest are numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            pid.0,
            tid.0,
            signal,
            &raw const info.0,
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A descriptor that becomes readable when the process ends.
pub(super) fn pidfd_open(pid: HostTid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the host has just made this descriptor, and nobody else knows it.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) }),
    }
}

/// Bit of `signal` in the host's masks.
pub(super) const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The value of a line of `/proc/PID/status`, in hexadecimal.
fn status_mask(pid: HostTid, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Whether the process leaves `signal` at its default action.
pub(super) fn has_default_action(pid: HostTid, signal: i32) -> bool {
    let taken = |field| status_mask(pid, field).is_none_or(|mask| mask & bit(signal) != 0);
    !taken("SigCgt") && !taken("SigIgn")
}

/// Whether `tid` is a thread of `pid`.
pub(super) fn is_thread(pid: HostTid, tid: HostTid) -> bool {
    fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(false)
}

/// The threads of a process.
pub(super) fn threads(pid: HostTid) -> io::Result<Vec<HostTid>> {
    let mut tids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        if let Some(tid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            tids.push(HostTid(tid));
        }
    }
    Ok(tids)
}

/// The process that traces `tid`, if any, with its name.
pub(super) fn tracer(tid: HostTid) -> Option<(HostTid, String)> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    let tracer: i32 = tracer.trim().parse().ok()?;
    if tracer == 0 {
        return None;
    }
    let name = fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
    Some((HostTid(tracer), name.trim().to_owned()))
}

/// Where the host says that each thread of `pid` is: state, host kernel function, system call. For messages.
pub(super) fn whereabouts(pid: HostTid) -> String {
    let Ok(tids) = threads(pid) else {
        return format!("process {pid} is gone");
    };
    let describe = |tid: &HostTid| {
        let read = |file: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/{file}"));
            text.map(|text| text.trim().to_owned()).unwrap_or_default()
        };
        let stat = read("stat");
        // The name, in parentheses, may hold anything.
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().next());
        let (wchan, syscall) = (read("wchan"), read("syscall"));
        let mut text = format!("host thread {tid} in state {}", state.unwrap_or("?"));
        if !matches!(wchan.as_str(), "" | "0") {
            text += &format!(" at {wchan}");
        }
        if let Some(number) = syscall
            .split_whitespace()
            .next()
            .filter(|word| *word != "running")
        {
            text += &format!(", system call {number}");
        }
        text
    };
    tids.iter().map(describe).collect::<Vec<_>>().join("; ")
}

/// Whether a thread has ended and is yet to be waited for.
pub(super) fn is_zombie(tid: HostTid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let state = stat.rsplit(')').next().map(str::trim_start);
    state.is_some_and(|state| state.starts_with(['Z', 'X']))
}

/// Yama's `ptrace_scope`, if the host has Yama.
pub(super) fn ptrace_scope() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()?
        .trim()
        .parse()
        .ok()
}
