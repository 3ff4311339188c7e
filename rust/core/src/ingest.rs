//! The use case: one instance from its command set to "file and record are both durable".

mod commit;
mod identity;
mod in_place;
mod keep;

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub(crate) use in_place::Original;
pub use in_place::Unchanged;
pub use keep::{Note, TenantFrom};

use crate::config::Malformed;
use crate::dataset::anomaly::{Anomalies, Anomaly};
use crate::dataset::captured::Captured;
use crate::dataset::index::InstanceIndex;
use crate::dataset::scan::ScanLimits;
use crate::dataset::stream::DatasetScan;
use crate::engine::Engine;
use crate::failpoint;
use crate::file_meta;
use crate::layout::{InstancePath, TenantId};
use crate::record::TransferStatus;
use crate::stages::Stage;
use crate::status::Refusal;
use crate::store::folders::SeriesFolder;
use crate::store::replaced::MakesRoom;
use crate::store::spool::Spool;
use crate::store::Store;
use crate::tenants::Taken;
use crate::transcode::plan::{plan, Plan};
use crate::transcode::pool::{Pool, Task};
use crate::transcode::TranscodeError;
use crate::uid::Uid;
use crate::wire::block::{Block, BLOCK_BYTES};

/// What an association tells about all its instances.
#[derive(Clone, Debug)]
pub struct Source {
    /// Calling AE title.
    pub calling_ae_title: String,
    /// Called AE title.
    pub called_ae_title: String,
    /// Address of the peer, without port.
    pub address: String,
    /// Tenant by rule or default; `None` refuses what no private element resolves.
    pub tenant: Option<TenantId>,
    /// A rule matched, so private elements are not looked at.
    pub tenant_by_rule: bool,
}

/// What the command set and its presentation context say of an instance.
#[derive(Clone, Copy, Debug)]
pub struct Announced<'e> {
    /// Tenant by the private element of the command set.
    pub command_tenant: Option<TenantId>,
    /// Affected SOP Class UID.
    pub sop_class_uid: Uid,
    /// Affected SOP Instance UID.
    pub sop_instance_uid: Uid,
    /// Message ID; none where there was no command.
    pub message_id: Option<u16>,
    /// Transfer syntax of the context.
    pub transfer_syntax: &'e str,
    /// What becomes of a data set that is damaged.
    pub malformed: Malformed,
}

/// How an accepted instance ended. All of them are answered with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A new file and a new record.
    New,
    /// The same, in the place of another instance.
    Replaced,
    /// The same instance was there already.
    Identical,
    /// Another instance was there and stays, as configured.
    Kept,
}

impl Stored {
    /// The word for the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Replaced => "replaced",
            Self::Identical => "identical",
            Self::Kept => "kept",
        }
    }
}

/// What transcoding came to: source, target, and the error where it failed.
#[derive(Debug)]
pub struct Attempt {
    /// Transfer syntax as received.
    pub source: String,
    /// Transfer syntax that was wanted.
    pub target: String,
    /// Why the original is stored instead.
    pub error: Option<TranscodeError>,
}

/// A finished instance.
#[derive(Debug)]
pub struct Finished<'e> {
    /// How it ended.
    pub stored: Stored,
    /// Transcoding, where it was tried.
    pub attempt: Option<Attempt>,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is.
    pub index: InstanceIndex,
    /// Where it is, if anybody watches what happens.
    pub file: Option<PathBuf>,
    /// Memory for the next instance.
    pub scratch: Scratch,
    /// What need not delay the answer.
    pub rest: Rest<'e>,
}

/// What is left to do when an instance is stored.
#[derive(Debug)]
pub struct Rest<'e> {
    open: (Option<SeriesFolder>, Option<File>),
    store: &'e Store,
}

impl Rest<'_> {
    /// Closes what is open, and prepares what the next instance will need.
    pub fn finish(self) {
        drop(self.open);
        self.store.prepare();
    }
}

