//! Events as bytes, where bytes are needed.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::error::CodecError;

/// Turns events into bytes and back.
///
/// In memory an event is never encoded to be stored or delivered. A topic that was given a codec uses it to tell whether two messages under one
/// idempotency id carry the same payload.
///
/// ```
/// use eventflow::{Codec, CodecError};
///
/// struct BigEndian;
///
/// impl Codec<u64> for BigEndian {
///     fn name(&self) -> &str {
///         "u64be"
///     }
///     fn encode(&self, event: &u64, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         out.extend_from_slice(&event.to_be_bytes());
///         Ok(())
///     }
///     fn decode(&self, bytes: &[u8]) -> Result<u64, CodecError> {
///         let bytes = bytes.try_into().map_err(|_| CodecError::new("not 8 bytes"))?;
///         Ok(u64::from_be_bytes(bytes))
///     }
/// }
/// # let broker = eventflow::Broker::in_memory();
/// let prices = broker.topic::<u64>("prices").codec(BigEndian).open()?;
/// # Ok::<(), eventflow::Error>(())
/// ```
pub trait Codec<E>: Send + Sync + 'static {
    /// The codec's name. A topic keeps to one name.
    fn name(&self) -> &str;

    /// Appends the event's bytes to `out`.
    ///
    /// # Errors
    /// The event has no encoding. Nothing is published.
    fn encode(&self, event: &E, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads an event back.
    ///
    /// # Errors
    /// The bytes are no event.
    fn decode(&self, bytes: &[u8]) -> Result<E, CodecError>;
}

/// An event as the bytes that its topic's codec made of it, for programs that carry events without knowing their type: tools, bridges, network fronts.
///
/// On disk a topic opens as `Encoded` whatever its codec is, and stays what it is: the next program opens it by its own type. In one process, at a time, it is open either way, not both:
/// [`TypeMismatch`](crate::CreateError::TypeMismatch). The closures that know the typed event need not be given: [`weigh`](crate::TopicBuilder::weigh) gives way to the length, and a message
/// with an idempotency id cannot be published where payloads are compared by a [`fingerprint`](crate::TopicBuilder::fingerprint) that was not given. A
/// [`filter_fn`](crate::SubscriptionBuilder::filter_fn) is asked for as ever.
///
/// What is published as `Encoded` is taken at its word, but that text must be text: bytes that the topic's codec cannot read are the next program's trouble.
///
/// A clone shares the bytes. `Debug` tells their length alone.
///
/// ```
/// use eventflow::{Broker, Encoded};
/// # let dir = std::env::temp_dir().join(format!("eventflow-doc-encoded-{}", std::process::id()));
/// let broker = Broker::open(&dir)?;
/// let orders = broker.topic::<String>("orders").open()?;
/// let billing = orders.subscription("billing").open()?;
/// orders.publish("order 7")?;
/// # drop((billing, orders));
/// drop(broker);
///
/// let broker = Broker::open(&dir)?;
/// let orders = broker.topic::<Encoded>("orders").open()?;
/// let event = orders.subscription("billing").open()?.recv()?;
/// assert_eq!(&event[..5], b"order");
/// assert_eq!(format!("{:?}", *event), "Encoded(7 bytes)");
/// event.ack()?;
/// # drop((orders, broker));
/// # std::fs::remove_dir_all(&dir).ok();
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Encoded(Bytes);

impl Encoded {
    /// The bytes, shared.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Takes the bytes out.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Encoded(bytes)
    }
}

impl From<Vec<u8>> for Encoded {
    fn from(bytes: Vec<u8>) -> Self {
        Encoded(bytes.into())
    }
}

impl From<&'static [u8]> for Encoded {
    fn from(bytes: &'static [u8]) -> Self {
        Encoded(Bytes::from_static(bytes))
    }
}

impl fmt::Debug for Encoded {
    /// Without the bytes: payloads never reach a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Encoded({} bytes)", self.0.len())
    }
}

mod raw;
pub(crate) use raw::{as_made, bytes_of, own_codec};

#[cfg(feature = "json")]
mod json;
#[cfg(feature = "json")]
pub use json::Json;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_of_an_encoded_event_shares_its_bytes() {
        let event = Encoded::from(vec![7; 100]);
        assert_eq!(event.clone().bytes().as_ptr(), event.bytes().as_ptr());
    }
}
