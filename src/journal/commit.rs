//! Group commit: the first who waits writes and syncs for all that have arrived.
//!
//! Units are gathered in a buffer that has room for a frame's header in front: who commits first takes it, writes it with one call, syncs once, and acts for all whose
//! unit was in it. Meanwhile others gather in the next buffer; when the first is done it makes one of those who wait the next to lead, before it wakes the others.
//!
//! Two locks, in this order: `leader` is held by who leads, through writes and syncs; `core` shortly by everybody. `act` runs under `leader` alone.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use super::error::JournalError;
use super::frame::{FRAME_HEADER_LEN, UNIT_LEN_MAX, UNIT_PREFIX_LEN, Units, push_unit};
use super::segment::WriteError;
use super::writer::{Space, Writer};
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::sync::{Mutex, MutexGuard, thread};

#[cfg(all(test, eventflow_shuttle))]
mod shuttle_tests;

/// A frame's body is not made longer than this by gathering; a larger unit has a frame of its own.
const GATHERED_LEN_MAX: usize = 64 << 20;
/// A larger buffer is not kept for the next group.
const KEPT_BUFFER_LEN_MAX: usize = 4 << 20;

/// How far a unit has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// It survives a crash of the process.
    Written,
    /// It survives a power cut.
    Synced,
}

/// Units that are written together.
struct Group<T> {
    base: u64,
    /// Room for the header of the frame, then the units.
    frame: Vec<u8>,
    dones: Vec<(T, Space)>,
    /// Not written for want of space.
    refused: Vec<Range<u64>>,
    /// So far it comes before it is acted on, whatever is promised.
    least: Level,
}

impl<T> Group<T> {
    fn end(&self) -> u64 {
        self.base + self.dones.len() as u64
    }
}

/// Somebody who waits for others to commit.
struct Waiter {
    state: AtomicU8,
    thread: thread::Thread,
}

const WAITING: u8 = 0;
/// It is this one's turn to lead.
const LEAD: u8 = 1;
/// All went well.
const SAFE: u8 = 2;
/// The outcome is to be looked up.
const LOOK: u8 = 3;

impl Waiter {
    fn wait(&self) -> u8 {
        loop {
            // Pairs with the release in `wake`: what was written before it is seen.
            match self.state.load(Ordering::Acquire) {
                WAITING => thread::park(),
                state => return state,
            }
        }
    }

    fn wake(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.thread.unpark();
    }
}

struct Waiting {
    position: u64,
    level: Level,
    waiter: Arc<Waiter>,
}

/// Why nothing more is accepted.
#[derive(Clone)]
enum Ended {
    /// Units before `attempted` may be on disk, others are not.
    Poisoned {
        reason: Arc<str>,
        attempted: u64,
    },
    Closed,
}

struct Core<T> {
    /// Not written yet. No group is empty.
    pending: VecDeque<Group<T>>,
    /// Kept for the next group.
    buffers: Vec<Vec<u8>>,
    next: u64,
    /// Somebody leads, or has been told to.
    led: bool,
    /// Units before it were written, or refused for want of space; and acted on if that is what their durability promises.
    written: u64,
    synced: u64,
    /// In order, without touching.
    refused: Vec<Range<u64>>,
    waiters: Vec<Waiting>,
    ended: Option<Ended>,
    /// As the writer had it after the last round, so that nobody waits for a sync to hear it.
    since_checkpoint: u64,
    since_sweep: u64,
    disk_bytes: u64,
}

/// What one leads with.
struct Leader<T> {
    writer: Writer,
    written: u64,
    synced: u64,
    /// Written and not acted on.
    unacted: VecDeque<Group<T>>,
    act_at: Level,
    /// Of the last round.
    refused: Vec<Range<u64>>,
    /// Likewise: whether that was also for want of the reserve.
    lacks_reserve: bool,
    /// Of the last round, to be used again.
    buffer: Option<Vec<u8>>,
}

/// The part of a journal that adds and commits.
pub(super) struct Commits<T> {
    core: Mutex<Core<T>>,
    leader: Mutex<Leader<T>>,
    lacked_reserve: AtomicBool,
}

