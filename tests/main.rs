//! The integration tests of portfwd, in one binary.

/// Faults of the iptables backend: kills, refusals, locks, hostile text and hostile environments.
mod accidents;
/// Tests of the systemd units with a booted systemd.
mod boot;
/// The `check` command and usage errors, without privileges.
mod cli;
/// Rollback of unconfirmed changes: with a terminal, without one, without a watcher, after a reboot.
mod confirm;
/// Tracked connections that a change ends, and connections that it must not touch.
mod connections;
/// Containers with Docker's wiring: networks, published ports and processes.
mod containers;
/// Upper limits for messages, bytes and system calls.
mod costs;
/// The examples of the documentation, run with real packets.
mod docs;
/// The state file: loss, damage and concurrent writers.
mod durable;
/// `audit` of the rule sets in `rules/`, with each backend.
mod examples;
/// `portfwd explain`: the answer's path, the verdict line, what could not be read.
mod explain;
/// The host facts that the audit reads: links, routes, sockets, sysctls, connections.
mod facts;
/// Commands that are killed, or that fail, at one of their system calls.
mod faults;
/// The findings of the audit. Each is tested on a host with the fault and on a similar host without the fault.
mod findings;
/// Forwards that conflict with a listening socket or with the user's ssh connection.
mod guards;
/// The iptables backend with both variants: packets, foreign writers, drift.
mod iptables;
/// Random hosts and packets: `explain` predicts each packet and its answer, and the kernel decides.
#[expect(clippy::print_stdout, reason = "prints the seed and the shares")]
mod journey;
/// Table `inet portfwd` in the kernel: `nft` output, message counts, round trips.
mod kernel;
/// Labs: `up`, `down`, repeated, killed, and beside foreign objects.
mod lab;
/// Runs each command of the page `docs/lab.md` and compares the output.
mod lab_page;
/// `lab show`, compared with the output of ip(8) and bridge(8).
mod lab_show;
/// The structure of the code: imports between folders, and the only file with unsafe code.
mod layout;
/// Isolated machines for lab tests: run a command, list leftovers, kill at system calls.
mod machine;
/// Random mixtures of rules from several tools: `audit` predicts where each real packet goes.
mod mixtures;
/// `portfwd add` on a host with thousands of forwards. A partial load gives the same result as a full load.
mod near;
/// portfwd beside other programs: foreign iptables rules stay unchanged, and a live Docker Engine keeps working.
mod neighbours;
/// Random rule sets and random packets, compared with [`portfwd::model::meaning`].
#[expect(clippy::print_stdout, reason = "prints the seed and the progress")]
mod oracle;
/// Real packets through network namespaces.
mod packet;
/// Recorded rules of Docker, Podman, Kubernetes and others, as `audit` lists them.
mod peers;
/// Foreign rules, as the audit reads them from the kernel.
mod reading;
/// The saved inputs of the fuzz targets, as ordinary tests.
mod regressions;
/// Programs that commit without a pause, in a foreign table and in `inet portfwd`.
mod rivals;
/// The states of `list`: live, ineffective, missing and foreign.
mod states;
/// Helpers for the other test modules.
mod support;
/// Open vSwitch bridges of labs.
mod switch;
/// Sysctls that forwards need: set, guarded and restored.
mod switches;
/// The systemd units: their sandbox allows everything that `portfwd restore` needs.
mod unit_file;
