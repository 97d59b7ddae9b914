//! A ledger that is exactly right, although every transfer comes twice and the subscriber keeps dying.
//!
//! 10,000 transfers between 100 accounts are published, each twice. The subscriber's thread panics at random points: in the middle of the work, before the database
//! commit, and between commit and ack. Another thread takes over each time. The inbox records each transfer's id in the database transaction that moves the money, so that a
//! transfer that comes again is found and left alone.
//!
//! ```text
//! cargo run --release --example payments_sqlite              a new seed each time
//! cargo run --release --example payments_sqlite -- 42        the same run again
//! ```
//!
//! Ends with 1 when a balance is wrong.

use std::cell::Cell;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use eventflow::inbox::{Claim, Inbox};
use eventflow::{Broker, DedupWindow, Delivery, Message, Subscription};
use rusqlite::{Connection, params};

const ACCOUNTS: u32 = 100;
const TRANSFERS: usize = 10_000;
const COPIES: usize = 2;
const OPENING_BALANCE: i64 = 1_000;
/// The subscriber dies at each of the three points once in so many deliveries.
const DEATH_ONE_IN: u32 = 250;
/// The threads that are meant to die carry this name: their panics are not printed.
const SUBSCRIBER: &str = "subscriber";

#[derive(Clone, Copy)]
struct Transfer {
    number: usize,
    from: u32,
    to: u32,
    amount: i64,
}

