//! Notes made by hand, in the form of each compiler.

use super::*;

#[test]
fn version_words_are_read() {
    let version = |word: &[u8; 4]| GccVersion(u32::from_be_bytes(*word));
    assert_eq!(version(b"B22*").to_string(), "12.2");
    assert_eq!(version(b"A73*").major(), Some(7));
    assert_eq!(version(b"B50*").major(), Some(15));
    // GCC 4.7, whose words were decimal.
    assert_eq!(version(b"407*").major(), None);
    assert!(version(b"A94*").major() < Some(12) && !version(b"A94*").counts_bytes());
}

#[test]
fn names_lose_their_detours() {
    assert_eq!(tidy("/k/fs/proc/../mount.h"), "/k/fs/mount.h");
    assert_eq!(tidy("./include//linux/./list.h"), "include/linux/list.h");
    assert_eq!(tidy("../../a/../b.c"), "../../b.c");
    assert_eq!(tidy("/../b.c"), "/b.c");
}

/// Writes notes in the form of one compiler.
struct Writer {
    bytes: Vec<u8>,
    major: u32,
}

impl Writer {
    fn new(version: &[u8; 4]) -> Self {
        let version = GccVersion(u32::from_be_bytes(*version));
        let major = version.major().unwrap();
        let mut writer = Writer {
            bytes: Vec::new(),
            major,
        };
        writer.words(&[MAGIC, version.0, 0x5eed]);
        if major >= 12 {
            writer.words(&[0xc0de]);
        }
        if major >= 9 {
            writer.string("/build");
        }
        if major >= 8 {
            writer.words(&[1]);
        }
        writer
    }

    fn words(&mut self, words: &[u32]) {
        self.bytes
            .extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }

    fn string(&mut self, text: &str) {
        let unit = if self.major >= 12 { 1 } else { 4 };
        let length = (text.len() + 1).div_ceil(unit);
        self.words(&[length as u32]);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes
            .resize(self.bytes.len() + length * unit - text.len(), 0);
    }

