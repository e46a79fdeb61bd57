//! Memory that lies: what a view reads of a good guest, and the same with damage in what it reads.
//!
//! A view is shown once, which records where it reads and the pointers that it sees there. A script
//! then says what becomes of some of these places. The damage is there before the view is shown
//! again, and stays: but for [`Damage::later`], hostile memory is the same at every read. The same
//! script does the same damage.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use kscope_kernel::{KernelAddr, Memory, ReadError};

/// Bytes of a page, which is readable or not.
const PAGE: u64 = 4096;

/// Places that are remembered of a view.
const MOST_PLACES: usize = 1 << 20;

/// Pointers that are remembered of a view, and of one read.
const MOST_POINTERS: usize = 1 << 16;
const MOST_POINTERS_OF_READ: usize = 256;

/// What a view read.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Where, and how many bytes, in its order; each place once.
    places: Vec<(u64, usize)>,
    /// What looked like a pointer.
    pointers: Vec<u64>,
    /// How often it read.
    pub reads: u64,
    known: BTreeSet<(u64, usize)>,
}

impl Recording {
    fn read(&mut self, addr: u64, buf: &[u8]) {
        self.reads += 1;
        if self.places.len() >= MOST_PLACES || !self.known.insert((addr, buf.len())) {
            return;
        }
        self.places.push((addr, buf.len()));
        let skip = (addr.wrapping_neg() % 8) as usize;
        let words = buf.get(skip..).unwrap_or_default().as_chunks::<8>().0;
        let pointers = words.iter().map(|word| u64::from_le_bytes(*word));
        let room = MOST_POINTERS.saturating_sub(self.pointers.len());
        self.pointers.extend(
            pointers
                .filter(|word| (0x1000_0000..1 << 47).contains(word) && word % 8 == 0)
                .take(MOST_POINTERS_OF_READ.min(room)),
        );
    }
}

/// What happens to one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which of the places that were read, as a part of 65536 of all.
    pub place: u16,
    /// Which word of the place, if it has several.
    pub word: u16,
    /// What becomes of it.
    pub how: How,
    /// The first read finds the place whole: it changes under the view's hands.
    pub later: bool,
}

/// What becomes of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One of its bits is another.
    Flip(u8),
    /// A pointer that was read elsewhere, as a part of 65536 of all: lists become circles.
    Pointer(u16),
    /// A pointer to itself.
    Itself,
    /// Nothing.
    Null,
    /// The pointer leads some bytes away from where it should: to what is of another kind, or not
    /// aligned.
    Beside(i16),
    /// Any value, such as a pointer into nowhere.
    Wild(u64),
    /// The largest number.
    Huge,
    /// The largest number that is positive with a sign.
    HugeSigned,
    /// Its page cannot be read.
    Hole,
    /// There is no zero in the rest of its page: strings do not end.
    Endless,
}

/// The bytes of a script that one damage takes.
const STEP: usize = 8;

/// More is not damage, but another guest.
const MOST_DAMAGE: usize = 32;

/// Any bytes as a script.
pub fn script(bytes: &[u8]) -> Vec<Damage> {
    let steps = bytes.as_chunks::<STEP>().0.iter().take(MOST_DAMAGE);
    steps.map(|step| damage(*step)).collect()
}

fn damage([how, place0, place1, word0, word1, a, b, c]: [u8; STEP]) -> Damage {
    let argument = u16::from_le_bytes([a, b]);
    let how = match how & 0xf {
        0 | 1 => How::Flip(a),
        2..=4 => How::Pointer(argument),
        5 => How::Itself,
        6 => How::Null,
        7 | 8 => How::Beside(argument as i16),
        // Small numbers, addresses of the kernel's image and of its memory, and what is none.
        9 => How::Wild(u64::from(argument)),
        10 => How::Wild(0x6000_0000 | u64::from(argument) << 12 | u64::from(c)),
        11 => How::Wild(u64::from(argument) << 48 | u64::from(c)),
        12 => How::Huge,
        13 => How::HugeSigned,
        14 => How::Hole,
        _ => How::Endless,
    };
    Damage {
        place: u16::from_le_bytes([place0, place1]),
        word: u16::from_le_bytes([word0, word1]),
        how,
        later: c & 0xc0 == 0xc0,
    }
}

/// Bytes that are others than in the memory beneath.
#[derive(Clone, Debug)]
struct Patch {
    /// At most 8.
    bytes: Vec<u8>,
    /// Reads that find the place whole.
    whole: Cell<u32>,
}

/// The damage that a script does.
#[derive(Clone, Debug, Default)]
struct Damaged {
    patches: BTreeMap<u64, Patch>,
    /// Numbers of pages.
    holes: BTreeSet<u64>,
    /// From these addresses on, there is no zero in the page.
    endless: BTreeMap<u64, u64>,
}

/// A memory that records, and can be damaged.
pub struct Hostile<M> {
    memory: M,
    recording: RefCell<Option<Recording>>,
    damaged: RefCell<Damaged>,
    reads: Cell<u64>,
    bytes: Cell<u64>,
    budget: Cell<u64>,
}

