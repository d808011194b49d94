//! The nf_tables connection: requests with their answers, dumps, and the commit of a batch.
//!
//! If another program commits while portfwd reads or commits, a second socket receives the kernel's notifications: see
//! `watch.rs`. Until then, only one socket is open.
//!
//! Be aware: each method reads the answers to its request to their end, so a connection belongs to one thread.

use std::io;
use std::time::Duration;

use nftnl_sys::libc;

use super::batch::Batch;
use super::message::{KIND, Message};
use super::watch::Watch;
use crate::sys::netlink::message::{ERROR, netfilter_header, put_message};
use crate::sys::netlink::traffic::Traffic;
use crate::sys::netlink::wire::Wire;
use crate::sys::netlink::{self, Bus, Dump, Error, Refusal, Request, Socket, flag, put_text};

/// The time limit for retries if other programs commit in between.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// An error of a request to nf_tables.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not administer this network namespace.
    #[error("not permitted to read or change the firewall of this network namespace")]
    NotPermitted(#[source] io::Error),
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables")]
    NoNfTables(#[source] io::Error),
    /// Another program committed during the dump. The caller may retry.
    #[error("another program changed the rules at the same time")]
    Interrupted,
    /// The kernel's answer has an unknown format.
    #[error("cannot read the kernel's answer for {0}")]
    Unreadable(&'static str),
    /// A system call failed, or the kernel refused the request.
    #[error("{0} failed")]
    Socket(&'static str, #[source] io::Error),
}

/// An error of a commit. The kernel applied no part of the batch, except possibly after [`CommitError::Unheard`].
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The generation of the batch is no longer the current one.
    #[error("another program changed the rules at the same time")]
    Stale,
    /// The kernel refused a message.
    #[error("the kernel refused message {seq}{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// The sequence number of the message.
        seq: u32,
        /// The kernel's error.
        #[source]
        error: io::Error,
        /// The kernel's explanation (extended acknowledgement).
        reason: Option<String>,
        /// The position of the fault in the message.
        offset: Option<u32>,
    },
    /// The batch exceeds the socket's send buffer.
    #[error("a batch of {0} bytes is more than an unprivileged socket may send")]
    TooLarge(usize),
    /// The batch could not be sent.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The batch was sent, but no acknowledgement was received. The commit may have succeeded.
    #[error("the kernel did not report whether it committed the batch")]
    Unheard(#[source] KernelError),
}

/// A connection to nf_tables in the network namespace that the thread was in when it opened the connection.
pub struct Connection {
    socket: Socket,
    watch: Option<Watch>,
    /// The last generation that the kernel reported.
    generation: Option<u32>,
}

impl Connection {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`KernelError::NoNfTables`] if the kernel has no netfilter netlink.
    pub fn open() -> Result<Self, KernelError> {
        let socket = Socket::open(Bus::Netfilter).map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => KernelError::NoNfTables(error),
            Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(error),
            _ => KernelError::Socket("opening a netlink socket", error),
        })?;
        Ok(Self { socket, watch: None, generation: None })
    }

    /// Makes a connection over any transport. The answers may be arbitrary bytes.
    pub fn over(wire: Box<dyn Wire>) -> Self {
        Self { socket: Socket::over(wire), watch: None, generation: None }
    }

    /// Returns the traffic since the connection was opened, without notifications.
    pub fn traffic(&self) -> Traffic {
        self.socket.traffic()
    }

    /// Returns the generation of the ruleset, which grows with every commit of any program.
    ///
    /// # Errors
    /// If the request fails.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        const ID: u16 = 1; // NFTA_GEN_ID
        let mut found = None;
        uninterrupted(self.query("the generation", libc::NFT_MSG_GETGEN, libc::NFPROTO_INET, false, &[], |message| {
            found = message.attributes().be_u32(ID);
            Some(())
        }))?;
        self.generation = found;
        found.ok_or(KernelError::Unreadable("the generation"))
    }

    /// Returns the last generation that [`Connection::generation`] read, or `None` before the first call.
    pub fn last_heard_generation(&self) -> Option<u32> {
        self.generation
    }

    /// Watches the commits of other programs from now on. Returns false if the kernel refuses the subscription.
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn watch(&mut self) -> Result<bool, KernelError> {
        if self.watch.as_mut().is_some_and(|watch| watch.poll().is_some()) {
            return Ok(true);
        }
        self.watch = None;
        let Ok(notifications) = Watch::subscribe(&self.socket) else { return Ok(false) };
        let generation = self.generation()?;
        self.await_commits()?;
        self.watch = Some(Watch::new(notifications, generation));
        Ok(true)
    }

    /// Returns true if the connection watches the commits of other programs.
    pub(super) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Returns the generation at which everything read since [`Connection::watch`] is valid. Returns `None` if another
    /// program may have changed portfwd's table since then.
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn still(&mut self) -> Result<Option<u32>, KernelError> {
        // A running commit may have changed portfwd's table before the kernel sends its notifications.
        self.await_commits()?;
        Ok(self.poll_watch())
    }

    /// Returns, after [`CommitError::Stale`], the generation to move a batch of generation `before` to. Returns `None` if
    /// portfwd's table may have changed in between, so the caller must read the table again.
    pub fn moved_from(&mut self, before: u32) -> Option<u32> {
        // The kernel sends the notifications of a commit before it can refuse a later batch. Missing ones were lost.
        let moved = self.poll_watch().filter(|now| *now != before);
        if moved.is_none() {
            // The next read is watched from its beginning. Without a watch, the next read fails if another program commits.
            self.watch = None;
            drop(self.watch());
        }
        moved
    }

    fn poll_watch(&mut self) -> Option<u32> {
        let generation = self.watch.as_mut()?.poll();
        self.watch = self.watch.take().filter(|_| generation.is_some());
        generation
    }

    /// Waits until running commits have ended: an empty batch changes nothing, but needs the same lock.
    fn await_commits(&mut self) -> Result<(), KernelError> {
        let mut batch = Vec::new();
        for kind in [libc::NFNL_MSG_BATCH_BEGIN, libc::NFNL_MSG_BATCH_END] {
            let (kind, seq) = (u16::try_from(kind).unwrap_or(0), self.socket.number());
            put_message(&mut batch, kind, flag::REQUEST, seq, &netfilter_header(0, KIND >> 8));
        }
        self.socket.send(&batch, 2).map_err(failed)?;
        // The kernel answers an empty batch only if it refuses the batch. The next request skips that answer.
        self.generation().map(drop)
    }

    /// Requests the object that `attributes` name and passes each message of the answer to `each`. Returns false if there is
    /// no such object.
    pub(super) fn get(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<bool, KernelError> {
        match self.query(what, kind, libc::NFPROTO_INET, false, attributes, each) {
            Ok(_) => Ok(true),
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Dumps the objects of a kind and passes each message to `each`, which returns `None` if it cannot read the message.
    ///
    /// # Errors
    /// [`KernelError::Interrupted`] if another program commits during the dump, or has deleted the table or set that
    /// `attributes` name.
    pub(super) fn dump(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        uninterrupted(self.dump_through(what, kind, attributes, each))
    }

    /// Like [`Connection::dump`], but returns [`Dump::Interrupted`] if another program commits during the dump.
    pub(super) fn dump_through(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<Dump, KernelError> {
        match self.query(what, kind, libc::NFPROTO_INET, true, attributes, each) {
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(KernelError::Interrupted)
            }
            other => other,
        }
    }

    /// Like [`Connection::dump`], for the objects of all families.
    pub(crate) fn dump_all(
        &mut self,
        what: &'static str,
        kind: i32,
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        uninterrupted(self.query(what, kind, libc::NFPROTO_UNSPEC, true, &[], each))
    }

    /// Like [`Connection::dump`], for the objects of one family.
    pub(crate) fn dump_of(
        &mut self,
        what: &'static str,
        kind: i32,
        family: u8,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        match uninterrupted(self.query(what, kind, family.into(), true, attributes, each)) {
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(KernelError::Interrupted)
            }
            other => other,
        }
    }

    /// Requests one object, or a dump of all, and passes each message of the answer to `each`, which returns `None` if it
    /// cannot read the message.
    fn query(
        &mut self,
        what: &'static str,
        kind: i32,
        family: i32,
        dump: bool,
        attributes: &[u8],
        mut each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<Dump, KernelError> {
        let kind = KIND | u16::try_from(kind).unwrap_or(0);
        let mut request = Request::netfilter(kind, u8::try_from(family).unwrap_or(0), 0);
        request.body.extend(attributes);
        let mut unreadable = false;
        let each = |message: netlink::Message<'_>| unreadable |= each(Message(message)).is_none();
        let answer = if dump {
            self.socket.dump(&request, each)
        } else {
            self.socket.get(&request, each).map(|()| Dump::Complete)
        };
        let answer = answer.map_err(|error| match error {
            Error::Refused(Refusal { error, .. }) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(error),
                Some(libc::EINTR) => KernelError::Interrupted,
                Some(libc::EOPNOTSUPP | libc::EINVAL) if kind & 0xff == 16 => KernelError::NoNfTables(error),
                _ => KernelError::Socket("the request to the kernel", error),
            },
            other => failed(other),
        })?;
        match (answer, unreadable) {
            (Dump::Interrupted, true) => Err(KernelError::Interrupted),
            (Dump::Complete, true) => Err(KernelError::Unreadable(what)),
            (answer, false) => Ok(answer),
        }
    }

    /// Sends a batch and waits for the acknowledgement of its commit.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let size = batch.bytes().len();
        // The kernel counts its own overhead against the buffer: at most as much as the batch itself.
        let room = size.saturating_mul(2).max(1 << 16);
        (self.socket.reserve(room)).map_err(|error| KernelError::Socket("setting up a netlink socket", error))?;
        self.socket.send(batch.bytes(), batch.message_count()).map_err(|error| {
            let error = io::Error::from(error);
            match error.raw_os_error() {
                Some(libc::EMSGSIZE) => CommitError::TooLarge(size),
                Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(error).into(),
                _ => KernelError::Socket("sending the batch", error).into(),
            }
        })?;
        loop {
            let outcome = self.socket.receive(|message| match message.refusal() {
                _ if message.kind != ERROR => None,
                Some(refusal) => Some(Err(refusal)),
                None => (message.seq == batch.last()).then_some(Ok(())),
            });
            match outcome.map_err(|error| CommitError::Unheard(failed(error)))? {
                None => {}
                Some(Ok(())) => {
                    // The watch would report this commit as one of another program.
                    self.watch = None;
                    return Ok(());
                }
                Some(Err(refusal)) => {
                    return Err(match refusal.error.raw_os_error() {
                        // 85 is ERESTART, the kernel's answer to a batch of an earlier generation.
                        Some(85) => CommitError::Stale,
                        Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(refusal.error).into(),
                        _ => {
                            let Refusal { seq, error, reason, offset } = refusal;
                            CommitError::Refused { seq, error, reason, offset }
                        }
                    });
                }
            }
        }
    }
}

/// Encodes pairs of an attribute kind and a name.
pub(crate) fn names(pairs: &[(u16, &str)]) -> Vec<u8> {
    let mut attributes = Vec::new();
    pairs.iter().for_each(|(kind, name)| put_text(&mut attributes, *kind, name));
    attributes
}

/// Turns an interrupted dump into [`KernelError::Interrupted`].
fn uninterrupted(dump: Result<Dump, KernelError>) -> Result<(), KernelError> {
    match dump? {
        Dump::Complete => Ok(()),
        Dump::Interrupted => Err(KernelError::Interrupted),
    }
}

fn failed(error: Error) -> KernelError {
    let what = match &error {
        Error::Receive(_) => "receiving from the kernel",
        Error::Send(_) | Error::Refused(_) => "sending to the kernel",
    };
    KernelError::Socket(what, error.into())
}
