//! What a debugger does to a guest, as the host sees it: its debug registers, and memory that it has not mapped.

mod common;

use std::fs;
use std::io;

use common::programs::module;
use common::session::Session;
use common::{kernels, until};

/// The guest's kernel process.
fn pid(guest: &Session) -> i32 {
    let guests = guest.place().guests();
    let pid = guests.first().and_then(|guest| guest["pid"].as_i64());
    i32::try_from(pid.expect("a guest")).expect("a pid")
}

fn ptrace(request: libc::c_uint, tid: i32, addr: usize) -> libc::c_long {
    // SAFETY: none of the requests below has the host write to this process's memory.
    let result = unsafe { libc::ptrace(request, tid, addr, 0_usize) };
    let error = io::Error::last_os_error();
    assert!(result != -1, "ptrace({request:#x}, {tid}): {error}");
    result
}

/// The debug registers of every thread, by a tracer that is no debugger of kscope's.
fn debug_registers(pid: i32) -> Vec<[i64; 8]> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the guest lives");
    let tids = tasks.map(|task| task.expect("a thread").file_name());
    let of = |tid: i32| {
        ptrace(libc::PTRACE_SEIZE, tid, 0);
        ptrace(libc::PTRACE_INTERRUPT, tid, 0);
        // SAFETY: the host is told to write nothing.
        let waited = unsafe { libc::waitpid(tid, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, tid, "{}", io::Error::last_os_error());
        let start = std::mem::offset_of!(libc::user, u_debugreg);
        let registers = std::array::from_fn(|at| match at {
            // The host has no such registers.
            4 | 5 => 0,
            at => ptrace(libc::PTRACE_PEEKUSER, tid, start + 8 * at),
        });
        ptrace(libc::PTRACE_DETACH, tid, 0);
        registers
    };
    tids.map(|tid| of(tid.to_string_lossy().parse().expect("a number")))
        .collect()
}

#[test]
fn nothing_is_watched_when_the_debugger_has_gone() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(
            "(while :; do for n in 5 6; do echo $n >/proc/sys/kernel/panic; done; done) & true",
        );
        let pid = pid(&guest);
        // It goes with a word and without.
        for last in ["gdb.execute('detach')", "import os; os._exit(0)"] {
            let said = guest.gdb_python(&format!(
                "
for what in ('watch panic_timeout', 'awatch panic_on_oops', 'rwatch jiffies_64', 'watch init_task.prio'):
    gdb.execute(what)
for _ in range(3):
    gdb.execute('continue')
print('watched', flush=True)
{last}
"
            ));
            assert!(said.contains("watched"), "{}: {said}", kernel.name);
            let status = format!("/proc/{pid}/status");
            until("nobody traces it", || {
                let status = fs::read_to_string(&status).expect("the guest lives");
                status.lines().any(|line| line == "TracerPid:\t0")
            });
            let registers = debug_registers(pid);
            assert!(registers.len() >= kernel.cpus(), "{}", kernel.name);
            for registers in registers {
                // The bits that say what of the four is watched, and how: addresses alone mean nothing.
                assert_eq!(
                    registers[7] & 0xffff_00ff,
                    0,
                    "{}: {registers:x?}",
                    kernel.name
                );
            }
            assert_eq!(guest.ask("echo well"), "well\n", "{}", kernel.name);
        }
        guest.kill();
    }
}

#[test]
fn memory_that_the_host_has_yet_to_map_is_read_and_written() {
    for kernel in kernels() {
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
        // What a module is loaded to is a vmalloc area (finit_module(2) is 313).
        let file = module.path("kscope_visits.ko");
        guest.begin(&format!(
            "until [ $(cat /proc/sys/kernel/panic_on_oops) = 77 ]; do sleep 0.1; done; \
             perl -e 'open F, q({}); $with = q(); syscall(313, fileno F, $with, 0) == 0 or die $!'; \
             cat /sys/module/kscope_visits/parameters/poke",
            file.display()
        ));
        let said = guest.gdb_python(&format!(
            "
import os
memory = os.open('/proc/{pid}/mem', os.O_RDONLY)
def host(addr):
    try:
        return os.pread(memory, 8, addr)
    except OSError:
        return None
gdb.execute('set var panic_on_oops = 77')
gdb.execute('tbreak *vmap_small_pages_range_noflush')
gdb.execute('continue')
addr = int(gdb.parse_and_eval('$rdi'))
gdb.execute('finish')
print('host', host(addr), host(addr + 4096 - 8))
inferior = gdb.selected_inferior()
print('gdb', len(inferior.read_memory(addr, 4096)))
inferior.write_memory(addr + 16, b'kscope!!')
print('again', bytes(inferior.read_memory(addr + 12, 16))[4:12])
# The guest's own look at it has the host map it.
print('guest', gdb.parse_and_eval(f'(int) memcmp((char *) {{addr}} + 16, \"kscope!!\", 8)'))
print('host now', host(addr + 16))
inferior.write_memory(addr + 16, bytes(8))
gdb.execute('detach')
",
            pid = pid(&guest)
        ));
        for line in [
            "host None None",
            "gdb 4096",
            "again b'kscope!!'",
            "guest 0",
            "host now b'kscope!!'",
        ] {
            let has = said.lines().any(|known| known == line);
            assert!(has, "{}: no {line:?}: {said}", kernel.name);
        }
        assert_eq!(guest.end(), "0\n", "{}", kernel.name);
        guest.kill();
    }
}
