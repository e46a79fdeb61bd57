# What the kernel's own gdb scripts get wrong about this target.
import gdb

try:
    from linux import cpus, tasks
except ImportError:
    cpus = None


def kscope_current_cpu():
    """The CPU of the selected thread. Threads are tasks here: their numbers say nothing about CPUs."""
    idle_base = 10_000_000
    thread = gdb.selected_thread()
    if thread is None:
        return 0
    pid = thread.ptid[1] or thread.ptid[2]
    if pid >= idle_base:
        return pid - idle_base
    task = tasks.get_task_by_pid(pid)
    if task is None:
        return 0
    for path in (("thread_info", "cpu"), ("cpu",)):
        value = task
        try:
            for member in path:
                value = value[member]
            return int(value)
        except gdb.error:
            pass
    return 0


def kscope_current_task(cpu):
    """What cpu_tasks has, which was a structure around the pointer up to 6.x and is the pointer since."""
    if cpu == -1:
        cpu = kscope_current_cpu()
    element = gdb.parse_and_eval("cpu_tasks")[cpu]
    if element.type.strip_typedefs().code == gdb.TYPE_CODE_STRUCT:
        element = element["task"]
    task = gdb.lookup_type("struct task_struct").pointer()
    return element.cast(task).dereference()


if cpus is not None:
    cpus.get_current_cpu = kscope_current_cpu
    cpus.get_current_task = kscope_current_task
