//! The options of topics and subscriptions as bytes.
//!
//! ```text
//! topic options = retention: u8 (0 until acked, 1 for: duration, 2 for ever), bytes: option, messages: option,
//!                 capacity: messages: option, bytes: option, overflow: u8 (0 block, 1 reject, 2 drop oldest),
//!                 dedup window: duration, ids: varint, codec: option of a text,
//!                 closures: u8 (bit 0 fingerprint, bit 1 weigh)
//! book options  = ack deadline: duration, mode: u8 (0 at most once, 1 at least once, 2 exactly once),
//!                 flags: u8 (bit 0 ordered, bit 1 filter closure), filter: option of a text,
//!                 retry: u8 (0 immediate, 1 fixed, 2 exponential), min: duration, max: duration,
//!                 dead letters: u8 (0 none, 1 discard, 2 to a topic), attempts: varint if not 0, name: text if 2,
//!                 expire after: option of a duration, outstanding at most: varint
//! option        = u8: 0, or 1 and the value; without another word, a varint
//! ```

use std::time::Duration;

use crate::binary::{Flaw, Malformed, Reader, Writer};
use crate::journal::record::{read_bool, read_name};
use crate::name::Name;
use crate::options::{
    Capacity, DedupWindow, DeliveryMode, Keep, Overflow, Retention, RetryKind, RetryPolicy,
};

/// The longest name of a codec.
pub(crate) const CODEC_LEN_MAX: usize = 1_024;
const FILTER_LEN_MAX: usize = 1_024;

/// How a topic was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicOptions<'a> {
    pub(crate) retention: Retention,
    pub(crate) capacity: Capacity,
    pub(crate) dedup: DedupWindow,
    /// The codec's name.
    pub(crate) codec: Option<&'a str>,
    pub(crate) has_fingerprint: bool,
    pub(crate) has_weigh: bool,
}

/// How a subscription was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BookOptions<'a> {
    pub(crate) ack_deadline: Duration,
    pub(crate) mode: DeliveryMode,
    pub(crate) ordered: bool,
    /// The filter's expression.
    pub(crate) filter: Option<&'a str>,
    pub(crate) has_filter_fn: bool,
    pub(crate) retry: RetryPolicy,
    pub(crate) dead_letter: DeadLetterTo,
    pub(crate) expire_after: Option<Duration>,
    pub(crate) outstanding_max: u64,
}

/// Where messages go that are out of attempts, or rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeadLetterTo {
    None,
    Discard { after: u32 },
    Topic { after: u32, name: Name },
}

impl<'a> TopicOptions<'a> {
    pub(super) fn write(&self, out: &mut Writer<'_>) {
        match self.retention.keep {
            Keep::UntilAcked => out.u8(0),
            Keep::For(duration) => {
                out.u8(1);
                out.duration(duration);
            }
            Keep::Forever => out.u8(2),
        }
        let limits = [self.retention.bytes_max, self.retention.messages_max];
        let capacity = [self.capacity.messages_max, self.capacity.bytes_max];
        for limit in limits.into_iter().chain(capacity) {
            write_option(limit, Writer::varint, out);
        }
        out.u8(match self.capacity.overflow {
            Overflow::Block => 0,
            Overflow::Reject => 1,
            Overflow::DropOldest => 2,
        });
        out.duration(self.dedup.time);
        out.varint(self.dedup.ids_max as u64);
        let codec = self.codec.inspect(|codec| assert!(codec.len() <= CODEC_LEN_MAX, "checked at `open`"));
        write_option(codec, Writer::text, out);
        out.u8(u8::from(self.has_fingerprint) | u8::from(self.has_weigh) << 1);
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let place = reader.flaw(Flaw::Value("retention"));
        let keep = match reader.u8()? {
            0 => Keep::UntilAcked,
            1 => Keep::For(reader.duration()?),
            2 => Keep::Forever,
            _ => return Err(place),
        };
        let (bytes_max, messages_max) = (read_limit(reader)?, read_limit(reader)?);
        let retention = Retention { keep, bytes_max, messages_max };
        let (messages_max, bytes_max) = (read_limit(reader)?, read_limit(reader)?);
        let place = reader.flaw(Flaw::Value("overflow"));
        let overflow = match reader.u8()? {
            0 => Overflow::Block,
            1 => Overflow::Reject,
            2 => Overflow::DropOldest,
            _ => return Err(place),
        };
        let capacity = Capacity { messages_max, bytes_max, overflow };
        let time = reader.duration()?;
        let ids_max = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
        let codec = read_option(reader, |reader| reader.text(CODEC_LEN_MAX, "a codec's name"))?;
        let [has_fingerprint, has_weigh] = read_flags(reader)?;
        let dedup = DedupWindow { time, ids_max };
        let problem = retention.problem().or(capacity.problem()).or(dedup.problem());
        if problem.is_some() {
            return Err(reader.flaw(Flaw::Value("an option of a topic")));
        }
        Ok(TopicOptions { retention, capacity, dedup, codec, has_fingerprint, has_weigh })
    }
}

