//! The slab caches, as /proc/slabinfo counts them (mm/slub.c).

use std::fmt;

use serde::Serialize;

use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};
use crate::table::Table;

/// A cache of objects of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlabCache {
    /// Its name.
    pub name: String,
    /// Bytes that the user of an object has.
    pub object_size: u64,
    /// Bytes that an object takes, with what the allocator adds.
    pub size: u64,
    /// Objects in a slab of the usual size.
    pub objects_per_slab: u64,
    /// Pages of a slab of the usual size.
    pub pages_per_slab: u64,
    /// Objects in use: all but the free ones of the slabs on the nodes' lists. What the CPUs keep
    /// at hand counts as in use, as in /proc/slabinfo. `None` without CONFIG_SLUB_DEBUG, with
    /// which alone all slabs are counted.
    pub active: Option<u64>,
    /// Objects that there is room for. `None` without CONFIG_SLUB_DEBUG.
    pub objects: Option<u64>,
    /// Slabs. `None` without CONFIG_SLUB_DEBUG.
    pub slabs: Option<u64>,
    /// Slabs on the nodes' lists: those with free objects that no CPU has taken for itself.
    pub partial: u64,
    /// Free objects on those lists.
    pub free: u64,
    /// Free objects that the CPUs and nodes keep at hand in sheaves (Linux 7.0 and later); they
    /// count as active. `None` when the cache has no sheaves.
    pub sheaved: Option<u64>,
    /// Bytes of all slabs, each taken for one of the usual size. `None` without CONFIG_SLUB_DEBUG.
    pub bytes: Option<u64>,
    /// How many other caches of the same kind were merged into this one and use it.
    pub aliases: u64,
    /// What it was made with: `reclaim` (its objects are freed under pressure), `rcu` (its slabs
    /// are freed after a grace period), `account` (charged to the control group), `hwalign`
    /// (aligned to cache lines), `panic` (essential at boot), and the checks of `slab_debug`.
    pub flags: Vec<&'static str>,
    /// The address of its `struct kmem_cache`.
    pub addr: KernelAddr,
}

/// The slab caches, the largest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SlabCaches(pub Vec<SlabCache>);

/// What slab caches are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlabOrder {
    /// The bytes of all slabs, the most first.
    Bytes,
    /// The objects in use, the most first.
    Active,
    /// The objects there is room for, the most first.
    Objects,
    /// The slabs, the most first.
    Slabs,
    /// The size of an object, the largest first.
    Size,
    /// The bytes of free objects, the most first.
    Waste,
    /// The name.
    Name,
}

/// The flags that are shown; those that every cache has, or only the allocator knows, are not. The
/// last is the value before 6.9, when an enumeration came to have them (include/linux/slab.h).
const FLAGS: &[(&str, &str, u64)] = &[
    ("reclaim", "_SLAB_RECLAIM_ACCOUNT", 0x0002_0000),
    ("rcu", "_SLAB_TYPESAFE_BY_RCU", 0x0008_0000),
    ("account", "_SLAB_ACCOUNT", 0x0400_0000),
    ("hwalign", "_SLAB_HWCACHE_ALIGN", 0x0000_2000),
    ("panic", "_SLAB_PANIC", 0x0004_0000),
    ("dma", "_SLAB_CACHE_DMA", 0x0000_4000),
    ("dma32", "_SLAB_CACHE_DMA32", 0x0000_8000),
    ("no-merge", "_SLAB_NO_MERGE", 0x0100_0000),
    ("checks", "_SLAB_CONSISTENCY_CHECKS", 0x0000_0100),
    ("red-zone", "_SLAB_RED_ZONE", 0x0000_0400),
    ("poison", "_SLAB_POISON", 0x0000_0800),
    ("store-user", "_SLAB_STORE_USER", 0x0001_0000),
    ("trace", "_SLAB_TRACE", 0x0020_0000),
];

/// What the NUMA nodes have of a cache.
#[derive(Default)]
struct Counts {
    slabs: Option<u64>,
    objects: Option<u64>,
    partial: u64,
    free: u64,
    /// Full sheaves.
    full: u64,
}

