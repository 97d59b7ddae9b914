//! The engine: locks, clocks and wake-ups. It joins delivery, which decides, with the log, which remembers.

pub(crate) mod local;
pub(crate) mod timer;
pub(crate) mod waiters;
