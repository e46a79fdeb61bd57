//! `kscope record` and `kscope report` on booted kernels, judged by workloads whose hot path is known, and by perf.
//!
//! Needs a kernel of the debug preset: the one that `KSCOPE_TEST_KERNEL` names, or the cached build.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kscope_profiler::{End, FunctionKind, Profile, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use tempfile::TempDir;

const KSCOPE: &str = env!("CARGO_BIN_EXE_kscope");

/// Longer than anything takes, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Kernel work of one task: pages cleared for a reader of /dev/zero, with few system calls.
const COPY: &str = "dd if=/dev/zero of=/dev/null bs=16M count=400";

/// User work only.
const SPIN: &str = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done";

#[path = "common/kernels.rs"]
mod kernels;
use kernels::kernel;

/// A directory for runtime files and recordings.
struct Place(TempDir);

impl Place {
    fn new() -> Place {
        Place(TempDir::new().expect("a directory"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn kscope(&self) -> Command {
        let mut command = Command::new(KSCOPE);
        command
            .env("XDG_RUNTIME_DIR", self.0.path())
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// `kscope record OPTIONS -- sh -c SCRIPT`.
    fn record(&self, options: &[&str], script: &str) -> Output {
        let mut command = self.kscope();
        command
            .arg("record")
            .args(options)
            .args(kernels::options())
            .args(GUEST)
            .arg(kernel());
        command.args(["--", "sh", "-c", script]);
        run(&mut command)
    }

    fn profile(&self) -> Profile {
        Profile::read(&self.file("record.kscope")).expect("a recording")
    }

    fn report(&self, options: &[&str]) -> Output {
        run(self
            .kscope()
            .args(["report", "record.kscope"])
            .args(options))
    }

    /// Boots a guest called `one` that runs a script, and waits until others can find it.
    fn boot(&self, script: &str) -> Booted {
        let child = self
            .kscope()
            .args(["run", "--name", "one"])
            .args(kernels::options())
            .args(GUEST)
            .arg(kernel())
            .args(["--", "sh", "-c", script])
            .stdout(Stdio::null())
            .spawn()
            .expect("kscope runs");
        let record = self.file("kscope/one/guest.json");
        let pid = wait_for("the guest", || {
            let record: Value = serde_json::from_slice(&fs::read(&record).ok()?).ok()?;
            Some(Pid::from_raw(i32::try_from(record["pid"].as_u64()?).ok()?))
        });
        Booted { child, pid }
    }
}

const GUEST: &[&str] = &[
    "--no-gdb",
    "--memory",
    "256M",
    "--boot-timeout",
    "120",
    "--kernel",
];

/// A guest that ends with the test.
struct Booted {
    child: Child,
    /// Its kernel process.
    pid: Pid,
}

impl Drop for Booted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("kscope runs");
    eprint!("{}", text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The guest is attached, which means that it is being sampled.
fn wait_for_tracer(pid: Pid) {
    wait_for("sampler", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))?;
        (tracer.trim() != "0").then_some(())
    });
}

/// Samples by task name: in kernel code, in user code.
fn by_task(profile: &Profile) -> BTreeMap<String, (u64, u64)> {
    let mut sums = BTreeMap::<_, (u64, u64)>::new();
    for total in profile.tasks_by_cost() {
        let name = total.task.map_or("?", |task| &task.comm).to_owned();
        let sum = sums.entry(name).or_default();
        sum.0 += total.kernel_samples;
        sum.1 += total.user_samples;
    }
    sums
}

/// Samples in a function and what it calls.
fn total(profile: &Profile, function: &str) -> u64 {
    profile
        .functions_by_cost()
        .iter()
        .filter(|total| total.function.name == function)
        .map(|total| total.total_samples)
        .sum()
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[test]
fn the_hot_path_is_found_and_shown() {
    let place = Place::new();
    let output = place.record(&[], COPY);
    assert_eq!(output.status.code(), Some(0));
    let said = text(&output.stderr);
    assert!(
        said.contains(" lost") && said.contains("not fully unwound"),
        "{said}"
    );
    assert!(said.contains("kscope report record.kscope"), "{said}");

    let profile = place.profile();
    let on_cpu = profile.on_cpu();
    assert!(on_cpu >= 100, "{:?}", profile.sampling);
    assert!(
        percent(profile.truncated(), on_cpu) < 2.0,
        "{:?}",
        profile.sampling
    );
    assert_eq!(profile.sampling.end, End::Done);
    assert_eq!(profile.guest.command, ["sh", "-c", COPY]);
    let (kernel, user) = by_task(&profile)["dd"];
    assert!(
        percent(kernel + user, on_cpu) > 70.0,
        "{:?}",
        by_task(&profile)
    );
    for function in ["read_zero", "vfs_read", "ksys_read", "handle_syscall"] {
        let share = percent(total(&profile, function), kernel);
        assert!(share > 60.0, "{function}: {share} % of {kernel}");
    }

    let report = place.report(&[
        "--flamegraph",
        "flame.svg",
        "--folded",
        "folded",
        "--format",
        "json",
        "--top",
        "5",
    ]);
    assert_eq!(report.status.code(), Some(0));
    let json: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    assert_eq!(json["version"], 1);
    assert_eq!(json["on_cpu"], on_cpu);
    assert_eq!(json["functions"].as_array().map(Vec::len), Some(5));
    let svg = fs::read_to_string(place.file("flame.svg")).expect("a picture");
    assert!(
        svg.contains("Linux 6.") && svg.contains("dd ("),
        "no caption"
    );
    assert!(svg.contains("<title>read_zero (") && svg.contains("drivers/char/mem.c:"));
    let folded = fs::read_to_string(place.file("folded")).expect("folded stacks");
    let sum: u64 = folded
        .lines()
        .map(|line| {
            line.rsplit_once(' ')
                .expect("a count")
                .1
                .parse::<u64>()
                .expect("a number")
        })
        .sum();
    assert_eq!(sum, on_cpu);
    let human = place.report(&["--top", "1000"]);
    assert!(text(&human.stdout).contains("read_zero  drivers/char/mem.c:"));
}

#[test]
fn user_code_belongs_to_its_task() {
    let place = Place::new();
    assert_eq!(place.record(&[], SPIN).status.code(), Some(0));
    let profile = place.profile();
    let (kernel, user) = by_task(&profile)["sh"];
    assert!(
        percent(user, profile.on_cpu()) > 60.0,
        "{:?}",
        by_task(&profile)
    );
    assert!(user > 4 * kernel, "{:?}", by_task(&profile));
    let hottest = profile.functions_by_cost()[0].function.clone();
    assert_eq!(
        (hottest.name.as_str(), hottest.kind),
        ("[guest user]", FunctionKind::User)
    );
}

#[test]
fn an_idle_guest_has_no_on_cpu_samples_to_speak_of() {
    let place = Place::new();
    assert_eq!(
        place.record(&["-F", "99"], "sleep 2").status.code(),
        Some(0)
    );
    let profile = place.profile();
    assert!(
        percent(profile.sampling.idle, profile.sampling.samples) > 60.0,
        "{profile:?}"
    );
    let counted: u64 = profile
        .samples
        .iter()
        .filter(|group| group.state == State::Idle)
        .map(|group| group.count)
        .sum();
    assert_eq!(counted, profile.sampling.idle);
}

#[test]
fn exit_codes_pass_through() {
    let place = Place::new();
    assert_eq!(place.record(&[], "exit 7").status.code(), Some(7));
    assert_eq!(place.profile().sampling.end, End::Done);
    // Nothing was done, which is no reason to fail.
    assert_eq!(place.report(&[]).status.code(), Some(0));
}

#[test]
fn mistakes_are_told_before_the_work() {
    let place = Place::new();
    for rate in ["0", "20001", "many"] {
        assert_eq!(place.record(&["-F", rate], "true").status.code(), Some(2));
    }
    let output = place.record(&["-o", "missing/x.kscope"], "echo ran; exit 3");
    assert_eq!(output.status.code(), Some(96));
    assert!(text(&output.stderr).contains("missing/x.kscope"));
    assert_eq!(text(&output.stdout), "");
    let output = run(place.kscope().args(["record", "nobody-has-this-name"]));
    assert_eq!(output.status.code(), Some(96));
    fs::write(place.file("record.kscope"), "something else").expect("a file");
    let output = place.report(&[]);
    assert_eq!(output.status.code(), Some(96));
    assert!(text(&output.stderr).contains("not a kscope recording"));
}

#[test]
fn a_running_guest_is_recorded_until_interrupted() {
    let place = Place::new();
    let guest = place.boot(&format!("while :; do {COPY}; done 2>/dev/null"));
    // For a time.
    let output = run(place.kscope().args(["record", "-d", "2", "one"]));
    assert_eq!(output.status.code(), Some(0));
    let profile = place.profile();
    assert!(
        by_task(&profile).contains_key("dd"),
        "{:?}",
        by_task(&profile)
    );
    assert_eq!(profile.guest.name, "one");
    assert!(profile.guest.command.is_empty());
    // Until Ctrl-C, of the only guest.
    let mut recorder = place
        .kscope()
        .args(["record", "-o", "second"])
        .spawn()
        .expect("kscope");
    wait_for_tracer(guest.pid);
    thread::sleep(Duration::from_millis(500));
    let pid = Pid::from_raw(i32::try_from(recorder.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("a signal");
    assert_eq!(recorder.wait().expect("an end").code(), Some(0));
    assert_eq!(
        Profile::read(&place.file("second"))
            .expect("a recording")
            .sampling
            .end,
        End::Done
    );
    // The guest is let go.
    wait_for("detached guest", || {
        let status = fs::read_to_string(format!("/proc/{}/status", guest.pid)).ok()?;
        status.contains("TracerPid:\t0\n").then_some(())
    });
}

#[test]
fn a_killed_guest_leaves_its_samples() {
    let place = Place::new();
    let guest = place.boot(&format!("while :; do {COPY}; done 2>/dev/null"));
    let mut recorder = place
        .kscope()
        .args(["record", "one"])
        .spawn()
        .expect("kscope");
    wait_for_tracer(guest.pid);
    thread::sleep(Duration::from_millis(1000));
    kill(guest.pid, Signal::SIGKILL).expect("a signal");
    assert_eq!(recorder.wait().expect("an end").code(), Some(0));
    let profile = place.profile();
    assert_eq!(profile.sampling.end, End::GuestEnded);
    assert!(profile.sampling.samples > 0);
}

#[test]
fn no_privilege_is_needed() {
    if !geteuid().is_root() {
        // Then every other test has shown it.
        return;
    }
    let place = Place::new();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    };
    // Where the user nobody can read them.
    for (from, to) in [(Path::new(KSCOPE), "kscope"), (kernel(), "linux")] {
        fs::copy(from, place.file(to)).expect("a copy");
        open(&place.file(to), 0o755);
    }
    open(place.0.path(), 0o755);
    let own = place.file("own");
    fs::create_dir(&own).expect("a directory");
    nix::unistd::chown(&own, Some(65534.into()), Some(65534.into())).expect("an owner");
    let output = run(Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(place.file("kscope"))
        .args(["record", "--no-gdb", "--kernel"])
        .arg(place.file("linux"))
        .args(["--", "sh", "-c", COPY])
        .env("XDG_RUNTIME_DIR", &own)
        .env("HOME", &own)
        .current_dir(&own)
        .stdin(Stdio::null()));
    assert_eq!(output.status.code(), Some(0));
    let profile = Profile::read(&own.join("record.kscope")).expect("a recording");
    assert!(total(&profile, "read_zero") > 0, "{:?}", profile.sampling);
}

/// Shares of the kernel's own functions, inlined ones counted to those they are in, as perf sees them.
fn leaf_functions(profile: &Profile) -> BTreeMap<String, u64> {
    let mut leaves = BTreeMap::new();
    for group in profile
        .samples
        .iter()
        .filter(|group| group.state == State::Kernel)
    {
        let outer = profile.frames_of(group.stack).find(|frame| !frame.inlined);
        let Some(function) = outer.and_then(|frame| profile.function(frame)) else {
            continue;
        };
        if function.kind == FunctionKind::Kernel {
            *leaves.entry(function.name.clone()).or_default() += group.count;
        }
    }
    leaves
}

/// `perf record` of the same process, or `None` where perf may not.
fn perf_leaves(place: &Place, pid: Pid) -> Option<BTreeMap<String, u64>> {
    let data = place.file("perf.data");
    let recorded = Command::new("perf")
        .args([
            "record",
            "-q",
            "-e",
            "cpu-clock:u",
            "-F",
            "997",
            "-p",
            &pid.to_string(),
            "-o",
        ])
        .arg(&data)
        .args(["--", "sleep", "3"])
        .status();
    if !recorded.is_ok_and(|status| status.success()) {
        eprintln!("perf does not work here: not compared with it");
        return None;
    }
    let script = Command::new("perf")
        .args(["script", "-F", "ip,sym,dso", "-i"])
        .arg(&data)
        .output()
        .expect("perf script");
    let image = kernel();
    let image = image.to_str().expect("a path");
    let mut leaves = BTreeMap::new();
    for line in text(&script.stdout)
        .lines()
        .filter(|line| line.contains(image))
    {
        let symbol = line.split_whitespace().nth(1).unwrap_or("?");
        *leaves.entry(symbol.to_owned()).or_default() += 1;
    }
    Some(leaves)
}

fn shares(leaves: &BTreeMap<String, u64>) -> Vec<(String, f64)> {
    let all: u64 = leaves.values().sum();
    let mut shares: Vec<_> = leaves
        .iter()
        .map(|(name, count)| (name.clone(), percent(*count, all)))
        .collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

#[test]
fn perf_sees_the_same_functions() {
    let place = Place::new();
    let guest = place.boot(&format!("while :; do {COPY}; done 2>/dev/null"));
    let Some(perf) = perf_leaves(&place, guest.pid) else {
        return;
    };
    let output = run(place.kscope().args(["record", "-d", "3", "one"]));
    assert_eq!(output.status.code(), Some(0));
    let (ours, theirs) = (shares(&leaf_functions(&place.profile())), shares(&perf));
    eprintln!(
        "kscope {:?}\nperf   {:?}",
        &ours[..ours.len().min(12)],
        &theirs[..theirs.len().min(12)]
    );
    let total: u64 = perf.values().sum();
    assert!(total > 50, "perf has {total} samples");
    // What perf finds to be hot, we do.
    for (name, share) in theirs.iter().filter(|(_, share)| *share > 8.0) {
        let our = ours
            .iter()
            .find(|(own, _)| own == name)
            .map_or(0.0, |(_, share)| *share);
        assert!(
            (our - share).abs() < 0.25 * share + 5.0,
            "{name}: perf {share:.1} %, kscope {our:.1} %"
        );
    }
}
