//! Everything that kscope does, in short, on every kernel that it has to work on.
//!
//! What each instrument does in detail is tested on one kernel, in the tests of its own.

use std::path::Path;
use std::process::Child;

use kscope_profiler::Profile;

#[path = "gdb/client.rs"]
mod client;
mod common;
#[path = "gdb/guest.rs"]
mod guest;

use client::Mi;
use common::{Place, TestKernel, collect, finish, kernels, until, wait};
use guest::Guest;

/// Opens a file, and says that it is alive, for ever.
const TICKS: &str =
    "n=0; while :; do n=$((n+1)); cat /etc/hostname >/dev/null; echo tick $n; sleep 0.05; done";

/// Runs a test on each kernel, and says on which, for the message of a failure.
fn on_each(test: impl Fn(&TestKernel)) {
    for kernel in kernels() {
        eprintln!("on {}", kernel.name);
        test(kernel);
    }
}

/// The numbers of the CPUs that a report has a backtrace of.
fn reported_cpus(report: &str) -> Vec<usize> {
    report
        .lines()
        .filter_map(|line| {
            let number = line.strip_prefix("CPU ")?.split([' ', ':']).next()?;
            number.parse().ok()
        })
        .collect()
}

#[test]
fn boots_lists_and_passes_exit_codes() {
    on_each(|kernel| {
        let place = Place::new();
        let guest = place
            .shell_on(
                kernel,
                &["--name", "here"],
                "uname -r; nproc; read line; exit 7",
            )
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("kscope starts");
        let record = place.await_guest("here");
        assert_eq!(record["cpus"], kernel.cpus());
        let pinned = record["cpu"].is_u64();
        assert_eq!(pinned, kernel.cpus() == 1, "{record}");
        let seccomp = kernel.args.iter().any(|arg| *arg != "2");
        assert_eq!(
            record["mode"],
            if seccomp { "seccomp" } else { "ptrace" },
            "{record}"
        );
        let out = end_of_input(guest).expect(7);
        let version = kernel.name.split(' ').next().expect("a version");
        assert!(
            out.text().starts_with(&format!("{version}.")),
            "{}",
            out.text()
        );
        assert_eq!(
            out.text().lines().nth(1),
            Some(kernel.cpus().to_string().as_str())
        );
        assert_eq!(out.stderr, "");
        place.assert_clean();
    });
}

/// Closes the standard input of a child, and waits for its end.
fn end_of_input(mut child: Child) -> common::Finished {
    drop(child.stdin.take());
    collect(child)
}

#[test]
fn a_panic_shows_every_cpu() {
    on_each(|kernel| {
        let place = Place::new();
        let out = finish(&mut place.shell_on(kernel, &[], "echo c >/proc/sysrq-trigger"))
            .expect(102)
            .says(&[
                "sysrq triggered crash",
                "panic+",
                "sysrq_handle_crash+",
                "(drivers/tty/sysrq.c:",
                "handle_syscall+",
                " in sh[",
            ]);
        let all: Vec<_> = (0..kernel.cpus()).collect();
        assert_eq!(reported_cpus(&out.stderr), all, "{}", out.stderr);
        place.assert_clean();
    });
}

#[test]
fn a_timeout_shows_every_cpu() {
    on_each(|kernel| {
        let place = Place::new();
        let script = "sleep 1000 & while :; do :; done";
        let out = finish(&mut place.shell_on(kernel, &["--timeout", "1"], script))
            .expect(103)
            .says(&["userspace+", "(arch/um/os-Linux/skas/process.c:", "sleep["]);
        let all: Vec<_> = (0..kernel.cpus()).collect();
        assert_eq!(reported_cpus(&out.stderr), all, "{}", out.stderr);
        place.assert_clean();
    });
}

#[test]
fn nothing_outlives_a_killed_kscope() {
    on_each(|kernel| {
        let place = Place::new();
        let mut guest = place
            .shell_on(
                kernel,
                &["--name", "killed"],
                "sleep 1000 & while :; do :; done",
            )
            .spawn()
            .expect("kscope starts");
        let record = place.await_guest("killed");
        let pid = record["pid"].as_u64().expect("a pid");
        let group = |pid: u64| -> Vec<String> {
            let dir = std::fs::read_dir("/proc").expect("/proc").flatten();
            dir.filter_map(|entry| {
                let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
                let fields: Vec<_> = stat.rsplit(')').next()?.split(' ').collect();
                // A zombie is nobody's but its parent's.
                (fields.get(4)?.parse() == Ok(pid) && fields.get(1) != Some(&"Z")).then_some(stat)
            })
            .collect()
        };
        // The kernel and the processes that carry the guest's.
        until("the guest's processes", || group(pid).len() >= 3);
        guest.kill().expect("kill");
        wait(&mut guest);
        until("the end of the guest's processes", || group(pid).is_empty());
        place.assert_clean();
    });
}

