use std::collections::BTreeMap;

use super::{BRIDGE, Machine, RED_BLUE, is_bare};
use crate::support::{PORTFWD, privileged, root};

#[test]
fn what_fails_half_way_is_taken_back() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let text = std::fs::read_to_string(root().join(BRIDGE)).expect("readable");
    let unreachable = "[[route]]\nnamespace = \"gray\"\nto = \"203.0.113.0/24\"\nvia = \"198.51.100.1\"\n";
    let broken = machine.file(&format!("name = \"bridge\"\n{text}\n{unreachable}"));
    let said = machine.lab(&["up", &broken]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("cannot make the route 203.0.113.0/24 via 198.51.100.1 in `gray`"), "{said:?}");
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
    // A lab that is up stays as it was.
    machine.ok(&["up", BRIDGE]);
    assert_eq!(machine.lab(&["up", &broken]).code, 1);
    assert_eq!(machine.ok(&["up", BRIDGE]), "bridge: unchanged\n");
    machine.ok(&["down"]);
    // Mounts that the kernel refuses, one after the other.
    let mut failed = 0;
    for when in 1..=8 {
        let inject = format!("inject=mount:error=ENOMEM:when={when}");
        let ours = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "lab", "up", RED_BLUE];
        if machine.run("strace", &ours).code == 0 {
            machine.ok(&["down"]);
        } else {
            failed += 1;
        }
        assert!(is_bare(&machine.traces()), "{when}: {}", machine.traces());
    }
    assert!(failed >= 3, "{failed}");
}

/// The system calls of a command, by their names, and how often one of its threads makes them.
fn calls(machine: &Machine, arguments: &[&str]) -> BTreeMap<String, u32> {
    let log = machine.directory.path().join("calls");
    let log = log.to_string_lossy();
    let said = machine.run("strace", &[&["-f", "-qq", "-o", &log, PORTFWD, "lab"], arguments].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let mut counts: BTreeMap<(String, String), u32> = BTreeMap::new();
    for line in std::fs::read_to_string(&*log).expect("readable").lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((name, _)) = rest.trim_start().split_once('(') else { continue };
        *counts.entry((thread.to_owned(), name.to_owned())).or_default() += 1;
    }
    counts.into_iter().fold(BTreeMap::new(), |mut most, ((_, name), count)| {
        let before = most.entry(name).or_insert(0);
        *before = count.max(*before);
        most
    })
}

#[test]
fn killed_at_any_system_call_down_leaves_no_trace() {
    if !privileged() {
        return;
    }
    let every = std::env::var("KILLS_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(9);
    let machine = Machine::new();
    let mut killed = [0, 0];
    for (index, command) in [["up", BRIDGE], ["down", BRIDGE]].into_iter().enumerate() {
        if index == 1 {
            machine.ok(&["up", BRIDGE]);
        }
        let mut calls = calls(&machine, &command);
        calls.retain(|name, _| !name.starts_with("exit"));
        let points = calls.iter().flat_map(|(name, count)| (1..=*count).map(move |when| (name, when)));
        for (name, when) in points.step_by(every) {
            let place = format!("{command:?} killed at {name} {when}");
            // Every other time it is a lab of which only a part is there.
            if index == 1 || when % 2 == 0 {
                machine.ok(&["up", BRIDGE]);
                if index == 0 {
                    machine.says("ip", &["netns", "del", "blue"]);
                }
            } else {
                machine.lab(&["down", BRIDGE]);
            }
            let inject = format!("inject={name}:signal=KILL:when={when}");
            let ours = ["-f", "-qq", "-o", "/dev/null", "-e", &inject, PORTFWD, "lab"];
            killed[index] += u32::from(machine.run("strace", &[&ours[..], &command].concat()).code != 0);
            let said = machine.lab(&["down", "bridge"]);
            assert!(said.code == 0 || said.stderr.contains("there is no lab"), "{place}: {said:?}");
            assert!(is_bare(&machine.traces()), "{place}: {}", machine.traces());
        }
        machine.lab(&["down", BRIDGE]);
    }
    eprintln!("lab up and down: killed at {killed:?} system calls");
    assert!(killed.iter().all(|count| *count > 10), "{killed:?}");
}

#[test]
fn two_at_once_wait_for_each_other() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4).map(|_| scope.spawn(|| machine.ok(&["up", BRIDGE]))).collect();
        let said: Vec<String> = running.into_iter().map(|one| one.join().expect("no panic")).collect();
        assert_eq!(said.iter().filter(|said| *said != "bridge: unchanged\n").count(), 1, "{said:?}");
    });
    machine.ok(&["down"]);
    assert!(is_bare(&machine.traces()), "{}", machine.traces());
}
