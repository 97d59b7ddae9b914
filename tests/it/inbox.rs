//! Effects in the user's own database, once: the claim of the inbox, in SQLite.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use eventflow::inbox::{Claim, ClaimError, Inbox};
use eventflow::{DedupWindow, Delivery, Message, Subscription, Topic};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use crate::support::{Broker, ask, assert_empty, send, take};

/// A topic that lets every copy pass, and a database with an inbox and one account.
struct Bank {
    broker: Broker,
    payments: Topic<i64>,
    ledger: Subscription<i64>,
    database: Connection,
    inbox: Inbox,
}

fn bank() -> Bank {
    let broker = Broker::in_memory();
    let payments = broker.topic::<i64>("payments").dedup(DedupWindow::off()).create().unwrap();
    let ledger = payments.subscription("ledger").create().unwrap();
    let database = Connection::open_in_memory().unwrap();
    let inbox = Inbox::sqlite();
    prepare(&database, &inbox);
    Bank { broker, payments, ledger, database, inbox }
}

fn prepare(database: &Connection, inbox: &Inbox) {
    database.execute(inbox.create_sql(), []).unwrap();
    database.execute(inbox.create_sql(), []).expect("creating it again changes nothing");
    database.execute_batch("CREATE TABLE account (balance INTEGER); INSERT INTO account VALUES (0)").unwrap();
}

fn payment(id: &str) -> Message<i64> {
    Message::new(10).idempotency_id(id)
}

fn claim(inbox: &Inbox, delivery: &Delivery<i64>, tx: &Transaction<'_>) -> Claim {
    inbox.claim(delivery, |sql, params| tx.execute(sql, params)).unwrap()
}

/// Claims and does the work, without the commit.
fn work(inbox: &Inbox, delivery: &Delivery<i64>, tx: &Transaction<'_>) -> Claim {
    let claim = claim(inbox, delivery, tx);
    if claim.is_first() {
        tx.execute("UPDATE account SET balance = balance + ?", [**delivery]).unwrap();
    }
    claim
}

impl Bank {
    /// The whole of it: begin, claim, work, commit, ack.
    fn book(&mut self, delivery: Delivery<i64>) -> Claim {
        let tx = self.database.transaction().unwrap();
        let claim = work(&self.inbox, &delivery, &tx);
        tx.commit().unwrap();
        delivery.ack().unwrap();
        claim
    }

    fn balance(&self) -> i64 {
        self.database.query_row("SELECT balance FROM account", [], |row| row.get(0)).unwrap()
    }

