//! What can go wrong: one enum per operation, and the umbrella [`Error`] into which all of them convert.

use std::fmt;

use crate::message::Message;
use crate::name::NameError;
use crate::options::Capability;

/// [`Error`] is the default error of the crate's own `Result`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of this crate. A message that the error carried is dropped in the conversion.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Building a broker failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Creating or opening a topic, a subscription or a snapshot failed.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Changing options failed.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// Deleting failed.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// Publishing failed.
    #[error("publish failed: {0}")]
    Publish(PublishErrorKind),
    /// Receiving failed.
    #[error(transparent)]
    Recv(#[from] RecvError),
    /// Receiving without waiting failed.
    #[error(transparent)]
    TryRecv(#[from] TryRecvError),
    /// Receiving with a timeout failed.
    #[error(transparent)]
    RecvTimeout(#[from] RecvTimeoutError),
    /// Settling failed.
    #[error(transparent)]
    Settle(#[from] SettleError),
    /// A transaction was not committed.
    #[error("commit failed: {0}")]
    Commit(CommitReason),
    /// A seek failed.
    #[error(transparent)]
    Seek(#[from] SeekError),
    /// A codec failed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The subscription or its topic was deleted.
    #[error("the subscription was deleted")]
    Deleted,
}

impl<E> From<PublishError<E>> for Error {
    fn from(error: PublishError<E>) -> Self {
        Error::Publish(error.kind())
    }
}

impl<E> From<PublishAllError<E>> for Error {
    fn from(error: PublishAllError<E>) -> Self {
        Error::Publish(error.kind)
    }
}

/// What went wrong with the disk under a broker: in a few words, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StorageFault {
    is_full: bool,
    /// Whether what was to be done may have been.
    is_unsure: bool,
    reason: &'static str,
}

impl StorageFault {
    pub(crate) const FULL: StorageFault = StorageFault {
        is_full: true,
        is_unsure: false,
        reason: "the disk is full: try again when there is space",
    };

    pub(crate) fn new(reason: &'static str) -> Self {
        StorageFault { is_full: false, is_unsure: false, reason }
    }

    /// What was to be done is done, or not: only the disk knows.
    pub(crate) fn unsure(self) -> Self {
        StorageFault { is_unsure: true, ..self }
    }

    /// Whether the disk is full. Then the same call succeeds once there is space, be it because files of others went or because messages were acked: what is settled is let go of before a
    /// publish is refused. Otherwise the broker accepts nothing more until its directory is opened again.
    pub fn is_full(&self) -> bool {
        self.is_full
    }
}

impl fmt::Display for StorageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

macro_rules! tells_of_storage_faults {
    ($($error:ident),*) => {$(
        impl From<StorageFault> for $error {
            fn from(fault: StorageFault) -> Self {
                match fault.is_unsure {
                    true => $error::Indeterminate { fault },
                    false => $error::Storage { fault },
                }
            }
        }
    )*};
}

tells_of_storage_faults!(
    CreateError,
    UpdateError,
    DeleteError,
    PublishErrorKind,
    CommitReason,
    SettleError,
    SeekError
);

/// Why a broker could not be built. Nothing in its directory was changed, unless `Io` struck while it was put in order: the next attempt finds all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another broker has the directory open, in this process or another.
    #[error("the directory is open already")]
    AlreadyOpen,
    /// The directory holds something else.
    #[error("the directory is no broker's: it holds other files, such as {name:?}")]
    Foreign {
        /// One of these.
        name: String,
    },
    /// Something that was accepted cannot be read any more. [`OnDamage::Continue`](crate::OnDamage::Continue) opens with the rest.
    #[error("{file}, at byte {offset}, {len} bytes: {what}")]
    Damaged {
        /// The file, in the broker's directory.
        file: String,
        /// Where in it.
        offset: u64,
        /// How many bytes; 0 when the file is not there.
        len: u64,
        /// What is wrong.
        what: String,
    },
    /// A newer version of this crate wrote it.
    #[error("{file} is of a format that this version does not know: {what}")]
    Version {
        /// The file, in the broker's directory.
        file: String,
        /// What is not known.
        what: String,
    },
    /// The disk failed, or is full.
    #[error("{verb} {file}: {reason}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file, in the broker's directory.
        file: String,
        /// What the disk said.
        reason: String,
    },
    /// The engine cannot keep what [`BrokerBuilder::require`](crate::BrokerBuilder::require) asked for.
    #[error("this engine cannot keep {capability:?}")]
    Unsupported {
        /// What it cannot keep.
        capability: Capability,
    },
}

/// Why a topic, a subscription or a snapshot was not created or opened. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// There is one of this name: use `open` to attach to it.
    #[error("one of this name exists already; open attaches to it")]
    AlreadyExists,
    /// What it was to be created on does not exist (any more).
    #[error("there is none of this name")]
    NotFound,
    /// It exists with another value of an option that was set here explicitly.
    #[error("{name:?} exists with another {option}: stored {stored}, asked for {asked}")]
    ConfigMismatch {
        /// The name.
        name: String,
        /// The option that differs.
        option: &'static str,
        /// What is stored.
        stored: String,
        /// What was asked for.
        asked: String,
    },
    /// The topic's events have another type.
    #[error("topic {topic:?} holds events of type {stored}, not {asked}")]
    TypeMismatch {
        /// The topic.
        topic: String,
        /// The type of its events.
        stored: &'static str,
        /// The type that was asked for.
        asked: &'static str,
    },
    /// The name is not allowed.
    #[error("{name:?} is not a name: {reason}")]
    InvalidName {
        /// The name, shortened if it is long.
        name: String,
        /// What is wrong with it.
        reason: NameError,
    },
    /// The value of an option is out of its range, or does not go with another option.
    #[error("invalid {option}: {reason}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The filter expression does not parse.
    #[error("invalid filter at byte {position}: {reason}")]
    InvalidFilter {
        /// The byte position in the expression.
        position: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The engine cannot keep this.
    #[error("this engine cannot keep {capability:?}")]
    Unsupported {
        /// What it cannot keep.
        capability: Capability,
    },
    /// The subscription that the snapshot was to be taken of was deleted.
    #[error("the subscription was deleted")]
    Deleted,
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The disk failed, or is full. Nothing changed.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way. It may be there when the directory is opened again.
    #[error("{fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

/// Why options were not changed. Nothing changed, unless it is `Indeterminate`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The value of an option is out of its range, or does not go with another option.
    #[error("invalid {option}: {reason}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The topic or subscription was deleted.
    #[error("it was deleted")]
    Deleted,
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The disk failed, or is full. Nothing changed.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way. The options may be the new ones when the directory is opened again.
    #[error("{fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

impl From<RecvError> for UpdateError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Closed => UpdateError::Closed,
            RecvError::Deleted => UpdateError::Deleted,
            RecvError::Storage { fault } => UpdateError::Storage { fault },
        }
    }
}

