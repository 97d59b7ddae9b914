//! A topic's messages as bytes, in their order: in pieces that are what they were read in, so that most are never moved.

use std::fmt;

use bytes::Bytes;

use crate::journal::record::{
    ARCHIVED_HEAD_LEN, Archived, Envelope, read_archived, read_plain_archived, write_archived,
};
use crate::message::Extras;
use crate::sequence::Sequence;
use crate::time::Tick;

/// A piece that is put together here is about as long.
const PIECE_LEN: usize = 256 << 10;

/// No message is shorter there.
const RECORD_LEN_MIN: usize = ARCHIVED_HEAD_LEN + 2;

/// Messages by their sequences.
///
/// Invariant: pieces are in order, do not overlap, and none is empty; each place holds a record that can be read.
#[derive(Clone, Default)]
pub(crate) struct StoredMessages {
    pieces: Vec<Piece>,
}

/// Messages in order, each as the topic's own files have it.
#[derive(Clone)]
struct Piece {
    first: Sequence,
    places: Vec<Place>,
    bytes: PieceBytes,
}

#[derive(Clone)]
enum PieceBytes {
    Whole(Bytes),
    /// More may follow.
    Growing(Vec<u8>),
}

#[derive(Clone, Copy)]
struct Place {
    /// How far behind the first.
    behind: u32,
    at: u32,
}

/// A message, whatever its event is.
pub(crate) struct StoredMessage<'a> {
    pub(crate) at: Tick,
    pub(crate) weight: u64,
    /// What a repeat of its idempotency id is compared with.
    #[cfg_attr(not(test), expect(dead_code, reason = "the dedup window has it, too"))]
    pub(crate) content: u64,
    pub(crate) extras: Option<Box<Extras>>,
    /// Of a dead letter: the topic, and the message there.
    #[cfg_attr(not(test), expect(dead_code, reason = "nobody asks yet"))]
    pub(crate) origin: Option<(u64, Sequence)>,
    pub(crate) payload: &'a [u8],
}

/// Messages in a row, as they can be made events of together.
pub(crate) enum Row<'a> {
    Message(Sequence, StoredMessage<'a>),
    /// Published at one time, and with nothing but their payloads.
    Plain(PlainRow<'a>),
}

pub(crate) struct PlainRow<'a> {
    piece: &'a Piece,
    places: &'a [Place],
    pub(crate) first: Sequence,
    pub(crate) at: Tick,
}

impl<'a> PlainRow<'a> {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn payloads(&self) -> impl Iterator<Item = &'a [u8]> {
        let piece = self.piece;
        self.places.iter().filter_map(move |place| Some(piece.plain(*place)?.1))
    }

    /// The memory that the payloads are part of, if it is shared.
    pub(crate) fn memory(&self) -> Option<&'a Bytes> {
        match &self.piece.bytes {
            PieceBytes::Whole(bytes) => Some(bytes),
            PieceBytes::Growing(_) => None,
        }
    }
}

impl fmt::Debug for StoredMessage<'_> {
    /// Without the payload, which is to reach no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes {:?}", self.payload.len(), self.at)
    }
}

impl fmt::Debug for StoredMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages", self.len())
    }
}

