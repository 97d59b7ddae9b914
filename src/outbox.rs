//! Publish if and only if the database transaction commits: the outbox.
//!
//! A program that changes its database and publishes an event about it can die between the two. Whichever came first, the other is missing. So the event is written into a table,
//! **in the same database transaction as the change**, and a *relay* publishes what is in the table. The row's id is the message's idempotency id, so that a relay that dies between publish
//! and delete publishes the row again and the topic takes it once.
//!
//! As with the [`inbox`](crate::inbox), there is no database in this crate: an [`Outbox`] gives the SQL, for SQLite, PostgreSQL and MySQL or MariaDB, and your own code executes it.
//!
//! ```
//! use eventflow::Broker;
//! use eventflow::outbox::{Outbox, OutboxEvent, OutboxRow};
//! use rusqlite::{Connection, TransactionBehavior, params};
//!
//! let mut database = Connection::open_in_memory()?;
//! let outbox = Outbox::sqlite();
//! database.execute(outbox.create_sql(), [])?;
//! database.execute("CREATE TABLE customer (name TEXT)", [])?;
//!
//! // Writing: the change and the event, together or not at all.
//! let event = OutboxEvent::new("ada").attribute("region", "eu");
//! let tx = database.transaction()?;
//! tx.execute("INSERT INTO customer VALUES ('ada')", [])?;
//! outbox.add("customers", &event, |sql, row| {
//!     tx.execute(sql, params![row.id, row.topic, row.ordering_key, row.attributes, row.payload])
//! })?;
//! tx.commit()?;
//!
//! // Relaying: read, publish, settle.
//! let broker = Broker::in_memory();
//! let customers = broker.topic::<String>("customers").open()?;
//! let welcome = customers.subscription("welcome").open()?;
//!
//! let tx = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
//! let rows = tx.prepare(&outbox.read_sql(&customers, 100))?
//!     .query_map([], |row| {
//!         Ok(OutboxRow {
//!             number: row.get(0)?,
//!             id: row.get(1)?,
//!             ordering_key: row.get(2)?,
//!             attributes: row.get(3)?,
//!             payload: row.get(4)?,
//!         })
//!     })?
//!     .collect::<Result<Vec<_>, _>>()?;
//! let relayed = outbox.relay(&customers, rows, |row| String::from_utf8(row.payload.clone()));
//! for statement in relayed.settle_sql() {
//!     tx.execute(statement, [])?;
//! }
//! tx.commit()?;
//! assert!(relayed.refused.is_empty());
//!
//! let customer = welcome.recv()?;
//! assert_eq!(*customer, "ada");
//! assert_eq!(customer.message().attribute("region"), Some("eu"));
//! assert_eq!(customer.message().idempotency_id(), Some(event.id()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Call the relay after a commit for speed, and every second or so for what a crash has left. When it read as many rows as it asked for and was not
//! [`stopped`](Relayed::stopped), there may be more: call it again at once.
//!
//! # What it promises
//!
//! - **Only if committed.** A row that was rolled back was never there; the relay reads committed rows.
//! - **If committed.** Rows are deleted, not counted past: a row stays until its publish was acknowledged. One whose transaction commits late, after rows with larger numbers went, is read then.
//! - **Once.** A relay that dies after a publish and before its own commit publishes the row again, and the topic's [`DedupWindow`](crate::DedupWindow) takes it for what it is. So **the window must outlast the
//!   longest time between two tries**: with 10 minutes, as it is by default, the relay has to be back within 10 minutes. With the window off, or too short, such an event comes twice; an [`inbox`](crate::inbox)
//!   at the subscriber still does its work once. [`decode`](Outbox::relay) must make the same message of the same row, or the second try is an `IdempotencyConflict`.
//! - **As long as the broker.** An event that has left the outbox is the broker's. One in memory loses it with its process, acknowledged by nobody or not.
//!
//! # Order
//!
//! A relay publishes oldest first, by number. Transactions that run at the same time may commit in another order than their numbers say; where an order matters, the rows that they
//! change usually make one wait for the other, before it writes its event. Two relays of one topic at a time keep no order between them: run one where ordering keys matter.
//! A row that was refused does not hold up those behind it, also of its own key.
//!
//! # Several relays
//!
//! They may run at once, and none publishes what another is publishing: on PostgreSQL and MySQL the rows that one has read are locked until it commits and skipped by the others (`FOR UPDATE SKIP LOCKED`), so read and settle
//! in one transaction; on MySQL in `READ COMMITTED`, because at its default level the read would also lock the gap into which others insert. On SQLite an immediate transaction keeps the others out. Without that,
//! two relays may publish one row both, and the dedup window makes it one, as after a crash.
//!
//! # Other drivers
//!
//! ```text
//! // postgres: writing, and reading
//! tx.execute(sql, &[&row.id, &row.topic, &row.ordering_key, &row.attributes, &row.payload])
//! let rows = tx.query(&outbox.read_sql(&orders, 100), &[])?.iter()
//!     .map(|row| OutboxRow::from((row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))));
//!
//! // sqlx: writing, and reading
//! outbox.add_async("orders", &event, async |sql, row| {
//!     sqlx::query(sql).bind(row.id).bind(row.topic).bind(row.ordering_key).bind(row.attributes).bind(row.payload)
//!         .execute(&mut *tx).await.map(|done| done.rows_affected())
//! }).await?;
//! let rows: Vec<(i64, String, Option<String>, String, Vec<u8>)> =
//!     sqlx::query_as(&outbox.read_sql(&orders, 100)).fetch_all(&mut *tx).await?;
//! let relayed = outbox.relay_async(&orders, rows.into_iter().map(OutboxRow::from), decode).await;
//!
//! // diesel: writing, and reading
//! diesel::sql_query(sql)
//!     .bind::<Text, _>(row.id).bind::<Text, _>(row.topic).bind::<Nullable<Text>, _>(row.ordering_key)
//!     .bind::<Text, _>(row.attributes).bind::<Binary, _>(row.payload).execute(connection)
//! let rows = diesel::dsl::sql::<(BigInt, Text, Nullable<Text>, Text, Binary)>(&outbox.read_sql(&orders, 100))
//!     .load::<(i64, String, Option<String>, String, Vec<u8>)>(connection)?;
//! ```

