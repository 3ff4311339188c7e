//! The supervisor of worker processes: a bounded number, used in turn, replaced when one dies or hangs.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use serde::Deserialize;
use storescp_codecs::mapping::SharedMemory;

use super::worker::{Place, Reply, Request, DESCRIPTORS, GO, MESSAGE_BYTES};
use super::{Report, TranscodeError};
use crate::os;

/// Results up to this size come through memory, larger ones through a file.
pub const RESULT_BYTES: usize = 1 << 20;
/// Free memory that a worker keeps for the next frame (glibc's mallopt): 32 MiB.
const KEPT_BYTES: &str = "33554432";
/// How often a conversation looks whether it is aborted.
const LOOK_UP_NANOSECONDS: i64 = 100_000_000;
/// What writing a small result takes at most, where nothing is in its way: hardly more than to fall asleep and be woken.
const MOMENT: Duration = Duration::from_micros(200);
/// From the end of a worker's socket to the end of the process.
const ENDING: Duration = Duration::from_secs(1);

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

#[derive(Debug)]
struct Worker {
    child: Child,
    socket: OwnedFd,
    /// Carries data sets that are in memory.
    memory: SharedMemory,
    /// Takes results of up to [`RESULT_BYTES`].
    result: SharedMemory,
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

/// How a conversation with a worker ended badly.
enum Broken {
    /// It was gone before it took the job: another one may do it.
    BeforeTheJob,
    /// See [`Pool::abort`].
    Aborted,
    /// It ended with the job.
    Ended,
    /// It hung with the job, or said what nobody understands.
    WithTheJob(String),
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

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Processes that are alive.
    #[must_use]
    pub fn live(&self) -> usize {
        self.lock().live
    }

    /// Has a worker do it. Waits for one that is free, and for the result.
    ///
    /// # Errors
    /// [`TranscodeError`]; [`TranscodeError::Worker`] when the process crashed, hung or could not be started.
    pub fn transcode<'p>(
        &'p self,
        task: &Task<'_>,
        sink: &mut dyn Sink<'p>,
    ) -> Result<Report, TranscodeError> {
        loop {
            let mut worker = self.acquire()?;
            match self.converse(&mut worker, task, sink) {
                Err(Broken::BeforeTheJob) => {
                    self.end(worker, false);
                }
                Ok((taken, true)) => {
                    let writing = Writing {
                        pool: self,
                        worker: Some(worker),
                    };
                    return taken.and_then(|report| sink.take_later(writing).map(|()| report));
                }
                outcome => return self.leave(worker, outcome.map(|(taken, _)| taken)),
            }
        }
    }

    /// Gives a worker back, or ends what is left of it.
    fn leave<T>(
        &self,
        worker: Worker,
        outcome: Result<Result<T, TranscodeError>, Broken>,
    ) -> Result<T, TranscodeError> {
        let reason = match outcome {
            Ok(result) => {
                self.lock().idle.push(worker);
                self.changed.notify_all();
                return result;
            }
            Err(Broken::Aborted) => {
                self.end(worker, false);
                return Err(interrupted());
            }
            Err(Broken::Ended) => format!("the decoder crashed{}", self.end(worker, true)),
            Err(Broken::WithTheJob(reason)) => {
                self.end(worker, false);
                reason
            }
            Err(Broken::BeforeTheJob) => {
                self.end(worker, false);
                "the worker was gone".to_owned()
            }
        };
        Err(TranscodeError::Worker(reason))
    }

    /// Ends a worker, and says how it ended where it did so by itself.
    fn end(&self, mut worker: Worker, by_itself: bool) -> String {
        let ending = end(&mut worker, by_itself);
        self.lock().live -= 1;
        self.changed.notify_all();
        ending
    }

