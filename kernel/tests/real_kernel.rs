//! A real kernel binary against what binutils and GDB read in it.
//!
//! These tests need the `linux` file of a build with DWARF, so they are ignored by default:
//!
//! ```text
//! KSCOPE_TEST_KERNEL=/path/to/linux cargo test -p kscope-kernel -- --include-ignored
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use kscope_kernel::{Image, Kernel, KernelAddr, Memory, ReadError};

const VARIABLE: &str = "KSCOPE_TEST_KERNEL";

fn path() -> PathBuf {
    match std::env::var_os(VARIABLE) {
        Some(path) => path.into(),
        None => panic!("set {VARIABLE} to the `linux` file of a User Mode Linux build with DWARF"),
    }
}

fn image() -> Image {
    Image::open(&path()).unwrap_or_else(|error| panic!("{error}"))
}

fn stdout(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "needs KSCOPE_TEST_KERNEL"]
fn symbols_are_those_of_nm() {
    let image = image();
    let listing = stdout(Command::new("nm").arg("-S").arg(path()));
    let mut by_name: HashMap<&str, BTreeSet<u64>> = HashMap::new();
    let mut sized = Vec::new();
    for line in listing.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        let hex = |field: &str| u64::from_str_radix(field, 16).expect("nm prints hexadecimal");
        match fields[..] {
            // Undefined, weak or not, and thread-local ones have no address.
            ["U" | "w" | "v", _] => {}
            [addr, kind, name] if !"wv".contains(kind) => {
                by_name.entry(name).or_default().insert(hex(addr));
            }
            [addr, size, kind, name] => {
                by_name.entry(name).or_default().insert(hex(addr));
                if "tTwW".contains(kind) {
                    sized.push((name, hex(addr), hex(size)));
                }
            }
            _ => {}
        }
    }
    assert!(by_name.len() > 10_000);
    let mut missing = Vec::new();
    for (name, addrs) in &by_name {
        let found: BTreeSet<u64> = image
            .symbols_named(name)
            .map(|symbol| symbol.addr.get())
            .collect();
        if &found != addrs {
            missing.push((name, addrs, found));
        }
    }
    // nm also lists the files and sections that some object formats put into the table.
    assert!(
        missing.len() < 20,
        "{} differ: {:?}",
        missing.len(),
        &missing[..20]
    );

    // Every byte of a function belongs to it, or to one that nm puts at the same place.
    let mut checked = 0;
    for &(name, addr, size) in sized.iter().filter(|&&(.., size)| size > 0) {
        for at in [addr, addr + size / 2, addr + size - 1] {
            let (found, offset) = image.symbol_at(KernelAddr(at)).expect(name);
            let start = at - offset;
            assert!(
                found == name || by_name[found].contains(&start) && start >= addr,
                "{at:#x} is in {name}, but was found in {found}"
            );
            checked += 1;
        }
    }
    assert!(checked > 30_000);
}

#[test]
#[ignore = "needs KSCOPE_TEST_KERNEL"]
fn the_build_id_is_that_of_readelf() {
    let notes = stdout(Command::new("readelf").arg("-n").arg(path()));
    let id = notes
        .lines()
        .find_map(|line| line.trim().strip_prefix("Build ID: "));
    assert_eq!(image().build_id().as_deref(), id);
}

/// What GDB prints when it runs a script on the kernel.
fn gdb(script: &str) -> String {
    let mut file = tempfile::NamedTempFile::with_suffix(".gdb").expect("a temporary file");
    file.write_all(script.as_bytes()).expect("written");
    stdout(
        Command::new("gdb")
            .args(["-nx", "-q", "-batch", "-x"])
            .arg(file.path())
            .arg(path()),
    )
}

/// Every member of a struct with its offset, as GDB computes it, anonymous ones looked through.
fn gdb_members(owner: &str) -> BTreeMap<String, (u64, u64)> {
    let script = format!(
        "python\n\
         def walk(t, base, prefix):\n\
        \x20 for f in t.strip_typedefs().fields():\n\
        \x20   s = f.type.strip_typedefs()\n\
        \x20   at = base + f.bitpos\n\
        \x20   agg = s.code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)\n\
        \x20   if not f.name:\n\
        \x20     walk(s, at, prefix)\n\
        \x20     continue\n\
        \x20   if not f.bitsize: print('M', prefix + f.name, at // 8, f.type.sizeof)\n\
        \x20   if agg and prefix.count('.') < 3: walk(s, at, prefix + f.name + '.')\n\
         walk(gdb.lookup_type('{owner}'), 0, '')\n\
         print('M', '', 0, gdb.lookup_type('{owner}').sizeof)\n\
         end\n"
    );
    gdb(&script)
        .lines()
        .filter_map(|line| {
            let line = line.strip_prefix("M ")?;
            let mut fields = line.rsplitn(3, ' ');
            let size = fields.next()?.parse().ok()?;
            let offset = fields.next()?.parse().ok()?;
            Some((fields.next()?.to_owned(), (offset, size)))
        })
        .collect()
}

