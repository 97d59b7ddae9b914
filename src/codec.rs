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

/// The codec of events that are bytes already: `raw`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw;

impl Codec<Bytes> for Raw {
    fn name(&self) -> &str {
        RAW
    }

    fn encode(&self, event: &Bytes, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(event);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Bytes, CodecError> {
        Ok(Bytes::copy_from_slice(bytes))
    }
}

impl Codec<Vec<u8>> for Raw {
    fn name(&self) -> &str {
        RAW
    }

    fn encode(&self, event: &Vec<u8>, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(event);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        Ok(bytes.to_vec())
    }
}

/// For a topic that was made with [`Encoded`] events. One that was made with others keeps its own codec, whoever opens it as bytes: see [`AsMade`].
impl Codec<Encoded> for Raw {
    fn name(&self) -> &str {
        RAW
    }

    fn encode(&self, event: &Encoded, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(event);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Encoded, CodecError> {
        Ok(Encoded(Bytes::copy_from_slice(bytes)))
    }
}

const RAW: &str = "raw";

/// The codec of strings: `utf8`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Utf8;

impl Codec<String> for Utf8 {
    fn name(&self) -> &str {
        UTF8
    }

    fn encode(&self, event: &String, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(event.as_bytes());
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<String, CodecError> {
        text_of(bytes).map(str::to_owned)
    }
}

const UTF8: &str = "utf8";

fn text_of(bytes: &[u8]) -> Result<&str, CodecError> {
    std::str::from_utf8(bytes).map_err(|error| CodecError::new(format!("not UTF-8: {error}")))
}

/// What a codec of this name has made, as it is.
#[derive(Clone, Debug)]
pub(crate) struct AsMade {
    pub(crate) by: String,
}

impl Codec<Encoded> for AsMade {
    fn name(&self) -> &str {
        &self.by
    }

    fn encode(&self, event: &Encoded, out: &mut Vec<u8>) -> Result<(), CodecError> {
        if self.by == UTF8 {
            text_of(event)?;
        }
        out.extend_from_slice(event);
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Encoded, CodecError> {
        Ok(Encoded(Bytes::copy_from_slice(bytes)))
    }
}

#[cfg(feature = "json")]
mod json;
#[cfg(feature = "json")]
pub use json::Json;

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<E>(codec: &impl Codec<E>, event: &E) -> Result<E, CodecError> {
        let mut out = b"before".to_vec();
        codec.encode(event, &mut out)?;
        codec.decode(out.strip_prefix(b"before").expect("a codec appends"))
    }

    #[test]
    fn raw_bytes_and_strings_come_back_as_they_went() {
        let bytes = vec![0_u8, 255, 7];
        assert_eq!(there_and_back::<Vec<u8>>(&Raw, &bytes).as_ref(), Ok(&bytes));
        let shared = Bytes::from(bytes.clone());
        assert_eq!(there_and_back(&Raw, &shared).as_ref(), Ok(&shared));
        let encoded = Encoded::from(bytes);
        assert_eq!(there_and_back(&Raw, &encoded).as_ref(), Ok(&encoded));
        assert_eq!(there_and_back(&Utf8, &"grüezi".to_owned()), Ok("grüezi".to_owned()));
    }

    #[test]
    fn bytes_that_are_no_utf8_are_no_string() {
        let error = Utf8.decode(b"ab\xFF").expect_err("0xFF stands nowhere in UTF-8");
        assert!(error.to_string().starts_with("not UTF-8") && error.to_string().contains('2'), "{error}");
    }

    #[test]
    fn a_clone_of_an_encoded_event_shares_its_bytes() {
        let event = Encoded::from(vec![7; 100]);
        assert_eq!(event.clone().bytes().as_ptr(), event.bytes().as_ptr());
    }
}
