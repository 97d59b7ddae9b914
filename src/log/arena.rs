//! Small raw payloads, side by side.
//!
//! A payload that its publisher has just made would be freed by whoever settles it, mostly on another core, and that costs several times what it costs at home: more than all
//! else on its way. Copied next to its neighbours, it is freed at home, at once, and the copies go together with the last of them.

use std::any::Any;

use bytes::{Bytes, BytesMut};

/// Longer ones cost more to copy than it saves.
const PAYLOAD_BYTES_MAX: usize = 512;
/// What goes together. Of a message that stays alone, this is what it keeps at most.
const CHUNK_BYTES: usize = 16 * 1_024;

/// Where the writer of a log copies payloads. Of a topic of other events than [`Bytes`] it is never filled.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunk: BytesMut,
}

impl Arena {
    /// Copies a small payload that nobody else holds, and gives the publisher's own, to be dropped outside every lock: what it is made of may be the user's code. Nothing for
    /// any other event, at no cost.
    #[inline]
    pub(super) fn take_in<E: 'static>(&mut self, event: &mut E) -> Option<Bytes> {
        let payload = (event as &mut dyn Any).downcast_mut::<Bytes>()?;
        // One that is shared is freed by somebody else, and a static one by nobody.
        if payload.is_empty() || payload.len() > PAYLOAD_BYTES_MAX || !payload.is_unique() {
            return None;
        }
        if self.chunk.capacity() < payload.len() {
            self.chunk = BytesMut::with_capacity(CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(payload);
        Some(std::mem::replace(payload, self.chunk.split().freeze()))
    }

    /// A segment's payloads go with it: the next has a chunk of its own.
    pub(super) fn close(&mut self) {
        self.chunk = BytesMut::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_fresh_payloads_lie_side_by_side_and_others_stay_where_they_are() {
        let mut arena = Arena::default();
        let mut taken = |payload: &mut Bytes| arena.take_in(payload).is_some();
        let fresh = |len: usize| Bytes::from((0..len).map(|n| n as u8).collect::<Vec<_>>());
        let (mut a, mut b) = (fresh(100), fresh(100));
        assert!(taken(&mut a) && taken(&mut b));
        assert_eq!((&a, &b), (&fresh(100), &fresh(100)));
        assert_eq!(b.as_ptr() as usize - a.as_ptr() as usize, 100, "side by side");
        assert!(!taken(&mut fresh(PAYLOAD_BYTES_MAX + 1)) && !taken(&mut Bytes::new()));
        assert!(!taken(&mut Bytes::from_static(b"static")));
        let mut shared = fresh(9);
        let _other = shared.clone();
        assert!(!taken(&mut shared));
        assert!(arena.take_in(&mut 7_u64).is_none());
    }

    #[test]
    fn a_full_chunk_is_followed_by_another_and_nothing_moves() {
        let mut arena = Arena::default();
        let payload = |n: usize| Bytes::from(vec![n as u8; 1 + n % PAYLOAD_BYTES_MAX]);
        let copies: Vec<_> = (0..1_000)
            .map(|n| {
                let mut copy = payload(n);
                assert!(arena.take_in(&mut copy).is_some());
                copy
            })
            .collect();
        arena.close();
        for (n, copy) in copies.iter().enumerate() {
            assert_eq!(*copy, payload(n));
        }
    }
}
