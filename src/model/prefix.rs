//! The text form of address prefixes: `198.51.100.0/24`, `2001:db8::/32`, or one address.

use ipnetwork::IpNetwork;

use super::ParseError;

/// Parses a prefix. One address is the prefix that contains only this address.
///
/// # Errors
/// If the text is not a prefix, or has host bits set.
pub fn parse(text: &str) -> Result<IpNetwork, ParseError> {
    let network: IpNetwork = text.parse().map_err(|_| {
        ParseError::new(format!("`{text}` is not a prefix"), "write `198.51.100.0/24`, `2001:db8::/32` or one address")
    })?;
    if network.ip() != network.network() {
        return Err(ParseError::new(
            format!("`{text}` has bits set after its prefix length"),
            format!("write `{}/{}`", network.network(), network.prefix()),
        ));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_host_bits() {
        assert_eq!(parse("192.0.2.7").map(|prefix| prefix.to_string()), Ok("192.0.2.7/32".into()));
        assert_eq!(parse("2001:db8::/32").map(|prefix| prefix.to_string()), Ok("2001:db8::/32".into()));
        assert_eq!(parse("192.0.2.7/24").expect_err("bits").help(), "write `192.0.2.0/24`");
        for bad in ["", "192.0.2.0/33", "192.0.2", "eth0", "192.0.2.0/"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
