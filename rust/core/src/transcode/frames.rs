//! Frames through a codec, several at a time: in order, with a bounded number in memory, or each to its place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::output::{Room, Run};
use super::TranscodeError;
use crate::os;

/// Frames finished or on their way beyond the one that is written next, for each thread.
const AHEAD: usize = 2;
/// Frames that one thread decodes one after the other, to write them together: so many bytes, and so many of them. A larger frame is
/// written at once: two of them for each thread could be more memory than a worker has.
const LONGEST_RUN_BYTES: usize = 4 << 20;
const MOST_IN_A_RUN: usize = 256;

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

/// Has the frames 0 to `count - 1` decoded, each to `frame_bytes` bytes, and written to the room, in any order. Threads that write at
/// the same time would wait for each other: who finds another writing decodes its next frame first. `done` hears of those that
/// this thread decoded.
///
/// `decode` gets memory that was used for a frame before, or none.
///
/// # Errors
/// The first one, in the order of the frames.
pub(super) fn by_turns(
    count: usize,
    threads: usize,
    frame_bytes: usize,
    decode: impl Fn(usize, &mut Vec<u8>) -> Result<(), TranscodeError> + Sync,
    room: &Room<'_>,
    mut done: impl FnMut(),
) -> Result<(), TranscodeError> {
    let threads = threads.min(count);
    let queue = Queue::new(count);
    let writing = AtomicUsize::new(0);
    let longest = (LONGEST_RUN_BYTES / frame_bytes.max(1)).clamp(1, MOST_IN_A_RUN);
    let run = |done: &mut dyn FnMut()| {
        let mut unused: Vec<Vec<u8>> = Vec::new();
        let mut attempt = |run: &mut Run<'_>, frame: usize, is_last: bool| {
            let mut memory = unused.pop().unwrap_or_default();
            decode(frame, &mut memory)?;
            run.push(memory);
            // A hint: who writes all the same waits for its turn.
            let may_wait = run.held() <= AHEAD && writing.load(Ordering::Relaxed) > 0;
            if is_last || !(may_wait || run.is_short()) {
                writing.fetch_add(1, Ordering::Relaxed);
                let written = run.write(is_last, &mut unused);
                writing.fetch_sub(1, Ordering::Relaxed);
                written?;
            }
            Ok(())
        };
        while let Some(frames) = queue.claim_run(longest, threads) {
            let mut run = room.run((frames.start * frame_bytes) as u64);
            let last = frames.end - 1;
            for frame in frames {
                if queue.is_given_up(frame) {
                    break;
                }
                match attempt(&mut run, frame, frame == last) {
                    Ok(()) => done(),
                    Err(error) => queue.fail(frame, error),
                }
            }
        }
    };
    on_threads(threads, run, &mut done);
    queue.result()
}

/// Frames that are handed out in their order until one fails.
struct Queue {
    next: AtomicUsize,
    /// The first that is not worth working on: there are no more, or the one before it failed.
    until: AtomicUsize,
    failed: Mutex<Option<(usize, TranscodeError)>>,
}

impl Queue {
    fn new(count: usize) -> Self {
        Self {
            next: AtomicUsize::new(0),
            until: AtomicUsize::new(count),
            failed: Mutex::default(),
        }
    }

    fn claim(&self) -> Option<usize> {
        let frame = self.next.fetch_add(1, Ordering::Relaxed);
        (!self.is_given_up(frame)).then_some(frame)
    }

