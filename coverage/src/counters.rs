//! Snapshots of arc counters.

use std::ops::{Range, Sub};

use rustc_hash::FxHashMap;

use crate::gcno::{GccVersion, NotedFunction};

/// All arc counters of a guest at one moment.
///
/// Two snapshots of one guest subtract: what is left was counted in between.
/// The guest runs while it is read, so counters of one function can be a few
/// increments apart.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// One for each instrumented object file, by path.
    pub objects: Vec<ObjectCounters>,
}

/// The counters of one object file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectCounters {
    /// The compiler that made the object.
    pub version: GccVersion,
    /// Identifies the compilation; the `.gcno` file carries the same word.
    pub stamp: u32,
    /// Checksum of the object (GCC 12 and later, else 0).
    pub checksum: u32,
    /// Where a program would leave its `.gcda`: the object's path at build time.
    pub data_file: String,
    functions: Vec<Function>,
    values: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    ident: u32,
    lineno_checksum: u32,
    cfg_checksum: u32,
    values: Range<u32>,
}

/// The counters of one function.
#[derive(Debug, Clone, Copy)]
pub struct FunctionCounters<'a> {
    /// Unique within the object.
    pub ident: u32,
    /// Checksum over the function's place in the source.
    pub lineno_checksum: u32,
    /// Checksum over the function's flow graph.
    pub cfg_checksum: u32,
    /// One for each arc outside the spanning tree.
    pub values: &'a [i64],
}

impl FunctionCounters<'_> {
    /// Whether these counters are of `function` as the notes describe it.
    pub(crate) fn fit(&self, function: &NotedFunction) -> bool {
        self.lineno_checksum == function.lineno_checksum
            && self.cfg_checksum == function.cfg_checksum
            && self.values.len() == function.counters()
    }
}

impl ObjectCounters {
    /// An object without functions.
    pub fn new(version: GccVersion, stamp: u32, checksum: u32, data_file: String) -> Self {
        Self {
            version,
            stamp,
            checksum,
            data_file,
            functions: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Appends a function.
    pub fn push(&mut self, function: FunctionCounters<'_>) {
        let start = self.values.len() as u32;
        self.values.extend_from_slice(function.values);
        self.functions.push(Function {
            ident: function.ident,
            lineno_checksum: function.lineno_checksum,
            cfg_checksum: function.cfg_checksum,
            values: start..self.values.len() as u32,
        });
    }

    /// The functions, in the order of the object.
    pub fn functions(&self) -> impl Iterator<Item = FunctionCounters<'_>> {
        self.functions.iter().map(|f| FunctionCounters {
            ident: f.ident,
            lineno_checksum: f.lineno_checksum,
            cfg_checksum: f.cfg_checksum,
            values: &self.values[f.values.start as usize..f.values.end as usize],
        })
    }

    /// Whether any counter is not 0.
    pub fn has_run(&self) -> bool {
        self.values.iter().any(|v| *v != 0)
    }

    fn subtract(&mut self, earlier: &ObjectCounters) {
        // One object has one list of functions, in one order.
        let same = |(a, b): (&Function, &Function)| a == b;
        if self.functions.len() != earlier.functions.len()
            || !self.functions.iter().zip(&earlier.functions).all(same)
        {
            return;
        }
        for (value, earlier) in self.values.iter_mut().zip(&earlier.values) {
            *value = value.saturating_sub(*earlier).max(0);
        }
    }
}

impl Counters {
    /// How many functions there are.
    pub fn functions(&self) -> usize {
        self.objects.iter().map(|o| o.functions.len()).sum()
    }

    /// How many counters there are.
    pub fn values(&self) -> usize {
        self.objects.iter().map(|o| o.values.len()).sum()
    }
}

impl Sub<&Counters> for Counters {
    type Output = Counters;

    /// What was counted since `earlier`. A counter that went backwards (it was
    /// reset in between) and one that `earlier` does not have (its module was
    /// loaded in between) stay at 0 and at their value.
    fn sub(mut self, earlier: &Counters) -> Counters {
        let key = |o: &ObjectCounters| (o.data_file.clone(), o.stamp);
        let earlier: FxHashMap<_, _> = earlier.objects.iter().map(|o| (key(o), o)).collect();
        for object in &mut self.objects {
            if let Some(earlier) = earlier.get(&key(object)) {
                object.subtract(earlier);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(stamp: u32, values: &[i64]) -> Counters {
        let version = GccVersion(u32::from_be_bytes(*b"B22*"));
        let mut object = ObjectCounters::new(version, stamp, 0, "/b/a.gcda".to_owned());
        let (first, second) = values.split_at(1);
        for (ident, values) in [(1, first), (2, second)] {
            object.push(FunctionCounters {
                ident,
                lineno_checksum: 3,
                cfg_checksum: 4,
                values,
            });
        }
        Counters {
            objects: vec![object],
        }
    }

    #[test]
    fn snapshots_subtract_without_going_negative() {
        let delta = counters(7, &[10, 20, 3]) - &counters(7, &[4, 20, 5]);
        assert_eq!(delta.objects, counters(7, &[6, 0, 0]).objects);
        assert!(delta.objects[0].has_run());
    }

    #[test]
    fn an_object_that_is_new_keeps_its_counts() {
        let delta = counters(7, &[10, 20, 3]) - &counters(8, &[4, 20, 5]);
        assert_eq!(delta.objects, counters(7, &[10, 20, 3]).objects);
    }

    #[test]
    fn extreme_counters_do_not_overflow() {
        let delta = counters(7, &[i64::MAX, i64::MIN, 0]) - &counters(7, &[i64::MIN, i64::MAX, 0]);
        assert_eq!(delta.objects, counters(7, &[i64::MAX, 0, 0]).objects);
    }
}
