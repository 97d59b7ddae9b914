//! What is sent: made afresh for each message from its number, and read at both ends by whoever receives it.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

/// Numbers from here on end a run and count nowhere.
pub(crate) const LAST: u64 = 1 << 60;

/// How to make and read one kind of event.
pub(crate) trait Payload: 'static {
    type Event: Clone + Send + Sync + 'static;
    fn make(number: u64) -> Self::Event;
    fn number(event: &Self::Event) -> u64;
    /// What stands at the other end.
    fn tail(event: &Self::Event) -> u64;
}

fn tail_of(number: u64) -> u64 {
    number.rotate_left(32)
}

/// The event is its number.
pub(crate) struct Number;

impl Payload for Number {
    type Event = u64;
    fn make(number: u64) -> u64 {
        black_box(number)
    }
    fn number(event: &u64) -> u64 {
        *event
    }
    fn tail(event: &u64) -> u64 {
        tail_of(*event)
    }
}

/// As large as a cache line, and owning nothing elsewhere.
pub(crate) struct Inline;

impl Payload for Inline {
    type Event = [u64; 8];
    fn make(number: u64) -> [u64; 8] {
        let mut words = [0x5A5A_5A5A; 8];
        words[0] = number;
        words[7] = tail_of(number);
        black_box(words)
    }
    fn number(event: &[u64; 8]) -> u64 {
        event[0]
    }
    fn tail(event: &[u64; 8]) -> u64 {
        event[7]
    }
}

fn fill<const LEN: usize>(number: u64) -> [u8; LEN] {
    let mut bytes = [0x5A; LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[LEN - 8..].copy_from_slice(&tail_of(number).to_le_bytes());
    black_box(bytes)
}

fn first_word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn last_word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[bytes.len() - 8..].try_into().expect("eight bytes"))
}

/// `LEN` bytes on the heap.
pub(crate) struct Raw<const LEN: usize>;

impl<const LEN: usize> Payload for Raw<LEN> {
    type Event = Bytes;
    fn make(number: u64) -> Bytes {
        Bytes::copy_from_slice(&fill::<LEN>(number))
    }
    fn number(event: &Bytes) -> u64 {
        first_word(event)
    }
    fn tail(event: &Bytes) -> u64 {
        last_word(event)
    }
}

/// `LEN` bytes on the heap with their count of owners beside them: cheaper than `Bytes` to clone for the first time, as every channel
/// must that copies a message for each of its receivers.
pub(crate) struct Shared<const LEN: usize>;

impl<const LEN: usize> Payload for Shared<LEN> {
    type Event = Arc<[u8]>;
    fn make(number: u64) -> Arc<[u8]> {
        Arc::from(&fill::<LEN>(number)[..])
    }
    fn number(event: &Arc<[u8]>) -> u64 {
        first_word(event)
    }
    fn tail(event: &Arc<[u8]>) -> u64 {
        last_word(event)
    }
}

/// What receivers got.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) checksum: u64,
}

impl Tally {
    pub(crate) fn add<P: Payload>(&mut self, event: &P::Event) {
        self.count += 1;
        let digest = P::number(event).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17) ^ P::tail(event);
        self.checksum = self.checksum.wrapping_add(digest);
    }

    pub(crate) fn join(self, other: Tally) -> Tally {
        Tally { count: self.count + other.count, checksum: self.checksum.wrapping_add(other.checksum) }
    }

    /// Of these numbers, each received `times` times: found without any channel, and the same for every kind of payload.
    pub(crate) fn expected(numbers: Range<u64>, times: u64) -> Tally {
        let mut once = Tally::default();
        for number in numbers {
            once.add::<Number>(&number);
        }
        Tally { count: once.count * times, checksum: once.checksum.wrapping_mul(times) }
    }
}
