//! Committing to iptables: one iptables-restore for each family.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::backend::Work;
use super::timing::{Phase, Timing};
use super::{EngineError, LOCK_WAIT, together};
use crate::iptables::command::{CommandError, Tools, Variant, label_names};
use crate::iptables::compile::{HAIRPIN, Host, compile};
use crate::iptables::diff::{Changes, diff};
use crate::iptables::program::{Contents, Half, PREFIX, Program, Table};
use crate::iptables::rule::LabelNames;
use crate::iptables::{restore, save};
use crate::model::{Asked, Family, IfName, PortMap};
use crate::nft::traffic::{Amount, Traffic};
use crate::store::Lock;
use crate::sys::link;

/// From how many rules on what was written is not read back: that takes a fifth of the time of writing it, and
/// iptables-restore says itself whether the kernel took it.
const CHECKED: usize = 2_000;

/// How many times the lock of others is waited for where giving up would leave the families apart.
const PATIENCE: u32 = 12;

/// The programs of both families, and the file they are fed from.
pub(super) struct Iptables {
    programs: Arc<Programs>,
    input: Lock,
    /// Whether ranges can be shifted; not known before it was needed.
    shifts: Option<bool>,
    /// What the next one who reads is given.
    reading: Option<Reading>,
}

/// What need not be read again, once.
enum Reading {
    /// It is being read since they were opened.
    Begun(JoinHandle<Result<Program, EngineError>>),
    /// It was read a moment ago.
    Done(Arc<Program>),
}

/// The programs of both families.
struct Programs {
    ipv4: Tools,
    ipv6: Result<Tools, CommandError>,
    names: LabelNames,
}

impl Programs {
    fn tools(&self, family: Family) -> Result<&Tools, EngineError> {
        match (family, &self.ipv6) {
            (Family::Ipv4, _) => Ok(&self.ipv4),
            (Family::Ipv6, Ok(tools)) => Ok(tools),
            (Family::Ipv6, Err(error)) => Err(EngineError::NoIpv6(error.to_string())),
        }
    }

    /// Reads what is ours.
    fn read(&self) -> Result<Program, EngineError> {
        let (ipv4, ipv6) = together(|| self.read_family(Family::Ipv4), || self.read_family(Family::Ipv6));
        Ok(Program { ipv4: ipv4?, ipv6: ipv6? })
    }

    fn read_family(&self, family: Family) -> Result<Half, EngineError> {
        let saved = self.tools(family).and_then(|tools| Ok(tools.save()?));
        match saved {
            Ok(text) => Ok(save::parse(&text, family, &self.names).map_err(CommandError::from)?),
            // A host without IPv6 holds nothing of it.
            Err(EngineError::NoIpv6(_) | EngineError::Iptables(CommandError::NoKernel(_)))
                if family == Family::Ipv6 =>
            {
                Ok(Half::default())
            }
            Err(error) => Err(error),
        }
    }
}

impl Iptables {
    /// Finds the programs of a variant, or those that the host's own are of. Without IPv6 there may be none for it.
    ///
    /// `path` is the file that an iptables-restore reads its input from. It is locked as long as one of them runs, also one
    /// that outlived the portfwd which started it; so this waits for that to end.
    pub(super) fn open(variant: Option<Variant>, path: Option<&Path>) -> Result<Self, EngineError> {
        let ipv4 = match variant {
            Some(variant) => Tools::of_variant(Family::Ipv4, variant)?,
            None => Tools::of_host()?,
        };
        // One variant for both families, whatever `ip6tables` is: so it is clear where all rules of ours are.
        let ipv6 = Tools::of_variant(Family::Ipv6, ipv4.variant);
        let (programs, input) = (Arc::new(Programs { ipv4, ipv6, names: label_names() }), input(path)?);
        // Every command reads first; meanwhile it can find out what is asked.
        let reader = Arc::clone(&programs);
        let reading = Some(Reading::Begun(std::thread::spawn(move || reader.read())));
        Ok(Self { programs, input, shifts: None, reading })
    }

    pub(super) fn variant(&self) -> Variant {
        self.programs.ipv4.variant
    }

    /// What the programs say of their versions.
    pub(super) fn versions(&self) -> impl Iterator<Item = String> {
        let Programs { ipv4, ipv6, .. } = &*self.programs;
        [Some(ipv4), ipv6.as_ref().ok()].into_iter().flatten().filter_map(|tools| tools.version().ok())
    }

