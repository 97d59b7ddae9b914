use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::spin::{SPIN_AGAIN, SPUN_IN_VAIN, spin};
use super::{Look, TOKENS_MAX, Waiter, WaitingRoom};

const KEY: u64 = 7;
const OTHER: u64 = 8;

/// A waker that counts.
#[derive(Default)]
struct Counter(AtomicUsize);

impl Counter {
    fn new() -> (Arc<Counter>, Waker) {
        let counter = Arc::new(Counter::default());
        (Arc::clone(&counter), Waker::from(counter))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that does as it is told.
struct Does<F>(F);

impl<F: Fn() + Send + Sync + 'static> Wake for Does<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

fn waker(wake: impl Fn() + Send + Sync + 'static) -> Waker {
    Waker::from(Arc::new(Does(wake)))
}

fn enter<const N: usize>(room: &WaitingRoom, key: u64) -> [Arc<Waiter>; N] {
    std::array::from_fn(|_| {
        let waiter = Waiter::task(Waker::noop());
        room.enter(key, &waiter);
        waiter
    })
}

fn token(room: &WaitingRoom, key: u64) -> Receiver<()> {
    let (sender, receiver) = bounded(1);
    room.enter(key, &Waiter::token(sender));
    receiver
}

/// One character a waiter: `w`oken or not.
fn woken(waiters: &[Arc<Waiter>]) -> String {
    waiters.iter().map(|waiter| if waiter.is_notified() { 'w' } else { '-' }).collect()
}

/// A room that loses a wake fails the test instead of stopping it.
fn within_a_minute<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = bounded(1);
    thread::spawn(move || done.send(run()));
    result.recv_timeout(Duration::from_secs(60)).expect("finishes within a minute")
}

#[test]
fn first_come_is_first_woken() {
    let room = WaitingRoom::new();
    let waiters = enter::<5>(&room, KEY);
    room.wake(KEY, 1);
    assert_eq!(woken(&waiters), "w----");
    room.wake(KEY, 3);
    assert_eq!(woken(&waiters), "wwww-");
    room.wake(KEY, 3);
    assert_eq!(woken(&waiters), "wwwww");
    assert!(room.nobody());
}

#[test]
fn a_wake_is_for_one_key() {
    let room = WaitingRoom::new();
    let (waiters, others) = (enter::<2>(&room, KEY), enter::<2>(&room, OTHER));
    room.wake(KEY - 1, 9);
    room.wake(OTHER, 1);
    assert_eq!((woken(&waiters), woken(&others)), ("--".to_owned(), "w-".to_owned()));
    room.wake_all_of(KEY);
    assert_eq!((woken(&waiters), woken(&others)), ("ww".to_owned(), "w-".to_owned()));
    assert!(!room.has(KEY) && room.has(OTHER));
}

#[test]
fn a_publish_wakes_as_many_of_each_key_as_there_are_messages() {
    let room = WaitingRoom::new();
    let keys = [0, 1, 500, u64::MAX];
    let waiters = keys.map(|key| enter::<3>(&room, key));
    room.wake_each(2);
    assert_eq!(waiters.each_ref().map(|waiters| woken(waiters)), ["ww-"; 4]);
    room.wake_everyone();
    assert_eq!(waiters.each_ref().map(|waiters| woken(waiters)), ["www"; 4]);
    assert!(room.nobody());
}

#[test]
fn who_left_is_not_woken_and_not_counted() {
    let room = WaitingRoom::new();
    let waiters = enter::<3>(&room, KEY);
    assert!(room.leave(KEY, &waiters[0]));
    assert!(!room.leave(KEY, &waiters[0]), "it is not in the room any more");
    room.wake(KEY, 1);
    assert_eq!(woken(&waiters), "-w-");
    assert!(!room.leave(KEY, &waiters[1]), "a wake has taken it out");
    assert!(room.leave(KEY, &waiters[2]));
    assert!(room.nobody() && !room.has(KEY));
}

#[test]
fn who_enters_again_is_last_and_who_is_in_keeps_the_place() {
    let room = WaitingRoom::new();
    let waiters = enter::<3>(&room, KEY);
    room.enter(KEY, &waiters[0]);
    room.wake(KEY, 1);
    assert_eq!(woken(&waiters), "w--");
    room.enter(KEY, &waiters[0]);
    assert_eq!(woken(&waiters), "---", "entering forgets the wake");
    room.wake(KEY, 2);
    assert_eq!(woken(&waiters), "-ww");
    waiters[1].reset();
    assert_eq!(woken(&waiters), "--w");
    assert!(room.leave(KEY, &waiters[0]));
    assert!(room.nobody());
}

#[test]
fn a_token_is_given_once_until_it_is_taken() {
    let room = WaitingRoom::new();
    let ready = token(&room, KEY);
    assert!(room.has(KEY) && !room.nobody());
    assert_eq!(ready.try_recv(), Err(TryRecvError::Empty));
    for _ in 0..3 {
        room.wake(KEY, 1);
        room.wake_each(5);
        assert_eq!(ready.try_recv(), Ok(()));
        assert_eq!(ready.try_recv(), Err(TryRecvError::Empty));
    }
    room.wake(OTHER, 1);
    assert_eq!(ready.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn a_token_uses_up_no_wake_and_can_be_renewed_alone() {
    let room = WaitingRoom::new();
    let (first, waiters, last) = (token(&room, KEY), enter::<2>(&room, KEY), token(&room, KEY));
    room.wake(KEY, 0);
    assert_eq!((first.try_recv(), woken(&waiters).as_str(), last.try_recv()), (Ok(()), "--", Ok(())));
    room.wake(KEY, 1);
    assert_eq!((first.try_recv(), woken(&waiters).as_str(), last.try_recv()), (Ok(()), "w-", Ok(())));
    room.wake_everyone();
    assert_eq!((first.try_recv(), woken(&waiters).as_str(), last.try_recv()), (Ok(()), "ww", Ok(())));
}

#[test]
fn a_token_whose_receiver_is_gone_leaves_at_the_next_wake() {
    let room = WaitingRoom::new();
    let (gone, stays) = (token(&room, KEY), token(&room, KEY));
    room.wake(KEY, 1);
    drop(gone); // with the token in it
    assert_eq!(room.seats.lock().tokens.len(), 2);
    room.wake_each(1);
    assert_eq!(room.seats.lock().tokens.len(), 1);
    drop(stays);
    room.wake_each(1);
    assert!(room.nobody());
}

#[test]
fn dropped_tokens_do_not_pile_up_where_nothing_is_published() {
    let room = WaitingRoom::new();
    let kept: Vec<_> = (0..TOKENS_MAX as u64).map(|key| token(&room, key)).collect();
    for _ in 0..10_000 {
        drop(token(&room, KEY));
        let tokens = room.seats.lock().tokens.len();
        assert!(tokens <= 2 * (TOKENS_MAX + 1) + 1, "{tokens} tokens");
    }
    room.wake_everyone();
    assert!(kept.iter().all(|ready| ready.try_recv().is_ok()), "those in use are still there");
    assert_eq!(room.seats.lock().tokens.len(), TOKENS_MAX);
}

#[test]
fn a_waker_that_panics_does_not_keep_the_wake_from_the_others() {
    let room = WaitingRoom::new();
    let ready = token(&room, KEY);
    let (counter, counting) = Counter::new();
    let panicking = waker(|| panic!("a waker's own trouble"));
    for waker in [&panicking, &counting, &panicking, &counting] {
        room.enter(KEY, &Waiter::task(waker));
    }
    room.wake_each(4);
    assert_eq!((counter.count(), ready.try_recv()), (2, Ok(())));
    assert!(room.has(KEY), "the token stays");
}

#[test]
fn a_waker_may_use_the_room() {
    within_a_minute(|| {
        let room = Arc::new(WaitingRoom::new());
        let (counter, counting) = Counter::new();
        let inner = Arc::clone(&room);
        let waker = waker(move || {
            let waiter = Waiter::task(&counting);
            inner.enter(KEY, &waiter);
            inner.wake(KEY, 1);
            assert!(!inner.leave(KEY, &waiter));
            assert!(!inner.has(KEY));
        });
        room.enter(KEY, &Waiter::task(&waker));
        room.wake(KEY, 1);
        assert_eq!(counter.count(), 1);
    });
}

#[test]
fn a_wake_wakes_the_last_waker_once() {
    let room = WaitingRoom::new();
    let ((old, old_waker), (new, new_waker)) = (Counter::new(), Counter::new());
    let waiter = Waiter::task(&old_waker);
    room.enter(KEY, &waiter);
    waiter.set_waker(&new_waker);
    waiter.set_waker(&new_waker);
    assert_eq!(Arc::strong_count(&old), 2, "nobody holds the old waker but the test");
    room.wake(KEY, 1);
    room.wake(KEY, 1);
    assert_eq!((old.count(), new.count()), (0, 1));
}

#[test]
fn a_waker_set_after_the_wake_is_woken_at_once() {
    let room = WaitingRoom::new();
    let (counter, counting) = Counter::new();
    let [waiter] = enter::<1>(&room, KEY);
    room.wake(KEY, 1);
    waiter.set_waker(&counting);
    assert_eq!(counter.count(), 1);
}

#[test]
fn a_thread_parks_until_it_is_woken_or_its_time_is_over() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let waiter = Waiter::thread();
        room.enter(KEY, &waiter);
        assert!(!waiter.park(Some(Instant::now())));
        // Nobody knows for what.
        thread::current().unpark();
        assert!(!waiter.park(Some(Instant::now() + Duration::from_millis(1))));
        assert!(room.has(KEY), "it is still waiting");
        room.wake(KEY, 1);
        assert!(waiter.park(None));
        assert!(waiter.park(Some(Instant::now())), "a wake counts also when the time is over");
        waiter.reset();
        assert!(!waiter.park(Some(Instant::now())));
    });
}

