//! Histories as a broker would write them, by a model that shares no code with what reads them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What happens next. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub(super) enum Op {
    CreateTopic {
        forever: bool,
    },
    DeleteTopic(u8),
    Window {
        topic: u8,
        ids: u8,
        life: u8,
    },
    CreateBook {
        topic: u8,
        back: u8,
        again: bool,
    },
    DeleteBook {
        topic: u8,
        book: u8,
    },
    UpdateBook {
        topic: u8,
        book: u8,
        max: u8,
    },
    Pause {
        topic: u8,
        book: u8,
        paused: bool,
    },
    Publish {
        topic: u8,
        ids: Vec<Option<u8>>,
    },
    /// Into one topic, with a message of another settled.
    Transact {
        from: u8,
        book: u8,
        to: u8,
    },
    Settle {
        topic: u8,
        book: u8,
        from: u8,
        len: u8,
        outcome: u8,
    },
    Attempt {
        topic: u8,
        book: u8,
        from: u8,
        len: u8,
        attempts: u8,
    },
    Delay {
        topic: u8,
        book: u8,
        at: u8,
        attempts: u8,
    },
    Park {
        topic: u8,
        book: u8,
        at: u8,
    },
    Seek {
        topic: u8,
        book: u8,
        back: u8,
        again: bool,
    },
    Snapshot {
        topic: u8,
        book: u8,
    },
    SeekSnapshot {
        topic: u8,
        book: u8,
        snapshot: u8,
    },
    DeleteSnapshot {
        topic: u8,
        snapshot: u8,
    },
    /// The log lets go of what nobody needs.
    LetGo {
        topic: u8,
    },
}

pub(super) fn ops() -> impl Strategy<Value = Op> {
    let (n, small) = (any::<u8>, || 0..6_u8);
    let of_topics = prop_oneof![
        1 => any::<bool>().prop_map(|forever| Op::CreateTopic { forever }),
        1 => n().prop_map(Op::DeleteTopic),
        1 => (n(), 1..4_u8, 1..30_u8).prop_map(|(topic, ids, life)| Op::Window { topic, ids, life }),
        2 => (n(), small(), any::<bool>()).prop_map(|(topic, back, again)| Op::CreateBook { topic, back, again }),
        1 => (n(), n()).prop_map(|(topic, book)| Op::DeleteBook { topic, book }),
        1 => (n(), n(), 1..9_u8).prop_map(|(topic, book, max)| Op::UpdateBook { topic, book, max }),
        1 => (n(), n(), any::<bool>()).prop_map(|(topic, book, paused)| Op::Pause { topic, book, paused }),
        1 => n().prop_map(|topic| Op::LetGo { topic }),
    ];
    let ids = prop::collection::vec(proptest::option::of(0..4_u8), 1..5);
    let of_messages = prop_oneof![
        8 => (n(), ids).prop_map(|(topic, ids)| Op::Publish { topic, ids }),
        1 => (n(), n(), n()).prop_map(|(from, book, to)| Op::Transact { from, book, to }),
        8 => (n(), n(), small(), 1..6_u8, 0..8_u8)
            .prop_map(|(topic, book, from, len, outcome)| Op::Settle { topic, book, from, len, outcome }),
        3 => (n(), n(), small(), 1..4_u8, 0..4_u8)
            .prop_map(|(topic, book, from, len, attempts)| Op::Attempt { topic, book, from, len, attempts }),
        1 => (n(), n(), small(), 1..4_u8).prop_map(|(topic, book, at, attempts)| Op::Delay { topic, book, at, attempts }),
        1 => (n(), n(), small()).prop_map(|(topic, book, at)| Op::Park { topic, book, at }),
    ];
    let of_places = prop_oneof![
        3 => (n(), n(), 0..12_u8, any::<bool>()).prop_map(|(topic, book, back, again)| Op::Seek { topic, book, back, again }),
        1 => (n(), n()).prop_map(|(topic, book)| Op::Snapshot { topic, book }),
        1 => (n(), n(), n())
            .prop_map(|(topic, book, snapshot)| Op::SeekSnapshot { topic, book, snapshot }),
        1 => (n(), n()).prop_map(|(topic, snapshot)| Op::DeleteSnapshot { topic, snapshot }),
    ];
    prop_oneof![2 => of_topics, 5 => of_messages, 1 => of_places]
}

