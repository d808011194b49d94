//! The conversation with the kernel: one socket, requests and their answers, one batch and its fate.
//!
//! Where others commit while we look or are about to commit, a second socket tells whom that concerns: see `watch.rs`.
//! Until that happens there is none.
//!
//! Be aware: answers are read to their end before the next question, so a socket belongs to one thread.

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

/// How long we try again where others commit in between.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why a question to the kernel has no answer.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not administer this network namespace.
    #[error("not permitted to read or change the firewall of this network namespace")]
    NotPermitted(#[source] io::Error),
    /// The kernel has no nf_tables.
    #[error("the kernel has no nf_tables")]
    NoNfTables(#[source] io::Error),
    /// Somebody committed while it was read; read again.
    #[error("somebody else changed the rules meanwhile")]
    Interrupted,
    /// It answered something that is not an answer.
    #[error("the kernel's answer about {0} cannot be read")]
    Unreadable(&'static str),
    /// The socket failed.
    #[error("{0} failed")]
    Socket(&'static str, #[source] io::Error),
}

/// Why a batch was not carried out. Nothing of it was, but for [`CommitError::Unheard`], where that is not known.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The rules are no longer those it was decided on; look again.
    #[error("somebody else changed the rules meanwhile")]
    Stale,
    /// The kernel refused a message.
    #[error("the kernel refused message {seq}{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// The message's number.
        seq: u32,
        /// The kernel's error.
        #[source]
        error: io::Error,
        /// The kernel's words, where it gave any.
        reason: Option<String>,
        /// The place in the message that it points at, where it does.
        offset: Option<u32>,
    },
    /// The socket may not send so much at once.
    #[error("a batch of {0} bytes is more than an unprivileged socket may send")]
    TooLarge(usize),
    /// The batch could not be sent.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// It was sent, and its fate could not be heard.
    #[error("what became of the batch was not heard")]
    Unheard(#[source] KernelError),
}

/// An open conversation about the rules of one network namespace: the one the thread was in when it was opened.
pub struct Connection {
    socket: Socket,
    watch: Option<Watch>,
    /// The generation that was heard last.
    heard: Option<u32>,
}

impl Connection {
    /// Opens a conversation.
    ///
    /// # Errors
    /// [`KernelError::NoNfTables`] where the kernel has no netfilter netlink at all.
    pub fn open() -> Result<Self, KernelError> {
        let socket = Socket::open(Bus::Netfilter).map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => KernelError::NoNfTables(error),
            Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(error),
            _ => KernelError::Socket("opening a netlink socket", error),
        })?;
        Ok(Self { socket, watch: None, heard: None })
    }

    /// Makes a connection over any transport. The answers may be arbitrary bytes.
    pub fn over(wire: Box<dyn Wire>) -> Self {
        Self { socket: Socket::over(wire), watch: None, heard: None }
    }

    /// Returns the traffic since the connection was opened, without notifications.
    pub fn traffic(&self) -> Traffic {
        self.socket.traffic()
    }

    /// The generation of the rules: a number that grows with every commit by anybody.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        const ID: u16 = 1; // NFTA_GEN_ID
        let mut found = None;
        undisturbed(self.ask("the generation", libc::NFT_MSG_GETGEN, libc::NFPROTO_INET, false, &[], |message| {
            found = message.attributes().be_u32(ID);
            Some(())
        }))?;
        self.heard = found;
        found.ok_or(KernelError::Unreadable("the generation"))
    }

    /// What [`Connection::generation`] said last; none before that.
    pub fn last_heard_generation(&self) -> Option<u32> {
        self.heard
    }

    /// Watches what others commit from here on, and says whether that can be had.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub(super) fn watch(&mut self) -> Result<bool, KernelError> {
        if self.watch.as_mut().is_some_and(|watch| watch.untouched().is_some()) {
            return Ok(true);
        }
        self.watch = None;
        let Ok(notifications) = Watch::subscribe(&self.socket) else { return Ok(false) };
        let generation = self.generation()?;
        self.settle()?;
        self.watch = Some(Watch::new(notifications, generation));
        Ok(true)
    }

    /// Whether it is watched what others commit.
    pub(super) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// The generation at which what was read since [`Connection::watch`] is the truth; `None` where our table may have been
    /// touched meanwhile.
    ///
    /// # Errors
    /// Where the kernel does not answer.
    pub(super) fn still(&mut self) -> Result<Option<u32>, KernelError> {
        // Who is at work still may have changed what we saw, and not have told.
        self.settle()?;
        Ok(self.untouched())
    }

    /// After [`CommitError::Stale`]: the generation that a batch of `before` can be moved to, because nobody touched our
    /// table in between; `None` where that is not so, or not known, and all must be read again.
    pub fn moved_from(&mut self, before: u32) -> Option<u32> {
        // Who moved the generation had told of it before the kernel could refuse ours. Otherwise it was lost.
        let moved = self.untouched().filter(|now| *now != before);
        if moved.is_none() {
            // What is read next is watched from its beginning; where it cannot be, it must come undisturbed.
            self.watch = None;
            drop(self.watch());
        }
        moved
    }

    fn untouched(&mut self) -> Option<u32> {
        let generation = self.watch.as_mut()?.untouched();
        self.watch = self.watch.take().filter(|_| generation.is_some());
        generation
    }

    /// Waits for whoever is committing: a batch without messages changes nothing, but needs the same lock.
    fn settle(&mut self) -> Result<(), KernelError> {
        let mut batch = Vec::new();
        for kind in [libc::NFNL_MSG_BATCH_BEGIN, libc::NFNL_MSG_BATCH_END] {
            let (kind, seq) = (u16::try_from(kind).unwrap_or(0), self.socket.number());
            put_message(&mut batch, kind, flag::REQUEST, seq, &netfilter_header(0, KIND >> 8));
        }
        self.socket.send(&batch, 2).map_err(failed)?;
        // It is answered only where it is refused, and whoever reads the next answer leaves that out.
        self.generation().map(drop)
    }

    /// Asks for what `attributes` name and gives each message of the answer to `each`; false where there is no such thing.
    pub(super) fn get(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<bool, KernelError> {
        match self.ask(what, kind, libc::NFPROTO_INET, false, attributes, each) {
            Ok(_) => Ok(true),
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks for all objects of a kind and gives each message of the answer to `each`, which says whether it could read
    /// it. What the question names was there a moment ago; where it is gone, somebody else was at work.
    pub(super) fn dump(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        undisturbed(self.dump_through(what, kind, attributes, each))
    }

    /// Like [`Connection::dump`], but reads on if others commit meanwhile.
    pub(super) fn dump_through(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<Dump, KernelError> {
        match self.ask(what, kind, libc::NFPROTO_INET, true, attributes, each) {
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(KernelError::Interrupted)
            }
            other => other,
        }
    }

    /// The same, of the tables of all families.
    pub(crate) fn dump_all(
        &mut self,
        what: &'static str,
        kind: i32,
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        undisturbed(self.ask(what, kind, libc::NFPROTO_UNSPEC, true, &[], each))
    }

    /// The same of one family, of what `attributes` name. Where that is gone, somebody else was at work.
    pub(crate) fn dump_of(
        &mut self,
        what: &'static str,
        kind: i32,
        family: u8,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<(), KernelError> {
        match undisturbed(self.ask(what, kind, family.into(), true, attributes, each)) {
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(KernelError::Interrupted)
            }
            other => other,
        }
    }

    /// Requests one object, or a dump of all, and passes each message of the answer to `each`, which returns `None` if it
    /// cannot read the message.
    fn ask(
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
                _ => KernelError::Socket("asking the kernel", error),
            },
            other => failed(other),
        })?;
        match (answer, unreadable) {
            (Dump::Interrupted, true) => Err(KernelError::Interrupted),
            (Dump::Complete, true) => Err(KernelError::Unreadable(what)),
            (answer, false) => Ok(answer),
        }
    }

    /// Sends a batch and learns its fate.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let size = batch.bytes().len();
        // The kernel counts its own bookkeeping into the room, twice the size at the very most.
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
            let fate = self.socket.receive(|message| match message.refusal() {
                _ if message.kind != ERROR => None,
                Some(refusal) => Some(Err(refusal)),
                None => (message.seq == batch.last()).then_some(Ok(())),
            });
            match fate.map_err(|error| CommitError::Unheard(failed(error)))? {
                None => {}
                Some(Ok(())) => {
                    // It would take our own commit for somebody else's.
                    self.watch = None;
                    return Ok(());
                }
                Some(Err(refusal)) => {
                    return Err(match refusal.error.raw_os_error() {
                        // 85 is ERESTART, which the kernel answers to a generation that has passed.
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

/// Returns the attributes of a request: numbers and names.
pub(crate) fn names(pairs: &[(u16, &str)]) -> Vec<u8> {
    let mut attributes = Vec::new();
    pairs.iter().for_each(|(kind, name)| put_text(&mut attributes, *kind, name));
    attributes
}

/// Fails if somebody committed during a dump.
fn undisturbed(dump: Result<Dump, KernelError>) -> Result<(), KernelError> {
    match dump? {
        Dump::Complete => Ok(()),
        Dump::Interrupted => Err(KernelError::Interrupted),
    }
}

fn failed(error: Error) -> KernelError {
    let what = match &error {
        Error::Receive(_) => "hearing from the kernel",
        Error::Send(_) | Error::Refused(_) => "asking the kernel",
    };
    KernelError::Socket(what, error.into())
}
