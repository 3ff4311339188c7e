//! How long the stages of an instance take: histograms that are read at a scrape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A stage of an instance's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From the command set to the last byte of the data set: the network, mostly.
    Receive,
    /// Reading the structure of the data set.
    Scan,
    /// In a worker process, where there is something to transcode.
    Transcode,
    /// Writing the file.
    Write,
    /// Syncing data and folders.
    Sync,
    /// Waiting for the row with the record.
    Outbox,
}

impl Stage {
    const ALL: [Self; 6] = [
        Self::Receive,
        Self::Scan,
        Self::Transcode,
        Self::Write,
        Self::Sync,
        Self::Outbox,
    ];

    /// The word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Scan => "scan",
            Self::Transcode => "transcode",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Outbox => "outbox",
        }
    }
}

/// Upper limits of the buckets in microseconds; there is one more behind the last.
const LIMITS: [u64; 15] = [
    25, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; LIMITS.len() + 1],
    nanoseconds: AtomicU64,
}

/// A histogram at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The stage.
    pub stage: Stage,
    /// Upper limit in seconds, and how many took so long at most; the last limit is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// All of them together, in seconds.
    pub sum: f64,
}

/// The histograms of all stages.
#[derive(Debug, Default)]
pub struct Stages([Histogram; Stage::ALL.len()]);

impl Stages {
    /// Notes how long a stage took.
    pub fn note(&self, stage: Stage, duration: Duration) {
        let Some(histogram) = self.0.get(stage as usize) else {
            return;
        };
        let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = LIMITS.partition_point(|&limit| limit < microseconds);
        if let Some(bucket) = histogram.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        histogram.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// All histograms, their buckets added up.
    #[must_use]
    pub fn read(&self) -> Vec<Reading> {
        let limits = LIMITS
            .iter()
            .map(|&limit| Duration::from_micros(limit).as_secs_f64())
            .chain([f64::INFINITY]);
        Stage::ALL
            .into_iter()
            .zip(&self.0)
            .map(|(stage, histogram)| {
                let mut sum = 0;
                let buckets = limits
                    .clone()
                    .zip(&histogram.buckets)
                    .map(|(limit, bucket)| {
                        sum += bucket.load(Ordering::Relaxed);
                        (limit, sum)
                    })
                    .collect();
                let total = Duration::from_nanos(histogram.nanoseconds.load(Ordering::Relaxed));
                Reading {
                    stage,
                    buckets,
                    sum: total.as_secs_f64(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_up_to_their_limit() {
        let stages = Stages::default();
        for microseconds in [25, 26, 40_000_000] {
            stages.note(Stage::Sync, Duration::from_micros(microseconds));
        }
        let readings = stages.read();
        let sync = readings.iter().find(|one| one.stage == Stage::Sync).unwrap();
        let counts: Vec<u64> = sync.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (1, 2, 2, 3));
        assert!((sync.sum - 40.000_051).abs() < 1e-9);
        assert!(sync.buckets[15].0.is_infinite());
        assert!(readings[0].buckets.iter().all(|(_, count)| *count == 0));
    }
}
