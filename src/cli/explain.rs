//! `portfwd explain`: traces one packet through the live rules of all programs.

use std::net::SocketAddr;

use super::{Failure, Global, Output, add, audit, json};
use crate::engine::EngineError;
use crate::model::Packet;
use crate::nft::transaction::KernelError;
use crate::ruleset::host::Host;
use crate::ruleset::region::Field;
use crate::ruleset::set::address_of;
use crate::ruleset::simulate::{PacketTrace, Simulator, first};

/// Trace one packet through all live rules, without sending it
///
/// Reads the rules, routes and addresses of this host. Shows what each hook does
/// with the first packet of a connection, which rule decides, where the packet ends,
/// and the way of the answer. The last line says whether the answer arrives. Marks
/// uncertain steps.
///
/// Give the packet as several words, `tcp 198.51.100.7 to 192.0.2.1:8080 -i eth0`,
/// or as one word in quotes, `"tcp 198.51.100.7 -> 192.0.2.1:8080 -i eth0"`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Protocol, or the whole packet as one word
    #[arg(value_name = "PROTO")]
    protocol: String,
    /// Source address and port
    #[arg(value_name = "SRC[:PORT]")]
    source: Option<String>,
    /// The word `to`, or a quoted `->`
    #[arg(value_name = "->", allow_hyphen_values = true)]
    arrow: Option<String>,
    /// Destination address and port
    #[arg(value_name = "DST:PORT")]
    destination: Option<String>,
    /// Ingress interface; without it, this host sends the packet
    #[arg(short, long, value_name = "IF")]
    interface: Option<String>,
}

/// The JSON output of `explain`.
#[derive(serde::Serialize)]
struct Explained {
    version: u32,
    packet: String,
    /// One text for each hook and routing decision, in the order of the packet's path.
    stages: Vec<String>,
    /// A text for the end of the packet: delivered, dropped or unknown.
    end: String,
    /// The way of the answer; null if the packet is not delivered or nothing accepts it.
    answer: Option<ExplainedAnswer>,
    /// The last line of the text: whether the packet is delivered and the answer arrives.
    verdict: String,
    /// The destination after all rewrites; null if the packet is not delivered, or its destination is unknown.
    to: Option<String>,
    /// The source that the receiver sees, without a port if the kernel chooses it; null if the packet is not delivered, or
    /// its source is unknown.
    from: Option<String>,
    /// The rule that rewrote the destination.
    forwarded_by: Option<String>,
    /// The rule that rewrote the source.
    masqueraded_by: Option<String>,
    /// The confidence of the result: `proved`, `likely` or `unknown`.
    confidence: &'static str,
    /// A text for each fact that is uncertain.
    doubts: Vec<String>,
}

/// The answer in the JSON output of `explain`.
#[derive(serde::Serialize)]
struct ExplainedAnswer {
    /// True if the sender of the packet receives the answer and accepts it.
    arrives: bool,
    /// One text for each hook and routing decision; empty if the answer does not pass this host.
    stages: Vec<String>,
    /// A text for the end of the answer; null if the answer does not pass this host.
    end: Option<String>,
    /// The source that the sender of the packet sees; null if the answer does not pass this host.
    from: Option<String>,
}

pub fn run(args: &ExplainArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let packet = parse_packet(args)?;
    // Only the live rules decide about a packet, so `explain` does not read portfwd's state.
    let (rules, facts) = audit::live(global, output)?;
    let host = Host::new(rules, Some(facts));
    let input = packet.interface.as_ref().map(crate::model::IfName::as_str);
    if let (Some(name), Some(facts)) = (input, &host.facts)
        && !facts.links.is_empty()
        && facts.named(name).is_none()
    {
        let what = format!("there is no interface `{name}` here");
        return Err(Failure::Usage { what, help: "`ip link` lists the interfaces".into() }.into());
    }
    let (from, to) = (packet.source, packet.destination);
    let start = first(input, packet.protocol.number(), (from.ip(), from.port()), (to.ip(), to.port()));
    let journey = Simulator::new(&host).journey(start);
    let trace = &journey.trace;
    for gap in host.rules.gaps.iter().chain(host.facts.iter().flat_map(|facts| &facts.gaps)) {
        writeln!(output.stderr, "note: not known: {gap}")?;
    }
    // Without any rule, every verdict would be a guess.
    if host.rules.tables.is_empty() && !host.rules.gaps.is_empty() {
        let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        return Err(EngineError::from(KernelError::NotPermitted(error)).into());
    }
    if !global.json {
        write!(output.stdout, "{}", journey.render(&host))?;
        return Ok(0);
    }
    let place = |at| host.place(at).to_string();
    let socket = |trace: &PacketTrace<'_>, address, port| {
        let address = address_of(trace.packet.get(address)?, packet.family())?;
        Some(match trace.packet.get(port).and_then(|port| u16::try_from(port).ok()) {
            Some(port) => SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        })
    };
    let end = |address, port| socket(trace, address, port).filter(|_| trace.end.is_delivery());
    let answer = journey.answer.as_ref().filter(|_| journey.unheard.is_none());
    let back = answer.and_then(|answer| answer.trace.as_ref());
    let explained_answer = answer.map(|_| ExplainedAnswer {
        arrives: journey.is_answered(),
        stages: back.map(|back| stages(back, &host)).unwrap_or_default(),
        end: back.map(|back| back.end.render(&host)),
        from: back.and_then(|back| socket(back, Field::Source, Field::SourcePort)),
    });
    let mut doubts: Vec<String> = Vec::new();
    for trace in [Some(trace), back].into_iter().flatten() {
        doubts.extend(trace.doubts().map(place));
        doubts.extend(trace.guesses.iter().map(ToString::to_string));
    }
    doubts.dedup();
    let explained = Explained {
        version: json::VERSION,
        packet: packet.to_string(),
        stages: stages(trace, &host),
        end: trace.end.render(&host),
        answer: explained_answer,
        verdict: journey.verdict(&host),
        to: end(Field::Destination, Field::Port),
        from: end(Field::Source, Field::SourcePort),
        forwarded_by: trace.forwarded_by().map(place),
        masqueraded_by: trace.masqueraded_by().map(place),
        confidence: journey.confidence().name(),
        doubts,
    };
    json::print(&explained, output.stdout)?;
    Ok(0)
}

fn stages(trace: &PacketTrace<'_>, host: &Host) -> Vec<String> {
    trace.stages.iter().map(|stage| stage.render(host)).collect()
}

/// Parses the packet of the command line, which is one word or several.
fn parse_packet(args: &ExplainArgs) -> Result<Packet, Failure> {
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
    fn a_packet_is_parsed_from_one_word_or_from_several() {
        for words in [
            &["tcp 198.51.100.7:1 -> 192.0.2.1:80 -i eth0"][..],
            &["tcp 198.51.100.7:1 -> 192.0.2.1:80", "-i", "eth0"],
            &["tcp", "198.51.100.7:1", "->", "192.0.2.1:80", "-i", "eth0"],
            &["-i", "eth0", "tcp", "198.51.100.7:1", "to", "192.0.2.1:80"],
        ] {
            let line = Line::try_parse_from([&["explain"], words].concat()).expect("a line");
            let packet = parse_packet(&line.args).expect("a packet").to_string();
            assert_eq!(packet, "tcp 198.51.100.7:1 -> 192.0.2.1:80 -i eth0", "{words:?}");
        }
        let line = Line::try_parse_from(["explain", "tcp", "198.51.100.7"]).expect("a line");
        assert!(parse_packet(&line.args).is_err());
    }
}
