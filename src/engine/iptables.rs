//! The iptables backend of the engine. Each address family gets one iptables-restore.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::EngineError;
use super::backend::{Backend, Decision, PartialChange, Work};
use super::choice::{BackendId, LOCK_WAIT};
use super::live::Live;
use super::timing::{Phase, Timing};
use crate::iptables::command::{CommandError, Tools, Variant, label_names};
use crate::iptables::compile::{HAIRPIN, Host, compile};
use crate::iptables::diff::{Changes, diff};
use crate::iptables::program::{Contents, FamilyRules, PREFIX, Program, Table};
use crate::iptables::rule::LabelNames;
use crate::iptables::{restore, save};
use crate::model::{DesiredState, Family, IfName, PortMap};
use crate::store::Lock;
use crate::sys::netlink::traffic::{Amount, Traffic};
use crate::sys::rtnetlink;

/// The number of changed rules from which portfwd does not read the rules back. Reading takes a fifth of the time of
/// writing. iptables-restore itself reports if the kernel refuses a rule.
const VERIFY_LIMIT: usize = 2_000;

/// The most attempts to roll back one family while another program holds the xtables lock.
const ROLLBACK_ATTEMPTS: u32 = 12;

/// The iptables backend of one network namespace.
pub(super) struct Iptables {
    programs: Programs,
    /// The locked file from which iptables-restore reads.
    input: Lock,
    /// True if iptables can shift port ranges; `None` before the first test.
    shifts: Option<bool>,
}

/// The iptables commands of both families.
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

    /// Reads portfwd's live rules of both families.
    fn read(&self) -> Result<Program, EngineError> {
        Ok(Program { ipv4: self.read_family(Family::Ipv4)?, ipv6: self.read_family(Family::Ipv6)? })
    }

    fn read_family(&self, family: Family) -> Result<FamilyRules, EngineError> {
        let saved = self.tools(family).and_then(|tools| Ok(tools.save()?));
        match saved {
            Ok(text) => Ok(save::parse(&text, family, &self.names).map_err(CommandError::from)?),
            // A host without IPv6 has no IPv6 rules.
            Err(EngineError::NoIpv6(_) | EngineError::Iptables(CommandError::NoKernel(_)))
                if family == Family::Ipv6 =>
            {
                Ok(FamilyRules::default())
            }
            Err(error) => Err(error),
        }
    }
}

impl Iptables {
    /// Opens the iptables commands of `variant`. `None` stands for the variant of the host's `iptables`. ip6tables
    /// may be missing.
    ///
    /// `path` is the file from which iptables-restore reads. `None` stands for a file in memory. The file stays
    /// locked while an iptables-restore runs, even if the portfwd that started it was killed. This function waits
    /// for the lock.
    pub(super) fn open(variant: Option<Variant>, path: Option<&Path>) -> Result<Self, EngineError> {
        let ipv4 = match variant {
            Some(variant) => Tools::of_variant(Family::Ipv4, variant)?,
            None => Tools::of_host()?,
        };
        // portfwd uses one variant for both families, even if the host's `ip6tables` is of another variant.
        let ipv6 = Tools::of_variant(Family::Ipv6, ipv4.variant);
        let programs = Programs { ipv4, ipv6, names: label_names() };
        Ok(Self { programs, input: input(path)?, shifts: None })
    }

    fn variant(&self) -> Variant {
        self.programs.ipv4.variant
    }