impl From<RecvError> for CreateError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Closed => CreateError::Closed,
            RecvError::Deleted => CreateError::Deleted,
            RecvError::Storage { fault } => CreateError::Storage { fault },
        }
    }
}

/// Why something was not deleted. Nothing changed, unless it is `Indeterminate`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// There is none of this name.
    #[error("there is none of this name")]
    NotFound,
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The disk failed, or is full. Nothing changed.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way. It may be gone when the directory is opened again.
    #[error("{fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

/// Why a message was not published. It never will be, and comes back where trying again could help.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum PublishError<E> {
    /// The topic holds as much as its capacity allows. Try again later.
    #[error("{}", PublishErrorKind::Full)]
    Full(Message<E>),
    /// The timeout passed and the topic was still full. Try again later.
    #[error("{}", PublishErrorKind::Timeout)]
    Timeout(Message<E>),
    /// Another message was published under this idempotency id within the window. Trying again cannot help.
    #[error("{}", PublishErrorKind::IdempotencyConflict)]
    IdempotencyConflict(Message<E>),
    /// The topic was deleted. Trying again cannot help.
    #[error("{}", PublishErrorKind::TopicDeleted)]
    TopicDeleted(Message<E>),
    /// The broker is shut down. Trying again cannot help.
    #[error("{}", PublishErrorKind::Closed)]
    Closed(Message<E>),
    /// The message is over a limit, or larger than the topic's whole capacity. Trying again cannot help.
    #[error("{}", PublishErrorKind::TooLarge)]
    TooLarge(Message<E>),
    /// A closure of the topic (`weigh`, `fingerprint`, or the codec) panicked on the event. Trying again may help as little.
    #[error("{}", PublishErrorKind::Panicked)]
    Panicked(Message<E>),
    /// The codec could not encode the event.
    #[error("{error}")]
    Encode {
        /// The message.
        message: Message<E>,
        /// What the codec said.
        error: CodecError,
    },
    /// The disk failed, or is full. Nothing was published, and nothing will be.
    #[error("{fault}")]
    Storage {
        /// The message.
        message: Message<E>,
        /// What the disk said.
        fault: StorageFault,
    },
    /// The disk failed under way: whether it was published is known when the directory is opened again.
    #[error("the outcome is unknown until the directory is opened again: {fault}")]
    Indeterminate {
        /// The message, unless it cannot come back.
        message: Option<Message<E>>,
        /// What the disk said.
        fault: StorageFault,
    },
}

