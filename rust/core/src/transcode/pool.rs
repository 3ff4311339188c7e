//! The supervisor of worker processes: a bounded number, used in turn, replaced when one dies or hangs.

mod process;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

pub use self::process::ENVIRONMENT;
use self::process::{Broken, Patience, Worker};
use super::lockdown::Protection;
use super::worker::Reply;
use super::{Report, TranscodeError};

/// Results up to this size come through memory, larger ones through a file.
pub const RESULT_BYTES: usize = 1 << 20;

/// How worker processes are started and how much each may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// The program and its arguments; the socket is its standard input.
    pub command: Vec<String>,
    /// Processes at most.
    pub workers: usize,
    /// Frames of one instance at a time.
    pub threads: usize,
    /// Seconds without a finished frame after which a worker is ended.
    pub timeout: f64,
    /// Seconds that a worker may take for all frames of one instance before it is ended.
    pub instance_timeout: f64,
    /// Seconds that an instance waits for a worker that is free.
    pub max_wait: f64,
}

/// A data set to transcode, in a file of its own or behind a header.
#[derive(Clone, Debug)]
pub struct Task<'t> {
    /// Transfer syntax of the data set.
    pub source: &'t str,
    /// Transfer syntax that is wanted.
    pub target: &'t str,
    /// Bytes that the pixels may decode to.
    pub max_decoded_bytes: u64,
    /// The data set.
    pub input: Input<'t>,
    /// Ends the task early, as [`Pool::abort`] does. Whoever sets it calls [`Pool::look_up`].
    pub stop: Option<&'t AtomicBool>,
}

/// Takes a result: a small one comes in memory, a large one is in a file when it comes.
pub trait Sink {
    /// A file for another process to write a large result to, and where in it.
    ///
    /// # Errors
    /// What the file system says.
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)>;

    /// While the other process works.
    ///
    /// # Errors
    /// What the file system says.
    fn meanwhile(&mut self) -> io::Result<()>;

    /// Takes a small result: memory that the other process cannot change.
    ///
    /// # Errors
    /// What the file system says.
    fn take(&mut self, result: &[u8]) -> io::Result<()>;

    /// Takes over what was written to the file. Whoever wrote it may still want to change it.
    ///
    /// # Errors
    /// `InvalidData` when the file has another size; what the file system says.
    fn take_over(&mut self, bytes: u64) -> io::Result<()>;
}

