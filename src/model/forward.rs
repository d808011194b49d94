//! A forward as a user writes it, and its conversion into the normal form.

use ipnetwork::IpNetwork;

use super::binding::{Binding, Destination, PortMap};
use super::{Comment, Family, IfName, Listen, ParseError, PortRange, Protocol, Source, Target};

/// One forward: packets to `listen` go to the target `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The listen address, ports and protocols.
    pub listen: Listen,
    /// The target address and ports.
    pub to: Target,
    /// The protocols if `listen` has none. Empty means tcp.
    pub protocols: Vec<Protocol>,
    /// The ingress interface, or `None` for every interface.
    pub interface: Option<IfName>,
    /// The client prefixes. Empty means every client.
    pub from: Vec<IpNetwork>,
    /// The source address that the target sees.
    pub source: Source,
    /// Masquerade clients in the target's network, so that they can use the listen address (hairpin).
    pub hairpin: bool,
    /// Also forward connections of this host to its loopback addresses.
    pub loopback: bool,
    /// A comment, which `list` shows. The kernel stores the comment in the map element.
    pub comment: Option<Comment>,
}

impl Forward {
    /// Returns a forward with default options.
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

    /// Returns the normal form of the forward: one [`Binding`] for each family, client prefix, protocol and port range.
    ///
    /// # Errors
    /// If families or widths differ, if two keys contain the protocol, or if the kernel does not support the forward.
    /// [`ParseError::key`] is the key that is invalid or missing.
    pub fn bindings(&self) -> Result<Vec<Binding>, ParseError> {
        let families = self.families()?;
        let protocols = self.effective_protocols()?;
        self.check_ports()?;
        self.check_interface()?;
        self.check_source()?;
        self.check_loopback(families)?;
        let only_loopback = self.listen.address.is_some_and(|address| address.is_loopback());
        let no_hairpin = self.to.address.is_none() || !self.source.is_keep() || only_loopback;
        let ranges = self.listen.ports.ranges();
        let mut bindings = Vec::with_capacity(families.len() * protocols.len() * ranges.len());
        for family in families {
            for from in self.client_prefixes(*family) {
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
                        hairpin: self.hairpin || no_hairpin,
                        loopback: self.loopback,
                        comment: self.comment.clone(),
                    }));
                }
            }
        }
        Ok(bindings)
    }

    /// Returns the client prefixes of a family without duplicates, or one `None` if the family has no prefix.
    fn client_prefixes(&self, family: Family) -> impl Iterator<Item = Option<IpNetwork>> {
        let mut clients: Vec<IpNetwork> =
            self.from.iter().copied().filter(|from| Family::of_network(*from) == family).collect();
        clients.sort_unstable();
        clients.dedup();
        let all = clients.is_empty().then_some(None);
        clients.into_iter().map(Some).chain(all)
    }

    /// Returns the families of the forward. A redirect without an address has both.
    fn families(&self) -> Result<&'static [Family], ParseError> {
        let listen = self.listen.address.map(Family::of_address);
        let to = self.to.address.map(Family::of_address);
        if let (Some(listen), Some(to)) = (listen, to)
            && listen != to
        {
            return Err(ParseError::new(
                format!("`{}` is {listen} but `{}` is {to}", self.listen, self.to),
                "give both ends the same address family; NAT does not translate between them",
            )
            .with_key("to"));
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
                .with_key("from"));
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
                "no packet of a client arrives at `lo`: portfwd forwards connections of this host when they leave it",
                "remove the interface; write `loopback = true` for 127.0.0.1",
            )
            .with_key("interface")),
            _ => Ok(()),
        }
    }

    fn check_source(&self) -> Result<(), ParseError> {
        let help = "remove `source`, or write `keep`";
        match (self.source, self.to.address) {
            (Source::Keep, _) => Ok(()),
            (source, None) => Err(ParseError::new(
                format!(
                    "a redirect to this host cannot have the source `{source}`: its packets do not leave this host"
                ),
                help,
            )
            .with_key("source")),
            (Source::Address(source), Some(to)) if Family::of_address(source) != Family::of_address(to) => {
                Err(ParseError::new(
                    format!(
                        "the source `{source}` is {} but the target `{to}` is {}",
                        Family::of_address(source),
                        Family::of_address(to)
                    ),
                    format!("write an {} address of this host", Family::of_address(to)),
                )
                .with_key("source"))
            }
            _ => Ok(()),
        }
    }

    fn check_loopback(&self, families: &[Family]) -> Result<(), ParseError> {
        let listens = self.listen.address.filter(std::net::IpAddr::is_loopback);
        if let Some(address) = listens {
            if !self.loopback {
                return Err(ParseError::new(
                    format!("`{address}` is a loopback address, so the forward needs `loopback`"),
                    "write `loopback = true` (`--loopback`), or use another listen address",
                )
                .with_key("loopback"));
            }
            if let Some(interface) = &self.interface {
                return Err(ParseError::new(
                    format!("packets to `{address}` never arrive at `{interface}`"),
                    "remove the interface",
                )
                .with_key("interface"));
            }
        }
        if self.loopback && self.to.address.is_some() && families.contains(&Family::Ipv6) {
            // Measured, Linux 6.18: the request leaves with a masqueraded source, but the kernel's routing rejects the
            // answer to ::1 ("unreachable"). IPv6 has no sysctl like route_localnet.
            return Err(ParseError::new(
                "the kernel drops answers to ::1 from other hosts, so `loopback` does not work with an IPv6 target",
                "remove `loopback`, or use an IPv4 target",
            )
            .with_key("loopback"));
        }
        Ok(())
    }

    /// Returns the protocols of the forward: those of `listen`, those of `protocol`, or tcp.
    ///
    /// # Errors
    /// If both `listen` and `protocol` contain protocols.
    pub fn effective_protocols(&self) -> Result<&[Protocol], ParseError> {
        match (self.listen.protocols.is_empty(), self.protocols.is_empty()) {
            (true, true) => Ok(&[Protocol::Tcp]),
            (false, true) => Ok(&self.listen.protocols),
            (true, false) => Ok(&self.protocols),
            (false, false) => Err(ParseError::new(
                format!("both `{}` and `protocol` contain a protocol", self.listen),
                "write the protocol in one of them",
            )
            .with_key("protocol")),
        }
    }

    /// Checks that the listen ports can be mapped to the target ports.
    fn check_ports(&self) -> Result<(), ParseError> {
        let Some(target) = self.to.ports.filter(|target| !target.is_single()) else { return Ok(()) };
        match self.listen.ports.single_range() {
            Some(range) if range.width() == target.width() => Ok(()),
            Some(range) => Err(ParseError::new(
                format!("`{range}` is {} ports wide but `{target}` is {}", range.width(), target.width()),
                "make the two ranges equally wide, or give one target port for all",
            )
            .with_key("to")),
            None => Err(ParseError::new(
                format!("the list `{}` cannot be mapped onto the range `{target}`", self.listen.ports),
                "write one forward for each range, or give one target port for all",
            )
            .with_key("to")),
        }
    }

    /// Returns the port map of one listen range. [`Forward::check_ports`] must have succeeded.
    fn port_map(&self, range: PortRange) -> PortMap {
        match self.to.ports {
            None => PortMap::identity(range),
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
    fn every_port_range_and_protocol_becomes_one_binding() {
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
    fn ranges_keep_their_ports_shift_or_map_to_one_port() {
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
    fn forwards_that_the_kernel_does_not_support_are_refused_with_the_reason() {
        let mut wrong: Vec<(&str, &str, Forward)> = Vec::new();
        let mut add = |what, key, listen, to, change: fn(&mut Forward)| {
            let mut forward = forward(listen, to);
            change(&mut forward);
            wrong.push((what, key, forward));
        };
        add("no packet of a client arrives at `lo`", "interface", "80", "10.0.0.1", |f| {
            f.interface = Some("lo".parse().expect("name"))
        });
        add("cannot have the source `masquerade`", "source", "80", ":81", |f| f.source = Source::Masquerade);
        add("is IPv6 but the target", "source", "80", "10.0.0.1", |f| f.source = "fd00::1".parse().expect("source"));
        add("so the forward needs `loopback`", "loopback", "127.0.0.1:80", "10.0.0.1", |_| {});
        add("drops answers to ::1", "loopback", "80", "fd00::2", |f| f.loopback = true);
        add("never arrive at `eth0`", "interface", "127.0.0.1:80", "10.0.0.1", |f| {
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
    fn ends_with_different_families_or_widths_are_refused() {
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
