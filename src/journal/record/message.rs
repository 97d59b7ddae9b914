//! A message as bytes.
//!
//! ```text
//! message = flags: u8, then what the flags say, in this order, then the payload: bytes
//!           bit 0  weight: varint                   else it is the payload's length
//!           bit 1  attributes: count, then a key and a value, texts, each
//!           bit 2  ordering key: text
//!           bit 3  idempotency id, and content: u64
//!           bit 4  deliver after: duration
//!           bit 5  expires in: duration
//!           bit 6  origin, of a dead letter: topic, sequence
//! ```
//!
//! So a plain message costs one byte, its payload's length, and its payload.

use std::fmt;

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::journal::record::list::SEQUENCE_MAX;
use crate::journal::record::{BODY_LEN_MAX, HEADER_LEN, framed, kind, say_len};
use crate::message::Extras;
use crate::options::{
    ATTRIBUTE_KEY_LEN_MAX, ATTRIBUTE_VALUE_LEN_MAX, ATTRIBUTES_MAX, IDEMPOTENCY_ID_LEN_MAX,
    ORDERING_KEY_LEN_MAX, PAYLOAD_BYTES_MAX,
};
use crate::sequence::Sequence;
use crate::time::Tick;

const WEIGHT: u8 = 1;
const ATTRIBUTES: u8 = 1 << 1;
const ORDERING_KEY: u8 = 1 << 2;
const IDEMPOTENCY_ID: u8 = 1 << 3;
const DELIVER_AFTER: u8 = 1 << 4;
const EXPIRES_IN: u8 = 1 << 5;
const ORIGIN: u8 = 1 << 6;
const EXTRAS: u8 = ATTRIBUTES | ORDERING_KEY | IDEMPOTENCY_ID | DELIVER_AFTER | EXPIRES_IN;
const KNOWN: u8 = WEIGHT | EXTRAS | ORIGIN;

/// A dead letter has up to seven attributes more than its origin.
const RECORD_ATTRIBUTES_MAX: usize = ATTRIBUTES_MAX + 7;

/// A message but for its extras.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    pub(crate) weight: u64,
    /// What a repeat of its idempotency id is compared with; of a message without one it is not kept.
    pub(crate) content: u64,
    /// Of a dead letter: the topic, and the message there.
    pub(crate) origin: Option<(u64, Sequence)>,
    pub(crate) payload: &'a [u8],
}

impl fmt::Debug for Envelope<'_> {
    /// Without the payload, which is to reach no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Envelope");
        out.field("weight", &self.weight).field("content", &self.content).field("origin", &self.origin);
        out.field("payload", &self.payload.len()).finish()
    }
}

/// A message is over a limit. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} over the limit")]
pub(crate) struct OverLimit(pub(crate) &'static str);

/// Appends a message, for [`write_published`]. What it is called and when it was published need not be known yet.
pub(crate) fn encode_message(
    out: &mut Vec<u8>,
    envelope: &Envelope<'_>,
    extras: Option<&Extras>,
) -> Result<(), OverLimit> {
    if envelope.payload.len() as u64 > PAYLOAD_BYTES_MAX {
        return Err(OverLimit("payload"));
    }
    extras.map_or(Ok(()), check)?;
    let out = &mut Writer(out);
    let own_weight = envelope.weight != envelope.payload.len() as u64;
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let flags = flag(own_weight, WEIGHT) | flag(envelope.origin.is_some(), ORIGIN);
    out.u8(flags | extras.map_or(0, flags_of));
    if own_weight {
        out.varint(envelope.weight);
    }
    if let Some(extras) = extras {
        write_extras(extras, envelope.content, out);
    }
    if let Some((topic, sequence)) = envelope.origin {
        out.varint(topic);
        out.sequence(sequence);
    }
    out.bytes(envelope.payload);
    Ok(())
}

fn check(extras: &Extras) -> Result<(), OverLimit> {
    let within = |fine: bool, what| if fine { Ok(()) } else { Err(OverLimit(what)) };
    let attributes = &extras.attributes;
    within(attributes.len() <= RECORD_ATTRIBUTES_MAX, "number of attributes")?;
    within(attributes.iter().all(|(key, _)| key.len() <= ATTRIBUTE_KEY_LEN_MAX), "attribute key")?;
    within(attributes.iter().all(|(_, value)| value.len() <= ATTRIBUTE_VALUE_LEN_MAX), "attribute value")?;
    let key_len = extras.ordering_key.as_ref().map_or(0, String::len);
    within(key_len <= ORDERING_KEY_LEN_MAX, "ordering key")?;
    let id_len = extras.idempotency_id.as_ref().map_or(0, |id| id.len());
    within(id_len <= IDEMPOTENCY_ID_LEN_MAX, "idempotency id")
}

fn flags_of(extras: &Extras) -> u8 {
    let said = [
        (!extras.attributes.is_empty(), ATTRIBUTES),
        (extras.ordering_key.is_some(), ORDERING_KEY),
        (extras.idempotency_id.is_some(), IDEMPOTENCY_ID),
        (extras.deliver_after.is_some(), DELIVER_AFTER),
        (extras.expires_in.is_some(), EXPIRES_IN),
    ];
    said.into_iter().filter(|(is_said, _)| *is_said).fold(0, |flags, (_, flag)| flags | flag)
}

fn write_extras(extras: &Extras, content: u64, out: &mut Writer<'_>) {
    if !extras.attributes.is_empty() {
        out.varint(extras.attributes.len() as u64);
        for (key, value) in &extras.attributes {
            out.text(key);
            out.text(value);
        }
    }
    if let Some(key) = &extras.ordering_key {
        out.text(key);
    }
    if let Some(id) = &extras.idempotency_id {
        out.idempotency_id(id);
        out.u64(content);
    }
    if let Some(delay) = extras.deliver_after {
        out.duration(delay);
    }
    if let Some(life) = extras.expires_in {
        out.duration(life);
    }
}

fn read_message<'a>(reader: &mut Reader<'a>) -> Result<(Envelope<'a>, Option<Box<Extras>>), Malformed> {
    let place = reader.flaw(Flaw::Value("a message's flags"));
    let flags = reader.u8()?;
    if flags & !KNOWN != 0 {
        return Err(place);
    }
    let weight = if flags & WEIGHT != 0 { Some(reader.varint()?) } else { None };
    let mut content = 0;
    let extras = match flags & EXTRAS {
        0 => None,
        flags => Some(Box::new(read_extras(flags, &mut content, reader)?)),
    };
    let origin = if flags & ORIGIN != 0 { Some((reader.varint()?, reader.sequence()?)) } else { None };
    let payload = reader.bytes(PAYLOAD_BYTES_MAX as usize, "a payload")?;
    let weight = weight.unwrap_or(payload.len() as u64);
    Ok((Envelope { weight, content, origin, payload }, extras))
}

