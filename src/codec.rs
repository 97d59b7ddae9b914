//! Events as bytes, where bytes are needed.

use crate::error::CodecError;

/// Turns events into bytes and back.
///
/// In memory an event is never encoded to be stored or delivered. A topic that was given a codec uses it to tell whether two messages under one
/// idempotency id carry the same payload.
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
