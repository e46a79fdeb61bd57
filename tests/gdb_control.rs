//! gdb on every kernel and in every mode: watchpoints, steps that stay in their task, calls of the kernel's functions,
//! and memory.
//!
//! Each guest is asked to do something all the time, each gdb is told what to find. What it says is compared with what
//! gdb says of ordinary programs, and with the guest's own account.

mod common;

use std::fs;

use common::session::Session;
use common::{TestKernel, kernels};
use object::{Object, ObjectSection};

/// gdb's functions for the tests below.
const PYTHON: &str = "
def say(*words):
    print('said', *words, flush=True)
def do(command):
    return gdb.execute(command, to_string=True)
def value(expression):
    return int(gdb.parse_and_eval(expression))
# What gdb says of a stop is in no string that execute() returns.
def go(name=''):
    say('at', name)
    gdb.execute('continue')
def refused(command):
    try:
        return 'not refused: ' + do(command)
    except gdb.error as error:
        return ' '.join(str(error).split())
def cpu():
    line = [line for line in do('info threads').splitlines() if line.startswith('*')][0]
    return int(line.split('(on CPU ')[1].split(')')[0]) if '(on CPU ' in line else None
def task():
    return gdb.selected_thread().ptid
";

/// Runs Python in a gdb that is connected to the guest; asserts that what it says is as it should be, and that the
/// guest is well afterwards.
#[track_caller]
fn gdb_says(kernel: &TestKernel, guest: &mut Session, script: &str, expected: &[&str]) -> String {
    let said = guest.gdb_python(&format!("{PYTHON}{script}\ndo('detach')\nsay('end')\n"));
    let lines: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("said "))
        .collect();
    for line in expected.iter().chain(&["end"]) {
        assert!(
            lines.contains(line),
            "{}: no {line:?} in {said}",
            kernel.name
        );
    }
    assert_eq!(guest.ask("echo well"), "well\n", "{}", kernel.name);
    said
}

/// Asserts that gdb has said all of this, one after the other, of the stop after it was told to `go(NAME)`.
#[track_caller]
fn stopped(kernel: &TestKernel, said: &str, name: &str, parts: &[&str]) {
    let stop = said.split(&format!("said at {name}\n")).nth(1);
    let stop = stop.and_then(|rest| rest.split("said ").next());
    let mut rest = stop.unwrap_or_else(|| panic!("{}: no {name} in {said}", kernel.name));
    for part in parts {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("{}: no {part:?} at {name}: {said}", kernel.name));
        rest = &rest[at + part.len()..];
    }
}

/// On the guest's last CPU: writes a variable of the kernel, and reads another, all the time.
const WRITER: &str = "taskset -c LAST sh -c '\
     while :; do for n in 5 6; do echo $n >/proc/sys/kernel/panic; sleep 0.02; done; \
     read n </proc/sys/kernel/panic_on_oops; done' & true";

fn writer(kernel: &TestKernel) -> String {
    WRITER.replace("LAST", &(kernel.cpus() - 1).to_string())
}

#[test]
fn watchpoints_are_the_processors_on_every_cpu() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(&writer(kernel));
        let last = kernel.cpus() - 1;
        let said = gdb_says(
            kernel,
            &mut guest,
            "
say(do('watch panic_timeout').strip())
go('change')
say('writer', cpu(), gdb.selected_thread().name.split()[0])
go('next change')
do('delete')
do('watch panic_timeout if panic_timeout == 6')
go('condition')
do('delete')
say(do('awatch panic_on_oops').strip())
go('access')
do('delete')
say(do('rwatch panic_on_oops').strip())
go('read')
do('delete')
do('rwatch panic_timeout')
do('watch jiffies_64')
do('awatch panic_on_oops')
do('watch panic_timeout')
go('four')
do('set breakpoint always-inserted on')
say('fifth', 'You may have requested too many hardware breakpoints/watchpoints' in refused('watch init_task.prio'))
do('delete 9')
do('set breakpoint always-inserted off')
go('four again')
do('delete')
do('hbreak vfs_write')
go('hbreak')
do('delete')",
            &[
                "Hardware watchpoint 1: panic_timeout",
                &format!("writer {last} sh"),
                "Hardware access (read/write) watchpoint 3: panic_on_oops",
                "Hardware read watchpoint 4: panic_on_oops",
                "fifth True",
            ],
        );
        let watch = "hit Hardware watchpoint 1: panic_timeout";
        stopped(
            kernel,
            &said,
            "change",
            &[watch, "Old value = ", "New value = "],
        );
        stopped(
            kernel,
            &said,
            "next change",
            &[watch, "Old value = ", "New value = "],
        );
        let condition = "hit Hardware watchpoint 2: panic_timeout";
        stopped(
            kernel,
            &said,
            "condition",
            &[condition, "Old value = 5\nNew value = 6\n"],
        );
        let access = "hit Hardware access (read/write) watchpoint 3: panic_on_oops";
        stopped(kernel, &said, "access", &[access, "Value = 0\n"]);
        let read = "hit Hardware read watchpoint 4: panic_on_oops";
        stopped(kernel, &said, "read", &[read, "Value = 0\n"]);
        stopped(kernel, &said, "four", &["hit Hardware "]);
        stopped(kernel, &said, "four again", &["hit Hardware "]);
        stopped(kernel, &said, "hbreak", &["hit Breakpoint 10, vfs_write ("]);
        guest.kill();
    }
}

