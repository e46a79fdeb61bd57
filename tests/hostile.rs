//! Guests that end badly, and machines that are in the way: each has its own
//! message and exit code, and nothing is left behind.

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{Place, collect, finish, kernel, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// A guest whose command has said "up" and then waits.
fn up(place: &Place, options: &[&str], script: &str) -> Child {
    up_after(place, options, ":", script)
}

/// As [`up`], and `first` is done before: a trap that is set, for one.
fn up_after(place: &Place, options: &[&str], first: &str, script: &str) -> Child {
    let script = format!("{first}; echo up; {script}");
    let mut child = place
        .shell(options, &script)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 3];
    let out = child.stdout.as_mut().unwrap();
    if out.read_exact(&mut line).is_err() {
        panic!("it did not come up: {}", collect(child).stderr);
    }
    child
}

#[test]
fn a_panic_is_shown_with_source_lines() {
    let place = Place::new();
    finish(&mut place.shell(&[], "echo c > /proc/sysrq-trigger"))
        .expect(102)
        .says(&[
            "g1 panicked: sysrq triggered crash",
            "CPU 0 in sh[",
            "panic+0x",
            "sysrq_handle_crash",
            "(drivers/tty/sysrq.c:",
            "(fs/read_write.c:",
            "Kernel panic - not syncing: sysrq triggered crash",
        ]);
    place.assert_clean();
}

#[test]
fn a_panic_without_a_word_is_noticed() {
    let place = Place::new();
    let script = "echo 0 > /proc/sys/kernel/printk; echo c > /proc/sysrq-trigger";
    finish(&mut place.shell(&[], script))
        .expect(102)
        .says(&["g1 panicked", "sysrq_handle_crash"]);
    place.assert_clean();
}

#[test]
fn a_panic_while_booting_is_a_panic() {
    let place = Place::new();
    finish(&mut place.run(&["-a", "rdinit=/no-such-init"], &["true"]))
        .expect(102)
        .says(&["Unable to mount root fs", "(init/do_mounts.c:"]);
    place.assert_clean();
}

#[test]
fn the_death_of_the_init_is_a_panic() {
    let place = Place::new();
    // Signals do not reach it, but its code can be overwritten.
    let script = "range=$(grep -m1 ' r-xp ' /proc/1/maps | cut -d' ' -f1); \
                  from=$((0x${range%-*} / 4096)); to=$((0x${range#*-} / 4096)); \
                  dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$from count=$((to - from)) \
                  conv=notrunc; sleep 1000";
    finish(&mut place.shell(&[], script))
        .expect(102)
        .says(&["Attempted to kill init", "in init[1]"]);
    place.assert_clean();
}

#[test]
fn a_program_cannot_pretend_to_be_a_panic() {
    let place = Place::new();
    let script = "echo '<0>Kernel panic - not syncing: no' > /dev/kmsg; sleep 0.5; echo alive";
    let out = finish(&mut place.shell(&[], script)).expect(0);
    assert_eq!(out.text(), "alive\n");
}

#[test]
fn a_timeout_shows_where_the_guest_is() {
    let place = Place::new();
    finish(&mut place.shell(&["--timeout", "0.5"], "sleep 1000 | cat"))
        .expect(103)
        .says(&[
            "did not end in time",
            "CPU 0 in swapper[0]",
            "(kernel/sched/idle.c:",
            "sleep[",
            "hrtimer_nanosleep",
            "pipe_read",
        ]);
    // A command that leaves the kernel no time to idle.
    finish(&mut place.shell(&["--timeout", "0.5"], "while :; do :; done"))
        .expect(103)
        .says(&["CPU 0 in sh["]);
    place.assert_clean();
}

#[test]
fn a_boot_that_takes_too_long_shows_where_the_guest_is() {
    let place = Place::new();
    finish(&mut place.run(&["--boot-timeout", "0.01"], &["true"]))
        .expect(104)
        .says(&["did not boot", "did not come up in time", "CPU 0"]);
    place.assert_clean();
}

#[test]
fn a_kernel_that_gives_up_early_is_quoted() {
    let place = Place::new();
    finish(&mut place.run(&["-a", "--version"], &["true"]))
        .expect(104)
        .says(&["g1 did not boot", "exited with code 0", "6."]);
    place.assert_clean();
}

