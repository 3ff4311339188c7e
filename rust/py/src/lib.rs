//! `storescp._core`: the only crate that knows Python.
//!
//! Every method passes one door, [`boundary::run`]: the GIL is released, panics are caught, errors are mapped.

mod boundary;
mod desk;
mod engine;
mod gate;
mod info;
mod request;
mod sender;
mod transcode;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", storescp_core::VERSION)?;
    module.add(
        "IMPLEMENTATION_CLASS_UID",
        storescp_core::IMPLEMENTATION_CLASS_UID,
    )?;
    module.add(
        "IMPLEMENTATION_VERSION_NAME",
        storescp_core::IMPLEMENTATION_VERSION_NAME,
    )?;
    module.add("MOST_NAMED_REFUSALS", storescp_core::events::MOST_NAMED)?;
    module.add("NO_SYNTAX", storescp_core::wire::request::NO_SYNTAX)?;
    module.add("WORKER_ENVIRONMENT", storescp_core::transcode::pool::ENVIRONMENT)?;
    module.add_class::<request::CleanRequest>()?;
    module.add_function(wrap_pyfunction!(request::clean_request, module)?)?;
    module.add_function(wrap_pyfunction!(request::read_title, module)?)?;
    module.add_function(wrap_pyfunction!(request::request_oddities, module)?)?;
    module.add_function(wrap_pyfunction!(request::title_oddities, module)?)?;
    module.add("PROXY_HEADER_UNEXPECTED", storescp_core::wire::proxy::UNEXPECTED)?;
    module.add("PROXY_HEADER_SECOND", storescp_core::wire::proxy::SECOND)?;
    module.add("PROXY_HEADER_CUT", storescp_core::wire::proxy::CUT)?;
    module.add("PROXY_HEADER_ABSENT", storescp_core::wire::proxy::ABSENT)?;
    module.add("PROXY_HEADER_LATE", storescp_core::wire::proxy::LATE)?;
    module.add_function(wrap_pyfunction!(gate::parse_proxy_header, module)?)?;
    module.add_function(wrap_pyfunction!(gate::begins_proxy_header, module)?)?;
    module.add_class::<gate::Gate>()?;
    module.add_class::<gate::Tls>()?;
    module.add_class::<gate::Connection>()?;
    module.add_class::<desk::Admission>()?;
    module.add_class::<desk::Place>()?;
    module.add_class::<desk::Answer>()?;
    module.add_class::<desk::Answers>()?;
    module.add_class::<desk::Desk>()?;
    module.add_class::<desk::Served>()?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<engine::StartUp>()?;
    module.add_class::<engine::Recovery>()?;
    module.add_class::<engine::StorageState>()?;
    module.add_class::<engine::AssociationSummary>()?;
    module.add_class::<engine::InstanceFact>()?;
    module.add_class::<engine::LiveAssociation>()?;
    module.add_class::<engine::RecentInstance>()?;
    module.add_class::<engine::OutboxRow>()?;
    module.add_class::<info::ScanResult>()?;
    module.add_class::<info::StoredRecords>()?;
    module.add_function(wrap_pyfunction!(info::read_record, module)?)?;
    module.add_function(wrap_pyfunction!(info::description_digest, module)?)?;
    module.add_function(wrap_pyfunction!(info::scan, module)?)?;
    module.add_function(wrap_pyfunction!(info::readable_values, module)?)?;
    module.add_function(wrap_pyfunction!(info::examine_file, module)?)?;
    module.add_function(wrap_pyfunction!(info::transfer_syntaxes, module)?)?;
    module.add_function(wrap_pyfunction!(info::is_record_attribute, module)?)?;
    module.add_function(wrap_pyfunction!(info::refusals, module)?)?;
    module.add_function(wrap_pyfunction!(info::anomalies, module)?)?;
    module.add_function(wrap_pyfunction!(info::character_sets, module)?)?;
    module.add_function(wrap_pyfunction!(info::other_character_sets, module)?)?;
    module.add_function(wrap_pyfunction!(info::cipher_suites, module)?)?;
    module.add_function(wrap_pyfunction!(info::build_info, module)?)?;
    module.add_function(wrap_pyfunction!(info::outbox_migrations, module)?)?;
    module.add_function(wrap_pyfunction!(info::read_journal, module)?)?;
    module.add_function(wrap_pyfunction!(info::remove_journal, module)?)?;
    module.add_class::<sender::Sender>()?;
    module.add_class::<sender::ClientTls>()?;
    module.add_class::<transcode::Transcoder>()?;
    module.add_function(wrap_pyfunction!(transcode::transcode, module)?)?;
    module.add_function(wrap_pyfunction!(transcode::transcode_plan, module)?)?;
    module.add_function(wrap_pyfunction!(transcode::transcode_worker, module)?)?;
    module.add_function(wrap_pyfunction!(transcode::lock_down, module)?)?;
    module.add_function(wrap_pyfunction!(transcode::thumbnail, module)?)?;
    Ok(())
}
