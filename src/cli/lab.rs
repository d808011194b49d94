//! `portfwd lab`: standing networks of namespaces from a file.

mod show;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;

use super::global::STATE_DIR;
use super::{Failure, Global, Output, add, json};
use crate::config::source;
use crate::lab::net::{self, Change, Journals, Lab, LabName, LabStatus, NetError, NetnsName, Step};

/// Where labs are noted where nobody says so.
const DIRECTORY: &str = "/run/portfwd/lab";

/// Build networks of namespaces, veth pairs, bridges and containers from a file
///
/// `ip netns`, `ip -n NAME addr`, `bridge link` and `ovs-vsctl show` see them like
/// ones that were made by hand. The host of a lab is the namespace of who makes
/// it, or that of --netns. Containers are wired the way Docker does it, and what
/// they publish is a rule set, `lab-` with the lab's name, as of `apply`. Bridges
/// of Open vSwitch need its daemon in the host, at OVS_RUNDIR where that is set.
/// Needs root; only `exec --file` does not. Examples are in rules/lab.
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make a network as a file describes it
    ///
    /// What is missing is made, and what the file no longer describes is taken
    /// back; everything else stays. So a second time changes nothing, and what was
    /// left half made, or lost, is mended. Where a step fails, what was made is
    /// taken back. A namespace, an interface or a rule set of the same name that the
    /// lab did not make is never touched, and a port that another rule set or a
    /// socket of the host has is not published: exit code 6.
    ///
    /// What a lab makes is noted in /run/portfwd/lab before it is made, or in
    /// DIR/lab with --state-dir; it lasts until the next boot, like the network.
    Up(UpArgs),
    /// Remove what `up` made, and nothing else
    ///
    /// Also after `up` was killed. What runs in containers ends. What others have
    /// put in the place of something stays, and is named.
    Down(DownArgs),
    /// List the labs, and what is missing of them
    List,
    /// Show a lab as the kernel has it
    ///
    /// For each namespace: its links with the bridge and the other end of each,
    /// their addresses, the routes, the ARP table with the states of ip-neighbour(8)
    /// and its counterpart for IPv6, the processes, and what is missing of what `up`
    /// made. Of the host only what the lab touches is shown, and by which link its
    /// default route leads out.
    Show(show::ShowArgs),
    /// Run a command in a namespace of a lab, as `ip netns exec` does
    ///
    /// In a container with processes of its own it is one of them. The exit code is
    /// the command's. With --file the lab is made for the time of this command, with
    /// a host and a /run of its own: that needs no root where user namespaces are
    /// allowed, and leaves nothing behind. Open vSwitch is not in there.
    Exec(ExecArgs),
    /// Be the process of a container
    #[command(hide = true)]
    Init(InitArgs),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// The description
    file: PathBuf,
    /// Only show what would be made and removed
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct DownArgs {
    /// The lab, or its file; none: the only one there is
    #[arg(value_name = "NAME|FILE")]
    name: Option<String>,
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// Make the lab of this file for the time of the command
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The namespace or container
    name: String,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// What it is known by; only to be among the arguments
    word: String,
    /// The container
    name: String,
    /// It is on the host's network
    #[arg(long)]
    host: bool,
    /// It has a process namespace of its own
    #[arg(long)]
    own: bool,
    /// The command and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(serde::Serialize)]
struct Changed<'a> {
    version: u32,
    lab: &'a str,
    done: bool,
    made: Vec<String>,
    removed: Vec<String>,
    foreign: Vec<String>,
}

#[derive(serde::Serialize)]
struct Labs {
    version: u32,
    labs: Vec<OneLab>,
}

#[derive(serde::Serialize)]
struct OneLab {
    name: String,
    state: &'static str,
    host: Option<String>,
    namespaces: Vec<String>,
    missing: Vec<String>,
}

pub fn run(args: &LabArgs, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let journals = journals(global);
    match &args.command {
        LabCommand::Up(args) => {
            let lab = load(&args.file)?;
            let change = net::up(&lab, &journals, args.dry_run).map_err(refused)?;
            show(&lab.name, &change, args.dry_run, global, output)
        }
        LabCommand::Down(args) => {
            let name = chosen(args.name.as_deref(), &journals)?;
            let change = net::down(&name, &journals, args.dry_run)?;
            show(&name, &change, args.dry_run, global, output)
        }
        LabCommand::Show(args) => {
            args.check(global)?;
            let picture = net::picture::read_picture(&chosen(args.name.as_deref(), &journals)?, &journals)?;
            args.show(&picture, global, output)
        }
        LabCommand::List => list(&net::list(&journals)?, global, output),
        LabCommand::Exec(args) => exec(args, journals, global, output),
        LabCommand::Init(args) => init(args),
    }
}

fn journals(global: &Global) -> Journals {
    let elsewhere = global.state_dir != Path::new(STATE_DIR);
    let journals = Journals::in_directory(if elsewhere { global.state_dir.join("lab") } else { DIRECTORY.into() });
    journals.with_rule_store(&global.state_dir, global.choice())
}

