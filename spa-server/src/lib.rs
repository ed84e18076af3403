//! The single-packet authorization daemon.

pub mod clock;
pub mod replay_store;