#[test]
fn waiting_finds_what_is_there_without_entering() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        assert!(room.wait(KEY, || Look::Found(room.nobody())));
        let mut seat = None;
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(room.poll(KEY, &mut seat, &mut context, || Look::Found(room.nobody())), Poll::Ready(true));
        assert!(seat.is_none());
    });
}

#[test]
fn waiting_looks_again_after_entering_and_when_its_time_is_over() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let mut looks = Vec::new();
        let result = room.wait(KEY, || {
            looks.push(room.has(KEY));
            if looks.len() == 3 {
                Look::GaveUp("timeout")
            } else {
                Look::Nothing { until: Some(Instant::now()) }
            }
        });
        assert_eq!((result, looks), ("timeout", vec![false, true, true]));
        assert!(room.nobody());
    });
}

#[test]
fn a_woken_thread_looks_before_it_enters_again() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let mut looks = Vec::new();
        room.wait(KEY, || {
            looks.push(room.has(KEY));
            if looks.len() == 2 {
                room.wake(KEY, 1);
            }
            if looks.len() == 4 { Look::Found(()) } else { Look::Nothing { until: None } }
        });
        assert_eq!(looks, [false, true, false, true]);
        assert!(room.nobody());
    });
}

/// Two wait and two things come. The first wake goes to the second in the queue, who looks when the first thing is gone already, and
/// sleeps again. The second wake then goes to the first, who has just found the first thing and goes: it must reach the other.
#[test]
fn a_wake_that_comes_too_late_for_who_has_found_something_is_passed_on() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let other = Waiter::task(Waker::noop());
        let look = || {
            if !room.has(KEY) {
                return Look::Nothing { until: None };
            }
            room.enter(KEY, &other);
            room.wake(KEY, 1);
            assert!(!other.is_notified());
            Look::Found(())
        };
        room.wait(KEY, look);
        assert!(other.is_notified());

        other.reset();
        let mut seat = None;
        assert_eq!(room.poll(KEY, &mut seat, &mut Context::from_waker(Waker::noop()), look), Poll::Ready(()));
        assert!(seat.is_none() && other.is_notified());
    });
}