fn read_extras(flags: u8, content: &mut u64, reader: &mut Reader<'_>) -> Result<Extras, Malformed> {
    let mut extras = Extras::default();
    if flags & ATTRIBUTES != 0 {
        let over = reader.flaw(Flaw::Limit("the number of attributes"));
        let count = reader.varint()?;
        if count == 0 || count > RECORD_ATTRIBUTES_MAX as u64 {
            return Err(over);
        }
        for _ in 0..count {
            let key = reader.text(ATTRIBUTE_KEY_LEN_MAX, "an attribute's key")?;
            let value = reader.text(ATTRIBUTE_VALUE_LEN_MAX, "an attribute's value")?;
            extras.attributes.push((key.to_owned(), value.to_owned()));
        }
    }
    if flags & ORDERING_KEY != 0 {
        extras.ordering_key = Some(reader.text(ORDERING_KEY_LEN_MAX, "an ordering key")?.to_owned());
    }
    if flags & IDEMPOTENCY_ID != 0 {
        extras.idempotency_id = Some(reader.idempotency_id()?);
        *content = reader.u64()?;
    }
    if flags & DELIVER_AFTER != 0 {
        extras.deliver_after = Some(reader.duration()?);
    }
    if flags & EXPIRES_IN != 0 {
        extras.expires_in = Some(reader.duration()?);
    }
    Ok(extras)
}

/// What is before a message in its topic's own files: when it was published (u64). Appends that; the message is to follow, as [`encode_message`] writes it.
pub(crate) fn write_archived(out: &mut Vec<u8>, at: Tick) {
    Writer(out).u64(at.nanos());
}

/// How long that is.
pub(crate) const ARCHIVED_HEAD_LEN: usize = 8;

/// A message as bytes, and what they say; before it, when it was published.
pub(crate) type Archived<'a> = (Tick, Envelope<'a>, Option<Box<Extras>>, &'a [u8]);

/// Reads what [`write_archived`] and [`encode_message`] wrote, and perhaps more behind it.
#[inline]
pub(crate) fn read_archived(bytes: &[u8]) -> Result<Archived<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let at = Tick::from_nanos(reader.u64()?);
    let before = reader.rest();
    let (envelope, extras) = read_message(&mut reader)?;
    let message = before.get(..before.len() - reader.rest().len()).unwrap_or_default();
    Ok((at, envelope, extras, message))
}

/// [`read_archived`] of a message that is but a payload: when it was published, and that. None: it is more, or cannot be read.
#[inline]
pub(crate) fn read_plain_archived(bytes: &[u8]) -> Option<(Tick, &[u8])> {
    let (at, rest) = bytes.split_first_chunk::<ARCHIVED_HEAD_LEN>()?;
    let rest = rest.strip_prefix(&[0])?;
    let payload = Reader::new(rest).bytes(PAYLOAD_BYTES_MAX as usize, "a payload").ok()?;
    Some((Tick::from_nanos(u64::from_le_bytes(*at)), payload))
}

/// Passes over a message without keeping anything of it.
fn skip_message(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    read_message(reader).map(drop)
}

