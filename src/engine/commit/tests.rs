//! Tests of each phase of a commit. The fake backend records its calls and fails on request. Each test runs in its own
//! network namespace, so it touches no sysctl and no connection of the host.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;

use nix::libc;
use nix::sched::{CloneFlags, unshare};

use super::super::backend::Backend;
use super::super::{LOCK_WAIT, Part, Scope, Timing};
use super::*;
use crate::model::{Forward, IpForward, SetName, SetRule, Settings};
use crate::nft::compile::compile;
use crate::nft::diff::diff;
use crate::nft::program::Program;
use crate::store::{Deadline, Store, Unconfirmed};

/// The answer of the fake kernel to one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Committed,
    /// Another program committed first.
    Stale,
    Refused,
    /// The kernel committed the batch, but the acknowledgement was lost.
    Unheard,
}

/// A fake nftables backend with its live rules.
struct Fake {
    live: Program,
    generation: u32,
    answers: VecDeque<Answer>,
    verifies: bool,
    calls: Rc<RefCell<Vec<&'static str>>>,
}

impl Backend for Fake {
    fn id(&self) -> BackendId {
        BackendId::Nft
    }

    fn versions(&self) -> Vec<String> {
        Vec::new()
    }

    fn live(&mut self, _: &mut Timing) -> Result<Live, EngineError> {
        Ok(Live::Nft { program: self.live.clone(), generation: self.generation })
    }

    fn plan(&mut self, desired: &Arc<DesiredState>, timing: &mut Timing) -> Result<Decision, EngineError> {
        self.calls.borrow_mut().push("plan");
        let live = self.live(timing)?;
        let program = compile(desired)?;
        let changes = Box::new(diff(&self.live, &program));
        let work = Work::Nft { changes, program, generation: self.generation };
        Ok(Decision { live, work, compared: Arc::clone(desired) })
    }

    fn plan_partial(&mut self, _: &PartialChange<'_>, _: &mut Timing) -> Result<Option<Decision>, EngineError> {
        self.calls.borrow_mut().push("plan partially");
        Ok(None)
    }

    fn send(&mut self, work: &mut Work, _: &mut Timing) -> Result<Option<Vec<String>>, EngineError> {
        self.calls.borrow_mut().push("send");
        let Work::Nft { program, .. } = work else { panic!("{work:?}") };
        let refused = |code| std::io::Error::from_raw_os_error(code);
        match self.answers.pop_front().unwrap_or(Answer::Committed) {
            Answer::Committed => {
                self.live = program.clone();
                self.generation += 1;
                Ok(Some(vec!["sent".into()]))
            }
            Answer::Stale => {
                self.generation += 1;
                Ok(None)
            }
            Answer::Refused => {
                Err(EngineError::Refused { subject: "a rule".into(), reason: None, error: refused(libc::EINVAL) })
            }
            Answer::Unheard => {
                self.live = program.clone();
                let lost = crate::nft::transaction::KernelError::Unreadable("the batch");
                Err(CommitError::Unheard(lost).into())
            }
        }
    }

    fn verify(&mut self, _: &Work, _: &mut Timing) -> Result<(), EngineError> {
        self.calls.borrow_mut().push("verify");
        if self.verifies { Ok(()) } else { Err(EngineError::Differs("a chain".into())) }
    }
}

/// A temporary state directory, and the calls of the fake backend.
struct Fixture {
    directory: tempfile::TempDir,
    calls: Rc<RefCell<Vec<&'static str>>>,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), calls: Rc::default() }
    }

    fn engine(&self, live: &State, answers: &[Answer]) -> Engine {
        let identity = crate::sys::namespace::Identity::Host;
        let store = Store::open(self.directory.path(), &identity, true, LOCK_WAIT).expect("the store opens");
        let state = store.load().expect("the state loads");
        let live = if live.desired.is_empty() { Program::default() } else { compile(&live.desired).expect("compiles") };
        let answers = answers.iter().copied().collect();
        let fake = Fake { live, generation: 7, answers, verifies: true, calls: Rc::clone(&self.calls) };
        self.calls.borrow_mut().clear();
        Engine {
            backend: Box::new(fake),
            choice: Choice::Nft,
            fallback_reason: None,
            store,
            state,
            scope: Scope::Full,
            replaces_unknown: false,
            suspected: BTreeSet::new(),
            quarantined: None,
            timing: Timing::default(),
        }
    }

    fn on_disk(&self) -> State {
        self.engine(&State::default(), &[]).state.clone()
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.take()
    }
}

/// Runs a test in a thread with its own network namespace.
fn isolated(test: impl FnOnce() + Send) {
    let run = || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "a network namespace is needed: {error}");
            eprintln!("NOT RUN: a network namespace is needed: {error}");
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("the test passes"));
}