impl<M: Memory> Hostile<M> {
    /// A memory that is as good as the one beneath.
    pub fn new(memory: M) -> Hostile<M> {
        Hostile {
            memory,
            recording: RefCell::new(None),
            damaged: RefCell::default(),
            reads: Cell::new(0),
            bytes: Cell::new(0),
            budget: Cell::new(u64::MAX),
        }
    }

    /// What `view` reads while nothing is damaged.
    pub fn record(&self, view: impl FnOnce()) -> Recording {
        self.repair();
        self.recording.replace(Some(Recording::default()));
        view();
        self.recording.take().unwrap_or_default()
    }

    /// Nothing is damaged, and nothing was read.
    pub fn repair(&self) {
        self.damaged.take();
        self.reads.set(0);
        self.bytes.set(0);
        self.budget.set(u64::MAX);
    }

    /// Damages what was recorded. A view that reads more often than `budget` times panics: it is
    /// what a deadline would end.
    pub fn damage(&self, recording: &Recording, script: &[Damage], budget: u64) {
        self.repair();
        self.budget.set(budget);
        let mut damaged = Damaged::default();
        for damage in script {
            damaged.add(damage, recording, &self.memory);
        }
        self.damaged.replace(damaged);
    }
}

/// An element of `all`, by a part of 65536.
fn part<T: Copy>(all: &[T], part: u16) -> Option<T> {
    all.get((all.len() * usize::from(part)) >> 16).copied()
}

impl Damaged {
    fn add<M: Memory>(&mut self, damage: &Damage, recording: &Recording, memory: &M) {
        let Some((start, len)) = part(&recording.places, damage.place) else {
            return;
        };
        let words = (len / 8).max(1) as u64;
        let addr = start.wrapping_add(u64::from(damage.word) % words * 8);
        let mut before = [0; 8];
        let before = &mut before[..len.min(8)];
        if memory.read(KernelAddr(addr), before).is_err() {
            return;
        }
        let mut old = [0; 8];
        old[..before.len()].copy_from_slice(before);
        let old = u64::from_le_bytes(old);
        let bits = 8 * before.len() as u32;
        let new = match damage.how {
            How::Flip(bit) => old ^ 1 << (u32::from(bit) % bits),
            How::Pointer(which) => part(&recording.pointers, which).unwrap_or(0),
            How::Itself => addr,
            How::Null => 0,
            How::Beside(by) => old.wrapping_add_signed(by.into()),
            How::Wild(value) => value,
            How::Huge => u64::MAX,
            How::HugeSigned => u64::MAX >> (65 - bits),
            How::Hole => {
                self.holes.insert(addr / PAGE);
                return;
            }
            How::Endless => {
                self.endless.insert(addr / PAGE, addr);
                return;
            }
        };
        let bytes = new.to_le_bytes()[..before.len()].to_vec();
        let whole = Cell::new(damage.later.into());
        self.patches.insert(addr, Patch { bytes, whole });
    }

    fn is_hole(&self, addr: u64, len: usize) -> bool {
        let last = addr.saturating_add((len as u64).saturating_sub(1));
        self.holes.range(addr / PAGE..=last / PAGE).next().is_some()
    }

    fn apply(&self, addr: u64, buf: &mut [u8]) {
        let end = addr.saturating_add(buf.len() as u64);
        for (_, &from) in self.endless.range(addr / PAGE..=end / PAGE) {
            let to = (from / PAGE + 1).saturating_mul(PAGE);
            for (at, byte) in (addr..end).zip(buf.iter_mut()) {
                if (from..to).contains(&at) && *byte == 0 {
                    *byte = b'A';
                }
            }
        }
        for (&from, patch) in self.patches.range(addr.saturating_sub(7)..end) {
            match patch.whole.get() {
                0 => {
                    for (at, &new) in (from..).zip(&patch.bytes) {
                        let place = at.checked_sub(addr).map(|offset| offset as usize);
                        if let Some(byte) = place.and_then(|place| buf.get_mut(place)) {
                            *byte = new;
                        }
                    }
                }
                left => patch.whole.set(left - 1),
            }
        }
    }
}

impl<M: Memory> Memory for Hostile<M> {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let (reads, bytes) = (self.reads.get() + 1, self.bytes.get() + buf.len() as u64);
        self.reads.set(reads);
        self.bytes.set(bytes);
        assert!(
            reads <= self.budget.get(),
            "the view does not end: it has read {reads} times, {bytes} bytes"
        );
        let damaged = self.damaged.borrow();
        if damaged.is_hole(addr.get(), buf.len()) {
            return Err(ReadError {
                addr,
                len: buf.len(),
            });
        }
        self.memory.read(addr, buf)?;
        damaged.apply(addr.get(), buf);
        if let Some(recording) = &mut *self.recording.borrow_mut() {
            recording.read(addr.get(), buf);
        }
        Ok(())
    }
}
