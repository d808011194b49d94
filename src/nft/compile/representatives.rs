//! Selects representative bindings. Except for the elements, the representatives compile to the same program as all
//! bindings.
//!
//! If thousands of forwards exist, `add` does not compile all of them. `add` compiles only the representatives, the new
//! forward, and the forwards whose ports overlap with its ports. The rules, chains and maps of a program depend on a
//! few properties of each binding ([`RuleShape`]), and not on the number of bindings. All other properties affect only
//! elements.

use std::collections::HashSet;

use super::super::element;
use crate::model::{Binding, ChainName, Class, DesiredState, Protocol, SetName, SetRule, Source};

/// The properties of a binding that affect rules, chains and maps. The name of the rule set is one of them, because a
/// rule set may enable IP forwarding.
#[derive(PartialEq, Eq, Hash)]
struct RuleShape<'a> {
    set: &'a SetName,
    class: Class,
    /// A bit mask of the map kinds from [`element::kinds`].
    kinds: u8,
    protocol: Protocol,
    redirect: bool,
    chain: ChainName,
    source: Source,
    hairpin: bool,
    loopback: bool,
    serves_non_loopback: bool,
}

impl<'a> RuleShape<'a> {
    fn new(desired: &DesiredState, owned: &'a SetRule<Binding>) -> Self {
        let rule = &owned.rule;
        Self {
            set: &owned.set,
            class: rule.class(),
            kinds: element::kinds(rule).fold(0, |kinds, kind| kinds | 1 << kind as u8),
            protocol: rule.protocol,
            redirect: rule.to.address.is_none(),
            chain: desired.chain_of(rule),
            source: rule.source,
            hairpin: rule.hairpin,
            loopback: rule.loopback,
            serves_non_loopback: rule.serves_non_loopback(),
        }
    }
}

/// Returns true only if two bindings have the same shape. This check is quick, and may return false for equal shapes.
fn surely_same_shape(one: &SetRule<Binding>, other: &SetRule<Binding>, networks: bool) -> bool {
    let (a, b) = (&one.rule, &other.rule);
    let to = if networks { a.to.address == b.to.address } else { a.to.address.is_some() == b.to.address.is_some() };
    let ports = a.is_exact() && b.is_exact();
    let options = a.source == b.source && a.hairpin == b.hairpin && a.loopback == b.loopback;
    to && ports
        && options
        && a.protocol == b.protocol
        && a.class() == b.class()
        && a.serves_non_loopback() == b.serves_non_loopback()
        && one.set == other.set
}

/// Returns true if two bindings compile to the same rules, chains and maps, except for the elements.
pub fn same_shape(desired: &DesiredState, one: &SetRule<Binding>, other: &SetRule<Binding>) -> bool {
    RuleShape::new(desired, one) == RuleShape::new(desired, other)
}

