//! Who has seen a sequence sees no other message under it, however much of what was not synced goes when the power fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::eventflow::{
    Broker, Capacity, DeadLetter, ManualClock, MessageId, OpenError, Retention, Seek, Subscription, Topic,
};
use super::{DIR, SEGMENT_LEN, setting};
use crate::journal::disk::sim::{Cut, Full, Random, SimDisk, Tear};
use crate::journal::record::Record;
use crate::journal::{Durability, JournalOptions, Space};
use crate::sequence::Sequence;

/// What is published is seen before it is synced.
const LOOSE: [Durability; 2] = [Durability::Os, Durability::Interval(Duration::from_secs(3_600))];
const DURABILITIES: [Durability; 3] = [LOOSE[0], LOOSE[1], Durability::Always];

fn try_open(disk: &SimDisk, durability: Durability) -> Result<Broker, OpenError> {
    let options = JournalOptions {
        segment_len: SEGMENT_LEN,
        segments_per_checkpoint: 1,
        ..JournalOptions::new(durability)
    };
    Broker::on_disk(Arc::new(disk.clone()), Path::new(DIR), options, ManualClock::new())
}

#[track_caller]
fn open(disk: &SimDisk, durability: Durability) -> Broker {
    try_open(disk, durability).expect("it opens")
}

fn topic(broker: &Broker, name: &str) -> Topic<String> {
    broker.topic(name).open().expect("it opens")
}

fn sync(broker: &Broker) {
    let store = broker.presence.core.store.as_ref().expect("it is on disk");
    // Who publishes is told of a failure.
    let _told = store.sync();
}

fn cuts(disk: &SimDisk, seed: u64) -> Vec<Cut> {
    disk.cuts(8, seed, Tear::Never)
}

/// The disk after this cut, apart from the one that it befalls.
fn after(disk: &SimDisk, cut: &Cut) -> SimDisk {
    disk.fork().restart(cut)
}

/// What was seen under each id.
#[derive(Clone, Debug, Default)]
struct Seen(BTreeMap<MessageId, String>);

impl Seen {
    fn see(&mut self, id: MessageId, text: &str) -> Result<(), String> {
        let known = self.0.entry(id).or_insert_with(|| text.to_owned());
        if known == text { Ok(()) } else { Err(format!("P4: {id} was {known:?}, and is {text:?}")) }
    }

    #[track_caller]
    fn publish(&mut self, topic: &Topic<String>, text: &str) -> MessageId {
        let id = topic.publish(text).expect("it is published").id;
        self.see(id, text).unwrap();
        id
    }

    /// Which sequences of this incarnation were seen.
    fn of(&self, id: MessageId) -> Vec<u64> {
        let topic = |id: &MessageId| id.to_string().split('-').next().map(str::to_owned);
        self.0.keys().filter(|other| topic(other) == topic(&id)).map(|id| id.sequence()).collect()
    }
}

#[test]
fn p04_a_sequence_that_was_seen_is_not_given_again_after_a_power_cut() {
    for before in LOOSE {
        let (disk, mut seen) = (SimDisk::new(), Seen::default());
        let broker = open(&disk, before);
        let orders = topic(&broker, "orders");
        let billing = orders.subscription("billing").open().expect("it opens");
        seen.publish(&orders, "kept");
        sync(&broker);
        seen.publish(&orders, "lost");
        let received = [(); 2].map(|()| billing.try_recv().expect("both are there"));
        assert_eq!(received.each_ref().map(|delivery| delivery.as_str()), ["kept", "lost"]);
        for cut in cuts(&disk, 1) {
            for then in DURABILITIES {
                let broker = open(&after(&disk, &cut), then);
                let orders = topic(&broker, "orders");
                for text in ["another", "and one more"] {
                    seen.clone().publish(&orders, text);
                }
            }
        }
    }
}

