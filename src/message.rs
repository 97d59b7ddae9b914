//! An event on its way out (`Message`), its identity, and what a reader sees (`MessageRef`).

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use uuid::Uuid;

use crate::sequence::Sequence;
use crate::time::Tick;

/// An event on its way out: the event itself, and what the broker should know about it.
///
/// Any event converts into a message, so that `topic.publish(event)` is all that most programs write. The rest is chained:
///
/// ```
/// use eventflow::Message;
/// # let broker = eventflow::Broker::in_memory();
/// # let orders = broker.topic::<String>("orders").open()?;
/// orders.publish(
///     Message::new("order 7".to_string())
///         .attribute("region", "eu")      // filters look at attributes
///         .ordering_key("customer 12")    // ordered subscriptions deliver one key in order
///         .idempotency_id("order-7"),     // publishing it again publishes nothing
/// )?;
/// # Ok::<(), eventflow::Error>(())
/// ```
///
/// A message without any of this costs nothing beside its event; with any of it, one allocation.
pub struct Message<E> {
    pub(crate) event: E,
    pub(crate) extras: Option<Box<Extras>>,
}

/// What a message carries beside its event. Off the hot road: most messages have none.
#[derive(Clone, Default)]
pub(crate) struct Extras {
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) ordering_key: Option<String>,
    pub(crate) idempotency_id: Option<IdempotencyId>,
    pub(crate) deliver_after: Option<Duration>,
    pub(crate) expires_in: Option<Duration>,
}

impl Extras {
    /// When the message may be handed out: its publish time, later by its delay.
    pub(crate) fn due(&self, published: Tick) -> Tick {
        self.deliver_after.map_or(published, |delay| published + delay)
    }

    /// When the message leaves every subscription unsettled.
    pub(crate) fn expiry(&self, published: Tick) -> Tick {
        self.expires_in.map_or(Tick::NEVER, |life| self.due(published) + life)
    }

    pub(crate) fn is_timed(&self) -> bool {
        self.deliver_after.is_some() || self.expires_in.is_some()
    }

    pub(crate) fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub(crate) fn set_attribute(&mut self, key: String, value: String) {
        match self.attributes.iter_mut().find(|(k, _)| *k == key) {
            Some(slot) => slot.1 = value,
            None => self.attributes.push((key, value)),
        }
    }
}

impl<E> Message<E> {
    /// A message that carries `event` and nothing else.
    pub fn new(event: E) -> Self {
        Message { event, extras: None }
    }

    fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// Adds an attribute, or replaces the one of that key. At most 100 a message, keys of at most 256 bytes, values of at most 1,024.
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.extras_mut().set_attribute(key.into(), value.into());
        self
    }

    /// Messages of one key are delivered one after the other by [`ordered`](crate::SubscriptionBuilder::ordered) subscriptions.
    /// At most 1,024 bytes.
    pub fn ordering_key(mut self, key: impl Into<String>) -> Self {
        self.extras_mut().ordering_key = Some(key.into());
        self
    }

    /// Within the topic's [`DedupWindow`](crate::DedupWindow), a message with this id is published once. At most 1,024 bytes.
    pub fn idempotency_id(mut self, id: impl Into<IdempotencyId>) -> Self {
        self.extras_mut().idempotency_id = Some(id.into());
        self
    }

    /// Nobody is given the message before this much time has passed since its publish.
    pub fn deliver_after(mut self, delay: Duration) -> Self {
        self.extras_mut().deliver_after = Some(delay);
        self
    }

    /// The message leaves every subscription that has not settled it this long after it is due (its publish, or the end of its delay).
    /// A lease that runs at that time runs on.
    pub fn expires_in(mut self, life: Duration) -> Self {
        self.extras_mut().expires_in = Some(life);
        self
    }

    /// The event.
    pub fn event(&self) -> &E {
        &self.event
    }

    /// Takes the event out.
    pub fn into_event(self) -> E {
        self.event
    }
}

