//! Debuggers that are killed at any moment, and what they must not leave behind.
//!
//! What they do and when they die is random. A failure tells the seed; `KSCOPE_CHAOS_SEED` has it happen again, as far
//! as the timing of several processes can be had again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

mod common;
#[path = "gdb/guest.rs"]
mod guest;
#[path = "gdb/packets.rs"]
mod packets;

use common::programs::program;
use common::{TestKernel, kernels, processes_of, until};
use guest::Guest;
use packets::{Packets, packet};

/// Functions that the load calls all the time, on all CPUs.
const BUSY: [&str; 6] = [
    "do_sys_openat2",
    "ksys_read",
    "vfs_write",
    "__schedule",
    "handle_mm_fault",
    "kmem_cache_alloc_noprof",
];

/// One test at a time: a process that the other starts has this one's sockets until it has its own program.
static ALONE: Mutex<()> = Mutex::new(());

/// Random numbers that can be had again.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let now = || SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_nanos() as u64;
        let given = std::env::var("KSCOPE_CHAOS_SEED").ok();
        let seed = given.map_or_else(now, |seed| seed.parse().expect("a number"));
        println!("KSCOPE_CHAOS_SEED={seed}");
        Dice(seed)
    }

    /// One of 0..sides: splitmix64.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.roll(all.len() as u64) as usize]
    }

    /// Up to so many milliseconds.
    fn pause(&mut self, most: u64) {
        thread::sleep(Duration::from_micros(self.roll(most * 1000)));
    }
}

/// A guest under load, and what its kernel looks like when nobody debugs it.
struct Victim {
    guest: Guest,
    kernel: PathBuf,
    /// Addresses of [`BUSY`] functions, as far as this kernel has them.
    places: Vec<u64>,
    jiffies: u64,
    text: Vec<(u64, Vec<u8>)>,
}

impl Victim {
    fn boot(kernel: &TestKernel, load: &str) -> Victim {
        let guest = Guest::boot_on(kernel, &[], &format!("exec {load}"));
        guest.wait_for("ticks", |out| out.last_tick() > 3);
        let bytes = std::fs::read(&kernel.path).expect("the kernel");
        let file = object::File::parse(&*bytes).expect("an ELF file");
        let symbol = |name: &str| {
            let mut symbols = file.symbols();
            let symbol = symbols.find(|symbol| symbol.name() == Ok(name))?;
            Some(symbol.address())
        };
        let mut victim = Victim {
            places: BUSY.iter().filter_map(|name| symbol(name)).collect(),
            jiffies: symbol("jiffies_64").expect("the symbol"),
            text: file
                .sections()
                .filter(|section| section.kind() == SectionKind::Text)
                .map(|section| (section.address(), vec![0; section.size() as usize]))
                .collect(),
            kernel: kernel.path.clone(),
            guest,
        };
        assert!(victim.places.len() >= BUSY.len() - 1, "{:?}", victim.places);
        // As it is now, and not as in the file: a kernel patches itself.
        let memory = victim.memory();
        for (addr, text) in &mut victim.text {
            memory.read_exact_at(text, *addr).expect("text");
        }
        victim
    }

    fn memory(&self) -> File {
        File::open(format!("/proc/{}/mem", self.guest.pid())).expect("the guest's memory")
    }

    /// The guest takes a new debugger, runs on without, and has its own text.
    fn assert_unharmed(&self, after: &str) {
        let mut next = Packets::connect(&self.guest);
        let stop = next.ask_text("?");
        assert!(stop.starts_with("T0"), "{stop} after {after}");
        assert_eq!(next.ask(b"D"), b"OK", "after {after}");
        drop(next);
        self.guest.wait_until_untraced();
        let before = self.guest.last_tick();
        let memory = self.memory();
        for (addr, text) in &self.text {
            let mut now = vec![0; text.len()];
            memory.read_exact_at(&mut now, *addr).expect("text");
            let differs = text.iter().zip(&now).position(|(was, is)| was != is);
            let differs = differs.map(|at| format!("{:#x}", addr + at as u64));
            assert_eq!(differs, None, "after {after}");
        }
        self.guest.wait_for(&format!("ticks after {after}"), |out| {
            out.last_tick() > before
        });
    }