/// Returns the representatives in `known`, and one binding for each shape that `known` lacks.
pub fn representatives(desired: &DesiredState, known: &[SetRule<Binding>]) -> Vec<SetRule<Binding>> {
    let mut representatives = known.to_vec();
    let mut seen: HashSet<RuleShape<'_>> = known.iter().map(|owned| RuleShape::new(desired, owned)).collect();
    let mut last: Option<&SetRule<Binding>> = None;
    for owned in &desired.bindings {
        if !last.is_some_and(|last| surely_same_shape(last, owned, !desired.networks.is_empty()))
            && seen.insert(RuleShape::new(desired, owned))
        {
            representatives.push(owned.clone());
        }
        last = Some(owned);
    }
    representatives
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::compile;
    use super::*;
    use crate::model::{Forward, Network, RuleSet};
    use crate::nft::program::{Element, Key, Program};

    const LISTEN: [&str; 12] = [
        "",
        "",
        "",
        "192.0.2.1:",
        "192.0.2.2:",
        "127.0.0.1:",
        "[2001:db8::1]:",
        "[2001:db8::2]:",
        "[::1]:",
        "",
        "",
        "",
    ];
    const PORTS: [&str; 8] = ["80", "81", "8000-8009", "8000-8040", "1-65535", "1000-3100", "443,90-91", "82"];
    const TO: [&str; 7] =
        ["10.0.0.1", "10.0.0.1:80", "172.17.0.3", "172.17.0.4:81", "[fd00::1]", "[fd00:17::1]:80", ":80"];
    const SOURCE: [&str; 5] = ["keep", "keep", "masquerade", "192.0.2.9", "192.0.2.10"];

    type Picks = (usize, usize, usize, usize, (u8, bool, bool, bool, u8));

    fn forward((listen, ports, to, source, (from, interface, hairpin, loopback, udp)): &Picks) -> Option<Forward> {
        let listen = format!("{}{}{}", LISTEN[*listen], PORTS[*ports], if *udp == 0 { "/udp" } else { "" });
        let mut forward = Forward::new(listen.parse().ok()?, TO[*to].parse().ok()?);
        forward.source = SOURCE[*source].parse().ok()?;
        forward.from = match from {
            0 => vec!["198.51.100.0/24".parse().ok()?],
            1 => vec!["198.51.0.0/16".parse().ok()?, "2001:db8::/32".parse().ok()?],
            _ => Vec::new(),
        };
        forward.interface = interface.then(|| "eth0".parse().ok()).flatten();
        forward.hairpin = *hairpin;
        forward.loopback = *loopback;
        Some(forward)
    }

    fn desired(picks: &[Picks], networks: bool) -> DesiredState {
        let mut desired = DesiredState::default();
        for (number, some) in picks.chunks(5).enumerate() {
            let mut set = RuleSet::new(format!("set{number}").parse().expect("name"));
            set.forwards = some.iter().filter_map(forward).filter(|forward| forward.bindings().is_ok()).collect();
            if networks && number == 0 {
                let subnets = ["172.17.0.0/16", "fd00:17::/64"].map(|subnet| subnet.parse().expect("subnet")).to_vec();
                let (name, chain) = ("docker0".parse().expect("name"), "DOCKER".parse().expect("name"));
                let network = Network { name, subnets, masquerade: true, chain, isolate: true };
                set.networks.push(network);
            }
            desired.add(&set).expect("valid");
        }
        desired.normalize();
        desired
    }

    /// Compiles a desired state and removes the elements from the program. Keeps the elements in the maps of source
    /// addresses.
    fn frame(desired: &DesiredState) -> Program {
        let mut program = compile(desired).expect("compiles");
        for (name, map) in &mut program.maps {
            if !name.starts_with("sources-") {
                map.elements = BTreeMap::<Key, Element>::new();
            }
        }
        program
    }

    proptest! {
        #[test]
        fn representatives_compile_to_the_same_rules_as_all_bindings(
            picks in proptest::collection::vec(
                (0..LISTEN.len(), 0..PORTS.len(), 0..TO.len(), 0..SOURCE.len(),
                 (0u8..6, any::<bool>(), proptest::bool::weighted(0.8), proptest::bool::weighted(0.2), 0u8..4)),
                0..40,
            ),
            networks in any::<bool>(),
            half in any::<proptest::sample::Index>(),
        ) {
            let all = desired(&picks, networks);
            let mut few = all.clone();
            few.bindings = representatives(&all, &[]);
            prop_assert_eq!(frame(&few), frame(&all));
            prop_assert_eq!(few.forwarding(), all.forwarding());
            // The representatives of the first bindings are known. The test adds the remaining bindings.
            let known = representatives(&DesiredState { bindings: all.bindings[..half.index(all.bindings.len() + 1)].to_vec(), ..all.clone() }, &[]);
            few.bindings = representatives(&all, &known);
            prop_assert!(few.bindings.starts_with(&known));
            few.normalize();
            prop_assert_eq!(frame(&few), frame(&all));
            // The test replaces one rule set. The representatives of all other rule sets are known, and the new
            // bindings of the replaced rule set are added.
            let replaced = |owned: &SetRule<Binding>| owned.set.as_str() == "set0";
            let mut known = representatives(&all, &[]);
            let mut after = all.clone();
            let keep = half.index(all.bindings.len() + 1);
            after.bindings = all.bindings.iter().enumerate().filter(|(at, owned)| !replaced(owned) || *at < keep).map(|(_, owned)| owned.clone()).collect();
            known.retain(|owned| !replaced(owned) || after.bindings.contains(owned));
            few.bindings = after.bindings.iter().filter(|owned| replaced(owned) || known.contains(owned)).cloned().collect();
            prop_assert_eq!(frame(&few), frame(&after));
            few.bindings = representatives(&few, &known);
            few.normalize();
            prop_assert_eq!(frame(&few), frame(&after));
        }
    }
}
