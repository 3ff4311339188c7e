//! What differs from tenant to tenant: storage root, required attributes, and how much each may take.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use crate::config::{EngineConfig, PrivateTenant};
use crate::dataset::captured::CapturedTags;
use crate::dataset::index::{Captures, IndexPlan};
use crate::dataset::json::UnknownAttribute;
use crate::engine::Engine;
use crate::layout::TenantId;
use crate::outbox::Found;
use crate::status::Refusal;
use crate::store::replaced::ReplacedLimits;
use crate::store::{Store, StoreOptions};

/// Depth of the files beneath a tenant's folder: date, study, series.
const FOLDERS: usize = 3;

/// One tenant, or what those without settings have in common.
#[derive(Debug)]
struct Tenant {
    store: Arc<Store>,
    plan: IndexPlan,
    quota: Option<Allowance>,
    in_flight: Option<Allowance>,
}

/// An amount that may be used, and what is used of it.
#[derive(Debug)]
struct Allowance {
    most: u64,
    used: AtomicU64,
    /// What of it is of files that may have no name yet.
    unnamed: AtomicU64,
}

impl Allowance {
    fn of(most: u64) -> Self {
        Self {
            most,
            used: AtomicU64::new(0),
            unnamed: AtomicU64::new(0),
        }
    }

    fn take(&self, amount: u64) -> Option<Taken<'_>> {
        // Before it counts as used: a walk that finds it among those sees that its file may have no name yet.
        self.unnamed.fetch_add(amount, Ordering::AcqRel);
        let add = |used: u64| used.checked_add(amount).filter(|&sum| sum <= self.most);
        if self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add)
            .is_err()
        {
            less(&self.unnamed, amount);
            return None;
        }
        Some(Taken {
            allowance: self,
            amount,
            given_back: amount,
        })
    }

    /// What is used before a walk, and what of it the walk may not find.
    fn before_walk(&self) -> (u64, u64) {
        let used = self.used.load(Ordering::Acquire);
        (used, self.unnamed.load(Ordering::Acquire))
    }

    /// Takes what a walk found for used. What came meanwhile, or had no name when the walk began, may be counted twice until
    /// the next walk; it is never left out.
    fn after_walk(&self, found: u64, (used, unnamed): (u64, u64)) {
        let fresh = |now: u64| Some((found + unnamed).saturating_add(now.saturating_sub(used)));
        // Never an error: there is always a value.
        let _ = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fresh);
    }
}

/// A part of an allowance, given back when dropped.
#[derive(Debug)]
pub(crate) struct Taken<'t> {
    allowance: &'t Allowance,
    amount: u64,
    given_back: u64,
}

impl Taken<'_> {
    /// It stays used; so much of what was used before comes back.
    pub(crate) fn keep(mut self, freed: u64) {
        self.given_back = freed;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        less(&self.allowance.used, self.given_back);
        less(&self.allowance.unnamed, self.amount);
    }
}

fn less(of: &AtomicU64, amount: u64) {
    let less = |value: u64| Some(value.saturating_sub(amount));
    // Never an error: there is always a value.
    let _ = of.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
}

/// All tenants. A tenant without settings gets those of the whole service.
#[derive(Debug)]
pub struct Tenants {
    common: Tenant,
    own: HashMap<TenantId, Tenant>,
    /// For files that are stored already: nothing is required of them.
    stored_plan: IndexPlan,
    /// Each store once.
    stores: Vec<Arc<Store>>,
}

