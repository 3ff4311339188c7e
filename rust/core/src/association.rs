//! An established association, from the A-ASSOCIATE-AC to release or abort (PS3.8 Section 7 and 9).

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::events::InstanceFact;
use crate::ingest::{Reception, Source, Stored};
use crate::layout::TenantId;
use crate::status::{Refusal, SUCCESS};
use crate::uid::Uid;
use crate::wire::command::{self, Command, Operation, Response};
use crate::wire::pdu::{self, AbortReason, PduHeader, PduType, PDV_HEADER_BYTES};
use crate::wire::reader::{pdu_deadline, DeadlineReader, ReadEnd};

/// How often a silent socket is looked at for deadlines.
const TICK: Duration = Duration::from_secs(1);
/// How long a response may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the peer has to close after our last PDU (the ARTIM timer of PS3.8 9.1.5).
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Different failures kept for the summary.
const FAILURE_KINDS: usize = 16;

/// An accepted presentation context.
#[derive(Clone, Debug)]
pub struct Context {
    /// Abstract syntax.
    pub abstract_syntax: String,
    /// The one transfer syntax that was accepted.
    pub transfer_syntax: String,
}

/// What negotiation decided.
#[derive(Clone, Debug)]
pub struct Agreement {
    /// Accepted contexts by id.
    pub contexts: HashMap<u8, Context>,
    /// The peer's maximum PDU length, 0 for none.
    pub peer_max_pdu_length: u32,
    /// Who sends.
    pub source: Source,
}

/// How an association ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A-RELEASE.
    Released,
    /// A-ABORT by the peer.
    AbortedByPeer,
    /// A-ABORT by us, for a breach of the protocol.
    ProtocolError,
    /// A-ABORT by us: the peer was silent or too slow.
    Timeout,
    /// The connection broke.
    ConnectionLost,
    /// A-ABORT by us: the service stops.
    Stopped,
}

impl Outcome {
    /// The word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::AbortedByPeer => "aborted_by_peer",
            Self::ProtocolError => "protocol_error",
            Self::Timeout => "timeout",
            Self::ConnectionLost => "connection_lost",
            Self::Stopped => "stopped",
        }
    }
}

/// What is told about an association when it is over.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Number of the association in this process.
    pub association: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where we aborted.
    pub reason: &'static str,
    /// C-STOREs by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Duplicates that were the same, and that were kept.
    pub identical: u64,
    /// Duplicates where the first instance was kept.
    pub kept: u64,
    /// Failures by status and comment, the first few kinds.
    pub failures: BTreeMap<(u16, String), u64>,
    /// C-ECHOs.
    pub echoes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// P-DATA-TFs longer than the negotiated maximum that were tolerated.
    pub oversized_pdus: u64,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Why the loop ended.
#[derive(Debug)]
struct End {
    outcome: Outcome,
    reason: &'static str,
    abort: Option<AbortReason>,
}

impl End {
    fn breach(abort: AbortReason, reason: &'static str) -> Self {
        Self {
            outcome: Outcome::ProtocolError,
            reason,
            abort: Some(abort),
        }
    }
}

impl From<ReadEnd> for End {
    fn from(end: ReadEnd) -> Self {
        match end {
            ReadEnd::Closed => Self {
                outcome: Outcome::ConnectionLost,
                reason: "the peer closed the connection",
                abort: None,
            },
            ReadEnd::Timeout => Self {
                outcome: Outcome::Timeout,
                reason: "the peer was silent or too slow",
                abort: Some(AbortReason::NotSpecified),
            },
        }
    }
}

