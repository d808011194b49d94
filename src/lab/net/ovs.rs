//! Bridges of Open vSwitch, through `ovs-vsctl`.
//!
//! A bridge is ours where its `external_ids` hold a random word of the journal; its interface has a hardware address that was
//! chosen beforehand, like every link of a lab. `ovs-vsctl` holds the lock of all labs until it has ended, so whoever is
//! killed meanwhile, the next one sees what it did.
//!
//! Be aware: the interfaces are in the namespace of `ovs-vswitchd`, which must be the lab's host.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::links::Mac;
use super::presence::Presence;
use crate::model::IfName;
use crate::sys::process::{self, ProcessError};

/// The key of our word in `external_ids`.
const KEY: &str = "portfwd-lab";

/// How many seconds are waited for `ovs-vswitchd` to do what the database says.
const WAIT: u32 = 10;

/// Why Open vSwitch did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum OvsError {
    /// It cannot be run.
    #[error(transparent)]
    Command(#[from] ProcessError),
    /// Nobody answers at its database.
    #[error("no ovsdb-server answers at `{0}`")]
    NoDatabase(String),
    /// The database knows, but nobody does it.
    #[error("no ovs-vswitchd does what the database at `{0}` says")]
    NoDaemon(String),
    /// It works elsewhere.
    #[error("ovs-vswitchd made `{0}` in another network namespace than the lab's host")]
    Elsewhere(IfName),
    /// It refused something.
    #[error("ovs-vsctl: {0}")]
    Refused(String),
}

impl From<OvsError> for io::Error {
    fn from(error: OvsError) -> Self {
        Self::other(error)
    }
}

/// By what a bridge of Open vSwitch is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsMark {
    /// The random word in its `external_ids`.
    word: String,
    /// The hardware address of its interface.
    mac: Mac,
    /// The database that it is in, as `ovs-vsctl --db`.
    database: String,
}

impl OvsMark {
    /// A new one, in the database that `OVS_RUNDIR` or the usual place leads to.
    pub(super) fn new(word: String, mac: Mac) -> Self {
        let directory = std::env::var("OVS_RUNDIR").unwrap_or_else(|_| "/run/openvswitch".into());
        Self { word, mac, database: format!("unix:{directory}/db.sock") }
    }

    /// Where its ports are said.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// The hardware address of its interface.
    pub(super) fn mac(&self) -> &Mac {
        &self.mac
    }
}

/// A database of Open vSwitch.
pub(super) struct Switch<'a> {
    /// As `ovs-vsctl --db`.
    pub database: &'a str,
    /// The lock that is held until a command has ended.
    pub held: Option<&'a File>,
}

impl Switch<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<String, OvsError> {
        let held =
            self.held.map(File::try_clone).transpose().map_err(|error| ProcessError::Run("ovs-vsctl".into(), error));
        let held = held?.map_or_else(Stdio::null, Stdio::from);
        let (database, wait) = (format!("--db={}", self.database), format!("--timeout={WAIT}"));
        let all = [&[database.as_str(), &wait, "-vsyslog:off", "-vfile:off"], arguments].concat();
        let output = process::run(&process::find("ovs-vsctl")?, &all, held)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.signal() == Some(Signal::SIGALRM as i32) || text.contains("Alarm clock") {
            return Err(OvsError::NoDaemon(self.database.to_owned()));
        }
        if text.contains("database connection failed") {
            return Err(OvsError::NoDatabase(self.database.to_owned()));
        }
        let last = text.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
        Err(OvsError::Refused(last.trim_start_matches("ovs-vsctl: ").to_owned()))
    }

    /// Whether somebody answers.
    pub(super) fn answers(&self) -> Result<(), OvsError> {
        self.ask(&["--no-wait", "list-br"]).map(drop)
    }

    fn has(&self, bridge: &IfName) -> Result<bool, OvsError> {
        Ok(self.ask(&["list-br"])?.lines().any(|line| line == bridge.as_str()))
    }

    /// What is there of a bridge in the database.
    pub(super) fn presence(&self, bridge: &IfName, mark: &OvsMark) -> Result<Presence, OvsError> {
        let key = format!("external_ids:{KEY}");
        let word = self.ask(&["--if-exists", "get", "bridge", bridge.as_str(), &key])?;
        if word.trim_matches('"') == mark.word {
            return Ok(Presence::Here);
        }
        Ok(if self.has(bridge)? { Presence::Foreign } else { Presence::Absent })
    }

    /// Makes a bridge with its interface. Where the kernel has no part of Open vSwitch, `ovs-vswitchd` forwards itself.
    pub(super) fn add(&self, bridge: &IfName, mark: &OvsMark) -> Result<(), OvsError> {
        let name = bridge.as_str();
        // The daemon names the kernel's also where its module is missing.
        let types = self.ask(&["get", "Open_vSwitch", ".", "datapath_types"])?;
        let has_kernel = types.contains("system") && Path::new("/sys/module/openvswitch").exists();
        let datapath = if has_kernel { "system" } else { "netdev" };
        let datapath = format!("datapath_type={datapath}");
        let address = format!("other-config:hwaddr=\"{}\"", mark.mac);
        let ours = format!("external_ids:{KEY}=\"{}\"", mark.word);
        self.ask(&["add-br", name, "--", "set", "bridge", name, &datapath, &address, &ours]).map(drop)
    }

    /// Removes a bridge that is ours, with its ports; gives whether it was there.
    pub(super) fn remove(&self, bridge: &IfName, mark: &OvsMark) -> Result<bool, OvsError> {
        if self.presence(bridge, mark)? != Presence::Here {
            return Ok(false);
        }
        match self.ask(&["--if-exists", "del-br", bridge.as_str()]) {
            // What nobody does is gone from the database all the same.
            Ok(_) | Err(OvsError::NoDaemon(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether a link is a port of a bridge.
    pub(super) fn has_port(&self, bridge: &IfName, port: &IfName) -> Result<bool, OvsError> {
        Ok(self.has(bridge)? && self.ask(&["list-ports", bridge.as_str()])?.lines().any(|line| line == port.as_str()))
    }

    /// Makes a link a port of a bridge.
    pub(super) fn add_port(&self, bridge: &IfName, port: &IfName) -> Result<(), OvsError> {
        self.ask(&["add-port", bridge.as_str(), port.as_str()]).map(drop)
    }

    /// Makes a link a port no more.
    pub(super) fn remove_port(&self, bridge: &IfName, port: &IfName) -> Result<(), OvsError> {
        match self.ask(&["--if-exists", "del-port", bridge.as_str(), port.as_str()]) {
            Ok(_) | Err(OvsError::NoDaemon(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
