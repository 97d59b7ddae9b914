//! Retention: what every book has settled, and nobody is to keep, goes, a segment at a time.
//!
//! A segment is *watched* by one book that still needs it, as a clause of a SAT solver watches a literal that is not yet false (Moskewicz and
//! others, Chaff, 2001): only when that book has settled the segment is there a reason to look for another that has not. So ten thousand
//! subscriptions cost a segment one look at each of them in its whole life, and not one at every ack.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::local::topic::{COMMITS, TopicCore, TopicState};
use crate::log::{Segment, Watch};
use crate::options::Keep;
use crate::sequence::Sequence;
use crate::sync::atomic::Ordering;
use crate::time::Tick;

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// A book has settled these ranges. `segment_done`: the caller knows whether it is thereby done with the one segment that they lie in.
    pub(super) fn note_settled(
        &self,
        book: u64,
        ranges: &[(Sequence, Sequence)],
        counted: bool,
        segment_done: Option<bool>,
    ) {
        self.count_settled(ranges, counted);
        if segment_done == Some(false) {
            return;
        }
        for &(from, to) in ranges {
            let mut at = from;
            while at < to {
                let segment = self.log.segment_of(at).or_else(|| self.log.segment_from(at));
                let Some(segment) = segment.filter(|segment| segment.first() < to) else { break };
                at = segment.end().max(at.next());
                self.note_done(book, segment);
            }
        }
    }

    /// [`note_settled`](Self::note_settled) of one message, of which it is known whether the book is thereby done with its segment.
    #[inline]
    pub(super) fn note_settled_one(
        &self,
        book: u64,
        sequence: Sequence,
        counted: bool,
        segment_done: Option<Arc<Segment<E>>>,
    ) {
        self.count_settled(&[(sequence, sequence.next())], counted);
        if let Some(segment) = segment_done {
            self.note_done(book, segment);
        }
    }

    /// The book is done with this segment.
    fn note_done(&self, book: u64, segment: Arc<Segment<E>>) {
        match segment.watch() {
            Watch::Book(other) if other != book => {}
            _ => self.reclaim(segment),
        }
    }

    /// What was settled takes no room any more; publishers that wait for some, look again.
    #[inline]
    fn count_settled(&self, ranges: &[(Sequence, Sequence)], counted: bool) {
        if self.limited.load(Ordering::SeqCst) {
            self.count_in_limited(ranges, counted);
        }
    }

    fn count_in_limited(&self, ranges: &[(Sequence, Sequence)], counted: bool) {
        let has_room = {
            let mut state = self.state.lock();
            let Some(occupancy) = &mut state.occupancy else { return };
            let mut has_room = false;
            for &(from, to) in ranges {
                let from = if counted { from } else { from.max(occupancy.counted_from()) };
                has_room |= occupancy.add(from, to, -1);
            }
            has_room
        };
        if has_room {
            self.freed.fetch_add(1, Ordering::Relaxed);
            // All of them: their messages need unequal space, and a wake must not be used up by one that needs more than there is.
            self.space.wake_everyone();
        } else {
            // What is left of these messages may be what a transaction acks itself.
            self.space.wake_all_of(COMMITS);
        }
    }

    /// Lets a segment go if nobody needs it: else somebody who does is left to watch it.
    fn reclaim(&self, segment: Arc<Segment<E>>) {
        let removed = self.remove_unneeded(&segment);
        let Some(removed) = removed else { return };
        drop(removed);
        // Events are dropped here, outside every lock: their `Drop` is the user's code.
        self.log.recycle(segment);
    }

    /// Takes the segment out, unless somebody needs it.
    fn remove_unneeded(&self, segment: &Arc<Segment<E>>) -> Option<Arc<Segment<E>>> {
        loop {
            let (epoch, pending) = {
                let state = self.state.lock();
                (state.epoch, state.pending)
            };
            if pending > 0 {
                // Whoever is under way sweeps when it is done.
                return None;
            }
            let (from, to) = self.span_of(segment);
            if let Some(blocker) = self.find_blocker(segment, from, to) {
                segment.set_watch(Watch::Book(blocker));
                // It may have settled the rest before it could see that it is the one to tell.
                if !self.book_has_settled(blocker, from, to) {
                    return None;
                }
                continue;
            }
            segment.set_watch(Watch::Nobody);
            let removed = {
                let mut state = self.state.lock();
                // Also one that has been filled and sealed since: what was looked at must be all that is in it.
                let grew = segment.end() != to;
                if state.epoch != epoch || state.pending > 0 || grew {
                    continue;
                }
                if !may_go(&state, segment, || self.broker.now()) {
                    // Nobody watches it any more: a sweep is to find it when its time has come.
                    state.sweep_from = state.sweep_from.min(segment.first());
                    return None;
                }
                let removed = self.log.remove(&mut state.writer, segment);
                if let Some(removed) = &removed {
                    state.resident_messages -= removed.len();
                    state.forget_times(removed.first(), removed.end());
                    state.resident_bytes = state.resident_bytes.saturating_sub(removed.bytes());
                    let floor = self.log.first_kept();
                    if let Some(occupancy) = &mut state.occupancy {
                        occupancy.forget_before(floor);
                    }
                }
                removed
            };
            return removed;
        }
    }

    /// The messages of a segment that anybody can have settled.
    fn span_of(&self, segment: &Segment<E>) -> (Sequence, Sequence) {
        let tail = self.log.tail();
        (segment.first(), segment.end().min(tail))
    }

    fn find_blocker(&self, segment: &Segment<E>, from: Sequence, to: Sequence) -> Option<u64> {
        let count = self.books.read().len();
        // The one that watched last was found behind those that were done: go on from it.
        let start = match segment.watch() {
            Watch::Book(id) => self.books.read().iter().position(|book| book.id() == id).unwrap_or(0),
            Watch::Nobody => 0,
        };
        (0..count).find_map(|n| {
            let book = self.books.read().get((start + n) % count).cloned()?;
            (!book.has_settled(from, to)).then(|| book.id())
        })
    }

    fn book_has_settled(&self, id: u64, from: Sequence, to: Sequence) -> bool {
        let book = self.books.read().iter().find(|book| book.id() == id).cloned();
        book.is_none_or(|book| book.has_settled(from, to))
    }

    /// Looks at all segments that nobody is known to need, oldest first.
    pub(super) fn sweep(&self) {
        let mut at = self.state.lock().sweep_from;
        let mut all_watched = true;
        while let Some(segment) = self.log.segment_from(at) {
            at = segment.end().max(segment.first().next());
            if !may_go(&self.state.lock(), &segment, || self.broker.now()) {
                // Neither old enough nor too much: nor are those after it.
                return;
            }
            let needed = match segment.watch() {
                Watch::Book(id) => {
                    let (from, to) = self.span_of(&segment);
                    !self.book_has_settled(id, from, to)
                }
                Watch::Nobody => false,
            };
            if !needed {
                all_watched = false;
                self.reclaim(segment);
            } else if all_watched {
                let mut state = self.state.lock();
                // Looked at under the lock: the book may have settled it meanwhile, and nobody watches it now.
                if segment.watch() != Watch::Nobody {
                    state.sweep_from = state.sweep_from.max(at);
                }
            }
        }
    }

    /// When the next segment comes of age that nothing else keeps.
    pub(super) fn next_of_age(&self, duration: Duration, now: Tick) -> Option<Tick> {
        let mut at = Sequence::FIRST;
        while let Some(segment) = self.log.segment_from(at) {
            at = segment.end().max(segment.first().next());
            let of_age = segment.last_published()? + duration;
            if of_age > now {
                return Some(of_age);
            }
        }
        None
    }
}

/// Whether retention lets a segment go that every book has settled. The one that is being written counts by its newest message.
fn may_go<E>(state: &TopicState<E>, segment: &Segment<E>, now: impl Fn() -> Tick) -> bool {
    match state.config.retention.keep {
        Keep::UntilAcked => true,
        Keep::For(duration) => {
            is_excess(state, segment) || segment.last_published().is_none_or(|last| last + duration <= now())
        }
        Keep::Forever => is_excess(state, segment),
    }
}

/// Whether the bounds are kept, and as much as they allow is kept, without this segment.
fn is_excess<E>(state: &TopicState<E>, segment: &Segment<E>) -> bool {
    let retention = state.config.retention;
    let over =
        |max: Option<u64>, kept: u64, part: u64| max.is_some_and(|max| kept.saturating_sub(part) >= max);
    over(retention.messages_max, state.resident_messages, segment.len())
        || over(retention.bytes_max, state.resident_bytes, segment.bytes())
}