/// What a broker would have.
#[derive(Default)]
pub(super) struct Model {
    pub(super) units: Vec<Unit>,
    pub(super) topics: BTreeMap<u64, ModelTopic>,
    last_topic: u64,
    last_book: u64,
    now: u64,
}

pub(super) struct ModelTopic {
    options: TopicOptions<'static>,
    pub(super) next: u64,
    /// What the log has.
    log: BTreeSet<u64>,
    pub(super) books: BTreeMap<u64, ModelBook>,
    snapshots: BTreeMap<u64, BTreeSet<u64>>,
    window: crate::delivery::dedup::Dedup,
}

#[derive(Default)]
pub(super) struct ModelBook {
    pub(super) unsettled: BTreeSet<u64>,
    generation: u32,
}

fn pick<T>(map: &BTreeMap<u64, T>, n: u8) -> Option<u64> {
    map.keys().nth(usize::from(n) % map.len().max(1)).copied()
}

impl ModelTopic {
    pub(super) fn needed(&self) -> BTreeSet<u64> {
        let books = self.books.values().map(|book| &book.unsettled);
        books.chain(self.snapshots.values()).flatten().copied().collect()
    }

    /// What a book gets that begins at `start`, or is put there: what the log has. The unit says what it has no more, or has again though nobody needed it.
    fn reach_back(
        &mut self,
        wanted: &BTreeSet<u64>,
        again: bool,
    ) -> (BTreeSet<u64>, BTreeSet<u64>, Vec<u64>) {
        let needed = self.needed();
        let mut got = BTreeSet::new();
        let mut republished = BTreeSet::new();
        let mut removed = Vec::new();
        for &number in wanted {
            if needed.contains(&number) || self.keeps_all() {
                got.insert(number);
            } else if self.log.contains(&number) && again {
                got.insert(number);
                republished.insert(number);
            } else {
                removed.push(number);
            }
        }
        (got, republished, removed)
    }

    fn keeps_all(&self) -> bool {
        self.options.retention == Retention::forever()
    }
}

impl Model {
    pub(super) fn of(ops: &[Op]) -> Model {
        let mut model = Model::default();
        for forever in [false, true] {
            model.step(&Op::CreateTopic { forever });
        }
        for topic in [0, 0, 1] {
            model.step(&Op::CreateBook { topic, back: 0, again: false });
        }
        ops.iter().for_each(|op| model.step(op));
        model
    }

    fn add(&mut self, unit: Unit) {
        self.units.push(unit);
    }

    fn topic(&mut self, n: u8) -> Option<(u64, &mut ModelTopic)> {
        let number = pick(&self.topics, n)?;
        self.topics.get_mut(&number).map(|topic| (number, topic))
    }

    /// A topic and a book of it.
    fn book(&self, topic: u8, book: u8) -> Option<(u64, u64)> {
        let topic = pick(&self.topics, topic)?;
        pick(&self.topics[&topic].books, book).map(|book| (topic, book))
    }

    /// Some messages that the book has not settled, and perhaps some others, in a row.
    fn range(&self, topic: u64, book: u64, from: u8, len: u8) -> Option<(u64, u64)> {
        let topic = &self.topics[&topic];
        let unsettled = &topic.books[&book].unsettled;
        let from = unsettled.iter().nth(usize::from(from)).or(unsettled.first()).copied()?;
        Some((from, (from + u64::from(len)).min(topic.next)))
    }