/// Memory that is used again: pages that are touched for the first time are dear.
#[derive(Debug, Default)]
pub struct Scratch {
    received: Vec<u8>,
    transcoded: Vec<u8>,
    captured: Vec<Captured>,
}

/// One instance while it arrives.
pub struct Reception<'e> {
    engine: &'e Engine,
    source: &'e Source,
    announced: Announced<'e>,
    trace_id: Uuid,
    scan: DatasetScan,
    /// Why the scan ended early, where the data set is to be kept nevertheless.
    damage: Option<Refusal>,
    /// Where it is stored, as far as the tenant is known.
    store: &'e Store,
    in_flight: Option<Taken<'e>>,
    spool: Spool<'e>,
    folder: Option<SeriesFolder>,
    scratch: Scratch,
    transfer_status: TransferStatus,
    began: Instant,
    scanning: Duration,
    /// Bytes of the data set so far.
    received: u64,
    /// When it was received, where that was earlier.
    received_at: Option<DateTime<Utc>>,
    /// Ends transcoding early.
    stop: Option<&'e AtomicBool>,
    /// For the file whose place it takes.
    makes_room: MakesRoom,
}

impl<'e> Reception<'e> {
    /// Begins an instance.
    ///
    /// # Errors
    /// [`Refusal`] when nothing can be taken now: outbox full, space low, storage broken.
    pub fn begin(
        engine: &'e Engine,
        source: &'e Source,
        announced: Announced<'e>,
        mut scratch: Scratch,
    ) -> Result<Self, Refusal> {
        engine.admit()?;
        let transfer_syntax = announced.transfer_syntax;
        let tenants = engine.tenants();
        let known = source
            .tenant
            .as_ref()
            .filter(|_| source.tenant_by_rule || engine.config().private_tenant.is_none());
        let tenant = known.or(announced.command_tenant.as_ref());
        let in_flight = tenant.map_or(Ok(None), |tenant| tenants.enter(tenant))?;
        let store = tenants.store(tenant);
        engine.check_space(store)?;
        let trace_id = Uuid::now_v7();
        let header = file_meta::encode(
            &announced.sop_class_uid,
            &announced.sop_instance_uid,
            transfer_syntax,
            &source.calling_ae_title,
        );
        let config = engine.config();
        let limits = ScanLimits {
            nesting: config.limits.nesting,
            elements: config.limits.max_elements,
            ..ScanLimits::default()
        };
        let scan = DatasetScan::reusing(
            std::mem::take(&mut scratch.captured),
            transfer_syntax,
            tenants.captured_tags(),
            limits,
            config.limits.max_decoded_bytes,
        );
        let spool = Spool::begin(
            store,
            temporary_name(trace_id, ".part"),
            transfer_syntax,
            &header,
            memory_for(engine, tenant.is_some(), transfer_syntax),
            std::mem::take(&mut scratch.received),
        )?;
        Ok(Self {
            engine,
            source,
            announced,
            trace_id,
            scan,
            damage: None,
            store,
            in_flight,
            spool,
            folder: None,
            scratch,
            transfer_status: TransferStatus::NoNeedTransfer,
            began: Instant::now(),
            scanning: Duration::ZERO,
            received: 0,
            received_at: None,
            stop: None,
            makes_room: MakesRoom::ByRemovingOldest,
        })
    }