#[test]
fn p04_nor_after_two_power_cuts_in_a_row() {
    for [first, second, third] in
        [[0, 1, 2], [1, 0, 0], [0, 2, 0], [0, 0, 1]].map(|order| order.map(|at| DURABILITIES[at]))
    {
        let (disk, mut seen) = (SimDisk::new(), Seen::default());
        let broker = open(&disk, first);
        let orders = topic(&broker, "orders");
        seen.publish(&orders, "kept");
        sync(&broker);
        for n in 0..3 {
            seen.publish(&orders, &format!("first {n}"));
        }
        for cut in cuts(&disk, 2) {
            let (disk, mut seen) = (after(&disk, &cut), seen.clone());
            // It dies before anybody publishes, too.
            drop(open(&disk, second));
            let disk = after(&disk, &cuts(&disk, 3)[0]);
            let broker = open(&disk, second);
            for n in 0..3 {
                seen.publish(&topic(&broker, "orders"), &format!("second {n}"));
            }
            for cut in cuts(&disk, 4) {
                let broker = open(&after(&disk, &cut), third);
                seen.clone().publish(&topic(&broker, "orders"), "third");
            }
        }
    }
}

#[test]
fn p04_nor_when_the_power_fails_during_a_checkpoint() {
    let mut checkpoints = 0;
    for durability in LOOSE {
        for stop in (1..).step_by(3) {
            let (disk, mut seen) = (SimDisk::new(), Seen::default());
            disk.stop_at(stop);
            if let Ok(broker) = try_open(&disk, durability) {
                publish_until_down(&broker, &mut seen);
            }
            let was_down = disk.is_down();
            checkpoints += u32::from(disk.trace(20).contains("checkpoint"));
            for cut in disk.cuts(4, stop, Tear::Mixes) {
                let broker = open(&after(&disk, &cut), durability);
                let mut seen = seen.clone();
                for name in ["orders", "bulk"] {
                    seen.publish(&topic(&broker, name), "after");
                }
            }
            if !was_down {
                break;
            }
        }
    }
    assert!(checkpoints > 4, "{checkpoints}");
}

fn publish_until_down(broker: &Broker, seen: &mut Seen) {
    let open = |name| broker.topic::<String>(name).open();
    let (Ok(orders), Ok(bulk)) = (open("orders"), open("bulk")) else { return };
    let Ok(_reader) = bulk.subscription("reader").open() else { return };
    for n in 0..60 {
        for (topic, text) in [(&orders, format!("order {n}")), (&bulk, format!("{n}{}", "x".repeat(500)))] {
            let Ok(receipt) = topic.publish(text.as_str()) else { return };
            seen.see(receipt.id, &text).unwrap();
        }
    }
}

#[test]
fn p04_the_ids_of_a_topic_that_a_power_cut_undoes_are_no_other_topic_s() {
    for durability in LOOSE {
        let (disk, mut seen) = (SimDisk::new(), Seen::default());
        let broker = open(&disk, durability);
        seen.publish(&topic(&broker, "kept"), "kept");
        sync(&broker);
        seen.publish(&topic(&broker, "lost"), "lost");
        for cut in cuts(&disk, 5) {
            let mut seen = seen.clone();
            let disk = after(&disk, &cut);
            let broker = open(&disk, durability);
            seen.publish(&topic(&broker, "another"), "another");
            for cut in cuts(&disk, 6) {
                let broker = open(&after(&disk, &cut), durability);
                seen.clone().publish(&topic(&broker, "one-more"), "and one more");
            }
        }
    }
}

#[test]
fn after_an_end_in_good_order_sequences_go_on_where_they_were() {
    for durability in DURABILITIES {
        let (mut disk, mut seen, mut last) = (SimDisk::new(), Seen::default(), None);
        for life in 0..4 {
            let broker = open(&disk, durability);
            let orders = topic(&broker, "orders");
            (0..3).for_each(|n| last = Some(seen.publish(&orders, &format!("{life} {n}"))));
            drop(orders);
            if life % 2 == 0 {
                broker.shutdown(Duration::ZERO).expect("all is synced");
                disk = after(&disk, &cuts(&disk, life)[0]);
            } else {
                drop(broker);
                disk = disk.kill();
            }
        }
        let sequences = seen.of(last.expect("there were some"));
        assert_eq!(sequences, Vec::from_iter(1..=12), "{durability:?}");
    }
}

