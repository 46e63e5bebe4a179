// SPDX-License-Identifier: GPL-2.0-only

//! How long to wait for something.

use std::time::{Duration, Instant};

/// The most that counts between two looks. Who looks more often than that, and yet was away for
/// longer, was not running: nothing else in this machine may have run either.
pub const STEP: Duration = Duration::from_millis(100);

/// Time that is left for something, less each time one looks.
///
/// A machine in QEMU stands still when whatever it runs on has other things to do, for minutes if
/// it must; the clock goes on. What is late by then had no chance to be in time. So that a busy
/// computer fails no test, a look takes no more than [`STEP`] away.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    looked: Instant,
}

impl Patience {
    /// This much from now on.
    pub fn new(time: Duration) -> Self {
        Self {
            left: time,
            looked: Instant::now(),
        }
    }

    /// How long one may wait before one looks again.
    pub fn wait(&self) -> Duration {
        self.left.min(STEP)
    }

    /// Whether none is left. To be asked at least once in each [`STEP`].
    pub fn is_over(&mut self) -> bool {
        self.at(Instant::now())
    }

    /// The same, at a time.
    fn at(&mut self, now: Instant) -> bool {
        let gone = now.saturating_duration_since(self.looked).min(STEP);
        self.looked = now;
        self.left = self.left.saturating_sub(gone);
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::{Patience, STEP};
    use std::time::Duration;

    #[test]
    fn a_machine_that_stood_still_has_not_waited() {
        let mut patience = Patience::new(Duration::from_millis(250));
        let begin = patience.looked;
        let after = |ms| begin + Duration::from_millis(ms);
        assert!(!patience.at(after(90)));
        assert_eq!(patience.wait(), STEP);
        assert!(!patience.at(after(100_000)));
        assert_eq!(patience.wait(), Duration::from_millis(60));
        assert!(!patience.at(after(100_050)));
        assert!(patience.at(after(100_060)));
    }
}