impl StoredMessages {
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.places.len()).sum()
    }

    pub(crate) fn first(&self) -> Option<Sequence> {
        self.pieces.first().map(|piece| piece.first)
    }

    /// All come before it.
    pub(crate) fn end(&self) -> Sequence {
        self.pieces.last().map_or(Sequence::FIRST, |piece| piece.last().next())
    }

    /// The messages, in order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Sequence, StoredMessage<'_>)> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The messages, in order; those that are plain together, if there are at least `min` of them, and at most `max`.
    pub(crate) fn rows(&self, min: usize, max: usize) -> impl Iterator<Item = Row<'_>> {
        self.pieces.iter().flat_map(move |piece| piece.rows(min, max))
    }

    /// Each message from here on, as [`push`](Self::push) takes it.
    pub(crate) fn encoded_from(&self, from: Sequence) -> impl Iterator<Item = (Sequence, Tick, &[u8])> {
        let at = self.pieces.partition_point(|piece| piece.last() < from);
        let pieces = self.pieces.get(at..).unwrap_or_default();
        pieces.iter().flat_map(|piece| piece.encoded()).skip_while(move |(sequence, ..)| *sequence < from)
    }

    pub(crate) fn sequences(&self) -> impl Iterator<Item = Sequence> {
        self.pieces.iter().flat_map(|piece| piece.sequences())
    }

    #[cfg(test)]
    pub(crate) fn get(&self, sequence: Sequence) -> Option<StoredMessage<'_>> {
        self.iter().find_map(|(there, message)| (there == sequence).then_some(message))
    }

    /// Keeps a message, which can be read, unless one of its sequence is there.
    pub(super) fn push(&mut self, sequence: Sequence, at: Tick, message: &[u8]) {
        match self.pieces.last_mut() {
            Some(last) if last.last() >= sequence => self.insert(sequence, at, message),
            Some(last) if last.takes(sequence, message.len()) => last.push(sequence, at, message),
            _ => self.pieces.push(Piece::of(sequence, at, message)),
        }
    }

    /// One that does not come behind all others.
    fn insert(&mut self, sequence: Sequence, at: Tick, message: &[u8]) {
        let next = self.pieces.partition_point(|piece| piece.first <= sequence);
        let mut next_is = next;
        if let Some(before) = next.checked_sub(1).and_then(|at| self.pieces.get_mut(at))
            && before.last() >= sequence
        {
            let Err(place) = before.find(sequence) else { return };
            let behind = before.split_off(place);
            self.pieces.insert(next, behind);
            next_is = next;
        }
        self.pieces.insert(next_is, Piece::of(sequence, at, message));
    }

    /// Keeps messages in order, at most `count`, each of which lies somewhere in `bytes` as a topic's own files have it.
    ///
    /// # Errors
    /// One that cannot be read.
    pub(super) fn push_piece(
        &mut self,
        bytes: &Bytes,
        count: usize,
        records: impl Iterator<Item = (Sequence, usize)>,
    ) -> Result<(), String> {
        let mut piece: Option<Piece> = None;
        for (sequence, at) in records {
            let record = bytes.get(at..).unwrap_or_default();
            if read_plain_archived(record).is_none() {
                read_archived(record).map_err(|error| format!("message {sequence:?}: {error}"))?;
            }
            let at = u32::try_from(at).map_err(|_| "too long a piece".to_owned())?;
            if let Some(piece) = &mut piece
                && let Ok(behind) = u32::try_from(sequence - piece.first)
            {
                piece.places.push(Place { behind, at });
                continue;
            }
            // However many it is said to be: no record is shorter.
            let mut places = Vec::with_capacity(count.min(bytes.len() / RECORD_LEN_MIN + 1));
            places.push(Place { behind: 0, at });
            let next = Piece { first: sequence, places, bytes: PieceBytes::Whole(bytes.clone()) };
            if let Some(full) = piece.replace(next) {
                self.add(full);
            }
        }
        if let Some(last) = piece {
            self.add(last);
        }
        Ok(())
    }

    fn add(&mut self, piece: Piece) {
        let next = self.pieces.partition_point(|other| other.first < piece.first);
        let is_behind = next.checked_sub(1).is_none_or(|at| self.pieces[at].last() < piece.first);
        let is_before = self.pieces.get(next).is_none_or(|other| piece.last() < other.first);
        if is_behind && is_before {
            self.pieces.insert(next, piece);
        } else {
            piece.encoded().for_each(|(sequence, at, message)| self.push(sequence, at, message));
        }
    }

    /// Drops what lies in these ranges, which are in order.
    pub(super) fn drop_within(&mut self, ranges: &[(Sequence, Sequence)]) {
        if ranges.is_empty() {
            return;
        }
        let mut left = StoredMessages::default();
        for mut piece in std::mem::take(&mut self.pieces) {
            let from = ranges.partition_point(|(_, to)| *to <= piece.first);
            let ranges = ranges.get(from..).unwrap_or_default();
            if ranges.first().is_none_or(|(from, _)| *from > piece.last()) {
                left.pieces.push(piece);
                continue;
            }
            let before = piece.places.len();
            piece.drop_within(ranges);
            if piece.places.len() * 2 > before {
                left.pieces.push(piece);
            } else {
                // A few that stay are not to keep all that they were read in.
                piece.encoded().for_each(|(sequence, at, message)| left.push(sequence, at, message));
            }
        }
        *self = left;
    }
}

