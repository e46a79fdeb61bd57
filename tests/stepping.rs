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

/// Steps from where an idle kernel waits for the host's signals, out of its system call.
const IDLE: &str = "
def value(what):
    return int(gdb.parse_and_eval(what))
def begins_anew():
    return value('(long)$rax') in (-512, -513, -514, -516)
# Interrupted in the wait, which the host would begin anew.
if begins_anew():
    before = value('(long)$pc')
    gdb.execute('stepi', to_string=True)
    print('waited', value('(long)$pc') - before, begins_anew())
    gdb.execute('stepi', to_string=True)
    print('moved', value('(long)$pc') > before)
    gdb.execute('stepi 300', to_string=True)
    gdb.execute('detach')
";

#[test]
fn a_wait_that_was_interrupted_is_one_step() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        // Something comes to wake it up.
        guest.ask("(while sleep 0.2; do :; done) & true");
        // It is idle most of the time.
        let said = (0..20)
            .map(|_| guest.gdb_python(IDLE))
            .find(|said| said.contains("waited"))
            .unwrap_or_else(|| panic!("{} is never idle", kernel.name));
        for line in ["waited 0 False", "moved True"] {
            let has = said.lines().any(|known| known == line);
            assert!(has, "{}: no {line:?}: {said}", kernel.name);
        }
        assert_eq!(guest.ask("echo alive").trim(), "alive", "{}", kernel.name);
    }
}

/// Steps through what a busy task does in the kernel, for many of its timer's periods.
const IRQ: &str = "
HANDLER = int(gdb.parse_and_eval('(long) hard_handler'))
def step(most, until=None):
    seen = set()
    for _ in range(most):
        gdb.execute('stepi', to_string=True)
        seen.add(int(gdb.parse_and_eval('(long) $pc')))
        if until in seen:
            break
    return seen
def begin():
    gdb.execute('tbreak vfs_read', to_string=True)
    gdb.execute('continue', to_string=True)
print(gdb.execute('monitor step-irq', to_string=True))
begin()
seen = step(1500)
print('off', len(seen) > 300, HANDLER in seen)
print(gdb.execute('monitor step-irq on', to_string=True))
found = False
for _ in range(20):
    begin()
    if HANDLER in step(500, HANDLER):
        found = True
        break
print('on', found, gdb.selected_frame().name())
# Of it, as of any other, there is a stack.
print('frames', gdb.selected_frame().older() is not None)
print(gdb.execute('monitor step-irq off', to_string=True))
gdb.execute('detach')
";

#[test]
fn steps_take_interrupts_when_they_are_asked_to() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask("(while :; do read n </proc/uptime; done) & true");
        let said = guest.gdb_python(IRQ);
        for line in [
            "step-irq is off",
            "off True False",
            "step-irq is on",
            "on True hard_handler",
            "frames True",
        ] {
            let has = said.lines().any(|known| known == line);
            assert!(has, "{}: no {line:?}: {said}", kernel.name);
        }
        assert_eq!(guest.ask("echo alive").trim(), "alive", "{}", kernel.name);
        guest.kill();
    }
}
