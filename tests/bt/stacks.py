"""Run by gdb on a stopped guest: what gdb and kscope say of every task's stack.

KSCOPE is the command line that prints kscope's view as JSON, and OUT a directory.
"""

import json
import os
import subprocess

import gdb

MAX_FRAMES = 300

NUMBERS = (
    gdb.TYPE_CODE_INT,
    gdb.TYPE_CODE_PTR,
    gdb.TYPE_CODE_ENUM,
    gdb.TYPE_CODE_BOOL,
    gdb.TYPE_CODE_CHAR,
)


def number(value):
    """The bits of a number; None for what is none."""
    ty = value.type.strip_typedefs()
    if ty.code not in NUMBERS or value.is_optimized_out:
        return None
    return int(value) & ((1 << ty.sizeof * 8) - 1)


def is_misread(frame, symbol):
    """Whether gdb looks for the value in the wrong place: it takes the entry value of a function
    that was inlined from the call of the function that it was inlined into."""
    if frame.type() != gdb.INLINE_FRAME:
        return False
    frame.select()
    place = gdb.execute(f"info address {symbol.name}", to_string=True)
    return "DW_OP_entry_value" in place


def variables(frame):
    """Arguments and local variables: each a name and a number, or None without one."""
    found = {"arguments": [], "locals": []}
    try:
        block = frame.block()
    except RuntimeError:
        return found
    while block is not None and not block.is_global and not block.is_static:
        for symbol in block:
            if not (symbol.is_argument or symbol.is_variable):
                continue
            try:
                value = frame.read_var(symbol, block)
                optimized = value.is_optimized_out
                value = number(value)
                if value is not None and is_misread(frame, symbol):
                    value = None
            except (gdb.error, ValueError):
                optimized, value = True, None
            kind = "arguments" if symbol.is_argument else "locals"
            size = symbol.type.strip_typedefs().sizeof
            found[kind].append([symbol.name, value, optimized, size])
        if block.function is not None:
            break
        block = block.superblock
    return found


def stack():
    frames = []
    frame = gdb.newest_frame()
    while frame is not None and len(frames) < MAX_FRAMES:
        sal = frame.find_sal()
        frames.append(
            {
                "name": frame.name(),
                "pc": frame.pc(),
                "line": sal.line or None,
                "file": os.path.normpath(sal.symtab.filename) if sal.symtab else None,
                "signal": frame.type() == gdb.SIGTRAMP_FRAME,
                **variables(frame),
            }
        )
        try:
            frame = frame.older()
        except gdb.error:
            break
    return frames


def look(name):
    """Writes both views to OUT/name.json."""
    threads = {}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        # The remote protocol's thread id is a task's pid.
        threads[thread.ptid[1] or thread.ptid[2]] = stack()
    ours = subprocess.run(KSCOPE, stdout=subprocess.PIPE, check=False)
    both = {"gdb": threads, "code": ours.returncode, "kscope": json.loads(ours.stdout)}
    with open(f"{OUT}/{name}.json", "w", encoding="utf-8") as file:
        json.dump(both, file)


gdb.execute("set pagination off")
gdb.execute("set confirm off")
look("stopped")
# Amid the handling of an interrupt. One that comes while a program runs is taken where the kernel
# waits for the program, and interrupts nothing.
for _ in range(200):
    gdb.execute("tbreak um_timer")
    gdb.execute("continue")
    frame = gdb.newest_frame()
    while frame is not None and frame.type() != gdb.SIGTRAMP_FRAME:
        frame = frame.older()
    if frame is not None:
        break
look("interrupt")
gdb.execute("detach")