#[test]
#[ignore = "needs KSCOPE_TEST_KERNEL"]
fn layouts_are_those_of_gdb() {
    let image = image();
    let layout = image.layout().expect("DWARF");
    for (owner, at_least) in [
        ("struct task_struct", 200),
        ("struct mm_struct", 60),
        ("struct signal_struct", 60),
        ("struct module", 30),
        ("struct rq", 20),
        ("struct uml_pt_regs", 3),
        ("struct printk_ringbuffer", 5),
    ] {
        let members = gdb_members(owner);
        assert!(
            members.len() >= at_least,
            "gdb shows {} members of {owner}",
            members.len()
        );
        for (path, &(offset, size)) in &members {
            let found = layout
                .member(owner, path)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((found.offset, found.size), (offset, size), "{owner} {path}");
        }
    }
}

/// Addresses all over the text: from the middle of some functions.
fn addresses(image: &Image) -> Vec<KernelAddr> {
    let functions: Vec<_> = image
        .symbols()
        .filter(|symbol| symbol.is_function && symbol.size > 16 && image.is_text(symbol.addr))
        .map(|symbol| symbol.addr + symbol.size / 2)
        .collect();
    let step = functions.len() / 1500 + 1;
    let some: Vec<_> = functions.into_iter().step_by(step).collect();
    assert!(some.len() > 500);
    some
}

/// Asserts that almost all are equal. The oracles have their own mistakes.
fn assert_nearly_all_equal<T: PartialEq + std::fmt::Debug>(pairs: &[(KernelAddr, T, T)]) {
    let different: Vec<_> = pairs
        .iter()
        .filter(|(_, expected, found)| expected != found)
        .collect();
    assert!(pairs.len() > 400, "{} compared", pairs.len());
    assert!(
        different.len() * 100 <= pairs.len(),
        "{} of {} differ (address, expected, found): {different:#x?}",
        different.len(),
        pairs.len()
    );
}

#[test]
#[ignore = "needs KSCOPE_TEST_KERNEL"]
fn inlined_functions_are_those_of_addr2line() {
    let image = image();
    let mut addr2line = Command::new("addr2line")
        .args(["-f", "-i", "-a", "-e"])
        .arg(path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("addr2line");
    let mut stdin = addr2line.stdin.take().expect("a pipe");
    let asked: String = addresses(&image)
        .iter()
        .map(|addr| format!("{addr}\n"))
        .collect();
    let writer = std::thread::spawn(move || stdin.write_all(asked.as_bytes()));
    let output = addr2line.wait_with_output().expect("addr2line ends");
    writer
        .join()
        .expect("no panic")
        .expect("addr2line reads everything");

    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().peekable();
    let mut pairs = Vec::new();
    while let Some(line) = lines.next() {
        let addr = line.strip_prefix("0x").expect("an address");
        let addr = KernelAddr(u64::from_str_radix(addr, 16).expect("hexadecimal"));
        let mut expected = Vec::new();
        while lines.peek().is_some_and(|line| !line.starts_with("0x")) {
            let function = lines.next().expect("peeked").to_owned();
            // The file is wrong in binutils 2.40 when DWARF 5 has it in another directory.
            let place = lines.next().expect("a place after a function");
            let line = place.rsplit_once(':').expect("file:line").1;
            let line: Option<u32> = line.split(' ').next().and_then(|line| line.parse().ok());
            expected.push((function, line));
        }
        if expected
            .iter()
            .all(|(function, line)| function != "??" && line.is_some())
        {
            let found = image.locate(addr).into_iter();
            pairs.push((
                addr,
                expected,
                found.map(|at| (at.function, at.line)).collect(),
            ));
        }
    }
    assert_nearly_all_equal(&pairs);
}

#[test]
#[ignore = "needs KSCOPE_TEST_KERNEL"]
fn files_are_those_of_gdb() {
    let image = image();
    let addresses = addresses(&image);
    let list: Vec<_> = addresses.iter().map(|addr| addr.to_string()).collect();
    let printed = gdb(&format!(
        "python\n\
         for a in [{}]:\n\
        \x20 s = gdb.find_pc_line(a)\n\
        \x20 print('L', s.symtab.fullname() if s.symtab else '?', s.line)\n\
         end\n",
        list.join(",")
    ));
    let expected = printed
        .lines()
        .filter_map(|line| line.strip_prefix("L ")?.rsplit_once(' '));
    let pairs: Vec<_> = addresses
        .iter()
        .zip(expected)
        .filter_map(|(&addr, (file, line))| {
            // GDB counts only lines where a statement begins, so it often names another one: then
            // the files say nothing.
            let found = image.locate(addr).into_iter().next()?;
            let is_same_line = found.line? == line.parse::<u32>().ok()?;
            is_same_line.then(|| (addr, file.to_owned(), found.file.unwrap_or_default()))
        })
        .collect();
    assert_nearly_all_equal(&pairs);
}

/// Nothing is mapped: whatever is read from memory is missing.
struct Nothing;

impl Memory for Nothing {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        Err(ReadError {
            addr,
            len: buf.len(),
        })
    }
}

#[test]
#[ignore = "needs KSCOPE_TEST_KERNEL"]
fn every_layout_that_tasks_need_is_there() {
    let kernel = Kernel::new(image(), Nothing).unwrap_or_else(|error| panic!("{error}"));
    assert!(kernel.thread_size().is_power_of_two());
    assert!((8192..=131_072).contains(&kernel.thread_size()));
    assert!(!kernel.signal_stacks().is_empty());
}
