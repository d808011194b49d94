//! `portfwd explain`: one packet's way through all rules of this host, whoever made them.

use std::net::SocketAddr;

use super::{Failure, Global, Output, add, audit, json};
use crate::audit::host::Host;
use crate::audit::journey::{Journey, first};
use crate::audit::region::Field;
use crate::audit::set::address_of;
use crate::model::Packet;

/// Walk one packet through every hook of the live rules, whoever made them
///
/// Says what each hook does with the first packet of such a connection, by
/// which rule, and where it ends. Nothing is sent: the rules, routes and
/// addresses of this host are read. What is not sure is said.
///
/// As several words, `tcp 198.51.100.7 to 192.0.2.1:8080 -i eth0`, or as one in
/// quotes, `"tcp 198.51.100.7 -> 192.0.2.1:8080 -i eth0"`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// The protocol, or the whole packet as one word
    #[arg(value_name = "PROTO")]
    protocol: String,
    /// Who sends it
    #[arg(value_name = "SRC[:PORT]")]
    source: Option<String>,
    /// An arrow, which a shell must not see (`'->'`), or `to`
    #[arg(value_name = "->", allow_hyphen_values = true)]
    arrow: Option<String>,
    /// Where it is sent
    #[arg(value_name = "DST:PORT")]
    destination: Option<String>,
    /// The interface that it arrives by; without it this host sends it
    #[arg(short, long, value_name = "IF")]
    interface: Option<String>,
}

/// The shape of `explain --json`.
#[derive(serde::Serialize)]
struct Explained {
    version: u32,
    packet: String,
    /// What each hook and the routing did, in order, in words.
    stages: Vec<String>,
    /// Where it ends, in words.
    end: String,
    /// Where it is sent in the end; null where it goes nowhere, or that is not known.
    to: Option<SocketAddr>,
    /// Whom the receiver sees.
    from: Option<SocketAddr>,
    /// The rule that rewrote its destination.
    forwarded_by: Option<String>,
    /// The rule that rewrote its source.
    masqueraded_by: Option<String>,
    /// `proved`, `likely` or `unknown`.
    confidence: &'static str,
    /// What is not known, in words.
    doubts: Vec<String>,
}

pub fn run(args: &ExplainArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let packet = packet(args)?;
    // Whether our own rules are as they were asked for makes no difference to a packet.
    let (rules, facts) = audit::live(global, output)?;
    let host = Host::new(rules, Some(facts));
    let input = packet.interface.as_ref().map(crate::model::IfName::as_str);
    if let (Some(name), Some(facts)) = (input, &host.facts)
        && !facts.links.is_empty()
        && facts.named(name).is_none()
    {
        let what = format!("there is no interface `{name}` here");
        return Err(Failure::Usage { what, help: "see `ip link`".into() }.into());
    }
    let (from, to) = (packet.source, packet.destination);
    let start = first(input, packet.protocol.number(), (from.ip(), from.port()), (to.ip(), to.port()));
    let journey = Journey::of(&host, start);
    for gap in host.rules.gaps.iter().chain(host.facts.iter().flat_map(|facts| &facts.gaps)) {
        writeln!(output.stderr, "note: not known: {gap}")?;
    }
    if !global.json {
        write!(output.stdout, "{}", journey.told(&host))?;
        return Ok(0);
    }
    let place = |at| host.place(at).to_string();
    let end = |address, port| {
        let address = address_of(journey.packet.get(address)?, packet.family())?;
        Some(SocketAddr::new(address, u16::try_from(journey.packet.get(port)?).ok()?))
    };
    let explained = Explained {
        version: json::VERSION,
        packet: packet.to_string(),
        stages: journey.stages.iter().map(|stage| stage.told(&host)).collect(),
        end: journey.end.told(&host),
        to: end(Field::Destination, Field::Port).filter(|_| journey.end.is_delivery()),
        from: end(Field::Source, Field::SourcePort).filter(|_| journey.end.is_delivery()),
        forwarded_by: journey.forwarded_by().map(place),
        masqueraded_by: journey.masqueraded_by().map(place),
        confidence: journey.confidence().name(),
        doubts: journey.doubts().map(place).chain(journey.guesses.iter().map(ToString::to_string)).collect(),
    };
    json::print(&explained, output.stdout)?;
    Ok(0)
}

/// The packet that is meant, given as one word or as several.
fn packet(args: &ExplainArgs) -> Result<Packet, Failure> {
    let mut words = vec![args.protocol.as_str()];
    words.extend([&args.source, &args.arrow, &args.destination].into_iter().flatten().map(String::as_str));
    let text = words.join(" ").replace(" to ", " -> ");
    let text = match &args.interface {
        Some(interface) => format!("{text} -i {interface}"),
        None => text,
    };
    add::parse("PACKET", &text, str::parse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExplainArgs,
    }

    #[test]
    fn a_packet_is_one_word_or_several() {
        for words in [
            &["tcp 198.51.100.7:1 -> 192.0.2.1:80 -i eth0"][..],
            &["tcp 198.51.100.7:1 -> 192.0.2.1:80", "-i", "eth0"],
            &["tcp", "198.51.100.7:1", "->", "192.0.2.1:80", "-i", "eth0"],
            &["-i", "eth0", "tcp", "198.51.100.7:1", "to", "192.0.2.1:80"],
        ] {
            let line = Line::try_parse_from([&["explain"], words].concat()).expect("a line");
            let packet = packet(&line.args).expect("a packet").to_string();
            assert_eq!(packet, "tcp 198.51.100.7:1 -> 192.0.2.1:80 -i eth0", "{words:?}");
        }
        let line = Line::try_parse_from(["explain", "tcp", "198.51.100.7"]).expect("a line");
        assert!(packet(&line.args).is_err());
    }
}