/// Returns a state with a forward at each port. The state does not change ip_forward.
fn state(ports: &[u16]) -> State {
    let mut desired = DesiredState::default();
    for port in ports {
        let forward = Forward::new(port.to_string().parse().expect("listen"), "10.0.0.1".parse().expect("target"));
        let bindings = forward.bindings().expect("valid").into_iter();
        desired.bindings.extend(bindings.map(|rule| SetRule { set: SetName::cli(), rule }));
    }
    let settings = Settings { ip_forward: IpForward::Keep, ..Settings::default() };
    desired.settings.insert(SetName::cli(), settings);
    desired.normalize();
    State { desired: desired.into(), ..State::default() }
}

fn pending(state: State) -> State {
    let until = Deadline::after(std::time::Duration::from_secs(60));
    let unconfirmed =
        Unconfirmed { until, desired: Arc::default(), origins: std::collections::BTreeMap::new(), sysctls: Vec::new() };
    State { unconfirmed: Some(unconfirmed), ..state }
}

#[test]
fn a_commit_runs_its_phases_in_order_and_marks_the_change_finished() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        let outcome = engine.commit(state(&[80]), Options::default()).expect("commits");
        assert_eq!(fixture.calls(), ["plan", "send", "verify"]);
        assert_eq!(outcome.plan.counts(), (1, 0, 0));
        assert_eq!(outcome.messages, ["sent"]);
        drop(engine);
        let kept = fixture.on_disk();
        assert_eq!(kept.desired, state(&[80]).desired);
        assert_eq!((kept.unfinished, kept.committed), (None, Some(8)));
        assert!(kept.verified.is_some_and(|verified| verified.is(8)));
    });
}

#[test]
fn a_change_is_refused_while_another_change_is_pending() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        engine.persist(&pending(state(&[80]))).expect("writes");
        let refused = engine.commit(pending(state(&[80, 81])), Options::default());
        assert!(matches!(refused, Err(EngineError::Unconfirmed(_))), "{refused:?}");
        assert_eq!(fixture.calls(), [""; 0]);
    });
}

#[test]
fn a_change_is_refused_if_rules_are_live_but_the_state_is_empty() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&state(&[80]), &[]);
        let refused = engine.commit(state(&[81]), Options::default());
        assert!(matches!(refused, Err(EngineError::Unknown(BackendId::Nft, 1))), "{refused:?}");
        assert_eq!(fixture.calls(), ["plan"]);
        drop(engine);
        assert_eq!(fixture.on_disk(), State::default());
    });
}

#[test]
fn the_desired_state_is_on_disk_before_a_batch_is_sent() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        let mut change = Transaction::load(&mut engine, state(&[80]), Options::default()).expect("loads");
        change.plan().expect("plans");
        change.persist_intent().expect("writes");
        drop(engine);
        let kept = fixture.on_disk();
        assert_eq!(kept.desired, state(&[80]).desired);
        assert_eq!(kept.unfinished, Some(Unfinished { keep_connections: false, gone: [].into() }));
    });
}

#[test]
fn a_failed_sysctl_restores_the_state_on_disk() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        let mut change = Transaction::load(&mut engine, state(&[80]), Options::default()).expect("loads");
        change.plan().expect("plans");
        change.persist_intent().expect("writes");
        let missing = sysctl::Change { key: "ipv4/no_such_sysctl".into(), before: "0".into(), after: "1".into() };
        change.sysctls = Sysctls::to_switch_on(vec![missing]);
        let error = change.set_sysctls().expect_err("there is no such sysctl");
        let error = change.roll_back(error);
        assert!(matches!(error, EngineError::Sysctl(_)), "{error:?}");
        assert_eq!(fixture.calls(), ["plan"]);
        drop(engine);
        assert_eq!(fixture.on_disk(), State::default());
    });
}

#[test]
fn a_refused_batch_restores_the_sysctls_and_the_state_on_disk() {
    isolated(|| {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("readable");
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[Answer::Refused]);
        let mut change = Transaction::load(&mut engine, state(&[80]), Options::default()).expect("loads");
        change.plan().expect("plans");
        change.persist_intent().expect("writes");
        let before = read();
        assert_eq!(before, "0\n");
        let forward = sysctl::Change { key: "ipv4/ip_forward".into(), before: "0".into(), after: "1".into() };
        change.sysctls = Sysctls::to_switch_on(vec![forward]);
        change.set_sysctls().expect("sets");
        assert_eq!(read(), "1\n");
        let Err(error) = change.send() else { panic!("the kernel refuses") };
        let error = change.roll_back(error);
        assert!(matches!(error, EngineError::Refused { .. }), "{error:?}");
        assert_eq!(read(), before);
        drop(engine);
        assert_eq!(fixture.on_disk(), State::default());
    });
}

