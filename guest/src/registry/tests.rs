use super::*;

fn registry() -> (tempfile::TempDir, Registry) {
    let temp = tempfile::tempdir().unwrap();
    let registry = Registry::at(&temp.path().join("kscope")).unwrap();
    (temp, registry)
}

fn record(name: &str) -> Record {
    Record {
        version: FORMAT_VERSION,
        protocol: 1,
        name: name.to_owned(),
        dir: PathBuf::from("/run/k"),
        pid: 1,
        supervisor: 2,
        kernel: PathBuf::from("/k/linux"),
        build_id: None,
        gdb: Some("127.0.0.1:1234".to_owned()),
        started: 3,
        cpu: Some(1),
        cpus: 1,
        mode: Mode::Ptrace,
        memory: 1 << 29,
        command: vec!["sh".to_owned()],
    }
}

#[test]
fn a_guest_is_found_while_it_is_held_and_gone_after() {
    let (_temp, registry) = registry();
    let a = registry.claim(None).unwrap();
    let b = registry.claim(Some("web")).unwrap();
    assert_eq!(a.name(), "g1");
    assert!(registry.list().unwrap().is_empty(), "nothing is published");
    a.publish(&record("g1")).unwrap();
    b.publish(&record("web")).unwrap();
    assert_eq!(registry.find(Some("web")).unwrap().record, record("web"));
    assert!(matches!(
        registry.find(None),
        Err(RegistryError::Ambiguous { names }) if names.len() == 2
    ));
    assert!(matches!(
        registry.claim(Some("web")),
        Err(RegistryError::Taken { .. })
    ));
    drop(b);
    assert_eq!(registry.find(None).unwrap().record.name, "g1");
    drop(a);
    assert!(matches!(
        registry.find(Some("g1")),
        Err(RegistryError::Unknown { .. })
    ));
}

#[test]
fn nothing_is_left_after_the_last_guest() {
    let (_temp, registry) = registry();
    let dir = registry.claim(None).unwrap();
    dir.publish(&record("g1")).unwrap();
    assert!(registry.dir().exists());
    drop(dir);
    assert!(!registry.dir().exists());
    assert!(registry.list().unwrap().is_empty());
    assert!(!registry.dir().exists());
    // And it comes back.
    registry.claim(None).unwrap();
}

#[test]
fn guests_come_and_go_at_the_same_time() {
    let (_temp, registry) = registry();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let dir = registry.claim(None).unwrap();
                    assert!(dir.path().join(LOCK).exists());
                    registry.list().unwrap();
                }
            });
        }
    });
    assert!(!registry.dir().exists());
}

#[test]
fn an_abandoned_directory_is_swept_and_its_name_is_free() {
    let (_temp, registry) = registry();
    let dir = registry.dir().join("g1");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(registry.dir(), Permissions::from_mode(0o700)).unwrap();
    fs::write(dir.join(LOCK), "").unwrap();
    fs::write(dir.join(RECORD), "{}").unwrap();
    assert!(registry.list().unwrap().is_empty());
    assert!(!dir.exists());
    assert_eq!(registry.claim(Some("g1")).unwrap().name(), "g1");
}

#[test]
fn names_stay_inside_the_registry() {
    let (_temp, registry) = registry();
    for name in ["", ".", "..", "a/b", ".lock", "-x", "a\nb", &"x".repeat(41)] {
        assert!(
            matches!(
                registry.claim(Some(name)),
                Err(RegistryError::BadName { .. })
            ),
            "{name:?}"
        );
    }
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("kscope");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(
        Registry::at(&dir),
        Err(RegistryError::Untrusted { .. })
    ));
}
