//! Links libraries into the program that would be loaded at each start otherwise, where the linker has them as archives: each
//! costs several per cent of what a small command takes.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    // They stand before what asks for the shared ones, which nobody needs then: Rust for libgcc_s, because it unwinds (and that
    // library asks the processor besides what it can, each question of which is a trap in a virtual machine); nftnl-sys for
    // libnftnl. Of libmnl Debian has no archive.
    for library in ["gcc_eh", "nftnl"] {
        if is_there(&format!("lib{library}.a")) {
            println!("cargo::rustc-link-lib=static:-bundle={library}");
        }
    }
}

/// Whether the linker has a library of its own.
fn is_there(library: &str) -> bool {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let asked = Command::new(linker).arg(format!("-print-file-name={library}")).output();
    // Of one that it does not have it gives the name back.
    asked.is_ok_and(|asked| str::from_utf8(&asked.stdout).is_ok_and(|path| Path::new(path).is_absolute()))
}
