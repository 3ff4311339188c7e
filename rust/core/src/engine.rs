//! The engine: one object made once from the configuration and called by every association.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use chrono::Utc;

use crate::activity::{LiveAssociation, Recent};
use crate::config::{Durability, EngineConfig};
use crate::digest::Digest;
use crate::events::EventRing;
use crate::ingest::{Scratch, Source};
use crate::layout::{OUTBOX, QUARANTINE};
use crate::outbox::health::{self, Condition, Damage};
use crate::outbox::{Disk, Found, Outbox, OutboxError, Settled};
use crate::recovery::{self, Concerned};
use crate::stages::Stages;
use crate::status::Refusal;
use crate::store::damaged::DamagedUsage;
use crate::store::quarantine::Evidence;
use crate::store::replaced::Usage;
use crate::store::Store;
use crate::tenants::{Tenants, TenantsError};
use crate::transcode::pool::Pool;
use crate::wire::block::Blocks;

/// Of so many associations that are over, memory is kept.
const KEPT_MEMORY: usize = 4;

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not what the engine expects.
    #[error("engine configuration: {0}")]
    Config(#[from] serde_json::Error),
    /// The tenants cannot be set up.
    #[error("{0}")]
    Tenants(TenantsError),
    /// Another process serves this storage root.
    #[error("{0}: another process serves this storage root")]
    InUse(PathBuf),
    /// A storage root cannot be used.
    #[error("{0}: {1}")]
    Storage(PathBuf, io::Error),
    /// The outbox cannot be opened.
    #[error("outbox: {0}")]
    Outbox(#[from] OutboxError),
}

impl StartError {
    /// Whether it may pass by itself, so that it is worth another attempt with the same configuration.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Config(_) | Self::Tenants(_) => false,
            Self::InUse(_) => true,
            Self::Storage(_, error) => crate::os::may_pass(error),
            Self::Outbox(error) => error.may_pass(),
        }
    }
}

impl From<TenantsError> for StartError {
    fn from(error: TenantsError) -> Self {
        match error {
            TenantsError::Root(root, error) if error.kind() == io::ErrorKind::WouldBlock => Self::InUse(root),
            TenantsError::Root(root, error) => Self::Storage(root, error),
            other => Self::Tenants(other),
        }
    }
}

/// What start-up found of an interrupted predecessor.
#[derive(Clone, Debug, Default)]
pub struct StartUp {
    /// Rows kept and dropped, files put aside.
    pub settled: Settled,
    /// Temporary files removed.
    pub temporary_files: usize,
    /// Files and folders that could not be used, and why.
    pub unusable: Found<(String, String)>,
    /// An outbox that was damaged and put aside.
    pub damage: Option<Damage>,
}

/// How the storage is: what needs an operator, and what is kept beside the instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageState {
    /// Files in quarantine.
    pub quarantined: u64,
    /// Rows of which it is not known whether their file has its name.
    pub undecided: u64,
    /// Files that are not what their record says.
    pub changed: u64,
    /// Files and folders that could not be read.
    pub unreadable: u64,
    /// Records whose file is not there.
    pub missing: u64,
    /// Files that were replaced, of all storage roots.
    pub replaced: Usage,
    /// Damaged data sets that are kept, of all storage roots.
    pub damaged: DamagedUsage,
}

/// What was found since the start: by the last walk, and by looking again at undecided rows.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) changed: AtomicU64,
    pub(crate) unreadable: AtomicU64,
    pub(crate) missing: AtomicU64,
    pub(crate) compared: AtomicBool,
    missing_later: AtomicU64,
    /// Of the last count of quotas, of the last sweep, and temporary files that could not be removed.
    unmeasured: AtomicU64,
    unswept: AtomicU64,
    left: AtomicU64,
}

/// Counters since start.
#[derive(Debug, Default)]
pub struct Counters {
    received_bytes: AtomicU64,
    /// By tenant and status.
    instances: Mutex<BTreeMap<String, BTreeMap<u16, u64>>>,
    transcodes: Mutex<BTreeMap<Transcoded, u64>>,
    anomalies: Mutex<BTreeMap<&'static str, u64>>,
}

/// Source, target, and how it ended: `Success` or the code of a [`crate::transcode::TranscodeError`].
pub type Transcoded = (String, String, String);

