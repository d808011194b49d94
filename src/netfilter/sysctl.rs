//! Switches of the network namespace that forwarding depends on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::Family;

const ROOT: &str = "/proc/sys/net";

/// A switch that was changed, and what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name below `net`, for example `ipv4/ip_forward`.
    pub key: String,
    /// What it was.
    pub before: String,
    /// What it is now.
    pub after: String,
}

impl Change {
    /// Its name as sysctl(8) writes it.
    pub fn name(&self) -> String {
        format!("net.{}", self.key.replace('/', "."))
    }
}

/// A switch that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot set `{name}` to {value}")]
pub struct SysctlError {
    /// Its name.
    pub name: String,
    /// The value it was to have.
    pub value: String,
    /// Why.
    #[source]
    pub error: io::Error,
}

/// What must be changed so that packets of a family are forwarded between interfaces; empty where they are already.
///
/// With IPv6 a host that forwards no longer listens to router advertisements, unless `accept_ra` is 2: interfaces that
/// listen to them now (1) are set to 2, so that the host keeps its own addresses and routes. Source:
/// Documentation/networking/ip-sysctl.rst.
///
/// # Errors
/// Where the switch cannot be read.
pub fn forwarding(family: Family) -> Result<Vec<Change>, SysctlError> {
    let key = match family {
        Family::Ipv4 => "ipv4/ip_forward",
        Family::Ipv6 => "ipv6/conf/all/forwarding",
    };
    let before = read(key)?;
    if before != "0" {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    if family == Family::Ipv6 {
        for interface in interfaces("ipv6/conf") {
            let key = format!("ipv6/conf/{interface}/accept_ra");
            // What vanished meanwhile needs nothing.
            if let Ok(before) = read(&key)
                && before == "1"
            {
                changes.push(Change { key, before, after: "2".into() });
            }
        }
    }
    changes.push(Change { key: key.into(), before, after: "1".into() });
    Ok(changes)
}

fn interfaces(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(directory)).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name != "all");
    names.sort_unstable();
    names
}

fn path(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
}

fn read(key: &str) -> Result<String, SysctlError> {
    let text = fs::read_to_string(path(key));
    text.map(|text| text.trim().to_owned()).map_err(|error| failed(key, "1", error))
}

fn failed(key: &str, value: &str, error: io::Error) -> SysctlError {
    SysctlError { name: format!("net.{}", key.replace('/', ".")), value: value.to_owned(), error }
}

/// Carries out changes, in order; what was changed before one fails is put back.
///
/// # Errors
/// The first that the kernel refuses.
pub fn set(changes: &[Change]) -> Result<(), SysctlError> {
    for (index, change) in changes.iter().enumerate() {
        if let Err(error) = fs::write(path(&change.key), &change.after) {
            // An interface that vanished has no switch to set.
            if error.kind() == io::ErrorKind::NotFound && change.key.ends_with("/accept_ra") {
                continue;
            }
            undo(changes.get(..index).unwrap_or_default());
            return Err(failed(&change.key, &change.after, error));
        }
    }
    Ok(())
}

/// Puts switches back, last first, where nobody else has changed them since. What cannot be put back stays.
pub fn undo(changes: &[Change]) {
    for change in changes.iter().rev() {
        if read(&change.key).is_ok_and(|now| now == change.after) {
            let put_back = fs::write(path(&change.key), &change.before);
            drop(put_back);
        }
    }
}