impl Piece {
    fn of(first: Sequence, at: Tick, message: &[u8]) -> Self {
        let mut piece = Piece { first, places: Vec::new(), bytes: PieceBytes::Growing(Vec::new()) };
        piece.push(first, at, message);
        piece
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            PieceBytes::Whole(bytes) => bytes,
            PieceBytes::Growing(bytes) => bytes,
        }
    }

    fn last(&self) -> Sequence {
        self.places.last().map_or(self.first, |last| self.first + u64::from(last.behind))
    }

    fn takes(&self, sequence: Sequence, len: usize) -> bool {
        matches!(&self.bytes, PieceBytes::Growing(bytes) if bytes.len() + len <= PIECE_LEN)
            && u32::try_from(sequence - self.first).is_ok()
    }

    fn push(&mut self, sequence: Sequence, at: Tick, message: &[u8]) {
        let PieceBytes::Growing(bytes) = &mut self.bytes else { unreachable!("it takes no more") };
        let place = Place { behind: (sequence - self.first) as u32, at: bytes.len() as u32 };
        write_archived(bytes, at);
        bytes.extend_from_slice(message);
        self.places.push(place);
    }

    /// Where it is, or where it would be.
    fn find(&self, sequence: Sequence) -> Result<usize, usize> {
        self.places.binary_search_by_key(&sequence, |place| self.first + u64::from(place.behind))
    }

    /// Splits it in two, neither of which is empty.
    fn split_off(&mut self, place: usize) -> Piece {
        let bytes = match std::mem::replace(&mut self.bytes, PieceBytes::Growing(Vec::new())) {
            PieceBytes::Whole(bytes) => bytes,
            PieceBytes::Growing(bytes) => bytes.into(),
        };
        self.bytes = PieceBytes::Whole(bytes.clone());
        let places = self.places.split_off(place);
        let by = places.first().map_or(0, |first| first.behind);
        let moved = places.into_iter().map(|place| Place { behind: place.behind - by, ..place });
        Piece { first: self.first + u64::from(by), places: moved.collect(), bytes: PieceBytes::Whole(bytes) }
    }

    fn drop_within(&mut self, ranges: &[(Sequence, Sequence)]) {
        let mut ranges = ranges.iter().peekable();
        let first = self.first;
        self.places.retain(|place| {
            let sequence = first + u64::from(place.behind);
            while ranges.next_if(|(_, to)| *to <= sequence).is_some() {}
            ranges.peek().is_none_or(|(from, _)| sequence < *from)
        });
        let Some(by) = self.places.first().map(|place| place.behind) else { return };
        self.places.iter_mut().for_each(|place| place.behind -= by);
        self.first = first + u64::from(by);
    }

    fn sequences(&self) -> impl Iterator<Item = Sequence> {
        self.places.iter().map(|place| self.first + u64::from(place.behind))
    }

    fn read(&self, place: Place) -> Option<Archived<'_>> {
        let record = self.bytes().get(place.at as usize..)?;
        // What was read once is read again.
        read_archived(record).ok()
    }

    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = (Sequence, StoredMessage<'_>)> {
        self.places.iter().filter_map(|place| self.message(*place))
    }

    fn message(&self, place: Place) -> Option<(Sequence, StoredMessage<'_>)> {
        let (at, envelope, extras, _) = self.read(place)?;
        let Envelope { weight, content, origin, payload } = envelope;
        let message = StoredMessage { at, weight, content, extras, origin, payload };
        Some((self.first + u64::from(place.behind), message))
    }

    /// When it was published, and its payload, of a message that is plain.
    fn plain(&self, place: Place) -> Option<(Tick, &[u8])> {
        read_plain_archived(self.bytes().get(place.at as usize..)?)
    }

    /// When it was published, of a message that is plain.
    fn plain_at(&self, place: Place) -> Option<Tick> {
        self.plain(place).map(|(at, _)| at)
    }

    fn rows(&self, min: usize, max: usize) -> impl Iterator<Item = Row<'_>> {
        let mut from = 0;
        let mut singles = 0..0;
        std::iter::from_fn(move || {
            loop {
                if let Some(single) = singles.next() {
                    match self.places.get(single).and_then(|place| self.message(*place)) {
                        Some((sequence, message)) => return Some(Row::Message(sequence, message)),
                        None => continue,
                    }
                }
                let rest = self.places.get(from..).filter(|rest| !rest.is_empty())?;
                let (len, at) = self.plain_len(rest, max);
                let places = rest.get(..len).unwrap_or_default();
                let begin = from;
                from += len.max(1);
                match (at, places.first()) {
                    (Some(at), Some(first)) if len >= min => {
                        let first = self.first + u64::from(first.behind);
                        return Some(Row::Plain(PlainRow { piece: self, places, first, at }));
                    }
                    _ => singles = begin..from,
                }
            }
        })
    }

    /// How many messages in a row are plain and of one time.
    fn plain_len(&self, places: &[Place], max: usize) -> (usize, Option<Tick>) {
        let Some(first) = places.first() else { return (0, None) };
        let Some(at) = self.plain_at(*first) else { return (1, None) };
        let goes_on = |(n, place): &(usize, &Place)| {
            place.behind == first.behind.saturating_add(*n as u32) && self.plain_at(**place) == Some(at)
        };
        (places.iter().enumerate().take(max).take_while(goes_on).count().max(1), Some(at))
    }

    fn encoded(&self) -> impl Iterator<Item = (Sequence, Tick, &[u8])> {
        self.places.iter().filter_map(|place| {
            let (at, .., message) = self.read(*place)?;
            Some((self.first + u64::from(place.behind), at, message))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::record::encode_message;

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let envelope = Envelope { weight: payload.len() as u64, content: 0, origin: None, payload };
        let mut out = Vec::new();
        encode_message(&mut out, &envelope, None).expect("within all limits");
        out
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(u64, u8),
        Piece(Vec<u64>, u8),
        Drop(Vec<(u64, u64)>),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let sequence = || 1..60_u64;
        let ranges = prop::collection::btree_set(1..64_u64, 0..8).prop_map(|ends| {
            let ends: Vec<u64> = ends.into_iter().collect();
            ends.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>()
        });
        let op = prop_oneof![
            4 => (sequence(), any::<u8>()).prop_map(|(sequence, byte)| Op::Push(sequence, byte)),
            1 => (prop::collection::btree_set(sequence(), 1..9), any::<u8>()).prop_map(|(set, byte)| Op::Piece(set.into_iter().collect(), byte)),
            1 => ranges.prop_map(Op::Drop),
        ];
        prop::collection::vec(op, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn messages_are_kept_as_in_a_map(ops in ops()) {
            let (mut messages, mut model) = (StoredMessages::default(), BTreeMap::new());
            for op in ops {
                match op {
                    Op::Push(sequence, byte) => {
                        messages.push(Sequence::new(sequence), Tick::from_nanos(sequence / 8), &encoded(&[byte]));
                        model.entry(sequence).or_insert(byte);
                    }
                    Op::Piece(sequences, byte) => {
                        let mut bytes = vec![9];
                        let mut records = Vec::new();
                        for &sequence in &sequences {
                            records.push((Sequence::new(sequence), bytes.len()));
                            write_archived(&mut bytes, Tick::from_nanos(sequence / 8));
                            bytes.extend_from_slice(&encoded(&[byte]));
                            model.entry(sequence).or_insert(byte);
                        }
                        messages.push_piece(&bytes.into(), sequences.len(), records.into_iter()).expect("they can be read");
                    }
                    Op::Drop(ranges) => {
                        let all: Vec<_> = ranges.iter().map(|&(from, to)| (Sequence::new(from), Sequence::new(to))).collect();
                        messages.drop_within(&all);
                        model.retain(|sequence, _| !ranges.iter().any(|(from, to)| from <= sequence && sequence < to));
                    }
                }
                let found: Vec<_> = messages.iter().map(|(sequence, message)| {
                    assert_eq!((message.at.nanos(), message.weight), (sequence.get() / 8, 1));
                    (sequence.get(), message.payload[0])
                }).collect();
                prop_assert_eq!(&found, &model.iter().map(|(&sequence, &byte)| (sequence, byte)).collect::<Vec<_>>());
                prop_assert_eq!(messages.len(), found.len());
                prop_assert_eq!(messages.first().map(Sequence::get), found.first().map(|(sequence, _)| *sequence));
                let rows: Vec<u64> = messages.rows(2, 3).flat_map(|row| match row {
                    Row::Message(sequence, _) => vec![sequence.get()],
                    Row::Plain(row) => {
                        assert!((2..=3).contains(&row.len()) && row.payloads().count() == row.len());
                        (0..row.len() as u64).map(|n| row.first.get() + n).collect()
                    }
                }).collect();
                prop_assert_eq!(rows, found.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>());
                let from = 20;
                let rest: Vec<_> = messages.encoded_from(Sequence::new(from)).map(|(sequence, ..)| sequence.get()).collect();
                prop_assert_eq!(rest, found.iter().map(|(sequence, _)| *sequence).filter(|sequence| *sequence >= from).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_few_messages_do_not_keep_what_they_were_read_in() {
        let mut messages = StoredMessages::default();
        for n in 1..10_000 {
            messages.push(Sequence::new(n), Tick::ZERO, &encoded(&[0; 100]));
        }
        assert!(messages.pieces.len() > 4);
        let dead: Vec<_> =
            (0..100).map(|n| (Sequence::new(100 * n + 1), Sequence::new(100 * n + 100))).collect();
        messages.drop_within(&dead);
        assert_eq!((messages.len(), messages.pieces.len()), (99, 1));
        assert!(messages.pieces[0].bytes().len() < 99 * 130);
    }
}
