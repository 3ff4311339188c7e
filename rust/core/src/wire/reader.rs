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
    /// It kept us waiting for too long.
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
    /// Wraps a source, for instance a socket with a read timeout of about a second. `buffer` comes from
    /// [`DeadlineReader::into_buffer`], or is empty.
    pub fn new(source: R, mut buffer: Vec<u8>) -> Self {
        buffer.resize(BUFFER_BYTES, 0);
        Self {
            source,
            buffer,
            start: 0,
            end: 0,
            received: 0,
        }
    }

    /// The memory, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Bytes taken from the source so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Exactly `N` bytes.
    ///
    /// # Errors
    /// [`ReadEnd`] when they do not come within `patience`.
    pub fn array<const N: usize>(&mut self, patience: &mut Patience) -> Result<[u8; N], ReadEnd> {
        loop {
            let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
            if let Some(&bytes) = waiting.first_chunk::<N>() {
                self.start += N;
                return Ok(bytes);
            }
            self.fill(patience)?;
        }
    }

    /// Between 1 and `most` bytes, straight from the buffer.
    ///
    /// # Errors
    /// [`ReadEnd`] when none come within `patience`.
    pub fn chunk(&mut self, most: usize, patience: &mut Patience) -> Result<&[u8], ReadEnd> {
        if self.start == self.end {
            self.fill(patience)?;
        }
        let from = self.start;
        self.start = self.end.min(from.saturating_add(most));
        Ok(self.buffer.get(from..self.start).unwrap_or_default())
    }

    fn fill(&mut self, patience: &mut Patience) -> Result<(), ReadEnd> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        loop {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            let started = Instant::now();
            let outcome = self.source.read(room);
            let waited = patience.spend(started.elapsed());
            match outcome {
                Ok(0) => return Err(ReadEnd::Closed),
                Ok(count) => {
                    self.end += count;
                    self.received += count as u64;
                    return waited;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    waited?;
                }
                Err(_) => return Err(ReadEnd::Closed),
            }
        }
    }
}

/// How long a peer may keep us waiting. Only waiting counts: a slow disk of ours is not the peer's fault.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    left: Duration,
}

impl Patience {
    /// Waiting up to `time`.
    #[must_use]
    pub fn new(time: Duration) -> Self {
        Self { left: time }
    }

    /// For a PDU of `length` bytes: a fixed time and what the minimum rate allows.
    #[must_use]
    pub fn for_pdu(length: u32, fixed: Duration, min_bytes_per_second: u32) -> Self {
        let allowed = u64::from(length) * 1000 / u64::from(min_bytes_per_second.max(1));
        Self {
            left: fixed + Duration::from_millis(allowed),
        }
    }

    /// Bytes that trickle in use it up as silence does.
    fn spend(&mut self, waited: Duration) -> Result<(), ReadEnd> {
        self.left = self.left.checked_sub(waited).ok_or(ReadEnd::Timeout)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte after each pause, then silence.
    struct Trickle {
        bytes: usize,
        pause: Duration,
    }

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(self.pause);
            if self.bytes == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.bytes -= 1;
            buffer[0] = 7;
            Ok(1)
        }
    }

    #[test]
    fn trickling_bytes_and_silence_both_use_up_patience() {
        for bytes in [0, 1000] {
            let mut reader = DeadlineReader::new(
                Trickle {
                    bytes,
                    pause: Duration::from_millis(2),
                },
                Vec::new(),
            );
            let mut patience = Patience::new(Duration::from_millis(20));
            assert!(matches!(
                reader.array::<100>(&mut patience),
                Err(ReadEnd::Timeout)
            ));
        }
    }

    #[test]
    fn our_own_slowness_does_not() {
        let mut reader = DeadlineReader::new(
            Trickle {
                bytes: 10,
                pause: Duration::ZERO,
            },
            Vec::new(),
        );
        let mut patience = Patience::new(Duration::from_millis(200));
        reader.array::<5>(&mut patience).unwrap();
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(reader.array::<5>(&mut patience).unwrap(), [7; 5]);
    }
}
