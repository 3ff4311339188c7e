//! The DIMSE side of an association: command sets in, responses out (PS3.7 Section 9).

mod notes;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Instant;

use crate::activity::{LiveAssociation, Shown};
use crate::association::{Agreement, End, Outcome, Summary};
use crate::engine::Engine;
use crate::failpoint;
use crate::ingest::{Announced, Reception, Scratch};
use crate::net::admission::Place;
use crate::net::stream::Stream;
use crate::status::{Refusal, SUCCESS};
use crate::uid::Uid;
use crate::wire::block::{Block, Keeper};
use crate::wire::command::{self, Command, Operation, Response};
use crate::wire::pdu::{self, AbortReason};
use crate::wire::reader::ReadEnd;
use notes::Ended;

/// What is read of a refused instance beyond the size limit at the least, before the association is aborted.
const DISCARDED_BYTES: u64 = 64 << 20;

/// What the next fragment belongs to.
#[allow(clippy::large_enum_variant)] // there is one for each association
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

impl<'e> DatasetState<'e> {
    fn attempt(&mut self, work: impl FnOnce(&mut Reception<'e>) -> Result<(), Refusal>) {
        if let Self::Receiving(reception) = self {
            if let Err(refusal) = contain(|| work(reception)) {
                *self = Self::Refused(refusal);
            }
        }
    }
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
pub(crate) struct Exchange<'e> {
    engine: &'e Engine,
    stream: &'e Stream,
    agreement: &'e Agreement,
    live: &'e LiveAssociation,
    expect: Expect<'e>,
    place: Option<Place>,
    pub(crate) scratch: Scratch,
    pub(crate) summary: Summary,
}

impl<'e> Exchange<'e> {
    pub(crate) fn new(
        engine: &'e Engine,
        stream: &'e Stream,
        agreement: &'e Agreement,
        live: &'e LiveAssociation,
        scratch: Scratch,
        place: Option<Place>,
    ) -> Self {
        let summary = Summary {
            association: live.id,
            outcome: Outcome::ConnectionLost,
            reason: "",
            statuses: BTreeMap::new(),
            identical: 0,
            kept: 0,
            replaced: 0,
            tenants: BTreeSet::new(),
            failures: BTreeMap::new(),
            transcodes: BTreeMap::new(),
            transcode_failures: BTreeMap::new(),
            anomalies: BTreeMap::new(),
            quarantined: Vec::new(),
            transfers: BTreeMap::new(),
            refused: 0,
            echoes: 0,
            received_bytes: 0,
            oversized_pdus: 0,
            seconds: 0.0,
        };
        let mut exchange = Self {
            engine,
            stream,
            agreement,
            live,
            expect: Expect::Command {
                bytes: Vec::new(),
                context_id: None,
            },
            place,
            scratch,
            summary,
        };
        if let Some(tenant) = exchange.tenant_of_all() {
            exchange.summary.tenants.insert(tenant.as_str().to_owned());
        }
        exchange
    }

    /// Forgets the message that was under way: what is spooled of it goes.
    pub(crate) fn discard(&mut self) {
        self.expect = Expect::Nothing;
    }

    /// Gives back the place among the associations.
    pub(crate) fn leave(&mut self) {
        self.place = None;
    }