#[test]
fn a_killed_guest_is_reported() {
    let place = Place::new();
    let child = up(&place, &[], "sleep 1000");
    let pid = place.await_guest("g1")["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    collect(child)
        .expect(105)
        .says(&["g1 was killed by SIGKILL from outside"]);
    place.assert_clean();
}

#[test]
fn a_guest_killed_while_booting_is_reported() {
    let place = Place::new();
    for _ in 0..5 {
        // It stays in its boot: no debugger comes.
        let child = place.run(&["--wait"], &["true"]).spawn().unwrap();
        let pid = place.await_guest("g1")["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        collect(child).expect(105).says(&["SIGKILL"]);
    }
    place.assert_clean();
}

#[test]
fn a_killed_kscope_takes_everything_along() {
    let place = Place::new();
    let mut child = up(&place, &[], "sleep 1000 & cat");
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    place.assert_clean();
}

#[test]
fn kscope_can_be_killed_at_any_moment_of_its_start() {
    let place = Place::new();
    for millis in (0..120).step_by(4) {
        let mut child = place.run(&[], &["sleep", "1000"]).spawn().unwrap();
        // What is tested is exactly what happens at some odd moment.
        thread::sleep(Duration::from_millis(millis));
        signal(&child, Signal::SIGKILL);
        child.wait().unwrap();
    }
    place.assert_clean();
}

#[test]
fn the_whole_process_group_can_be_killed() {
    use std::os::unix::process::CommandExt;
    let place = Place::new();
    let mut command = place.shell(&[], "sleep 1000");
    let mut child = command.process_group(0).spawn().unwrap();
    place.await_guest("g1");
    nix::sys::signal::killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    place.assert_clean();
}

#[test]
fn what_is_left_of_an_unlucky_end_is_swept() {
    let place = Place::new();
    let mut child = up(&place, &[], "sleep 1000");
    // Without its janitor there is nobody to remove the directory.
    for (pid, line) in place.processes() {
        if line.contains("__janitor") {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    // Any command sweeps, when the host has taken the guest's lock back.
    until("it is no longer listed", || place.guests().is_empty());
    place.assert_clean();
}

#[test]
fn signals_are_the_commands() {
    let place = Place::new();
    for (number, code) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGQUIT, 131),
    ] {
        let child = up(&place, &[], "exec sleep 1000");
        signal(&child, number);
        collect(child).expect(code);
    }
    // It may answer as it likes.
    let child = up_after(
        &place,
        &[],
        "trap 'echo caught; exit 9' INT",
        "while :; do sleep 0.1; done",
    );
    signal(&child, Signal::SIGINT);
    assert_eq!(collect(child).expect(9).text(), "caught\n");
    place.assert_clean();
}

#[test]
fn a_command_that_ignores_signals_is_ended() {
    let place = Place::new();
    let deaf = || {
        let traps = "trap '' INT TERM HUP";
        up_after(&place, &[], traps, "while :; do sleep 0.1; done")
    };
    // Two seconds after SIGTERM, by itself.
    let child = deaf();
    signal(&child, Signal::SIGTERM);
    collect(child).expect(143);
    // By a second SIGINT.
    let child = deaf();
    signal(&child, Signal::SIGINT);
    until("the first is taken", || pending(&child) == 0);
    signal(&child, Signal::SIGINT);
    collect(child).expect(130);
    place.assert_clean();
}

/// Signals that wait for the process, as a bit mask.
fn pending(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let mask = status.lines().find_map(|l| l.strip_prefix("ShdPnd:"));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
}

#[test]
fn signals_before_the_guest_is_up_end_it() {
    let place = Place::new();
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // It never comes up: the debugger that it waits for does not come.
        let child = place.run(&["--wait"], &["true"]).spawn().unwrap();
        place.await_guest("g1");
        signal(&child, number);
        collect(child).expect(128 + number as i32);
        place.assert_clean();
    }
}

#[test]
fn ignored_signals_stay_ignored() {
    let place = Place::new();
    let mut command = Command::new("nohup");
    command
        .arg(env!("CARGO_BIN_EXE_kscope"))
        .args(["run", "--no-gdb", "-k"])
        .arg(kernel())
        .args(["--", "sh", "-c", "echo up; read line; echo $line"]);
    place.surround(&mut command);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    signal(&child, Signal::SIGHUP);
    use std::io::Write;
    child.stdin.take().unwrap().write_all(b"still\n").unwrap();
    assert_eq!(collect(child).expect(0).text(), "still\n");
    place.assert_clean();
}

#[test]
fn no_kernel_and_no_kernel_of_the_right_kind() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("linux");
    fs::write(&text, "not a kernel").unwrap();
    for (path, parts) in [
        (
            Path::new("/no/such/linux"),
            &["/no/such/linux", "kscope build"][..],
        ),
        (
            Path::new("/bin/sh"),
            &["/bin/sh", "not a User Mode Linux kernel"],
        ),
        (&text, &["linux", "is not a kernel"]),
        (dir.path(), &["cannot"]),
    ] {
        let mut command = place.kscope();
        command.arg("run").arg("-k").arg(path).args(["--", "true"]);
        finish(&mut command).expect(96).says(parts);
    }
    place.assert_clean();
}

