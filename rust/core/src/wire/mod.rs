//! The network formats: PDUs of the upper layer (PS3.8) and DIMSE command sets (PS3.7).

pub mod block;
pub mod command;
pub mod pdu;
pub mod reader;
pub mod request;
pub mod title;