/// See the module documentation.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    // Dropped before the stores, whose locks on the roots must be the last to go.
    outbox: Outbox,
    tenants: Tenants,
    transcoders: Pool,
    events: EventRing,
    counters: Counters,
    stages: Stages,
    aborting: AtomicBool,
    next_association: AtomicU64,
    active: Mutex<HashMap<u64, Arc<LiveAssociation>>>,
    recent: Recent,
    recovery_stopped: AtomicBool,
    start_up: StartUp,
    findings: Findings,
    opened: SystemTime,
    /// What was decided about undecided rows since somebody asked.
    late: Mutex<Settled>,
    memory: Mutex<Vec<Scratch>>,
    blocks: Arc<Blocks>,
}

impl Engine {
    /// Opens storage and outbox and settles what an interrupted predecessor left.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn open(config: EngineConfig) -> Result<Self, StartError> {
        let opened = SystemTime::now();
        let tenants = Tenants::open(&config)?;
        let mut unusable = Found::default();
        let measured = tenants.measure(&AtomicBool::new(false));
        let findings = Findings::default();
        findings.unmeasured.store(measured.count, Ordering::Relaxed);
        unusable.extend(measured.first);
        let storage = |error| StartError::Storage(config.root.clone(), error);
        let database = config.root.join(OUTBOX).join("outbox.sqlite");
        let damage = make_sound(&config.root, &database, &tenants)?;
        let disk = Interrupted {
            tenants: &tenants,
            durability: config.durability,
        };
        let (outbox, settled) = Outbox::open(&database, config.durability.syncs_data(), &disk)?;
        tenants.store(None).sync_outbox_folder().map_err(storage)?;
        let mut temporary_files = 0;
        for store in tenants.stores() {
            let failed = |error| StartError::Storage(store.root_path().to_owned(), error);
            let cleared = store.clear_incoming().map_err(failed)?;
            temporary_files += cleared.removed;
            findings
                .left
                .fetch_add(cleared.left.len() as u64, Ordering::Relaxed);
            unusable.extend(cleared.left);
            let counted = store.damaged().clear_unfinished().and_then(|(removed, left)| {
                temporary_files += removed;
                findings.left.fetch_add(left.len() as u64, Ordering::Relaxed);
                unusable.extend(left);
                store.damaged().recount()?;
                store.quarantine().recount()
            });
            if let Err(error) = counted {
                unusable.push((
                    store.root_path().join(QUARANTINE).display().to_string(),
                    error.to_string(),
                ));
            }
        }
        Ok(Self {
            transcoders: Pool::new(config.transcoding.pool.clone()),
            config,
            outbox,
            tenants,
            events: EventRing::default(),
            counters: Counters::default(),
            stages: Stages::default(),
            aborting: AtomicBool::new(false),
            next_association: AtomicU64::new(1),
            active: Mutex::new(HashMap::new()),
            recent: Recent::default(),
            recovery_stopped: AtomicBool::new(false),
            start_up: StartUp {
                settled,
                temporary_files,
                unusable,
                damage,
            },
            findings,
            opened,
            late: Mutex::default(),
            memory: Mutex::default(),
            blocks: Arc::default(),
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// What start-up found.
    #[must_use]
    pub fn start_up(&self) -> &StartUp {
        &self.start_up
    }

    /// The durable queue of records.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The tenants and their files.
    #[must_use]
    pub fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    /// Facts for the log.
    #[must_use]
    pub fn events(&self) -> &EventRing {
        &self.events
    }

    /// The processes that transcode.
    #[must_use]
    pub fn transcoders(&self) -> &Pool {
        &self.transcoders
    }

    /// When it was opened.
    pub(crate) fn opened(&self) -> SystemTime {
        self.opened
    }

    pub(crate) fn findings(&self) -> &Findings {
        &self.findings
    }

    /// How the storage is, by what is in memory: this asks no disk.
    #[must_use]
    pub fn storage_state(&self) -> StorageState {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut state = StorageState {
            undecided: self.outbox.undecided(),
            changed: get(&self.findings.changed),
            unreadable: get(&self.findings.unreadable)
                + get(&self.findings.unmeasured)
                + get(&self.findings.unswept)
                + get(&self.findings.left),
            missing: self.start_up.settled.missing.count
                + get(&self.findings.missing)
                + get(&self.findings.missing_later),
            ..StorageState::default()
        };
        for store in self.tenants.stores() {
            state.quarantined += store.quarantine().files();
            let usage = store.replaced().usage();
            state.replaced.files += usage.files;
            state.replaced.bytes += usage.bytes;
            state.replaced.max_bytes += usage.max_bytes;
            state.replaced.replaced += usage.replaced;
            let kept = store.damaged().usage();
            state.damaged.data_sets += kept.data_sets;
            state.damaged.bytes += kept.bytes;
            state.damaged.max_bytes = state.damaged.max_bytes.saturating_add(kept.max_bytes);
            state.damaged.since_ms = state.damaged.since_ms.into_iter().chain(kept.since_ms).min();
        }
        state
    }

    /// Removes replaced files whose time is over, and counts anew what operators may have removed. Returns how many went, and
    /// what could not be read or removed, and why. Ends early with [`Engine::stop_recovery`].
    #[must_use]
    pub fn sweep(&self) -> (u64, Found<(String, String)>) {
        let (mut removed, mut unreadable) = (0, Found::default());
        for store in self.tenants.stores() {
            let name = |inner: &str| store.root_path().join(inner).display().to_string();
            let (count, problems) = store.replaced().sweep(Utc::now(), &self.recovery_stopped);
            removed += count;
            unreadable.extend(problems.first.into_iter().map(|(inner, why)| (name(&inner), why)));
            if let Err(error) = store
                .quarantine()
                .recount()
                .and_then(|()| store.damaged().recount())
            {
                unreadable.push((name(QUARANTINE), error.to_string()));
            }
        }
        self.findings.unswept.store(unreadable.count, Ordering::Relaxed);
        (removed, unreadable)
    }

    /// Counts anew what tenants with a quota have stored. Returns what cannot be looked at, and why. Ends early with
    /// [`Engine::stop_recovery`].
    #[must_use]
    pub fn measure(&self) -> Found<(String, String)> {
        let unreadable = self.tenants.measure(&self.recovery_stopped);
        self.findings
            .unmeasured
            .store(unreadable.count, Ordering::Relaxed);
        unreadable
    }

    /// Decides again about rows whose file could not be looked at. Returns what was decided since the last call, here and before
    /// an instance took the place of one.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub fn reconsider(&self) -> Result<Settled, OutboxError> {
        let mut undecided = Found::default();
        for path in self.outbox.undecided_paths()? {
            if self.is_recovery_stopped() {
                break;
            }
            let _one_writer = self.tenants.store_of_path(&path).lock(&path);
            undecided.extend(self.reconsider_path(&path)?.undecided.first);
        }
        let decided = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Settled { undecided, ..decided })
    }

