//! Task lists, whole ones and corrupt ones.

use kscope_kernel::{Corruption, CpuId, GuestPid, Image, Kernel, KernelAddr, MemoryExt, Reg, Task};
use proptest::prelude::*;

use crate::common::{Fixture, Loaded, compile};

fn kernel(fixture: &Fixture) -> Kernel<Loaded> {
    let image = Image::open(&fixture.kernel).expect("a kernel");
    Kernel::new(image, fixture.memory()).expect("its layouts")
}

/// The kernel with changed memory.
fn changed(kernel: &Kernel<Loaded>, change: impl FnOnce(&Image, &mut Loaded)) -> Kernel<Loaded> {
    let mut memory = kernel.memory().clone();
    change(kernel.image(), &mut memory);
    Kernel::new(kernel.image().clone(), memory).expect("its layouts")
}

fn at(image: &Image, symbol: &str, path: &str) -> KernelAddr {
    let layout = image.layout().expect("DWARF");
    let member = layout
        .member("task_struct", path)
        .or_else(|_| layout.member("signal_struct", path))
        .expect(path);
    image.symbol(symbol).expect(symbol) + member.offset
}

fn pids(kernel: &Kernel<Loaded>) -> Vec<Result<i32, Corruption>> {
    kernel
        .tasks()
        .map(|task| task.map(|task| task.pid.0))
        .collect()
}

