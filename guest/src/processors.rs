//! How many CPUs a guest has, and how the host runs its processes.

use std::ffi::OsString;
use std::path::PathBuf;

use kscope_kernel::Image;
use serde::{Deserialize, Serialize};

/// How the kernel runs the guest's processes on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The kernel traces them: each system call and page fault is a stop. All
    /// kernels can do it, with one CPU.
    #[default]
    Ptrace,
    /// They call the kernel themselves, from a signal handler, behind a seccomp
    /// filter: faster, and possible with several CPUs, but a process can reach
    /// the kernel's memory (arch/um/os-Linux/start_up.c says so). From 6.16 on.
    Seccomp,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Mode::Ptrace => "ptrace",
            Mode::Seccomp => "seccomp",
        })
    }
}

/// A kernel cannot run as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorsError {
    /// It is built for one CPU.
    #[error(
        "{} can have one CPU only, not {cpus}: it is built without CONFIG_SMP; \
         build one with `kscope build --source debian:7.3 --preset debug,smp`",
        kernel.display()
    )]
    NoSmp {
        /// The kernel.
        kernel: PathBuf,
        /// How many it was to have.
        cpus: u32,
    },
    /// It is built for fewer CPUs.
    #[error("{} can have at most {most} CPUs, not {cpus}: that is its CONFIG_NR_CPUS", kernel.display())]
    TooMany {
        /// The kernel.
        kernel: PathBuf,
        /// How many it can have.
        most: u64,
        /// How many it was to have.
        cpus: u32,
    },
    /// It is older than seccomp mode.
    #[error("{} can run in ptrace mode only: seccomp mode is there from Linux 6.16 on", kernel.display())]
    NoSeccomp {
        /// The kernel.
        kernel: PathBuf,
    },
    /// Several CPUs and ptrace mode exclude each other.
    #[error("a guest with {cpus} CPUs runs in seccomp mode only: leave ptrace mode away")]
    NeedsSeccomp {
        /// How many it was to have.
        cpus: u32,
    },
}

/// The mode of a guest with so many CPUs, and the kernel parameters that make
/// it so. `mode` is what was asked for, if anything was.
///
/// # Errors
///
/// The kernel cannot do that.
pub(crate) fn parameters(
    image: &Image,
    cpus: u32,
    mode: Option<Mode>,
) -> Result<(Mode, Vec<OsString>), ProcessorsError> {
    parameters_of(&Abilities::of(image), cpus, mode)
}

/// What a kernel can do, by what is in it.
#[derive(Debug)]
struct Abilities {
    kernel: PathBuf,
    seccomp: bool,
    /// The most CPUs (arch/um/kernel/smp.c, NR_CPUS).
    cpus: Option<u64>,
}

impl Abilities {
    fn of(image: &Image) -> Abilities {
        // Only with CONFIG_SMP is it a variable.
        let smp = image.symbol("uml_ncpus").is_some();
        // An array of one pointer per CPU, in all kernels with SMP.
        let cpus = image
            .symbol_size("cpu_tasks")
            .map(|size| size / size_of::<u64>() as u64);
        Abilities {
            kernel: image.path().to_owned(),
            seccomp: image.symbol("using_seccomp").is_some(),
            cpus: cpus.filter(|_| smp),
        }
    }
}

fn parameters_of(
    able: &Abilities,
    cpus: u32,
    mode: Option<Mode>,
) -> Result<(Mode, Vec<OsString>), ProcessorsError> {
    let kernel = || able.kernel.clone();
    let chosen = match mode {
        Some(mode) => mode,
        None if cpus > 1 => Mode::Seccomp,
        None => Mode::Ptrace,
    };
    if cpus > 1 {
        let most = able.cpus.ok_or_else(|| ProcessorsError::NoSmp {
            kernel: kernel(),
            cpus,
        })?;
        if u64::from(cpus) > most {
            return Err(ProcessorsError::TooMany {
                kernel: kernel(),
                most,
                cpus,
            });
        }
    }
    if cpus > 1 && chosen == Mode::Ptrace {
        return Err(ProcessorsError::NeedsSeccomp { cpus });
    }
    if chosen == Mode::Seccomp && !able.seccomp {
        return Err(ProcessorsError::NoSeccomp { kernel: kernel() });
    }
    let mut parameters: Vec<OsString> = Vec::new();
    match chosen {
        Mode::Seccomp => parameters.push("seccomp=on".into()),
        // Said, so that it does not hang on the kernel's own default. To an older kernel it would
        // be a word for the guest's init.
        Mode::Ptrace if able.seccomp => parameters.push("seccomp=off".into()),
        Mode::Ptrace => {}
    }
    if cpus > 1 {
        parameters.push(format!("ncpus={cpus}").into());
    }
    Ok((chosen, parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able(seccomp: bool, cpus: Option<u64>) -> Abilities {
        Abilities {
            kernel: "/k/linux".into(),
            seccomp,
            cpus,
        }
    }

    fn words(able: &Abilities, cpus: u32, mode: Option<Mode>) -> Result<(Mode, String), String> {
        parameters_of(able, cpus, mode)
            .map(|(mode, words)| {
                let words: Vec<_> = words.iter().map(|w| w.to_string_lossy()).collect();
                (mode, words.join(" "))
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_old_kernel_is_told_nothing() {
        let old = able(false, None);
        assert_eq!(words(&old, 1, None), Ok((Mode::Ptrace, String::new())));
        let error = words(&old, 1, Some(Mode::Seccomp)).unwrap_err();
        assert!(
            error.contains("/k/linux") && error.contains("6.16"),
            "{error}"
        );
        let error = words(&old, 2, None).unwrap_err();
        assert!(error.contains("--preset debug,smp"), "{error}");
    }

    #[test]
    fn several_cpus_choose_seccomp_mode() {
        let new = able(true, Some(4));
        assert_eq!(
            words(&new, 1, None),
            Ok((Mode::Ptrace, "seccomp=off".into()))
        );
        assert_eq!(
            words(&new, 4, None),
            Ok((Mode::Seccomp, "seccomp=on ncpus=4".into()))
        );
        let error = words(&new, 5, None).unwrap_err();
        assert!(error.contains("at most 4"), "{error}");
        let error = words(&new, 2, Some(Mode::Ptrace)).unwrap_err();
        assert!(error.contains("seccomp mode only"), "{error}");
        let error = words(&able(true, None), 2, None).unwrap_err();
        assert!(error.contains("CONFIG_SMP"), "{error}");
    }
}