#[test]
fn a_change_is_planned_again_if_another_program_committed_first() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[Answer::Stale, Answer::Stale]);
        engine.commit(state(&[80]), Options::default()).expect("commits");
        assert_eq!(fixture.calls(), ["plan", "send", "plan", "send", "plan", "send", "verify"]);
        drop(engine);
        assert_eq!(fixture.on_disk().committed, Some(10));
    });
}

#[test]
fn a_lost_acknowledgement_keeps_the_change_unfinished() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[Answer::Unheard]);
        let error = engine.commit(state(&[80]), Options::default()).expect_err("unheard");
        assert!(matches!(error, EngineError::Commit(CommitError::Unheard(_))), "{error:?}");
        drop(engine);
        let kept = fixture.on_disk();
        assert!(kept.desired.is_empty() && kept.unfinished.is_some() && kept.verified.is_none(), "{kept:?}");
    });
}

#[test]
fn rules_that_differ_after_the_commit_are_not_recorded_as_verified() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        let mut change = Transaction::load(&mut engine, state(&[80]), Options::default()).expect("loads");
        change.plan().expect("plans");
        let sent = change.send().expect("commits");
        let verified = Err(EngineError::Differs("a chain".into()));
        assert_eq!(change.persist_end(&sent, &verified, &Ok(Vec::new()), &Ok(0)), None);
        drop(engine);
        let kept = fixture.on_disk();
        assert_eq!((kept.desired, kept.verified), (state(&[80]).desired, None));
    });
}

#[test]
fn a_failed_deletion_of_connections_keeps_the_change_unfinished() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        let mut change = Transaction::load(&mut engine, state(&[80]), Options::default()).expect("loads");
        change.plan().expect("plans");
        change.persist_intent().expect("writes");
        let sent = change.send().expect("commits");
        let refused = Err(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(change.persist_end(&sent, &Ok(()), &Ok(Vec::new()), &refused), None);
        drop(engine);
        assert!(fixture.on_disk().unfinished.is_some());
        let mut engine = fixture.engine(&state(&[80]), &[]);
        assert!(engine.finish_interrupted().expect("finishes"));
        drop(engine);
        assert_eq!(fixture.on_disk().unfinished, None);
    });
}

#[test]
fn nothing_is_sent_if_the_live_rules_are_the_desired_ones() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&state(&[80]), &[]);
        engine.replaces_unknown = true;
        let outcome = engine.commit(state(&[80]), Options::default()).expect("commits");
        assert_eq!(fixture.calls(), ["plan"]);
        assert!(outcome.plan.is_empty() && outcome.messages.is_empty());
        drop(engine);
        assert_eq!(fixture.on_disk().desired, state(&[80]).desired);
    });
}

#[test]
fn a_partial_plan_falls_back_to_a_full_plan() {
    isolated(|| {
        let fixture = Fixture::new();
        let mut engine = fixture.engine(&State::default(), &[]);
        engine.commit(state(&[80, 81]), Options::default()).expect("commits");
        let full = engine.state.clone();
        fixture.calls();
        // Loads only port 80, the representative of port 81.
        let representatives = full.representatives.clone();
        engine.state = State { desired: state(&[80]).desired, representatives: representatives.clone(), ..full };
        engine.scope = Scope::Partial(Part { bindings: Vec::new(), sets: Vec::new() });
        let after = State { desired: state(&[80, 82]).desired, representatives, ..engine.state.clone() };
        engine.commit(after, Options::default()).expect("commits");
        assert_eq!(fixture.calls(), ["plan partially", "plan", "send", "verify"]);
        assert_eq!(engine.state.desired, state(&[80, 81, 82]).desired);
    });
}

#[test]
fn only_a_missing_kernel_feature_causes_the_fallback_to_iptables() {
    let refused = |code: i32| EngineError::Refused {
        subject: "a rule of the chain `nat-prerouting`".into(),
        reason: None,
        error: io::Error::from_raw_os_error(code),
    };
    for code in [libc::ENOENT, libc::EOPNOTSUPP] {
        let why = missing_feature(&refused(code)).expect("a feature is missing");
        assert_eq!(why, "the nf_tables of this kernel lacks a part of a rule of the chain `nat-prerouting`");
    }
    for code in [libc::EPERM, libc::EBUSY, libc::ENOMEM, libc::EINVAL] {
        assert_eq!(missing_feature(&refused(code)), None, "{code}");
    }
    assert_eq!(missing_feature(&EngineError::Busy), None);
}
