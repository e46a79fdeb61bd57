use nix::errno::Errno;

use super::*;

/// A cache in a temporary directory, with a way to put kernels into it.
struct Fixture {
    _root: tempfile::TempDir,
    cache: Cache,
    source: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().join("kscope"));
        let source = cache.sources_dir().join("linux-source-6.12_1");
        fs::create_dir_all(&source).unwrap();
        Self {
            _root: root,
            cache,
            source,
        }
    }

    fn entry(&self, key: &str, presets: &[Preset], built: u64) -> Entry {
        Entry {
            version: VERSION,
            key: key.into(),
            source: EntrySource {
                name: "debian:6.12".into(),
                version: "linux-source-6.12 1".into(),
                path: self.source.clone(),
                tree: false,
            },
            release: "6.12.1".into(),
            presets: presets.to_vec(),
            fragments: Vec::new(),
            cc: None,
            compiler: "gcc version 12".into(),
            linux: self.cache.slot(key).build_dir().join("linux"),
            linux_size: 4,
            steps: 725,
            options: 265,
            built,
            asked: built,
        }
    }

    fn add(&self, entry: &Entry) {
        let slot = self.cache.slot(&entry.key);
        let lock = slot.lock(&Cancel::new(), || panic!("locked")).unwrap();
        slot.begin(&lock).unwrap();
        fs::write(&entry.linux, "\x7fELF").unwrap();
        slot.settle(&lock).unwrap();
        slot.commit(&lock, entry).unwrap();
    }

    fn found(&self, needed: &[Preset]) -> Option<String> {
        self.cache.find(needed, None).map(|entry| entry.key)
    }
}

use Preset::{Base, Coverage, Debug};

#[test]
fn what_was_committed_is_found() {
    let f = Fixture::new();
    assert_eq!(f.found(&[]), None);
    let entry = f.entry("a", &[Base, Debug], 1);
    f.add(&entry);
    assert_eq!(f.cache.slot("a").entry(), Some(entry));
    assert_eq!(f.found(&[Debug]).as_deref(), Some("a"));
    assert_eq!(f.found(&[Coverage]), None);
}

#[test]
fn an_interrupted_build_is_invisible() {
    let f = Fixture::new();
    let entry = f.entry("a", &[Base, Debug], 1);
    f.add(&entry);
    let slot = f.cache.slot("a");
    {
        let lock = slot.lock(&Cancel::new(), || panic!("locked")).unwrap();
        assert!(slot.begin(&lock).unwrap(), "a second build is incremental");
        // The old kernel is still there, but make is at it.
        assert!(entry.linux.exists());
        assert_eq!(slot.entry(), None);
        assert_eq!(f.found(&[]), None);
        assert_eq!(f.cache.list().unwrap()[0].state, State::Building);
    }
    // The builder is gone, without a settle(): it was killed.
    assert_eq!(f.cache.list().unwrap()[0].state, State::Incomplete);
    let lock = slot.lock(&Cancel::new(), || panic!("locked")).unwrap();
    assert!(!slot.begin(&lock).unwrap(), "its tree is not trusted");
    assert!(!entry.linux.exists());
}

#[test]
fn a_half_written_or_foreign_entry_is_not_whole() {
    let f = Fixture::new();
    let entry = f.entry("a", &[Base, Debug], 1);
    f.add(&entry);
    let json = f.cache.slot("a").entry_path();
    let good = fs::read_to_string(&json).unwrap();

    fs::write(&json, &good[..good.len() / 2]).unwrap();
    assert_eq!(f.found(&[]), None);

    fs::write(&json, good.replace("\"version\": 1", "\"version\": 99")).unwrap();
    assert_eq!(f.found(&[]), None);

    fs::write(&json, &good).unwrap();
    assert_eq!(f.found(&[]).as_deref(), Some("a"));
    fs::write(&entry.linux, "").unwrap();
    assert_eq!(f.found(&[]), None, "a truncated kernel");
    fs::remove_file(&entry.linux).unwrap();
    assert_eq!(f.found(&[]), None, "a missing kernel");
}

#[test]
fn the_nearest_kernel_is_taken() {
    let f = Fixture::new();
    f.add(&f.entry("debug-old", &[Base, Debug], 1));
    f.add(&f.entry("debug-new", &[Base, Debug], 2));
    f.add(&f.entry("both", &[Base, Debug, Coverage], 3));
    let mut asked = f.entry("debug-old", &[Base, Debug], 1);
    asked.asked = 9;
    f.add(&asked);
    assert_eq!(f.found(&[Debug]).as_deref(), Some("debug-old"));
    asked.asked = 1;
    f.add(&asked);
    let mut own = f.entry("own-fragment", &[Base, Debug], 4);
    own.fragments.push("/my.config".into());
    f.add(&own);
    assert_eq!(f.found(&[Debug]).as_deref(), Some("debug-new"));
    assert_eq!(f.found(&[Coverage]).as_deref(), Some("both"));
    assert_eq!(f.found(&[Coverage, Debug]).as_deref(), Some("both"));

    let mut tree = f.entry("tree", &[Base, Debug, Coverage], 1);
    tree.source.tree = true;
    f.add(&tree);
    let from = |tree: &Path| f.cache.find(&[Debug], Some(tree)).unwrap().key;
    assert_eq!(from(&f.source), "tree");
    assert_eq!(from(Path::new("/elsewhere")), "debug-new");
}

