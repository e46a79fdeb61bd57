//! `kscope irq` against /proc/interrupts, /proc/softirqs and /sys/kernel/irq.

mod common;

use std::collections::BTreeMap;

use common::kernels;
use common::session::Session;
use serde_json::Value;

/// A line of /proc/interrupts: the counts, the chip, the names.
type Line = (Vec<u64>, Vec<String>);

fn lines(text: &str, cpus: usize) -> BTreeMap<String, Line> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let words: Vec<_> = rest.split_whitespace().collect();
        let counts = words[..cpus].iter().map(|w| w.parse().expect("a count"));
        let rest = words[cpus..].iter().map(|word| (*word).to_owned());
        found.insert(name.trim().to_owned(), (counts.collect(), rest.collect()));
    }
    found
}

fn counts(value: &Value) -> Vec<u64> {
    let counts = value["counts"].as_array().expect("counts");
    counts
        .iter()
        .map(|c| c.as_u64().expect("a count"))
        .collect()
}

/// Whether each count is between the two.
fn between(before: &[u64], seen: &[u64], after: &[u64]) -> bool {
    before.len() == seen.len()
        && seen.len() == after.len()
        && (0..seen.len()).all(|at| (before[at]..=after[at]).contains(&seen[at]))
}

#[test]
fn interrupts_are_those_of_proc() {
    for kernel in kernels() {
        let cpus = kernel.cpus();
        let mut guest = Session::start(kernel, &[]);
        // Since 7.3 /proc/interrupts shows zeros for what all CPUs have of their own; sysfs, where
        // it has interrupts, does not.
        let script = "cat /proc/interrupts; cd /sys/kernel/irq 2>/dev/null && for i in *; do \
                      echo \"count$i: $(tr , ' ' <$i/per_cpu_count)\"; done";
        guest.compare(script, &["irq"], |before, view, after| {
            let (before, after) = (lines(before, cpus), lines(after, cpus));
            let mut met = 0;
            for interrupt in view["interrupts"].as_array().expect("an array") {
                let irq = interrupt["irq"].to_string();
                let (_, words) = before
                    .get(&irq)
                    .ok_or_else(|| format!("{}: no {irq}", kernel.name))?;
                let actions = interrupt["actions"].as_array().expect("an array");
                let names: Vec<_> = actions
                    .iter()
                    .map(|action| action["name"].as_str().expect("a name"))
                    .collect();
                let known = words.join(" ");
                let chip = interrupt["chip"].as_str().expect("a chip");
                if !known.starts_with(chip) || !known.ends_with(&names.join(", ")) {
                    return Err(format!("{}: {irq} is {chip} {names:?}", kernel.name));
                }
                let key = match before.contains_key(&format!("count{irq}")) {
                    true => format!("count{irq}"),
                    false => irq.clone(),
                };
                if !between(&before[&key].0, &counts(interrupt), &after[&key].0) {
                    return Err(format!("{}: {irq} does not fit", kernel.name));
                }
                met += 1;
            }
            for ipi in view["ipis"].as_array().expect("an array") {
                let name = ipi["name"].as_str().expect("a name");
                if !between(&before[name].0, &counts(ipi), &after[name].0) {
                    return Err(format!("{}: {name} does not fit", kernel.name));
                }
                met += 1;
            }
            let shown = before.keys().filter(|key| !key.starts_with("count"));
            assert_eq!(met, shown.count(), "{}: {view:#}", kernel.name);
            Ok(())
        });
        let view = guest.view(&["irq"]);
        assert_eq!(view["cpus"].as_array().expect("CPUs").len(), cpus);
        assert_eq!(view["ipis"].as_array().expect("IPIs").is_empty(), cpus == 1);
        // The timer ticks on every CPU, and um_timer() handles it.
        let timer = &view["interrupts"][0];
        assert!(counts(timer).iter().all(|&count| count > 0), "{timer:#}");
        assert_eq!(timer["actions"][0]["handler"], "um_timer");
        let text = guest.kscope(&["irq"]).expect(0).text();
        assert!(text.contains(" um_timer\n"), "{text}");
    }
}

#[test]
fn softirqs_are_those_of_proc() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        // /proc/softirqs has a column for each CPU that could be there.
        let possible = guest.ask("head -1 /proc/softirqs | wc -w");
        let possible: usize = possible.trim().parse().expect("a number");
        guest.compare("cat /proc/softirqs", &["irq"], |before, view, after| {
            let (before, after) = (lines(before, possible), lines(after, possible));
            let softirqs = view["softirqs"].as_array().expect("an array");
            assert_eq!(softirqs.len(), before.len(), "{}", kernel.name);
            for softirq in softirqs {
                let name = softirq["name"].as_str().expect("a name");
                let seen = counts(softirq);
                assert_eq!(seen.len(), kernel.cpus());
                let (before, after) = (&before[name].0, &after[name].0);
                if !between(&before[..seen.len()], &seen, &after[..seen.len()]) {
                    return Err(format!("{}: {name} does not fit", kernel.name));
                }
            }
            let rcu = softirqs.iter().find(|softirq| softirq["name"] == "RCU");
            let rcu = counts(rcu.expect("RCU"));
            assert!(rcu.iter().sum::<u64>() > 0, "{view:#}");
            Ok(())
        });
    }
}
