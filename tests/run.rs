//! `kscope run` and `list` on booted kernels: what a command sees, and what it
//! leaves.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use common::{Place, collect, finish, finish_with, kernel, until};

fn noise(len: usize) -> Vec<u8> {
    // xorshift: every byte value, no period in sight.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

#[test]
fn the_kernel_is_the_one_that_was_named() {
    let place = Place::new();
    let out = finish(&mut place.run(&[], &["uname", "-sn"])).expect(0);
    assert_eq!(out.text(), "Linux g1\n");
    // A pipe on both sides: nothing but the command's output.
    assert_eq!(out.stderr, "");
    place.assert_clean();
}

#[test]
fn exit_codes_pass_through() {
    let place = Place::new();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255)] {
        finish(&mut place.shell(&[], script)).expect(code);
    }
    finish(&mut place.shell(&[], "kill -TERM $$")).expect(128 + 15);
    finish(&mut place.shell(&[], "kill -KILL $$")).expect(128 + 9);
    place.assert_clean();
}

#[test]
fn a_command_that_cannot_be_executed_is_reported_as_by_a_shell() {
    let place = Place::new();
    finish(&mut place.run(&[], &["no-such-command"]))
        .expect(127)
        .says(&["no-such-command: command not found"]);
    finish(&mut place.run(&[], &["/no/such/file"]))
        .expect(127)
        .says(&["/no/such/file: No such file or directory"]);
    finish(&mut place.run(&[], &["/etc/passwd"]))
        .expect(126)
        .says(&["/etc/passwd: Permission denied"]);
    finish(&mut place.run(&[], &["/etc"]))
        .expect(126)
        .says(&["/etc: Is a directory"]);
    place.assert_clean();
}

#[test]
fn a_script_without_an_interpreter_line_runs_in_the_shell() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    fs::write(&script, "echo \"from $1\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let out = finish(&mut place.run(&[], &[script.as_os_str(), "here".as_ref()])).expect(0);
    assert_eq!(out.text(), "from here\n");
}

#[test]
fn streams_stay_apart_and_bytes_stay_as_they_are() {
    let place = Place::new();
    let input = noise(300_000);
    let out = finish_with(&mut place.shell(&[], "tee /dev/stderr"), &input).expect(0);
    assert!(out.stdout == input, "standard output differs");
    let out = finish(&mut place.shell(&[], "echo out; echo err >&2")).expect(0);
    assert_eq!(
        (out.text().as_str(), out.stderr.as_str()),
        ("out\n", "err\n")
    );
    place.assert_clean();
}

#[test]
fn standard_output_and_error_in_one_file_keep_their_order() {
    let place = Place::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let script = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done";
    let mut command = place.shell(&[], script);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    let child = command.spawn().unwrap();
    drop(command);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
    collect(child).expect(0);
    let expected: Vec<_> = (1..=5).map(|i| format!("out{i}\nerr{i}\n")).collect();
    assert_eq!(text, expected.concat());
}