/// [`PublishError`] without its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// The topic holds as much as its capacity allows. Try again later.
    #[error("topic is full")]
    Full,
    /// The timeout passed and the topic was still full. Try again later.
    #[error("topic was still full when the timeout passed")]
    Timeout,
    /// Another message was published under this idempotency id within the window.
    #[error("another message was published under this idempotency id")]
    IdempotencyConflict,
    /// The topic was deleted.
    #[error("topic was deleted")]
    TopicDeleted,
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The message is over a limit, or larger than the topic's whole capacity.
    #[error("message is over a limit, or larger than the topic's whole capacity")]
    TooLarge,
    /// The codec could not encode the event.
    #[error("event could not be encoded")]
    Encode,
    /// A closure of the topic panicked on the event.
    #[error("a closure of the topic panicked on the event")]
    Panicked,
    /// The disk failed, or is full. Nothing was published, and nothing will be.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way: whether this took effect is known when the directory is opened again.
    #[error("the outcome is unknown until the directory is opened again: {fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

impl<E> PublishError<E> {
    /// Which error it is.
    pub fn kind(&self) -> PublishErrorKind {
        match self {
            PublishError::Full(_) => PublishErrorKind::Full,
            PublishError::Timeout(_) => PublishErrorKind::Timeout,
            PublishError::IdempotencyConflict(_) => PublishErrorKind::IdempotencyConflict,
            PublishError::TopicDeleted(_) => PublishErrorKind::TopicDeleted,
            PublishError::Closed(_) => PublishErrorKind::Closed,
            PublishError::TooLarge(_) => PublishErrorKind::TooLarge,
            PublishError::Panicked(_) => PublishErrorKind::Panicked,
            PublishError::Encode { .. } => PublishErrorKind::Encode,
            PublishError::Storage { fault, .. } => PublishErrorKind::Storage { fault: *fault },
            PublishError::Indeterminate { fault, .. } => PublishErrorKind::Indeterminate { fault: *fault },
        }
    }

    /// The message that was not published, or, after [`Indeterminate`](Self::Indeterminate), may not have been; there it may be gone.
    pub fn into_message(self) -> Option<Message<E>> {
        match self {
            PublishError::Full(message)
            | PublishError::Timeout(message)
            | PublishError::IdempotencyConflict(message)
            | PublishError::TopicDeleted(message)
            | PublishError::Closed(message)
            | PublishError::TooLarge(message)
            | PublishError::Panicked(message)
            | PublishError::Encode { message, .. }
            | PublishError::Storage { message, .. } => Some(message),
            PublishError::Indeterminate { message, .. } => message,
        }
    }

