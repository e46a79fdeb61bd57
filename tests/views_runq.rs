//! `kscope runq` against the scheduler's own account in debugfs, and against what it picks.

mod common;
#[path = "views_runq/groups.rs"]
mod groups;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::session::Session;
use common::terminal::{on_terminal, size};
use common::{TestKernel, kernels, until, wait};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use serde_json::Value;

/// Makes the shell more important than anything that it starts, and takes away what lets fair
/// tasks run beside busy ones with fixed priority.
const RULE: &str = "chrt -f -p 60 $$; echo -1 >/proc/sys/kernel/sched_rt_runtime_us; \
    mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug; \
    for f in /sys/kernel/debug/sched/*_server/cpu*/runtime; do \
      test -e $f && echo 0 >$f; done; true";

/// Starts busy tasks on CPU 0, by their names and options of chrt(1) and nice(1); prints pids.
fn busy(guest: &mut Session, tasks: &[(&str, &str)]) -> HashMap<String, i64> {
    let mut pids = HashMap::new();
    for (name, start) in tasks {
        let command = format!("taskset -c 0 {start} sh -c 'while :; do :; done' & echo $!");
        let pid = guest.ask(&command);
        pids.insert((*name).to_owned(), pid.trim().parse().expect("a pid"));
    }
    pids
}

/// The fair ones.
const FAIR: [(&str, &str); 5] = [
    ("0", "chrt -o 0"),
    ("also 0", "chrt -o 0"),
    ("5", "chrt -o 0 nice -n 5"),
    ("-5", "chrt -o 0 nice -n -5"),
    ("idle", "chrt -i 0"),
];

/// The kernel's weights (`sched_prio_to_weight`), which are ABI in all but name.
fn weight(name: &str) -> u64 {
    match name {
        "5" => 335,
        "-5" => 3121,
        "idle" => 3,
        _ => 1024,
    }
}

/// `123.000456` of milliseconds as nanoseconds; `-2.000456` is what is 456 ns above -2 ms.
fn ns(text: &str) -> i64 {
    let (ms, rest) = text.split_once('.').expect("a number with a point");
    let (ms, rest): (i64, i64) = (ms.parse().expect("ms"), rest.parse().expect("ns"));
    let sign = if text.starts_with('-') { -1 } else { 1 };
    ms * 1_000_000 + sign * rest
}

/// The scheduler's account of one CPU.
struct Account {
    /// Of the CPU and its fair queue: `nr_running`, `avg_vruntime`.
    numbers: HashMap<String, String>,
    /// The same of the fair queues of groups, by their paths.
    groups: HashMap<String, HashMap<String, String>>,
    /// What comes after the pid in the lines of tasks.
    tasks: HashMap<i64, Vec<String>>,
}

impl Account {
    /// The runqueue's clock, in nanoseconds.
    fn clock(&self) -> i64 {
        ns(&self.numbers["clock"])
    }
}

fn account(text: &str) -> Account {
    let mut account = Account {
        numbers: HashMap::new(),
        groups: HashMap::new(),
        tasks: HashMap::new(),
    };
    let cpu = text.split("cpu#0").nth(1).expect("CPU 0");
    let cpu = cpu.split("cpu#1").next().expect("CPU 0");
    let (queues, tasks) = cpu.split_once("runnable tasks:").expect("tasks");
    // Not those of the other classes' queues, which have the same names.
    let fair = queues.split("\nrt_rq").next().expect("a fair queue");
    let mut numbers = &mut account.numbers;
    for line in fair.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("cfs_rq[0]:") {
            numbers = match path {
                "" | "/" => &mut account.numbers,
                path => account.groups.entry(path.to_owned()).or_default(),
            };
        } else if let Some((name, value)) = line.strip_prefix('.').and_then(|l| l.split_once(':')) {
            let value = value.split_whitespace().next().unwrap_or_default();
            let name = name.trim().to_owned();
            numbers.entry(name).or_insert(value.to_owned());
        }
    }
    for line in tasks.lines() {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        if let [_, _, pid, rest @ ..] = &words[..]
            && let Ok(pid) = pid.parse()
        {
            account.tasks.insert(pid, rest.to_vec());
        }
    }
    account
}

