//! Measures the time and the memory peak of a program.
//!
//! The kernel includes the memory of the process before execve(2) in the peak of the program (`ru_maxrss` in
//! getrusage(2)). So this bench starts itself again as a small process, like GNU time(1). The small process starts the
//! measured program. The smallest measurable peak is about one megabyte.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::getegid;
use portfwd::lab::Netns;

use super::Cost;

/// The first argument that makes this bench a small process, which only measures one program.
pub const MEASURE: &str = "--measure";

/// Runs a program in a namespace and discards its output. Panics if the program fails.
pub fn run(namespace: &Netns, program: &str, arguments: &[&str]) -> Cost {
    let job = || {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([MEASURE, program]).args(arguments);
        // With `SSH_CONNECTION` set, portfwd refuses a forward of port 22 that takes the user's SSH connection.
        command.env_remove("SSH_CONNECTION");
        command.output().expect("this program starts")
    };
    let output = namespace.run(job).expect("the namespace");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    let mut next = || numbers.next().expect("two numbers");
    Cost { seconds: next(), kilobytes: Some(next()) }
}

/// Runs the program in `arguments` and returns its exit code. Prints the seconds and the memory peak in KiB.
pub fn measure(arguments: &[String]) -> i32 {
    let (program, arguments) = arguments.split_first().expect("a program");
    let mut command = Command::new(program);
    // With `gid`, even of the current group, the standard library uses fork(2). With posix_spawn(3) the child shares
    // all memory of this process for a moment.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).gid(getegid().as_raw());
    let start = Instant::now();
    let status = command.status().expect("the program starts");
    let seconds = start.elapsed().as_secs_f64();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of children").max_rss();
    println!("{seconds} {peak}");
    status.code().unwrap_or(1)
}
