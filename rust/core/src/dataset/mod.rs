//! Reading a data set once, forwards, while it arrives.
//!
//! [`scan`] follows the structure (PS3.5 Chapter 7) without decoding anything but the attributes in
//! [`index`] and those that a record describes an instance by ([`captured`]); [`charset`] turns their bytes into text (PS3.3
//! C.12.1.1.2), [`values`] into dates and counts, [`json`] into the DICOM JSON model; [`stream`] undoes the deflated transfer syntaxes
//! before the scan; `walk` goes through a data set again that the scan has accepted.

pub mod anomaly;
pub mod captured;
pub mod charset;
pub(crate) mod header;
pub mod index;
pub mod json;
pub mod readable;
mod reading;
pub mod scan;
pub mod stream;
pub mod values;
pub(crate) mod walk;
