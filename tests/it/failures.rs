//! What can fail between a publisher and an effect, and what comes of it: each of the five failures of the guide's page `exactly_once`,
//! injected in each of the three modes, and the page's table itself.
//!
//! The work is always the same: an order is published, a subscriber of `billing` charges it. Charging is the effect that is counted: a counter that
//! nobody can take back, a bill that is published in a transaction, or a row in a database with an inbox.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use eventflow::inbox::{Claim, Inbox};
use eventflow::{
    Capacity, CommitError, CommitReason, Delivery, DeliveryMode, ManualClock, Message, Overflow,
    PublishError, Receipt, Seek, SettleError, Subscription, Topic, Transaction,
};
use rusqlite::Connection;

use crate::support::{Broker, DEADLINE, PATIENCE, assert_empty, manual, panics, send, take};

use DeliveryMode::{AtLeastOnce, AtMostOnce, ExactlyOnce};

const MODES: [DeliveryMode; 3] = [AtMostOnce, AtLeastOnce, ExactlyOnce];

/// What the programs on both sides of the broker do for the mode. The page names the same three.
#[derive(Clone, Copy)]
struct Habits {
    /// The publisher publishes until it has seen a receipt.
    repeats: bool,
    /// It says by an idempotency id that it is the same order.
    ids: bool,
    effect: Effect,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Outside the broker and every database.
    Anywhere,
    /// One transaction with the ack.
    Transaction,
    /// In a database, in one transaction of it with the inbox's claim.
    Inbox,
}

impl Habits {
    fn of(mode: DeliveryMode) -> Self {
        let effect = if mode == ExactlyOnce { Effect::Transaction } else { Effect::Anywhere };
        Habits { repeats: mode != AtMostOnce, ids: mode == ExactlyOnce, effect }
    }
}

/// From the publisher to the effect.
struct Line {
    mode: DeliveryMode,
    habits: Habits,
    broker: Broker,
    clock: ManualClock,
    orders: Topic<String>,
    billing: Subscription<String>,
    bills: Topic<String>,
    printer: Subscription<String>,
    charged: AtomicU64,
    inbox: Inbox,
    database: Mutex<Connection>,
}

/// What came of one order.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    effects: u64,
    deliveries: u64,
}

impl Line {
    fn new(mode: DeliveryMode, habits: Habits) -> Arc<Self> {
        let (broker, clock) = manual();
        let room = Capacity::messages(2).overflow(Overflow::Reject);
        let orders = broker.topic::<String>("orders").capacity(room).create().unwrap();
        let billing = orders.subscription("billing").delivery(mode).create().unwrap();
        let bills = broker.topic::<String>("bills").create().unwrap();
        let printer = bills.subscription("printer").create().unwrap();
        let charged = AtomicU64::new(0);
        let (inbox, database) = (Inbox::sqlite(), Connection::open_in_memory().unwrap());
        database.execute_batch(inbox.create_sql()).unwrap();
        database.execute_batch("CREATE TABLE charge (what TEXT)").unwrap();
        let database = Mutex::new(database);
        Arc::new(Line {
            mode,
            habits,
            broker,
            clock,
            orders,
            billing,
            bills,
            printer,
            charged,
            inbox,
            database,
        })
    }

    fn order(&self) -> Message<String> {
        let order = Message::new("order 7".to_string());
        if self.habits.ids { order.idempotency_id("order-7") } else { order }
    }

    fn publish(&self) -> Result<Receipt, PublishError<String>> {
        self.orders.publish(self.order())
    }

    /// What a publisher without a receipt does next: it tries again, if that is its habit.
    fn publish_again(&self) -> Option<Receipt> {
        self.habits.repeats.then(|| self.publish().unwrap())
    }

    /// All that a subscriber does for an order, short of acknowledging it.
    fn process(&self, order: Delivery<String>) -> Work {
        match self.habits.effect {
            Effect::Anywhere => _ = self.charged.fetch_add(1, Ordering::SeqCst),
            Effect::Inbox => self.charge_in_the_database(&order),
            Effect::Transaction => {
                let mut tx = self.broker.transaction();
                tx.publish(&self.bills, format!("bill for {}", *order));
                tx.ack(order);
                return Work::Prepared(tx);
            }
        }
        Work::Charged(order)
    }

