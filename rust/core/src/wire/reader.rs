//! Reading from a peer in large pieces, with deadlines.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// One buffer for an association: many PDUs are taken with one system call.
const BUFFER_BYTES: usize = 256 * 1024;

/// Why nothing more comes from the peer.
#[derive(Debug)]
pub enum ReadEnd {
    /// The peer closed the connection, or it broke.
    Closed,
    /// A deadline passed.
    Timeout,
}

/// A buffered reader whose source returns `WouldBlock` or `TimedOut` now and then, so deadlines are looked at.
#[derive(Debug)]
pub struct DeadlineReader<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    received: u64,
}

impl<R: Read> DeadlineReader<R> {
    /// Wraps a source, for instance a socket with a read timeout of about a second.
    pub fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            received: 0,
        }
    }

    /// Bytes taken from the source so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Exactly `N` bytes.
    ///
    /// # Errors
    /// [`ReadEnd`] when they do not come before `deadline`.
    pub fn array<const N: usize>(&mut self, deadline: Instant) -> Result<[u8; N], ReadEnd> {
        loop {
            let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
            if let Some(&bytes) = waiting.first_chunk::<N>() {
                self.start += N;
                return Ok(bytes);
            }
            self.fill(deadline)?;
        }
    }

    /// Between 1 and `most` bytes, straight from the buffer.
    ///
    /// # Errors
    /// [`ReadEnd`] when none come before `deadline`.
    pub fn chunk(&mut self, most: usize, deadline: Instant) -> Result<&[u8], ReadEnd> {
        if self.start == self.end {
            self.fill(deadline)?;
        }
        let from = self.start;
        self.start = self.end.min(from.saturating_add(most));
        Ok(self.buffer.get(from..self.start).unwrap_or_default())
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), ReadEnd> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        loop {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.source.read(room) {
                Ok(0) => return Err(ReadEnd::Closed),
                Ok(count) => {
                    self.end += count;
                    self.received += count as u64;
                    // Bytes that trickle in do not stretch a deadline.
                    return if Instant::now() > deadline {
                        Err(ReadEnd::Timeout)
                    } else {
                        Ok(())
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if Instant::now() > deadline {
                        return Err(ReadEnd::Timeout);
                    }
                }
                Err(_) => return Err(ReadEnd::Closed),
            }
        }
    }
}

/// How long a PDU of `length` bytes may take: a fixed time and what the minimum rate allows.
#[must_use]
pub fn pdu_deadline(length: u32, fixed: Duration, min_bytes_per_second: u32) -> Instant {
    let allowed = u64::from(length) * 1000 / u64::from(min_bytes_per_second.max(1));
    Instant::now() + fixed + Duration::from_millis(allowed)
}
