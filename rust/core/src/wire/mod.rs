//! The network formats: PDUs of the upper layer (PS3.8), DIMSE command sets (PS3.7), and the header of a load balancer in front of them.

pub mod block;
pub mod command;
pub mod pdu;
pub mod proxy;
pub mod reader;
pub mod request;
pub mod title;