#[test]
fn a_wake_is_used_up_by_finding_something() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let other = Waiter::task(Waker::noop());
        let mut looks = 0;
        room.wait(KEY, || {
            looks += 1;
            if looks == 2 {
                room.wake(KEY, 1);
                room.enter(KEY, &other);
            }
            if looks == 3 { Look::Found(()) } else { Look::Nothing { until: None } }
        });
        assert!(!other.is_notified());

        let mut seat = None;
        let mut context = Context::from_waker(Waker::noop());
        assert!(room.leave(KEY, &other));
        assert_eq!(
            room.poll(KEY, &mut seat, &mut context, || Look::<()>::Nothing { until: None }),
            Poll::Pending
        );
        room.wake(KEY, 1);
        room.enter(KEY, &other);
        assert_eq!(room.poll(KEY, &mut seat, &mut context, || Look::Found(())), Poll::Ready(()));
        assert!(seat.is_none() && !other.is_notified());
    });
}

#[test]
fn giving_up_or_panicking_passes_the_wake_on() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let (gives_up, panics) = (Waiter::task(Waker::noop()), Waiter::task(Waker::noop()));
        for (other, panic) in [(&gives_up, false), (&panics, true)] {
            let mut looks = 0;
            let wait = || {
                room.wait(KEY, || {
                    looks += 1;
                    match looks {
                        1 => return Look::Nothing { until: None },
                        2 => {
                            room.enter(KEY, other);
                            room.wake(KEY, 1);
                            return Look::Nothing { until: None };
                        }
                        _ => assert!(!panic, "a filter's own trouble"),
                    }
                    Look::GaveUp(())
                });
            };
            assert_eq!(catch_unwind(AssertUnwindSafe(wait)).is_err(), panic);
            assert_eq!(looks, 3);
            assert!(other.is_notified() && room.nobody());
        }
    });
}

