//! The relay: rows in, publishes, and what is to become of the rows.

use std::fmt;

use super::Outbox;
use super::attributes::{AttributesError, from_json};
use crate::contain::contained;
use crate::error::PublishErrorKind;
use crate::message::Message;
use crate::sql::Dialect;
use crate::topic::Topic;

/// A row as it is read back: the columns of [`Outbox::read_sql`], in their order. A tuple of the five converts into it.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// Column 0, a 64-bit integer: the row's place in the table, never given twice.
    pub number: i64,
    /// Column 1, a text: the id under which the row is published.
    pub id: String,
    /// Column 2, a text or null: the ordering key.
    pub ordering_key: Option<String>,
    /// Column 3, a text: the attributes as a JSON object of strings.
    pub attributes: String,
    /// Column 4, bytes: the event.
    pub payload: Vec<u8>,
}

impl From<(i64, String, Option<String>, String, Vec<u8>)> for OutboxRow {
    fn from(columns: (i64, String, Option<String>, String, Vec<u8>)) -> Self {
        let (number, id, ordering_key, attributes, payload) = columns;
        OutboxRow { number, id, ordering_key, attributes, payload }
    }
}

impl fmt::Debug for OutboxRow {
    /// Without the payload: it never reaches a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxRow")
            .field("number", &self.number)
            .field("id", &self.id)
            .field("payload_len", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// What a relay did with the rows that it was given. Run [`settle_sql`](Self::settle_sql) and commit, or the rows are published again.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "the rows stay, and are published again, until its settle_sql has run"]
pub struct Relayed<D> {
    /// How many rows are published: by this relay, or by an earlier one that died before it could settle them.
    pub published: u64,
    /// How many of those an earlier one had published.
    pub deduplicated: u64,
    /// The rows that cannot be published, and why. They stay in the table, marked, and are not read again.
    pub refused: Vec<Refused<D>>,
    /// Why the relay stopped before the last row: the topic is full, was deleted, or its broker is shut down. What is left stays in the table as it was; relay again.
    pub stopped: Option<PublishErrorKind>,
    settle_sql: Vec<String>,
}

impl<D> Relayed<D> {
    /// The statements, without parameters, that delete what was published and mark what was refused. Run them in the transaction that the rows were read in, and commit.
    ///
    /// None when nothing is to be done. A mark is a word in the column `refused`: `decode`, `attributes`, `too_large`, `conflict`, `encode` or `panicked`.
    /// Once the cause is removed, set the column to null, and the row is read again.
    pub fn settle_sql(&self) -> &[String] {
        &self.settle_sql
    }
}

/// A row that cannot be published.
#[derive(Debug)]
#[non_exhaustive]
pub struct Refused<D> {
    /// The row, which is still in the table.
    pub row: OutboxRow,
    /// Why.
    pub reason: Refusal<D>,
}

/// Why a row cannot be published, and will not be if it is tried again as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal<D> {
    /// The closure could not make a message of the row.
    #[error("the row could not be decoded")]
    Decode(#[source] D),
    /// The closure panicked on the row.
    #[error("decoding panicked on the row")]
    DecodePanicked,
    /// The row's attributes are not what [`Outbox::add`] writes.
    #[error(transparent)]
    Attributes(AttributesError),
    /// The topic refused the message: it is over a limit, conflicts with another one of its id, or the topic's closures do not take it.
    #[error("the topic refused the row: {0}")]
    Publish(PublishErrorKind),
}

impl<D> Refusal<D> {
    /// As it stands in the column `refused`.
    fn mark(&self) -> &'static str {
        match self {
            Refusal::Decode(_) => "decode",
            Refusal::Attributes(_) => "attributes",
            Refusal::Publish(PublishErrorKind::TooLarge) => "too_large",
            Refusal::Publish(PublishErrorKind::IdempotencyConflict) => "conflict",
            Refusal::Publish(PublishErrorKind::Encode) => "encode",
            Refusal::DecodePanicked | Refusal::Publish(_) => "panicked",
        }
    }
}

/// How many numbers stand in one statement: databases bound its length.
const NUMBERS_MAX: usize = 1_000;

impl Outbox {
    /// The query for the oldest rows of this topic, at most `limit`: its columns are those of [`OutboxRow`]. It has no parameters.
    ///
    /// A hundred to a thousand are a good batch: the payloads of a batch are in memory at once, and each costs the database one commit.
    pub fn read_sql<E: Send + Sync + 'static>(&self, topic: &Topic<E>, limit: u32) -> String {
        // SQLite knows no locks of rows: there an immediate transaction does the same.
        let lock = match self.dialect {
            Dialect::Sqlite => "",
            Dialect::Postgres | Dialect::Mysql => " FOR UPDATE SKIP LOCKED",
        };
        let (table, topic) = (&self.table, literal(topic));
        format!(
            "SELECT number, id, ordering_key, attributes, payload FROM {table} \
             WHERE topic = {topic} AND refused IS NULL ORDER BY number LIMIT {limit}{lock}"
        )
    }