type Act<'a, T> = &'a mut dyn FnMut(T, Result<(), JournalError>);

impl<T> Commits<T> {
    /// The next unit gets the position `next`.
    pub(super) fn new(writer: Writer, next: u64, act_at: Level) -> Self {
        let mut core = Core {
            pending: VecDeque::new(),
            buffers: Vec::new(),
            next,
            led: false,
            written: next,
            synced: next,
            refused: Vec::new(),
            waiters: Vec::new(),
            ended: None,
            since_checkpoint: 0,
            since_sweep: 0,
            disk_bytes: 0,
        };
        core.measure(&writer);
        let leader = Leader {
            writer,
            written: next,
            synced: next,
            unacted: VecDeque::new(),
            act_at,
            refused: Vec::new(),
            lacks_reserve: false,
            buffer: None,
        };
        Commits { core: Mutex::new(core), leader: Mutex::new(leader), lacked_reserve: AtomicBool::new(false) }
    }

    /// Queues a unit. Touches no file. `least`: so far it comes before it is acted on, whatever is promised.
    pub(super) fn add(&self, unit: &[u8], space: Space, done: T, least: Level) -> Result<u64, JournalError> {
        if unit.len() > UNIT_LEN_MAX as usize {
            return Err(JournalError::TooLarge { len: unit.len() as u64, max: u64::from(UNIT_LEN_MAX) });
        }
        let mut core = self.core.lock();
        match &core.ended {
            None => {}
            Some(Ended::Closed) => return Err(JournalError::Closed),
            Some(Ended::Poisoned { reason, .. }) => return Err(JournalError::Poisoned(reason.clone())),
        }
        Ok(core.add(unit, space, done, least))
    }