#[test]
fn a_panic_in_a_poll_passes_the_wake_on() {
    let room = WaitingRoom::new();
    let mut seat = None;
    let mut context = Context::from_waker(Waker::noop());
    assert!(room.poll(KEY, &mut seat, &mut context, || Look::<()>::Nothing { until: None }).is_pending());
    let [other] = enter::<1>(&room, KEY);
    let mut looks = 0;
    let poll = || {
        room.poll(KEY, &mut seat, &mut context, || {
            looks += 1;
            room.wake(KEY, 1);
            assert!(looks < 2, "a filter's own trouble");
            Look::<()>::Nothing { until: None }
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(poll)).is_err());
    room.abandon(KEY, &mut seat);
    assert!(other.is_notified() && room.nobody());
}

#[test]
fn a_dropped_future_leaves_or_passes_its_wake_on() {
    let room = WaitingRoom::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut seat = None;
    let mut pend = |seat: &mut Option<Arc<Waiter>>| {
        assert!(room.poll(KEY, seat, &mut context, || Look::<()>::Nothing { until: None }).is_pending());
    };
    room.abandon(KEY, &mut seat);
    pend(&mut seat);
    pend(&mut seat);
    assert_eq!(room.seats.lock().queues.len(), 1, "however often it is polled");
    room.abandon(KEY, &mut seat);
    assert!(seat.is_none() && room.nobody());

    pend(&mut seat);
    let [other] = enter::<1>(&room, KEY);
    room.wake(KEY, 1);
    assert!(!other.is_notified());
    room.abandon(KEY, &mut seat);
    assert!(other.is_notified());
}

#[test]
fn an_idle_room_is_small() {
    assert!(size_of::<WaitingRoom>() <= 96, "{} bytes", size_of::<WaitingRoom>());
}

#[test]
fn spinning_in_vain_becomes_shorter_and_is_tried_again() {
    for vain in 1..SPIN_AGAIN {
        assert!(!spin(|| false));
        assert_eq!(SPUN_IN_VAIN.get(), vain);
    }
    assert!(!spin(|| false));
    assert_eq!(SPUN_IN_VAIN.get(), 0);
    assert!(!spin(|| false));
    assert!(spin(|| true));
    assert_eq!(SPUN_IN_VAIN.get(), 0);
}

/// What loom shows for a few steps, on the real machine for many: nobody sleeps while there is something.
#[test]
fn threads_receive_all_that_threads_publish() {
    const PUBLISHERS: u64 = 3;
    const RECEIVERS: u64 = 3;
    const MESSAGES: u64 = 20_000;
    let received = within_a_minute(|| {
        let room = WaitingRoom::new();
        let (tail, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let receive = || {
            room.wait(KEY, || {
                let took = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                    (taken < tail.load(Ordering::Relaxed)).then_some(taken + 1)
                });
                took.map_or(Look::Nothing { until: None }, Look::Found)
            });
        };
        thread::scope(|scope| {
            for _ in 0..PUBLISHERS {
                scope.spawn(|| {
                    for _ in 0..MESSAGES * RECEIVERS {
                        tail.fetch_add(1, Ordering::Relaxed);
                        room.wake_each(1);
                    }
                });
            }
            for _ in 0..RECEIVERS {
                scope.spawn(|| (0..MESSAGES * PUBLISHERS).for_each(|_| receive()));
            }
        });
        assert!(room.nobody());
        taken.load(Ordering::Relaxed)
    });
    assert_eq!(received, PUBLISHERS * RECEIVERS * MESSAGES);
}

/// Each message is sent only when the one before has come back, so that both sides sleep or spin for every one.
#[test]
fn threads_answer_each_other() {
    within_a_minute(|| {
        let room = WaitingRoom::new();
        let turn = AtomicU64::new(0);
        let play = |me: u64| {
            for round in 0..10_000_u64 {
                let mine = 2 * round + me;
                room.wait(me, || match turn.load(Ordering::Relaxed) == mine {
                    true => Look::Found(()),
                    false => Look::Nothing { until: None },
                });
                turn.store(mine + 1, Ordering::Relaxed);
                room.wake(1 - me, 1);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| play(1));
            play(0);
        });
        assert_eq!(turn.load(Ordering::Relaxed), 20_000);
    });
}