#[test]
fn a_hundred_megabytes_of_output_arrive() {
    let place = Place::new();
    let script = "head -c 100000000 /dev/zero";
    let mut command = place.shell(&[], script);
    let mut child = command.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let count = std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    assert_eq!(count, 100_000_000);
    collect(child).expect(0);
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command() {
    let place = Place::new();
    let mut child = place.run(&[], &["yes"]).spawn().unwrap();
    let mut first = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(&first, b"y\n");
    drop(child.stdout.take());
    // By SIGPIPE, as without a guest.
    collect(child).expect(128 + 13);
    place.assert_clean();
}

#[test]
fn input_that_nobody_reads_does_not_hold_up_the_end() {
    let place = Place::new();
    finish_with(&mut place.run(&[], &["true"]), &noise(2_000_000)).expect(0);
    let out = finish_with(&mut place.run(&[], &["head", "-c", "3"]), &noise(2_000_000)).expect(0);
    assert_eq!(out.stdout, noise(3));
    place.assert_clean();
}

#[test]
fn the_end_of_input_reaches_the_command() {
    let place = Place::new();
    let out = finish_with(&mut place.shell(&[], "cat; echo end"), b"a\nb").expect(0);
    assert_eq!(out.text(), "a\nbend\n");
    let mut closed = place.shell(&[], "cat; echo end");
    closed.stdin(Stdio::null());
    assert_eq!(finish(&mut closed).expect(0).text(), "end\n");
}

#[test]
fn background_processes_do_not_outlive_the_command() {
    let place = Place::new();
    // The sleeper holds both pipes.
    let out = finish(&mut place.shell(&[], "sleep 1000 & echo done")).expect(0);
    assert_eq!(out.text(), "done\n");
    place.assert_clean();
}

#[test]
fn orphans_are_reaped() {
    let place = Place::new();
    let script = "for i in 1 2 3; do (sleep 0.01 &) ; done; sleep 0.3; \
                  grep -l '^State:.Z' /proc/[0-9]*/status | wc -l";
    assert_eq!(
        finish(&mut place.shell(&[], script)).expect(0).text(),
        "0\n"
    );
}

#[test]
fn the_command_is_root_in_the_callers_directory_with_the_callers_variables() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let mut command = place.shell(
        &["--name", "guest-a"],
        "id -u; pwd; umask; hostname; echo $KSCOPE_GUEST $USER $LANG ${SECRET-unset} $HOME",
    );
    command
        .current_dir(dir.path())
        .env("SECRET", "s")
        .env("LANG", "C.UTF-8")
        .env("HOME", "/home/somebody");
    // The shell in between changes nothing but the mask.
    let mut wrapped = std::process::Command::new("sh");
    wrapped
        .args(["-c", "umask 027; exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(dir.path());
    place.surround(&mut wrapped);
    wrapped
        .env("SECRET", "s")
        .env("LANG", "C.UTF-8")
        .env("HOME", "/home/somebody");
    let text = finish(&mut wrapped).expect(0).text();
    let cwd = dir.path().canonicalize().unwrap();
    assert_eq!(
        text,
        format!(
            "0\n{}\n0027\nguest-a\nguest-a root C.UTF-8 unset /home/somebody\n",
            cwd.display()
        )
    );
}

#[test]
fn a_mask_that_takes_everything_away_is_no_obstacle() {
    let place = Place::new();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "umask 777; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_kscope"))
        .args(["run", "--no-gdb", "-k"])
        .arg(kernel())
        .args(["--", "sh", "-c", "umask"]);
    place.surround(&mut command);
    assert_eq!(finish(&mut command).expect(0).text(), "0777\n");
    place.assert_clean();
}

#[test]
fn everything_is_there_and_nothing_can_be_changed() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "host\n").unwrap();
    let script = format!(
        "cd {dir}; cat file; echo guest > file; echo x > new; mkdir d; chmod 0 file; cat file; \
         rm file; ls; mount | grep -c ' /proc \\| /sys \\| /dev \\| /dev/pts \\| /dev/shm \\| /run '; \
         mkdir /kscope-was-here && echo yes",
        dir = dir.path().display()
    );
    let out = finish(&mut place.shell(&[], &script)).expect(0);
    assert_eq!(out.text(), "host\nguest\nd\nnew\n6\nyes\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "host\n");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(!fs::exists("/kscope-was-here").unwrap());
    place.assert_clean();
}

#[test]
fn the_guest_cannot_write_around_its_overlay() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "host\n").unwrap();
    // A hostfs mount of the guest's own, writable as far as the guest is concerned.
    let script = format!(
        "mkdir /h; mount -t hostfs none /h -o / && {{ echo guest > /h{0}; rm -f /h{0}; \
         chmod 777 /h{0}; }} 2>&1 | grep -c 'Read-only file system'",
        file.display()
    );
    let out = finish(&mut place.shell(&[], &script)).expect(0);
    assert_eq!(out.text(), "3\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "host\n");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_ne!(mode & 0o777, 0o777);
}

#[test]
fn there_is_a_loopback_interface_and_a_terminal_multiplexer() {
    let place = Place::new();
    let script = "cat /sys/class/net/lo/flags; test -c /dev/ptmx && test -e /dev/fd/0 && echo ok";
    let text = finish(&mut place.shell(&[], script)).expect(0).text();
    // IFF_UP | IFF_LOOPBACK
    assert_eq!(text, "0x9\nok\n");
}

#[test]
fn a_directory_that_the_guest_lacks_becomes_the_root() {
    let place = Place::new();
    // The guest has a /dev/shm of its own.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut command = place.run(&[], &["pwd"]);
    command.current_dir(dir.path());
    let out = finish(&mut command).expect(0).says(&["runs in /"]);
    assert_eq!(out.text(), "/\n");
    // One that nobody has any more.
    let gone = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            "cd \"$1\" && rmdir \"$1\" && shift && exec \"$@\"",
            "sh",
        ])
        .arg(gone.path())
        .arg(env!("CARGO_BIN_EXE_kscope"))
        .args(["run", "--no-gdb", "-k"])
        .arg(kernel())
        .args(["--", "pwd"]);
    place.surround(&mut command);
    assert_eq!(finish(&mut command).expect(0).text(), "/\n");
    place.assert_clean();
}