    pub(crate) fn new(kind: PublishErrorKind, message: Message<E>) -> Self {
        match kind {
            PublishErrorKind::Full => PublishError::Full(message),
            PublishErrorKind::Timeout => PublishError::Timeout(message),
            PublishErrorKind::IdempotencyConflict => PublishError::IdempotencyConflict(message),
            PublishErrorKind::TopicDeleted => PublishError::TopicDeleted(message),
            PublishErrorKind::Closed => PublishError::Closed(message),
            PublishErrorKind::TooLarge => PublishError::TooLarge(message),
            PublishErrorKind::Panicked => PublishError::Panicked(message),
            PublishErrorKind::Encode => {
                PublishError::Encode { message, error: CodecError::new(PublishErrorKind::Encode.to_string()) }
            }
            PublishErrorKind::Storage { fault } => PublishError::Storage { message, fault },
            PublishErrorKind::Indeterminate { fault } => {
                PublishError::Indeterminate { message: Some(message), fault }
            }
        }
    }
}

/// By hand, so that no event needs to be `Debug`.
impl<E> fmt::Debug for PublishError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.kind(), f)
    }
}

/// Why none of a batch was published. All messages come back, in their order.
#[derive(thiserror::Error)]
#[error("{kind}")]
#[non_exhaustive]
pub struct PublishAllError<E> {
    /// Why.
    pub kind: PublishErrorKind,
    /// The whole batch.
    pub messages: Vec<Message<E>>,
}

impl<E> fmt::Debug for PublishAllError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishAllError")
            .field("kind", &self.kind)
            .field("messages", &self.messages.len())
            .finish()
    }
}

/// Why a transaction was not committed. Nothing of it took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitReason {
    /// Leases had ended, by the clock, or an earlier message of an ordering key is unsettled and not acked with them. Trying again cannot help: these messages
    /// come back, or somebody else has them.
    #[error("the lease on {count} message(s) of the transaction had ended")]
    LeaseExpired {
        /// How many.
        count: u64,
    },
    /// A topic holds as much as its capacity allows, also net of what is acked. Try again later; no attempt is spent by it.
    #[error("topic is full")]
    Full,
    /// Another message was published under one of the idempotency ids within the window.
    #[error("another message was published under this idempotency id")]
    IdempotencyConflict,
    /// A topic was deleted that it publishes to or acks on.
    #[error("topic was deleted")]
    TopicDeleted,
    /// A subscription was deleted that it acks on.
    #[error("the subscription was deleted")]
    SubscriptionDeleted,
    /// A message is over a limit, or what it publishes to a topic is larger than its whole capacity.
    #[error("message is over a limit, or larger than the topic's whole capacity")]
    TooLarge,
    /// A closure of a topic (`weigh`, `fingerprint`, or the codec) panicked on an event.
    #[error("a closure of the topic panicked on the event")]
    Panicked,
    /// A codec could not encode an event.
    #[error("{error}")]
    Encode {
        /// What the codec said.
        error: CodecError,
    },
    /// A delivery or a topic belongs to another broker: a transaction is one broker's.
    #[error("a delivery or topic of another broker is in the transaction")]
    OtherBroker,
    /// The engine cannot do this.
    #[error("this engine cannot keep {capability:?}")]
    Unsupported {
        /// What it cannot keep.
        capability: Capability,
    },
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The disk failed, or is full. Nothing of it took effect.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way: whether this took effect is known when the directory is opened again.
    #[error("the outcome is unknown until the directory is opened again: {fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

impl From<PublishErrorKind> for CommitReason {
    fn from(kind: PublishErrorKind) -> Self {
        match kind {
            PublishErrorKind::Full | PublishErrorKind::Timeout => CommitReason::Full,
            PublishErrorKind::IdempotencyConflict => CommitReason::IdempotencyConflict,
            PublishErrorKind::TopicDeleted => CommitReason::TopicDeleted,
            PublishErrorKind::Closed => CommitReason::Closed,
            PublishErrorKind::TooLarge => CommitReason::TooLarge,
            PublishErrorKind::Panicked => CommitReason::Panicked,
            PublishErrorKind::Encode => CommitReason::Encode { error: CodecError::new(kind.to_string()) },
            PublishErrorKind::Storage { fault } => CommitReason::Storage { fault },
            PublishErrorKind::Indeterminate { fault } => CommitReason::Indeterminate { fault },
        }
    }
}

