//! Keeps a guest's processes from the host's kernel after their own is gone.
//!
//! A guest's process is a process of the host whose system calls User Mode Linux takes in with
//! ptrace. When the kernel process dies at once, as of SIGKILL, its processes are let go, and on
//! kernels that do not ask for a signal then (before `os_set_pdeathsig()`, in 6.1) they run on:
//! what they ask of their kernel, the host's would do. A seccomp filter is looked at after ptrace
//! and so costs nothing as long as that has them; then it ends them with their first call.

use std::io;
use std::ops::Range;

use kscope_kernel::Image;

/// From here on are the host's libraries and what User Mode Linux executes in a guest's process
/// for itself (its stub); below are the guest's own addresses (`TASK_SIZE`, which 6.1 takes from
/// `os_get_top_address()` of arch/x86/um/os-Linux/task_size.c), and the kernel's image.
const HOST: u64 = 0x7f_c000_0000;

/// The addresses of the kernel's image, which calls the host; `None` for a kernel whose processes
/// end with it.
pub(crate) fn image_to_confine(image: &Image) -> Option<Range<u64>> {
    if image.symbol("os_set_pdeathsig").is_some() {
        return None;
    }
    let start = image.symbol("__binary_start")?;
    let end = image.symbol("_end")?;
    Some(start.get()..end.get())
}

/// Has this process, what it executes and what that forks killed for a system call from anywhere
/// but `image` and the [`HOST`]'s part of the address space.
///
/// # Errors
///
/// What the host says, or that the image is not where it can be told from the guest.
pub(crate) fn confine(image: &Range<u64>) -> io::Result<()> {
    let below_4g = |addr: u64| {
        let error = || io::Error::other("the kernel's image is above 4 GiB");
        u32::try_from(addr).map_err(|_| error())
    };
    let (start, end) = (below_4g(image.start)?, below_4g(image.end)?);
    let host_high = (HOST >> 32) as u32;
    let host_low = HOST as u32;

    // `struct seccomp_data` (linux/seccomp.h): nr, arch, the instruction pointer.
    const ARCH: u32 = 4;
    const IP_LOW: u32 = 8;
    const IP_HIGH: u32 = 12;
    // AUDIT_ARCH_X86_64 (linux/audit.h): its ELF machine, 64 bits, little endian.
    const X86_64: u32 = 62 | 0x8000_0000 | 0x4000_0000;
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let jump = |test: u32, k, yes, no| libc::sock_filter {
        code: (libc::BPF_JMP | test | libc::BPF_K) as u16,
        jt: yes,
        jf: no,
        k,
    };
    let verdict = |what| statement(libc::BPF_RET | libc::BPF_K, what);
    // Jumps count the instructions that are passed over; 11 allows and 12 kills.
    let program = [
        load(ARCH),
        jump(libc::BPF_JEQ, X86_64, 0, 10),
        load(IP_HIGH),
        jump(libc::BPF_JGT, host_high, 7, 0),
        jump(libc::BPF_JEQ, host_high, 4, 0),
        jump(libc::BPF_JEQ, 0, 0, 6),
        load(IP_LOW),
        jump(libc::BPF_JGE, start, 0, 4),
        jump(libc::BPF_JGE, end, 3, 2),
        load(IP_LOW),
        jump(libc::BPF_JGE, host_low, 0, 1),
        verdict(libc::SECCOMP_RET_ALLOW),
        verdict(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: the filter and its program live until the call has copied them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}
