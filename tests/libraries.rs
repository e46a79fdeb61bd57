//! gdb and the guest's modules: they are libraries to it, with nothing set up.

mod common;

use common::programs::{Built, module};
use common::session::Session;
use common::{TestKernel, kernels};

/// In the guest: waits for gdb's sign.
const SIGN: &str = "until [ $(cat /proc/sys/kernel/panic_on_oops) = 77 ]; do sleep 0.1; done";

/// In the guest: loads the module (finit_module(2) is 313).
fn load(module: &Built) -> String {
    let file = module.path("kscope_visits.ko");
    format!(
        "perl -e 'open F, q({}); $with = q(); syscall(313, fileno F, $with, 0) == 0 or die $!'",
        file.display()
    )
}

/// In the guest: has the module do something.
const POKE: &str = "echo 2 >/sys/module/kscope_visits/parameters/poke; \
                    cat /sys/module/kscope_visits/parameters/poke";

/// In the guest: unloads the module (delete_module(2) is 176).
const UNLOAD: &str = "perl -e '$name = q(kscope_visits); syscall(176, $name, 0) == 0 or die $!'";

#[track_caller]
fn contains(kernel: &TestKernel, said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{}: no {part:?}: {said}", kernel.name);
    }
}

/// gdb's functions for the tests below.
const PYTHON: &str = "
def say(*words):
    print('said', *words, flush=True)
def go():
    return gdb.execute('continue', to_string=True)
def where():
    frame = gdb.selected_frame()
    sal = frame.find_sal()
    say(frame.name(), sal.symtab.filename.split('/')[-1] if sal.symtab else None, sal.line > 0)
def value(expression):
    say(expression, gdb.parse_and_eval(expression))
gdb.execute('set breakpoint pending on')
";

#[test]
fn pending_breakpoints_are_hit_in_modules_each_time_they_are_loaded() {
    for kernel in kernels() {
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
        let visit = format!("{}; {POKE}; {UNLOAD}", load(&module));
        guest.begin(&format!(
            "{SIGN}; {visit}; {visit}; cat /proc/version >/dev/null"
        ));
        let said = guest.gdb_python(&format!(
            "{PYTHON}
for name in ('init', 'poke', 'exit'):
    gdb.execute('break kscope_visits_' + name)
gdb.execute('set var panic_on_oops = 77')
for visit in range(2):
    print(go()); where(); value('kscope_visits_count')
    say('libraries', gdb.execute('info sharedlibrary', to_string=True))
    say('caller', gdb.selected_frame().older().name())
    print(go()); where(); value('amount'); value('kscope_visits_count')
    gdb.execute('next'); where(); value('kscope_visits_count')
    gdb.execute('finish'); where()
    print(go()); where(); value('kscope_visits_count')
gdb.execute('delete')
gdb.execute('break vfs_read')
print(go()); where()
say('libraries', gdb.execute('info sharedlibrary', to_string=True))
gdb.execute('detach')
"
        ));
        contains(
            kernel,
            &said,
            &[
                "said kscope_visits_init kscope_visits.c True",
                "said kscope_visits_count 40",
                "said caller do_one_initcall",
                "said kscope_visits_poke kscope_visits.c True",
                "said amount 2",
                "said kscope_visits_count 41",
                "said kscope_visits_count 43",
                "said kscope_visits_set kscope_visits.c True",
                "said kscope_visits_exit kscope_visits.c True",
                "said vfs_read",
                "/kscope_visits.ko",
                "libc.so.6",
            ],
        );
        for twice in ["said kscope_visits_init ", "said kscope_visits_exit "] {
            assert_eq!(said.matches(twice).count(), 2, "{}: {said}", kernel.name);
        }
        let last = said.rsplit("said libraries").next().unwrap_or_default();
        assert!(!last.contains(".ko"), "{}: {last}", kernel.name);
        assert_eq!(guest.end().trim(), "43\n43", "{}", kernel.name);
        guest.kill();
    }
}