    fn acquire(&self) -> Result<Worker, TranscodeError> {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        let mut state = self
            .changed
            .wait_while(state, |state| {
                let is_our_turn = state.waiting.front() == Some(&ticket)
                    && (!state.idle.is_empty() || state.live < self.config.workers);
                !is_our_turn && !self.is_aborted()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_aborted() {
            state.waiting.retain(|&other| other != ticket);
            return Err(interrupted());
        }
        state.waiting.pop_front();
        let idle = state.idle.pop();
        if idle.is_none() {
            state.live += 1;
        }
        drop(state);
        self.changed.notify_all();
        idle.map_or_else(
            || {
                self.start().inspect_err(|_| {
                    self.lock().live -= 1;
                    self.changed.notify_all();
                })
            },
            Ok,
        )
    }

    fn start(&self) -> Result<Worker, TranscodeError> {
        let failed = |error: io::Error| TranscodeError::Worker(format!("cannot start a worker: {error}"));
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, os::MESSAGES, os::SOCKET, None)
            .map_err(|error| failed(error.into()))?;
        let (program, arguments) = self
            .config
            .command
            .split_first()
            .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let memory = shared_memory(0).map_err(failed)?;
        let result = shared_memory(RESULT_BYTES as u64).map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // What C libraries print may quote the object.
            .stderr(Stdio::null())
            // Frames are as large as the last ones: giving their memory back to the system costs more than decoding some.
            .env("MALLOC_TRIM_THRESHOLD_", KEPT_BYTES)
            .env("MALLOC_MMAP_THRESHOLD_", KEPT_BYTES)
            // A Ctrl-C at the terminal is for the service, which drains and then ends its workers.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Worker {
            child,
            socket: ours,
            memory,
            result,
        })
    }

    /// Returns also whether the worker still writes the result to the file.
    fn converse(
        &self,
        worker: &mut Worker,
        task: &Task<'_>,
        sink: &mut dyn Sink<'_>,
    ) -> Result<(Result<Report, TranscodeError>, bool), Broken> {
        match self.ask(worker, task, sink) {
            Ok(sent) => sent?,
            Err(error) => return Ok((Err(error.into()), false)),
        }
        let prepared = sink.meanwhile();
        let (report, in_memory) = match self.finished(worker)? {
            Reply::Done {
                frames,
                bytes,
                in_memory,
            } => (Report { frames, bytes }, in_memory),
            other => return failed(other).map(|error| (Err(error), false)),
        };
        let taken = prepared.and_then(|()| {
            if !in_memory {
                return sink.take_over(report.bytes);
            }
            usize::try_from(report.bytes)
                .ok()
                .and_then(|bytes| worker.result.bytes().get(..bytes))
                .ok_or_else(|| io::ErrorKind::InvalidData.into())
                .and_then(|result| sink.take(result))
        });
        let is_writing = in_memory && sink.has_all_written();
        Ok((taken.map(|()| report).map_err(TranscodeError::Io), is_writing))
    }

    /// Hands a job over. The worker wakes up while the data set is put where it will look for it.
    fn ask(
        &self,
        worker: &mut Worker,
        task: &Task<'_>,
        sink: &mut dyn Sink,
    ) -> io::Result<Result<(), Broken>> {
        let input = match &task.input {
            Input::File(_, offset) => Place::File { offset: *offset },
            Input::Memory(dataset) => {
                let bytes = dataset.iter().map(|part| part.len()).sum();
                worker.memory.reserve(bytes)?;
                Place::Memory { bytes }
            }
        };
        let writes_all = sink.has_all_written();
        let (file, offset) = sink.file()?;
        let request = serde_json::to_vec(&Request {
            source: task.source.to_owned(),
            target: task.target.to_owned(),
            max_decoded_bytes: task.max_decoded_bytes,
            threads: self.config.threads,
            input,
            offset,
            writes_all,
        })?;
        let descriptors: [_; DESCRIPTORS] = [
            match &task.input {
                Input::File(file, _) => *file,
                Input::Memory(_) => worker.memory.file().as_fd(),
            },
            worker.result.file().as_fd(),
            file,
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let request = [io::IoSlice::new(&request)];
        if rustix::net::sendmsg(&worker.socket, &request, &mut control, os::SEND).is_err() {
            return Ok(Err(Broken::BeforeTheJob));
        }
        if let Input::Memory(dataset) = &task.input {
            if let Err(error) = worker.memory.put(dataset) {
                // It waits for what does not come.
                return Ok(Err(Broken::WithTheJob(error.to_string())));
            }
        }
        let begun = rustix::net::send(&worker.socket, GO, os::SEND);
        Ok(begun.map(drop).map_err(|_| Broken::Ended))
    }

    /// The next answer that is more than a sign of life.
    fn finished(&self, worker: &Worker) -> Result<Reply, Broken> {
        loop {
            match self.receive(&worker.socket)? {
                Reply::Progress => {}
                reply => return Ok(reply),
            }
        }
    }

    fn receive(&self, socket: &OwnedFd) -> Result<Reply, Broken> {
        let patience = Duration::try_from_secs_f64(self.config.timeout).unwrap_or(Duration::from_secs(60));
        let deadline = Instant::now() + patience;
        let slice = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_UP_NANOSECONDS,
        };
        let mut message = [0u8; MESSAGE_BYTES];
        loop {
            if self.is_aborted() {
                return Err(Broken::Aborted);
            }
            let mut watched = [PollFd::new(socket, PollFlags::IN)];
            match rustix::event::poll(&mut watched, Some(&slice)) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Broken::WithTheJob(error.to_string())),
                Ok(0) if Instant::now() < deadline => continue,
                Ok(0) => {
                    return Err(Broken::WithTheJob(format!(
                        "no progress for {:.0} s",
                        patience.as_secs_f64()
                    )))
                }
                Ok(_) => {}
            }
            let received = match rustix::net::recv(socket.as_fd(), &mut message, RecvFlags::empty()) {
                Ok((received, _)) => received,
                // It ended without reading all that we sent.
                Err(rustix::io::Errno::CONNRESET) => return Err(Broken::Ended),
                Err(error) => return Err(Broken::WithTheJob(error.to_string())),
            };
            let text = message.get(..received).unwrap_or_default();
            if text.is_empty() {
                return Err(Broken::Ended);
            }
            return serde_json::from_slice(text).map_err(|error| Broken::WithTheJob(error.to_string()));
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
        await_awake(&worker.socket);
        let outcome = self.pool.finished(&worker).and_then(|reply| match reply {
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
        for Worker {
            mut child, socket, ..
        } in idle
        {
            // The worker sees its socket close and ends; it is idle, so at once.
            drop(socket);
            let _ = child.wait();
        }
    }
}

