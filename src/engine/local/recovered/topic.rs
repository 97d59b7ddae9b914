//! A topic as it is stored.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::delivery::dedup::{Admission, Dedup};
use crate::delivery::settled::Settled;
use crate::engine::local::forgetting::{Ranges, settled_within};
use crate::engine::local::recovered::messages::StoredMessages;
use crate::engine::local::recovered::{Place, StoredBook, StoredSnapshot};
use crate::journal::archive::Extent;
use crate::journal::record::{BookOptions, Messages, Record, TopicOptions};
use crate::message::IdempotencyId;
use crate::name::Name;
use crate::options::{Capacity, DedupWindow, Keep, Retention};
use crate::sequence::Sequence;
use crate::time::Tick;

/// A topic, its books and its messages, whatever their events are.
#[derive(Debug)]
pub(crate) struct StoredTopic {
    /// Its incarnation.
    pub(crate) number: u64,
    pub(crate) name: Name,
    pub(crate) retention: Retention,
    pub(crate) capacity: Capacity,
    pub(crate) window: DedupWindow,
    /// The codec's name.
    pub(crate) codec: Option<String>,
    pub(crate) has_fingerprint: bool,
    pub(crate) has_weigh: bool,
    /// The sequence that the next message gets.
    pub(crate) next: Sequence,
    /// How many of the sequences before are of no message, for they may have been another's that is gone.
    pub(crate) passed_over: u64,
    pub(crate) last_published: Tick,
    /// Shared with who makes events of them.
    pub(crate) messages: Arc<StoredMessages>,
    /// By number.
    pub(crate) books: BTreeMap<u64, StoredBook>,
    /// By number.
    pub(crate) snapshots: BTreeMap<u64, StoredSnapshot>,
    dedup: Dedup,
    /// The window is another since an id was recorded last. It is set with the next one: what comes before that may be older than the image.
    window_is_due: bool,
    /// Ids of messages before it have been counted, or are in the image's window as far as that held them.
    ids_from: Sequence,
    /// What is before it was let go.
    pub(super) oldest: Sequence,
    /// What the image says to be in its own files.
    pub(super) archived: Option<Extent>,
}

/// How far from what is needed, or from the topic's end, a message may lie that a live topic still has though nobody needs it: at most a segment of its log.
const MARGIN: u64 = if cfg!(test) { 2 } else { 256 };

impl StoredTopic {
    pub(super) fn new(number: u64, next: Sequence, name: Name, options: &TopicOptions<'_>) -> Self {
        let mut topic = StoredTopic {
            number,
            name,
            retention: Retention::default(),
            capacity: Capacity::default(),
            window: DedupWindow::default(),
            codec: None,
            has_fingerprint: false,
            has_weigh: false,
            next,
            passed_over: 0,
            last_published: Tick::ZERO,
            messages: Arc::default(),
            books: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            dedup: Dedup::new(DedupWindow::default()),
            window_is_due: true,
            ids_from: next,
            oldest: next,
            archived: None,
        };
        topic.set_options(options);
        topic
    }

