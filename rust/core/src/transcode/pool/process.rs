//! One worker process, and what is said to it.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use rustix::process::Signal;
use serde::Serialize;
use storescp_codecs::mapping::SharedMemory;

use super::{Input, Task, RESULT_BYTES};
use crate::os;
use crate::transcode::lockdown::Protection;
use crate::transcode::worker::{Place, Reply, Request, Room, DESCRIPTORS, GO, MESSAGE_BYTES};
use crate::transcode::TranscodeError;

/// Free memory that a worker keeps for the next frame (glibc's mallopt): 32 MiB.
const KEPT_BYTES: &str = "33554432";
/// How often a conversation looks whether it is aborted.
const LOOK_UP_NANOSECONDS: i64 = 100_000_000;
/// All that a worker learns of the environment: where the interpreter and its modules are. The service may have secrets there.
pub const ENVIRONMENT: [&str; 12] = [
    "DYLD_LIBRARY_PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHOME",
    "PYTHONNOUSERSITE",
    "PYTHONPATH",
    "PYTHONPLATLIBDIR",
    "PYTHONPYCACHEPREFIX",
    "PYTHONSAFEPATH",
    "PYTHONUSERBASE",
    "VIRTUAL_ENV",
];
/// From the end of a worker's socket to the end of the process.
const ENDING: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    socket: OwnedFd,
    /// Carries data sets that are in memory; and the same file for the worker, which only reads it.
    memory: SharedMemory,
    reader: File,
    /// Takes results of up to [`RESULT_BYTES`]. The worker can change it at any time.
    result: SharedMemory,
    /// A result out of its reach.
    copy: Vec<u8>,
    /// What it told of itself when it started.
    pub(super) missing: Option<Vec<Protection>>,
}

/// How a conversation with a worker ended badly.
pub(super) enum Broken {
    /// It was gone before it took the job: another one may do it.
    BeforeTheJob,
    /// Nobody wants to know any more.
    Aborted,
    /// It ended with the job.
    Ended,
    /// There is no file for its result, which is not its fault.
    WithoutRoom(io::Error),
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
        // Memory files cannot shrink: a worker that goes wrong must not cut them beneath us. Nor can it make its own one longer, which no
        // limit of its memory counts.
        let shared = |bytes, can_grow| {
            os::memory_file(bytes, can_grow)
                .and_then(SharedMemory::new)
                .map_err(failed)
        };
        let memory = shared(0, true)?;
        let reader = os::read_only(memory.file()).map_err(failed)?;
        let result = shared(RESULT_BYTES as u64, false)?;
        let inherited = ENVIRONMENT
            .iter()
            .filter_map(|&name| Some((name, std::env::var_os(name)?)));
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // What C libraries print may quote the object.
            .stderr(Stdio::null())
            .env_clear()
            .envs(inherited)
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
            reader,
            result,
            copy: vec![0; RESULT_BYTES],
            missing: None,
        })
    }

    /// Hands a job over. The worker wakes up while the data set is put where it will look for it.
    pub(super) fn ask(&mut self, task: &Task<'_>, threads: usize) -> io::Result<Result<(), Broken>> {
        let (input, reopened) = match &task.input {
            Input::File(file, offset) => (Place::File { offset: *offset }, Some(os::read_only(file)?)),
            Input::Memory(dataset) => {
                let bytes = dataset.iter().map(|part| part.len()).sum();
                self.memory.reserve(bytes)?;
                (Place::Memory { bytes }, None)
            }
        };
        let request = Request {
            source: task.source.to_owned(),
            target: task.target.to_owned(),
            max_decoded_bytes: task.max_decoded_bytes,
            threads,
            input,
        };
        let input = reopened.as_ref().unwrap_or(&self.reader);
        let descriptors: [_; DESCRIPTORS] = [input.as_fd(), self.result.file().as_fd()];
        if self.send_with(&request, &descriptors).is_err() {
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

    /// Hands over a file for the result, to write to from `offset` on.
    pub(super) fn lend(&self, file: BorrowedFd<'_>, offset: u64) -> Result<(), Broken> {
        self.send_with(&Room { offset }, &[file])
            .map_err(|_| Broken::Ended)
    }

    fn send_with(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let message = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(descriptors));
        let message = [io::IoSlice::new(&message)];
        rustix::net::sendmsg(&self.socket, &message, &mut control, os::SEND)?;
        Ok(())
    }

    /// A result that is in memory: each byte of it is read once.
    pub(super) fn result(&mut self, bytes: u64) -> io::Result<&[u8]> {
        let copy = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| self.copy.get_mut(..bytes));
        let copy = copy.ok_or(io::ErrorKind::InvalidData)?;
        self.result.copy_to(copy)?;
        Ok(copy)
    }

    /// The next answer that is more than a sign of life, which comes before `end`.
    pub(super) fn answer(&mut self, patience: Patience<'_>, end: Instant) -> Result<Reply, Broken> {
        loop {
            match self.receive(patience, end)? {
                Reply::Started { missing } => self.missing = Some(missing),
                Reply::Progress => {}
                reply => return Ok(reply),
            }
            if Instant::now() >= end {
                return Err(too_long(patience.whole));
            }
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

    /// Ends the process. One that closed its socket is about to end by itself: how it ended is told.
    pub(super) fn end(mut self, by_itself: bool) -> String {
        if by_itself {
            if let Some(status) = wait(&mut self.child) {
                return ending(status);
            }
        }
        kill(&mut self.child);
        "the decoder crashed".to_owned()
    }

    /// Has an idle one end: it sees its socket close, so at once. One that does not is killed.
    pub(super) fn dismiss(self) {
        let Self {
            mut child, socket, ..
        } = self;
        drop(socket);
        if wait(&mut child).is_none() {
            kill(&mut child);
        }
    }
}

/// Waits a moment for the end of a process.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + ENDING;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// It may have ended just now; then there is nothing to kill.
fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn too_long(whole: Duration) -> Broken {
    Broken::WithTheJob(format!("not finished within {:.0} s", whole.as_secs_f64()))
}

/// How a process ended, in words.
fn ending(status: ExitStatus) -> String {
    match status.signal() {
        None => format!("the decoder crashed (exit code {})", status.code().unwrap_or(-1)),
        Some(signal) if signal == Signal::SYS.as_raw() => {
            format!("the decoder made a system call that is forbidden to it (signal {signal})")
        }
        Some(signal) => format!("the decoder crashed (signal {signal})"),
    }
}
