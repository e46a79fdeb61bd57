//! `kscope timers` against /proc/timer_list, and the timer wheel against gdb.

mod common;

use std::collections::HashSet;

use common::kernels;
use common::session::Session;
use serde_json::Value;

/// A high-resolution timer: CPU, number of the clock, function, and between when and when.
type Timer = (u64, u64, String, i64, i64);

/// What /proc/timer_list says.
#[derive(Default)]
struct TimerList {
    timers: HashSet<Timer>,
    now: u64,
    jiffies: u64,
    offsets: Vec<i64>,
    devices: Vec<String>,
    handlers: Vec<String>,
}

fn timer_list(text: &str) -> TimerList {
    let mut list = TimerList::default();
    let (mut cpu, mut clock) = (0, 0);
    let mut function = String::new();
    for line in text.lines().map(str::trim) {
        let number = |text: &str| {
            let word = text.split_whitespace().next().expect("a number");
            word.parse::<i64>().expect("a number")
        };
        if let Some(rest) = line.strip_prefix("now at ") {
            list.now = number(rest) as u64;
        } else if let Some(rest) = line.strip_prefix("cpu: ") {
            cpu = number(rest) as u64;
        } else if let Some(rest) = line.strip_prefix("clock ") {
            clock = number(rest.trim_end_matches(':')) as u64;
        } else if let Some(rest) = line.strip_prefix(".offset:") {
            list.offsets.push(number(rest));
        } else if let Some(rest) = line.strip_prefix("jiffies: ") {
            list.jiffies = number(rest) as u64;
        } else if let Some(rest) = line.strip_prefix("Clock Event Device: ") {
            list.devices.push(rest.to_owned());
        } else if let Some(rest) = line.strip_prefix("event_handler:") {
            list.handlers.push(rest.trim().to_owned());
        } else if let Some(rest) = line.strip_prefix("# expires at ") {
            let (soft, rest) = rest.split_once('-').expect("a range");
            let timer = (cpu, clock, function.clone(), number(soft), number(rest));
            list.timers.insert(timer);
        } else if line.starts_with('#') {
            let (_, rest) = line.split_once(">, ").expect("a function");
            rest.split_once(',')
                .expect("a state")
                .0
                .clone_into(&mut function);
        }
    }
    list
}

fn of_view(view: &Value) -> HashSet<Timer> {
    let mut timers = HashSet::new();
    for cpu in view["cpus"].as_array().expect("CPUs") {
        for (clock, base) in cpu["clocks"].as_array().expect("clocks").iter().enumerate() {
            for timer in base["timers"].as_array().expect("timers") {
                timers.insert((
                    cpu["cpu"].as_u64().expect("a CPU"),
                    clock as u64,
                    timer["function"].as_str().expect("a function").to_owned(),
                    timer["soft_expires"].as_i64().expect("a time"),
                    timer["expires"].as_i64().expect("a time"),
                ));
            }
        }
    }
    timers
}

