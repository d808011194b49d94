//! The integration tests, one binary.

/// The iptables backend where something goes wrong: kills, refusals, locks, hostile text and surroundings.
mod accidents;
/// The units for systemd, booted.
mod boot;
/// The command line against rule-set files, without privileges.
mod cli;
/// Changes that are taken back unless they are confirmed: at a terminal, without one, with nobody left, after a reboot.
mod confirm;
/// Connections that follow the rules, and those that are none of their business.
mod connections;
/// Containers as Docker wires them, what they publish, and their processes.
mod containers;
/// What must not cost more again: messages, bytes and system calls, counted.
mod costs;
/// The examples of the documentation, with real packets.
mod docs;
/// State that survives: losses, damage, many writers.
mod durable;
/// What the audit reads of a host besides its rules.
mod facts;
/// Commands that are killed, or that fail, at one of their system calls.
mod faults;
/// What the audit finds on hosts that have the fault, made for real, and on those that nearly have it.
mod findings;
/// Forwards that would take the port of a socket or the user's ssh connection.
mod guards;
/// The iptables backend on hosts of either variant: packets, other writers, accidents.
mod iptables;
/// What others see of our table: `nft`, message counts, round trips with the kernel.
mod kernel;
/// Standing networks of namespaces: up, down, twice, killed, beside what others made.
mod lab;
/// The page that explains labs, every command of it run.
mod lab_page;
/// Pictures of standing networks, beside what ip-netns(8) and bridge(8) say of them.
mod lab_show;
/// How the code is laid out: arrows between rooms, where unsafe is.
mod layout;
/// Machines of their own for labs: what is in them, what is left, killed anywhere.
mod machine;
/// Random mixtures of rules of several tools: what `audit` reports of a packet is what happens to a real one.
mod mixtures;
/// One more forward among thousands: it costs what changes, and comes out as if all had been looked at.
mod near;
/// Others who have rules in iptables: theirs stay as they are, and a live Docker Engine goes on.
mod neighbours;
/// Random rule sets and random packets against the model's meaning.
#[expect(clippy::print_stdout, reason = "says where its dice began, and how far it came")]
mod oracle;
/// Real packets in namespaces of our own.
mod packet;
/// The rules of other programs, as they lay them out, in the view of an audit.
mod peers;
/// Rules of others, read from the kernel into the one form of audits.
mod reading;
/// What the fuzzers began with and what they found: the same properties, file by file.
mod regressions;
/// Others who commit all the time, in tables of their own and in ours.
mod rivals;
/// Helpers of the others.
mod support;
/// Bridges of Open vSwitch.
mod switch;
/// Switches of the kernel that forwards need: set, guarded, put back.
mod switches;
/// The units for systemd: what they allow is enough.
mod unit_file;
