//! How a broker ends, and what is true while it is open and after.

use std::time::Duration;

use eventflow::{
    Broker, CreateError, DeleteError, DeliveryMode, Durability, Error, OpenError, PublishError, RecvError,
    SeekError, SettleError, TryRecvError, UpdateError,
};

use crate::support::{Dir, ENDS, End, drain, end, ended, orders, send, take, take_many};

const DURABILITIES: [Durability; 3] =
    [Durability::Always, Durability::Os, Durability::Interval(Duration::from_secs(3_600))];

#[test]
fn p20_a_directory_is_open_once() {
    let dir = Dir::new();
    let broker = dir.open();
    for _ in 0..2 {
        assert!(matches!(Broker::open(dir.path()), Err(OpenError::AlreadyOpen)));
    }
    // By another name, too.
    let detour = dir.path().join("..").join(dir.path().file_name().unwrap());
    assert!(matches!(Broker::open(detour), Err(OpenError::AlreadyOpen)));
    let topic = broker.topic::<String>("orders").open().unwrap();
    send(&topic, "still ours");
    drop(broker);
    assert!(matches!(Broker::open(dir.path()), Err(OpenError::AlreadyOpen)), "a topic holds it");
    let billing = topic.subscription("billing").open().unwrap();
    drop(topic);
    assert!(matches!(Broker::open(dir.path()), Err(OpenError::AlreadyOpen)), "a subscription holds it");
    drop(billing);
    end(dir.open());
    dir.open();
}

#[test]
fn after_a_shutdown_every_handle_says_closed_and_the_directory_is_free() {
    let dir = Dir::new();
    let broker = dir.open();
    let topic = broker.topic::<String>("orders").open().unwrap();
    let billing = topic.subscription("billing").open().unwrap();
    topic.publish_all(orders(1..=5)).unwrap();
    let [one, two, three] = take_many(&billing, 3).try_into().unwrap();
    let report = broker.shutdown(Duration::ZERO).unwrap();
    assert_eq!((report.outstanding, report.backlog), (3, 5));
    for _ in 0..2 {
        // Before and after somebody else has the directory.
        assert!(matches!(topic.publish("more"), Err(PublishError::Closed(_))));
        assert!(topic.publish_all(["more"]).is_err());
        assert!(matches!(billing.try_recv(), Err(TryRecvError::Closed)));
        assert!(matches!(billing.recv(), Err(RecvError::Closed)));
        assert_eq!(billing.seek(eventflow::Seek::Earliest), Err(SeekError::Closed));
        assert!(matches!(topic.subscription("other").open(), Err(CreateError::Closed)));
        assert!(matches!(broker.topic::<String>("other").open(), Err(CreateError::Closed)));
        assert!(matches!(broker.topic::<String>("orders").open(), Err(CreateError::Closed)));
        assert_eq!(billing.delete(), Err(DeleteError::Closed));
        assert_eq!(broker.delete_topic("orders"), Err(DeleteError::Closed));
        assert!(matches!(topic.update().apply(), Err(UpdateError::Closed)));
        assert!(matches!(billing.update().apply(), Err(UpdateError::Closed)));
        assert!(billing.pause().is_err());
        assert!(matches!(broker.shutdown(Duration::ZERO), Err(Error::Closed)));
        let again = dir.open();
        end(again);
    }
    assert_eq!(one.ack(), Err(SettleError::Closed));
    assert_eq!(two.nack(), Err(SettleError::Closed));
    drop(three);

    let again = dir.open();
    let billing = again.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    let mut left = drain(&billing);
    left.sort();
    assert_eq!(left, orders(1..=5));
}

#[test]
fn a_shutdown_waits_for_what_is_settled_meanwhile() {
    let dir = Dir::new();
    let broker = dir.open();
    let topic = broker.topic::<String>("orders").open().unwrap();
    let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce).open().unwrap();
    topic.publish_all(orders(1..=2)).unwrap();
    let held = take(&billing);
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| broker.shutdown(Duration::from_secs(60)).unwrap());
        while !matches!(topic.try_publish("more"), Err(PublishError::Closed(_))) {
            std::thread::yield_now();
        }
        held.ack().unwrap();
        let report = shutdown.join().unwrap();
        assert_eq!(report.outstanding, 0);
    });
    drop((topic, billing, broker));
    let broker = dir.open();
    let billing = broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    let left = drain(&billing);
    assert_eq!(left[0], "order 2", "{left:?}");
}

#[test]
fn p01_with_any_durability_the_end_of_a_process_loses_nothing() {
    for durability in DURABILITIES {
        for how in ENDS {
            let mut dir = Dir::new();
            for generation in 0..3 {
                let broker = Broker::builder().dir(dir.path()).durability(durability).build().unwrap();
                let topic = broker.topic::<String>("orders").open().unwrap();
                let billing = topic.subscription("billing").delivery(DeliveryMode::ExactlyOnce);
                let billing = billing.open().unwrap();
                let case = format!("{durability:?} {how:?} {generation}");
                assert_eq!(billing.stats().backlog, generation * 10, "{case}");
                topic.publish_all(orders(1..=10)).unwrap();
                (11..=20).for_each(|n| {
                    send(&topic, format!("order {n}"));
                });
                billing.recv_batch(5).unwrap().ack().unwrap();
                take_many(&billing, 5).into_iter().for_each(|delivery| delivery.ack().unwrap());
                dir = ended(how, dir, broker, (topic, billing));
            }
        }
    }
}

#[test]
fn the_report_says_what_was_found() {
    for how in ENDS {
        let dir = Dir::new();
        let broker = dir.open();
        assert_eq!(broker.recovery(), Default::default(), "a new directory holds nothing");
        let topic = broker.topic::<String>("orders").open().unwrap();
        (0..10).for_each(|_| {
            send(&topic, "order");
        });
        let dir = ended(how, dir, broker, topic);
        let broker = dir.open();
        let report = broker.recovery();
        assert!(report.replayed >= 11, "{how:?}: {report:?}");
        assert_eq!((report.lost, report.damaged.len()), (0, 0), "{how:?}: {report:?}");
        if how == End::Shutdown {
            assert_eq!(report.rewritten, 0, "{report:?}");
        }
    }
}

#[test]
fn a_broker_that_is_only_opened_changes_nothing() {
    let mut dir = Dir::new();
    let broker = dir.open();
    let topic = broker.topic::<String>("orders").open().unwrap();
    let billing = topic.subscription("billing").open().unwrap();
    topic.publish_all(orders(1..=10)).unwrap();
    drop((topic, billing));
    end(broker);
    for n in 0..60 {
        let broker = dir.open();
        dir = ended(ENDS[n % 3], dir, broker, ());
    }
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert!(files < 20, "{files} files are left");
    let broker = dir.open();
    let disk = broker.stats().disk_bytes;
    assert!(disk <= 3 * (16 << 20), "{disk} bytes are used for ten messages");
    let billing = broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    assert_eq!(drain(&billing), orders(1..=10));
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let dir = Dir::new();
    std::fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
    assert!(matches!(Broker::open(dir.path()), Err(OpenError::Foreign { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was changed");
    let file = dir.path().join("thesis.txt");
    assert!(matches!(Broker::open(&file), Err(OpenError::Io { .. })));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "years of work");
    assert!(Broker::open(dir.path().join("no").join("parent")).is_err());
}
