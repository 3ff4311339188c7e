//! A transcoder in a process of its own: what crashes, hangs or eats memory here costs one object.
//!
//! The process gets one end of a socket as its standard input. Over it come jobs, each with two descriptors: what holds the
//! data set (shared memory or a file, read-only), and the shared memory that takes the result. For a result that does not fit it
//! asks for a file. It ends with its supervisor. Beyond these descriptors it can reach nothing: see [`super::lockdown`].

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Resource, Rlimit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storescp_codecs::mapping::{Mapping, SharedMemory};

use super::lockdown::{lock_down, Protection};
use super::output::{FileOutput, MemoryOutput};
use super::{transcode, Job, Report, TranscodeError};
use crate::os;

/// Messages are small; a longer one is none of ours.
pub(super) const MESSAGE_BYTES: usize = 4096;
/// With each request: what holds the data set, and the memory for the result.
pub(super) const DESCRIPTORS: usize = 2;
/// Follows each request, when the data set is where the request says.
pub(super) const GO: &[u8] = b"go";
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What the supervisor sends, with two descriptors: the data set, and shared memory for a result that fits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) max_decoded_bytes: u64,
    pub(super) threads: usize,
    pub(super) input: Place,
}

/// What the supervisor sends where it is asked for a file, with its descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Room {
    /// Where the result goes in the file.
    pub(super) offset: u64,
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
    /// Once, before the first job: the protections that the process has to do without.
    Started {
        missing: Vec<Protection>,
    },
    /// It is still at work.
    Progress,
    /// The result does not fit into shared memory: a file is needed.
    TooLarge,
    Done {
        frames: usize,
        bytes: u64,
        /// The result is in shared memory. Otherwise it is in the file, which the worker does not have open any more.
        in_memory: bool,
    },
    Failed {
        code: String,
        text: String,
    },
}

/// Serves jobs until the supervisor is gone, locked down before the first one. Never more memory of its own than `memory_bytes`.
/// To be called while the process has one thread.
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
    let missing = lock_down();
    let socket = rustix::stdio::stdin();
    send(socket, &Reply::Started { missing })?;
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
}

impl Work {
    /// Tells of the result itself.
    fn run(self, socket: BorrowedFd<'_>, shared: &mut Shared) -> Result<(), TranscodeError> {
        let request = self.request;
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
        let memory = match shared.result.take() {
            Some(memory) => memory,
            None => SharedMemory::new(self.memory)?,
        };
        let done = work(&request, dataset, shared.result.insert(memory).bytes(), socket)?;
        Ok(send(socket, &done)?)
    }
}

/// Transcodes into memory, or into a file where that is too small. The file is closed before it is told of: the supervisor takes
/// one over that nobody can write to any more.
fn work(
    request: &Request,
    dataset: &[u8],
    memory: &mut [u8],
    socket: BorrowedFd<'_>,
) -> Result<Reply, TranscodeError> {
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
    let (Report { frames, bytes }, in_memory) =
        match transcode(dataset, &job, &mut MemoryOutput::new(memory), &mut progress) {
            Err(TranscodeError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
                send(socket, &Reply::TooLarge)?;
                let (file, offset) = receive_room(socket)?;
                let mut out = FileOutput::new(&file, offset);
                let report = transcode(dataset, &job, &mut out, &mut progress)?;
                out.flush()?;
                (report, false)
            }
            outcome => (outcome?, true),
        };
    Ok(Reply::Done {
        frames,
        bytes,
        in_memory,
    })
}

fn send(socket: BorrowedFd<'_>, reply: &Reply) -> io::Result<()> {
    let message = serde_json::to_vec(reply)?;
    rustix::net::send(socket, &message, os::SEND)?;
    Ok(())
}

/// The next job; none when the supervisor is gone.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Work>> {
    let Some((request, [input, memory])) = receive_with(socket)? else {
        return Ok(None);
    };
    Ok(Some(Work {
        request,
        input,
        memory,
    }))
}

fn receive_room(socket: BorrowedFd<'_>) -> io::Result<(File, u64)> {
    let received = receive_with(socket)?;
    let (Room { offset }, [file]) = received.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((file, offset))
}

/// A message and the descriptors that come with it.
fn receive_with<T: DeserializeOwned, const COUNT: usize>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, [File; COUNT])>> {
    let mut message = [0u8; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut message)],
        &mut control,
        os::RECEIVE,
    )?;
    let descriptors: Vec<File> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .map(File::from)
        .collect();
    let Some(text) = message.get(..received.bytes).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let content = serde_json::from_slice(text)?;
    let descriptors = descriptors
        .try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Some((content, descriptors)))
}
