//! Bridges of Open vSwitch, created with `ovs-vsctl`.
//!
//! A lab's bridge has a random token of the journal in its `external_ids`. Its interface has a random hardware address,
//! like every link of a lab. `ovs-vsctl` inherits the lock of all labs, so it keeps the lock until it ends, even if its
//! parent is killed.
//!
//! Be aware: `ovs-vswitchd` creates the interfaces in its own namespace, which must be the lab's host.

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

/// The key of the token in `external_ids`.
const KEY: &str = "portfwd-lab";

/// The time to wait for `ovs-vswitchd` to apply a change, in seconds.
const TIMEOUT_SECONDS: u32 = 10;

/// An error of `ovs-vsctl` or of a daemon.
#[derive(Debug, thiserror::Error)]
pub enum OvsError {
    /// `ovs-vsctl` cannot be run.
    #[error(transparent)]
    Command(#[from] ProcessError),
    /// `ovsdb-server` does not answer at this address.
    #[error("no ovsdb-server answers at `{0}`")]
    NoDatabase(String),
    /// `ovs-vswitchd` does not apply the changes of the database at this address.
    #[error("no ovs-vswitchd applies the changes of the database at `{0}`")]
    NoDaemon(String),
    /// `ovs-vswitchd` runs in another network namespace.
    #[error("ovs-vswitchd created `{0}` in another network namespace than the lab's host")]
    Elsewhere(IfName),
    /// `ovs-vsctl` refused the command, with this text.
    #[error("ovs-vsctl: {0}")]
    Refused(String),
}

impl From<OvsError> for io::Error {
    fn from(error: OvsError) -> Self {
        Self::other(error)
    }
}

/// The properties that prove that a lab created an Open vSwitch bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OvsIdentity {
    /// The random token in the bridge's `external_ids`.
    #[serde(rename = "word")]
    token: String,
    /// The hardware address of the bridge's interface.
    mac: Mac,
    /// The database of the bridge, as in `ovs-vsctl --db`.
    database: String,
}

impl OvsIdentity {
    /// Creates an identity in the database below `OVS_RUNDIR`, or below /run/openvswitch if that is unset.
    pub(super) fn new(token: String, mac: Mac) -> Self {
        let directory = std::env::var("OVS_RUNDIR").unwrap_or_else(|_| "/run/openvswitch".into());
        Self { token, mac, database: format!("unix:{directory}/db.sock") }
    }

    /// Returns the address of the database.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// Returns the hardware address of the bridge's interface.
    pub(super) fn mac(&self) -> &Mac {
        &self.mac
    }
}

/// A database of Open vSwitch.
pub(super) struct OvsDatabase<'a> {
    /// The address, as in `ovs-vsctl --db`.
    pub address: &'a str,
    /// The lock that each command holds until it has ended.
    pub lock: Option<&'a File>,
}

impl OvsDatabase<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String, OvsError> {
        let lock =
            self.lock.map(File::try_clone).transpose().map_err(|error| ProcessError::Run("ovs-vsctl".into(), error));
        let lock = lock?.map_or_else(Stdio::null, Stdio::from);
        let (database, wait) = (format!("--db={}", self.address), format!("--timeout={TIMEOUT_SECONDS}"));
        let all = [&[database.as_str(), &wait, "-vsyslog:off", "-vfile:off"], arguments].concat();
        let output = process::run(&process::find("ovs-vsctl")?, &all, lock)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.signal() == Some(Signal::SIGALRM as i32) || text.contains("Alarm clock") {
            return Err(OvsError::NoDaemon(self.address.to_owned()));
        }
        if text.contains("database connection failed") {
            return Err(OvsError::NoDatabase(self.address.to_owned()));
        }
        let last = text.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
        Err(OvsError::Refused(last.trim_start_matches("ovs-vsctl: ").to_owned()))
    }

    /// Checks that `ovsdb-server` answers.
    pub(super) fn check_connection(&self) -> Result<(), OvsError> {
        self.run(&["--no-wait", "list-br"]).map(drop)
    }

    fn has(&self, bridge: &IfName) -> Result<bool, OvsError> {
        Ok(self.run(&["list-br"])?.lines().any(|line| line == bridge.as_str()))
    }

    /// Compares a bridge with the database.
    pub(super) fn presence(&self, bridge: &IfName, identity: &OvsIdentity) -> Result<Presence, OvsError> {
        let key = format!("external_ids:{KEY}");
        let token = self.run(&["--if-exists", "get", "bridge", bridge.as_str(), &key])?;
        if token.trim_matches('"') == identity.token {
            return Ok(Presence::Present);
        }
        Ok(if self.has(bridge)? { Presence::Foreign } else { Presence::Absent })
    }

    /// Creates a bridge with its interface. Without the kernel module `openvswitch`, `ovs-vswitchd` forwards the
    /// packets itself.
    pub(super) fn add(&self, bridge: &IfName, identity: &OvsIdentity) -> Result<(), OvsError> {
        let name = bridge.as_str();
        // The daemon lists `system` even if the kernel module is missing.
        let types = self.run(&["get", "Open_vSwitch", ".", "datapath_types"])?;
        let has_kernel = types.contains("system") && Path::new("/sys/module/openvswitch").exists();
        let datapath = if has_kernel { "system" } else { "netdev" };
        let datapath = format!("datapath_type={datapath}");
        let address = format!("other-config:hwaddr=\"{}\"", identity.mac);
        let ours = format!("external_ids:{KEY}=\"{}\"", identity.token);
        self.run(&["add-br", name, "--", "set", "bridge", name, &datapath, &address, &ours]).map(drop)
    }

    /// Removes a lab's bridge with its ports. Returns true if it existed.
    pub(super) fn remove(&self, bridge: &IfName, identity: &OvsIdentity) -> Result<bool, OvsError> {
        if self.presence(bridge, identity)? != Presence::Present {
            return Ok(false);
        }
        match self.run(&["--if-exists", "del-br", bridge.as_str()]) {
            // Without the daemon, the database still drops the bridge.
            Ok(_) | Err(OvsError::NoDaemon(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Returns true if a link is a port of a bridge.
    pub(super) fn has_port(&self, bridge: &IfName, port: &IfName) -> Result<bool, OvsError> {
        Ok(self.has(bridge)? && self.run(&["list-ports", bridge.as_str()])?.lines().any(|line| line == port.as_str()))
    }

    /// Adds a link to a bridge as a port.
    pub(super) fn add_port(&self, bridge: &IfName, port: &IfName) -> Result<(), OvsError> {
        self.run(&["add-port", bridge.as_str(), port.as_str()]).map(drop)
    }

    /// Removes a port from a bridge.
    pub(super) fn remove_port(&self, bridge: &IfName, port: &IfName) -> Result<(), OvsError> {
        match self.run(&["--if-exists", "del-port", bridge.as_str(), port.as_str()]) {
            Ok(_) | Err(OvsError::NoDaemon(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
