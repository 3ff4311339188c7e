//! One worker process, and what is said to it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use storescp_codecs::mapping::SharedMemory;

use super::{Input, Sink, Task, RESULT_BYTES};
use crate::os;
use crate::transcode::worker::{Place, Reply, Request, DESCRIPTORS, GO, MESSAGE_BYTES};
use crate::transcode::TranscodeError;

/// Free memory that a worker keeps for the next frame (glibc's mallopt): 32 MiB.
const KEPT_BYTES: &str = "33554432";
/// How often a conversation looks whether it is aborted.
const LOOK_UP_NANOSECONDS: i64 = 100_000_000;
/// What writing a small result takes at most, where nothing is in its way: hardly more than to fall asleep and be woken.
const MOMENT: Duration = Duration::from_micros(200);
/// From the end of a worker's socket to the end of the process.
const ENDING: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    socket: OwnedFd,
    /// Carries data sets that are in memory.
    memory: SharedMemory,
    /// Takes results of up to [`RESULT_BYTES`].
    result: SharedMemory,
}

/// How a conversation with a worker ended badly.
pub(super) enum Broken {
    /// It was gone before it took the job: another one may do it.
    BeforeTheJob,
    /// Nobody wants to know any more.
    Aborted,
    /// It ended with the job.
    Ended,
    /// It hung with the job, or said what nobody understands.
    WithTheJob(String),
}

/// How long an answer is waited for.
#[derive(Clone, Copy)]
pub(super) struct Patience<'p> {
    /// Without a sign of life.
    pub(super) limit: Duration,
    /// With all signs of life.
    pub(super) whole: Duration,
    /// Each ends the conversation when it is set.
    pub(super) stops: [&'p AtomicBool; 2],
}

impl Worker {
    pub(super) fn start(command: &[String]) -> Result<Self, TranscodeError> {
        let failed = |error: io::Error| TranscodeError::Worker(format!("cannot start a worker: {error}"));
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, os::MESSAGES, os::SOCKET, None)
            .map_err(|error| failed(error.into()))?;
        let (program, arguments) = command
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
        Ok(Self {
            child,
            socket: ours,
            memory,
            result,
        })
    }

    /// Hands a job over. The worker wakes up while the data set is put where it will look for it.
    pub(super) fn ask(
        &mut self,
        task: &Task<'_>,
        threads: usize,
        sink: &mut dyn Sink<'_>,
    ) -> io::Result<Result<(), Broken>> {
        let input = match &task.input {
            Input::File(_, offset) => Place::File { offset: *offset },
            Input::Memory(dataset) => {
                let bytes = dataset.iter().map(|part| part.len()).sum();
                self.memory.reserve(bytes)?;
                Place::Memory { bytes }
            }
        };
        let writes_all = sink.has_all_written();
        let (file, offset) = sink.file()?;
        let request = serde_json::to_vec(&Request {
            source: task.source.to_owned(),
            target: task.target.to_owned(),
            max_decoded_bytes: task.max_decoded_bytes,
            threads,
            input,
            offset,
            writes_all,
        })?;
        let descriptors: [_; DESCRIPTORS] = [
            match &task.input {
                Input::File(file, _) => *file,
                Input::Memory(_) => self.memory.file().as_fd(),
            },
            self.result.file().as_fd(),
            file,
        ];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let request = [io::IoSlice::new(&request)];
        if rustix::net::sendmsg(&self.socket, &request, &mut control, os::SEND).is_err() {
            return Ok(Err(Broken::BeforeTheJob));
        }
        if let Input::Memory(dataset) = &task.input {
            if let Err(error) = self.memory.put(dataset) {
                // It waits for what does not come.
                return Ok(Err(Broken::WithTheJob(error.to_string())));
            }
        }
        let begun = rustix::net::send(&self.socket, GO, os::SEND);
        Ok(begun.map(drop).map_err(|_| Broken::Ended))
    }

    /// A result that is in memory.
    pub(super) fn result(&mut self, bytes: u64) -> io::Result<&[u8]> {
        usize::try_from(bytes)
            .ok()
            .and_then(|bytes| self.result.bytes().get(..bytes))
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The next answer that is more than a sign of life.
    pub(super) fn answer(&self, patience: Patience<'_>) -> Result<Reply, Broken> {
        let end = Instant::now() + patience.whole;
        loop {
            match self.receive(patience, end)? {
                Reply::Progress if Instant::now() < end => {}
                Reply::Progress => return Err(too_long(patience.whole)),
                reply => return Ok(reply),
            }
        }
    }

    /// Waits for an answer that is about to come; who shall give it may need this very core. Whoever comes back without one has
    /// to sleep.
    pub(super) fn await_awake(&self) {
        let began = Instant::now();
        let is_silent = || self.poll(Timespec::default()) == Ok(0);
        while began.elapsed() < MOMENT && is_silent() {
            std::thread::yield_now();
        }
    }

    fn poll(&self, timeout: Timespec) -> Result<usize, Errno> {
        rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))
    }

    fn receive(&self, patience: Patience<'_>, end: Instant) -> Result<Reply, Broken> {
        let deadline = end.min(Instant::now() + patience.limit);
        let slice = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_UP_NANOSECONDS,
        };
        let mut message = [0u8; MESSAGE_BYTES];
        loop {
            if patience.stops.iter().any(|stop| stop.load(Ordering::Acquire)) {
                return Err(Broken::Aborted);
            }
            match self.poll(slice) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Broken::WithTheJob(error.to_string())),
                Ok(0) if Instant::now() < deadline => continue,
                Ok(0) if patience.limit != patience.whole && deadline == end => {
                    return Err(too_long(patience.whole))
                }
                Ok(0) => {
                    return Err(Broken::WithTheJob(format!(
                        "no progress for {:.0} s",
                        patience.limit.as_secs_f64()
                    )))
                }
                Ok(_) => {}
            }
            let received = match rustix::net::recv(&self.socket, &mut message, RecvFlags::empty()) {
                Ok((received, _)) => received,
                // It ended without reading all that we sent.
                Err(Errno::CONNRESET) => return Err(Broken::Ended),
                Err(error) => return Err(Broken::WithTheJob(error.to_string())),
            };
            let text = message.get(..received).unwrap_or_default();
            if text.is_empty() {
                return Err(Broken::Ended);
            }
            return serde_json::from_slice(text).map_err(|error| Broken::WithTheJob(error.to_string()));
        }
    }

    /// Ends the process. One that closed its socket is about to end by itself: then how it ended is worth telling.
    pub(super) fn end(mut self, by_itself: bool) -> String {
        if by_itself {
            let deadline = Instant::now() + ENDING;
            while Instant::now() < deadline {
                if let Ok(Some(status)) = self.child.try_wait() {
                    return status.signal().map_or_else(
                        || format!(" (exit code {})", status.code().unwrap_or(-1)),
                        |signal| format!(" (signal {signal})"),
                    );
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // It may have ended between the two calls; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        String::new()
    }

    /// Has an idle one end: it sees its socket close, so at once.
    pub(super) fn dismiss(self) {
        let Self {
            mut child, socket, ..
        } = self;
        drop(socket);
        let _ = child.wait();
    }
}

fn too_long(whole: Duration) -> Broken {
    Broken::WithTheJob(format!("not finished within {:.0} s", whole.as_secs_f64()))
}

/// Shared memory. A worker that goes wrong must not cut it beneath us.
fn shared_memory(bytes: u64) -> io::Result<SharedMemory> {
    SharedMemory::new(os::memory_file(bytes)?)
}
