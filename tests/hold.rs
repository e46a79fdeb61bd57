//! A guest that is held stands still, and runs on afterwards, whoever else is there.

mod common;

use std::thread;
use std::time::Duration;

use common::{Place, collect, finish, kernel, until};
use kscope_guest::mem::ProcMem;
use kscope_guest::remote::{Connection, RemoteError};
use kscope_kernel::{CpuId, Image, KernelAddr, MemoryExt};

/// The kernel's clock, which no running guest leaves alone.
fn ticks(memory: &ProcMem, jiffies: KernelAddr) -> u64 {
    memory.read_u64(jiffies).expect("jiffies")
}

fn jiffies() -> KernelAddr {
    let image = Image::open(kernel()).expect("the kernel");
    image.symbol("jiffies_64").expect("jiffies_64")
}

fn connect(place: &Place, name: &str) -> Connection {
    let guest = place.await_guest(name);
    let dir = std::path::PathBuf::from(guest["dir"].as_str().expect("a directory"));
    Connection::connect(&dir.join("control.sock")).expect("a connection")
}

#[test]
#[ignore = "needs a kernel"]
fn a_held_guest_stands_still() {
    let place = Place::new();
    let guest = place
        .shell(&["--name", "busy"], "while :; do :; done")
        .spawn()
        .expect("kscope starts");
    let mut connection = connect(&place, "busy");
    let memory = connection.memory().expect("its memory");
    let jiffies = jiffies();
    let runs = |what: &str| {
        let before = ticks(&memory, jiffies);
        until(what, || ticks(&memory, jiffies) != before);
    };
    runs("the guest runs");
    let hold = connection.hold().expect("held");
    let before = ticks(&memory, jiffies);
    assert_eq!(hold.registers[0].0, CpuId(0));
    assert!(hold.registers[0].1.pc().is_some() && !hold.debugged);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(ticks(&memory, jiffies), before);
    assert!(hold.release().expect("released") >= Duration::from_millis(100));
    runs("it runs on");
    // A client that dies takes its hold along.
    let other = connect(&place, "busy");
    let hold = other.hold().expect("held");
    std::mem::forget(hold);
    // The forgotten hold has the connection, too: only the guest's end is left.
    assert!(matches!(
        other.hold().expect_err("held already"),
        RemoteError::Refused(_)
    ));
    // RAM is a file whose offsets are physical addresses.
    let ram = connection.physical_memory().expect("its RAM");
    assert!(ram.metadata().expect("its size").len() >= 64 << 20);
    // Ending a guest that is held is no different.
    connection.stop_guest().expect("it ends");
    let finished = collect(guest);
    assert!(!finished.status.success());
    place.assert_clean();
}

#[test]
#[ignore = "needs a kernel"]
fn a_debugger_keeps_what_it_has_stopped() {
    let place = Place::new();
    let guest = place
        .shell(&["--name", "stopped", "--wait"], "echo done")
        .spawn()
        .expect("kscope starts");
    // Held before start_kernel: no debugger, but nothing that may run on either.
    let connection = connect(&place, "stopped");
    until("start_kernel", || connection.hold().expect("held").debugged);
    let hold = connection.hold().expect("held");
    let start = hold.registers[0].1.pc().map(KernelAddr);
    let image = Image::open(kernel()).expect("the kernel");
    assert_eq!(start, image.symbol("start_kernel"));
    hold.release().expect("released");
    let again = connection.hold().expect("held");
    assert_eq!(again.registers[0].1.pc().map(KernelAddr), start);
    // Now a debugger continues it while it is held: it runs when that is over.
    let mut gdb = place.kscope();
    gdb.args(["gdb", "stopped", "--", "-batch", "-ex", "detach"]);
    finish(&mut gdb).expect(0);
    assert_eq!(
        connection.hold().expect_err("held already").to_string(),
        "this connection holds the guest already"
    );
    again.release().expect("released");
    assert_eq!(collect(guest).expect(0).text(), "done\n");
    place.assert_clean();
}
