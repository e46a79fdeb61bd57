//! GDB remote serial protocol on top of guest control and kernel views.
