//! Which host CPU a guest stays on.
//!
//! The kernel process and the processes that carry the guest's own hand control
//! back and forth on every system call and page fault. On one CPU that is a
//! switch; across two it is a wake-up of the other, several times slower.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::registry::Registry;

/// How to place a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// On a CPU that no other guest has; not at all with several guest CPUs.
    #[default]
    Auto,
    /// On this one.
    Cpu(u32),
    /// Nowhere: the host's scheduler decides.
    No,
}

/// There is no such CPU.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot keep the guest on CPU {cpu}: this process may use {}",
    list(allowed)
)]
pub struct PinError {
    /// The CPU that was asked for.
    pub cpu: u32,
    /// Those there are.
    pub allowed: Vec<u32>,
}

fn list(cpus: &[u32]) -> String {
    let numbers: Vec<_> = cpus.iter().map(u32::to_string).collect();
    match numbers.len() {
        1 => format!("only CPU {}", numbers[0]),
        _ => format!("CPUs {}", numbers.join(", ")),
    }
}

/// A guest's place. Dropping it frees the CPU for the next guest.
#[derive(Debug, Default)]
pub(crate) struct Place {
    pub(crate) cpu: Option<u32>,
    _claim: Option<Flock<File>>,
}

/// Finds a place for a guest.
///
/// # Errors
///
/// A CPU that was asked for does not exist or is not allowed.
pub(crate) fn place(pin: Pin, guest_cpus: u32, registry: &Registry) -> Result<Place, PinError> {
    let allowed = allowed();
    match pin {
        Pin::No => Ok(Place::default()),
        Pin::Cpu(cpu) if !allowed.contains(&cpu) => Err(PinError { cpu, allowed }),
        Pin::Cpu(cpu) => Ok(Place {
            cpu: Some(cpu),
            _claim: claim(cpu, registry),
        }),
        Pin::Auto if guest_cpus > 1 || allowed.is_empty() => Ok(Place::default()),
        Pin::Auto => {
            // The first CPUs take most of a machine's interrupts.
            for &cpu in allowed.iter().rev() {
                if let Some(claim) = claim(cpu, registry) {
                    return Ok(Place {
                        cpu: Some(cpu),
                        _claim: Some(claim),
                    });
                }
            }
            // More guests than CPUs: spread them.
            let cpu = allowed[std::process::id() as usize % allowed.len()];
            Ok(Place {
                cpu: Some(cpu),
                _claim: None,
            })
        }
    }
}

fn allowed() -> Vec<u32> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .map(|cpu| cpu as u32)
        .collect()
}

/// A lock per CPU, which ends with its holder. `None` when another guest has it.
fn claim(cpu: u32, registry: &Registry) -> Option<Flock<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(registry.dir().join(format!(".cpu{cpu}")))
        .ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_get_different_cpus_while_there_are_enough() {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::at(&temp.path().join("r")).unwrap();
        let places: Vec<_> = allowed()
            .iter()
            .map(|_| place(Pin::Auto, 1, &registry).unwrap())
            .collect();
        let mut cpus: Vec<_> = places.iter().map(|p| p.cpu.unwrap()).collect();
        cpus.sort_unstable();
        assert_eq!(cpus, allowed());
        // One more shares.
        assert!(place(Pin::Auto, 1, &registry).unwrap().cpu.is_some());
    }

    #[test]
    fn a_guest_with_several_cpus_is_not_pinned() {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::at(&temp.path().join("r")).unwrap();
        assert_eq!(place(Pin::Auto, 2, &registry).unwrap().cpu, None);
        assert_eq!(place(Pin::No, 1, &registry).unwrap().cpu, None);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::at(&temp.path().join("r")).unwrap();
        let error = place(Pin::Cpu(100_000), 1, &registry).unwrap_err();
        assert!(error.to_string().contains("100000"), "{error}");
    }
}
