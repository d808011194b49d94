//! `portfwd add`: adds a forward, live and durable.

use std::sync::Arc;

use super::{Failure, Global, Output, change, guard, sets};
use crate::config::merge::{conflict_help, conflict_message};
use crate::config::{Problem, ProblemKind};
use crate::engine::{Options, Part, Scope};
use crate::model::{
    Binding, Comment, DesiredState, Forward, IfName, Listen, ParseError, Protocol, SetName, SetRule, Source, Target,
    prefix,
};

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    #[arg(
        value_name = "LISTEN",
        help = "Ports to forward: [ADDR:]PORTS[/PROTO[,PROTO]], for example 8080, 192.0.2.1:53/udp, [2001:db8::1]:8000-8010"
    )]
    listen: String,
    /// Target of the packets: ADDR, ADDR:PORT, ADDR:PORT-PORT, or :PORT on this host
    #[arg(value_name = "TARGET")]
    target: String,
    /// Protocol: tcp (the default), udp, sctp, dccp or udplite; can be repeated
    #[arg(short, long = "protocol", value_name = "PROTO")]
    protocols: Vec<String>,
    /// Forward only packets that arrive at this interface
    #[arg(short, long, value_name = "IF")]
    interface: Option<String>,
    /// Forward only clients in this network; can be repeated
    #[arg(long, value_name = "CIDR")]
    from: Vec<String>,
    /// Client address that the target sees: keep (the default), masquerade, or an address of this host
    #[arg(long, value_name = "SOURCE", default_value = "keep", hide_default_value = true)]
    source: String,
    /// Do not masquerade clients in the target's own network
    #[arg(long)]
    no_hairpin: bool,
    /// Also forward connections of this host to its loopback addresses
    #[arg(long)]
    loopback: bool,
    /// Add a comment, which `list` shows
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Add the forward to this rule set
    #[arg(long, value_name = "NAME", default_value = "cli")]
    set: String,
    /// Do not drop the connections that this change invalidates
    #[arg(long)]
    keep_connections: bool,
    /// Add it even if it takes the port of a local service or of your SSH connection
    #[arg(long)]
    force: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Parses the text of an argument. `name` is the argument's name in error messages.
pub fn parse<T>(name: &str, text: &str, parse: impl FnOnce(&str) -> Result<T, ParseError>) -> Result<T, Failure> {
    parse(text).map_err(|error| Failure::Usage { what: format!("{name}: {error}"), help: error.help().to_owned() })
}

fn forward(args: &AddArgs) -> Result<Forward, Failure> {
    let mut forward = Forward::new(
        parse("LISTEN", &args.listen, str::parse::<Listen>)?,
        parse("TARGET", &args.target, str::parse::<Target>)?,
    );
    for text in &args.protocols {
        let protocol = parse("--protocol", text, str::parse::<Protocol>)?;
        if !forward.protocols.contains(&protocol) {
            forward.protocols.push(protocol);
        }
    }
    if let Some(text) = &args.interface {
        forward.interface = Some(parse("--interface", text, str::parse::<IfName>)?);
    }
    for text in &args.from {
        forward.from.push(parse("--from", text, prefix::parse)?);
    }
    forward.source = parse("--source", &args.source, str::parse::<Source>)?;
    forward.hairpin = !args.no_hairpin;
    forward.loopback = args.loopback;
    if let Some(text) = &args.comment {
        forward.comment = Some(parse("--comment", text, str::parse::<Comment>)?);
    }
    Ok(forward)
}

pub fn run(args: &AddArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let forward = forward(args)?;
    let set = parse("--set", &args.set, str::parse::<SetName>)?;
    let usage = |error: ParseError| Failure::Usage { what: error.to_string(), help: error.help().to_owned() };
    let bindings = forward.bindings().map_err(usage)?;
    if let Some(why) = sets::cannot_track(&forward) {
        let (what, help) = sets::describe_untracked(&forward, &why);
        return Err(Failure::Unsupported { what, help }.into());
    }
    let scope = Scope::Partial(Part { bindings: bindings.clone(), sets: Vec::new() });
    let mut engine = global.change(args.dry_run, scope, output)?;
    let mut after = engine.state().clone();
    let desired = Arc::make_mut(&mut after.desired);
    for binding in &bindings {
        insert(desired, &set, binding.clone())?;
    }
    desired.settings.entry(set.clone()).or_default();
    desired.normalize();
    if !args.force {
        guard::check(&mut engine, &mut after, &[], global, output)?;
    }
    if args.dry_run {
        return change::preview(&mut engine, &after, global, output);
    }
    let outcome = engine.commit(after, Options { keep_connections: args.keep_connections })?;
    change::report(&engine, &outcome, global, output)?;
    if !global.json {
        if outcome.plan.is_empty() {
            for binding in &bindings {
                writeln!(output.stdout, "unchanged {binding}")?;
            }
        }
        change::details(&outcome, output)?;
    }
    Ok(0)
}

/// Inserts a binding into the desired state. Replaces the binding with the same set, match and target, if there is one.
///
/// # Errors
/// Fails if the binding conflicts with a binding of the desired state.
fn insert(desired: &mut DesiredState, set: &SetName, binding: Binding) -> Result<(), Failure> {
    let is_same = |owned: &SetRule<Binding>| {
        let rule = &owned.rule;
        owned.set == *set && rule.listens_like(&binding) && rule.ports == binding.ports && rule.to == binding.to
    };
    let other = desired.bindings.iter().find(|owned| owned.rule.conflicts_with(&binding) && !is_same(owned));
    if let Some(other) = other {
        return Err(Failure::Problems(vec![Problem {
            kind: ProblemKind::Conflict,
            what: conflict_message(&other.rule, &binding),
            location: None,
            related: Some((format!("it is in the rule set `{}`; `{binding}` would be in `{set}`", other.set), None)),
            help: format!("remove the first, or {}", conflict_help(&other.rule, &binding)),
        }]));
    }
    match desired.bindings.iter_mut().find(|owned| is_same(owned)) {
        Some(owned) => owned.rule = binding,
        None => desired.bindings.push(SetRule { set: set.clone(), rule: binding }),
    }
    Ok(())
}
