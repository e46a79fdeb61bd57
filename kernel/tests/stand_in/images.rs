//! Kernel binaries and files that are none, and types against the compiler's own idea of them.

use std::path::Path;
use std::process::Command;

use crate::common::{compile, run};
use kscope_kernel::{Image, ImageError, KernelAddr, Layout, LayoutError};

/// What the fixture prints about its own layouts.
fn compare(layout: &Layout, printed: &str) {
    let mut compared = 0;
    for line in printed.lines() {
        if let Some(line) = line.strip_prefix("bits ") {
            let (field, bits) = line.split_once(' ').expect("a field and its bits");
            let expected: Vec<u64> = bits
                .split(' ')
                .map(|bit| bit.parse().expect("a bit number"))
                .collect();
            let member = layout.member("struct task_struct", field).expect(field);
            let bits = member.bits.expect("a bit-field");
            let first = member.offset * 8 + u64::from(bits.shift);
            let found: Vec<u64> = (first..first + u64::from(bits.width)).collect();
            assert_eq!(found, expected, "{field}");
            assert!(
                u64::from(bits.shift + bits.width) <= member.size * 8,
                "{field}"
            );
        } else {
            let mut fields = line.rsplitn(3, ' ');
            let size: u64 = fields.next().and_then(|n| n.parse().ok()).expect("a size");
            let offset: u64 = fields
                .next()
                .and_then(|n| n.parse().ok())
                .expect("an offset");
            let (owner, path) = fields
                .next()
                .and_then(|name| name.rsplit_once(' '))
                .expect("a type and a path");
            let member = layout
                .member(owner, path)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                (member.offset, member.size, member.bits),
                (offset, size, None),
                "{line}"
            );
        }
        compared += 1;
    }
    assert_eq!(compared, 24);
}

#[test]
fn layouts_are_the_compilers() {
    for version in [601, 612, 703] {
        for flags in [
            &["-gdwarf-4"][..],
            &["-gdwarf-5"],
            &["-gdwarf-5", "-gz=zlib"],
        ] {
            let fixture = compile(version, flags);
            let image = Image::open(&fixture.kernel).expect("a kernel");
            let layout = image.layout().expect("DWARF");
            compare(layout, &stdout_of_fixture(&fixture.kernel));
            assert_eq!(layout.variable("init_stack", "").map(|m| m.size), Ok(16384));
            assert_eq!(layout.size_of("union thread_union").is_ok(), version != 703);
            assert_eq!(layout.size_of("atomic_t"), Ok(4));
            assert_eq!(layout.size_of("unsigned int"), Ok(4));
            assert_eq!(layout.size_of("enum pid_type"), Ok(4));
            assert_eq!(layout.enumerator("PIDTYPE_PGID"), Ok(7));
            assert_eq!(layout.enumerator("PIDTYPE_LOWEST"), Ok(-2));
            assert_eq!(
                layout.member("task_struct", "flexible").map(|m| m.size),
                Ok(0)
            );
            assert!(layout.has_member("task_struct", "flexible[1000]"));
        }
    }
}

