//! `portfwd add`: one more forward, live and durable.

use std::sync::Arc;

use super::{Failure, Global, Output, change, guard, sets};
use crate::config::union::{apart, taken};
use crate::config::{Kind, Problem};
use crate::engine::{Options, Part, Scope};
use crate::model::{
    Asked, Binding, Comment, Forward, IfName, Listen, Owned, ParseError, Protocol, SetName, Source, Target, prefix,
};

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    #[arg(
        value_name = "LISTEN",
        help = "Where it listens: [ADDR:]PORTS[/PROTO[,PROTO]], for example 8080, 192.0.2.1:53/udp, [2001:db8::1]:8000-8010"
    )]
    listen: String,
    /// Where it leads: ADDR, ADDR:PORT, ADDR:PORT-PORT, or :PORT on this host
    #[arg(value_name = "TARGET")]
    target: String,
    /// tcp (the default), udp, sctp, dccp or udplite; may be given several times
    #[arg(short, long = "protocol", value_name = "PROTO")]
    protocols: Vec<String>,
    /// Only what arrives at this interface
    #[arg(short, long, value_name = "IF")]
    interface: Option<String>,
    /// Only these clients; may be given several times
    #[arg(long, value_name = "CIDR")]
    from: Vec<String>,
    /// What the target sees: keep (the default), masquerade, or an address of this host
    #[arg(long, value_name = "SOURCE", default_value = "keep", hide_default_value = true)]
    source: String,
    /// Do not masquerade clients in the target's own network
    #[arg(long)]
    no_hairpin: bool,
    /// Also at 127.0.0.1 on this host
    #[arg(long)]
    loopback: bool,
    /// A remark, shown by `list`
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// The rule set that it is added to
    #[arg(long, value_name = "NAME", default_value = "cli")]
    set: String,
    /// Let the connections that it makes wrong finish, instead of ending them
    #[arg(long)]
    keep_connections: bool,
    /// Also where it takes the port of a listening socket, or the ssh connection
    /// that you are on
    #[arg(long)]
    force: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Turns what was typed into a model type, or into an error that says where it was typed.
pub fn parse<T>(what: &str, text: &str, parse: impl FnOnce(&str) -> Result<T, ParseError>) -> Result<T, Failure> {
    parse(text).map_err(|error| Failure::Usage { what: format!("{what}: {error}"), help: error.help().to_owned() })
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
        let (what, help) = sets::in_words(&forward, &why);
        return Err(Failure::Unsupported { what, help }.into());
    }
    let scope = Scope::Partial(Part { bindings: bindings.clone(), sets: Vec::new() });
    let mut engine = global.change(args.dry_run, scope, output)?;
    let mut after = engine.state().clone();
    let asked = Arc::make_mut(&mut after.asked);
    for binding in &bindings {
        put(asked, &set, binding.clone())?;
    }
    asked.settings.entry(set.clone()).or_default();
    asked.normalize();
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

/// Puts a binding among what is asked: in the place of itself with other options, or as a new one.
fn put(asked: &mut Asked, set: &SetName, binding: Binding) -> Result<(), Failure> {
    let itself = |owned: &Owned<Binding>| {
        let met = &owned.rule;
        owned.set == *set && met.listens_like(&binding) && met.ports == binding.ports && met.to == binding.to
    };
    let other = asked.bindings.iter().find(|owned| owned.rule.conflicts(&binding) && !itself(owned));
    if let Some(met) = other {
        return Err(Failure::Problems(vec![Problem {
            kind: Kind::Conflict,
            what: taken(&met.rule, &binding),
            place: None,
            other: Some((
                format!("it is in the rule set `{}`, and `{binding}` was to be added to `{set}`", met.set),
                None,
            )),
            help: format!("remove the first, or {}", apart(&met.rule, &binding)),
        }]));
    }
    match asked.bindings.iter_mut().find(|owned| itself(owned)) {
        Some(met) => met.rule = binding,
        None => asked.bindings.push(Owned { set: set.clone(), rule: binding }),
    }
    Ok(())
}
