//! The broker's topics, and the subscription of each service.

use std::path::Path;
use std::time::Duration;

use eventflow::{
    Broker, Capacity, DeadLetter, DedupWindow, Durability, Message, Overflow, Receipt, Result, Retention,
    Seek, ShutdownReport, Subscription, SubscriptionStats, Topic,
};

use super::bytes::{AlertBytes, FlightBytes};
use super::input::Row;
use super::totals::{Difference, Totals};

/// The most departures under way at once: what bounds the memory, however long the file is.
const CAPACITY: u64 = 20_000;
/// A publisher tries again at once or not at all, so that the window need not reach back far.
const DEDUP_TIME: Duration = Duration::from_secs(60);
const DEDUP_IDS_MAX: usize = 50_000;
/// On disk, what a power cut may take with it. The next run publishes it again.
const SYNC_EVERY: Duration = Duration::from_secs(1);
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
    /// made. In a directory, it is there as the last run left it.
    pub(crate) fn open(dir: Option<&Path>) -> Result<Self> {
        let broker = match dir {
            None => Broker::in_memory(),
            Some(dir) => Broker::builder().dir(dir).durability(Durability::Interval(SYNC_EVERY)).build()?,
        };
        let departures = broker
            .topic::<Flight>("departures")
            .codec(FlightBytes)
            .capacity(Capacity::messages(CAPACITY).overflow(Overflow::Block));
        let alerts = broker.topic::<Alert>("alerts").codec(AlertBytes);
        let (departures, alerts) = match dir {
            None => (departures.dedup(DedupWindow::time(DEDUP_TIME).max_ids(DEDUP_IDS_MAX)), alerts),
            // Whoever was killed begins anew: the publishers with the file, `anomalies` with the first flight.
            Some(_) => {
                let forever = DedupWindow::time(Duration::MAX).max_ids(usize::MAX);
                (departures.dedup(forever).retention(Retention::forever()), alerts.dedup(forever))
            }
        };
        let (departures, alerts) = (departures.open()?, alerts.open()?);
        let cancellations = broker.topic::<Flight>("cancellations").codec(FlightBytes).open()?;
        let airport = Airport {
            alerts_desk: alerts.subscription("desk").open()?,
            cancellations_desk: cancellations.subscription("desk").open()?,
            punctuality: departures
                .subscription("punctuality")
                .dead_letter(DeadLetter::to(&cancellations))
                .open()?,
            aircraft: departures.subscription("aircraft").ordered().open()?,
            anomalies: departures.subscription("anomalies").open()?,
            newark: departures.subscription("newark").filter(r#"attributes.origin = "EWR""#).open()?,
            flaky: departures.subscription("flaky").ack_deadline(FLAKY_DEADLINE).open()?,
            broker,
            departures,
            alerts,
        };
        if dir.is_some() {
            // What it knew of the flights before is gone with its process.
            airport.anomalies.seek(Seek::Earliest)?;
        }
        Ok(airport)
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

    /// Where the broker's own statistics contradict what the services found, in the one run that there was.
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
