//! A topic that keeps what is settled can be read again: by a newcomer from the start, by an old subscription
//! from any point.

use eventflow::{Broker, Retention, Seek, Start, Subscription};

/// By how many cents the price of one thing changed.
struct Change(i64);

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let prices =
        broker.topic::<Change>("prices").retention(Retention::forever().max_messages(1_000_000)).open()?;
    let shop = prices.subscription("shop").open()?;

    let receipts = prices.publish_all([Change(1000), Change(-50), Change(25)])?;
    assert_eq!(price(&shop)?, 975);

    // A newcomer, long after: starts where the topic starts, although everybody else is done with it.
    let auditor = prices.subscription("auditor").start(Start::Earliest).open()?;
    assert_eq!(price(&auditor)?, 975);

    // Before something risky, a snapshot; after it has gone wrong, back to it.
    shop.snapshot("before-the-sale")?;
    prices.publish(Change(-900))?;
    assert_eq!(price(&shop)?, -900); // the sale as the shop's clerk saw it: the change alone
    shop.seek(Seek::Snapshot("before-the-sale".into()))?;
    assert_eq!(price(&shop)?, -900); // and once more: the same change again, and nothing from before

    // Or to any message, or to the beginning.
    shop.seek(Seek::Sequence(receipts[1].id.sequence()))?;
    assert_eq!(price(&shop)?, -50 + 25 - 900);
    shop.seek(Seek::Earliest)?;
    assert_eq!(price(&shop)?, 75);

    // Forward is possible too: what lies between is settled unread.
    shop.seek(Seek::Earliest)?;
    shop.seek(Seek::Latest)?;
    assert_eq!(price(&shop)?, 0);
    println!("the price is 75 cents, however often it is told");
    Ok(())
}

/// The sum of all changes that the subscription has waiting.
fn price(changes: &Subscription<Change>) -> eventflow::Result<i64> {
    let mut sum = 0;
    while let Ok(batch) = changes.try_recv_batch(100) {
        sum += batch.iter().map(|change| change.0).sum::<i64>();
        batch.ack()?;
    }
    Ok(sum)
}
