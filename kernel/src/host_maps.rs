//! The memory map of a guest's kernel process, as `/proc/PID/maps` has it.

use std::collections::BTreeMap;
use std::ops::Range;

/// One line of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub(crate) range: Range<u64>,
    /// `rwxp`: p is private, s is shared.
    pub(crate) mode: &'a str,
    /// In the file.
    pub(crate) offset: u64,
    pub(crate) inode: u64,
    /// A path, a name such as `[heap]`, or nothing.
    pub(crate) path: &'a str,
}

impl Mapping<'_> {
    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.mode.ends_with('s')
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.mode.contains('w')
    }

    /// Of a file that has a name still.
    pub(crate) fn is_of_file(&self) -> bool {
        self.path.starts_with('/') && !self.is_deleted()
    }

    pub(crate) fn is_deleted(&self) -> bool {
        self.path.ends_with(" (deleted)")
    }
}

/// The mappings of a map. Lines that make no sense are passed over.
pub(crate) fn parse(maps: &str) -> impl Iterator<Item = Mapping<'_>> {
    maps.lines().filter_map(line)
}

/// Parses a line such as
/// `7f0c4a000000-7f0c4a155000 r-xp 00026000 fe:00 1234   /usr/lib/x86_64-linux-gnu/libc.so.6`.
pub(crate) fn line(line: &str) -> Option<Mapping<'_>> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_start();
        let (field, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
        rest = after;
        field
    };
    let (range, mode, offset, _device, inode) = (field(), field(), field(), field(), field());
    let path = rest.trim_start();
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let (start, end) = range.split_once('-')?;
    let range = hex(start)?..hex(end)?;
    (range.start < range.end).then_some(())?;
    Some(Mapping {
        range,
        mode,
        offset: hex(offset)?,
        inode: inode.parse().ok()?,
        path,
    })
}

/// The inode of the file that is the guest's RAM: the one without a name of which most is mapped
/// shared. `maps` is the text of `/proc/PID/maps` of the kernel's process.
pub fn ram_inode(maps: &str) -> Option<u64> {
    let mut sizes = BTreeMap::<u64, u64>::new();
    for mapping in parse(maps).filter(|mapping| mapping.is_shared() && mapping.is_deleted()) {
        let size = sizes.entry(mapping.inode).or_default();
        *size = size.saturating_add(mapping.len());
    }
    sizes
        .into_iter()
        .max_by_key(|&(_, size)| size)
        .map(|(inode, _)| inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let libc = "7f0c4a026000-7f0c4a17b000 r-xp 00026000 fe:00 1234   /usr/lib/lib c.so.6";
        let mapping = line(libc).unwrap();
        assert_eq!(mapping.range, 0x7f0c_4a02_6000..0x7f0c_4a17_b000);
        assert_eq!((mapping.mode, mapping.offset), ("r-xp", 0x26000));
        assert_eq!((mapping.inode, mapping.path), (1234, "/usr/lib/lib c.so.6"));
        assert!(mapping.is_of_file() && !mapping.is_shared() && !mapping.is_writable());
        let ram = line("60001000-60022000 rwxs 00001000 00:01 9 /dev/shm/x (deleted)").unwrap();
        assert!(ram.is_shared() && ram.is_deleted() && ram.is_writable());
        let heap = line("6081e000-6083f000 rw-p 00000000 00:00 0          [heap]").unwrap();
        assert_eq!((heap.path, heap.is_of_file()), ("[heap]", false));
        assert_eq!(line("1000-2000 rw-p 0 0:0 0").unwrap().path, "");
        for bad in ["", "nonsense", "20-10 r-xp 0 0:0 0", "1-2 r-xp x 0:0 0"] {
            assert_eq!(line(bad), None, "{bad}");
        }
    }
}
