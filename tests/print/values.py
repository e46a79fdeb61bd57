"""Run by gdb on a stopped guest: whether `kscope print` says what gdb says.

Prints a line for every difference, and one with counts at the end.
"""

import re

from linux import cpus, lists

counts = {}
differences = []


def count(what):
    counts[what] = counts.get(what, 0) + 1


def differ(where, ours, theirs):
    differences.append(f"{where}: kscope {ours!r}, gdb {theirs!r}")


def check(where, ours, theirs):
    if ours != theirs:
        differ(where, ours, theirs)


def pointer(where, ours, value):
    addr = int(value) & (2**64 - 1)
    if ours is None or addr == 0:
        count("null")
        return check(where, ours, None if addr == 0 else hex(addr))
    check(where, ours["addr"], hex(addr))
    if "symbol" in ours:
        count("symbol")
        known = gdb.execute(f"info symbol {addr}", to_string=True)
        told = re.match(r"(\S+)(?: \+ (\d+))? in section", known)
        theirs = told and (told.group(1), int(told.group(2) or 0))
        # What has several names: kscope's is at the same place.
        if theirs != (ours["symbol"], ours["offset"]):
            start = int(gdb.parse_and_eval(f"(unsigned long)&{ours['symbol']}"))
            check(where, start + ours["offset"], addr)
    if "text" in ours:
        count("text")
        check(where, ours["text"], value.string("utf-8", "replace"))


def members(value):
    """The members of a struct, those of anonymous members among them."""
    found = {}
    for field in value.type.strip_typedefs().fields():
        if field.name:
            found[field.name] = value[field]
        else:
            found.update(members(value[field]))
    return found


def compare(where, ours, value):
    """What of `ours` is not what gdb has."""
    ty = value.type.strip_typedefs()
    if ours == "...":
        count("elided")
    elif ty.code == gdb.TYPE_CODE_PTR:
        count("pointer")
        pointer(where, ours, value)
    elif ty.code == gdb.TYPE_CODE_FUNC:
        count("function")
        pointer(where, ours, value.address)
    elif ty.code == gdb.TYPE_CODE_BOOL:
        count("bool")
        check(where, ours, bool(value))
    elif ty.code == gdb.TYPE_CODE_ENUM:
        count("enum")
        names = [field.name for field in ty.fields() if field.enumval == int(value)]
        if ours not in names:
            check(where, ours, int(value))
    elif ty.code == gdb.TYPE_CODE_ARRAY and ty.sizeof == 0:
        # Of flexible arrays, and arrays of nothing, gdb does not know the elements.
        count("nothing")
    elif ty.code == gdb.TYPE_CODE_ARRAY:
        if isinstance(ours, str):
            count("string")
            return check(where, ours, value.string("utf-8", "replace"))
        count("array")
        first, last = ty.range()
        check(f"len of {where}", len(ours), min(last - first + 1, 200))
        for at, one in zip(range(first, last + 1), ours):
            compare(f"{where}[{at}]", one, value[at])
    elif ty.code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
        count("struct")
        theirs = members(value)
        check(f"members of {where}", sorted(ours), sorted(theirs))
        for field in ty.fields():
            if field.name and field.bitsize:
                count("bitfield")
        for name in ours.keys() & theirs.keys():
            compare(f"{where}.{name}", ours[name], theirs[name])
    else:
        count("number")
        check(where, ours, int(value))


def kscope(expression):
    try:
        return view("print", "--raw", "--depth", "4", expression)
    except subprocess.CalledProcessError as error:
        differ(expression, f"exit code {error.returncode}", "a value")
        return None


def expression(ours, theirs=None):
    theirs = theirs or ours
    seen = kscope(ours)
    if seen is None:
        return
    count("expression")
    try:
        value = gdb.parse_and_eval(theirs)
        compare(ours, seen["value"], value)
    except gdb.error as error:
        return differ(ours, seen["value"], str(error))
    # Of a cast gdb knows the address of what was cast.
    if value.address is not None and not ours.startswith("("):
        check(f"address of {ours}", seen["addr"], hex(int(value.address)))
    # `whatis` does not call the scripts' functions.
    if "$" in theirs:
        gdb.set_convenience_variable("it", value)
        theirs = "$it"
    whatis = gdb.execute(f"whatis {theirs}", to_string=True).strip()
    whatis = whatis.removeprefix("type = ")
    # It keeps the words of a cast, where DWARF has others; its sizeof is an int.
    # Where its index leads to a declaration, it has no length of an array.
    if "sizeof" not in ours and not whatis.endswith("[]"):
        check(f"type of {ours}", seen["type"], {"long": "long int"}.get(whatis, whatis))


def elements(ours, head, ty, link, member):
    """A list against what the kernel's own gdb scripts find in it."""
    seen = kscope(ours)
    if seen is None:
        return
    count("list")
    head = gdb.parse_and_eval(head)
    theirs = lists.list_for_each_entry(head, gdb.lookup_type(ty).pointer(), link)
    theirs = [entry[member] for entry in theirs][:200]
    check(f"len of {ours}", len(seen["elements"]), len(theirs))
    for at, (one, value) in enumerate(zip(seen["elements"], theirs)):
        count("element")
        compare(f"{ours}[{at}]", one["value"], value)


gdb.execute("set max-value-size unlimited")
for one in EXPRESSIONS:
    expression(one)
for cpu in range(CPUS):
    for variable in PER_CPU:
        name, _, rest = variable.partition("|")
        # What $lx_per_cpu of the kernel's scripts is, whose arguments are others in 6.1.
        place = cpus.per_cpu(gdb.parse_and_eval(f"&{name}"), cpu)
        is_pointer = place.type.code == gdb.TYPE_CODE_PTR
        gdb.set_convenience_variable("place", place if is_pointer else place.address)
        expression(f"$per_cpu({name}, {cpu}){rest}", f"(*$place){rest}")
for one in ("comm", "pid"):
    elements(f"list(init_task.tasks)->{one}", "init_task.tasks", "struct task_struct", "tasks", one)
    elements(
        f"list(init_task.children, struct task_struct, sibling)->{one}",
        "init_task.children", "struct task_struct", "sibling", one,
    )
elements(
    "list(slab_caches, struct kmem_cache, list)->name",
    "slab_caches", "struct kmem_cache", "list", "name",
)
elements(
    "list(super_blocks, struct super_block, s_list)->s_id",
    "super_blocks", "struct super_block", "s_list", "s_id",
)
print(json.dumps({"counts": counts, "differences": differences}))
