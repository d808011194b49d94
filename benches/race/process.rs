//! Measures the time and the memory peak of a program.
//!
//! The kernel includes the memory of the process before execve(2) in the peak of the program (`ru_maxrss` in getrusage(2)).
//! So this program starts itself again as a small process, which starts the measured program, like GNU time(1). The smallest
//! measurable peak is about one megabyte.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::getegid;
use portfwd::lab::Netns;

use super::Cost;

/// The first argument of this program if it runs as the small process.
pub const MEASURE: &str = "--measure";

/// Runs a program in a namespace and discards its output. The program must succeed.
pub fn run(namespace: &Netns, program: &str, arguments: &[&str]) -> Cost {
    let job = || {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([MEASURE, program]).args(arguments);
        // Rule sets of benches may forward port 22, and portfwd protects the user's ssh connection.
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

/// Runs the program in `arguments`, prints its seconds and its memory peak in KiB, and returns its exit code.
pub fn measure(arguments: &[String]) -> i32 {
    let (program, arguments) = arguments.split_first().expect("a program");
    let mut command = Command::new(program);
    // Setting the group, to the same one, makes the standard library use fork(2). With posix_spawn(3) the child shares all
    // of this process's memory for a moment.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).gid(getegid().as_raw());
    let start = Instant::now();
    let status = command.status().expect("the program starts");
    let seconds = start.elapsed().as_secs_f64();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of children").max_rss();
    println!("{seconds} {peak}");
    status.code().unwrap_or(1)
}
