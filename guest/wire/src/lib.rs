//! The frames that the in-guest init and the supervisor exchange.
