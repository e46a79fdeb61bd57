//! The packets that the stub answers itself, by the real gdb and by hand.
//!
//! Needs what `gdb.rs` needs.

use std::fs;

use object::{Object, ObjectSection, ObjectSymbol};

#[path = "gdb/guest.rs"]
mod guest;
#[path = "common/kernels.rs"]
mod kernels;
#[path = "gdb/packets.rs"]
mod packets;

use guest::Guest;
use kernels::{TestKernel, kernels};
use packets::{Packets, packet};

const TICKS: &str =
    "n=0; while :; do n=$((n+1)); cat /etc/hostname >/dev/null; echo tick $n; sleep 0.05; done";

fn ticking(kernel: &TestKernel) -> Guest {
    let guest = Guest::boot_on(kernel, &[], TICKS);
    guest.wait_for("ticks", |out| out.last_tick() > 3);
    guest
}

/// The address and the contents of a section of the kernel.
fn section(kernel: &TestKernel, name: &str) -> (u64, Vec<u8>) {
    let bytes = fs::read(&kernel.path).expect("the kernel");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let section = file.section_by_name(name).expect("the section");
    (
        section.address(),
        section.data().expect("contents").to_vec(),
    )
}

fn symbol(kernel: &TestKernel, name: &str) -> u64 {
    let bytes = fs::read(&kernel.path).expect("the kernel");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    symbol.expect("the symbol").address()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn nothing_that_a_client_sends_ends_the_session() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = ticking(kernel);
        let mut client = Packets::connect(&guest);
        let long = vec![b'a'; 1 << 20];
        let cases: &[&[u8]] = &[
            b"\xff\xfe\x00\x01",
            b"$g#00",
            b"$g#zz",
            b"$$$###",
            b"----",
            b"++++",
            b"\x03\x03",
            &packet(b""),
            &packet(b"Hg-1"),
            &packet(b"Hgp1.-1"),
            &packet(b"Hg"),
            &packet(b"T-1"),
            &packet(b"vCont;t"),
            &packet(b"vCont;q"),
            &packet(b"vCont;s"),
            &packet(b"vCont"),
            &packet(b"qSupported:\xff;=;++"),
            &packet(b"m"),
            &packet(b"m0,ffffffffffffffff"),
            &packet(b"mfffffffffffffff0,ffff"),
            &packet(b"x,"),
            &packet(b"X0,4:a}"),
            &packet(b"M0,1:00"),
            &packet(b"Z0,0,1"),
            &packet(b"Z0,60000000,1;X3,22"),
            &packet(b"Z9,0,1"),
            &packet(b"z0,1,1"),
            &packet(b"qXfer:threads:read::fffffffffffffffff,1"),
            &packet(b"qXfer:threads:read:a:0,1"),
            &packet(b"qXfer:nonsense:read::0,1"),
            &packet(b"qSearch:memory:0;ffffffffffffffff;"),
            &packet(b"qCRC:0,ffffffffffffffff"),
            &packet(b"qRcmd,7"),
            &packet(b"Pffff=0"),
            &packet(b"vCont;"),
            &packet(b"p ffff"),
            &packet(b"G00"),
            &packet(&long),
            &long,
        ];
        for case in cases {
            client.send(case);
            client.assert_alive(&case[..case.len().min(40)]);
        }
        // What was understood before still is.
        assert!(
            client
                .ask_text("qSupported:multiprocess+")
                .contains("PacketSize=")
        );
        client.ask(b"vCont;t");
        // What is sent at once, or once more, is answered in its turn.
        let requests = [&b"qAttached"[..], b"qOffsets", b"m60000000,0", b"qAttached"];
        client.send(&requests.map(packet).concat());
        client.send(&packet(b"qAttached"));
        let replies: [Vec<u8>; 5] = std::array::from_fn(|_| client.receive());
        assert_eq!(
            (&*replies[0], &*replies[3], &*replies[4]),
            (&b"1"[..], &b"1"[..], &b"1"[..])
        );
        let stop = client.ask_text("?");
        assert!(stop.contains("thread:p"), "{stop}");
        // A reply that is refused comes again.
        client.send(b"-");
        assert!(client.receive().starts_with(b"T05"));
        // What comes while the guest runs is answered when it has stopped.
        client.send(&[packet(b"vCont;c"), packet(b"qAttached"), b"\x03".to_vec()].concat());
        let stop = client.receive();
        assert!(
            stop.starts_with(b"T02"),
            "{}",
            String::from_utf8_lossy(&stop)
        );
        assert_eq!(client.receive(), b"1");
        assert_eq!(client.ask(b"D"), b"OK");
        let before = guest.last_tick();
        guest.wait_for("ticks", |out| out.last_tick() > before + 3);
    }
}

