//! The broker's topics, and the subscription of each service.

use std::time::Duration;

use eventflow::{
    Broker, Capacity, DeadLetter, DedupWindow, Message, Overflow, Receipt, Result, ShutdownReport,
    Subscription, SubscriptionStats, Topic,
};

use super::input::Row;
use super::totals::{Difference, Totals};

/// The most departures under way at once: what bounds the memory, however long the file is.
const CAPACITY: u64 = 20_000;
/// A publisher tries again at once or not at all, so that the window need not reach back far.
const DEDUP_TIME: Duration = Duration::from_secs(60);
const DEDUP_IDS_MAX: usize = 50_000;
pub(crate) const FLAKY_DEADLINE: Duration = Duration::from_millis(50);

/// The event: one departure.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) line: u64,
    pub(crate) carrier: String,
    pub(crate) origin: String,
    pub(crate) departed: bool,
    pub(crate) delay: Option<i32>,
}

/// Somebody should have a look at the flight of this line.
#[derive(Debug)]
pub(crate) struct Alert {
    pub(crate) line: u64,
}

pub(crate) struct Airport {
    pub(crate) broker: Broker,
    departures: Topic<Flight>,
    pub(crate) alerts: Topic<Alert>,
    pub(crate) punctuality: Subscription<Flight>,
    pub(crate) aircraft: Subscription<Flight>,
    pub(crate) anomalies: Subscription<Flight>,
    pub(crate) newark: Subscription<Flight>,
    pub(crate) flaky: Subscription<Flight>,
    pub(crate) cancellations_desk: Subscription<Flight>,
    pub(crate) alerts_desk: Subscription<Alert>,
}

impl Airport {
    /// Everything is there before the first flight leaves: a subscription gets what is published after it was
    /// made.
    pub(crate) fn open() -> Result<Self> {
        let broker = Broker::in_memory();
        let departures = broker
            .topic::<Flight>("departures")
            .capacity(Capacity::messages(CAPACITY).overflow(Overflow::Block))
            .dedup(DedupWindow::time(DEDUP_TIME).max_ids(DEDUP_IDS_MAX))
            .create()?;
        let alerts = broker.topic::<Alert>("alerts").create()?;
        let cancellations = broker.topic::<Flight>("cancellations").create()?;
        Ok(Airport {
            alerts_desk: alerts.subscription("desk").create()?,
            cancellations_desk: cancellations.subscription("desk").create()?,
            punctuality: departures
                .subscription("punctuality")
                .dead_letter(DeadLetter::to(&cancellations))
                .create()?,
            aircraft: departures.subscription("aircraft").ordered().create()?,
            anomalies: departures.subscription("anomalies").create()?,
            newark: departures.subscription("newark").filter(r#"attributes.origin = "EWR""#).create()?,
            flaky: departures.subscription("flaky").ack_deadline(FLAKY_DEADLINE).create()?,
            broker,
            departures,
            alerts,
        })
    }

    pub(crate) fn publish(&self, row: &Row<'_>) -> Result<Receipt> {
        let flight = Flight {
            line: row.line,
            carrier: row.carrier.to_owned(),
            origin: row.origin.to_owned(),
            departed: row.departed,
            delay: row.delay,
        };
        let mut message = Message::new(flight)
            .attribute("carrier", row.carrier)
            .attribute("origin", row.origin)
            .idempotency_id(format!("{}{}/{}/{}", row.carrier, row.number, row.origin, row.line));
        if let Some(key) = row.ordering_key() {
            message = message.ordering_key(key);
        }
        Ok(self.departures.publish(message)?)
    }

    /// Flights published so far.
    pub(crate) fn published(&self) -> u64 {
        self.departures.stats().published
    }

    /// Whether every subscription has settled all it will ever get. Only to be asked when nobody publishes
    /// departures any more.
    pub(crate) fn is_drained(&self) -> bool {
        // Upstream first: who publishes to the desks does so before it settles the flight.
        let services = [&self.punctuality, &self.aircraft, &self.anomalies, &self.newark, &self.flaky];
        services.iter().all(|service| service.stats().backlog == 0)
            && self.cancellations_desk.stats().backlog == 0
            && self.alerts_desk.stats().backlog == 0
    }

    /// Where the broker's own statistics contradict what the services found.
    pub(crate) fn contradictions(&self, found: &Totals, left: ShutdownReport) -> Vec<Difference> {
        let topic = self.departures.stats();
        let newark = self.newark.stats();
        [
            ("stats of departures: published", found.flights, topic.published),
            ("stats of departures: deduplicated", found.duplicates, topic.deduplicated),
            ("stats of departures: dropped", 0, topic.dropped),
            ("stats of punctuality: dead-lettered", found.cancelled, self.punctuality.stats().dead_lettered),
            ("stats of aircraft: acked", found.flights, self.aircraft.stats().acked),
            ("stats of newark: acked", found.newark, newark.acked),
            ("stats of newark: filtered", found.flights - found.newark, newark.filtered),
            ("stats of flaky: acked", found.flaky, self.flaky.stats().acked),
            ("stats of alerts: acked", found.alerts.len() as u64, self.alerts_desk.stats().acked),
            ("report of the shutdown: backlog", 0, left.backlog),
            ("report of the shutdown: outstanding", 0, left.outstanding),
        ]
        .into_iter()
        .filter(|(_, expected, found)| expected != found)
        .map(|(what, expected, found)| Difference { what: what.to_owned(), expected, found })
        .collect()
    }

    /// Statistics of every subscription there is.
    pub(crate) fn stats(&self) -> impl Iterator<Item = SubscriptionStats> {
        let flights = [
            &self.punctuality,
            &self.aircraft,
            &self.anomalies,
            &self.newark,
            &self.flaky,
            &self.cancellations_desk,
        ];
        flights.map(Subscription::stats).into_iter().chain([self.alerts_desk.stats()])
    }
}
