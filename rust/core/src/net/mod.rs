//! Connections: clear or TLS, watched until they are associations.

pub mod admission;
pub mod answers;
pub mod gate;
pub mod stream;
pub mod tls;