mod attributes;
mod relay;

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use bytes::Bytes;

use crate::message::{Extras, IdempotencyId};
use crate::name::{Name, NameError};
use crate::options::{
    ATTRIBUTE_KEY_LEN_MAX, ATTRIBUTE_VALUE_LEN_MAX, ATTRIBUTES_MAX, IDEMPOTENCY_ID_LEN_MAX,
    ORDERING_KEY_LEN_MAX, PAYLOAD_BYTES_MAX,
};
use crate::sql::{Dialect, quoted};

pub use crate::sql::TableNameError;
pub use attributes::AttributesError;
pub use relay::{OutboxRow, Refusal, Refused, Relayed};

/// The SQL of an outbox, the writing of events and their relay. See the [module](self) for how it is used. A value: clone it or share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Outbox {
    dialect: Dialect,
    /// Quoted.
    table: String,
    create_sql: String,
    insert_sql: String,
}

/// An event to be written into an outbox: its bytes, and what goes with them. It has its id from the start.
///
/// Make it before the loop that tries a transaction again: whatever became of the first try, the second writes the same id, and the event is published once.
///
/// ```
/// use eventflow::outbox::OutboxEvent;
/// let event = OutboxEvent::new("order 7").ordering_key("customer 12").attribute("region", "eu");
/// assert_ne!(event.id(), OutboxEvent::new("order 7").id()); // each has a UUID of its own,
/// let event = event.with_id("order-7-placed");              // unless you know a better one
/// assert_eq!(event.id().to_string(), "order-7-placed");
/// ```
#[derive(Clone)]
pub struct OutboxEvent {
    payload: Bytes,
    id: IdempotencyId,
    extras: Extras,
}

impl OutboxEvent {
    /// An event of these bytes, under a new random UUID. At most 10,000,000 bytes.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        OutboxEvent { payload: payload.into(), id: new_id(), extras: Extras::default() }
    }

    /// Under this id instead: the topic publishes it once within its dedup window, whoever writes it. At most 1,024 bytes.
    pub fn with_id(mut self, id: impl Into<IdempotencyId>) -> Self {
        self.id = id.into();
        self
    }

    /// Adds an attribute, or replaces the one of that key. The limits are those of [`Message::attribute`](crate::Message::attribute).
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.extras.set_attribute(key.into(), value.into());
        self
    }

    /// The message's ordering key. At most 1,024 bytes.
    pub fn ordering_key(mut self, key: impl Into<String>) -> Self {
        self.extras.ordering_key = Some(key.into());
        self
    }

    /// The id that the message will carry as its idempotency id.
    pub fn id(&self) -> &IdempotencyId {
        &self.id
    }

    fn is_too_large(&self) -> bool {
        let Extras { attributes, ordering_key, .. } = &self.extras;
        self.payload.len() as u64 > PAYLOAD_BYTES_MAX
            || self.id.len() > IDEMPOTENCY_ID_LEN_MAX
            || ordering_key.as_ref().is_some_and(|key| key.len() > ORDERING_KEY_LEN_MAX)
            || attributes.len() > ATTRIBUTES_MAX
            || attributes.iter().any(|(key, value)| {
                key.len() > ATTRIBUTE_KEY_LEN_MAX || value.len() > ATTRIBUTE_VALUE_LEN_MAX
            })
    }
}

