mod kernel;
mod recorded;

use std::net::IpAddr;

use ipnetwork::IpNetwork;

fn network(text: &str) -> IpNetwork {
    text.parse().expect(text)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}
