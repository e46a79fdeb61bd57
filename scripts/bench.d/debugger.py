"""What debugging a kernel costs: through kscope's stub, through `gdbserver --attach`,
and, where it applies, through the stub of QEMU's TCG.

The same gdb everywhere; for kscope and gdbserver the same kernel and the same
program in it, which calls getppid() all the time and says what a call takes. Rounds
alternate, and the figure is their median. Symbols are loaded before anything is
timed. QEMU has a kernel for real machines, of which gdb knows the program that it
runs; it evaluates no conditions, so that gdb does.

    attach      seconds from `target remote` to the prompt
    threads     seconds of `info threads` with 500 tasks (gdbserver and QEMU have none)
    running     how many times as long a system call takes while a client is attached
                and nothing is set
    condition   hits per second of a breakpoint whose condition, on a register, is false
    ... memory  the same, on memory
    stepi       instructions per second of `stepi 10000`
    next        `next` per second, over calls
    dump        MB/s of `dump binary memory`
    ... newest  the same, with the newest gdb in Debian, which asks for binary memory
    raw         MB/s of memory packets, without gdb (`x`; `m` where there is no `x`)
    lost        guests that have ended while they were debugged
    (ptrace)    the host's own limit: stops per second of a thread that is only let
                go on (ptrace_floor.c)
"""

import contextlib
import functools
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import DEADLINE, ROOT, Failed, Guest, Lines, compile_program, end, kernel_of
from job import bare_command

TOOLS = ("gcc", "gdb", "gdbserver", "setarch", "busybox", "qemu-system-x86_64", "cpio")

CALLS = 5000
TASKS = 500
NEXTS = 30
DUMPED = 8 << 20
# Bytes that are read by packets, and by one `m`, which every stub takes.
RAW = 32 << 20
PIECE = 2000
MOST_LOST = 5

# Says for ever what a call takes. The shell's own reads are what is stepped through.
WORKLOAD = "while :; do echo figure $({dir}/getppid {calls}); done"

CROWD = """\
for i in $(seq {tasks}); do sleep 1000000 & done
echo crowded
wait
"""

# What gdb does.
CONNECT = """\
import gdb, time
for setting in ("pagination off", "confirm off", "sysroot /", "auto-solib-add off"):
    gdb.execute("set " + setting)
gdb.execute("handle all nostop noprint pass", to_string=True)
def timed(name, command, count=1):
    start = time.monotonic()
    for _ in range(count):
        gdb.execute(command, to_string=True)
    print("FIGURE", name, (time.monotonic() - start) / count, flush=True)
timed("attach", "target remote {target}")
"""
STEPS = """\
gdb.execute("break {function}", to_string=True)
gdb.execute("continue", to_string=True)
gdb.execute("delete")
if {calls_others}:
    timed("next", "next", {nexts})
timed("stepi", "stepi 10000")
start = int(gdb.parse_and_eval("{memory}"))
timed("dump", f"dump binary memory {scratch}/dumped {{start}} {{start + {dumped}}}")
gdb.execute("detach", to_string=True)
print("START", start, flush=True)
"""
DUMP = """\
start = int(gdb.parse_and_eval("{memory}"))
timed("... newest", f"dump binary memory {scratch}/dumped {{start}} {{start + {dumped}}}")
print("DUMPED", flush=True)
"""
RUN = """\
if {location!r}:
    gdb.execute("break {location}", to_string=True)
print("RUNNING", flush=True)
gdb.execute("continue")
"""
THREADS = """\
timed("threads", "info threads")
print("THREADS", len(gdb.selected_inferior().threads()), flush=True)
"""

# What is set for each figure that is taken while the guest runs.
RUNNING = {
    "running": None,
    "condition": "if $rdi == 0x12345678",
    "... memory": "if *(int *)$rsp == 0x12345678",
}


def free_port():
    """A port of the loopback interface that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port):
    """Waits until somebody listens there, without connecting, which would be a client."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        sockets = [line.split() for table in ("tcp", "tcp6")
                   for line in Path("/proc/net", table).read_text().splitlines()[1:]]
        if any(words[1].endswith(f":{port:04X}") and words[3] == "0A" for words in sockets):
            return
        time.sleep(0.02)
    raise Failed(f"nobody listens on port {port}")