/// Where a data set is.
#[derive(Clone, Debug)]
pub enum Input<'t> {
    /// In memory, in parts.
    Memory(Vec<&'t [u8]>),
    /// In a file from an offset on to its end.
    File(BorrowedFd<'t>, u64),
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Worker>,
    live: usize,
    /// Who waits, in the order of arrival: an association has one instance at a time, so each gets its turn.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

/// See the module documentation. Dropping it ends the processes.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    state: Mutex<State>,
    changed: Condvar,
    aborted: AtomicBool,
    missing: OnceLock<Vec<Protection>>,
}

impl Pool {
    /// A pool without processes; they are started as they are needed.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
            changed: Condvar::new(),
            aborted: AtomicBool::new(false),
            missing: OnceLock::new(),
        }
    }

    /// Ends what is under way and what waits, for good: the process is about to end. Each fails as interrupted, which is
    /// not the object's fault.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.look_up();
    }

    /// Has those who wait see that their task is to end early.
    pub fn look_up(&self) {
        // Whoever has just looked, and does not wait yet, holds the lock.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// What ends a task early.
    fn stops<'t>(&'t self, task: &Task<'t>) -> [&'t AtomicBool; 2] {
        [&self.aborted, task.stop.unwrap_or(&self.aborted)]
    }

    /// The protections that a worker has to do without, once one was started.
    #[must_use]
    pub fn missing_protections(&self) -> Option<&[Protection]> {
        self.missing.get().map(Vec::as_slice)
    }

    /// Processes that are alive.
    #[must_use]
    pub fn live(&self) -> usize {
        self.lock().live
    }

    /// Has a worker do it. Waits for one that is free, and for the result.
    ///
    /// # Errors
    /// [`TranscodeError`]; [`TranscodeError::Busy`] when no worker was free in time, [`TranscodeError::Worker`] when the process
    /// crashed, hung, took too long or could not be started.
    pub fn transcode(&self, task: &Task<'_>, sink: &mut dyn Sink) -> Result<Report, TranscodeError> {
        let wait_ends = Instant::now() + seconds(self.config.max_wait);
        loop {
            let mut held = Held {
                pool: self,
                worker: Some(self.acquire(self.stops(task), wait_ends)?),
            };
            let outcome = match &mut held.worker {
                Some(worker) => self.converse(worker, task, sink),
                None => Err(Broken::BeforeTheJob),
            };
            let Some(worker) = held.worker.take() else {
                continue;
            };
            let was_gone = matches!(outcome, Err(Broken::BeforeTheJob));
            let result = self.leave(worker, outcome);
            if !was_gone {
                return result;
            }
        }
    }

    /// Gives a worker back, or ends what is left of it.
    fn leave<T>(
        &self,
        worker: Worker,
        outcome: Result<Result<T, TranscodeError>, Broken>,
    ) -> Result<T, TranscodeError> {
        let broken = match outcome {
            Ok(result) => {
                self.lock().idle.push(worker);
                self.changed.notify_all();
                return result;
            }
            Err(broken) => broken,
        };
        let ending = self.end(worker, matches!(broken, Broken::Ended));
        Err(match broken {
            Broken::BeforeTheJob => TranscodeError::Worker("the worker was gone".to_owned()),
            Broken::Aborted => interrupted(),
            Broken::WithoutRoom(error) => TranscodeError::Io(error),
            Broken::Ended => TranscodeError::Worker(ending),
            Broken::WithTheJob(reason) => TranscodeError::Worker(reason),
        })
    }

    /// Ends a worker; how it ended.
    fn end(&self, worker: Worker, by_itself: bool) -> String {
        let ending = worker.end(by_itself);
        self.lock().live -= 1;
        self.changed.notify_all();
        ending
    }

    /// A worker that is free, in the order of asking.
    fn acquire(&self, stops: [&AtomicBool; 2], wait_ends: Instant) -> Result<Worker, TranscodeError> {
        let is_stopped = || stops.iter().any(|stop| stop.load(Ordering::Acquire));
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        let has_turn = |state: &State| {
            state.waiting.front() == Some(&ticket)
                && (!state.idle.is_empty() || state.live < self.config.workers)
        };
        let left = wait_ends.saturating_duration_since(Instant::now());
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, left, |state| !has_turn(state) && !is_stopped())
            .unwrap_or_else(PoisonError::into_inner);
        let has_turn = has_turn(&state);
        state.waiting.retain(|&other| other != ticket);
        if is_stopped() || !has_turn {
            drop(state);
            // The next one may have been behind it alone.
            self.changed.notify_all();
            return Err(if is_stopped() {
                interrupted()
            } else {
                TranscodeError::Busy(self.config.max_wait)
            });
        }
        let idle = state.idle.pop();
        if idle.is_none() {
            state.live += 1;
        }
        drop(state);
        self.changed.notify_all();
        idle.map_or_else(
            || {
                Worker::start(&self.config.command).inspect_err(|_| {
                    self.lock().live -= 1;
                    self.changed.notify_all();
                })
            },
            Ok,
        )
    }

    fn converse(
        &self,
        worker: &mut Worker,
        task: &Task<'_>,
        sink: &mut dyn Sink,
    ) -> Result<Result<Report, TranscodeError>, Broken> {
        match worker.ask(task, self.config.threads) {
            Ok(sent) => sent?,
            Err(error) => return Ok(Err(error.into())),
        }
        let prepared = sink.meanwhile();
        let patience = self.patience(task);
        let ends = Instant::now() + patience.whole;
        let mut answer = worker.answer(patience, ends);
        if let Some(missing) = worker.missing.take() {
            // The first one tells for all.
            let _ = self.missing.set(missing);
        }
        let needs_file = matches!(answer, Ok(Reply::TooLarge));
        if needs_file {
            match sink.file() {
                Ok((file, offset)) => worker.lend(file, offset)?,
                // The worker waits for a file.
                Err(error) => return Err(Broken::WithoutRoom(error)),
            }
            answer = worker.answer(patience, ends);
        }
        let (report, in_memory) = match answer? {
            Reply::Done {
                frames,
                bytes,
                in_memory,
            } if in_memory != needs_file => (Report { frames, bytes }, in_memory),
            Reply::Failed { code, text } => {
                return TranscodeError::reported(&code, &text, needs_file)
                    .map(Err)
                    .ok_or_else(|| Broken::WithTheJob("it failed in a way that there is not".to_owned()));
            }
            other => return Err(Broken::WithTheJob(format!("an answer out of turn: {other:?}"))),
        };
        let taken = prepared.and_then(|()| {
            if in_memory {
                sink.take(worker.result(report.bytes)?)
            } else {
                sink.take_over(report.bytes)
            }
        });
        match taken {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Broken::WithTheJob(
                "the result is not what the worker says".to_owned(),
            )),
            taken => Ok(taken.map(|()| report).map_err(TranscodeError::Io)),
        }
    }

    fn patience<'t>(&'t self, task: &Task<'t>) -> Patience<'t> {
        Patience {
            limit: seconds(self.config.timeout),
            whole: seconds(self.config.instance_timeout),
            stops: self.stops(task),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that works. Where something goes wrong on the way, it is ended, and another one can be started.
struct Held<'p> {
    pool: &'p Pool,
    worker: Option<Worker>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.pool.end(worker, false);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let idle = std::mem::take(&mut self.lock().idle);
        for worker in idle {
            worker.dismiss();
        }
    }
}

/// Of the configuration, which allows none that are negative or infinite.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(60))
}

fn interrupted() -> TranscodeError {
    TranscodeError::Io(io::ErrorKind::Interrupted.into())
}

#[cfg(test)]
mod tests;
