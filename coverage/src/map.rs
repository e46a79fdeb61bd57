//! Finds the counters in a guest's memory.
//!
//! Each object compiled with `-fprofile-arcs` has a `struct gcov_info`, which
//! leads to a `struct gcov_fn_info` for each function and so to its counters
//! (GCC's `libgcov.h`; the kernel's copy is `kernel/gcov/gcc_4_7.c`):
//!
//! ```text
//! gcov_info      0 version, 8 next, 16 stamp, 20 checksum (GCC >= 12), 24 filename,
//!                32 merge[GCOV_COUNTERS], then n_functions, functions
//! gcov_fn_info   0 key (its gcov_info), 8 ident, 12 lineno_checksum, 16 cfg_checksum,
//!                24 ctrs[]: { 0 num, 8 values }, arcs first
//! ```
//!
//! The one thing that varies is `GCOV_COUNTERS`, and it varies with the
//! compiler and not with the kernel's source, whose own idea of it is
//! regularly out of date. So it is not taken from DWARF but tried: with the
//! right value, every function points back at its object.

use std::collections::HashSet;

use kscope_kernel::{Image, KernelAddr, Memory, MemoryExt, ReadError};

use crate::cached::Cached;
use crate::counters::{Counters, FunctionCounters, ObjectCounters};
use crate::gcno::GccVersion;

/// Bounds on what the guest's memory can make kscope allocate: about 20 times
/// the largest kernels.
const MAX_OBJECTS: usize = 1 << 16;
const MAX_FUNCTIONS: usize = 1 << 20;
const MAX_COUNTERS: usize = 1 << 24;
const MAX_PATH: usize = 4096;

/// How the symbols of all `struct gcov_fn_info` begin.
const FUNCTION: &str = "__gcov_.";

/// Counters this close together, in bytes, are read in one go.
const MAX_READ_GAP: u64 = 4096;
/// Counters are read at most so many bytes at a time.
const MAX_READ: u64 = 16 << 20;
/// The alignment of counters, and so the longest padding between two functions' counters.
const ALIGNMENT: u64 = 32;

/// Why no counters were found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The kernel was built without gcov.
    #[error(
        "the kernel `{kernel}` has no coverage counters; build one with \
         `kscope build --preset coverage`"
    )]
    NotInstrumented {
        /// The kernel's path.
        kernel: String,
    },
    /// The counters are there, but laid out by an unknown compiler.
    #[error(
        "the coverage data of the kernel `{kernel}` at {at} has an unknown layout (compiler {version}); \
         build it with GCC 7 to 15"
    )]
    Layout {
        /// The kernel's path.
        kernel: String,
        /// The first `struct gcov_info`.
        at: KernelAddr,
        /// What it gives as its compiler.
        version: GccVersion,
    },
    /// No `struct gcov_info` could be read.
    #[error("the guest's coverage data cannot be read")]
    Read(#[from] ReadError),
}

/// Where a guest's counters are.
#[derive(Debug, Clone)]
pub struct CounterMap {
    objects: Vec<MappedObject>,
    /// The number of kinds of counters that the compiler knows.
    pub kinds: u32,
    /// Objects whose data contradict themselves; they are left out.
    pub damaged: usize,
    /// Zeros may be written to each; sorted, apart from each other.
    zeroable: Vec<(KernelAddr, u64)>,
}

#[derive(Debug, Clone)]
struct MappedObject {
    header: ObjectCounters,
    functions: Vec<MappedFunction>,
}

#[derive(Debug, Clone)]
struct MappedFunction {
    ident: u32,
    lineno_checksum: u32,
    cfg_checksum: u32,
    values: KernelAddr,
    count: u32,
}

impl CounterMap {
    /// Finds the counters of `image` and of the modules that are loaded.
    ///
    /// # Errors
    ///
    /// When the kernel was built without gcov, or its data make no sense.
    pub fn find(image: &Image, memory: &impl Memory) -> Result<Self, FindError> {
        let functions = image
            .symbols()
            .filter(|s| s.name.starts_with(FUNCTION))
            .map(|s| s.addr);
        let memory = Cached::new(memory);
        let infos = find_infos(image.symbol("gcov_info_head"), functions, &memory)?;
        let mut map = Self::of(&infos, &image.path().display().to_string(), &memory)?;
        map.zeroable = map.join(image);
        Ok(map)
    }

    /// The counters of the objects described at `infos`.
    fn of(infos: &[KernelAddr], kernel: &str, memory: &impl Memory) -> Result<Self, FindError> {
        let kernel = || kernel.to_owned();
        let Some(first) = infos.first() else {
            return Err(FindError::NotInstrumented { kernel: kernel() });
        };
        let Some(kinds) = calibrate(infos, memory) else {
            let version = GccVersion(memory.read_u32(*first)?);
            return Err(FindError::Layout {
                kernel: kernel(),
                at: *first,
                version,
            });
        };
        let mut map = CounterMap {
            objects: Vec::new(),
            kinds,
            damaged: 0,
            zeroable: Vec::new(),
        };
        let mut room = Room {
            functions: MAX_FUNCTIONS,
            counters: MAX_COUNTERS,
        };
        for info in infos {
            match read_object(*info, kinds, memory, &mut room) {
                Some(object) => map.objects.push(object),
                None => map.damaged += 1,
            }
        }
        map.objects
            .sort_by(|a, b| a.header.data_file.cmp(&b.header.data_file));
        Ok(map)
    }

