//! `kscope slab` against /proc/slabinfo and /sys/kernel/slab.

mod common;

use std::collections::HashMap;

use common::kernels;
use common::session::Session;
use serde_json::Value;

/// /proc/slabinfo: the numbers of each cache.
fn slabinfo(text: &str) -> HashMap<String, Vec<u64>> {
    let mut caches = HashMap::new();
    for line in text.lines().skip(2) {
        let mut words = line.split_whitespace();
        let name = words.next().expect("a name").to_owned();
        let numbers = words.filter_map(|word| word.parse().ok()).collect();
        caches.insert(name, numbers);
    }
    caches
}

/// What the view has of the same.
fn of_view(cache: &Value) -> Vec<u64> {
    let number = |key: &str| {
        cache[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key}: {cache}"))
    };
    vec![
        number("active"),
        number("objects"),
        number("size"),
        number("objects_per_slab"),
        number("pages_per_slab"),
        // The tunables, which SLUB has not.
        0,
        0,
        0,
        number("slabs"),
        number("slabs"),
        0,
    ]
}

#[test]
fn the_counts_are_those_of_slabinfo() {
    for kernel in kernels() {
        let mut guest = Session::start(kernel, &[]);
        // Something to count: directories, and files in them.
        guest.ask("mkdir -p /tmp/many; cd /tmp/many; for i in $(seq 300); do : >f$i; done");
        guest.compare("cat /proc/slabinfo", &["slab"], |before, view, after| {
            let (before, after) = (slabinfo(before), slabinfo(after));
            let caches = view.as_array().expect("an array");
            if caches.len() != before.len() {
                return Err(format!("{}: {} caches", kernel.name, caches.len()));
            }
            let mut same = 0;
            for cache in caches {
                let name = cache["name"].as_str().expect("a name");
                let Some(known) = before.get(name) else {
                    return Err(format!("{}: no {name} in the guest", kernel.name));
                };
                let seen = of_view(cache);
                if Some(known) == after.get(name) {
                    same += 1;
                    if *known != seen {
                        return Err(format!("{}: {name} is {seen:?}", kernel.name));
                    }
                }
                // What cannot change.
                assert_eq!(known[2..5], seen[2..5], "{}: {name}", kernel.name);
                let bytes = seen[8] * seen[4] * 4096;
                assert_eq!(cache["bytes"], bytes, "{name}");
            }
            // Reading slabinfo itself takes some memory.
            match same * 4 > caches.len() * 3 {
                true => Ok(()),
                false => Err(format!("{}: only {same} stayed the same", kernel.name)),
            }
        });
    }
}

#[test]
fn flags_and_aliases_are_those_of_sysfs() {
    let debug = ["--append", "slub_debug=FZPU,kmalloc-64"];
    for (kernel, options) in kernels()
        .iter()
        .map(|kernel| (kernel, &[][..]))
        .chain([(&kernels()[0], &debug[..])])
    {
        let mut guest = Session::start(kernel, options);
        let files = [
            "object_size",
            "aliases",
            "objs_per_slab",
            "order",
            "reclaim_account",
            "hwcache_align",
            "destroy_by_rcu",
            "sanity_checks",
            "red_zone",
            "poison",
            "store_user",
            "trace",
        ];
        let files = files.map(|file| format!("*/{file}")).join(" ");
        let sysfs = guest.ask(&format!("cd /sys/kernel/slab && grep -s . {files}"));
        let mut facts: HashMap<(&str, &str), &str> = HashMap::new();
        for line in sysfs.lines() {
            let (path, value) = line.rsplit_once(':').expect("a value");
            let (name, file) = path.rsplit_once('/').expect("a file");
            facts.insert((name, file), value.trim());
        }
        let view = guest.view(&["slab", "--sort", "name"]);
        let caches = view.as_array().expect("an array");
        let mut flagged = HashMap::new();
        for cache in caches {
            let name = cache["name"].as_str().expect("a name");
            let flags = cache["flags"].as_array().expect("flags");
            let number = |key: &str| cache[key].as_u64().expect("a number").to_string();
            let pages: u64 = cache["pages_per_slab"].as_u64().expect("a number");
            for (file, value) in [
                ("object_size", number("object_size")),
                ("aliases", number("aliases")),
                ("objs_per_slab", number("objects_per_slab")),
                ("order", pages.trailing_zeros().to_string()),
            ] {
                let known = facts.get(&(name, file));
                assert_eq!(
                    known,
                    Some(&value.as_str()),
                    "{}: {name} {file}",
                    kernel.name
                );
            }
            for (flag, file) in [
                ("reclaim", "reclaim_account"),
                ("hwalign", "hwcache_align"),
                ("rcu", "destroy_by_rcu"),
                ("checks", "sanity_checks"),
                ("red-zone", "red_zone"),
                ("poison", "poison"),
                ("store-user", "store_user"),
                ("trace", "trace"),
            ] {
                let has = flags.iter().any(|known| known == flag);
                let known = facts.get(&(name, file));
                let value = if has { "1" } else { "0" };
                assert_eq!(known, Some(&value), "{}: {name} {flag}", kernel.name);
                *flagged.entry(flag).or_insert(0) += usize::from(has);
            }
        }
        // The test sees something.
        let some: &[&str] = match options {
            [] => &["reclaim", "hwalign", "rcu"],
            _ => &["checks", "red-zone", "poison", "store-user"],
        };
        for flag in some {
            assert!(flagged[flag] > 0, "{}: {flag}", kernel.name);
        }
    }
}

#[test]
fn it_is_sorted_as_asked() {
    let guest = Session::start(&kernels()[0], &[]);
    let sorted = |by: &str, key: &str| {
        let view = guest.view(&["slab", "--sort", by]);
        let caches = view.as_array().expect("an array").clone();
        let keys: Vec<_> = caches.iter().map(|c| c[key].as_u64()).collect();
        assert!(keys.is_sorted_by(|a, b| a >= b), "{by}: {keys:?}");
        assert!(keys.first() > keys.last(), "{by}: {keys:?}");
    };
    for (by, key) in [
        ("bytes", "bytes"),
        ("active", "active"),
        ("objects", "objects"),
        ("slabs", "slabs"),
        ("size", "size"),
    ] {
        sorted(by, key);
    }
    let lines = guest.kscope(&["slab", "--sort", "name"]).expect(0).text();
    let names: Vec<_> = lines.lines().skip(1).collect();
    let (total, names) = names.split_last().expect("lines");
    assert!(names.is_sorted(), "{lines}");
    assert!(
        total.starts_with(&format!("{} caches, ", names.len())),
        "{lines}"
    );
}
