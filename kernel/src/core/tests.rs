use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::memory::MemoryExt;
use crate::registers::Reg;

/// A core made by hand: two areas of memory, the second of which has a hole after it, and notes.
fn small() -> Vec<u8> {
    let registers: Registers = [(Reg::Rip, 0x6000_1234), (Reg::Rsp, 0x6100_0000)]
        .into_iter()
        .collect();
    let about = About {
        version: notes::VERSION,
        guest: "g1".into(),
        build_id: Some("abcd".into()),
        kernel: "/k/linux".into(),
        taken_at: 1_700_000_000,
        cpus: vec![notes::AboutCpu::new(0, &registers)],
        ..About::default()
    };
    let mut content = Vec::new();
    notes::push(
        &mut content,
        notes::CORE,
        NT_PRSTATUS,
        &notes::prstatus(7, 0, &registers),
    );
    let json = serde_json::to_vec(&about).unwrap();
    notes::push(&mut content, notes::KSCOPE, NT_KSCOPE_ABOUT, &json);
    let start = 4096_u64;
    let segment = |addr, offset, file_len, mem_len| Segment {
        kind: PT_LOAD.0,
        flags: 6,
        offset,
        addr,
        file_len,
        mem_len,
    };
    let segments = [
        Segment {
            kind: PT_NOTE.0,
            offset: elf::headers_len(3) as u64,
            file_len: content.len() as u64,
            ..Segment::default()
        },
        segment(0x6000_0000, start, 8192, 8192),
        segment(0x6000_2000, start + 8192, 4096, 8192),
    ];
    let mut file = elf::headers(&segments);
    file.extend_from_slice(&content);
    assert!(file.len() <= start as usize);
    file.resize(start as usize, 0);
    file.extend((0..12288_u32).map(|n| (n / 4096 + 1) as u8));
    file
}

fn stored(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<Core, CoreError> {
    Core::open(stored(bytes).path())
}

/// Frames of 1000 bytes of content each, and a table of them if asked for.
fn compressed(bytes: &[u8], table: bool) -> Vec<u8> {
    let mut compressor = FrameCompressor::new().unwrap();
    let mut frames = FrameTable::default();
    let mut file = Vec::new();
    for part in bytes.chunks(1000) {
        let frame = compressor.frame(part).unwrap();
        frames.push(frame.len(), part.len());
        file.extend(frame);
    }
    if table {
        file.extend(frames.to_bytes());
    }
    file
}

fn check(core: &Core) {
    assert_eq!(core.read_u8(KernelAddr(0x6000_0000)), Ok(1));
    // Across a segment, up to the hole, and into it.
    assert_eq!(core.read_u16(KernelAddr(0x6000_1fff)), Ok(0x0302));
    assert_eq!(core.read_u8(KernelAddr(0x6000_2fff)), Ok(3));
    assert!(core.read_u16(KernelAddr(0x6000_2fff)).is_err());
    assert!(core.read_u8(KernelAddr(0x5fff_ffff)).is_err());
    assert!(core.read_u64(KernelAddr(u64::MAX - 3)).is_err());
    assert_eq!(core.size(), 12288);
    assert_eq!(core.build_id(), Some("abcd"));
    assert_eq!(core.guest(), Some("g1"));
    assert_eq!(core.kernel_path_hint(), Some(Path::new("/k/linux")));
    assert_eq!(core.panicked(), None);
    assert_eq!(
        core.registers(CpuId(0)).and_then(Registers::pc),
        Some(0x6000_1234)
    );
    assert_eq!(core.registers(CpuId(1)), None);
    assert!(core.warnings().is_empty(), "{:?}", core.warnings());
}

#[test]
fn a_core_is_read_however_it_is_stored() {
    let plain = small();
    check(&open(&plain).unwrap());
    check(&open(&compressed(&plain, true)).unwrap());
    check(&open(&compressed(&plain, false)).unwrap());
    // In one piece, which does not tell its size, as from `zstd < core`.
    let whole = zstd::stream::encode_all(&plain[..], 1).unwrap();
    check(&open(&whole).unwrap());
}

#[test]
fn what_is_no_core_is_told_apart() {
    for (bytes, word) in [
        (&b""[..], "empty"),
        (b"\x7fE", "too short"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (b"\x7fELF\x02\x01\x01", "within its ELF header"),
        (&std::fs::read("/proc/self/exe").unwrap(), "a program"),
        (
            &zstd::bulk::compress(b"hello", 1).unwrap(),
            "not an ELF file",
        ),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ] {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(error.contains("/tmp") || error.contains('/'), "{error}");
    }
    let error = Core::open(Path::new("/nowhere/core")).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    let error = Core::open(Path::new("/dev/null")).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn a_core_that_is_cut_off_says_so() {
    let plain = small();
    for len in 0..plain.len() {
        match open(&plain[..len]) {
            // Headers are needed; what follows may be missing.
            Err(error) => assert!(len < elf::headers_len(3), "{len}: {error}"),
            Ok(core) => {
                assert!(!core.warnings().is_empty(), "{len}");
                assert_eq!(core.size(), (len as u64).saturating_sub(4096));
                let first = core.read_u8(KernelAddr(0x6000_0000));
                assert_eq!(first.is_ok(), len > 4096, "{len}");
            }
        }
    }
    // Without its end, a compressed one has no table; its frames are found all the same.
    let file = compressed(&plain, true);
    for len in 1..file.len() {
        match open(&file[..len]) {
            Err(error) => assert!(error.to_string().len() > 20, "{error}"),
            Ok(core) => {
                let whole = core.size() == 12288;
                // All but the table may be there.
                assert!(whole || !core.warnings().is_empty(), "{len}");
            }
        }
    }
}

#[test]
fn more_segments_than_a_header_counts() {
    let segments = vec![
        Segment {
            kind: PT_LOAD.0,
            addr: 0x1000,
            ..Segment::default()
        };
        70_000
    ];
    let file = stored(&elf::headers(&segments));
    let (bytes, _) = Bytes::new(file.as_file()).unwrap();
    assert_eq!(elf::segments(&bytes).unwrap(), segments);
}

/// Reads all that a core could have.
fn exercise(core: &Core) {
    let mut buf = vec![0; 4096];
    for page in (0x6000_0000..0x6000_5000_u64).step_by(1024) {
        let _ = core.read(KernelAddr(page), &mut buf);
    }
    let _ = core.read(KernelAddr(u64::MAX - 100), &mut buf);
    let _ = core.library("x");
    let _ = (core.taken_at(), core.size(), core.maps().len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn damaged_cores_are_errors_or_holes(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..8),
        in_headers: bool,
        form in 0..4,
    ) {
        let plain = small();
        let mut bytes = match form {
            0 => plain,
            1 => compressed(&plain, true),
            2 => compressed(&plain, false),
            _ => zstd::stream::encode_all(&plain[..], 1).unwrap(),
        };
        let range = if in_headers { bytes.len().min(1024) } else { bytes.len() };
        for (index, bit) in flips {
            // Headers and tables are where flips hurt.
            let at = index.index(range);
            let at = if in_headers && form == 1 { bytes.len() - 1 - at } else { at };
            bytes[at] ^= 1 << bit;
        }
        if let Ok(core) = open(&bytes) {
            exercise(&core);
        }
    }
}