/// Serves an association: sends `accept_pdu` and receives until release, abort or a deadline.
///
/// Never panics and never returns an error: everything that can happen is an [`Outcome`].
pub fn receive(engine: &Engine, stream: TcpStream, accept_pdu: &[u8], agreement: &Agreement) -> Summary {
    let started = Instant::now();
    let stream = Arc::new(stream);
    let registration = engine.register(&stream);
    let mut exchange = Exchange::new(engine, &stream, agreement, registration.id);
    let mut reader = DeadlineReader::new(&*stream);
    let end = match open(&stream, accept_pdu) {
        Ok(()) => serve(engine, &mut reader, &mut exchange),
        Err(_) => ReadEnd::Closed.into(),
    };
    let end = if engine.is_aborting() && end.outcome != Outcome::Released {
        End {
            outcome: Outcome::Stopped,
            reason: "the service stops",
            abort: Some(AbortReason::NotSpecified),
        }
    } else {
        end
    };
    // What is still spooled goes before the peer learns of the end.
    exchange.expect = Expect::Nothing;
    close(&stream, &end);
    let mut summary = exchange.summary;
    summary.outcome = end.outcome;
    summary.reason = end.reason;
    summary.received_bytes = reader.received();
    summary.seconds = started.elapsed().as_secs_f64();
    let tenant = agreement.source.tenant.as_ref().map_or("", TenantId::as_str);
    engine.count(&summary.statuses, tenant, summary.received_bytes);
    summary
}

fn open(stream: &TcpStream, accept_pdu: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    let mut sink = stream;
    sink.write_all(accept_pdu)
}

/// Lets the last PDU arrive: closing with unread bytes would reset the connection and may destroy it.
fn close(stream: &TcpStream, end: &End) {
    let mut sink = stream;
    if let Some(reason) = end.abort {
        if sink.write_all(&pdu::abort(reason)).is_err() {
            return;
        }
    }
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    let mut discard = [0; 16 * 1024];
    let mut source = stream;
    while Instant::now() < deadline {
        match source.read(&mut discard) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => break,
        }
    }
}

fn serve(engine: &Engine, reader: &mut DeadlineReader<&TcpStream>, exchange: &mut Exchange<'_>) -> End {
    loop {
        match one_pdu(engine, reader, exchange) {
            Ok(None) => {}
            Ok(Some(end)) | Err(end) => return end,
        }
    }
}

fn one_pdu(
    engine: &Engine,
    reader: &mut DeadlineReader<&TcpStream>,
    exchange: &mut Exchange<'_>,
) -> Result<Option<End>, End> {
    let limits = &engine.config().limits;
    let idle = Instant::now() + Engine::seconds(limits.idle_timeout);
    let header = PduHeader::parse(reader.array(idle)?);
    let deadline = pdu_deadline(
        header.length,
        Engine::seconds(limits.request_timeout),
        limits.min_rate,
    );
    match header.pdu_type {
        PduType::PData => {
            exchange.check_length(header.length)?;
            data_pdu(reader, exchange, header.length, deadline)?;
            Ok(None)
        }
        PduType::ReleaseRq => {
            short_body(reader, header.length, deadline)?;
            if exchange.is_receiving() {
                return Err(End::breach(
                    AbortReason::UnexpectedPdu,
                    "release inside a message",
                ));
            }
            exchange.send(&pdu::RELEASE_RP)?;
            Ok(Some(End {
                outcome: Outcome::Released,
                reason: "",
                abort: None,
            }))
        }
        PduType::Abort => {
            short_body(reader, header.length, deadline)?;
            Ok(Some(End {
                outcome: Outcome::AbortedByPeer,
                reason: "the peer aborted",
                abort: None,
            }))
        }
        PduType::AssociateRq | PduType::AssociateResponse | PduType::ReleaseRp => {
            Err(End::breach(AbortReason::UnexpectedPdu, "unexpected PDU"))
        }
        PduType::Unrecognised => Err(End::breach(AbortReason::UnrecognisedPdu, "unrecognised PDU")),
    }
}

/// A-RELEASE-RQ and A-ABORT have four bytes (PS3.8 Tables 9-24 and 9-26).
fn short_body(reader: &mut DeadlineReader<&TcpStream>, length: u32, deadline: Instant) -> Result<(), End> {
    if length != 4 {
        return Err(End::breach(
            AbortReason::InvalidPduParameter,
            "PDU of the wrong length",
        ));
    }
    reader.array::<4>(deadline)?;
    Ok(())
}

