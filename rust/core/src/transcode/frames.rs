//! Frames through a codec, several at a time: in order, with a bounded number in memory, or each to its place.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::TranscodeError;
use crate::os;

/// Frames finished or on their way beyond the one that is written next, for each thread.
const AHEAD: usize = 2;
/// Larger frames are written at once: two of them for each thread could be more memory than a worker has.
const LARGEST_HELD_BYTES: usize = 4 << 20;

#[derive(Default)]
struct Shared {
    next: usize,
    written: usize,
    done: BTreeMap<usize, Result<Vec<u8>, TranscodeError>>,
    over: bool,
}

/// Runs `work` for the frames 0 to `count - 1` and gives the results to `take` in order.
///
/// # Errors
/// The first one, of `work` in the order of the frames, or of `take`.
pub(super) fn in_order(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<Vec<u8>, TranscodeError> + Sync,
    mut take: impl FnMut(Vec<u8>) -> Result<(), TranscodeError>,
) -> Result<(), TranscodeError> {
    let threads = threads.min(count);
    if threads <= 1 {
        return (0..count).try_for_each(|frame| take(work(frame)?));
    }
    let shared = Mutex::new(Shared::default());
    let changed = Condvar::new();
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let claim = || {
        let guard = lock();
        let mut guard = changed
            .wait_while(guard, |state| {
                !state.over && state.next < count && state.next >= state.written + threads * AHEAD
            })
            .unwrap_or_else(PoisonError::into_inner);
        if guard.over || guard.next >= count {
            return None;
        }
        guard.next += 1;
        Some(guard.next - 1)
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(frame) = claim() {
                    // A panic in here would leave the others waiting: it ends the process, which is a worker's.
                    let result = work(frame);
                    lock().done.insert(frame, result);
                    changed.notify_all();
                }
            });
        }
        let outcome = (0..count).try_for_each(|frame| {
            let guard = lock();
            let mut guard = changed
                .wait_while(guard, |state| !state.done.contains_key(&frame))
                .unwrap_or_else(PoisonError::into_inner);
            let result = guard.done.remove(&frame);
            guard.written = frame + 1;
            drop(guard);
            changed.notify_all();
            result.map_or(Ok(()), |result| take(result?))
        });
        lock().over = true;
        changed.notify_all();
        outcome
    })
}

/// Runs `work` for the frames 0 to `count - 1`, in any order: it sees to its result itself. `done` hears of those that this
/// thread worked on.
///
/// # Errors
/// The first one, in the order of the frames.
pub(super) fn in_place(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<(), TranscodeError> + Sync,
    mut done: impl FnMut(),
) -> Result<(), TranscodeError> {
    let queue = Queue::new(count);
    let run = |done: &mut dyn FnMut()| {
        while let Some(frame) = queue.claim() {
            match work(frame) {
                Ok(()) => done(),
                Err(error) => queue.fail(frame, error),
            }
        }
    };
    on_threads(threads.min(count), run, &mut done);
    queue.result()
}

/// Has the frames 0 to `count - 1` decoded and written, in any order, where threads that write at the same time would wait for each
/// other: who finds another writing decodes its next frame first. `done` hears of those that this thread wrote.
///
/// `decode` gets memory that was used for a frame before, or none.
///
/// # Errors
/// The first one, in the order of the frames.
pub(super) fn by_turns(
    count: usize,
    threads: usize,
    decode: impl Fn(usize, &mut Vec<u8>) -> Result<(), TranscodeError> + Sync,
    write: impl Fn(usize, &[u8]) -> Result<(), TranscodeError> + Sync,
    mut done: impl FnMut(),
) -> Result<(), TranscodeError> {
    let queue = Queue::new(count);
    let writing = AtomicUsize::new(0);
    let run = |done: &mut dyn FnMut()| {
        let mut decoded: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut unused: Vec<Vec<u8>> = Vec::new();
        loop {
            let frame = queue.claim();
            if let Some(frame) = frame {
                let mut memory = unused.pop().unwrap_or_default();
                match decode(frame, &mut memory) {
                    Ok(()) => decoded.push((frame, memory)),
                    Err(error) => queue.fail(frame, error),
                }
                let may_hold = decoded.len() < AHEAD
                    && decoded
                        .iter()
                        .all(|(_, memory)| memory.len() <= LARGEST_HELD_BYTES);
                // A hint: who writes all the same waits for its turn.
                if may_hold && writing.load(Ordering::Relaxed) > 0 {
                    continue;
                }
            }
            writing.fetch_add(1, Ordering::Relaxed);
            for (frame, memory) in decoded.drain(..) {
                match write(frame, &memory) {
                    Ok(()) => done(),
                    Err(error) => queue.fail(frame, error),
                }
                unused.push(memory);
            }
            writing.fetch_sub(1, Ordering::Relaxed);
            if frame.is_none() {
                return;
            }
        }
    };
    on_threads(threads.min(count), run, &mut done);
    queue.result()
}

/// Frames that are handed out in their order until one fails.
struct Queue {
    count: usize,
    next: AtomicUsize,
    failed: Mutex<Option<(usize, TranscodeError)>>,
}

