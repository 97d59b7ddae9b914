//! Exactly once in your own database: the inbox.
//!
//! A broker can deliver a message twice: the subscriber dies after its work and before its ack, or the ack comes too late. It cannot know whether the work
//! was done. Your database can: **record the message's idempotency id in the same database transaction as the work, and look there first.** Either both are there or
//! neither is, and a message that comes again finds its id.
//!
//! This crate has no database in it. An [`Inbox`] gives the SQL of one small table, for SQLite, PostgreSQL and MySQL or MariaDB, and runs your own closure to execute it:
//! any driver, any pool, any transaction.
//!
//! # The order of things
//!
//! 1. Begin a database transaction.
//! 2. [`claim`](Inbox::claim), before anything else in it.
//! 3. [`Claim::First`]: do the work, in the same transaction. [`Claim::Duplicate`]: the work was done and committed before; do nothing.
//! 4. Commit. (On `Duplicate` a rollback does as well.)
//! 5. Only now [`ack`](crate::Delivery::ack).
//!
//! Whatever dies between two steps, the end is the same:
//!
//! | the subscriber dies | the database | the message |
//! |---|---|---|
//! | before the commit | forgets claim and work | comes back, is `First`, is worked on |
//! | after the commit, before the ack | has both | comes back, is `Duplicate`, is acked |
//! | after the ack | has both | is settled |
//!
//! An ack that fails with `LeaseExpired` after the commit needs no care: whoever gets the message next finds `Duplicate`. If the commit itself fails, or its outcome is unknown
//! because the connection died, do not ack: drop the delivery, and the next claim finds out. The ack trusts the commit: a database that may forget what it has committed
//! (`synchronous_commit = off`, `synchronous = OFF`) may lose the work of a message that was acked.
//!
//! ```
//! use eventflow::inbox::{Claim, Inbox};
//! use eventflow::{Broker, Message};
//! use rusqlite::Connection;
//!
//! let mut database = Connection::open_in_memory()?;
//! let inbox = Inbox::sqlite();
//! database.execute(inbox.create_sql(), [])?;
//! database.execute_batch("CREATE TABLE account (balance INTEGER); INSERT INTO account VALUES (0)")?;
//!
//! let broker = Broker::in_memory();
//! // The window is off, so that both copies of one payment arrive, as after a restart of the publisher.
//! let payments = broker.topic::<i64>("payments").dedup(eventflow::DedupWindow::off()).open()?;
//! let ledger = payments.subscription("ledger").open()?;
//! for _ in 0..2 {
//!     payments.publish(Message::new(1_999).idempotency_id("payment-7"))?;
//! }
//!
//! while let Ok(payment) = ledger.try_recv() {
//!     let tx = database.transaction()?;
//!     if inbox.claim(&payment, |sql, params| tx.execute(sql, params))? == Claim::First {
//!         tx.execute("UPDATE account SET balance = balance + ?", [*payment])?;
//!     }
//!     tx.commit()?;
//!     payment.ack()?;
//! }
//! let balance: i64 = database.query_row("SELECT balance FROM account", [], |row| row.get(0))?;
//! assert_eq!(balance, 1_999); // not 3,998
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To share the cost of a commit, claim and work on many deliveries in one transaction, commit, and ack them all.
//!
//! # Other drivers
//!
//! The closure gets the statement and two texts, in the order of its placeholders, and returns the number of rows affected, as any kind of integer.
//!
//! ```text
//! // postgres
//! inbox.claim(&order, |sql, params| tx.execute(sql, &[&params[0], &params[1]]))?
//!
//! // tokio-postgres
//! inbox.claim_async(&order, async |sql, params| tx.execute(sql, &[&params[0], &params[1]]).await).await?
//!
//! // sqlx (SQLite, PostgreSQL, MySQL)
//! inbox.claim_async(&order, async |sql, params| {
//!     let done = sqlx::query(sql).bind(params[0]).bind(params[1]).execute(&mut *tx).await?;
//!     Ok::<_, sqlx::Error>(done.rows_affected())
//! }).await?
//!
//! // diesel
//! inbox.claim(&order, |sql, params| {
//!     diesel::sql_query(sql).bind::<Text, _>(params[0]).bind::<Text, _>(params[1]).execute(connection)
//! })?
//! ```
//!
//! (sqlx from 0.9 wants `sqlx::query(sqlx::AssertSqlSafe(sql))`.)
//!
//! # The table
//!
//! Its columns are `subscription` (`topic:subscription`), `id` and `processed_at`; the key is the first two. Each subscription of a topic claims for itself, so that one
//! table serves a whole program. Ids are compared byte by byte in every database: `Order-7` and `order-7` are two. PostgreSQL cannot store a text with a NUL character:
//! there the claim of such an id fails, each time.
//!
//! **Keep ids longer than their message can come back**: longer than a publisher goes on trying, than a message may wait for its subscriber, and than the furthest
//! [`seek`](crate::Subscription::seek) back. Ids that are pruned too early are done twice. When in doubt keep them a week, and run [`prune_sql`](Inbox::prune_sql) once an hour.
//!
//! A seek to replay finds `Duplicate` everywhere, which is the point. To do the work again on purpose, delete the subscription's rows in the transaction that clears its results.
//!
//! # Two claims of one id at a time
//!
//! It happens when a lease expired while its subscriber was still at work. No database lets both be `First`:
//!
//! - **PostgreSQL**: the second waits until the first transaction ends: committed, it is `Duplicate`; rolled back, `First`. In `REPEATABLE READ` and `SERIALIZABLE` the second
//!   may fail with a serialization failure (`40001`) instead: roll back and drop the delivery.
//! - **MySQL, MariaDB** (InnoDB): the second waits likewise, in every isolation level; after `innodb_lock_wait_timeout`, or as the victim of a deadlock, it fails: roll back and drop the delivery.
//!   MariaDB with `innodb_snapshot_isolation` may fail with error 1020 as PostgreSQL does with `40001`.
//! - **SQLite**: there is one writer at a time. The second waits for as long as the connection's `busy_timeout` says and then fails with `SQLITE_BUSY`. As the transaction's first
//!   statement the claim takes the write lock at once; after a read it could fail without waiting. (`BEGIN IMMEDIATE` does the same.)
//!
//! An error is never a loss: nothing was committed, the delivery comes back.

