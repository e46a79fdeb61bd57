//! The kernel's log, as dmesg and /dev/kmsg have it: what is in printk's ring buffer, also before
//! there is a console and after a panic; kernel/printk/printk_ringbuffer.c.

mod level;

use std::fmt;

use serde::Serialize;

use crate::addr::KernelAddr;
use crate::kernel::Corruption;
use crate::memory::{Memory, MemoryExt};
use crate::reader::{Object, Reader, ViewError, unreadable};
use crate::table::printable;

pub use level::{Facility, Level, Levels, ParseLevelError};

/// What is in the kernel's log, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Log(pub Vec<Record>);

/// A message of the kernel, or one that was written to /dev/kmsg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Its number. The first message since boot has 0; numbers that are missing were overwritten.
    pub seq: u64,
    /// When it was printed, in nanoseconds since boot.
    pub time_ns: u64,
    /// How important it is.
    pub level: Level,
    /// Whose message it is.
    pub facility: Facility,
    /// Who printed it: `T1` is the task with pid 1, `C0` is CPU 0 in an interrupt.
    pub caller: String,
    /// The text, which can have several lines.
    pub text: String,
    /// Whether it goes on with the line of the message before.
    pub continued: bool,
    /// Of a message about a device: what it belongs to, `block`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
    /// Of a message about a device: its name with a letter for its kind, `b7:0` or `+pci:0000`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// How a record stands: the two highest bits of `state_var`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved,
    /// Written, but what is printed next may be added to it.
    Committed,
    Finalized,
    Reusable,
}

impl State {
    const SHIFT: u32 = 62;

    fn of(state: u64) -> State {
        match state >> State::SHIFT {
            0 => State::Reserved,
            1 => State::Committed,
            2 => State::Finalized,
            _ => State::Reusable,
        }
    }

    /// What is left of a `state_var`: the number of its record.
    fn id(state: u64) -> u64 {
        state & ((1 << State::SHIFT) - 1)
    }
}

/// Bytes that a ring can have in a guest whose memory is not known yet: the first one is part of
/// the kernel's image.
const MIN_ROOM: u64 = 1 << 24;

/// `EMPTY_LINE_LPOS`: a record without a text. Other odd positions are records without one because
/// there was no room.
const EMPTY_LINE: u64 = 3;

/// A ring, and what is the same for all of its records.
struct Ring<'r, M> {
    reader: &'r Reader<'r, M>,
    /// Where the descriptors are, and how many, less one.
    descs: KernelAddr,
    desc_size: u64,
    infos: KernelAddr,
    info_size: u64,
    mask: u64,
    data: KernelAddr,
    size_bits: u64,
}

impl<M: Memory> Reader<'_, M> {
    /// What is in the kernel's log.
    ///
    /// # Errors
    ///
    /// When the kernel was built without one, or its ring buffer cannot be read.
    pub fn log(&self) -> Result<Log, ViewError> {
        if self.kernel().image().symbol("prb").is_none() {
            return Err(ViewError::NotConfigured {
                what: "log",
                option: "CONFIG_PRINTK",
            });
        }
        let buffer = self.global("prb")?.deref("")?;
        let ring = Ring::new(self, &buffer)?;
        let tail = State::id(buffer.u64("desc_ring.tail_id")?);
        let head = State::id(buffer.u64("desc_ring.head_id")?);
        // Both run in a circle.
        let count = State::id(head.wrapping_sub(tail)).min(ring.mask) + 1;
        let mut records = Vec::new();
        for at in 0..count {
            let id = State::id(tail.wrapping_add(at));
            let record = ring.record(id);
            records.extend(self.or_warn(record).flatten());
        }
        Ok(Log(records))
    }
}

