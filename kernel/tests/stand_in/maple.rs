//! Maple trees, whole ones and corrupt ones.

use kscope_kernel::{Corruption, Image, Kernel, KernelAddr};

use crate::common::{Fixture, Loaded, compile};

/// Aligned to 256 bytes, as nodes are.
const NODES: u64 = 0x6100_0000;

/// Offsets of lib/maple_tree.c's nodes on 64-bit machines.
const PIVOTS: u64 = 8;
const RANGE_SLOTS: u64 = 8 + 15 * 8;
const ARANGE_SLOTS: u64 = 8 + 9 * 8;

const LEAF: u64 = 1;
const ARANGE: u64 = 3;

struct Tree {
    fixture: Fixture,
    memory: Loaded,
    root: KernelAddr,
}

impl Tree {
    fn new() -> Tree {
        let fixture = compile(612, &[]);
        let memory = fixture.memory();
        let image = Image::open(&fixture.kernel).expect("a kernel");
        let root = image
            .layout()
            .expect("DWARF")
            .member("maple_tree", "ma_root");
        let tree = image.symbol("mm1").expect("mm1") + root.expect("a member").offset;
        Tree {
            fixture,
            memory,
            root: tree,
        }
    }

    /// Writes node `number`: pivots, slots. Returns the pointer to it.
    fn node(&mut self, number: u64, ty: u64, pivots: &[u64], slots: &[u64]) -> u64 {
        let addr = KernelAddr(NODES + number * 256);
        self.memory.write(addr, &[0; 256]);
        let at = if ty == ARANGE {
            ARANGE_SLOTS
        } else {
            RANGE_SLOTS
        };
        for (index, &pivot) in (0..).zip(pivots) {
            self.memory.write_u64(addr + PIVOTS + index * 8, pivot);
        }
        for (index, &slot) in (0..).zip(slots) {
            self.memory.write_u64(addr + at + index * 8, slot);
        }
        addr.get() | ty << 3 | 4
    }

    fn entries(&self, root: u64) -> Vec<Result<(u64, u64, u64), Corruption>> {
        let mut memory = self.memory.clone();
        memory.write_u64(self.root, root);
        let image = Image::open(&self.fixture.kernel).expect("a kernel");
        let tree = image.symbol("mm1").expect("mm1");
        let kernel = Kernel::new(image, memory).expect("its layouts");
        kernel
            .maple_tree(tree)
            .map(|entry| {
                entry.map(|entry| (*entry.keys.start(), *entry.keys.end(), entry.value.get()))
            })
            .collect()
    }
}

#[test]
fn trees_without_nodes_have_at_most_one_entry() {
    let tree = Tree::new();
    assert_eq!(tree.entries(0), []);
    assert_eq!(tree.entries(0x6123_4560), [Ok((0, 0, 0x6123_4560))]);
}

#[test]
fn entries_come_in_order_with_their_keys() {
    let mut tree = Tree::new();
    // A gap, an entry, a mark of the kernel's, an entry, the gap to the end.
    let low = tree.node(
        1,
        LEAF,
        &[0xfff, 0x1fff, 0x2fff, 0x4fff],
        &[0, 0xa0, 0x102, 0xb0],
    );
    // A full node has a slot more than pivots.
    let pivots: Vec<u64> = (1..=15).map(|n| 0x10_0000 + n * 0x1000 - 1).collect();
    let slots: Vec<u64> = (1..=16).map(|n| n * 16).collect();
    let high = tree.node(2, LEAF, &pivots, &slots);
    let root = tree.node(0, ARANGE, &[0xf_ffff, u64::MAX], &[low, high]);
    let found = tree.entries(root | 2);
    assert_eq!(
        found[..3],
        [
            Ok((0x1000, 0x1fff, 0xa0)),
            Ok((0x3000, 0x4fff, 0xb0)),
            Ok((0x10_0000, 0x10_0fff, 16)),
        ]
    );
    assert_eq!(found.len(), 2 + 16);
    assert_eq!(found[17], Ok((0x10_f000, u64::MAX, 256)));
}

#[test]
fn corrupt_nodes_cost_what_is_below_them() {
    let mut tree = Tree::new();
    let good = tree.node(1, LEAF, &[0x1fff], &[0xa0]);
    let strange = NODES | 9 << 3;
    let unreadable = 0x1000 | LEAF << 3;
    let slots = [strange, unreadable, good, good, NODES | ARANGE << 3];
    let root = tree.node(0, ARANGE, &[1, 2, 0x2fff, 0x3fff, 0x4fff], &slots);
    let found = tree.entries(root | 2);
    assert!(
        matches!(
            found[..],
            [
                Err(Corruption::WildPointer { .. }),
                Err(Corruption::Unreadable { .. }),
                Ok((3, 0x1fff, 0xa0)),
                Err(Corruption::Cycle { .. }),
                Err(Corruption::Cycle { .. }),
            ]
        ),
        "{found:?}"
    );

    // Taken out of the tree, and about to be freed.
    tree.memory.write_u64(KernelAddr(NODES + 256), NODES + 256);
    assert!(matches!(
        tree.entries(good | 2)[..],
        [Err(Corruption::Torn { .. })]
    ));
    // Keys that run backwards.
    let backwards = tree.node(2, LEAF, &[0x2fff, 0x1fff], &[0xa0, 0xb0]);
    assert!(matches!(
        tree.entries(backwards | 2)[..],
        [Err(Corruption::Torn { .. })]
    ));
}
