//! Who takes part, and in what.

use std::ops::Range;

use crate::broadcasts::{AsyncBroadcast, DisruptorFanIn, DisruptorFanOut, DisruptorPipe, TokioBroadcast};
use crate::channels::{
    Copies, CrossbeamBounded, CrossbeamUnbounded, CrossfireMpmcBounded, CrossfireMpmcUnbounded,
    CrossfireMpscBounded, CrossfireMpscUnbounded, CrossfireSpscBounded, CrossfireSpscUnbounded, FlumeBounded,
    FlumeDrained, FlumeUnbounded, KanalBounded, KanalDrained, KanalUnbounded, Std,
};
use crate::ours::{AllInBatches, BoundedInBatches, OneByOne, ReceiveInBatches};
use crate::payload::Payload;
use crate::served;
use crate::workload::{Outcome, Shape, Task, run, run_baseline, run_latency, run_memory};

/// How many messages a bounded channel holds, and the ring of a polled one.
pub(crate) const BOUND: usize = 4_096;
/// Of a batch, wherever there are batches.
pub(crate) const BATCH_LEN: usize = 64;

/// Those of the publishers, and those of the receivers.
pub(crate) type Ends<P, R> = (Vec<P>, Vec<R>);

/// A way from publishers to receivers.
pub(crate) trait Contender: 'static {
    type Publisher<P: Payload>: Send;
    type Receiver<P: Payload>: Send;

    /// One end for each publisher, and for each worker of each group. `messages` is how many will be sent at most, for those that would
    /// otherwise lose what a slow receiver has not read.
    fn open<P: Payload>(shape: &Shape, messages: u64) -> Ends<Self::Publisher<P>, Self::Receiver<P>>;

    /// Makes these messages and sends each to every group, waiting for space where there is a bound.
    fn send<P: Payload>(publisher: &mut Self::Publisher<P>, numbers: Range<u64>);

    /// Waits for a message, reads it and what else comes with it, and settles all that it read where messages are settled.
    fn receive<P: Payload>(receiver: &mut Self::Receiver<P>, read: impl FnMut(&P::Event));
}

pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) kind: EntryKind,
    /// Their names, with spaces between.
    pub(crate) workloads: &'static str,
    pub(crate) run: fn(&Task) -> Outcome,
}