    /// Publishes the rows, in their order, each under its id; with the ordering key and the attributes that it has. What `decode` returns is an event or a [`Message`], to which these are added.
    ///
    /// Touches no database: execute [`Relayed::settle_sql`] afterwards and commit. Never waits for space: a full topic [stops](Relayed::stopped) it, so that no database transaction stays open for a
    /// slow subscriber. A row that cannot be published is left out and [told](Relayed::refused); those behind it go on. A panic in `decode` is such a refusal. One publish for each row.
    ///
    /// `decode` must make the same message of the same row, each time.
    pub fn relay<E, M, D>(
        &self,
        topic: &Topic<E>,
        rows: impl IntoIterator<Item = OutboxRow>,
        mut decode: impl FnMut(&OutboxRow) -> Result<M, D>,
    ) -> Relayed<D>
    where
        E: Send + Sync + 'static,
        M: Into<Message<E>>,
    {
        let mut relayed = Relayed {
            published: 0,
            deduplicated: 0,
            refused: Vec::new(),
            stopped: None,
            settle_sql: Vec::new(),
        };
        let mut published = Vec::new();
        for row in rows {
            match publish(topic, &row, &mut decode) {
                Ok(deduplicated) => {
                    published.push(row.number);
                    relayed.deduplicated += u64::from(deduplicated);
                }
                Err(NotPublished::Refused(reason)) => relayed.refused.push(Refused { row, reason }),
                Err(NotPublished::Stopped(kind)) => {
                    relayed.stopped = Some(kind);
                    break;
                }
            }
        }
        relayed.published = published.len() as u64;
        relayed.settle_sql = self.settle_sql(&literal(topic), &published, &relayed.refused);
        relayed
    }

    /// [`relay`](Self::relay), on any runtime.
    #[cfg(feature = "async")]
    pub async fn relay_async<E, M, D>(
        &self,
        topic: &Topic<E>,
        rows: impl IntoIterator<Item = OutboxRow>,
        decode: impl FnMut(&OutboxRow) -> Result<M, D>,
    ) -> Relayed<D>
    where
        E: Send + Sync + 'static,
        M: Into<Message<E>>,
    {
        self.relay(topic, rows, decode)
    }

    fn settle_sql<D>(&self, topic: &str, published: &[i64], refused: &[Refused<D>]) -> Vec<String> {
        let table = &self.table;
        let which = |numbers: &[i64]| {
            let numbers: Vec<_> = numbers.iter().map(i64::to_string).collect();
            format!("WHERE topic = {topic} AND number IN ({})", numbers.join(", "))
        };
        let deletes =
            published.chunks(NUMBERS_MAX).map(|numbers| format!("DELETE FROM {table} {}", which(numbers)));
        let mut refused: Vec<(&str, i64)> =
            refused.iter().map(|refused| (refused.reason.mark(), refused.row.number)).collect();
        refused.sort_unstable();
        let marks = refused.chunk_by(|one, next| one.0 == next.0).flat_map(|alike| alike.chunks(NUMBERS_MAX));
        let updates = marks.map(|alike| {
            let numbers: Vec<_> = alike.iter().map(|(_, number)| *number).collect();
            format!("UPDATE {table} SET refused = '{}' {}", alike[0].0, which(&numbers))
        });
        deletes.chain(updates).collect()
    }
}

enum NotPublished<D> {
    Refused(Refusal<D>),
    Stopped(PublishErrorKind),
}

/// Whether it had been published before.
fn publish<E, M, D>(
    topic: &Topic<E>,
    row: &OutboxRow,
    decode: &mut impl FnMut(&OutboxRow) -> Result<M, D>,
) -> Result<bool, NotPublished<D>>
where
    E: Send + Sync + 'static,
    M: Into<Message<E>>,
{
    let attributes =
        from_json(&row.attributes).map_err(|error| NotPublished::Refused(Refusal::Attributes(error)))?;
    let decoded = contained(|| decode(row).map(Into::into));
    let mut message: Message<E> = match decoded {
        Some(Ok(message)) => message,
        Some(Err(error)) => return Err(NotPublished::Refused(Refusal::Decode(error))),
        None => return Err(NotPublished::Refused(Refusal::DecodePanicked)),
    };
    message = message.idempotency_id(row.id.as_str());
    if let Some(key) = &row.ordering_key {
        message = message.ordering_key(key);
    }
    for (key, value) in attributes {
        message = message.attribute(key, value);
    }
    match topic.try_publish(message) {
        Ok(receipt) => Ok(receipt.deduplicated),
        Err(error) => Err(match error.kind() {
            kind @ (PublishErrorKind::TooLarge
            | PublishErrorKind::IdempotencyConflict
            | PublishErrorKind::Encode
            | PublishErrorKind::Panicked) => NotPublished::Refused(Refusal::Publish(kind)),
            // The topic's state and not the row's fault: later ones would fare no better, or overtake it.
            kind => NotPublished::Stopped(kind),
        }),
    }
}

/// The topic's name as a literal. A name holds no quote and no backslash.
fn literal<E: Send + Sync + 'static>(topic: &Topic<E>) -> String {
    format!("'{}'", topic.name())
}