#[test]
fn where_all_is_synced_before_it_is_seen_sequences_go_on_after_a_power_cut_too() {
    let (mut disk, mut seen, mut last) = (SimDisk::new(), Seen::default(), None);
    for life in 0..3 {
        let broker = open(&disk, Durability::Always);
        (0..3).for_each(|n| last = Some(seen.publish(&topic(&broker, "orders"), &format!("{life} {n}"))));
        disk = after(&disk, &cuts(&disk, life)[0]);
    }
    assert_eq!(seen.of(last.expect("there were some")), Vec::from_iter(1..=9));
}

/// A disk whose power failed when more was seen than synced: two messages of the topic `orders` are kept.
fn cut_disk(durability: Durability, configure: impl Fn(&Broker)) -> (SimDisk, Seen) {
    let (disk, mut seen) = (SimDisk::new(), Seen::default());
    let broker = open(&disk, durability);
    configure(&broker);
    let orders = topic(&broker, "orders");
    for n in 0..2 {
        seen.publish(&orders, &format!("kept {n}"));
    }
    sync(&broker);
    for n in 0..3 {
        seen.publish(&orders, &format!("lost {n}"));
    }
    (after(&disk, &cuts(&disk, 7)[0]), seen)
}

#[test]
fn after_a_power_cut_sequences_go_on_once_farther_on_and_new_topics_begin_at_1() {
    for durability in LOOSE {
        let (mut disk, mut seen) = cut_disk(durability, |_| ());
        let (mut orders, mut letters) = (Vec::new(), Vec::new());
        for life in 0..3 {
            let broker = open(&disk, durability);
            orders.push(seen.publish(&topic(&broker, "orders"), &format!("order {life}")));
            letters.push(seen.publish(&topic(&broker, "letters"), &format!("letter {life}")));
            broker.shutdown(Duration::ZERO).expect("all is synced");
            disk = after(&disk, &cuts(&disk, 8)[0]);
        }
        let first = orders[0].sequence();
        assert!(first > 5, "{first}");
        assert_eq!(seen.of(orders[0])[5..], [first, first + 1, first + 2]);
        assert_eq!(seen.of(letters[0]), [1, 2, 3]);
    }
}

#[test]
fn what_is_passed_over_is_counted_as_nothing_whether_its_topic_is_open_or_not() {
    for durability in LOOSE {
        let (disk, _) = cut_disk(durability, |broker| {
            topic(broker, "orders").subscription("billing").open().expect("it opens");
        });
        let broker = open(&disk, durability);
        let counts = || (broker.stats().published, broker.stats().backlog);
        let before = counts();
        let billing = topic(&broker, "orders").subscription("billing").open().expect("it opens");
        let unsettled = std::iter::from_fn(|| billing.try_recv().ok().map(std::mem::forget)).count() as u64;
        assert!((2..=5).contains(&unsettled), "{unsettled}");
        assert_eq!(before, (unsettled, unsettled), "{durability:?}");
        assert_eq!(counts(), before, "{durability:?}");
    }
}

#[test]
fn p04_nor_where_the_disk_was_full_when_it_was_opened_again() {
    for durability in LOOSE {
        let (disk, seen) = cut_disk(durability, |_| ());
        for room in (0..3 * SEGMENT_LEN).step_by(1_000) {
            let disk = disk.fork();
            disk.set_capacity(disk.used() + room, Full::Refuses);
            let Ok(broker) = try_open(&disk, durability) else { continue };
            let mut seen = seen.clone();
            if let Ok(orders) = broker.topic::<String>("orders").open() {
                for n in 0..20 {
                    let text = format!("full {n} {}", "x".repeat(1_000));
                    let Ok(receipt) = orders.publish(text.as_str()) else { break };
                    seen.see(receipt.id, &text).unwrap();
                }
            }
            // It is full, or it ends in good order nevertheless.
            let _is_full = broker.shutdown(Duration::ZERO);
            for cut in cuts(&disk, room) {
                let disk = after(&disk, &cut);
                disk.set_capacity(u64::MAX, Full::Refuses);
                let broker = open(&disk, durability);
                seen.clone().publish(&topic(&broker, "orders"), "after");
            }
        }
    }
}