    /// The same for one path, whose lock the caller has.
    pub(crate) fn reconsider_path(&self, path: &str) -> Result<Settled, OutboxError> {
        let disk = Interrupted {
            tenants: &self.tenants,
            durability: self.config.durability,
        };
        let settled = self.outbox.settle_path(path, &disk)?;
        let missing = settled.missing.count;
        self.findings.missing_later.fetch_add(missing, Ordering::Relaxed);
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.kept += settled.kept;
        late.dropped += settled.dropped;
        late.quarantined.extend(settled.quarantined.first.iter().cloned());
        late.missing.extend(settled.missing.first.iter().cloned());
        Ok(settled)
    }

    /// Whether an instance can be taken now, whatever its tenant.
    ///
    /// # Errors
    /// A700: outbox limit, low space, storage broken.
    pub fn admit(&self) -> Result<(), Refusal> {
        self.outbox.check_alive()?;
        let backlog = self.outbox.backlog();
        let limits = &self.config.outbox;
        if backlog.pending + backlog.dead >= limits.max_rows || backlog.bytes >= limits.max_bytes {
            return Err(Refusal::OutboxFull);
        }
        self.check_space(self.tenants.store(None))
    }

    pub(crate) fn check_space(&self, store: &Store) -> Result<(), Refusal> {
        if store.free_bytes()? < self.config.min_free_bytes {
            return Err(Refusal::LowSpace);
        }
        Ok(())
    }

    /// Bytes of data sets received since start, and C-STOREs by tenant and status.
    #[must_use]
    pub fn counters(&self) -> (u64, BTreeMap<String, BTreeMap<u16, u64>>) {
        let instances = self
            .counters
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        (self.counters.received_bytes.load(Ordering::Relaxed), instances)
    }

