//! Snapshots, and seeks to them, over restarts.

use std::time::Duration;

use eventflow::{DeleteError, Retention, Seek, SeekError};

use crate::support::{Dir, drain, end};

#[test]
fn p17_a_snapshot_survives_and_keeps_what_it_needs() {
    let dir = Dir::new();
    for is_clean in [true, false] {
        let name = format!("orders-{is_clean}");
        let broker = dir.open();
        let orders = broker.topic::<String>(&name).open().unwrap();
        let billing = orders.subscription("billing").open().unwrap();
        orders.publish_all((0..6).map(|n| n.to_string())).unwrap();
        billing.recv().unwrap().ack().unwrap();
        billing.recv_batch(2).unwrap().into_iter().last().unwrap().ack().unwrap();
        billing.snapshot(&format!("{name}-before")).unwrap();
        assert_eq!(drain(&billing), ["1", "3", "4", "5"]);
        if is_clean {
            end(broker)
        } else {
            drop((broker, orders, billing))
        }

        for _ in 0..2 {
            let broker = dir.open();
            assert!(broker.snapshots().contains(&format!("{name}-before")));
            let billing =
                broker.topic::<String>(&name).open().unwrap().subscription("billing").open().unwrap();
            assert_eq!(billing.stats().backlog, 0);
            billing.seek(Seek::Snapshot(format!("{name}-before"))).unwrap();
            assert_eq!(billing.stats().backlog, 4);
            drop((broker, billing));
            let broker = dir.open();
            let billing =
                broker.topic::<String>(&name).open().unwrap().subscription("billing").open().unwrap();
            assert_eq!(drain(&billing), ["1", "3", "4", "5"], "clean: {is_clean}");
        }
        let broker = dir.open();
        broker.delete_snapshot(&format!("{name}-before")).unwrap();
        drop(broker);
        let broker = dir.open();
        assert_eq!(broker.delete_snapshot(&format!("{name}-before")), Err(DeleteError::NotFound));
        let billing = broker.topic::<String>(&name).open().unwrap().subscription("billing").open().unwrap();
        let sought = billing.seek(Seek::Snapshot(format!("{name}-before")));
        assert_eq!(sought, Err(SeekError::NotFound));
        end(broker);
    }
}

#[test]
fn a_seek_on_a_topic_that_keeps_survives() {
    let dir = Dir::new();
    let keep = Retention::for_duration(Duration::from_secs(3_600));
    let broker = dir.open();
    let orders = broker.topic::<String>("orders").retention(keep).open().unwrap();
    let billing = orders.subscription("billing").open().unwrap();
    orders.publish_all((0..6).map(|n| n.to_string())).unwrap();
    assert_eq!(drain(&billing).len(), 6);
    billing.seek(Seek::Sequence(3)).unwrap();
    billing.recv().unwrap().ack().unwrap();
    drop((broker, orders, billing));
    let broker = dir.open();
    let billing = broker.topic::<String>("orders").open().unwrap().subscription("billing").open().unwrap();
    assert_eq!(drain(&billing), ["3", "4", "5"]);
}