fn cpu0(view: &Value) -> &Value {
    let queue = &view[0];
    assert_eq!(queue["cpu"], 0);
    queue
}

fn int(value: &Value, key: &str) -> i64 {
    let number = &value[key];
    number
        .as_i64()
        .unwrap_or_else(|| panic!("{key}: {value:#}"))
}

/// Keeps CPU 0 busy with fixed priority for some seconds, so that its fair tasks all wait, and has
/// the scheduler's account again and again.
const FREEZE: &str = "chrt -f 50 taskset -c 0 sh -c '
    chrt -r 40 sh -c \"while :; do :; done\" & rr=$!
    read now rest </proc/uptime; end=$((${now%.*} + 5))
    while [ ${now%.*} -lt $end ]; do
        cat /sys/kernel/debug/sched/debug; echo @next
        spin=0; while [ $spin -lt 10000 ]; do spin=$((spin + 1)); done
        read now rest </proc/uptime
    done >/tmp/accounts
    cat /sys/kernel/debug/sched/debug >>/tmp/accounts
    kill $rr
    ' & wait $!; cat /tmp/accounts";

/// Views while the fair tasks of CPU 0 stand still, each with the accounts before and after.
///
/// They stand still most of the time only: a kernel thread may wake and queue up between any two
/// accounts.
fn frozen(guest: &mut Session) -> Vec<(Account, Value, Account)> {
    guest.begin(FREEZE);
    let mut views = Vec::new();
    let begun = Instant::now();
    until("CPU 0 is kept busy", || {
        let view = guest.view(&["runq"]);
        let current = &cpu0(&view)["current"];
        let is_rr = |task: &Value| task["task"]["policy"] == "rr";
        let realtime = cpu0(&view)["realtime"].as_array().expect("an array");
        if (&current["policy"], &current["comm"]) == (&"fifo".into(), &"sh".into())
            && realtime.iter().any(is_rr)
        {
            views.push(view);
        }
        views.len() == 8 || !views.is_empty() && begun.elapsed() > Duration::from_secs(3)
    });
    let said = guest.end();
    let accounts = || said.split("@next").map(account);
    let mut frozen = Vec::new();
    for view in views {
        let time = int(cpu0(&view), "clock");
        let mut pairs = accounts().zip(accounts().skip(1));
        let around = pairs.find(|(before, after)| (before.clock()..=after.clock()).contains(&time));
        if let Some((before, after)) = around {
            frozen.push((before, view, after));
        }
    }
    frozen
}

#[test]
fn a_queue_that_stands_still_is_as_the_scheduler_says() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(RULE);
        let pids = busy(&mut guest, &FAIR);
        // Let them become unequal.
        guest.ask("sleep 0.5");
        let mut complaints = Vec::new();
        let fits = (0..5).any(|_| {
            frozen(&mut guest).iter().any(|(before, view, after)| {
                compare(kernel, &pids, before, cpu0(view), after)
                    .map_err(|wrong| complaints.push(format!("{wrong}: {view:#}")))
                    .is_ok()
            })
        });
        assert!(fits, "{}: {complaints:#?}", kernel.name);
    }
}