impl fmt::Debug for OutboxEvent {
    /// Without the payload: it never reaches a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxEvent")
            .field("id", &self.id)
            .field("payload_len", &self.payload.len())
            .field("attributes", &self.extras.attributes.len())
            .field("ordering_key", &self.extras.ordering_key.is_some())
            .finish()
    }
}

/// A random UUID. An id must only be new, not secret: the standard library seeds a hasher for each thread from the system's randomness, and that is enough without a dependency.
/// Process and time are hashed in because a process that was forked has its parent's seeds.
fn new_id() -> IdempotencyId {
    let random = RandomState::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let [high, low] = [0_u8, 1].map(|half| random.hash_one((half, std::process::id(), now)));
    let bytes = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().into()
}

/// The values of a new row, in the order of the placeholders: id, topic, ordering key, attributes, payload.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewRow<'a> {
    /// The id of the event: a text.
    pub id: &'a str,
    /// The topic's name: a text.
    pub topic: &'a str,
    /// The ordering key: a text or null.
    pub ordering_key: Option<&'a str>,
    /// The attributes as a JSON object of strings: a text.
    pub attributes: &'a str,
    /// The event: bytes.
    pub payload: &'a [u8],
}

impl fmt::Debug for NewRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, topic) = (self.id, self.topic);
        f.debug_struct("NewRow").field("id", &id).field("topic", &topic).finish_non_exhaustive()
    }
}

/// Why an event was not written. Roll back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError<Err> {
    /// No topic can have this name. No statement was run.
    #[error("it is no name of a topic: {0}")]
    InvalidTopic(NameError),
    /// The event is over a limit of a message, so that no topic would take it. No statement was run.
    #[error("the event is over a limit")]
    TooLarge,
    /// The database, or its driver, refused the statement.
    #[error("the database refused the event")]
    Database(#[source] Err),
    /// The closure returned a number of affected rows other than 1. Did it execute the statement that it was given, and return its count?
    #[error("adding an event affects one row")]
    UnexpectedRows,
}

const TABLE: &str = "eventflow_outbox";

impl Outbox {
    /// For SQLite, 3.24 or newer.
    pub fn sqlite() -> Self {
        Outbox::new(Dialect::Sqlite)
    }

    /// For PostgreSQL, 10 or newer.
    pub fn postgres() -> Self {
        Outbox::new(Dialect::Postgres)
    }

    /// For MySQL, 8.0 or newer, and MariaDB, 10.6 or newer, with InnoDB.
    pub fn mysql() -> Self {
        Outbox::new(Dialect::Mysql)
    }

    fn new(dialect: Dialect) -> Self {
        match quoted(dialect, TABLE) {
            Ok(table) => Outbox::over(dialect, table),
            Err(_) => unreachable!("our own table has a name that is one"),
        }
    }

    /// Over this table instead of `eventflow_outbox`. A schema may stand before it: `bank.outbox`. The name is quoted in the statements.
    ///
    /// # Errors
    /// The name is not an identifier.
    pub fn table(self, name: &str) -> Result<Self, TableNameError> {
        Ok(Outbox::over(self.dialect, quoted(self.dialect, name)?))
    }

    fn over(dialect: Dialect, table: String) -> Self {
        let create_sql = create_sql(dialect, &table);
        let (values, now) = match dialect {
            Dialect::Sqlite => ("?, ?, ?, ?, ?", "CAST(strftime('%s', 'now') AS INTEGER)"),
            Dialect::Postgres => ("$1, $2, $3, $4, $5", "now()"),
            Dialect::Mysql => ("?, ?, ?, ?, ?", "UTC_TIMESTAMP()"),
        };
        let insert_sql = format!(
            "INSERT INTO {table} (id, topic, ordering_key, attributes, payload, created_at) VALUES ({values}, {now})"
        );
        Outbox { dialect, table, create_sql, insert_sql }
    }

    /// One statement that creates the table if it is not there. Run it at the start, or put it among your migrations.
    ///
    /// The columns: `number` (never given twice), `id`, `topic`, `ordering_key`, `attributes`, `payload`, `created_at`, and `refused`, null until a [relay](Self::relay) could not publish the row.
    pub fn create_sql(&self) -> &str {
        &self.create_sql
    }

    /// The statement that [`add`](Self::add) hands to its closure, with the values of a [`NewRow`] as parameters.
    pub fn insert_sql(&self) -> &str {
        &self.insert_sql
    }