    fn charge_in_the_database(&self, order: &Delivery<String>) {
        let mut database = self.database.lock().unwrap();
        let tx = database.transaction().unwrap();
        if self.inbox.claim(order, |sql, params| tx.execute(sql, params)).unwrap() == Claim::First {
            tx.execute("INSERT INTO charge VALUES (?)", [order.as_str()]).unwrap();
        }
        tx.commit().unwrap();
    }

    /// Another subscriber comes and does what there is to do.
    fn take_over(&self) {
        let successor = self.billing.clone();
        while let Ok(order) = successor.try_recv() {
            assert!(self.process(order).acknowledge(), "the successor is in time");
        }
        assert_empty(&successor);
    }

    fn effects(&self) -> u64 {
        let database = self.database.lock().unwrap();
        let rows: i64 = database.query_row("SELECT count(*) FROM charge", [], |row| row.get(0)).unwrap();
        self.charged.load(Ordering::SeqCst) + self.printer.stats().backlog + u64::try_from(rows).unwrap()
    }

    /// An effect that nobody has acknowledged is there at once, unless it is part of a transaction.
    #[track_caller]
    fn assert_processed_only(&self) {
        let there = self.habits.effect != Effect::Transaction;
        assert_eq!(self.effects(), u64::from(there), "before anybody acknowledged");
    }
}

/// Processed, and not acknowledged yet.
enum Work {
    Charged(Delivery<String>),
    Prepared(Transaction),
}

impl Work {
    /// Whether the broker takes it. A lease that is over is the only reason not to.
    #[track_caller]
    fn acknowledge(self) -> bool {
        match self {
            Work::Charged(order) => match order.ack() {
                Ok(()) => true,
                Err(SettleError::LeaseExpired { count: 1 }) => false,
                Err(error) => panic!("while acking: {error:?}"),
            },
            Work::Prepared(tx) => match tx.commit() {
                Ok(receipts) => receipts.len() == 1,
                Err(CommitError { reason: CommitReason::LeaseExpired { count: 1 }, .. }) => false,
                Err(error) => panic!("while committing: {error:?}"),
            },
        }
    }
}

/// How a thread ends that holds something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Death {
    /// It panics: what it holds is dropped.
    Panic,
    /// Nothing of it is dropped, as if it hung for ever: only the deadline tells.
    Silence,
}

impl Death {
    fn with<T>(self, held: T) {
        match self {
            Death::Panic => {
                let _held = held;
                panic!("dies with it in hand");
            }
            Death::Silence => std::mem::forget(held),
        }
    }
}

/// Runs `life` on a thread of its own, to its end.
#[track_caller]
fn dies(death: Death, life: impl FnOnce() + Send + 'static) {
    let (alive, end) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _alive = alive;
        life();
    });
    let ended = end.recv_timeout(Duration::from_secs(PATIENCE));
    assert_eq!(ended, Err(mpsc::RecvTimeoutError::Disconnected), "hung: alive after {PATIENCE} s");
    assert_eq!(thread.join().is_err(), death == Death::Panic, "it died of something else");
}

/// A subscriber takes the order, does `part` of its work, and dies with what it then holds; another takes over.
fn subscriber_dies<T>(
    line: &Arc<Line>,
    death: Death,
    part: impl FnOnce(&Line, Delivery<String>) -> T + Send + 'static,
) {
    line.publish().unwrap();
    dies(death, {
        let line = line.clone();
        move || {
            let order = line.billing.recv().unwrap();
            death.with(part(&line, order));
        }
    });
    // What was dropped is back at once; of what was not, only the deadline can tell.
    let held = death == Death::Silence && line.mode != AtMostOnce;
    assert_eq!(line.billing.stats().outstanding, u64::from(held));
    if held {
        assert_empty(&line.billing);
        line.clock.advance(DEADLINE);
    }
}

// The five failures, each in all the ways there are to inject it. What a way leaves to be done, `check` does.

type Injection = fn(&Arc<Line>);

struct Failure {
    /// Its row in the page's table.
    name: &'static str,
    ways: &'static [Injection],
}

const PUBLISH_LOST: Failure =
    Failure { name: "publish lost", ways: &[publish_refused, publisher_dead_before_the_order_is_out] };
const RECEIPT_LOST: Failure =
    Failure { name: "published, but the receipt lost", ways: &[publisher_dead_with_the_receipt_unread] };
