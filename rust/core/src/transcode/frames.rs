//! Frames through a codec, several at a time: in order, with a bounded number in memory, or each to its place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::output::{Room, Run};
use super::TranscodeError;
use crate::os;

/// Frames finished or on their way beyond the one that is written next, for each thread.
const AHEAD: usize = 2;
/// Larger frames than this are written at once, and no more than so many are held to be written together: two large ones for each
/// thread could be more memory than a worker has.
const LARGE_FRAME_BYTES: usize = 2 << 20;
const MOST_HELD: usize = 256;

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
    let threads = threads.min(count);
    let shares = Shares::new(count, threads);
    let run = |share: usize, done: &mut dyn FnMut()| {
        while let Some(frame) = shares.claim(share) {
            match work(frame) {
                Ok(()) => done(),
                Err(error) => shares.fail(frame, error),
            }
        }
    };
    on_threads(threads, run, &mut done);
    shares.result()
}

/// Has the frames 0 to `count - 1` decoded, each to `frame_bytes` bytes, and written to the room, in any order. Threads that write at
/// the same time would wait for each other: who finds another writing decodes its next frame first. `done` hears of those that
/// this thread decoded.
///
/// `decode` fills all of the memory it gets, in which another frame may have been.
///
/// # Errors
/// The first one, in the order of the frames.
pub(super) fn by_turns(
    count: usize,
    threads: usize,
    frame_bytes: usize,
    decode: impl Fn(usize, &mut [u8]) -> Result<(), TranscodeError> + Sync,
    room: &Room<'_>,
    mut done: impl FnMut(),
) -> Result<(), TranscodeError> {
    let threads = threads.min(count);
    let shares = Shares::new(count, threads);
    let writing = AtomicUsize::new(0);
    let write = |run: &mut Run<'_>, all: bool, unused: &mut Vec<Vec<u8>>| {
        writing.fetch_add(1, Ordering::Relaxed);
        let written = run.write(all, unused);
        writing.fetch_sub(1, Ordering::Relaxed);
        written
    };
    let advance = |run: &mut Run<'_>, frame: usize, unused: &mut Vec<Vec<u8>>| {
        let mut decoded = run.next_frame(frame_bytes, unused);
        decode(frame, decoded.bytes_mut())?;
        run.push(decoded);
        let all = frame_bytes > LARGE_FRAME_BYTES || run.held() == MOST_HELD;
        // A hint: who writes all the same waits for its turn.
        let may_wait = run.held() <= AHEAD && writing.load(Ordering::Relaxed) > 0;
        if all || !(may_wait || run.is_short()) {
            write(run, all, unused)?;
        }
        Ok(())
    };
    let run = |share: usize, done: &mut dyn FnMut()| {
        let mut unused = Vec::new();
        let mut claimed = shares.claim(share);
        while let Some(first) = claimed {
            let mut run = room.run((first * frame_bytes) as u64);
            let mut next = first;
            while claimed == Some(next) {
                match advance(&mut run, next, &mut unused) {
                    Ok(()) => done(),
                    Err(error) => shares.fail(next, error),
                }
                next += 1;
                claimed = shares.claim(share);
            }
            if let Err(error) = write(&mut run, true, &mut unused) {
                shares.fail(first, error.into());
            }
        }
    };
    on_threads(threads, run, &mut done);
    shares.result()
}

/// Frames that are handed out until one fails. Each thread has a share of them, which follow each other; who has none left takes
/// half of what another one has.
struct Shares(Mutex<State>);

struct State {
    left: Vec<Range<usize>>,
    failed: Option<(usize, TranscodeError)>,
}

