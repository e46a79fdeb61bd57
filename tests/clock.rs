//! `--clock`: the guest's time while a debugger has the guest stopped, as the guest tells it.

use std::time::{Duration, Instant};

mod common;

use common::session::Session;
use common::{TestKernel, kernels};

/// How long the guest is stopped, in seconds, in all.
const STOP: f64 = 3.0;

/// The guest's clocks, in seconds: since its boot, and the calendar's.
fn clocks(guest: &mut Session) -> [f64; 2] {
    let said = guest.ask("cat /proc/uptime; date +%s.%N");
    let number = |line: &str| line.split(' ').next()?.parse().ok();
    let numbers: Vec<f64> = said.lines().filter_map(number).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{said}"))
}

/// Stops a guest in several ways. Returns the seconds that its clocks and the host's have moved on from before to
/// after.
fn stop(kernel: &TestKernel, clock: &str) -> (Session, [f64; 2], f64) {
    let mut guest = Session::start(kernel, &["--clock", clock]);
    let since = Instant::now();
    let before = clocks(&mut guest);
    let said = guest.gdb_python(
        "import time\n\
         time.sleep(1)\n\
         gdb.execute('break do_nanosleep')\n\
         gdb.execute('break __schedule')\n\
         for stop in range(20):\n\
         \x20   gdb.execute('continue')\n\
         \x20   time.sleep(0.05)\n\
         \x20   gdb.execute('stepi 5')\n\
         \x20   time.sleep(0.05)\n\
         gdb.execute('detach')\n\
         print('stopped enough')\n",
    );
    assert!(said.contains("stopped enough"), "{said}");
    let after = clocks(&mut guest);
    let host = since.elapsed().as_secs_f64();
    (
        guest,
        std::array::from_fn(|at| after[at] - before[at]),
        host,
    )
}

#[test]
fn a_frozen_clock_stands_still_while_the_guest_is_stopped() {
    for kernel in kernels() {
        let name = kernel.name;
        let (mut guest, moved, host) = stop(kernel, "frozen");
        for seconds in moved {
            assert!(
                seconds <= host - STOP + 0.02 && seconds >= 0.0,
                "{name}: {seconds} s of {host} s"
            );
        }
        // It goes on, and neither too slow nor too fast.
        let [before, _] = clocks(&mut guest);
        let since = Instant::now();
        guest.ask("sleep 1");
        assert!(since.elapsed() >= Duration::from_secs(1), "{name}");
        let [after, _] = clocks(&mut guest);
        assert!(after - before >= 1.0, "{name}: {before} to {after}");
        // Nobody's time runs out in a stop.
        guest.begin("timeout 2 sh -c 'while :; do sleep 0.1; done'; echo $?");
        let since = Instant::now();
        guest.gdb_python("import time\ntime.sleep(3)\ngdb.execute('detach')\n");
        assert_eq!(guest.end(), "124\n", "{name}");
        assert!(
            since.elapsed() >= Duration::from_millis(4900),
            "{name}: {:?}",
            since.elapsed()
        );
    }
}

#[test]
fn the_hosts_clock_goes_on() {
    let kernel = &kernels()[0];
    let (_guest, moved, host) = stop(kernel, "host");
    for seconds in moved {
        assert!(seconds >= STOP - 0.02, "{seconds} s of {host} s");
    }
}

#[test]
fn a_stop_amid_the_clocks_own_reading_counts_and_does_no_harm() {
    // What the guest has read of the host's clock before the stop it uses after it: the time of such a stop passes.
    const STOP: f64 = 2.0;
    for kernel in kernels() {
        let name = kernel.name;
        let mut guest = Session::start(kernel, &["--clock", "frozen"]);
        let since = Instant::now();
        let before = clocks(&mut guest);
        let said = guest.gdb_python(
            "import time\n\
             gdb.execute('tbreak os_nsecs')\n\
             gdb.execute('continue')\n\
             gdb.execute('finish')\n\
             print('in', gdb.selected_frame().name())\n\
             time.sleep(2)\n\
             gdb.execute('detach')\n",
        );
        assert!(said.contains("in timer_read"), "{name}: {said}");
        let after = clocks(&mut guest);
        let host = since.elapsed().as_secs_f64();
        for (before, after) in before.into_iter().zip(after) {
            let moved = after - before;
            assert!(
                (STOP - 0.02..=host + 0.02).contains(&moved),
                "{name}: {moved} s of {host} s"
            );
        }
        // It goes on as it should.
        let [before, _] = clocks(&mut guest);
        let since = Instant::now();
        guest.ask("sleep 1");
        let [after, _] = clocks(&mut guest);
        let host = since.elapsed().as_secs_f64();
        let slept = after - before;
        assert!(
            (1.0..=host + 0.02).contains(&slept),
            "{name}: {slept} s of {host} s"
        );
        guest.kill();
    }
}
