//! The sysctls of the network namespace that forwarding depends on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Family, IfName};

const ROOT: &str = "/proc/sys/net";

/// A change of a sysctl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The path below /proc/sys/net, such as `ipv4/ip_forward`.
    pub key: String,
    /// The value before the change.
    pub before: String,
    /// The value after the change.
    pub after: String,
}

impl Change {
    /// Returns the name in the form of sysctl(8), such as `net.ipv4.ip_forward`.
    pub fn name(&self) -> String {
        name(&self.key)
    }
}

/// Returns the name of a path in the form of sysctl(8). A dot in the name of an interface becomes a slash.
fn name(key: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    format!("net.{}", key.chars().map(swap).collect::<String>())
}

/// An error of a sysctl that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot set `{name}` to {value}")]
pub struct SysctlError {
    /// The name in the form of sysctl(8).
    pub name: String,
    /// The value that the failed write should set.
    pub value: String,
    /// The error of the read or the write.
    #[source]
    pub error: io::Error,
}

/// Returns the changes that enable forwarding for a family. The list is empty if forwarding is already enabled.
///
/// An IPv6 router ignores router advertisements unless `accept_ra` is 2. So interfaces with `accept_ra` 1 are set to 2, and
/// the host keeps its own addresses and routes.
///
/// Source: Documentation/networking/ip-sysctl.rst.
///
/// # Errors
/// If the sysctl cannot be read.
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
            // An unreadable sysctl means that the interface was deleted.
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

/// Returns the families with forwarding enabled.
///
/// # Errors
/// If a sysctl cannot be read.
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

/// Returns the path of an interface's `route_localnet`, which lets the interface send and receive packets with loopback
/// addresses.
pub fn route_localnet_key(interface: &IfName) -> String {
    format!("ipv4/conf/{interface}/{ROUTE_LOCALNET}")
}

/// Returns true if an interface of this name exists.
pub fn has_interface(interface: &IfName) -> bool {
    path(&route_localnet_key(interface)).exists()
}

/// Returns true if `key` is the `route_localnet` of an interface.
pub fn is_route_localnet(key: &str) -> bool {
    key.ends_with(ROUTE_LOCALNET)
}

const ROUTE_LOCALNET: &str = "route_localnet";

/// Returns the change that sets `route_localnet` for an interface. Returns `None` if it is set for the interface or for all.
///
/// Source: Documentation/networking/ip-sysctl.rst.
///
/// # Errors
/// If the sysctl cannot be read.
pub fn route_localnet(interface: &IfName) -> Result<Option<Change>, SysctlError> {
    let key = route_localnet_key(interface);
    if read("ipv4/conf/all/route_localnet")? != "0" {
        return Ok(None);
    }
    let before = read(&key)?;
    Ok((before == "0").then(|| Change { key, before, after: "1".into() }))
}

/// Returns the value of a sysctl below /proc/sys/net in the calling thread's network namespace. Returns `None` if the sysctl
/// does not exist, because the kernel is too old or the module is not loaded.
///
/// # Errors
/// If the sysctl exists but cannot be read.
pub fn value(key: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // A read also gives ENOENT if the sysctl vanishes after it was opened.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the names in a directory of interfaces, such as `ipv4/conf`, without `all`. The list includes `default`.
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

/// Returns true if a change failed because the interface was deleted.
fn vanished(change: &Change, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && (change.key.ends_with("/accept_ra") || is_route_localnet(&change.key))
}

/// Applies changes in order. If one fails, restores the earlier ones.
///
/// # Errors
/// If the kernel refuses a change.
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

/// Checks that sysctls can be changed, by writing their current values.
///
/// # Errors
/// If the kernel refuses a write.
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

/// Applies changes again after [`undo`], and ignores errors.
pub fn redo(changes: &[Change]) {
    for change in changes {
        let set = fs::write(path(&change.key), &change.after);
        drop(set);
    }
}

/// Returns true if a sysctl still has the value after the change.
pub fn holds(change: &Change) -> bool {
    read(&change.key).is_ok_and(|now| now == change.after)
}

/// Restores sysctls in reverse order and returns the restored ones. Skips a sysctl that another program has changed since,
/// and ignores errors.
pub fn undo(changes: &[Change]) -> Vec<Change> {
    let restore = |change: &&Change| fs::write(path(&change.key), &change.before).is_ok();
    changes.iter().rev().filter(|change| holds(change)).filter(restore).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_form_of_sysctl() {
        let change = |key: &str| Change { key: key.into(), before: "0".into(), after: "1".into() };
        assert_eq!(change("ipv4/ip_forward").name(), "net.ipv4.ip_forward");
        let key = route_localnet_key(&"eth0.7".parse().expect("name"));
        assert_eq!(change(&key).name(), "net.ipv4.conf.eth0/7.route_localnet");
        assert!(is_route_localnet(&key) && !is_route_localnet("ipv4/ip_forward"));
    }
}