/// Why the tenants cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    /// An attribute that does not exist, or that a record cannot have.
    #[error("{0}")]
    Attribute(#[from] UnknownAttribute),
    /// A tenant id that is none.
    #[error("tenants.settings: {0}")]
    Grammar(#[from] crate::layout::TenantGrammar),
    /// A storage root cannot be used; `WouldBlock` where another process serves it.
    #[error("{0}: {1}")]
    Root(PathBuf, io::Error),
}

impl Tenants {
    /// Opens every storage root.
    ///
    /// # Errors
    /// [`TenantsError`].
    pub fn open(config: &EngineConfig) -> Result<Self, TenantsError> {
        let mut stores: HashMap<PathBuf, Arc<Store>> = HashMap::new();
        let options = StoreOptions {
            durability: config.durability,
            create: config.create,
            replaced: ReplacedLimits {
                retention: Engine::seconds(config.replaced_retention),
                max_bytes: config.replaced_max_bytes,
            },
            quarantine_max_bytes: config.quarantine_max_bytes,
        };
        let mut open = |root: &Path| -> Result<Arc<Store>, TenantsError> {
            let failed = |error| TenantsError::Root(root.to_owned(), error);
            // By its canonical path, which it has once it is there; another one that is the same finds it locked by us.
            if let Some(store) = root.canonicalize().ok().and_then(|path| stores.get(&path)) {
                return Ok(Arc::clone(store));
            }
            let store = Arc::new(Store::open(root, options).map_err(failed)?);
            stores.insert(root.canonicalize().map_err(failed)?, Arc::clone(&store));
            Ok(store)
        };
        let own_lists = config
            .tenants
            .values()
            .filter_map(|one| one.required_attributes.as_deref());
        let lists = std::iter::once(config.required_attributes.as_slice()).chain(own_lists);
        let private = config.private_tenant.as_ref().map(PrivateTenant::tag);
        let captures = Captures::new(lists, private, &config.record.attributes)?;
        let common = Tenant {
            store: open(&config.root)?,
            plan: IndexPlan::new(captures.clone(), &config.required_attributes)?,
            quota: None,
            in_flight: None,
        };
        let mut own = HashMap::new();
        for (id, settings) in &config.tenants {
            let id = TenantId::parse(id)?;
            let store = match &settings.storage_root {
                Some(root) => open(root)?,
                None => Arc::clone(&common.store),
            };
            let required = settings
                .required_attributes
                .as_ref()
                .unwrap_or(&config.required_attributes);
            let tenant = Tenant {
                plan: IndexPlan::new(captures.clone(), required)?,
                quota: settings.quota_bytes.map(Allowance::of),
                in_flight: settings.max_in_flight.map(Allowance::of),
                store,
            };
            own.insert(id, tenant);
        }
        Ok(Self {
            common,
            own,
            stored_plan: IndexPlan::new(
                Captures::new(std::iter::empty(), None, &config.record.attributes)?,
                &[],
            )?,
            stores: stores.into_values().collect(),
        })
    }

    /// Counts anew what tenants with a quota have stored: files that were deleted by others give their room back. Returns files and
    /// folders that cannot be looked at, and why: they are not counted, and their tenant keeps what was counted before, where
    /// that was more. `stop` ends it early.
    #[must_use]
    pub fn measure(&self, stop: &AtomicBool) -> Found<(String, String)> {
        let mut unreadable = Found::default();
        for (id, tenant) in &self.own {
            let Some(quota) = &tenant.quota else { continue };
            let folder = tenant.store.root_path().join(id.as_str());
            let before = quota.before_walk();
            let problems = unreadable.count;
            let found = bytes_beneath(&folder, FOLDERS, stop, &mut unreadable);
            if stop.load(Ordering::Acquire) {
                break;
            }
            let is_whole = unreadable.count == problems;
            if is_whole || found > before.0 {
                quota.after_walk(found, before);
            }
        }
        unreadable
    }

    fn of(&self, tenant: &TenantId) -> &Tenant {
        self.own.get(tenant).unwrap_or(&self.common)
    }

    /// The store of a tenant; the common one where the tenant is not known yet.
    #[must_use]
    pub fn store(&self, tenant: Option<&TenantId>) -> &Store {
        tenant
            .map_or(&self.common, |tenant| self.of(tenant))
            .store
            .as_ref()
    }

    /// The store that holds a path relative to its root: its first folder is the tenant.
    #[must_use]
    pub fn store_of_path(&self, relative: &str) -> &Store {
        let tenant = relative
            .split_once('/')
            .and_then(|(tenant, _)| TenantId::parse(tenant).ok());
        self.store(tenant.as_ref())
    }

    /// Each store once.
    pub fn stores(&self) -> impl Iterator<Item = &Store> {
        self.stores.iter().map(AsRef::as_ref)
    }

    /// Whether no tenant has a folder yet.
    ///
    /// # Errors
    /// What the file system says.
    pub fn are_empty(&self) -> io::Result<bool> {
        for store in self.stores() {
            for entry in std::fs::read_dir(store.root_path())? {
                let name = entry?.file_name();
                if name.to_str().is_some_and(|name| TenantId::parse(name).is_ok()) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Tenants with a quota: bytes that they use, and bytes that they may use.
    #[must_use]
    pub fn quotas(&self) -> Vec<(&TenantId, u64, u64)> {
        let own = self.own.iter();
        own.filter_map(|(id, tenant)| {
            let quota = tenant.quota.as_ref()?;
            Some((id, quota.used.load(Ordering::Acquire), quota.most))
        })
        .collect()
    }

    pub(crate) fn plan(&self, tenant: Option<&TenantId>) -> &IndexPlan {
        &tenant.map_or(&self.common, |tenant| self.of(tenant)).plan
    }

    /// For a file that is stored already.
    pub(crate) fn stored_plan(&self) -> &IndexPlan {
        &self.stored_plan
    }

    /// What the scan must capture for any of them.
    pub(crate) fn captured_tags(&self) -> &CapturedTags {
        self.common.plan.tags()
    }

    /// A place for an instance on its way; none is needed where the tenant has no limit.
    ///
    /// # Errors
    /// A700 where all are taken.
    pub(crate) fn enter(&self, tenant: &TenantId) -> Result<Option<Taken<'_>>, Refusal> {
        let in_flight = self.of(tenant).in_flight.as_ref();
        in_flight
            .map(|places| places.take(1).ok_or(Refusal::TenantBusy(Some(Box::new(*tenant)))))
            .transpose()
    }

    /// Room for a file.
    ///
    /// # Errors
    /// A700 where the tenant has none left.
    pub(crate) fn reserve(&self, tenant: &TenantId, bytes: u64) -> Result<Option<Taken<'_>>, Refusal> {
        let quota = self.of(tenant).quota.as_ref();
        quota
            .map(|quota| {
                quota
                    .take(bytes)
                    .ok_or(Refusal::TenantQuota(Some(Box::new(*tenant))))
            })
            .transpose()
    }
}

/// Sizes of the files at this depth and above; links are not followed. What cannot be looked at is added to `unreadable`.
fn bytes_beneath(
    folder: &Path,
    depth: usize,
    stop: &AtomicBool,
    unreadable: &mut Found<(String, String)>,
) -> u64 {
    let mut note = |path: &Path, error: &io::Error| {
        // What is gone was deleted meanwhile.
        if error.kind() != io::ErrorKind::NotFound {
            unreadable.push((path.display().to_string(), error.to_string()));
        }
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            note(folder, &error);
            return 0;
        }
    };
    let (mut sum, mut folders) = (0, Vec::new());
    for entry in entries {
        if stop.load(Ordering::Acquire) {
            return sum;
        }
        let looked_at = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
        match looked_at {
            Ok((path, kind)) if kind.is_dir() && depth > 0 => folders.push(path),
            Ok((path, kind)) if kind.is_file() => match path.symlink_metadata() {
                Ok(facts) => sum += facts.len(),
                Err(error) => note(&path, &error),
            },
            Ok(_) => {}
            Err(error) => note(folder, &error),
        }
    }
    for inner in folders {
        sum += bytes_beneath(&inner, depth - 1, stop, unreadable);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_is_never_exceeded_and_comes_back() {
        let quota = Allowance::of(10);
        let first = quota.take(6).unwrap();
        assert!(quota.take(5).is_none());
        let second = quota.take(4).unwrap();
        drop(first);
        // One byte less than before.
        second.keep(1);
        assert_eq!(quota.used.load(Ordering::Relaxed), 3);
        assert!(quota.take(u64::MAX).is_none());
        assert!(quota.take(7).is_some());
        assert_eq!(quota.used.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_walk_leaves_no_file_out_that_is_named_behind_it() {
        let quota = Allowance::of(100);
        quota.take(10).unwrap().keep(0);
        let arriving = quota.take(30).unwrap();
        let before = quota.before_walk();
        // The walk found the first file; the second gets its name where the walk has been already.
        arriving.keep(0);
        let later = quota.take(5).unwrap();
        quota.after_walk(10, before);
        assert_eq!(quota.used.load(Ordering::Relaxed), 45);
        drop(later);
        // The next walk finds both.
        let before = quota.before_walk();
        quota.after_walk(40, before);
        assert_eq!(quota.used.load(Ordering::Relaxed), 40);
        assert_eq!(quota.unnamed.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn bytes_are_counted_without_following_links() {
        let root = tempfile::tempdir().unwrap();
        let series = root.path().join("20260101/1/2");
        std::fs::create_dir_all(&series).unwrap();
        std::fs::write(series.join("3.dcm"), [0; 100]).unwrap();
        std::fs::write(series.join("4.dcm"), [0; 11]).unwrap();
        std::os::unix::fs::symlink("/", root.path().join("everything")).unwrap();
        let mut unreadable = Found::default();
        let go = AtomicBool::new(false);
        assert_eq!(bytes_beneath(root.path(), FOLDERS, &go, &mut unreadable), 111);
        assert_eq!(
            bytes_beneath(&root.path().join("absent"), FOLDERS, &go, &mut unreadable),
            0
        );
        assert_eq!(
            bytes_beneath(&series.join("3.dcm"), FOLDERS, &go, &mut unreadable),
            0
        );
        assert_eq!(
            unreadable.count, 1,
            "a file in the place of a folder: {unreadable:?}"
        );
    }
}
