//! Steps carried out: what is there of each, making it, taking it back.

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

/// The namespaces that a lab is in.
pub(super) struct Executor {
    /// The host; none where it is gone.
    host: Option<Netns>,
    /// Those that have been seen or made.
    namespaces: BTreeMap<NetnsName, Netns>,
    rule_store: RuleStore,
    /// The lock of all labs, where it is held.
    lock: Option<File>,
    /// Processes that were started and wait to be let go, by their words.
    waiting: BTreeMap<String, Child>,
    /// The bridges of Open vSwitch that have been seen or are to be made.
    ovs_bridges: BTreeMap<IfName, OvsIdentity>,
    /// Whether the processes that are made end with us.
    bound: bool,
}

fn not_found(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{what} is not there"))
}

/// A random_bytes token.
fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The same as text.
fn random_token() -> io::Result<String> {
    Ok(random_bytes::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Executor {
    /// `journals` know where rules are kept.
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

    /// Has programs that are run hold the lock of all labs, so that the next one waits for them too.
    pub fn inherit_lock(mut self, lock: &File) -> io::Result<Self> {
        self.lock = Some(lock.try_clone()?);
        Ok(self)
    }

    /// Has the processes that are made end with us.
    pub fn bound(self, bound: bool) -> Self {
        Self { bound, ..self }
    }

    /// Chooses the identity of what a step is to make. A namespace is made here, still without a name: killed before it has one,
    /// it is gone with the process.
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

    /// Starts a container's process, which waits: killed before it is let go, it goes with us.
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

    /// The database of a bridge that has been seen or is to be made.
    fn ovs_database_of(&self, bridge: &IfName) -> io::Result<OvsDatabase<'_>> {
        self.ovs_bridges
            .get(bridge)
            .map(|identity| self.ovs_database(identity))
            .ok_or_else(|| not_found(&format!("`{bridge}`")))
    }

    /// Does something about rules in the host; nothing where that is gone.
    pub fn with_rule_store<T: Send>(&self, job: impl FnOnce(&RuleStore) -> T + Send) -> io::Result<Option<T>> {
        self.host.as_ref().map(|host| host.run(|| job(&self.rule_store)).map_err(into_io)).transpose()
    }

    /// A namespace that has been seen or made.
    pub fn namespace(&self, location: &Location) -> Option<&Netns> {
        location.0.as_ref().map_or(self.host.as_ref(), |name| self.namespaces.get(name))
    }

    fn named(&self, name: &NetnsName) -> io::Result<&Netns> {
        self.namespaces.get(name).ok_or_else(|| not_found(&format!("`{name}`")))
    }

    /// Does something in a namespace that must be there.
    fn inside<T: Send>(&self, location: &Location, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.namespace(location).ok_or_else(|| not_found(&location.to_string()))?.run(job).map_err(into_io)?
    }

    /// Does something with the links of a namespace that must be there.
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

    /// Whether there is a link of this name, whoever made it.
    pub fn has_link(&self, location: &Location, name: &IfName) -> io::Result<bool> {
        self.find(location, name).map(|found| found.is_some())
    }

    /// The number of a link that must be there.
    fn index(&self, location: &Location, name: &IfName) -> io::Result<u32> {
        let found = self.find(location, name)?;
        found.map(|found| found.index).ok_or_else(|| not_found(&format!("`{name}`")))
    }

    fn device(&self, location: &Location, dev: Option<&IfName>) -> io::Result<Option<u32>> {
        dev.map(|dev| self.index(location, dev)).transpose()
    }

    /// Looks at what is there of a step. Those before it must have been looked at.
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
            // A identity of another kind: not what we wrote.
            (Step::Namespace(_) | Step::Bridge(..) | Step::OvsBridge(_) | Step::Veth(_), _) => Presence::Absent,
            (Step::Rules(_) | Step::Process(_), _) => Presence::Absent,
        })
    }

    /// What is there of links that were made with these addresses: all of them, none, or others.
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
            // One end was moved or renamed, or is where nobody finds it.
            _ => Presence::Partial,
        })
    }

    /// Makes what a step makes, with its identity.
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
                let child = self.waiting.remove(identity.token()).ok_or_else(|| not_found("our process"))?;
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
            // A identity of another kind: not what we wrote.
            (Step::Namespace(_) | Step::Bridge(..) | Step::OvsBridge(_) | Step::Veth(_), _)
            | (Step::Rules(_) | Step::Process(_), _) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes back what a step made; says whether anything of it was there. What is not ours stays. A step of a host that the
    /// kernel removes at this moment may vanish before it is taken back, and then needs nothing.
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
                // Where it is our own child, nobody else asks how it ended.
                self.waiting.remove(identity.token()).map(|mut child| child.wait()).transpose()?;
                was_there
            }
            // A link that is to stay stays up.
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

    /// Removes the links of these names that were made with these addresses; the ends of a pair go together.
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