impl<'a> BookOptions<'a> {
    pub(super) fn write(&self, out: &mut Writer<'_>) {
        out.duration(self.ack_deadline);
        out.u8(match self.mode {
            DeliveryMode::AtMostOnce => 0,
            DeliveryMode::AtLeastOnce => 1,
            DeliveryMode::ExactlyOnce => 2,
        });
        out.u8(u8::from(self.ordered) | u8::from(self.has_filter_fn) << 1);
        let filter = self.filter.inspect(|text| assert!(text.len() <= FILTER_LEN_MAX, "it was parsed"));
        write_option(filter, Writer::text, out);
        out.u8(match self.retry.kind {
            RetryKind::Immediate => 0,
            RetryKind::Fixed => 1,
            RetryKind::Exponential => 2,
        });
        out.duration(self.retry.min);
        out.duration(self.retry.max);
        match &self.dead_letter {
            DeadLetterTo::None => out.u8(0),
            DeadLetterTo::Discard { after } => {
                out.u8(1);
                out.varint(u64::from(*after));
            }
            DeadLetterTo::Topic { after, name } => {
                out.u8(2);
                out.varint(u64::from(*after));
                out.text(name.as_str());
            }
        }
        write_option(self.expire_after, Writer::duration, out);
        out.varint(self.outstanding_max);
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let ack_deadline = reader.duration()?;
        let place = reader.flaw(Flaw::Value("a delivery mode"));
        let mode = match reader.u8()? {
            0 => DeliveryMode::AtMostOnce,
            1 => DeliveryMode::AtLeastOnce,
            2 => DeliveryMode::ExactlyOnce,
            _ => return Err(place),
        };
        let [ordered, has_filter_fn] = read_flags(reader)?;
        let filter = read_option(reader, |reader| reader.text(FILTER_LEN_MAX, "a filter"))?;
        let retry = read_retry(reader)?;
        let place = reader.flaw(Flaw::Value("a dead-letter rule"));
        let dead_letter = match reader.u8()? {
            0 => DeadLetterTo::None,
            1 => DeadLetterTo::Discard { after: reader.varint_u32()? },
            2 => DeadLetterTo::Topic { after: reader.varint_u32()?, name: read_name(reader)? },
            _ => return Err(place),
        };
        let expire_after = read_option(reader, Reader::duration)?;
        Ok(BookOptions {
            ack_deadline,
            mode,
            ordered,
            filter,
            has_filter_fn,
            retry,
            dead_letter,
            expire_after,
            outstanding_max: reader.varint()?,
        })
    }
}

fn read_retry(reader: &mut Reader<'_>) -> Result<RetryPolicy, Malformed> {
    let place = reader.flaw(Flaw::Value("a retry policy"));
    let kind = match reader.u8()? {
        0 => RetryKind::Immediate,
        1 => RetryKind::Fixed,
        2 => RetryKind::Exponential,
        _ => return Err(place),
    };
    let retry = RetryPolicy { min: reader.duration()?, max: reader.duration()?, kind };
    if retry.problem().is_some() { Err(place) } else { Ok(retry) }
}

fn read_limit(reader: &mut Reader<'_>) -> Result<Option<u64>, Malformed> {
    read_option(reader, Reader::varint)
}

fn read_option<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if read_bool(reader, "an option")? { read(reader).map(Some) } else { Ok(None) }
}

fn write_option<'w, T>(value: Option<T>, write: impl FnOnce(&mut Writer<'w>, T), out: &mut Writer<'w>) {
    out.u8(u8::from(value.is_some()));
    if let Some(value) = value {
        write(out, value);
    }
}

fn read_flags(reader: &mut Reader<'_>) -> Result<[bool; 2], Malformed> {
    let place = reader.flaw(Flaw::Value("flags"));
    let flags = reader.u8()?;
    if flags > 3 { Err(place) } else { Ok([flags & 1 != 0, flags & 2 != 0]) }
}