const DEAD_BEFORE: Failure = Failure {
    name: "subscriber dead before processing",
    ways: &[
        |line| subscriber_dies(line, Death::Panic, |_, order| order),
        |line| subscriber_dies(line, Death::Silence, |_, order| order),
    ],
};
const DEAD_AFTER: Failure = Failure {
    name: "subscriber dead after processing",
    ways: &[
        |line| dead_after_processing(line, Death::Panic),
        |line| dead_after_processing(line, Death::Silence),
    ],
};
const ACK_LOST: Failure = Failure {
    name: "processed, but the ack lost",
    ways: &[ack_while_another_has_it, ack_when_another_is_done_with_it],
};
const FAILURES: [Failure; 5] = [PUBLISH_LOST, RECEIPT_LOST, DEAD_BEFORE, DEAD_AFTER, ACK_LOST];

/// The publish is answered with an error.
fn publish_refused(line: &Arc<Line>) {
    let archive = line.orders.subscription("archive").create().unwrap();
    send(&line.orders, "order 5");
    send(&line.orders, "order 6");
    // The archive is behind and keeps the topic full. Billing has nothing to do with it.
    line.billing.seek(Seek::Latest).unwrap();
    assert!(matches!(line.publish(), Err(PublishError::Full(_))));
    archive.delete().unwrap();
    assert_empty(&line.billing);
    if let Some(receipt) = line.publish_again() {
        assert!(!receipt.deduplicated, "a publish that failed is not remembered");
    }
}

/// The publisher dies when it has the order in hand and not yet given it away.
fn publisher_dead_before_the_order_is_out(line: &Arc<Line>) {
    dies(Death::Panic, {
        let line = line.clone();
        move || {
            let next = std::iter::from_fn(|| -> Option<Message<String>> { panic!("dies over the next one") });
            let _ = line.orders.publish_all(std::iter::once(line.order()).chain(next));
        }
    });
    assert_empty(&line.billing);
    line.publish_again();
}

/// The order is published, and the publisher dies before it has looked at the answer.
fn publisher_dead_with_the_receipt_unread(line: &Arc<Line>) {
    dies(Death::Panic, {
        let line = line.clone();
        move || Death::Panic.with(line.publish().unwrap())
    });
    assert_eq!(line.orders.stats().published, 1);
    if let Some(receipt) = line.publish_again() {
        assert_eq!(receipt.deduplicated, line.habits.ids);
    }
}

fn dead_after_processing(line: &Arc<Line>, death: Death) {
    subscriber_dies(line, death, |line, order| line.process(order));
    line.assert_processed_only();
}

/// The ack comes after the deadline; another subscriber is at work on the order by then.
fn ack_while_another_has_it(line: &Arc<Line>) {
    line.publish().unwrap();
    let late = line.process(take(&line.billing));
    line.clock.advance(DEADLINE);
    let again = line.billing.clone().try_recv().ok();
    assert_eq!(again.is_some(), line.mode != AtMostOnce);
    assert_eq!(
        late.acknowledge(),
        line.mode == AtMostOnce,
        "what is settled at the hand-out has no deadline"
    );
    line.assert_processed_only();
    // The late one has not ended the other's lease either.
    again.into_iter().for_each(|order| assert!(line.process(order).acknowledge()));
}

/// The ack comes after the deadline, and after another subscriber has done it all.
fn ack_when_another_is_done_with_it(line: &Arc<Line>) {
    line.publish().unwrap();
    let late = line.process(take(&line.billing));
    line.clock.advance(DEADLINE);
    line.take_over();
    assert_eq!(late.acknowledge(), line.mode == AtMostOnce);
}

/// The ack comes after the deadline, and nobody has asked for the order since.
fn ack_when_nobody_else_has_it(line: &Arc<Line>) {
    line.publish().unwrap();
    let late = line.process(take(&line.billing));
    line.clock.advance(DEADLINE);
    let by_the_clock = line.mode == ExactlyOnce || line.habits.effect == Effect::Transaction;
    assert_eq!(late.acknowledge(), !by_the_clock);
}

/// The ack was taken, and the subscriber dies before it has looked at the answer.
fn dead_with_the_answer_to_the_ack_unread(line: &Arc<Line>) {
    subscriber_dies(line, Death::Panic, |line, order| line.process(order).acknowledge());
}

/// Injects it, lets others finish what is left to do, and says what came of the order.
fn outcome(injection: Injection, mode: DeliveryMode, habits: Habits) -> Seen {
    let line = Line::new(mode, habits);
    injection(&line);
    line.take_over();
    // Nothing comes of it later.
    line.clock.advance(DEADLINE * 10);
    line.take_over();
    let stats = line.billing.stats();
    assert_eq!((stats.backlog, stats.outstanding), (0, 0), "the order is done with");
    Seen { effects: line.effects(), deliveries: stats.delivered }
}