fn main() -> ExitCode {
    let seed = match std::env::args().nth(1).map(|seed| seed.parse()) {
        None => {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
        }
        Some(Ok(seed)) => seed,
        Some(Err(_)) => {
            eprintln!("usage: payments_sqlite [SEED]");
            return ExitCode::from(2);
        }
    };
    println!("seed {seed}");
    silence_subscribers();
    match run(seed) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every balance is right.
fn run(seed: u64) -> Result<bool, Box<dyn Error>> {
    let file = DatabaseFile::new();
    let inbox = Inbox::sqlite();
    prepare(&file.connect()?, &inbox)?;

    let broker = Broker::in_memory();
    // Without a window both copies arrive, as when a publisher starts again after longer than the window.
    let topic = broker.topic::<Transfer>("transfers").dedup(DedupWindow::off()).open()?;
    let ledger = topic.subscription("ledger").open()?;
    let numbers = Numbers(Cell::new(seed));
    let transfers: Vec<_> = (0..TRANSFERS).map(|number| numbers.transfer(number)).collect();
    for _ in 0..COPIES {
        for transfer in &transfers {
            let id = format!("transfer-{}", transfer.number);
            topic.publish(Message::new(*transfer).idempotency_id(id))?;
        }
    }

    let began = Instant::now();
    let tally = Tally::default();
    let mut generation = 0;
    while ledger.stats().backlog > 0 {
        generation += 1;
        let seed = numbers.next();
        let subscriber = thread::Builder::new().name(SUBSCRIBER.into());
        let work = thread::scope(|scope| {
            let life = subscriber.spawn_scoped(scope, || live(seed, &ledger, &file.0, &inbox, &tally))?;
            Ok::<_, std::io::Error>(life.join())
        })?;
        if let Ok(ended) = work {
            ended?; // it was not killed: nothing was left, or something is really wrong
        }
    }
    println!("{generation} subscribers in {:.2} s", began.elapsed().as_secs_f64());
    tally.print();
    prove(&file.connect()?, &transfers, &tally)
}

/// The life of one subscriber: until nothing is left, or it dies.
fn live(
    seed: u64,
    ledger: &Subscription<Transfer>,
    file: &Path,
    inbox: &Inbox,
    tally: &Tally,
) -> Result<(), String> {
    let fate = Numbers(Cell::new(seed));
    let mut database = connect(file).map_err(|error| error.to_string())?;
    while let Ok(transfer) = ledger.try_recv() {
        book(transfer, &mut database, inbox, tally, &fate).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Begin, claim, work, commit, ack; and three places to die in.
fn book(
    transfer: Delivery<Transfer>,
    database: &mut Connection,
    inbox: &Inbox,
    tally: &Tally,
    fate: &Numbers,
) -> Result<(), Box<dyn Error>> {
    tally.deliveries.fetch_add(1, Ordering::Relaxed);
    let tx = database.transaction()?;
    match inbox.claim(&transfer, |sql, params| tx.execute(sql, params))? {
        Claim::First => {
            let mut update =
                tx.prepare_cached("UPDATE account SET balance = balance + ? WHERE number = ?")?;
            update.execute(params![-transfer.amount, transfer.from])?;
            fate.may_strike(&tally.died_at_work);
            update.execute(params![transfer.amount, transfer.to])?;
        }
        Claim::Duplicate => {
            tally.duplicates.fetch_add(1, Ordering::Relaxed);
        }
    }
    fate.may_strike(&tally.died_before_commit);
    tx.commit()?;
    fate.may_strike(&tally.died_before_ack);
    transfer.ack()?;
    Ok(())
}

#[derive(Default)]
struct Tally {
    deliveries: AtomicU64,
    duplicates: AtomicU64,
    died_at_work: AtomicU64,
    died_before_commit: AtomicU64,
    died_before_ack: AtomicU64,
}

impl Tally {
    fn print(&self) {
        let lines = [
            ("deliveries", &self.deliveries),
            ("duplicates that the inbox caught", &self.duplicates),
            ("died in the middle of the work", &self.died_at_work),
            ("died before the database commit", &self.died_before_commit),
            ("died between commit and ack", &self.died_before_ack),
        ];
        for (what, count) in lines {
            println!("{:>7}  {what}", count.load(Ordering::Relaxed));
        }
    }
}

/// Every balance against a plain loop over the transfers, each once.
fn prove(database: &Connection, transfers: &[Transfer], tally: &Tally) -> Result<bool, Box<dyn Error>> {
    let mut expected = vec![OPENING_BALANCE; ACCOUNTS as usize];
    for transfer in transfers {
        expected[transfer.from as usize] -= transfer.amount;
        expected[transfer.to as usize] += transfer.amount;
    }
    let mut statement = database.prepare("SELECT balance FROM account ORDER BY number")?;
    let balances = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    let wrong = (0..expected.len()).filter(|&at| balances.get(at) != Some(&expected[at])).count();
    println!("{} accounts, {wrong} of them wrong", balances.len());
    // Had the inbox had nothing to do, the balances would prove nothing.
    let tested = tally.duplicates.load(Ordering::Relaxed) >= (TRANSFERS * (COPIES - 1)) as u64;
    Ok(wrong == 0 && balances.len() == expected.len() && tested)
}

fn prepare(database: &Connection, inbox: &Inbox) -> rusqlite::Result<()> {
    database.execute(inbox.create_sql(), [])?;
    database.execute("CREATE TABLE account (number INTEGER PRIMARY KEY, balance INTEGER NOT NULL)", [])?;
    for number in 0..ACCOUNTS {
        database.execute("INSERT INTO account VALUES (?, ?)", params![number, OPENING_BALANCE])?;
    }
    Ok(())
}

/// Here it is threads that die, not the machine: nothing need be synced.
fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(file)?;
    database.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")?;
    database.busy_timeout(Duration::from_secs(10))?;
    Ok(database)
}

/// A database in the directory for temporary files, which goes when this is dropped.
struct DatabaseFile(PathBuf);

impl DatabaseFile {
    fn new() -> Self {
        DatabaseFile(std::env::temp_dir().join(format!("eventflow-payments-{}.db", std::process::id())))
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        connect(&self.0)
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        for extension in ["db", "db-wal", "db-shm"] {
            // The last two are there only while the database is open.
            let _absent = std::fs::remove_file(self.0.with_extension(extension));
        }
    }
}

/// The deaths are meant: only other panics are printed.
fn silence_subscribers() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if thread::current().name() != Some(SUBSCRIBER) {
            loud(panic);
        }
    }));
}

/// Repeatable numbers (SplitMix64).
struct Numbers(Cell<u64>);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9E37_79B9_7F4A_7C15));
        let mut mixed = self.0.get();
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&self, end: u32) -> u32 {
        (self.next() % u64::from(end)) as u32
    }

    fn transfer(&self, number: usize) -> Transfer {
        let from = self.below(ACCOUNTS);
        let to = (from + 1 + self.below(ACCOUNTS - 1)) % ACCOUNTS;
        Transfer { number, from, to, amount: 1 + i64::from(self.below(500)) }
    }

    fn may_strike(&self, deaths: &AtomicU64) {
        if self.below(DEATH_ONE_IN) == 0 {
            deaths.fetch_add(1, Ordering::Relaxed);
            panic!("the subscriber dies");
        }
    }
}
