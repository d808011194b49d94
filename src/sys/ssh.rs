//! The SSH connection of the user, from the environment variable `SSH_CONNECTION` of sshd(8).

use std::net::{IpAddr, SocketAddr};

use crate::model::Family;

/// An SSH connection: the address of the client, and the address and port of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ssh {
    /// The address of the client.
    pub client: IpAddr,
    /// The address and port of the server.
    pub server: SocketAddr,
}

impl Ssh {
    /// Parses the value of `SSH_CONNECTION`: client address, client port, server address, server port. Returns
    /// `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [client, client_port, server, server_port] = words.as_slice() else { return None };
        client_port.parse::<u16>().ok()?;
        let (client, server) = (address(client)?, address(server)?);
        let server = SocketAddr::new(server, server_port.parse().ok()?);
        (Family::of_address(client) == Family::of_address(server.ip())).then_some(Self { client, server })
    }
}

/// Parses an address. Ignores the zone of a link-local IPv6 address, such as `%eth0`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.split_once('%').map_or(text, |(address, _)| address);
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_ssh_connection_variable_is_ignored() {
        for text in [
            "",
            "198.51.100.7 50000 192.0.2.1",
            "198.51.100.7 50000 192.0.2.1 22 23",
            "198.51.100.7 x 192.0.2.1 22",
            "198.51.100.7 50000 192.0.2.1 65536",
            "198.51.100.7 50000 host 22",
            "198.51.100.7 50000 2001:db8::1 22",
            "UNKNOWN 65535 UNKNOWN 65535",
        ] {
            assert_eq!(Ssh::parse(text), None, "{text:?}");
        }
    }
}