    fn claimed(&self) -> i64 {
        self.database.query_row("SELECT count(*) FROM eventflow_inbox", [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn p16_a_second_copy_is_a_duplicate_and_the_work_is_done_once() {
    let mut bank = bank();
    for _ in 0..3 {
        send(&bank.payments, payment("payment-7"));
    }
    let claims = [0; 3].map(|_| {
        let delivery = take(&bank.ledger);
        bank.book(delivery)
    });
    assert_eq!(claims, [Claim::First, Claim::Duplicate, Claim::Duplicate]);
    assert_eq!(bank.balance(), 10);
    assert_empty(&bank.ledger);
}

#[test]
fn p16_a_subscriber_that_dies_after_its_commit_has_done_the_work() {
    let mut bank = bank();
    send(&bank.payments, payment("payment-7"));
    let delivery = take(&bank.ledger);
    let tx = bank.database.transaction().unwrap();
    assert_eq!(work(&bank.inbox, &delivery, &tx), Claim::First);
    tx.commit().unwrap();
    drop(delivery); // dies before its ack

    let again = take(&bank.ledger);
    assert_eq!(again.attempt(), 2);
    assert_eq!(bank.book(again), Claim::Duplicate);
    assert_eq!(bank.balance(), 10);
}

#[test]
fn p16_a_claim_that_was_rolled_back_is_first_again() {
    let mut bank = bank();
    send(&bank.payments, payment("payment-7"));
    let delivery = take(&bank.ledger);
    let tx = bank.database.transaction().unwrap();
    assert_eq!(work(&bank.inbox, &delivery, &tx), Claim::First);
    assert_eq!(
        claim(&bank.inbox, &delivery, &tx),
        Claim::Duplicate,
        "within one transaction it counts at once"
    );
    drop(tx); // dies before the commit
    drop(delivery);

    assert_eq!(bank.balance(), 0);
    let again = take(&bank.ledger);
    assert_eq!(bank.book(again), Claim::First);
    assert_eq!(bank.balance(), 10);
}

#[test]
fn each_subscription_and_each_topic_claims_for_itself() {
    let mut bank = bank();
    let audit = bank.payments.subscription("audit").create().unwrap();
    let other = bank.broker.topic::<i64>("refunds").create().unwrap();
    let refunds = other.subscription("ledger").create().unwrap();
    send(&bank.payments, payment("7"));
    send(&other, payment("7"));
    for subscription in [bank.ledger.clone(), audit, refunds] {
        let delivery = take(&subscription);
        assert_eq!(bank.book(delivery), Claim::First);
    }
    assert_eq!(bank.claimed(), 3);
}

#[test]
fn names_are_put_together_so_that_no_two_pairs_are_one() {
    let broker = Broker::in_memory();
    let inbox = Inbox::sqlite();
    let mut seen = BTreeSet::new();
    for (topic, subscription) in [("a", "b/c"), ("a/b", "c"), ("a", "b"), ("a.b", "c"), ("a", "b.c")] {
        let topic = broker.topic::<i64>(topic).open().unwrap();
        let subscription = topic.subscription(subscription).open().unwrap();
        send(&topic, payment(&format!("{}-{}", topic.name(), subscription.name())));
        let delivery = take(&subscription);
        let claim = inbox.claim(&delivery, |_, params| {
            assert!(seen.insert(params[0].to_owned()), "{} stands for two", params[0]);
            Ok::<_, ()>(1)
        });
        assert_eq!(claim, Ok(Claim::First));
        delivery.ack().unwrap();
        topic
            .subscriptions()
            .iter()
            .for_each(|name| topic.subscription(name).open().unwrap().delete().unwrap());
    }
}

#[test]
fn ids_that_differ_in_a_byte_are_two() {
    let mut bank = bank();
    let long = "x".repeat(1_024);
    let other_long = format!("{}y", &long[1..]);
    let ids = [
        "a",
        "A",
        "a ",
        " a",
        "á",
        "a\u{301}",
        "a\0",
        "a\0b",
        "1",
        "01",
        "1.0",
        "",
        "'",
        "%",
        &long,
        &other_long,
    ];
    for id in ids {
        send(&bank.payments, payment(id));
        let delivery = take(&bank.ledger);
        assert_eq!(bank.book(delivery), Claim::First, "{id:?}");
    }
    assert_eq!(bank.claimed(), ids.len() as i64);
}

#[test]
fn a_uuid_and_its_text_are_one_id() {
    let mut bank = bank();
    let uuid = uuid::Uuid::from_u128(0xAB);
    send(&bank.payments, Message::new(10).idempotency_id(uuid));
    send(&bank.payments, payment(&uuid.to_string().to_uppercase()));
    let claims = [0; 2].map(|_| {
        let delivery = take(&bank.ledger);
        bank.book(delivery)
    });
    assert_eq!(claims, [Claim::First, Claim::Duplicate]);
}

#[test]
fn a_message_without_an_id_is_an_error_before_any_statement() {
    let bank = bank();
    send(&bank.payments, 10);
    let delivery = take(&bank.ledger);
    let claim = bank.inbox.claim(&delivery, |_, _| -> Result<u64, ()> { panic!("nothing is executed") });
    assert_eq!(claim, Err(ClaimError::NoIdempotencyId));
}

#[test]
fn an_error_of_the_database_comes_through_and_claims_nothing() {
    let bank = bank();
    let empty = Connection::open_in_memory().unwrap();
    send(&bank.payments, payment("7"));
    let delivery = take(&bank.ledger);
    let error = bank.inbox.claim(&delivery, |sql, params| empty.execute(sql, params)).unwrap_err();
    assert!(matches!(error, ClaimError::Database(_)), "{error}");
    assert!(
        std::error::Error::source(&error).expect("the driver's error").to_string().contains("no such table")
    );
}

#[test]
fn a_number_of_rows_that_cannot_be_is_an_error() {
    let bank = bank();
    send(&bank.payments, payment("7"));
    let delivery = take(&bank.ledger);
    let claim = |inbox: &Inbox, rows: i64| inbox.claim(&delivery, |_, _| Ok::<_, ()>(rows));
    for inbox in [Inbox::sqlite(), Inbox::postgres()] {
        assert_eq!(claim(&inbox, 1), Ok(Claim::First));
        assert_eq!(claim(&inbox, 0), Ok(Claim::Duplicate));
        assert_eq!([2, -1].map(|rows| claim(&inbox, rows)), [Err(ClaimError::UnexpectedRows); 2]);
    }
    // An insert that updates affects two rows there; none would mean that another statement was run.
    assert_eq!(claim(&Inbox::mysql(), 1), Ok(Claim::First));
    assert_eq!(claim(&Inbox::mysql(), 2), Ok(Claim::Duplicate));
    assert_eq!([0, 3].map(|rows| claim(&Inbox::mysql(), rows)), [Err(ClaimError::UnexpectedRows); 2]);
}

#[test]
fn every_kind_of_integer_counts_rows() {
    let bank = bank();
    send(&bank.payments, payment("7"));
    let delivery = take(&bank.ledger);
    let inbox = &bank.inbox;
    let claims = [
        inbox.claim(&delivery, |_, _| Ok::<_, ()>(1_u64)),
        inbox.claim(&delivery, |_, _| Ok::<_, ()>(1_usize)),
        inbox.claim(&delivery, |_, _| Ok::<_, ()>(1_i64)),
        inbox.claim(&delivery, |_, _| Ok::<_, ()>(1_u32)),
        inbox.claim(&delivery, |_, _| Ok::<_, ()>(1_i32)),
    ];
    assert_eq!(claims, [Ok(Claim::First); 5]);
}

#[test]
fn pruned_ids_are_first_again_and_younger_ones_stay() {
    let mut bank = bank();
    for id in ["old", "young"] {
        send(&bank.payments, payment(id));
        let delivery = take(&bank.ledger);
        assert_eq!(bank.book(delivery), Claim::First);
    }
    let aged = "UPDATE eventflow_inbox SET processed_at = processed_at - 3600 WHERE id = 'old'";
    assert_eq!(bank.database.execute(aged, []).unwrap(), 1);
    let prune = |bank: &Bank, seconds: i64| bank.database.execute(bank.inbox.prune_sql(), [seconds]).unwrap();
    assert_eq!(prune(&bank, 7_200), 0);
    assert_eq!(prune(&bank, 1_800), 1);
    for (id, expected) in [("young", Claim::Duplicate), ("old", Claim::First)] {
        send(&bank.payments, payment(id));
        let delivery = take(&bank.ledger);
        assert_eq!(bank.book(delivery), expected, "{id}");
    }
}

#[test]
fn a_table_of_another_name_holds_the_claims() {
    let mut bank = bank();
    bank.inbox = Inbox::sqlite().table("main.order").unwrap();
    bank.database.execute(bank.inbox.create_sql(), []).unwrap();
    send(&bank.payments, payment("7"));
    let delivery = take(&bank.ledger);
    assert_eq!(bank.book(delivery), Claim::First);
    assert_eq!(bank.claimed(), 0);
    let count = bank.database.query_row("SELECT count(*) FROM \"order\"", [], |row| row.get::<_, i64>(0));
    assert_eq!(count, Ok(1));
    assert!(Inbox::sqlite().table("x; DROP TABLE account").is_err());
}

/// A database in a file, which goes with it.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let file = File(std::env::temp_dir().join(format!("eventflow-{}-{name}.db", std::process::id())));
        file.remove();
        file
    }

    fn connect(&self, busy_timeout: Duration) -> Connection {
        let connection = Connection::open(&self.0).unwrap();
        connection.busy_timeout(busy_timeout).unwrap();
        connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
        connection
    }

    fn remove(&self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            // Most of them are not there.
            let _absent = std::fs::remove_file(path);
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Two subscribers at work on one message, as after an expiry: two copies stand for the two leases.
#[test]
fn of_two_claims_at_a_time_the_second_waits_or_is_told() {
    let bank = bank();
    let file = File::new("two-claims");
    let mut mine = file.connect(Duration::ZERO);
    prepare(&mine, &bank.inbox);
    (0..2).for_each(|_| send(&bank.payments, payment("7")));
    let (one, other) = (take(&bank.ledger), take(&bank.ledger));

    let tx = mine.transaction().unwrap();
    assert_eq!(work(&bank.inbox, &one, &tx), Claim::First);

    let hasty = file.connect(Duration::ZERO);
    let error = bank.inbox.claim(&other, |sql, params| hasty.execute(sql, params)).unwrap_err();
    let ClaimError::Database(error) = error else { panic!("expected the database's error: {error:?}") };
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));

    let (inbox, mut patient) = (bank.inbox.clone(), file.connect(Duration::from_secs(60)));
    let second = ask(move || {
        let tx = patient.transaction_with_behavior(TransactionBehavior::Deferred).unwrap();
        let claim = work(&inbox, &other, &tx);
        tx.commit().unwrap();
        claim
    });
    second.assert_pending();
    tx.commit().unwrap();
    assert_eq!(second.get(), Claim::Duplicate);
    assert_eq!(mine.query_row("SELECT balance FROM account", [], |row| row.get(0)), Ok(10));
}

/// Stands for a database that is awaited: it remembers what it was given.
#[cfg(feature = "async")]
#[derive(Clone, Default)]
struct Remote(std::sync::Arc<std::sync::Mutex<BTreeSet<[String; 2]>>>);

#[cfg(feature = "async")]
impl Remote {
    /// As tokio-postgres has it.
    async fn execute(&self, _sql: &str, params: &[&(dyn ToString + Sync)]) -> Result<u64, std::io::Error> {
        futures::future::ready(()).await;
        let row = [params[0].to_string(), params[1].to_string()];
        Ok(u64::from(self.0.lock().unwrap().insert(row)))
    }
}

#[cfg(feature = "async")]
#[test]
fn an_awaited_claim_says_the_same_and_can_be_spawned() {
    let bank = bank();
    let remote = Remote::default();
    for _ in 0..2 {
        send(&bank.payments, payment("7"));
    }
    send(&bank.payments, 10);
    let claims = [0; 3].map(|_| {
        let (inbox, remote, delivery) = (bank.inbox.clone(), remote.clone(), take(&bank.ledger));
        let task = async move {
            let execute =
                async |sql: &str, params: [&str; 2]| remote.execute(sql, &[&params[0], &params[1]]).await;
            let claim = inbox.claim_async(&delivery, execute).await;
            delivery.ack_async().await.unwrap();
            claim.map_err(|error| error.to_string())
        };
        let task: std::pin::Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(task);
        futures::executor::block_on(task)
    });
    let without_id = ClaimError::<()>::NoIdempotencyId.to_string();
    assert_eq!(claims, [Ok(Claim::First), Ok(Claim::Duplicate), Err(without_id)]);
}
