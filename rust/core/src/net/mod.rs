//! Connections: clear or TLS, watched until they are associations.

pub mod gate;
pub mod stream;
pub mod tls;
