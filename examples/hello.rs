//! A topic, a subscription, an event from one to the other.

use eventflow::Broker;

#[derive(Debug)]
struct OrderPlaced {
    id: u64,
    total_cents: u64,
}

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let orders = broker.topic::<OrderPlaced>("orders").open()?;
    let billing = orders.subscription("billing").open()?;

    let receipt = orders.publish(OrderPlaced { id: 7, total_cents: 1999 })?;

    let order = billing.recv()?; // leased to us until the ack deadline
    assert_eq!(order.id(), receipt.id); // the delivery's own: which message it is
    println!("charging {} cents for order {}", order.total_cents, order.id); // a delivery derefs to the event
    assert_eq!((order.id, order.total_cents), (7, 1999));
    order.ack()?; // now the broker may forget it

    assert_eq!(billing.stats().backlog, 0);
    Ok(())
}