/// Messages as bytes, which have been looked through once.
#[derive(Clone, Copy)]
pub(crate) struct Messages<'a> {
    bytes: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Takes all that is left in the reader.
    pub(super) fn read(first: Sequence, reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let place = reader.flaw(Flaw::Value("a message's sequence"));
        let (bytes, mut count) = (reader.rest(), 0);
        while !reader.is_empty() {
            skip_message(reader)?;
            count += 1;
        }
        let end = first.get().checked_add(count).filter(|end| *end <= SEQUENCE_MAX);
        end.map(|_| Messages { bytes }).ok_or(place)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> u64 {
        self.each().count() as u64
    }

    /// Each message, in order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Envelope<'a>, Option<Box<Extras>>)> + use<'a> {
        self.each().map(|(envelope, extras, _)| (envelope, extras))
    }

    /// Each message, in order, and its bytes, as [`encode_message`] wrote them.
    pub(crate) fn each(
        &self,
    ) -> impl Iterator<Item = (Envelope<'a>, Option<Box<Extras>>, &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        // What was read once is read again.
        std::iter::from_fn(move || {
            let before = reader.rest();
            if before.is_empty() {
                return None;
            }
            let (envelope, extras) = read_message(&mut reader).ok()?;
            Some((envelope, extras, before.get(..before.len() - reader.rest().len())?))
        })
    }

    /// Each message as its bytes, as [`encode_message`] wrote them.
    pub(crate) fn encoded(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        std::iter::from_fn(move || {
            let before = reader.rest();
            if before.is_empty() || skip_message(&mut reader).is_err() {
                return None;
            }
            before.get(..before.len() - reader.rest().len())
        })
    }
}

impl PartialEq for Messages<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for Messages<'_> {
    /// Without the payloads, which are to reach no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages", self.encoded().count())
    }
}

/// Writes messages, each as [`encode_message`] wrote it, as one record, or as many as it takes.
pub(crate) fn write_published<'m>(
    out: &mut Vec<u8>,
    topic: u64,
    first: Sequence,
    at: Tick,
    messages: impl IntoIterator<Item = &'m [u8]>,
) {
    let mut messages = messages.into_iter().peekable();
    let mut next = first;
    loop {
        framed(out, kind::PUBLISHED, |out| {
            write_head(out, topic, next, at);
            let start = out.0.len();
            let fits = |out: &Writer<'_>, message: &&[u8]| {
                out.0.len() - start + message.len() <= BODY_LEN_MAX - HEAD_LEN_MAX
            };
            while let Some(message) = messages.next_if(|message| fits(out, message)) {
                out.raw(message);
                next = next.next();
            }
        });
        if messages.peek().is_none() {
            return;
        }
    }
}

/// A record of messages that are but their payloads, made before it is known what they are called: that goes into room that is left in front.
pub(crate) struct PlainRecord(Vec<u8>);

/// Flags and length of a payload that is not too long, at most.
const PLAIN_HEAD_LEN_MAX: usize = 5;

impl PlainRecord {
    const ROOM: usize = HEADER_LEN + HEAD_LEN_MAX;

    /// With memory for so many messages, which have so many bytes together.
    pub(crate) fn with_capacity(messages: usize, bytes: usize) -> Self {
        let mut record = Vec::with_capacity(Self::ROOM + messages * PLAIN_HEAD_LEN_MAX + bytes);
        record.resize(Self::ROOM, 0);
        PlainRecord(record)
    }

    /// Appends a message. False: it is too long, or there are too many for one record.
    #[inline]
    pub(crate) fn push(&mut self, payload: &[u8]) -> bool {
        let weight = payload.len() as u64;
        let envelope = Envelope { weight, content: 0, origin: None, payload };
        self.0.len() + PLAIN_HEAD_LEN_MAX + payload.len() <= BODY_LEN_MAX
            && encode_message(&mut self.0, &envelope, None).is_ok()
    }

    /// The record.
    pub(crate) fn finish(&mut self, topic: u64, first: Sequence, at: Tick) -> &[u8] {
        let mut head = Vec::with_capacity(Self::ROOM);
        framed(&mut head, kind::PUBLISHED, |out| write_head(out, topic, first, at));
        let body = head.len() - HEADER_LEN + self.0.len() - Self::ROOM;
        say_len(&mut head, body);
        let start = Self::ROOM - head.len();
        self.0[start..Self::ROOM].copy_from_slice(&head);
        &self.0[start..]
    }
}

fn write_head(out: &mut Writer<'_>, topic: u64, first: Sequence, at: Tick) {
    out.varint(topic);
    out.sequence(first);
    out.tick(at);
}

/// More than the three numbers before the messages take.
const HEAD_LEN_MAX: usize = 32;
/// More than a message takes beside its payload.
const EXTRAS_LEN_MAX: usize = RECORD_ATTRIBUTES_MAX * (ATTRIBUTE_KEY_LEN_MAX + ATTRIBUTE_VALUE_LEN_MAX + 4)
    + ORDERING_KEY_LEN_MAX
    + IDEMPOTENCY_ID_LEN_MAX
    + 128;

const _: () = assert!(PAYLOAD_BYTES_MAX as usize + EXTRAS_LEN_MAX + HEAD_LEN_MAX <= BODY_LEN_MAX);
