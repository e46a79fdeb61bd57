//! Device numbers.

use std::fmt;

use serde::{Serialize, Serializer};

/// The number of a device, the kernel's `dev_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The device of the driver.
    pub minor: u32,
}

impl Device {
    /// From a `dev_t` in the kernel's memory; include/linux/kdev_t.h.
    pub fn from_bits(bits: u64) -> Device {
        const MINOR_BITS: u32 = 20;
        let bits = bits as u32;
        Device {
            major: bits >> MINOR_BITS,
            minor: bits & ((1 << MINOR_BITS) - 1),
        }
    }
}

/// Decimal, `8:1`, as in /proc/PID/mountinfo.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