/// Compares a queue whose fair part stands still with the accounts before and after. What cannot
/// be told apart from a queue that did not stand still is an error.
fn compare(
    kernel: &TestKernel,
    pids: &HashMap<String, i64>,
    before: &Account,
    queue: &Value,
    after: &Account,
) -> Result<(), String> {
    let name = kernel.name;
    let is_eevdf = name != "6.1";
    let fair = &queue["fair"];
    let switches = |account: &Account| account.numbers["nr_switches"].parse().expect("a number");
    let between: RangeInclusive<i64> = switches(before)..=switches(after);
    if !between.contains(&int(queue, "switches")) {
        return Err(format!("{name}: switches are not in {between:?}"));
    }
    let v = if is_eevdf {
        "avg_vruntime"
    } else {
        "min_vruntime"
    };
    if before.numbers[v] != after.numbers[v] {
        return Err(format!("{name}: {v} did not stand still"));
    }
    assert_eq!(
        ns(&before.numbers[v]),
        int(fair, "vtime"),
        "{name}: {queue:#}"
    );
    let number = |key: &str| before.numbers[key].parse::<i64>().expect("a number");
    assert_eq!(
        number("load") >> 10,
        int(fair, "weight"),
        "{name}: {queue:#}"
    );
    let mut keys = Vec::new();
    let (mut met, mut delayed) = (0, 0);
    for entity in fair["entities"].as_array().expect("an array") {
        let task = &entity["task"];
        let pid = int(task, "pid");
        let Some(words) = before.tasks.get(&pid).filter(|&words| {
            // A task that woke or left is in one of them only.
            after.tasks.get(&pid) == Some(words)
        }) else {
            return Err(format!("{name}: {pid} did not stand still"));
        };
        // 7.3 has the weight first.
        let words = match is_eevdf && !matches!(words[1].as_str(), "E" | "N") {
            true => &words[1..],
            false => &words[..],
        };
        let who = format!("{name}: {pid}: {words:?}: {entity:#}");
        assert_eq!(ns(&words[0]), int(entity, "vruntime"), "{who}");
        assert_eq!(
            (&entity["on_rq"], &entity["current"]),
            (&true.into(), &false.into())
        );
        if is_eevdf {
            let eevdf = &entity["eevdf"];
            assert_eq!(eevdf["eligible"], words[1] == "E", "{who}");
            assert_eq!(ns(&words[2]), int(eevdf, "deadline"), "{who}");
            let custom = usize::from(words[3] == "S");
            assert_eq!(eevdf["custom_slice"], custom == 1, "{who}");
            assert_eq!(ns(&words[3 + custom]), int(eevdf, "slice"), "{who}");
            assert_eq!(ns(&words[4 + custom]), int(entity, "runtime"), "{who}");
            let lag = int(fair, "vtime") - int(entity, "vruntime");
            assert_eq!(lag, int(eevdf, "lag"), "{who}");
            delayed += usize::from(eevdf["delayed"] == true);
            keys.push(int(eevdf, "deadline"));
        } else {
            assert_eq!(words[2].parse().ok(), task["prio"].as_i64(), "{who}");
            keys.push(int(entity, "vruntime"));
        }
        let Some((start, _)) = pids.iter().find(|(_, known)| **known == pid) else {
            continue;
        };
        met += 1;
        assert_eq!(int(entity, "weight") as u64, weight(start), "{who}");
        assert_eq!(int(entity, "share") as u64, weight(start), "{who}");
        let nice = start.trim_start_matches("also ").parse::<i64>();
        let policy = if nice.is_ok() { "normal" } else { "idle" };
        assert_eq!(task["policy"], policy, "{who}");
        assert_eq!(int(task, "nice"), nice.unwrap_or(0), "{who}");
    }
    assert_eq!(met, FAIR.len(), "{name}: {queue:#}");
    assert!(keys.is_sorted(), "{name}: {keys:?}");
    // What goes before the fair ones: the shell that keeps the CPU busy, then what it started.
    let realtime = queue["realtime"].as_array().expect("an array");
    let [fifo, .., rr] = &realtime[..] else {
        panic!("{name}: {queue:#}");
    };
    // The kernel's own count of all of them, but for those that sleep already.
    let listed = realtime.len() + keys.len() - delayed;
    assert_eq!(int(queue, "nr_running"), listed as i64, "{name}: {queue:#}");
    assert_eq!((int(fifo, "priority"), int(rr, "priority")), (50, 40));
    assert_eq!(fifo["task"]["policy"], "fifo");
    assert_eq!(fifo["ticks_left"], Value::Null);
    assert!(int(rr, "ticks_left") <= 10, "100 ms at most: {rr:#}");
    assert_eq!(queue["current"], fifo["task"], "{queue:#}");
    assert_eq!(queue["next"]["task"], fifo["task"], "{queue:#}");
    assert_eq!(queue["next"]["reason"], "priority", "{queue:#}");
    Ok(())
}