    pub(crate) fn check_length(&mut self, length: u32) -> Result<(), End> {
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

    pub(crate) fn is_receiving(&self) -> bool {
        match &self.expect {
            Expect::Command { context_id, .. } => context_id.is_some(),
            Expect::Dataset { .. } => true,
            Expect::Nothing => false,
        }
    }

    pub(crate) fn begin_fragment(&mut self, context_id: u8, is_command: bool) -> Result<(), End> {
        if !self.agreement.answer.contexts.contains_key(&context_id) {
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

    /// Takes notice of the next bytes. Those that it wants to keep it gets as a [`Keeper`].
    pub(crate) fn fragment(&mut self, chunk: &[u8]) -> Result<bool, End> {
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
                self.live.received(chunk.len());
                // A refused instance is read to its end so that it can be answered, but not for ever.
                let most = self.engine.config().limits.max_instance_bytes;
                let endless = most.saturating_add(most.max(DISCARDED_BYTES));
                if request.bytes > endless {
                    return Err(End::breach(
                        AbortReason::NotSpecified,
                        "a data set far beyond the size limit",
                    ));
                }
                state.attempt(|reception| reception.look_at(chunk));
                return Ok(matches!(state, DatasetState::Receiving(_)));
            }
            Expect::Nothing => {}
        }
        Ok(false)
    }

    /// Whether what it gets as a [`Keeper`] goes to a file at once.
    pub(crate) fn is_written_as_it_comes(&self) -> bool {
        match &self.expect {
            Expect::Dataset {
                state: DatasetState::Receiving(reception),
                ..
            } => reception.is_written_as_it_comes(),
            _ => false,
        }
    }

    /// The last fragment of a command set or a data set.
    pub(crate) fn end_message_part(&mut self) -> Result<(), End> {
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
            sop_class_uid: Uid::parse(command.affected_sop_class_uid).ok(),
            sop_instance_uid: Uid::parse(command.affected_sop_instance_uid).ok(),
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

    fn begin_store(&mut self, request: &Request, command: &Command<'_>) -> Result<Reception<'e>, Refusal> {
        let instance = request.sop_instance_uid.ok_or(Refusal::CommandInstanceUid)?;
        let context = self
            .agreement
            .answer
            .contexts
            .get(&request.context_id)
            .ok_or(Refusal::ClassMismatch)?;
        let class = request
            .sop_class_uid
            .filter(|uid| uid.as_str() == context.abstract_syntax)
            .ok_or(Refusal::ClassMismatch)?;
        let source = &self.agreement.source;
        let private = self
            .engine
            .config()
            .private_tenant
            .as_ref()
            .filter(|_| !source.tenant_by_rule);
        let command_tenant = match (private, command.private_tenant) {
            (Some(private), Some(value)) => Some(private.resolve(value)?),
            _ => None,
        };
        let scratch = std::mem::take(&mut self.scratch);
        Reception::begin(
            self.engine,
            source,
            Announced {
                command_tenant,
                sop_class_uid: class,
                sop_instance_uid: instance,
                message_id: Some(request.message_id),
                transfer_syntax: &context.transfer_syntax,
                malformed: self.engine.config().malformed,
            },
            scratch,
        )
    }

    fn dataset_ended(&mut self, request: &Request, state: DatasetState<'e>) -> Result<(), End> {
        let received = Instant::now();
        let mut rest = None;
        let stored = match state {
            DatasetState::Receiving(reception) => contain(|| reception.finish()),
            DatasetState::Refused(refusal) => Err(refusal),
        };
        let (mut tenant, mut outcome) = (None, None);
        let mut shown = Shown::default();
        let refusal = match stored {
            Ok(finished) => {
                if self.engine.recent().is_watched() {
                    shown = Shown::of(&finished);
                }
                self.note_anomalies(finished.index.anomalies);
                self.scratch = finished.scratch;
                rest = Some(finished.rest);
                if self.engine.config().audit {
                    self.note_transfer(&finished.tenant, finished.index);
                }
                if let Some(attempt) = finished.attempt {
                    self.note_transcoding(attempt);
                }
                tenant = Some(finished.tenant);
                self.note_stored(finished.stored, finished.tenant.as_str());
                outcome = Some(finished.stored);
                None
            }
            Err(refusal) => Some(refusal),
        };
        if request.operation == Operation::CStore {
            let ended = Ended {
                refusal: refusal.as_ref(),
                outcome,
                tenant: tenant.as_ref(),
            };
            self.note(request, ended, received, shown);
        }
        let answered = match refusal {
            // The one place where an instance is acknowledged: file and record are durable.
            None => {
                let answered = self.respond(request, SUCCESS, None);
                failpoint::hit("answered");
                answered
            }
            Some(refusal) => self.respond(request, refusal.status(), Some(&refusal.comment())),
        };
        // The sender is busy with the answer, and the next instance may already be on its way.
        if let Some(rest) = rest {
            rest.finish();
        }
        // Who waits for no disk gives way here to those whose instances are still on their way: the next one of this association would
        // otherwise be served before them as long as its time on the core lasts.
        if !self.engine.config().durability.syncs_data() {
            std::thread::yield_now();
        }
        answered
    }

    fn refuse(&mut self, request: &Request, refusal: &Refusal) -> Result<(), End> {
        if request.operation == Operation::CStore {
            let ended = Ended {
                refusal: Some(refusal),
                outcome: None,
                tenant: None,
            };
            self.note(request, ended, Instant::now(), Shown::default());
        }
        self.respond(request, refusal.status(), Some(&refusal.comment()))
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
            self.agreement.answer.peer_max_pdu_length,
        );
        self.send(&pdus)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let mut sink = self.stream;
        sink.write_all(bytes).map_err(|_| End::from(ReadEnd::Closed))
    }
}

impl Keeper for Exchange<'_> {
    fn take(&mut self, block: Block) {
        if let Expect::Dataset { state, .. } = &mut self.expect {
            state.attempt(|reception| reception.take(block));
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        if let Expect::Dataset { state, .. } = &mut self.expect {
            state.attempt(|reception| reception.copy(bytes));
        }
    }
}

/// A panic costs the instance, not the association: it is answered as a bug of ours.
pub(crate) fn contain<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Refusal::Bug))
}
