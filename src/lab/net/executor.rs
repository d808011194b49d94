//! Executes steps: compares each step with the live state, makes it, or undoes it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::process::Child;

use super::apply::RuleStore;
use super::forwarding;
use super::journal::{Entry, Identity, Journals};
use super::links::{self, Mac};
use super::name::NetnsName;
use super::named::{self, Named, NamespaceIdentity};
use super::ovs::{OvsDatabase, OvsError, OvsIdentity};
use super::plan::{Location, Step};
use super::presence::Presence;
use super::process::{self, Process, ProcessIdentity};
use super::rules::Rules;
use crate::lab::error::into_io;
use crate::lab::{LabError, Links, Netns};
use crate::model::IfName;
use crate::sys::offload;
use crate::sys::rtnetlink::{IfPresent, Link, Rtnetlink};

/// The namespaces of a lab, and all else that steps need.
pub(super) struct Executor {
    /// The lab's host. `None` if it no longer exists.
    host: Option<Netns>,
    /// The namespaces that were found or created, by name.
    namespaces: BTreeMap<NetnsName, Netns>,
    rule_store: RuleStore,
    /// The lock of all labs, if child processes must inherit it.
    lock: Option<File>,
    /// Container processes that wait for [`process::release`], by token.
    waiting: BTreeMap<String, Child>,
    /// The Open vSwitch bridges that were found or will be created, by name.
    ovs_bridges: BTreeMap<IfName, OvsIdentity>,
    /// True if container processes end with this process.
    bound: bool,
}

fn not_found(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{what} does not exist"))
}