#[test]
fn kernel_messages_go_where_they_are_asked_to() {
    let place = Place::new();
    let log = place.path().join("boot.log");
    let log_option = log.to_str().unwrap();
    let out = finish(&mut place.run(&["--log", log_option], &["true"])).expect(0);
    assert_eq!((out.text().as_str(), out.stderr.as_str()), ("", ""));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("Linux version"), "{text}");
    assert!(text.contains("Run /init as init process"), "{text}");
    fs::remove_file(&log).unwrap();
    let out = finish(&mut place.run(&["--kmsg"], &["echo", "x"])).expect(0);
    assert_eq!(out.text(), "x\n");
    assert!(out.stderr.contains("Linux version"), "{}", out.stderr);
    place.assert_clean();
}

#[test]
fn a_full_log_file_does_not_stop_the_guest() {
    let place = Place::new();
    let out = finish(&mut place.run(&["--log", "/dev/full"], &["echo", "x"]))
        .expect(0)
        .says(&["/dev/full", "No space left on device"]);
    assert_eq!(out.text(), "x\n");
    let out = finish(&mut place.run(&["--log", "/no/such/log"], &["true"]));
    out.expect(96).says(&["/no/such/log"]);
    place.assert_clean();
}

#[test]
fn memory_and_parameters_reach_the_kernel() {
    let place = Place::new();
    let options = ["-m", "96M", "-a", "one=1 two=2", "-a", "three=3"];
    let out = finish(&mut place.shell(&options, "cat /proc/cmdline /proc/meminfo")).expect(0);
    let text = out.text();
    assert!(text.contains(" one=1 two=2 three=3"), "{text}");
    let total: u64 = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    assert!((64 << 10..=96 << 10).contains(&total), "{total} KiB");
    finish(&mut place.run(&["-m", "1M"], &["true"]))
        .expect(96)
        .says(&["at least 24 MiB"]);
    finish(&mut place.run(&["-m", "lots"], &["true"])).expect(2);
    place.assert_clean();
}

