"""What the views of a live guest take, beside gdb and drgn on the same guest.

On Linux 6.12 with one CPU and on 7.3 with two, 100 tasks each. Of every figure
the minimum of interleaved rounds: what else the machine does only adds. Wall
and processor time are of the whole process, from start to exit; peak memory is
what the kernel counts (ru_maxrss), pages of mapped files included. "x" columns
say how many times as much as kscope.

    warm   types and source lines are in kscope's cache, as after any first call
    cold   no cache: the first call on a kernel that was just built

Then what the views take within a process (kernel/benches/views.rs), on a core
file of the same guest.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import DEADLINE, ROOT, Failed, Guest, compile_program, kernel_of

TOOLS = ("gcc", "gdb", "pahole", "cargo")

KERNELS = [("debian:6.12", "debug"), ("debian:7.3", "debug,smp")]

TASKS = 100

# Limits in the units of the table; memory is kscope's everywhere.
GOALS = {"ps": ("wall", 50), "ps, cold": ("wall", 1000), "bt --all": ("wall", 100)}
MEMORY_GOAL = 200

# The other views; what print and types ask for is what peers can be asked for as well.
VIEWS = [
    ["ps", "--tree", "--threads"], ["bt", "--all", "--locals"], ["bt"], ["bt", "1"], ["dmesg"],
    ["lsmod"], ["mounts"], ["maps", "1"], ["files", "1"], ["net"], ["slab"], ["irq"], ["timers"],
    ["config"], ["why", "--all"], ["runq"], ["print", "init_task.tasks"], ["types", "task_struct"],
]

# Run by the guest's shell.
SCRIPT = """\
echo ready
read -r n
for i in $(seq "$n"); do sleep 1000000 & done
echo crowded
read -r n
"""

DRGN_PS = """
from drgn.helpers.linux import for_each_task, task_state_to_char
for task in for_each_task(prog):
    print(task.pid.value_(), task.comm.string_().decode(), task_state_to_char(task))
"""
DRGN_DMESG = """
from drgn.helpers.linux import get_dmesg
print(get_dmesg(prog).decode(errors="replace"))
"""
DRGN_BT = """
for thread in prog.threads():
    print(thread.tid, prog.stack_trace(thread.tid))
"""
DRGN_LIVE_BT = """
from drgn.helpers.linux import for_each_task
for task in for_each_task(prog):
    print(task.pid.value_(), prog.stack_trace(task.pid.value_()))
"""


@dataclass
class Subject:
    """A command, what it is measured as, and what its output has when it has worked."""

    view: str
    who: str
    command: list
    marker: str = ""
    env: dict = field(default_factory=dict)
    # What it said when it did not do it.
    failure: str = ""
    runs: list = field(default_factory=list)

    def best(self, figure):
        return min(run[figure] for run in self.runs)


def measure(subject, scratch, env):
    """One run of it."""
    file, out, err = (scratch / name for name in ("figures", "out", "err"))
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        subprocess.run([scratch / "measure", file, *map(str, subject.command)],
                       stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, check=True,
                       timeout=DEADLINE, env={**env, **subject.env})
    code, wall, cpu, memory = map(int, file.read_text().split())
    said, complaint = (path.read_text(errors="replace") for path in (out, err))
    if code != 0:
        subject.failure = complaint.strip().splitlines()[-1].strip() if complaint else str(code)
    elif subject.marker not in said:
        subject.failure = f"no `{subject.marker}` in what it prints"
    if subject.failure:
        return
    subject.runs.append({"wall": wall / 1000, "cpu": cpu / 1000, "memory": memory / 1024})


def kscope_subjects(args, guest, core, scratch):
    """What kscope is asked for. Verbs that this kscope or this kernel has not are left out."""
    own = args.kscope
    cold = {"XDG_CACHE_HOME": str(scratch / "cold")}
    return [
        # The least that any command takes: to start and to find the guest.
        Subject("(start)", "kscope list", [own, "list"], guest.name),
        Subject("ps", "kscope", [own, "ps"], "kthreadd"),
        Subject("ps, cold", "kscope", [own, "ps"], "kthreadd", cold),
        Subject("ps --core", "kscope", [own, "ps", "--core", core], "kthreadd"),
        Subject("bt --all", "kscope", [own, "bt", "--all"], "kthreadd"),
        Subject("bt --all, cold", "kscope", [own, "bt", "--all"], "kthreadd", cold),
        Subject("bt --all --core", "kscope", [own, "bt", "--all", "--core", core], "kthreadd"),
        *(Subject(" ".join(view), "kscope", [own, *view]) for view in VIEWS),
    ]


def gdb(kernel, connect, *commands):
    """gdb with the kernel and, where they are built, the kernel's own scripts."""
    scripts = kernel.parent / "vmlinux-gdb.py"
    command = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off",
               "-iex", "set auto-load safe-path /"]
    if any(name.startswith("lx-") for name in commands):
        command += ["-ex", f"source {scripts}"]
    command += connect
    for name in commands:
        command += ["-ex", name]
    return [*command, kernel]


