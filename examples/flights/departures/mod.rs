//! A file of departures, published from every airport at once and read by its services, with the proof that
//! nothing was lost or counted twice.

mod airport;
mod bytes;
mod input;
mod services;
mod stored;
mod totals;

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use airport::Airport;
use input::{InputError, for_each_row};
use services::Books;
use stored::Records;
use totals::plain_loop;

pub(crate) use totals::{Difference, Totals};

/// How often it is looked whether all is done.
const TICK: Duration = Duration::from_millis(2);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Broker(#[from] eventflow::Error),
    #[error("a service ended before the last flight was settled")]
    EndedEarly,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    /// As the services counted.
    pub(crate) totals: Totals,
    pub(crate) nacked: u64,
    pub(crate) expired: u64,
    pub(crate) redelivered: u64,
    /// Hand-outs of all subscriptions together.
    pub(crate) delivered: u64,
    pub(crate) elapsed: Duration,
    /// Where the services, the broker's statistics and the plain loop disagree: nowhere, if all is well.
    pub(crate) differences: Vec<Difference>,
}

/// Publishes every departure in `data`, lets the services read them all, and compares. `progress` is told now
/// and then how many flights are published, and how many there are.
///
/// With a directory, a run goes on where one before it was killed; the directory is of this file alone.
pub(crate) fn run(
    data: &Path,
    dir: Option<&Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, Error> {
    let (expected, origins) = plain_loop(data)?;
    let airport = Airport::open(dir)?;
    let records = dir.map(|_| Records::open(&airport.broker)).transpose()?;
    let (books, duplicates) = (Books::default(), AtomicU64::new(0));
    let began = Instant::now();
    let left = thread::scope(|scope| {
        let workers = match &records {
            None => services::start(scope, &airport, &books),
            Some(records) => stored::start(scope, &airport, records),
        };
        let mut publishers = Vec::new();
        for origin in &origins {
            publishers.push(scope.spawn(|| publish_origin(&airport, data, origin, &duplicates)));
        }
        let drained = wait_until_drained(&airport, &publishers, &workers, |published| {
            progress(published, expected.flights)
        });
        let recorded = records.as_ref().filter(|_| drained).map(Records::totals);
        // Wakes the services, whose subscriptions have nothing left for them; and, when something went wrong,
        // the publishers too.
        let left = airport.broker.shutdown(SHUTDOWN_TIMEOUT)?;
        for worker in workers {
            join(worker)?;
        }
        for publisher in publishers {
            join(publisher)?;
        }
        if let Some(recorded) = recorded {
            *books.totals.lock() = recorded?;
        }
        if drained { Ok(left) } else { Err(Error::EndedEarly) }
    })?;
    let elapsed = began.elapsed();
    let mut totals = books.totals.into_inner();
    totals.flights = airport.published();
    totals.duplicates = duplicates.into_inner();
    let mut differences = expected.differences(&totals);
    if dir.is_none() {
        differences.extend(airport.contradictions(&totals, left));
    }
    Ok(report(&airport, totals, elapsed, differences))
}

/// The publisher of one airport: reads the file and publishes what leaves from there, in the order of the
/// file.
fn publish_origin(airport: &Airport, data: &Path, origin: &str, duplicates: &AtomicU64) -> Result<(), Error> {
    for_each_row(data, |row| {
        if row.origin != origin {
            return Ok(());
        }
        airport.publish(&row)?;
        if row.is_published_twice() {
            let receipt = airport.publish(&row)?;
            duplicates.fetch_add(u64::from(receipt.deduplicated), Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Whether all was settled; not so when a service has ended that should still be reading.
fn wait_until_drained<T, U>(
    airport: &Airport,
    publishers: &[ScopedJoinHandle<'_, T>],
    workers: &[ScopedJoinHandle<'_, U>],
    mut progress: impl FnMut(u64),
) -> bool {
    for _ in crossbeam_channel::tick(TICK) {
        progress(airport.published());
        if workers.iter().any(ScopedJoinHandle::is_finished) {
            return false;
        }
        if publishers.iter().all(ScopedJoinHandle::is_finished) && airport.is_drained() {
            return true;
        }
    }
    unreachable!("a ticker never ends")
}

fn join<E: Into<Error>>(thread: ScopedJoinHandle<'_, Result<(), E>>) -> Result<(), Error> {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(Into::into)
}

fn report(airport: &Airport, totals: Totals, elapsed: Duration, differences: Vec<Difference>) -> Report {
    let mut report =
        Report { totals, nacked: 0, expired: 0, redelivered: 0, delivered: 0, elapsed, differences };
    for stats in airport.stats() {
        report.nacked += stats.nacked;
        report.expired += stats.leases_expired;
        report.redelivered += stats.redelivered;
        report.delivered += stats.delivered;
    }
    report
}
