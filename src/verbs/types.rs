//! `kscope types`: a type as the compiler laid it out.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use kscope_kernel::views::types::TypeNames;

use crate::target::{Format, open_binary, print_facts};

const EXAMPLES: &str = "\
Examples:
  kscope types task_struct                  members, offsets, sizes, holes
  kscope types 'struct page' -k ./linux     of a kernel that does not run
  kscope types task_struct se.load          a member of a member, and its type
  kscope types task_struct mm.pgd           through a pointer: the offset in mm_struct
  kscope types pid_type                     an enumeration
  kscope types --list 'list_*'              types by their names
  kscope types list_head --format json | jq '.types.definition.struct.members[].name'

It is C with comments: /* offset size */ in bytes, of bit-fields /* offset:bit size */
of the unit that holds them; XXX where no member is.

A bare name is a struct, else a union, a typedef, a base type or an enumeration.";

const JSON: &str = "\
JSON: {\"version\": 1, \"kernel\" (the file), \"types\"}. \"types\" is an array of names with
--list, else {\"type\", \"size\", \"member\" (of a path: owner, path, declaration, offset,
bits), \"typedefs\", \"definition\": {\"struct\" or \"union\": {name, size, align, padding,
bit_padding, members: [{name, type, offset, size, bits: {first, width}, align, hole,
bit_hole, padding (within the member's struct), definition (of a type without name)}]}} or
{\"enum\": [{name, value}]}}. What is null or 0 may be missing.";

/// Show a type of the kernel: its members, their offsets, and what is between them.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{JSON}"))]
pub struct Args {
    /// The type: `task_struct`, `struct page`, `u64`
    name: Option<String>,

    /// The way to a member, through pointers as well: `se.load`, `mm.pgd`, `comm[0]`
    member: Vec<String>,

    /// List the types whose names match
    ///
    /// With `*` for anything it is the whole name, otherwise a part of it.
    #[arg(short, long, value_name = "PATTERN", conflicts_with = "name")]
    list: Option<String>,

    /// The kernel that this guest runs
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["kernel", "core"])]
    guest: Option<String>,

    /// The kernel: a `linux` file [default: that of the only guest, or the one that
    /// `kscope run` would boot]
    #[arg(short, long, value_name = "LINUX")]
    kernel: Option<PathBuf>,

    /// The kernel that this core file is of
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    core: Option<PathBuf>,

    /// Bytes of a cache line
    #[arg(long, value_name = "BYTES", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(1..))]
    cacheline: u64,

    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let image = open_binary(
        args.kernel.as_deref(),
        args.core.as_deref(),
        args.guest.as_deref(),
    )?;
    let layout = image.layout()?;
    let code = match (&args.list, &args.name) {
        (Some(pattern), _) => {
            let names = TypeNames::matching(layout, pattern)?;
            if names.0.is_empty() {
                bail!("the kernel has no type whose name matches `{pattern}`");
            }
            print_facts(args.format, &image, "types", &names)
        }
        (None, Some(name)) => {
            let view = layout.view(name, &args.member, args.cacheline)?;
            print_facts(args.format, &image, "types", &view)
        }
        (None, None) => Err(anyhow!(
            "which type? name it, or search for it: kscope types --list PATTERN"
        )),
    }?;
    // Only time is lost when this fails.
    let _ = image.save();
    Ok(code)
}
