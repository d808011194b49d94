//! The connection to nf_tables. The connection sends requests, reads dumps, and commits batches.
//!
//! Usually one socket is open. If another program commits during a read or a commit of portfwd, a second socket
//! receives the kernel's notifications (see `watch.rs`).
//!
//! Be aware: each method reads all answers to its request, so only one thread may use a connection.

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

/// The time limit for retries after commits of other programs.
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

/// An error of a commit. After [`CommitError::Unheard`], the result of the commit is unknown. After every other error,
/// the kernel has applied no part of the batch.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The generation of the batch is no longer current, because another program committed.
    #[error("another program changed the rules at the same time")]
    Stale,
    /// The kernel refused a message of the batch.
    #[error("the kernel refused message {seq}{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// The sequence number of the refused message.
        seq: u32,
        /// The error that the kernel returned.
        #[source]
        error: io::Error,
        /// The kernel's explanation (extended acknowledgement).
        reason: Option<String>,
        /// The byte offset of the fault in the message.
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

/// A connection to nf_tables. The network namespace is that of the thread that opened the connection.
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

    /// Creates a connection over any transport. The transport may return arbitrary bytes as answers.
    pub fn over(wire: Box<dyn Wire>) -> Self {
        Self { socket: Socket::over(wire), watch: None, generation: None }
    }

    /// Returns the traffic of the connection since its start, without notifications.
    pub fn traffic(&self) -> Traffic {
        self.socket.traffic()
    }

    /// Returns the generation of the ruleset. The generation grows with every commit of any program.
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

    /// Returns the last generation that [`Connection::generation`] read. Returns `None` before the first call.
    pub fn last_heard_generation(&self) -> Option<u32> {
        self.generation
    }

    /// Starts to monitor the commits of other programs. Returns false if the kernel refuses the subscription to
    /// notifications.
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

    /// Returns true if the connection monitors the commits of other programs.
    pub(super) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Returns the generation for which all data read since [`Connection::watch`] are valid. Returns `None` if another
    /// program may have changed portfwd's table since [`Connection::watch`].
    ///
    /// # Errors
    /// If a request fails.
    pub(super) fn still(&mut self) -> Result<Option<u32>, KernelError> {
        // During a commit, the kernel changes the table before it sends the notifications.
        self.await_commits()?;
        Ok(self.poll_watch())
    }

    /// Returns a new generation for a batch that failed with [`CommitError::Stale`] at generation `before`. Returns
    /// `None` if portfwd's table may have changed since `before`. The caller must then read the table again.
    pub fn moved_from(&mut self, before: u32) -> Option<u32> {
        // The kernel sends the notifications of a commit before it refuses a later batch. If the generation is
        // unchanged here, notifications were lost.
        let moved = self.poll_watch().filter(|now| *now != before);
        if moved.is_none() {
            // A new watch covers the next read from its beginning. If no watch can start, a commit of another program
            // interrupts the next read.
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

    /// Waits for the end of running commits. An empty batch changes nothing, but needs the same lock as a commit.
    fn await_commits(&mut self) -> Result<(), KernelError> {
        let mut batch = Vec::new();
        for kind in [libc::NFNL_MSG_BATCH_BEGIN, libc::NFNL_MSG_BATCH_END] {
            let (kind, seq) = (u16::try_from(kind).unwrap_or(0), self.socket.number());
            put_message(&mut batch, kind, flag::REQUEST, seq, &netfilter_header(0, KIND >> 8));
        }
        self.socket.send(&batch, 2).map_err(failed)?;
        // The kernel answers an empty batch only with a refusal. The next request skips this refusal.
        self.generation().map(drop)
    }

    /// Requests the object that `attributes` name. Calls `each` with each message of the answer. Returns false if the
    /// object does not exist.
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

    /// Dumps the objects of one kind and calls `each` with each message. `each` returns `None` if it cannot read the
    /// message.
    ///
    /// # Errors
    /// [`KernelError::Interrupted`] if another program commits during the dump. The error is the same if another
    /// program has deleted the table or set that `attributes` name.
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

    /// Like [`Connection::dump`], but for the objects of all families.
    pub(crate) fn dump_all(
        &mut self,
        what: &'static str,
        kind: i32,
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        uninterrupted(self.query(what, kind, libc::NFPROTO_UNSPEC, true, &[], each))
    }

    /// Like [`Connection::dump`], but for the objects of one family.
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

    /// Requests one object, or dumps all objects of a kind. Calls `each` with each message of the answer. `each`
    /// returns `None` if it cannot read the message.
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
        // The buffer must also hold the kernel's own overhead, which is at most the size of the batch.
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
                    // The watch would report portfwd's own commit as a commit of another program.
                    self.watch = None;
                    return Ok(());
                }
                Some(Err(refusal)) => {
                    return Err(match refusal.error.raw_os_error() {
                        // Error 85 is ERESTART. The kernel returns ERESTART for a batch of an earlier generation.
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

/// Encodes attributes with names as values. Each pair has the number of the attribute and the name.
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
