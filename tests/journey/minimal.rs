//! Makes a host with a wrong prediction smaller, and prints it.

use super::judge::{self, Verdict};
use super::network::{Network, Shot};
use super::rules::Setup;

/// Fails the test with the smallest host that still gives a wrong prediction for a packet.
pub fn fail(network: &mut Network, seed: u64, setup: Setup, shot: Shot) -> ! {
    let mut port = shot.source.port();
    // Each attempt is a connection of its own.
    let mut try_with = |network: &mut Network, setup: &Setup| {
        port = port.checked_add(1).filter(|port| *port < 60_000).unwrap_or(30_000);
        let mut shot = shot;
        shot.source.set_port(port);
        let host = judge::configure(network, setup);
        match judge::send(network, &host, &[shot]).pop() {
            Some(Verdict::Wrong(text)) => Some(text),
            _ => None,
        }
    };
    let Some(mut text) = try_with(network, &setup) else {
        panic!(
            "JOURNEY_SEED={seed} JOURNEYS=1\n{shot:?}\nwrong only together with the other packets\n{}",
            show(&setup)
        );
    };
    let mut setup = setup;
    let mut part = 0;
    while let Some(smaller) = without(&setup, part) {
        match smaller.and_then(|smaller| Some((try_with(network, &smaller)?, smaller))) {
            Some((found, smaller)) => (text, setup) = (found, smaller),
            None => part += 1,
        }
    }
    panic!("JOURNEY_SEED={seed} JOURNEYS=1\n{shot:?}\n{text}\n{}", show(&setup));
}

/// Returns a host without one of its parts: the rules of one program, or one line. Returns `None` after the last part, and
/// `Some(None)` for a part that cannot be left out.
fn without(setup: &Setup, part: usize) -> Option<Option<Setup>> {
    let mut smaller = setup.clone();
    let change = |text: &str, line: usize, is_rule: fn(&str) -> bool| -> Option<String> {
        text.lines().nth(line).filter(|line| is_rule(line))?;
        Some(text.lines().enumerate().filter(|(at, _)| *at != line).map(|(_, line)| format!("{line}\n")).collect())
    };
    let mut rest = match part {
        0 => return Some(smaller.portfwd.take().map(|_| smaller)),
        1 => return Some((!std::mem::take(&mut smaller.nft).is_empty()).then_some(smaller)),
        2 => return Some(smaller.iptables.take().map(|_| smaller)),
        part => part - 3,
    };
    let tables = setup.portfwd.as_ref().map_or(0, |(_, case)| case.tables.len());
    if rest < tables {
        let (_, case) = smaller.portfwd.as_mut()?;
        case.tables.remove(rest);
        return Some((!case.tables.is_empty()).then_some(smaller));
    }
    rest -= tables;
    let lines = setup.nft.lines().count();
    if rest < lines {
        let is_rule = |line: &str| line.starts_with("    ") && !line.contains("type ");
        return Some(change(&setup.nft, rest, is_rule).map(|nft| Setup { nft, ..smaller }));
    }
    rest -= lines;
    if let Some((variant, v4, v6)) = &setup.iptables {
        let is_rule = |line: &str| line.starts_with("-A");
        let lines = v4.lines().count();
        if rest < lines {
            let changed = change(v4, rest, is_rule);
            return Some(changed.map(|v4| Setup { iptables: Some((*variant, v4, v6.clone())), ..smaller }));
        }
        rest -= lines;
        let lines = v6.lines().count();
        if rest < lines {
            let changed = change(v6, rest, is_rule);
            return Some(changed.map(|v6| Setup { iptables: Some((*variant, v4.clone(), v6)), ..smaller }));
        }
        rest -= lines;
    }
    if rest < setup.routing.len() {
        let removed = smaller.routing.remove(rest);
        return Some(removed.contains("rule add").then_some(smaller));
    }
    rest -= setup.routing.len();
    let (_, value) = smaller.settings.get_mut(rest)?;
    let usual = if setup.settings[rest].0.contains("forward") { "1" } else { "0" };
    let changes = *value != usual;
    *value = usual;
    Some(changes.then_some(smaller))
}

fn show(setup: &Setup) -> String {
    let portfwd = setup.portfwd.as_ref().map(|(backend, case)| format!("# portfwd {backend:?}\n{}\n", case.text()));
    let iptables = setup.iptables.as_ref().map(|(variant, v4, v6)| format!("# iptables {variant:?}\n{v4}# IPv6\n{v6}"));
    let settings: Vec<String> = setup
        .settings
        .iter()
        .filter(|(_, value)| *value != "0")
        .map(|(path, value)| format!("{path}={value}"))
        .collect();
    format!(
        "{}# nft\n{}\n{}# ip\n{}\n# sysctl\n{}",
        portfwd.unwrap_or_default(),
        setup.nft,
        iptables.unwrap_or_default(),
        setup.routing.join("\n"),
        settings.join("\n")
    )
}
