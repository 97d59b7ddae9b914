//! What is measured, and how one run of it goes.

use std::hint::{black_box, spin_loop};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::contender::Contender;
use crate::cores::pin;
use crate::harness::resident;
use crate::payload::{Inline, LAST, Number, Payload, Raw, Shared, Tally};

/// Who sends to whom.
pub(crate) struct Shape {
    pub(crate) publishers: u64,
    /// Each gets every message.
    pub(crate) groups: u64,
    /// They share the messages of their group.
    pub(crate) workers: u64,
    /// Nobody reads before everything is sent.
    pub(crate) holds_backlog: bool,
}

impl Shape {
    /// The numbers that one publisher sends.
    fn share(&self, publisher: u64, messages: u64) -> Range<u64> {
        messages * publisher / self.publishers..messages * (publisher + 1) / self.publishers
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// As fast as it goes; deliveries a second.
    Stream,
    /// One message there, one back; the time of both.
    PingPong,
    /// One message each 10 µs; the time from when it was due to be sent until it is read.
    Paced,
    /// Resident bytes for each message of a backlog.
    Memory,
    /// Like `Stream`, beside servers.
    Served,
}

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) shape: Shape,
    pub(crate) kind: Kind,
    pub(crate) payloads: &'static [&'static str],
    /// Full size; of 1 KiB, a quarter.
    pub(crate) messages: u64,
}

impl Workload {
    /// The figure of a run's line that the tables show, and how often its unit goes into it.
    pub(crate) fn figure(&self) -> &'static str {
        match self.kind {
            Kind::Stream | Kind::Served => "rate",
            Kind::PingPong | Kind::Paced => "p50_us",
            Kind::Memory => "bytes_a_message",
        }
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Stream | Kind::Served => "million deliveries/s",
            Kind::PingPong => "µs there and back, p50",
            Kind::Paced => "µs one way, p50",
            Kind::Memory => "bytes a message",
        }
    }

    pub(crate) fn more_is_better(&self) -> bool {
        matches!(self.kind, Kind::Stream | Kind::Served)
    }

    pub(crate) fn expected(&self, messages: u64) -> Tally {
        Tally::expected(0..messages, self.shape.groups)
    }
}

const ALL: [&str; 5] = ["u64", "64 B inline", "100 B Bytes", "100 B Arc", "1 KiB Bytes"];

pub(crate) fn workloads() -> Vec<Workload> {
    let shape = |publishers, groups, workers| Shape { publishers, groups, workers, holds_backlog: false };
    let backlog = |groups| Shape { publishers: 1, groups, workers: 1, holds_backlog: true };
    let stream = |name, title, shape, messages| Workload {
        name,
        title,
        shape,
        kind: Kind::Stream,
        payloads: &ALL,
        messages,
    };
    let latency = |name, title, kind, messages| Workload {
        name,
        title,
        shape: shape(1, 1, 1),
        kind,
        payloads: &["u64", "100 B Bytes"],
        messages,
    };
    let memory = |name, title, groups| Workload {
        name,
        title,
        shape: backlog(groups),
        kind: Kind::Memory,
        payloads: &["100 B Bytes", "100 B Arc"],
        messages: 10_000_000,
    };
    vec![
        stream("W1", "pipe, 1 → 1", shape(1, 1, 1), 4_000_000),
        stream("W2", "fan-out, 1 → 8", shape(1, 8, 1), 500_000),
        stream("W3", "fan-in, 4 → 1", shape(4, 1, 1), 4_000_000),
        stream("W4", "load-balanced, 2 → 2", shape(2, 1, 2), 4_000_000),
        latency("W5-ping-pong", "ping-pong", Kind::PingPong, 20_000),
        latency("W5-paced", "paced at 100,000/s", Kind::Paced, 100_000),
        Workload {
            name: "W6",
            title: "acked cycle beside servers, 1 → 1",
            shape: shape(1, 1, 1),
            kind: Kind::Served,
            payloads: &["100 B Bytes"],
            messages: 200_000,
        },
        memory("W8-1", "memory of a backlog, 1 subscription", 1),
        memory("W8-8", "memory of a backlog, 8 subscriptions", 8),
    ]
}

