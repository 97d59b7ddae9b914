//! Published if and only if the database transaction committed, and once: the outbox, in SQLite.

use std::collections::BTreeMap;

use eventflow::outbox::{AddError, NewRow, Outbox, OutboxEvent, OutboxRow, Refusal, Relayed};
use eventflow::{Capacity, DedupWindow, ManualClock, PublishErrorKind, Subscription, Topic};
use rusqlite::{Connection, Row, TransactionBehavior, params};

use crate::support::{Broker, SECOND, assert_empty, drain, drain_with, manual, panics, take, within};

/// A topic whose time is manual, and a database with an outbox.
struct Office {
    broker: Broker,
    clock: ManualClock,
    orders: Topic<String>,
    billing: Subscription<String>,
    database: Connection,
    outbox: Outbox,
}

fn office() -> Office {
    let (broker, clock) = manual();
    let orders = broker.topic::<String>("orders").create().unwrap();
    let billing = orders.subscription("billing").create().unwrap();
    let database = Connection::open_in_memory().unwrap();
    let outbox = Outbox::sqlite();
    for _ in 0..2 {
        database.execute(outbox.create_sql(), []).expect("creating it again changes nothing");
    }
    Office { broker, clock, orders, billing, database, outbox }
}

fn execute(database: &Connection, sql: &str, row: NewRow<'_>) -> rusqlite::Result<usize> {
    database.execute(sql, params![row.id, row.topic, row.ordering_key, row.attributes, row.payload])
}

fn to_row(row: &Row<'_>) -> rusqlite::Result<OutboxRow> {
    Ok(OutboxRow {
        number: row.get(0)?,
        id: row.get(1)?,
        ordering_key: row.get(2)?,
        attributes: row.get(3)?,
        payload: row.get(4)?,
    })
}