#[test]
fn what_is_malformed_is_an_error_and_has_no_effect() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = ticking(kernel);
        let timeout = symbol(kernel, "panic_timeout");
        let (mut client, _) = Packets::connect_as_gdb(&guest);
        let before = client.ask(format!("m{timeout:x},8").as_bytes());
        let place = format!("{timeout:x}");
        for malformed in [
            "vKill;JUNK",
            "vKill;2",
            "vKill",
            "D;JUNK",
            "D;2",
            "DX",
            "vCont",
            "vContX",
            "vCont;c:JUNK",
            "vCont;c:p2.-1",
            "vCont;c:p1.",
            "vCont;cX",
            "vCont;c;",
            "vCont;C100",
            "vCont;r1000",
            "c0",
            "s60000000",
            "HgJUNK",
            "Hgp1.1.1",
            "Hx0",
            "T",
            "T0",
            "Tp2.1",
            "g0",
            "G00",
            "P0",
            "P0=00=00",
            "P0=xx",
            "p0;",
            "mPLACE",
            "mPLACE,4;",
            "mPLACE,10000000000000000",
            "xPLACE,4:",
            "MPLACE,1:0102",
            "MPLACE,2:01",
            "MPLACE,1,01",
            "MPLACE,1:0g",
            "XPLACE,2:a",
            "XPLACE,1:aa",
            "Z0,PLACE",
            "Z0,PLACE,1,1",
            "Z00,PLACE,1",
            "Z0,PLACE,x;X1,27",
            "Z2,PLACE,4;X1,27",
            "Z2,PLACE,4x",
            "z0,PLACE,1;X1,27",
            "z0,10000000PLACE0,1",
            "qAttachedX",
            "qThreadExtraInfo,",
            "qThreadExtraInfo,p1.-1",
            "qRcmd",
            "qRcmd,7",
            "qXfer:threads:read:a:0,1",
            "qXfer:threads:read::0,1,1",
            "qXfer:threads:read::10000000000000000,1",
            "qXfer:threads:readX::0,1",
            "qXfer:features:read:target.xml:0,10:1",
            "qXfer:features:readX:target.xml:0,10",
            "qSearch:memory:PLACE;10",
            "qCRC:PLACE,10,1",
        ] {
            let malformed = malformed.replace("PLACE", &place);
            assert_eq!(client.ask_text(&malformed), "E16", "{malformed}");
        }
        // Nothing was written, and the guest does not run: it would not answer.
        assert_eq!(client.ask(format!("m{timeout:x},8").as_bytes()), before);
        assert!(client.ask_text("?").starts_with("T05"));
        let ticks = guest.last_tick();
        assert_eq!(client.ask(b"D;1"), b"OK");
        guest.wait_for("ticks", |out| out.last_tick() > ticks + 3);
    }
}

#[test]
fn memory_is_read_and_written_in_every_form() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = ticking(kernel);
        let (addr, contents) = section(kernel, ".text");
        let (mut gdb, features) = Packets::connect_as_gdb(&guest);
        let size = features
            .split(';')
            .find_map(|feature| feature.strip_prefix("PacketSize="))
            .and_then(|size| usize::from_str_radix(size, 16).ok())
            .expect("a packet size");
        assert!(size >= 128 << 10, "{features}");
        assert!(features.contains("binary-upload+"), "{features}");
        let most = (size / 2 - 64).min(contents.len());
        let whole = gdb.ask(format!("m{addr:x},{most:x}").as_bytes());
        assert_eq!(
            String::from_utf8(whole).expect("digits"),
            hex(&contents[..most])
        );
        let binary = gdb.ask(format!("x{addr:x},{most:x}").as_bytes());
        assert_eq!(binary.first(), Some(&b'b'));
        assert!(binary[1..] == contents[..most], "binary differs");
        // More than there is: as much as there is.
        let more = gdb.ask(format!("x{addr:x},ffffffff").as_bytes());
        assert!(more.len() > most / 2 && more.len() <= size);
        // Written in binary, with everything that has to be escaped.
        let panic_timeout = symbol(kernel, "panic_timeout");
        let old = gdb.ask(format!("m{panic_timeout:x},4").as_bytes());
        let write = [
            format!("X{panic_timeout:x},4:").as_bytes(),
            b"}\x03}\x04}]}\x0a",
        ]
        .concat();
        assert_eq!(gdb.ask(&write), b"OK");
        assert_eq!(gdb.ask_text(&format!("m{panic_timeout:x},4")), "23247d2a");
        let restore = [format!("M{panic_timeout:x},4:").as_bytes(), &old].concat();
        assert_eq!(gdb.ask(&restore), b"OK");
        // A pattern that is where it is in the file, and one that is nowhere.
        let pattern = &contents[5000..5040];
        let first = contents
            .windows(40)
            .position(|window| window == pattern)
            .expect("there");
        let mut search = format!("qSearch:memory:{addr:x};{:x};", contents.len()).into_bytes();
        for &byte in pattern {
            if matches!(byte, b'#' | b'$' | b'}' | b'*') {
                search.extend([b'}', byte ^ 0x20]);
            } else {
                search.push(byte);
            }
        }
        assert_eq!(
            gdb.ask(&search),
            format!("1,{:x}", addr + first as u64).as_bytes()
        );
        let nowhere = format!("qSearch:memory:{addr:x};1000;kscope is nowhere in there");
        assert_eq!(gdb.ask_text(&nowhere), "0");
        assert_eq!(gdb.ask(b"m8,4"), b"E0e");
        drop(gdb);
        // LLDB's form has no mark, and asks for the packet in another way.
        let mut lldb = Packets::connect(&guest);
        let features = lldb.ask_text("qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+");
        assert!(!features.contains("binary-upload"), "{features}");
        assert_eq!(lldb.ask(b"x0,0"), b"OK");
        assert!(lldb.ask(format!("x{addr:x},200").as_bytes()) == contents[..0x200]);
    }
}

