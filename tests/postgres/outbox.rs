//! Published if and only if the transaction in PostgreSQL committed, and once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use eventflow::outbox::{Outbox, OutboxEvent, OutboxRow, Relayed};
use eventflow::{Broker, Subscription, Topic};
use postgres::{Client, GenericClient, Transaction};

use crate::server::{Address, Server};
use crate::{Numbers, within};

const WRITERS: u64 = 3;
const EVENTS_EACH: u32 = 300;
const RELAYS: usize = 3;
const BATCH: u32 = 20;

fn add(outbox: &Outbox, event: &OutboxEvent, tx: &mut Transaction<'_>) {
    outbox
        .add("orders", event, |sql, row| {
            tx.execute(sql, &[&row.id, &row.topic, &row.ordering_key, &row.attributes, &row.payload])
        })
        .unwrap();
}

fn read(outbox: &Outbox, topic: &Topic<String>, client: &mut impl GenericClient) -> Vec<OutboxRow> {
    let rows = client.query(&outbox.read_sql(topic, BATCH), &[]).unwrap();
    rows.iter()
        .map(|row| OutboxRow::from((row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))))
        .collect()
}

fn publish(
    outbox: &Outbox,
    topic: &Topic<String>,
    rows: Vec<OutboxRow>,
) -> Relayed<std::string::FromUtf8Error> {
    outbox.relay(topic, rows, |row| String::from_utf8(row.payload.clone()))
}

fn settle<D>(relayed: &Relayed<D>, client: &mut impl GenericClient) -> u64 {
    relayed.settle_sql().iter().map(|statement| client.execute(statement, &[]).unwrap()).sum()
}

fn prepare(server: &Address, outbox: &Outbox) -> (Client, Topic<String>, Subscription<String>) {
    let mut database = server.connect();
    database.batch_execute(outbox.create_sql()).unwrap();
    database.batch_execute(outbox.create_sql()).expect("creating it again changes nothing");
    let topic = Broker::in_memory().topic::<String>("orders").open().unwrap();
    let subscription = topic.subscription("billing").open().unwrap();
    (database, topic, subscription)
}

fn drain(subscription: &Subscription<String>) -> Vec<String> {
    let mut seen = Vec::new();
    while let Ok(delivery) = subscription.try_recv() {
        seen.push(delivery.clone());
        delivery.ack().unwrap();
    }
    seen
}

#[test]
fn what_is_committed_is_published_once_although_relays_die() {
    let Some(server) = Server::start("outbox") else { return };
    let address = server.address();
    within(300, move || writers_and_relays(&address));
}

fn writers_and_relays(server: &Address) {
    let outbox = Outbox::postgres();
    let (mut database, topic, billing) = prepare(server, &outbox);
    database.batch_execute("CREATE TABLE placed (number text PRIMARY KEY)").unwrap();
    let (deaths, repeats, fate) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Numbers(5)));
    let writing = AtomicU64::new(WRITERS);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (outbox, writing) = (&outbox, &writing);
            scope.spawn(move || {
                write(outbox, server.connect(), writer);
                writing.fetch_sub(1, Ordering::SeqCst);
            });
        }
        for _ in 0..RELAYS {
            scope.spawn(|| {
                let mut database = server.connect();
                loop {
                    let finished = writing.load(Ordering::SeqCst) == 0;
                    let mut tx = database.transaction().unwrap();
                    let rows = read(&outbox, &topic, &mut tx);
                    let count = rows.len();
                    let relayed = publish(&outbox, &topic, rows);
                    assert_eq!((relayed.published as usize, relayed.refused.len()), (count, 0));
                    repeats.fetch_add(relayed.deduplicated, Ordering::Relaxed);
                    if count > 0 && fate.lock().unwrap().below(3) == 0 {
                        // Dies between publish and commit, before or after its delete: the transaction is rolled back.
                        deaths.fetch_add(1, Ordering::Relaxed);
                        if deaths.load(Ordering::Relaxed) % 2 == 0 {
                            settle(&relayed, &mut tx);
                        }
                        continue;
                    }
                    assert_eq!(settle(&relayed, &mut tx) as usize, count, "what is locked is nobody else's");
                    tx.commit().unwrap();
                    if finished && count == 0 {
                        break;
                    }
                }
            });
        }
    });
    let mut announced = drain(&billing);
    let placed = database.query("SELECT number FROM placed", &[]).unwrap();
    let mut placed: Vec<String> = placed.iter().map(|row| row.get(0)).collect();
    let left: i64 = database.query_one("SELECT count(*) FROM eventflow_outbox", &[]).unwrap().get(0);
    println!(
        "outbox: {} transactions, {} committed, {} events announced, {} relays died, {} events were published again and not doubled, {left} rows left",
        WRITERS * u64::from(EVENTS_EACH),
        placed.len(),
        announced.len(),
        deaths.load(Ordering::Relaxed),
        repeats.load(Ordering::Relaxed),
    );
    announced.sort_unstable();
    placed.sort_unstable();
    assert_eq!(announced, placed);
    assert_eq!(left, 0);
    assert!(placed.len() < (WRITERS * u64::from(EVENTS_EACH)) as usize, "some were rolled back");
    assert!(deaths.into_inner() > 0 && repeats.into_inner() > 0, "relays died, and others published again");
}

