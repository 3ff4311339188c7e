//! Rows that the publisher sees and the database has not got yet.
//!
//! They are durable in the journal. Most are published within a moment, and go into the database after that: as one insertion,
//! not as an insertion, two reads and two changes. Those that a topic does not take in time go there to wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::journal::Place;
use super::{ClaimedRow, NewRow, Topic, ALL_PENDING};

/// How long a row may stay out of the database while a topic has not acknowledged it.
const LONGEST: Duration = Duration::from_millis(500);
/// And how many rows may.
const MOST: usize = 4096;

/// A row, and the topics that still want it.
#[derive(Clone, Debug)]
pub(super) struct FreshRow {
    pub(super) id: i64,
    pub(super) ready: i64,
    pub(super) pending: i64,
    pub(super) row: Arc<NewRow>,
    place: Place,
    since: Instant,
}

impl FreshRow {
    pub(super) fn new(id: i64, ready: i64, row: Arc<NewRow>, place: Place) -> Self {
        Self {
            id,
            ready,
            pending: ALL_PENDING,
            row,
            place,
            since: Instant::now(),
        }
    }

    /// As the publisher gets it.
    pub(super) fn claimed(&self) -> ClaimedRow {
        ClaimedRow {
            id: self.id,
            ready: self.ready,
            trace_id: self.row.trace_id.clone(),
            key: self.row.key.clone(),
            payload: self.row.payload.clone(),
        }
    }
}

/// What there was at a moment.
pub(super) struct Look {
    /// All rows before this one are in the database.
    pub(super) first_ready: i64,
    pub(super) rows: Vec<FreshRow>,
}

/// The rows, later than all that are in the database. Ids and `ready` grow.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    rows: VecDeque<FreshRow>,
}

impl Fresh {
    pub(super) fn push(&mut self, row: FreshRow) {
        self.rows.push_back(row);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first rows later than `after` that a topic wants, `most` at most.
    pub(super) fn look(&self, topic: Topic, after: i64, most: usize) -> Look {
        Look {
            first_ready: self.rows.front().map_or(i64::MAX, |row| row.ready),
            rows: self.wanted(topic, after).take(most).cloned().collect(),
        }
    }

    /// Those later than `after` that a topic wants, in their order.
    pub(super) fn wanted(&self, topic: Topic, after: i64) -> impl Iterator<Item = &FreshRow> {
        let start = self.rows.partition_point(|row| row.ready <= after);
        self.rows
            .range(start..)
            .filter(move |row| row.pending & topic.bit() != 0)
    }

    /// A topic has acknowledged rows. Those that are here are taken out of `ids`; the ones that both topics have now, and the
    /// bytes of their payload.
    pub(super) fn acknowledge(&mut self, topic: Topic, ids: &mut Vec<i64>) -> (i64, i64) {
        let (mut rows, mut bytes) = (0, 0);
        ids.retain(|id| {
            let found = self.rows.binary_search_by_key(id, |row| row.id);
            let Some(row) = found.ok().and_then(|at| self.rows.get_mut(at)) else {
                return true;
            };
            if row.pending == topic.bit() {
                rows += 1;
                bytes += row.row.payload_bytes();
            }
            row.pending &= !topic.bit();
            false
        });
        (rows, bytes)
    }

    /// How many, from the first on, are to go into the database: those that both topics have, those that have been here for
    /// long, and those that are too many.
    pub(super) fn due(&self, now: Instant) -> usize {
        let excess = self.rows.len().saturating_sub(MOST);
        let is_due = |row: &FreshRow| row.pending == 0 || now.duration_since(row.since) >= LONGEST;
        let due = self
            .rows
            .iter()
            .skip(excess)
            .take_while(|row| is_due(row))
            .count();
        excess + due
    }

    /// The first `count` rows, for a transaction.
    pub(super) fn first(&self, count: usize) -> Vec<FreshRow> {
        self.rows.range(..count.min(self.rows.len())).cloned().collect()
    }

    /// The first `count` rows are in the database now. Returns their places in the journal.
    pub(super) fn drop_first(&mut self, count: usize) -> Vec<Place> {
        let count = count.min(self.rows.len());
        self.rows.drain(..count).map(|row| row.place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(count: usize, since: Instant) -> Fresh {
        let mut fresh = Fresh::default();
        for number in 1..=i64::try_from(count).unwrap() {
            let row = FreshRow {
                since,
                ..FreshRow::new(number, 100 + number, Arc::new(row()), Place::default())
            };
            fresh.push(row);
        }
        fresh
    }

    fn row() -> NewRow {
        NewRow {
            trace_id: String::new(),
            key: String::new(),
            payload: "{}".to_owned(),
            path: String::new(),
            size: 1,
            digest: [0; 16],
            created: 1,
            replaces: false,
        }
    }

    #[test]
    fn rows_leave_in_their_order_when_both_topics_have_them() {
        let began = Instant::now();
        let mut fresh = fresh(4, began);
        assert_eq!(fresh.acknowledge(Topic::Main, &mut vec![1, 2, 3]), (0, 0));
        assert_eq!(fresh.due(began), 0);
        let mut ids = vec![2, 1, 7, 2];
        assert_eq!(fresh.acknowledge(Topic::Log, &mut ids), (2, 4));
        assert_eq!(ids, [7], "it is in the database");
        assert_eq!(fresh.due(began), 2);
        let wanted: Vec<i64> = fresh.wanted(Topic::Log, 0).map(|row| row.id).collect();
        assert_eq!(wanted, [3, 4]);
        assert_eq!(fresh.wanted(Topic::Main, 104).count(), 0);
        assert_eq!(fresh.acknowledge(Topic::Main, &mut vec![4]), (0, 0));
        assert_eq!(fresh.acknowledge(Topic::Log, &mut vec![4]), (1, 2));
        assert_eq!(fresh.due(began), 2, "the fourth waits behind the third");
        assert_eq!(
            fresh.first(2).iter().map(|row| row.id).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(fresh.drop_first(2).len(), 2);
        assert_eq!(fresh.look(Topic::Main, 0, 10).first_ready, 103);
        assert_eq!(fresh.due(began + LONGEST), 2, "no topic has to want it for long");
    }

    #[test]
    fn no_more_than_so_many_stay() {
        let began = Instant::now();
        let mut fresh = fresh(MOST + 10, began);
        assert_eq!(fresh.due(began), 10);
        for topic in [Topic::Main, Topic::Log] {
            fresh.acknowledge(topic, &mut vec![11, 12]);
        }
        assert_eq!(fresh.due(began), 12);
        fresh.drop_first(usize::MAX);
        assert!(fresh.is_empty());
        assert_eq!(fresh.look(Topic::Main, 0, 10).first_ready, i64::MAX);
    }
}
