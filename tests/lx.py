# Runs every lx- command and function of the kernel's own scripts, and says how it went.
import re

page = hex(int(gdb.parse_and_eval("mem_map")) + 16 * gdb.lookup_type("struct page").sizeof)
symbol = hex(int(gdb.parse_and_eval("&init_task")))
arguments = {
    "lx-configdump": directory + "/config",
    "lx-device-list-bus": "platform",
    "lx-device-list-class": "block",
    "lx-device-list-tree": "&platform_bus",
    "lx-fdtdump": directory + "/dtb",
    "lx-getmod-by-textaddr": hex(int(gdb.parse_and_eval("&kscope_visits_poke"))),
    "lx-list-check": "&modules",
    "lx-page_address": page,
    "lx-page_to_pfn": page,
    "lx-page_to_phys": page,
    "lx-pfn_to_kaddr": "16",
    "lx-pfn_to_page": "16",
    "lx-radix-tree": "&init_task",
    "lx-slabtrace": "--cache_name dentry",
    "lx-stack_depot_lookup": "1",
    "lx-sym_to_pfn": symbol,
    "lx-virt_to_page": symbol,
    "lx-virt_to_phys": symbol,
}


def attempt(what, run):
    try:
        return {"ok": True, "said": str(run())}
    except (gdb.error, gdb.MemoryError) as error:
        return {"ok": False, "said": str(error)}


seen = {}
for command in re.findall(r"^(lx-[\w-]+)", gdb.execute("apropos lx-", to_string=True), re.M):
    words = command + " " + arguments.get(command, "")
    seen[command] = attempt(command, lambda: gdb.execute(words, to_string=True))
for function in functions:
    seen[function] = attempt(function, lambda: gdb.parse_and_eval(function))
for command in ("user-bt 1", "user-regs 1", "user-regs 2"):
    seen[command] = attempt(command, lambda: gdb.execute(command, to_string=True))
seen["page"] = {"ok": True, "said": page}
print("seen", json.dumps(seen))
