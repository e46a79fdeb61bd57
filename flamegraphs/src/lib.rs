//! Stacks in, pictures and profile files out.