/// One run.
pub(crate) struct Task {
    pub(crate) workload: Workload,
    pub(crate) payload: String,
    pub(crate) messages: u64,
    /// Of the server, where there is one.
    pub(crate) port: u16,
}

pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    pub(crate) tally: Tally,
    /// What else was found, by name.
    pub(crate) figures: Vec<(&'static str, f64)>,
}

impl Outcome {
    pub(crate) fn of_stream(elapsed: Duration, tally: Tally) -> Outcome {
        let rate = tally.count as f64 / elapsed.as_secs_f64() / 1e6;
        Outcome { elapsed, tally, figures: vec![("rate", rate)] }
    }
}

/// A run of the workloads that stream, whatever the payload.
pub(crate) fn run<C: Contender>(task: &Task) -> Outcome {
    match &*task.payload {
        "u64" => stream::<C, Number>(task),
        "64 B inline" => stream::<C, Inline>(task),
        "100 B Bytes" => stream::<C, Raw<100>>(task),
        "100 B Arc" => stream::<C, Shared<100>>(task),
        "1 KiB Bytes" => stream::<C, Raw<1024>>(task),
        unknown => panic!("no payload is called {unknown}"),
    }
}

/// A run of W5.
pub(crate) fn run_latency<C: Contender>(task: &Task) -> Outcome {
    match (task.workload.kind, &*task.payload) {
        (Kind::PingPong, "u64") => ping_pong::<C, Number>(task),
        (Kind::PingPong, "100 B Bytes") => ping_pong::<C, Raw<100>>(task),
        (Kind::Paced, "u64") => paced::<C, Number>(task),
        (Kind::Paced, "100 B Bytes") => paced::<C, Raw<100>>(task),
        (_, unknown) => panic!("W5 has no payload called {unknown}"),
    }
}

/// A run of W8.
pub(crate) fn run_memory<C: Contender>(task: &Task) -> Outcome {
    match &*task.payload {
        "100 B Bytes" => memory::<C, Raw<100>>(task),
        "100 B Arc" => memory::<C, Shared<100>>(task),
        unknown => panic!("W8 has no payload called {unknown}"),
    }
}

/// No channel and no second thread.
pub(crate) fn run_baseline(task: &Task) -> Outcome {
    fn with<P: Payload>(task: &Task) -> Outcome {
        let start = Instant::now();
        let mut tally = Tally::default();
        for number in 0..task.messages {
            let event = P::make(number);
            for _ in 0..task.workload.shape.groups {
                tally.add::<P>(black_box(&event));
            }
        }
        Outcome::of_stream(start.elapsed(), tally)
    }
    match &*task.payload {
        "u64" => with::<Number>(task),
        "64 B inline" => with::<Inline>(task),
        "100 B Bytes" => with::<Raw<100>>(task),
        "100 B Arc" => with::<Shared<100>>(task),
        "1 KiB Bytes" => with::<Raw<1024>>(task),
        unknown => panic!("no payload is called {unknown}"),
    }
}

/// The publisher that is done last sends one more message to each worker, which ends it.
fn stream<C: Contender, P: Payload>(task: &Task) -> Outcome {
    let (shape, messages) = (&task.workload.shape, task.messages);
    let (publishers, receivers) = C::open::<P>(shape, messages + shape.workers);
    let publishing = AtomicU64::new(shape.publishers);
    let ending: Mutex<Option<C::Publisher<P>>> = Mutex::new(None);
    let end = |count: u64| {
        let mut publisher = ending.lock().expect("nobody panicked");
        C::send::<P>(publisher.as_mut().expect("the last publisher is here"), LAST..LAST + count);
    };
    let publish = |share: Range<u64>, mut publisher: C::Publisher<P>| {
        C::send::<P>(&mut publisher, share);
        // All that the others sent is in the channel before what the last one sends.
        if publishing.fetch_sub(1, Ordering::AcqRel) == 1 {
            *ending.lock().expect("nobody panicked") = Some(publisher);
            end(shape.workers);
        }
    };
    let receive = |mut receiver: C::Receiver<P>| {
        let (mut tally, mut lasts) = (Tally::default(), 0);
        while lasts == 0 {
            C::receive::<P>(&mut receiver, |event| match P::number(event) {
                LAST.. => lasts += 1,
                _ => tally.add::<P>(event),
            });
        }
        if lasts > 1 {
            end(lasts - 1); // they came in one batch, and the others wait for theirs
        }
        tally
    };
    let (publish, receive) = (&publish, &receive);
    let publishers = (0..).zip(publishers).map(|(number, publisher)| -> PublisherJob<'_> {
        let share = shape.share(number, messages);
        Box::new(move || publish(share, publisher))
    });
    let receivers =
        receivers.into_iter().map(|receiver| -> ReceiverJob<'_> { Box::new(move || receive(receiver)) });
    at_once(publishers.collect(), receivers.collect())
}

