//! A program lifted back into the model; the other direction of [`super::compile`].
//!
//! What cannot be lifted is counted as foreign: somebody else put it into our table.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::compile::{FILTER_FORWARD, NAT_POSTROUTING};
use super::expr::{Cmp, Expr, Header, MetaKey};
use super::map::{self, MapId};
use super::program::{Counter, Program, Rule};
use crate::model::{Asked, Binding, ChainName, IfName, Masquerade, Network, Owned, PortMap, PortRange, SetName};

/// What a table means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lifted {
    /// The model; its settings are empty, for the kernel does not hold them.
    pub asked: Asked,
    /// What each binding counted, in the order of [`Asked::bindings`].
    pub counters: Vec<Counter>,
    /// What is in our table and cannot be ours, by name.
    pub foreign: Vec<String>,
}

/// Lifts a program.
pub fn lift(program: &Program) -> Lifted {
    let mut lifted = Lifted::default();
    let mut found: Vec<(Owned<Binding>, Counter)> = Vec::new();
    for (name, map) in &program.maps {
        let Some(id) = name.parse::<MapId>().ok().filter(|id| id.shape() == map.shape) else {
            lifted.foreign.push(format!("map {name}"));
            continue;
        };
        let mut bindings = Vec::with_capacity(map.elements.len());
        for (key, element) in &map.elements {
            match map::read(&id, key, element) {
                Some(binding) => bindings.push((binding, element.counter)),
                None => lifted.foreign.push(format!("an element of map {name}")),
            }
        }
        found.extend(if id.kind == map::Kind::Shifted { join(bindings) } else { bindings });
    }
    found.sort_by(|(a, _), (b, _)| (&a.set, a.rule.sort_key()).cmp(&(&b.set, b.rule.sort_key())));
    (lifted.asked.bindings, lifted.counters) = found.into_iter().unzip();
    networks(program, &mut lifted);
    lifted.asked.normalize();
    lifted
}

/// Joins the ports of shifted ranges: neighbours that are sent on with the same offset are one range.
///
/// Elements come in the order of their keys, in which the ports of one range are neighbours.
fn join(ports: Vec<(Owned<Binding>, Counter)>) -> Vec<(Owned<Binding>, Counter)> {
    let mut joined: Vec<(Owned<Binding>, Counter)> = Vec::new();
    for (mut port, counter) in ports {
        let PortMap::One(to) = port.rule.to.port else { continue };
        port.rule.to.port = PortMap::Shift(to);
        if let Some((last, sum)) = joined.last_mut()
            && let Some(range) = continued(last, &port, to)
        {
            last.rule.ports = range;
            sum.packets += counter.packets;
            sum.bytes += counter.bytes;
        } else {
            joined.push((port, counter));
        }
    }
    joined
}

/// The range that `next` makes of `last`, if it continues it.
fn continued(last: &Owned<Binding>, next: &Owned<Binding>, to: u16) -> Option<PortRange> {
    let (a, b) = (&last.rule, &next.rule);
    let port = b.ports.first();
    let neighbours = a.ports.last().checked_add(1)? == port && a.target_port(a.ports.last()).checked_add(1)? == to;
    let same = last.set == next.set
        && a.address == b.address
        && a.interface == b.interface
        && a.from == b.from
        && a.protocol == b.protocol
        && a.to.address == b.to.address
        && a.comment == b.comment;
    if neighbours && same { PortRange::new(a.ports.first(), port) } else { None }
}

/// A rule that stands for a network or a masquerade.
#[derive(Default)]
struct Source {
    subnet: Option<IpNetwork>,
    leaves: Option<IfName>,
    not_leaves: Option<IfName>,
}

fn networks(program: &Program, lifted: &mut Lifted) {
    let mut networks: BTreeMap<(SetName, IfName), Network> = BTreeMap::new();
    for chain in [NAT_POSTROUTING, FILTER_FORWARD] {
        for rule in program.chains.get(chain).map(|chain| chain.rules.as_slice()).unwrap_or_default() {
            // Rules of our own making that no set asked for have no comment.
            let Some(comment) = &rule.comment else { continue };
            if read_rule(rule, comment, &mut networks, &mut lifted.asked.masquerades).is_none() {
                lifted.foreign.push(format!("rule \"{comment}\" of chain {chain}"));
            }
        }
    }
    lifted.asked.networks = networks.into_iter().map(|((set, _), rule)| Owned { set, rule }).collect();
}

fn read_rule(
    rule: &Rule,
    comment: &str,
    networks: &mut BTreeMap<(SetName, IfName), Network>,
    masquerades: &mut Vec<Owned<Masquerade>>,
) -> Option<()> {
    let (set, remark) = map::read_comment(comment)?;
    let source = read_source(rule)?;
    let Some(remark) = remark else {
        masquerades.push(Owned { set, rule: Masquerade { from: source.subnet, out: source.leaves } });
        return Some(());
    };
    let mut words = remark.split(' ');
    let (word, name, chain) = (words.next()?, words.next()?, words.next()?);
    let name: IfName = name.parse().ok()?;
    let chain: ChainName = chain.parse().ok()?;
    let network = networks.entry((set, name.clone())).or_insert_with(|| Network {
        name,
        subnets: Vec::new(),
        masquerade: false,
        chain,
        isolate: false,
    });
    match word {
        super::compile::NETWORK => network.masquerade = true,
        super::compile::ISOLATE => network.isolate = true,
        _ => return None,
    }
    let subnet = source.subnet?;
    if !network.subnets.contains(&subnet) {
        network.subnets.push(subnet);
    }
    Some(())
}

