use std::sync::atomic::AtomicUsize;

use bytes::Bytes;

use super::*;

fn own(event: u64, at: u64) -> Slot<u64> {
    Slot::own(event, Tick::from_nanos(at), None)
}

fn filled(count: u64) -> (ResidentLog<u64>, Writer<u64>) {
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    for n in 1..=count {
        log.append(&mut writer, own(n * 10, n), 8);
    }
    log.publish_tail(&writer);
    (log, writer)
}

#[test]
fn a_slot_of_a_plain_number_takes_no_more_than_four_words() {
    assert!(size_of::<std::sync::OnceLock<Slot<u64>>>() <= 32);
}

#[test]
fn what_was_appended_is_found_by_its_sequence() {
    let (log, _writer) = filled(1_000);
    for n in 1..=1_000 {
        let spot = log.find(Sequence::new(n)).unwrap();
        assert_eq!(*log.message(&spot), n * 10);
    }
    assert!(log.find(Sequence::new(1_001)).is_none());
    assert!(log.find(Sequence::new(0)).is_none());
}

#[test]
fn a_segment_in_the_middle_goes_alone_and_leaves_a_gap() {
    let (log, mut writer) = filled(1_000);
    let middle = log.segment_of(Sequence::new(100)).unwrap();
    drop(log.remove(&mut writer, &middle));
    assert!(log.find(Sequence::new(100)).is_none());
    assert!(log.find(middle.end()).is_some());
    assert_eq!(log.gaps(Sequence::new(1)), [(middle.first(), middle.end())]);
    assert_eq!(log.gaps(middle.first().next()), [(middle.first().next(), middle.end())]);
    assert_eq!(log.gaps(middle.end()), []);
}

#[test]
fn a_time_finds_the_first_message_published_then_or_later() {
    let (log, _writer) = filled(1_000);
    for at in [0, 1, 16, 17, 500, 1_000] {
        assert_eq!(log.first_at(Tick::from_nanos(at)), Sequence::new(at.max(1)));
    }
    assert_eq!(log.first_at(Tick::from_nanos(1_001)), Sequence::new(1_001));
}

#[test]
fn a_segment_closes_at_its_bytes_too() {
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    for n in 0..4 {
        log.append(&mut writer, own(n, n + 1), SEGMENT_BYTES_MAX);
    }
    log.publish_tail(&writer);
    assert_eq!(log.directory.read().len(), 4, "one message of a segment's size is a segment");
}

/// A log of these batches, each published at its number.
fn batches<E: 'static>(batches: impl IntoIterator<Item = Vec<E>>) -> (ResidentLog<E>, Writer<E>) {
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    for (n, events) in (1..).zip(batches) {
        append(&log, &mut writer, n, events);
    }
    log.publish_tail(&writer);
    (log, writer)
}

fn append<E: 'static>(log: &ResidentLog<E>, writer: &mut Writer<E>, at: u64, events: Vec<E>) -> Appended {
    let mut stage = log.stage(events.len());
    let bytes = 8 * events.len() as u64;
    events.into_iter().for_each(|event| stage.push(event));
    log.append_batch(writer, Tick::from_nanos(at), EventBatch::new(stage, bytes, |_| 8), |_| 8)
}

fn read(log: &ResidentLog<u64>, from: u64, len: u64) -> Vec<(u64, u64)> {
    let spot = log.find(Sequence::new(from)).expect("it is there");
    spot.run(len)
        .map(|place| log.message_at(place))
        .map(|message| (message.id().sequence(), *message))
        .collect()
}

#[test]
fn batches_of_any_length_and_single_messages_lie_in_one_order() {
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    let mut next = 1;
    for (n, len) in [1, 64, 7, 8, 300, 1, 1, 64, 3, 2_000, 16].into_iter().enumerate() {
        let events = (next..next + len).collect();
        let appended = append(&log, &mut writer, 1 + n as u64, events);
        assert_eq!((appended.count, appended.bytes), (len, 8 * len));
        log.append(&mut writer, own(next + len, 1 + n as u64), 8);
        next += len + 1;
    }
    log.publish_tail(&writer);
    assert_eq!(log.tail(), Sequence::new(next));
    for sequence in 1..next {
        let spot = log.find(Sequence::new(sequence)).expect("each is there");
        assert_eq!(*log.message(&spot), sequence);
        assert_eq!(spot.sequence(), Sequence::new(sequence));
        let left = spot.left_in_segment();
        let expected: Vec<_> = (sequence..sequence + left).map(|n| (n, n)).collect();
        assert_eq!(read(&log, sequence, left), expected, "from {sequence} to the end of its segment");
    }
    assert!(log.find(Sequence::new(next)).is_none());
}

#[test]
fn a_segment_of_batches_holds_no_more_than_another() {
    let (log, _writer) = batches((0..40).map(|_| vec![0_u64; 64]));
    let lens: Vec<_> = log.directory.read().values().map(|segment| segment.len()).collect();
    assert_eq!(lens, [256; 10]);
    let (log, _writer) = batches([vec![0_u64; 10_000]]);
    assert!(log.directory.read().values().all(|segment| segment.len() <= SEGMENT_SLOTS_MAX as u64));
    // By weight, too: what is heavier than a segment is one of its own.
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    let mut stage = log.stage(20);
    (0..20_u64).for_each(|n| stage.push(n));
    let weigh = |_: &u64| SEGMENT_BYTES_MAX / 2;
    let batch = EventBatch::new(stage, 10 * SEGMENT_BYTES_MAX, weigh);
    log.append_batch(&mut writer, Tick::from_nanos(1), batch, weigh);
    assert_eq!(log.directory.read().values().map(|segment| segment.len()).collect::<Vec<_>>(), [2; 10]);
}

