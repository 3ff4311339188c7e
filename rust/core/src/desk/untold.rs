//! Associations that are over and that nobody was told of yet.
//!
//! Telling takes the interpreter, and where associations follow each other it costs more than to serve one, most of it for
//! coming and going. So they are told of together, a moment later, by one of those who wait for connections anyway.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the first one may wait for company.
pub(super) const DELAY: Duration = Duration::from_millis(5);
/// So many are told of at once.
const MOST: usize = 16;
/// While one ended as lately as this, those who wait look whether there is something to tell.
const LATELY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct State<T> {
    over: Vec<T>,
    /// When the first of them ended.
    since: Option<Instant>,
    /// When the last one of all ended.
    last: Option<Instant>,
    /// How many look by themselves. While there is something to tell, there is one.
    watching: usize,
}

impl<T> State<T> {
    fn take(&mut self) -> Vec<T> {
        self.since = None;
        std::mem::take(&mut self.over)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Untold<T>(Mutex<State<T>>);

impl<T> Untold<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            over: Vec::new(),
            since: None,
            last: None,
            watching: 0,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait. Whoever is to look by himself learns after how long, and says [`Untold::leave`] when he has waited.
    pub(super) fn watch(&self) -> Option<Duration> {
        let mut state = self.lock();
        if state.last.is_none_or(|last| last.elapsed() >= LATELY) {
            return None;
        }
        state.watching += 1;
        Some(
            state
                .since
                .map_or(DELAY, |since| DELAY.saturating_sub(since.elapsed())),
        )
    }

    /// Stops to look. All that are to be told of now: where their time is up, unless somebody came meanwhile, and where nobody
    /// else looks.
    pub(super) fn leave(&self, came: bool) -> Vec<T> {
        let mut state = self.lock();
        state.watching -= 1;
        let is_due = !came && state.since.is_some_and(|since| since.elapsed() >= DELAY);
        if is_due || state.watching == 0 {
            return state.take();
        }
        Vec::new()
    }

    /// Another one is over. All that are to be told of now: where they are many, or nobody looks.
    pub(super) fn push(&self, one: T) -> Vec<T> {
        let mut state = self.lock();
        let now = Instant::now();
        state.last = Some(now);
        state.since.get_or_insert(now);
        state.over.push(one);
        if state.watching == 0 || state.over.len() >= MOST {
            return state.take();
        }
        Vec::new()
    }

    /// All of them.
    pub(super) fn take(&self) -> Vec<T> {
        self.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_looks_for_is_told_of_at_once() {
        let untold = Untold::new();
        assert_eq!(untold.watch(), None, "nothing has been over yet");
        assert_eq!(untold.push(1), [1]);
    }

    #[test]
    fn who_looks_tells_of_all_a_moment_later() {
        let untold = Untold::new();
        untold.push(0);
        let wait = untold.watch().unwrap();
        assert!(wait <= DELAY);
        assert!(untold.push(1).is_empty() && untold.push(2).is_empty());
        std::thread::sleep(DELAY);
        assert_eq!(untold.watch(), Some(Duration::ZERO));
        assert_eq!(untold.leave(false), [1, 2]);
        assert!(untold.leave(false).is_empty());
    }

    #[test]
    fn the_last_that_looks_does_not_leave_anything_behind() {
        let untold = Untold::new();
        untold.push(0);
        for _ in 0..2 {
            assert!(untold.watch().is_some());
        }
        assert!(untold.push(1).is_empty());
        std::thread::sleep(DELAY);
        assert!(untold.leave(true).is_empty(), "the other one looks");
        assert_eq!(untold.leave(true), [1]);
        assert_eq!(untold.push(2), [2]);
    }

    #[test]
    fn many_do_not_wait() {
        let untold = Untold::new();
        untold.push(0);
        assert!(untold.watch().is_some());
        let told: Vec<_> = (1..=MOST).map(|number| untold.push(number).len()).collect();
        assert_eq!(told.iter().sum::<usize>(), MOST);
        assert_eq!(told.last(), Some(&MOST));
    }
}