#[test]
fn modules_that_were_there_before_are_found_where_the_user_says() {
    for kernel in kernels() {
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        let load = load(&module);
        guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
        assert_eq!(guest.ask(&format!("{load}; {POKE}")), "43\n");
        guest.begin(&format!("{SIGN}; {POKE}; {UNLOAD}; {load}; {POKE}"));
        let directory = module.path("");
        let said = guest.gdb_python(&format!(
            "{PYTHON}
say('before', gdb.execute('info sharedlibrary', to_string=True))
print(gdb.execute('monitor module-path {directory}', to_string=True))
gdb.execute('sharedlibrary')
# Its memory has been freed: there is nothing to stop at until it is loaded again.
gdb.execute('break kscope_visits_init')
gdb.execute('break kscope_visits_poke if amount == 2')
gdb.execute('set var panic_on_oops = 77')
print(go()); where(); value('kscope_visits_count')
# The same place is watched for the libraries' sake.
gdb.execute('break *do_init_module if $rdi != 0')
print(go()); where(); value('((struct module *) $rdi)->name')
print(go()); where(); value('kscope_visits_count')
print(go()); where(); value('kscope_visits_count')
gdb.execute('detach')
",
            directory = directory.display()
        ));
        contains(
            kernel,
            &said,
            &[
                // What the kernel keeps of it: no lines.
                "Yes (*)     ",
                "kscope_visits: symbols\n",
                "said kscope_visits_poke kscope_visits.c True\nsaid kscope_visits_count 43",
                "said do_init_module ",
                "\"kscope_visits\"",
                "said kscope_visits_init kscope_visits.c True\nsaid kscope_visits_count 40",
                "said kscope_visits_poke kscope_visits.c True\nsaid kscope_visits_count 41",
            ],
        );
        assert_eq!(guest.end(), "45\n43\n", "{}", kernel.name);
        // Nothing of it is left when the debugger is gone.
        let left = guest.place().path().join("kscope/asked/modules");
        assert!(!left.exists(), "{}", left.display());
        assert_eq!(guest.ask(&format!("{UNLOAD}; {load}; {POKE}")), "43\n");
    }
}

#[test]
fn a_step_that_ends_where_modules_are_watched_goes_no_further() {
    for kernel in kernels() {
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
        let load = load(&module);
        guest.begin(&format!("{SIGN}; {load}; {UNLOAD}; {load}; {POKE}"));
        let said = guest.gdb_python(&format!(
            "{PYTHON}
code = gdb.execute('disassemble load_module', to_string=True)
# The address is put into a register, which is called: any code may be far away.
site = 'movabs $%#x,' % int(gdb.parse_and_eval('(long) do_init_module'))
call = [line for line in code.split(site)[1].splitlines() if 'call ' in line][0].split()[0]
gdb.execute('set var panic_on_oops = 77')
for visit in range(2):
    gdb.execute('tbreak *' + call)
    go()
    gdb.execute('stepi', to_string=True)
    value('(long) $pc - (long) do_init_module')
    # What is the client's own as well is not stepped over either.
    gdb.execute('break *do_init_module')
    gdb.execute('stepi', to_string=True)
    value('(long) $pc > (long) do_init_module')
gdb.execute('delete')
say('libraries', gdb.execute('info sharedlibrary', to_string=True))
gdb.execute('detach')
"
        ));
        let at = "said (long) $pc - (long) do_init_module 0";
        assert_eq!(said.matches(at).count(), 2, "{}: {said}", kernel.name);
        let behind = "said (long) $pc > (long) do_init_module 1";
        assert_eq!(said.matches(behind).count(), 2, "{}: {said}", kernel.name);
        contains(kernel, &said, &["/kscope_visits.ko"]);
        assert_eq!(guest.end(), "43\n", "{}", kernel.name);
        guest.kill();
    }
}