    /// Takes the next bytes of the data set.
    ///
    /// # Errors
    /// [`Refusal`]; the rest of the data set is of no interest then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.look_at(bytes)?;
        self.copy(bytes)
    }

    /// Looks at the next bytes of the data set, which [`Reception::copy`] or [`Reception::take`] bring later.
    ///
    /// # Errors
    /// [`Refusal`]; the rest of the data set is of no interest then.
    pub(crate) fn look_at(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let most = self.engine.config().limits.max_instance_bytes;
        self.received += bytes.len() as u64;
        if self.received > most {
            return Err(Refusal::TooLarge(most));
        }
        if self.damage.is_some() {
            return self.check_room();
        }
        let scanned = if self.scan.skipping() > bytes.len() as u64 {
            self.scan.feed(bytes)
        } else {
            let began = Instant::now();
            let scanned = self.scan.feed(bytes);
            self.scanning += began.elapsed();
            scanned
        };
        scanned.or_else(|error| self.note_damage(error.into()))
    }

    /// Takes bytes that were looked at.
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        Ok(self.spool.append(bytes)?)
    }

    /// Takes bytes that were looked at, where they are.
    pub(crate) fn take(&mut self, block: Block) -> Result<(), Refusal> {
        let to_come = if self.damage.is_none() {
            self.scan.skipping()
        } else {
            0
        };
        self.spool.expect(self.received + to_come);
        Ok(self.spool.take_block(block)?)
    }

    /// Whether each block goes to the file by itself.
    pub(crate) fn is_written_as_it_comes(&self) -> bool {
        self.spool.writes_each_block()
    }

    /// Ends the data set: validates, stores, records. Returns only after both are as durable as configured.
    ///
    /// # Errors
    /// [`Refusal`]; nothing of the instance is left then.
    pub fn finish(mut self) -> Result<Finished<'e>, Refusal> {
        self.engine.stages().note(Stage::Receive, self.began.elapsed());
        self.engine.stages().note(Stage::Scan, self.scanning);
        if self.spool.dataset_bytes() != self.received {
            return Err(Refusal::Bug);
        }
        let (mut index, tenant) = match self.identified() {
            Err(damage) if self.announced.malformed == Malformed::Quarantine && damage.is_of_damage() => {
                return Err(self.keep(damage));
            }
            identified => identified?,
        };
        self.settle_tenant(&tenant)?;
        let path = path_of(&tenant, &index);
        failpoint::hit("received");
        self.leave_out_file_meta()?;
        let attempt = self.transcode(index.anomalies)?;
        if let Some(TranscodeError::Busy(_)) = attempt.as_ref().and_then(|attempt| attempt.error.as_ref()) {
            index.anomalies.insert(Anomaly::TranscodingBusy);
        }
        let stored = self.commit(&tenant, &index, &path)?;
        Ok(self.finished(stored, attempt, tenant, index, &path))
    }

    fn finished(
        mut self,
        stored: Stored,
        attempt: Option<Attempt>,
        tenant: TenantId,
        index: InstanceIndex,
        path: &InstancePath,
    ) -> Finished<'e> {
        self.scratch.captured = self.scan.into_captured();
        let (buffer, file) = self.spool.into_scratch();
        if self.transfer_status == TransferStatus::Success {
            self.scratch.transcoded = buffer;
        } else {
            self.scratch.received = buffer;
        }
        Finished {
            stored,
            attempt,
            tenant,
            index,
            file: (self.engine.recent().is_watched()).then(|| self.store.absolute(path).into()),
            scratch: self.scratch,
            rest: Rest {
                open: (self.folder, file),
                store: self.store,
            },
        }
    }

    /// Elements of group 0002 at the beginning of the data set go: readers of the file would take them for its own meta information
    /// (PS3.10 7.1), and read the data set by another transfer syntax.
    fn leave_out_file_meta(&mut self) -> Result<(), Refusal> {
        let count = self.scan.file_meta_bytes();
        if count == 0 {
            return Ok(());
        }
        let transfer_syntax = self.announced.transfer_syntax;
        let header = file_meta::encode(
            &self.announced.sop_class_uid,
            &self.announced.sop_instance_uid,
            transfer_syntax,
            &self.source.calling_ae_title,
        );
        let mut spool = Spool::begin(
            self.store,
            temporary_name(self.trace_id, ".data-set.part"),
            transfer_syntax,
            &header,
            self.engine.config().spool_memory_bytes,
            Vec::new(),
        )?;
        self.spool.copy_dataset(count, &mut spool)?;
        self.spool = spool;
        Ok(())
    }

    /// What viewers cannot read becomes what they can. Where that fails, the original stays, and the record says so.
    fn transcode(&mut self, anomalies: Anomalies) -> Result<Option<Attempt>, Refusal> {
        let engine = self.engine;
        let source = self.announced.transfer_syntax;
        let target = engine.config().transcoding.target.as_str();
        let error = match planned(engine, source, self.scan.has_pixel_data()) {
            Plan::AsReceived(_) => return Ok(None),
            Plan::Transcode(_) if anomalies.concern_pixel_data() => Some(TranscodeError::OddPixelData),
            Plan::Transcode(target) => match self.transcoded(engine.transcoders(), target) {
                Ok(spool) => {
                    let original = std::mem::replace(&mut self.spool, spool);
                    (self.scratch.received, _) = original.into_scratch();
                    None
                }
                // Our disk and not the object: the sender may try again.
                Err(error) if error.code() == "io" => {
                    return Err(Refusal::Storage(std::io::Error::other(error.to_string())));
                }
                Err(error) => Some(error),
            },
            Plan::Impossible => Some(TranscodeError::NoCodec {
                source_syntax: source.to_owned(),
                target: target.to_owned(),
            }),
        };
        self.transfer_status = if error.is_none() {
            TransferStatus::Success
        } else {
            TransferStatus::Failed
        };
        Ok(Some(Attempt {
            source: source.to_owned(),
            target: target.to_owned(),
            error,
        }))
    }

    fn transcoded(&mut self, pool: &Pool, target: &'e str) -> Result<Spool<'e>, TranscodeError> {
        let header = file_meta::encode(
            &self.announced.sop_class_uid,
            &self.announced.sop_instance_uid,
            target,
            &self.source.calling_ae_title,
        );
        let name = temporary_name(self.trace_id, ".transcoded.part");
        let config = self.engine.config();
        let memory_bytes = config.spool_memory_bytes;
        let mut result = Spool::begin(
            self.store,
            name,
            target,
            &header,
            memory_bytes,
            std::mem::take(&mut self.scratch.transcoded),
        )?;
        let task = Task {
            source: self.announced.transfer_syntax,
            target,
            max_decoded_bytes: config.limits.max_decoded_bytes,
            input: self.spool.as_input()?,
            stop: self.stop,
        };
        let began = Instant::now();
        let transcoded = pool.transcode(&task, &mut result);
        self.engine.stages().note(Stage::Transcode, began.elapsed());
        transcoded?;
        failpoint::hit("transcoded");
        Ok(result)
    }
}