    /// Queues a unit after which there is none, unless the end has come already.
    pub(super) fn add_last(&self, unit: &[u8], done: T) {
        let mut core = self.core.lock();
        if core.ended.is_none() {
            core.add(unit, Space::Reserve, done, Level::Written);
            core.ended = Some(Ended::Closed);
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.core.lock().next
    }

    pub(super) fn poisoned(&self) -> Option<Arc<str>> {
        match &self.core.lock().ended {
            Some(Ended::Poisoned { reason, .. }) => Some(reason.clone()),
            _ => None,
        }
    }

    /// What is asked of the writer while nobody leads with it. Waits for who does.
    pub(super) fn with_writer<R>(&self, ask: impl FnOnce(&mut Writer) -> R) -> R {
        let mut leader = self.leader.lock();
        let answer = ask(&mut leader.writer);
        self.core.lock().measure(&leader.writer);
        answer
    }

    pub(super) fn since_checkpoint(&self) -> u64 {
        self.core.lock().since_checkpoint
    }

    pub(super) fn since_sweep(&self) -> u64 {
        self.core.lock().since_sweep
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.core.lock().disk_bytes
    }

    pub(super) fn take_refusal(&self) -> bool {
        self.lacked_reserve.load(Ordering::Relaxed) && self.lacked_reserve.swap(false, Ordering::Relaxed)
    }

    /// What became of a unit, if that is known. Waits for nobody.
    pub(super) fn outcome(&self, position: u64, level: Level) -> Option<Result<(), JournalError>> {
        self.core.lock().outcome(position, level)
    }

    /// Waits until the unit at `position`, and all before it, have come to `level`. May do it itself, for all.
    pub(super) fn settle(&self, position: u64, level: Level, act: Act<'_, T>) -> Result<(), JournalError> {
        let mut core = self.core.lock();
        assert!(position < core.next, "only what was added is waited for");
        if let Some(outcome) = core.outcome(position, level) {
            return outcome;
        }
        if core.led {
            let waiter = Arc::new(Waiter { state: AtomicU8::new(WAITING), thread: thread::current() });
            core.waiters.push(Waiting { position, level, waiter: waiter.clone() });
            drop(core);
            match waiter.wait() {
                SAFE => return Ok(()),
                LEAD => core = self.core.lock(),
                _ => {
                    let outcome = self.core.lock().outcome(position, level);
                    return outcome.expect("who is told to look finds an outcome");
                }
            }
        }
        core.led = true;
        drop(core);
        self.lead(position, level, act)
    }

    /// Everything that was added is settled.
    pub(super) fn settle_all(&self, level: Level, act: Act<'_, T>) -> Result<(), JournalError> {
        let position = {
            let core = self.core.lock();
            let reached = match level {
                Level::Written => core.written,
                Level::Synced => core.synced,
            };
            if reached == core.next {
                return Ok(());
            }
            core.next - 1
        };
        match self.settle(position, level, act) {
            // The unit itself is not there, and all the others are settled.
            Err(JournalError::NoSpace) => Ok(()),
            settled => settled,
        }
    }

    /// Adds nothing more, settles all, and notes on disk that all is synced.
    pub(super) fn close(&self, act: Act<'_, T>) -> Result<(), JournalError> {
        self.core.lock().ended.get_or_insert(Ended::Closed);
        if let Some(reason) = self.poisoned() {
            return Err(JournalError::Poisoned(reason));
        }
        self.settle_all(Level::Synced, act)?;
        let closed = self.leader.lock().writer.close();
        closed.map_err(|error| self.poison_outside(error))
    }

    /// After a failure of the disk that was not met while leading. Who waits or leads learns of it at the next turn.
    pub(super) fn poison_outside(&self, error: WriteError) -> JournalError {
        if let WriteError::Full(_) = error {
            return JournalError::NoSpace;
        }
        let reason = error.reason();
        let mut core = self.core.lock();
        let attempted = core.pending.front().map_or(core.next, |group| group.base);
        core.poison(reason.clone(), attempted);
        JournalError::Poisoned(reason)
    }

    fn lead(&self, position: u64, level: Level, act: Act<'_, T>) -> Result<(), JournalError> {
        let watch = Watch { commits: self, armed: true };
        let mut leader = self.leader.lock();
        loop {
            let taken = self.core.lock().take();
            let led = match taken {
                Ok(group) => leader.round(group, level, act),
                Err(reason) => Err(Failed { reason, attempted: 0 }),
            };
            if mem::take(&mut leader.lacks_reserve) {
                self.lacked_reserve.store(true, Ordering::Relaxed);
            }
            let mut core = self.core.lock();
            if let Err(failed) = led {
                drop(core);
                self.fail(&mut leader, failed, act);
                core = self.core.lock();
            }
            core.note(&mut leader);
            if let Some(outcome) = core.outcome(position, level) {
                drop(leader);
                watch.disarm();
                Core::hand_over(core);
                return outcome;
            }
        }
    }

    /// Says so to everybody. Nothing more is written.
    fn fail(&self, leader: &mut Leader<T>, failed: Failed, act: Act<'_, T>) {
        let mut core = self.core.lock();
        let reason = failed.reason;
        core.poison(reason.clone(), failed.attempted);
        let pending = mem::take(&mut core.pending);
        drop(core);
        for (done, _) in mem::take(&mut leader.unacted).into_iter().flat_map(|group| group.dones) {
            act(done, Err(JournalError::Indeterminate(reason.clone())));
        }
        for (done, _) in pending.into_iter().flat_map(|group| group.dones) {
            act(done, Err(JournalError::Poisoned(reason.clone())));
        }
    }
}

struct Failed {
    reason: Arc<str>,
    attempted: u64,
}

/// Should `act` panic, nobody may wait for ever for who led.
struct Watch<'a, T> {
    commits: &'a Commits<T>,
    armed: bool,
}

impl<T> Watch<'_, T> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl<T> Drop for Watch<'_, T> {
    fn drop(&mut self) {
        if self.armed {
            let mut core = self.commits.core.lock();
            let reason = Arc::from("a thread panicked while it committed");
            let attempted = core.next;
            core.poison(reason, attempted);
            Core::hand_over(core);
        }
    }
}

