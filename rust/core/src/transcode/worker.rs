//! A transcoder in a process of its own: what crashes, hangs or eats memory here costs one object.
//!
//! The process gets one end of a socket as its standard input. Over it come jobs, each with two descriptors: what holds the
//! data set and what takes the result, shared memory or a file. It ends with its supervisor.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};
use storescp_codecs::mapping::{Mapping, SharedMemory};

use super::output::{FileOutput, MemoryOutput};
use super::{transcode, Job, TranscodeError};

/// Messages are small; a longer one is none of ours.
pub(super) const MESSAGE_BYTES: usize = 4096;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What the supervisor sends, with two descriptors: where the data set is, and where the result goes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) max_decoded_bytes: u64,
    pub(super) threads: usize,
    pub(super) input: Place,
    pub(super) output: Place,
}

/// Where a data set is in what its descriptor opens.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Place {
    /// At the beginning of shared memory, which is the same for all jobs: so many bytes, or room for so many.
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
    },
    /// The result does not fit into memory.
    NeedsFile,
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
    while let Some((request, input, output)) = receive(socket)? {
        let reply = run(
            &request,
            &File::from(input),
            File::from(output),
            socket,
            &mut shared,
        )
        .unwrap_or_else(|error| Reply::Failed {
            code: error.code().to_owned(),
            text: error.to_string(),
        });
        send(socket, &reply)?;
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

fn run(
    request: &Request,
    input: &File,
    output: File,
    socket: BorrowedFd<'_>,
    shared: &mut Shared,
) -> Result<Reply, TranscodeError> {
    let map;
    let dataset = match request.input {
        Place::Memory { bytes } => {
            let memory = match shared.input.take().filter(|map| map.as_ref().len() >= bytes) {
                Some(memory) => memory,
                None => Mapping::of(input)?,
            };
            let memory: &Mapping = shared.input.insert(memory);
            memory.as_ref().get(..bytes)
        }
        Place::File { offset } => {
            map = Mapping::of(input)?;
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
    let report = match request.output {
        Place::Memory { bytes } => {
            let memory = match shared.result.take() {
                Some(memory) => memory,
                None => SharedMemory::new(output)?,
            };
            let memory = shared.result.insert(memory).bytes().get_mut(..bytes);
            let mut out = MemoryOutput::new(memory.unwrap_or_default());
            match transcode(dataset, &job, &mut out, &mut progress) {
                Err(TranscodeError::Io(error)) if error.kind() == io::ErrorKind::StorageFull => {
                    return Ok(Reply::NeedsFile)
                }
                outcome => outcome?,
            }
        }
        Place::File { offset } => {
            let mut out = FileOutput::new(&output, offset);
            let report = transcode(dataset, &job, &mut out, &mut progress)?;
            out.flush()?;
            report
        }
    };
    Ok(Reply::Done {
        frames: report.frames,
        bytes: report.bytes,
    })
}

fn send(socket: BorrowedFd<'_>, reply: &Reply) -> io::Result<()> {
    let message = serde_json::to_vec(reply)?;
    rustix::net::send(socket, &message, crate::os::SEND)?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Request, OwnedFd, OwnedFd)>> {
    let mut message = [0u8; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut message)],
        &mut control,
        crate::os::RECEIVE,
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
    match (descriptors.next(), descriptors.next()) {
        (Some(input), Some(output)) => Ok(Some((request, input, output))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
