//! Runs a scenario in many schedules: for tests of what is private. Those of the whole broker are in `tests/shuttle`, and are set up alike.

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::{Config, MaxSteps, Runner};

/// In `EVENTFLOW_SHUTTLE_ITERATIONS` random schedules (10,000 unless told otherwise), and in a fifth as many that put one thread off for as long as they can; or in the one that
/// `EVENTFLOW_SHUTTLE_SCHEDULE` says.
pub(crate) fn explore(scenario: impl Fn() + Send + Sync + Copy + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 19;
    // Many times what the longest takes: who spins for so long, waits for what does not come.
    config.max_steps = MaxSteps::FailAfter(400_000);
    if let Ok(schedule) = std::env::var("EVENTFLOW_SHUTTLE_SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(scenario);
        return;
    }
    let iterations = std::env::var("EVENTFLOW_SHUTTLE_ITERATIONS")
        .map_or(10_000, |number| number.parse().expect("EVENTFLOW_SHUTTLE_ITERATIONS is a number"));
    Runner::new(RandomScheduler::new(iterations), config.clone()).run(scenario);
    Runner::new(PctScheduler::new(3, iterations / 5), config).run(scenario);
}
