//! Reads a Linux kernel's memory with the help of its own DWARF.