#[test]
fn a_module_that_claims_to_be_where_the_kernel_is_takes_no_breakpoints_away() {
    for kernel in kernels() {
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
        guest.ask(&load(&module));
        // The area of its init functions, which is no more, is given the place of some of the kernel's functions.
        let claim = format!(
            "{PYTHON}
module = gdb.lookup_type('struct module')
members = {{field.name: field.bitpos // 8 for field in module.fields()}}
at = int(gdb.parse_and_eval('(long) modules.next')) - members['list']
area = f'((struct module *) {{at}})->' + ('mem[6]' if 'mem' in members else 'init_layout')
def claim(base, size):
    gdb.execute(f'set var {{area}}.base = (void *) ({{base}})')
    gdb.execute(f'set var {{area}}.size = {{size}}')
"
        );
        guest.gdb_python(&format!(
            "{claim}claim('(long) version_proc_show & ~4095', 65536)\ngdb.execute('detach')\n"
        ));
        guest.begin(&format!(
            "{SIGN}; {UNLOAD}; cat /proc/version >/dev/null; echo 5 >/proc/sys/kernel/panic"
        ));
        let said = guest.gdb_python(&format!(
            "{claim}claim(0, 0)
gdb.execute('break version_proc_show')
gdb.execute('watch panic_timeout')
gdb.execute('set var panic_on_oops = 77')
go(); where()
gdb.execute('detach')
"
        ));
        contains(kernel, &said, &["said version_proc_show "]);
        guest.end();
        guest.kill();
    }
}

#[test]
fn modules_that_only_the_guest_has_get_their_symbols_from_its_memory() {
    for kernel in kernels() {
        let module = module("visits", &kernel.path);
        let mut guest = Session::start(kernel, &[]);
        guest.ask("echo 0 >/proc/sys/kernel/panic_on_oops");
        // A file in the guest's overlay, and one in no file system at all (init_module(2) is 175).
        let file = module.path("kscope_visits.ko");
        let from_overlay = load(&module).replace("q(", "q(/var/tmp/kscope-test-overlay");
        let copy = format!(
            "d=/var/tmp/kscope-test-overlay{}; mkdir -p $(dirname $d); cp {0} $d",
            file.display()
        );
        let from_memory = format!(
            "perl -e 'undef $/; open F, q({}); $all = <F>; $with = q(); \
             syscall(175, $all, length $all, $with) == 0 or die $!'",
            file.display()
        );
        guest.ask(&copy);
        guest.begin(&format!(
            "{SIGN}; {from_overlay}; {POKE}; {UNLOAD}; {from_memory}; {POKE}; {UNLOAD}; cat /proc/version >/dev/null"
        ));
        let said = guest.gdb_python(&format!(
            "{PYTHON}
def here(function):
    say('in', function, gdb.selected_frame().function() is None, int(gdb.parse_and_eval(f'$pc - (long) &{{function}}')) in range(16))
    names, frame = [], gdb.selected_frame()
    while frame:
        names.append(frame.name())
        frame = frame.older()
    return names
for name in ('init', 'poke', 'exit'):
    gdb.execute('break kscope_visits_' + name)
gdb.execute('set var panic_on_oops = 77')
for visit in range(2):
    print(go())
    say('init from', [name for name in here('kscope_visits_init') if name and name.startswith('do_')][0])
    print(go())
    names = here('kscope_visits_poke')
    say('poke from', names[1], 'ksys_write' in names)
    say('count', gdb.parse_and_eval('*(int *) &kscope_visits_count'))
    gdb.execute('finish')
    say('back in', gdb.selected_frame().name())
    print(go())
    here('kscope_visits_exit')
gdb.execute('delete')
gdb.execute('break version_proc_show')
print(go())
say('libraries', gdb.execute('info sharedlibrary', to_string=True))
gdb.execute('detach')
"
        ));
        for twice in [
            "said in kscope_visits_init True True",
            "said init from do_one_initcall",
            "said in kscope_visits_poke True True",
            "said poke from kscope_visits_set True",
            "said count 41",
            "said back in kscope_visits_set",
            "said in kscope_visits_exit True True",
            "kscope: symbols from memory only, without types and lines, of module kscope_visits: \
             no .ko file of it is found; `monitor module-path DIR` says where",
        ] {
            assert_eq!(
                said.matches(twice).count(),
                2,
                "{}: {twice}: {said}",
                kernel.name
            );
        }
        let last = said.rsplit("said libraries").next().unwrap_or_default();
        assert!(!last.contains(".ko"), "{}: {last}", kernel.name);
        assert_eq!(guest.end().trim(), "43\n43", "{}", kernel.name);
        guest.kill();
    }
}
