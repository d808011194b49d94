//! Deletes the conntrack entries that a change invalidates. The next packet of such a connection then meets the new
//! rules.
//!
//! A conntrack entry stores the NAT decision for the first packet of a connection. The entry is stale if a changed
//! forward or 1:1 translation matches that packet, and the new rules would send the packet elsewhere.
//!
//! The entry does not store the ingress interface. portfwd uses the interface of the route back to the sender instead.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Step, Words};
use crate::model::{Binding, DesiredState, Family, IfName, Netmap, Protocol, SetRule, netmap};
use crate::sys::conntrack::{self, Conntrack, Entry};
use crate::sys::rtnetlink;

/// The old and the new versions of the rules that a change adds, removes or replaces.
#[derive(Debug, Clone, Default)]
pub(super) struct Changed<'a> {
    bindings: Vec<&'a Binding>,
    netmaps: Vec<Netmap>,
}

impl<'a> Changed<'a> {
    /// Collects the changed forwards from `steps`, and the 1:1 translations that only one of `before` and `after`
    /// contains.
    pub(super) fn from_steps(steps: &'a [Step], before: &[SetRule<Netmap>], after: &[SetRule<Netmap>]) -> Self {
        let words = steps.iter().flat_map(|step| [&step.before, &step.after]).flatten();
        let binding = |words: &'a Words| match words {
            Words::Forward(desired, at) => desired.bindings.get(*at).map(|owned| &owned.rule),
            Words::Text(_) => None,
        };
        let rules = |netmaps: &[SetRule<Netmap>]| netmaps.iter().map(|owned| owned.rule).collect::<BTreeSet<_>>();
        let netmaps = rules(before).symmetric_difference(&rules(after)).copied().collect();
        Self { bindings: words.filter_map(binding).collect(), netmaps }
    }

    /// Adds forwards whose connections may be stale.
    pub(super) fn extend(&mut self, bindings: impl IntoIterator<Item = &'a Binding>) {
        self.bindings.extend(bindings);
    }
}

/// Deletes the stale conntrack entries and returns their number. Calls `desired` only if a changed rule matches an
/// entry.
///
/// # Errors
/// Fails if the kernel cannot list its connections, or refuses to delete one.
pub(super) fn delete_stale(
    changed: &Changed<'_>,
    desired: impl FnOnce() -> io::Result<Arc<DesiredState>>,
) -> io::Result<usize> {
    if changed.bindings.is_empty() && changed.netmaps.is_empty() || conntrack::count() == Some(0) {
        return Ok(0);
    }
    // Without connection tracking there is no NAT, so no connection is stale.
    let Some((mut conntrack, entries)) = tracked()? else { return Ok(0) };
    if entries.is_empty() {
        return Ok(0);
    }
    let changing = Rules::new(changed.bindings.iter().copied(), &changed.netmaps);
    let touched: Vec<Entry> = entries.into_iter().filter(|entry| changing.may_match(entry)).collect();
    if touched.is_empty() {
        return Ok(0);
    }
    let desired = desired()?;
    let netmaps: Vec<Netmap> = desired.netmaps.iter().map(|owned| owned.rule).collect();
    let now = Rules::new(desired.bindings.iter().map(|owned| &owned.rule), &netmaps);
    let routes = Routes::look_up(&touched, changing.name_interfaces || now.name_interfaces)?;
    let stale: Vec<Entry> = touched.into_iter().filter(|entry| is_stale(entry, &changing, &now, &routes)).collect();
    conntrack.end(&stale)
}

/// Reads the tracked connections. Returns `None` if the kernel tracks none.
fn tracked() -> io::Result<Option<(Conntrack, Vec<Entry>)>> {
    let read = || {
        let mut conntrack = Conntrack::open()?;
        let entries = conntrack.entries()?;
        Ok::<_, io::Error>((conntrack, entries))
    };
    match read() {
        Ok(found) => Ok(Some(found)),
        Err(error) => unreadable(error, conntrack::count()).map(|()| None),
    }
}

/// Ignores an error that only means that the kernel tracks no connections. Otherwise, returns the error.
fn unreadable(error: io::Error, count: Option<u64>) -> io::Result<()> {
    let missing = [nix::libc::EINVAL, nix::libc::EPROTONOSUPPORT].map(Some).contains(&error.raw_os_error());
    match count {
        _ if !missing => Err(error),
        None | Some(0) => Ok(()),
        Some(count) => Err(io::Error::other(format!(
            "the kernel tracks {count} connections and cannot list them; load the module nf_conntrack_netlink"
        ))),
    }
}

/// The egress interface of the route to each address. `None` means that there is no route.
#[derive(Debug, Default)]
struct Routes(BTreeMap<IpAddr, Option<IfName>>);

impl Routes {
    /// Looks up the routes to the receivers of connections. If `senders` is true, also looks up the routes to the
    /// senders.
    fn look_up(entries: &[Entry], senders: bool) -> io::Result<Self> {
        let receivers = entries.iter().flat_map(|entry| [entry.original.destination.ip(), entry.reply.source.ip()]);
        let senders = entries.iter().filter(|_| senders).map(|entry| entry.original.source.ip());
        let addresses: BTreeSet<IpAddr> = receivers.chain(senders).collect();
        Ok(Self(rtnetlink::interfaces_to(addresses).map_err(|(_, error)| error)?))
    }

    fn to(&self, address: IpAddr) -> Option<&IfName> {
        self.0.get(&address)?.as_ref()
    }

    /// Returns true if an address belongs to this host. The route to such an address uses the interface `lo`.
    fn own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.to(address).is_some_and(|interface| interface.as_str() == "lo")
    }
}

