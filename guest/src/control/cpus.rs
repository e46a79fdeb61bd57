//! Which thread is which CPU.

use kscope_kernel::{CpuId, KernelAddr, MemoryExt};

use super::engine::Engine;
use super::{ControlError, HostTid, VCpu, sys};

impl Engine {
    /// The guest's CPUs; all threads are stopped.
    pub(super) fn vcpus(&mut self) -> &[VCpu] {
        if self.cpus.is_empty() {
            self.cpus = self.find_vcpus();
        }
        &self.cpus
    }

    /// The leader is CPU 0 (arch/um/kernel/smp.c); which thread is which other CPU, the threads know themselves.
    fn find_vcpus(&self) -> Vec<VCpu> {
        if self.is_process() {
            return self.threads_as_vcpus();
        }
        let mut cpus = vec![VCpu {
            cpu: CpuId(0),
            tid: self.pid,
            pid: self.pid,
        }];
        let (Some(number), Ok(memory)) = (self.cpu_number, self.memory()) else {
            return cpus;
        };
        let others = self.threads.keys().filter(|&&tid| tid != self.pid);
        cpus.extend(others.filter_map(|&tid| {
            let base = sys::registers(tid).ok()?.fs_base;
            let addr = KernelAddr(base.checked_add_signed(number)?);
            let cpu = memory.read_u32(addr).ok()?;
            // A helper has 0 there, the first CPU's.
            (cpu != 0).then_some(VCpu {
                cpu: CpuId(cpu),
                tid,
                pid: self.pid,
            })
        }));
        cpus.sort_by_key(|vcpu| vcpu.cpu);
        cpus.dedup_by_key(|vcpu| vcpu.cpu);
        cpus
    }

    pub(super) fn thread_of(&mut self, cpu: CpuId) -> Result<HostTid, ControlError> {
        let vcpu = self.vcpus().iter().find(|vcpu| vcpu.cpu == cpu);
        vcpu.map(|vcpu| vcpu.tid).ok_or(ControlError::NoCpu(cpu))
    }

    pub(super) fn cpu_of(&mut self, tid: HostTid) -> CpuId {
        let vcpu = self.vcpus().iter().find(|vcpu| vcpu.tid == tid);
        vcpu.map_or(CpuId(0), |vcpu| vcpu.cpu)
    }
}