impl Queue {
    fn new(count: usize) -> Self {
        Self {
            count,
            next: AtomicUsize::new(0),
            failed: Mutex::default(),
        }
    }

    fn claim(&self) -> Option<usize> {
        let frame = self.next.fetch_add(1, Ordering::Relaxed);
        (frame < self.count).then_some(frame)
    }

    fn fail(&self, frame: usize, error: TranscodeError) {
        self.next.fetch_max(self.count, Ordering::Relaxed);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        // All frames before this one are done or on their way.
        if failed.as_ref().is_none_or(|(first, _)| frame < *first) {
            *failed = Some((frame, error));
        }
    }

    fn result(self) -> Result<(), TranscodeError> {
        let failed = self.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// Runs the same on so many threads, of which this is one; only this one tells `done`.
///
/// Linux often queues a new thread behind its maker although another processor is idle, since that of a virtual machine does not
/// look so while it is halted. There it would stay for a tick or two (4 ms each): it goes first and to another processor.
fn on_threads(threads: usize, run: impl Fn(&mut dyn FnMut()) + Sync, done: &mut dyn FnMut()) {
    let here = os::this_processor();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                // Where it may not choose, it waits.
                os::leave_processor(here).ok();
                run(&mut || ());
            });
        }
        if threads > 1 {
            std::thread::yield_now();
        }
        run(done);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_with_a_bounded_number_in_memory() {
        for threads in [1, 2, 4] {
            let alive = AtomicUsize::new(0);
            let most = AtomicUsize::new(0);
            let mut seen = Vec::new();
            in_order(
                200,
                threads,
                |frame| {
                    let now = alive.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    Ok(frame.to_le_bytes().to_vec())
                },
                |bytes| {
                    alive.fetch_sub(1, Ordering::SeqCst);
                    seen.push(usize::from_le_bytes(bytes.try_into().unwrap()));
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(seen, (0..200).collect::<Vec<_>>());
            assert!(most.load(Ordering::SeqCst) <= threads * AHEAD + 1);
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let mut taken = 0;
        let error = in_order(
            1000,
            3,
            |frame| {
                if frame == 7 {
                    Err(TranscodeError::NotExact(frame))
                } else {
                    Ok(Vec::new())
                }
            },
            |_| {
                taken += 1;
                Ok(())
            },
        );
        assert!(matches!(error, Err(TranscodeError::NotExact(7))));
        assert_eq!(taken, 7);
    }

    #[test]
    fn each_frame_is_worked_on_once_and_the_first_error_counts() {
        for threads in [1, 2, 4] {
            let seen: Vec<_> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let mut told = 0;
            in_place(
                100,
                threads,
                |frame| {
                    seen[frame].fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
                || told += 1,
            )
            .unwrap();
            assert!(seen.iter().all(|times| times.load(Ordering::SeqCst) == 1));
            assert!(told <= 100 && (threads > 1 || told == 100));

            let begun = AtomicUsize::new(0);
            let error = in_place(
                1000,
                threads,
                |frame| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    if frame >= 7 {
                        return Err(TranscodeError::NotExact(frame));
                    }
                    Ok(())
                },
                || (),
            );
            assert!(matches!(error, Err(TranscodeError::NotExact(7))));
            assert!(begun.load(Ordering::SeqCst) < 7 + 1 + 2 * threads);
        }
    }

    #[test]
    fn each_frame_is_decoded_and_written_once_in_bounded_memory_and_the_first_error_counts() {
        let byte = |frame: usize| u8::try_from(frame).unwrap();
        for threads in [1, 2, 4] {
            let written: Vec<_> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut told = 0;
            by_turns(
                100,
                threads,
                |frame, memory| {
                    most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    memory.clear();
                    memory.push(byte(frame));
                    Ok(())
                },
                |frame, memory| {
                    assert_eq!(memory, [byte(frame)]);
                    std::thread::sleep(std::time::Duration::from_micros(50));
                    held.fetch_sub(1, Ordering::SeqCst);
                    written[frame].fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
                || told += 1,
            )
            .unwrap();
            assert!(written.iter().all(|times| times.load(Ordering::SeqCst) == 1));
            assert!(most.load(Ordering::SeqCst) <= threads * AHEAD);
            assert!(told <= 100 && (threads > 1 || told == 100));

            for fails_in_decoder in [true, false] {
                let at = |decoding: bool, frame: usize| {
                    if decoding == fails_in_decoder && frame >= 7 {
                        return Err(TranscodeError::NotExact(frame));
                    }
                    Ok(())
                };
                let error = by_turns(
                    1000,
                    threads,
                    |frame, _| at(true, frame),
                    |frame, _| at(false, frame),
                    || (),
                );
                assert!(matches!(error, Err(TranscodeError::NotExact(7))));
            }
        }
    }

    #[test]
    fn large_frames_are_written_at_once() {
        let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        by_turns(
            12,
            2,
            |_, memory| {
                most.fetch_max(held.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                memory.resize(LARGEST_HELD_BYTES + 1, 0);
                Ok(())
            },
            |_, _| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                held.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            },
            || (),
        )
        .unwrap();
        assert!(most.load(Ordering::SeqCst) <= 2);
    }
}
