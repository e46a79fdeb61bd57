//! Guest memory made by hand, sound and hostile.

use std::collections::BTreeMap;

use super::*;

const HEAD: KernelAddr = KernelAddr(0x6000_0000);
const B22: u32 = u32::from_be_bytes(*b"B22*");

/// Sparse memory: pages that were never written are not mapped.
#[derive(Default)]
struct Sparse(BTreeMap<u64, [u8; 4096]>);

impl Sparse {
    fn write(&mut self, addr: u64, bytes: &[u8]) {
        for (at, byte) in (addr..).zip(bytes) {
            self.0.entry(at / 4096).or_insert([0; 4096])[(at % 4096) as usize] = *byte;
        }
    }

    fn u32(&mut self, addr: u64, value: u32) {
        self.write(addr, &value.to_le_bytes());
    }

    fn u64(&mut self, addr: u64, value: u64) {
        self.write(addr, &value.to_le_bytes());
    }

    /// An object of `functions` functions of two counters each, at `info`.
    fn object(&mut self, info: u64, next: u64, kinds: u64, functions: u32) {
        self.u32(info, B22);
        self.u64(info + 8, next);
        self.u32(info + 16, info as u32);
        self.u32(info + 20, 77);
        self.u64(info + 24, info + 0x200);
        self.write(info + 0x200, format!("/b/{info:x}.gcda\0").as_bytes());
        self.u64(info + 32, 0x1234);
        self.u32(info + 32 + kinds * 8, functions);
        self.u64(info + 40 + kinds * 8, info + 0x300);
        for index in 0..u64::from(functions) {
            let function = info + 0x400 + index * 0x100;
            self.u64(info + 0x300 + index * 8, function);
            self.u64(function, info);
            for (field, value) in [(8, 1), (12, 2), (16, 3), (24, 2)] {
                self.u32(
                    function + field,
                    value + index as u32 * u32::from(field == 8),
                );
            }
            let values = info + 0x1000 + index * 0x1000;
            self.u64(function + 32, values);
            self.u64(values, 10 + index);
            self.u64(values + 8, 20 + index);
        }
    }
}

impl Memory for Sparse {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        let error = ReadError {
            addr,
            len: buf.len(),
        };
        for (offset, byte) in buf.iter_mut().enumerate() {
            let at = addr.get().checked_add(offset as u64).ok_or(error)?;
            *byte = self.0.get(&(at / 4096)).ok_or(error)?[(at % 4096) as usize];
        }
        Ok(())
    }
}

fn find(memory: &Sparse, symbols: &[u64]) -> Result<CounterMap, FindError> {
    let memory = Cached::new(memory);
    let symbols = symbols.iter().map(|s| KernelAddr(*s));
    let infos = find_infos(Some(HEAD), symbols, &memory)?;
    CounterMap::of(&infos, "./linux", &memory)
}

#[test]
fn the_number_of_kinds_is_found_out() {
    for kinds in 7..=12 {
        let mut memory = Sparse::default();
        memory.u64(HEAD.get(), 0x6100_0000);
        memory.object(0x6100_0000, 0x6200_0000, kinds, 3);
        memory.object(0x6200_0000, 0, kinds, 1);
        let map = find(&memory, &[]).unwrap();
        assert_eq!(
            (u64::from(map.kinds), map.objects(), map.damaged),
            (kinds, 2, 0)
        );
        let counters = map.read(&memory);
        assert_eq!((counters.functions(), counters.values()), (4, 8));
        let object = &counters.objects[0];
        assert_eq!(
            (object.version.0, object.stamp, object.checksum),
            (B22, 0x6100_0000, 77)
        );
        assert_eq!(object.data_file, "/b/61000000.gcda");
        let third = object.functions().nth(2).unwrap();
        assert_eq!(
            (third.ident, third.lineno_checksum, third.cfg_checksum),
            (3, 2, 3)
        );
        assert_eq!(third.values, [12, 22]);
    }
}

#[test]
fn objects_that_no_list_has_are_found_by_their_symbols() {
    let mut memory = Sparse::default();
    memory.u64(HEAD.get(), 0);
    memory.object(0x6100_0000, 0, 8, 2);
    let map = find(&memory, &[0x6100_0400, 0x6100_0500]).unwrap();
    assert_eq!(map.objects(), 1);
}

#[test]
fn lists_that_go_round_or_astray_end() {
    let mut memory = Sparse::default();
    memory.u64(HEAD.get(), 0x6100_0000);
    memory.object(0x6100_0000, 0x6200_0000, 8, 1);
    memory.object(0x6200_0000, 0x6100_0000, 8, 1);
    assert_eq!(find(&memory, &[]).unwrap().objects(), 2);

    memory.u64(0x6200_0008, 0xdead_0000);
    assert_eq!(find(&memory, &[]).unwrap().objects(), 2);
}

#[test]
fn damaged_objects_are_left_out_and_counted() {
    let damages: [(u64, u64); 6] = [
        // The version, the file's name, the number of functions, the functions.
        (0, 0),
        (24, 0xdead_0000),
        (32 + 64, u64::from(u32::MAX)),
        (40 + 64, 0xdead_0000),
        // A function's number of counters, and where they are.
        (0x400 + 24, u64::from(u32::MAX)),
        (0x400 + 32, u64::MAX - 4),
    ];
    for (field, value) in damages {
        let mut memory = Sparse::default();
        memory.u64(HEAD.get(), 0x6100_0000);
        memory.object(0x6100_0000, 0x6200_0000, 8, 1);
        memory.object(0x6200_0000, 0, 8, 1);
        let next = 0x6200_0000_u64;
        memory.u64(0x6100_0000 + field, value);
        memory.u64(0x6100_0008, next);
        let map = find(&memory, &[]).unwrap();
        assert_eq!((map.objects(), map.damaged), (1, 1), "field {field}");
    }
}

#[test]
fn counters_that_went_away_count_as_zero() {
    let mut memory = Sparse::default();
    memory.u64(HEAD.get(), 0x6100_0000);
    memory.object(0x6100_0000, 0, 8, 2);
    let map = find(&memory, &[]).unwrap();
    memory.0.remove(&0x6_1001);
    let counters = map.read(&memory);
    let values: Vec<_> = counters.objects[0]
        .functions()
        .map(|f| f.values.to_vec())
        .collect();
    assert_eq!(values, [[0, 0], [11, 21]]);
}

#[test]
fn nothing_and_nonsense_are_told_apart() {
    let mut memory = Sparse::default();
    memory.u64(HEAD.get(), 0);
    let error = find(&memory, &[]).unwrap_err();
    assert!(matches!(error, FindError::NotInstrumented { .. }));
    assert!(error.to_string().contains("kscope build --preset coverage"));

    memory.u64(HEAD.get(), 0x6100_0000);
    memory.object(0x6100_0000, 0, 14, 1);
    let error = find(&memory, &[]).unwrap_err();
    assert!(matches!(error, FindError::Layout { .. }), "{error:?}");
    assert!(error.to_string().contains("0x61000000") && error.to_string().contains("12.2"));
}