/// As a broker does that publishes for a very long time.
fn speak_far_ahead(broker: &Broker, life: u64) {
    let mut unit = Vec::new();
    Record::Ahead { sequence: Sequence::new((1 + life) << 59), topic: 9 }.encode(&mut unit);
    let store = broker.presence.core.store.as_ref().expect("it is on disk");
    store.add(&unit, Space::Reserve, None).expect("it is open");
    sync(broker);
}

/// All that is there for the subscription.
fn receive(from: &Subscription<String>) -> Vec<String> {
    std::iter::from_fn(|| from.try_recv().ok())
        .map(|delivery| {
            let text = delivery.to_string();
            delivery.ack().expect("it is leased");
            text
        })
        .collect()
}

#[test]
fn sequences_that_are_passed_over_are_no_messages_and_cost_nothing() {
    let configure = |broker: &Broker| {
        let orders = broker.topic::<String>("orders");
        let orders = orders.capacity(Capacity::messages(6)).retention(Retention::forever()).open();
        let orders = orders.expect("it is new");
        orders.subscription("plain").open().expect("it is new");
        orders.subscription("ordered").ordered().open().expect("it is new");
        orders.subscription("filtered").filter("NOT attributes:x").open().expect("it is new");
    };
    for durability in LOOSE {
        let (mut disk, _) = cut_disk(durability, configure);
        let mut texts = vec!["kept 0".to_owned(), "kept 1".to_owned()];
        let begun = Instant::now();
        // Some are not settled before and behind what is passed over, again and again.
        for life in 0..4 {
            let broker = open(&disk, durability);
            let orders = topic(&broker, "orders");
            texts.push(format!("{life}"));
            let receipt = orders.publish(format!("{life}")).expect("there is room for it");
            assert!(receipt.id.sequence() >= life << 59, "it goes on behind what was said");
            sync(&broker);
            let count = texts.len() as u64;
            assert_eq!(orders.stats().published, count);
            for name in ["plain", "ordered", "filtered"] {
                let book = orders.subscription(name).open().expect("it is there");
                assert_eq!(book.stats().backlog, count, "{name}");
            }
            speak_far_ahead(&broker, life);
            // As far as there is room for it.
            let _is_full = orders.try_publish("lost");
            disk = after(&disk, &cuts(&disk, life)[0]);
        }
        let broker = open(&disk, durability);
        let orders = topic(&broker, "orders");
        assert!(orders.try_publish("too many").is_err(), "six are not settled");
        for name in ["plain", "ordered", "filtered"] {
            let book = orders.subscription(name).open().expect("it is there");
            assert_eq!(receive(&book), texts, "{name}");
            assert_eq!(book.stats().backlog, 0, "{name}");
            book.seek(Seek::Earliest).expect("all is kept");
            assert_eq!((book.stats().backlog, receive(&book)), (6, texts.clone()), "{name}");
        }
        orders.publish("there is room again").expect("there is");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}

struct Program {
    random: Random,
    disk: SimDisk,
    seen: Seen,
    number: u64,
    /// What was done.
    log: Vec<String>,
}

impl Program {
    fn text(&mut self) -> String {
        self.number += 1;
        let len = if self.random.below(4) == 0 { 2_000 } else { 20 };
        format!("{} {}", self.number, "x".repeat(len))
    }

    fn see(&mut self, id: MessageId, text: &str) -> Result<(), String> {
        self.log.push(format!("seen: {id}, {:.10}", text));
        self.seen.see(id, text)
    }

    /// A topic, and a subscription that sees what goes to it. None: the disk is down.
    fn desk(&mut self, broker: &Broker) -> Option<(Topic<String>, Subscription<String>)> {
        let dead: Topic<String> = broker.topic("dead").open().ok()?;
        let letters = dead.subscription("s").open().ok()?;
        if self.random.below(5) == 0 {
            return Some((dead, letters));
        }
        let topic: Topic<String> =
            broker.topic(["a", "b", "c"][self.random.below(3) as usize]).open().ok()?;
        let book = topic.subscription("s").dead_letter(DeadLetter::to(&dead).after(2)).open().ok()?;
        Some((topic, book))
    }

    fn step(&mut self, broker: &Broker) -> Result<(), String> {
        let Some((topic, book)) = self.desk(broker) else { return Ok(()) };
        match self.random.below(16) {
            0..5 => {
                let text = self.text();
                let published = topic.publish(text.as_str());
                published.map_or(Ok(()), |receipt| self.see(receipt.id, &text))
            }
            5..8 => {
                let texts: Vec<_> = (0..1 + self.random.below(12)).map(|_| self.text()).collect();
                let receipts = topic.publish_all(texts.clone()).unwrap_or_default();
                receipts.iter().zip(&texts).try_for_each(|(receipt, text)| self.see(receipt.id, text))
            }
            8..11 => {
                let Ok(delivery) = book.try_recv() else { return Ok(()) };
                self.see(delivery.id(), &delivery)?;
                // Dead letters and acks, and what comes again.
                let _fails_with_the_disk = match self.random.below(3) {
                    0 => delivery.ack(),
                    1 => delivery.reject("wrong"),
                    _ => delivery.nack(),
                };
                Ok(())
            }
            11 | 12 => {
                let Some((other, _)) = self.desk(broker) else { return Ok(()) };
                let texts = [self.text(), self.text()];
                let mut transaction = broker.transaction();
                transaction.publish(&topic, texts[0].as_str());
                transaction.publish(&other, texts[1].as_str());
                let receipts = transaction.commit().unwrap_or_default();
                receipts.iter().zip(&texts).try_for_each(|(receipt, text)| self.see(receipt.id, text))
            }
            13 if topic.name() != "dead" => {
                let _fails_with_the_disk = broker.delete_topic(topic.name());
                Ok(())
            }
            14 => {
                sync(broker);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn life(&mut self) -> Result<(), String> {
        let durability = DURABILITIES[self.random.below(3) as usize];
        if self.random.below(2) == 0 {
            self.disk.stop_at(1 + self.random.below(120));
        }
        self.log.push(format!("-- {durability:?}"));
        let opened = try_open(&self.disk, durability);
        if let Err(error) = &opened
            && !self.disk.is_down()
        {
            return Err(format!("P18: it does not open: {error}"));
        }
        let steps = self.random.below(40);
        if let Ok(broker) = opened {
            for _ in 0..steps {
                self.step(&broker)?;
            }
            match self.random.below(4) {
                0 => drop(broker.shutdown(Duration::ZERO)),
                1 => drop(broker),
                // What it does when it is dropped does not reach this disk.
                _ => self.disk = self.disk.fork(),
            }
        }
        self.disk = match self.random.below(3) {
            0 => self.disk.kill(),
            _ => {
                let cuts = self.disk.cuts(8, self.random.next(), Tear::Mixes);
                let cut = &cuts[self.random.below(cuts.len() as u64) as usize];
                self.log.push(format!("the power fails: {cut}"));
                self.disk.restart(cut)
            }
        };
        Ok(())
    }
}

#[test]
fn p04_holds_over_random_programs_and_power_cuts_under_every_durability() {
    let first = setting("EVENTFLOW_DISK_SEED", 1);
    let mut seen = 0;
    for seed in first..first + setting("EVENTFLOW_DISK_SEEDS", 24) {
        let mut program = Program {
            random: Random::new(seed),
            disk: SimDisk::new(),
            seen: Seen::default(),
            number: 0,
            log: Vec::new(),
        };
        for life in 0..setting("EVENTFLOW_DISK_GENERATIONS", 10) {
            let lived = program.life();
            lived.unwrap_or_else(|what| {
                panic!("seed {seed}, life {life}: {what}\n{}", program.log.join("\n"))
            });
        }
        seen += program.seen.0.len();
    }
    println!("figures: {seen} ids seen");
    assert!(seen > 0);
}
