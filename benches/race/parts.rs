//! What has no peer: figures of ours alone, each beside its goal. Some are those of `benches/scale.rs`.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use eventflow::{Broker, Delivery, ManualClock, Subscription, Topic};

use crate::harness::{Spread, parameter, print_figure};
use crate::scale;

const OWN: [(&str, fn()); 3] = [("transaction", transaction), ("expiry", mass_expiry), ("idle", idle_broker)];

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    OWN.iter().chain(&scale::PARTS).map(|(name, _)| *name)
}

pub(crate) fn run(name: &str) {
    let part = OWN.iter().chain(&scale::PARTS).find(|(known, _)| *known == name);
    let (_, part) = part.unwrap_or_else(|| panic!("no part is called {name}"));
    part();
}

/// Receive, publish what follows from it, acknowledge: apart, and in a transaction.
fn transaction() {
    let messages = parameter("messages", 500, 100_000);
    let runs = parameter("transaction_runs", 2, 9);
    println!(
        "\ntransaction: one ack and one publish, {messages} times over, {runs} interleaved runs; ns for both"
    );
    let broker = Broker::in_memory();
    let input = broker.topic::<u64>("in").create().expect("a new topic");
    let output = broker.topic::<u64>("out").create().expect("a new topic");
    let work = input.subscription("work").create().expect("a new subscription");
    let results = output.subscription("results").create().expect("a new subscription");
    let (mut apart, mut together) = (vec![], vec![]);
    for run in 0..=runs {
        let alone = time_moves(&input, &work, &results, messages, |delivery| {
            output.publish(*delivery).expect("the topic has no limit");
            delivery.ack().expect("the lease is ours");
        });
        let in_one = time_moves(&input, &work, &results, messages, |delivery| {
            let mut transaction = broker.transaction();
            transaction.publish(&output, *delivery);
            transaction.ack(delivery);
            transaction.commit().expect("the lease is ours");
        });
        if run == 0 {
            continue; // the first one warms up
        }
        println!("run={run} apart={alone:.1} transaction={in_one:.1}");
        apart.push(alone);
        together.push(in_one);
    }
    let (apart, together) = (Spread::of(&apart), Spread::of(&together));
    println!("  ack and publish apart:  {apart}");
    println!("  in a transaction:       {together}");
    print_figure("transaction against ack and publish apart", together.median / apart.median, 2.0, "times");
}

/// Only `act` is timed, for leases that were taken beforehand.
fn time_moves(
    input: &Topic<u64>,
    work: &Subscription<u64>,
    results: &Subscription<u64>,
    messages: u64,
    act: impl Fn(Delivery<u64>),
) -> f64 {
    const LEASES: u64 = 500; // fewer than may be outstanding
    let (mut elapsed, mut sum) = (Duration::ZERO, 0);
    for from in (0..messages).step_by(LEASES as usize) {
        let numbers = from..messages.min(from + LEASES);
        let count = numbers.end - numbers.start;
        input.publish_all(numbers).expect("the topic has no limit");
        let leases: Vec<_> = (0..count).map(|_| work.recv().expect("a message waits")).collect();
        let start = Instant::now();
        leases.into_iter().for_each(&act);
        elapsed += start.elapsed();
        for _ in 0..count {
            let result = results.recv().expect("a message waits");
            sum += *result;
            result.ack().expect("the lease is ours");
        }
    }
    assert_eq!(sum, messages * (messages - 1) / 2, "each result once");
    elapsed.as_nanos() as f64 / messages as f64
}

