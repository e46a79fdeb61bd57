//! Command lines, out of the memory of processes.

use crate::addr::{KernelAddr, UserAddr};
use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::reader::{Object, ViewError};

/// Bytes of the longest command line that is read whole.
const MAX_LEN: u64 = 64 << 10;

/// Bytes that all of them take at most.
const MAX_TOTAL: u64 = 64 << 20;

/// How many bytes may still be read.
pub(super) struct Budget(u64);

impl Default for Budget {
    fn default() -> Budget {
        Budget(MAX_TOTAL)
    }
}

/// Where a process keeps its arguments and its environment.
struct Areas {
    mm: KernelAddr,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
}

impl Budget {
    /// The arguments of a process. Empty when it has no memory (any more), and when what it was
    /// started with is not in memory now.
    pub(super) fn read<M: Memory>(
        &mut self,
        task: &Object<'_, M>,
    ) -> Result<Vec<String>, ViewError> {
        let Some(mm) = task.follow("mm")? else {
            return Ok(Vec::new());
        };
        let mm = mm.fetched();
        let areas = Areas {
            mm: mm.addr(),
            arg_start: mm.u64("arg_start")?,
            arg_end: mm.u64("arg_end")?,
            env_start: mm.u64("env_start")?,
            env_end: mm.u64("env_end")?,
        };
        let text = areas.read(task.reader().kernel(), self.0.min(MAX_LEN));
        self.0 = self.0.saturating_sub(text.len() as u64);
        let text = text.strip_suffix(&[0]).unwrap_or(&text);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let arguments = text.split(|&byte| byte == 0);
        let text = |argument| String::from_utf8_lossy(argument).into_owned();
        Ok(arguments.map(text).collect())
    }
}

impl Areas {
    /// As `get_mm_cmdline()` of fs/proc/base.c has it.
    fn read<M: Memory>(&self, kernel: &Kernel<M>, max: u64) -> Vec<u8> {
        if self.arg_start >= self.arg_end || self.env_end == 0 {
            return Vec::new();
        }
        let mut last = [0];
        let is_read = kernel.read_user(self.mm, UserAddr(self.arg_end - 1), &mut last);
        if is_read.is_err() || last == [0] {
            return self.bytes(kernel, (self.arg_end - self.arg_start).min(max));
        }
        // A program wrote a title of its own over its arguments, maybe on into its environment. It
        // ends at a NUL, and is no longer than a page.
        let end = match self.env_start == self.arg_end && self.env_end >= self.env_start {
            true => self.env_end,
            false => self.arg_end,
        };
        let len = (end - self.arg_start).min(kernel.page_size()).min(max);
        let mut title = self.bytes(kernel, len);
        if let Some(end) = title.iter().position(|&byte| byte == 0) {
            title.truncate(end);
        }
        title
    }

    /// The first bytes of the arguments, up to a page that is not there.
    fn bytes<M: Memory>(&self, kernel: &Kernel<M>, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        let mut read = 0;
        while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
            let at = self.arg_start.saturating_add(read as u64);
            let to_page_end = kernel.page_size() - at % kernel.page_size();
            let len = rest.len().min(to_page_end as usize);
            let (page, _) = rest.split_at_mut(len);
            if kernel.read_user(self.mm, UserAddr(at), page).is_err() {
                break;
            }
            read += len;
        }
        bytes.truncate(read);
        bytes
    }
}