impl<E> From<E> for Message<E> {
    fn from(event: E) -> Self {
        Message::new(event)
    }
}

impl From<&str> for Message<String> {
    fn from(event: &str) -> Self {
        Message::new(event.to_owned())
    }
}

impl From<Vec<u8>> for Message<Bytes> {
    fn from(event: Vec<u8>) -> Self {
        Message::new(event.into())
    }
}

impl From<&'static [u8]> for Message<Bytes> {
    fn from(event: &'static [u8]) -> Self {
        Message::new(Bytes::from_static(event))
    }
}

impl<const N: usize> From<&'static [u8; N]> for Message<Bytes> {
    fn from(event: &'static [u8; N]) -> Self {
        Message::new(Bytes::from_static(event))
    }
}

impl<E> fmt::Debug for Message<E> {
    /// Without the event: payloads never reach a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Message");
        if let Some(extras) = &self.extras {
            out.field("attributes", &extras.attributes.len())
                .field("ordering_key", &extras.ordering_key.is_some())
                .field("idempotency_id", &extras.idempotency_id)
                .field("deliver_after", &extras.deliver_after)
                .field("expires_in", &extras.expires_in);
        }
        out.finish_non_exhaustive()
    }
}

/// Says that two publishes are one and the same: within the topic's window, an id is published once.
///
/// A [`Uuid`] and its hyphenated text are one id, in whichever case the text is written.
///
/// ```
/// use eventflow::IdempotencyId;
/// let uuid = uuid::Uuid::from_u128(7);
/// assert_eq!(IdempotencyId::from(uuid), IdempotencyId::from("00000000-0000-0000-0000-000000000007"));
/// assert_eq!(IdempotencyId::from("order-7").to_string(), "order-7");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyId(Id);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Id {
    Uuid(Uuid),
    Text(Arc<str>),
}

const HYPHENATED_LEN: usize = 36;

impl IdempotencyId {
    /// The id's length as text, in bytes.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Id::Uuid(_) => HYPHENATED_LEN,
            Id::Text(text) => text.len(),
        }
    }

    /// A UUID's 16 bytes, or the text of any other id.
    pub(crate) fn as_uuid_or_text(&self) -> Result<&[u8; 16], &str> {
        match &self.0 {
            Id::Uuid(uuid) => Ok(uuid.as_bytes()),
            Id::Text(text) => Err(text),
        }
    }
}

impl From<Uuid> for IdempotencyId {
    fn from(id: Uuid) -> Self {
        IdempotencyId(Id::Uuid(id))
    }
}

impl From<&str> for IdempotencyId {
    fn from(id: &str) -> Self {
        match Uuid::try_parse(id) {
            Ok(uuid) if id.len() == HYPHENATED_LEN => IdempotencyId(Id::Uuid(uuid)),
            _ => IdempotencyId(Id::Text(id.into())),
        }
    }
}

impl From<String> for IdempotencyId {
    fn from(id: String) -> Self {
        id.as_str().into()
    }
}

impl fmt::Display for IdempotencyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Id::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Id::Text(text) => f.pad(text),
        }
    }
}

impl fmt::Debug for IdempotencyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyId({self})")
    }
}

/// A message's identity: its topic's incarnation (a number that is never reused, also when a topic is deleted and created again)
/// and its sequence in it, from 1.
///
/// As text it is `incarnation-sequence`, and that text parses back.
///
/// ```
/// use eventflow::MessageId;
/// let id: MessageId = "3-17".parse()?;
/// assert_eq!(id.sequence(), 17);
/// assert_eq!(id.to_string(), "3-17");
/// # Ok::<(), eventflow::ParseMessageIdError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MessageId {
    incarnation: u64,
    sequence: u64,
}

impl MessageId {
    pub(crate) fn new(incarnation: u64, sequence: Sequence) -> Self {
        MessageId { incarnation, sequence: sequence.get() }
    }