/// Each order and its event in one transaction; one in four is rolled back.
fn write(outbox: &Outbox, mut database: Client, writer: u64) {
    let mut numbers = Numbers(writer);
    for number in 0..EVENTS_EACH {
        let text = format!("{writer}-{number}");
        let mut tx = database.transaction().unwrap();
        tx.execute("INSERT INTO placed VALUES ($1)", &[&text]).unwrap();
        let event =
            OutboxEvent::new(text).ordering_key(writer.to_string()).attribute("writer", writer.to_string());
        add(outbox, &event, &mut tx);
        if numbers.below(4) == 0 { tx.rollback().unwrap() } else { tx.commit().unwrap() }
    }
}

#[test]
fn a_row_whose_transaction_commits_late_is_not_skipped() {
    let Some(server) = Server::start("late commit") else { return };
    let outbox = Outbox::postgres();
    let (mut database, topic, billing) = prepare(&server.address(), &outbox);
    let mut slow = server.address().connect();
    let mut late = slow.transaction().unwrap();
    add(&outbox, &OutboxEvent::new("late, number 1"), &mut late);
    let mut early = database.transaction().unwrap();
    add(&outbox, &OutboxEvent::new("early, number 2"), &mut early);
    early.commit().unwrap();

    let rows = read(&outbox, &topic, &mut database);
    assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), [2]);
    settle(&publish(&outbox, &topic, rows), &mut database);
    late.commit().unwrap();
    let rows = read(&outbox, &topic, &mut database);
    assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), [1]);
    settle(&publish(&outbox, &topic, rows), &mut database);
    assert_eq!(drain(&billing), ["early, number 2", "late, number 1"]);
}

#[test]
fn a_row_that_cannot_be_published_stays_marked_and_locked_rows_are_left_to_their_relay() {
    let Some(server) = Server::start("refused rows") else { return };
    let outbox = Outbox::postgres().table("public.Outbox").unwrap();
    let (mut database, topic, billing) = prepare(&server.address(), &outbox);
    let mut tx = database.transaction().unwrap();
    let awkward = OutboxEvent::new("é").attribute("quote", "\"\\\n").ordering_key("k").with_id("id'1");
    for event in [OutboxEvent::new(vec![0xFF]), awkward] {
        add(&outbox, &event, &mut tx);
    }
    tx.commit().unwrap();

    let mut tx = database.transaction().unwrap();
    let rows = read(&outbox, &topic, &mut tx);
    let mut elsewhere = server.address().connect();
    assert_eq!(read(&outbox, &topic, &mut elsewhere).len(), 0, "locked rows are skipped");
    let relayed = publish(&outbox, &topic, rows);
    assert_eq!((relayed.published, relayed.refused.len()), (1, 1));
    assert_eq!(settle(&relayed, &mut tx), 2);
    tx.commit().unwrap();
    let delivery = billing.try_recv().unwrap();
    let message = delivery.message();
    assert_eq!((delivery.as_str(), message.attribute("quote")), ("é", Some("\"\\\n")));
    assert_eq!(message.ordering_key(), Some("k"));
    assert_eq!(message.idempotency_id().unwrap().to_string(), "id'1");
    assert_eq!(read(&outbox, &topic, &mut database).len(), 0);
    let left = database.query_one("SELECT number, refused FROM \"Outbox\"", &[]).unwrap();
    assert_eq!((left.get::<_, i64>(0), left.get::<_, &str>(1)), (1, "decode"));
}