    /// How many objects were found.
    pub fn objects(&self) -> usize {
        self.objects.len()
    }

    /// Reads all counters.
    ///
    /// The guest keeps running. Counters that cannot be read any more (their
    /// module was unloaded) count as 0.
    pub fn read(&self, memory: &impl Memory) -> Counters {
        let mut values = self.read_values(memory).into_iter();
        let mut objects = Vec::with_capacity(self.objects.len());
        for object in &self.objects {
            let mut counters = object.header.clone();
            for function in &object.functions {
                let values = values.next().unwrap_or_default();
                counters.push(FunctionCounters {
                    ident: function.ident,
                    lineno_checksum: function.lineno_checksum,
                    cfg_checksum: function.cfg_checksum,
                    values: &values,
                });
            }
            objects.push(counters);
        }
        Counters { objects }
    }

    /// Zeroes all counters by giving `write` ranges of zeros to write.
    ///
    /// # Errors
    ///
    /// The first that `write` reports; counters before it are zeroed.
    pub fn reset<E>(
        &self,
        mut write: impl FnMut(KernelAddr, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let zeros = vec![0; 1 << 16];
        for (start, length) in &self.zeroable {
            let mut done = 0;
            while done < *length {
                let step = (length - done).min(zeros.len() as u64);
                write(*start + done, &zeros[..step as usize])?;
                done += step;
            }
        }
        Ok(())
    }

    /// The values of every function, in the order of the map.
    fn read_values(&self, memory: &impl Memory) -> Vec<Vec<i64>> {
        let functions: Vec<_> = self.objects.iter().flat_map(|o| &o.functions).collect();
        let mut order: Vec<usize> = (0..functions.len()).collect();
        order.sort_by_key(|f| functions[*f].values);
        let mut values = vec![Vec::new(); functions.len()];
        let mut buffer = Vec::new();
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            // A run of functions whose counters lie close together.
            let start = functions[*first].values;
            let mut end = functions[*first].end();
            let mut length = 1;
            for function in rest[1..].iter().map(|f| functions[*f]) {
                let near = function.values.get() <= end.saturating_add(MAX_READ_GAP)
                    && function.end() - start.get() <= MAX_READ;
                if !near {
                    break;
                }
                end = end.max(function.end());
                length += 1;
            }
            let (run, later) = rest.split_at(length);
            rest = later;
            buffer.resize((end - start.get()) as usize, 0);
            let whole = memory.read(start, &mut buffer).is_ok();
            for index in run {
                let function = functions[*index];
                let bytes = if whole {
                    let offset = (function.values - start) as usize;
                    &buffer[offset..offset + function.count as usize * 8]
                } else {
                    let buffer = &mut buffer[..function.count as usize * 8];
                    if memory.read(function.values, buffer).is_err() {
                        buffer.fill(0);
                    }
                    buffer
                };
                values[*index] = bytes
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|bytes| i64::from_le_bytes(*bytes))
                    .collect();
            }
        }
        values
    }

    /// The counters as few ranges: padding between them joins them, unless
    /// another symbol lies there.
    fn join(&self, image: &Image) -> Vec<(KernelAddr, u64)> {
        let mut ranges: Vec<_> = self.objects.iter().flat_map(|o| &o.functions).collect();
        ranges.sort_by_key(|f| f.values);
        let mut others: Vec<u64> = image
            .symbols()
            .filter(|s| !s.name.starts_with("__gcov"))
            .flat_map(|s| [s.addr.get(), (s.addr + s.size.saturating_sub(1)).get()])
            .collect();
        others.sort_unstable();
        let mut joined: Vec<(KernelAddr, u64)> = Vec::new();
        for function in ranges.into_iter().filter(|f| f.count > 0) {
            if let Some((start, length)) = joined.last_mut() {
                let end = start.get() + *length;
                let gap = end..function.values.get();
                let free = || {
                    let next = others.partition_point(|a| *a < gap.start);
                    others.get(next).is_none_or(|a| *a >= gap.end)
                };
                if gap.end <= end || (gap.end - end < ALIGNMENT && free()) {
                    *length = (function.end().max(end)) - start.get();
                    continue;
                }
            }
            joined.push((function.values, u64::from(function.count) * 8));
        }
        joined
    }
}

/// Tells whether `image` has counters at all, which needs no guest.
///
/// # Errors
///
/// [`FindError::NotInstrumented`] when it has none.
pub fn check(image: &Image) -> Result<(), FindError> {
    match image.symbols().any(|s| s.name.starts_with(FUNCTION)) {
        true => Ok(()),
        false => Err(FindError::NotInstrumented {
            kernel: image.path().display().to_string(),
        }),
    }
}

