//! The plan and what it leads to, with the codecs that are ours: an error or a data set that can be scanned.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use storescp_core::dataset::anomaly::Anomaly;
use storescp_core::dataset::scan::ScanLimits;
use storescp_core::dataset::stream::DatasetScan;
use storescp_core::transcode::plan::{plan, Plan};
use storescp_core::transcode::{transcode, Job};

const SOURCES: [&str; 6] = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
];
const TARGETS: [&str; 4] = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
];

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (source, target, dataset) = input;
    let source = SOURCES[usize::from(source) % SOURCES.len()];
    let target = TARGETS[usize::from(target) % TARGETS.len()];
    let viewers: HashSet<String> = HashSet::from([target.to_owned()]);
    let Plan::Transcode(target) = plan(source, true, &viewers, target) else {
        return;
    };
    // Only what passed the scan is ever transcoded.
    let anomalies = |syntax: &str, dataset: &[u8]| {
        let mut scan = DatasetScan::new(syntax, &[], ScanLimits::default(), 1 << 22);
        scan.feed(dataset).and_then(|()| scan.finish()).map(|()| scan.anomalies())
    };
    let Ok(odd) = anomalies(source, dataset) else {
        return;
    };
    if odd.concern_pixel_data() {
        return;
    }
    let job = Job { source, target, max_decoded_bytes: 1 << 22, threads: 1 };
    let mut out = Vec::new();
    if transcode(dataset, &job, &mut out, &mut || {}).is_ok() {
        // What was odd is not handed on.
        let left = anomalies(target, &out).unwrap_or_else(|error| panic!("{source} to {target}: {error}"));
        for anomaly in [Anomaly::Delimiter, Anomaly::TrailingBytes, Anomaly::IllegalVr, Anomaly::PixelDataEncoding] {
            assert!(!left.contains(anomaly), "{source} to {target}: {anomaly:?}");
        }
    }
});
