//! One writer at a time for each path. A writer that hangs holds up its own path and no other.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The paths that are being written to.
#[derive(Debug, Default)]
pub struct PathLocks {
    held: Mutex<Held>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Held {
    paths: HashSet<Box<str>>,
    waiting: usize,
}

/// A path that nobody else writes to, until it is dropped.
#[derive(Debug)]
pub struct PathLock<'l> {
    locks: &'l PathLocks,
    path: Box<str>,
}

impl PathLocks {
    /// Waits until nobody else writes to the path.
    pub fn lock(&self, path: &str) -> PathLock<'_> {
        let path: Box<str> = path.into();
        let mut held = self.held();
        held.waiting += 1;
        let mut held = self
            .freed
            .wait_while(held, |held| held.paths.contains(&path))
            .unwrap_or_else(PoisonError::into_inner);
        held.waiting -= 1;
        held.paths.insert(path.clone());
        PathLock { locks: self, path }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PathLock<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        held.paths.remove(&self.path);
        let is_waited_for = held.waiting > 0;
        drop(held);
        if is_waited_for {
            self.locks.freed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_path_has_one_writer_at_a_time() {
        let (locks, inside) = (PathLocks::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _lock = locks.lock("a/b.dcm");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(locks.held().paths.is_empty());
    }

    #[test]
    fn a_writer_that_hangs_holds_up_its_own_path_alone() {
        let locks = PathLocks::default();
        let hanging = locks.lock("a/0.dcm");
        for number in 1..5_000 {
            drop(locks.lock(&format!("a/{number}.dcm")));
        }
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _lock = locks.lock("a/0.dcm");
                sender.send(()).unwrap();
            });
            assert!(receiver.try_recv().is_err());
            drop(hanging);
            receiver.recv().unwrap();
        });
    }
}
