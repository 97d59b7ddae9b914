//! Several subscriptions, one topic: each of them gets every message, in its own time, and the message is
//! kept once for all.

use eventflow::{Broker, Message, MessageStatus};

#[derive(Debug)]
struct OrderPlaced {
    id: u64,
}

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let orders = broker.topic::<OrderPlaced>("orders").open()?;
    let billing = orders.subscription("billing").open()?;
    let shipping = orders.subscription("shipping").open()?;
    // This one wants to hear of some orders only, and the broker sorts the others out.
    let customs = orders
        .subscription("customs")
        .filter(r#"attributes:country AND attributes.country != "US""#)
        .open()?;

    let home = orders.publish(Message::new(OrderPlaced { id: 1 }).attribute("country", "US"))?;
    let abroad = orders.publish(Message::new(OrderPlaced { id: 2 }).attribute("country", "FR"))?;

    // Billing takes both at once, shipping one of them, customs the one that concerns it.
    let batch = billing.recv_batch(10)?;
    assert!(batch.iter().map(|order| order.id).eq([1, 2]));
    batch.ack()?;
    let on_the_ramp = shipping.recv()?;
    assert_eq!(on_the_ramp.id, 1);
    let declared = customs.recv()?;
    assert_eq!(declared.id, 2);
    declared.ack()?;

    // Who has got what can be asked, as long as the message is kept.
    let standing = orders.status(home.id).expect("shipping has not settled it yet");
    for (subscription, status) in &standing {
        println!("order 1 at {subscription}: {status:?}");
    }
    assert_eq!(standing["billing"], MessageStatus::Acked);
    assert_eq!(standing["shipping"], MessageStatus::Leased);
    assert_eq!(standing["customs"], MessageStatus::Filtered);
    assert_eq!(orders.status(abroad.id).expect("kept for shipping")["shipping"], MessageStatus::Waiting);

    // When the last subscription has settled a message, the broker lets go of it.
    on_the_ramp.ack()?;
    shipping.recv()?.ack()?;
    assert_eq!(broker.stats().backlog, 0);
    assert_eq!(orders.status(home.id), None);
    Ok(())
}
