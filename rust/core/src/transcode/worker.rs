//! A transcoder in a process of its own: what crashes, hangs or eats memory here costs one object.
//!
//! The process gets one end of a socket as its standard input. Over it come jobs, each with three descriptors: what holds the
//! data set (shared memory or a file), and the shared memory and the file that take the result. It ends with its supervisor.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use storescp_codecs::mapping::{Mapping, SharedMemory};

use super::output::{FileOutput, MemoryOutput};
use super::{transcode, Job, Report, TranscodeError};
use crate::os;

/// Messages are small; a longer one is none of ours.
pub(super) const MESSAGE_BYTES: usize = 4096;
/// With each request: what holds the data set, and the memory and the file for the result.
pub(super) const DESCRIPTORS: usize = 3;
/// Follows each request, when the data set is where the request says.
pub(super) const GO: &[u8] = b"go";
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What the supervisor sends, with three descriptors: the data set, shared memory for a result that fits, and a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) max_decoded_bytes: u64,
    pub(super) threads: usize,
    pub(super) input: Place,
    /// Where the result goes in the file.
    pub(super) offset: u64,
    /// Whether a result in shared memory goes to the file as well.
    pub(super) writes_all: bool,
}

/// Where a data set is in what its descriptor opens.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Place {
    /// At the beginning of shared memory, which is the same for all jobs: so many bytes.
    Memory { bytes: usize },
    /// In a file from an offset on.
    File { offset: u64 },
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It is still at work.
    Progress,
    Done {
        frames: usize,
        bytes: u64,
        /// The result is in shared memory, and not, or not yet, in the file.
        in_memory: bool,
    },
    /// After `Done`: what is in shared memory is in the file as well.
    Written,
    Failed {
        code: String,
        text: String,
    },
}

/// Serves jobs until the supervisor is gone. Never more memory of its own than `memory_bytes`.
///
/// # Errors
/// What the system says; the supervisor sees the end of the process.
pub fn serve(memory_bytes: u64) -> io::Result<()> {
    // A panic in one of several threads would leave the others waiting for it.
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let limit = |bytes| Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    // Anonymous memory only: the mapped data set and the page cache behind the files do not count.
    rustix::process::setrlimit(Resource::Data, limit(memory_bytes))?;
    rustix::process::setrlimit(Resource::Core, limit(0))?;
    let socket = rustix::stdio::stdin();
    std::thread::Builder::new()
        .name("storescp-parent".to_owned())
        .spawn(move || end_with_supervisor(socket))?;
    let mut shared = Shared::default();
    while let Some(job) = receive(socket)? {
        if let Err(error) = job.run(socket, &mut shared) {
            let (code, text) = (error.code().to_owned(), error.to_string());
            send(socket, &Reply::Failed { code, text })?;
        }
    }
    Ok(())
}

/// Also in the middle of a job: nobody wants its result any more.
fn end_with_supervisor(socket: BorrowedFd<'_>) {
    loop {
        let mut watched = [PollFd::new(&socket, PollFlags::empty())];
        match rustix::event::poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => std::process::exit(0),
        }
    }
}

/// What stays mapped from job to job.
#[derive(Default)]
struct Shared {
    input: Option<Mapping>,
    result: Option<SharedMemory>,
}

/// A request and its descriptors.
struct Work {
    request: Request,
    input: File,
    memory: File,
    file: File,
}

impl Work {
    /// Tells of the result itself.
    fn run(self, socket: BorrowedFd<'_>, shared: &mut Shared) -> Result<(), TranscodeError> {
        let request = &self.request;
        let (_, begun) =
            rustix::net::recv(socket, &mut [0; GO.len()], RecvFlags::empty()).map_err(io::Error::from)?;
        if begun != GO.len() {
            return Err(TranscodeError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let map;
        let dataset = match request.input {
            Place::Memory { bytes } => {
                let memory = match shared.input.take().filter(|map| map.as_ref().len() >= bytes) {
                    Some(memory) => memory,
                    None => Mapping::of(&self.input)?,
                };
                let memory: &Mapping = shared.input.insert(memory);
                memory.as_ref().get(..bytes)
            }
            Place::File { offset } => {
                map = Mapping::of(&self.input)?;
                usize::try_from(offset)
                    .ok()
                    .and_then(|offset| map.as_ref().get(offset..))
            }
        };
        let dataset = dataset.ok_or(TranscodeError::Io(io::ErrorKind::UnexpectedEof.into()))?;
        let job = Job {
            source: &request.source,
            target: &request.target,
            max_decoded_bytes: request.max_decoded_bytes,
            threads: request.threads,
        };
        let mut told = Instant::now();
        let mut progress = || {
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                // A supervisor that is gone ends this process anyway.
                let _ = send(socket, &Reply::Progress);
            }
        };
        let memory = match shared.result.take() {
            Some(memory) => memory,
            None => SharedMemory::new(self.memory)?,
        };
        let memory = shared.result.insert(memory).bytes();
        let done = |Report { frames, bytes }: Report, in_memory| {
            send(
                socket,
                &Reply::Done {
                    frames,
                    bytes,
                    in_memory,
                },
            )
        };
        match transcode(dataset, &job, &mut MemoryOutput::new(memory), &mut progress) {
            Err(TranscodeError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
                let mut out = FileOutput::new(&self.file, request.offset);
                let report = transcode(dataset, &job, &mut out, &mut progress)?;
                out.flush()?;
                done(report, false)?;
            }
            outcome => {
                let report = outcome?;
                done(report, true)?;
                if request.writes_all {
                    let result = usize::try_from(report.bytes)
                        .ok()
                        .and_then(|bytes| memory.get(..bytes));
                    let result = result.ok_or(TranscodeError::Io(io::ErrorKind::InvalidData.into()))?;
                    if report.bytes >= os::LEAST_RESERVED_BYTES && os::rewards_reserving(&self.file) {
                        os::reserve(&self.file, request.offset, report.bytes)?;
                    }
                    self.file.write_all_at(result, request.offset)?;
                    send(socket, &Reply::Written)?;
                }
            }
        }
        Ok(())
    }
}

fn send(socket: BorrowedFd<'_>, reply: &Reply) -> io::Result<()> {
    let message = serde_json::to_vec(reply)?;
    rustix::net::send(socket, &message, os::SEND)?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Work>> {
    let mut message = [0u8; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut message)],
        &mut control,
        os::RECEIVE,
    )?;
    let mut descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten();
    let Some(text) = message.get(..received.bytes).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let request = serde_json::from_slice(text)?;
    match (descriptors.next(), descriptors.next(), descriptors.next()) {
        (Some(input), Some(memory), Some(file)) => Ok(Some(Work {
            request,
            input: input.into(),
            memory: memory.into(),
            file: file.into(),
        })),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
