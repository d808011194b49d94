//! Connections follow the rules: those that a change makes wrong are ended, so that their next packet begins anew.
//!
//! A connection keeps what was decided on its first packet. It is wrong when a forward or a 1:1 translation that comes, goes
//! or changes is about that packet, and it was sent elsewhere than the rules now say. The interface that the packet came by is
//! not remembered; it is taken for the one that leads back to its sender.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Step, Words};
use crate::model::{Binding, DesiredState, Family, IfName, Netmap, Protocol, SetRule, netmap};
use crate::sys::conntrack::{self, Conntrack, Entry};
use crate::sys::rtnetlink;

/// What comes, goes or changes: the rules as they were, and as they will be.
#[derive(Debug, Clone, Default)]
pub(super) struct Changed<'a> {
    bindings: Vec<&'a Binding>,
    netmaps: Vec<Netmap>,
}

impl<'a> Changed<'a> {
    /// What the steps of a plan are about; `before` and `after` are all 1:1 translations.
    pub(super) fn of(steps: &'a [Step], before: &[SetRule<Netmap>], after: &[SetRule<Netmap>]) -> Self {
        let words = steps.iter().flat_map(|step| [&step.before, &step.after]).flatten();
        let binding = |words: &'a Words| match words {
            Words::Forward(desired, at) => desired.bindings.get(*at).map(|owned| &owned.rule),
            Words::Text(_) => None,
        };
        let rules = |netmaps: &[SetRule<Netmap>]| netmaps.iter().map(|owned| owned.rule).collect::<BTreeSet<_>>();
        let netmaps = rules(before).symmetric_difference(&rules(after)).copied().collect();
        Self { bindings: words.filter_map(binding).collect(), netmaps }
    }

    /// Adds forwards.
    pub(super) fn extend(&mut self, bindings: impl IntoIterator<Item = &'a Binding>) {
        self.bindings.extend(bindings);
    }
}

/// Ends the connections that a change made wrong, and gives how many. What is asked is looked at only where there are
/// connections that the change is about.
///
/// # Errors
/// Where the kernel does not tell of its connections, or refuses to end one.
pub(super) fn delete_stale(
    changed: &Changed<'_>,
    desired: impl FnOnce() -> io::Result<Arc<DesiredState>>,
) -> io::Result<usize> {
    if changed.bindings.is_empty() && changed.netmaps.is_empty() || conntrack::count() == Some(0) {
        return Ok(0);
    }
    // A kernel that tracks no connections translates none.
    let Some((mut conntrack, entries)) = tracked()? else { return Ok(0) };
    if entries.is_empty() {
        return Ok(0);
    }
    let changing = Rules::of(changed.bindings.iter().copied(), &changed.netmaps);
    let touched: Vec<Entry> = entries.into_iter().filter(|entry| changing.may_be_about(entry)).collect();
    if touched.is_empty() {
        return Ok(0);
    }
    let desired = desired()?;
    let netmaps: Vec<Netmap> = desired.netmaps.iter().map(|owned| owned.rule).collect();
    let now = Rules::of(desired.bindings.iter().map(|owned| &owned.rule), &netmaps);
    let ways = Ways::of(&touched, changing.name_interfaces || now.name_interfaces)?;
    let wrong: Vec<Entry> = touched.into_iter().filter(|entry| is_wrong(entry, &changing, &now, &ways)).collect();
    conntrack.end(&wrong)
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

/// Decides if an error means that the kernel tracks no connections, or that it cannot list the `count` that it tracks.
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

/// Where addresses are.
#[derive(Debug, Default)]
struct Ways(BTreeMap<IpAddr, Option<IfName>>);

impl Ways {
    /// Asks for the addresses of connections; for those of their senders only where it matters.
    fn of(entries: &[Entry], senders: bool) -> io::Result<Self> {
        let receivers = entries.iter().flat_map(|entry| [entry.original.destination.ip(), entry.reply.source.ip()]);
        let senders = entries.iter().filter(|_| senders).map(|entry| entry.original.source.ip());
        let addresses: BTreeSet<IpAddr> = receivers.chain(senders).collect();
        Ok(Self(rtnetlink::interfaces_to(addresses).map_err(|(_, error)| error)?))
    }

    fn to(&self, address: IpAddr) -> Option<&IfName> {
        self.0.get(&address)?.as_ref()
    }

    /// Whether an address is this host's: the way there is the loopback interface.
    fn own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.to(address).is_some_and(|way| way.as_str() == "lo")
    }
}

