//! Steps carried out: what is there of each, making it, taking it back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::process::Child;

use super::apply::Keeper;
use super::forwarding;
use super::journal::{Entry, Journals, Mark};
use super::links::{self, Mac};
use super::name::NetnsName;
use super::named::{self, Named, NamespaceMark};
use super::ovs::{OvsError, OvsMark, Switch};
use super::plan::{Site, Step};
use super::presence::Presence;
use super::process::{self, Process, ProcessMark};
use super::rules::Rules;
use crate::lab::error::plain;
use crate::lab::{LabError, Links, Netns};
use crate::model::IfName;
use crate::sys::offload;
use crate::sys::rtnetlink::{IfPresent, Link, Rtnetlink};

/// The namespaces that a lab is in.
pub(super) struct Ground {
    /// The host; none where it is gone.
    host: Option<Netns>,
    /// Those that have been seen or made.
    spaces: BTreeMap<NetnsName, Netns>,
    keeper: Keeper,
    /// The lock of all labs, where it is held.
    turn: Option<File>,
    /// Processes that were started and wait to be let go, by their words.
    waiting: BTreeMap<String, Child>,
    /// The bridges of Open vSwitch that have been seen or are to be made.
    switches: BTreeMap<IfName, OvsMark>,
    /// Whether the processes that are made end with us.
    bound: bool,
}

fn missing(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{what} is not there"))
}

