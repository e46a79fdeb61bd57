# What the kernel's own gdb scripts get wrong about this target.
import os

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


class KscopePages:
    """Pages and addresses of a kernel with CONFIG_FLATMEM, whose physical memory is in one piece."""

    def __init__(self):
        self.PAGE_SHIFT = 12
        self.PAGE_SIZE = 1 << self.PAGE_SHIFT
        self.MAX_NUMNODES = 1
        self.MAX_ORDER_NR_PAGES = 1 << 10
        self.start = int(gdb.parse_and_eval("uml_physmem"))
        self.pages = gdb.parse_and_eval("mem_map")
        self.count = int(gdb.parse_and_eval("max_low_pfn"))
        # asm/pgtable.h: behind the memory, and a hole.
        hole = 8 << 20
        self.VMALLOC_START = (int(gdb.parse_and_eval("high_memory")) + hole) & ~(hole - 1)
        self.VMALLOC_END = int(gdb.parse_and_eval("task_size"))

    def kasan_reset_tag(self, addr):
        return addr

    def pfn_valid(self, pfn):
        return 0 <= pfn < self.count

    def virt_to_phys(self, virt):
        return int(virt) - self.start

    def pfn_to_kaddr(self, pfn):
        return (pfn << self.PAGE_SHIFT) + self.start

    def sym_to_pfn(self, addr):
        return self.virt_to_phys(addr) >> self.PAGE_SHIFT

    def pfn_to_page(self, pfn):
        return self.pages + int(pfn)

    def page_to_pfn(self, page):
        return int(page.cast(self.pages.type) - self.pages)

    def page_to_phys(self, page):
        return self.page_to_pfn(page) << self.PAGE_SHIFT

    def virt_to_page(self, virt):
        return self.pfn_to_page(self.sym_to_pfn(virt))

    def page_address(self, page):
        return self.pfn_to_kaddr(self.page_to_pfn(page))

    def folio_address(self, folio):
        return self.page_address(folio["page"].address)


def kscope_page_ops(self):
    self.ops = KscopePages()


class KscopeSymbols(gdb.Command):
    """Read the symbols of the kernel's modules.

They are there by themselves: modules are shared libraries (`info sharedlibrary`). The arguments, if
there are any, are directories with the files of modules that were built elsewhere."""

    def __init__(self):
        super().__init__("lx-symbols", gdb.COMMAND_FILES, gdb.COMPLETE_FILENAME)

    def invoke(self, argument, from_tty):
        for path in gdb.string_to_argv(argument):
            path = os.path.abspath(os.path.expanduser(path))
            gdb.execute("monitor module-path " + path)
        gdb.execute("sharedlibrary")


if cpus is not None:
    cpus.get_current_cpu = kscope_current_cpu
    cpus.get_current_task = kscope_current_task
    # The kernel's own drops all symbols and reads them again from a file of the name vmlinux.
    KscopeSymbols()
    try:
        from linux import mm

        mm.page_ops.__init__ = kscope_page_ops
    except ImportError:
        pass
    try:
        from linux import interrupts

        # Those that only a machine has: of its APIC, of machine checks.
        interrupts.x86_show_interupts = lambda prec: ""
    except ImportError:
        pass
