//! The conversation with the kernel: one socket, requests and their answers, one batch and its fate.
//!
//! Where others commit while we look or are about to commit, a second socket tells whom that concerns: see `watch.rs`.
//! Until that happens there is none.
//!
//! Be aware: answers are read to their end before the next question, so a socket belongs to one thread.

use std::io;
use std::time::Duration;

use nftnl_sys::libc;

use super::diff::Changes;
use super::encode::{Batch, encode_in};
use super::ffi::{self, Buffer};
use super::message::Message;
use super::refusal::{Head, Refusal, refusal};
use super::watch::Watch;
pub use super::wire::Wire;
use crate::sys::netlink::traffic::Traffic;
use crate::sys::netlink::{message, put_attribute};

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

/// The number of the calling thread's network namespace that [`Connection::namespace_cookie`] gives, for kernels without
/// netfilter netlink.
pub fn namespace_cookie() -> Option<u64> {
    mnl::Socket::new(mnl::Bus::Route).ok().and_then(|socket| ffi::namespace_cookie(&socket))
}

/// An open conversation about the rules of one network namespace: the one the thread was in when it was opened.
pub struct Connection {
    wire: Box<dyn Wire>,
    buffer: Buffer,
    next: u32,
    watch: Option<Watch>,
    traffic: Traffic,
    /// The generation that was heard last.
    heard: Option<u32>,
}

