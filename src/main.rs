//! Arguments in, exit code out.
//!
//! With glibc it begins at C's `main`. Before a `main` of Rust's the standard library reads `/proc/self/maps` for where the stack
//! ends, to say so where that is passed, and `add` takes a twentieth longer with it (Linux 6.18, measured). Without, whoever passes
//! the end of the stack gets SIGSEGV and no message, where it was a message and SIGABRT, and a panic does not call its thread
//! `main`. All else that comes before a `main` of Rust's, and after it, is done here.
#![cfg_attr(all(target_env = "gnu", not(test)), no_main)]

use std::io;

fn run() -> u8 {
    portfwd::cli::main(std::env::args_os(), &mut io::stdout().lock(), &mut io::stderr())
}

#[cfg(any(not(target_env = "gnu"), test))]
fn main() -> std::process::ExitCode {
    run().into()
}

#[cfg(all(target_env = "gnu", not(test)))]
mod start {
    #![expect(unsafe_code, reason = "a symbol that the linker asks for, and signal(2)")]

    use std::os::fd::IntoRawFd;
    use std::panic::catch_unwind;
    use std::process::{abort, exit};

    use nix::fcntl::{OFlag, open};
    use nix::sys::signal::{SigHandler, Signal, signal};
    use nix::sys::stat::Mode;
    use rustix::io::{Errno, fcntl_getfd};
    use rustix::stdio::{stderr, stdin, stdout};

    /// Where glibc begins. Arguments and environment it has given to the standard library before.
    // SAFETY: there is no other symbol of this name, and it is called as C calls it, without what is not looked at.
    #[unsafe(no_mangle)]
    extern "C" fn main() -> i32 {
        open_standard_files();
        // SAFETY: no function is called when it comes, and there are no other threads.
        let ignored = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
        debug_assert!(ignored.is_ok());
        // A panic has told what it is about; programs of Rust's end with 101 after one.
        exit(catch_unwind(super::run).map_or(101, i32::from))
    }

    /// Has no file that is opened later get the number of a standard file that is closed, and with it what is printed there; nor
    /// one of a program that is started.
    fn open_standard_files() {
        for file in [stdin(), stdout(), stderr()] {
            if fcntl_getfd(file) == Err(Errno::BADF) {
                // It gets the smallest number that is free.
                let opened = open("/dev/null", OFlag::O_RDWR, Mode::empty());
                let _: i32 = opened.unwrap_or_else(|_| abort()).into_raw_fd();
            }
        }
    }
}