#[test]
fn a_dry_run_prints_a_command_line_and_does_nothing() {
    let place = Place::new();
    let out = finish(&mut place.run(&["--dry-run", "-a", "a='b c'"], &["true"])).expect(0);
    let text = out.text();
    assert_eq!(text.lines().count(), 1);
    assert!(text.starts_with(&kernel().display().to_string()), "{text}");
    for part in ["mem=512M", "rdinit=/init", "con0=null,fd:1", "umid=g1"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    place.assert_clean();
}

#[test]
fn running_guests_are_listed_and_found_by_name() {
    let place = Place::new();
    let out = finish(place.kscope().arg("list")).expect(0);
    assert_eq!(out.text(), "no guest is running\n");

    let mut child = place
        .run(&["--name", "alpha", "-m", "64M"], &["cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let record = place.await_guest("alpha");
    assert_eq!(record["version"], 1);
    assert_eq!(
        record["kernel"].as_str().unwrap(),
        kernel().to_str().unwrap()
    );
    assert_eq!(record["memory"], 64 << 20);
    assert_eq!(record["command"], serde_json::json!(["cat"]));
    assert_eq!(record["supervisor"], child.id());
    assert_eq!(record["gdb"], serde_json::Value::Null);
    assert!(record["protocol"].is_u64() && record["started"].is_u64());
    let dir = std::path::PathBuf::from(record["dir"].as_str().unwrap());
    assert!(dir.join("control.sock").exists() && dir.join("gdb.sock").exists());
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );

    let human = finish(place.kscope().arg("list")).expect(0).text();
    assert!(human.contains("alpha") && human.contains("64M"), "{human}");

    // The name is taken; another is not.
    finish(&mut place.run(&["--name", "alpha"], &["true"]))
        .expect(96)
        .says(&["a guest called alpha is running already"]);
    finish(&mut place.run(&[], &["true"])).expect(0);
    finish(&mut place.run(&["--name", "../x"], &["true"]))
        .expect(96)
        .says(&["cannot be a guest's name"]);

    child.stdin.take().unwrap().write_all(b"bye").unwrap();
    let out = collect(child).expect(0);
    assert_eq!(out.text(), "bye");
    place.assert_clean();
}

#[test]
fn each_guest_has_a_host_cpu_of_its_own() {
    let place = Place::new();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let start = |name: &str, options: &[&str]| {
        let mut options = options.to_vec();
        options.extend(["--name", name, "-m", "64M"]);
        let child = place
            .run(&options, &["cat"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        (child, place.await_guest(name))
    };
    let allowed = |record: &serde_json::Value| {
        let status = fs::read_to_string(format!("/proc/{}/status", record["pid"])).unwrap();
        status
            .lines()
            .find_map(|l| l.strip_prefix("Cpus_allowed_list:"))
            .unwrap()
            .trim()
            .to_owned()
    };
    let (a, record_a) = start("a", &[]);
    let (b, record_b) = start("b", &[]);
    let (c, record_c) = start("c", &["--no-pin"]);
    let (d, record_d) = start("d", &["-a", "ncpus=2"]);
    assert_eq!(allowed(&record_a), record_a["cpu"].to_string());
    assert_eq!(allowed(&record_b), record_b["cpu"].to_string());
    if cpus > 1 {
        assert_ne!(record_a["cpu"], record_b["cpu"]);
        assert_ne!(allowed(&record_c), allowed(&record_a));
    }
    assert!(record_c["cpu"].is_null() && record_d["cpu"].is_null());
    for mut child in [a, b, c, d] {
        drop(child.stdin.take());
        collect(child).expect(0);
    }
    finish(&mut place.run(&["--pin", "99999"], &["true"]))
        .expect(96)
        .says(&["CPU 99999"]);
    place.assert_clean();
}

#[test]
fn the_kernel_is_looked_for_and_named() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let mut none = place.kscope();
    none.args(["run", "--", "true"])
        .current_dir(dir.path())
        .env("XDG_CACHE_HOME", dir.path());
    finish(&mut none)
        .expect(96)
        .says(&["./linux", "./.kunit/linux", "kscope build"]);

    std::os::unix::fs::symlink(kernel(), dir.path().join("linux")).unwrap();
    let mut here = place.kscope();
    here.args(["run", "--no-gdb", "--", "true"])
        .current_dir(dir.path());
    finish(&mut here).expect(0).says(&["kernel ./linux"]);

    let elsewhere = tempfile::tempdir().unwrap();
    let mut output = place.kscope();
    output
        .args(["run", "--no-gdb", "--", "true"])
        .current_dir(elsewhere.path())
        .env("KBUILD_OUTPUT", dir.path());
    finish(&mut output).expect(0).says(&["$KBUILD_OUTPUT"]);
    place.assert_clean();
}

#[test]
fn gdb_gets_a_port_or_an_error() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = place.kscope();
    command.arg("run").arg("-k").arg(kernel());
    command.args(["--gdb", &address, "--", "true"]);
    finish(&mut command).expect(96).says(&[&address]);

    drop(taken);
    let mut command = place.kscope();
    command.arg("run").arg("-k").arg(kernel());
    command.args(["--gdb", &address, "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    assert_eq!(place.await_guest("g1")["gdb"], address);
    drop(child.stdin.take());
    collect(child).expect(0);

    let mut command = place.kscope();
    command.arg("run").arg("-k").arg(kernel());
    command.args(["--gdb", "0.0.0.0:1", "--", "true"]);
    finish(&mut command).expect(2).says(&["127.0.0.1"]);
    place.assert_clean();
}

#[test]
fn a_guest_that_powers_itself_off_ends_the_run() {
    let place = Place::new();
    let script = "echo 5 > /proc/exitcode; echo o > /proc/sysrq-trigger; sleep 1000";
    finish(&mut place.shell(&[], script))
        .expect(5)
        .says(&["powered itself off"]);
    // A reboot is an end as well.
    finish(&mut place.shell(&[], "echo b > /proc/sysrq-trigger; sleep 1000"))
        .says(&["powered itself off"]);
    place.assert_clean();
}

#[test]
fn guests_run_side_by_side() {
    let place = Place::new();
    let children: Vec<_> = (0..4)
        .map(|i| {
            place
                .run(&["-m", "64M"], &["echo", &i.to_string()])
                .spawn()
                .unwrap()
        })
        .collect();
    for (i, child) in children.into_iter().enumerate() {
        assert_eq!(collect(child).expect(0).text(), format!("{i}\n"));
    }
    until("all is gone", || place.processes().is_empty());
    place.assert_clean();
}
