//! Switches of the network namespace that forwarding depends on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Family, IfName};

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
        name(&self.key)
    }
}

/// A dot in an interface's name is a slash in sysctl(8)'s, which has dots where the path has slashes.
fn name(key: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    format!("net.{}", key.chars().map(swap).collect::<String>())
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
    let key = forwarding_key(family);
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

/// The families whose packets are forwarded between interfaces.
///
/// # Errors
/// Where a switch cannot be read.
pub fn forwarded() -> Result<Vec<Family>, SysctlError> {
    let mut families = Vec::new();
    for family in Family::ALL {
        if read(forwarding_key(family))? != "0" {
            families.push(family);
        }
    }
    Ok(families)
}

fn forwarding_key(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4/ip_forward",
        Family::Ipv6 => "ipv6/conf/all/forwarding",
    }
}

/// The switch that lets answers to loopback addresses in by an interface, and out by it what comes from one.
pub fn route_localnet_key(interface: &IfName) -> String {
    format!("ipv4/conf/{interface}/{ROUTE_LOCALNET}")
}

/// Whether there is an interface of this name.
pub fn has_interface(interface: &IfName) -> bool {
    path(&route_localnet_key(interface)).exists()
}

/// Whether it is such a switch.
pub fn is_route_localnet(key: &str) -> bool {
    key.ends_with(ROUTE_LOCALNET)
}

const ROUTE_LOCALNET: &str = "route_localnet";

/// What must be changed so that `route_localnet` holds for an interface; nothing where it does, for it alone or for all.
/// Source: Documentation/networking/ip-sysctl.rst.
///
/// # Errors
/// Where the switch cannot be read.
pub fn route_localnet(interface: &IfName) -> Result<Option<Change>, SysctlError> {
    let key = route_localnet_key(interface);
    if read("ipv4/conf/all/route_localnet")? != "0" {
        return Ok(None);
    }
    let before = read(&key)?;
    Ok((before == "0").then(|| Change { key, before, after: "1".into() }))
}

/// A switch, or another setting below /proc/sys/net, of the network namespace that the thread is in; `None` where this kernel
/// does not have it, or its module is not there.
///
/// # Errors
/// Where it is there and cannot be read.
pub fn value(key: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // What was there a moment ago and is not any more answers ENOENT when it is read, too.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The interfaces that have settings in a directory there, `ipv4/conf`, by name; `default` is among them.
pub fn interfaces(directory: &str) -> Vec<String> {
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
    SysctlError { name: name(key), value: value.to_owned(), error }
}

/// An interface that vanished has no switch to set.
fn vanished(change: &Change, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && (change.key.ends_with("/accept_ra") || is_route_localnet(&change.key))
}

/// Carries out changes, in order; what was changed before one fails is put back.
///
/// # Errors
/// The first that the kernel refuses.
pub fn set(changes: &[Change]) -> Result<(), SysctlError> {
    for (index, change) in changes.iter().enumerate() {
        if let Err(error) = fs::write(path(&change.key), &change.after) {
            if vanished(change, &error) {
                continue;
            }
            undo(changes.get(..index).unwrap_or_default());
            return Err(failed(&change.key, &change.after, error));
        }
    }
    Ok(())
}

/// Makes sure that switches can be changed, by writing the value that they have.
///
/// # Errors
/// The first that the kernel refuses.
pub fn may_set(changes: &[Change]) -> Result<(), SysctlError> {
    for change in changes {
        if let Err(error) = fs::write(path(&change.key), &change.before)
            && !vanished(change, &error)
        {
            return Err(failed(&change.key, &change.after, error));
        }
    }
    Ok(())
}

/// Carries out changes again that were undone. What cannot be changed stays.
pub fn redo(changes: &[Change]) {
    for change in changes {
        let set = fs::write(path(&change.key), &change.after);
        drop(set);
    }
}

/// Whether a switch is as it was changed to be.
pub fn holds(change: &Change) -> bool {
    read(&change.key).is_ok_and(|now| now == change.after)
}

/// Puts switches back, last first, where nobody else has changed them since; gives those that were. What cannot be put
/// back stays.
pub fn undo(changes: &[Change]) -> Vec<Change> {
    let put_back = |change: &&Change| fs::write(path(&change.key), &change.before).is_ok();
    changes.iter().rev().filter(|change| holds(change)).filter(put_back).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_sysctl() {
        let change = |key: &str| Change { key: key.into(), before: "0".into(), after: "1".into() };
        assert_eq!(change("ipv4/ip_forward").name(), "net.ipv4.ip_forward");
        let key = route_localnet_key(&"eth0.7".parse().expect("name"));
        assert_eq!(change(&key).name(), "net.ipv4.conf.eth0/7.route_localnet");
        assert!(is_route_localnet(&key) && !is_route_localnet("ipv4/ip_forward"));
    }
}