    /// Reads what is ours.
    pub(super) fn read(&mut self) -> Result<Arc<Program>, EngineError> {
        match self.reading.take() {
            Some(Reading::Begun(reading)) => {
                reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Arc::new)
            }
            Some(Reading::Done(program)) => Ok(program),
            None => self.programs.read().map(Arc::new),
        }
    }

    /// Gives what was read a moment ago to the next one who reads, who decides on it.
    pub(super) fn has_read(&mut self, program: Arc<Program>) {
        self.reading = Some(Reading::Done(program));
    }

    /// What is there, and what would have to change.
    pub(super) fn decide(&mut self, asked: &Asked, timing: &mut Timing) -> Result<(Arc<Program>, Work), EngineError> {
        let shifts = self.shifts(asked)?;
        let interfaces = link::interfaces().map_err(EngineError::Interfaces)?;
        let compiled = |interfaces: &BTreeSet<IfName>| compile(asked, &Host { interfaces: interfaces.clone(), shifts });
        let program = timing.of(Phase::Compile, || compiled(&interfaces));
        let before = timing.of(Phase::Read, || self.read())?;
        let work = |program: Program| {
            let of = |family| (family, diff(before.of(family), program.of(family)));
            let changes = Family::ALL.map(of).into_iter().filter(|(_, changes)| !changes.is_empty()).collect();
            Work::Iptables { changes, program: program.into(), before: Arc::clone(&before) }
        };
        // A rule for an interface that is gone does no harm; for that alone nothing is changed.
        let gone: BTreeSet<IfName> = met_interfaces(&before).difference(&interfaces).cloned().collect();
        if !gone.is_empty() {
            let lenient = work(compiled(&interfaces.union(&gone).cloned().collect())?);
            if lenient.is_empty() {
                return Ok((before, lenient));
            }
        }
        let program = program?;
        let work = timing.of(Phase::Plan, || work(program));
        Ok((before, work))
    }

    /// Whether these programs and this kernel shift ranges of ports, found out by use where something asks for it.
    fn shifts(&mut self, asked: &Asked) -> Result<bool, EngineError> {
        let shifted = asked.bindings.iter().any(|owned| matches!(owned.rule.to.port, PortMap::Shift(_)));
        if let Some(known) = if shifted { self.shifts } else { Some(true) } {
            return Ok(known);
        }
        let trial = format!(
            "*nat\n:{PREFIX}.TRIAL - [0:0]\n-A {PREFIX}.TRIAL -p tcp --dport 8000:8001 -j DNAT --to-destination 192.0.2.1:9000-9001/8000\nCOMMIT\n"
        );
        let (tools, input) = (&self.programs.ipv4, &mut self.input);
        let trial = || -> Result<bool, EngineError> {
            // In a namespace that is gone afterwards, so that no table is made in this one. Where none may be made, here.
            let _: Result<(), Errno> = unshare(CloneFlags::CLONE_NEWNET);
            Ok(tools.accepts(&trial, input)?)
        };
        let known = std::thread::scope(|scope| scope.spawn(trial).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.shifts = Some(known);
        Ok(known)
    }

    /// Has the changes made. Where one family's fail, both are as before; gives nothing where that was because somebody
    /// else changed the rules since they were read.
    pub(super) fn carry_out(
        &mut self,
        changes: &mut [(Family, Changes)],
        before: &Program,
        after: &Program,
        timing: &mut Timing,
    ) -> Result<Option<Vec<String>>, EngineError> {
        let mut sent = Vec::new();
        let mut touched = Vec::new();
        for (family, changes) in changes {
            // What is changed by its place must be in that place; and iptables-legacy writes policies with whole tables.
            if self.variant() == Variant::Legacy || changes.has_edits() {
                let still = self.still(changes, *family, before);
                if !matches!(still, Ok(true)) {
                    self.put_back(&touched, before)?;
                    return still.map(|_| None);
                }
            }
            touched.push(*family);
            let text = timing.of(Phase::Encode, || restore::text(changes, *family, self.variant()));
            timing
                .said(Phase::Kernel, Traffic { sent: Amount { messages: 0, bytes: text.len() }, ..Traffic::default() });
            if let Err(error) = timing.of(Phase::Kernel, || self.restore(*family, &text)) {
                let refused = matches!(error, EngineError::Iptables(CommandError::Refused { .. }));
                let stale =
                    refused && self.changed_since(before.of(*family), after.of(*family), *family).unwrap_or_default();
                self.put_back(&touched, before)?;
                return if stale { Ok(None) } else { Err(error) };
            }
            sent.push(text);
        }
        // Nobody needs to read our rules there.
        let _: io::Result<()> = self.input.set_len(0);
        Ok(Some(sent))
    }

    /// Reads a family once more, takes over what its policies are and counted by now, and says whether our rules are still
    /// those that the changes were decided on.
    fn still(&self, changes: &mut Changes, family: Family, before: &Program) -> Result<bool, EngineError> {
        let now = self.programs.read_family(family)?;
        for (table, changes) in &mut changes.0 {
            changes.policies.clone_from(&now.of(*table).policies);
        }
        Ok(Table::ALL.into_iter().all(|table| now.of(table).says_the_same(before.of(family).of(table))))
    }

    fn restore(&mut self, family: Family, text: &str) -> Result<(), EngineError> {
        let tools = self.programs.tools(family)?.clone();
        Ok(tools.restore(text, &mut self.input)?)
    }

    /// Whether some table of a family is neither as it was read nor as it was to be, or all are as they were to be although
    /// they were refused: then somebody else changed them in between.
    fn changed_since(&self, before: &Half, after: &Half, family: Family) -> Result<bool, EngineError> {
        let now = self.programs.read_family(family)?;
        let is = |of: &Half, table: Table| now.of(table).says_the_same(of.of(table));
        let known = |table| is(before, table) || is(after, table);
        Ok(!Table::ALL.into_iter().all(known) || Table::ALL.into_iter().all(|table| is(after, table)))
    }

    /// Makes the rules of some families what they were, counters included. A lock of others is waited for longer than usual
    /// then.
    fn put_back(&mut self, families: &[Family], before: &Program) -> Result<(), EngineError> {
        for family in families.iter().copied() {
            let half = |error| EngineError::Half { family, error: Box::new(error) };
            let changes = diff(&self.programs.read_family(family).map_err(half)?, before.of(family));
            if changes.is_empty() {
                continue;
            }
            let text = restore::text(&changes, family, self.variant());
            if !restore::is_sound(&changes) {
                let what = "somebody else's rule in our chains holds a line end, and is not written".to_owned();
                return Err(half(EngineError::Differs(what)));
            }
            let mut put = self.restore(family, &text);
            for _ in 1..PATIENCE {
                if !matches!(put, Err(EngineError::Iptables(CommandError::Busy))) {
                    break;
                }
                put = self.restore(family, &text);
            }
            put.map_err(half)?;
        }
        Ok(())
    }

    /// Reads what was written, where it is little, and compares.
    pub(super) fn check(&self, changes: &[(Family, Changes)], program: &Program) -> Result<(), EngineError> {
        for (family, changes) in changes {
            if changes.rules() >= CHECKED {
                continue;
            }
            let now = self.programs.read_family(*family).map_err(|error| EngineError::Unchecked(Box::new(error)))?;
            for table in Table::ALL {
                let (now, planned) = (now.of(table), program.of(*family).of(table));
                // Who came in front of us meanwhile is for the next plan to show.
                if now.says_the_same(&Contents { hooks: now.hooks.clone(), ..planned.clone() })
                    && now.hooks.keys().eq(planned.hooks.keys())
                {
                    continue;
                }
                return Err(EngineError::Differs(format!("the table `{}` of {family}", table.name())));
            }
        }
        Ok(())
    }
}

/// The interfaces that rules about neighbours of a target name.
fn met_interfaces(program: &Program) -> BTreeSet<IfName> {
    let chains = Family::ALL.into_iter().filter_map(|family| program.of(family).mangle.chains.get(HAIRPIN));
    let rules = chains.flat_map(|chain| &chain.rules);
    rules.filter_map(|rule| rule.input.as_ref()).map(|input| input.name.clone()).collect()
}

/// Waits for an iptables-restore that outlived the portfwd which started it: what it does must not come after what others
/// do.
pub(super) fn wait_for_the_last(path: &Path) -> Result<(), EngineError> {
    input(Some(path)).map(drop)
}

/// Opens and locks the file that iptables-restore reads from.
fn input(path: Option<&Path>) -> Result<Lock, EngineError> {
    let failed = |error: io::Error| EngineError::Input(error);
    let file = match path {
        Some(path) => {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path).map_err(failed)?
        }
        None => {
            let unnamed = memfd_create(c"portfwd", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;
            File::from(unnamed)
        }
    };
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock::of_locked(file)),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(TryLockError::WouldBlock) => return Err(EngineError::Busy),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}