// Boxed, so that starting a thread is compiled once and not for each contender.
pub(crate) type PublisherJob<'a> = Box<dyn FnOnce() + Send + 'a>;
pub(crate) type ReceiverJob<'a> = Box<dyn FnOnce() -> Tally + Send + 'a>;

/// Starts everybody at once and waits for everybody. The time is from the first publisher's start to the last receiver's end, by their
/// own reading.
pub(crate) fn at_once(publishers: Vec<PublisherJob<'_>>, receivers: Vec<ReceiverJob<'_>>) -> Outcome {
    let (first_receiver, threads) = (publishers.len(), publishers.len() + receivers.len());
    let barrier = &Barrier::new(threads);
    let publish = |number: usize, job: PublisherJob<'_>| {
        pin(number, threads);
        barrier.wait();
        let start = Instant::now();
        job();
        start
    };
    let receive = |number: usize, job: ReceiverJob<'_>| {
        pin(number, threads);
        barrier.wait();
        (job(), Instant::now())
    };
    thread::scope(|scope| {
        let (publish, receive) = (&publish, &receive);
        let receivers = (first_receiver..).zip(receivers);
        let receivers: Vec<_> =
            receivers.map(|(number, job)| scope.spawn(move || receive(number, job))).collect();
        let publishers = (0..).zip(publishers);
        let publishers: Vec<_> =
            publishers.map(|(number, job)| scope.spawn(move || publish(number, job))).collect();
        let starts = publishers.into_iter().map(|thread| thread.join().expect("a publisher panicked"));
        let start = starts.min().expect("at least one publisher");
        let ends = receivers.into_iter().map(|thread| thread.join().expect("a receiver panicked"));
        let (tally, end) =
            ends.fold((Tally::default(), start), |(tally, end), (more, at)| (tally.join(more), end.max(at)));
        Outcome::of_stream(end - start, tally)
    })
}

fn only<T>(ends: Vec<T>) -> T {
    let [end]: [T; 1] = ends.try_into().unwrap_or_else(|_| panic!("a pipe has one end at each side"));
    end
}

fn receive_one<C: Contender, P: Payload>(receiver: &mut C::Receiver<P>, tally: &mut Tally) -> u64 {
    let mut number = LAST;
    C::receive::<P>(receiver, |event| {
        assert_eq!(number, LAST, "one message is under way at a time");
        number = P::number(event);
        tally.add::<P>(event);
    });
    number
}

