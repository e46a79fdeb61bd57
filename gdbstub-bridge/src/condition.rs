//! Conditions and commands of breakpoints, executed on the engine's thread where they are hit.

use std::sync::Arc;

use kscope_guest::control::{ControlError, Filter, Hit, Verdict};
use kscope_guest::mem::ProcMem;
use kscope_kernel::{Kernel, KernelAddr, Reg};

use crate::agent::Machine;
use crate::arch::Number;
use crate::console::Console;
use crate::rsp::Actions;
use crate::space::{Space, View};
use crate::target::GuestTarget;

impl GuestTarget {
    /// Sets a breakpoint with conditions and commands.
    pub(crate) fn insert_with(&mut self, addr: u64, actions: Actions) -> Result<(), ControlError> {
        let addr = KernelAddr(addr);
        self.insert_for_client(addr, Some(self.filter(actions)))
    }

    fn filter(&self, actions: Actions) -> Filter {
        let space = self.space.clone();
        let kernel = self.kernel.clone();
        let console = Arc::clone(&self.console);
        let registers: Vec<_> = Reg::ALL
            .into_iter()
            .map(|reg| (Number::of(reg).raw(), reg))
            .collect();
        Box::new(move |hit| {
            let mut place = Place {
                hit,
                space: &space,
                kernel: kernel.as_ref(),
                view: None,
                console: &console,
                registers: &registers,
            };
            decide(&actions, &mut place)
        })
    }
}

/// Whether the guest stops.
fn decide(actions: &Actions, machine: &mut dyn Machine) -> Verdict {
    let counts = actions.conditions.is_empty()
        || actions.conditions.iter().any(|condition| {
            condition.run(machine).unwrap_or_else(|fault| {
                // The client computes it again, and tells its user why it cannot.
                log::debug!("condition: {fault}");
                1
            }) != 0
        });
    if !counts {
        return Verdict::Continue;
    }
    if actions.commands.is_empty() {
        return Verdict::Stop;
    }
    for command in &actions.commands {
        if let Err(fault) = command.run(machine) {
            machine.print(format!("[kscope: cannot print: {fault}]\n").as_bytes());
        }
    }
    Verdict::Continue
}

/// The place of a hit.
struct Place<'h> {
    hit: &'h Hit<'h>,
    space: &'h Space,
    kernel: Option<&'h Kernel<ProcMem>>,
    /// What the task sees, once anybody has asked.
    view: Option<View>,
    console: &'h Console,
    registers: &'h [(u16, Reg)],
}

impl Place<'_> {
    /// What the task that the CPU runs sees.
    fn view(&mut self) -> View {
        *self.view.get_or_insert_with(|| {
            let pc = Some(self.hit.register(Reg::Rip));
            let task = self.kernel.and_then(|kernel| {
                let cpu = kernel.vcpu_of_stack(self.hit.register(Reg::Rsp))?;
                kernel.current(cpu).ok()
            });
            self.space.view(task.as_ref(), pc)
        })
    }
}

impl Machine for Place<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        let known = self.registers.iter().find(|(known, _)| *known == number);
        known.map(|(_, reg)| self.hit.register(*reg))
    }

    fn read(&mut self, addr: u64, buf: &mut [u8]) -> bool {
        let view = match self.space.needs_view(addr, buf.len()) {
            true => self.view(),
            false => View::default(),
        };
        let whole = self.space.read(view, addr, buf) == buf.len();
        self.hit.mask(KernelAddr(addr), buf);
        whole
    }

    fn print(&mut self, text: &[u8]) {
        self.console.print(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Program;

    /// Nothing but what is printed.
    #[derive(Default)]
    struct Bare(Vec<u8>);

    impl Machine for Bare {
        fn register(&mut self, _: u16) -> Option<u64> {
            None
        }

        fn read(&mut self, _: u64, _: &mut [u8]) -> bool {
            false
        }

        fn print(&mut self, text: &[u8]) {
            self.0.extend_from_slice(text);
        }
    }

    fn constant(value: u8) -> Program {
        Program::new(&[0x22, value, 0x27]).unwrap()
    }

    fn outcome(conditions: Vec<Program>, commands: Vec<Program>) -> (Verdict, String) {
        let mut bare = Bare::default();
        let actions = Actions {
            conditions,
            commands,
        };
        let verdict = decide(&actions, &mut bare);
        (verdict, String::from_utf8(bare.0).unwrap())
    }

    #[test]
    fn any_condition_will_do_and_a_broken_one_stops() {
        let broken = Program::new(&[0x02, 0x27]).unwrap();
        let stops = |conditions| outcome(conditions, Vec::new()).0 == Verdict::Stop;
        assert!(stops(vec![]));
        assert!(!stops(vec![constant(0)]));
        assert!(stops(vec![constant(0), constant(2)]));
        assert!(stops(vec![broken]));
    }

    #[test]
    fn commands_run_instead_of_a_stop() {
        // const8 0 (channel), const8 0 (function), printf 0 args "hi\n".
        let mut code = vec![0x22, 0, 0x22, 0, 0x34, 0, 0, 5];
        code.extend(b"hi\\n\0");
        code.push(0x27);
        let print = Program::new(&code).unwrap();
        assert_eq!(
            outcome(vec![], vec![print.clone()]),
            (Verdict::Continue, "hi\n".to_owned())
        );
        assert_eq!(
            outcome(vec![constant(0)], vec![print]),
            (Verdict::Continue, String::new())
        );
        let (verdict, said) = outcome(vec![], vec![Program::new(&[0x02]).unwrap()]);
        assert_eq!(verdict, Verdict::Continue);
        assert!(said.contains("cannot print"), "{said}");
    }
}