    /// Writes an event for the topic of this name, in the database transaction that `execute` runs in.
    ///
    /// `execute` is called once, with [`insert_sql`](Self::insert_sql) and the row to bind, and returns the number of rows affected, as any kind of integer. Nothing is published here. The topic need not exist yet; its events wait for a relay.
    ///
    /// # Errors
    /// The name or the event cannot be published ever, and nothing was executed; or what `execute` returned.
    pub fn add<R, Err>(
        &self,
        topic: &str,
        event: &OutboxEvent,
        execute: impl FnOnce(&str, NewRow<'_>) -> Result<R, Err>,
    ) -> Result<(), AddError<Err>>
    where
        R: TryInto<u64>,
    {
        let text = RowText::of(topic, event)?;
        let rows = execute(&self.insert_sql, text.row(topic, event)).map_err(AddError::Database)?;
        one_row(rows)
    }

    /// [`add`](Self::add) with a database that is awaited, on any runtime. The future is `Send` when that of `execute` is.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    #[cfg(feature = "async")]
    pub async fn add_async<R, Err>(
        &self,
        topic: &str,
        event: &OutboxEvent,
        execute: impl AsyncFnOnce(&str, NewRow<'_>) -> Result<R, Err>,
    ) -> Result<(), AddError<Err>>
    where
        R: TryInto<u64>,
    {
        let text = RowText::of(topic, event)?;
        let rows = execute(&self.insert_sql, text.row(topic, event)).await.map_err(AddError::Database)?;
        one_row(rows)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("dialect", &self.dialect).field("table", &self.table).finish()
    }
}

/// What of a row has to be made as text, after the checks.
struct RowText {
    id: String,
    attributes: String,
}

impl RowText {
    fn of<Err>(topic: &str, event: &OutboxEvent) -> Result<Self, AddError<Err>> {
        Name::parse(topic).map_err(AddError::InvalidTopic)?;
        if event.is_too_large() {
            return Err(AddError::TooLarge);
        }
        Ok(RowText { id: event.id.to_string(), attributes: attributes::to_json(&event.extras.attributes) })
    }

    fn row<'a>(&'a self, topic: &'a str, event: &'a OutboxEvent) -> NewRow<'a> {
        NewRow {
            id: &self.id,
            topic,
            ordering_key: event.extras.ordering_key.as_deref(),
            attributes: &self.attributes,
            payload: &event.payload,
        }
    }
}

fn one_row<Err>(rows: impl TryInto<u64>) -> Result<(), AddError<Err>> {
    match rows.try_into() {
        Ok(1) => Ok(()),
        _ => Err(AddError::UnexpectedRows),
    }
}

/// A number must never be given twice, not even after its row is gone: a relay deletes by number, and would delete the new row for the old. Hence `AUTOINCREMENT` in SQLite, which is
/// not the default there. The topic's name is compared byte by byte; nothing else is compared.
fn create_sql(dialect: Dialect, table: &str) -> String {
    match dialect {
        // The pair is unique anyway: saying so makes an index, within the one statement.
        Dialect::Sqlite => format!(
            "CREATE TABLE IF NOT EXISTS {table} (\
             number INTEGER PRIMARY KEY AUTOINCREMENT, \
             id TEXT NOT NULL, \
             topic TEXT COLLATE BINARY NOT NULL, \
             ordering_key TEXT, \
             attributes TEXT NOT NULL, \
             payload BLOB NOT NULL, \
             created_at INTEGER NOT NULL, \
             refused TEXT, \
             UNIQUE (topic, number))"
        ),
        Dialect::Postgres => format!(
            "CREATE TABLE IF NOT EXISTS {table} (\
             number bigint GENERATED ALWAYS AS IDENTITY, \
             id text NOT NULL, \
             topic text COLLATE \"C\" NOT NULL, \
             ordering_key text, \
             attributes text NOT NULL, \
             payload bytea NOT NULL, \
             created_at timestamptz NOT NULL, \
             refused text, \
             PRIMARY KEY (topic, number))"
        ),
        Dialect::Mysql => format!(
            "CREATE TABLE IF NOT EXISTS {table} (\
             number BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, \
             id VARCHAR(1024) CHARACTER SET utf8mb4 NOT NULL, \
             topic VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
             ordering_key VARCHAR(1024) CHARACTER SET utf8mb4, \
             attributes MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL, \
             payload LONGBLOB NOT NULL, \
             created_at DATETIME NOT NULL, \
             refused VARCHAR(32) CHARACTER SET ascii, \
             INDEX (topic, number)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC"
        ),
    }
}