def peer_subjects(kernel, guest, pid, core):
    """The same of others."""
    stub = ["-ex", f"target remote {guest.dir / 'gdb.sock'}"]
    attached = ["-ex", f"attach {pid}"]
    dead = ["-ex", f"core-file {core}"]
    drgn = [ROOT / "target/venv/bin/drgn", "-q", "-s", kernel]
    live, of_core = [*drgn, "-p", pid, "-e"], [*drgn, "-c", core, "-e"]
    quiet = {"DRGN_DEBUGINFOD": "0"}
    stacks = "thread apply all bt"
    return [
        Subject("ps", "gdb stub, lx-ps", gdb(kernel, stub, "lx-ps"), "kthreadd"),
        Subject("ps", "gdb -p, lx-ps", gdb(kernel, attached, "lx-ps"), "kthreadd"),
        Subject("ps", "drgn -p", [*live, DRGN_PS], "kthreadd", quiet),
        Subject("ps --core", "drgn -c", [*of_core, DRGN_PS], "kthreadd", quiet),
        Subject("bt --all", "gdb stub", gdb(kernel, stub, stacks), "kthreadd ("),
        # It has the kernel's host threads, and no tasks.
        Subject("bt --all", "gdb -p", gdb(kernel, attached, stacks), "kthreadd ("),
        Subject("bt --all", "drgn -p", [*live, DRGN_LIVE_BT], "kthreadd", quiet),
        Subject("bt --all --core", "gdb core", gdb(kernel, dead, stacks), "kthreadd ("),
        Subject("bt --all --core", "drgn -c", [*of_core, DRGN_BT], "kthreadd", quiet),
        Subject("dmesg", "gdb stub, lx-dmesg", gdb(kernel, stub, "lx-dmesg"), "Linux version"),
        Subject("dmesg", "drgn -p", [*live, DRGN_DMESG], "Linux version", quiet),
        Subject("mounts", "gdb stub, lx-mounts", gdb(kernel, stub, "lx-mounts"), "hostfs"),
        Subject("timers", "gdb stub, lx-timerlist", gdb(kernel, stub, "lx-timerlist"), "tick"),
        Subject("types task_struct", "pahole", ["pahole", "-C", "task_struct", kernel], "comm"),
        Subject("types task_struct", "gdb ptype/o",
                gdb(kernel, [], "ptype/o struct task_struct"), "comm"),
    ]


def options_of(kernel):
    """What `kscope run` needs for all that the kernel can do."""
    config = kernel.parent / ".config"
    smp = config.exists() and "CONFIG_SMP=y" in config.read_text().splitlines()
    return ["--cpus", "2"] if smp else []


def measure_on(args, scratch, kernel):
    """All of it on one kernel: the subjects, and how many tasks there were."""
    core = scratch / "core"
    with Guest(args.kscope, kernel, scratch, options_of(kernel), SCRIPT) as guest:
        guest.wait_for("ready")
        there = len(json.loads(guest.view("ps", "--threads", "--format", "json"))["ps"])
        guest.say(str(max(TASKS - there, 1)))
        guest.wait_for("crowded")
        guests = json.loads(guest.view("list", "--format", "json"))["guests"]
        pid = next(entry["pid"] for entry in guests if entry["name"] == guest.name)
        subprocess.run([args.kscope, "dump", "-o", core], check=True, env=guest.env,
                       stderr=subprocess.DEVNULL)
        subjects = kscope_subjects(args, guest, core, scratch)
        subjects += peer_subjects(kernel, guest, pid, core)
        # kscope's caches have nothing of a kernel that was just built.
        for subject in subjects:
            if subject.who == "kscope":
                measure(subject, scratch, guest.env)
                subject.runs.clear()
        for number in range(args.rounds):
            print(f"{kernel}: round {number + 1}/{args.rounds}", file=sys.stderr)
            for subject in subjects:
                if subject.failure:
                    continue
                if subject.view.endswith("cold"):
                    subprocess.run(["rm", "-rf", scratch / "cold"], check=True)
                measure(subject, scratch, guest.env)
        tasks = len(json.loads(guest.view("ps", "--threads", "--format", "json"))["ps"])
    return subjects, tasks


