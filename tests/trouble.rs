//! Trouble stops a guest that gdb is connected to, with nothing set up.

mod common;

use common::programs::{Built, module};
use common::session::Session;
use common::{TestKernel, kernels};

/// In the guest: waits for gdb's sign.
const SIGN: &str = "until [ $(cat /proc/sys/kernel/panic_on_oops) = 77 ]; do sleep 0.1; done";

/// In gdb: gives the sign, and lets the guest run until it stops by itself.
const GO: &str = "
gdb.execute('set var panic_on_oops = 77')
print(gdb.execute('continue', to_string=True))
print(gdb.execute('bt', to_string=True))
print('thread', gdb.selected_thread().name)
";

/// Causes trouble in a guest that gdb is connected to; returns what gdb says. `prepare` is Python
/// for gdb.
fn cause(guest: &mut Session, prepare: &str, command: &str) -> String {
    guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
    guest.begin(&format!("{SIGN}; {command}"));
    guest.gdb_python(&format!("{prepare}{GO}"))
}

/// Loads the module (finit_module(2) is 313), whose load fails when there was no fatal trouble.
fn load(module: &Built, kind: &str) -> String {
    let file = module.path("kscope_trouble.ko");
    let file = file.display();
    format!("perl -e 'open F, q({file}); $with = q(kind={kind}); syscall 313, fileno F, $with, 0'")
}

#[track_caller]
fn contains(kernel: &str, said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{kernel}: no {part:?}: {said}");
    }
}

#[test]
fn a_kernel_that_ends_stops_before_its_evidence_is_gone() {
    for kernel in kernels() {
        let module = module("trouble", &kernel.path);
        for (kind, parts) in [
            (
                "panic",
                &[
                    "kscope: stopped on panic:",
                    "Kernel panic: kscope panics: panic, -42, 0x1234567890",
                ][..],
            ),
            (
                "bug",
                &[
                    "kscope: stopped on bug:",
                    "BUG: failure at ",
                    "kscope_trouble.c:",
                ],
            ),
            (
                "oops",
                &["kscope: stopped on panic:", "Kernel panic: Kernel "],
            ),
        ] {
            let mut guest = Session::start(kernel, &[]);
            let said = cause(&mut guest, "", &load(&module, kind));
            contains(kernel.name, &said, parts);
            // What a client that goes on is told will come.
            let next = "`continue` lets it, and stops once more at the SIGABRT by which it ends";
            contains(kernel.name, &said, &[next]);
            contains(
                kernel.name,
                &said,
                &["SIGTRAP", "do_one_initcall", "thread perl"],
            );
            let top = said.lines().find(|line| line.starts_with("#0"));
            let top = top.unwrap_or_else(|| panic!("{}: {said}", kernel.name));
            assert!(top.contains("panic (fmt="), "{}: {said}", kernel.name);
            guest.kill();
        }
    }
}

#[test]
fn what_is_asked_for_stops_too() {
    for kernel in kernels() {
        let module = module("trouble", &kernel.path);
        let mut guest = Session::start(kernel, &["-m", "96M"]);
        let name = kernel.name;
        let said = cause(
            &mut guest,
            "print(gdb.execute('monitor stop-on warn,oom', to_string=True))\n\
             print(gdb.execute('monitor stop-on hung-task kasan', to_string=True))\n\
             print(gdb.execute('monitor stop-on nonsense', to_string=True))\n",
            &load(&module, "warn"),
        );
        let parts = [
            "stops on panic, bug, warn, oom\n",
            "this kernel never reports kasan: it has no CONFIG_KASAN",
            "no such kind of trouble: nonsense",
            "kscope: stopped on warn:",
            "kscope warns of warn 42",
            "warn_slowpath_fmt",
            "thread perl",
        ];
        contains(name, &said, &parts);
        guest.end();

        // What is not asked for goes by, and so does what only a program says.
        let said = cause(
            &mut guest,
            "gdb.execute('monitor stop-on none oom bug')\n",
            &format!(
                "echo 'BUG: none' >/dev/kmsg; {}; tail /dev/zero",
                load(&module, "warn")
            ),
        );
        let parts = [
            "kscope: stopped on oom:",
            "invoked oom-killer: ",
            "out_of_memory",
        ];
        contains(name, &said, &parts);
        assert_eq!(said.matches("stopped on").count(), 1, "{name}: {said}");
        guest.end();

        // A breakpoint of the client's at such a place does not hide trouble.
        let said = cause(
            &mut guest,
            "gdb.execute('monitor stop-on none warn')\n\
             gdb.execute('break *dump_stack_lvl if $rdi == 1')\n",
            &load(&module, "warn"),
        );
        contains(name, &said, &["kscope: stopped on warn:", "thread perl"]);
        guest.end();

        guest.ask("echo 1 >/proc/sys/kernel/hung_task_timeout_secs");
        let said = cause(
            &mut guest,
            "gdb.execute('monitor stop-on none hung-task')\n",
            &format!("{} & true", load(&module, "hung-task")),
        );
        let parts = [
            "kscope: stopped on hung-task:",
            "perl:",
            "blocked for more than",
            "mutex_lock",
            "do_one_initcall",
            "thread perl",
        ];
        contains(name, &said, &parts);
        guest.end();
        // Nothing is left behind.
        assert_eq!(guest.ask("echo well"), "well\n");
        guest.kill();
    }
}

/// Whether a kernel was built with an option.
fn has(kernel: &TestKernel, option: &str) -> bool {
    let config = kernel.path.with_file_name(".config");
    let config = std::fs::read_to_string(config).expect("a configuration");
    config.lines().any(|line| line == format!("{option}=y"))
}

#[test]
fn stalls_races_for_locks_and_bad_accesses_stop_where_they_are_reported() {
    for kernel in kernels() {
        let module = module("trouble", &kernel.path);
        let name = kernel.name;
        let timeout = ["-a", "rcupdate.rcu_cpu_stall_timeout=3"];
        let mut guest = Session::start(kernel, &timeout);
        for (kind, option, at, message) in [
            (
                "rcu-stall",
                "CONFIG_TREE_RCU",
                "kscope_trouble_spin",
                "detected stall",
            ),
            (
                "lockdep",
                "CONFIG_PROVE_LOCKING",
                "kscope_trouble_lock",
                "possible circular locking dependency detected",
            ),
            (
                "kasan",
                "CONFIG_KASAN",
                "kscope_trouble_write",
                "BUG: KASAN: slab-out-of-bounds in kscope_trouble_write",
            ),
        ] {
            let prepare = format!("print(gdb.execute('monitor stop-on {kind}', to_string=True))\n");
            if !has(kernel, option) {
                let said = guest.gdb_python(&format!("{prepare}gdb.execute('detach')\n"));
                let note = format!("this kernel never reports {kind}: it has no {option}");
                contains(name, &said, &[&note]);
                continue;
            }
            // Grace periods are waited for all the time.
            guest.ask("(for n in $(seq 1000); do true | true; sleep 0.05; done) >/dev/null & true");
            guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
            guest.begin(&format!("{SIGN}; {}", load(&module, kind)));
            let said = guest.gdb_python(&format!(
                "{prepare}{GO}
if '{kind}' == 'rcu-stall':
    gdb.execute('set var kscope_trouble_lasts = 0')
gdb.execute('detach')
"
            ));
            let stopped = format!("kscope: stopped on {kind}:");
            contains(name, &said, &[&stopped, message, at, "thread perl"]);
            guest.end();
        }
        assert_eq!(guest.ask("echo well"), "well\n", "{name}");
        guest.kill();
    }
}
