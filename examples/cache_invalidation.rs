//! Several caches in one process, in front of one database. Who updates a row publishes its key, and every
//! cache drops what it holds of it.

use std::collections::HashMap;

use eventflow::{Broker, DeliveryMode, Subscription};
use parking_lot::Mutex;

#[derive(Default)]
struct Database {
    rows: Mutex<HashMap<u32, String>>,
    reads: Mutex<u32>,
}

impl Database {
    fn read(&self, key: u32) -> String {
        *self.reads.lock() += 1;
        self.rows.lock()[&key].clone()
    }
}

struct Cache {
    held: HashMap<u32, String>,
    stale_keys: Subscription<u32>,
}

impl Cache {
    /// The row as it is now: what was published before this call has been heeded.
    fn get(&mut self, key: u32, database: &Database) -> String {
        while let Ok(stale) = self.stale_keys.try_recv() {
            self.held.remove(&*stale); // no ack: the hand-out has settled it
        }
        self.held.entry(key).or_insert_with(|| database.read(key)).clone()
    }
}

fn main() -> eventflow::Result<()> {
    let broker = Broker::in_memory();
    let stale = broker.topic::<u32>("stale-rows").open()?;
    let database = Database::default();
    let update = |key: u32, row: &str| {
        database.rows.lock().insert(key, row.to_owned());
        stale.publish(key) // after the update, or a cache could read the old row once more and keep it
    };

    let mut caches = Vec::new();
    for name in ["sessions", "search", "billing"] {
        // Each cache its own subscription. At most once: to forget twice would do no harm, and no cache fails
        // at it.
        let stale_keys = stale.subscription(name).delivery(DeliveryMode::AtMostOnce).open()?;
        caches.push(Cache { held: HashMap::new(), stale_keys });
    }

    update(1, "Anna")?;
    update(2, "Ben")?;
    for cache in &mut caches {
        assert_eq!([1, 1, 2, 2].map(|key| cache.get(key, &database)), ["Anna", "Anna", "Ben", "Ben"]);
    }
    assert_eq!(*database.reads.lock(), 6, "each cache reads each row once");

    update(2, "Benjamin")?;
    for cache in &mut caches {
        assert_eq!([1, 2, 2].map(|key| cache.get(key, &database)), ["Anna", "Benjamin", "Benjamin"]);
    }
    assert_eq!(*database.reads.lock(), 9, "and after the update only the changed row again");
    println!("21 reads of the caches, 9 of the database");
    Ok(())
}
