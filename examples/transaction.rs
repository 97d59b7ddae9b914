//! Consume, transform, produce, exactly once: each order becomes one bill and one parcel, although workers die.
//!
//! Four workers share the orders. For each, one transaction publishes a bill in one topic, a parcel in another, and acks the order. Some workers panic: before the
//! commit, so that nothing was published and another worker gets the order, or after it. One changes its mind and rolls back. At the end each order has one bill and one parcel.

use std::panic::resume_unwind;
use std::thread;

use eventflow::{Broker, Delivery, Subscription, Topic};

const ORDERS: u64 = 1_000;
const WORKERS: usize = 4;

struct Order {
    number: u64,
    cents: u64,
}

struct Bill {
    order: u64,
    cents: u64,
}

struct Parcel {
    order: u64,
}

/// What all workers share.
struct Office {
    broker: Broker,
    orders: Subscription<Order>,
    bills: Topic<Bill>,
    parcels: Topic<Parcel>,
}

/// What becomes of a worker at an order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    DiesWithTheBillWritten,
    DiesBeforeTheCommit,
    ChangesItsMind,
    DiesAfterTheCommit,
}

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let orders = broker.topic::<Order>("orders").open()?;
    let office = Office {
        orders: orders.subscription("office").open()?,
        bills: broker.topic("bills").open()?,
        parcels: broker.topic("parcels").open()?,
        broker,
    };
    let printer = office.bills.subscription("printer").open()?;
    let postman = office.parcels.subscription("postman").open()?;
    orders.publish_all((1..=ORDERS).map(|number| Order { number, cents: number * 100 }))?;

    let mut dead = 0;
    while office.orders.stats().backlog > 0 {
        dead += one_shift(&office);
    }

    let bills = read_all(&printer, |bill| (bill.order, bill.cents))?;
    let parcels = read_all(&postman, |parcel| parcel.order)?;
    assert!(
        bills.into_iter().eq((1..=ORDERS).map(|number| (number, number * 100))),
        "each order has one bill"
    );
    assert!(parcels.into_iter().eq(1..=ORDERS), "and one parcel");
    assert_eq!(dead, 3, "three workers died");
    let again = office.orders.stats().redelivered;
    assert_eq!(again, 3, "what two of them had in their hands came again, and what was rolled back");
    println!("{ORDERS} orders, as many bills and parcels; {dead} workers died, {again} orders came again");
    Ok(())
}

/// Workers at work until no order is left, or they die. Gives how many died.
fn one_shift(office: &Office) -> usize {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| work(office))).collect();
        workers.into_iter().map(|worker| worker.join()).filter(|end| end.is_err()).count()
    })
}

fn work(office: &Office) {
    while let Ok(order) = office.orders.try_recv() {
        handle(office, order).expect("ten seconds are enough for any order");
    }
}

fn handle(office: &Office, order: Delivery<Order>) -> eventflow::Result<()> {
    let (number, fate) = (order.number, fate_of(&order));
    let mut tx = office.broker.transaction();
    tx.publish(&office.bills, Bill { order: number, cents: order.cents });
    die_if(fate == Fate::DiesWithTheBillWritten);
    tx.publish(&office.parcels, Parcel { order: number });
    tx.ack(order);
    die_if(fate == Fate::DiesBeforeTheCommit);
    if fate == Fate::ChangesItsMind {
        tx.rollback(); // as if it were dropped: the order is nacked, and there is neither bill nor parcel
        return Ok(());
    }
    tx.commit()?;
    die_if(fate == Fate::DiesAfterTheCommit);
    Ok(())
}

/// Only the first attempt at an order goes wrong.
fn fate_of(order: &Delivery<Order>) -> Fate {
    match (order.number, order.attempt()) {
        (200, 1) => Fate::DiesWithTheBillWritten,
        (400, 1) => Fate::DiesBeforeTheCommit,
        (600, 1) => Fate::ChangesItsMind,
        (800, 1) => Fate::DiesAfterTheCommit,
        _ => Fate::Works,
    }
}

/// A panic that prints nothing: it is meant.
fn die_if(now: bool) {
    if now {
        resume_unwind(Box::new("the worker dies"));
    }
}

/// All that is there, in order of what `number` makes of it.
fn read_all<E: Send + Sync + 'static, N: Ord>(
    subscription: &Subscription<E>,
    number: impl Fn(&E) -> N,
) -> eventflow::Result<Vec<N>> {
    let mut numbers = Vec::new();
    while let Ok(message) = subscription.try_recv() {
        numbers.push(number(&message));
        message.ack()?;
    }
    numbers.sort_unstable();
    Ok(numbers)
}
