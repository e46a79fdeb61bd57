"""What it costs to run a kernel under kscope, beside its peers.

Every figure is the median of interleaved rounds on the same machine, and what
counts are the ratios: absolute times change with the machine and its load.

Measured, each under kscope unattached, kscope with gdb attached and the guest
running, bare `./linux`, and `./linux` under `gdbserver --attach`:

    syscall   nanoseconds per getppid() in the guest
    compile   seconds for five `gcc -c` in the guest
    boot      seconds from start to the first command (kscope and bare only)
"""

import os
import shutil
import statistics
import subprocess
import sys
import time

from common import DEADLINE, HERE, Failed, Lines, compile_program, end, kernel_of

TOOLS = ("gcc", "gdb", "gdbserver", "setarch", "busybox")

# Run by a shell in the guest; it starts when a line arrives on stdin, so that a
# debugger has time to attach first, and prints its own measurements.
WORKLOAD = """\
read _
export TMPDIR=$1
echo "syscall $({dir}/getppid 50000)"
a=$(date +%s%N)
for i in 1 2 3 4 5; do gcc -O2 -c {src} -o $TMPDIR/bench.o || echo compile-failed; done
b=$(date +%s%N)
echo "compile $(( (b - a) / 1000 ))"
echo "end of workload"
"""

BARE_INIT = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
echo "ready"
sh {dir}/workload.sh /mnt
echo 0 >/proc/exitcode
{poweroff}
"""

def bare_command(kernel, scratch, init, umid):
    return [
        "setarch", "-R", str(kernel), "mem=512M", f"uml_dir={scratch}", f"umid={umid}",
        "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}",
        "con=null", "con0=fd:0,fd:1", "quiet",
    ]


def figures(lines):
    found = {}
    for line in lines:
        words = line.split()
        for i, word in enumerate(words[:-1]):
            if word in ("syscall", "compile") and words[i + 1].isdigit():
                found[word] = int(words[i + 1])
    if set(found) != {"syscall", "compile"}:
        raise Failed("figures missing in: " + "\n".join(lines[-20:]))
    return {"syscall": found["syscall"], "compile": found["compile"] / 1e6}


def run_workload(command, attach=None):
    """Starts a guest, lets `attach(proc)` connect a debugger, runs the workload."""
    proc = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )
    helpers = []
    lines = Lines(proc)
    try:
        lines.until("ready")
        if attach:
            helpers = attach(proc)
            time.sleep(2)
        proc.stdin.write("go\n")
        proc.stdin.flush()
        return figures(lines.until("end of workload"))
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
        end(proc)


def gdb(port):
    return subprocess.Popen(
        ["gdb", "-nx", "-q", "-batch", "-ex", "set confirm off",
         "-ex", "handle all nostop noprint pass",
         "-ex", f"target remote 127.0.0.1:{port}", "-ex", "continue"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )


def attach_gdbserver(port):
    def attach(proc):
        server = subprocess.Popen(
            ["gdbserver", "--once", "--attach", f"127.0.0.1:{port}", str(proc.pid)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        time.sleep(1)
        return [gdb(port), server]
    return attach


def seconds(command):
    start = time.monotonic()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, timeout=DEADLINE, check=True)
    return time.monotonic() - start


def run(args, scratch):
    """Measures, and prints the table."""
    kernel = args.kernel[0] if args.kernel else kernel_of(args.kscope, "debian:6.12", "debug")
    compile_program("getppid", scratch)
    shutil.copy(HERE / "compiled.c", scratch / "compiled.c")
    (scratch / "workload.sh").write_text(
        WORKLOAD.format(dir=scratch, src=scratch / "compiled.c"))
    poweroff = "busybox poweroff -f"
    init = scratch / "init.sh"
    init.write_text(BARE_INIT.format(dir=scratch, poweroff=poweroff))
    init.chmod(0o755)
    boot_init = scratch / "boot.sh"
    boot_init.write_text("#!/bin/sh\n/bin/true\n" + poweroff + "\n")
    boot_init.chmod(0o755)

    # A port nobody else uses: the debugger is told, not left to guess.
    port = 20000 + os.getpid() % 20000
    kscope = [args.kscope, "run", "--quiet", "-k", str(kernel), "-m", "512M"]
    inside = ["--", "sh", "-c", f"echo ready; exec sh {scratch}/workload.sh /tmp"]
    subjects = {
        "kscope": lambda: run_workload(kscope + ["--no-gdb"] + inside),
        "kscope+gdb": lambda: run_workload(
            kscope + ["--gdb", f"127.0.0.1:{port}"] + inside, lambda _: [gdb(port)]),
        "bare": lambda: run_workload(bare_command(kernel, scratch, init, "bare")),
        "bare+gdbserver": lambda: run_workload(
            bare_command(kernel, scratch, init, "served"), attach_gdbserver(port + 1)),
    }
    results = {name: {"syscall": [], "compile": []} for name in subjects}
    boots = {"kscope": [], "bare": []}
    for round_number in range(args.rounds):
        print(f"round {round_number + 1}/{args.rounds}", file=sys.stderr)
        for name, subject in subjects.items():
            for figure, value in subject().items():
                results[name][figure].append(value)
        boots["kscope"].append(seconds(kscope + ["--no-gdb", "--", "true"]))
        boots["bare"].append(seconds(bare_command(kernel, scratch, boot_init, "boot")))
    return report(results, boots, kernel)


def report(results, boots, kernel):
    median = {name: {f: statistics.median(v) for f, v in figures.items()}
              for name, figures in results.items()}
    boot = {name: statistics.median(v) for name, v in boots.items()}
    base = median["kscope"]
    print(f"kernel: {kernel}\n")
    print(f"{'':16} {'getppid ns':>12} {'x kscope':>9} {'compile s':>11} {'x kscope':>9}")
    for name, row in median.items():
        print(f"{name:16} {row['syscall']:12.0f} {row['syscall'] / base['syscall']:9.2f} "
              f"{row['compile']:11.2f} {row['compile'] / base['compile']:9.2f}")
    print(f"\nboot to power-off: kscope {boot['kscope'] * 1000:.0f} ms, "
          f"bare {boot['bare'] * 1000:.0f} ms, "
          f"difference {(boot['kscope'] - boot['bare']) * 1000:+.0f} ms")
    return {"kernel": str(kernel), "runs": results, "boots": boots,
            "median": median, "boot_median": boot}