/// Sends a message, which another thread answers with a new one of the same number.
fn ping_pong<C: Contender, P: Payload>(task: &Task) -> Outcome {
    let (shape, messages) = (&task.workload.shape, task.messages);
    let warm_up = messages / 10;
    let (there, there_end) = C::open::<P>(shape, messages + warm_up);
    let (back, back_end) = C::open::<P>(shape, messages + warm_up);
    let (mut there, mut there_end) = (only(there), only(there_end));
    let (mut back, mut back_end) = (only(back), only(back_end));
    let answer = move || {
        let mut tally = Tally::default();
        for _ in 0..messages + warm_up {
            let number = receive_one::<C, P>(&mut there_end, &mut tally);
            C::send::<P>(&mut back, number..number + 1);
        }
    };
    let ask = move || {
        for number in 0..warm_up {
            C::send::<P>(&mut there, number..number + 1);
            receive_one::<C, P>(&mut back_end, &mut Tally::default());
        }
        let (mut tally, mut times) = (Tally::default(), Vec::with_capacity(messages as usize));
        let start = Instant::now();
        for number in 0..messages {
            let sent = Instant::now();
            C::send::<P>(&mut there, number..number + 1);
            assert_eq!(receive_one::<C, P>(&mut back_end, &mut tally), number);
            times.push(sent.elapsed());
        }
        Outcome { elapsed: start.elapsed(), tally, figures: percentiles(times) }
    };
    beside(Box::new(answer), Box::new(ask)).1
}

/// Runs one in a thread of its own while the other runs here.
fn beside<A: Send, B>(
    there: Box<dyn FnOnce() -> A + Send + '_>,
    here: Box<dyn FnOnce() -> B + '_>,
) -> (A, B) {
    let both = Barrier::new(2);
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            pin(1, 2);
            both.wait();
            there()
        });
        pin(0, 2);
        both.wait();
        let here = here();
        (there.join().expect("the other thread panicked"), here)
    })
}

const PACE: Duration = Duration::from_micros(10);

/// One thread sends by the clock, another reads; also says how much of its time the reader kept a core busy. The first messages are read
/// off the clock.
fn paced<C: Contender, P: Payload>(task: &Task) -> Outcome {
    let messages = task.messages;
    let warm_up = messages / 5;
    let (publisher, receiver) = C::open::<P>(&task.workload.shape, messages);
    let (mut publisher, mut receiver) = (only(publisher), only(receiver));
    let start = OnceLock::new(); // set before the first message is sent
    let due = |number: u64| *start.wait() + PACE * number as u32;
    let read = || {
        let (mut tally, mut times) = (Tally::default(), Vec::with_capacity(messages as usize));
        let busy = busy_time();
        while tally.count < messages {
            C::receive::<P>(&mut receiver, |event| {
                if P::number(event) >= warm_up {
                    times.push(Instant::now().saturating_duration_since(due(P::number(event))));
                }
                tally.add::<P>(event);
            });
        }
        (tally, times, busy_time() - busy)
    };
    let send = || {
        start.set(Instant::now()).expect("set once");
        for number in 0..messages {
            while Instant::now() < due(number) {
                spin_loop();
            }
            C::send::<P>(&mut publisher, number..number + 1);
        }
    };
    let ((tally, times, busy), ()) = beside(Box::new(read), Box::new(send));
    let elapsed = start.wait().elapsed();
    let mut figures = percentiles(times);
    figures.push(("busy_percent", 100.0 * busy.as_secs_f64() / elapsed.as_secs_f64()));
    Outcome { elapsed, tally, figures }
}

/// What this thread has run so far; nothing where the kernel does not say.
fn busy_time() -> Duration {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = line.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn percentiles(mut times: Vec<Duration>) -> Vec<(&'static str, f64)> {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    vec![("p50_us", at(0.5)), ("p99_us", at(0.99)), ("max_us", at(1.0))]
}

/// Sends everything, weighs it, then reads it all. A ring that is as long as the backlog is part of it.
fn memory<C: Contender, P: Payload>(task: &Task) -> Outcome {
    let messages = task.messages;
    let before = resident();
    let (publisher, receivers) = C::open::<P>(&task.workload.shape, messages);
    let mut publisher = only(publisher);
    let start = Instant::now();
    C::send::<P>(&mut publisher, 0..messages);
    let taken = resident().saturating_sub(before);
    let mut tally = Tally::default();
    for mut receiver in receivers {
        let mut own = Tally::default();
        while own.count < messages {
            C::receive::<P>(&mut receiver, |event| own.add::<P>(event));
        }
        tally = tally.join(own);
    }
    let bytes = taken as f64 / messages as f64;
    Outcome { elapsed: start.elapsed(), tally, figures: vec![("bytes_a_message", bytes)] }
}
