//! The kernel views behind gdb's `monitor`, against the verbs of the same names.

mod common;

use common::kernels;
use common::session::Session;

/// Runs each view both ways while the guest stands still, and prints `same`, or both.
const BOTH: &str = r#"
def both(verb, *words):
    words = [str(word) for word in words]
    seen = gdb.execute(' '.join(['monitor', verb, *words]), to_string=True)
    options = {('bt', 'all'): ['--all']}.get((verb, *words), words)
    command = [kscope, verb, *options, *(['--all'] if verb == 'why' and not words else [])]
    own = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
    print('same' if seen == own and seen else f'{verb} {words}:\n{seen}---\n{own}')

for verb in 'ps bt runq dmesg lsmod mounts net slab irq timers config why'.split():
    both(verb)
both('bt', 'all')
both('bt', pid)
both('why', pid)
both('mounts', pid)
both('maps', pid)
both('files', pid)
both('config', 'CONFIG_UML')
both('print', 'init_task.tasks')
print('user', gdb.execute(f'monitor user-bt {pid}', to_string=True))
for wrong in ['ps x', 'maps', 'bt 99999', 'print', 'nonsense', 'slab 1']:
    print('wrong', gdb.execute(f'monitor {wrong}', to_string=True).strip())
"#;

#[test]
fn monitor_shows_what_the_verbs_show() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        let pid = guest.ask("sleep 1000 & echo $!");
        let pid = pid.trim();
        let kscope = env!("CARGO_BIN_EXE_kscope");
        let said = guest.gdb_python(&format!("kscope, pid = '{kscope}', {pid}\n{BOTH}"));
        let name = kernel.name;
        let same = said.lines().filter(|line| *line == "same").count();
        assert_eq!(same, 20, "{name}: {said}");
        let user = said.split("user ").nth(1).expect("stacks");
        let user = user.split("wrong").next().expect("stacks");
        assert!(user.contains("nanosleep"), "{name}: {said}");
        assert!(!user.contains("schedule"), "{name}: {said}");
        for wrong in [
            "`x` is no pid; `monitor ps` lists them",
            "usage: monitor maps PID",
            "no task of the guest has pid 99999",
            "usage: monitor print EXPR",
            "no such command: nonsense (see `monitor help`)",
            "usage: monitor slab",
        ] {
            let line = format!("wrong {wrong}");
            assert!(
                said.lines().any(|said| said.starts_with(&line)),
                "{name}: {line}: {said}"
            );
        }
    }
}