impl Entry {
    pub(crate) fn takes_part_in(&self, workload: &str) -> bool {
        self.workloads.split(' ').any(|name| name == workload)
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum EntryKind {
    /// One thread and no channel: what making and reading the payloads costs by itself.
    Baseline,
    Ours,
    /// A receiver with nothing to read sleeps.
    Blocking,
    /// A receiver with nothing to read keeps its core busy.
    Polling,
    /// A program of its own, spoken to over the loopback.
    Server,
}

/// Everybody, in the order of the tables. One name may stand for several types, each for other workloads.
#[rustfmt::skip] // a table
pub(crate) fn entries() -> Vec<Entry> {
    use EntryKind::{Baseline, Blocking, Ours, Polling};
    const LATENCY: &str = "W5-ping-pong W5-paced";
    const MEMORY: &str = "W8-1 W8-8";
    const BATCH: u64 = BATCH_LEN as u64;
    let mut all: Vec<Entry> = Vec::new();
    let mut add = |name, kind, workloads, run| all.push(Entry { name, kind, workloads, run });
    add("no channel", Baseline, "W1 W2", run_baseline);
    add("eventflow", Ours, "W1 W2 W3 W4 W6", run::<OneByOne>);
    add("eventflow", Ours, LATENCY, run_latency::<OneByOne>);
    add("eventflow recv_batch", Ours, "W1 W2 W3 W4", run::<ReceiveInBatches>);
    add("eventflow recv_batch", Ours, "W5-paced", run_latency::<ReceiveInBatches>);
    add("eventflow batches", Ours, "W1 W2 W3 W4 W6", run::<AllInBatches>);
    add("eventflow batches", Ours, MEMORY, run_memory::<AllInBatches>);
    add("eventflow batches bounded", Ours, "W1 W2 W3 W4", run::<BoundedInBatches>);
    // What has a bound cannot hold a backlog.
    add("crossbeam-channel", Blocking, "W1 W2 W3 W4", run::<Copies<CrossbeamUnbounded>>);
    add("crossbeam-channel", Blocking, LATENCY, run_latency::<Copies<CrossbeamUnbounded>>);
    add("crossbeam-channel", Blocking, MEMORY, run_memory::<Copies<CrossbeamUnbounded>>);
    add("crossbeam-channel bounded", Blocking, "W1 W2 W3 W4", run::<Copies<CrossbeamBounded>>);
    add("crossbeam-channel bounded", Blocking, LATENCY, run_latency::<Copies<CrossbeamBounded>>);
    // One type for one sender and one receiver, one for many senders, one for many of both.
    add("crossfire", Blocking, "W1 W2", run::<Copies<CrossfireSpscUnbounded>>);
    add("crossfire", Blocking, "W3", run::<Copies<CrossfireMpscUnbounded>>);
    add("crossfire", Blocking, "W4", run::<Copies<CrossfireMpmcUnbounded>>);
    add("crossfire", Blocking, LATENCY, run_latency::<Copies<CrossfireSpscUnbounded>>);
    add("crossfire", Blocking, MEMORY, run_memory::<Copies<CrossfireSpscUnbounded>>);
    add("crossfire bounded", Blocking, "W1 W2", run::<Copies<CrossfireSpscBounded>>);
    add("crossfire bounded", Blocking, "W3", run::<Copies<CrossfireMpscBounded>>);
    add("crossfire bounded", Blocking, "W4", run::<Copies<CrossfireMpmcBounded>>);
    add("crossfire bounded", Blocking, LATENCY, run_latency::<Copies<CrossfireSpscBounded>>);
    add("flume", Blocking, "W1 W2 W3 W4", run::<Copies<FlumeUnbounded>>);
    add("flume", Blocking, LATENCY, run_latency::<Copies<FlumeUnbounded>>);
    add("flume", Blocking, MEMORY, run_memory::<Copies<FlumeUnbounded>>);
    add("flume bounded", Blocking, "W1 W2 W3 W4", run::<Copies<FlumeBounded>>);
    add("flume drained", Blocking, "W1 W2 W3 W4", run::<Copies<FlumeDrained>>);
    add("kanal", Blocking, "W1 W2 W3 W4", run::<Copies<KanalUnbounded>>);
    add("kanal", Blocking, LATENCY, run_latency::<Copies<KanalUnbounded>>);
    add("kanal", Blocking, MEMORY, run_memory::<Copies<KanalUnbounded>>);
    add("kanal bounded", Blocking, "W1 W2 W3 W4", run::<Copies<KanalBounded>>);
    add("kanal drained", Blocking, "W1 W2 W3 W4", run::<Copies<KanalDrained>>);
    // Its receiver is for one thread.
    add("std mpsc", Blocking, "W1 W2 W3", run::<Copies<Std>>);
    add("std mpsc", Blocking, LATENCY, run_latency::<Copies<Std>>);
    add("std mpsc", Blocking, MEMORY, run_memory::<Copies<Std>>);
    // Each receiver of these gets every message: there is no sharing.
    add("tokio broadcast", Blocking, "W2", run::<TokioBroadcast>);
    add("tokio broadcast", Blocking, "W8-8", run_memory::<TokioBroadcast>);
    add("async-broadcast", Blocking, "W2", run::<AsyncBroadcast>);
    add("async-broadcast", Blocking, "W8-8", run_memory::<AsyncBroadcast>);
    // Likewise; and its ring is as long as it is, so that it has no backlog to weigh.
    add("disruptor", Polling, "W1", run::<DisruptorPipe<1>>);
    add("disruptor", Polling, "W2", run::<DisruptorFanOut<1>>);
    add("disruptor", Polling, "W3", run::<DisruptorFanIn<1>>);
    add("disruptor", Polling, LATENCY, run_latency::<DisruptorPipe<1>>);
    add("disruptor batches", Polling, "W1", run::<DisruptorPipe<BATCH>>);
    add("disruptor batches", Polling, "W2", run::<DisruptorFanOut<BATCH>>);
    add("disruptor batches", Polling, "W3", run::<DisruptorFanIn<BATCH>>);
    all.extend(served::entries());
    all
}
