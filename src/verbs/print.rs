//! `kscope print`: the value of an expression.

use kscope_kernel::views::print::PrintOptions;
use kscope_kernel::{GuestPid, Style};

use crate::target::{Format, JSON_HELP, ViewArgs};

const EXAMPLES: &str = "\
Examples:
  kscope print init_task.comm
  kscope print 'current->mm->pgd' --guest web
  kscope print '*$task(12)' --depth 1             a task, its structs not opened
  kscope print 'init_task.tasks'                  all processes
  kscope print 'list(init_task.tasks)->comm'      their names
  kscope print 'list(slab_caches, struct kmem_cache, list)->object_size'
  kscope print '$per_cpu(runqueues, 0).nr_running'
  kscope print 'user(12, (char *)$task(12)->mm->arg_start)'
  kscope print 0x60801000 --type 'struct page'    what is there, read as that
  kscope print --format json 'cpu_tasks[0]' | jq .print.value

Expressions are C where they can be:
  init_task.comm, p->mm        variables and members; . and -> mean the same
  core.c::name                 a static variable of one file of several that have it
  function::name               a static variable of a function
  *p  &x  a[2]  p + 1  p - q   pointers and arrays, and C's operators on numbers
  (T *)0x60a0  (u8 [16])x      casts; of a variable to a struct or an array, the same
                               memory is read as that
  sizeof(T)  offsetof(T, m)  container_of(p, T, m)  'A'  0x1f  ENUMERATORS
  current  $current(1)         the task that runs on CPU 0 (or --pid's), or on another
  $task(12)                    the task with a pid, as a pointer
  $lx_current()  $lx_task_by_pid(12)
                               the same as structs, as in the kernel's gdb scripts
  $per_cpu(variable, 0)  $per_cpu_ptr(pointer, 0)
                               what belongs to a CPU
  list(HEAD, T, MEMBER)        the elements of a list (list_head, hlist_head, rb_root and
                               the like) as pointers; ->, ., * and casts work on all of
                               them, [3] takes one
  list(HEAD)                   the same where it is known what hangs in the list: tasks,
                               children, modules, waiters, mounts, ...; printed, such a
                               head is its elements
  user(12, p)                  p is an address in the memory of process 12: what it and
                               its members point to is read there

Values are printed as gdb prints them: {...} is a struct beyond --depth. `atomic_t` and
other structs around one number are shown as that number, unless --raw is given.";

/// Print the value of an expression.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{JSON}\n\n{JSON_HELP}"))]
pub struct Args {
    /// The expression
    #[arg(allow_hyphen_values = true)]
    expr: String,

    /// The guest [default: the only one]
    #[arg(short, long, value_name = "NAME")]
    guest: Option<String>,

    /// Read a value of this type at the address that the expression gives
    ///
    /// Of a struct or an array, where it is. `*(TYPE *)EXPR` is the same.
    #[arg(short, long)]
    r#type: Option<String>,

    /// The task that `current` is
    #[arg(short, long)]
    pid: Option<i32>,

    /// How deep structs within structs are opened [default: 3; 8 in JSON]
    #[arg(short, long, value_name = "N")]
    depth: Option<usize>,

    /// Elements of arrays and lists that are read, and bytes of strings if more than 200
    #[arg(short, long, value_name = "N", default_value_t = 200)]
    limit: usize,

    /// Show numbers in hexadecimal
    #[arg(short = 'x', long)]
    hex: bool,

    /// Show structs as they are declared, also those around one number; lists as their heads
    #[arg(short, long)]
    raw: bool,

    #[command(flatten)]
    view: ViewArgs,
}

const JSON: &str = "\
In JSON, \"print\" is {\"type\", \"addr\" (null of what is not in memory), \"value\" or, of a
list, \"elements\" (each again with type, addr and value), \"cut\" (true when --limit or
--depth left something out)}. A struct is an object, an array an array, an array of
characters a string, an enumeration the enumerator's name; a pointer is null or {\"addr\",
\"symbol\" and \"offset\" (what of the kernel is there), \"text\" (the string there, or the
name of a list's element)}; a struct beyond --depth is \"...\", and what cannot be read
{\"unreadable\": reason}.";

/// Lists and arrays that are longer are not for people.
const MAX_LIMIT: usize = 1 << 20;

/// Runs the verb.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let depth = match args.view.format {
        Format::Human => 3,
        Format::Json => 8,
    };
    let limit = args.limit.min(MAX_LIMIT);
    let options = PrintOptions {
        ty: args.r#type,
        pid: args.pid.map(GuestPid),
        style: Style {
            depth: args.depth.unwrap_or(depth),
            elements: limit,
            // Names are not cut where lists are.
            text: limit.max(200),
            hex: args.hex,
            raw: args.raw,
        },
    };
    args.view.show(args.guest.as_deref(), "print", |reader| {
        reader.print(&args.expr, &options)
    })
}
