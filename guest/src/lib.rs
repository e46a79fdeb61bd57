//! One guest's life: build, launch, control and registry.