/// Shared memory. A worker that goes wrong must not cut it beneath us.
fn shared_memory(bytes: u64) -> io::Result<SharedMemory> {
    SharedMemory::new(os::memory_file(bytes)?)
}

/// Waits for an answer that is about to come. Who comes back without one has to sleep.
fn await_awake(socket: &OwnedFd) {
    let began = Instant::now();
    let at_once = Timespec::default();
    let is_silent =
        || rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&at_once)) == Ok(0);
    while began.elapsed() < MOMENT && is_silent() {}
}

/// What a worker says instead of what it should.
fn failed(reply: Reply) -> Result<TranscodeError, Broken> {
    match reply {
        Reply::Failed { code, text } => Ok(TranscodeError::Reported { code, text }),
        other => Err(Broken::WithTheJob(format!("an answer out of turn: {other:?}"))),
    }
}

fn interrupted() -> TranscodeError {
    TranscodeError::Io(io::ErrorKind::Interrupted.into())
}

/// Ends a process. One that closed its socket is about to end by itself: then how it ended is worth telling.
fn end(worker: &mut Worker, by_itself: bool) -> String {
    if by_itself {
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = worker.child.try_wait() {
                return status.signal().map_or_else(
                    || format!(" (exit code {})", status.code().unwrap_or(-1)),
                    |signal| format!(" (signal {signal})"),
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // It may have ended between the two calls; then there is nothing to kill.
    let _ = worker.child.kill();
    let _ = worker.child.wait();
    String::new()
}

#[cfg(test)]
mod tests;
