//! The two topics, and the queries of each.

/// One of the two topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// `topic_main`: bit 0 of `pending`.
    Main,
    /// `topic_dicom_receive`: bit 1 of `pending`.
    Log,
}

impl Topic {
    pub(super) fn number(self) -> i64 {
        match self {
            Self::Main => 0,
            Self::Log => 1,
        }
    }

    pub(super) fn bit(self) -> i64 {
        1 << self.number()
    }

    /// The terms repeat those of the partial indexes, which is how `SQLite` recognises them.
    pub(super) fn claim_query(self) -> &'static str {
        match self {
            Self::Main => {
                "SELECT id, ready, trace_id, key, payload FROM instance
                 WHERE pending & 1 AND ready IS NOT NULL AND ready > ?1 ORDER BY ready LIMIT ?2"
            }
            Self::Log => {
                "SELECT id, ready, trace_id, key, payload FROM instance
                 WHERE pending & 2 AND ready IS NOT NULL AND ready > ?1 ORDER BY ready LIMIT ?2"
            }
        }
    }

    /// How many rows it has not acknowledged, and when the first of them was received. Both from the index alone: with a long
    /// queue, a look into each row would hold up publication.
    pub(super) fn lag_queries(self) -> (&'static str, &'static str) {
        match self {
            Self::Main => (
                "SELECT count(*) FROM instance WHERE pending & 1 AND ready IS NOT NULL",
                "SELECT created FROM instance WHERE pending & 1 AND ready IS NOT NULL ORDER BY ready LIMIT 1",
            ),
            Self::Log => (
                "SELECT count(*) FROM instance WHERE pending & 2 AND ready IS NOT NULL",
                "SELECT created FROM instance WHERE pending & 2 AND ready IS NOT NULL ORDER BY ready LIMIT 1",
            ),
        }
    }
}