impl Connection {
    /// Opens a conversation.
    ///
    /// # Errors
    /// [`KernelError::NoNfTables`] where the kernel has no netfilter netlink at all.
    pub fn open() -> Result<Self, KernelError> {
        let mut socket = mnl::Socket::new(mnl::Bus::Netfilter).map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => KernelError::NoNfTables(error),
            Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(error),
            _ => KernelError::Socket("opening a netlink socket", error),
        })?;
        Wire::prepare(&mut socket, 0).map_err(|error| KernelError::Socket("setting up a netlink socket", error))?;
        Ok(Self::over(Box::new(socket)))
    }

    /// A conversation over a wire that is open. What comes over it may be anything.
    pub fn over(wire: Box<dyn Wire>) -> Self {
        Self { wire, buffer: Buffer::new(), next: 1, watch: None, traffic: Traffic::default(), heard: None }
    }

    /// A number of the network namespace that no other one has had since the boot; none before Linux 5.14.
    pub fn namespace_cookie(&self) -> Option<u64> {
        self.wire.namespace_cookie()
    }

    /// What was said since it was opened. What is heard of the commits of others is none of it.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The generation of the rules: a number that grows with every commit by anybody.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn generation(&mut self) -> Result<u32, KernelError> {
        const ID: u16 = 1; // NFTA_GEN_ID
        let mut found = None;
        self.ask("the generation", libc::NFT_MSG_GETGEN, libc::NFPROTO_INET, 0, &[], |message| {
            found = message.attributes().number(ID);
            Some(())
        })?;
        self.heard = found;
        found.ok_or(KernelError::Unreadable("the generation"))
    }

    /// What [`Connection::generation`] said last; none before that.
    pub fn last_heard_generation(&self) -> Option<u32> {
        self.heard
    }

    /// Encodes changes as [`super::encode::encode`] does, in memory that is there for answers: they come later.
    pub fn encode<'a>(&mut self, changes: &'a Changes, generation: u32) -> Batch<'a> {
        encode_in(&mut self.buffer, changes, generation)
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
        let Ok(notices) = self.wire.watch() else { return Ok(false) };
        let generation = self.generation()?;
        self.settle()?;
        self.watch = Some(Watch::new(notices, generation));
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
        let subsystem = u16::try_from(libc::NFNL_SUBSYS_NFTABLES).unwrap_or(0);
        let mut batch = Vec::new();
        for kind in [libc::NFNL_MSG_BATCH_BEGIN, libc::NFNL_MSG_BATCH_END] {
            let (kind, flags) = (u16::try_from(kind).unwrap_or(0), u16::try_from(libc::NLM_F_REQUEST).unwrap_or(1));
            batch.extend(message(kind, flags, 0, subsystem, self.number(), &[]));
        }
        self.traffic.sent.add(2, batch.len());
        self.wire.send(&batch).map_err(|error| KernelError::Socket("asking the kernel", error))?;
        // It is answered only where it is refused, and whoever reads the next answer leaves that out.
        self.generation().map(drop)
    }

    /// The number of the next message.
    fn number(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        number
    }

    /// Asks for what `attributes` name and gives each message of the answer to `each`; false where there is no such thing.
    pub(super) fn get(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<bool, KernelError> {
        match self.ask(what, kind, libc::NFPROTO_INET, 0, attributes, each) {
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

    /// The same, whoever commits meanwhile, and says whether somebody did.
    pub(super) fn dump_through(
        &mut self,
        what: &'static str,
        kind: i32,
        attributes: &[u8],
        each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<bool, KernelError> {
        match self.ask(what, kind, libc::NFPROTO_INET, libc::NLM_F_DUMP, attributes, each) {
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
        undisturbed(self.ask(what, kind, libc::NFPROTO_UNSPEC, libc::NLM_F_DUMP, &[], each))
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
        match undisturbed(self.ask(what, kind, family.into(), libc::NLM_F_DUMP, attributes, each)) {
            Err(KernelError::Socket(_, error)) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(KernelError::Interrupted)
            }
            other => other,
        }
    }

    /// Asks, and says whether somebody committed while it was answered.
    fn ask(
        &mut self,
        what: &'static str,
        kind: i32,
        family: i32,
        flags: i32,
        attributes: &[u8],
        mut each: impl FnMut(Message<'_>) -> Option<()>,
    ) -> Result<bool, KernelError> {
        let seq = self.number();
        let kind = u16::try_from((libc::NFNL_SUBSYS_NFTABLES << 8) | kind).unwrap_or(0);
        let dump = flags == libc::NLM_F_DUMP;
        // Without a dump the acknowledgement says where the answer ends.
        let flags = if dump { flags } else { libc::NLM_F_ACK } | libc::NLM_F_REQUEST;
        let family = u8::try_from(family).unwrap_or(0);
        let request = message(kind, u16::try_from(flags).unwrap_or(1), family, 0, seq, attributes);
        self.traffic.sent.add(1, request.len());
        self.wire.send(&request).map_err(|error| KernelError::Socket("asking the kernel", error))?;
        let mut interrupted = false;
        let mut unreadable = false;
        loop {
            let Some(()) = self
                .receive(|message, header| {
                    if header.seq != seq {
                        return None;
                    }
                    interrupted |= i32::from(header.flags) & libc::NLM_F_DUMP_INTR > 0;
                    match i32::from(header.kind) {
                        // A dump that fails on its way ends like one that is whole, but for the error in its end.
                        libc::NLMSG_DONE | libc::NLMSG_ERROR => Some(refusal(message.bytes()).map_or(Ok(()), Err)),
                        _ => {
                            unreadable |= each(message).is_none();
                            None
                        }
                    }
                })?
                .transpose()
                .map_err(|refusal| match refusal.error.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(refusal.error),
                    Some(libc::EINTR) => KernelError::Interrupted,
                    Some(libc::EOPNOTSUPP | libc::EINVAL) if kind & 0xff == 16 => {
                        KernelError::NoNfTables(refusal.error)
                    }
                    _ => KernelError::Socket("asking the kernel", refusal.error),
                })?
            else {
                continue;
            };
            return match (interrupted, unreadable) {
                (true, true) => Err(KernelError::Interrupted),
                (false, true) => Err(KernelError::Unreadable(what)),
                (interrupted, false) => Ok(interrupted),
            };
        }
    }

    /// Receives once and gives each message to `each` until it has an answer.
    fn receive<T>(&mut self, mut each: impl FnMut(Message<'_>, Head) -> Option<T>) -> Result<Option<T>, KernelError> {
        let bytes = self.buffer.bytes();
        let received = match self.wire.receive(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            other => other.map_err(|error| KernelError::Socket("hearing from the kernel", error))?,
        };
        let mut rest = bytes.get(..received).unwrap_or_default();
        let mut answer = None;
        while let Some((message, behind)) = Message::split(rest) {
            rest = behind;
            self.traffic.received.add(1, message.bytes().len());
            if let Some(head) = Head::read(message.bytes())
                && answer.is_none()
            {
                answer = each(message, head);
            }
        }
        Ok(answer)
    }

    /// Sends a batch and learns its fate.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn commit(&mut self, batch: &Batch<'_>) -> Result<(), CommitError> {
        let size = batch.bytes().len();
        // The kernel counts its own bookkeeping into the room, twice the size at the very most.
        let room = size.saturating_mul(2).max(1 << 16);
        (self.wire.prepare(room)).map_err(|error| KernelError::Socket("setting up a netlink socket", error))?;
        self.traffic.sent.add(batch.message_count(), size);
        match self.wire.send(batch.bytes()) {
            Ok(()) => {}
            Err(error) => {
                return Err(match error.raw_os_error() {
                    Some(libc::EMSGSIZE) => CommitError::TooLarge(size),
                    Some(libc::EPERM | libc::EACCES) => KernelError::NotPermitted(error).into(),
                    _ => KernelError::Socket("sending the batch", error).into(),
                });
            }
        }
        loop {
            let fate = self.receive(|message, head| {
                if i32::from(head.kind) != libc::NLMSG_ERROR {
                    return None;
                }
                match refusal(message.bytes()) {
                    Some(refusal) => Some(Err(refusal)),
                    None => (head.seq == batch.last()).then_some(Ok(())),
                }
            });
            let fate = fate.map_err(CommitError::Unheard)?;
            match fate {
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

/// The attributes of a question: numbers and names, with the closing zeros that the kernel wants.
pub(crate) fn names(pairs: &[(u16, &str)]) -> Vec<u8> {
    let mut attributes = Vec::new();
    for (kind, name) in pairs {
        let mut value = name.as_bytes().to_vec();
        value.push(0);
        put_attribute(&mut attributes, *kind, &value);
    }
    attributes
}

/// Takes an answer for void where somebody committed while it was given.
fn undisturbed(disturbed: Result<bool, KernelError>) -> Result<(), KernelError> {
    if disturbed? { Err(KernelError::Interrupted) } else { Ok(()) }
}
