//! Whom timers are for. The function that is called tells what the timer is a part of.

use super::TimerOwner;
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::{Object, Reader, ViewError};

impl<M: Memory> Reader<'_, M> {
    /// Whom a timer of the wheel is for.
    pub(super) fn wheel_owner(
        &self,
        timer: &Object<'_, M>,
        function: &str,
    ) -> Result<Option<TimerOwner>, ViewError> {
        match function {
            // schedule_timeout().
            "process_timeout" => {
                let sleeper = timer.container("struct process_timer", "timer")?;
                self.owning_task(sleeper.pointer("task")?)
            }
            "delayed_work_timer_fn" => {
                let work = timer.container("struct delayed_work", "timer")?;
                let function = self.function_name(work.addr_value("work.func")?);
                Ok(Some(TimerOwner::Work(function)))
            }
            _ => Ok(None),
        }
    }

    /// Whom a high-resolution timer is for.
    pub(super) fn hrtimer_owner(
        &self,
        timer: &Object<'_, M>,
        function: &str,
    ) -> Result<Option<TimerOwner>, ViewError> {
        match function {
            // nanosleep(), poll(), futex() and the like.
            "hrtimer_wakeup" => {
                let sleeper = timer.container("struct hrtimer_sleeper", "timer")?;
                self.owning_task(sleeper.pointer("task")?)
            }
            // alarm() and setitimer().
            "it_real_fn" => {
                let signals = timer.container("struct signal_struct", "real_timer")?;
                // PIDTYPE_TGID.
                self.owning_pid(&signals, "pids[1]")
            }
            // timer_create().
            "posix_timer_fn" => {
                let timer = timer.container("struct k_itimer", "it.real.timer")?;
                self.owning_pid(&timer, "it_pid")
            }
            // A task of the deadline class that has used up its time; not of a server.
            "dl_task_timer" => {
                let entity = timer.container("struct sched_dl_entity", "dl_timer")?;
                if entity.has("dl_server") && entity.bool("dl_server")? {
                    return Ok(None);
                }
                let task = entity.container("struct task_struct", "dl")?;
                self.owning_task(task.addr())
            }
            _ => Ok(None),
        }
    }

    fn owning_task(&self, task: KernelAddr) -> Result<Option<TimerOwner>, ViewError> {
        // It has been woken up already.
        if task.is_null() {
            return Ok(None);
        }
        let task = self.kernel().task_at(task)?;
        Ok(Some(TimerOwner::Task {
            pid: task.pid,
            comm: task.comm,
        }))
    }

    /// The task of the `struct pid` that a member of an object points to; of a process, its first
    /// thread.
    fn owning_pid(
        &self,
        object: &Object<'_, M>,
        path: &str,
    ) -> Result<Option<TimerOwner>, ViewError> {
        // PIDTYPE_PID, of which there is one at most.
        let Some(pid) = object.follow(path)? else {
            return Ok(None);
        };
        let Some(link) = pid.follow("tasks[0].first")? else {
            return Ok(None);
        };
        let task = link.container("struct task_struct", "pid_links[0]")?;
        self.owning_task(task.addr())
    }
}