#[test]
fn a_watched_local_variable_ends_with_its_function() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(&writer(kernel));
        // Two that are in the same functions all the time.
        guest.ask("for n in 1 2; do (while :; do read n </proc/uptime; done) & done");
        let said = gdb_says(
            kernel,
            &mut guest,
            "
do('break do_sys_openat2')
go()
do('delete')
task_then = task()
do('watch op.open_flag')
go('changed')
say('same', task() == task_then)
for _ in range(20):
    if not [one for one in gdb.breakpoints() if one.number == 2]:
        break
    go('scope')
say('gone', task() == task_then)",
            &["same True", "gone True"],
        );
        stopped(
            kernel,
            &said,
            "changed",
            &["Hardware watchpoint 2: op.open_flag", "New value = "],
        );
        let deleted = "Watchpoint 2 deleted because the program has left the block in\nwhich its expression is valid.";
        let last = format!(
            "said at scope\n{}",
            said.rsplit("said at scope\n").next().unwrap_or_default()
        );
        stopped(kernel, &last, "scope", &[deleted]);
        guest.kill();
    }
}

#[test]
fn steps_stay_in_their_task() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        // All of them open files, on all CPUs; one sleeps in between.
        guest.ask("for n in 1 2 3; do (while :; do read n </proc/uptime; done) & done");
        guest.ask("(while :; do read n </proc/uptime; sleep 0.01; done) & true");
        gdb_says(
            kernel,
            &mut guest,
            "
do('break do_sys_openat2')
go()
its, other = task(), 0
do('tbreak getname_flags' if gdb.lookup_global_symbol('getname_flags') else 'tbreak getname')
go()
its = task()
do('delete')
# Other tasks come by here meanwhile.
do('break do_sys_openat2 if $rsp == 1')
for number, command in enumerate(['step', 'next', 'next', 'stepi', 'nexti', 'finish', 'next', 'until']):
    do(command)
    say(number, command, task() == its)
do('delete')
# Out of the system call, to its dispatcher.
do('tbreak do_sys_openat2')
go()
its = task()
do('advance path_openat')
say('advance', task() == its, gdb.selected_frame().name())
do('finish')
say('out of it', task() == its, gdb.selected_frame().name() != 'path_openat')
# Through all of another function.
do('tbreak vfs_read')
go()
its = task()
do('delete')
for _ in range(40):
    do('next')
    if gdb.selected_frame().name() != 'vfs_read':
        break
say('through', task() == its)",
            &[
                "0 step True",
                "1 next True",
                "2 next True",
                "3 stepi True",
                "4 nexti True",
                "5 finish True",
                "6 next True",
                "7 until True",
                "advance True path_openat",
                "out of it True True",
                "through True",
            ],
        );
        guest.kill();
    }
}

#[test]
fn a_breakpoint_for_a_thread_follows_the_task() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask("for n in 1 2 3; do (while :; do read n </proc/uptime; done) & done");
        let cpus = kernel.cpus();
        let pid = guest.ask(&format!(
            "sh -c 'while :; do for cpu in $(seq 0 {}); do taskset -pc $cpu $$ >/dev/null; \
             read n </proc/uptime; read n </proc/uptime; done; done' & echo $!",
            cpus - 1
        ));
        let sleeper = guest.ask("(while :; do sleep 0.02; done) & echo $!");
        let (pid, sleeper) = (pid.trim(), sleeper.trim());
        gdb_says(
            kernel,
            &mut guest,
            &format!(
                "
threads = {{thread.ptid[1]: thread for thread in gdb.selected_inferior().threads()}}
its = threads[{pid}]
do(f'break do_sys_openat2 thread {{its.num}}')
cpus, tasks = set(), set()
for stop in range(60):
    go()
    cpus.add(cpu())
    tasks.add(task())
    if len(cpus) == {cpus} and stop > 5:
        break
say('cpus', sorted(cpus), 'tasks', len(tasks), tasks == {{its.ptid}})
do('delete')
# One that sleeps is stepped when it is scheduled.
do('tbreak do_nanosleep')
go()
sleeper = threads[{sleeper}]
sleeper.switch()
before = value('$pc')
say('sleeps', cpu() is None)
say(refused('set var $rbx = 1'))
do('stepi')
say('stepped', task() == sleeper.ptid, value('$pc') != before, cpu() is not None)
do('set scheduler-locking on')
do('tbreak vfs_read')
say('locking', 'which task runs is up to the guest' in do('continue'))
do('set scheduler-locking step')
do('stepi 3')
do('set scheduler-locking off')
do('stepi 3')
do('set scheduler-locking replay')
do('stepi 3')",
            ),
            &[
                &format!(
                    "cpus {} tasks 1 True",
                    if cpus == 2 { "[0, 1]" } else { "[0]" }
                ),
                "sleeps True",
                "stepped True True True",
                "locking True",
            ],
        );
        guest.kill();
    }
}

