use std::net::IpAddr;

use portfwd::iptables::command::Variant;
use portfwd::lab::Netns;
use portfwd::model::Family;
use portfwd::nft::transaction::Connection;
use portfwd::ruleset::read::nft::read;
use portfwd::ruleset::region::Packet;
use portfwd::ruleset::region::Truth;
use portfwd::ruleset::set::{number_of, number_of_name};
use portfwd::ruleset::table::{Action, Case, Chain, Rewrite, Rule, Ruleset, Table};

use crate::support::feed;

/// Tests that compare all readers of iptables rules.
mod agree;
/// Tests that read rules of iptables-nft from nf_tables.
mod iptables;
/// Tests that read rules of nft(8) from the kernel.
mod nft;
/// Tests that read the text of nft(8).
mod text;

/// Loads rules in a new namespace and reads them.
fn read_after(load: impl FnOnce() + Send) -> Ruleset {
    let namespace = Netns::new().expect("namespace");
    let job = || {
        load();
        read(&mut Connection::open().expect("netlink")).expect("readable")
    };
    namespace.run(job).expect("the namespace")
}

fn load(rules: &str) -> Ruleset {
    read_after(|| feed("nft", &["-f", "-"], rules))
}

fn restore(word: &str, rules: &str) -> Ruleset {
    read_after(|| feed(&format!("{word}-{}-restore", Variant::Nft.name()), &[], rules))
}

fn table<'a>(rules: &'a Ruleset, name: &str) -> &'a Table {
    rules.tables.iter().find(|table| &*table.name == name).unwrap_or_else(|| panic!("{name}: {rules:#?}"))
}

fn chain<'a>(table: &'a Table, name: &str) -> &'a Chain {
    table.chains.named(name).unwrap_or_else(|| panic!("{name}: {table:#?}"))
}

/// Returns the rules of chain `c` in table `t`.
fn rules(all: &Ruleset) -> &[Rule] {
    &chain(table(all, "t"), "c").rules
}

/// Loads a table `t` of a family. The rules must contain a chain `c`.
fn chain_of(family: &str, rules: &str) -> Ruleset {
    load(&format!("table {family} t {{\n{rules}\n}}\n"))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn number(text: &str) -> u128 {
    number_of(address(text))
}

fn name(text: &str) -> u128 {
    number_of_name(text.as_bytes(), 0)
}

fn rewrite_to(target: &str, port: Option<u16>) -> Rewrite {
    let target = address(target);
    Rewrite { addresses: Some((target, target)), ports: port.map(|port| (port, port)), base: None, prefix: None }
}

#[track_caller]
fn only_case(rule: &Rule) -> &Case {
    assert_eq!(rule.cases.len(), 1, "{rule:#?}");
    &rule.cases[0]
}

fn ipv4() -> Packet {
    Packet::new(Family::Ipv4)
}

/// Returns the actions of the first case that matches a packet.
fn actions_for<'a>(rule: &'a Rule, packet: &Packet) -> Option<&'a [Action]> {
    rule.cases.iter().find(|case| case.region.has(packet) == Truth::Yes).map(|case| &*case.actions)
}
