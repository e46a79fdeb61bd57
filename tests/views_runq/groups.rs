//! Queues of task groups.

use super::*;

/// Starts busy tasks on CPU 0 in nested groups, one of which has twice the weight of a task; prints
/// the pids by the group's path.
const GROUPS: &str = "mkdir -p /tmp/cg; mount -t cgroup2 none /tmp/cg; cd /tmp/cg; \
    mkdir -p g/leaf g/h; echo +cpu >cgroup.subtree_control; \
    echo +cpu >g/cgroup.subtree_control; echo 200 >g/cpu.weight; \
    for group in g/leaf g/h g/h; do \
      chrt -o 0 sh -c 'echo $$ >$0/cgroup.procs; exec taskset -c 0 sh -c \"while :; do :; done\"' \
        $group & echo /$group $!; \
    done";

#[test]
fn groups_are_queued_as_the_scheduler_says() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        guest.ask(RULE);
        let members = guest.ask(GROUPS);
        let members: Vec<(&str, i64)> = members
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(path, pid)| (path, pid.parse().expect("a pid")))
            .collect();
        assert_eq!(members.len(), 3, "{members:?}");
        guest.ask("sleep 0.5");
        let mut complaints = Vec::new();
        let fits = (0..5).any(|_| {
            frozen(&mut guest).iter().any(|(before, view, after)| {
                compare_groups(&members, before, cpu0(view), after)
                    .map_err(|wrong| complaints.push(format!("{wrong}: {view:#}")))
                    .is_ok()
            })
        });
        assert!(fits, "{}: {complaints:#?}", kernel.name);
    }
}

/// Compares what groups have queued with the accounts before and after.
fn compare_groups(
    members: &[(&str, i64)],
    before: &Account,
    queue: &Value,
    after: &Account,
) -> Result<(), String> {
    let paths = ["/g", "/g/leaf", "/g/h"];
    for path in paths {
        let group = before.groups.get(path).ok_or("a group is not queued")?;
        if after.groups.get(path).is_none_or(|after| {
            let keys = ["load", "avg_vruntime", "min_vruntime", "se->vruntime"];
            keys.iter().any(|&key| group.get(key) != after.get(key))
        }) {
            return Err(format!("{path} did not stand still"));
        }
    }
    let kilo = |path: &str, key: &str| {
        let number: i64 = before.groups[path][key].parse().expect("a number");
        number >> 10
    };
    let mut found = Vec::new();
    let mut queued = Vec::new();
    walk(
        &queue["fair"],
        None,
        &mut |entity, path| match entity["group"].as_object() {
            Some(group) => {
                let path = group["path"].as_str().expect("a path");
                let account = &before.groups[path];
                let queue = &group["queue"];
                assert_eq!(int(queue, "weight"), kilo(path, "load"), "{entity:#}");
                let v = account.get("avg_vruntime").or(account.get("min_vruntime"));
                assert_eq!(int(queue, "vtime"), ns(v.expect("V")), "{entity:#}");
                let own = ns(&account["se->vruntime"]);
                assert_eq!(int(entity, "vruntime"), own, "{entity:#}");
                let weight = kilo(path, "se->load.weight");
                assert_eq!(int(entity, "weight"), weight, "{entity:#}");
                queued.push(path.to_owned());
            }
            None => {
                let pid = int(&entity["task"], "pid");
                let path = entity["cgroup"].as_str().or(path);
                if let Some(path) = path {
                    found.push((path.to_owned(), pid, int(entity, "share")));
                }
                let listed = before.tasks.get(&pid).and_then(|words| words.last());
                if let Some(listed) = listed {
                    assert_eq!(listed, path.unwrap_or("/"), "{entity:#}");
                }
            }
        },
    );
    for &(path, pid) in members {
        let mut met = found.iter().filter(|(_, known, _)| *known == pid);
        let met = met.next().ok_or(format!("{pid} is not queued"))?;
        assert_eq!(met.0, path, "{queue:#}");
    }
    assert_eq!(found.len(), members.len(), "{queue:#}");
    match queued.is_empty() {
        false => {
            queued.sort();
            assert_eq!(queued, ["/g", "/g/h", "/g/leaf"], "{queue:#}");
        }
        // All in one tree: what the group's weight leaves to each, to the rounding.
        true => {
            let shares: i64 = found.iter().map(|(.., share)| share).sum();
            let weight = kilo("/g", "se->load.weight");
            assert!(
                (weight - 3..=weight).contains(&shares),
                "{weight}: {queue:#}"
            );
        }
    }
    Ok(())
}

/// Goes through a fair queue and those of its groups, with the path of the group around.
fn walk<'v>(
    queue: &'v Value,
    path: Option<&'v str>,
    visit: &mut impl FnMut(&'v Value, Option<&'v str>),
) {
    for entity in queue["entities"].as_array().expect("an array") {
        visit(entity, path);
        let group = &entity["group"];
        if !group.is_null() {
            walk(&group["queue"], group["path"].as_str(), visit);
        }
    }
}
