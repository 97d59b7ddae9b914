//! Effects in PostgreSQL, once.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use eventflow::inbox::{Claim, ClaimError, Inbox};
use eventflow::{Broker, DedupWindow, Delivery, Message, Subscription, Topic};
use postgres::error::SqlState;
use postgres::{Client, IsolationLevel, Transaction};

use crate::server::{Address, Server};
use crate::{Numbers, within};

const ACCOUNTS: u32 = 20;
const TRANSFERS: usize = 1_000;
const SUBSCRIBERS: usize = 3;
/// A subscriber dies at each of three points once in so many deliveries.
const DEATH_ONE_IN: u32 = 60;

#[derive(Clone, Copy)]
struct Transfer {
    from: i32,
    to: i32,
    amount: i64,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn claim<E: Send + Sync + 'static>(
    inbox: &Inbox,
    delivery: &Delivery<E>,
    tx: &mut Transaction<'_>,
) -> Result<Claim, ClaimError<postgres::Error>> {
    inbox.claim(delivery, |sql, params| tx.execute(sql, &[&params[0], &params[1]]))
}

/// A topic that lets every copy pass.
fn topic<E: Send + Sync + 'static>(broker: &Broker) -> (Topic<E>, Subscription<E>) {
    let topic = broker.topic::<E>("transfers").dedup(DedupWindow::off()).open().unwrap();
    let subscription = topic.subscription("ledger").open().unwrap();
    (topic, subscription)
}

#[test]
fn p16_balances_are_right_although_every_transfer_comes_twice_and_subscribers_die() {
    let Some(server) = Server::start("payments") else { return };
    let address = server.address();
    within(300, move || payments(&address));
}

#[derive(Default)]
struct Tally {
    deliveries: AtomicU64,
    duplicates: AtomicU64,
    failed: AtomicU64,
    /// In the middle of the work, before the commit, between commit and ack.
    deaths: [AtomicU64; 3],
}

impl Tally {
    fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }
}

fn payments(server: &Address) {
    let inbox = Inbox::postgres();
    let mut database = server.connect();
    database.batch_execute(inbox.create_sql()).unwrap();
    database.batch_execute("CREATE TABLE account (number int PRIMARY KEY, balance bigint NOT NULL)").unwrap();
    database
        .execute(
            "INSERT INTO account SELECT n, 1000 FROM generate_series(0, $1) AS n",
            &[&(ACCOUNTS as i32 - 1)],
        )
        .unwrap();

    let broker = Broker::in_memory();
    let (topic, ledger) = topic::<Transfer>(&broker);
    let mut numbers = Numbers(7);
    let mut expected = vec![1_000_i64; ACCOUNTS as usize];
    for number in 0..TRANSFERS {
        let from = numbers.below(ACCOUNTS);
        let to = (from + 1 + numbers.below(ACCOUNTS - 1)) % ACCOUNTS;
        let transfer = Transfer { from: from as i32, to: to as i32, amount: i64::from(numbers.below(500)) };
        expected[from as usize] -= transfer.amount;
        expected[to as usize] += transfer.amount;
        for _ in 0..2 {
            topic.publish(Message::new(transfer).idempotency_id(format!("transfer-{number}"))).unwrap();
        }
    }

    let (tally, fate) = (Tally::default(), Mutex::new(Numbers(11)));
    std::thread::scope(|scope| {
        for _ in 0..SUBSCRIBERS {
            scope.spawn(|| {
                // As one dies the next takes over.
                while ledger.stats().backlog > 0 {
                    let life = AssertUnwindSafe(|| live(server, &inbox, &ledger, &tally, &fate));
                    if let Ok(ended) = catch_unwind(life) {
                        ended.unwrap();
                    }
                }
            });
        }
    });

    let balances = database.query("SELECT balance FROM account ORDER BY number", &[]).unwrap();
    let balances: Vec<i64> = balances.iter().map(|row| row.get(0)).collect();
    let claimed: i64 = database.query_one("SELECT count(*) FROM eventflow_inbox", &[]).unwrap().get(0);
    println!(
        "payments: {TRANSFERS} transfers, each twice, {SUBSCRIBERS} subscribers at a time: {:?}; {claimed} ids; balances right: {}",
        tally,
        balances == expected
    );
    assert_eq!(balances, expected);
    assert_eq!(claimed as usize, TRANSFERS);
    assert!(tally.duplicates() >= TRANSFERS as u64, "the inbox had something to do");
    assert!(tally.deaths.iter().all(|deaths| deaths.load(Ordering::Relaxed) > 0), "{tally:?}");
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [work, commit, ack] = self.deaths.each_ref().map(|deaths| deaths.load(Ordering::Relaxed));
        write!(
            f,
            "{} deliveries, {} duplicates caught, {work} died in the middle of the work, {commit} before the commit, \
             {ack} between commit and ack, {} transactions failed",
            self.deliveries.load(Ordering::Relaxed),
            self.duplicates(),
            self.failed.load(Ordering::Relaxed)
        )
    }
}

