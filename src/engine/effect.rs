//! Finds forwards that are in the live rules, but have no effect: the table is dormant, a chain lacks a rule, or the kernel
//! does not forward packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Live;
use crate::model::{Binding, DesiredState, Family, Network, Observed, SetRule};
use crate::nft::compile::{NAT_OUTPUT, NAT_PREROUTING, compile, representatives, same_shape};
use crate::nft::program::{Chain, Program};
use crate::sys::{rtnetlink::Rtnetlink, sysctl};

/// The reasons that live forwards have no effect.
#[derive(Debug, Default)]
pub struct Obstacles {
    /// The reason for all rules.
    all: Option<String>,
    /// The bindings whose rules are missing: one binding of each shape, with the reason.
    shapes: Vec<(SetRule<Binding>, String)>,
    /// The chains of table `inet portfwd` that lack rules, each with a description of the fault.
    pub damaged_chains: BTreeMap<String, String>,
    /// The families whose packets the kernel does not forward.
    unforwarded: Vec<Family>,
    /// The addresses of this host. Packets to these addresses need no forwarding.
    local: BTreeSet<IpAddr>,
}

impl Obstacles {
    /// Compares the live rules with the rules that the live forwards need, and reads the sysctls.
    pub fn of(live: &Live, lifted: &Observed) -> Self {
        let mut obstacles = Self::default();
        let bindings = &lifted.desired.bindings;
        if let Live::Nft { program, .. } = live {
            obstacles.all = program.dormant.then(|| "table inet portfwd is dormant".to_owned());
            obstacles.find_missing_rules(program, &lifted.desired);
        }
        let forwarded = sysctl::forwarded().unwrap_or_else(|_| Family::ALL.into());
        obstacles.unforwarded = Family::ALL.into_iter().filter(|family| !forwarded.contains(family)).collect();
        obstacles.unforwarded.retain(|family| bindings.iter().any(|owned| owned.rule.family == *family));
        if let (false, Ok(kernel)) = (obstacles.unforwarded.is_empty(), Rtnetlink::open()) {
            let addresses = obstacles.unforwarded.iter().filter_map(|family| kernel.addresses(*family).ok());
            let addresses = addresses.flat_map(|dump| dump.objects).map(|address| address.own.ip());
            obstacles.local = addresses.collect();
        }
        obstacles
    }

    fn find_missing_rules(&mut self, program: &Program, live: &DesiredState) {
        let bindings = representatives(live, &[]);
        // The rules of networks have rows of their own.
        let plain = |owned: &SetRule<Network>| {
            let rule = Network { masquerade: false, isolate: false, ..owned.rule.clone() };
            SetRule { set: owned.set.clone(), rule }
        };
        let networks: Vec<SetRule<Network>> = live.networks.iter().map(plain).collect();
        let with = |bindings: Vec<SetRule<Binding>>| {
            let (networks, settings) = (networks.clone(), live.settings.clone());
            DesiredState { bindings, networks, settings, ..DesiredState::default() }
        };
        let Ok(all) = compile(&with(bindings.clone())) else { return };
        let damage = |(name, chain): (&String, &Chain)| Some((name.clone(), missing(program, name, chain)?));
        self.damaged_chains = all.chains.iter().filter_map(damage).collect();
        if self.damaged_chains.is_empty() {
            return;
        }
        for owned in bindings {
            let hook = if owned.rule.serves_non_loopback() { NAT_PREROUTING } else { NAT_OUTPUT };
            let Ok(own) = compile(&with(vec![owned.clone()])) else { continue };
            let reason = own.chains.into_iter().find_map(|(name, mut chain)| {
                if chain.base.is_some() && name != hook {
                    return None;
                }
                // The rules of one binding can differ from the rules of several.
                let shared = all.chains.get(&name)?;
                chain.rules.retain(|rule| shared.rules.contains(rule));
                missing(program, &name, &chain)
            });
            self.shapes.extend(reason.map(|reason| (owned, reason)));
        }
    }

    /// Returns the reason that all rules have no effect.
    pub fn of_all(&self) -> Option<&str> {
        self.all.as_deref()
    }

    /// Returns the reason that a live binding has no effect. `live` is the live state that contains the binding.
    pub fn of_binding(&self, live: &DesiredState, owned: &SetRule<Binding>) -> Option<&str> {
        let of_shape = || self.shapes.iter().find(|(shape, _)| same_shape(live, shape, owned));
        let reason = self.of_all().or_else(|| of_shape().map(|(_, reason)| reason.as_str()));
        reason.or_else(|| {
            // Packets of this host need no forwarding.
            let target = owned.rule.to.address.filter(|_| owned.rule.serves_non_loopback())?;
            let is_local = target.is_loopback() || self.local.contains(&target);
            let family = Family::of_address(target);
            (!is_local && self.unforwarded.contains(&family)).then_some(match family {
                Family::Ipv4 => "net.ipv4.ip_forward is 0",
                Family::Ipv6 => "net.ipv6.conf.all.forwarding is 0",
            })
        })
    }
}

/// Returns a text about a chain that is not at its hook or lacks a rule. Returns `None` if the live chain is complete.
fn missing(program: &Program, name: &str, wanted: &Chain) -> Option<String> {
    let Some(chain) = program.chains.get(name) else { return Some(format!("chain {name} does not exist")) };
    let hook = |chain: &Chain| chain.base.as_ref().map(|base| (base.chain_type, base.hook));
    if hook(chain) != hook(wanted) {
        return Some(format!("chain {name} has another hook"));
    }
    let lacks = wanted.rules.iter().any(|rule| !chain.rules.contains(rule));
    lacks.then(|| match chain.rules.is_empty() {
        true => format!("chain {name} is empty"),
        false => format!("chain {name} lacks a rule"),
    })
}