/// The presentation data values of a P-DATA-TF (PS3.8 9.3.5.1).
fn data_pdu(
    reader: &mut DeadlineReader<&TcpStream>,
    exchange: &mut Exchange<'_>,
    length: u32,
    deadline: Instant,
) -> Result<(), End> {
    let invalid = || {
        End::breach(
            AbortReason::InvalidPduParameter,
            "invalid presentation data value",
        )
    };
    let mut left = length;
    if left < PDV_HEADER_BYTES {
        return Err(invalid());
    }
    while left > 0 {
        if left < PDV_HEADER_BYTES {
            return Err(invalid());
        }
        let [a, b, c, d, context_id, control] = reader.array(deadline)?;
        let pdv_length = u32::from_be_bytes([a, b, c, d]);
        if pdv_length < 2 || pdv_length > left - 4 {
            return Err(invalid());
        }
        left -= pdv_length + 4;
        // Message control header (PS3.8 E.2): bit 0 command, bit 1 last fragment.
        let (is_command, is_last) = (control & 1 == 1, control & 2 == 2);
        exchange.begin_fragment(context_id, is_command)?;
        let mut remaining = usize::try_from(pdv_length - 2).unwrap_or(usize::MAX);
        while remaining > 0 {
            let chunk = reader.chunk(remaining, deadline)?;
            remaining -= chunk.len();
            exchange.fragment(chunk)?;
        }
        if is_last {
            exchange.end_message_part()?;
        }
    }
    Ok(())
}

/// What the next fragment belongs to.
enum Expect<'e> {
    /// A command set, maybe begun.
    Command { bytes: Vec<u8>, context_id: Option<u8> },
    /// The data set of a C-STORE.
    Dataset {
        request: Request,
        state: DatasetState<'e>,
    },
    /// The association is over.
    Nothing,
}

enum DatasetState<'e> {
    Receiving(Box<Reception<'e>>),
    /// Refused already: the rest is discarded, then answered.
    Refused(Refusal),
}

struct Request {
    context_id: u8,
    operation: Operation,
    message_id: u16,
    sop_class_uid: Option<Uid>,
    sop_instance_uid: Option<Uid>,
    bytes: u64,
}

/// The DIMSE side of the association: command sets in, responses out.
struct Exchange<'e> {
    engine: &'e Engine,
    stream: &'e TcpStream,
    agreement: &'e Agreement,
    expect: Expect<'e>,
    scratch: Vec<u8>,
    summary: Summary,
}

impl<'e> Exchange<'e> {
    fn new(engine: &'e Engine, stream: &'e TcpStream, agreement: &'e Agreement, association: u64) -> Self {
        let summary = Summary {
            association,
            outcome: Outcome::ConnectionLost,
            reason: "",
            statuses: BTreeMap::new(),
            identical: 0,
            kept: 0,
            failures: BTreeMap::new(),
            echoes: 0,
            received_bytes: 0,
            oversized_pdus: 0,
            seconds: 0.0,
        };
        Self {
            engine,
            stream,
            agreement,
            expect: Expect::Command {
                bytes: Vec::new(),
                context_id: None,
            },
            scratch: Vec::new(),
            summary,
        }
    }

    fn check_length(&mut self, length: u32) -> Result<(), End> {
        let config = self.engine.config();
        if length <= config.max_pdu_length {
            return Ok(());
        }
        if config.strict || length > config.limits.max_pdu_tolerated {
            return Err(End::breach(
                AbortReason::InvalidPduParameter,
                "P-DATA-TF longer than the negotiated maximum",
            ));
        }
        self.summary.oversized_pdus += 1;
        Ok(())
    }

    fn is_receiving(&self) -> bool {
        match &self.expect {
            Expect::Command { context_id, .. } => context_id.is_some(),
            Expect::Dataset { .. } => true,
            Expect::Nothing => false,
        }
    }

