//! The one place that chooses what threads meet through: locks, atomics, parking.
//!
//! Ordinarily these are `parking_lot`'s locks and the standard library's atomics and threads. Built with `--cfg eventflow_loom` or
//! `--cfg eventflow_shuttle` they are the model checkers' own, so that the very code that ships is what is checked: loom for the wake-up
//! primitive (it knows what release and acquire do not promise), shuttle for the broker (it takes every atomic as sequentially consistent, but
//! bears a whole broker). The locks have `parking_lot`'s face everywhere: a guard, no `Result`, no poisoning.
//!
//! `Arc` and `OnceLock` are the standard library's everywhere: nothing here depends on how they are made. What is used from here is imported
//! from here by every module, also in its tests; a `std::sync::Mutex` beside a model would stop the model, not the thread.
//!
//! Under a model time does not pass: [`thread::park_timeout`] may return at any moment, which is all that is ever known about a timeout.

pub(crate) use chosen::*;

#[cfg(all(test, eventflow_shuttle))]
pub(crate) mod explore;

/// Whether a model checker runs the threads: then there is nothing to gain from spinning, and each turn costs schedules to explore.
pub(crate) const MODELLED: bool = cfg!(any(eventflow_loom, eventflow_shuttle));

#[cfg(not(any(eventflow_loom, eventflow_shuttle)))]
#[allow(unused_imports, reason = "one face for three implementations, whatever of it is in use")]
mod chosen {
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use std::hint;
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread_local;

    pub(crate) mod thread {
        pub(crate) use std::thread::{
            Builder, JoinHandle, Thread, current, panicking, park, park_timeout, spawn, yield_now,
        };
    }
}

#[cfg(eventflow_loom)]
#[allow(unused_imports, dead_code, reason = "one face for three implementations, whatever of it is in use")]
mod chosen {
    pub(crate) use super::locks::*;
    pub(crate) use loom::hint;
    pub(crate) use loom::sync::atomic;
    /// One for all of loom's threads, which take turns on one of the system's: nothing that loom checks has any.
    pub(crate) use std::thread_local;

    /// Loom's threads, with parking of our own: its `unpark` also sets going a thread that is blocked in a lock, and forgets its
    /// token when the thread then blocks in one. `Notify` does neither, and wakes once in a while for no reason, as parking may.
    pub(crate) mod thread {
        use std::cell::OnceCell;
        use std::io;
        use std::sync::Arc;
        use std::time::Duration;

        pub(crate) use loom::thread::{panicking, yield_now};

        #[derive(Clone, Debug)]
        pub(crate) struct Thread(Arc<loom::sync::Notify>);

        loom::thread_local! {
            static CURRENT: OnceCell<Thread> = OnceCell::new();
        }

        impl Thread {
            fn new() -> Self {
                Thread(Arc::new(loom::sync::Notify::new()))
            }

            pub(crate) fn unpark(&self) {
                self.0.notify();
            }
        }

        #[derive(Debug)]
        pub(crate) struct JoinHandle<T> {
            handle: loom::thread::JoinHandle<T>,
            thread: Thread,
        }

        impl<T> JoinHandle<T> {
            pub(crate) fn join(self) -> std::thread::Result<T> {
                self.handle.join()
            }

            pub(crate) fn thread(&self) -> &Thread {
                &self.thread
            }
        }

        #[derive(Debug)]
        pub(crate) struct Builder(loom::thread::Builder);

        impl Builder {
            pub(crate) fn new() -> Self {
                Builder(loom::thread::Builder::new())
            }

            pub(crate) fn name(self, name: String) -> Self {
                Builder(self.0.name(name))
            }

            #[track_caller]
            pub(crate) fn spawn<F, T>(self, run: F) -> io::Result<JoinHandle<T>>
            where
                F: FnOnce() -> T + Send + 'static,
                T: Send + 'static,
            {
                let thread = Thread::new();
                let own = thread.clone();
                let handle = self.0.spawn(move || {
                    CURRENT.with(|current| current.get_or_init(|| own).clone());
                    run()
                })?;
                Ok(JoinHandle { handle, thread })
            }
        }

        #[track_caller]
        pub(crate) fn spawn<F, T>(run: F) -> JoinHandle<T>
        where
            F: FnOnce() -> T + Send + 'static,
            T: Send + 'static,
        {
            Builder::new().spawn(run).expect("a model always has room for its threads")
        }

        pub(crate) fn current() -> Thread {
            CURRENT.with(|current| current.get_or_init(Thread::new).clone())
        }

        pub(crate) fn park() {
            current().0.wait();
        }

        pub(crate) fn park_timeout(_: Duration) {
            yield_now();
        }
    }
}

#[cfg(eventflow_shuttle)]
#[allow(unused_imports, dead_code, reason = "one face for three implementations, whatever of it is in use")]
mod chosen {
    pub(crate) use super::locks::*;
    pub(crate) use shuttle::hint;
    /// `fence` is among them and does nothing: every access is sequentially consistent already.
    pub(crate) use shuttle::sync::atomic;
    pub(crate) use shuttle::thread_local;

    pub(crate) mod thread {
        use std::time::Duration;

        pub(crate) use shuttle::thread::{
            Builder, JoinHandle, Thread, current, panicking, park, spawn, yield_now,
        };

        pub(crate) fn park_timeout(_: Duration) {
            yield_now();
        }
    }
}

/// The models' locks, which speak as the standard library's do, with `parking_lot`'s face.
#[cfg(any(eventflow_loom, eventflow_shuttle))]
#[allow(dead_code, reason = "one face for three implementations, whatever of it is in use")]
mod locks {
    use std::fmt;
    use std::sync::{PoisonError, TryLockError, TryLockResult};

    #[cfg(eventflow_loom)]
    use loom::sync as model;
    #[cfg(eventflow_shuttle)]
    use shuttle::sync as model;

    pub(crate) use model::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Default)]
    pub(crate) struct Mutex<T>(model::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(model::Mutex::new(value))
        }

        #[track_caller]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        #[track_caller]
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            free(self.0.try_lock())
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[derive(Default)]
    pub(crate) struct RwLock<T>(model::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            RwLock(model::RwLock::new(value))
        }

        #[track_caller]
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        #[track_caller]
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }

        #[track_caller]
        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            free(self.0.try_read())
        }

        #[track_caller]
        pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
            free(self.0.try_write())
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }

    fn free<G>(result: TryLockResult<G>) -> Option<G> {
        match result {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    impl<T> fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Mutex { .. }")
        }
    }

    impl<T> fmt::Debug for RwLock<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("RwLock { .. }")
        }
    }
}