#[test]
fn a_batch_in_a_log_of_small_segments_is_cut_to_their_size() {
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    writer.set_limits(Some(80), None);
    append(&log, &mut writer, 1, (1..=64_u64).collect());
    log.publish_tail(&writer);
    let directory = log.directory.read();
    assert!(directory.values().all(|segment| segment.len() <= 10), "an eighth of the 80");
}

#[test]
fn a_time_finds_the_first_message_of_a_batch() {
    let (log, _writer) = batches((0..20).map(|_| vec![0_u64; 64]));
    for at in 1..=20 {
        assert_eq!(log.first_at(Tick::from_nanos(at)), Sequence::new(1 + 64 * (at - 1)));
    }
    assert_eq!(log.first_at(Tick::from_nanos(21)), log.tail());
}

#[test]
fn small_payloads_lie_side_by_side_and_large_ones_stay_where_they_are() {
    let payload = |n: usize| Bytes::from(vec![n as u8; if n % 7 == 3 { 5_000 + n } else { n }]);
    let given: Vec<_> = (0..200).map(payload).collect();
    let (log, _writer) = batches([given.clone()]);
    let found: Vec<_> = (1..=200)
        .map(|n| log.find(Sequence::new(n)).map(|spot| Bytes::clone(&log.message(&spot))))
        .map(|found| found.expect("each is there"))
        .collect();
    assert_eq!(found, given);
    for (n, (found, given)) in found.iter().zip(&given).enumerate() {
        assert_eq!(found.as_ptr() == given.as_ptr(), n % 7 == 3, "payload {n}");
    }
    assert_eq!(found[1].as_ptr().wrapping_add(1), found[2].as_ptr(), "one behind the other");
}

/// Takes out all segments and recycles them, as a topic does with what all have settled.
fn settle_all<E>(log: &ResidentLog<E>, writer: &mut Writer<E>) {
    let segments: Vec<_> = log.directory.read().values().cloned().collect();
    for segment in segments {
        drop(log.remove(writer, &segment));
        log.recycle(segment);
    }
}

#[test]
fn what_messages_lay_in_is_used_for_the_next() {
    let (log, mut writer) = batches([vec![Bytes::from_static(b"first"); 64]]);
    let place = |sequence| {
        let spot = log.find(Sequence::new(sequence)).expect("it is there");
        let event = log.message(&spot).event();
        (std::ptr::from_ref(event).addr(), event.as_ptr().addr(), Arc::as_ptr(spot.segment()).addr())
    };
    let before = place(1);
    settle_all(&log, &mut writer);
    append(&log, &mut writer, 2, vec![Bytes::from_static(b"other"); 64]);
    log.publish_tail(&writer);
    assert_eq!(place(65), before, "the same events, payloads and segment");
}

#[test]
fn a_payload_that_a_reader_keeps_stays_as_it_is() {
    let (log, mut writer) = batches([vec![Bytes::from_static(b"first"); 64]]);
    let kept = Bytes::clone(&log.message(&log.find(Sequence::new(9)).expect("it is there")));
    for n in 2..10 {
        settle_all(&log, &mut writer);
        append(&log, &mut writer, n, vec![Bytes::from_static(b"other"); 64]);
    }
    assert_eq!(kept, "first");
}

#[test]
fn a_segment_that_somebody_reads_is_not_used_again() {
    let (log, mut writer) = batches([(1..=64_u64).collect()]);
    let read = log.find(Sequence::new(5)).expect("it is there");
    settle_all(&log, &mut writer);
    append(&log, &mut writer, 2, vec![0; 64]);
    assert_eq!(*read.event(), 5);
}

/// Counts its drops; every third panics.
struct Loud(u64, Arc<AtomicUsize>);

impl Drop for Loud {
    fn drop(&mut self) {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(!self.0.is_multiple_of(3), "a drop that panics");
    }
}

#[test]
fn events_whose_drop_panics_keep_no_other_of_their_batch() {
    let drops = Arc::new(AtomicUsize::new(0));
    let events = |n: u64| (0..n).map(|n| Loud(n, drops.clone())).collect::<Vec<_>>();
    let (log, mut writer) = batches([events(64), events(9)]);
    log.append(&mut writer, Slot::own(Loud(0, drops.clone()), Tick::from_nanos(3), None), 8);
    settle_all(&log, &mut writer);
    assert_eq!(drops.load(std::sync::atomic::Ordering::Relaxed), 64 + 9 + 1);
    append(&log, &mut writer, 4, events(64));
    drop(log);
    assert_eq!(drops.load(std::sync::atomic::Ordering::Relaxed), 64 + 9 + 1, "the writer still has them");
    drop(writer);
    assert_eq!(drops.load(std::sync::atomic::Ordering::Relaxed), 64 + 9 + 1 + 64);
}

#[test]
fn what_is_kept_for_later_has_a_bound() {
    let (log, mut writer) = (ResidentLog::new(1), Writer::new());
    for n in 1..=500 {
        append(&log, &mut writer, n, (0..256).map(|_| Bytes::from(vec![1; 1_000])).collect());
    }
    settle_all(&log, &mut writer);
    assert!(log.spares.bytes() > 0);
    assert!(log.spares.bytes() <= 1 << 20, "{} bytes", log.spares.bytes());
}