#[test]
fn a_deadline_task_goes_before_the_others() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(RULE);
        let times = "-T 30000000 -D 90000000 -P 100000000 0";
        // Such a task may not be bound to some of the CPUs.
        let pid = guest.ask(&format!(
            "chrt -d {times} sh -c 'while :; do :; done' & echo $!"
        ));
        let pid: i64 = pid.trim().parse().expect("a pid");
        until("it is queued", || {
            let view = guest.view(&["runq"]);
            let queues = view.as_array().expect("an array");
            let found = queues.iter().find_map(|queue| {
                let tasks = queue["deadline"].as_array().expect("an array");
                let task = tasks.iter().find(|task| task["task"]["pid"] == pid)?;
                Some((queue, task))
            });
            let Some((queue, task)) = found else {
                return false;
            };
            assert_eq!(int(task, "per_period"), 30_000_000);
            assert_eq!(int(task, "period"), 100_000_000);
            assert!(int(task, "runtime") <= 30_000_000);
            // At most the time to its deadline from now on.
            let left = int(task, "deadline") - int(queue, "clock");
            assert!(left <= 90_000_000, "{left}");
            assert_eq!(task["task"]["policy"], "deadline");
            assert_eq!(int(&task["task"], "prio"), -1);
            if queue["stop"].is_null() {
                assert_eq!(queue["next"]["task"]["pid"], pid, "{queue:#}");
                assert_eq!(queue["next"]["reason"], "deadline");
            }
            true
        });
    }
}

/// Stops where the fair class picks, asks kscope, and looks what the kernel does.
const PICKS: &str = r#"
eevdf = any(f.name == 'deadline' for f in gdb.lookup_type('struct sched_entity').fields())
name = 'pick_eevdf' if eevdf else 'set_next_entity'
gdb.Breakpoint(name)
reasons = {}
for i in range(25):
    gdb.execute('continue', to_string=True)
    queue = view('runq')[0]
    fair = queue['fair']
    assert int(gdb.parse_and_eval('$rdi')) == int(fair['addr'], 16), fair['addr']
    ours = [e for e in fair['entities'] if e['next']]
    if eevdf:
        gdb.execute('finish', to_string=True)
        picked = int(gdb.parse_and_eval('$rax'))
    else:
        # At its start: who was picked is its second argument.
        picked = int(gdb.parse_and_eval('$rsi'))
    delayed = [e['addr'] for e in fair['entities'] if e['eevdf'] and e['eevdf']['delayed']]
    if hex(picked) in delayed:
        # The kernel lets go of it and picks again.
        reasons['delayed'] = reasons.get('delayed', 0) + 1
        continue
    assert [e['addr'] for e in ours] == [hex(picked)], (hex(picked), json.dumps(queue))
    assert queue['next']['task']['addr'] == ours[0]['task']['addr'], json.dumps(queue)
    reason = queue['next']['reason']
    reasons[reason] = reasons.get(reason, 0) + 1
print('@reasons', json.dumps(reasons))
"#;

#[test]
fn the_kernel_picks_whom_kscope_says() {
    for kernel in kernels().iter().filter(|kernel| kernel.args.is_empty()) {
        let mut guest = Session::start(kernel, &[]);
        busy(&mut guest, &FAIR);
        guest.ask("(while :; do sleep 0.02; done) & sleep 0.5");
        let out = guest.gdb_python(PICKS);
        let reasons = out.lines().find_map(|line| line.strip_prefix("@reasons "));
        let reasons = reasons.unwrap_or_else(|| panic!("{}: {out}", kernel.name));
        let reasons: HashMap<String, u64> = serde_json::from_str(reasons).expect("JSON");
        let usual = match kernel.name {
            "6.1" => "least-vruntime",
            _ => "earliest-eligible",
        };
        assert!(reasons[usual] > 5, "{}: {reasons:?}", kernel.name);
    }
}

