//! `.gcda` files: counters in the form in which GCC's own tools read them.

use crate::counters::{FunctionCounters, ObjectCounters};
use crate::gcno::GccVersion;

/// `gcda`, as a little-endian word.
const MAGIC: u32 = 0x6763_6461;
const TAG_FUNCTION: u32 = 0x0100_0000;
const TAG_ARC_COUNTERS: u32 = 0x01a1_0000;

/// Why a `.gcda` file could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file does not begin as a little-endian `.gcda` does.
    #[error("not a gcov data file")]
    NotData,
    /// The compiler is older than GCC 7, or no GCC.
    #[error("written by an unknown compiler (version word 0x{0:08x}; GCC 7 or later is needed)")]
    Version(u32),
    /// The file ends inside a record.
    #[error("truncated at byte {0}")]
    Truncated(usize),
}

/// The contents of the `.gcda` file for one object, as a program would have written it.
pub fn write(object: &ObjectCounters) -> Vec<u8> {
    let mut out = Vec::new();
    let mut word = |word: u32| out.extend_from_slice(&word.to_le_bytes());
    // Lengths count bytes since GCC 12, words before.
    let unit = if object.version.counts_bytes() { 4 } else { 1 };
    word(MAGIC);
    word(object.version.0);
    word(object.stamp);
    if object.version.counts_bytes() {
        word(object.checksum);
    }
    for function in object.functions() {
        word(TAG_FUNCTION);
        word(3 * unit);
        word(function.ident);
        word(function.lineno_checksum);
        word(function.cfg_checksum);
        word(TAG_ARC_COUNTERS);
        word(function.values.len() as u32 * 2 * unit);
        for value in function.values {
            word(*value as u32);
            word((*value >> 32) as u32);
        }
    }
    out
}

/// Reads the contents of a `.gcda` file; `data_file` becomes the name of the object.
///
/// # Errors
///
/// When it is none, is of an unknown version, or is truncated.
pub fn read(bytes: &[u8], data_file: String) -> Result<ObjectCounters, DataError> {
    let mut at = 0;
    let word = |at: &mut usize| -> Result<u32, DataError> {
        let bytes = bytes.get(*at..*at + 4).ok_or(DataError::Truncated(*at))?;
        *at += 4;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte)))
    };
    if word(&mut at) != Ok(MAGIC) {
        return Err(DataError::NotData);
    }
    let version = GccVersion(word(&mut at)?);
    if version.major().is_none_or(|m| m < 7) {
        return Err(DataError::Version(version.0));
    }
    let stamp = word(&mut at)?;
    let (unit, checksum) = if version.counts_bytes() {
        (1, word(&mut at)?)
    } else {
        (4, 0)
    };
    let mut object = ObjectCounters::new(version, stamp, checksum, data_file);
    let mut open = None;
    while at < bytes.len() {
        let tag = word(&mut at)?;
        if tag == 0 {
            break;
        }
        let length = word(&mut at)?;
        // A negative length stands for that many bytes of zeros (GCC 10 and later).
        let zeros = (length as i32) < 0 && tag & 0xffe1_0000 == TAG_ARC_COUNTERS & 0xffe1_0000;
        let stored = if zeros { 0 } else { length as usize * unit };
        let end = at.checked_add(stored).filter(|end| *end <= bytes.len());
        let end = end.ok_or(DataError::Truncated(at))?;
        match tag {
            TAG_FUNCTION if stored == 12 => {
                open = Some((word(&mut at)?, word(&mut at)?, word(&mut at)?));
            }
            TAG_FUNCTION => open = None,
            TAG_ARC_COUNTERS => {
                let Some((ident, lineno_checksum, cfg_checksum)) = open else {
                    continue;
                };
                let mut values = Vec::new();
                if zeros {
                    let count = (length as i32).unsigned_abs() as usize * unit / 8;
                    // No function has more counters than its file could once have held.
                    values.resize(count.min(1 << 24), 0);
                }
                for _ in 0..stored / 8 {
                    let (low, high) = (word(&mut at)?, word(&mut at)?);
                    values.push((u64::from(high) << 32 | u64::from(low)) as i64);
                }
                let values = &values;
                object.push(FunctionCounters {
                    ident,
                    lineno_checksum,
                    cfg_checksum,
                    values,
                });
            }
            _ => {}
        }
        at = end;
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &[u8; 4]) -> ObjectCounters {
        let version = GccVersion(u32::from_be_bytes(*version));
        let mut object = ObjectCounters::new(version, 7, 0, "/b/a.gcda".to_owned());
        let function = |ident, values| FunctionCounters {
            ident,
            lineno_checksum: 5,
            cfg_checksum: 6,
            values,
        };
        object.push(function(1, &[1, i64::MAX, -1, 0x1_2345_6789]));
        object.push(function(2, &[]));
        object
    }

    #[test]
    fn what_is_written_reads_back() {
        for version in [b"A73*", b"B13*", b"B22*", b"B51*"] {
            let object = object(version);
            assert_eq!(read(&write(&object), object.data_file.clone()), Ok(object));
        }
    }

    #[test]
    fn every_truncation_is_told_or_ends_between_records() {
        let bytes = write(&object(b"B22*"));
        for end in 0..bytes.len() {
            let _ = read(&bytes[..end], String::new());
        }
        assert!(matches!(
            read(&bytes[..20], String::new()),
            Err(DataError::Truncated(20))
        ));
    }

    #[test]
    fn a_negative_length_stands_for_zeros() {
        let mut bytes = write(&object(b"B22*"));
        bytes.truncate(16 + 20);
        bytes.extend_from_slice(&TAG_ARC_COUNTERS.to_le_bytes());
        bytes.extend_from_slice(&(-32_i32).to_le_bytes());
        let object = read(&bytes, String::new()).unwrap();
        assert_eq!(object.functions().next().unwrap().values, [0; 4]);
    }
}
