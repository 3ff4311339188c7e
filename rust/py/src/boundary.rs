//! The one door between Python and the core.

use std::fmt::Display;
use std::panic::{catch_unwind, AssertUnwindSafe};

use pyo3::prelude::*;

pyo3::import_exception!(storescp.errors, CoreError);
pyo3::import_exception!(storescp.errors, CoreBug);
pyo3::import_exception!(storescp.errors, TemporaryFailure);

/// Runs `work` without the GIL. An error becomes `storescp.errors.CoreError`, a panic `CoreBug`: a `PyO3` panic would be
/// a `BaseException`, which no `except Exception` of a library catches.
pub fn run<T, E>(py: Python<'_>, work: impl FnOnce() -> Result<T, E> + Send) -> PyResult<T>
where
    T: Send,
    E: Display + Send,
{
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(CoreError::new_err(error.to_string())),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "panic".to_owned());
            Err(CoreBug::new_err(text))
        }
    }
}
