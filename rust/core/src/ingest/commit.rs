//! The commit of an instance: duplicates, file, name, record.

use std::io::ErrorKind;
use std::time::Instant;

use chrono::Utc;

use super::{Reception, Stored};
use crate::config::Duplicates;
use crate::dataset::anomaly::Anomaly;
use crate::dataset::index::InstanceIndex;
use crate::digest::Digest;
use crate::failpoint;
use crate::layout::{InstancePath, TenantId};
use crate::outbox::NewRow;
use crate::record::Facts;
use crate::stages::Stage;
use crate::status::Refusal;
use crate::store::folders::{Made, SeriesFolder};
use crate::store::{Existing, Store};

/// The folder of a series, and those on the way to it that were made.
fn create<'s>(store: &'s Store, path: &'s InstancePath) -> std::io::Result<(SeriesFolder, Option<Made<'s>>)> {
    let (folder, made) = store.folders().create(path)?;
    Ok((folder, Some(made)))
}

/// To write so much takes longer than to wake a thread that syncs the row meanwhile.
const SYNCED_BESIDE: u64 = 1 << 16;

impl Reception<'_> {
    pub(super) fn commit(
        &mut self,
        tenant: &TenantId,
        index: &InstanceIndex,
        path: &InstancePath,
    ) -> Result<Stored, Refusal> {
        let store = self.store;
        let _one_writer = store.lock(path.relative());
        self.decide(path)?;
        let folder = store.folders().open(path)?;
        match store.existing(folder.as_ref(), path, &mut self.spool)? {
            Existing::Absent => self.commit_new(tenant, index, path, folder, None),
            Existing::Identical { size, digest } => self.confirm(tenant, index, path, size, digest),
            // The same bytes may be stored transcoded: nobody can tell, and what viewers read does not give way to what they do not.
            Existing::Different { .. } if index.anomalies.contains(Anomaly::TranscodingBusy) => {
                Err(Refusal::Busy)
            }
            Existing::Different { size } => match self.engine.config().duplicates {
                Duplicates::Replace => self.replace(tenant, index, path, folder, size),
                Duplicates::Reject => Err(Refusal::DuplicateRejected),
                Duplicates::Keep => {
                    self.make_existing_durable(path)?;
                    self.engine.ensure_recorded(path.relative())?;
                    Ok(Stored::Kept)
                }
            },
        }
    }

    /// Whatever an interruption left at this path is decided before anything takes its place.
    pub(super) fn decide(&self, path: &InstancePath) -> Result<(), Refusal> {
        if self.engine.outbox().undecided() > 0
            && self.engine.reconsider_path(path.relative())?.undecided.count > 0
        {
            return Err(Refusal::Undecided);
        }
        Ok(())
    }

    /// Takes the place of a file of `size` bytes.
    pub(super) fn replace(
        &mut self,
        tenant: &TenantId,
        index: &InstanceIndex,
        path: &InstancePath,
        folder: Option<SeriesFolder>,
        size: u64,
    ) -> Result<Stored, Refusal> {
        match self.engine.ensure_recorded(path.relative()) {
            // It is none of ours, so nobody waits for its record.
            Ok(()) | Err(Refusal::Unrecorded) => {}
            Err(refusal) => return Err(refusal),
        }
        self.commit_new(tenant, index, path, folder, Some(size))
    }

    /// The commit. The order of its steps is the promise; see "What 0000 means" in ARCHITECTURE.md. `replaced` is the size of
    /// the file whose place it takes.
    fn commit_new(
        &mut self,
        tenant: &TenantId,
        index: &InstanceIndex,
        path: &InstancePath,
        folder: Option<SeriesFolder>,
        replaced: Option<u64>,
    ) -> Result<Stored, Refusal> {
        let in_its_place = replaced.is_some();
        let (size, before) = (self.spool.size(), replaced.unwrap_or(0));
        let room = self
            .engine
            .tenants()
            .reserve(tenant, size.saturating_sub(before))?;
        let outbox = self.engine.outbox();
        let sync_data = self.engine.config().durability.syncs_data();
        if in_its_place {
            // Until it is in the database, the record of the file that goes depends on it.
            outbox.flush_rows()?;
        }
        let names_first = !in_its_place && self.store.names_first();
        let mut row = self.row(tenant, index, path, self.spool.size(), self.spool.digest())?;
        row.replaces = in_its_place && sync_data;
        let stages = self.engine.stages();
        let mut began = Instant::now();
        let mut lap = || {
            let now = Instant::now();
            now - std::mem::replace(&mut began, now)
        };
        let mut entry = outbox.insert(row)?;
        if sync_data && size >= SYNCED_BESIDE {
            // Neither needs the other.
            entry.begin_sync();
        }
        failpoint::hit("row_asked_for");
        let mut written = self.spool.write_out();
        stages.note(Stage::Write, lap());
        if sync_data {
            failpoint::hit("data_written");
            written = written.and_then(|()| {
                if names_first {
                    self.spool.begin_write_back()
                } else {
                    self.spool.sync()
                }
            });
        }
        if !names_first {
            failpoint::hit("data_synced");
        }
        let mut syncing = lap();
        entry.wait()?;
        stages.note(Stage::Outbox, lap());
        failpoint::hit("row_durable");
        let named = written
            .map_err(Refusal::from)
            .and_then(|()| self.name(path, folder, replaced, names_first));
        syncing += lap();
        if sync_data {
            stages.note(Stage::Sync, syncing);
        }
        let stays = named.is_ok() || (self.spool.is_published() && in_its_place);
        if let Some(room) = room.filter(|_| stays) {
            room.keep(before.saturating_sub(size));
        }
        if stays {
            // Also where it failed: what was acknowledged before is gone, so what took its place stays, with its record.
            outbox.publishable(entry)?;
            failpoint::hit("row_publishable");
        }
        named?;
        Ok(if in_its_place {
            Stored::Replaced
        } else {
            Stored::New
        })
    }

    /// The name, and its durability. The data is durable before it, or, where the file system keeps the order, on its disk:
    /// then one sync makes all of it durable. What was at its place is put aside before; `replaced` is its size.
    fn name(
        &mut self,
        path: &InstancePath,
        folder: Option<SeriesFolder>,
        replaced: Option<u64>,
        names_first: bool,
    ) -> Result<(), Refusal> {
        let store = self.store;
        let (mut folder, mut made) = match folder {
            Some(folder) => (folder, None),
            None => create(store, path)?,
        };
        failpoint::hit("folder_made");
        if names_first {
            self.spool.finish_write_back()?;
        }
        if let Some(bytes) = replaced {
            let aside = store
                .replaced()
                .put_aside(&folder, path, bytes, self.makes_room)?;
            failpoint::hit("put_aside");
            self.spool.publish(&folder, path.file_name())?;
            aside.keep();
        } else {
            let mut published = self.spool.publish(&folder, path.file_name());
            if matches!(&published, Err(error) if error.kind() == ErrorKind::NotFound) {
                // Whoever made the folder failed, and removed it again because it was empty.
                (folder, made) = create(store, path)?;
                published = self.spool.publish(&folder, path.file_name());
            }
            published?;
        }
        failpoint::hit("named");
        if let Err(error) = self.sync_named(path, &folder, names_first) {
            if replaced.is_none() {
                folder.remove_file(path.file_name())?;
            }
            return Err(error.into());
        }
        failpoint::hit("folder_synced");
        if let Some(made) = made {
            made.keep();
        }
        self.folder = Some(folder);
        Ok(())
    }

    fn sync_named(
        &self,
        path: &InstancePath,
        folder: &SeriesFolder,
        names_first: bool,
    ) -> std::io::Result<()> {
        if names_first {
            self.spool.sync_named()?;
            failpoint::hit("data_synced");
        }
        if self.engine.config().durability.syncs_directories() {
            self.store.folders().sync(folder, path)?;
        }
        Ok(())
    }

    /// The same instance again: the file stays, and gets a record only if it has none.
    fn confirm(
        &mut self,
        tenant: &TenantId,
        index: &InstanceIndex,
        path: &InstancePath,
        size: u64,
        digest: Digest,
    ) -> Result<Stored, Refusal> {
        self.make_existing_durable(path)?;
        let outbox = self.engine.outbox();
        if !outbox.describes(path.relative(), size, digest)? {
            let mut entry = outbox.insert(self.row(tenant, index, path, size, digest)?)?;
            entry.wait()?;
            outbox.publishable(entry)?;
        }
        Ok(Stored::Identical)
    }

    /// The first copy may have been stored at a lower durability than we promise now.
    fn make_existing_durable(&self, path: &InstancePath) -> std::io::Result<()> {
        let durability = self.engine.config().durability;
        let folders = self.store.folders();
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let folder = folders.open(path)?.ok_or_else(missing)?;
        if durability.syncs_data() {
            folder
                .open_file(path.file_name())?
                .ok_or_else(missing)?
                .sync_data()?;
        }
        if durability.syncs_directories() {
            folders.sync(&folder, path)?;
        }
        Ok(())
    }

    fn row(
        &self,
        tenant: &TenantId,
        index: &InstanceIndex,
        path: &InstancePath,
        size: u64,
        digest: Digest,
    ) -> Result<NewRow, Refusal> {
        let file_path = self.store.absolute(path);
        let created = Utc::now();
        let facts = Facts {
            trace_id: self.trace_id,
            settings: &self.engine.config().record,
            tenant,
            index,
            file: (&file_path, size),
            transfer_syntaxes: (self.announced.transfer_syntax, self.spool.transfer_syntax()),
            transfer_status: self.transfer_status,
            created: self.received_at.unwrap_or(created),
            sender: (
                &self.source.address,
                &self.source.calling_ae_title,
                &self.source.called_ae_title,
            ),
        };
        Ok(NewRow {
            trace_id: self.trace_id.to_string(),
            key: facts.key(),
            payload: facts.to_json().map_err(|_| Refusal::Bug)?,
            path: path.relative().to_owned(),
            size,
            digest,
            created: created.timestamp_micros(),
            replaces: false,
        })
    }
}