    pub(crate) fn options(&self) -> TopicOptions<'_> {
        TopicOptions {
            retention: self.retention,
            capacity: self.capacity,
            dedup: self.window,
            codec: self.codec.as_deref(),
            has_fingerprint: self.has_fingerprint,
            has_weigh: self.has_weigh,
        }
    }

    /// What is known of idempotency ids, as bytes.
    pub(super) fn dedup_image(&self) -> Vec<u8> {
        self.dedup.image(self.next)
    }

    /// Takes out what is known of idempotency ids, with the window set.
    pub(crate) fn take_dedup(&mut self, now: Tick) -> Dedup {
        let mut dedup = std::mem::replace(&mut self.dedup, Dedup::new(self.window));
        dedup.set_window(self.window, now);
        dedup
    }

    /// Other options, when these were the oldest message that was kept and the next one. `is_exact`: nothing that is known is from later.
    pub(super) fn update(
        &mut self,
        options: &TopicOptions<'_>,
        (oldest, next): (Sequence, Sequence),
        now: Tick,
        is_exact: bool,
    ) {
        if let Some(first) = self.messages.first().filter(|first| *first < oldest) {
            Arc::make_mut(&mut self.messages).drop_within(&[(first, oldest)]);
        }
        self.oldest = self.oldest.max(oldest);
        // It had come so far, whatever units are missing.
        self.next = self.next.max(oldest);
        if is_exact && options.retention.keep != Keep::UntilAcked {
            // What was let go of does not come back by being kept longer.
            self.prune(MARGIN);
        }
        self.set_options(options);
        // Nor what was forgotten by being remembered longer.
        self.dedup.forget_beyond(self.window, next, now);
    }

    fn set_options(&mut self, options: &TopicOptions<'_>) {
        let TopicOptions { retention, capacity, dedup, codec, has_fingerprint, has_weigh } = *options;
        self.retention = retention;
        self.capacity = capacity;
        self.window = dedup;
        self.window_is_due = true;
        self.codec = codec.map(str::to_owned);
        self.has_fingerprint = has_fingerprint;
        self.has_weigh = has_weigh;
    }

    pub(super) fn set_image(
        &mut self,
        next: Sequence,
        oldest: Sequence,
        last_published: Tick,
        dedup: &[u8],
    ) -> Result<(), String> {
        // Until the window is set, all that the image remembers counts.
        let unlimited = DedupWindow::time(std::time::Duration::MAX).max_ids(usize::MAX);
        let dedup = Dedup::from_image(unlimited, dedup);
        self.dedup = dedup.map_err(|error| format!("the dedup window of topic {}: {error}", self.number))?;
        self.window_is_due = true;
        self.next = self.next.max(next);
        self.ids_from = next;
        self.oldest = oldest;
        self.last_published = self.last_published.max(last_published);
        Ok(())
    }

    pub(super) fn publish(&mut self, first: Sequence, at: Tick, messages: &Messages<'_>, in_image: bool) {
        let mut sequence = first;
        for (envelope, extras, message) in messages.each() {
            if let Some(id) = extras.as_ref().and_then(|extras| extras.idempotency_id.as_ref())
                && !in_image
                && sequence >= self.ids_from
            {
                self.remember(id, envelope.content, sequence, at);
            }
            if sequence >= self.oldest {
                Arc::make_mut(&mut self.messages).push(sequence, at, message);
            }
            sequence = sequence.next();
        }
        if !in_image {
            self.ids_from = self.ids_from.max(sequence);
        }
        self.next = self.next.max(sequence);
        self.last_published = self.last_published.max(at);
    }

    pub(super) fn pass_over_to(&mut self, next: Sequence) {
        self.passed_over += next - self.next;
        self.next = self.next.max(next);
    }

    /// How many messages were ever published to it.
    pub(crate) fn published(&self) -> u64 {
        (self.next - Sequence::FIRST).saturating_sub(self.passed_over)
    }

    pub(super) fn set_passed_over(&mut self, next: Sequence, count: u64) {
        self.next = self.next.max(next);
        self.passed_over = count.min(self.next - Sequence::FIRST);
    }

    /// That it goes on behind what is passed over, if something is.
    pub(super) fn passed_over(&self) -> Option<Record<'static>> {
        let (topic, next, count) = (self.number, self.next, self.passed_over);
        (count > 0).then_some(Record::PassedOver { topic, next, count })
    }

    fn remember(&mut self, id: &IdempotencyId, content: u64, sequence: Sequence, at: Tick) {
        if std::mem::take(&mut self.window_is_due) {
            self.dedup.set_window(self.window, at);
        }
        match self.dedup.admit(id, content, at) {
            Admission::New => {}
            Admission::Repeat(known) if known == sequence => return,
            // It was published, so it had been forgotten: under a window that was shorter for a while.
            Admission::Repeat(_) | Admission::Conflict => self.dedup.forget(id),
        }
        self.dedup.record(id, content, sequence, at);
    }

    pub(super) fn create_book(
        &mut self,
        number: u64,
        start: Sequence,
        end: Sequence,
        name: Name,
        options: &BookOptions<'_>,
    ) -> Result<(), String> {
        if let Entry::Vacant(vacant) = self.books.entry(number) {
            if start > end {
                return Err(format!("book {number} starts at {start:?}, after its topic's end"));
            }
            vacant.insert(StoredBook::new(number, start, end, name, options));
            // There were messages up to there, though the disk may have had no space for them.
            self.next = self.next.max(end);
        }
        Ok(())
    }

    pub(super) fn create_snapshot(
        &mut self,
        number: u64,
        name: Name,
        expires: Tick,
        image: &[u8],
    ) -> Result<(), String> {
        if let Entry::Vacant(vacant) = self.snapshots.entry(number) {
            let settled = Settled::from_image(image).map_err(|error| format!("snapshot {name}: {error}"))?;
            vacant.insert(StoredSnapshot { number, name, expires, settled });
        }
        Ok(())
    }

    pub(super) fn sought(&mut self, number: u64, generation: u32, to: Place) -> Result<(), String> {
        let Some(book) = self.books.get_mut(&number) else { return Ok(()) };
        if !book.is_news(generation)? {
            return Ok(());
        }
        match to {
            Place::At(start) => book.ledger.seek_to(start),
            Place::Image(settled) => book.ledger.seek_to_image(settled),
        }
        Ok(())
    }

    /// Drops what no book and no snapshot needs, if that is all the topic keeps; but for so many on either side of each that is needed, and at the end.
    fn prune(&mut self, margin: u64) {
        let Some(first) = self.messages.first().filter(|_| self.retention.keep == Keep::UntilAcked) else {
            return;
        };
        let mut dead = vec![(first, self.next.max(first))];
        let books = self.books.values().map(|book| book.ledger.settled());
        for settled in books.chain(self.snapshots.values().map(|snapshot| &snapshot.settled)) {
            dead = settled_within(settled, &dead);
        }
        if margin > 0 {
            dead = self.but_for(margin, &dead);
        }
        Arc::make_mut(&mut self.messages).drop_within(&dead);
    }

    /// The ranges without what is so near to a message outside of them, or to the end.
    fn but_for(&self, margin: u64, ranges: &[(Sequence, Sequence)]) -> Ranges {
        let mut ranges = ranges.iter().copied().peekable();
        let mut left = Ranges::new();
        // The last message outside.
        let mut before: Option<Sequence> = None;
        let mut found: Vec<(Sequence, Sequence)> = Vec::new();
        let mut narrow = |range: (Sequence, Sequence), before: Option<Sequence>, next: Sequence| {
            let from = before.map_or(range.0, |before| range.0.max(before + margin + 1));
            let to = Sequence::new(range.1.get().min(next.get().saturating_sub(margin)));
            if from < to {
                left.push((from, to));
            }
        };
        for sequence in self.messages.sequences() {
            while let Some(range) = ranges.next_if(|(from, _)| *from <= sequence) {
                found.push(range);
            }
            if found.last().is_some_and(|(_, to)| sequence < *to) {
                continue;
            }
            found.drain(..).for_each(|range| narrow(range, before, sequence));
            before = Some(sequence);
        }
        found.into_iter().chain(ranges).for_each(|range| narrow(range, before, self.next));
        left
    }

    pub(super) fn finish(&mut self, lenient: bool) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut reach = self.next;
        for book in self.books.values_mut() {
            book.finish();
            reach = reach.max(book.ledger.reach());
            if !names.insert(book.name.clone()) && !lenient {
                return Err(format!("two books of topic {} have one name: {}", self.number, book.name));
            }
        }
        let ends = self.snapshots.values().map(|snapshot| snapshot.settled.end());
        reach = ends.fold(reach, Sequence::max);
        if reach > self.next && !lenient {
            let (number, next) = (self.number, self.next);
            return Err(format!(
                "a book of topic {number} knows messages up to {reach:?}, and the topic ends at {next:?}"
            ));
        }
        if reach > Sequence::new(super::SEQUENCE_MAX) {
            return Err(format!("a book of topic {} reaches beyond every message", self.number));
        }
        // What a book knows was there: the number is not given again.
        self.next = reach;
        self.prune(0);
        let floor = self.messages.first().unwrap_or(self.next);
        self.books.values_mut().for_each(|book| book.ledger.forget_before(floor));
        Ok(())
    }
}
