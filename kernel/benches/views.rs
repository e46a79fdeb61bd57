//! What views take within a process, on a core file: `kscope` without its start and its guest.
//!
//! ```text
//! KSCOPE_BENCH_KERNEL=linux KSCOPE_BENCH_CORE=web.core cargo bench -p kscope-kernel
//! ```
//!
//! `scripts/bench views` makes the core and runs this.

#![expect(missing_docs, reason = "of what the macros make")]

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, criterion_group, criterion_main};
use kscope_kernel::views::bt::{BtOptions, BtTasks, Cpus};
use kscope_kernel::views::ps::PsOptions;
use kscope_kernel::{Core, Image, Kernel, Reader, RunningCpu, Unwinder, ViewError};

/// A core file and the kernel that it is of.
struct Dead {
    core: Core,
    kernel: Kernel<Core>,
}

impl Dead {
    fn open() -> Option<Dead> {
        let path = |variable| std::env::var_os(variable).map(PathBuf::from);
        let (linux, core) = (path("KSCOPE_BENCH_KERNEL")?, path("KSCOPE_BENCH_CORE")?);
        let image = Image::open(&linux).expect("the kernel");
        let core = Core::open(&core).and_then(|core| core.with_image(&image));
        let core = core.expect("a core of this kernel");
        let kernel = Kernel::new(image, core.clone()).expect("its types");
        Some(Dead { core, kernel })
    }
}

impl Cpus for Dead {
    fn running(&self) -> Result<Vec<RunningCpu>, ViewError> {
        let running = self.core.cpus().iter().map(|&(cpu, registers)| RunningCpu {
            cpu,
            registers,
            task: self.kernel.current(cpu).ok().map(|task| task.addr),
            stacks: Vec::new(),
        });
        Ok(running.collect())
    }

    fn unwinder(&self) -> Result<Unwinder, ViewError> {
        let unwinder = Unwinder::new(self.kernel.image());
        let mut unwinder = unwinder.map_err(|error| ViewError::Invalid(error.to_string()))?;
        unwinder.add_modules_from_core(&self.core);
        Ok(unwinder)
    }
}

fn views(criterion: &mut Criterion) {
    let Some(dead) = Dead::open() else {
        eprintln!("set KSCOPE_BENCH_KERNEL and KSCOPE_BENCH_CORE");
        return;
    };
    let reader = || Reader::new(&dead.kernel);
    let all = PsOptions {
        threads: true,
        ..PsOptions::default()
    };
    criterion.bench_function("ps --threads", |bench| {
        bench.iter(|| black_box(reader().processes(&all)));
    });
    for (name, arguments) in [("bt --all", true), ("bt --all --no-args", false)] {
        let options = BtOptions {
            tasks: BtTasks::All,
            arguments,
            locals: false,
        };
        criterion.bench_function(name, |bench| {
            bench.iter(|| black_box(reader().stacks(&options, &dead)));
        });
    }
    criterion.bench_function("dmesg", |bench| {
        bench.iter(|| black_box(reader().log()));
    });
    criterion.bench_function("why --all", |bench| {
        bench.iter(|| black_box(reader().why(&[])));
    });
    // Once per command.
    let path = dead.kernel.image().path();
    criterion.bench_function("open the kernel", |bench| {
        bench.iter(|| black_box(Image::open(path).is_ok_and(|i| i.symbol("panic").is_some())));
    });
    criterion.bench_function("unwinder", |bench| {
        bench.iter(|| black_box(dead.unwinder().is_ok()));
    });
}

criterion_group!(benches, views);
criterion_main!(benches);