#[track_caller]
fn check(failure: &Failure, mode: DeliveryMode, effects: u64, deliveries: u64) {
    for (way, injection) in failure.ways.iter().enumerate() {
        let seen = outcome(*injection, mode, Habits::of(mode));
        assert_eq!(seen, Seen { effects, deliveries }, "{}, way {way}, {mode:?}", failure.name);
    }
}

#[test]
fn p13_a_lost_publish_in_at_most_once_mode_is_lost_or_once() {
    check(&PUBLISH_LOST, AtMostOnce, 0, 0);
}

#[test]
fn p02_a_lost_publish_in_at_least_once_mode_is_once_or_more() {
    check(&PUBLISH_LOST, AtLeastOnce, 1, 1);
}

#[test]
fn p16_a_lost_publish_in_exactly_once_mode_is_exactly_once() {
    check(&PUBLISH_LOST, ExactlyOnce, 1, 1);
}

#[test]
fn p13_a_lost_receipt_in_at_most_once_mode_is_lost_or_once() {
    check(&RECEIPT_LOST, AtMostOnce, 1, 1);
}

#[test]
fn p01_a_lost_receipt_in_at_least_once_mode_is_once_or_more() {
    check(&RECEIPT_LOST, AtLeastOnce, 2, 2);
}

#[test]
fn p14_a_lost_receipt_in_exactly_once_mode_is_exactly_once() {
    check(&RECEIPT_LOST, ExactlyOnce, 1, 1);
}

#[test]
fn p13_a_subscriber_dead_before_processing_in_at_most_once_mode_is_lost_or_once() {
    check(&DEAD_BEFORE, AtMostOnce, 0, 1);
}

#[test]
fn p07_a_subscriber_dead_before_processing_in_at_least_once_mode_is_once_or_more() {
    check(&DEAD_BEFORE, AtLeastOnce, 1, 2);
}

#[test]
fn p16_a_subscriber_dead_before_processing_in_exactly_once_mode_is_exactly_once() {
    check(&DEAD_BEFORE, ExactlyOnce, 1, 2);
}

#[test]
fn p13_a_subscriber_dead_after_processing_in_at_most_once_mode_is_lost_or_once() {
    check(&DEAD_AFTER, AtMostOnce, 1, 1);
}

#[test]
fn p07_a_subscriber_dead_after_processing_in_at_least_once_mode_is_once_or_more() {
    check(&DEAD_AFTER, AtLeastOnce, 2, 2);
}

#[test]
fn p16_a_subscriber_dead_after_processing_in_exactly_once_mode_is_exactly_once() {
    check(&DEAD_AFTER, ExactlyOnce, 1, 2);
}

#[test]
fn p13_a_lost_ack_in_at_most_once_mode_is_lost_or_once() {
    check(&ACK_LOST, AtMostOnce, 1, 1);
}

#[test]
fn p08_a_lost_ack_in_at_least_once_mode_is_once_or_more() {
    check(&ACK_LOST, AtLeastOnce, 2, 2);
}

#[test]
fn p16_a_lost_ack_in_exactly_once_mode_is_exactly_once() {
    check(&ACK_LOST, ExactlyOnce, 1, 2);
}

// What the page says beside its table.

#[test]
fn p08_a_late_ack_is_taken_at_least_once_while_nobody_else_has_the_message_and_refused_exactly_once() {
    for (mode, deliveries) in [(AtMostOnce, 1), (AtLeastOnce, 1), (ExactlyOnce, 2)] {
        let seen = outcome(ack_when_nobody_else_has_it, mode, Habits::of(mode));
        assert_eq!(seen, Seen { effects: 1, deliveries }, "{mode:?}");
    }
}

#[test]
fn p08_when_only_the_answer_to_an_ack_is_lost_the_effect_is_there_once() {
    for mode in MODES {
        let seen = outcome(dead_with_the_answer_to_the_ack_unread, mode, Habits::of(mode));
        assert_eq!(seen, Seen { effects: 1, deliveries: 1 }, "{mode:?}");
    }
}