    fn record(&mut self, tag: u32, write: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.words(&[tag, 0]);
        write(self);
        let length = self.bytes.len() - start - 8;
        let length = if self.major >= 12 { length } else { length / 4 } as u32;
        self.bytes[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    }
}

/// One function of four blocks: `if (x) { y } return`, and a record that is to be skipped.
fn sample(version: &[u8; 4]) -> Vec<u8> {
    let mut writer = Writer::new(version);
    let major = writer.major;
    writer.record(TAG_FUNCTION, |w| {
        w.words(&[11, 12, 13]);
        w.string("choose");
        if major >= 8 {
            w.words(&[0]);
        }
        w.string("./choose.c");
        w.words(&[3]);
        if major >= 8 {
            w.words(&[5, 9]);
        }
        if major >= 9 {
            w.words(&[1]);
        }
    });
    writer.record(TAG_BLOCKS, |w| match major {
        ..8 => w.words(&[0, 0, 0, 0]),
        _ => w.words(&[4]),
    });
    writer.record(TAG_ARCS, |w| {
        w.words(&[0, 2, ARC_ON_TREE | ARC_FALLTHROUGH])
    });
    writer.record(TAG_ARCS, |w| w.words(&[2, 3, ARC_FALLTHROUGH, 1, 0]));
    writer.record(TAG_ARCS, |w| w.words(&[3, 1, ARC_ON_TREE]));
    if major >= 14 {
        writer.record(0x0147_0000, |w| w.words(&[1, 2, 3]));
    }
    if major >= 15 {
        writer.record(0x0149_0000, |w| w.words(&[7]));
    }
    for (block, lines) in [(2, &[4, 5][..]), (3, &[9])] {
        writer.record(TAG_LINES, |w| {
            w.words(&[block, 0]);
            w.string("choose.c");
            w.words(lines);
            w.words(&[0, 0]);
        });
    }
    writer.bytes
}

#[test]
fn every_format_reads_the_same() {
    for version in [
        b"A73*", b"A83*", b"A94*", b"B05*", b"B14*", b"B22*", b"B32*", b"B42*", b"B51*",
    ] {
        let notes = Notes::parse(&sample(version)).unwrap();
        assert_eq!(notes.stamp, 0x5eed);
        assert_eq!(notes.sources, ["choose.c"]);
        let major = notes.version.major().unwrap();
        assert_eq!(notes.cwd.as_deref(), (major >= 9).then_some("/build"));
        let [function] = &notes.functions[..] else {
            panic!("{notes:?}")
        };
        assert_eq!(
            (
                function.ident,
                function.lineno_checksum,
                function.cfg_checksum
            ),
            (11, 12, 13)
        );
        assert_eq!(
            (function.name.as_str(), function.artificial),
            ("choose", false)
        );
        assert_eq!((function.start_line, function.end_line), (3, 9));
        assert_eq!(function.blocks, [0..1, 0..0, 1..3, 3..4]);
        assert_eq!(function.counters(), 2);
        assert_eq!(function.lines, [4, 5, 9]);
        let location = Location {
            block: 3,
            source: 0,
            lines: 2..3,
        };
        assert_eq!(function.locations.last(), Some(&location));
    }
}

#[test]
fn old_and_foreign_files_are_refused() {
    assert_eq!(Notes::parse(b"").unwrap_err(), NotesError::NotNotes);
    assert_eq!(Notes::parse(b"onc").unwrap_err(), NotesError::NotNotes);
    assert_eq!(Notes::parse(b"gcnoB22*").unwrap_err(), NotesError::NotNotes);
    let mut old = sample(b"A73*");
    old[4..8].copy_from_slice(&u32::from_be_bytes(*b"407*").to_le_bytes());
    assert!(matches!(Notes::parse(&old), Err(NotesError::Version(_))));
}

#[test]
fn contradictions_are_corruption() {
    let mut writer = Writer::new(b"B22*");
    writer.record(TAG_FUNCTION, |w| {
        w.words(&[11, 12, 13]);
        w.string("f");
        w.words(&[0]);
        w.string("f.c");
        w.words(&[1, 1, 1, 1]);
    });
    let corrupt = |tag, words: &[u32]| {
        let bytes = writer.bytes.clone();
        let mut writer = Writer { bytes, major: 12 };
        writer.record(tag, |w| w.words(words));
        matches!(Notes::parse(&writer.bytes), Err(NotesError::Corrupt { .. }))
    };
    assert!(corrupt(TAG_BLOCKS, &[u32::MAX]));
    assert!(corrupt(TAG_ARCS, &[0, 1, 0]));
    assert!(corrupt(TAG_LINES, &[0, 0, 0]));
    writer.record(TAG_BLOCKS, |w| w.words(&[3]));
    let corrupt = |tag, words: &[u32]| {
        let bytes = writer.bytes.clone();
        let mut writer = Writer { bytes, major: 12 };
        writer.record(tag, |w| w.words(words));
        matches!(Notes::parse(&writer.bytes), Err(NotesError::Corrupt { .. }))
    };
    assert!(corrupt(TAG_BLOCKS, &[3]));
    assert!(corrupt(TAG_ARCS, &[0, 3, 0]));
    assert!(corrupt(TAG_LINES, &[0, 7, 0, 0]));
    assert!(!corrupt(TAG_ARCS, &[0, 2, 0]));
}

#[test]
fn every_truncation_is_told_or_ends_between_records() {
    for version in [b"A94*", b"B22*"] {
        let bytes = sample(version);
        let whole = Notes::parse(&bytes).unwrap();
        for end in 0..bytes.len() {
            if let Ok(notes) = Notes::parse(&bytes[..end]) {
                assert!(notes.functions.len() <= whole.functions.len());
            }
        }
    }
}