def within(kernel, core):
    """What the library's own benchmarks say: milliseconds by name."""
    bench = subprocess.run(
        ["cargo", "bench", "--quiet", "-p", "kscope-kernel", "--bench", "views", "--",
         "--output-format", "bencher"],
        check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "KSCOPE_BENCH_KERNEL": str(kernel), "KSCOPE_BENCH_CORE": str(core)},
    ).stdout
    # test bt --all ... bench:    12345678 ns/iter (+/- 1234)
    found = re.findall(r"^test (.+) \.\.\. bench: +([\d,]+) ns/iter", bench, re.MULTILINE)
    if not found:
        raise Failed(f"no figures in: {bench}")
    times = {name: int(ns.replace(",", "")) / 1e6 for name, ns in found}
    print("within a process, on a core file:")
    for name, ms in times.items():
        print(f"    {name:24} {ms:9.2f} ms")
    print()
    return times


def verdict(subject):
    """Whether kscope keeps what it promises."""
    if subject.who != "kscope":
        return True, ""
    figure, limit = GOALS.get(subject.view, ("wall", None))
    met = subject.best("memory") < MEMORY_GOAL
    text = [] if met else [f"memory < {MEMORY_GOAL} MB: MISSED"]
    if limit is not None:
        is_met = subject.best(figure) <= limit
        text.insert(0, f"<= {limit} ms: {'met' if is_met else 'MISSED'}")
        met &= is_met
    return met, ", ".join(text)


def report(kernel, tasks, subjects):
    """The table; returns the same as figures."""
    size = kernel.stat().st_size / 1e6
    print(f"{kernel}: {size:.0f} MB, {tasks} tasks\n")
    print(f"{'view':24} {'who':24} {'wall ms':>9} {'x':>6} {'cpu ms':>9} {'x':>6} "
          f"{'peak MB':>8} {'x':>6}  goal")
    rows = []
    for view in dict.fromkeys(subject.view for subject in subjects):
        group = [subject for subject in subjects if subject.view == view]
        base = group[0] if group[0].runs else None
        for subject in group:
            row = {"view": view, "who": subject.who}
            rows.append(row)
            label = f"{view if subject is group[0] else '':24} {subject.who:24}"
            if not subject.runs:
                row["failure"] = subject.failure
                print(f"{label} no: {subject.failure[:90]}")
                continue
            row["met"], text = verdict(subject)
            cells = ""
            for figure, width in (("wall", 9), ("cpu", 9), ("memory", 8)):
                row[figure] = subject.best(figure)
                cells += f" {row[figure]:{width}.1f}"
                same = base in (None, subject) or base.best(figure) == 0
                cells += f" {'':6}" if same else f" {row[figure] / base.best(figure):6.1f}"
            row["runs"] = subject.runs
            print(f"{label}{cells}  {text}".rstrip())
    print()
    return {"kernel": str(kernel), "bytes": kernel.stat().st_size, "tasks": tasks, "rows": rows}


def run(args, scratch):
    """Measures, and prints the tables."""
    compile_program("measure", scratch)
    kernels = args.kernel or [kernel_of(args.kscope, *kernel) for kernel in KERNELS]
    figures = []
    for number, kernel in enumerate(kernels):
        place = scratch / str(number)
        place.mkdir(mode=0o700)
        os.link(scratch / "measure", place / "measure")
        subjects, tasks = measure_on(args, place, kernel)
        figures.append(report(kernel, tasks, subjects))
        figures[-1]["within"] = within(kernel, place / "core")
    missed = [f"{row['view']} on {one['kernel']}"
              for one in figures for row in one["rows"] if row.get("met") is False]
    print("goals missed: " + "; ".join(missed) if missed else "every goal is met")
    return figures