impl<M: Memory> Reader<'_, M> {
    /// The slab caches.
    ///
    /// # Errors
    ///
    /// When the kernel has another allocator than SLUB, or its types are not known.
    pub fn slab_caches(&self) -> Result<SlabCaches, ViewError> {
        let not_slub = ViewError::NotConfigured {
            what: "slab caches that kscope can read (SLUB)",
            option: "CONFIG_SLUB",
        };
        let head = self.kernel().image().symbol("slab_caches");
        let head = head.ok_or_else(|| not_slub.clone())?;
        let cache = self.object("struct kmem_cache", KernelAddr(0));
        if !cache.has("min_partial") {
            return Err(not_slub);
        }
        let bits = self.slab_flags();
        let mut caches = Vec::new();
        for cache in self.list(head, "struct kmem_cache", "list", "slab caches")? {
            caches.extend(self.or_warn(self.slab_cache(&cache, &bits)));
        }
        let mut caches = SlabCaches(caches);
        caches.sort(SlabOrder::Bytes);
        Ok(caches)
    }

    /// The flags of this kernel, as names and masks.
    fn slab_flags(&self) -> Vec<(&'static str, u64)> {
        let layout = self.kernel().image().layout();
        let bit = |name: &str| {
            let layout = layout.as_ref().ok()?;
            layout.enumerator_of("enum _slab_flag_bits", name).ok()
        };
        let is_enumeration = bit("_SLAB_PANIC").is_some();
        let masks = FLAGS.iter().filter_map(|&(name, enumerator, mask)| {
            let mask = match is_enumeration {
                true => 1_u64.checked_shl(u32::try_from(bit(enumerator)?).ok()?)?,
                false => mask,
            };
            Some((name, mask))
        });
        masks.collect()
    }

    fn slab_cache(
        &self,
        cache: &Object<'_, M>,
        bits: &[(&'static str, u64)],
    ) -> Result<SlabCache, ViewError> {
        // `oo_order()` and `oo_objects()` of mm/slub.c.
        const ORDER_SHIFT: u32 = 16;
        let order = cache.u64("oo.x")?;
        let objects_per_slab = order & ((1 << ORDER_SHIFT) - 1);
        let order = (order >> ORDER_SHIFT) as u32;
        // MAX_PAGE_ORDER is 10 or a little more.
        let pages_per_slab = 1_u64.checked_shl(order.min(32)).unwrap_or(0);
        let mut counts = Counts::default();
        // `per_node` since 7.0.
        let nodes = match cache.has("per_node") {
            true => ("per_node", ".node"),
            false => ("node", ""),
        };
        for node in 0..cache.len(nodes.0)? {
            let path = format!("{}[{node}]{}", nodes.0, nodes.1);
            if let Some(node) = cache.follow(&path)? {
                self.or_warn(self.slab_node(&node, &mut counts));
            }
            let barn = format!("per_node[{node}].barn");
            if cache.has(&barn)
                && let Some(barn) = cache.follow(&barn)?
            {
                counts.full = counts.full.saturating_add(barn.u64("nr_full")?);
            }
        }
        let flags = cache.u64("flags")?;
        let page_size = self.kernel().page_size();
        let bytes = |slabs: u64| {
            let pages = slabs.saturating_mul(pages_per_slab);
            pages.saturating_mul(page_size)
        };
        Ok(SlabCache {
            name: cache.text("name")?,
            object_size: cache.u64("object_size")?,
            size: cache.u64("size")?,
            objects_per_slab,
            pages_per_slab,
            active: counts.objects.map(|all| all.saturating_sub(counts.free)),
            objects: counts.objects,
            slabs: counts.slabs,
            partial: counts.partial,
            free: counts.free,
            sheaved: self.or_warn(self.sheaved(cache, counts.full)).flatten(),
            bytes: counts.slabs.map(bytes),
            aliases: cache.i64("refcount")?.saturating_sub(1).max(0) as u64,
            flags: bits
                .iter()
                .filter(|(_, mask)| flags & mask != 0)
                .map(|&(name, _)| name)
                .collect(),
            addr: cache.addr(),
        })
    }

    /// Adds up what a node has: as `get_slabinfo()` does, which however guesses when a node has
    /// more than 10,000 partial slabs.
    fn slab_node(&self, node: &Object<'_, M>, counts: &mut Counts) -> Result<(), ViewError> {
        let add = |count: &mut Option<u64>, path: &str| {
            // With CONFIG_SLUB_DEBUG.
            if node.has(path) {
                let more = node.i64(path)?.max(0) as u64;
                *count = Some(count.unwrap_or(0).saturating_add(more));
            }
            Ok::<_, ViewError>(())
        };
        add(&mut counts.slabs, "nr_slabs")?;
        add(&mut counts.objects, "total_objects")?;
        counts.partial = counts.partial.saturating_add(node.u64("nr_partial")?);
        let head = node.addr_of("partial")?;
        for slab in self.list(head, "struct slab", "slab_list", "partial slabs")? {
            let free = slab.u64("objects")?.saturating_sub(slab.u64("inuse")?);
            counts.free = counts.free.saturating_add(free);
        }
        Ok(())
    }

    /// The objects in the sheaves of the CPUs and in the full ones of the nodes.
    fn sheaved(&self, cache: &Object<'_, M>, full: u64) -> Result<Option<u64>, ViewError> {
        if !cache.has("sheaf_capacity") {
            return Ok(None);
        }
        let capacity = cache.u64("sheaf_capacity")?;
        if capacity == 0 {
            return Ok(None);
        }
        let mut objects = full.saturating_mul(capacity);
        let sheaves = cache.deref("cpu_sheaves")?.addr();
        for cpu in self.kernel().cpus() {
            let own = sheaves + self.per_cpu_offset(cpu)?;
            let own = self.object("struct slub_percpu_sheaves", own);
            for path in ["main", "spare"] {
                if let Some(sheaf) = own.follow(path)? {
                    objects = objects.saturating_add(sheaf.u64("size")?.min(capacity));
                }
            }
        }
        Ok(Some(objects))
    }
}

impl SlabCaches {
    /// Sorts the caches; of equals, by name.
    pub fn sort(&mut self, order: SlabOrder) {
        let key = |cache: &SlabCache| match order {
            SlabOrder::Bytes => cache.bytes.unwrap_or(0),
            SlabOrder::Active => cache.active.unwrap_or(0),
            SlabOrder::Objects => cache.objects.unwrap_or(0),
            SlabOrder::Slabs => cache.slabs.unwrap_or(cache.partial),
            SlabOrder::Size => cache.size,
            SlabOrder::Waste => cache.free.saturating_mul(cache.size),
            SlabOrder::Name => 0,
        };
        self.0
            .sort_by(|a, b| key(b).cmp(&key(a)).then_with(|| a.name.cmp(&b.name)));
    }
}

impl fmt::Display for SlabCaches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "CACHE",
            ">SIZE",
            ">OBJSIZE",
            ">OBJECTS",
            ">ACTIVE",
            ">USE",
            ">SLABS",
            ">OBJ/SLAB",
            ">PAGES/SLAB",
            ">BYTES",
            ">ALIASES",
            "FLAGS",
        ]);
        let count = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        let mut bytes = 0_u64;
        for cache in &self.0 {
            bytes = bytes.saturating_add(cache.bytes.unwrap_or(0));
            table.row([
                cache.name.clone(),
                cache.size.to_string(),
                cache.object_size.to_string(),
                count(cache.objects),
                count(cache.active),
                match (cache.active, cache.objects) {
                    (Some(active), Some(all @ 1..)) => {
                        format!("{}%", active.saturating_mul(100) / all)
                    }
                    _ => "-".to_owned(),
                },
                count(cache.slabs),
                cache.objects_per_slab.to_string(),
                cache.pages_per_slab.to_string(),
                count(cache.bytes),
                cache.aliases.to_string(),
                match cache.flags.is_empty() {
                    true => "-".to_owned(),
                    false => cache.flags.join(","),
                },
            ]);
        }
        table.fmt(f)?;
        if bytes > 0 {
            writeln!(f, "{} caches, {bytes} bytes", self.0.len())?;
        }
        Ok(())
    }
}