fn path_of(tenant: &TenantId, index: &InstanceIndex) -> InstancePath {
    InstancePath::new(
        tenant,
        index.study_date,
        &index.study_instance_uid,
        &index.series_instance_uid,
        &index.sop_instance_uid,
    )
}

/// Memory that an instance may fill before it goes to a file. What is not synced and stays where and as it is goes there block by
/// block: its last byte has less behind it then. What is synced is written past the page cache, all at once.
fn memory_for(engine: &Engine, has_tenant: bool, transfer_syntax: &str) -> usize {
    let config = engine.config();
    let most = config.spool_memory_bytes;
    let may_move = !has_tenant || !matches!(planned(engine, transfer_syntax, true), Plan::AsReceived(_));
    if config.durability.syncs_data() || may_move {
        most
    } else {
        most.min(BLOCK_BYTES)
    }
}

/// What becomes of an instance of a transfer syntax.
fn planned<'e>(engine: &'e Engine, transfer_syntax: &str, has_pixel_data: bool) -> Plan<'e> {
    let config = engine.config();
    let (viewers, target) = (&config.viewer_transfer_syntaxes, &config.transcoding.target);
    plan(transfer_syntax, has_pixel_data, viewers, target)
}

/// Of a file in `.incoming`.
fn temporary_name(trace_id: Uuid, ending: &str) -> String {
    let mut text = Uuid::encode_buffer();
    [trace_id.hyphenated().encode_lower(&mut text), ending].concat()
}
