//! Events that are published if and only if the database transaction commits, and once.
//!
//! 1,000 orders are placed in a database, each with an event in its outbox; every tenth is rolled back. A relay publishes what is in the outbox, and every other round dies between
//! its publishes and its commit. At the end each order that exists was announced once, and no other.

use std::error::Error;
use std::time::Instant;

use eventflow::outbox::{Outbox, OutboxEvent, OutboxRow};
use eventflow::{Broker, Topic};
use rusqlite::{Connection, TransactionBehavior, params};

const ORDERS: u32 = 1_000;
const BATCH: u32 = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut database = Connection::open_in_memory()?;
    let outbox = Outbox::sqlite();
    database.execute(outbox.create_sql(), [])?;
    database.execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)", [])?;

    let began = Instant::now();
    for number in 1..=ORDERS {
        place(&mut database, &outbox, number)?;
    }

    let broker = Broker::in_memory();
    let placed = broker.topic::<u32>("orders.placed").fingerprint(|number| u64::from(*number)).open()?;
    let shipping = placed.subscription("shipping").open()?;
    let (mut rounds, mut published_again) = (0, 0);
    loop {
        rounds += 1;
        let dies = rounds % 2 == 1;
        let (rows, deduplicated) = relay(&mut database, &outbox, &placed, dies)?;
        published_again += deduplicated;
        if rows == 0 {
            break;
        }
    }

    let mut announced = Vec::new();
    while let Ok(order) = shipping.try_recv() {
        announced.push(*order);
        order.ack()?;
    }
    let existing = database
        .prepare("SELECT number FROM orders ORDER BY number")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<u32>, _>>()?;
    assert_eq!(announced, existing, "each order that exists is announced once, in order, and no other");
    println!("{} orders of {ORDERS} were committed, and as many announced", existing.len());
    println!(
        "{rounds} rounds of the relay, every other died; {published_again} events were published again and not doubled"
    );
    println!("{:.2} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// The order and its event, together or not at all.
fn place(database: &mut Connection, outbox: &Outbox, number: u32) -> Result<(), Box<dyn Error>> {
    let event = OutboxEvent::new(number.to_string());
    let tx = database.transaction()?;
    tx.execute("INSERT INTO orders VALUES (?)", [number])?;
    outbox.add("orders.placed", &event, |sql, row| {
        tx.execute(sql, params![row.id, row.topic, row.ordering_key, row.attributes, row.payload])
    })?;
    if number.is_multiple_of(10) {
        tx.rollback()?; // the customer thinks better of it
    } else {
        tx.commit()?;
    }
    Ok(())
}

/// One round: read, publish, settle. Gives the number of rows that it read, and of those that an earlier round had published.
fn relay(
    database: &mut Connection,
    outbox: &Outbox,
    topic: &Topic<u32>,
    dies: bool,
) -> Result<(usize, u64), Box<dyn Error>> {
    let tx = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let rows = tx
        .prepare(&outbox.read_sql(topic, BATCH))?
        .query_map([], |row| {
            Ok(OutboxRow {
                number: row.get(0)?,
                id: row.get(1)?,
                ordering_key: row.get(2)?,
                attributes: row.get(3)?,
                payload: row.get(4)?,
            })
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let count = rows.len();
    let relayed = outbox.relay(topic, rows, |row| -> Result<u32, Box<dyn Error>> {
        Ok(std::str::from_utf8(&row.payload)?.parse()?)
    });
    if let Some(refused) = relayed.refused.first() {
        return Err(format!("row {} cannot be published: {}", refused.row.number, refused.reason).into());
    }
    for statement in relayed.settle_sql() {
        tx.execute(statement, [])?;
    }
    if !dies {
        tx.commit()?;
    } // else the process is gone: the database forgets the deletes, and the events are published
    Ok((count, relayed.deduplicated))
}