/// A random word.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The same as text.
fn word() -> io::Result<String> {
    Ok(random::<8>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Ground {
    /// `journals` know where rules are kept.
    pub fn new(host: Option<Netns>, journals: &Journals) -> Self {
        Self {
            host,
            spaces: BTreeMap::new(),
            keeper: journals.keeper().clone(),
            turn: None,
            waiting: BTreeMap::new(),
            switches: BTreeMap::new(),
            bound: false,
        }
    }

    /// Has programs that are run hold the lock of all labs, so that the next one waits for them too.
    pub fn hold(mut self, turn: &File) -> io::Result<Self> {
        self.turn = Some(turn.try_clone()?);
        Ok(self)
    }

    /// Has the processes that are made end with us.
    pub fn bound(self, bound: bool) -> Self {
        Self { bound, ..self }
    }

    /// Chooses the mark of what a step is to make. A namespace is made here, still without a name: killed before it has one,
    /// it is gone with the process.
    pub fn mark(&mut self, step: &Step) -> io::Result<Mark> {
        let mac = || random().map(Mac::new);
        Ok(match step {
            Step::Namespace(name) => {
                let namespace = Netns::new().map_err(plain)?;
                let lo: Result<(), LabError> = namespace.run(|| Links::open()?.up("lo")).map_err(plain)?;
                lo.map_err(plain)?;
                let mark = NamespaceMark::new(&namespace, word()?)?;
                self.spaces.insert(name.clone(), namespace);
                Mark::Namespace(mark)
            }
            Step::Bridge(..) => Mark::Links(vec![mac()?]),
            Step::Veth(_) => Mark::Links(vec![mac()?, mac()?]),
            Step::OvsBridge(name) => {
                let mark = OvsMark::new(word()?, mac()?);
                self.switch(&mark).answers()?;
                self.switches.insert(name.clone(), mark.clone());
                Mark::Ovs(mark)
            }
            Step::Rules(_) => Mark::Rules(word()?),
            Step::Process(process) => Mark::Process(self.start(process)?),
            _ => Mark::None,
        })
    }

    /// Starts a container's process, which waits: killed before it is let go, it goes with us.
    fn start(&mut self, process: &Process) -> io::Result<ProcessMark> {
        let word = word()?;
        let site = Site((!process.host).then(|| process.name.clone()));
        let network = self.space(&site).ok_or_else(|| missing(&site.to_string()))?;
        let child = process.start(network, &word)?;
        let mark = ProcessMark::of(&child, word)?;
        self.waiting.insert(mark.word().to_owned(), child);
        Ok(mark)
    }

    fn switch<'a>(&'a self, mark: &'a OvsMark) -> Switch<'a> {
        Switch { database: mark.database(), held: self.turn.as_ref() }
    }

    /// The database of a bridge that has been seen or is to be made.
    fn switch_of(&self, bridge: &IfName) -> io::Result<Switch<'_>> {
        self.switches.get(bridge).map(|mark| self.switch(mark)).ok_or_else(|| missing(&format!("`{bridge}`")))
    }

    /// Does something about rules in the host; nothing where that is gone.
    pub fn rules<T: Send>(&self, job: impl FnOnce(&Keeper) -> T + Send) -> io::Result<Option<T>> {
        self.host.as_ref().map(|host| host.run(|| job(&self.keeper)).map_err(plain)).transpose()
    }

    /// A namespace that has been seen or made.
    pub fn space(&self, site: &Site) -> Option<&Netns> {
        site.0.as_ref().map_or(self.host.as_ref(), |name| self.spaces.get(name))
    }

    fn named(&self, name: &NetnsName) -> io::Result<&Netns> {
        self.spaces.get(name).ok_or_else(|| missing(&format!("`{name}`")))
    }

    /// Does something in a namespace that must be there.
    fn inside<T: Send>(&self, site: &Site, job: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.space(site).ok_or_else(|| missing(&site.to_string()))?.run(job).map_err(plain)?
    }

    /// Does something with the links of a namespace that must be there.
    fn with_links<T: Send>(&self, site: &Site, job: impl FnOnce(&Rtnetlink) -> io::Result<T> + Send) -> io::Result<T> {
        self.inside(site, || job(&Rtnetlink::open()?))
    }

    fn find(&self, site: &Site, name: &IfName) -> io::Result<Option<Link>> {
        match self.space(site) {
            Some(_) => self.with_links(site, |links| links.link(name.as_str())),
            None => Ok(None),
        }
    }

    /// Whether there is a link of this name, whoever made it.
    pub fn has_link(&self, site: &Site, name: &IfName) -> io::Result<bool> {
        self.find(site, name).map(|found| found.is_some())
    }

    /// The number of a link that must be there.
    fn index(&self, site: &Site, name: &IfName) -> io::Result<u32> {
        let found = self.find(site, name)?;
        found.map(|found| found.index).ok_or_else(|| missing(&format!("`{name}`")))
    }

    fn device(&self, site: &Site, dev: Option<&IfName>) -> io::Result<Option<u32>> {
        dev.map(|dev| self.index(site, dev)).transpose()
    }

    /// Looks at what is there of a step. Those before it must have been looked at.
    pub fn presence(&mut self, entry: &Entry) -> io::Result<Presence> {
        let is = |here: bool| if here { Presence::Here } else { Presence::Absent };
        Ok(match (&entry.step, &entry.mark) {
            (Step::Namespace(name), Mark::Namespace(mark)) => match named::look(name, mark)? {
                Named::Ours(namespace) => {
                    self.spaces.insert(name.clone(), namespace);
                    Presence::Here
                }
                Named::Half | Named::Nothing => Presence::Absent,
                Named::Foreign => Presence::Foreign,
            },
            (Step::Bridge(site, name), Mark::Links(macs)) => self.of_links(&[(site.clone(), name.clone())], macs)?,
            (Step::Veth(ends), Mark::Links(macs)) => self.of_links(ends, macs)?,
            (Step::Forward(name), _) => is(self.spaces.get(name).map_or(Ok(false), forwarding::is_on)?),
            (Step::Host(_), _) => is(self.host.is_some()),
            (Step::OvsBridge(name), Mark::Ovs(mark)) => {
                self.switches.insert(name.clone(), mark.clone());
                self.of_switch(name, mark)?
            }
            (Step::OvsPort(port, bridge), _) => match self.switches.get(bridge) {
                Some(mark) => is(self.switch(mark).has_port(bridge, port)?),
                None => Presence::Absent,
            },
            (Step::Rules(rules), Mark::Rules(word)) => {
                let presence = self.rules(|keeper| keeper.presence(rules, word))?;
                presence.unwrap_or(Ok(Presence::Absent)).map_err(io::Error::other)?
            }
            (Step::Process(_), Mark::Process(mark)) => is(mark.find()?.is_some()),
            (Step::Join(site, port, bridge), _) => {
                let bridge = self.find(site, bridge)?.map(|found| found.index);
                is(self.find(site, port)?.is_some_and(|port| bridge.is_some() && port.master == bridge))
            }
            (Step::Address(site, link, address), _) => match self.find(site, link)? {
                Some(found) => is(self.with_links(site, |links| links::has_address(links, found.index, *address))?),
                None => Presence::Absent,
            },
            (Step::Checksums(site, link), _) => match self.find(site, link)? {
                Some(found) => is(!self.inside(site, || offload::leaves_checksums(found.index))?),
                None => Presence::Absent,
            },
            (Step::Up(site, link), _) => is(self.find(site, link)?.is_some_and(|found| found.up)),
            (Step::Route(site, to, via, dev), _) => {
                let out = match dev {
                    Some(dev) => self.find(site, dev)?.map(|found| found.index),
                    None => None,
                };
                match self.space(site) {
                    Some(_) if out.is_some() == dev.is_some() => {
                        is(self.with_links(site, |links| links::has_route(links, *to, *via, out))?)
                    }
                    _ => Presence::Absent,
                }
            }
            // A mark of another kind: not what we wrote.
            (Step::Namespace(_) | Step::Bridge(..) | Step::OvsBridge(_) | Step::Veth(_), _) => Presence::Absent,
            (Step::Rules(_) | Step::Process(_), _) => Presence::Absent,
        })
    }

    /// What is there of links that were made with these addresses: all of them, none, or others.
    fn of_links(&self, links: &[(Site, IfName)], macs: &[Mac]) -> io::Result<Presence> {
        let mut ours = 0;
        for ((site, name), mac) in links.iter().zip(macs) {
            match self.find(site, name)? {
                Some(found) if mac.is_of(&found) => ours += 1,
                Some(_) => return Ok(Presence::Foreign),
                None => {}
            }
        }
        Ok(match ours {
            0 => Presence::Absent,
            _ if ours == links.len() => Presence::Here,
            // One end was moved or renamed, or is where nobody finds it.
            _ => Presence::Part,
        })
    }

    /// Makes what a step makes, with its mark.
    pub fn make(&mut self, entry: &Entry) -> io::Result<()> {
        match (&entry.step, &entry.mark) {
            (Step::Namespace(name), Mark::Namespace(mark)) => {
                named::prepare()?;
                named::publish(name, self.named(name)?, mark)
            }
            (Step::Bridge(site, name), Mark::Links(macs)) => {
                let [mac] = macs.as_slice() else { return Err(io::ErrorKind::InvalidData.into()) };
                self.with_links(site, |links| links.add_bridge(mac.link(name.as_str())))
            }
            (Step::Veth([(here, name), (there, peer)]), Mark::Links(macs)) => {
                let [mac, peer_mac] = macs.as_slice() else { return Err(io::ErrorKind::InvalidData.into()) };
                let there = self.space(there).ok_or_else(|| missing(&there.to_string()))?;
                let (end, peer) = (mac.link(name.as_str()), peer_mac.link(peer.as_str()));
                self.with_links(here, |links| links.add_veth(end, peer, there))
            }
            (Step::Host(_), _) => Ok(()),
            (Step::OvsBridge(name), Mark::Ovs(mark)) => {
                self.switch(mark).add(name, mark)?;
                match self.find(&Site::HOST, name)? {
                    Some(found) if mark.mac().is_of(&found) => Ok(()),
                    _ => Err(OvsError::Elsewhere(name.clone()).into()),
                }
            }
            (Step::OvsPort(port, bridge), _) => Ok(self.switch_of(bridge)?.add_port(bridge, port)?),
            (Step::Rules(rules), Mark::Rules(word)) => self.make_rules(rules, word),
            (Step::Process(_), Mark::Process(mark)) => {
                let child = self.waiting.remove(mark.word()).ok_or_else(|| missing("our process"))?;
                process::go(child, self.bound)
            }
            (Step::Forward(name), _) => forwarding::set(self.named(name)?, true),
            (Step::Join(site, port, bridge), _) => {
                let (port, bridge) = (self.index(site, port)?, self.index(site, bridge)?);
                self.with_links(site, |links| links.set_master(port, bridge))
            }
            (Step::Address(site, link, address), _) => {
                let index = self.index(site, link)?;
                self.with_links(site, |links| links.add_address(index, *address, IfPresent::Fail))
            }
            (Step::Checksums(site, link), _) => {
                let index = self.index(site, link)?;
                self.inside(site, || offload::compute_checksums(index))
            }
            (Step::Up(site, link), _) => {
                let index = self.index(site, link)?;
                self.with_links(site, |links| links.set_up(index))
            }
            (Step::Route(site, to, via, dev), _) => {
                let dev = self.device(site, dev.as_ref())?;
                self.with_links(site, |links| links.add_route(links::marked(*to, *via, dev), IfPresent::Fail))
            }
            // A mark of another kind: not what we wrote.
            (Step::Namespace(_) | Step::Bridge(..) | Step::OvsBridge(_) | Step::Veth(_), _)
            | (Step::Rules(_) | Step::Process(_), _) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes back what a step made; says whether anything of it was there. What is not ours stays. A step of a host that the
    /// kernel removes at this moment may vanish before it is taken back, and then needs nothing.
    pub fn take_back(&mut self, entry: &Entry) -> io::Result<bool> {
        let taken = self.try_to_take_back(entry);
        let vanished = taken.is_err() && self.presence(entry).is_ok_and(|presence| presence == Presence::Absent);
        if vanished { Ok(false) } else { taken }
    }

    fn try_to_take_back(&mut self, entry: &Entry) -> io::Result<bool> {
        match (&entry.step, &entry.mark) {
            (Step::Namespace(name), Mark::Namespace(mark)) => {
                let was_there = named::remove(name, mark)?;
                self.spaces.remove(name);
                Ok(was_there)
            }
            (Step::Bridge(site, name), Mark::Links(macs)) => self.remove(&[(site.clone(), name.clone())], macs),
            (Step::Veth(ends), Mark::Links(macs)) => self.remove(ends, macs),
            (Step::OvsBridge(name), Mark::Ovs(mark)) => Ok(self.switch(mark).remove(name, mark)?),
            (Step::Rules(rules), Mark::Rules(word)) => {
                let gone = self.rules(|keeper| keeper.take_back(rules, word))?;
                gone.unwrap_or(Ok(false)).map_err(io::Error::other)
            }
            (Step::Process(process), Mark::Process(mark)) => {
                let was_there = process.end(mark);
                // Where it is our own child, nobody else asks how it ended.
                self.waiting.remove(mark.word()).map(|mut child| child.wait()).transpose()?;
                was_there
            }
            // A link that is to stay stays up.
            (Step::Up(..) | Step::Checksums(..) | Step::Host(_), _) => Ok(false),
            _ if self.presence(entry)? != Presence::Here => Ok(false),
            (Step::Forward(name), _) => forwarding::set(self.named(name)?, false).map(|()| true),
            (Step::OvsPort(port, bridge), _) => {
                self.switch_of(bridge)?.remove_port(bridge, port)?;
                Ok(true)
            }
            (Step::Join(site, port, _), _) => {
                let port = self.index(site, port)?;
                self.with_links(site, |links| links.set_master(port, 0)).map(|()| true)
            }
            (Step::Address(site, link, address), _) => {
                let index = self.index(site, link)?;
                self.with_links(site, |links| links.delete_address(index, *address)).map(|()| true)
            }
            (Step::Route(site, to, via, dev), _) => {
                let dev = self.device(site, dev.as_ref())?;
                self.with_links(site, |links| links.delete_route(links::marked(*to, *via, dev))).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Removes the links of these names that were made with these addresses; the ends of a pair go together.
    fn remove(&self, links: &[(Site, IfName)], macs: &[Mac]) -> io::Result<bool> {
        let mut was_there = false;
        for ((site, name), mac) in links.iter().zip(macs) {
            let Some(found) = self.find(site, name)?.filter(|found| mac.is_of(found)) else { continue };
            self.with_links(site, |links| links.delete_link(found.index))?;
            was_there = true;
        }
        Ok(was_there)
    }

    fn of_switch(&self, name: &IfName, mark: &OvsMark) -> io::Result<Presence> {
        Ok(self.switch(mark).presence(name, mark)?)
    }

    fn make_rules(&self, rules: &Rules, word: &str) -> io::Result<()> {
        self.rules(|keeper| keeper.make(rules, word))?.unwrap_or_else(|| Err(missing("the host")))
    }
}