/// Why nothing was received, and nothing will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The subscription or its topic was deleted.
    #[error("the subscription was deleted")]
    Deleted,
    /// The disk failed, or is full. Nothing was received.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
}

/// Why nothing was received at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum TryRecvError {
    /// There is nothing to receive now.
    #[error("there is nothing to receive now")]
    Empty,
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The subscription or its topic was deleted.
    #[error("the subscription was deleted")]
    Deleted,
    /// The disk failed, or is full. Nothing was received.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
}

/// Why nothing was received in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RecvTimeoutError {
    /// The timeout passed. Nothing changed, ask again.
    #[error("nothing was received in time")]
    Timeout,
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The subscription or its topic was deleted.
    #[error("the subscription was deleted")]
    Deleted,
    /// The disk failed, or is full. Nothing was received.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
}

impl From<RecvError> for TryRecvError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Closed => TryRecvError::Closed,
            RecvError::Deleted => TryRecvError::Deleted,
            RecvError::Storage { fault } => TryRecvError::Storage { fault },
        }
    }
}

impl From<RecvError> for RecvTimeoutError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Closed => RecvTimeoutError::Closed,
            RecvError::Deleted => RecvTimeoutError::Deleted,
            RecvError::Storage { fault } => RecvTimeoutError::Storage { fault },
        }
    }
}

/// Why a settling call had no effect on some or all of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The lease had ended, so the message was not settled by this call: it comes back, or somebody else has it or settled it.
    #[error("the lease on {count} message(s) had ended: not settled by this call")]
    LeaseExpired {
        /// How many messages were not settled. The others of a batch were.
        count: u64,
    },
    /// The engine cannot do this.
    #[error("this engine cannot keep {capability:?}")]
    Unsupported {
        /// What it cannot keep.
        capability: Capability,
    },
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The subscription or its topic was deleted: there is nothing left to settle.
    #[error("the subscription was deleted")]
    Deleted,
    /// The disk failed, or is full. In `ExactlyOnce` mode an ack came to nothing and counts as a drop: the message comes back. All else holds while this broker lives, and a crash may undo it.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way: whether this took effect is known when the directory is opened again. Until then an ack counts as a drop.
    #[error("the outcome is unknown until the directory is opened again: {fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

impl From<RecvError> for SettleError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Closed => SettleError::Closed,
            RecvError::Deleted => SettleError::Deleted,
            RecvError::Storage { fault } => SettleError::Storage { fault },
        }
    }
}

/// Why a subscription was not sought. Nothing changed, unless it is `Indeterminate`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SeekError {
    /// There is no snapshot of this name on the subscription's topic (any more).
    #[error("there is none of this name")]
    NotFound,
    /// The engine cannot do this.
    #[error("this engine cannot keep {capability:?}")]
    Unsupported {
        /// What it cannot keep.
        capability: Capability,
    },
    /// The broker is shut down.
    #[error("the broker is shut down")]
    Closed,
    /// The subscription or its topic was deleted.
    #[error("the subscription was deleted")]
    Deleted,
    /// The disk failed, or is full. Nothing changed.
    #[error("{fault}")]
    Storage {
        /// What it said.
        fault: StorageFault,
    },
    /// The disk failed under way. The subscription was sought; when the directory is opened again, it may be where it was before.
    #[error("{fault}")]
    Indeterminate {
        /// What it said.
        fault: StorageFault,
    },
}

impl From<RecvError> for SeekError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Closed => SeekError::Closed,
            RecvError::Deleted => SeekError::Deleted,
            RecvError::Storage { fault } => SeekError::Storage { fault },
        }
    }
}

/// What a codec says when it cannot encode or decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CodecError {
    reason: String,
}

impl CodecError {
    /// With the reason, in a few words.
    pub fn new(reason: impl Into<String>) -> Self {
        CodecError { reason: reason.into() }
    }
}
