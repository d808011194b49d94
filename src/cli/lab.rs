//! `portfwd lab`: networks of namespaces that a file describes.

mod show;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;

use super::global::STATE_DIR;
use super::{Failure, Global, Output, add, json};
use crate::config::source;
use crate::lab::net::{self, Change, Journals, Lab, LabName, LabStatus, NetError, NetnsName, Step};

/// The directory of lab journals, unless the user gives `--state-dir`.
const DEFAULT_JOURNALS: &str = "/run/portfwd/lab";

/// Build networks of namespaces, bridges and containers from a file
///
/// Makes ordinary namespaces, veth pairs and bridges: `ip netns`, `ip -n NAME addr`,
/// `bridge link` and `ovs-vsctl show` list them. The host of a lab is your network
/// namespace, or the one given with --netns. Containers are connected as Docker does
/// it. Their published ports are the rule set `lab-NAME`, as if applied with `apply`.
/// Open vSwitch bridges need a running daemon in the host; OVS_RUNDIR names its
/// directory. Needs root, except `exec --file`. Examples are in rules/lab.
#[derive(Debug, clap::Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Build the network that a file describes
    ///
    /// Makes the missing parts, removes the parts that the file no longer describes,
    /// and keeps all others. So a second `up` changes nothing, and an interrupted or
    /// damaged lab is repaired. If a step fails, undoes the earlier ones. Never
    /// touches a namespace, interface or rule set of the same name that the lab did
    /// not make. Does not publish a port of another rule set or of a local service.
    /// Both are refused with exit code 6.
    ///
    /// Records each part in /run/portfwd/lab, or in DIR/lab with --state-dir, before
    /// it is made. Records and network last until the next boot.
    Up(UpArgs),
    /// Remove a lab; keep all objects of other programs
    ///
    /// Also removes the parts of a killed `up`. Ends the processes in containers.
    /// Keeps a part that another program has replaced, and prints a note.
    Down(DownArgs),
    /// List the labs, with their missing parts
    List,
    /// Show the links, addresses and routes of a lab
    ///
    /// Reads the kernel. Shows for each namespace the links with their bridges and
    /// peers, the addresses, routes, neighbours (IPv4: the ARP table) with their
    /// states in ip-neighbour(8), the processes, and the missing parts. In the host,
    /// shows only links of the lab, and the link of the default route.
    Show(show::ShowArgs),
    /// Run a command in a namespace of a lab, as `ip netns exec` does
    ///
    /// In a container with its own PID namespace, the command joins that. The exit
    /// code is that of the command. With --file, builds the lab only for this
    /// command, with its own host and /run: this needs no root if unprivileged user
    /// namespaces are allowed, and leaves nothing behind. Such a lab cannot have Open
    /// vSwitch bridges.
    Exec(ExecArgs),
    /// Run as the first process of a container
    #[command(hide = true)]
    Init(InitArgs),
}

#[derive(Debug, clap::Args)]
struct UpArgs {
    /// File that describes the lab
    file: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct DownArgs {
    /// Lab, or its file; can be left out if there is only one lab
    #[arg(value_name = "NAME|FILE")]
    name: Option<String>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct ExecArgs {
    /// Build the lab of this file only for the command
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Namespace or container
    name: String,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// A random word that identifies the process by its arguments
    word: String,
    /// The name of the container
    name: String,
    /// True if the container is in the host's network namespace
    #[arg(long)]
    host: bool,
    /// True if the container has its own PID namespace
    #[arg(long)]
    own: bool,
    /// The command and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

#[derive(serde::Serialize)]
struct LabChange<'a> {
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
    labs: Vec<ListedLab>,
}

#[derive(serde::Serialize)]
struct ListedLab {
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
            let change = net::up(&lab, &journals, args.dry_run).map_err(with_places)?;
            print_change(&lab.name, &change, args.dry_run, global, output)
        }
        LabCommand::Down(args) => {
            let name = find_lab(args.name.as_deref(), &journals)?;
            let change = net::down(&name, &journals, args.dry_run)?;
            print_change(&name, &change, args.dry_run, global, output)
        }
        LabCommand::Show(args) => {
            args.check(global)?;
            let picture = net::picture::read_picture(&find_lab(args.name.as_deref(), &journals)?, &journals)?;
            args.show(&picture, global, output)
        }
        LabCommand::List => print_list(&net::list(&journals)?, global, output),
        LabCommand::Exec(args) => exec(args, journals, global, output),
        LabCommand::Init(args) => init(args),
    }
}

