//! A tiny directory that looks like a kernel tree and builds in an instant.

use std::fs;
use std::path::Path;

/// Copies what is asked into .config, but never CONFIG_DROPPED; "builds" in
/// three steps; waits for the file `go` when `wait` is there; fails when `fail` is.
const MAKEFILE: &str = "\
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 5
EXTRAVERSION =
allnoconfig:
\t@echo 'configuring'
\t@grep -v DROPPED $(KCONFIG_ALLCONFIG) > $(O)/.config
\t@mkdir -p $(O)/include/config
\t@echo 6.12.5 > $(O)/include/config/kernel.release
linux:
\t@echo '  CC      init/main.o'
\t@echo $$$$ > $(O)/pid
\t@if [ -e wait ]; then until [ -e go ]; do sleep 0.05; done; fi
\t@echo '  CC      kernel/fork.o'
\t@if [ -e fail ]; then echo 'kernel/fork.c:7:1: error: sad'; exit 1; fi
\t@echo '  LD      linux'
\t@echo kernel >> $(O)/linux
scripts_gdb:
\t@:
";

/// Makes the tree.
pub fn create(tree: &Path) {
    fs::create_dir_all(tree.join("arch/um")).unwrap();
    fs::write(tree.join("Makefile"), MAKEFILE).unwrap();
    fs::write(tree.join("arch/um/Makefile"), "").unwrap();
    fs::write(tree.join("Kconfig"), "").unwrap();
}