/// Returns `N` bytes from /dev/urandom.
fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Returns a random token of 16 hexadecimal digits.
fn random_token() -> io::Result<String> {
    Ok(random_bytes::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Executor {
    /// Creates an executor for a host. `journals` supplies the rule store.
    pub fn new(host: Option<Netns>, journals: &Journals) -> Self {
        Self {
            host,
            namespaces: BTreeMap::new(),
            rule_store: journals.rule_store().clone(),
            lock: None,
            waiting: BTreeMap::new(),
            ovs_bridges: BTreeMap::new(),
            bound: false,
        }
    }

    /// Passes the lock of all labs to child processes. If this process is killed, the next command waits until they
    /// have ended.
    pub fn inherit_lock(mut self, lock: &File) -> io::Result<Self> {
        self.lock = Some(lock.try_clone()?);
        Ok(self)
    }

    /// Sets whether container processes end with this process.
    pub fn bound(self, bound: bool) -> Self {
        Self { bound, ..self }
    }

    /// Returns a new identity for the object that a step creates.
    ///
    /// A namespace is created here, without a name. If this process is killed before the namespace has a name, the
    /// kernel removes it.
    pub fn new_identity(&mut self, step: &Step) -> io::Result<Identity> {
        let mac = || random_bytes().map(Mac::new);
        Ok(match step {
            Step::Namespace(name) => {
                let namespace = Netns::new().map_err(into_io)?;
                let lo: Result<(), LabError> = namespace.run(|| Links::open()?.up("lo")).map_err(into_io)?;
                lo.map_err(into_io)?;
                let identity = NamespaceIdentity::new(&namespace, random_token()?)?;
                self.namespaces.insert(name.clone(), namespace);
                Identity::Namespace(identity)
            }
            Step::Bridge(..) => Identity::Links(vec![mac()?]),
            Step::Veth(_) => Identity::Links(vec![mac()?, mac()?]),
            Step::OvsBridge(name) => {
                let identity = OvsIdentity::new(random_token()?, mac()?);
                self.ovs_database(&identity).check_connection()?;
                self.ovs_bridges.insert(name.clone(), identity.clone());
                Identity::Ovs(identity)
            }
            Step::Rules(_) => Identity::Rules(random_token()?),
            Step::Process(process) => Identity::Process(self.start(process)?),
            _ => Identity::None,
        })
    }

    /// Starts a container's process. It waits for its release, and ends if this process is killed before.
    fn start(&mut self, process: &Process) -> io::Result<ProcessIdentity> {
        let token = random_token()?;
        let location = Location((!process.host).then(|| process.name.clone()));
        let network = self.namespace(&location).ok_or_else(|| not_found(&location.to_string()))?;
        let child = process.start(network, &token)?;
        let identity = ProcessIdentity::from_child(&child, token)?;
        self.waiting.insert(identity.token().to_owned(), child);
        Ok(identity)
    }

    fn ovs_database<'a>(&'a self, identity: &'a OvsIdentity) -> OvsDatabase<'a> {
        OvsDatabase { address: identity.database(), lock: self.lock.as_ref() }
    }

    /// Returns the database of a bridge that was found or will be created.
    fn ovs_database_of(&self, bridge: &IfName) -> io::Result<OvsDatabase<'_>> {
        self.ovs_bridges
            .get(bridge)
            .map(|identity| self.ovs_database(identity))
            .ok_or_else(|| not_found(&format!("`{bridge}`")))
    }

    /// Runs `job` in the host's namespace. Returns `None` if the host no longer exists.
    pub fn with_rule_store<T: Send>(&self, job: impl FnOnce(&RuleStore) -> T + Send) -> io::Result<Option<T>> {
        self.host.as_ref().map(|host| host.run(|| job(&self.rule_store)).map_err(into_io)).transpose()
    }

    /// Returns a namespace that was found or created.
    pub fn namespace(&self, location: &Location) -> Option<&Netns> {
        location.0.as_ref().map_or(self.host.as_ref(), |name| self.namespaces.get(name))
    }

    fn named(&self, name: &NetnsName) -> io::Result<&Netns> {
        self.namespaces.get(name).ok_or_else(|| not_found(&format!("`{name}`")))
    }

    /// Runs `job` in a namespace, and fails if the namespace was not found.
    fn inside<T: Send>(&self, location: &Location, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.namespace(location).ok_or_else(|| not_found(&location.to_string()))?.run(job).map_err(into_io)?
    }

    /// Runs `job` with the links of a namespace, and fails if the namespace was not found.
    fn with_links<T: Send>(
        &self,
        location: &Location,
        job: impl FnOnce(&Rtnetlink) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.inside(location, || job(&Rtnetlink::open()?))
    }

    fn find(&self, location: &Location, name: &IfName) -> io::Result<Option<Link>> {
        match self.namespace(location) {
            Some(_) => self.with_links(location, |links| links.link(name.as_str())),
            None => Ok(None),
        }
    }

    /// Returns true if a link of this name exists, whatever created it.
    pub fn has_link(&self, location: &Location, name: &IfName) -> io::Result<bool> {
        self.find(location, name).map(|found| found.is_some())
    }

    /// Returns the index of a link, and fails if the link does not exist.
    fn index(&self, location: &Location, name: &IfName) -> io::Result<u32> {
        let found = self.find(location, name)?;
        found.map(|found| found.index).ok_or_else(|| not_found(&format!("`{name}`")))
    }

    fn device(&self, location: &Location, dev: Option<&IfName>) -> io::Result<Option<u32>> {
        dev.map(|dev| self.index(location, dev)).transpose()
    }

    /// Compares a step with the live state. Call this for all earlier steps first, because it opens their namespaces.
    pub fn presence(&mut self, entry: &Entry) -> io::Result<Presence> {
        let is = |here: bool| if here { Presence::Present } else { Presence::Absent };
        Ok(match (&entry.step, &entry.identity) {
            (Step::Namespace(name), Identity::Namespace(identity)) => match named::inspect(name, identity)? {
                Named::Present(namespace) => {
                    self.namespaces.insert(name.clone(), namespace);
                    Presence::Present
                }
                Named::Unmounted | Named::Absent => Presence::Absent,
                Named::Foreign => Presence::Foreign,
            },
            (Step::Bridge(location, name), Identity::Links(macs)) => {
                self.links_presence(&[(location.clone(), name.clone())], macs)?
            }
            (Step::Veth(ends), Identity::Links(macs)) => self.links_presence(ends, macs)?,
            (Step::Forward(name), _) => is(self.namespaces.get(name).map_or(Ok(false), forwarding::is_enabled)?),
            (Step::Host(_), _) => is(self.host.is_some()),
            (Step::OvsBridge(name), Identity::Ovs(identity)) => {
                self.ovs_bridges.insert(name.clone(), identity.clone());
                self.ovs_presence(name, identity)?
            }
            (Step::OvsPort(port, bridge), _) => match self.ovs_bridges.get(bridge) {
                Some(identity) => is(self.ovs_database(identity).has_port(bridge, port)?),
                None => Presence::Absent,
            },
            (Step::Rules(rules), Identity::Rules(token)) => {
                let presence = self.with_rule_store(|store| store.presence(rules, token))?;
                presence.unwrap_or(Ok(Presence::Absent)).map_err(io::Error::other)?
            }
            (Step::Process(_), Identity::Process(identity)) => is(identity.find()?.is_some()),
            (Step::Join(location, port, bridge), _) => {
                let bridge = self.find(location, bridge)?.map(|found| found.index);
                is(self.find(location, port)?.is_some_and(|port| bridge.is_some() && port.master == bridge))
            }
            (Step::Address(location, link, address), _) => match self.find(location, link)? {
                Some(found) => is(self.with_links(location, |links| links::has_address(links, found.index, *address))?),
                None => Presence::Absent,
            },
            (Step::Checksums(location, link), _) => match self.find(location, link)? {
                Some(found) => is(!self.inside(location, || offload::leaves_checksums(found.index))?),
                None => Presence::Absent,
            },
            (Step::Up(location, link), _) => is(self.find(location, link)?.is_some_and(|found| found.up)),
            (Step::Route(location, to, via, dev), _) => {
                let out = match dev {
                    Some(dev) => self.find(location, dev)?.map(|found| found.index),
                    None => None,
                };
                match self.namespace(location) {
                    Some(_) if out.is_some() == dev.is_some() => {
                        is(self.with_links(location, |links| links::has_route(links, *to, *via, out))?)
                    }
                    _ => Presence::Absent,
                }
            }
            // The journal has an identity of the wrong kind.
            (Step::Namespace(_) | Step::Bridge(..) | Step::OvsBridge(_) | Step::Veth(_), _) => Presence::Absent,
            (Step::Rules(_) | Step::Process(_), _) => Presence::Absent,
        })
    }

    /// Compares links with the hardware addresses that they were created with.
    fn links_presence(&self, links: &[(Location, IfName)], macs: &[Mac]) -> io::Result<Presence> {
        let mut ours = 0;
        for ((location, name), mac) in links.iter().zip(macs) {
            match self.find(location, name)? {
                Some(found) if mac.matches(&found) => ours += 1,
                Some(_) => return Ok(Presence::Foreign),
                None => {}
            }
        }
        Ok(match ours {
            0 => Presence::Absent,
            _ if ours == links.len() => Presence::Present,
            // An end was moved or renamed.
            _ => Presence::Partial,
        })
    }

    /// Makes a step, with its identity from the journal.
    pub fn make(&mut self, entry: &Entry) -> io::Result<()> {
        match (&entry.step, &entry.identity) {
            (Step::Namespace(name), Identity::Namespace(identity)) => {
                named::prepare_directory()?;
                named::mount_name(name, self.named(name)?, identity)
            }
            (Step::Bridge(location, name), Identity::Links(macs)) => {
                let [mac] = macs.as_slice() else { return Err(io::ErrorKind::InvalidData.into()) };
                self.with_links(location, |links| links.add_bridge(mac.link(name.as_str())))
            }
            (Step::Veth([(here, name), (there, peer)]), Identity::Links(macs)) => {
                let [mac, peer_mac] = macs.as_slice() else { return Err(io::ErrorKind::InvalidData.into()) };
                let there = self.namespace(there).ok_or_else(|| not_found(&there.to_string()))?;
                let (end, peer) = (mac.link(name.as_str()), peer_mac.link(peer.as_str()));
                self.with_links(here, |links| links.add_veth(end, peer, there))
            }
            (Step::Host(_), _) => Ok(()),
            (Step::OvsBridge(name), Identity::Ovs(identity)) => {
                self.ovs_database(identity).add(name, identity)?;
                match self.find(&Location::HOST, name)? {
                    Some(found) if identity.mac().matches(&found) => Ok(()),
                    _ => Err(OvsError::Elsewhere(name.clone()).into()),
                }
            }
            (Step::OvsPort(port, bridge), _) => Ok(self.ovs_database_of(bridge)?.add_port(bridge, port)?),
            (Step::Rules(rules), Identity::Rules(token)) => self.make_rules(rules, token),
            (Step::Process(_), Identity::Process(identity)) => {
                let child =
                    self.waiting.remove(identity.token()).ok_or_else(|| not_found("the process of the container"))?;
                process::release(child, self.bound)
            }
            (Step::Forward(name), _) => forwarding::set(self.named(name)?, true),
            (Step::Join(location, port, bridge), _) => {
                let (port, bridge) = (self.index(location, port)?, self.index(location, bridge)?);
                self.with_links(location, |links| links.set_master(port, bridge))
            }
            (Step::Address(location, link, address), _) => {
                let index = self.index(location, link)?;
                self.with_links(location, |links| links.add_address(index, *address, IfPresent::Fail))
            }
            (Step::Checksums(location, link), _) => {
                let index = self.index(location, link)?;
                self.inside(location, || offload::compute_checksums(index))
            }
            (Step::Up(location, link), _) => {
                let index = self.index(location, link)?;
                self.with_links(location, |links| links.set_up(index))
            }
            (Step::Route(location, to, via, dev), _) => {
                let dev = self.device(location, dev.as_ref())?;
                self.with_links(location, |links| links.add_route(links::lab_route(*to, *via, dev), IfPresent::Fail))
            }
            // The journal has an identity of the wrong kind.
            (Step::Namespace(_) | Step::Bridge(..) | Step::OvsBridge(_) | Step::Veth(_), _)
            | (Step::Rules(_) | Step::Process(_), _) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Undoes a step. Returns true if any part of it existed. Objects that the lab did not create are kept.
    ///
    /// If the kernel removes the object at the same time, that is no error.
    pub fn undo(&mut self, entry: &Entry) -> io::Result<bool> {
        let taken = self.try_undo(entry);
        let vanished = taken.is_err() && self.presence(entry).is_ok_and(|presence| presence == Presence::Absent);
        if vanished { Ok(false) } else { taken }
    }

    fn try_undo(&mut self, entry: &Entry) -> io::Result<bool> {
        match (&entry.step, &entry.identity) {
            (Step::Namespace(name), Identity::Namespace(identity)) => {
                let was_there = named::remove(name, identity)?;
                self.namespaces.remove(name);
                Ok(was_there)
            }
            (Step::Bridge(location, name), Identity::Links(macs)) => {
                self.remove(&[(location.clone(), name.clone())], macs)
            }
            (Step::Veth(ends), Identity::Links(macs)) => self.remove(ends, macs),
            (Step::OvsBridge(name), Identity::Ovs(identity)) => {
                Ok(self.ovs_database(identity).remove(name, identity)?)
            }
            (Step::Rules(rules), Identity::Rules(token)) => {
                let gone = self.with_rule_store(|store| store.undo(rules, token))?;
                gone.unwrap_or(Ok(false)).map_err(io::Error::other)
            }
            (Step::Process(process), Identity::Process(identity)) => {
                let was_there = process.kill(identity);
                // Reap the process if it is a child of this one.
                self.waiting.remove(identity.token()).map(|mut child| child.wait()).transpose()?;
                was_there
            }
            // Links that the lab keeps also stay up.
            (Step::Up(..) | Step::Checksums(..) | Step::Host(_), _) => Ok(false),
            _ if self.presence(entry)? != Presence::Present => Ok(false),
            (Step::Forward(name), _) => forwarding::set(self.named(name)?, false).map(|()| true),
            (Step::OvsPort(port, bridge), _) => {
                self.ovs_database_of(bridge)?.remove_port(bridge, port)?;
                Ok(true)
            }
            (Step::Join(location, port, _), _) => {
                let port = self.index(location, port)?;
                self.with_links(location, |links| links.set_master(port, 0)).map(|()| true)
            }
            (Step::Address(location, link, address), _) => {
                let index = self.index(location, link)?;
                self.with_links(location, |links| links.delete_address(index, *address)).map(|()| true)
            }
            (Step::Route(location, to, via, dev), _) => {
                let dev = self.device(location, dev.as_ref())?;
                self.with_links(location, |links| links.delete_route(links::lab_route(*to, *via, dev))).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Deletes the links that have these names and hardware addresses. The kernel deletes both ends of a pair at once.
    fn remove(&self, links: &[(Location, IfName)], macs: &[Mac]) -> io::Result<bool> {
        let mut was_there = false;
        for ((location, name), mac) in links.iter().zip(macs) {
            let Some(found) = self.find(location, name)?.filter(|found| mac.matches(found)) else { continue };
            self.with_links(location, |links| links.delete_link(found.index))?;
            was_there = true;
        }
        Ok(was_there)
    }

    fn ovs_presence(&self, name: &IfName, identity: &OvsIdentity) -> io::Result<Presence> {
        Ok(self.ovs_database(identity).presence(name, identity)?)
    }

    fn make_rules(&self, rules: &Rules, token: &str) -> io::Result<()> {
        self.with_rule_store(|store| store.make(rules, token))?.unwrap_or_else(|| Err(not_found("the host")))
    }
}