#[test]
fn a_kernel_without_debug_information_runs() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("linux");
    let strip = |option: &str| {
        let status = Command::new("objcopy")
            .arg(option)
            .arg(kernel())
            .arg(&plain)
            .status()
            .unwrap();
        assert!(status.success());
    };
    let run = |script: &str| {
        let mut command = place.kscope();
        command.args(["run", "--no-gdb", "-k"]).arg(&plain);
        finish(command.args(["--", "sh", "-c", script]))
    };
    strip("--strip-debug");
    run("exit 3").expect(3).says(&["no debug information"]);
    // Names without lines.
    run("echo c > /proc/sysrq-trigger")
        .expect(102)
        .says(&["sysrq_handle_crash+0x"]);
    strip("--strip-all");
    run("exit 3").expect(96).says(&["stripped"]);
    place.assert_clean();
}

/// A shell in a mount namespace of its own, which can rearrange the machine.
fn rearranged(place: &Place, arrange: &str, command: &str) -> Command {
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script =
        format!("set -e; {arrange}\nexec \"$KSCOPE\" run --no-gdb -k \"$KERNEL\" {command}");
    unshare.args(["--mount", "sh", "-c", &script]);
    place.surround(&mut unshare);
    unshare
        .env("KSCOPE", env!("CARGO_BIN_EXE_kscope"))
        .env("KERNEL", kernel());
    unshare
}

#[test]
fn a_shared_memory_directory_without_exec_does_not_matter() {
    let place = Place::new();
    let arrange = "mount -t tmpfs -o noexec,size=1m none /dev/shm; \
                   mount -t tmpfs -o noexec,size=1m none /tmp";
    let mut command = rearranged(&place, arrange, "-- echo fine");
    assert_eq!(finish(&mut command).expect(0).text(), "fine\n");
    place.assert_clean();
}

/// No namespaces for whoever comes after.
const NO_NAMESPACES: &str = "echo 0 > /proc/sys/user/max_user_namespaces; \
                             echo 0 > /proc/sys/user/max_mnt_namespaces";

/// As [`rearranged`], in a user namespace whose limits can be set.
fn confined(place: &Place, arrange: &str, command: &str) -> Command {
    let mut unshare = Command::new("unshare");
    let script = format!(
        "set -e; {arrange}\n{NO_NAMESPACES}\nexec \"$KSCOPE\" run --no-gdb -k \"$KERNEL\" {command}"
    );
    unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    place.surround(&mut unshare);
    unshare
        .env("KSCOPE", env!("CARGO_BIN_EXE_kscope"))
        .env("KERNEL", kernel());
    unshare
}

#[test]
fn without_namespaces_landlock_protects_the_host() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "host\n").unwrap();
    let script = format!(
        "-- sh -c 'mkdir /h; mount -t hostfs none /h -o /; echo guest > /h{}; echo fine'",
        file.display()
    );
    let out = finish(&mut confined(&place, "", &script)).expect(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "host\n");
    let out = out.says(&["Landlock", "its memory is in"]);
    assert_eq!(out.text(), "fine\n");
    place.assert_clean();
}