    /// Frames that follow each other: fewer towards the end, so that the threads end together.
    fn claim_run(&self, longest: usize, threads: usize) -> Option<Range<usize>> {
        let until = self.until.load(Ordering::Relaxed);
        let end = |first: usize| {
            let left = until.checked_sub(first).filter(|left| *left > 0)?;
            Some(first + (left / (2 * threads)).clamp(1, longest))
        };
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end);
        first.ok().and_then(|first| Some(first..end(first)?))
    }

    fn is_given_up(&self, frame: usize) -> bool {
        frame >= self.until.load(Ordering::Relaxed)
    }

    /// All frames before this one are done or on their way, and stay so.
    fn fail(&self, frame: usize, error: TranscodeError) {
        self.until.fetch_min(frame, Ordering::Relaxed);
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
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
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::super::output::{FileOutput, Output as _, CUT_BYTES};
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
        // Around the places up to which the file is written: smaller, larger, and odd.
        for (frame_bytes, count) in [(1, 3000), (1000, 900), (100_001, 40), (600_000, 25), (524_288, 9)] {
            for threads in [1, 2, 4] {
                let file = tempfile::tempfile().unwrap();
                let mut out = FileOutput::new(&file, 77);
                let room = out.room((count * frame_bytes) as u64).unwrap().unwrap();
                let (alive, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let mut told = 0;
                by_turns(
                    count,
                    threads,
                    frame_bytes,
                    |frame, memory| {
                        if memory.capacity() == 0 {
                            most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        }
                        memory.clear();
                        memory.resize(frame_bytes, filling(frame));
                        Ok(())
                    },
                    &room,
                    || told += 1,
                )
                .unwrap();
                let mut written = vec![0; 77 + count * frame_bytes];
                file.read_exact_at(&mut written, 0).unwrap();
                assert_eq!(file.metadata().unwrap().len(), written.len() as u64);
                for (frame, bytes) in written[77..].chunks(frame_bytes).enumerate() {
                    assert!(bytes.iter().all(|byte| *byte == filling(frame)));
                }
                assert!(told <= count && (threads > 1 || told == count));
                let to_a_cut = usize::try_from(CUT_BYTES).unwrap() / frame_bytes + 1;
                let held = (to_a_cut + AHEAD + 1).min(MOST_IN_A_RUN);
                assert!(most.load(Ordering::SeqCst) <= threads * held);
            }
        }
    }

    #[test]
    fn the_first_error_of_frames_that_are_written_together_counts() {
        for threads in [1, 2, 4] {
            for first in [0, 7, 30, 999] {
                let decoded = AtomicUsize::new(0);
                let file = tempfile::tempfile().unwrap();
                let mut out = FileOutput::new(&file, 0);
                let room = out.room(1000 * 100_000).unwrap().unwrap();
                let fails = |frame: usize, memory: &mut Vec<u8>| {
                    decoded.fetch_add(1, Ordering::SeqCst);
                    memory.resize(100_000, 0);
                    if frame >= first {
                        return Err(TranscodeError::NotExact(frame));
                    }
                    Ok(())
                };
                let error = by_turns(1000, threads, 100_000, fails, &room, || ());
                assert!(matches!(error, Err(TranscodeError::NotExact(frame)) if frame == first));
                let longest = LONGEST_RUN_BYTES / 100_000;
                assert!(decoded.load(Ordering::SeqCst) <= first + 1 + 2 * threads * longest);
            }

            let cannot_write = File::open("/dev/null").unwrap();
            let mut out = FileOutput::new(&cannot_write, 0);
            let room = out.room(10 * 10).unwrap().unwrap();
            let decode = |_, memory: &mut Vec<u8>| {
                memory.resize(10, 0);
                Ok(())
            };
            let error = by_turns(10, threads, 10, decode, &room, || ());
            assert!(matches!(error, Err(TranscodeError::Io(_))));
        }
    }

    #[test]
    fn large_frames_are_written_at_once() {
        let file = tempfile::tempfile().unwrap();
        let frame_bytes = LONGEST_RUN_BYTES / 2 + 1;
        let mut out = FileOutput::new(&file, 0);
        let room = out.room(12 * frame_bytes as u64).unwrap().unwrap();
        let made = AtomicUsize::new(0);
        let decode = |_, memory: &mut Vec<u8>| {
            made.fetch_add(usize::from(memory.capacity() == 0), Ordering::SeqCst);
            memory.resize(frame_bytes, 0);
            Ok(())
        };
        by_turns(12, 2, frame_bytes, decode, &room, || ()).unwrap();
        assert!(made.load(Ordering::SeqCst) <= 2);
    }

    fn filling(frame: usize) -> u8 {
        u8::try_from(frame % 251).unwrap()
    }
}
