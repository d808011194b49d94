//! A program's time and the peak of its memory.
//!
//! The kernel counts what a process was before it executed a program into that program's peak (`ru_maxrss` in getrusage(2)), so
//! whoever has much memory cannot measure who has little. Therefore this program is started again as one that does nothing but
//! start the other, wait for it, and say what it took; that is also what time(1) of GNU does. What such a start leaves at least is
//! a good megabyte.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::getegid;
use portfwd::lab::Netns;

use super::Cost;

/// What this program's first argument is where it is to start another.
pub const MEASURE: &str = "--measure";

/// What a program is started with besides its arguments.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'a> {
    /// What it finds in its environment, beside what is in ours.
    pub environment: &'a [(&'a str, &'a str)],
    /// What it reads from its standard input.
    pub input: &'a str,
}

/// Runs a program in a namespace, which must succeed. What it prints goes nowhere.
pub fn run(namespace: &Netns, program: &str, arguments: &[&str]) -> Cost {
    run_with(namespace, program, arguments, Start::default())
}

/// The same with an environment and an input.
pub fn run_with(namespace: &Netns, program: &str, arguments: &[&str], start: Start<'_>) -> Cost {
    let job = || {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([MEASURE, program]).args(arguments).envs(start.environment.iter().copied());
        // Whoever runs us over ssh may have forwards of port 22 in a namespace of ours.
        command.env_remove("SSH_CONNECTION");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("this program starts");
        let written = child.stdin.take().map(|mut input| input.write_all(start.input.as_bytes()));
        // Who reads nothing may be gone by now.
        drop(written);
        child.wait_with_output().expect("its end")
    };
    let output = namespace.run(job).expect("the namespace");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    let mut next = || numbers.next().expect("two numbers");
    Cost { seconds: next(), kilobytes: Some(next()) }
}

/// Runs the program that `arguments` name and prints its seconds and its peak of memory in KiB. Gives its exit code.
pub fn measure(arguments: &[String]) -> i32 {
    let (program, arguments) = arguments.split_first().expect("a program");
    let mut command = Command::new(program);
    // The group that it has anyway: the standard library then forks, and of what we are the child has little, whereas in
    // posix_spawn(3) it is for a moment all that we are.
    command.args(arguments).stdout(Stdio::null()).gid(getegid().as_raw());
    let start = Instant::now();
    let status = command.status().expect("the program starts");
    let seconds = start.elapsed().as_secs_f64();
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage of children").max_rss();
    println!("{seconds} {peak}");
    status.code().unwrap_or(1)
}