use std::fmt;

use crate::handles::Delivery;
use crate::sql::{Dialect, quoted};

pub use crate::sql::TableNameError;

/// The SQL of an inbox, and the claim. See the [module](self) for how it is used. A value: clone it or share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Inbox {
    dialect: Dialect,
    create_sql: String,
    claim_sql: String,
    prune_sql: String,
}

/// Whether this is the first time that a message reaches this database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "on a duplicate the work must not be done again"]
pub enum Claim {
    /// Nobody has done this work: do it, in the same database transaction, and commit.
    First,
    /// The work was done and committed: leave it, and ack.
    Duplicate,
}

impl Claim {
    /// Whether the work is to be done.
    #[must_use = "on a duplicate the work must not be done again"]
    pub fn is_first(self) -> bool {
        self == Claim::First
    }
}

/// Why it is not known whether the work was done. Roll back and do not ack: the message comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError<Err> {
    /// The message was published without an [`idempotency_id`](crate::Message::idempotency_id). No statement was run. Trying again cannot help: reject the message, or have its publisher give one.
    ///
    /// The message id would not do: a broker in memory gives the same ones again after a restart, and a new message taken for an old one is a message lost.
    #[error("the message carries no idempotency id, so that nothing tells it from others")]
    NoIdempotencyId,
    /// The database, or its driver, refused the statement.
    #[error("the database refused the claim")]
    Database(#[source] Err),
    /// The closure returned a number of affected rows that the statement cannot have affected. Did it execute the statement that it was given, and return its count?
    #[error("the claim cannot have affected that number of rows")]
    UnexpectedRows,
}

const TABLE: &str = "eventflow_inbox";

impl Inbox {
    /// For SQLite, 3.24 or newer.
    pub fn sqlite() -> Self {
        Inbox::new(Dialect::Sqlite)
    }

    /// For PostgreSQL, 9.5 or newer.
    pub fn postgres() -> Self {
        Inbox::new(Dialect::Postgres)
    }

    /// For MySQL, 5.7 or newer, and MariaDB, 10.2 or newer, with InnoDB.
    pub fn mysql() -> Self {
        Inbox::new(Dialect::Mysql)
    }

    fn new(dialect: Dialect) -> Self {
        match quoted(dialect, TABLE) {
            Ok(table) => Inbox::over(dialect, &table),
            Err(_) => unreachable!("our own table has a name that is one"),
        }
    }

    /// Over this table instead of `eventflow_inbox`. A schema may stand before it: `bank.inbox`. The name is quoted in the statements: capitals count, and words of SQL are names like others.
    ///
    /// # Errors
    /// The name is not an identifier.
    ///
    /// ```
    /// use eventflow::inbox::Inbox;
    /// assert!(Inbox::postgres().table("bank.processed")?.claim_sql().contains(r#""bank"."processed""#));
    /// assert!(Inbox::postgres().table("processed; DROP TABLE account").is_err());
    /// # Ok::<(), eventflow::inbox::TableNameError>(())
    /// ```
    pub fn table(self, name: &str) -> Result<Self, TableNameError> {
        Ok(Inbox::over(self.dialect, &quoted(self.dialect, name)?))
    }

