//! The daemon of single-packet authorization, and the commands that administer it.
//!
//! A knock walks one straight line, and nothing calls back upstream:
//!
//! ```text
//! NIC -> capture (prefilter) -> frame -> pipeline (receiver, policy)
//!     -> authorizer (limits, replay store, grants) -> gate
//! ```
//!
//! What fails is dropped on the capture side of the one channel, which lies between pipeline and
//! authorizer.

pub mod audit;
pub mod authorizer;
pub mod capture;
pub mod causes;
pub mod cli;
pub mod clock;
mod commands;
pub mod config;
pub mod connections;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod enrolment;
pub mod frame;
pub mod gate;
pub mod gate_record;
pub mod grants;
pub mod helper;
mod large_list;
pub mod last_gate;
pub mod latency;
pub mod limits;
pub mod metrics;
pub mod netlink;
mod notify;
pub mod origin;
pub mod pipeline;
mod plain;
pub mod policy;
pub mod prefilter;
mod priority;
mod privileges;
pub mod process;
pub mod refused_sources;
pub mod replay_store;
pub mod service;
pub mod source;
pub mod state_file;
pub mod state_lock;
pub mod trial;
pub mod users;