#[test]
fn a_lock_is_exclusive_and_survives_the_removal_of_its_file() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.lock");
    let now = |kind| Lock::now(&path, kind).unwrap();
    let one = now(FlockArg::LockExclusiveNonblock).unwrap();
    assert!(now(FlockArg::LockExclusiveNonblock).is_none());
    assert!(now(FlockArg::LockSharedNonblock).is_none());
    assert!(Lock::is_held(&path));
    drop(one);
    assert!(!Lock::is_held(&path));
    let shared = now(FlockArg::LockSharedNonblock).unwrap();
    assert!(now(FlockArg::LockSharedNonblock).is_some());
    assert!(now(FlockArg::LockExclusiveNonblock).is_none());
    fs::remove_file(&path).unwrap();
    assert!(now(FlockArg::LockExclusiveNonblock).is_some());
    drop(shared);
}

#[test]
fn waiting_for_a_lock_is_said_and_can_be_cancelled() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.lock");
    let _held = Lock::now(&path, FlockArg::LockExclusiveNonblock).unwrap();
    let cancel = Cancel::new();
    let mut said = 0;
    let error = Lock::wait(&path, FlockArg::LockExclusiveNonblock, &cancel, || {
        said += 1;
        cancel.cancel();
    })
    .unwrap_err();
    assert!(matches!(error, LockError::Cancelled));
    assert_eq!(said, 1);
}

#[test]
fn prune_removes_what_is_stale_and_nothing_else() {
    let f = Fixture::new();
    f.add(&f.entry("old", &[Base, Debug], 1));
    f.add(&f.entry("new", &[Base, Debug], 2));
    f.add(&f.entry("coverage", &[Base, Coverage], 1));
    let mut gone = f.entry("gone", &[Base], 5);
    gone.source.path = "/no/such/tree".into();
    f.add(&gone);
    fs::create_dir_all(f.cache.slot("half").build_dir()).unwrap();
    let building = f.cache.slot("building");
    let lock = building.lock(&Cancel::new(), || ()).unwrap();
    building.begin(&lock).unwrap();
    let unused = f.cache.sources_dir().join("linux-source-6.1_1");
    let unpacking = f.cache.sources_dir().join("linux-source-6.6_1.tmp");
    let held = f.cache.sources_dir().join("linux-source-7.3_1");
    for dir in [&unused, &unpacking, &held] {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("Makefile"), "x").unwrap();
    }
    let _held = Lock::now(&lock_path(&held), FlockArg::LockSharedNonblock).unwrap();

    let pruned = f.cache.prune().unwrap();
    let removed: Vec<(PathBuf, PruneReason)> = pruned
        .removed
        .iter()
        .map(|r| (r.path.clone(), r.reason))
        .collect();
    let kernel = |key: &str| f.cache.slot(key).dir().to_owned();
    assert_eq!(
        removed,
        [
            (kernel("gone"), PruneReason::SourceGone),
            (kernel("half"), PruneReason::Incomplete),
            (kernel("old"), PruneReason::Superseded),
            (unused, PruneReason::Unused),
            (unpacking, PruneReason::Incomplete),
        ]
    );
    assert!(pruned.in_use.is_empty());
    let left: Vec<String> = f.cache.list().unwrap().into_iter().map(|k| k.key).collect();
    assert_eq!(left, ["building", "coverage", "new"]);
    assert!(held.exists() && f.source.exists());
    assert_eq!(f.cache.prune().unwrap(), Pruned::default());
    // No lock file is left of what is gone.
    assert!(!lock_path(&kernel("old")).exists());
}

#[test]
fn prune_keeps_what_a_process_uses() {
    let f = Fixture::new();
    let old = f.entry("old", &[Base, Debug], 1);
    f.add(&old);
    f.add(&f.entry("new", &[Base, Debug], 2));
    let open = File::open(&old.linux).unwrap();
    let pruned = f.cache.prune().unwrap();
    assert!(pruned.removed.is_empty());
    let me = std::process::id().cast_signed();
    assert_eq!(pruned.in_use, [(f.cache.slot("old").dir().to_owned(), me)]);
    drop(open);
    assert_eq!(f.cache.prune().unwrap().removed.len(), 1);
}

#[test]
fn storage_errors_name_the_path_and_the_fix() {
    let error = StorageError::at(Path::new("/cache/x"))(Errno::ENOSPC.into());
    let text = error.to_string();
    assert!(text.contains("/cache/x"), "{text}");
    assert!(text.contains("XDG_CACHE_HOME"), "{text}");
}