impl MappedFunction {
    /// The address after the last counter; counters do not wrap around (see [`read_function`]).
    fn end(&self) -> u64 {
        self.values.get() + u64::from(self.count) * 8
    }
}

/// What may still be allocated.
struct Room {
    functions: usize,
    counters: usize,
}

/// Every `struct gcov_info`: those that the kernel lists, and those that its
/// functions' symbols lead to. The list has the modules but is filled by
/// constructors; the symbols are there before the first instruction, and in
/// kernels that use libgcov instead of `GCOV_KERNEL`.
fn find_infos(
    head: Option<KernelAddr>,
    functions: impl Iterator<Item = KernelAddr>,
    memory: &impl Memory,
) -> Result<Vec<KernelAddr>, ReadError> {
    let mut infos = Vec::new();
    let mut seen = HashSet::new();
    if let Some(head) = head {
        let mut next = memory.read_addr(head)?;
        while !next.is_null() && infos.len() < MAX_OBJECTS && seen.insert(next) {
            // A broken link loses the rest of the list, which the symbols
            // may make up for.
            let Ok(after) = memory.read_addr(next + 8) else {
                break;
            };
            infos.push(next);
            next = after;
        }
    }
    for function in functions {
        if infos.len() >= MAX_OBJECTS {
            break;
        }
        if let Ok(key) = memory.read_addr(function)
            && !key.is_null()
            && seen.insert(key)
        {
            infos.push(key);
        }
    }
    Ok(infos)
}

/// Finds `GCOV_COUNTERS`: the value with which the most objects make sense.
fn calibrate(infos: &[KernelAddr], memory: &impl Memory) -> Option<u32> {
    let agree = |kinds: u32| {
        let mut room = MAX_FUNCTIONS;
        let mut fits =
            |info: &&KernelAddr| functions_of(**info, kinds, memory, &mut room).is_some();
        infos.iter().take(64).filter(&mut fits).count()
    };
    (7..=12)
        .map(|kinds| (agree(kinds), kinds))
        .filter(|(n, _)| *n > 0)
        .max()
        .map(|(_, k)| k)
}

/// The `struct gcov_fn_info`s of an object, if it has some and they are its
/// own. No more than `room` are looked at, which is what is left of it afterwards.
fn functions_of(
    info: KernelAddr,
    kinds: u32,
    memory: &impl Memory,
    room: &mut usize,
) -> Option<Vec<KernelAddr>> {
    let merge = info + 32;
    let arcs_are_counted = !memory.read_addr(merge).ok()?.is_null();
    let after = merge + u64::from(kinds) * 8;
    let count = memory.read_u32(after).ok()?;
    let functions = memory.read_addr(after + 8).ok()?;
    let rest = room
        .checked_sub(count as usize)
        .filter(|_| arcs_are_counted)?;
    *room = rest;
    let mut own = Vec::new();
    for index in 0..u64::from(count) {
        let function = memory.read_addr(functions + index * 8).ok()?;
        if function.is_null() {
            continue;
        }
        let key = memory.read_addr(function).ok()?;
        if key == info {
            own.push(function);
        } else {
            // Another object's copy of the function was linked, unless
            // nothing here makes sense.
            let version = GccVersion(memory.read_u32(key).ok()?);
            version.major()?;
        }
    }
    (!own.is_empty()).then_some(own)
}

fn read_object(
    info: KernelAddr,
    kinds: u32,
    memory: &impl Memory,
    room: &mut Room,
) -> Option<MappedObject> {
    let version = GccVersion(memory.read_u32(info).ok()?);
    version.major()?;
    let stamp = memory.read_u32(info + 16).ok()?;
    let checksum = if version.counts_bytes() {
        memory.read_u32(info + 20).ok()?
    } else {
        0
    };
    let data_file = memory.read_addr(info + 24).ok()?;
    let data_file = memory.read_cstr(data_file, MAX_PATH).ok()?;
    let functions = functions_of(info, kinds, memory, &mut room.functions)?;
    let functions = functions
        .into_iter()
        .map(|f| read_function(f, memory, room))
        .collect::<Option<_>>()?;
    let header = ObjectCounters::new(version, stamp, checksum, data_file);
    Some(MappedObject { header, functions })
}

fn read_function(at: KernelAddr, memory: &impl Memory, room: &mut Room) -> Option<MappedFunction> {
    let count = memory.read_u32(at + 24).ok()?;
    let values = memory.read_addr(at + 32).ok()?;
    room.counters = room.counters.checked_sub(count as usize)?;
    values.checked_add(u64::from(count) * 8)?;
    Some(MappedFunction {
        ident: memory.read_u32(at + 8).ok()?,
        lineno_checksum: memory.read_u32(at + 12).ok()?,
        cfg_checksum: memory.read_u32(at + 16).ok()?,
        values,
        count,
    })
}

#[cfg(test)]
mod tests;
