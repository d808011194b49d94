//! The comments of portfwd's rules and map elements in the kernel.
//!
//! A comment contains the set's name, the comment of a forward, and the properties of a network or netmap that the rule
//! alone does not show:
//!
//! ```text
//! web                              a forward, a masquerade or source NAT of the set `web`
//! web: the blog                    a forward with the comment `the blog`
//! web: netmap                      a 1:1 translation
//! web: network docker0 DOCKER      a network with `masquerade`, and the chain of its forwards
//! web: isolate docker0 DOCKER      a network with `isolate`, and the chain of its forwards
//! ```

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use super::{ChainName, IfName, Network, SetName};

/// Marks the rule of a 1:1 translation.
pub const NETMAP: &str = "netmap";
/// Marks the masquerade rule of a network.
pub const NETWORK: &str = "network";
/// Marks the rule that isolates a network.
pub const ISOLATE: &str = "isolate";

/// Returns the comment of a rule or map element: the set's name and, after a colon, the remark.
pub fn format_comment(set: &SetName, remark: Option<&str>) -> String {
    match remark {
        Some(remark) => format!("{set}: {remark}"),
        None => set.to_string(),
    }
}

/// Parses a comment into the set's name and the remark. Inverse of [`format_comment`].
///
/// Returns `None` if portfwd did not write the comment.
pub fn parse_comment(text: &str) -> Option<(SetName, Option<&str>)> {
    let (set, remark) = match text.split_once(": ") {
        Some((set, remark)) => (set, Some(remark)),
        None => (text, None),
    };
    Some((set.parse().ok()?, remark))
}

/// Returns the remark of a network's rule: [`NETWORK`] or [`ISOLATE`], the network's name, its chain.
pub fn format_network(word: &str, network: &Network) -> String {
    format!("{word} {} {}", network.name, network.chain)
}

/// Parses the remark of a network's rule and adds its contents to `networks`. Inverse of [`format_network`].
///
/// Returns `None` if the remark does not describe a network.
pub fn parse_network(
    set: SetName,
    remark: &str,
    subnet: IpNetwork,
    networks: &mut BTreeMap<(SetName, IfName), Network>,
) -> Option<()> {
    let mut words = remark.split(' ');
    let (word, name, chain) = (words.next()?, words.next()?, words.next()?);
    let name = IfName::try_from(name.to_owned()).ok()?;
    let chain: ChainName = chain.parse().ok()?;
    let network = networks.entry((set, name.clone())).or_insert_with(|| Network {
        name,
        subnets: Vec::new(),
        masquerade: false,
        chain,
        isolate: false,
    });
    match word {
        NETWORK => network.masquerade = true,
        ISOLATE => network.isolate = true,
        _ => return None,
    }
    if !network.subnets.contains(&subnet) {
        network.subnets.push(subnet);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_both_ways() {
        let set = SetName::cli();
        for remark in [None, Some("the blog"), Some("a: b"), Some(NETMAP)] {
            assert_eq!(parse_comment(&format_comment(&set, remark)), Some((set.clone(), remark)));
        }
        for foreign in ["", "two words", ": x"] {
            assert_eq!(parse_comment(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn networks_go_both_ways() {
        let network = Network {
            name: "docker0".parse().expect("name"),
            subnets: vec!["172.17.0.0/16".parse().expect("subnet")],
            masquerade: true,
            chain: ChainName::docker(),
            isolate: true,
        };
        let mut read = BTreeMap::new();
        for word in [NETWORK, ISOLATE] {
            let remark = format_network(word, &network);
            assert_eq!(parse_network(SetName::cli(), &remark, network.subnets[0], &mut read), Some(()));
        }
        assert_eq!(read.into_values().collect::<Vec<_>>(), [network]);
    }
}
