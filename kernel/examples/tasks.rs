//! Lists the tasks of a running User Mode Linux guest with their kernel stacks, from outside:
//!
//! ```text
//! cargo run -p kscope-kernel --example tasks -- ./linux PID
//! ```
//!
//! With three more numbers, RIP RSP RBP of a thread that a debugger holds stopped, its stack is
//! printed instead. PID is the host's pid of the kernel process; reading its memory needs the rights to trace it.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use kscope_kernel::{
    CpuId, Image, Kernel, KernelAddr, Memory, ReadError, Reg, Registers, Unwinder,
    format_backtrace_with,
};

struct ProcessMemory(File);

impl Memory for ProcessMemory {
    fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.0
            .read_exact_at(buf, addr.get())
            .map_err(|_| ReadError {
                addr,
                len: buf.len(),
            })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(pid)) = (arguments.next(), arguments.next()) else {
        return Err("usage: tasks KERNEL PID".into());
    };
    let memory = ProcessMemory(File::open(format!("/proc/{pid}/mem"))?);
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;

    let start = Instant::now();
    let image = Image::open(Path::new(&kernel))?;
    eprintln!(
        "{:>8.1?} opened {kernel}, build id {:?}",
        start.elapsed(),
        image.build_id()
    );
    let kernel = Kernel::new(image.clone(), memory)?;
    eprintln!("{:>8.1?} read its types", start.elapsed());
    let tasks = kernel.tasks().collect::<Result<Vec<_>, _>>()?;
    eprintln!("{:>8.1?} read {} tasks", start.elapsed(), tasks.len());
    let mut unwinder = Unwinder::new(&image)?;
    for error in unwinder.add_modules_from_maps(&maps, &kernel) {
        eprintln!("{error}");
    }
    eprintln!("{:>8.1?} loaded the unwind tables", start.elapsed());
    let registers = arguments
        .zip([Reg::Rip, Reg::Rsp, Reg::Rbp])
        .map(|(value, reg)| {
            Ok((
                reg,
                u64::from_str_radix(value.trim_start_matches("0x"), 16)?,
            ))
        })
        .collect::<Result<Registers, std::num::ParseIntError>>()?;
    if registers.pc().is_some() {
        let stack = unwinder.unwind(
            &registers,
            &kernel,
            &kernel.stacks_of(&kernel.current(CpuId(0))?),
        );
        for line in format_backtrace_with(&image, &unwinder, &stack) {
            println!("{line}");
        }
        return Ok(());
    }
    let stacks = tasks
        .iter()
        .map(|task| kernel.backtrace(&mut unwinder, task))
        .collect::<Result<Vec<_>, _>>()?;
    eprintln!("{:>8.1?} unwound all", start.elapsed());
    for cpu in kernel.cpus() {
        println!("CPU {cpu} runs {}", kernel.current(cpu)?.comm);
    }
    for (task, stack) in tasks.iter().zip(&stacks) {
        println!(
            "{} {} {}{}",
            task.pid,
            task.state,
            task.comm,
            [" [user]", ""][usize::from(task.kernel_thread)]
        );
        for line in format_backtrace_with(&image, &unwinder, stack) {
            println!("    {line}");
        }
    }
    eprintln!("{:>8.1?} named all", start.elapsed());
    Ok(())
}
