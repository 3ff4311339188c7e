//! The core of storescp: everything that happens per byte or per instance.
//!
//! A DICOM Storage SCP (PS3.4 Annex B) without any knowledge of Python: PDU framing and DIMSE command
//! sets in [`wire`], connections in [`net`], the forward scan of data sets in [`dataset`], durable files in [`store`], the durable
//! queue of records in [`outbox`], pixel data of other transfer syntaxes in [`transcode`], and the use case that joins them in [`ingest`] and [`association`].
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::trivially_copy_pass_by_ref
    )
)]

pub mod activity;
pub mod association;
pub mod config;
pub mod dataset;
pub mod desk;
pub mod digest;
pub mod engine;
pub mod events;
mod exchange;
pub mod failpoint;
pub mod file_meta;
pub mod file_records;
pub mod incoming;
pub mod ingest;
pub mod layout;
pub mod net;
mod os;
pub mod outbox;
pub mod record;
pub mod recovery;
pub mod retry;
pub mod sender;
pub mod stages;
pub mod status;
pub mod store;
pub mod stored;
pub mod tenants;
pub mod transcode;
pub mod transfer_syntax;
pub mod uid;
pub mod wire;

/// Implementation Class UID (PS3.7 D.3.3.2) sent in negotiation and written into each file.
pub const IMPLEMENTATION_CLASS_UID: &str = "2.25.223886860287867403206274905628502732430";
/// Implementation Version Name (PS3.7 D.3.3.2), at most 16 characters.
pub const IMPLEMENTATION_VERSION_NAME: &str = "STORESCP_0_1";
/// Version of this crate, shown by `storescpd --version`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
