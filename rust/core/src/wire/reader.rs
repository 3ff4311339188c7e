//! Reading from a peer in large pieces, with deadlines.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::block::{Block, Blocks, Keeper, BLOCK_BYTES};

/// A block with less room is not read into any more.
const LEAST_ROOM: usize = 32 * 1024;
/// Before the end of a message a block is copied out of, and not given away, where less of it counts: memory would be bounded by
/// what counts and not by what is held otherwise.
const LEAST_KEPT: usize = 32 * 1024;
/// Less of an unfinished message is not worth a system call of its own while the peer is waited for.
const WORTH_WRITING: usize = 64 * 1024;
/// As many as one system call can write.
const MOST_PARTS: usize = 1024;

/// Why nothing more comes from the peer.
#[derive(Debug)]
pub enum ReadEnd {
    /// The peer closed the connection, or it broke.
    Closed,
    /// It kept us waiting for too long.
    Timeout,
}

/// A buffered reader whose source returns `WouldBlock` or `TimedOut` now and then, so deadlines are looked at.
///
/// What [`DeadlineReader::keep`] marks is not read over: [`DeadlineReader::hand_over`] gives it to whoever writes it, mostly without a copy.
#[derive(Debug)]
pub struct DeadlineReader<R> {
    source: R,
    blocks: Arc<Blocks>,
    /// What is read into: bytes from `start` to `end` are not consumed yet.
    block: Block,
    start: usize,
    end: usize,
    /// The source had no more than that.
    is_drained: bool,
    /// Blocks before it of which something counts.
    full: Vec<Block>,
    received: u64,
}

