//! Page tables, whole ones and corrupt ones.

use kscope_kernel::{
    Corruption, Image, Kernel, KernelAddr, Memory, MemoryExt, PhysAddr, UserAddr, UserReadError,
};
use proptest::prelude::*;

use crate::common::{Fixture, Loaded, compile};

/// Where the stand-in has its physical memory.
const PHYSMEM: u64 = 0x6000_0000;

/// `_PAGE_TABLE` of arch/um/include/asm/pgtable.h, and a page of a process.
const TABLE: u64 = 0x1e1;
const PAGE: u64 = 0x0e1;

struct Tables {
    levels: u32,
    memory: Loaded,
    /// Physical address of the next free page.
    free: u64,
}

impl Tables {
    fn new(fixture: &Fixture, levels: u32) -> Tables {
        let mut tables = Tables {
            levels,
            memory: fixture.memory(),
            free: 0x10_0000,
        };
        // What was never written reads as nothing mapped; tables are whole pages.
        for page in 0..16 {
            tables
                .memory
                .write(KernelAddr(PHYSMEM + tables.free + page * 4096), &[0; 4096]);
        }
        tables
    }

    fn page(&mut self) -> u64 {
        self.free += 4096;
        self.free - 4096
    }

    /// Maps a page as the kernel does: a table per level.
    fn map(&mut self, root: KernelAddr, addr: u64, pte: u64) -> KernelAddr {
        let mut table = root;
        for below in (1..self.levels).rev() {
            let at = table + (addr >> (12 + 9 * below) & 511) * 8;
            let entry = match self.memory.read_u64(at).expect("a table") {
                0 => self.page() | TABLE,
                entry => entry,
            };
            self.memory.write_u64(at, entry);
            table = KernelAddr(PHYSMEM + (entry & !4095));
        }
        let at = table + (addr >> 12 & 511) * 8;
        self.memory.write_u64(at, pte);
        at
    }
}

fn kernel(fixture: &Fixture, memory: Loaded) -> Kernel<Loaded> {
    let image = Image::open(&fixture.kernel).expect("a kernel");
    Kernel::new(image, memory).expect("its layouts")
}

fn symbol(fixture: &Fixture, name: &str) -> KernelAddr {
    let image = Image::open(&fixture.kernel).expect("a kernel");
    image.symbol(name).expect(name)
}

#[test]
fn the_number_of_levels_is_the_kernels() {
    for (version, levels, addr) in [
        (601, 3, 0x40_1234_5000),
        (612, 3, 0x7f_ffff_f000),
        (703, 4, 0x7fff_ffff_f000),
    ] {
        let fixture = compile(version, &[]);
        let mut tables = Tables::new(&fixture, levels);
        let root = KernelAddr(PHYSMEM + tables.page());
        let page = tables.page();
        tables.map(root, addr, page | PAGE);
        tables.map(root, 0x1000, page | 0x090);
        let mm = symbol(&fixture, "mm1");
        let image = Image::open(&fixture.kernel).expect("a kernel");
        let pgd = image.layout().expect("DWARF").member("mm_struct", "pgd");
        tables
            .memory
            .write_u64(mm + pgd.expect("a member").offset, root.get());
        tables
            .memory
            .write(KernelAddr(PHYSMEM + page + 0xff8), b"the end");
        let kernel = kernel(&fixture, tables.memory);

        let at = |addr| kernel.translate_user(mm, UserAddr(addr));
        assert_eq!(kernel.physmem(), PhysAddr(0)..PhysAddr(0x400_0000));
        assert_eq!(at(addr), Ok(Some(PhysAddr(page))));
        assert_eq!(at(addr + 0xfff), Ok(Some(PhysAddr(page + 0xfff))));
        // PROT_NONE: not for the process, but there.
        assert_eq!(at(0x1008), Ok(Some(PhysAddr(page + 8))));
        for nothing in [
            0,
            0x2000,
            addr - 4096,
            addr + 4096,
            addr | 1 << 62,
            u64::MAX,
        ] {
            assert_eq!(at(nothing), Ok(None), "{nothing:#x}");
        }
        let end = UserAddr(addr + 0xff8);
        assert_eq!(kernel.read_user_cstr(mm, end, 7).as_deref(), Ok("the end"));
        assert_eq!(
            kernel.read_user(mm, end, &mut [0; 9]),
            Err(UserReadError::NotPresent {
                addr: UserAddr(addr + 4096)
            })
        );
        assert_eq!(
            kernel.read_user(mm, UserAddr(u64::MAX - 2), &mut [0; 9]),
            Err(UserReadError::NotPresent {
                addr: UserAddr(u64::MAX - 2)
            })
        );
    }
}

