//! The supervisor of worker processes: a bounded number, used in turn, replaced when one dies or hangs.

mod process;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use self::process::{Broken, Patience, Worker};
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
pub trait Sink<'p> {
    /// A file for another process to write the result to, and where in it.
    ///
    /// # Errors
    /// What the file system says.
    fn file(&mut self) -> io::Result<(BorrowedFd<'_>, u64)>;

    /// Whether a small result goes to that file as well, written by the process that made it: it has it in its cache.
    fn has_all_written(&self) -> bool;

    /// While the other process works.
    ///
    /// # Errors
    /// What the file system says.
    fn meanwhile(&mut self) -> io::Result<()>;

    /// Takes a small result.
    ///
    /// # Errors
    /// What the file system says.
    fn take(&mut self, result: &[u8]) -> io::Result<()>;

    /// Where [`Sink::has_all_written`]: the result that it took is on its way to the file.
    ///
    /// # Errors
    /// Those of [`Writing::finish`], where it is waited for here.
    fn take_later(&mut self, writing: Writing<'p>) -> Result<(), TranscodeError>;

    /// Takes over what was written to the file.
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
        }
    }

    /// Ends what is under way and what waits, for good: the process is about to end. Each fails as interrupted, which is
    /// not the object's fault.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Has those who wait see that their task is to end early.
    pub fn look_up(&self) {
        self.changed.notify_all();
    }

    /// What ends a task early.
    fn stops<'t>(&'t self, task: &Task<'t>) -> [&'t AtomicBool; 2] {
        [&self.aborted, task.stop.unwrap_or(&self.aborted)]
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
    pub fn transcode<'p>(
        &'p self,
        task: &Task<'_>,
        sink: &mut dyn Sink<'p>,
    ) -> Result<Report, TranscodeError> {
        let wait_ends = Instant::now() + seconds(self.config.max_wait);
        loop {
            let mut worker = self.acquire(self.stops(task), wait_ends)?;
            let outcome = self.converse(&mut worker, task, sink);
            if let Ok((taken, true)) = outcome {
                let writing = Writing {
                    pool: self,
                    worker: Some(worker),
                };
                return taken.and_then(|report| sink.take_later(writing).map(|()| report));
            }
            let was_gone = matches!(outcome, Err(Broken::BeforeTheJob));
            let result = self.leave(worker, outcome.map(|(taken, _)| taken));
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
        let ending = worker.end(matches!(broken, Broken::Ended));
        self.lock().live -= 1;
        self.changed.notify_all();
        Err(match broken {
            Broken::BeforeTheJob => TranscodeError::Worker("the worker was gone".to_owned()),
            Broken::Aborted => interrupted(),
            Broken::Ended => TranscodeError::Worker(format!("the decoder crashed{ending}")),
            Broken::WithTheJob(reason) => TranscodeError::Worker(reason),
        })
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

    /// Returns also whether the worker still writes the result to the file.
    fn converse(
        &self,
        worker: &mut Worker,
        task: &Task<'_>,
        sink: &mut dyn Sink<'_>,
    ) -> Result<(Result<Report, TranscodeError>, bool), Broken> {
        match worker.ask(task, self.config.threads, sink) {
            Ok(sent) => sent?,
            Err(error) => return Ok((Err(error.into()), false)),
        }
        let prepared = sink.meanwhile();
        let (report, in_memory) = match worker.answer(self.patience(task))? {
            Reply::Done {
                frames,
                bytes,
                in_memory,
            } => (Report { frames, bytes }, in_memory),
            other => return failed(other).map(|error| (Err(error), false)),
        };
        let taken = prepared.and_then(|()| {
            if in_memory {
                sink.take(worker.result(report.bytes)?)
            } else {
                sink.take_over(report.bytes)
            }
        });
        let is_writing = in_memory && sink.has_all_written();
        Ok((taken.map(|()| report).map_err(TranscodeError::Io), is_writing))
    }

    fn patience<'t>(&'t self, task: &Task<'t>) -> Patience<'t> {
        Patience {
            limit: seconds(self.config.timeout),
            whole: seconds(self.config.instance_timeout),
            stops: self.stops(task),
        }
    }

    /// With a result that is on its way to the file, and that nobody else can end.
    fn patience_of_writing(&self) -> Patience<'_> {
        let limit = seconds(self.config.timeout);
        Patience {
            limit,
            whole: limit,
            stops: [&self.aborted; 2],
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A small result on its way from shared memory to the file. Dropped, it is waited for all the same: the worker's answer must
/// not be left for its next job.
#[derive(Debug)]
pub struct Writing<'p> {
    pool: &'p Pool,
    worker: Option<Worker>,
}

impl Writing<'_> {
    /// Waits until it is there.
    ///
    /// # Errors
    /// [`TranscodeError`], as of [`Pool::transcode`].
    pub fn finish(mut self) -> Result<(), TranscodeError> {
        self.wait()
    }

    fn wait(&mut self) -> Result<(), TranscodeError> {
        let Some(worker) = self.worker.take() else {
            return Ok(());
        };
        worker.await_awake();
        let outcome = worker
            .answer(self.pool.patience_of_writing())
            .and_then(|reply| match reply {
                Reply::Written => Ok(Ok(())),
                other => failed(other).map(Err),
            });
        self.pool.leave(worker, outcome)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Whoever dropped it has failed already.
        let _ = self.wait();
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

/// What a worker says instead of what it should.
fn failed(reply: Reply) -> Result<TranscodeError, Broken> {
    match reply {
        Reply::Failed { code, text } => Ok(TranscodeError::Reported { code, text }),
        other => Err(Broken::WithTheJob(format!("an answer out of turn: {other:?}"))),
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
