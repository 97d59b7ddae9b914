//! Where the tests' brokers keep their messages: in memory, or, in a run that says so, each in a directory of its own. The tests read the same.
//!
//! `EVENTFLOW_TESTS_ON_DISK=DIR cargo test --test it` is such a run; [`on_disk`](crate::on_disk) makes it part of every run.

use std::any::{Any, TypeId};
use std::fs::{self, File};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use eventflow::{
    BrokerBuilder, Capability, Codec, CodecError, Durability, ManualClock, OpenError, TopicBuilder,
};

/// The directory for the brokers' directories: with it, a run is on disk.
pub(crate) const ON_DISK: &str = "EVENTFLOW_TESTS_ON_DISK";
/// Set beside it: brokers restart where a test says [`restarted`](Broker::restarted).
pub(crate) const WITH_RESTARTS: &str = "EVENTFLOW_TESTS_WITH_RESTARTS";

/// None: this run is in memory.
pub(crate) fn home() -> Option<&'static PathBuf> {
    static HOME: OnceLock<Option<PathBuf>> = OnceLock::new();
    HOME.get_or_init(|| std::env::var_os(ON_DISK).map(PathBuf::from)).as_ref()
}

/// Whether [`Broker::restarted`] does what it says.
pub(crate) fn restarts() -> bool {
    home().is_some() && std::env::var_os(WITH_RESTARTS).is_some()
}

/// A broker as the tests have it.
#[derive(Clone, Debug)]
pub(crate) struct Broker {
    broker: eventflow::Broker,
    clock: Option<ManualClock>,
    dir: Option<Arc<Dir>>,
}

impl Broker {
    pub(crate) fn in_memory() -> Broker {
        Broker::builder().build().expect("it opens")
    }

    pub(crate) fn builder() -> Builder {
        Builder { builder: eventflow::Broker::builder(), clock: None }
    }

    /// A topic whose events have a codec where they need one.
    pub(crate) fn topic<E: Send + Sync + 'static>(&self, name: &str) -> TopicBuilder<E> {
        let topic = self.broker.topic::<E>(name);
        let raw = [TypeId::of::<Bytes>(), TypeId::of::<Vec<u8>>(), TypeId::of::<String>()];
        match &self.dir {
            Some(_) if !raw.contains(&TypeId::of::<E>()) => topic.codec(Whatever),
            _ => topic,
        }
    }

    /// The broker, ended in good order and opened again, in a run with restarts. What is to go on is opened anew on it; in every other run that finds all as it was.
    pub(crate) fn restarted(self) -> Broker {
        let Some(dir) = self.dir.as_ref().filter(|_| restarts()) else { return self };
        self.broker.shutdown(Duration::ZERO).expect("it is synced");
        let builder = Builder { builder: eventflow::Broker::builder(), clock: None };
        let builder = match &self.clock {
            Some(clock) => builder.clock(clock.clone()),
            None => builder,
        };
        builder.open(Some(dir.clone())).expect("it opens again")
    }
}

impl Deref for Broker {
    type Target = eventflow::Broker;
    fn deref(&self) -> &eventflow::Broker {
        &self.broker
    }
}

/// Options of a broker as the tests have it.
pub(crate) struct Builder {
    builder: BrokerBuilder,
    clock: Option<ManualClock>,
}

impl Builder {
    pub(crate) fn clock(self, clock: ManualClock) -> Self {
        Builder { builder: self.builder.clock(clock.clone()), clock: Some(clock) }
    }

    pub(crate) fn require(self, capability: Capability) -> Self {
        Builder { builder: self.builder.require(capability), ..self }
    }

    pub(crate) fn build(self) -> Result<Broker, OpenError> {
        self.open(home().map(|home| Arc::new(Dir::new(home))))
    }

    fn open(self, dir: Option<Arc<Dir>>) -> Result<Broker, OpenError> {
        let builder = match &dir {
            // Nothing here is about syncs.
            Some(dir) => self.builder.dir(&dir.0).durability(Durability::Os),
            None => self.builder,
        };
        Ok(Broker { broker: builder.build()?, clock: self.clock, dir })
    }
}

/// A broker's directory. It goes once no handle of the broker is left: a topic may live longer than the broker's own handle.
#[derive(Debug)]
struct Dir(PathBuf);

static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Dir {
    fn new(home: &std::path::Path) -> Dir {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Those that a broker has locked are still in use.
        let in_use = |dir: &PathBuf| File::open(dir.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        let (in_use, left) =
            std::mem::take(&mut *LEFT.lock().expect("no panic under it")).into_iter().partition(in_use);
        LEFT.lock().expect("no panic under it").extend::<Vec<_>>(in_use);
        left.iter().for_each(|dir| _ = fs::remove_dir_all(dir));
        // Tests may run in processes of their own.
        Dir(home.join(format!("{}-{number}", std::process::id())))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        LEFT.lock().expect("no panic under it").push(std::mem::take(&mut self.0));
    }
}

/// A codec for every event. What cannot be told in bytes is told by as many zeros as it takes in memory, so that it weighs the same, and is not read back.
struct Whatever;

impl<E: Send + Sync + 'static> Codec<E> for Whatever {
    fn name(&self) -> &str {
        "whatever"
    }

    fn encode(&self, event: &E, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let any: &dyn Any = event;
        if let Some(number) = any.downcast_ref::<u64>() {
            out.extend_from_slice(&number.to_be_bytes());
        } else if let Some(number) = any.downcast_ref::<i64>() {
            out.extend_from_slice(&number.to_be_bytes());
        } else if let Some(number) = any.downcast_ref::<u32>() {
            out.extend_from_slice(&number.to_be_bytes());
        } else {
            out.resize(out.len() + size_of::<E>(), 0);
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<E, CodecError> {
        let wrong = |_| CodecError::new("of another length");
        let event: Box<dyn Any> = if TypeId::of::<E>() == TypeId::of::<u64>() {
            Box::new(bytes.try_into().map(u64::from_be_bytes).map_err(wrong)?)
        } else if TypeId::of::<E>() == TypeId::of::<i64>() {
            Box::new(bytes.try_into().map(i64::from_be_bytes).map_err(wrong)?)
        } else if TypeId::of::<E>() == TypeId::of::<u32>() {
            Box::new(bytes.try_into().map(u32::from_be_bytes).map_err(wrong)?)
        } else {
            return Err(CodecError::new("such an event is not read back"));
        };
        event.downcast().map(|event| *event).map_err(|_| CodecError::new("of another type"))
    }
}
