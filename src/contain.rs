//! The user's code (closures, the `Drop` of an event) may panic. What it throws stays where it was called.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// None: it panicked. The panic hook has been told; what was thrown is dropped, unless its own drop panics, too: then it is leaked.
pub(crate) fn contained<T>(act: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => Some(done),
        Err(thrown) => {
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(thrown))) {
                std::mem::forget(again);
            }
            None
        }
    }
}

/// Drops what may be, or hold, an event.
pub(crate) fn drop_contained<T>(value: T) {
    if std::mem::needs_drop::<T>() {
        let _contained = contained(|| drop(value));
    }
}
