//! `kscope slab`: the slab caches.

use kscope_kernel::views::slab::SlabOrder;

use crate::target::{JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope slab | head
  kscope slab web --sort waste
  kscope slab --format json | jq -r '.slab[] | select(.name == \"dentry\").active'

The numbers are those of /proc/slabinfo, whose <objsize> is SIZE here: what an object
takes, with what the allocator adds; OBJSIZE is what its user has. USE is ACTIVE of OBJECTS.
Objects that a CPU keeps at hand count as active; from 7.0 on, JSON's \"sheaved\" says how
many these are. ALIASES are other caches that were merged into this one. Without
CONFIG_SLUB_DEBUG the kernel does not count its slabs, and - is all there is.";

/// List the slab caches: what the kernel's small objects take.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Args {
    /// The guest. [default: the only one]
    name: Option<String>,

    /// What to sort by, the most first; names from a to z.
    #[arg(long, value_enum, value_name = "BY", default_value_t = Sort::Bytes)]
    sort: Sort,

    #[command(flatten)]
    view: ViewArgs,
}

/// The columns to sort by.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Sort {
    /// Bytes of all slabs.
    Bytes,
    /// Objects in use.
    Active,
    /// Objects there is room for.
    Objects,
    /// Slabs.
    Slabs,
    /// Size of an object.
    Size,
    /// Bytes of free objects.
    Waste,
    /// Name.
    Name,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let order = match args.sort {
        Sort::Bytes => SlabOrder::Bytes,
        Sort::Active => SlabOrder::Active,
        Sort::Objects => SlabOrder::Objects,
        Sort::Slabs => SlabOrder::Slabs,
        Sort::Size => SlabOrder::Size,
        Sort::Waste => SlabOrder::Waste,
        Sort::Name => SlabOrder::Name,
    };
    args.view.show(args.name.as_deref(), "slab", |reader| {
        let mut caches = reader.slab_caches()?;
        caches.sort(order);
        Ok(caches)
    })
}