    fn begin_fragment(&mut self, context_id: u8, is_command: bool) -> Result<(), End> {
        if !self.agreement.contexts.contains_key(&context_id) {
            return Err(End::breach(
                AbortReason::InvalidPduParameter,
                "presentation context was not accepted",
            ));
        }
        let (belongs, same_context) = match &mut self.expect {
            Expect::Command {
                context_id: begun, ..
            } => (is_command, *begun.get_or_insert(context_id) == context_id),
            Expect::Dataset { request, .. } => (!is_command, request.context_id == context_id),
            Expect::Nothing => (false, false),
        };
        if !belongs {
            return Err(End::breach(
                AbortReason::UnexpectedPdu,
                "command and data set fragments out of order",
            ));
        }
        if !same_context {
            return Err(End::breach(
                AbortReason::InvalidPduParameter,
                "presentation context changed inside a message",
            ));
        }
        Ok(())
    }

    fn fragment(&mut self, chunk: &[u8]) -> Result<(), End> {
        match &mut self.expect {
            Expect::Command { bytes, .. } => {
                if bytes.len() + chunk.len() > command::MAX_BYTES {
                    return Err(End::breach(
                        AbortReason::InvalidPduParameter,
                        "command set too long",
                    ));
                }
                bytes.extend_from_slice(chunk);
            }
            Expect::Dataset { request, state } => {
                request.bytes += chunk.len() as u64;
                if let DatasetState::Receiving(reception) = state {
                    let taken = contain(|| reception.append(chunk));
                    if let Err(refusal) = taken {
                        *state = DatasetState::Refused(refusal);
                    }
                }
            }
            Expect::Nothing => {}
        }
        Ok(())
    }

    /// The last fragment of a command set or a data set.
    fn end_message_part(&mut self) -> Result<(), End> {
        match std::mem::replace(
            &mut self.expect,
            Expect::Command {
                bytes: Vec::new(),
                context_id: None,
            },
        ) {
            Expect::Command {
                bytes,
                context_id: Some(context_id),
            } => self.command(context_id, &bytes),
            Expect::Dataset { request, state } => self.dataset_ended(&request, state),
            Expect::Command { .. } | Expect::Nothing => Ok(()),
        }
    }

    fn command(&mut self, context_id: u8, bytes: &[u8]) -> Result<(), End> {
        let private = self.engine.config().private_tenant.as_ref();
        let command = Command::parse(bytes, private.map(crate::config::PrivateTenant::tag))
            .map_err(|_| End::breach(AbortReason::InvalidPduParameter, "not a command set"))?;
        let request = Request {
            context_id,
            operation: command.operation,
            message_id: command.message_id,
            sop_class_uid: Uid::parse(&command.affected_sop_class_uid).ok(),
            sop_instance_uid: Uid::parse(&command.affected_sop_instance_uid).ok(),
            bytes: 0,
        };
        match (command.operation, command.has_dataset) {
            (Operation::CCancel, false) => Ok(()),
            (Operation::Response, _) => Err(End::breach(
                AbortReason::UnexpectedPdu,
                "a response from a requestor",
            )),
            (Operation::CEcho, false) => {
                self.summary.echoes += 1;
                self.respond(&request, SUCCESS, None)
            }
            (Operation::CStore, true) => {
                let state = match contain(|| self.begin_store(&request, &command)) {
                    Ok(reception) => DatasetState::Receiving(Box::new(reception)),
                    Err(refusal) => DatasetState::Refused(refusal),
                };
                self.expect = Expect::Dataset { request, state };
                Ok(())
            }
            (Operation::CStore, false) => self.refuse(&request, &Refusal::Mistyped),
            (operation, has_dataset) => {
                let refusal = if operation == Operation::CEcho {
                    Refusal::Mistyped
                } else {
                    Refusal::Unrecognised
                };
                if has_dataset {
                    self.expect = Expect::Dataset {
                        request,
                        state: DatasetState::Refused(refusal),
                    };
                    return Ok(());
                }
                self.refuse(&request, &refusal)
            }
        }
    }