#[test]
fn gdb_sees_the_files_sections_under_its_breakpoints() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = ticking(kernel);
        let out = guest.gdb(&[
            "break do_sys_openat2",
            "break vfs_write if count == 123456",
            "continue",
            "compare-sections .text",
            "x/s filename",
            "find &linux_banner, +4096, (char) 'L', (char) 'i', (char) 'n'",
            "detach",
        ]);
        let line = out
            .lines()
            .find(|line| line.starts_with("Section .text, range"));
        assert!(
            line.is_some_and(|line| line.ends_with(": matched.")),
            "{out}"
        );
        assert!(out.contains("<linux_banner>"), "{out}");
        // The file that the process names, in its own memory.
        assert!(out.lines().any(|line| line.contains(":\t\"/")), "{out}");
    }
}

#[test]
fn conditions_are_decided_and_dprintf_printed_where_they_are_hit() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = ticking(kernel);
        let before = guest.last_tick();
        let out = guest.gdb(&[
            "set breakpoint condition-evaluation target",
            "set dprintf-style agent",
            // At the first instruction the arguments are where the ABI has them, whatever the compiler made of the rest.
            "dprintf *vfs_write,\"wrote %lu %c <%.9s>\\n\", $rdx, *(char *) $rsi, (char *) $rsi",
            "break *ksys_write if *(char *) $rsi == 't' && $rdx > 5 && ((char *) $rsi)[$rdx - 2] == '9'",
            "continue",
            "continue",
            "x/s $rsi",
            "info breakpoints",
            "detach",
        ]);
        let at = out.lines().rev().find_map(|line| {
            line.split_once("\"tick ")?
                .1
                .split('\\')
                .next()?
                .parse::<u64>()
                .ok()
        });
        let at = at.unwrap_or_else(|| panic!("no tick: {out}"));
        assert!(at > before && at % 10 == 9, "{out}");
        // Both times the breakpoint that stopped it was the first that counted, and the dprintf has missed none.
        let printed: Vec<u64> = out
            .lines()
            .filter_map(|line| line.split_once(" t <tick ")?.1.parse().ok())
            .collect();
        let first = *printed
            .first()
            .unwrap_or_else(|| panic!("nothing printed: {out}"));
        assert!(at - first >= 10, "{out}");
        assert_eq!(printed, (first..at).collect::<Vec<_>>(), "{out}");
        assert!(out.contains("breakpoint already hit 2 times"), "{out}");
        let after = guest.last_tick();
        guest.wait_for("ticks", |out| out.last_tick() > after + 3);
    }
}

