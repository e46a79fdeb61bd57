"""What the sections of scripts/bench share."""

import os
import select
import signal
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Seconds that nothing takes unless it hangs.
DEADLINE = 120


class Failed(Exception):
    """A run that did not deliver its figures."""


def compile_program(name, scratch):
    """Compiles NAME.c beside this file; returns the program."""
    program = Path(scratch) / name
    subprocess.run(["gcc", "-O2", "-static", "-o", program, HERE / f"{name}.c"], check=True)
    return program


class Lines:
    """What a process prints, a line at a time, none of which is waited for longer than `DEADLINE`."""

    def __init__(self, proc):
        self.fd = proc.stdout.fileno()
        self.rest = b""
        self.seen = []

    def next(self):
        """The next line; raises when there is none in time."""
        deadline = time.monotonic() + DEADLINE
        while b"\n" not in self.rest:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.fd], [], [], left)[0]:
                raise Failed(f"nothing more within {DEADLINE} s after: {self.told()}")
            piece = os.read(self.fd, 65536)
            if not piece:
                raise Failed(f"the end after: {self.told()}")
            self.rest += piece
        line, self.rest = self.rest.split(b"\n", 1)
        self.seen.append(line.decode(errors="replace"))
        return self.seen[-1]

    def until(self, marker):
        """The lines up to the one that contains `marker`."""
        lines = []
        while not lines or marker not in lines[-1]:
            lines.append(self.next())
        return lines

    def skip(self):
        """Drops what has been printed so far: a pipe keeps thousands of lines."""
        while select.select([self.fd], [], [], 0)[0] and (piece := os.read(self.fd, 65536)):
            self.rest = piece
        self.rest = self.rest[self.rest.rfind(b"\n") + 1:]

    def told(self):
        """The end of what it has printed, for a message."""
        return "\n".join(self.seen[-20:]) + self.rest.decode(errors="replace")


def end(proc):
    """Ends a guest's kernel that runs in a session of its own."""
    proc.terminate()
    try:
        proc.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(proc.pid, signal.SIGKILL)
        proc.wait()


def kernel_of(kscope, source, presets):
    """The kernel that `kscope build` makes, from the cache if it is there."""
    built = subprocess.run([kscope, "build", "--source", source, "--preset", presets],
                           check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.strip().splitlines()[-1])


class Guest:
    """A guest that kscope runs with a shell script; its name is its own, as is where it lives."""

    def __init__(self, kscope, kernel, scratch, options, script):
        self.kscope = kscope
        self.name = "bench"
        self.env = dict(os.environ, XDG_RUNTIME_DIR=str(scratch))
        self.dir = Path(scratch) / "kscope" / self.name
        self.proc = subprocess.Popen(
            [kscope, "run", "--quiet", "--no-gdb", "--name", self.name, "-k", str(kernel),
             *options, "--", "sh", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env,
        )
        self.lines = Lines(self.proc)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.proc.stdin.close()
        self.proc.terminate()
        self.proc.wait()

    def say(self, line):
        """A line for the script."""
        self.proc.stdin.write(line + "\n")
        self.proc.stdin.flush()

    def wait_for(self, marker):
        """Reads what the script prints up to `marker`."""
        self.lines.until(marker)

    def view(self, *verb):
        """What a verb prints."""
        return subprocess.run([self.kscope, *verb], check=True, env=self.env,
                              stdout=subprocess.PIPE, text=True).stdout