#[test]
fn watching_prints_one_after_the_other_into_a_pipe() {
    let mut guest = Session::start(&kernels()[0], &[]);
    busy(&mut guest, &FAIR);
    let mut text = guest.command(&["runq", "--watch", "0.05"]);
    let mut text = text.spawn().expect("kscope starts");
    let lines = BufReader::new(text.stdout.take().expect("a pipe")).lines();
    let starts = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("CPU 0: "));
    assert_eq!(starts.take(3).count(), 3);
    // Nobody reads on.
    assert!(wait(&mut text).success());
    let mut json = guest.command(&["runq", "--watch=0.05", "--format", "json"]);
    let mut json = json.spawn().expect("kscope starts");
    let mut lines = BufReader::new(json.stdout.take().expect("a pipe")).lines();
    let mut switches = Vec::new();
    for _ in 0..3 {
        let line = lines.next().expect("a line").expect("text");
        let view: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(view["version"], 1);
        switches.push(int(cpu0(&view["runq"]), "switches"));
    }
    assert!(
        switches.is_sorted() && switches[0] < switches[2],
        "{switches:?}"
    );
    // The guest ends.
    drop(guest);
    for line in lines {
        serde_json::from_str::<Value>(&line.expect("text")).expect("JSON");
    }
    assert!(wait(&mut json).success());
}

#[test]
fn watching_leaves_the_terminal_as_it_was() {
    let mut guest = Session::start(&kernels()[0], &[]);
    busy(&mut guest, &FAIR);
    for end in ["q", "\x03", "TERM"] {
        let pty = openpty(Some(&size(24, 100)), None).expect("a terminal");
        let before = tcgetattr(&pty.slave).expect("settings");
        let mut kscope = guest.command(&["runq", "--watch", "0.05"]);
        on_terminal(&mut kscope, &pty.slave);
        let mut child = kscope.spawn().expect("kscope starts");
        drop(kscope);
        let mut master = File::from(pty.master);
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut reader, sink) = (master.try_clone().expect("a file"), Arc::clone(&seen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                sink.lock().expect("the text").push_str(&text);
            }
        });
        let pictures = |more: &str| {
            let seen = seen.lock().expect("the text");
            let pictures = seen.split("\x1b[H").skip(1);
            pictures.filter(|p| p.contains(more)).count()
        };
        until("three pictures", || {
            pictures("kscope runq asked, every 0.05 s") >= 3
        });
        assert!(seen.lock().expect("the text").starts_with("\x1b[?1049h"));
        assert_ne!(tcgetattr(&pty.slave).expect("settings"), before);
        // A small window has what fits, and says so.
        assert_eq!(pictures("more lines"), 0);
        let small = size(6, 40);
        // SAFETY: the call reads one winsize.
        let resized = unsafe {
            nix::libc::ioctl(master.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const small)
        };
        assert_eq!(resized, 0);
        until("a small picture", || pictures("more lines") >= 1);
        match end {
            "TERM" => kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("a signal"),
            key => master.write_all(key.as_bytes()).expect("a key"),
        }
        assert!(wait(&mut child).success(), "{end:?}");
        until("the end", || {
            let seen = seen.lock().expect("the text");
            seen.ends_with("\x1b[?25h\x1b[?1049l")
        });
        assert_eq!(tcgetattr(&pty.slave).expect("settings"), before, "{end:?}");
    }
}

#[test]
fn a_bad_interval_is_refused() {
    let guest = Session::start(&kernels()[0], &[]);
    guest
        .kscope(&["runq", "--watch", "never"])
        .expect(2)
        .says(&["the guest's name goes before --watch"]);
}
