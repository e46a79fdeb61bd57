//! Single steps where they are not what they seem.

mod common;

use common::kernels;
use common::session::Session;

/// Steps from a kernel function that sets the host's timer into the C library's system call, and over that.
const OVER: &str = r#"
def pc():
    return int(gdb.parse_and_eval('(unsigned long)$pc'))

SYSCALL = b'\x0f\x05'
gdb.execute('break os_timer_one_shot', to_string=True)
gdb.execute('continue', to_string=True)
gdb.execute('delete')
for _ in range(500):
    if bytes(gdb.selected_inferior().read_memory(pc(), 2)) == SYSCALL:
        break
    gdb.execute('stepi', to_string=True)
before = pc()
gdb.execute('stepi', to_string=True)
print('over', pc() - before, gdb.parse_and_eval('(long)$rax'))
gdb.execute('stepi 2000', to_string=True)
"#;

/// The host calls the trap of a step over a system call `TRAP_BRKPT`, but it is no breakpoint's.
#[test]
fn a_system_call_of_the_kernel_itself_is_one_step() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        let said = guest.gdb_python(OVER);
        assert!(
            said.lines().any(|line| line == "over 2 0"),
            "{}: {said}",
            kernel.name
        );
        // What was executed was the kernel's own code, all the while.
        assert_eq!(guest.ask("echo alive").trim(), "alive", "{}", kernel.name);
    }
}