    /// A gdb that sets traps, steps and reads, and is killed with SIGKILL.
    fn kill_gdb(&self, dice: &mut Dice) -> String {
        let mut commands = vec![format!("target remote {}", self.guest.socket().display())];
        let with_symbols = dice.roll(4) == 0;
        if with_symbols {
            commands.insert(0, format!("file {}", self.kernel.display()));
        }
        for _ in 0..dice.roll(4) {
            let place = dice.pick(&self.places);
            let condition = dice.pick(&[" if $rdi == 1", " if $rsp == 2", "", " thread 1"]);
            commands.push(format!("break *{place:#x}{condition}"));
        }
        if dice.roll(4) == 0 {
            commands.push(format!("watch *(long *) {:#x}", self.jiffies));
        }
        for _ in 0..dice.roll(4) {
            let place = self.places[0];
            commands.push(match dice.roll(8) {
                0 => "info threads".to_owned(),
                1 => "stepi 300".to_owned(),
                2 => "thread apply all -q x/20xg $sp".to_owned(),
                3 => format!("dump memory /dev/null {place:#x} {place:#x}+4000000"),
                4 => "monitor bt all".to_owned(),
                5 => "set var $rax = $rax".to_owned(),
                6 if with_symbols => dice
                    .pick(&["step 5", "next 5", "finish", "until"])
                    .to_owned(),
                _ => "ignore 1 100".to_owned(),
            });
        }
        commands.extend(std::iter::repeat_n("continue".to_owned(), 2));
        let setup = [
            "set confirm off".to_owned(),
            "set pagination off".to_owned(),
            "set breakpoint always-inserted ".to_owned() + dice.pick(&["on", "off"]),
            "set breakpoint condition-evaluation ".to_owned() + dice.pick(&["host", "target"]),
        ];
        let numbered = commands.iter().enumerate();
        let words = setup.iter().cloned().chain(
            numbered.flat_map(|(at, command)| [format!("echo at {at}\\n"), command.clone()]),
        );
        let mut gdb = Command::new("gdb")
            .args(["-nx", "-q", "-batch"])
            .args(words.flat_map(|command| ["-ex".to_owned(), command]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("gdb runs");
        // It dies a moment after it has begun with one of them.
        let last = dice.roll(commands.len() as u64);
        let output = BufReader::new(gdb.stdout.take().expect("a pipe"));
        let (send, seen) = channel();
        thread::spawn(move || {
            let mark = format!("at {last}");
            let mut lines = output.lines().map_while(Result::ok);
            let _ = send.send(lines.any(|line| line == mark));
        });
        // One that waits for a stop that never comes is as good.
        let began = seen.recv_timeout(Duration::from_secs(1));
        dice.pause(60);
        gdb.kill().expect("kill");
        gdb.wait().expect("wait");
        format!("gdb, began {last}: {began:?}: {}", commands.join("; "))
    }

    /// A client of our own, which dies in the middle of anything.
    fn kill_client(&self, dice: &mut Dice) -> String {
        let mut client = Client {
            socket: self.guest.connect(),
            said: String::from("client:"),
        };
        // Some wait for what they have asked for, some do not.
        let patient = dice.roll(4) != 0;
        if dice.roll(4) != 0 {
            client.ask("qSupported:multiprocess+;swbreak+;vContSupported+", patient);
            if dice.roll(2) == 0 {
                client.ask("QStartNoAckMode", patient);
            }
        }
        for _ in 0..dice.roll(8) {
            let place = dice.pick(&self.places);
            match dice.roll(14) {
                // A condition that is false: `const8 0; end`.
                0..=2 => client.ask(&format!("Z0,{place:x},1;X3,220027"), patient),
                3 => client.ask(&format!("Z0,{place:x},1"), patient),
                4 => client.ask(&format!("z0,{place:x},1"), patient),
                5 => client.ask(&format!("Z2,{:x},8", self.jiffies), patient),
                6 => client.ask(&format!("x{place:x},20000"), patient),
                7 => client.ask("qXfer:threads:read::0,20000", patient),
                8 => client.ask("g", patient),
                9 => client.ask("vCont;s:p1.1;c", false),
                10 => client.ask(&format!("vCont;r{:x},{:x}:1", place, place + 4096), false),
                // The shell, or what has become of it: mostly asleep.
                11 => client.ask(&format!("vCont;s:p1.{:x}", 1 + dice.roll(40)), false),
                12 => client.ask("vCont;c", false),
                _ => client.send(b"\x03"),
            }
            if dice.roll(3) == 0 {
                dice.pause(10);
            }
        }
        match dice.roll(4) {
            0 => client.ask("vCont;c", false),
            1 => {
                let whole = packet(b"m60000000,10000");
                let cut = dice.roll(whole.len() as u64) as usize;
                client.send(&whole[..cut]);
            }
            _ => {}
        }
        dice.pause(15);
        if dice.roll(3) == 0 {
            // It goes slowly.
            let _ = client.socket.shutdown(std::net::Shutdown::Write);
            dice.pause(5);
        }
        client.said
    }
}

struct Client {
    socket: UnixStream,
    said: String,
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.said += " ";
        self.said += &bytes.escape_ascii().to_string();
        // The stub may have taken it for dead already.
        let _ = self.socket.write_all(bytes);
    }

    /// Sends a packet, and perhaps waits a while for the reply.
    fn ask(&mut self, body: &str, patient: bool) {
        self.send(&packet(body.as_bytes()));
        if patient {
            let wait = Some(Duration::from_millis(20));
            self.socket.set_read_timeout(wait).expect("a timeout");
            let _ = self.socket.read(&mut [0; 4096]);
        }
    }
}

/// Kills `kills` debuggers one after the other, every `real`-th of which is gdb.
fn kill_debuggers(kernel: &TestKernel, dice: &mut Dice, kills: usize, real: usize) {
    let load = program("load");
    let load = load.path("load");
    let mut victim = Victim::boot(kernel, load.to_str().expect("a path"));
    for kill in 0..kills {
        let seed = dice.0;
        let died = match kill % real {
            0 => victim.kill_gdb(dice),
            _ => victim.kill_client(dice),
        };
        let after = format!("kill {kill} on {} (seed {seed}), {died}", kernel.name);
        println!("{after}");
        victim.assert_unharmed(&after);
    }
    victim.guest.end_input();
    assert_eq!(victim.guest.wait(), Some(0), "{:?}", victim.guest.lines());
    let lines = victim.guest.lines();
    assert_eq!(
        lines.last().map(String::as_str),
        Some("right"),
        "{}",
        kernel.name
    );
}

#[test]
fn killed_debuggers_leave_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dice = Dice::new();
    let [first, others @ ..] = kernels() else {
        panic!("no kernels");
    };
    kill_debuggers(first, &mut dice, 200, 8);
    for kernel in others {
        kill_debuggers(kernel, &mut dice, 20, 5);
    }
}

#[test]
fn traps_go_with_the_guest_of_a_killed_kscope() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dice = Dice::new();
    let load = program("load");
    let load = load.path("load");
    for kernel in kernels() {
        let mut victim = Victim::boot(kernel, load.to_str().expect("a path"));
        let mut client = Packets::connect(&victim.guest);
        for place in &victim.places {
            let reply = client.ask(format!("Z0,{place:x},1;X3,220027").as_bytes());
            assert_eq!(reply, b"OK");
        }
        client.send(&packet(b"vCont;c"));
        dice.pause(300);
        victim.guest.kill();
        until(&format!("no process of {}", kernel.name), || {
            processes_of(victim.guest.runtime()).is_empty()
        });
    }
}