#[test]
fn gdb_has_tasks_breakpoints_and_steps() {
    on_each(|kernel| {
        let guest = Guest::boot_on(kernel, &[], TICKS);
        guest.wait_for("ticks", |out| out.last_tick() > 3);
        let out = guest.gdb(&[
            "info threads",
            "break do_sys_openat2",
            "continue",
            "echo @bt\\n",
            "bt",
            "echo @steps\\n",
            "info args",
            "set $task = $_thread",
            "set $start = $pc",
            "next",
            "printf \"next %d %d\\n\", $task == $_thread, $pc > $start",
            "set $start = $pc",
            "stepi",
            "printf \"stepi %d %d\\n\", $task == $_thread, $pc != $start",
            "eval \"tbreak path_openat thread %d\", $_thread",
            "continue",
            "step",
            "printf \"step %d\\n\", $task == $_thread",
            "delete",
            "finish",
            "printf \"finish %d\\n\", $task == $_thread",
            "detach",
        ]);
        for cpu in 0..kernel.cpus() {
            assert!(
                out.contains(&format!("on CPU {cpu})")),
                "no CPU {cpu}: {out}"
            );
        }
        for text in [
            "kthreadd [S] kthreadd",
            "Breakpoint 1, do_sys_openat2 (",
            "dfd = -100",
            "next 1 1\n",
            "stepi 1 1\n",
            "step 1\n",
            "finish 1\n",
        ] {
            assert!(out.contains(text), "{}: no {text:?} in {out}", kernel.name);
        }
        let bt = out
            .split("@bt")
            .nth(1)
            .and_then(|rest| rest.split("@steps").next());
        for frame in ["fs/open.c:", "handle_syscall (", "userspace ("] {
            assert!(bt.expect("bt").contains(frame), "no {frame} in {out}");
        }
        runs_untraced(&guest);
    });
}

#[test]
fn gdb_interrupts_and_leaves() {
    on_each(|kernel| {
        let guest = Guest::boot_on(kernel, &[], TICKS);
        guest.wait_for("ticks", |out| out.last_tick() > 3);
        let mut gdb = Mi::connect(&guest);
        gdb.say("-exec-continue");
        gdb.wait_for("*running");
        // The guest's own signals come by the hundred meanwhile.
        let before = guest.last_tick();
        guest.wait_for("ticks", |out| out.last_tick() > before + 5);
        assert!(!gdb.has_stopped(), "{}", gdb.transcript());
        gdb.interrupt();
        let stop = gdb.wait_for("*stopped");
        assert!(stop.contains("signal-name=\"SIGINT\""), "{stop}");
        // Dies while its breakpoint is hit over and over.
        gdb.say("-break-insert -c 0 do_sys_openat2");
        gdb.say("-exec-continue");
        gdb.wait_for("*running");
        guest.wait_for("ticks", |out| out.last_tick() > before + 10);
        gdb.kill();
        runs_untraced(&guest);
    });
}

