use std::io::{Read, Seek, Write};
use std::sync::atomic::AtomicU32;

use kscope_kernel::{CpuId, GuestPid, MemoryExt, Reg};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::remote::{Connection, RemoteError, SampleEnd, SampleStopper, SampledTask, StackCopy};
use crate::sampling::Capture;

/// A guest made of constants.
struct Fixed {
    /// Samples that each tick brings, and bytes of stack in each.
    burst: (usize, usize),
    /// Ticks until the guest ends.
    life: u32,
    stopped: AtomicBool,
    written: Mutex<Vec<(KernelAddr, Vec<u8>)>>,
    ticks: Arc<AtomicU32>,
    /// How long a hold lasts, and whether one does.
    patience: Duration,
    held: Arc<AtomicBool>,
}

impl Default for Fixed {
    fn default() -> Self {
        Self {
            burst: (1, 64),
            life: u32::MAX,
            stopped: AtomicBool::new(false),
            written: Mutex::default(),
            ticks: Arc::default(),
            patience: Duration::from_secs(3600),
            held: Arc::default(),
        }
    }
}

/// Lets a held guest run.
struct LetGo(Arc<AtomicBool>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

struct FixedSource {
    burst: (usize, usize),
    life: u32,
    ticks: Arc<AtomicU32>,
}

fn sample(stack: usize) -> RawSample {
    RawSample {
        time_ns: 5,
        cpu: CpuId(0),
        task: Some(SampledTask {
            addr: KernelAddr(0x6000_0000),
            pid: GuestPid(31),
            tgid: GuestPid(31),
            comm: "dd".into(),
            kernel_thread: false,
        }),
        cpu_ns: Some(9),
        registers: [(Reg::Rip, 0x6000_1000)].into_iter().collect(),
        regions: vec![StackCopy {
            addr: KernelAddr(0x6100_0000),
            bytes: vec![7; stack],
        }],
    }
}

impl Source for FixedSource {
    fn capture(&mut self) -> Capture {
        if self.ticks.fetch_add(1, Ordering::SeqCst) >= self.life {
            return Capture::Exited;
        }
        Capture::Samples(vec![sample(self.burst.1); self.burst.0])
    }
}

fn description() -> Description {
    Description {
        name: "g1".into(),
        pid: 7,
        supervisor: 8,
        kernel: "/k/linux".into(),
        build_id: None,
        command: vec!["dd".into()],
    }
}

impl Endpoint for Fixed {
    fn describe(&self) -> Description {
        description()
    }

    fn memory(&self) -> io::Result<OwnedFd> {
        let mut file = tempfile::tempfile()?;
        file.write_all(&[0, 1, 2, 3])?;
        file.rewind()?;
        Ok(file.into())
    }

    fn maps(&self) -> io::Result<String> {
        Ok("1000-2000 r-xp 0 0 0 /k/linux\n".into())
    }

    fn write_memory(&self, addr: KernelAddr, bytes: &[u8]) -> Result<(), String> {
        if addr.0 == 0 {
            return Err("not mapped".into());
        }
        self.written.lock().unwrap().push((addr, bytes.to_vec()));
        Ok(())
    }

    fn sample_source(&self) -> Result<Box<dyn Source>, String> {
        Ok(Box::new(FixedSource {
            burst: self.burst,
            life: self.life,
            ticks: Arc::clone(&self.ticks),
        }))
    }

    fn physical_memory(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn hold(&self) -> Result<Held, String> {
        if self.held.swap(true, Ordering::SeqCst) {
            return Err("busy".into());
        }
        let now = Instant::now();
        Ok(Held {
            registers: vec![(CpuId(0), sample(0).registers)],
            debugged: false,
            since: now,
            deadline: now + self.patience,
            guard: Box::new(LetGo(Arc::clone(&self.held))),
        })
    }

    fn stop_guest(&self) -> Result<(), String> {
        self.stopped.store(true, Ordering::SeqCst);
        Ok(())
    }
}

fn serve_it(endpoint: Fixed) -> (TempDir, Server, Arc<Fixed>) {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = Arc::new(endpoint);
    let as_endpoint: Arc<dyn Endpoint> = endpoint.clone();
    let server = Server::start(&directory.path().join("control.sock"), as_endpoint).unwrap();
    (directory, server, endpoint)
}

fn connect(server: &Server) -> Connection {
    Connection::connect(server.path()).unwrap()
}

const UNTIL_STOPPED: SampleRequest = SampleRequest {
    hz: 1000,
    duration_ms: None,
};

/// Samples until `stop` says so, and gives the number of samples that arrived.
fn sample_until(
    connection: &mut Connection,
    mut stop: impl FnMut(u64, &SampleStopper),
) -> (u64, crate::remote::SampleSummary) {
    let stopper = connection.sample_stopper();
    let mut samples = 0;
    let summary = connection
        .sample(UNTIL_STOPPED, |message| {
            if let SampleMessage::Sample(got) = message {
                assert_eq!(got.registers.pc(), Some(0x6000_1000));
                samples += 1;
                stop(samples, &stopper);
            }
        })
        .unwrap();
    (samples, summary)
}

#[test]
fn requests_are_answered() {
    let (_directory, server, endpoint) = serve_it(Fixed::default());
    let mut connection = connect(&server);
    assert_eq!(connection.describe().unwrap(), description());
    assert!(connection.maps().unwrap().contains("/k/linux"));
    assert_eq!(
        connection
            .memory()
            .unwrap()
            .read_u32(KernelAddr(0))
            .unwrap(),
        0x0302_0100
    );
    assert_eq!(connection.snapshot().unwrap(), [sample(64)]);
    connection.stop_guest().unwrap();
    assert!(endpoint.stopped.load(Ordering::SeqCst));
}

#[test]
fn long_writes_are_cut_and_failures_are_told() {
    let (_directory, server, endpoint) = serve_it(Fixed::default());
    let mut connection = connect(&server);
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    connection.write_memory(KernelAddr(0x1000), &bytes).unwrap();
    let mut whole = vec![0; bytes.len()];
    for (addr, part) in endpoint.written.lock().unwrap().iter() {
        let at = (addr.0 - 0x1000) as usize;
        whole[at..at + part.len()].copy_from_slice(part);
    }
    assert_eq!(whole, bytes);
    let error = connection.write_memory(KernelAddr(0), &[1]).unwrap_err();
    assert_eq!(error.to_string(), "not mapped");
    // The connection is still good.
    assert_eq!(connection.describe().unwrap(), description());
}

/// Waits until the guest runs, which another thread may be about to let it.
fn until_released(endpoint: &Fixed) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while endpoint.held.load(Ordering::SeqCst) {
        assert!(Instant::now() < deadline, "still held");
        thread::yield_now();
    }
}

#[test]
fn a_hold_lasts_until_it_is_released() {
    let (_directory, server, endpoint) = serve_it(Fixed::default());
    let mut connection = connect(&server);
    let hold = connection.hold().unwrap();
    assert_eq!(hold.registers, [(CpuId(0), sample(0).registers)]);
    assert!(endpoint.held.load(Ordering::SeqCst));
    // The connection is there for reading meanwhile, and what cannot be is told.
    assert_eq!(connection.describe().unwrap(), description());
    let again = connection.hold().unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
    let nothing = connection.physical_memory().unwrap_err();
    assert!(nothing.to_string().contains("RAM"), "{nothing}");
    let other = connect(&server).hold().unwrap_err();
    assert_eq!(other.to_string(), "busy");
    hold.release().unwrap();
    assert!(!endpoint.held.load(Ordering::SeqCst));
    drop(connection.hold().unwrap());
    assert!(!endpoint.held.load(Ordering::SeqCst));
    assert_eq!(connection.describe().unwrap(), description());
}

#[test]
fn a_hold_ends_with_its_connection_and_with_the_server() {
    let (_directory, server, endpoint) = serve_it(Fixed::default());
    let connection = connect(&server);
    let hold = connection.hold().unwrap();
    // As if the client had been killed: nothing is said any more.
    let channel = connection.channel_for_tests();
    channel.shut_down();
    until_released(&endpoint);
    drop((hold, connection));
    let connection = connect(&server);
    let hold = connection.hold().unwrap();
    drop(server);
    assert!(!endpoint.held.load(Ordering::SeqCst));
    assert!(matches!(hold.release(), Err(RemoteError::Closed)));
}

#[test]
fn a_hold_ends_at_its_deadline_whatever_its_client_does() {
    let (_directory, server, endpoint) = serve_it(Fixed {
        patience: Duration::from_millis(20),
        ..Fixed::default()
    });
    let mut connection = connect(&server);
    // A client that sleeps, and one that never stops asking.
    for asks in [false, true] {
        let hold = connection.hold().unwrap();
        while endpoint.held.load(Ordering::SeqCst) {
            if asks {
                connection.describe().unwrap();
            }
        }
        assert!(matches!(hold.release(), Err(RemoteError::HoldExpired)));
        assert_eq!(connection.describe().unwrap(), description());
    }
}

#[test]
fn a_hold_of_a_client_at_work_goes_on() {
    let patience = Duration::from_millis(300);
    let (_directory, server, endpoint) = serve_it(Fixed {
        patience,
        ..Fixed::default()
    });
    let connection = connect(&server);
    // On a loaded machine it may take more than one.
    let hold = (0..100)
        .find_map(|_| connection.hold().ok().filter(|hold| hold.keep().is_ok()))
        .expect("a hold that goes on");
    // Now it may last for `MAX_HOLD`, which is longer than this test.
    thread::sleep(2 * patience);
    assert!(endpoint.held.load(Ordering::SeqCst));
    assert!(hold.release().unwrap() >= 2 * patience);
    let hold = connection.hold().unwrap();
    until_released(&endpoint);
    assert!(matches!(hold.keep(), Err(RemoteError::Refused(_))));
}

#[test]
fn a_stream_ends_when_asked_to_and_another_can_begin() {
    let (_directory, server, _) = serve_it(Fixed::default());
    let mut connection = connect(&server);
    for _ in 0..2 {
        let (samples, summary) = sample_until(&mut connection, |n, stopper| {
            if n == 5 {
                stopper.stop();
            }
        });
        assert_eq!(summary.end, SampleEnd::Stopped);
        assert_eq!(summary.counts.samples, samples);
        assert!(samples >= 5);
        assert_eq!(connection.describe().unwrap(), description());
    }
}

#[test]
fn a_stream_ends_with_its_time_and_with_its_guest() {
    let (_directory, server, _) = serve_it(Fixed {
        life: 3,
        ..Fixed::default()
    });
    let mut connection = connect(&server);
    let (samples, summary) = sample_until(&mut connection, |_, _| {});
    assert_eq!((samples, summary.end), (3, SampleEnd::GuestExited));
    let request = SampleRequest {
        hz: 1,
        duration_ms: Some(1),
    };
    let summary = connection.sample(request, |_| {}).unwrap();
    assert_eq!(summary.end, SampleEnd::Duration);
}

#[test]
fn a_slow_reader_costs_samples_not_memory() {
    let (_directory, server, _) = serve_it(Fixed {
        // More than queue and socket buffer hold.
        burst: (3 * QUEUE, 4096),
        life: 1,
        ..Fixed::default()
    });
    let mut connection = connect(&server);
    let (samples, summary) = sample_until(&mut connection, |n, _| {
        if n == 1 {
            thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(summary.counts.samples, samples);
    assert!(summary.counts.overflowed > 0);
    assert_eq!(samples + summary.counts.overflowed, 3 * QUEUE as u64);
    assert_eq!(
        summary.counts.lost(),
        summary.counts.overflowed + summary.counts.missed
    );
}

#[test]
fn the_end_of_the_server_ends_streams_properly() {
    let (_directory, server, endpoint) = serve_it(Fixed::default());
    let mut connection = connect(&server);
    let path = server.path().to_owned();
    let ticks = Arc::clone(&endpoint.ticks);
    let dropper = thread::spawn(move || {
        while ticks.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        drop(server);
    });
    let (_, summary) = sample_until(&mut connection, |_, _| {});
    dropper.join().unwrap();
    assert!(matches!(
        summary.end,
        SampleEnd::Stopped | SampleEnd::Disconnected
    ));
    assert!(!path.exists());
    assert!(matches!(connection.describe(), Err(RemoteError::Closed)));
    assert!(matches!(
        Connection::connect(&path),
        Err(RemoteError::Connect { .. })
    ));
}

#[test]
fn rates_out_of_range_are_refused() {
    let (_directory, server, _) = serve_it(Fixed::default());
    let mut connection = connect(&server);
    for hz in [0, MAX_HZ + 1, u32::MAX] {
        let request = SampleRequest {
            hz,
            duration_ms: Some(1),
        };
        let error = connection.sample(request, |_| {}).unwrap_err();
        assert!(error.to_string().contains("out of range"), "{error}");
    }
}

#[test]
fn a_bad_frame_ends_its_connection_only() {
    let (_directory, server, _) = serve_it(Fixed::default());
    let mut good = connect(&server);
    let hello = encode(&(MAGIC, PROTOCOL_VERSION), MAX_REQUEST).unwrap();
    // A length of 4 GB, an unknown request, a frame with something left over, a hello that is none.
    let bad: [(bool, &[u8]); 4] = [
        (true, &[0xff, 0xff, 0xff, 0xff]),
        (true, &[1, 0, 0, 0, 99]),
        (true, &[2, 0, 0, 0, 0, 0]),
        (false, b"\x0a\0\0\0kscope/x\x01\0"),
    ];
    for (with_hello, bytes) in bad {
        let mut stream = UnixStream::connect(server.path()).unwrap();
        if with_hello {
            stream.write_all(&hello).unwrap();
        }
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // The server closes; the welcome is all it said.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() <= hello.len(), "{answer:?}");
        assert_eq!(good.describe().unwrap(), description());
    }
}

#[test]
fn another_version_is_told() {
    let (directory, server, _) = serve_it(Fixed::default());
    // A client of the future is told this server's version.
    let mut stream = UnixStream::connect(server.path()).unwrap();
    let hello = Hello {
        magic: MAGIC,
        version: 999,
    };
    stream
        .write_all(&encode(&hello, MAX_REQUEST).unwrap())
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let welcome = Welcome {
        magic: MAGIC,
        version: PROTOCOL_VERSION,
    };
    assert_eq!(answer, encode(&welcome, MAX_REQUEST).unwrap());
    // A server of the future is recognised by this client.
    let path = directory.path().join("other.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(&encode(&(MAGIC, 999_u16), MAX_REQUEST).unwrap())
            .unwrap();
        // Not closed before the client has read.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = Connection::connect(&path).unwrap_err();
    assert!(
        matches!(error, RemoteError::Version { theirs: 999, .. }),
        "{error}"
    );
    other.join().unwrap();
}

#[test]
fn a_taken_path_is_an_error_that_names_it() {
    let (_directory, server, endpoint) = serve_it(Fixed::default());
    let error = Server::start(server.path(), endpoint).unwrap_err();
    assert!(error.to_string().contains("control.sock"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_hurt_the_server(bytes in prop::collection::vec(any::<u8>(), 0..200), welcomed: bool) {
        let (_directory, server, _) = serve_it(Fixed::default());
        let mut stream = UnixStream::connect(server.path()).unwrap();
        if welcomed {
            stream.write_all(&encode(&(MAGIC, PROTOCOL_VERSION), MAX_REQUEST).unwrap()).unwrap();
        }
        // The server may be gone before all is written.
        let _ = stream.write_all(&bytes);
        drop(stream);
        prop_assert_eq!(connect(&server).describe().unwrap(), description());
    }
}
