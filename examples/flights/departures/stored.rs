//! The services again, on a broker that keeps everything in a directory: they may be killed at any time, and the
//! next run goes on where they were.
//!
//! What a service found is a message too. It is published in the transaction that acks the flight, so that
//! there is one for each flight, however often the process dies in between; the totals are what these add up
//! to. A service whose own memory matters reads again from the first flight, and what it publishes has an id.

use std::collections::{HashMap, HashSet};
use std::thread::{self, Scope, ScopedJoinHandle};

use eventflow::{
    Broker, CommitReason, Delivery, Message, MessageRef, Result, Retention, Seek, Subscription, Topic,
    Transaction,
};

use super::airport::{Airport, Alert, Flight};
use super::bytes::DoneBytes;
use super::services::{
    AIRCRAFT_WORKERS, BATCH, FLAKY_HANG, FLAKY_WORKERS, Fate, NO_DEPARTURE, PUNCTUALITY_WORKERS, fate,
};
use super::totals::{Running, Totals};

/// What a service found out about the flight of a line.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) service: String,
    pub(crate) line: u64,
    /// The carrier, the ordering key or the reason: what the service counts by.
    pub(crate) what: String,
    pub(crate) delay: Option<i32>,
}

impl Done {
    fn new(service: &str, line: u64, what: &str) -> Self {
        Done { service: service.to_owned(), line, what: what.to_owned(), delay: None }
    }
}

/// Where the services write down what they found.
pub(crate) struct Records {
    topic: Topic<Done>,
    reader: Subscription<Done>,
}

impl Records {
    pub(crate) fn open(broker: &Broker) -> Result<Self> {
        let topic = broker.topic("done").codec(DoneBytes).retention(Retention::forever()).open()?;
        Ok(Records { reader: topic.subscription("totals").open()?, topic })
    }

    /// All that was found by now, added up.
    pub(crate) fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        let (mut last_departures, mut worked) = (HashMap::new(), HashSet::new());
        self.reader.seek(Seek::Earliest)?;
        while let Ok(batch) = self.reader.try_recv_batch(BATCH) {
            for done in batch.iter().map(MessageRef::event) {
                match done.service.as_str() {
                    "punctuality" => {
                        totals.carriers.entry(done.what.clone()).or_default().departs(done.delay);
                    }
                    "cancellations" => {
                        totals.cancelled += 1;
                        totals.wrong_reasons += u64::from(done.what != NO_DEPARTURE);
                    }
                    "aircraft" => {
                        totals.keyed += 1;
                        let last = last_departures.insert(done.what.clone(), done.line);
                        totals.overtaken += u64::from(last.is_some_and(|last| last >= done.line));
                    }
                    "newark" => totals.newark += 1,
                    "alerts" => drop(totals.alerts.insert(done.line)),
                    _flaky => {
                        totals.flaky += 1;
                        totals.acked_twice += u64::from(!worked.insert(done.line));
                    }
                }
            }
            batch.ack()?;
        }
        totals.keys = last_departures.len() as u64;
        Ok(totals)
    }
}

/// Starts every worker of every service.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    airport: &'scope Airport,
    records: &'scope Records,
) -> Vec<ScopedJoinHandle<'scope, Result<()>>> {
    let broker = &airport.broker;
    let mut workers = Vec::new();
    for _ in 0..PUNCTUALITY_WORKERS {
        workers.push(scope.spawn(|| punctuality(airport, records)));
    }
    for _ in 0..AIRCRAFT_WORKERS {
        let key =
            |flight: MessageRef<'_, Flight>| Some(Done::new("aircraft", flight.line, flight.ordering_key()?));
        workers.push(scope.spawn(move || record(broker, &airport.aircraft, records, key)));
    }
    for _ in 0..FLAKY_WORKERS {
        workers.push(scope.spawn(|| flaky(airport, records)));
    }
    workers.push(scope.spawn(|| anomalies(airport)));
    let alert = |alert: MessageRef<'_, Alert>| Some(Done::new("alerts", alert.line, ""));
    workers.push(scope.spawn(move || record(broker, &airport.alerts_desk, records, alert)));
    let newark = |flight: MessageRef<'_, Flight>| Some(Done::new("newark", flight.line, ""));
    workers.push(scope.spawn(move || record(broker, &airport.newark, records, newark)));
    let letter = |letter: MessageRef<'_, Flight>| {
        let reason = letter.attribute("eventflow.dead_letter.reason").unwrap_or_default();
        Some(Done::new("cancellations", letter.line, reason))
    };
    workers.push(scope.spawn(move || record(broker, &airport.cancellations_desk, records, letter)));
    workers
}

/// A service that finds something, or nothing, in each message alone.
fn record<E: Send + Sync + 'static>(
    broker: &Broker,
    messages: &Subscription<E>,
    records: &Records,
    find: impl Fn(MessageRef<'_, E>) -> Option<Done>,
) -> Result<()> {
    while let Ok(batch) = messages.recv_batch(BATCH) {
        let mut tx = broker.transaction();
        batch.iter().filter_map(&find).for_each(|done| tx.publish(&records.topic, done));
        tx.ack_all(batch);
        commit(tx)?;
    }
    Ok(())
}

/// One of four that share the flights.
fn punctuality(airport: &Airport, records: &Records) -> Result<()> {
    while let Ok(batch) = airport.punctuality.recv_batch(BATCH) {
        let mut tx = airport.broker.transaction();
        for flight in batch {
            if flight.departed {
                let done = Done::new("punctuality", flight.line, &flight.carrier);
                tx.publish(&records.topic, Done { delay: flight.delay, ..done });
                tx.ack(flight);
            } else {
                flight.reject(NO_DEPARTURE)?;
            }
        }
        commit(tx)?;
    }
    Ok(())
}

/// Reads every flight in each run, and so in the same order; an alert that an earlier run has published is
/// recognised by its id.
fn anomalies(airport: &Airport) -> Result<()> {
    let mut origins: HashMap<String, Running> = HashMap::new();
    while let Ok(batch) = airport.anomalies.recv_batch(BATCH) {
        for flight in batch.iter() {
            let Some(minutes) = flight.delay else { continue };
            let running = origins.entry(flight.origin.clone()).or_default();
            if running.takes_as_anomaly(minutes) {
                let alert = Message::new(Alert { line: flight.line });
                airport.alerts.publish(alert.idempotency_id(flight.line.to_string()))?;
            }
        }
        batch.ack()?;
    }
    Ok(())
}

/// Fails, hangs, is killed, and still ends with every flight exactly once.
fn flaky(airport: &Airport, records: &Records) -> Result<()> {
    for flight in airport.flaky.iter() {
        match fate(flight.line, flight.attempt()) {
            Fate::Fails => drop(flight),
            fate => {
                if fate == Fate::Hangs {
                    thread::sleep(FLAKY_HANG);
                }
                work(airport, records, flight)?;
            }
        }
    }
    Ok(())
}

fn work(airport: &Airport, records: &Records, flight: Delivery<Flight>) -> Result<()> {
    let mut tx = airport.broker.transaction();
    tx.publish(&records.topic, Done::new("flaky", flight.line, ""));
    tx.ack(flight);
    commit(tx)
}

/// What came too late to be acked is not done: it is given to somebody again.
fn commit(tx: Transaction) -> Result<()> {
    match tx.commit() {
        Ok(_receipts) => Ok(()),
        Err(error) if matches!(error.reason, CommitReason::LeaseExpired { .. } | CommitReason::Closed) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