/// Very many leases that end at one instant, while another thread acknowledges leases of the same subscription that go on.
fn mass_expiry() {
    const DEADLINE: Duration = Duration::from_secs(60);
    let leases = parameter("expiry_leases", 2_000, 1_000_000);
    let acks = leases / 2;
    println!(
        "\nmass expiry: {leases} leases at once; {acks} acks before and meanwhile, on the same subscription"
    );
    let clock = ManualClock::new();
    let broker = Broker::builder().clock(clock.clone()).build().expect("a broker in memory");
    let topic = broker.topic::<u64>("expiry").create().expect("a new topic");
    let subscription = topic.subscription("only").ack_deadline(DEADLINE).max_outstanding(usize::MAX);
    let subscription = subscription.create().expect("a new subscription");
    topic.publish_all(0..leases + 2 * acks).expect("the topic has no limit");
    let doomed = lease(&subscription, leases);
    clock.advance(Duration::from_secs(1));
    let (before, meanwhile) = (lease(&subscription, acks), lease(&subscription, acks));

    let idle = percentile_99(before.into_iter().map(time_ack).collect());
    let (ready, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (elapsed, times) = thread::scope(|scope| {
        let acking = scope.spawn(|| {
            ready.store(true, Ordering::Release);
            let mut times = vec![];
            for delivery in meanwhile {
                times.push(time_ack(delivery));
                if over.load(Ordering::Relaxed) {
                    break; // what is left is nacked, off the clock
                }
            }
            times
        });
        while !ready.load(Ordering::Acquire) {
            thread::yield_now();
        }
        let start = Instant::now();
        clock.advance(DEADLINE - Duration::from_secs(1));
        let elapsed = start.elapsed();
        over.store(true, Ordering::Relaxed);
        (elapsed, acking.join().expect("the acking thread panicked"))
    });
    assert_eq!(subscription.stats().leases_expired, leases, "these and no others");
    drop(doomed);
    println!("  acks meanwhile: {}; p99 of an ack before: {:.2} µs", times.len(), micros(idle));
    println!("  longest ack meanwhile: {:.2} µs", micros(times.iter().copied().max().unwrap_or_default()));
    print_figure(format!("{leases} leases expire at once"), elapsed.as_secs_f64() * 1e3, 100.0, "ms");
    let ratio = micros(percentile_99(times)) / micros(idle);
    print_figure("p99 of an ack meanwhile, against before", ratio, 10.0, "times");
}

fn lease(subscription: &Subscription<u64>, count: u64) -> Vec<Delivery<u64>> {
    let mut leases = Vec::with_capacity(count as usize);
    while (leases.len() as u64) < count {
        let most = count as usize - leases.len();
        leases.extend(subscription.try_recv_batch(most.min(10_000)).expect("a message waits"));
    }
    leases
}

fn time_ack(delivery: Delivery<u64>) -> Duration {
    let start = Instant::now();
    delivery.ack().expect("the lease is ours");
    start.elapsed()
}

fn percentile_99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A broker with everything set up and nothing to do: how often any of the program's threads runs.
fn idle_broker() {
    let seconds = parameter("idle_seconds", 1, 5);
    println!(
        "\nidle broker: 100 topics, each with a lease that goes on, and a subscriber that waits; {seconds} s"
    );
    let broker = Broker::in_memory();
    let open = |n| {
        let topic = broker.topic::<u64>(&format!("topic-{n}")).create().expect("a new topic");
        let subscription = topic.subscription("only").ack_deadline(Duration::from_secs(3_600));
        let subscription = subscription.create().expect("a new subscription");
        topic.publish(n).expect("the topic has no limit");
        let lease = subscription.recv().expect("a message waits");
        (topic, subscription, lease)
    };
    let topics: Vec<_> = (0..100).map(open).collect();
    let waiting = topics[0].1.clone();
    let waiter = thread::spawn(move || waiting.recv().map(|delivery| *delivery).expect("a message comes"));
    thread::sleep(Duration::from_millis(300)); // until everybody sleeps
    let before = switches();
    thread::sleep(Duration::from_secs(seconds));
    let after = switches();
    let threads = after.as_ref().map_or(0, |found| found.0);
    println!("  threads beside this one: {threads}");
    match (before, after) {
        (Some((_, before)), Some((_, after))) => {
            print_figure("wake-ups a second", (after - before) as f64 / seconds as f64, 0.0, "wake-ups");
        }
        _ => println!("  the kernel does not say how often threads ran: skipped"),
    }
    topics[0].0.publish(7).expect("the topic has no limit");
    assert_eq!(waiter.join().expect("the waiting thread panicked"), 7, "it was idle, not dead");
}

/// How many threads there are beside this one, and how often they have run so far.
fn switches() -> Option<(usize, u64)> {
    let this = fs::read_link("/proc/thread-self").ok()?;
    let mut found = (0, 0);
    for task in fs::read_dir("/proc/self/task").ok()? {
        let task = task.ok()?;
        if Some(&*task.file_name()) == this.file_name() {
            continue;
        }
        // The third word is how often it got a core.
        let line = fs::read_to_string(task.path().join("schedstat")).ok()?;
        found.0 += 1;
        found.1 += line.split_whitespace().nth(2)?.parse::<u64>().ok()?;
    }
    Some(found)
}