class Client:
    """The remote protocol without gdb."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.acknowledges = True
        # What every gdb says, and only gdb.
        self.ask(b"qSupported:qRelocInsn+")
        if self.ask(b"QStartNoAckMode") == b"OK":
            self.acknowledges = False
        self.ask(b"?")

    def ask(self, packet):
        """The reply to a packet."""
        self.socket.sendall(b"$%s#%02x" % (packet, sum(packet) % 256))
        reply = bytearray()
        # A `#` is in no reply but before its checksum.
        while len(reply) < 4 or reply[-3:-2] != b"#":
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise Failed("the stub has hung up")
            reply += piece
        if self.acknowledges:
            self.socket.sendall(b"+")
        return reply[reply.find(b"$") + 1:-3]


def raw(port, start):
    """MB/s of memory packets, of the better kind that the stub has."""
    client = Client(port)
    with client.socket:
        binary = client.ask(b"x%x,1" % start)[:1] == b"b"
        kind, piece = (b"x", 1 << 16) if binary else (b"m", PIECE)
        begun = time.monotonic()
        for at in range(0, RAW, piece):
            reply = client.ask(b"%s%x,%x" % (kind, start + at % DUMPED, piece))
            if reply[:1] == b"E":
                raise Failed(f"reading memory: {reply.decode(errors='replace')}")
        return RAW / (time.monotonic() - begun) / 1e6


@contextlib.contextmanager
def gdb(symbols, scratch, script, program="gdb"):
    """gdb, with the lines that it prints."""
    path = scratch / "script.py"
    path.write_text(script)
    proc = subprocess.Popen(
        [program, "-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", str(symbols),
         "-x", str(path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield Lines(proc)
    finally:
        proc.kill()
        proc.wait()


class Subject:
    """A guest that says for ever what getppid() takes, and a stub that debugs it."""

    # Where gdb stops first, whether that calls other functions, where conditions are, what is read.
    function, calls_others = "ksys_read", True
    location = "*sys_getppid"
    memory = "(unsigned long)&_text"

    def __init__(self, symbols, scratch, command):
        self.symbols, self.scratch, self.command = symbols, scratch, command
        self.guest = None
        # How many guests have ended while they were debugged.
        self.lost = 0

    def start(self):
        """Boots the guest, and waits for its first figure."""
        self.end()
        self.guest = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL, start_new_session=True)
        self.lines = Lines(self.guest)
        self.lines.until("figure")

    def end(self):
        if self.guest:
            end(self.guest)

    def attempt(self, what):
        """What it returns, on a new guest when the one there is has not survived."""
        while True:
            if not self.guest or self.guest.poll() is not None:
                self.start()
            try:
                return what()
            except Failed:
                if self.guest.poll() is None or self.lost == MOST_LOST:
                    raise
                self.lost += 1

    @contextlib.contextmanager
    def stub(self):
        """The port of a stub that has no client yet."""
        yield self.port

    def call_ns(self):
        """Nanoseconds per call, by the guest's own clock."""
        self.lines.skip()
        # The first two may have begun before what is measured.
        figures, deadline = [], time.monotonic() + 2
        while len(figures) < 5 or time.monotonic() < deadline:
            figures.append(float(self.lines.until("figure")[-1].split("figure")[1]))
        return statistics.median(figures[2:])

    @contextlib.contextmanager
    def session(self, script, program="gdb", **values):
        """A gdb that is connected and does what `script` says, with the lines that it prints."""
        with self.stub() as port:
            text = (CONNECT + script).format(
                target=f"127.0.0.1:{port}", scratch=self.scratch, dumped=DUMPED, nexts=NEXTS, memory=self.memory,
                function=self.function, calls_others=self.calls_others, **values)
            with gdb(self.symbols, self.scratch, text, program) as lines:
                yield lines

    def measure(self):
        """The figures by name."""
        def steps():
            with self.session(STEPS) as lines:
                return lines.until("START")

        def dumps():
            with self.session(DUMP, newest_gdb()) as lines:
                return lines.until("DUMPED")

        def runs(condition):
            location = f"{self.location} {condition}" if condition else ""
            with self.session(RUN, location=location) as lines:
                lines.until("RUNNING")
                return self.call_ns()

        def packets():
            with self.stub() as port:
                return raw(port, int(told[-1].split()[1]))

        took = {"idle": self.attempt(self.call_ns)}
        told = self.attempt(steps)
        took |= timings(told) | timings(self.attempt(dumps))
        for name, condition in RUNNING.items():
            took[name] = self.attempt(lambda: runs(condition))
        figures = {
            "attach": took["attach"],
            "running": took["running"] / took["idle"],
            "condition": 1e9 / took["condition"],
            "... memory": 1e9 / took["... memory"],
            "stepi": 10000 / took["stepi"],
            "dump": DUMPED / took["dump"] / 1e6,
            "... newest": DUMPED / took["... newest"] / 1e6,
        }
        if "next" in took:
            figures["next"] = 1 / took["next"]
        figures["raw"] = self.attempt(packets)
        figures["lost"] = self.lost
        return figures


