//! NAT during a walk: new addresses for the first packet of a connection, and the original ones for an answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Reply, Step, Walk};
use crate::model::Family;
use crate::ruleset::region::{DST_NAT, DST_NAT_DONE, Field, LOCAL, SRC_NAT};
use crate::ruleset::set::{address_of, number_of};
use crate::ruleset::simulate::chains::{self, Which};
use crate::ruleset::simulate::trace::{Guess, Part, Stage};
use crate::ruleset::table::{Hook, Rewrite};
use crate::ruleset::view::Translation;

/// The protocols with ports that NAT rewrites: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u128; 5] = [6, 17, 33, 132, 136];

impl<'a> Walk<'_, 'a> {
    /// Evaluates the NAT chains.
    pub(super) fn nat(&mut self, hook: Hook) -> Step<'a> {
        let behind = Which::Filter(chains::AFTER_SNAT);
        let of_sources = matches!(hook, Hook::Input | Hook::Postrouting);
        let skipped = of_sources && !self.sources && !self.simulator.tracer.is_asked(self.packet.family, hook, &behind);
        if !self.tracked || skipped {
            return Ok(());
        }
        if let Some(reply) = self.reply {
            self.back(hook, reply);
            return Ok(());
        }
        let Some((what, to, _)) = self.rules(hook, Part::Nat, &Which::Nat)? else { return Ok(()) };
        let new = match what {
            Translation::Dnat | Translation::Redirect => self.rewrite_destination(hook, what, &to),
            Translation::Snat | Translation::Masquerade => self.rewrite_source(what, &to),
        };
        if let Some(Stage::Rules { rewritten, .. }) = self.stages.last_mut() {
            *rewritten = Some(new);
        }
        Ok(())
    }

    /// Sets the kinds of the addresses if they are known.
    pub(super) fn kinds(&mut self) {
        for (kind, field) in [(Field::DestinationKind, Field::Destination), (Field::SourceKind, Field::Source)] {
            let address = self.packet.get(field);
            let known = address.and_then(|address| self.simulator.kind(self.packet.family, address));
            if known.is_some() {
                self.packet.set(kind, known);
            }
        }
    }

    /// Puts an address of the connection back into an answer: `nf_nat_packet` in net/netfilter/nf_nat_core.c.
    fn back(&mut self, hook: Hook, reply: Reply) {
        let of_sources = matches!(hook, Hook::Input | Hook::Postrouting);
        let (bit, (address, port), fields) = match of_sources {
            true => (DST_NAT, reply.listen, (Field::Source, Field::SourcePort)),
            false => (SRC_NAT, reply.client, (Field::Destination, Field::Port)),
        };
        if self.packet.get(Field::Status).is_none_or(|status| status & bit == 0) {
            return;
        }
        self.packet.set(fields.0, address);
        self.packet.set(fields.1, port);
        let kind = if of_sources { Field::SourceKind } else { Field::DestinationKind };
        self.packet.set(kind, None);
        self.kinds();
        let address = address.and_then(|address| address_of(address, self.packet.family));
        self.stages.push(Stage::Back { hook, to: (address, port.and_then(|port| u16::try_from(port).ok())) });
    }

    fn rewrite_destination(&mut self, hook: Hook, what: Translation, to: &Rewrite) -> (Option<IpAddr>, Option<u16>) {
        let family = self.packet.family;
        let (address, port) = (self.packet.get(Field::Destination), self.packet.get(Field::Port));
        let new = match (what, to.addresses) {
            (Translation::Redirect, None) => self.own_address(hook).map(number_of),
            _ => self.new_address(to, address),
        };
        let has_ports = self.packet.get(Field::Protocol).is_none_or(|protocol| WITH_PORTS.contains(&protocol));
        let new_port = match port.and_then(|port| u16::try_from(port).ok()) {
            Some(port) if has_ports => to.port_for(port),
            _ => to.ports.filter(|(first, last)| first == last && has_ports).map(|(port, _)| port),
        };
        self.packet.set(Field::Destination, new);
        let local = (what == Translation::Redirect).then_some(LOCAL);
        self.packet.set(Field::DestinationKind, local);
        if has_ports {
            self.packet.set(Field::Port, new_port.map(u128::from));
        }
        self.rewritten = Some(what);
        self.status(DST_NAT_DONE);
        if (new, self.packet.get(Field::Port)) != (address, port) {
            self.status(DST_NAT);
        }
        self.kinds();
        (new.and_then(|new| address_of(new, family)), new_port)
    }

    fn rewrite_source(&mut self, what: Translation, to: &Rewrite) -> (Option<IpAddr>, Option<u16>) {
        let old = self.packet.get(Field::Source);
        let new = match (what, to.addresses) {
            (Translation::Masquerade, None) => {
                let output = self.packet.get(Field::Output);
                output.and_then(|output| self.masquerade_address(output)).map(number_of)
            }
            _ => self.new_address(to, old),
        };
        self.packet.set(Field::Source, new);
        self.packet.set(Field::SourceKind, None);
        // The kernel takes another port if the port is in use, and with `random` in any case.
        let only = to.ports.filter(|(first, last)| first == last).map(|(port, _)| port.into());
        self.packet.set(Field::SourcePort, only);
        if new != old {
            self.status(SRC_NAT);
        }
        self.kinds();
        let port = to.ports.and_then(|_| self.packet.get(Field::SourcePort)).and_then(|port| u16::try_from(port).ok());
        (new.and_then(|new| address_of(new, self.packet.family)), port)
    }

    /// Returns the new address, the first one if the kernel chooses one of several.
    fn new_address(&mut self, to: &Rewrite, old: Option<u128>) -> Option<u128> {
        let Some((first, last)) = to.addresses else { return old };
        if let Some(prefix) = to.prefix {
            let width: u32 = if self.packet.family == Family::Ipv4 { 32 } else { 128 };
            let rest = width.saturating_sub(prefix.into());
            let mask = 1u128.checked_shl(rest).unwrap_or(0).wrapping_sub(1);
            return Some(number_of(first) & !mask | old? & mask);
        }
        if first != last {
            self.guess(Guess::OneOfSeveral);
        }
        Some(number_of(first))
    }

    /// Returns the address of `redirect`: `nf_nat_redirect` in net/netfilter/nf_nat_redirect.c.
    fn own_address(&mut self, hook: Hook) -> Option<IpAddr> {
        match (hook, self.packet.family) {
            (Hook::Output, Family::Ipv4) => Some(Ipv4Addr::LOCALHOST.into()),
            (Hook::Output, Family::Ipv6) => Some(Ipv6Addr::LOCALHOST.into()),
            (_, family) => {
                let (input, mut guesses) = (self.packet.get(Field::Input)?, Vec::new());
                let address = self.simulator.redirect_address(input, family, &mut guesses);
                self.add(guesses);
                address
            }
        }
    }

    fn masquerade_address(&mut self, output: u128) -> Option<IpAddr> {
        let family = self.packet.family;
        let destination = self.packet.get(Field::Destination).and_then(|to| address_of(to, family));
        let mut guesses = Vec::new();
        let address = self.simulator.masquerade_address(output, family, self.gateway.or(destination), &mut guesses);
        self.add(guesses);
        address
    }

    pub(super) fn status(&mut self, bit: u128) {
        let status = self.packet.get(Field::Status);
        self.packet.set(Field::Status, status.map(|status| status | bit));
    }
}
