//! A forward as its owner writes it.

use ipnetwork::IpNetwork;

use super::binding::{Binding, Destination, PortMap};
use super::{Comment, Family, IfName, Listen, ParseError, PortRange, Protocol, Source, Target};

/// One forward: what arrives at `listen` is sent on to `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens.
    pub listen: Listen,
    /// Where it leads.
    pub to: Target,
    /// The protocols, when `listen` names none; empty means tcp.
    pub protocols: Vec<Protocol>,
    /// Only what arrives here.
    pub interface: Option<IfName>,
    /// Only these clients; empty means all.
    pub from: Vec<IpNetwork>,
    /// What the target sees as the client.
    pub source: Source,
    /// Whether clients in the target's own network reach it by `listen`, which takes masquerading them.
    pub hairpin: bool,
    /// Whether it also serves this host at its loopback addresses.
    pub loopback: bool,
    /// A remark, shown by `list` and kept with the map element.
    pub comment: Option<Comment>,
}

impl Forward {
    /// A forward with nothing but its two ends.
    pub fn new(listen: Listen, to: Target) -> Self {
        Self {
            listen,
            to,
            protocols: Vec::new(),
            interface: None,
            from: Vec::new(),
            source: Source::Keep,
            hairpin: true,
            loopback: false,
            comment: None,
        }
    }

    /// Brings the forward into the normal form: one [`Binding`] for each family, client prefix, protocol and span of
    /// ports, in no particular order.
    ///
    /// # Errors
    /// Where its parts do not fit together: families differ, widths differ, protocols are named twice; or where the
    /// kernel cannot do it. [`ParseError::key`] is the key that is wrong or, where it has none, missing.
    pub fn bindings(&self) -> Result<Vec<Binding>, ParseError> {
        let families = self.families()?;
        let protocols = self.all_protocols()?;
        self.check_ports()?;
        self.check_interface()?;
        self.check_source()?;
        self.check_loopback(families)?;
        let only_loopback = self.listen.address.is_some_and(|address| address.is_loopback());
        let no_neighbours = self.to.address.is_none() || !self.source.is_keep() || only_loopback;
        let ranges = self.listen.ports.ranges();
        let mut bindings = Vec::with_capacity(families.len() * protocols.len() * ranges.len());
        for family in families {
            for from in self.clients(*family) {
                for protocol in protocols {
                    bindings.extend(ranges.iter().map(|ports| Binding {
                        family: *family,
                        address: self.listen.address,
                        interface: self.interface.clone(),
                        from,
                        protocol: *protocol,
                        ports: *ports,
                        to: Destination { address: self.to.address, port: self.port_map(*ports) },
                        source: self.source,
                        hairpin: self.hairpin || no_neighbours,
                        loopback: self.loopback,
                        comment: self.comment.clone(),
                    }));
                }
            }
        }
        Ok(bindings)
    }

    /// The client prefixes of a family, each once; the one of all clients where none is named.
    fn clients(&self, family: Family) -> impl Iterator<Item = Option<IpNetwork>> {
        let mut clients: Vec<IpNetwork> =
            self.from.iter().copied().filter(|from| Family::of_network(*from) == family).collect();
        clients.sort_unstable();
        clients.dedup();
        let all = clients.is_empty().then_some(None);
        clients.into_iter().map(Some).chain(all)
    }