#[test]
fn functions_of_the_kernel_can_be_called() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(&writer(kernel));
        let said = gdb_says(
            kernel,
            &mut guest,
            "
def call(where):
    rsp, pc = value('$rsp'), value('$pc')
    numbers = {value('get_random_u32()') for _ in range(4)}
    say('random', where, len(numbers) > 1)
    say('strlen', where, value('(int)strlen(\"abcde\")'))
    say('printk', where, value('(int)_printk(\"kscope was at %s %d\\\\n\", \"' + where + '\", 42)'))
    say('back', where, (rsp, pc) == (value('$rsp'), value('$pc')))
# Wherever it is, mostly in the host's C library.
call('connect')
do('tbreak vfs_write')
go()
call('vfs_write')
# On the stack of the interrupts, which is data.
do('tbreak timer_handler')
go()
call('timer_handler')
# With a breakpoint in the function.
do('break strlen')
try:
    gdb.parse_and_eval('(int)strlen(\"abcde\")')
except gdb.error as error:
    say('stopped', 'The program being debugged stopped while in a function called from GDB' in str(error))
do('delete')
say(do('finish').split('is ')[-1].strip())",
            &[
                "random connect True",
                "random vfs_write True",
                "random timer_handler True",
                "strlen connect 5",
                "strlen vfs_write 5",
                "strlen timer_handler 5",
                "back connect True",
                "back vfs_write True",
                "back timer_handler True",
                "stopped True",
            ],
        );
        let dmesg = guest.ask("dmesg");
        for place in ["connect", "vfs_write", "timer_handler"] {
            let line = format!("kscope was at {place} 42");
            assert!(dmesg.contains(&line), "{}: {said}{dmesg}", kernel.name);
        }
        guest.kill();
    }
}

#[test]
fn memory_is_one_space() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        let dir = tempfile::tempdir().expect("a directory");
        let [text, saved] = ["text", "saved"].map(|name| dir.path().join(name));
        let bytes = fs::read(&kernel.path).expect("the kernel");
        let file = object::File::parse(&*bytes).expect("an ELF file");
        let text_section = file.section_by_name(".text").expect("a section");
        let (start, content) = (
            text_section.address(),
            text_section.data().expect("content"),
        );
        let end = start + content.len() as u64;
        guest.ask("echo 7 >/proc/sys/kernel/panic");
        guest.ask("(while :; do env AN_ARGUMENTS=1 true with some words; done) & true");
        gdb_says(
            kernel,
            &mut guest,
            &format!(
                "
do('dump binary memory {text} {start:#x} {end:#x}')
# What is written from a file stays.
do('dump binary value {saved} panic_timeout')
do('set var panic_timeout = 8')
say('set', value('panic_timeout'))
do('restore {saved} binary %d' % value('&panic_timeout'))
say('restored', value('panic_timeout'))
do('set var panic_timeout = 9')
# The arguments that a program is about to get are in the memory of the one that it is yet.
do('break *copy_strings')
for _ in range(100):
    go()
    words = [gdb.parse_and_eval(f'((char **) $rsi)[{{n}}]').string() for n in range(value('$rdi & 15'))]
    if words[:1] == ['true']:
        break
say('argv', words, do('x/s *(char **) $rsi').split()[-1])
do('delete')
# A stack that the host's process may not have mapped yet.
for thread in gdb.selected_inferior().threads():
    if ' [S] ' in thread.name:
        thread.switch()
        break
say('stack', len(gdb.selected_inferior().read_memory(value('$rsp'), 64)))
found = do('find /b &linux_banner, +200, 0x4c, 0x69, 0x6e, 0x75, 0x78')
say('find', '<linux_banner>' in found)
# Physical memory is the same, seen from below.
here = value('uml_physmem')
at = value('(unsigned long) &init_task') - here
phys = do(f'monitor phys {{at}} 16').split(': ')[1].split('  ')[0].split()
say('phys', bytes(int(byte, 16) for byte in phys) == bytes(gdb.selected_inferior().read_memory(here + at, 16)))
say(refused('x/x 8'))",
                text = text.display(),
                saved = saved.display(),
            ),
            &[
                "set 8",
                "restored 7",
                "argv ['true', 'with', 'some', 'words'] \"true\"",
                "stack 64",
                "find True",
                "phys True",
                "Cannot access memory at address 0x8",
            ],
        );
        assert!(
            fs::read(&text).expect("a dump") == content,
            "{}: .text differs",
            kernel.name
        );
        assert_eq!(
            guest.ask("cat /proc/sys/kernel/panic"),
            "9\n",
            "{}",
            kernel.name
        );
        guest.kill();
    }
}
