//! Reads words and strings.

use super::NotesError;

/// A place in a record.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) end: usize,
    /// Bytes per unit of a length: 4, or 1 since GCC 12.
    pub(super) unit: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], NotesError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.end);
        let bytes = end.and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or(NotesError::Truncated(self.at))?;
        self.at += len;
        Ok(bytes)
    }

    /// A little-endian word.
    pub(super) fn word(&mut self) -> Result<u32, NotesError> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte)))
    }

    /// A string without its end mark and padding; `None` for the null string.
    pub(super) fn string(&mut self) -> Result<Option<&'a [u8]>, NotesError> {
        let length = self.word()? as usize;
        if length == 0 {
            return Ok(None);
        }
        let bytes = self.take(
            length
                .checked_mul(self.unit)
                .ok_or(NotesError::Truncated(self.at))?,
        )?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Ok(Some(&bytes[..end]))
    }
}
