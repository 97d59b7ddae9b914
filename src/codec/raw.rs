//! Events that are bytes already.

use std::any::{Any, TypeId};
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Codec, Encoded};
use crate::error::CodecError;

/// Raw bytes and strings are what they are.
pub(crate) fn own_codec<E: 'static>() -> Option<Arc<dyn Codec<E>>> {
    only_of::<E, Bytes>(Arc::new(Raw))
        .or_else(|| only_of::<E, Vec<u8>>(Arc::new(Raw)))
        .or_else(|| only_of::<E, String>(Arc::new(Utf8)))
        .or_else(|| only_of::<E, Encoded>(Arc::new(Raw)))
}

/// Of [`Encoded`] events: what a codec of this name has made.
pub(crate) fn as_made<E: 'static>(by: &str) -> Option<Arc<dyn Codec<E>>> {
    only_of::<E, Encoded>(Arc::new(AsMade { by: by.to_owned() }))
}

/// None: `E` is not `T`.
fn only_of<E: 'static, T: 'static>(codec: Arc<dyn Codec<T>>) -> Option<Arc<dyn Codec<E>>> {
    (&codec as &dyn Any).downcast_ref::<Arc<dyn Codec<E>>>().cloned()
}

/// An event as bytes.
type AsBytes<E> = fn(&E) -> Option<&[u8]>;

/// Raw bytes and strings know their length and can be compared.
pub(crate) fn bytes_of<E: 'static>() -> Option<AsBytes<E>> {
    fn look<E: 'static, T: 'static + AsRef<[u8]>>(event: &E) -> Option<&[u8]> {
        (event as &dyn Any).downcast_ref::<T>().map(AsRef::as_ref)
    }
    let event = TypeId::of::<E>();
    if event == TypeId::of::<Bytes>() {
        Some(look::<E, Bytes>)
    } else if event == TypeId::of::<Vec<u8>>() {
        Some(look::<E, Vec<u8>>)
    } else if event == TypeId::of::<String>() {
        Some(look::<E, String>)
    } else if event == TypeId::of::<Encoded>() {
        Some(look::<E, Encoded>)
    } else if event == TypeId::of::<&'static str>() {
        Some(look::<E, &'static str>)
    } else {
        None
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
    fn what_another_codec_made_passes_as_it_is_under_its_name_but_text_stays_text() {
        let (bytes, text) = (Encoded::from(vec![0xFF]), Encoded::from(b"ab".to_vec()));
        let (orders, texts) = (AsMade { by: "order/1".into() }, AsMade { by: UTF8.into() });
        assert_eq!((orders.name(), texts.name()), ("order/1", "utf8"));
        assert_eq!(there_and_back(&orders, &bytes).as_ref(), Ok(&bytes));
        assert_eq!(there_and_back(&texts, &text).as_ref(), Ok(&text));
        assert!(there_and_back(&texts, &bytes).is_err());
    }

    #[test]
    fn raw_bytes_and_strings_know_their_bytes_and_others_do_not() {
        assert_eq!(bytes_of::<String>().and_then(|bytes| bytes(&"ab".to_owned()).map(<[u8]>::len)), Some(2));
        assert_eq!(bytes_of::<Encoded>().and_then(|bytes| bytes(&vec![7].into()).map(<[u8]>::len)), Some(1));
        assert!(bytes_of::<u64>().is_none() && own_codec::<u64>().is_none());
        assert!(own_codec::<Encoded>().is_some() && as_made::<Encoded>("x").is_some());
        assert!(as_made::<Bytes>("x").is_none(), "only who asks for bytes as they are");
    }
}