impl<T> Core<T> {
    fn add(&mut self, unit: &[u8], space: Space, done: T, least: Level) -> u64 {
        let len = UNIT_PREFIX_LEN + unit.len();
        let fits = |group: &Group<T>| {
            group.frame.len() + len <= FRAME_HEADER_LEN + GATHERED_LEN_MAX && group.dones.len() < 1 << 24
        };
        if !self.pending.back().is_some_and(fits) {
            let mut frame = self.buffers.pop().unwrap_or_default();
            frame.resize(FRAME_HEADER_LEN, 0);
            let (dones, refused, least) = (Vec::new(), Vec::new(), Level::Written);
            self.pending.push_back(Group { base: self.next, frame, dones, refused, least });
        }
        let group = self.pending.back_mut().expect("there is one now");
        if least == Level::Synced {
            group.least = least;
        }
        push_unit(&mut group.frame, unit);
        group.dones.push((done, space));
        let position = self.next;
        self.next += 1;
        position
    }

    /// The next group to write, if there is one. Fails when nothing may be written.
    fn take(&mut self) -> Result<Option<Group<T>>, Arc<str>> {
        match &self.ended {
            Some(Ended::Poisoned { reason, .. }) => Err(reason.clone()),
            _ => Ok(self.pending.pop_front()),
        }
    }

    /// What became of a unit; none if nothing yet.
    fn outcome(&self, position: u64, level: Level) -> Option<Result<(), JournalError>> {
        let reached = match level {
            Level::Written => self.written,
            Level::Synced => self.synced,
        };
        if position < reached {
            let refused = !self.refused.is_empty() && self.was_refused(position);
            return Some(if refused { Err(JournalError::NoSpace) } else { Ok(()) });
        }
        match &self.ended {
            Some(Ended::Poisoned { reason, attempted }) if position < *attempted => {
                Some(Err(JournalError::Indeterminate(reason.clone())))
            }
            Some(Ended::Poisoned { reason, .. }) => Some(Err(JournalError::Poisoned(reason.clone()))),
            Some(Ended::Closed) | None => None,
        }
    }

    fn was_refused(&self, position: u64) -> bool {
        let after = self.refused.partition_point(|range| range.start <= position);
        after.checked_sub(1).is_some_and(|at| self.refused[at].contains(&position))
    }

    /// The first failure is the one that counts.
    fn poison(&mut self, reason: Arc<str>, attempted: u64) {
        if !matches!(self.ended, Some(Ended::Poisoned { .. })) {
            self.ended = Some(Ended::Poisoned { reason, attempted });
        }
    }

    /// Takes over what a round came to.
    fn note(&mut self, leader: &mut Leader<T>) {
        self.written = leader.written;
        self.synced = leader.synced;
        for range in leader.refused.drain(..) {
            match self.refused.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => self.refused.push(range),
            }
        }
        self.buffers.extend(leader.buffer.take());
        self.measure(&leader.writer);
    }

    fn measure(&mut self, writer: &Writer) {
        self.since_checkpoint = writer.since_checkpoint;
        self.since_sweep = writer.since_sweep;
        self.disk_bytes = writer.disk_bytes();
    }

    /// Ends the lead: makes one of those who still wait the next, and then wakes those who need not.
    fn hand_over(mut core: MutexGuard<'_, Self>) {
        if core.waiters.is_empty() {
            core.led = false;
            return;
        }
        let mut done = Vec::with_capacity(core.waiters.len());
        let mut left = Vec::with_capacity(core.waiters.len());
        for waiting in mem::take(&mut core.waiters) {
            match core.outcome(waiting.position, waiting.level) {
                Some(outcome) => done.push((waiting.waiter, if outcome.is_ok() { SAFE } else { LOOK })),
                None => left.push(waiting),
            }
        }
        let next = (!left.is_empty()).then(|| left.remove(0).waiter);
        core.led = next.is_some();
        core.waiters = left;
        // Who is woken takes this lock at once.
        drop(core);
        if let Some(next) = next {
            next.wake(LEAD);
        }
        for (waiter, state) in done {
            waiter.wake(state);
        }
    }
}