fn load(file: &Path) -> anyhow::Result<Lab> {
    let source = Arc::new(source::read(file)?);
    Ok(net::read(&source).map_err(Failure::Problems)?)
}

/// The lab that is meant; the only one there is where nobody says which.
fn chosen(name: Option<&str>, journals: &Journals) -> anyhow::Result<LabName> {
    name.map_or_else(|| only(journals), named)
}

/// Contradictions are shown like those of rule-set files.
fn refused(error: NetError) -> anyhow::Error {
    match error {
        NetError::Conflict(problems) => Failure::Problems(problems).into(),
        other => other.into(),
    }
}

/// The lab that is meant by its name or by its file.
fn named(text: &str) -> anyhow::Result<LabName> {
    if text.contains('/') || Path::new(text).extension().is_some_and(|extension| extension == "toml") {
        return Ok(load(Path::new(text))?.name);
    }
    Ok(add::parse("NAME", text, str::parse)?)
}

/// The only lab there is.
fn only(journals: &Journals) -> anyhow::Result<LabName> {
    let labs: Vec<LabName> = net::list(journals)?.into_iter().map(|lab| lab.name).collect();
    match labs.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Failure::NotFound { what: "there is no lab".into(), help: "nothing was changed".into() }.into()),
        several => {
            let names: Vec<&str> = several.iter().map(LabName::as_str).collect();
            let help = format!("say which: {}", names.join(", "));
            Err(Failure::Usage { what: format!("there are {} labs", several.len()), help }.into())
        }
    }
}

fn texts(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

fn show(name: &LabName, change: &Change, dry: bool, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    output.done = !dry;
    for step in &change.foreign {
        writeln!(output.stderr, "note: the {step} is not what the lab made; it stays")?;
    }
    if let Some(why) = &change.journal_error {
        writeln!(output.stderr, "note: it is done, but that could not be noted: {why}")?;
    }
    if global.json {
        let (made, removed, foreign) = (texts(&change.made), texts(&change.removed), texts(&change.foreign));
        let changed = Changed { version: json::VERSION, lab: name.as_str(), done: !dry, made, removed, foreign };
        json::print(&changed, output.stdout)?;
        return Ok(0);
    }
    for step in &change.removed {
        writeln!(output.stdout, "- {step}")?;
    }
    for step in &change.made {
        writeln!(output.stdout, "+ {step}")?;
    }
    let (made, removed) = (change.made.len(), change.removed.len());
    match (change.is_empty(), dry) {
        (true, _) => writeln!(output.stdout, "{name}: unchanged")?,
        (false, true) => writeln!(output.stdout, "{name}: {made} to make, {removed} to remove")?,
        (false, false) => writeln!(output.stdout, "{name}: {made} made, {removed} removed")?,
    }
    Ok(0)
}

fn list(labs: &[LabStatus], global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let one = |lab: &LabStatus| OneLab {
        name: lab.name.to_string(),
        state: state(lab),
        host: lab.host.name().map(str::to_owned),
        namespaces: lab.namespaces.iter().map(ToString::to_string).collect(),
        missing: texts(&lab.missing),
    };
    let labs: Vec<OneLab> = labs.iter().map(one).collect();
    if global.json {
        json::print(&Labs { version: json::VERSION, labs }, output.stdout)?;
        return Ok(0);
    }
    let mut table = tabled::builder::Builder::with_capacity(labs.len() + 1, 4);
    table.push_record(["LAB", "STATE", "HOST", "NAMESPACES"]);
    for lab in &labs {
        let host = lab.host.clone().unwrap_or_else(|| "-".into());
        table.push_record([lab.name.clone(), lab.state.into(), host, lab.namespaces.join(" ")]);
    }
    let mut table = table.build();
    table.with(tabled::settings::Style::blank());
    for line in table.to_string().lines() {
        writeln!(output.stdout, "{}", line.trim())?;
    }
    for lab in &labs {
        for step in &lab.missing {
            writeln!(output.stdout, "missing: {step}  [{}]", lab.name)?;
        }
    }
    Ok(0)
}

/// `up` where all of it is there, `partial` where something is missing.
fn state(lab: &LabStatus) -> &'static str {
    if lab.missing.is_empty() { "up" } else { "partial" }
}

fn exec(args: &ExecArgs, journals: Journals, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let name: NetnsName = add::parse("NAME", &args.name, str::parse)?;
    let journals = match &args.file {
        Some(file) => net::make_temporary(&load(file)?, global.choice()).map_err(refused)?,
        None => journals,
    };
    output.stdout.flush()?;
    Ok(net::exec(&name, &args.command, &journals)?)
}

fn init(args: &InitArgs) -> anyhow::Result<u8> {
    let name = add::parse("NAME", &args.name, str::parse)?;
    let container =
        net::ContainerInit { name, host: args.host, pid_namespace: args.own, command: args.command.clone() };
    net::init(&container)?;
    Ok(0)
}