    /// Returns true if iptables and the kernel can shift port ranges. Tests this once, before the first forward
    /// that shifts ports.
    fn shifts(&mut self, desired: &DesiredState) -> Result<bool, EngineError> {
        let shifted = desired.bindings.iter().any(|owned| matches!(owned.rule.to.port, PortMap::Shift(_)));
        if let Some(known) = if shifted { self.shifts } else { Some(true) } {
            return Ok(known);
        }
        let trial = format!(
            "*nat\n:{PREFIX}.TRIAL - [0:0]\n-A {PREFIX}.TRIAL -p tcp --dport 8000:8001 -j DNAT --to-destination 192.0.2.1:9000-9001/8000\nCOMMIT\n"
        );
        let (tools, input) = (&self.programs.ipv4, &mut self.input);
        let trial = || -> Result<bool, EngineError> {
            // The trial creates a table. A new network namespace keeps the table out of the current one. If
            // unshare(2) is not permitted, the trial runs in the current namespace.
            let _: Result<(), Errno> = unshare(CloneFlags::CLONE_NEWNET);
            Ok(tools.accepts(&trial, input)?)
        };
        let known = std::thread::scope(|scope| scope.spawn(trial).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.shifts = Some(known);
        Ok(known)
    }

    /// Reads the rules of a family again, and copies the current policies and their counters to `changes`. Returns
    /// true if portfwd's rules still equal `before`.
    fn refresh(&self, changes: &mut Changes, family: Family, before: &Program) -> Result<bool, EngineError> {
        let now = self.programs.read_family(family)?;
        for (table, changes) in &mut changes.0 {
            changes.policies.clone_from(&now.table(*table).policies);
        }
        Ok(Table::ALL.into_iter().all(|table| now.table(table).same_content(before.family(family).table(table))))
    }

    fn restore(&mut self, family: Family, text: &str) -> Result<(), EngineError> {
        let tools = self.programs.tools(family)?.clone();
        Ok(tools.restore(text, &mut self.input)?)
    }

    /// Returns true if another program changed the tables that iptables-restore refused to change. In this case a
    /// table differs from both `before` and `after`, or all tables already equal `after`.
    fn changed_since(&self, before: &FamilyRules, after: &FamilyRules, family: Family) -> Result<bool, EngineError> {
        let now = self.programs.read_family(family)?;
        let is = |of: &FamilyRules, table: Table| now.table(table).same_content(of.table(table));
        let known = |table| is(before, table) || is(after, table);
        Ok(!Table::ALL.into_iter().all(known) || Table::ALL.into_iter().all(|table| is(after, table)))
    }

    /// Restores the rules of `families` to `before`, with their counters. While the xtables lock is busy, makes up
    /// to [`ROLLBACK_ATTEMPTS`] attempts.
    fn roll_back(&mut self, families: &[Family], before: &Program) -> Result<(), EngineError> {
        for family in families.iter().copied() {
            let half = |error| EngineError::NotRolledBack { family, error: Box::new(error) };
            let changes = diff(&self.programs.read_family(family).map_err(half)?, before.family(family));
            if changes.is_empty() {
                continue;
            }
            let text = restore::text(&changes, self.variant());
            if !restore::is_sound(&changes) {
                let what = "another program's rule in portfwd's chains contains a line end, so it cannot be restored"
                    .to_owned();
                return Err(half(EngineError::Differs(what)));
            }
            let mut put = self.restore(family, &text);
            for _ in 1..ROLLBACK_ATTEMPTS {
                if !matches!(put, Err(EngineError::Iptables(CommandError::Busy))) {
                    break;
                }
                put = self.restore(family, &text);
            }
            put.map_err(half)?;
        }
        Ok(())
    }

    fn compare(&self, changes: &[(Family, Changes)], program: &Program) -> Result<(), EngineError> {
        for (family, changes) in changes {
            if changes.rules() >= VERIFY_LIMIT {
                continue;
            }
            let now = self.programs.read_family(*family).map_err(|error| EngineError::Unchecked(Box::new(error)))?;
            for table in Table::ALL {
                let (now, planned) = (now.table(table), program.family(*family).table(table));
                // Ignores the positions of portfwd's jumps. If another program inserts a rule before a
                // jump, the next plan shows the difference.
                if now.same_content(&Contents { hooks: now.hooks.clone(), ..planned.clone() })
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

impl Backend for Iptables {
    fn id(&self) -> BackendId {
        BackendId::Iptables(self.variant())
    }

    fn versions(&self) -> Vec<String> {
        let Programs { ipv4, ipv6, .. } = &self.programs;
        [Some(ipv4), ipv6.as_ref().ok()].into_iter().flatten().filter_map(|tools| tools.version().ok()).collect()
    }

    fn live(&mut self, timing: &mut Timing) -> Result<Live, EngineError> {
        Ok(Live::Iptables(timing.measure(Phase::Read, || self.programs.read())?.into()))
    }

    fn plan(&mut self, desired: &Arc<DesiredState>, timing: &mut Timing) -> Result<Decision, EngineError> {
        let shifts = self.shifts(desired)?;
        let interfaces = rtnetlink::interfaces().map_err(EngineError::Interfaces)?;
        let compiled =
            |interfaces: &BTreeSet<IfName>| compile(desired, &Host { interfaces: interfaces.clone(), shifts });
        let program = timing.measure(Phase::Compile, || compiled(&interfaces));
        let before = Arc::new(timing.measure(Phase::Read, || self.programs.read())?);
        let work = |program: Program| {
            let of = |family| (family, diff(before.family(family), program.family(family)));
            let changes = Family::ALL.map(of).into_iter().filter(|(_, changes)| !changes.is_empty()).collect();
            Work::Iptables { changes, program: program.into(), before: Arc::clone(&before) }
        };
        let decision =
            |work| Decision { live: Live::Iptables(Arc::clone(&before)), work, compared: Arc::clone(desired) };
        // A hairpin rule for a removed interface is harmless. If nothing else differs, the plan is empty.
        let gone: BTreeSet<IfName> = hairpin_interfaces(&before).difference(&interfaces).cloned().collect();
        if !gone.is_empty() {
            let lenient = work(compiled(&interfaces.union(&gone).cloned().collect())?);
            if lenient.is_empty() {
                return Ok(decision(lenient));
            }
        }
        let program = program?;
        let work = timing.measure(Phase::Plan, || work(program));
        Ok(decision(work))
    }

    /// Returns `None`, because iptables-restore rewrites whole chains and needs all rules.
    fn plan_partial(&mut self, _: &PartialChange<'_>, _: &mut Timing) -> Result<Option<Decision>, EngineError> {
        Ok(None)
    }

    /// Sends the changes of both families. If one family fails, rolls both families back.
    fn send(&mut self, work: &mut Work, timing: &mut Timing) -> Result<Option<Vec<String>>, EngineError> {
        let Work::Iptables { changes, before, program: after } = work else { return Ok(None) };
        let mut sent = Vec::new();
        let mut touched = Vec::new();
        for (family, changes) in changes {
            // Rule numbers in edits must be current. iptables-legacy also writes the policies of whole
            // tables.
            if self.variant() == Variant::Legacy || changes.has_edits() {
                let unchanged = self.refresh(changes, *family, before);
                if !matches!(unchanged, Ok(true)) {
                    self.roll_back(&touched, before)?;
                    return unchanged.map(|_| None);
                }
            }
            touched.push(*family);
            let text = timing.measure(Phase::Encode, || restore::text(changes, self.variant()));
            timing
                .said(Phase::Kernel, Traffic { sent: Amount { messages: 0, bytes: text.len() }, ..Traffic::default() });
            if let Err(error) = timing.measure(Phase::Kernel, || self.restore(*family, &text)) {
                let refused = matches!(error, EngineError::Iptables(CommandError::Refused { .. }));
                let stale = refused
                    && self.changed_since(before.family(*family), after.family(*family), *family).unwrap_or_default();
                self.roll_back(&touched, before)?;
                return if stale { Ok(None) } else { Err(error) };
            }
            sent.push(text);
        }
        // Empties the input file, because rules may be confidential.
        let _: io::Result<()> = self.input.set_len(0);
        Ok(Some(sent))
    }

    /// Verifies changes of fewer than [`VERIFY_LIMIT`] rules.
    fn verify(&mut self, work: &Work, timing: &mut Timing) -> Result<(), EngineError> {
        let Work::Iptables { changes, program, .. } = work else { return Ok(()) };
        timing.measure(Phase::Read, || self.compare(changes, program))
    }
}

/// Returns the interfaces of the live hairpin rules.
fn hairpin_interfaces(program: &Program) -> BTreeSet<IfName> {
    let chains = Family::ALL.into_iter().filter_map(|family| program.family(family).mangle.chains.get(HAIRPIN));
    let rules = chains.flat_map(|chain| &chain.rules);
    rules.filter_map(|rule| rule.input.as_ref()).map(|input| input.name.clone()).collect()
}

/// Waits for an iptables-restore whose portfwd was killed. Without this wait, the old change could overwrite a later
/// change.
pub(super) fn wait_for_last_restore(path: &Path) -> Result<(), EngineError> {
    input(Some(path)).map(drop)
}

/// Opens and locks the input file of iptables-restore.
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