fn live(
    server: &Address,
    inbox: &Inbox,
    ledger: &Subscription<Transfer>,
    tally: &Tally,
    fate: &Mutex<Numbers>,
) -> Result<(), Failure> {
    let mut database = server.connect();
    let may_die = |point: usize| {
        let strikes = fate.lock().unwrap().below(DEATH_ONE_IN) == 0;
        if strikes {
            tally.deaths[point].fetch_add(1, Ordering::Relaxed);
            // A panic as any other, but without its message.
            resume_unwind(Box::new("the subscriber dies"));
        }
    };
    while let Ok(transfer) = ledger.try_recv() {
        tally.deliveries.fetch_add(1, Ordering::Relaxed);
        match book(inbox, &transfer, &mut database, tally, &may_die) {
            Ok(()) => {
                may_die(2);
                transfer.ack()?;
            }
            // The victim of a deadlock between accounts: rolled back, and the delivery comes back as it is dropped.
            Err(error) => {
                let code = error.downcast_ref::<postgres::Error>().and_then(|error| error.code());
                if code != Some(&SqlState::T_R_DEADLOCK_DETECTED) {
                    return Err(error);
                }
                tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Begin, claim, work, commit.
fn book(
    inbox: &Inbox,
    transfer: &Delivery<Transfer>,
    database: &mut Client,
    tally: &Tally,
    may_die: &dyn Fn(usize),
) -> Result<(), Failure> {
    let mut tx = database.transaction()?;
    if claim(inbox, transfer, &mut tx)?.is_first() {
        let update = "UPDATE account SET balance = balance + $1 WHERE number = $2";
        tx.execute(update, &[&-transfer.amount, &transfer.from])?;
        may_die(0);
        tx.execute(update, &[&transfer.amount, &transfer.to])?;
    } else {
        tally.duplicates.fetch_add(1, Ordering::Relaxed);
    }
    may_die(1);
    tx.commit()?;
    Ok(())
}

/// Two leases on one message, for which two copies stand, and what becomes of the second claim when the first transaction ends.
#[test]
fn the_second_of_two_claims_waits_for_the_first_transaction() {
    let Some(server) = Server::start("two claims") else { return };
    let server = server.address();
    within(120, move || {
        let read_committed = IsolationLevel::ReadCommitted;
        assert_eq!(second_claim(&server, read_committed, true), Ok(Claim::Duplicate));
        assert_eq!(second_claim(&server, read_committed, false), Ok(Claim::First));
        for stricter in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
            assert_eq!(second_claim(&server, stricter, true), Err(SqlState::T_R_SERIALIZATION_FAILURE));
            assert_eq!(second_claim(&server, stricter, false), Ok(Claim::First));
        }
    });
}

fn second_claim(server: &Address, level: IsolationLevel, commit: bool) -> Result<Claim, SqlState> {
    let broker = Broker::in_memory();
    let (topic, ledger) = topic::<u32>(&broker);
    for _ in 0..2 {
        topic.publish(Message::new(1).idempotency_id("7")).unwrap();
    }
    let (one, other) = (ledger.try_recv().unwrap(), ledger.try_recv().unwrap());
    let inbox = Inbox::postgres();
    let (mut mine, mut theirs, mut watcher) = (server.connect(), server.connect(), server.connect());
    mine.batch_execute("DROP TABLE IF EXISTS eventflow_inbox").unwrap();
    mine.batch_execute(inbox.create_sql()).unwrap();

    let mut tx = mine.transaction().unwrap();
    assert_eq!(claim(&inbox, &one, &mut tx).unwrap(), Claim::First);
    let (sender, answer) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut tx = theirs.build_transaction().isolation_level(level).start().unwrap();
            let second = claim(&inbox, &other, &mut tx);
            sender.send(second.map_err(code)).unwrap();
        });
        // The server says when the second waits.
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        while watcher.query_one(waiting, &[]).unwrap().get::<_, i64>(0) == 0 {
            assert!(answer.try_recv().is_err(), "the second does not wait");
        }
        if commit {
            tx.commit().unwrap()
        } else {
            tx.rollback().unwrap()
        }
        answer.recv_timeout(Duration::from_secs(60)).expect("the second is told")
    })
}

