//! The services: each has a subscription of its own and reads it until the broker shuts down.
//!
//! A service keeps its own count and adds it to the totals when its last flight is settled.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use eventflow::{Result, SettleError, Subscription};
use parking_lot::Mutex;

use super::airport::{Airport, Alert, FLAKY_DEADLINE, Flight};
use super::totals::{Carrier, Running, Totals};

/// How many flights a service takes at once where nothing speaks for one by one.
pub(crate) const BATCH: usize = 256;

pub(crate) const PUNCTUALITY_WORKERS: usize = 4;
pub(crate) const AIRCRAFT_WORKERS: usize = 2;
/// Many, because some of them always hang.
pub(crate) const FLAKY_WORKERS: usize = 8;

/// How long `flaky` hangs when it hangs: past its ack deadline.
pub(crate) const FLAKY_HANG: Duration = FLAKY_DEADLINE.saturating_add(Duration::from_millis(25));
/// Why a flight is rejected.
pub(crate) const NO_DEPARTURE: &str = "no departure time";

/// What the workers of one service share.
#[derive(Default)]
pub(crate) struct Books {
    pub(crate) totals: Mutex<Totals>,
    /// The line of the last departure of each ordering key.
    last_departures: Mutex<HashMap<String, u64>>,
    flaky: Mutex<FlakyBook>,
}

/// By this book a flight that comes again after its work is done is not worked on again.
#[derive(Default)]
struct FlakyBook {
    seen: HashSet<u64>,
    acked: HashSet<u64>,
}

/// Starts every worker of every service.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    airport: &'scope Airport,
    books: &'scope Books,
) -> Vec<ScopedJoinHandle<'scope, Result<()>>> {
    let mut workers = Vec::new();
    for _ in 0..PUNCTUALITY_WORKERS {
        workers.push(scope.spawn(|| punctuality(&airport.punctuality, books)));
    }
    for _ in 0..AIRCRAFT_WORKERS {
        workers.push(scope.spawn(|| aircraft(&airport.aircraft, books)));
    }
    for _ in 0..FLAKY_WORKERS {
        workers.push(scope.spawn(|| flaky(&airport.flaky, books)));
    }
    workers.push(scope.spawn(|| anomalies(airport)));
    workers.push(scope.spawn(|| alerts(&airport.alerts_desk, books)));
    workers.push(scope.spawn(|| newark(&airport.newark, books)));
    workers.push(scope.spawn(|| cancellations(&airport.cancellations_desk, books)));
    workers
}

/// One of four that share the flights. A flight that never left is none of its business, and never will be.
fn punctuality(flights: &Subscription<Flight>, books: &Books) -> Result<()> {
    let mut carriers: BTreeMap<String, Carrier> = BTreeMap::new();
    while let Ok(batch) = flights.recv_batch(BATCH) {
        for flight in batch {
            if !flight.departed {
                flight.reject(NO_DEPARTURE)?;
                continue;
            }
            match carriers.get_mut(&flight.carrier) {
                Some(carrier) => carrier.departs(flight.delay),
                None => carriers.entry(flight.carrier.clone()).or_default().departs(flight.delay),
            }
            flight.ack()?;
        }
    }
    let mut totals = books.totals.lock();
    for (name, carrier) in carriers {
        totals.carriers.entry(name).or_default().add(&carrier);
    }
    Ok(())
}

/// Reads what `punctuality` rejected: the dead letters arrive as flights, with the reason beside them.
fn cancellations(dead_letters: &Subscription<Flight>, books: &Books) -> Result<()> {
    let (mut cancelled, mut wrong_reasons) = (0, 0);
    for letter in dead_letters.iter() {
        let reason = letter.message().attribute("eventflow.dead_letter.reason");
        wrong_reasons += u64::from(reason != Some(NO_DEPARTURE));
        cancelled += 1;
        letter.ack()?;
    }
    let mut totals = books.totals.lock();
    totals.cancelled = cancelled;
    totals.wrong_reasons = wrong_reasons;
    Ok(())
}

