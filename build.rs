//! How the program is linked, so that it starts soon.
//!
//! It has a fixed place in memory, as programs in Go have by default: otherwise seven thousand addresses would be put right at
//! each start, and every page that has one copied. The places of the libraries, the heap and the stack are random either way.
//! Who packages this program, and wants its own place to be random too, sets `PORTFWD_PIE`.
//!
//! These libraries are a part of it, where the linker has them in that form, in the place of one that is loaded:
//!
//! - gcc's unwinder, in the place of libgcc_s, which Rust would load, and which besides asks the processor what it can; of a
//!   virtual machine's that costs a trap a question.
//! - libnftnl, of whose functions we call one in eight; every call between all of them would be looked up each time. Who
//!   packages this program, and wants that library to be replaced without it, sets `LIBNFTNL_DYNAMIC`.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBNFTNL_DYNAMIC");
    println!("cargo::rerun-if-env-changed=PORTFWD_PIE");
    let target = |what: &str| env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    if env::var_os("PORTFWD_PIE").is_none() {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    // Before those who ask for these libraries in their other form, which nobody needs then.
    for (name, wanted) in [("gcc_eh", true), ("nftnl", env::var_os("LIBNFTNL_DYNAMIC").is_none())] {
        if wanted && is_there(&format!("lib{name}.a")) {
            println!("cargo::rustc-link-lib=static:-bundle={name}");
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
