use super::*;
use std::os::unix::process::ExitStatusExt;

fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

#[test]
fn output_and_status_come_back() {
    let (status, text) = capture(sh("echo out; echo err >&2; exit 3"), &Cancel::new()).unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(text, "out\nerr\n");
}

#[test]
fn a_missing_program_is_named() {
    let error = capture(Command::new("/no/such/program"), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
}

#[test]
fn input_is_fed_and_counted() {
    let mut seen = 0;
    let (status, text) = feed(
        sh("wc -c"),
        &[7u8; 1_000_000][..],
        |n| seen = n,
        &Cancel::new(),
    )
    .unwrap();
    assert!(status.success());
    assert_eq!(text.trim(), "1000000");
    assert_eq!(seen, 1_000_000);
}

#[test]
fn a_command_that_does_not_read_is_no_hang() {
    let (status, _) = feed(sh("exit 1"), &[0u8; 1_000_000][..], |_| {}, &Cancel::new()).unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn cancelling_ends_the_whole_group() {
    let cancel = Cancel::new();
    let mut job = Job::start(sh("sleep 1000 & echo $!; wait"), false, &cancel).unwrap();
    let mut inner = None;
    let canceller = cancel.clone();
    let mut thread = None;
    job.for_each_line(|line| {
        inner = String::from_utf8_lossy(line).trim().parse().ok();
        let canceller = canceller.clone();
        thread = Some(std::thread::spawn(move || canceller.cancel()));
        Ok(())
    })
    .unwrap();
    assert!(matches!(job.finish(), Err(JobError::Cancelled)));
    thread.unwrap().join().unwrap();
    // The grandchild held the output open, so it is gone or going.
    assert_gone(inner.unwrap());
    assert!(matches!(
        Job::start(sh("true"), false, &cancel),
        Err(JobError::Cancelled)
    ));
}

#[test]
fn a_stubborn_job_is_killed() {
    let cancel = Cancel::new();
    let mut job = Job::start(
        sh("trap '' TERM; echo ready; while :; do sleep 1; done"),
        false,
        &cancel,
    )
    .unwrap();
    let canceller = cancel.clone();
    let mut thread = None;
    job.for_each_line(|_| {
        let canceller = canceller.clone();
        thread.get_or_insert_with(|| std::thread::spawn(move || canceller.cancel()));
        Ok(())
    })
    .unwrap();
    assert!(matches!(job.finish(), Err(JobError::Cancelled)));
    thread.unwrap().join().unwrap();
}

#[test]
fn dropping_a_job_ends_it() {
    let job = Job::start(sh("exec sleep 1000"), false, &Cancel::new()).unwrap();
    let pid = job.child.id().cast_signed();
    drop(job);
    assert_gone(pid);
}

#[test]
fn the_watcher_ends_an_orphaned_job() {
    // What kscope's death does: the watcher's pipe closes, nothing else.
    let mut job = Job::start(sh("exec sleep 1000"), false, &Cancel::new()).unwrap();
    drop(job.watcher.stdin.take());
    let status = job.finish().unwrap();
    assert!(status.signal().is_some(), "{status}");
}

#[test]
fn long_lines_are_cut() {
    let mut lens = Vec::new();
    lines(&[b'x'; 3 * MAX_LINE][..], &mut |line| {
        lens.push(line.len());
        Ok(())
    })
    .unwrap();
    assert_eq!(lens.iter().sum::<usize>(), 3 * MAX_LINE);
}

fn assert_gone(pid: i32) {
    for _ in 0..500 {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // An orphan that nobody has reaped yet is gone all the same.
        if state.is_err() || state.is_ok_and(|s| s.contains(") Z ")) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("process {pid} is still there");
}