fn read(database: &Connection, sql: &str) -> Vec<OutboxRow> {
    let mut statement = database.prepare(sql).unwrap();
    let rows = statement.query_map([], to_row).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn settle<D>(database: &Connection, relayed: &Relayed<D>) {
    for statement in relayed.settle_sql() {
        assert!(database.execute(statement, []).unwrap() > 0, "{statement}");
    }
}

type Decoded = Relayed<std::string::FromUtf8Error>;

fn relay(outbox: &Outbox, topic: &Topic<String>, rows: Vec<OutboxRow>) -> Decoded {
    outbox.relay(topic, rows, |row| String::from_utf8(row.payload.clone()))
}

impl Office {
    /// Written and committed.
    fn add(&self, event: OutboxEvent) {
        self.outbox.add("orders", &event, |sql, row| execute(&self.database, sql, row)).unwrap();
    }

    fn read(&self, limit: u32) -> Vec<OutboxRow> {
        read(&self.database, &self.outbox.read_sql(&self.orders, limit))
    }

    /// Read and published; what would be settled is still to be.
    fn publish(&self) -> Decoded {
        relay(&self.outbox, &self.orders, self.read(100))
    }

    /// The whole of it.
    fn relay(&self) -> Decoded {
        let relayed = self.publish();
        settle(&self.database, &relayed);
        relayed
    }

    fn rows(&self) -> i64 {
        self.database.query_row("SELECT count(*) FROM eventflow_outbox", [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn a_transaction_that_was_rolled_back_publishes_nothing() {
    let mut office = office();
    let tx = office.database.transaction().unwrap();
    office.outbox.add("orders", &OutboxEvent::new("lost"), |sql, row| execute(&tx, sql, row)).unwrap();
    tx.rollback().unwrap();
    office.add(OutboxEvent::new("kept"));
    assert_eq!(office.relay().published, 1);
    assert_eq!(drain(&office.billing), ["kept"]);
    assert_eq!(office.rows(), 0);
}

#[test]
fn a_committed_event_is_published_once_with_all_that_it_carries() {
    let office = office();
    let attributes = [("region", "eu"), ("quote", "\"\\\n\u{1}"), ("", "é😀")];
    let mut event = OutboxEvent::new("order 7").ordering_key("customer é").with_id("order-7");
    for (key, value) in attributes {
        event = event.attribute(key, value);
    }
    office.add(event.attribute("region", "us"));
    office.add(OutboxEvent::new(""));
    let relayed = office.relay();
    assert_eq!((relayed.published, relayed.deduplicated, relayed.refused.len()), (2, 0, 0));
    assert_eq!(office.relay().settle_sql().len(), 0, "there is nothing left to relay or to settle");

    let first = take(&office.billing);
    let message = first.message();
    assert_eq!(*first, "order 7");
    assert_eq!(message.ordering_key(), Some("customer é"));
    assert_eq!(message.idempotency_id().unwrap().to_string(), "order-7");
    let expected = [("region", "us"), ("quote", "\"\\\n\u{1}"), ("", "é😀")];
    assert_eq!(message.attributes().collect::<Vec<_>>(), expected);
    first.ack().unwrap();
    let second = take(&office.billing);
    assert_eq!((second.as_str(), second.message().ordering_key()), ("", None));
    assert_eq!(second.message().attributes().count(), 0);
    second.ack().unwrap();
    assert_empty(&office.billing);
}

#[test]
fn every_event_has_an_id_of_its_own_and_keeps_it() {
    let ids: std::collections::BTreeSet<_> =
        (0..10_000).map(|_| OutboxEvent::new("x").id().clone()).collect();
    assert_eq!(ids.len(), 10_000);
    for id in &ids {
        let uuid = uuid::Uuid::parse_str(&id.to_string()).unwrap();
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (4, uuid::Variant::RFC4122));
    }
    let elsewhere = std::thread::spawn(|| OutboxEvent::new("x").id().clone()).join().unwrap();
    assert!(!ids.contains(&elsewhere));

    // The transaction is tried again with the same event, although the first try had come through.
    let office = office();
    let event = OutboxEvent::new("order 7");
    office.add(event.clone());
    office.add(event);
    let relayed = office.relay();
    assert_eq!((relayed.published, relayed.deduplicated), (2, 1));
    assert_eq!(drain(&office.billing), ["order 7"]);
}

#[test]
fn a_relay_that_dies_between_publish_and_delete_publishes_nothing_twice() {
    let mut office = office();
    for number in 0..10 {
        office.add(OutboxEvent::new(format!("order {number}")));
    }
    for published_before in [0, 4, 7] {
        let rows = read(&office.database, &office.outbox.read_sql(&office.orders, 100));
        let (outbox, orders, database) = (&office.outbox, &office.orders, &mut office.database);
        panics(|| {
            let tx = database.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
            let rows = rows.into_iter().take(published_before + 3).collect();
            let relayed = relay(outbox, orders, rows);
            assert_eq!(relayed.deduplicated as usize, published_before);
            settle(&tx, &relayed);
            panic!("before the commit");
        });
        assert_eq!(office.rows(), 10);
        // The first pass published 0..3, the second 0..7, the third 0..10.
        office.clock.advance(SECOND);
    }
    let relayed = office.relay();
    assert_eq!((relayed.published, relayed.deduplicated), (10, 10));
    assert_eq!(office.rows(), 0);
    let expected: Vec<_> = (0..10).map(|number| format!("order {number}")).collect();
    assert_eq!(drain(&office.billing), expected);
}

#[test]
fn the_window_must_outlast_the_gap() {
    let office = office();
    office.orders.update().dedup(DedupWindow::time(60 * SECOND)).apply().unwrap();
    office.add(OutboxEvent::new("order 7"));
    assert_eq!(office.publish().deduplicated, 0);
    office.clock.advance(59 * SECOND);
    assert_eq!(office.publish().deduplicated, 1);
    office.clock.advance(61 * SECOND);
    assert_eq!(office.publish().deduplicated, 0, "as the documentation says");
    assert_eq!(drain(&office.billing).len(), 2);
}

#[test]
fn several_relays_at_a_time_publish_each_row_once() {
    const EVENTS: usize = 500;
    let office = office();
    for number in 0..EVENTS {
        office.add(OutboxEvent::new(format!("{number}")));
    }
    // Each sees all the rows, as relays without a common lock may.
    let rows = office.read(EVENTS as u32);
    let (outbox, orders) = (office.outbox.clone(), office.orders.clone());
    let relayed = within(60, move || {
        std::thread::scope(|scope| {
            let relays: Vec<_> =
                (0..4).map(|_| scope.spawn(|| relay(&outbox, &orders, rows.clone()))).collect();
            relays.into_iter().map(|relay| relay.join().unwrap()).collect::<Vec<_>>()
        })
    });
    assert!(relayed.iter().all(|relayed| relayed.published as usize == EVENTS && relayed.refused.is_empty()));
    let repeats: u64 = relayed.iter().map(|relayed| relayed.deduplicated).sum();
    assert_eq!(repeats as usize, 3 * EVENTS);
    settle(&office.database, &relayed[0]);
    // The second to settle finds nothing left, and that is no error.
    for statement in relayed[1].settle_sql() {
        assert_eq!(office.database.execute(statement, []), Ok(0));
    }
    let mut seen: Vec<usize> = drain(&office.billing).iter().map(|text| text.parse().unwrap()).collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..EVENTS));
}

#[test]
fn a_row_that_cannot_be_published_stays_and_is_told_and_the_others_go() {
    let office = office();
    let add = |text: &str| office.add(OutboxEvent::new(text.to_owned()).with_id(format!("id-{text}")));
    office.add(OutboxEvent::new(vec![0xFF]).with_id("not-utf-8"));
    ["first", "panics", "second", "attributes", "conflict", "third", "large"].into_iter().for_each(add);
    let spoil = |sql: &str| assert_eq!(office.database.execute(sql, []), Ok(1));
    spoil("UPDATE eventflow_outbox SET attributes = '{\"a\":1}' WHERE id = 'id-attributes'");
    spoil("UPDATE eventflow_outbox SET id = 'id-first' WHERE id = 'id-conflict'");
    spoil(&format!(
        "UPDATE eventflow_outbox SET ordering_key = '{}' WHERE id = 'id-large'",
        "x".repeat(1_025)
    ));

    let relayed = office.outbox.relay(&office.orders, office.read(100), |row| match row.payload.as_slice() {
        b"panics" => panic!("the closure does"),
        payload => String::from_utf8(payload.to_vec()),
    });
    assert_eq!((relayed.published, relayed.stopped), (3, None));
    let reasons: BTreeMap<_, _> =
        relayed.refused.iter().map(|refused| (refused.row.number, refused.reason.to_string())).collect();
    assert_eq!(reasons.keys().copied().collect::<Vec<_>>(), [1, 3, 5, 6, 8]);
    assert!(matches!(relayed.refused[0].reason, Refusal::Decode(_)));
    assert!(matches!(relayed.refused[1].reason, Refusal::DecodePanicked));
    assert!(matches!(relayed.refused[2].reason, Refusal::Attributes(_)));
    assert!(matches!(relayed.refused[3].reason, Refusal::Publish(PublishErrorKind::IdempotencyConflict)));
    assert!(matches!(relayed.refused[4].reason, Refusal::Publish(PublishErrorKind::TooLarge)));
    settle(&office.database, &relayed);
    assert_eq!(drain(&office.billing), ["first", "second", "third"]);

    let marks: Vec<(i64, String)> = office
        .database
        .prepare("SELECT number, refused FROM eventflow_outbox ORDER BY number")
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let expected = [(1, "decode"), (3, "panicked"), (5, "attributes"), (6, "conflict"), (8, "too_large")];
    assert_eq!(marks, expected.map(|(number, mark)| (number, mark.to_owned())));

    // Marked rows are out of the way of a batch of one; mended and unmarked, a row goes.
    add("fourth");
    assert_eq!(office.read(1)[0].id, "id-fourth");
    spoil("UPDATE eventflow_outbox SET attributes = '{}', refused = NULL WHERE number = 5");
    assert_eq!(office.relay().published, 2);
    assert_eq!(drain(&office.billing), ["attributes", "fourth"]);
    assert_eq!(office.rows(), 4);
}

#[test]
fn a_full_topic_stops_the_relay_and_the_rest_goes_later_in_order() {
    let office = office();
    office.orders.update().capacity(Capacity::messages(2)).apply().unwrap();
    for number in 0..5 {
        office.add(OutboxEvent::new(format!("{number}")));
    }
    let mut seen = Vec::new();
    for published in [2, 2, 1] {
        let relayed = office.relay();
        assert_eq!((relayed.published, relayed.refused.len()), (published, 0));
        assert_eq!(relayed.stopped, (seen.len() < 4).then_some(PublishErrorKind::Full));
        seen.extend(drain(&office.billing));
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    assert_eq!(office.rows(), 0);
}

#[test]
fn a_deleted_topic_or_a_broker_that_is_shut_down_leaves_all_rows() {
    let office = office();
    office.add(OutboxEvent::new("order 7"));
    office.broker.delete_topic("orders").unwrap();
    let relayed = office.relay();
    assert_eq!(relayed.stopped, Some(PublishErrorKind::TopicDeleted));
    office.broker.shutdown(SECOND).unwrap();
    let relayed = office.relay();
    assert!(matches!(relayed.stopped, Some(PublishErrorKind::Closed | PublishErrorKind::TopicDeleted)));
    assert_eq!((relayed.published, relayed.refused.len(), office.rows()), (0, 0, 1));
}

#[test]
fn a_row_whose_transaction_commits_late_is_not_skipped() {
    let office = office();
    office.add(OutboxEvent::new("late"));
    office.add(OutboxEvent::new("early"));
    // Number 1 was taken first, but its transaction is still open: the relay does not see it yet.
    let visible = office.read(100).into_iter().filter(|row| row.number != 1).collect();
    settle(&office.database, &relay(&office.outbox, &office.orders, visible));
    assert_eq!(office.relay().published, 1);
    assert_eq!(drain(&office.billing), ["early", "late"]);
}

#[test]
fn a_number_is_never_given_twice() {
    let office = office();
    office.add(OutboxEvent::new("one"));
    let stale = office.publish();
    settle(&office.database, &stale);
    office.add(OutboxEvent::new("two"));
    // A relay that was slow settles what another had settled: it must not hit the new row.
    for statement in stale.settle_sql() {
        assert_eq!(office.database.execute(statement, []), Ok(0));
    }
    assert_eq!(office.relay().published, 1);
    assert_eq!(drain(&office.billing), ["one", "two"]);
}

#[test]
fn a_relay_takes_the_rows_of_its_own_topic_only() {
    let office = office();
    let event = OutboxEvent::new("42");
    let other = office.broker.topic::<u64>("Orders").create().unwrap();
    let numbers = other.subscription("numbers").create().unwrap();
    office.outbox.add("Orders", &event, |sql, row| execute(&office.database, sql, row)).unwrap();
    office.add(OutboxEvent::new("order 7"));
    assert_eq!(office.relay().published, 1);
    let rows = read(&office.database, &office.outbox.read_sql(&other, 100));
    // An event alone is a message, too; and a message may bring more of its own.
    let relayed = office.outbox.relay(&other, rows, |row| {
        let number = String::from_utf8_lossy(&row.payload).parse::<u64>()?;
        Ok::<_, std::num::ParseIntError>(eventflow::Message::new(number).deliver_after(SECOND))
    });
    settle(&office.database, &relayed);
    assert_empty(&numbers);
    office.clock.advance(SECOND);
    assert_eq!(
        drain_with(&numbers, |delivery| (**delivery, delivery.message().idempotency_id().cloned())),
        [(42, Some(event.id().clone()))]
    );
    assert_eq!(drain(&office.billing), ["order 7"]);
}

#[test]
fn what_no_topic_would_take_is_refused_before_it_is_written() {
    let office = office();
    let add = |topic: &str, event: OutboxEvent| {
        office.outbox.add(topic, &event, |_, _| -> Result<u64, ()> { panic!("nothing is executed") })
    };
    assert!(matches!(add("", OutboxEvent::new("x")), Err(AddError::InvalidTopic(_))));
    assert!(matches!(add("a'b", OutboxEvent::new("x")), Err(AddError::InvalidTopic(_))));
    let event = || OutboxEvent::new("x");
    let many = (0..101).fold(event(), |event, number| event.attribute(format!("{number}"), ""));
    let too_large = [
        OutboxEvent::new(vec![0; 10_000_001]),
        event().with_id("x".repeat(1_025)),
        event().ordering_key("x".repeat(1_025)),
        event().attribute("x".repeat(257), ""),
        event().attribute("", "x".repeat(1_025)),
        many,
    ];
    for event in too_large {
        assert_eq!(add("orders", event), Err(AddError::TooLarge));
    }
}

/// The limits of a row are those of a message: what is written at the limit is published.
#[test]
fn what_is_at_the_limits_goes_through() {
    let office = office();
    let at_the_limit = (0..100).fold(OutboxEvent::new("x"), |event, number| {
        event.attribute(format!("{number:0>256}"), "v".repeat(1_024))
    });
    office.add(at_the_limit.with_id("i".repeat(1_024)).ordering_key("k".repeat(1_024)));
    let relayed = office.relay();
    assert_eq!((relayed.published, relayed.refused.len()), (1, 0));
    assert_eq!(take(&office.billing).message().attributes().count(), 100);
}

#[test]
fn what_the_closure_says_comes_through() {
    let outbox = Outbox::postgres();
    let event = OutboxEvent::new("x");
    assert_eq!(outbox.add("orders", &event, |_, _| Err::<u64, _>("no")), Err(AddError::Database("no")));
    assert_eq!(outbox.add("orders", &event, |_, _| Ok::<_, ()>(0)), Err(AddError::UnexpectedRows));
    assert_eq!(outbox.add("orders", &event, |_, _| Ok::<_, ()>(-1)), Err(AddError::UnexpectedRows));
}

#[test]
fn a_table_of_another_name_holds_the_rows() {
    let mut office = office();
    office.outbox = Outbox::sqlite().table("main.order").unwrap();
    office.database.execute(office.outbox.create_sql(), []).unwrap();
    office.add(OutboxEvent::new("order 7"));
    assert_eq!(office.rows(), 0);
    assert_eq!(office.relay().published, 1);
    assert_eq!(drain(&office.billing), ["order 7"]);
    assert!(Outbox::mysql().table("a`b").is_err());
}

#[test]
fn long_batches_are_settled_in_bounded_statements() {
    let office = office();
    office.database.execute_batch("BEGIN").unwrap();
    for number in 0..2_500 {
        let payload = if number % 2 == 0 { vec![0xFF] } else { b"x".to_vec() };
        office.add(OutboxEvent::new(payload));
    }
    office.database.execute_batch("COMMIT").unwrap();
    let relayed = relay(&office.outbox, &office.orders, office.read(10_000));
    assert_eq!((relayed.published, relayed.refused.len()), (1_250, 1_250));
    assert_eq!(relayed.settle_sql().len(), 4);
    settle(&office.database, &relayed);
    assert_eq!(office.rows(), 1_250);
    assert_eq!(office.read(10).len(), 0);
}

#[test]
fn payloads_do_not_reach_a_log() {
    let event = OutboxEvent::new("secret").attribute("secret", "secret").ordering_key("secret").with_id("id");
    let row = OutboxRow::from((1, "id".into(), Some("secret".into()), "secret".into(), b"secret".to_vec()));
    let text = format!("{event:?} {row:?}");
    assert!(!text.contains("secret") && !text.contains("115"), "{text}");
    let outbox = Outbox::sqlite();
    let shown = outbox.add("orders", &event, |_, row| Err::<u64, _>(format!("{row:?}"))).unwrap_err();
    assert!(!format!("{shown:?}").contains("secret"), "{shown:?}");
}

#[cfg(feature = "async")]
#[test]
fn it_is_awaited_likewise() {
    fn sendable<T>(future: impl Future<Output = T> + Send) -> T {
        futures::executor::block_on(future)
    }
    let office = office();
    let event = OutboxEvent::new("order 7");
    let written = std::sync::Mutex::new(Vec::new());
    sendable(office.outbox.add_async("orders", &event, async |_, row| {
        futures::future::ready(()).await;
        written.lock().unwrap().push((
            1,
            row.id.to_owned(),
            None,
            row.attributes.to_owned(),
            row.payload.to_vec(),
        ));
        Ok::<_, ()>(1_u64)
    }))
    .unwrap();
    let rows = written.into_inner().unwrap().into_iter().map(OutboxRow::from);
    let decode = |row: &OutboxRow| String::from_utf8(row.payload.clone());
    let relayed = sendable(office.outbox.relay_async(&office.orders, rows, decode));
    assert_eq!(relayed.published, 1);
    assert_eq!(drain(&office.billing), ["order 7"]);
}
