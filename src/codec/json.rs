//! JSON, by serde.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::codec::Codec;
use crate::error::CodecError;

/// The codec `json`, for every event that serde can serialize and deserialize.
///
/// A field that is added to an event needs `#[serde(default)]` where older events are still to be read.
///
/// ```
/// use eventflow::{Broker, Json};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced {
///     id: u64,
///     #[serde(default)]
///     gift: bool,
/// }
///
/// # let broker = Broker::in_memory();
/// let orders = broker.topic::<OrderPlaced>("orders").codec(Json).open()?;
/// let billing = orders.subscription("billing").open()?;
/// orders.publish(OrderPlaced { id: 7, gift: true })?;
/// assert!(billing.recv()?.gift);
///
/// let older: OrderPlaced = eventflow::Codec::decode(&Json, br#"{"id":6}"#)?;
/// assert!(older.id == 6 && !older.gift);
/// # Ok::<(), eventflow::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<E: Serialize + DeserializeOwned + Send + Sync + 'static> Codec<E> for Json {
    fn name(&self) -> &str {
        "json"
    }

    fn encode(&self, event: &E, out: &mut Vec<u8>) -> Result<(), CodecError> {
        serde_json::to_writer(out, event).map_err(|error| CodecError::new(error.to_string()))
    }

    fn decode(&self, bytes: &[u8]) -> Result<E, CodecError> {
        serde_json::from_slice(bytes).map_err(|error| {
            // What serde says would quote the payload, which is to reach no log.
            let kind = match error.classify() {
                Category::Data => "not this event's",
                Category::Eof => "ends too early",
                Category::Syntax | Category::Io => "no JSON",
            };
            CodecError::new(format!("{kind}, at line {} column {}", error.line(), error.column()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_cannot_be_told_in_json_is_an_error_and_no_panic() {
        let by_pair: HashMap<(u8, u8), u8> = HashMap::from([((1, 2), 3)]);
        let refused = Codec::<HashMap<(u8, u8), u8>>::encode(&Json, &by_pair, &mut Vec::new());
        assert!(refused.expect_err("a key must be a string").to_string().contains("key"));
        // Deep enough to overflow the stack of a reader that recurses without bound.
        let deep = "[".repeat(1_000_000);
        assert!(Codec::<serde_json::Value>::decode(&Json, deep.as_bytes()).is_err());
        assert!(Codec::<u8>::decode(&Json, b"7 8").is_err(), "what follows an event is no part of it");
        assert_eq!(Codec::<u8>::decode(&Json, b"7"), Ok(7));
    }

    #[test]
    fn an_error_of_decoding_says_where_and_quotes_nothing() {
        let error = Codec::<u8>::decode(&Json, br#""secret""#).expect_err("a text is no number");
        assert_eq!(error.to_string(), "not this event's, at line 1 column 8");
    }
}