    fn over(dialect: Dialect, table: &str) -> Self {
        let [create_sql, claim_sql, prune_sql] = match dialect {
            Dialect::Sqlite => sqlite_sql(table),
            Dialect::Postgres => postgres_sql(table),
            Dialect::Mysql => mysql_sql(table),
        };
        Inbox { dialect, create_sql, claim_sql, prune_sql }
    }

    /// One statement that creates the table if it is not there. Run it at the start, or put it among your migrations.
    pub fn create_sql(&self) -> &str {
        &self.create_sql
    }

    /// The statement that [`claim`](Self::claim) hands to its closure. Its parameters are two texts: `topic:subscription`, and the idempotency id.
    pub fn claim_sql(&self) -> &str {
        &self.claim_sql
    }

    /// One statement that forgets the ids that are older than its parameter, a number of whole seconds (`i64`). See the [module](self#the-table) for how long to keep them.
    ///
    /// It reads the whole table in SQLite and PostgreSQL, the rows to go in MySQL.
    ///
    /// ```
    /// # use eventflow::inbox::Inbox;
    /// # let database = rusqlite::Connection::open_in_memory()?;
    /// # let inbox = Inbox::sqlite();
    /// # database.execute(inbox.create_sql(), [])?;
    /// const WEEK: i64 = 7 * 24 * 60 * 60;
    /// database.execute(inbox.prune_sql(), [WEEK])?;
    /// # Ok::<(), rusqlite::Error>(())
    /// ```
    pub fn prune_sql(&self) -> &str {
        &self.prune_sql
    }

    /// Records the delivery's idempotency id in the database transaction that `execute` runs in, and says whether it is the first time.
    ///
    /// `execute` is called once, with [`claim_sql`](Self::claim_sql) and its two parameters, and returns the number of rows affected, as any kind of integer. Nothing is decided before the transaction is committed:
    /// rolled back, the next claim is `First` again. Costs one statement; waits for whatever the database waits for.
    ///
    /// # Errors
    /// [`ClaimError::NoIdempotencyId`] before anything is executed, and what `execute` returned. Nothing is claimed then: roll back, and do not ack.
    pub fn claim<E, R, Err>(
        &self,
        delivery: &Delivery<E>,
        execute: impl FnOnce(&str, [&str; 2]) -> Result<R, Err>,
    ) -> Result<Claim, ClaimError<Err>>
    where
        E: Send + Sync + 'static,
        R: TryInto<u64>,
    {
        let key = Key::of(delivery).ok_or(ClaimError::NoIdempotencyId)?;
        let rows = execute(&self.claim_sql, key.params()).map_err(ClaimError::Database)?;
        self.judge(rows)
    }

    /// [`claim`](Self::claim) with a database that is awaited, on any runtime. The future does not hold the delivery, and is `Send` when that of `execute` is.
    ///
    /// Dropped before it is ready, it has claimed nothing that outlives the database transaction.
    ///
    /// ```
    /// # use eventflow::inbox::{Claim, Inbox};
    /// # use std::cell::RefCell;
    /// # let broker = eventflow::Broker::in_memory();
    /// # let payments = broker.topic::<u64>("payments").open()?;
    /// # let ledger = payments.subscription("ledger").open()?;
    /// # payments.publish(eventflow::Message::new(1_999).idempotency_id("payment-7"))?;
    /// # let inbox = Inbox::postgres();
    /// # struct Tx;
    /// # impl Tx { async fn execute(&mut self, _: &str, _: &[&(dyn Sync)]) -> Result<u64, std::io::Error> { Ok(1) } }
    /// # let mut tx = Tx;
    /// # futures::executor::block_on(async {
    /// let payment = ledger.recv_async().await?;
    /// let claim = inbox.claim_async(&payment, async |sql, params| tx.execute(sql, &[&params[0], &params[1]]).await).await?;
    /// # assert_eq!(claim, Claim::First);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    #[cfg(feature = "async")]
    pub fn claim_async<'a, E, R, Err, X>(
        &'a self,
        delivery: &Delivery<E>,
        execute: X,
    ) -> impl Future<Output = Result<Claim, ClaimError<Err>>> + use<'a, E, R, Err, X>
    where
        E: Send + Sync + 'static,
        R: TryInto<u64>,
        X: AsyncFnOnce(&str, [&str; 2]) -> Result<R, Err>,
    {
        let key = Key::of(delivery);
        async move {
            let key = key.ok_or(ClaimError::NoIdempotencyId)?;
            let rows = execute(&self.claim_sql, key.params()).await.map_err(ClaimError::Database)?;
            self.judge(rows)
        }
    }

    fn judge<Err>(&self, rows: impl TryInto<u64>) -> Result<Claim, ClaimError<Err>> {
        match (self.dialect, rows.try_into().ok()) {
            (_, Some(1)) => Ok(Claim::First),
            (Dialect::Sqlite | Dialect::Postgres, Some(0)) | (Dialect::Mysql, Some(2)) => {
                Ok(Claim::Duplicate)
            }
            _ => Err(ClaimError::UnexpectedRows),
        }
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("dialect", &self.dialect).field("claim_sql", &self.claim_sql).finish()
    }
}