    /// How long the stages of instances took.
    #[must_use]
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Transcodings since start.
    #[must_use]
    pub fn transcodes(&self) -> BTreeMap<Transcoded, u64> {
        self.counters
            .transcodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Anomalies of stored instances since start, by code.
    #[must_use]
    pub fn anomalies(&self) -> BTreeMap<&'static str, u64> {
        self.counters
            .anomalies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn count_anomaly(&self, code: &'static str) {
        *self
            .counters
            .anomalies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(code)
            .or_default() += 1;
    }

    pub(crate) fn count_transcode(&self, transcoded: Transcoded) {
        *self
            .counters
            .transcodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(transcoded)
            .or_default() += 1;
    }

    /// An instance that was answered; its tenant is empty where that is not known.
    pub(crate) fn count(&self, status: u16, tenant: &str, bytes: u64) {
        self.counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut instances = self
            .counters
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !instances.contains_key(tenant) {
            instances.insert(tenant.to_owned(), BTreeMap::new());
        }
        if let Some(of_tenant) = instances.get_mut(tenant) {
            *of_tenant.entry(status).or_default() += 1;
        }
    }

    /// Ends a walk of [`Engine::recover`] early, and the transcoding of a stored instance; the next start begins it again.
    pub fn stop_recovery(&self) {
        self.recovery_stopped.store(true, Ordering::Release);
        self.transcoders.look_up();
    }

    pub(crate) fn recovery_stop(&self) -> &AtomicBool {
        &self.recovery_stopped
    }

    pub(crate) fn is_recovery_stopped(&self) -> bool {
        self.recovery_stopped.load(Ordering::Acquire)
    }

    /// Aborts every association: they send an A-ABORT at their next look at the network.
    pub fn abort_all(&self) {
        self.aborting.store(true, Ordering::Release);
        self.transcoders.abort();
        for association in self.associations() {
            // Wakes a blocked read; the association then finds the flag. A socket that is gone already is fine.
            let _ = association.socket.shutdown(Shutdown::Read);
        }
    }

    /// The associations that run.
    #[must_use]
    pub fn associations(&self) -> Vec<Arc<LiveAssociation>> {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.values().cloned().collect()
    }

    /// The last instances.
    #[must_use]
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Memory of an association that is over, for the next one: pages that are touched for the first time are dear.
    pub(crate) fn lend_memory(&self) -> Scratch {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    pub(crate) fn take_memory_back(&self, memory: Scratch) {
        let mut kept = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MEMORY {
            kept.push(memory);
        }
    }

    /// Memory to receive into.
    pub(crate) fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    pub(crate) fn is_aborting(&self) -> bool {
        self.aborting.load(Ordering::Acquire)
    }

    pub(crate) fn register(&self, stream: &Arc<TcpStream>, source: &Source) -> Registration<'_> {
        let id = self.next_association.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(LiveAssociation::new(id, source, Arc::clone(stream)));
        self.active
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&live));
        Registration { engine: self, live }
    }

    /// Seconds of the configuration as a duration; never negative, never infinite.
    pub(crate) fn seconds(value: f64) -> Duration {
        Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(3600))
    }
}

/// The storage as an interrupted predecessor left it.
struct Interrupted<'t> {
    tenants: &'t Tenants,
    durability: Durability,
}

impl Disk for Interrupted<'_> {
    fn look_at(&self, path: &str) -> io::Result<Option<(u64, Digest)>> {
        self.tenants.store_of_path(path).look_at(path)
    }

    fn quarantine(&self, evidence: &Evidence<'_>) -> io::Result<()> {
        let store = self.tenants.store_of_path(evidence.path);
        store.quarantine().take(store.folders(), evidence)
    }

    fn is_quarantined(&self, path: &str, trace_id: &str) -> io::Result<bool> {
        self.tenants.store_of_path(path).quarantine().holds(trace_id)
    }

    fn acknowledges_durable_names(&self) -> bool {
        self.durability.syncs_directories()
    }
}

/// Sees to it that there is a database that can be opened, and notes which files may have lost their rows.
fn make_sound(root: &Path, database: &Path, tenants: &Tenants) -> Result<Option<Damage>, StartError> {
    let storage = |error| StartError::Storage(root.to_owned(), error);
    let concerned = match health::examine(database)? {
        Condition::Clean => return Ok(None),
        Condition::Absent if tenants.are_empty().map_err(storage)? => return Ok(None),
        Condition::Absent => Concerned::All,
        Condition::Interrupted(since) => Concerned::Since(since),
        Condition::Damaged(reason) => {
            recovery::note(root, Concerned::All).map_err(storage)?;
            return Ok(Some(health::replace(database, reason, SystemTime::now())?));
        }
    };
    recovery::note(root, concerned).map_err(storage)?;
    Ok(None)
}

/// An association in the list of those that `abort_all` reaches.
pub(crate) struct Registration<'e> {
    engine: &'e Engine,
    pub(crate) live: Arc<LiveAssociation>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.engine
            .active
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.live.id);
    }
}
