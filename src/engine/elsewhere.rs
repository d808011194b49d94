//! Rules of ours in other places than the one that is worked with: left by another backend, or another variant of iptables.

use std::time::Instant;

use super::{Backend, Engine, EngineError, Home, Live, Timing};
use crate::iptables::command::Variant;
use crate::iptables::program::PREFIX;
use crate::model::Asked;
use crate::nft::decode::has_chain;
use crate::nft::transaction::{Connection, KernelError, PATIENCE};

/// Another backend that holds rules of ours, or why that cannot be told.
type Found = Result<Backend, EngineError>;

impl Engine {
    /// Takes it that every variant of iptables that is installed may hold rules of ours, whatever the state knows.
    ///
    /// So nothing of ours is to be left, whatever the state knows of it.
    pub fn suspect_everywhere(&mut self) {
        self.suspected = Variant::ALL.into();
        self.takes_over = true;
    }

    /// The other places that hold rules of ours, or may and cannot be asked.
    pub fn elsewhere(&self) -> Vec<Home> {
        self.others().into_iter().map(|(home, _)| home).collect()
    }

    /// The other places that may hold rules of ours. Those that are only suspected are left out where
    /// they cannot be read.
    fn others(&self) -> Vec<(Home, Found)> {
        let here = self.home();
        let known = |home: Home| matches!(home, Home::Iptables(variant) if self.state.iptables.contains(&variant));
        let variants = self.state.iptables.union(&self.suspected).copied().map(Home::Iptables);
        let homes = variants.chain([Home::Nft]).filter(|home| *home != here);
        let read = |home: Home| -> Result<Option<Backend>, EngineError> {
            let mut backend = match home {
                Home::Nft => Backend::nft()?,
                Home::Iptables(variant) => Backend::iptables(Some(variant), None)?,
            };
            let holds = match backend.live(&mut Timing::default())? {
                Live::Nft { program, .. } => program.table,
                Live::Iptables(program) => !program.is_empty(),
            };
            Ok(holds.then_some(backend))
        };
        let mut others = Vec::new();
        for home in homes {
            match read(home) {
                Ok(found) => others.extend(found.map(|backend| (home, Ok(backend)))),
                Err(EngineError::Kernel(KernelError::NoNfTables(_))) => {}
                // Where the kernel holds nothing that could be ours, it does not matter that the programs are gone.
                Err(_) if home != Home::Nft && (!known(home) || !may_hold(home)) => {}
                Err(error) => others.push((home, Err(error))),
            }
        }
        others
    }

    /// Removes the rules of ours that other backends hold, and gives where they were.
    pub(super) fn leave_others(&mut self) -> Result<Vec<Home>, EngineError> {
        let mut left = Vec::new();
        let nothing = Asked::default();
        for (home, found) in self.others() {
            let mut remove = |found: Found| -> Result<(), EngineError> {
                let mut other = found?;
                let until = Instant::now() + PATIENCE;
                loop {
                    let timing = &mut self.timing;
                    let (_, mut work) = other.decide(&nothing, timing)?;
                    match other.carry_out(&mut work, timing)? {
                        Some(_) => return Ok(()),
                        None if Instant::now() > until => return Err(EngineError::Busy),
                        None => {}
                    }
                }
            };
            remove(found).map_err(|error| EngineError::Left { home, error: Box::new(error) })?;
            left.push(home);
        }
        Ok(left)
    }
}

/// Whether rules of ours may be somewhere at all: whether nf_tables has a chain of such a name, and whether tables of
/// iptables-legacy, which the kernel lists, were made since it booted.
fn may_hold(home: Home) -> bool {
    match home {
        Home::Nft => true,
        Home::Iptables(Variant::Nft) => {
            match Connection::open().and_then(|mut kernel| has_chain(&mut kernel, PREFIX)) {
                Ok(found) => found,
                Err(error) => !matches!(error, KernelError::NoNfTables(_)),
            }
        }
        Home::Iptables(Variant::Legacy) => {
            let names = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];
            names.iter().any(|path| {
                std::fs::read_to_string(path)
                    .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |tables| !tables.is_empty())
            })
        }
    }
}
