//! Which binding a packet meets: the reference that reads like the documentation, and looks at every binding.

use std::net::IpAddr;

use super::{Binding, Family, IfName, Protocol};

/// A packet that reaches this host, or that this host sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Who sends it.
    pub source: IpAddr,
    /// Whom it is sent to.
    pub destination: IpAddr,
    /// The port it is sent to.
    pub port: u16,
    /// Whether the destination is an address of this host.
    pub local: bool,
    /// The interface it arrived by; none: this host sends it.
    pub interface: Option<IfName>,
}

/// The place in `bindings` of the one that the packet meets; none: no forward touches it.
///
/// A binding with an address wins over one without; then one with an interface; then one with the longer client prefix;
/// then one port over a range.
pub fn winner<'a>(bindings: impl IntoIterator<Item = &'a Binding>, packet: &Packet) -> Option<usize> {
    let matching = bindings.into_iter().enumerate().filter(|(_, binding)| applies(binding, packet));
    matching.min_by_key(|(_, binding)| (binding.class(), !binding.is_exact())).map(|(index, _)| index)
}

fn applies(binding: &Binding, packet: &Packet) -> bool {
    let here = match binding.address {
        Some(address) => address == packet.destination,
        None => packet.local,
    };
    let to_itself = packet.interface.is_none() && packet.destination.is_loopback();
    here && !to_itself
        && binding.family == Family::of(packet.destination)
        && binding.protocol == packet.protocol
        && (binding.ports.first()..=binding.ports.last()).contains(&packet.port)
        && binding.interface.as_ref().is_none_or(|interface| packet.interface.as_ref() == Some(interface))
        && binding.from.is_none_or(|from| from.contains(packet.source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Forward;

    fn binding(listen: &str, interface: Option<&str>, from: Option<&str>) -> Binding {
        let mut forward = Forward::new(listen.parse().expect(listen), "10.0.0.1".parse().expect("target"));
        forward.interface = interface.map(|name| name.parse().expect(name));
        forward.from = from.map(|prefix| prefix.parse().expect(prefix)).into_iter().collect();
        forward.bindings().expect("valid").remove(0)
    }

    #[test]
    fn precedence_is_what_the_contract_says() {
        let all = [
            binding("8000-8010", None, None),
            binding("8005", None, None),
            binding("8005", None, Some("198.51.0.0/16")),
            binding("8005", None, Some("198.51.100.0/24")),
            binding("8005", Some("eth0"), None),
            binding("192.0.2.1:8000-8010", None, None),
        ];
        let packet = Packet {
            protocol: Protocol::Tcp,
            source: [203, 0, 113, 9].into(),
            destination: [198, 18, 0, 1].into(),
            port: 8005,
            local: true,
            interface: Some("eth1".parse().expect("name")),
        };
        let near = |last: [u8; 4]| Packet { source: last.into(), ..packet.clone() };
        for (name, packet, expected) in [
            ("one port over a range", packet.clone(), Some(1)),
            ("the range elsewhere", Packet { port: 8006, ..packet.clone() }, Some(0)),
            ("clients over none", near([198, 51, 7, 7]), Some(2)),
            ("the longer prefix", near([198, 51, 100, 7]), Some(3)),
            (
                "interface",
                Packet { interface: Some("eth0".parse().expect("name")), ..near([198, 51, 100, 7]) },
                Some(4),
            ),
            ("address", Packet { destination: [192, 0, 2, 1].into(), local: false, ..packet.clone() }, Some(5)),
            ("passing through", Packet { local: false, ..packet.clone() }, None),
            ("another protocol", Packet { protocol: Protocol::Udp, ..packet.clone() }, None),
            (
                "the host to itself",
                Packet { destination: [127, 0, 0, 1].into(), interface: None, ..packet.clone() },
                None,
            ),
        ] {
            assert_eq!(winner(&all, &packet), expected, "{name}");
        }
    }
}