/// Forwards by protocol and port, and 1:1 translations, for the lookup of a connection.
struct Rules<'a> {
    ports: HashMap<(Family, Protocol, u16), Vec<&'a Binding>>,
    ranges: HashMap<(Family, Protocol), Vec<&'a Binding>>,
    netmaps: &'a [Netmap],
    /// True if a forward names an ingress interface.
    name_interfaces: bool,
}

impl<'a> Rules<'a> {
    fn new(bindings: impl IntoIterator<Item = &'a Binding>, netmaps: &'a [Netmap]) -> Self {
        let (ports, ranges) = (HashMap::new(), HashMap::new());
        let mut rules = Self { ports, ranges, netmaps, name_interfaces: false };
        for binding in bindings {
            let (family, protocol) = (binding.family, binding.protocol);
            rules.name_interfaces |= binding.interface.is_some();
            if binding.is_exact() {
                rules.ports.entry((family, protocol, binding.ports.first())).or_default().push(binding);
            } else {
                rules.ranges.entry((family, protocol)).or_default().push(binding);
            }
        }
        rules
    }

    /// Returns the forwards whose address, ports and client prefix match the first packet of a connection. Ignores
    /// the ingress interface, and does not check that the destination is local.
    fn candidates(&self, entry: &Entry) -> impl Iterator<Item = &'a Binding> {
        let (family, protocol, to) = (entry.family(), entry.protocol, entry.original.destination);
        let exact = self.ports.get(&(family, protocol, to.port())).into_iter().flatten();
        let ranges = self.ranges.get(&(family, protocol)).into_iter().flatten();
        let from = entry.original.source.ip();
        let about = move |binding: &&&Binding| {
            let at = match binding.address {
                _ if to.ip().is_loopback() => {
                    binding.loopback && binding.loopback_address().is_none_or(|only| only == to.ip())
                }
                Some(address) => address == to.ip(),
                None => true,
            };
            let ports = binding.ports.first()..=binding.ports.last();
            at && ports.contains(&to.port()) && binding.from.is_none_or(|clients| clients.contains(from))
        };
        exact.chain(ranges).filter(about).copied()
    }

    /// Returns the forwards that match the first packet of a connection, in order of precedence.
    fn matching(&self, entry: &Entry, routes: &Routes) -> Vec<&'a Binding> {
        let (from, to) = (entry.original.source.ip(), entry.original.destination.ip());
        let here = |binding: &&Binding| binding.address.is_some() || routes.own(to);
        // At a loopback address, a forward ignores its interface.
        let arrived = |binding: &&Binding| {
            to.is_loopback() || binding.interface.as_ref().is_none_or(|by| routes.to(from) == Some(by))
        };
        let mut about: Vec<_> = self.candidates(entry).filter(|binding| here(binding) && arrived(binding)).collect();
        about.sort_by_key(|binding| (binding.class(), !binding.is_exact()));
        about
    }

    /// Returns the 1:1 translation with the longest prefix that matches a connection.
    fn translation(&self, entry: &Entry) -> Option<&'a Netmap> {
        let to = entry.original.destination.ip();
        self.netmaps.iter().filter(|netmap| netmap.listen.contains(to)).max_by_key(|netmap| netmap.listen.prefix())
    }

    fn may_match(&self, entry: &Entry) -> bool {
        self.candidates(entry).next().is_some() || self.translation(entry).is_some()
    }
}

/// Returns true if the new rules would send a connection elsewhere. `changing` contains the old and the new versions of
/// the changed rules. `now` contains all new rules.
fn is_stale(entry: &Entry, changing: &Rules<'_>, now: &Rules<'_>, routes: &Routes) -> bool {
    let (known, went) = (changing.matching(entry, routes), entry.reply.source);
    if known.is_empty() && changing.translation(entry).is_none() {
        return false;
    }
    if let Some(winner) = now.matching(entry, routes).first() {
        // Even with an unchanged target, the source address that the target sees may change.
        let seen_otherwise = |before: &&Binding| {
            before.listens_like(winner)
                && before.ports == winner.ports
                && (before.source, before.hairpin) != (winner.source, winner.hairpin)
        };
        return !sends(winner, entry, routes) || known.iter().any(seen_otherwise);
    }
    if let Some(netmap) = now.translation(entry) {
        return went != translated(netmap, entry);
    }
    // No new rule matches. The entry is stale only if an old rule of portfwd created it.
    let sent = known.iter().any(|binding| sends(binding, entry, routes));
    sent || changing.translation(entry).is_some_and(|netmap| went == translated(netmap, entry))
}

/// Returns true if the target of a forward equals the target in a conntrack entry.
fn sends(binding: &Binding, entry: &Entry, routes: &Routes) -> bool {
    let went = entry.reply.source;
    let port = binding.target_port(entry.original.destination.port());
    went.port() == port && binding.to.address.map_or_else(|| routes.own(went.ip()), |address| address == went.ip())
}

/// Returns the destination that a 1:1 translation gives to a connection.
fn translated(netmap: &Netmap, entry: &Entry) -> SocketAddr {
    let to = entry.original.destination;
    SocketAddr::new(netmap::translate(to.ip(), netmap.to), to.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracked_connections_that_the_kernel_cannot_list_are_an_error() {
        let invalid = || io::Error::from_raw_os_error(nix::libc::EINVAL);
        assert!(unreadable(invalid(), None).is_ok() && unreadable(invalid(), Some(0)).is_ok());
        let error = unreadable(invalid(), Some(3)).expect_err("connections are tracked");
        assert!(error.to_string().contains("nf_conntrack_netlink"), "{error}");
        let other = unreadable(io::Error::from_raw_os_error(nix::libc::EPERM), None).expect_err("another error");
        assert_eq!(other.raw_os_error(), Some(nix::libc::EPERM));
    }
}