/// What a claim is told apart by.
struct Key {
    subscription: String,
    id: String,
}

impl Key {
    fn of<E: Send + Sync + 'static>(delivery: &Delivery<E>) -> Option<Self> {
        let id = delivery.message().idempotency_id()?.to_string();
        // No name holds a colon, so that no two pairs of names make one text.
        let subscription = format!("{}:{}", delivery.topic_name(), delivery.subscription_name());
        Some(Key { subscription, id })
    }

    fn params(&self) -> [&str; 2] {
        [&self.subscription, &self.id]
    }
}

/// The time is the database's own, and written by the claim itself: its parameters are texts only, which every driver binds alike.
///
/// The conflict is named: `INSERT OR IGNORE` would also pass over a column that must not be null, and call it a duplicate. SQLite compares texts byte by byte unless told otherwise.
fn sqlite_sql(table: &str) -> [String; 3] {
    const NOW: &str = "CAST(strftime('%s', 'now') AS INTEGER)"; // seconds since 1970
    [
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (\
             subscription TEXT COLLATE BINARY NOT NULL, \
             id TEXT COLLATE BINARY NOT NULL, \
             processed_at INTEGER NOT NULL, \
             PRIMARY KEY (subscription, id)) WITHOUT ROWID"
        ),
        format!(
            "INSERT INTO {table} (subscription, id, processed_at) VALUES (?, ?, {NOW}) \
             ON CONFLICT (subscription, id) DO NOTHING"
        ),
        format!("DELETE FROM {table} WHERE processed_at < {NOW} - ?"),
    ]
}

/// The "C" collation compares bytes, and an index in it survives an update of the operating system's collations, which has broken unique indexes before.
///
/// The largest key is 511 + 1,024 bytes; an entry of a B-tree may have 2,704.
fn postgres_sql(table: &str) -> [String; 3] {
    [
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (\
             subscription text COLLATE \"C\" NOT NULL, \
             id text COLLATE \"C\" NOT NULL, \
             processed_at timestamptz NOT NULL, \
             PRIMARY KEY (subscription, id))"
        ),
        format!(
            "INSERT INTO {table} (subscription, id, processed_at) VALUES ($1, $2, now()) \
             ON CONFLICT (subscription, id) DO NOTHING"
        ),
        format!("DELETE FROM {table} WHERE processed_at < now() - $1::bigint * interval '1 second'"),
    ]
}

/// `VARBINARY` compares bytes; the usual collations of MySQL take `a` for `A` and `a ` for `a`. The largest key is 511 + 1,024 bytes; an index takes 3,072.
///
/// How to insert or find that it is there, without a third outcome, is not plain here:
///
/// - `INSERT IGNORE` turns every error that it can into a warning. A value too long for a column that somebody made shorter would be cut, two ids would be one, and the second a wrong
///   duplicate: a message lost.
/// - `ON DUPLICATE KEY UPDATE id = id` affects 1 row or, when nothing changes, 0; but to a client that connects with `CLIENT_FOUND_ROWS`, as sqlx and diesel do, it says 1 for both.
/// - `INSERT … SELECT … WHERE NOT EXISTS` looks before it inserts. Two at a time both find nothing, and one fails on the key, or both lock a gap and one is the victim of a deadlock.
///
/// So the update changes something, and the answer is 1 for a new row and 2 for one that was there, to every client. What it changes is worth knowing, too: how often the message came again.
///
/// A `DATETIME` in UTC neither depends on the session's time zone nor ends in 2038. The index lets a prune lock the old rows only.
fn mysql_sql(table: &str) -> [String; 3] {
    [
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (\
             subscription VARBINARY(511) NOT NULL, \
             id VARBINARY(1024) NOT NULL, \
             processed_at DATETIME NOT NULL, \
             duplicates BIGINT NOT NULL DEFAULT 0, \
             PRIMARY KEY (subscription, id), \
             INDEX (processed_at)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC"
        ),
        format!(
            "INSERT INTO {table} (subscription, id, processed_at) VALUES (?, ?, UTC_TIMESTAMP()) \
             ON DUPLICATE KEY UPDATE duplicates = duplicates + 1"
        ),
        format!("DELETE FROM {table} WHERE processed_at < UTC_TIMESTAMP() - INTERVAL ? SECOND"),
    ]
}