    pub(super) fn step(&mut self, op: &Op) {
        self.now += 1;
        match op {
            Op::Publish { topic, ids } => self.publish(*topic, ids),
            Op::Transact { from, book, to } => self.transact(*from, *book, *to),
            Op::Settle { .. } | Op::Attempt { .. } | Op::Delay { .. } | Op::Park { .. } => {
                self.step_of_messages(op)
            }
            Op::Seek { .. } | Op::Snapshot { .. } | Op::SeekSnapshot { .. } | Op::DeleteSnapshot { .. } => {
                self.step_of_places(op);
            }
            _ => self.step_of_topics(op),
        }
    }

    fn step_of_topics(&mut self, op: &Op) {
        match *op {
            Op::CreateTopic { forever } if self.topics.len() < 2 => {
                self.last_topic += 1;
                let retention = if forever { Retention::forever() } else { Retention::until_acked() };
                let dedup = DedupWindow::time(Duration::from_nanos(9)).max_ids(3);
                let options = TopicOptions { retention, dedup, ..topic_options() };
                // A name that the one before had, if it is gone.
                let free =
                    if self.topics.keys().any(|number| number % 2 == self.last_topic % 2) { 1 } else { 0 };
                self.last_topic += free;
                let number = self.last_topic;
                let (next, name) = (seq(1), name(&format!("t{}", number % 2)));
                self.add(unit().put(&Record::TopicCreated {
                    topic: number,
                    next,
                    name,
                    options: options.clone(),
                }));
                let (log, books, snapshots) = Default::default();
                let window = crate::delivery::dedup::Dedup::new(options.dedup);
                self.topics.insert(number, ModelTopic { options, next: 1, log, books, snapshots, window });
            }
            Op::DeleteTopic(n) => {
                let Some(topic) = pick(&self.topics, n) else { return };
                self.topics.remove(&topic);
                self.add(unit().put(&Record::TopicDeleted { topic }));
            }
            Op::Window { topic, ids, life } => {
                let now = at(self.now);
                let Some((number, topic)) = self.topic(topic) else { return };
                topic.options.dedup =
                    DedupWindow::time(Duration::from_nanos(life.into())).max_ids(ids.into());
                topic.window.set_window(topic.options.dedup, now);
                let (next, options) = (seq(topic.next), topic.options.clone());
                let updated = Record::TopicUpdated { topic: number, next, oldest: seq(1), options };
                self.add(unit().put(&Record::Clock { now }).put(&updated));
            }
            Op::CreateBook { topic, back, again } => self.create_book(topic, back, again),
            Op::DeleteBook { topic, book } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                self.topics.get_mut(&topic).map(|topic| topic.books.remove(&book));
                // News of it that come late are passed over.
                self.add(unit().put(&Record::BookDeleted { topic, book }).settle(topic, book, 1, 2));
            }
            Op::UpdateBook { topic, book, max } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let options = BookOptions { outstanding_max: max.into(), ..book_options() };
                self.add(unit().put(&Record::BookUpdated { topic, book, options }));
            }
            Op::Pause { topic, book, paused } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                self.add(unit().put(&Record::Paused { topic, book, paused }));
            }
            Op::LetGo { topic } => {
                let Some((_, topic)) = self.topic(topic) else { return };
                topic.log = topic.needed();
            }
            _ => {}
        }
    }

    fn create_book(&mut self, topic: u8, back: u8, again: bool) {
        if self.topics.values().map(|topic| topic.books.len()).sum::<usize>() >= 3 {
            return;
        }
        self.last_book += 1;
        let book = self.last_book;
        let Some((number, topic)) = self.topic(topic) else { return };
        let start = topic.next.saturating_sub(back.into()).max(1);
        let (got, republished, removed) = topic.reach_back(&(start..topic.next).collect(), again);
        topic.books.insert(book, ModelBook { unsettled: got, generation: 0 });
        let (start, end) = (seq(start), seq(topic.next));
        let created = Record::BookCreated {
            topic: number,
            book,
            start,
            end,
            name: name(&format!("b{book}")),
            options: book_options(),
        };
        let unit = self.republish(unit(), number, &republished).put(&created);
        self.add(remove(unit, number, book, &removed));
    }

    fn publish(&mut self, topic: u8, ids: &[Option<u8>]) {
        let now = at(self.now);
        let Some((number, topic)) = self.topic(topic) else { return };
        let mut new = Vec::new();
        for id in ids {
            let text = id.map(|id| id.to_string());
            if let Some(id) = &text {
                let id = id.as_str().into();
                if topic.window.admit(&id, 5, now) != crate::delivery::dedup::Admission::New {
                    continue;
                }
                topic.window.record(&id, 5, seq(topic.next + new.len() as u64), now);
            }
            new.push(text);
        }
        let first = topic.next;
        topic.append(new.len() as u64);
        let ids: Vec<_> = new.iter().map(Option::as_deref).collect();
        let unit = self.published(unit(), number, first, &ids);
        self.add(unit);
    }

    /// As [`Unit::publish_ids`], now.
    fn published(&self, unit: Unit, topic: u64, first: u64, ids: &[Option<&str>]) -> Unit {
        let mut bytes = Vec::new();
        let encode = |(number, id): (u64, &Option<&str>)| {
            let payload = number.to_le_bytes();
            let envelope = Envelope { weight: 8, content: 5, origin: None, payload: &payload };
            let extras = id.map(|id| Extras { idempotency_id: Some(id.into()), ..Extras::default() });
            let mut out = Vec::new();
            encode_message(&mut out, &envelope, extras.as_ref()).expect("within all limits");
            out
        };
        let messages: Vec<_> = (first..).zip(ids).map(encode).collect();
        if !messages.is_empty() {
            write_published(&mut bytes, topic, seq(first), at(self.now), messages.iter().map(Vec::as_slice));
        }
        Unit([unit.0, bytes].concat())
    }

    /// As they were published at first, but for what nobody asks of them any more.
    fn republish(&self, unit: Unit, topic: u64, numbers: &BTreeSet<u64>) -> Unit {
        numbers.iter().fold(unit, |unit, &number| {
            let before = self.units.iter().find_map(|unit| {
                let mut all = crate::journal::record::records(&unit.0).filter_map(Result::ok);
                all.find_map(|record| match record {
                    Record::Published { topic: of, first, at, messages }
                        if of == topic && (first..first + messages.len()).contains(&seq(number)) =>
                    {
                        let message = messages.encoded().nth((seq(number) - first) as usize);
                        message.map(|message| (at, message.to_vec()))
                    }
                    _ => None,
                })
            });
            let (published, message) = before.expect("it was published");
            let mut bytes = Vec::new();
            write_published(&mut bytes, topic, seq(number), published, [&*message]);
            Unit([unit.0, bytes].concat())
        })
    }

    fn transact(&mut self, from: u8, book: u8, to: u8) {
        let Some((from, book)) = self.book(from, book) else { return };
        let Some((number, _)) = self.range(from, book, 0, 1) else { return };
        let Some((to, topic)) = self.topic(to) else { return };
        let first = topic.next;
        topic.append(1);
        self.settle(from, book, number, number + 1);
        let unit = self.published(unit(), to, first, &[None]).settle(from, book, number, number + 1);
        self.add(unit);
    }

    fn settle(&mut self, topic: u64, book: u64, from: u64, to: u64) {
        let book = self.topics.get_mut(&topic).and_then(|topic| topic.books.get_mut(&book));
        let book = book.expect("it was picked");
        book.unsettled.retain(|number| !(from..to).contains(number));
    }

    fn step_of_messages(&mut self, op: &Op) {
        match *op {
            Op::Settle { topic, book, from, len, outcome } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let Some((from, to)) = self.range(topic, book, from, len) else { return };
                self.settle(topic, book, from, to);
                let outcome = Outcome::from_code(outcome).expect("there are eight");
                self.add(unit().settle_as(topic, book, from, to, outcome));
            }
            Op::Attempt { topic, book, from, len, attempts } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let Some((from, to)) = self.range(topic, book, from, len) else { return };
                self.add(unit().attempt(topic, book, from, to, attempts.into()));
            }
            Op::Delay { topic, book, at, attempts } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let Some((from, _)) = self.range(topic, book, at, 1) else { return };
                self.add(unit().delay(topic, book, from, self.now + 9, attempts.into()));
            }
            Op::Park { topic, book, at } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let Some((from, _)) = self.range(topic, book, at, 1) else { return };
                self.add(unit().park(topic, book, from, 3));
            }
            _ => {}
        }
    }

    fn step_of_places(&mut self, op: &Op) {
        match *op {
            Op::Seek { topic, book, back, again } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let next = self.topics[&topic].next;
                let to = next.saturating_sub(back.into()).max(1);
                self.seek(topic, book, SoughtTo::Sequence(seq(to)), &(to..next).collect(), again);
            }
            Op::Snapshot { topic, book } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                self.last_book += 1;
                let number = self.last_book;
                let Some(stored) = self.topics.get_mut(&topic) else { return };
                if stored.snapshots.len() >= 2 {
                    return;
                }
                let unsettled = stored.books[&book].unsettled.clone();
                let image = image_of_settled(&unsettled, stored.next);
                stored.snapshots.insert(number, unsettled);
                self.add(unit().snapshot(topic, number, &image));
            }
            Op::SeekSnapshot { topic, book, snapshot } => {
                let Some((topic, book)) = self.book(topic, book) else { return };
                let stored = &self.topics[&topic];
                let Some(snapshot) = pick(&stored.snapshots, snapshot) else { return };
                let unsettled = stored.snapshots[&snapshot].clone();
                let image = image_of_settled(&unsettled, stored.next).image();
                let to = SoughtTo::Image(Part { bytes: &image, more: false });
                self.seek(topic, book, to, &unsettled, false);
            }
            Op::DeleteSnapshot { topic, snapshot } => {
                let Some((number, topic)) = self.topic(topic) else { return };
                let Some(snapshot) = pick(&topic.snapshots, snapshot) else { return };
                topic.snapshots.remove(&snapshot);
                self.add(unit().put(&Record::SnapshotDeleted { topic: number, book: snapshot }));
            }
            _ => {}
        }
    }

    fn seek(&mut self, number: u64, book: u64, to: SoughtTo<'_>, wanted: &BTreeSet<u64>, again: bool) {
        let Some(topic) = self.topics.get_mut(&number) else { return };
        let (got, republished, removed) = topic.reach_back(wanted, again);
        let stored = topic.books.get_mut(&book).expect("it was picked");
        stored.unsettled = got;
        stored.generation += 1;
        let sought = Record::Sought { topic: number, book, generation: stored.generation, to };
        let unit = self.republish(unit(), number, &republished).put(&sought);
        self.add(remove(unit, number, book, &removed));
    }
}

impl ModelTopic {
    fn append(&mut self, count: u64) {
        let new = self.next..self.next + count;
        self.log.extend(new.clone());
        self.books.values_mut().for_each(|book| book.unsettled.extend(new.clone()));
        self.snapshots.values_mut().for_each(|unsettled| unsettled.extend(new.clone()));
        self.next += count;
    }
}

fn remove(unit: Unit, topic: u64, book: u64, numbers: &[u64]) -> Unit {
    let remove = |unit: Unit, &n: &u64| unit.settle_as(topic, book, n, n + 1, Outcome::Removed);
    numbers.iter().fold(unit, remove)
}

fn image_of_settled(unsettled: &BTreeSet<u64>, next: u64) -> Settled {
    let mut settled = Settled::starting_at(seq(1));
    for number in (1..next).filter(|number| !unsettled.contains(number)) {
        settled.settle(seq(number), Outcome::Acked);
    }
    settled
}