#[test]
fn high_resolution_timers_are_those_of_timer_list() {
    for kernel in kernels() {
        let name = kernel.name;
        let mut guest = Session::start(kernel, &[]);
        let sleepers = guest.ask(
            "for i in 1001 1002 1003; do sleep $i & echo hrtimer_wakeup $!; done; \
             timeout 1004 sleep 2000 & echo posix_timer_fn $!; \
             perl -e 'alarm 1005; sleep 3000' & echo it_real_fn $!; sleep 0.5",
        );
        guest.compare(
            "cat /proc/timer_list",
            &["timers"],
            |before, view, after| {
                let (before, after) = (timer_list(before), timer_list(after));
                let seen = of_view(view);
                // What was there all the time.
                let all_the_time: Vec<_> = before.timers.intersection(&after.timers).collect();
                let sleepers = all_the_time.iter().filter(|t| t.2 == "hrtimer_wakeup");
                assert!(sleepers.count() >= 5, "{name}: {all_the_time:?}");
                if let Some(missing) = all_the_time.iter().find(|t| !seen.contains(**t)) {
                    return Err(format!("{name}: {missing:?} is missing"));
                }
                // And nothing that was never there, but for what came and went meanwhile.
                let invented = seen.iter().filter(|timer| {
                    let known = before.timers.contains(*timer) || after.timers.contains(*timer);
                    let comes_and_goes = timer.2.starts_with("tick_") || timer.2 == "dl_task_timer";
                    !known && !comes_and_goes
                });
                if let Some(invented) = invented.into_iter().next() {
                    return Err(format!("{name}: {invented:?} is not in the guest"));
                }
                let number = |key: &str| view[key].as_u64().expect("a number");
                assert!((before.jiffies..=after.jiffies).contains(&number("jiffies")));
                assert_eq!(number("tick_ns"), 10_000_000, "CONFIG_HZ=100");
                // It is a tick late at most, if ticks are not left out.
                assert!(number("monotonic") <= after.now);
                let offsets: Vec<_> = view["cpus"]
                    .as_array()
                    .expect("CPUs")
                    .iter()
                    .flat_map(|cpu| cpu["clocks"].as_array().expect("clocks"))
                    .map(|clock| clock["offset"].as_i64().expect("an offset"))
                    .collect();
                if offsets != before.offsets {
                    return Err(format!("{name}: offsets {offsets:?}"));
                }
                assert!(offsets[1] > 1_700_000_000_000_000_000, "{offsets:?}");
                for (at, cpu) in view["cpus"].as_array().expect("CPUs").iter().enumerate() {
                    assert_eq!(cpu["device"]["name"], *before.devices[at]);
                    assert_eq!(cpu["device"]["handler"], *before.handlers[at]);
                    assert_eq!(cpu["device"]["high_resolution"], true);
                }
                Ok(())
            },
        );
        // Whom they are for.
        let view = guest.view(&["timers"]);
        let mut owners = HashSet::new();
        for cpu in view["cpus"].as_array().expect("CPUs") {
            for clock in cpu["clocks"].as_array().expect("clocks") {
                for timer in clock["timers"].as_array().expect("timers") {
                    let function = timer["function"].as_str().expect("a function");
                    owners.insert(format!("{function} {}", timer["owner"]["task"]["pid"]));
                }
            }
        }
        for sleeper in sleepers.lines() {
            assert!(owners.contains(sleeper), "{name}: {sleeper} in {view:#}");
        }
    }
}

/// Walks the wheels with gdb's knowledge of the types.
const WHEELS: &str = r#"
def symbol(pointer):
    return gdb.execute('info symbol %d' % int(pointer), to_string=True).split()[0]

seen = view('timers')
entry = [f for f in gdb.lookup_type('struct timer_list').fields() if f.name == 'entry'][0]
timer_type = gdb.lookup_type('struct timer_list').pointer()
bases = gdb.parse_and_eval('&timer_bases')
try:
    offsets = gdb.parse_and_eval('__per_cpu_offset')
except gdb.error:
    offsets = None
def mask(value):
    return int(value) & (2 ** 64 - 1)
for cpu in seen['cpus']:
    here = mask(bases)
    if offsets is not None:
        here = mask(here + mask(offsets[cpu['cpu']]))
    array = gdb.Value(here).cast(bases.type).dereference()
    first, last = array.type.range()
    for at in range(first, last + 1):
        base = array[at]
        found = set()
        low, high = base['vectors'].type.range()
        for vector in range(low, high + 1):
            node = base['vectors'][vector]['first']
            while int(node):
                timer = gdb.Value(mask(node) - entry.bitpos // 8).cast(timer_type)
                found.add((hex(mask(timer)), mask(timer['expires']), symbol(timer['function'])))
                node = node['next']
        wheel = cpu['wheels'][at]
        ours = set((t['addr'], t['expires'], t['function']) for t in wheel['timers'])
        assert ours == found, (cpu['cpu'], wheel['name'], ours ^ found)
        assert wheel['clock'] == mask(base['clk']), wheel['clock']
        assert [t['ticks'] for t in wheel['timers']] == sorted(t['ticks'] for t in wheel['timers'])
        print('@wheel', cpu['cpu'], wheel['name'], len(found))
    last = at
assert seen['jiffies'] == mask(gdb.parse_and_eval('jiffies_64')), seen['jiffies']
print('@done')
"#;

#[test]
fn the_wheels_are_those_that_gdb_walks() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        let out = guest.gdb_python(WHEELS);
        assert!(out.contains("@done"), "{}: {out}", kernel.name);
        let wheels = out.lines().filter(|line| line.starts_with("@wheel"));
        let timers = wheels.map(|line| {
            let count = line.rsplit(' ').next().expect("a number");
            count.parse::<usize>().expect("a number")
        });
        assert!(timers.sum::<usize>() >= 4, "{}: {out}", kernel.name);
        // khungtaskd sleeps with a timer of its own.
        let pid = guest.ask("pgrep -x khungtaskd");
        let text = guest.kscope(&["timers"]).text();
        let name = format!("{} khungtaskd", pid.trim());
        let mut sleeps = text
            .lines()
            .filter(|line| line.contains(" process_timeout "));
        assert!(
            sleeps.any(|line| line.ends_with(&name)),
            "{}: {text}",
            kernel.name
        );
    }
}