/// Returns the journals of labs, in the default directory or below `--state-dir`.
fn journals(global: &Global) -> Journals {
    let has_own_directory = global.state_dir != Path::new(STATE_DIR);
    let journals =
        Journals::in_directory(if has_own_directory { global.state_dir.join("lab") } else { DEFAULT_JOURNALS.into() });
    journals.with_rule_store(&global.state_dir, global.choice())
}

fn load(file: &Path) -> anyhow::Result<Lab> {
    let source = Arc::new(source::read(file)?);
    Ok(net::read(&source).map_err(Failure::Problems)?)
}

/// Returns the name of the lab from an argument, or of the only lab if there is no argument.
fn find_lab(name: Option<&str>, journals: &Journals) -> anyhow::Result<LabName> {
    name.map_or_else(|| only_lab(journals), parse_lab)
}

/// Converts a conflict of rules to mistakes with positions in files.
fn with_places(error: NetError) -> anyhow::Error {
    match error {
        NetError::Conflict(problems) => Failure::Problems(problems).into(),
        other => other.into(),
    }
}

/// Parses the name of a lab, or reads the name from the file of a lab.
fn parse_lab(text: &str) -> anyhow::Result<LabName> {
    if text.contains('/') || Path::new(text).extension().is_some_and(|extension| extension == "toml") {
        return Ok(load(Path::new(text))?.name);
    }
    Ok(add::parse("NAME", text, str::parse)?)
}

/// Returns the name of the only lab.
///
/// # Errors
/// Fails if there is no lab, or more than one.
fn only_lab(journals: &Journals) -> anyhow::Result<LabName> {
    let labs: Vec<LabName> = net::list(journals)?.into_iter().map(|lab| lab.name).collect();
    match labs.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Failure::NotFound { what: "there is no lab".into(), help: "nothing was changed".into() }.into()),
        several => {
            let names: Vec<&str> = several.iter().map(LabName::as_str).collect();
            let help = format!("name one of them: {}", names.join(", "));
            Err(Failure::Usage { what: format!("there are {} labs", several.len()), help }.into())
        }
    }
}

fn step_texts(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

fn print_change(
    name: &LabName,
    change: &Change,
    dry_run: bool,
    global: &Global,
    output: &mut Output<'_>,
) -> anyhow::Result<u8> {
    output.done = !dry_run;
    for step in &change.foreign {
        writeln!(output.stderr, "note: kept the {step}: the lab did not make it")?;
    }
    if let Some(why) = &change.journal_error {
        writeln!(output.stderr, "note: the change is done, but could not be recorded: {why}")?;
    }
    if global.json {
        let (made, removed, foreign) =
            (step_texts(&change.made), step_texts(&change.removed), step_texts(&change.foreign));
        let changed = LabChange { version: json::VERSION, lab: name.as_str(), done: !dry_run, made, removed, foreign };
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
    match (change.is_empty(), dry_run) {
        (true, _) => writeln!(output.stdout, "{name}: unchanged")?,
        (false, true) => writeln!(output.stdout, "{name}: {made} to make, {removed} to remove")?,
        (false, false) => writeln!(output.stdout, "{name}: {made} made, {removed} removed")?,
    }
    Ok(0)
}

fn print_list(labs: &[LabStatus], global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let listed = |lab: &LabStatus| ListedLab {
        name: lab.name.to_string(),
        state: state(lab),
        host: lab.host.name().map(str::to_owned),
        namespaces: lab.namespaces.iter().map(ToString::to_string).collect(),
        missing: step_texts(&lab.missing),
    };
    let labs: Vec<ListedLab> = labs.iter().map(listed).collect();
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

/// Returns `up` if all parts exist, and `partial` if some are missing.
fn state(lab: &LabStatus) -> &'static str {
    if lab.missing.is_empty() { "up" } else { "partial" }
}

fn exec(args: &ExecArgs, journals: Journals, global: &Global, output: &mut Output<'_>) -> anyhow::Result<u8> {
    let name: NetnsName = add::parse("NAME", &args.name, str::parse)?;
    let journals = match &args.file {
        Some(file) => net::make_temporary(&load(file)?, global.choice()).map_err(with_places)?,
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