/// One of two that share the aircraft. While the departures of one aircraft are with a worker, later ones of
/// it wait.
fn aircraft(flights: &Subscription<Flight>, books: &Books) -> Result<()> {
    let (mut keyed, mut keys, mut overtaken) = (0, 0, 0);
    while let Ok(batch) = flights.recv_batch(BATCH) {
        let mut last_departures = books.last_departures.lock();
        for flight in batch.iter() {
            let Some(key) = flight.ordering_key() else { continue };
            keyed += 1;
            match last_departures.get_mut(key) {
                Some(last) => {
                    overtaken += u64::from(*last >= flight.line);
                    *last = flight.line;
                }
                None => {
                    keys += 1;
                    last_departures.insert(key.to_owned(), flight.line);
                }
            }
        }
        drop(last_departures);
        batch.ack()?;
    }
    let mut totals = books.totals.lock();
    totals.keyed += keyed;
    totals.keys += keys;
    totals.overtaken += overtaken;
    Ok(())
}

/// A service in the middle: it reads flights and publishes alerts. Alone, so that each origin's flights come
/// in order.
fn anomalies(airport: &Airport) -> Result<()> {
    let mut origins: HashMap<String, Running> = HashMap::new();
    while let Ok(batch) = airport.anomalies.recv_batch(BATCH) {
        for flight in batch.iter() {
            let Some(minutes) = flight.delay else { continue };
            let running = match origins.get_mut(&flight.origin) {
                Some(running) => running,
                None => origins.entry(flight.origin.clone()).or_default(),
            };
            if running.takes_as_anomaly(minutes) {
                airport.alerts.publish(Alert { line: flight.line })?;
            }
        }
        // After the alerts, never before: who acks first and then fails has lost them.
        batch.ack()?;
    }
    Ok(())
}

fn alerts(alerts: &Subscription<Alert>, books: &Books) -> Result<()> {
    for alert in alerts.iter() {
        books.totals.lock().alerts.insert(alert.line);
        alert.ack()?;
    }
    Ok(())
}

/// Sees nothing but flights from Newark; the broker has filtered the others.
fn newark(flights: &Subscription<Flight>, books: &Books) -> Result<()> {
    let mut count = 0;
    while let Ok(batch) = flights.recv_batch(BATCH) {
        count += batch.len() as u64;
        batch.ack()?;
    }
    books.totals.lock().newark = count;
    Ok(())
}

/// Fails, hangs, and still ends with every flight exactly once.
fn flaky(flights: &Subscription<Flight>, books: &Books) -> Result<()> {
    let (mut worked, mut acked_twice) = (0, 0);
    for flight in flights.iter() {
        let line = flight.line;
        let fate = fate(line, flight.attempt());
        let settled = if fate == Fate::Fails {
            flight.nack().map(|()| false)
        } else {
            worked += u64::from(books.flaky.lock().seen.insert(line));
            if fate == Fate::Hangs {
                thread::sleep(FLAKY_HANG);
            }
            flight.ack().map(|()| true)
        };
        match settled {
            Ok(true) => acked_twice += u64::from(!books.flaky.lock().acked.insert(line)),
            // Too late, and it was given to another worker: whether it is done is that one's to say.
            Ok(false) | Err(SettleError::LeaseExpired { .. }) => {}
            // So late that the others were done with everything: the broker had no reason to wait for it.
            Err(SettleError::Closed) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut totals = books.totals.lock();
    totals.flaky += worked;
    totals.acked_twice += acked_twice;
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeds,
    Fails,
    Hangs,
}

/// One delivery in ten fails, one in a thousand hangs: by chance, but by the same chance in every run.
pub(crate) fn fate(line: u64, attempt: u32) -> Fate {
    // SplitMix64: neighbouring numbers come out unlike each other.
    let mut mixed = (line << 8).wrapping_add(u64::from(attempt)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    match (mixed ^ (mixed >> 31)) % 1000 {
        0 => Fate::Hangs,
        1..=100 => Fate::Fails,
        _ => Fate::Succeeds,
    }
}
