# Where a process entered the kernel: `$user_regs()`, `user-regs`, `user-bt`.
import gdb

# `struct user_regs_struct` of the host's asm/user_64.h, in whose order the kernel saves them.
KSCOPE_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss"
    " fs_base gs_base ds es fs gs"
).split()


def kscope_pid(text):
    """The pid that a command is about: the one that is named, else the selected thread's."""
    if text:
        return int(gdb.parse_and_eval(text))
    thread = gdb.selected_thread()
    if thread is None:
        raise gdb.GdbError("no thread is selected; name a pid")
    pid = thread.ptid[1] or thread.ptid[2]
    if pid >= 10_000_000:
        raise gdb.GdbError("the CPU is idle: no process has called the kernel; name a pid")
    return pid


def kscope_list(head, type_name, member):
    """The elements of a `struct list_head`, as long as there is sense in it."""
    kind = gdb.lookup_type(type_name)
    field = next(field for field in kind.fields() if field.name == member)
    node, seen = head["next"], 0
    while node != head.address and seen < 100_000:
        yield gdb.Value(int(node) - field.bitpos // 8).cast(kind.pointer()).dereference()
        node, seen = node["next"], seen + 1


def kscope_task(pid):
    """The task_struct of a thread."""
    leaders = kscope_list(gdb.parse_and_eval("init_task.tasks"), "struct task_struct", "tasks")
    for leader in leaders:
        if int(leader["pid"]) == pid:
            return leader
        threads = leader["signal"]["thread_head"]
        for task in kscope_list(threads, "struct task_struct", "thread_node"):
            if int(task["pid"]) == pid:
                return task
    raise gdb.GdbError("no process has pid %d" % pid)


def kscope_user_registers(pid):
    task = kscope_task(pid)
    if int(task["mm"]) == 0:
        raise gdb.GdbError("%d is a thread of the kernel's own: it has no user registers" % pid)
    return task["thread"]["regs"]["regs"]["gp"]


class KscopeUserRegs(gdb.Function):
    """The registers with which a process entered the kernel: $user_regs(NAME [, PID]).

$user_regs("rip") is one of them, of the selected thread or of PID; $user_regs() is all of them, in
the order of the host's struct user_regs_struct."""

    def __init__(self):
        super().__init__("user_regs")

    def invoke(self, name=None, pid=None):
        registers = kscope_user_registers(kscope_pid("") if pid is None else int(pid))
        if name is None:
            return registers
        name = name.string()
        if name not in KSCOPE_REGISTERS:
            raise gdb.GdbError("no such register: " + name)
        return registers[KSCOPE_REGISTERS.index(name)]


class KscopeUserRegsCommand(gdb.Command):
    """Show the registers with which a process entered the kernel: user-regs [PID]."""

    def __init__(self):
        super().__init__("user-regs", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        registers = kscope_user_registers(kscope_pid(argument))
        for at, name in enumerate(KSCOPE_REGISTERS):
            gdb.write("%-14s %#x\n" % (name, int(registers[at])))


class KscopeUserBacktrace(gdb.Command):
    """Show the stack of the program that has called the kernel: user-bt [PID...]."""

    def __init__(self):
        super().__init__("user-bt", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        pids = argument.split() or [str(kscope_pid(""))]
        gdb.execute("monitor user-bt " + " ".join(pids))


KscopeUserRegs()
KscopeUserRegsCommand()
KscopeUserBacktrace()