def timings(lines):
    """What gdb says that its commands took."""
    words = [line.split(maxsplit=1)[1].rsplit(maxsplit=1)
             for line in lines if line.startswith("FIGURE")]
    return {name: float(seconds) for name, seconds in words}


@functools.cache
def newest_gdb():
    """The newest gdb in Debian, which is installed when it is not there."""
    return subprocess.run([ROOT / "scripts/newest-gdb"], check=True, stdout=subprocess.PIPE,
                          text=True).stdout.split()[-1]


class Kscope(Subject):
    """Under kscope."""

    def __init__(self, args, kernel, scratch):
        self.port = free_port()
        workload = WORKLOAD.format(dir=scratch, calls=CALLS)
        super().__init__(kernel, scratch, [
            args.kscope, "run", "--quiet", "--gdb", f"127.0.0.1:{self.port}", "-k", str(kernel),
            "-m", "512M", "--", "sh", "-c", workload])


class Gdbserver(Subject):
    """By itself, with a gdbserver that attaches to it."""

    def __init__(self, _args, kernel, scratch):
        init = scratch / "init.sh"
        init.write_text("#!/bin/sh\n" + WORKLOAD.format(dir=scratch, calls=CALLS) + "\n")
        init.chmod(0o755)
        super().__init__(kernel, scratch,
                         bare_command(kernel, scratch, init, f"served-{time.monotonic_ns()}"))

    @contextlib.contextmanager
    def stub(self):
        port = free_port()
        server = subprocess.Popen(
            ["gdbserver", "--once", "--attach", f"127.0.0.1:{port}", str(self.guest.pid)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port)
            yield port
        finally:
            # It lets go of the guest when its client is gone.
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.terminate()
                server.wait()


class Qemu(Subject):
    """A kernel for real machines in QEMU without KVM; the program is its init."""

    # Of the kernel gdb knows nothing. In the program, syscall() is where each call is made.
    function, calls_others = "syscall", False
    location = "*syscall"
    memory = "0xffffffff81000000"

    def __init__(self, _args, _kernel, scratch):
        self.port = free_port()
        super().__init__(scratch / "getppid", scratch, [
            "qemu-system-x86_64", "-accel", "tcg", "-m", "512M", "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-gdb", f"tcp:127.0.0.1:{self.port}",
            "-kernel", str(real_kernel()), "-initrd", str(initramfs(scratch)),
            "-append", f"console=ttyS0 quiet nokaslr -- {CALLS} for-ever"])


def real_kernel():
    """A kernel for real machines."""
    images = sorted((ROOT / "target/qemu/boot").glob("vmlinuz-*"))
    if not images:
        raise Failed("no kernel for QEMU: run scripts/setup --bench")
    return images[-1]


def initramfs(scratch):
    """A root of nothing but the program as its init."""
    root = scratch / "root"
    (root / "dev").mkdir(parents=True, exist_ok=True)
    shutil.copy(scratch / "getppid", root / "init")
    archive = scratch / "initramfs"
    with open(archive, "wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, stdout=out, check=True,
                       input=b"dev\ninit\n")
    return archive


def measure(make, args, kernel, scratch):
    """One round of one subject."""
    subject = make(args, kernel, scratch)
    try:
        return subject.measure()
    finally:
        subject.end()


def threads(args, kernel, scratch):
    """Seconds of `info threads`, and of how many."""
    with Guest(args.kscope, kernel, scratch, ["-m", "512M"], CROWD.format(tasks=TASKS)) as guest:
        guest.wait_for("crowded")
        script = (CONNECT + THREADS).format(target=guest.dir / "gdb.sock")
        with gdb(kernel, scratch, script) as lines:
            told = lines.until("THREADS")
    return timings(told)["threads"], int(told[-1].split()[1])


def ptrace_floor(scratch):
    """Stops per second of a thread that is only let go on."""
    said = subprocess.run([scratch / "ptrace_floor"], check=True, stdout=subprocess.PIPE,
                          text=True, timeout=DEADLINE)
    return float(said.stdout)


# The unit of each figure; how many times better than gdbserver, or what at most or at least.
FIGURES = {
    "attach": ("s", "at most", 0.3),
    "threads": ("s", "at most", 0.5),
    "running": ("x idle", "at most", 1.03),
    "condition": ("/s", "x gdbserver", 3),
    "... memory": ("/s", "x gdbserver", 3),
    "stepi": ("/s", "x gdbserver", 2),
    "next": ("/s", "x gdbserver", 1.5),
    "dump": ("MB/s", "x gdbserver", 2),
    "... newest": ("MB/s", "x gdbserver", 2),
    "raw": ("MB/s", "at least", 100),
    "lost": ("guests", "at most", 0),
    "(ptrace)": ("/s", None, None),
}


def run(args, scratch):
    """Measures, and prints the table."""
    kernel = args.kernel[0] if args.kernel else kernel_of(args.kscope, "debian:6.12", "debug")
    for program in ("getppid", "ptrace_floor"):
        compile_program(program, scratch)
    subjects = {"kscope": Kscope, "gdbserver": Gdbserver, "qemu": Qemu}
    runs = {name: {figure: [] for figure in FIGURES} for name in subjects}
    counts = []
    for number in range(args.rounds):
        for name, make in subjects.items():
            print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr)
            for figure, value in measure(make, args, kernel, scratch).items():
                runs[name][figure].append(value)
        took, count = threads(args, kernel, scratch)
        runs["kscope"]["threads"].append(took)
        runs["kscope"]["(ptrace)"].append(ptrace_floor(scratch))
        counts.append(count)
    median = {name: {figure: statistics.median(values) for figure, values in figures.items()
                     if values}
              for name, figures in runs.items()}
    print(f"kernel: {kernel}; {counts[0]} threads in `info threads`\n")
    report(median)
    return {"kernel": str(kernel), "threads": counts, "runs": runs, "median": median}


def report(median):
    """The table."""
    print(f"{'':12} {'unit':8} " + " ".join(f"{name:>12}" for name in median)
          + f" {'x gdbserver':>12}  goal")
    for figure, (unit, sense, goal) in FIGURES.items():
        values = [median[name].get(figure) for name in median]
        cells = " ".join(f"{value:12.2f}" if value is not None else f"{'':12}" for value in values)
        own, theirs = (median[name].get(figure) for name in ("kscope", "gdbserver"))
        ratio = None
        if theirs is not None:
            # Of times, less is better.
            ratio = theirs / own if unit in ("s", "x idle") else own / theirs
        text = ""
        if goal is not None:
            met = {"at most": lambda: own <= goal, "at least": lambda: own >= goal,
                   "x gdbserver": lambda: ratio >= goal}[sense]()
            text = f"{sense} {goal}: {'met' if met else 'MISSED'}"
        print(f"{figure:12} {unit:8} {cells} "
              + (f"{ratio:12.2f}" if ratio is not None else f"{'':12}") + f"  {text}")
