//! Prefixes of addresses: `198.51.100.0/24`, `2001:db8::/32`, or one address.

use ipnetwork::IpNetwork;

use super::ParseError;

/// Reads a prefix; one address is the prefix that holds it alone.
///
/// # Errors
/// Where it is none, or has bits set behind its length.
pub fn parse(text: &str) -> Result<IpNetwork, ParseError> {
    let network: IpNetwork = text.parse().map_err(|_| {
        ParseError::new(format!("`{text}` is not a prefix"), "write `198.51.100.0/24`, `2001:db8::/32` or one address")
    })?;
    if network.ip() != network.network() {
        return Err(ParseError::new(
            format!("`{text}` has bits behind its prefix"),
            format!("write `{}/{}`", network.network(), network.prefix()),
        ));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_bits_behind_it() {
        assert_eq!(parse("192.0.2.7").map(|prefix| prefix.to_string()), Ok("192.0.2.7/32".into()));
        assert_eq!(parse("2001:db8::/32").map(|prefix| prefix.to_string()), Ok("2001:db8::/32".into()));
        assert_eq!(parse("192.0.2.7/24").expect_err("bits").help(), "write `192.0.2.0/24`");
        for bad in ["", "192.0.2.0/33", "192.0.2", "eth0", "192.0.2.0/"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
