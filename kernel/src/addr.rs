//! Addresses and ids of the guest, each its own type so that they cannot be mixed up.

use std::fmt;
use std::ops::{Add, Sub};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        /// Where people read it, as in the debugger, `"0x60001000"`: a JSON number would lose its
        /// last digits in many programs.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match serializer.is_human_readable() {
                    true => serializer.collect_str(self),
                    false => serializer.serialize_u64(self.0),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if !deserializer.is_human_readable() {
                    return u64::deserialize(deserializer).map(Self);
                }
                let text = String::deserialize(deserializer)?;
                let digits = text.strip_prefix("0x").unwrap_or_default();
                u64::from_str_radix(digits, 16).map(Self).map_err(|_| {
                    D::Error::custom(format!("`{text}` is not an address such as 0x60001000"))
                })
            }
        }

        impl $name {
            /// The address as a plain number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Whether this is the null address.
            pub const fn is_null(self) -> bool {
                self.0 == 0
            }

            /// The address `bytes` further on, or `None` past the end of the address space.
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl From<u64> for $name {
            fn from(address: u64) -> Self {
                Self(address)
            }
        }

        impl Add<u64> for $name {
            type Output = Self;

            /// Wraps around: pointers come from guest memory, where any value can occur, and a
            /// wrapped address is an unreadable one.
            fn add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl Sub<u64> for $name {
            type Output = Self;

            /// Wraps around, as [`Add`] does.
            fn sub(self, bytes: u64) -> Self {
                Self(self.0.wrapping_sub(bytes))
            }
        }

        impl Sub for $name {
            type Output = u64;

            /// The distance in bytes, wrapping around, as [`Add`] does.
            fn sub(self, other: Self) -> u64 {
                self.0.wrapping_sub(other.0)
            }
        }
    };
}

address! {
    /// A virtual address of the guest kernel. In User Mode Linux it is also the address in the
    /// kernel's host process.
    KernelAddr
}
address! {
    /// A virtual address of a guest process.
    UserAddr
}
address! {
    /// A physical address of the guest: an offset into its RAM.
    PhysAddr
}

/// A pid as the guest counts them. Not a host pid. 0 is the idle task.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct GuestPid(pub i32);

impl fmt::Display for GuestPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A virtual CPU of the guest, counted from 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct CpuId(pub u32);

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_wrap_instead_of_panicking() {
        assert_eq!(KernelAddr(u64::MAX) + 1, KernelAddr(0));
        assert_eq!(KernelAddr(0) - 8, KernelAddr(u64::MAX - 7));
        assert_eq!(KernelAddr(u64::MAX).checked_add(1), None);
    }

    #[test]
    fn addresses_print_in_hexadecimal() {
        assert_eq!(KernelAddr(0x6000_1234).to_string(), "0x60001234");
        assert_eq!(format!("{:016x}", UserAddr(0x10)), "0000000000000010");
    }
}