/// The fixture exits with a number of its own making.
fn stdout_of_fixture(kernel: &Path) -> String {
    let output = Command::new(kernel).output().expect("it runs");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn what_a_kernel_does_not_have_is_named() {
    let fixture = compile(612, &[]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    let layout = image.layout().expect("DWARF");
    let message = |owner, path| match layout.member(owner, path) {
        Ok(member) => panic!("{owner} {path}: {member:?}"),
        Err(error) => error.to_string(),
    };
    assert!(message("struct no_such_struct", "x").contains("no type `struct no_such_struct`"));
    assert!(
        message("struct task_struct", "nope").contains("`struct task_struct` has no member `nope`")
    );
    assert!(message("task_struct", "pid.x").contains("no member"));
    assert!(message("task_struct", "pid[0]").contains("no array"));
    assert!(message("task_struct", "comm[16]").contains("no member"));
    assert!(message("task_struct", "thread.switch_buf.__rip").contains("no member"));
    assert!(message("task_struct", "matrix[1].x").contains("index it first"));
    assert!(message("task_struct", "in_execve.x").contains("bit-field"));
    assert!(message("task_struct", "flexible[18446744073709551615]").contains("overflow"));
    assert!(matches!(
        layout.variable("nope", ""),
        Err(LayoutError::NoVariable { .. })
    ));
    assert!(matches!(
        layout.enumerator("NOPE"),
        Err(LayoutError::NoEnumerator { .. })
    ));
}

#[test]
fn symbols_are_found_by_name_and_address() {
    let fixture = compile(612, &[]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    let main = image.symbol("linux_main").expect("linux_main");
    let size = image.symbol_size("linux_main").expect("its size");
    assert_eq!(image.symbol_at(main), Some(("linux_main", 0)));
    assert_eq!(
        image.symbol_at(main + (size - 1)),
        Some(("linux_main", size - 1))
    );
    assert_ne!(
        image.symbol_at(main + size).map(|(name, _)| name),
        Some("linux_main")
    );
    assert!(image.is_text(main));
    assert!(!image.is_text(image.symbol("init_task").expect("init_task")));
    assert_eq!(image.symbol("no_such_symbol"), None);
    assert_eq!(image.symbol_at(KernelAddr(0)), None);
    assert_eq!(image.symbol_at(KernelAddr(u64::MAX)), None);
}

#[test]
fn lines_include_inlined_functions() {
    let fixture = compile(612, &["-O2"]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    let source = include_str!("kernel/init/init_task.c");
    let line = |text: &str| {
        source
            .lines()
            .position(|line| line.contains(text))
            .expect(text)
            + 1
    };
    let main = image.symbol("linux_main").expect("linux_main");
    let size = image.symbol_size("linux_main").expect("its size");
    let stack = (0..size)
        .map(|offset| image.locate(main + offset))
        .find(|frames| frames.len() == 2)
        .expect("an instruction of the inlined function");
    assert_eq!(stack[0].function, "inner");
    assert_eq!(stack[0].line, Some(line("line of inner") as u32));
    assert_eq!(stack[1].function, "linux_main");
    assert_eq!(stack[1].line, Some(line("line of linux_main") as u32));
    let file = stack[0].file.as_deref().expect("a file");
    assert!(Path::new(file).is_absolute(), "{file}");
    assert_eq!(image.relative_path(file), "init/init_task.c");
    assert_eq!(image.relative_path("/elsewhere/x.c"), "/elsewhere/x.c");
    assert!(image.locate(KernelAddr(0)).is_empty());
}

#[test]
fn a_kernel_without_dwarf_has_symbols_but_no_layout() {
    let fixture = compile(612, &[]);
    run(Command::new("strip").arg("-g").arg(&fixture.kernel));
    let image = Image::open(&fixture.kernel).expect("a kernel");
    assert!(!image.has_dwarf());
    let error = image
        .layout()
        .map(|_| ())
        .expect_err("no DWARF")
        .to_string();
    assert!(
        error.contains("has no DWARF") && error.contains("CONFIG_DEBUG_INFO"),
        "{error}"
    );
    let frames = image.locate(image.symbol("linux_main").expect("linux_main"));
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].function, "linux_main");
    assert_eq!(frames[0].line, None);
}

/// The message for a file that is no kernel; every one names the file.
fn rejected(path: &Path) -> (ImageError, String) {
    let error = Image::open(path).expect_err("no kernel");
    let message = error.to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
    (error, message)
}

#[test]
fn every_wrong_file_has_its_own_message() {
    let fixture = compile(612, &[]);
    let write = |name: &str, content: &[u8]| {
        let path = fixture.path(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let kernel = std::fs::read(&fixture.kernel).expect("read");

    let (error, message) = rejected(&fixture.path("missing"));
    assert!(matches!(error, ImageError::NotFound { .. }) && message.contains("kscope build"));
    let (error, _) = rejected(&fixture.path(""));
    assert!(matches!(error, ImageError::Unreadable { .. }), "{error}");

    for (name, content, what) in [
        ("empty", &b""[..], "empty"),
        ("bzImage", b"MZ\xea\x07", "bzImage"),
        ("script", b"#!/bin/sh\n", "script"),
        ("text", b"hello", "not an ELF file"),
    ] {
        let (error, message) = rejected(&write(name, content));
        assert!(
            matches!(error, ImageError::NotElf { .. }) && message.contains(what),
            "{message}"
        );
    }

    let mut arm = kernel.clone();
    arm[18] = 183;
    let (error, message) = rejected(&write("arm", &arm));
    assert!(matches!(error, ImageError::WrongMachine { .. }) && message.contains("ARM"));
    let mut i386 = kernel.clone();
    i386[4] = 1;
    let (error, _) = rejected(&write("i386", &i386));
    assert!(matches!(error, ImageError::WrongMachine { .. }), "{error}");

    let (error, _) = rejected(&write("cut", &kernel[..kernel.len() / 2]));
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    let (error, _) = rejected(&write("header", &kernel[..20]));
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");

    let stripped = fixture.path("stripped");
    run(Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(&fixture.kernel));
    let (error, message) = rejected(&stripped);
    assert!(matches!(error, ImageError::Stripped { .. }) && message.contains("stripped"));

    let program = write("program.c", b"int main(void) { return 0; }\n");
    let compiled = fixture.path("program");
    run(Command::new("gcc").arg("-o").arg(&compiled).arg(&program));
    let (error, message) = rejected(&compiled);
    assert!(matches!(error, ImageError::NotUserModeLinux { .. }) && message.contains("ordinary"));
    run(Command::new("strip").arg(&compiled));
    let (error, _) = rejected(&compiled);
    assert!(
        matches!(error, ImageError::NotUserModeLinux { .. }),
        "{error}"
    );
    let object = fixture.path("program.o");
    run(Command::new("gcc")
        .arg("-c")
        .arg("-o")
        .arg(&object)
        .arg(&program));
    let (error, message) = rejected(&object);
    assert!(
        matches!(error, ImageError::NotUserModeLinux { .. }) && message.contains("object file")
    );
}

#[test]
fn the_build_id_is_the_linkers() {
    let fixture = compile(612, &["-Wl,--build-id=0x0123456789abcdef"]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    assert_eq!(image.build_id().as_deref(), Some("0123456789abcdef"));
    let fixture = compile(612, &["-Wl,--build-id=none"]);
    assert_eq!(
        Image::open(&fixture.kernel).expect("a kernel").build_id(),
        None
    );
}

#[test]
fn images_are_shared_between_threads() {
    let fixture = compile(612, &[]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    let main = image.symbol("linux_main").expect("linux_main");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let image = image.clone();
            scope.spawn(move || {
                assert!(image.layout().is_ok());
                assert_eq!(
                    image.locate(main).pop().map(|f| f.function).as_deref(),
                    Some("linux_main")
                );
            });
        }
    });
}