/// Reads the network and the interfaces that a rule compares with.
fn read_source(rule: &Rule) -> Option<Source> {
    let mut source = Source::default();
    let mut exprs = rule.exprs.iter().peekable();
    while let Some(expr) = exprs.next() {
        match expr {
            Expr::Meta(meta) if meta.key == MetaKey::OifName => {
                let Some(Expr::Cmp(cmp)) = exprs.next() else { return None };
                let name = IfName::from_bytes(&cmp.data).ok();
                if cmp.equal { source.leaves = name } else { source.not_leaves = name }
            }
            Expr::Meta(meta) if meta.key == MetaKey::NfProto => {
                let Some(Expr::Cmp(cmp)) = exprs.next() else { return None };
                source.subnet = everything(cmp);
            }
            Expr::Payload(payload) if payload.header == Header::Network => {
                let full = payload.length * 8;
                let length = match exprs.peek() {
                    Some(Expr::Bitwise(bitwise)) => bitwise.mask.iter().map(|byte| byte.count_ones()).sum(),
                    _ => full,
                };
                if length != full {
                    exprs.next();
                }
                let Some(Expr::Cmp(cmp)) = exprs.next() else { return None };
                source.subnet = Some(IpNetwork::new(address(&cmp.data)?, u8::try_from(length).ok()?).ok()?);
            }
            _ => {}
        }
    }
    Some(source)
}

/// The network that holds every address of the family that `meta nfproto` was compared with.
fn everything(family: &Cmp) -> Option<IpNetwork> {
    match family.data.as_slice() {
        [2] => IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0).ok(),
        [10] => IpNetwork::new(Ipv6Addr::UNSPECIFIED.into(), 0).ok(),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Forward, RuleSet};
    use crate::nft::compile::compile;

    #[test]
    fn compile_then_lift_gives_the_model_back() {
        let mut set = RuleSet::new("web".parse().expect("name"));
        for (listen, to) in [
            ("8080", "172.17.0.3:80"),
            ("8080/udp", "172.17.0.3:80"),
            ("192.0.2.1:53/udp", "10.0.0.2"),
            ("[2001:db8::1]:8000-8010", "fd00::2"),
            ("8000-8010", "10.0.0.2:9000-9010"),
            ("8011-8020", "10.0.0.2:80"),
            ("9000-9100", "172.17.0.9"),
            ("80", ":8080"),
            ("81-90", ":8081-8090"),
        ] {
            let mut forward = Forward::new(listen.parse().expect(listen), to.parse().expect(to));
            set.forwards.push(forward.clone());
            forward.interface = Some("eth0".parse().expect("name"));
            forward.comment = Some("why: because".parse().expect("comment"));
            if listen.starts_with("80") {
                forward.from = vec!["10.0.0.0/8".parse().expect("prefix"), "10.1.0.0/16".parse().expect("prefix")];
            }
            set.forwards.push(forward);
        }
        for (name, masquerade, isolate) in [("docker0", true, false), ("br1", false, true), ("br2", true, true)] {
            set.networks.push(Network {
                name: name.parse().expect("name"),
                subnets: vec!["172.17.0.0/16".parse().expect("subnet"), "fd00:17::/64".parse().expect("subnet")],
                masquerade,
                chain: ChainName::docker(),
                isolate,
            });
        }
        let out: IfName = "eth0".parse().expect("name");
        for (from, out) in [
            (Some("10.0.0.0/24"), Some(out.clone())),
            (Some("0.0.0.0/0"), None),
            (Some("10.0.0.7/32"), None),
            (None, Some(out)),
        ] {
            set.masquerades.push(Masquerade { from: from.map(|from| from.parse().expect("prefix")), out });
        }
        let mut asked = Asked::default();
        asked.add(&set).expect("valid");
        let lifted = lift(&compile(&asked).expect("compiles"));
        asked.normalize();
        asked.settings.clear();
        assert_eq!(lifted.foreign, Vec::<String>::new());
        assert_eq!(lifted.asked, asked);
    }

    #[test]
    fn what_is_not_ours_is_foreign() {
        let mut program = Program { table: true, ..Program::default() };
        let shape = MapId::of(
            &Forward::new("80".parse().expect("listen"), "10.0.0.1".parse().expect("to")).bindings().expect("valid")[0],
            ChainName::forwards(),
        )
        .shape();
        for name in ["blocked", "ip-ranges"] {
            let map = crate::nft::program::Map { shape: shape.clone(), elements: BTreeMap::new() };
            program.maps.insert(name.into(), map);
        }
        assert_eq!(lift(&program).foreign, ["map blocked", "map ip-ranges"]);
    }
}