#[test]
fn every_version_lists_the_same_tasks() {
    for version in [601, 612, 703] {
        let fixture = compile(version, &[]);
        let kernel = kernel(&fixture);
        let tasks: Vec<Task> = kernel
            .tasks()
            .collect::<Result<_, _>>()
            .expect("whole lists");
        let shown: Vec<_> = tasks
            .iter()
            .map(|task| {
                (
                    task.pid.0,
                    task.tgid.0,
                    task.state.0,
                    task.kernel_thread,
                    task.comm.as_str(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (0, 0, 'R', true, "swapper"),
                (1, 1, 'S', false, "init"),
                (20, 20, 'I', true, "kworker/0:1-eve"),
                (21, 20, 'Z', false, "worker\u{fffd} thread"),
            ]
        );
        assert_eq!(
            tasks[1].addr,
            kernel.image().symbol("leader1").expect("leader1")
        );
        assert_eq!(
            tasks[1].stack,
            kernel.image().symbol("stack1").expect("stack1")
        );
        assert_eq!(kernel.stack_of(&tasks[1]).end - tasks[1].stack.get(), 16384);
        assert_eq!(kernel.find_task(GuestPid(21)), Ok(Some(tasks[3].clone())));
        assert_eq!(kernel.find_task(GuestPid(22)), Ok(None));
    }
}

#[test]
fn sleeping_tasks_have_saved_registers() {
    for version in [601, 612, 703] {
        let fixture = compile(version, &[]);
        let kernel = kernel(&fixture);
        let task = kernel.find_task(GuestPid(1)).expect("lists").expect("init");
        let saved = kernel.saved_registers(&task).expect("readable");
        let expected = [
            (Reg::Rbx, 1),
            (Reg::Rbp, 3),
            (Reg::Rsp, 2),
            (Reg::R12, 4),
            (Reg::R13, 5),
            (Reg::R14, 6),
            (Reg::R15, 7),
            (Reg::Rip, 8),
        ];
        assert_eq!(saved.iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn cpus_and_what_runs_on_them() {
    for (version, cpus) in [(601, 1), (612, 1), (703, 2)] {
        let fixture = compile(version, &[]);
        let kernel = kernel(&fixture);
        assert_eq!(kernel.cpus(), (0..cpus).map(CpuId).collect::<Vec<_>>());
        assert_eq!(
            kernel.current(CpuId(0)).map(|task| task.comm).as_deref(),
            Ok("init")
        );
        let second = kernel.current(CpuId(1)).map(|task| task.pid.0);
        match version {
            703 => assert_eq!(second, Ok(21)),
            _ => assert_eq!(second, Err(Corruption::NotOnline { cpu: CpuId(1) })),
        }
        assert!(kernel.current(CpuId(u32::MAX)).is_err());

        let task = kernel.current(CpuId(0)).expect("init");
        let stack = kernel.stack_of(&task);
        assert_eq!(kernel.vcpu_of_stack(stack.start), Some(CpuId(0)));
        assert_eq!(kernel.vcpu_of_stack(stack.end - 8), Some(CpuId(0)));
        assert_eq!(kernel.vcpu_of_stack(0), None);
        assert_eq!(kernel.stack_around(stack.start + 100), stack);
        let signal_stacks = kernel.signal_stacks();
        assert_eq!(signal_stacks.len(), if version == 703 { 4 } else { 1 });
        let last = signal_stacks.last().expect("at least one");
        let owner = CpuId(signal_stacks.len() as u32 - 1);
        assert_eq!(kernel.vcpu_of_stack(last.start + 1), Some(owner));
    }
}

#[test]
fn after_a_panic_every_cpu_is_still_there() {
    let fixture = compile(703, &[]);
    let kernel = changed(&kernel(&fixture), |image, memory| {
        memory.write_u64(image.symbol("__cpu_online_mask").expect("the mask"), 2);
    });
    assert_eq!(kernel.cpus(), [CpuId(0), CpuId(1)]);
}

#[test]
fn before_start_kernel_the_idle_task_runs() {
    let fixture = compile(612, &[]);
    let kernel = changed(&kernel(&fixture), |image, memory| {
        memory.write_u64(image.symbol("cpu_tasks").expect("cpu_tasks"), 0);
        memory.write_u64(image.symbol("__cpu_online_mask").expect("the mask"), 0);
    });
    assert_eq!(kernel.cpus(), [CpuId(0)]);
    assert_eq!(
        kernel.current(CpuId(0)).map(|task| task.comm).as_deref(),
        Ok("swapper")
    );
}

#[test]
fn a_list_of_processes_that_runs_in_a_circle_ends() {
    let fixture = compile(612, &[]);
    let whole = kernel(&fixture);
    let kernel = changed(&whole, |image, memory| {
        let leader1 = at(image, "leader1", "tasks.next");
        memory.write_u64(at(image, "leader2", "tasks.next"), leader1.get());
    });
    let leader1 = kernel.image().symbol("leader1").expect("leader1");
    assert_eq!(
        pids(&kernel),
        [
            Ok(0),
            Ok(1),
            Ok(20),
            Ok(21),
            Err(Corruption::Cycle {
                what: "process",
                addr: leader1
            })
        ]
    );
}

#[test]
fn a_list_of_threads_that_runs_in_a_circle_costs_only_itself() {
    let fixture = compile(703, &[]);
    let whole = kernel(&fixture);
    let image = whole.image();
    let thread2 = image.symbol("thread2").expect("thread2");
    let leader2 = image.symbol("leader2").expect("leader2");

    let to_itself = changed(&whole, |image, memory| {
        let node = at(image, "thread2", "thread_node.next");
        memory.write_u64(node, node.get());
    });
    let cycle = |addr| {
        Err(Corruption::Cycle {
            what: "thread",
            addr,
        })
    };
    assert_eq!(
        pids(&to_itself),
        [Ok(0), Ok(1), Ok(20), Ok(21), cycle(thread2)]
    );

    let leader_to_itself = changed(&whole, |image, memory| {
        let node = at(image, "leader2", "thread_node.next");
        memory.write_u64(node, node.get());
    });
    assert_eq!(
        pids(&leader_to_itself),
        [Ok(0), Ok(1), Ok(20), cycle(leader2)]
    );

    // The thread leads back to its leader, not to the head.
    let between_two = changed(&whole, |image, memory| {
        let node = at(image, "leader2", "thread_node.next");
        memory.write_u64(at(image, "thread2", "thread_node.next"), node.get());
    });
    let found = pids(&between_two);
    assert_eq!(found[..4], [Ok(0), Ok(1), Ok(20), Ok(21)]);
    assert!(
        matches!(found[4..], [Err(Corruption::Cycle { .. })]),
        "{found:?}"
    );

    // An early process: those after it are still found.
    let early = changed(&whole, |image, memory| {
        let node = at(image, "leader1", "thread_node.next");
        memory.write_u64(node, node.get());
    });
    let leader1 = image.symbol("leader1").expect("leader1");
    assert_eq!(pids(&early), [Ok(0), Ok(1), cycle(leader1), Ok(20), Ok(21)]);
}

#[test]
fn wild_pointers_are_named() {
    let fixture = compile(601, &[]);
    let whole = kernel(&fixture);
    for (wild, is_misaligned) in [(0, false), (1, true), (0xdead_0000_0000_0100, false)] {
        let kernel = changed(&whole, |image, memory| {
            memory.write_u64(at(image, "leader1", "tasks.next"), wild);
        });
        let found = pids(&kernel);
        assert_eq!(found[..2], [Ok(0), Ok(1)]);
        let [Err(error)] = &found[2..] else {
            panic!("{found:?}")
        };
        let is_wild = matches!(error, Corruption::WildPointer { .. });
        assert_eq!(is_wild, is_misaligned || wild == 0, "{error}");
    }
    let unreadable = changed(&whole, |image, memory| {
        memory.write_u64(at(image, "leader1", "signal"), 0x10);
        memory.write_u64(
            image.symbol("cpu_tasks").expect("cpu_tasks") + 8,
            0x7fff_ffff_f001,
        );
    });
    assert_eq!(pids(&unreadable).len(), 5);
    assert!(matches!(
        unreadable.current(CpuId(0)),
        Err(Corruption::WildPointer { .. })
    ));
}

proptest! {
    /// Whatever a guest writes over its lists, listing its tasks ends and does not panic.
    #[test]
    fn no_memory_hangs_the_list(
        writes in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..12), 1..12)
    ) {
        thread_local! {
            static WHOLE: Kernel<Loaded> = kernel(&compile(703, &[]));
        }
        WHOLE.with(|whole| {
            let image = whole.image();
            // Link fields, and values that make sense as links.
            let mut links = Vec::new();
            for task in ["init_task", "leader1", "leader2", "thread2"] {
                for path in ["tasks.next", "thread_node.next", "signal"] {
                    links.push(at(image, task, path));
                }
            }
            for signals in ["signal1", "signal2", "init_signals"] {
                links.push(at(image, signals, "thread_head.next"));
            }
            let kernel = changed(whole, |_, memory| {
                for (target, value) in &writes {
                    let value = match value {
                        11 => 0,
                        10 => 0xffff_ffff_ffff_fff8,
                        value => links[*value].get(),
                    };
                    memory.write_u64(links[target.index(links.len())], value);
                }
            });
            let found: Vec<_> = kernel.tasks().take(1000).collect();
            prop_assert!(found.len() < 100, "{found:?}");
            let mut seen: Vec<_> = found.iter().flatten().map(|task| task.addr).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), found.iter().flatten().count());
            Ok(())
        })?;
    }
}

#[test]
fn memory_that_is_gone_is_an_error_not_an_empty_list() {
    let fixture = compile(612, &[]);
    let image = Image::open(&fixture.kernel).expect("a kernel");
    struct Nothing;
    impl kscope_kernel::Memory for Nothing {
        fn read(&self, addr: KernelAddr, buf: &mut [u8]) -> Result<(), kscope_kernel::ReadError> {
            Err(kscope_kernel::ReadError {
                addr,
                len: buf.len(),
            })
        }
    }
    let kernel = Kernel::new(image, Nothing).expect("no memory is needed");
    assert!(matches!(
        kernel.tasks().collect::<Vec<_>>()[..],
        [Err(Corruption::Unreadable { .. })]
    ));
    assert!(kernel.find_task(GuestPid(1)).is_err());
    assert!(kernel.current(CpuId(0)).is_err());
    assert_eq!(kernel.cpus(), [CpuId(0)]);
    assert!(kernel.memory().read_u8(KernelAddr(0)).is_err());
}