    /// The families it applies to. A redirect without any address applies to both.
    fn families(&self) -> Result<&'static [Family], ParseError> {
        let listen = self.listen.address.map(Family::of);
        let to = self.to.address.map(Family::of);
        if let (Some(listen), Some(to)) = (listen, to)
            && listen != to
        {
            return Err(ParseError::new(
                format!("`{}` is {listen} but `{}` is {to}", self.listen, self.to),
                "give both ends the same address family; NAT does not translate between them",
            )
            .about("to"));
        }
        let given = listen.or(to);
        for from in &self.from {
            let family = Family::of_network(*from);
            if let Some(given) = given
                && family != given
            {
                return Err(ParseError::new(
                    format!("the clients `{from}` are {family} but the forward is {given}"),
                    format!("write {given} prefixes"),
                )
                .about("from"));
            }
        }
        let has = |family| self.from.is_empty() || self.from.iter().any(|from| Family::of_network(*from) == family);
        Ok(match given {
            Some(Family::Ipv4) => &[Family::Ipv4],
            Some(Family::Ipv6) => &[Family::Ipv6],
            None if !has(Family::Ipv6) => &[Family::Ipv4],
            None if !has(Family::Ipv4) => &[Family::Ipv6],
            None => &Family::ALL,
        })
    }

    fn check_interface(&self) -> Result<(), ParseError> {
        match &self.interface {
            Some(interface) if interface.as_str() == "lo" => Err(ParseError::new(
                "nothing arrives at `lo`: what this host sends to itself is decided on when it is sent",
                "leave the interface out; write `loopback = true` for 127.0.0.1",
            )
            .about("interface")),
            _ => Ok(()),
        }
    }

    fn check_source(&self) -> Result<(), ParseError> {
        let help = "leave `source` out, or write `keep`";
        match (self.source, self.to.address) {
            (Source::Keep, _) => Ok(()),
            (source, None) => Err(ParseError::new(
                format!("the source of a redirect to this host cannot be `{source}`: it never leaves this host"),
                help,
            )
            .about("source")),
            (Source::Address(source), Some(to)) if Family::of(source) != Family::of(to) => Err(ParseError::new(
                format!("the source `{source}` is {} but the target `{to}` is {}", Family::of(source), Family::of(to)),
                format!("write an {} address of this host", Family::of(to)),
            )
            .about("source")),
            _ => Ok(()),
        }
    }

    fn check_loopback(&self, families: &[Family]) -> Result<(), ParseError> {
        let listens = self.listen.address.filter(std::net::IpAddr::is_loopback);
        if let Some(address) = listens {
            if !self.loopback {
                return Err(ParseError::new(
                    format!("`{address}` serves this host only, and needs `loopback`"),
                    "write `loopback = true` (`--loopback`) with it, or listen at another address",
                )
                .about("loopback"));
            }
            if let Some(interface) = &self.interface {
                return Err(ParseError::new(
                    format!("nothing to `{address}` ever arrives at `{interface}`"),
                    "leave the interface out",
                )
                .about("interface"));
            }
        }
        if self.loopback && self.to.address.is_some() && families.contains(&Family::Ipv6) {
            // Measured, Linux 6.18: the request leaves masqueraded, but the answer to ::1 is refused by the routing
            // ("unreachable"), and there is no route_localnet for IPv6.
            return Err(ParseError::new(
                "the kernel does not let answers for ::1 in from outside, so `loopback` cannot lead to another host over IPv6",
                "leave `loopback` out, or use an IPv4 target",
            )
            .about("loopback"));
        }
        Ok(())
    }

    /// The protocols it is about.
    ///
    /// # Errors
    /// Where they are named in two places.
    pub fn all_protocols(&self) -> Result<&[Protocol], ParseError> {
        match (self.listen.protocols.is_empty(), self.protocols.is_empty()) {
            (true, true) => Ok(&[Protocol::Tcp]),
            (false, true) => Ok(&self.listen.protocols),
            (true, false) => Ok(&self.protocols),
            (false, false) => Err(ParseError::new(
                format!("`{}` names its protocol, and so does `protocol`", self.listen),
                "name protocols in one place",
            )
            .about("protocol")),
        }
    }

    /// Whether the ports it listens at can be brought to the target's.
    fn check_ports(&self) -> Result<(), ParseError> {
        let Some(target) = self.to.ports.filter(|target| !target.is_single()) else { return Ok(()) };
        match self.listen.ports.only() {
            Some(range) if range.width() == target.width() => Ok(()),
            Some(range) => Err(ParseError::new(
                format!("`{range}` is {} ports wide but `{target}` is {}", range.width(), target.width()),
                "make the two ranges equally wide, or give one target port for all",
            )
            .about("to")),
            None => Err(ParseError::new(
                format!("the list `{}` cannot be mapped onto the range `{target}`", self.listen.ports),
                "write one forward for each range, or give one target port for all",
            )
            .about("to")),
        }
    }

    /// What becomes of one span of the ports, after [`Forward::check_ports`].
    fn port_map(&self, range: PortRange) -> PortMap {
        match self.to.ports {
            None => PortMap::kept(range),
            Some(target) if target.is_single() => PortMap::One(target.first()),
            Some(target) if target == range => PortMap::Keep,
            Some(target) => PortMap::Shift(target.first()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(listen: &str, to: &str) -> Forward {
        Forward::new(listen.parse().expect(listen), to.parse().expect(to))
    }

    fn shown(forward: &Forward) -> Vec<String> {
        forward.bindings().expect("valid").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_span_and_protocol_becomes_one_binding() {
        assert_eq!(shown(&forward("8080", "172.17.0.3:80")), ["8080/tcp -> 172.17.0.3:80"]);
        assert_eq!(
            shown(&forward("80,9000-9001/tcp,udp", "10.0.0.1")),
            [
                "80/tcp -> 10.0.0.1:80",
                "9000-9001/tcp -> 10.0.0.1",
                "80/udp -> 10.0.0.1:80",
                "9000-9001/udp -> 10.0.0.1",
            ]
        );
    }

    #[test]
    fn ranges_are_kept_shifted_or_gathered() {
        assert_eq!(shown(&forward("8000-8010", "10.0.0.1")), ["8000-8010/tcp -> 10.0.0.1"]);
        assert_eq!(shown(&forward("8000-8010", "10.0.0.1:8000-8010")), ["8000-8010/tcp -> 10.0.0.1"]);
        assert_eq!(shown(&forward("8000-8010", "10.0.0.1:9000-9010")), ["8000-8010/tcp -> 10.0.0.1:9000-9010"]);
        assert_eq!(shown(&forward("8000-8010", "10.0.0.1:80")), ["8000-8010/tcp -> 10.0.0.1:80"]);
    }

    #[test]
    fn a_redirect_serves_both_families() {
        assert_eq!(shown(&forward("80", ":8080")), ["80/tcp -> :8080 (IPv4)", "80/tcp -> :8080 (IPv6)"]);
        let mut only = forward("80", ":8080");
        only.from = vec!["2001:db8::/32".parse().expect("prefix")];
        assert_eq!(shown(&only), ["80/tcp from 2001:db8::/32 -> :8080"]);
    }

    #[test]
    fn what_the_kernel_cannot_do_is_refused_with_the_reason() {
        let mut wrong: Vec<(&str, &str, Forward)> = Vec::new();
        let mut add = |what, key, listen, to, change: fn(&mut Forward)| {
            let mut forward = forward(listen, to);
            change(&mut forward);
            wrong.push((what, key, forward));
        };
        add("nothing arrives at `lo`", "interface", "80", "10.0.0.1", |f| {
            f.interface = Some("lo".parse().expect("name"))
        });
        add("cannot be `masquerade`: it never leaves", "source", "80", ":81", |f| f.source = Source::Masquerade);
        add("is IPv6 but the target", "source", "80", "10.0.0.1", |f| f.source = "fd00::1".parse().expect("source"));
        add("needs `loopback`", "loopback", "127.0.0.1:80", "10.0.0.1", |_| {});
        add("does not let answers for ::1", "loopback", "80", "fd00::2", |f| f.loopback = true);
        add("ever arrives at `eth0`", "interface", "127.0.0.1:80", "10.0.0.1", |f| {
            f.loopback = true;
            f.interface = Some("eth0".parse().expect("name"));
        });
        for (what, key, forward) in wrong {
            let error = forward.bindings().expect_err(what);
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(error.key(), Some(key), "{error}");
        }
        let mut both = forward("80", ":8080");
        both.loopback = true;
        assert_eq!(both.bindings().map(|bindings| bindings.len()), Ok(2));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        for (listen, to, what) in [
            ("192.0.2.1:80", "[fd00::1]:80", "`192.0.2.1:80` is IPv4 but `[fd00::1]:80` is IPv6"),
            ("8000-8010", "10.0.0.1:80-89", "`8000-8010` is 11 ports wide but `80-89` is 10"),
            ("80", "10.0.0.1:80-89", "`80` is 1 ports wide but `80-89` is 10"),
            ("80,90-99", "10.0.0.1:80-89", "the list `80,90-99` cannot be mapped onto the range `80-89`"),
        ] {
            assert_eq!(forward(listen, to).bindings().expect_err(listen).to_string(), what);
        }
        let mut twice = forward("80/udp", "10.0.0.1");
        twice.protocols = vec![Protocol::Tcp];
        assert!(twice.bindings().is_err());
        let mut foreign = forward("80", "10.0.0.1");
        foreign.from = vec!["2001:db8::/32".parse().expect("prefix")];
        assert!(foreign.bindings().is_err());
    }
}