#[test]
fn p14_no_mode_makes_up_for_an_id_that_a_repeat_does_not_have() {
    for mode in MODES {
        let (without, with) = (Habits { repeats: true, ids: false, ..Habits::of(mode) }, Habits::of(mode));
        let with = Habits { repeats: true, ids: true, ..with };
        let effects = |habits| outcome(publisher_dead_with_the_receipt_unread, mode, habits).effects;
        assert_eq!((effects(without), effects(with)), (2, 1), "{mode:?}");
    }
}

#[test]
fn p15_exactly_once_mode_alone_does_not_make_an_effect_outside_the_broker_happen_once() {
    let habits = Habits { effect: Effect::Anywhere, ..Habits::of(ExactlyOnce) };
    for injection in DEAD_AFTER.ways.iter().chain(ACK_LOST.ways) {
        assert_eq!(outcome(*injection, ExactlyOnce, habits), Seen { effects: 2, deliveries: 2 });
    }
}

#[test]
fn p16_a_transaction_makes_the_effect_exactly_once_on_an_at_least_once_subscription_too() {
    let habits = Habits::of(ExactlyOnce);
    for failure in &FAILURES {
        for injection in failure.ways {
            assert_eq!(outcome(*injection, AtLeastOnce, habits).effects, 1, "{}", failure.name);
        }
    }
    assert_eq!(outcome(ack_when_nobody_else_has_it, AtLeastOnce, habits), Seen { effects: 1, deliveries: 2 });
}

#[test]
fn p16_the_inbox_makes_the_effect_exactly_once_in_each_mode_that_delivers_again() {
    let habits = Habits { effect: Effect::Inbox, ..Habits::of(ExactlyOnce) };
    for mode in [AtLeastOnce, ExactlyOnce] {
        for failure in &FAILURES {
            for injection in failure.ways {
                assert_eq!(outcome(*injection, mode, habits).effects, 1, "{}, {mode:?}", failure.name);
            }
        }
    }
}

// The page and these tests cannot part.

const PAGE: &str = include_str!("../../src/guide/exactly_once.md");

/// What the page promises in a cell of its table, and how often it says the effect then happens.
fn read(cell: &str) -> (&str, u64) {
    let (promise, here) = cell.split_once(": ").unwrap_or((cell, "once"));
    let times = match here {
        "lost" => 0,
        "once" => 1,
        "twice" => 2,
        _ => panic!("a cell of the page's table says {cell:?}"),
    };
    (promise, times)
}

/// The cells of the row that begins with `name`.
fn row(name: &str) -> Vec<&'static str> {
    let rows = PAGE.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let mut found = rows.filter(|cells| cells.get(1) == Some(&name));
    let cells = found.next().unwrap_or_else(|| panic!("the page has no row {name:?}"));
    assert!(found.next().is_none(), "the page has two rows {name:?}");
    cells[2..cells.len() - 1].to_vec()
}

#[test]
fn the_table_of_the_guide_says_what_comes_of_each_failure_in_each_mode() {
    for failure in &FAILURES {
        let cells = row(failure.name);
        assert_eq!(cells.len(), MODES.len(), "{}", failure.name);
        for (mode, cell) in MODES.into_iter().zip(cells) {
            let (promise, times) = read(cell);
            let promised = match mode {
                AtMostOnce => promise == "lost or once" && times <= 1,
                AtLeastOnce => promise == "once or more" && times >= 1,
                _ => promise == "exactly once" && times == 1,
            };
            assert!(promised, "{}, {mode:?}: the page says {cell:?}", failure.name);
            for injection in failure.ways {
                let seen = outcome(*injection, mode, Habits::of(mode));
                assert_eq!(seen.effects, times, "{}, {mode:?}: the page says {cell:?}", failure.name);
            }
        }
    }
}

#[test]
fn a_cell_of_the_table_that_promises_something_else_is_found() {
    assert_eq!(read("once or more: twice"), ("once or more", 2));
    assert_eq!(read("exactly once"), ("exactly once", 1));
    panics(|| _ = read("once or more: often"));
    panics(|| _ = row("broker dead"));
}

#[test]
fn the_guide_draws_each_failure() {
    for (place, failure) in FAILURES.iter().enumerate() {
        let heading = format!("# {}. {}", place + 1, failure.name);
        let (_, section) = PAGE.split_once(&heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
        let section = section.split("\n# ").next().unwrap();
        assert_eq!(section.matches("```mermaid\nsequenceDiagram\n").count(), 1, "{heading}");
    }
    assert_eq!(PAGE.matches("sequenceDiagram").count(), FAILURES.len());
}
