//! Reads records, one in each line of standard input, with the types of wado-storescp's consumer, and writes each back as it
//! understood it. It ends with 1 at the first that it cannot read, as that consumer drops it.
//!
//! Names and types of the fields are facts of `database/src/dicom_meta.rs` of momostarsky/dicom-server-rs: `serde_json`, unknown fields
//! ignored, texts without a check of their length. The columns that they go to are as long as `Text` says; a longer text is told on
//! standard error.

use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;

use chrono::{NaiveDate, NaiveDateTime};
use serde::{Deserialize, Serialize};

/// A text for a column of so many characters.
#[derive(Debug, Deserialize, Serialize)]
#[serde(transparent)]
struct Text<const CHARACTERS: usize>(String);

#[derive(Debug, Deserialize, Serialize)]
enum TransferStatus {
    NoNeedTransfer,
    Success,
    Failed,
    NeedTransfer,
}

/// One stored instance.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    trace_id: Text<36>,
    worker_node_id: Text<64>,
    tenant_id: Text<64>,
    patient_id: Text<64>,
    study_uid: Text<64>,
    series_uid: Text<64>,
    sop_uid: Text<64>,
    file_size: i64,
    file_path: Text<512>,
    transfer_syntax_uid: Text<64>,
    number_of_frames: i32,
    created_time: NaiveDateTime,
    series_uid_hash: Text<20>,
    study_uid_hash: Text<20>,
    accession_number: Option<Text<16>>,
    target_ts: Text<64>,
    study_date: NaiveDate,
    transfer_status: TransferStatus,
    source_ip: Text<24>,
    source_ae: Text<64>,
}

impl<const CHARACTERS: usize> Text<CHARACTERS> {
    fn tell_if_long(&self, field: &str) {
        if self.0.chars().count() > CHARACTERS {
            eprintln!("{field}: more than {CHARACTERS} characters");
        }
    }
}

impl Record {
    fn tell_long_texts(&self) {
        self.trace_id.tell_if_long("trace_id");
        self.worker_node_id.tell_if_long("worker_node_id");
        self.tenant_id.tell_if_long("tenant_id");
        self.patient_id.tell_if_long("patient_id");
        self.study_uid.tell_if_long("study_uid");
        self.series_uid.tell_if_long("series_uid");
        self.sop_uid.tell_if_long("sop_uid");
        self.file_path.tell_if_long("file_path");
        self.transfer_syntax_uid.tell_if_long("transfer_syntax_uid");
        self.series_uid_hash.tell_if_long("series_uid_hash");
        self.study_uid_hash.tell_if_long("study_uid_hash");
        self.target_ts.tell_if_long("target_ts");
        self.source_ip.tell_if_long("source_ip");
        self.source_ae.tell_if_long("source_ae");
        if let Some(number) = &self.accession_number {
            number.tell_if_long("accession_number");
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let record: Record = serde_json::from_str(&line?)?;
        record.tell_long_texts();
        serde_json::to_writer(&mut out, &record)?;
        writeln!(out)?;
    }
    Ok(())
}