    /// That of the `n`-th message after this one.
    pub(crate) fn after(self, n: u64) -> Self {
        MessageId { sequence: self.sequence + n, ..self }
    }

    /// The topic's incarnation.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The message's place in its topic's one order, from 1.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.sequence)
    }
}

/// The text is not `incarnation-sequence`, two decimal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message id is two decimal numbers with a hyphen between them, as in 3-17")]
pub struct ParseMessageIdError;

impl FromStr for MessageId {
    type Err = ParseMessageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (incarnation, sequence) = text.split_once('-').ok_or(ParseMessageIdError)?;
        Ok(MessageId { incarnation: parse_decimal(incarnation)?, sequence: parse_decimal(sequence)? })
    }
}

/// Digits only: `u64::from_str` would take a sign.
fn parse_decimal(text: &str) -> Result<u64, ParseMessageIdError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseMessageIdError);
    }
    text.parse().map_err(|_| ParseMessageIdError)
}

/// A published message as a reader sees it. A `Copy` view: nothing is stored in a reader's shape. Dereferences to the event.
pub struct MessageRef<'a, E> {
    pub(crate) id: MessageId,
    pub(crate) published: Tick,
    pub(crate) event: &'a E,
    pub(crate) extras: Option<&'a Extras>,
}

impl<'a, E> MessageRef<'a, E> {
    /// The message's identity.
    pub fn id(self) -> MessageId {
        self.id
    }

    /// When the message was published, on the broker's clock. Never earlier than that of the message before it.
    pub fn publish_time(self) -> SystemTime {
        self.published.to_system_time()
    }

    /// The event, for as long as the view's owner lives.
    pub fn event(self) -> &'a E {
        self.event
    }

    /// The value of one attribute. Linear in the number of attributes (at most 100).
    pub fn attribute(self, key: &str) -> Option<&'a str> {
        self.extras.and_then(|extras| extras.attribute(key))
    }

    /// All attributes, as key and value, in the order in which they were set.
    pub fn attributes(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.extras
            .into_iter()
            .flat_map(|extras| extras.attributes.iter())
            .map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// The ordering key.
    pub fn ordering_key(self) -> Option<&'a str> {
        self.extras.and_then(|extras| extras.ordering_key.as_deref())
    }

    /// The idempotency id.
    pub fn idempotency_id(self) -> Option<&'a IdempotencyId> {
        self.extras.and_then(|extras| extras.idempotency_id.as_ref())
    }
}

impl<E> Clone for MessageRef<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for MessageRef<'_, E> {}

impl<E> Deref for MessageRef<'_, E> {
    type Target = E;
    fn deref(&self) -> &E {
        self.event
    }
}

impl<E> fmt::Debug for MessageRef<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRef").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_uuid_and_its_hyphenated_text_are_one_id() {
        let uuid = Uuid::from_u128(0xAB);
        let text = uuid.hyphenated().to_string();
        assert_eq!(IdempotencyId::from(uuid), IdempotencyId::from(text.as_str()));
        assert_eq!(IdempotencyId::from(uuid), IdempotencyId::from(text.to_uppercase()));
        // The other spellings of a UUID stay what they are: texts.
        assert_ne!(IdempotencyId::from(uuid), IdempotencyId::from(uuid.simple().to_string()));
        assert_ne!(IdempotencyId::from(uuid), IdempotencyId::from(uuid.urn().to_string()));
    }

    #[test]
    fn setting_an_attribute_again_replaces_it() {
        let message = Message::new(1).attribute("a", "1").attribute("b", "2").attribute("a", "3");
        let extras = message.extras.unwrap();
        assert_eq!(extras.attributes, [("a".into(), "3".into()), ("b".into(), "2".into())]);
    }

    proptest! {
        #[test]
        fn a_message_id_survives_its_text(incarnation: u64, sequence: u64) {
            let id = MessageId { incarnation, sequence };
            prop_assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<MessageId>();
        }
    }
}