#[test]
fn a_range_is_stepped_in_one_go() {
    for kernel in kernels() {
        let guest = ticking(kernel);
        let function = symbol(kernel, "vfs_read");
        let (mut client, _) = Packets::connect_as_gdb(&guest);
        assert!(
            client
                .ask_text("vCont?")
                .split(';')
                .any(|action| action == "r")
        );
        assert_eq!(client.ask(format!("Z0,{function:x},1").as_bytes()), b"OK");
        let stop = client.ask_text("vCont;c");
        assert_eq!(client.ask(format!("z0,{function:x},1").as_bytes()), b"OK");
        let part = |stop: &str, name: &str| {
            let mut parts = stop.trim_start_matches("T05").split(';');
            let part = parts.find_map(|part| part.strip_prefix(name));
            part.unwrap_or_else(|| panic!("{}: {stop}", kernel.name))
                .to_owned()
        };
        let pc = |stop: &str| {
            let bytes = u64::from_str_radix(&part(stop, "10:"), 16).expect("a register");
            bytes.swap_bytes()
        };
        assert_eq!(pc(&stop), function, "{}: {stop}", kernel.name);
        let thread = part(&stop, "thread:");
        // To its first call or return, whichever comes first.
        let end = function + 16;
        let first = client.ask_text(&format!("vCont;r{function:x},{end:x}:{thread}"));
        assert_eq!(part(&first, "thread:"), thread, "{}", kernel.name);
        assert!(
            !(function..end).contains(&pc(&first)),
            "{}: {first}",
            kernel.name
        );
        // One that it does not leave ends with an interrupt.
        client.send(&packet(
            format!("vCont;r1000,ffffffffffff0000:{thread};c").as_bytes(),
        ));
        client.send(b"\x03");
        let last = String::from_utf8(client.receive()).expect("text");
        assert!(last.starts_with("T02"), "{}: {last}", kernel.name);
    }
}

#[test]
fn gdb_steps_lines_as_ranges() {
    for kernel in kernels() {
        let guest = ticking(kernel);
        let out = guest.gdb(&[
            "break vfs_read",
            "continue",
            "delete",
            "set debug remote 1",
            "next",
            "next",
            "next",
            "set debug remote 0",
            "detach",
        ]);
        let sent = |action: &str| {
            out.matches(&format!("Sending packet: $vCont;{action}"))
                .count()
        };
        // From the middle of a line it steps on instruction by instruction.
        assert!(sent("r") > 0, "{}: {out}", kernel.name);
    }
}

#[test]
fn a_task_is_followed_through_its_sleep() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = Guest::boot_on(
            kernel,
            &[],
            "(while :; do cat /etc/hostname >/dev/null; done) & (while :; do ls / >/dev/null; done) & \
             n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.05; done",
        );
        guest.wait_for("ticks", |out| out.last_tick() > 3);
        let out = guest.gdb(&[
            "tbreak do_nanosleep",
            "continue",
            "set $task = $_thread",
            // Into the scheduler, over what other tasks do meanwhile, and out again.
            "python gdb.execute('tbreak schedule thread %d' % gdb.selected_thread().num)",
            "continue",
            "printf \"at schedule %d\\n\", $task == $_thread",
            "python gdb.execute('tbreak switch_threads thread %d' % gdb.selected_thread().num)",
            "continue",
            "printf \"at switch %d\\n\", $task == $_thread",
            "stepi 60",
            "printf \"switched %d\\n\", $task == $_thread",
            "finish",
            "printf \"finished %d\\n\", $task == $_thread",
            "next",
            "printf \"next %d\\n\", $task == $_thread",
            "detach",
        ]);
        for line in [
            "at schedule 1",
            "finished 1",
            "next 1",
            "at switch 1",
            "switched 1",
        ] {
            assert!(out.contains(line), "no {line:?} in {out}");
        }
        let after = guest.last_tick();
        guest.wait_for("ticks", |out| out.last_tick() > after + 3);
    }
}

#[test]
fn threads_are_numbered_as_cpus_and_named_as_tasks() {
    for kernel in kernels() {
        println!("{}", kernel.name);
        let guest = ticking(kernel);
        let (mut client, features) = Packets::connect_as_gdb(&guest);
        assert!(features.contains("qXfer:threads:read+"), "{features}");
        // The CPUs of a kernel stop together.
        assert!(!features.contains("QNonStop"), "{features}");
        assert_eq!(client.ask(b"QNonStop:1"), b"");
        let list = client.ask_text("qXfer:threads:read::0,20000");
        assert!(
            list.starts_with('l') && list.ends_with("</threads>\n"),
            "{list}"
        );
        let threads: Vec<_> = list
            .lines()
            .filter(|line| line.starts_with("<thread "))
            .collect();
        let (running, others) = threads.split_at(kernel.cpus());
        for (cpu, thread) in running.iter().enumerate() {
            assert!(thread.contains(&format!("core=\"{cpu}\"")), "{list}");
        }
        assert!(others.iter().all(|line| !line.contains("core=")), "{list}");
        for name in ["\"kthreadd [S] kthreadd\"", "\"kworker/"] {
            assert!(
                threads.iter().any(|line| line.contains(name)),
                "{name}: {list}"
            );
        }
        // In pieces it is the same.
        let (mut pieces, mut offset) = (String::new(), 0);
        loop {
            let piece = client.ask_text(&format!("qXfer:threads:read::{offset:x},100"));
            pieces += &piece[1..];
            offset += piece.len() - 1;
            if piece.starts_with('l') {
                break;
            }
        }
        assert_eq!(pieces, list[1..]);
    }
}