impl<R: Read> DeadlineReader<R> {
    /// Wraps a source, for instance a socket with a read timeout of about a second.
    pub fn new(source: R, blocks: Arc<Blocks>) -> Self {
        Self {
            source,
            block: blocks.take(),
            blocks,
            start: 0,
            end: 0,
            is_drained: false,
            full: Vec::new(),
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
    /// [`ReadEnd`] when they do not come within `patience`.
    pub fn array<const N: usize>(&mut self, patience: &mut Patience) -> Result<[u8; N], ReadEnd> {
        loop {
            let waiting = self.block.between(self.start..self.end);
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
        Ok(self.block.between(from..self.start))
    }

    /// Makes the last `count` bytes of [`DeadlineReader::chunk`] count.
    pub fn keep(&mut self, count: usize) {
        self.block.keep(self.start.saturating_sub(count)..self.start);
    }

    /// Whether something should be handed over before more is received.
    pub fn has_much(&self) -> bool {
        !self.full.is_empty() || self.block.part_count() >= MOST_PARTS
    }

    /// Whether the peer has to be waited for, with something in hand that could be written meanwhile.
    pub fn has_time(&self) -> bool {
        self.is_drained && self.start == self.end && self.block.kept_bytes() >= WORTH_WRITING
    }

    /// Hands over what counts, in its order; `all` of it, as at the end of a message, or what is in blocks that are full.
    pub fn hand_over(&mut self, keeper: &mut impl Keeper, all: bool) {
        for block in self.full.drain(..) {
            if block.kept_bytes() >= LEAST_KEPT {
                keeper.take(block);
            } else {
                block.parts().for_each(|part| keeper.copy(part));
            }
        }
        let kept = self.block.kept_bytes();
        if kept == 0 || !(all || self.block.part_count() >= MOST_PARTS) {
            return;
        }
        // What is not consumed has to be moved where the block goes away.
        if self.end - self.start <= kept && (all || kept >= LEAST_KEPT) {
            let block = self.turn_over();
            keeper.take(block);
        } else {
            self.block.parts().for_each(|part| keeper.copy(part));
            self.block.forget();
        }
    }

    /// Goes on in another block; the one before.
    fn turn_over(&mut self) -> Block {
        let mut next = self.blocks.take();
        let rest = self.block.between(self.start..self.end);
        if let Some(room) = next.memory().get_mut(..rest.len()) {
            room.copy_from_slice(rest);
        }
        (self.start, self.end) = (0, rest.len());
        std::mem::replace(&mut self.block, next)
    }

    fn fill(&mut self, patience: &mut Patience) -> Result<(), ReadEnd> {
        if self.start == self.end && self.block.kept_bytes() == 0 {
            (self.start, self.end) = (0, 0);
        } else if BLOCK_BYTES - self.end < LEAST_ROOM {
            let full = self.turn_over();
            if full.kept_bytes() > 0 {
                self.full.push(full);
            }
        }
        loop {
            let room = self.block.memory().get_mut(self.end..).unwrap_or_default();
            let most = room.len();
            let started = Instant::now();
            let outcome = self.source.read(room);
            let waited = patience.spend(started.elapsed());
            match outcome {
                Ok(0) => return Err(ReadEnd::Closed),
                Ok(count) => {
                    self.end += count;
                    self.is_drained = count < most;
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
                Arc::default(),
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
            Arc::default(),
        );
        let mut patience = Patience::new(Duration::from_millis(200));
        reader.array::<5>(&mut patience).unwrap();
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(reader.array::<5>(&mut patience).unwrap(), [7; 5]);
    }

    /// Hands out what it has, at most so many bytes at a time.
    struct Pieces(Vec<u8>, usize, usize);

    impl Read for Pieces {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let left = &self.0[self.1..];
            let count = left.len().min(room.len()).min(self.2);
            room[..count].copy_from_slice(&left[..count]);
            self.1 += count;
            Ok(count)
        }
    }

    #[derive(Default)]
    struct Collected {
        bytes: Vec<u8>,
        blocks: usize,
        copies: usize,
    }

    impl Keeper for Collected {
        fn take(&mut self, block: Block) {
            let before = self.bytes.len();
            block.parts().for_each(|part| self.bytes.extend_from_slice(part));
            assert_eq!(self.bytes.len() - before, block.kept_bytes());
            self.blocks += 1;
        }

        fn copy(&mut self, bytes: &[u8]) {
            self.bytes.extend_from_slice(bytes);
            self.copies += 1;
        }
    }

    /// Frames of two bytes of length and as many bytes; every second one counts, or none, as PDUs of data sets and of
    /// commands do. Returns what was kept and what it should be.
    fn keep(lengths: &[u16], at_a_time: usize, message: usize) -> (Collected, Vec<u8>) {
        let (mut wire, mut wanted) = (Vec::new(), Vec::new());
        for (number, &length) in lengths.iter().enumerate() {
            let body: Vec<u8> = (0..length)
                .map(|at| (usize::from(at) * 7 + number).to_le_bytes()[0])
                .collect();
            wire.extend_from_slice(&length.to_be_bytes());
            wire.extend_from_slice(&body);
            if number % 2 == 0 {
                wanted.extend_from_slice(&body);
            }
        }
        let blocks = Arc::<Blocks>::default();
        let mut reader = DeadlineReader::new(Pieces(wire, 0, at_a_time), Arc::clone(&blocks));
        let mut kept = Collected::default();
        let mut patience = Patience::new(Duration::from_secs(60));
        for (number, &length) in lengths.iter().enumerate() {
            assert_eq!(u16::from_be_bytes(reader.array(&mut patience).unwrap()), length);
            let mut left = usize::from(length);
            while left > 0 {
                let count = reader.chunk(left, &mut patience).unwrap().len();
                left -= count;
                if number % 2 == 0 {
                    reader.keep(count);
                }
                if reader.has_much() {
                    reader.hand_over(&mut kept, false);
                }
            }
            if number % message == message - 1 {
                reader.hand_over(&mut kept, true);
            }
        }
        reader.hand_over(&mut kept, true);
        (kept, wanted)
    }

    #[test]
    fn what_counts_is_handed_over_whole_and_in_its_order() {
        for at_a_time in [1, 7, 1000, 40_000, usize::MAX] {
            for message in [2, 9, 1000] {
                let lengths: Vec<u16> = (0..400)
                    .map(|number| [16_000, 0, 1, 333, 60_000][number % 5])
                    .collect();
                let lengths = if at_a_time < 1000 {
                    &lengths[..10]
                } else {
                    &lengths
                };
                let (kept, wanted) = keep(lengths, at_a_time, message);
                assert!(kept.bytes == wanted, "{at_a_time} {message}");
            }
        }
    }

    #[test]
    fn there_is_time_to_write_only_while_the_peer_is_waited_for() {
        const PIECE: usize = 40_000;
        let mut reader = DeadlineReader::new(
            Pieces(vec![7; 3 * PIECE + 2 * BLOCK_BYTES], 0, PIECE),
            Arc::default(),
        );
        let mut patience = Patience::new(Duration::from_secs(60));
        let mut kept = Collected::default();
        let mut take = |reader: &mut DeadlineReader<Pieces>, most| {
            let count = reader.chunk(most, &mut patience).unwrap().len();
            reader.keep(count);
        };
        // Too little; enough, but something is left; all of it.
        take(&mut reader, PIECE);
        assert!(!reader.has_time());
        take(&mut reader, PIECE - 1);
        assert!(!reader.has_time());
        take(&mut reader, PIECE);
        assert!(reader.has_time());
        reader.hand_over(&mut kept, true);
        assert_eq!((kept.bytes.len(), kept.blocks), (2 * PIECE, 1));
        assert!(!reader.has_time());
        // As much as there is room for: more may be there already.
        reader.source.2 = usize::MAX;
        take(&mut reader, usize::MAX);
        assert!(!reader.has_time());
    }

    #[test]
    fn large_messages_are_not_copied() {
        let (kept, wanted) = keep(&[60_000; 200], usize::MAX, 1000);
        assert!(kept.bytes == wanted);
        assert_eq!(kept.copies, 0);
        assert!(kept.blocks > wanted.len() / BLOCK_BYTES, "{}", kept.blocks);
    }

    #[test]
    fn small_parts_are_copied_so_that_they_do_not_hold_much_memory() {
        let lengths = [1, 40].repeat(40_000);
        for at_a_time in [43, 5000, usize::MAX] {
            let (kept, wanted) = keep(&lengths, at_a_time, usize::MAX);
            assert!(kept.bytes == wanted);
            assert!(kept.blocks <= 1, "{}", kept.blocks);
        }
    }

    #[test]
    fn what_follows_a_message_stays_with_the_reader() {
        // A small message before much else: the parts are copied, so that much is not moved for little.
        let (kept, wanted) = keep(&[10, 60_000, 10, 60_000, 10, 50_000], usize::MAX, 1);
        assert!(kept.bytes == wanted);
        assert_eq!((kept.blocks, kept.copies), (0, 3));
    }
}
