//! The builder on a tiny tree whose Makefile plays kbuild's part.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use kscope_guest::builder::{BuildError, Built, Request, build};
use kscope_guest::cache::{Cache, State};
use kscope_guest::hostjob::Cancel;
use kscope_guest::presets::{Preset, Selection};
use kscope_guest::progress::{Event, Progress, Silent};
use kscope_guest::source::Source;

mod fake_tree;

struct World {
    dir: tempfile::TempDir,
    cache: Cache,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("linux");
        fake_tree::create(&tree);
        let cache = Cache::at(dir.path().join("cache"));
        Self { dir, cache }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("linux")
    }

    fn touch(&self, file: &str) {
        fs::write(self.tree().join(file), "").unwrap();
    }

    fn fragment(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("my.config");
        fs::write(&path, text).unwrap();
        path
    }

    fn request(&self, fragments: Vec<PathBuf>) -> Request {
        Request {
            source: self.tree().to_str().unwrap().parse::<Source>().unwrap(),
            presets: Selection::new([Preset::Debug]),
            fragments,
            jobs: NonZeroUsize::MIN,
        }
    }

    fn build(&self) -> Result<Built, BuildError> {
        build(
            &self.cache,
            &self.request(vec![]),
            &mut Silent,
            &Cancel::new(),
        )
    }

    fn states(&self) -> Vec<State> {
        let listed = self.cache.list().unwrap();
        listed.into_iter().map(|kernel| kernel.state).collect()
    }
}

#[derive(Default)]
struct Record(Vec<String>);

impl Progress for Record {
    fn event(&mut self, event: Event<'_>) {
        self.0.push(match event {
            Event::Phase { verb, .. } => verb.to_owned(),
            Event::Advance(n) => n.to_string(),
            Event::Note(text) => text.to_owned(),
        });
    }
}

/// Calls a function at the first event that it is for.
struct At<F: FnMut()>(&'static str, F);

impl<F: FnMut()> Progress for At<F> {
    fn event(&mut self, event: Event<'_>) {
        let name = match event {
            Event::Phase { verb, .. } => verb,
            Event::Advance(_) => "step",
            Event::Note(_) => "note",
        };
        if name == self.0 {
            self.1();
        }
    }
}

#[test]
fn builds_a_whole_entry() {
    let world = World::new();
    let mut record = Record::default();
    let built = build(
        &world.cache,
        &world.request(vec![]),
        &mut record,
        &Cancel::new(),
    )
    .unwrap();
    assert_eq!(record.0, ["Configuring", "Building", "1", "2", "3"]);
    let entry = built.entry;
    assert_eq!(fs::read_to_string(&entry.linux).unwrap(), "kernel\n");
    assert_eq!(entry.release, "6.12.5");
    assert_eq!(entry.presets, [Preset::Base, Preset::Debug]);
    assert_eq!(entry.steps, 3);
    assert!(entry.source.tree);
    let found = world.cache.find(&[Preset::Debug], None).unwrap();
    assert_eq!(found, entry);
    let log = fs::read_to_string(entry.build_dir().with_file_name("build.log")).unwrap();
    assert!(
        log.contains("configuring") && log.contains("kernel/fork.o"),
        "{log}"
    );
    // The tree itself is not written to.
    assert!(!world.tree().join(".config").exists());
}

#[test]
fn a_tree_is_made_again_each_time() {
    let world = World::new();
    world.build().unwrap();
    let again = world.build().unwrap();
    assert!(!again.cached);
    assert_eq!(
        fs::read_to_string(&again.entry.linux).unwrap(),
        "kernel\nkernel\n",
        "in the same build tree"
    );
    assert_eq!(again.entry.steps, 3);
    assert_eq!(world.states().len(), 1);
}

#[test]
fn a_dropped_option_is_named_and_nothing_is_built() {
    let world = World::new();
    let fragment = world.fragment("# mine\nCONFIG_DROPPED=y\n");
    let request = world.request(vec![fragment]);
    let error = build(&world.cache, &request, &mut Silent, &Cancel::new()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("CONFIG_DROPPED=y"), "{text}");
    assert!(text.contains("my.config:2"), "{text}");
    assert!(error.is_build_failure());
    assert_eq!(world.states(), [State::Incomplete]);
}

#[test]
fn a_bad_fragment_is_refused_before_anything_happens() {
    let world = World::new();
    let request = world.request(vec![world.fragment("FOO=y\n")]);
    let error = build(&world.cache, &request, &mut Silent, &Cancel::new()).unwrap_err();
    assert!(matches!(error, BuildError::Fragment(_)), "{error}");
    let request = world.request(vec!["/no/such.config".into()]);
    let error = build(&world.cache, &request, &mut Silent, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("/no/such.config"), "{error}");
    assert!(!world.cache.root().exists());
}

#[test]
fn a_failed_build_shows_the_end_of_its_log() {
    let world = World::new();
    world.build().unwrap();
    world.touch("fail");
    let error = world.build().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("kernel/fork.c:7:1: error: sad"), "{text}");
    assert!(text.contains("build.log"), "{text}");
    assert!(error.is_build_failure());
    assert_eq!(world.states(), [State::Incomplete]);
    assert_eq!(world.cache.find(&[], None), None);
    // And once it is mended, it goes on where it was.
    fs::remove_file(world.tree().join("fail")).unwrap();
    let built = world.build().unwrap();
    assert!(built.entry.linux.exists());
}

#[test]
fn a_tree_that_was_built_in_place_is_refused() {
    let world = World::new();
    world.touch(".config");
    let text = world.build().unwrap_err().to_string();
    assert!(text.contains("mrproper"), "{text}");
}

#[test]
fn cancelling_leaves_nothing_that_looks_whole_and_no_process() {
    let world = World::new();
    world.build().unwrap();
    world.touch("wait");
    let cancel = Cancel::new();
    let mut threads = Vec::new();
    let mut canceller = At("step", || {
        let cancel = cancel.clone();
        threads.push(std::thread::spawn(move || cancel.cancel()));
    });
    let error = build(
        &world.cache,
        &world.request(vec![]),
        &mut canceller,
        &cancel,
    )
    .unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(world.states(), [State::Incomplete]);
    let dir = world.cache.list().unwrap()[0].dir.join("build");
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    assert!(
        !Path::new("/proc").join(pid.trim()).exists(),
        "the shell of the build is still there"
    );
    world.touch("go");
    world.build().unwrap();
}

#[test]
fn two_builders_of_the_same_wait_for_each_other() {
    let world = World::new();
    world.touch("wait");
    let said = std::thread::scope(|scope| {
        let (started, begun) = std::sync::mpsc::channel();
        let first = scope.spawn({
            let world = &world;
            move || {
                let mut progress = At("step", move || {
                    let _ = started.send(());
                });
                build(
                    &world.cache,
                    &world.request(vec![]),
                    &mut progress,
                    &Cancel::new(),
                )
            }
        });
        begun.recv().unwrap();
        let mut said = 0;
        let mut second = At("Waiting", || {
            said += 1;
            world.touch("go");
        });
        build(
            &world.cache,
            &world.request(vec![]),
            &mut second,
            &Cancel::new(),
        )
        .unwrap();
        first.join().unwrap().unwrap();
        said
    });
    assert_eq!(said, 1);
    assert_eq!(world.states().len(), 1);
    assert!(matches!(world.states()[0], State::Whole(_)));
}
