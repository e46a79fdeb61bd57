//! Which host CPU a guest stays on.
//!
//! The kernel process and the processes that carry the guest's own hand control
//! back and forth on every system call and page fault. On one CPU that is a
//! switch; across two it is a wake-up of the other, several times slower.

use std::collections::BTreeMap;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::launch::LaunchError;
use crate::registry::{GuestDir, Registry};

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

/// Finds a host CPU for the guest in `dir`, and notes it there.
///
/// # Errors
///
/// A CPU that was asked for does not exist or is not allowed, or the note
/// cannot be written.
pub(crate) fn place(
    pin: Pin,
    guest_cpus: u32,
    registry: &Registry,
    dir: &GuestDir,
) -> Result<Option<u32>, LaunchError> {
    let allowed = allowed();
    let lock = registry.lock()?;
    let cpu = match pin {
        Pin::No => None,
        Pin::Cpu(cpu) if !allowed.contains(&cpu) => return Err(PinError { cpu, allowed }.into()),
        Pin::Cpu(cpu) => Some(cpu),
        Pin::Auto if guest_cpus > 1 => None,
        Pin::Auto => least_claimed(&allowed, &registry.claimed_cpus()),
    };
    if let Some(cpu) = cpu {
        dir.claim_cpu(cpu)?;
    }
    drop(lock);
    Ok(cpu)
}

/// Of the CPUs with the fewest guests the last: the first ones take most of a
/// machine's interrupts.
fn least_claimed(allowed: &[u32], claimed: &BTreeMap<u32, usize>) -> Option<u32> {
    let guests = |cpu: &u32| claimed.get(cpu).copied().unwrap_or(0);
    allowed.iter().rev().min_by_key(|cpu| guests(cpu)).copied()
}

fn allowed() -> Vec<u32> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .map(|cpu| cpu as u32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let temp = tempfile::tempdir().unwrap();
        let registry = Registry::at(&temp.path().join("r")).unwrap();
        (temp, registry)
    }

    #[test]
    fn guests_get_different_cpus_while_there_are_enough() {
        let (_temp, registry) = registry();
        let mut held = Vec::new();
        let mut cpus = Vec::new();
        for _ in allowed() {
            let dir = registry.claim(None).unwrap();
            cpus.push(place(Pin::Auto, 1, &registry, &dir).unwrap().unwrap());
            held.push(dir);
        }
        cpus.sort_unstable();
        assert_eq!(cpus, allowed());
        // One more shares; and a CPU is free again when its guest has gone.
        let dir = registry.claim(None).unwrap();
        assert!(place(Pin::Auto, 1, &registry, &dir).unwrap().is_some());
        drop((dir, held));
        assert!(registry.claimed_cpus().is_empty());
    }

    #[test]
    fn a_crowd_spreads() {
        let claimed = BTreeMap::from([(0, 1), (1, 2), (2, 1), (3, 2)]);
        assert_eq!(least_claimed(&[0, 1, 2, 3], &claimed), Some(2));
        assert_eq!(least_claimed(&[], &claimed), None);
    }

    #[test]
    fn a_guest_with_several_cpus_is_not_pinned() {
        let (_temp, registry) = registry();
        let dir = registry.claim(None).unwrap();
        assert_eq!(place(Pin::Auto, 2, &registry, &dir).unwrap(), None);
        assert_eq!(place(Pin::No, 1, &registry, &dir).unwrap(), None);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error() {
        let (_temp, registry) = registry();
        let dir = registry.claim(None).unwrap();
        let error = place(Pin::Cpu(100_000), 1, &registry, &dir).unwrap_err();
        assert!(error.to_string().contains("100000"), "{error}");
    }
}
