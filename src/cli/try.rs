//! `portfwd try`: tests rule sets with real packets in a temporary network.

use std::path::PathBuf;

use super::{Failure, Global, Output, add, failure, json, sets, view};
use crate::config;
use crate::lab::{self, Selection, Trial};
use crate::model::{DesiredState, Packet, RuleSet};
use crate::sys::tracking::Untracked;

#[derive(Debug, clap::Args)]
pub struct TryArgs {
    /// Files, or folders of `.toml` files [default: /etc/portfwd]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Test at most N forwards, spread over all of them
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Send only this packet and show where it arrives, for example "tcp 198.18.0.2 -> 198.18.0.1:8080 -i eth0"; without -i,
    /// the host sends it; can be repeated
    #[arg(long = "packet", value_name = "PACKET", conflicts_with = "limit")]
    packets: Vec<String>,
}

#[derive(serde::Serialize)]
struct Tried<'a> {
    version: u32,
    forwards: usize,
    probed: usize,
    probes: Vec<Probed<'a>>,
}

#[derive(serde::Serialize)]
struct Probed<'a> {
    as_expected: bool,
    vantage: String,
    protocol: &'static str,
    source: std::net::IpAddr,
    destination: std::net::IpAddr,
    port: u16,
    interface: Option<&'a str>,
    answer: String,
    expected: String,
}

pub fn run(args: &TryArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    // The temporary network has its own sysctls, so only missing parts of the kernel limit the forwards.
    let loaded = sets::load_for(&args.paths, global.choice(), |why| matches!(why, Untracked::Absent(_)))?;
    let desired = config::merge(DesiredState::default(), &loaded).map_err(Failure::Problems)?;
    let mut packets: Vec<Packet> = Vec::with_capacity(args.packets.len());
    for text in &args.packets {
        packets.push(add::parse("--packet", text, str::parse)?);
    }
    let choice = if packets.is_empty() { Selection::Forwards(args.limit) } else { Selection::Packets(packets) };
    let written: Vec<RuleSet> = loaded.into_iter().map(|loaded| loaded.set).collect();
    let trial = lab::try_out(&desired, &written, &choice, global.choice())?;
    if global.verbose {
        view::notes(&trial.outcome, true, output)?;
    }
    if global.json {
        json::print(&tried(&trial), output.stdout)?;
    } else {
        print(&trial, args.packets.is_empty(), output)?;
    }
    let failed = trial.reports.iter().filter(|report| !report.is_as_expected()).count();
    if failed > 0 {
        return Err(Failure::Probes(failed, trial.reports.len()).into());
    }
    Ok(if trial.reports.is_empty() && !desired.bindings.is_empty() { failure::FAILED } else { 0 })
}

fn tried(trial: &Trial) -> Tried<'_> {
    let probes = trial.reports.iter().map(|report| {
        let packet = &report.probe.packet;
        Probed {
            as_expected: report.is_as_expected(),
            vantage: report.vantage.to_string(),
            protocol: packet.protocol.name(),
            source: packet.source.ip(),
            destination: packet.destination.ip(),
            port: packet.destination.port(),
            interface: packet.interface.as_ref().map(crate::model::IfName::as_str),
            answer: report.outcome.to_string(),
            expected: report.expected(),
        }
    });
    let (forwards, probed) = trial.forwards;
    Tried { version: json::VERSION, forwards, probed, probes: probes.collect() }
}

fn print(trial: &Trial, limited: bool, output: &mut Output<'_>) -> anyhow::Result<()> {
    for report in &trial.reports {
        let packet = &report.probe.packet;
        let good = report.is_as_expected();
        let mark = if good { "ok  " } else { "FAIL" };
        let vantage = report.vantage.to_string();
        let (source, to, protocol) = (packet.source.ip(), packet.destination, packet.protocol);
        let answer = &report.outcome;
        writeln!(output.stdout, "{mark}  {vantage:<7}  {source} -> {to}/{protocol}: {answer}")?;
        if !good {
            writeln!(output.stdout, "      expected: {}", report.expected())?;
        }
    }
    let (forwards, probed) = trial.forwards;
    if limited && probed < forwards {
        writeln!(output.stdout, "tested {probed} of {forwards} forwards; `--limit` sets the number")?;
    }
    let good = trial.reports.iter().filter(|report| report.is_as_expected()).count();
    let all = trial.reports.len();
    writeln!(output.stdout, "{good} of {all} probes got the expected result")?;
    Ok(())
}