impl Shares {
    fn new(count: usize, threads: usize) -> Self {
        let begin = |share| count * share / threads;
        let left = (0..threads).map(|share| begin(share)..begin(share + 1)).collect();
        Self(Mutex::new(State { left, failed: None }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, share: usize) -> Option<usize> {
        let mut state = self.lock();
        let own = state.left.get_mut(share)?;
        if let Some(frame) = own.next() {
            return Some(frame);
        }
        let largest = state.left.iter_mut().max_by_key(ExactSizeIterator::len)?;
        let mut taken = largest.start + largest.len() / 2..largest.end;
        largest.end = taken.start;
        let frame = taken.next();
        if let Some(own) = state.left.get_mut(share) {
            *own = taken;
        }
        frame
    }

    /// Those behind it are not worth working on. All before it are done or on their way, or will be.
    fn fail(&self, frame: usize, error: TranscodeError) {
        let mut state = self.lock();
        for left in &mut state.left {
            left.end = left.end.min(frame);
        }
        if state.failed.as_ref().is_none_or(|(first, _)| frame < *first) {
            state.failed = Some((frame, error));
        }
    }

    fn result(self) -> Result<(), TranscodeError> {
        let state = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failed.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// Runs the same on so many threads, of which this is the first; only this one tells `done`.
///
/// Linux often queues a new thread behind its maker although another processor is idle, since that of a virtual machine does not
/// look so while it is halted. There it would stay for a tick or two (4 ms each): it goes first and to another processor.
fn on_threads(threads: usize, run: impl Fn(usize, &mut dyn FnMut()) + Sync, done: &mut dyn FnMut()) {
    let here = os::this_processor();
    let run = &run;
    std::thread::scope(|scope| {
        for share in 1..threads {
            scope.spawn(move || {
                // Where it may not choose, it waits.
                os::leave_processor(here).ok();
                run(share, &mut || ());
            });
        }
        if threads > 1 {
            std::thread::yield_now();
        }
        run(0, done);
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
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
            // Who fails has taken half of what was left, which is ten times possible.
            assert!(begun.load(Ordering::SeqCst) <= 7 + 1 + 10 * (threads - 1));
        }
    }

    #[test]
    fn each_frame_is_handed_out_once_and_those_of_one_share_follow_each_other() {
        for (count, threads) in [(0, 1), (1, 1), (100, 3), (7, 7)] {
            let shares = Shares::new(count, threads);
            let mut seen: Vec<_> = (0..threads).map(|_| Vec::new()).collect();
            // The first one works alone until it has half of everything.
            while seen[0].len() * 2 < count {
                seen[0].extend(shares.claim(0));
            }
            while let Some(frame) = shares.claim(threads - 1) {
                seen[threads - 1].push(frame);
            }
            assert!((0..threads).all(|share| shares.claim(share).is_none()));
            for frames in &seen {
                let breaks = frames.windows(2).filter(|pair| pair[0] + 1 != pair[1]);
                assert!(breaks.count() < 8, "{frames:?}");
            }
            let mut all = seen.concat();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn after_an_error_only_what_is_before_it_is_handed_out() {
        let shares = Shares::new(100, 4);
        let begun: Vec<_> = (0..4).map(|share| shares.claim(share).unwrap()).collect();
        assert_eq!(begun, [0, 25, 50, 75]);
        shares.fail(75, TranscodeError::NotExact(75));
        shares.fail(25, TranscodeError::NotExact(25));
        shares.fail(50, TranscodeError::NotExact(50));
        // The share of one that has failed is another's.
        let rest: Vec<_> = std::iter::from_fn(|| shares.claim(3)).collect();
        assert_eq!(rest.len(), 24);
        assert!(rest.iter().all(|frame| (1..25).contains(frame)));
        assert!(matches!(shares.result(), Err(TranscodeError::NotExact(25))));
    }

    #[test]
    fn each_frame_is_decoded_and_written_once_in_bounded_memory_and_the_first_error_counts() {
        // Around the places up to which the file is written: smaller, larger, and odd.
        for (frame_bytes, count) in [(1, 3000), (1000, 900), (100_001, 40), (600_000, 25), (524_288, 9)] {
            for threads in [1, 2, 4] {
                let file = tempfile::tempfile().unwrap();
                let mut out = FileOutput::new(&file, 77);
                let room = out.room((count * frame_bytes) as u64).unwrap().unwrap();
                let places = Mutex::new(HashSet::new());
                let mut told = 0;
                by_turns(
                    count,
                    threads,
                    frame_bytes,
                    |frame, memory| {
                        places.lock().unwrap().insert(memory.as_ptr().addr());
                        memory.fill(filling(frame));
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
                let held = (to_a_cut + AHEAD + 1).min(MOST_HELD);
                assert!(memories(places) <= threads * held);
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
                let fails = |frame: usize, _: &mut [u8]| {
                    decoded.fetch_add(1, Ordering::SeqCst);
                    if frame >= first {
                        return Err(TranscodeError::NotExact(frame));
                    }
                    Ok(())
                };
                let error = by_turns(1000, threads, 100_000, fails, &room, || ());
                assert!(matches!(error, Err(TranscodeError::NotExact(frame)) if frame == first));
                assert!(threads > 1 || decoded.load(Ordering::SeqCst) == first + 1);
            }

            let cannot_write = File::open("/dev/null").unwrap();
            let mut out = FileOutput::new(&cannot_write, 0);
            let room = out.room(10 * 10).unwrap().unwrap();
            let error = by_turns(10, threads, 10, |_, _: &mut [u8]| Ok(()), &room, || ());
            assert!(matches!(error, Err(TranscodeError::Io(_))));
        }
    }

    #[test]
    fn large_frames_are_written_at_once() {
        let file = tempfile::tempfile().unwrap();
        let frame_bytes = LARGE_FRAME_BYTES + 1;
        let mut out = FileOutput::new(&file, 0);
        let room = out.room(12 * frame_bytes as u64).unwrap().unwrap();
        let places = Mutex::new(HashSet::new());
        let decode = |_, memory: &mut [u8]| {
            places.lock().unwrap().insert(memory.as_ptr().addr());
            Ok(())
        };
        by_turns(12, 2, frame_bytes, decode, &room, || ()).unwrap();
        assert!(memories(places) <= 2);
    }

    /// How many memories these are places in; frames begin in one of the first 64 bytes.
    fn memories(places: Mutex<HashSet<usize>>) -> usize {
        let mut places: Vec<_> = places.into_inner().unwrap().into_iter().collect();
        places.sort_unstable();
        1 + places.windows(2).filter(|pair| pair[1] - pair[0] >= 64).count()
    }

    fn filling(frame: usize) -> u8 {
        u8::try_from(frame % 251).unwrap()
    }
}