    fn begin_store(&mut self, request: &Request, command: &Command) -> Result<Reception<'e>, Refusal> {
        let instance = request
            .sop_instance_uid
            .clone()
            .ok_or(Refusal::CommandInstanceUid)?;
        let context = self
            .agreement
            .contexts
            .get(&request.context_id)
            .ok_or(Refusal::ClassMismatch)?;
        let class = request
            .sop_class_uid
            .clone()
            .filter(|uid| uid.as_str() == context.abstract_syntax)
            .ok_or(Refusal::ClassMismatch)?;
        let source = &self.agreement.source;
        let private = self
            .engine
            .config()
            .private_tenant
            .as_ref()
            .filter(|_| !source.tenant_by_rule);
        let command_tenant = match (private, &command.private_tenant) {
            (Some(private), Some(value)) => Some(private.resolve(value).ok_or(Refusal::TenantNotAuthorised)?),
            _ => None,
        };
        let scratch = std::mem::take(&mut self.scratch);
        Reception::begin(
            self.engine,
            source,
            command_tenant,
            (class, instance),
            &context.transfer_syntax,
            scratch,
        )
    }

    fn dataset_ended(&mut self, request: &Request, state: DatasetState<'e>) -> Result<(), End> {
        let received = Instant::now();
        let stored = match state {
            DatasetState::Receiving(reception) => contain(|| reception.finish()),
            DatasetState::Refused(refusal) => Err(refusal),
        };
        let refusal = match stored {
            Ok((stored, scratch)) => {
                self.scratch = scratch;
                match stored {
                    Stored::New => {}
                    Stored::Identical => self.summary.identical += 1,
                    Stored::Kept => self.summary.kept += 1,
                }
                None
            }
            Err(refusal) => Some(refusal),
        };
        if request.operation == Operation::CStore {
            self.note(request, refusal.as_ref(), received);
        }
        match refusal {
            // The one place where an instance is acknowledged: file and record are durable.
            None => self.respond(request, SUCCESS, None),
            Some(refusal) => self.respond(request, refusal.status(), Some(&refusal.comment())),
        }
    }

    fn refuse(&mut self, request: &Request, refusal: &Refusal) -> Result<(), End> {
        if request.operation == Operation::CStore {
            self.note(request, Some(refusal), Instant::now());
        }
        self.respond(request, refusal.status(), Some(&refusal.comment()))
    }

    fn note(&mut self, request: &Request, refusal: Option<&Refusal>, received: Instant) {
        let status = refusal.map_or(SUCCESS, Refusal::status);
        *self.summary.statuses.entry(status).or_default() += 1;
        let comment = refusal.map(Refusal::comment).unwrap_or_default();
        if refusal.is_some() {
            let key = (status, comment.clone());
            if self.summary.failures.len() < FAILURE_KINDS || self.summary.failures.contains_key(&key) {
                *self.summary.failures.entry(key).or_default() += 1;
            }
        }
        self.engine.events().push(|| InstanceFact {
            association: self.summary.association,
            status,
            comment,
            sop_instance_uid: request
                .sop_instance_uid
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            bytes: request.bytes,
            commit_seconds: received.elapsed().as_secs_f64(),
        });
    }

    fn respond(&mut self, request: &Request, status: u16, error_comment: Option<&str>) -> Result<(), End> {
        let response = Response {
            operation: request.operation,
            message_id: request.message_id,
            sop_class_uid: request.sop_class_uid.as_ref().map(Uid::as_str),
            sop_instance_uid: request.sop_instance_uid.as_ref().map(Uid::as_str),
            status,
            error_comment,
        };
        let pdus = pdu::wrap_command(
            request.context_id,
            &response.encode(),
            self.agreement.peer_max_pdu_length,
        );
        self.send(&pdus)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let mut sink = self.stream;
        sink.write_all(bytes).map_err(|_| End::from(ReadEnd::Closed))
    }
}

/// A panic costs the instance, not the association: it is answered as a bug of ours.
fn contain<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Refusal::Bug))
}
