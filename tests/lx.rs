//! The kernel's own gdb scripts, `lx-ps` and its like: what works on a machine works here.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::programs::module;
use common::session::Session;
use common::{TestKernel, kernels};
use serde_json::Value;

/// What cannot work, and what is said then: the kernel has nothing of the kind, was built without
/// it, or has scripts that are older than itself.
const CANNOT: [(&str, &[&str]); 9] = [
    // kthreadd.
    ("user-regs 2", &["is a thread of the kernel's own"]),
    // User Mode Linux has no clocks, power domains and device trees.
    ("lx-clk-summary", &["No clocks registered"]),
    ("lx-genpd-summary", &["No power domain(s) registered"]),
    ("lx-fdtdump", &["Kernel not compiled with CONFIG_OF"]),
    // What the debug preset leaves out.
    ("lx-dump-page-owner", &["CONFIG_PAGE_OWNER does not enable"]),
    (
        "lx-slabtrace",
        &["SLAB_STORE_USER is not set", "CONFIG_SLUB_DEBUG"],
    ),
    // Members that these kernels have under other names.
    ("lx-stack_depot_lookup", &["no member named pool_index"]),
    (
        "lx-timerlist",
        &["no member named next", "no member named state"],
    ),
    // A kernel for one CPU has no variable with the number of nodes.
    ("lx-vmallocinfo", &["optimized out"]),
];

/// Commands that have their own idea of an argument, and are only seen to answer.
const ANSWERS: [&str; 2] = ["lx-radix-tree", "lx-symbols"];

/// Functions that every kernel's scripts have.
const FUNCTIONS: [&str; 8] = [
    "$lx_current().pid",
    "$lx_task_by_pid(1).pid",
    "$lx_thread_info($lx_task_by_pid(1)).preempt_count",
    "$lx_thread_info_by_pid(1).preempt_count",
    "$container_of(init_task.tasks.next, \"struct task_struct\", \"tasks\").pid",
    "$lx_module(\"kscope_visits\").refcnt.counter",
    "$user_regs(\"rip\", 1)",
    "$user_regs(\"rsp\", 1)",
];

/// How every command and function went. `directory` has the module's file.
fn run(kernel: &TestKernel, guest: &Session, directory: &Path) -> BTreeMap<String, Value> {
    let mut functions = FUNCTIONS.to_vec();
    // Up to 6.1 it wants a name.
    functions.push(match kernel.name {
        "6.1" => "$lx_per_cpu(\"runqueues\").nr_running",
        _ => "$lx_per_cpu(runqueues).nr_running",
    });
    let script = include_str!("lx.py");
    let said = guest.gdb_python(&format!(
        "directory = '{0}'\nfunctions = {functions:?}\n\
         gdb.execute('lx-symbols {0}', to_string=True)\n{script}",
        directory.display()
    ));
    let seen = said.lines().find_map(|line| line.strip_prefix("seen "));
    let seen = seen.unwrap_or_else(|| panic!("{}: {said}", kernel.name));
    serde_json::from_str(seen).expect("JSON")
}

#[test]
fn every_lx_command_works_or_says_what_is_missing() {
    for kernel in kernels() {
        let name = kernel.name;
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        let file = module.path("kscope_visits.ko");
        let begun = guest.ask(&format!(
            "perl -e 'open F, q({}); $with = q(); syscall(313, fileno F, $with, 0) == 0 or die $!'",
            file.display()
        ));
        assert_eq!(begun, "", "{name}");
        let seen = run(kernel, &guest, &module.path(""));
        assert!(seen.len() > 25, "{name}: {seen:?}");
        let said = |what: &str| {
            seen.get(what)
                .and_then(|it| it["said"].as_str())
                .unwrap_or_default()
        };
        for (what, outcome) in &seen {
            let text = outcome["said"].as_str().unwrap_or_default();
            let cannot = CANNOT.iter().find(|(command, _)| command == what);
            if outcome["ok"] == true || ANSWERS.contains(&what.as_str()) {
                continue;
            }
            let excused = cannot
                .is_some_and(|(_, reasons)| reasons.iter().any(|reason| text.contains(reason)));
            assert!(excused, "{name}: {what}: {text}");
        }
        // What they say is what the guest says of itself.
        let release = guest.ask("uname -r");
        assert!(said("lx-version").contains(release.trim()), "{name}");
        assert_eq!(
            said("lx-cmdline").trim(),
            guest.ask("cat /proc/cmdline").trim(),
            "{name}"
        );
        assert!(said("lx-dmesg").contains("Linux version"), "{name}");
        assert!(said("lx-lsmod").contains("kscope_visits"), "{name}");
        for task in ["init", "kthreadd", "sh"] {
            assert!(
                said("lx-ps").lines().any(|line| line.ends_with(task)),
                "{name}: {}",
                said("lx-ps")
            );
        }
        assert!(
            said("lx-mounts").contains("overlay"),
            "{name}: {}",
            said("lx-mounts")
        );
        assert_eq!(
            said("lx-iomem").lines().count(),
            guest.ask("cat /proc/iomem").lines().count(),
            "{name}"
        );
        assert_eq!(said("$lx_task_by_pid(1).pid"), "1", "{name}");
        assert_eq!(
            said("$container_of(init_task.tasks.next, \"struct task_struct\", \"tasks\").pid"),
            "1"
        );
        assert!(
            said("user-bt 1").contains("-- program --"),
            "{name}: {}",
            said("user-bt 1")
        );
        let registers = said("user-regs 1");
        let rip = said("$user_regs(\"rip\", 1)")
            .parse::<u64>()
            .map(|rip| format!("{rip:#x}"));
        let line = registers.lines().find(|line| line.starts_with("rip "));
        assert_eq!(
            line.map(|line| line.split_whitespace().last()),
            Some(rip.as_deref().ok()),
            "{name}: {registers}"
        );
        assert_eq!(seen["user-regs 2"]["ok"], false, "{name}");
        let cpus = format!(
            "Online CPUs   : {:?}",
            (0..kernel.cpus()).collect::<Vec<_>>()
        );
        assert!(
            said("lx-cpus").contains(&cpus),
            "{name}: {}",
            said("lx-cpus")
        );
        // A page's number and its addresses belong together.
        if seen.contains_key("lx-page_to_pfn") {
            let page = said("page");
            assert_eq!(
                said("lx-page_to_pfn").trim(),
                format!("page_to_pfn({page}) = 0x10"),
                "{name}"
            );
            assert_eq!(
                said("lx-pfn_to_page").trim(),
                format!("pfn_to_page(0x10) = {page}"),
                "{name}"
            );
            assert!(
                said("lx-slabinfo").contains("dentry"),
                "{name}: {}",
                said("lx-slabinfo")
            );
        }
        guest.kill();
    }
}