fn code(error: ClaimError<postgres::Error>) -> SqlState {
    match error {
        ClaimError::Database(error) => error.code().expect("an error of the server").clone(),
        other => panic!("expected an error of the database: {other}"),
    }
}

#[test]
fn ids_that_differ_in_a_byte_are_two_and_the_longest_fit() {
    let Some(server) = Server::start("ids") else { return };
    let mut database = server.address().connect();
    // In a schema, under a word of the language.
    let inbox = Inbox::postgres().table("bank.order").unwrap();
    database.batch_execute("CREATE SCHEMA bank").unwrap();
    database.batch_execute(inbox.create_sql()).unwrap();
    database.batch_execute(inbox.create_sql()).expect("creating it again changes nothing");

    let broker = Broker::in_memory();
    let mut numbers = Numbers(3);
    // Of random letters, because the server compresses what it can before it looks at the length.
    let mut random =
        |len: usize| -> String { (0..len).map(|_| char::from(b'a' + numbers.below(26) as u8)).collect() };
    let topic = broker.topic::<u32>(&random(255)).dedup(DedupWindow::off()).open().unwrap();
    let subscription = topic.subscription(&random(255)).open().unwrap();
    let long = random(1_024);
    let other_long = format!("{}_", &long[..1_023]);
    let ids = ["a", "A", "a ", "á", "a\u{301}", "", "'", "%", "\\", &long, &other_long];
    let mut book = |id: &str| {
        topic.publish(Message::new(1).idempotency_id(id)).unwrap();
        let delivery = subscription.try_recv().unwrap();
        let mut tx = database.transaction().unwrap();
        let claim = claim(&inbox, &delivery, &mut tx).unwrap();
        tx.commit().unwrap();
        delivery.ack().unwrap();
        claim
    };
    for expected in [Claim::First, Claim::Duplicate] {
        assert!(ids.iter().all(|id| book(id) == expected), "each is {expected:?}");
    }

    let aged = "UPDATE bank.order SET processed_at = processed_at - interval '1 hour' WHERE id = 'a'";
    let aged = aged.replace("bank.order", "bank.\"order\"");
    assert_eq!(database.execute(&aged, &[]).unwrap(), 1);
    assert_eq!(database.execute(inbox.prune_sql(), &[&7_200_i64]).unwrap(), 0);
    assert_eq!(database.execute(inbox.prune_sql(), &[&1_800_i64]).unwrap(), 1);
}