/// Rules by what they are about.
struct Rules<'a> {
    ports: HashMap<(Family, Protocol, u16), Vec<&'a Binding>>,
    ranges: HashMap<(Family, Protocol), Vec<&'a Binding>>,
    netmaps: &'a [Netmap],
    /// Whether some of them are about one interface only.
    name_interfaces: bool,
}

impl<'a> Rules<'a> {
    fn of(bindings: impl IntoIterator<Item = &'a Binding>, netmaps: &'a [Netmap]) -> Self {
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

    /// The forwards that may be about the first packet of a connection, whatever interface it came by and whether or not
    /// it was sent to this host.
    fn near(&self, entry: &Entry) -> impl Iterator<Item = &'a Binding> {
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

    /// The forwards that are about it, the one that wins first.
    fn about(&self, entry: &Entry, ways: &Ways) -> Vec<&'a Binding> {
        let (from, to) = (entry.original.source.ip(), entry.original.destination.ip());
        let here = |binding: &&Binding| binding.address.is_some() || ways.own(to);
        // At loopback addresses it does not matter which interface is named.
        let arrived = |binding: &&Binding| {
            to.is_loopback() || binding.interface.as_ref().is_none_or(|by| ways.to(from) == Some(by))
        };
        let mut about: Vec<_> = self.near(entry).filter(|binding| here(binding) && arrived(binding)).collect();
        about.sort_by_key(|binding| (binding.class(), !binding.is_exact()));
        about
    }

    /// The 1:1 translation that is about it: the one of the longest prefix.
    fn translation(&self, entry: &Entry) -> Option<&'a Netmap> {
        let to = entry.original.destination.ip();
        self.netmaps.iter().filter(|netmap| netmap.listen.contains(to)).max_by_key(|netmap| netmap.listen.prefix())
    }

    fn may_be_about(&self, entry: &Entry) -> bool {
        self.near(entry).next().is_some() || self.translation(entry).is_some()
    }
}

/// Whether a connection went elsewhere than the rules now say. `changing` are the rules that change, as they were and are.
fn is_wrong(entry: &Entry, changing: &Rules<'_>, now: &Rules<'_>, ways: &Ways) -> bool {
    let (known, went) = (changing.about(entry, ways), entry.reply.source);
    if known.is_empty() && changing.translation(entry).is_none() {
        return false;
    }
    if let Some(winner) = now.about(entry, ways).first() {
        // Where it goes may be right, and what its target sees of it have changed.
        let seen_otherwise = |before: &&Binding| {
            before.listens_like(winner)
                && before.ports == winner.ports
                && (before.source, before.hairpin) != (winner.source, winner.hairpin)
        };
        return !sends(winner, entry, ways) || known.iter().any(seen_otherwise);
    }
    if let Some(netmap) = now.translation(entry) {
        return went != translated(netmap, entry);
    }
    // No rule of ours is about it any more. What others sent somewhere is theirs.
    let sent = known.iter().any(|binding| sends(binding, entry, ways));
    sent || changing.translation(entry).is_some_and(|netmap| went == translated(netmap, entry))
}

/// Whether a forward sends a connection to where it went.
fn sends(binding: &Binding, entry: &Entry, ways: &Ways) -> bool {
    let went = entry.reply.source;
    let port = binding.target_port(entry.original.destination.port());
    went.port() == port && binding.to.address.map_or_else(|| ways.own(went.ip()), |address| address == went.ip())
}

/// Where a 1:1 translation sends a connection.
fn translated(netmap: &Netmap, entry: &Entry) -> SocketAddr {
    let to = entry.original.destination;
    SocketAddr::new(netmap::translate(to.ip(), netmap.to), to.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_tracks_connections_and_cannot_list_them_is_an_error() {
        let invalid = || io::Error::from_raw_os_error(nix::libc::EINVAL);
        assert!(unreadable(invalid(), None).is_ok() && unreadable(invalid(), Some(0)).is_ok());
        let error = unreadable(invalid(), Some(3)).expect_err("connections are tracked");
        assert!(error.to_string().contains("nf_conntrack_netlink"), "{error}");
        let other = unreadable(io::Error::from_raw_os_error(nix::libc::EPERM), None).expect_err("another error");
        assert_eq!(other.raw_os_error(), Some(nix::libc::EPERM));
    }
}