impl<'r, M: Memory> Ring<'r, M> {
    fn new(reader: &'r Reader<'_, M>, buffer: &Object<'_, M>) -> Result<Ring<'r, M>, ViewError> {
        let layout = reader.kernel().image().layout()?;
        let count_bits = buffer.u64("desc_ring.count_bits")?;
        let size_bits = buffer.u64("text_data_ring.size_bits")?;
        let desc_size = layout.size_of("struct prb_desc")?;
        let info_size = layout.size_of("struct printk_info")?;
        let room = reader.kernel().physmem().end.get().max(MIN_ROOM);
        let fits = |bits: u64, each: u64| bits < 40 && (each << bits) <= room;
        if !fits(count_bits, desc_size.saturating_add(info_size)) || !fits(size_bits, 1) {
            return Err(ViewError::Invalid(format!(
                "the guest's log at {} is corrupt: it says that it has 2^{count_bits} records in \
                 2^{size_bits} bytes",
                buffer.addr()
            )));
        }
        Ok(Ring {
            reader,
            descs: buffer.pointer("desc_ring.descs")?,
            desc_size,
            infos: buffer.pointer("desc_ring.infos")?,
            info_size,
            mask: (1 << count_bits) - 1,
            data: buffer.pointer("text_data_ring.data")?,
            size_bits,
        })
    }

    /// The record with a number. `None` when it was overwritten, or is being written.
    fn record(&self, id: u64) -> Result<Option<Record>, ViewError> {
        let reader = self.reader;
        let at = id & self.mask;
        let desc = self.descs + at.wrapping_mul(self.desc_size);
        let desc = reader.object("struct prb_desc", desc);
        let state = desc.u64("state_var")?;
        let is_there = matches!(State::of(state), State::Committed | State::Finalized);
        if State::id(state) != id || !is_there {
            return Ok(None);
        }
        let info = self.infos + at.wrapping_mul(self.info_size);
        let info = reader.object("struct printk_info", info).fetched();
        let record = self.text(&desc, &info, id).and_then(|text| {
            let text = text.unwrap_or_default();
            record(&info, text)
        });
        // A record is declared reusable before any of it is overwritten.
        match desc.u64("state_var")? == state {
            true => record.map(Some),
            false => Ok(None),
        }
    }

    /// `None` for a text that had no room.
    fn text(
        &self,
        desc: &Object<'_, M>,
        info: &Object<'_, M>,
        id: u64,
    ) -> Result<Option<String>, ViewError> {
        let begin = desc.u64("text_blk_lpos.begin")?;
        let next = desc.u64("text_blk_lpos.next")?;
        if begin & 1 == 1 && next & 1 == 1 {
            let is_empty = begin == EMPTY_LINE && next == EMPTY_LINE;
            return Ok(is_empty.then(String::new));
        }
        let size = 1_u64 << self.size_bits;
        let index = |position: u64| position & (size - 1);
        // A block that would go beyond the end of the ring is at its start in whole.
        let last = next.wrapping_sub(1);
        let (start, len) = match begin >> self.size_bits == last >> self.size_bits {
            true => (index(begin), next.wrapping_sub(begin)),
            false => (0, index(next)),
        };
        // Every block begins with the number of its record.
        const ID: u64 = 8;
        let block = self.data + start;
        let memory = self.reader.kernel();
        let owner = memory
            .read_u64(block)
            .map_err(|source| unreadable("log text", source))?;
        let Some(room) = len.checked_sub(ID).filter(|_| owner == id && len <= size) else {
            return Err(ViewError::Corruption(Corruption::Torn {
                what: "log text",
                addr: block,
            }));
        };
        let len = info.u64("text_len")?.min(room);
        let text = memory
            .read_vec(block + ID, len as usize)
            .map_err(|source| unreadable("log text", source))?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

fn record<M: Memory>(info: &Object<'_, M>, text: String) -> Result<Record, ViewError> {
    const CONTINUED: u64 = 8;
    const IS_CPU: u64 = 1 << 31;
    let caller = info.u64("caller_id")?;
    let named = |path| -> Result<Option<String>, ViewError> {
        let name = info.text(path)?;
        Ok((!name.is_empty()).then_some(name))
    };
    Ok(Record {
        seq: info.u64("seq")?,
        time_ns: info.u64("ts_nsec")?,
        level: Level::from_bits(info.u64("level")?),
        facility: Facility(info.u64("facility")? as u8),
        caller: match caller & IS_CPU {
            0 => format!("T{caller}"),
            _ => format!("C{}", caller & !IS_CPU),
        },
        text,
        // LOG_CONT of kernel/printk/internal.h.
        continued: info.u64("flags")? & CONTINUED != 0,
        subsystem: named("dev_info.subsystem")?,
        device: named("dev_info.device")?,
    })
}

impl Log {
    /// The log without the messages of other levels.
    pub fn only(mut self, levels: &Levels) -> Log {
        self.0.retain(|record| levels.contains(record.level));
        self
    }
}

/// `[    0.000000] text`, for each line of a text as the console has it.
impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for record in &self.0 {
            let micros = record.time_ns / 1000;
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            let lines = record.text.split('\n');
            for line in lines {
                // Nothing that tabs can do to a terminal is worth an escape.
                let parts: Vec<_> = line.split('\t').map(printable).collect();
                let line = format!("[{seconds:5}.{micros:06}] {}", parts.join("\t"));
                writeln!(f, "{}", line.trim_end())?;
            }
        }
        Ok(())
    }
}
