//! A publish on its way to the disk: what begins it under the topic's lock, and what it comes to when the disk has answered. Who waits in between, a thread or a future, is no matter here.

use std::sync::Arc;

use crate::engine::local::publish::{Append, Parcel, refuse_for_space};
use crate::engine::local::staging::{Staged, Stored, under_way};
use crate::engine::local::topic::TopicCore;
use crate::error::PublishErrorKind;
use crate::journal::{JournalError, Position};

/// What a publish waits for.
pub(crate) struct Flight<E> {
    /// Known to be safe or not, it goes on.
    pub(crate) position: Position,
    /// None: it is a repeat of what is itself under way.
    staged: Option<Arc<Staged<E>>>,
}

impl<E> Flight<E> {
    /// It has taken nothing, and is to be tried again.
    #[cfg(feature = "async")]
    pub(crate) fn is_of_a_repeat(&self) -> bool {
        self.staged.is_none()
    }
}

impl<E: Send + Sync + 'static> TopicCore<E> {
    /// Publishes on disk as far as it goes without waiting for the disk.
    pub(super) fn take_off(
        self: &Arc<Self>,
        stored: &Stored<E>,
        parcels: &mut [Parcel<E>],
    ) -> Result<Append, Flight<E>> {
        let now = self.broker.now();
        let mut state = self.state.lock();
        if let Some(kind) = self.closed_to_publishers() {
            return Ok(Append::Refused(kind));
        }
        if let Err(kind) = self.admit(&mut state, parcels, now) {
            return Ok(Append::Refused(kind));
        }
        if let Some(position) = under_way(&state, parcels) {
            return Err(Flight { position, staged: None });
        }
        let more = (state.staging.messages, state.staging.bytes);
        if let Some(refusal) = refuse_for_space(&state, parcels, &[], more) {
            return Ok(refusal);
        }
        match self.stage(&mut state, stored, parcels, now) {
            Ok(Some((staged, position))) => Err(Flight { position, staged: Some(staged) }),
            Ok(None) => Ok(Append::Done),
            Err(kind) => Ok(Append::Refused(kind)),
        }
    }

    /// Waits for the disk, and lands.
    pub(super) fn wait_for(
        self: &Arc<Self>,
        flight: Flight<E>,
        parcels: &mut [Parcel<E>],
    ) -> Result<bool, PublishErrorKind> {
        let outcome = match &self.stored {
            Some(stored) => stored.store.commit(flight.position),
            None => Ok(()),
        };
        self.land(flight, outcome, parcels)
    }

    /// What it came to, once the disk has answered. False: now is known what stood against it, and it is to be tried again.
    pub(crate) fn land(
        self: &Arc<Self>,
        flight: Flight<E>,
        outcome: Result<(), JournalError>,
        parcels: &mut [Parcel<E>],
    ) -> Result<bool, PublishErrorKind> {
        // Whether that which it repeats has come about or not.
        let (Some(staged), Some(stored)) = (flight.staged, &self.stored) else { return Ok(false) };
        let Err(error) = outcome else {
            self.broker.checkpoint_in_time();
            return Ok(true);
        };
        staged.take_back(parcels);
        if error == JournalError::NoSpace && self.broker.makes_space() && self.pack_again(parcels) {
            return Ok(false);
        }
        Err(self.why_not_safe(stored, &error))
    }

    pub(super) fn why_not_safe(&self, stored: &Stored<E>, error: &JournalError) -> PublishErrorKind {
        match (error, self.closed_to_publishers()) {
            (JournalError::Closed, Some(kind)) => kind,
            _ => stored.store.fault_of(error).into(),
        }
    }

    /// What came back of the journal is got ready for it once more. False: a codec that took it before does not now.
    fn pack_again(&self, parcels: &mut [Parcel<E>]) -> bool {
        parcels.iter_mut().all(|parcel| {
            let Some(message) = parcel.message.take() else { return true };
            match self.parcel(message) {
                Ok(again) => *parcel = again,
                Err(refusal) => {
                    parcel.message = Some(refusal.message);
                    return false;
                }
            }
            true
        })
    }
}