impl<T> Leader<T> {
    /// Writes a group, syncs if asked, and acts for all that is then as safe as promised.
    fn round(&mut self, group: Option<Group<T>>, level: Level, act: Act<'_, T>) -> Result<(), Failed> {
        let (mut end, mut least) = (self.written, Level::Written);
        if let Some(mut group) = group {
            (end, least) = (group.end(), group.least);
            let written = self.write(&mut group);
            let mut frame = mem::take(&mut group.frame);
            if frame.capacity() <= KEPT_BUFFER_LEN_MAX {
                frame.clear();
                self.buffer = Some(frame);
            }
            self.unacted.push_back(group);
            written.map_err(|reason| Failed { reason, attempted: end })?;
        }
        if least == Level::Written {
            self.written = end;
            if self.act_at == Level::Written {
                self.act_before(end, act);
            }
        }
        if level == Level::Synced || least == Level::Synced {
            self.writer.sync().map_err(|error| Failed { reason: error.reason(), attempted: end })?;
            // What is to be synced first counts for nothing before.
            (self.written, self.synced) = (end, end);
            self.act_before(end, act);
        }
        Ok(())
    }

    fn act_before(&mut self, position: u64, act: Act<'_, T>) {
        while self.unacted.front().is_some_and(|group| group.end() <= position) {
            let Some(group) = self.unacted.pop_front() else { return };
            for (at, (done, _)) in (group.base..).zip(group.dones) {
                let refused = group.refused.iter().any(|range| range.contains(&at));
                act(done, if refused { Err(JournalError::NoSpace) } else { Ok(()) });
            }
        }
    }

    fn write(&mut self, group: &mut Group<T>) -> Result<(), Arc<str>> {
        let count = group.dones.len() as u32;
        let space = group.dones.iter().map(|(_, space)| *space).max().unwrap_or(Space::Checkpoint);
        match self.writer.append(&mut group.frame, group.base, count, space) {
            Ok(()) => Ok(()),
            Err(WriteError::Full(_)) => self.write_what_may_use_the_reserve(group),
            Err(error) => Err(error.reason()),
        }
    }

    /// The others of the group are refused.
    fn write_what_may_use_the_reserve(&mut self, group: &mut Group<T>) -> Result<(), Arc<str>> {
        let body = group.frame.split_off(FRAME_HEADER_LEN);
        let mut run = Vec::new();
        let mut run_base = group.base;
        let mut run_space = Space::Checkpoint;
        for (at, (unit, (_, space))) in (group.base..).zip(Units::new(&body).zip(&group.dones)) {
            if *space == Space::Ordinary {
                self.write_run(&mut run, run_base..at, run_space, &mut group.refused)?;
                group.refused.push(at..at + 1);
                (run_base, run_space) = (at + 1, Space::Checkpoint);
            } else {
                run_space = run_space.max(*space);
                run.resize(run.len().max(FRAME_HEADER_LEN), 0);
                push_unit(&mut run, unit);
            }
        }
        self.write_run(&mut run, run_base..group.end(), run_space, &mut group.refused)?;
        self.refused.extend(group.refused.iter().cloned());
        Ok(())
    }

    fn write_run(
        &mut self,
        run: &mut Vec<u8>,
        positions: Range<u64>,
        space: Space,
        refused: &mut Vec<Range<u64>>,
    ) -> Result<(), Arc<str>> {
        if positions.is_empty() {
            return Ok(());
        }
        if self.lacks_reserve {
            // Of those that nobody waits for, a crash is to undo the newest.
            run.clear();
            refused.push(positions);
            return Ok(());
        }
        let count = (positions.end - positions.start) as u32;
        let appended = self.writer.append(run, positions.start, count, space);
        run.clear();
        match appended {
            Ok(()) => Ok(()),
            Err(WriteError::Full(_)) => {
                self.lacks_reserve = true;
                refused.push(positions);
                Ok(())
            }
            Err(error) => Err(error.reason()),
        }
    }
}