#[test]
fn a_guest_that_is_killed_has_ended_whoever_held_it() {
    on_each(|kernel| {
        let mut guest = Guest::boot_on(kernel, &[], TICKS);
        guest.wait_for("ticks", |out| out.last_tick() > 3);
        // Stopped, all its threads traced: none may be left to be waited for.
        let gdb = Mi::connect(&guest);
        let status = std::process::Command::new("kill")
            .args(["-KILL", &guest.pid().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
        assert_eq!(guest.wait(), Some(105), "{}", kernel.name);
        drop(gdb);
    });
}

#[test]
fn from_its_start_on_breakpoints_are_hit_on_every_cpu() {
    on_each(|kernel| {
        let busy = "for c in $(seq $(nproc)); do \
                    (while :; do cat /etc/hostname >/dev/null; done) & done; ";
        let guest = Guest::boot_on(kernel, &["--wait"], &format!("{busy} {TICKS}"));
        let count = format!("cpus = {}", kernel.cpus());
        // CPUs that come up later are traced from their first instruction: a trap that nobody is
        // there for is a panic.
        let out = guest.gdb(&[
            "bt 1",
            "break do_sys_openat2",
            "python",
            &count,
            "seen = {}",
            "while len(seen) < cpus and sum(seen.values()) < 1000:",
            "    gdb.execute('continue', to_string=True)",
            "    threads = gdb.execute('info threads', to_string=True).splitlines()",
            "    current = [line for line in threads if line.startswith('*')][0]",
            "    cpu = current.split('on CPU ')[1].split(')')[0]",
            "    seen[cpu] = seen.get(cpu, 0) + 1",
            "print('seen', *sorted(seen))",
            "end",
            "delete",
            "detach",
        ]);
        assert!(out.contains("#0  start_kernel ()"), "{out}");
        let all: Vec<_> = (0..kernel.cpus()).map(|cpu| cpu.to_string()).collect();
        let seen = format!("seen {}\n", all.join(" "));
        assert!(out.contains(&seen), "{}: {out}", kernel.name);
        runs_untraced(&guest);
    });
}

/// The guest is nobody's tracee any more, and time goes on.
fn runs_untraced(guest: &Guest) {
    guest.wait_until_untraced();
    let before = guest.last_tick();
    guest.wait_for("ticks", |out| out.last_tick() > before + 3);
}

#[test]
fn a_profile_shows_where_the_kernel_works() {
    on_each(|kernel| {
        let place = Place::new();
        let file = place.path().join("record.kscope");
        // A busy host lets us see a part of it only, and mostly that in which the guest gives its CPU away: then of
        // more work, until most was seen, and enough to tell anything.
        let mut profiles = [400, 1600, 1600, 6400, 6400]
            .into_iter()
            .map(|blocks| record_work(kernel, &place, &file, blocks))
            .filter(|profile| samples_of(profile, "dd").0 >= 20);
        let is_seen =
            |profile: &Profile| profile.sampling.lost.missed * 2 < profile.sampling.samples;
        let first = profiles
            .next()
            .unwrap_or_else(|| panic!("{}: dd is hardly ever sampled", kernel.name));
        let profile = match is_seen(&first) {
            true => first,
            // None is seen well on a host that is always as busy: then any has to do.
            false => profiles.find(is_seen).unwrap_or(first),
        };
        check_profile(kernel, &profile);
        std::fs::remove_file(&file).expect("the recording");
        place.assert_clean();
    });
}

/// Pages cleared for a reader of `/dev/zero`, 16 MiB in each of few system calls; and user code.
fn record_work(kernel: &TestKernel, place: &Place, file: &Path, blocks: u32) -> Profile {
    let mut record = place.kscope();
    record.args(["record", "--no-gdb", "-o"]).arg(file);
    record.args(kernel.args).arg("-k").arg(&kernel.path);
    record.args(["--", "sh", "-c"]);
    record.arg(format!(
        "dd if=/dev/zero of=/dev/null bs=16M count={blocks} 2>/dev/null; \
         i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done",
    ));
    finish(&mut record).expect(0);
    Profile::read(file).expect("a recording")
}

/// Samples of the tasks of a name, in the kernel and in user code.
fn samples_of(profile: &Profile, name: &str) -> (u64, u64) {
    let tasks = profile.tasks_by_cost();
    let of = |cost: fn(&kscope_profiler::TaskTotal<'_>) -> u64| -> u64 {
        let named = tasks
            .iter()
            .filter(|total| total.task.is_some_and(|task| task.comm == name));
        named.map(cost).sum()
    };
    (
        of(|total| total.kernel_samples),
        of(|total| total.user_samples),
    )
}

fn check_profile(kernel: &TestKernel, profile: &Profile) {
    // On a busy host the switches between the processes take a good part of it.
    let (in_kernel, _) = samples_of(profile, "dd");
    let zeroing: u64 = profile
        .functions_by_cost()
        .iter()
        .filter(|total| total.function.name == "read_zero")
        .map(|total| total.total_samples)
        .sum();
    assert!(
        zeroing * 10 > in_kernel * 3,
        "{}: {zeroing} of {in_kernel}: {:?}",
        kernel.name,
        profile.sampling
    );
    let (in_kernel, in_user) = samples_of(profile, "sh");
    assert!(
        in_user >= 50 && in_user > in_kernel,
        "{}: {in_user} and {in_kernel}",
        kernel.name
    );
    assert!(
        profile.truncated() * 20 < profile.on_cpu(),
        "{:?}",
        profile.sampling
    );
}