#[test]
fn what_the_host_does_not_map_yet_is_read_by_the_page_tables() {
    let fixture = compile(612, &[]);
    let mut tables = Tables::new(&fixture, 3);
    let root = symbol(&fixture, "swapper_pg_dir");
    let (first, second) = (tables.page(), tables.page());
    // Two pages that are neighbours in the vmalloc area, but not in memory.
    tables.map(root, 0x6500_0000, second | PAGE);
    tables.map(root, 0x6500_1000, first | PAGE);
    tables
        .memory
        .write(KernelAddr(PHYSMEM + second + 0xffc), b"left");
    tables.memory.write(KernelAddr(PHYSMEM + first), b"right");
    let kernel = kernel(&fixture, tables.memory);
    assert!(kernel.memory().read_u8(KernelAddr(0x6500_0ffc)).is_err());
    assert_eq!(
        kernel.read_vec(KernelAddr(0x6500_0ffc), 9).as_deref(),
        Ok(&b"leftright"[..])
    );
    let error = kernel.read_vec(KernelAddr(0x6500_1ffc), 9).unwrap_err();
    assert_eq!((error.addr, error.len), (KernelAddr(0x6500_1ffc), 9));
    assert!(kernel.read_u8(KernelAddr(0)).is_err());
    assert!(kernel.read_u64(KernelAddr(u64::MAX - 3)).is_err());
}

#[test]
fn entries_that_point_outside_memory_are_told() {
    let fixture = compile(703, &[]);
    let mut tables = Tables::new(&fixture, 4);
    let root = symbol(&fixture, "swapper_pg_dir");
    let entry = 0x7777_7777_7000 | PAGE;
    let pte = tables.map(root, 0x6500_0000, entry);
    let pgd = root + 8;
    tables.memory.write_u64(pgd, u64::MAX);
    let kernel = kernel(&fixture, tables.memory);
    assert_eq!(
        kernel.translate_kernel(KernelAddr(0x6500_0000)),
        Err(Corruption::WildEntry {
            level: "pte",
            addr: pte,
            entry
        })
    );
    assert_eq!(
        kernel.translate_kernel(KernelAddr(1 << 39)),
        Err(Corruption::WildEntry {
            level: "pgd",
            addr: pgd,
            entry: u64::MAX
        })
    );
    let wild = KernelAddr(0x1234_5670);
    assert!(matches!(
        kernel.translate_user(wild, UserAddr(0)),
        Err(Corruption::Unreadable {
            what: "mm_struct",
            ..
        })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the tables hold, walks end and nothing panics.
    #[test]
    fn any_table_is_survived(
        words in proptest::collection::vec((0u64..0x11_0000, any::<u64>()), 1..64),
        root in any::<u64>(),
        addrs in proptest::collection::vec(any::<u64>(), 1..32),
    ) {
        static FIXTURE: std::sync::LazyLock<Fixture> = std::sync::LazyLock::new(|| compile(703, &[]));
        let mut memory = FIXTURE.memory();
        let mm = symbol(&FIXTURE, "mm1");
        for offset in (0..256).step_by(8) {
            memory.write_u64(mm + offset, root);
        }
        for (at, word) in words {
            memory.write_u64(KernelAddr(PHYSMEM + at), word);
        }
        let kernel = kernel(&FIXTURE, memory);
        for addr in addrs {
            let _ = kernel.translate_user(mm, UserAddr(addr));
            let _ = kernel.translate_kernel(KernelAddr(addr));
            let _ = kernel.read_user_cstr(mm, UserAddr(addr), 100_000);
            let _ = kernel.read(KernelAddr(addr), &mut [0; 10_000]);
            for entry in kernel.maple_tree(KernelAddr(addr)).chain(kernel.maple_tree(mm)) {
                let _ = entry;
            }
        }
    }
}
