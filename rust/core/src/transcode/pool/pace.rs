//! When a worker will have its answer.
//!
//! A processor without work is halted, and to wake it takes tens of microseconds, of whoever wakes it as well; a virtual one takes
//! longer. Instances of a series are alike, so the one that waits can sleep a little less long than the last job took, and be awake
//! when its worker has the answer (block devices are polled in this way: `io_poll_delay` of Linux).

use std::time::{Duration, Instant};

use super::{Input, Task};

/// Shorter jobs are not worth it.
const SHORT: Duration = Duration::from_millis(1);
/// So much earlier than expected: a part of the time, and what it takes to wake up.
const EARLIER_PART: u32 = 64;
const WAKING: Duration = Duration::from_micros(20);

/// What makes jobs alike.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kind {
    source: String,
    target: String,
}

/// The job under way, and how long the last one took.
#[derive(Debug, Default)]
pub(super) struct Pace {
    under_way: Option<(Kind, usize, Instant)>,
    last: Option<(Kind, usize, Duration)>,
}

impl Pace {
    /// Begins a job. Nothing is known of those that are in files: they are large, and one moment is nothing to them.
    pub(super) fn begin(&mut self, task: &Task<'_>) {
        self.under_way = match &task.input {
            Input::File(..) => None,
            Input::Memory(parts) => {
                let kind = Kind {
                    source: task.source.to_owned(),
                    target: task.target.to_owned(),
                };
                let bytes = parts.iter().map(|part| part.len()).sum();
                Some((kind, bytes, Instant::now()))
            }
        };
    }

    /// How long nothing has to be expected of it; none where that is not known.
    pub(super) fn rest(&self) -> Option<Duration> {
        let (kind, bytes, began) = self.under_way.as_ref()?;
        let (last_kind, last_bytes, took) = self.last.as_ref()?;
        let expected = expected(*took, *last_bytes, *bytes).filter(|_| kind == last_kind)?;
        Some(expected.saturating_sub(began.elapsed()))
    }

    /// It has its answer.
    pub(super) fn end(&mut self) {
        if let Some((kind, bytes, began)) = self.under_way.take() {
            self.last = Some((kind, bytes, began.elapsed()));
        }
    }
}

/// What a job of `bytes` hardly takes less than, after one of `last_bytes` that took so long.
fn expected(took: Duration, last_bytes: usize, bytes: usize) -> Option<Duration> {
    if took < SHORT || bytes.abs_diff(last_bytes) > last_bytes / 8 {
        return None;
    }
    let nanoseconds = took.as_nanos() * bytes as u128 / last_bytes.max(1) as u128;
    let likely = Duration::from_nanos(u64::try_from(nanoseconds).ok()?);
    Some(likely.saturating_sub(likely / EARLIER_PART + WAKING))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task<'t>(source: &'t str, dataset: &'t [u8]) -> Task<'t> {
        Task {
            source,
            target: "1.2.840.10008.1.2.1",
            max_decoded_bytes: 1,
            input: Input::Memory(vec![dataset, b"1234567"]),
        }
    }

    #[test]
    fn a_job_takes_as_long_as_one_like_it() {
        let after = |took, bytes| expected(Duration::from_micros(took), 1000, bytes);
        for (bytes, likely) in [(1000, 6280), (1100, 6910), (900, 5650)] {
            assert_eq!(after(6400, bytes), Some(Duration::from_micros(likely)));
        }
        assert_eq!(after(6400, 1126), None);
        assert_eq!(after(6400, 0), None);
        assert_eq!(after(999, 1000), None);
    }

    #[test]
    fn nothing_is_expected_after_a_job_of_another_kind() {
        let mut pace = Pace::default();
        let job = task("1.2.840.10008.1.2.4.80", &[0; 1000]);
        pace.begin(&job);
        assert_eq!(pace.rest(), None);
        std::thread::sleep(Duration::from_millis(2));
        pace.end();
        assert_eq!(pace.rest(), None);
        pace.begin(&job);
        assert!(pace.rest().is_some());
        pace.begin(&task("1.2.840.10008.1.2.5", &[0; 1000]));
        assert_eq!(pace.rest(), None);
        let file = tempfile::tempfile().unwrap();
        let input = Input::File(std::os::fd::AsFd::as_fd(&file), 0);
        pace.begin(&Task { input, ..job });
        assert_eq!(pace.rest(), None);
        pace.end();
    }
}
