"""What the sections of scripts/bench share."""

import os
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


def read_until(proc, marker, collected):
    """Reads lines of `proc` up to the one that contains `marker`."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        line = proc.stdout.readline()
        if not line:
            break
        collected.append(line)
        if marker in line:
            return
    raise Failed(f"no `{marker}` in: {''.join(collected[-20:])}")


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
        read_until(self.proc, marker, [])

    def view(self, *verb):
        """What a verb prints."""
        return subprocess.run([self.kscope, *verb], check=True, env=self.env,
                              stdout=subprocess.PIPE, text=True).stdout
