//! Several workers, one subscription: each job goes to one of them. One worker dies in the middle of a job,
//! and another does it.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use eventflow::{Broker, Subscription};

const WORKERS: usize = 4;
const JOBS: u64 = 1_000;

struct Job {
    number: u64,
}

struct Done {
    worker: usize,
    job: u64,
    attempt: u32,
}

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let jobs = broker.topic::<Job>("jobs").open()?;
    let pool = jobs.subscription("pool").open()?;
    jobs.publish_all((1..=JOBS).map(|number| Job { number }))?;

    let (done, results) = mpsc::channel();
    let results: Vec<Done> = thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (pool, done) = (pool.clone(), done.clone()); // every clone is one more subscriber
            scope.spawn(move || work(worker, &pool, &done));
        }
        let results = results.iter().take(JOBS as usize).collect();
        broker.shutdown(Duration::from_secs(1)).map(|_| results) // wakes the workers, and their loops end
    })?;
    check(&results);
    assert_eq!(pool.stats().backlog, 0);
    Ok(())
}

fn work(worker: usize, pool: &Subscription<Job>, done: &mpsc::Sender<Done>) {
    for job in pool.iter() {
        let result = Done { worker, job: job.number, attempt: job.attempt() };
        if job.number == 500 && job.attempt() == 1 {
            return; // dies with the job in its hands: the delivery is dropped, which is a nack
        }
        job.ack().expect("ten seconds are enough for any job");
        done.send(result).expect("the results are read until all have come");
    }
}

fn check(results: &[Done]) {
    let mut numbers: Vec<_> = results.iter().map(|done| done.job).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=JOBS), "every job is done once");

    let again: Vec<_> = results.iter().filter(|done| done.attempt > 1).map(|done| done.job).collect();
    assert_eq!(again, [500], "only the job of the dead worker was tried twice");

    let mut shares = BTreeMap::<usize, usize>::new();
    results.iter().for_each(|done| *shares.entry(done.worker).or_default() += 1);
    for (worker, share) in shares {
        println!("worker {worker} did {share} jobs");
    }
}
