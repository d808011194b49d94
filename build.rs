//! Links gcc's unwinder into the program, in the place of the library of the same content that Rust would have loaded at each
//! start: libgcc_s, which besides asks the processor what it can, and of a virtual machine's that costs a trap a question.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" && is_there("libgcc_eh.a") {
        // Before Rust's own libraries, and so before they ask for libgcc_s, which nobody needs then.
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}

/// Whether the linker has a library of its own.
fn is_there(library: &str) -> bool {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let asked = Command::new(linker).arg(format!("-print-file-name={library}")).output();
    // Of one that it does not have it gives the name back.
    asked.is_ok_and(|asked| str::from_utf8(&asked.stdout).is_ok_and(|path| Path::new(path).is_absolute()))
}