#[test]
fn without_namespaces_and_room_for_memory_the_reasons_are_named() {
    let place = Place::new();
    let arrange = "mount -t tmpfs -o noexec none /dev/shm; \
                   mount -t tmpfs -o size=1m none /tmp; \
                   mount --bind /var/tmp /var/tmp; mount -o remount,bind,ro /var/tmp; \
                   test -d $XDG_RUNTIME_DIR || mkdir -m 700 $XDG_RUNTIME_DIR";
    finish(&mut confined(&place, arrange, "-- true"))
        .expect(96)
        .says(&[
            "/dev/shm is mounted noexec",
            "/tmp has only",
            "/var/tmp is mounted read-only",
            "512 MiB of guest memory",
        ]);
    place.assert_clean();
}

#[test]
fn memory_that_the_host_runs_out_of_is_explained() {
    let place = Place::new();
    // Enough to boot, then somebody else takes the rest.
    let arrange = "mount -t tmpfs -o size=90m,mode=700 none $XDG_RUNTIME_DIR; \
                   (while ! test -e $XDG_RUNTIME_DIR/kscope/g1/guest.json; do sleep 0.05; done; \
                    head -c 200m /dev/zero > $XDG_RUNTIME_DIR/filler 2>/dev/null || true) & ";
    let script = "-m 64M -- sh -c 'sleep 1; head -c 60m /dev/zero > /big; echo survived'";
    let out = finish(&mut confined(&place, arrange, script));
    assert_ne!(out.code(), 0, "{}", out.stderr);
    out.says(&["g1", "ran out of memory"]);
}

#[test]
fn a_full_disk_is_named() {
    let place = Place::new();
    // Room for an inode or two, none for content.
    let arrange = "mount -t tmpfs -o nr_inodes=4,mode=700 none $XDG_RUNTIME_DIR";
    finish(&mut rearranged(&place, arrange, "-- true"))
        .expect(96)
        .says(&["No space left on device", "kscope/g1"]);
    place.assert_clean();
}

#[test]
fn without_a_runtime_directory_the_temporary_one_is_used() {
    let place = Place::new();
    let unset = |command: &mut Command| {
        command
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", place.path());
    };
    let mut command = place.run(&[], &["echo", "x"]);
    unset(&mut command);
    assert_eq!(finish(&mut command).expect(0).text(), "x\n");
    let mut command = place.run(&[], &["echo", "x"]);
    unset(&mut command);
    command.env("XDG_RUNTIME_DIR", "/no/such/directory");
    assert_eq!(finish(&mut command).expect(0).text(), "x\n");
    // Nowhere at all.
    let mut command = place.run(&[], &["echo", "x"]);
    command
        .env("XDG_RUNTIME_DIR", "/proc")
        .env("TMPDIR", "/proc");
    finish(&mut command)
        .expect(96)
        .says(&["/proc/kscope-", "XDG_RUNTIME_DIR"]);
    place.assert_clean();
}

#[test]
fn an_ordinary_user_is_enough() {
    if !nix::unistd::geteuid().is_root() {
        // Then every other test is this one.
        return;
    }
    let place = Place::new();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_kscope"))
        .args(["run", "--no-gdb", "-k"])
        .arg(kernel())
        .args([
            "--",
            "sh",
            "-c",
            "id -u; touch /etc/mine; echo c > /proc/sysrq-trigger",
        ]);
    place.surround(&mut command);
    std::os::unix::fs::chown(place.path(), Some(65534), Some(65534)).unwrap();
    if fs::metadata("/root").is_ok_and(|m| std::os::unix::fs::MetadataExt::mode(&m) & 1 == 0)
        && (kernel().starts_with("/root") || env!("CARGO_BIN_EXE_kscope").starts_with("/root"))
    {
        // They could not even be read.
        return;
    }
    // Also the panic's backtrace needs no privilege.
    let out = finish(&mut command)
        .expect(102)
        .says(&["sysrq_handle_crash"]);
    assert_eq!(out.text(), "0\n");
    assert!(!fs::exists("/etc/mine").unwrap());
    place.assert_clean();
}
