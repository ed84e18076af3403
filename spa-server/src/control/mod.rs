//! The control socket: how the commands of an administrator reach the running daemon.
//!
//! One request and one response are one line of JSON each, over a Unix stream socket that only
//! root, or the user that the daemon runs as, may speak on. It knows nothing of what a request
//! does: the server side hands each to a function.

mod client;
mod server;
mod types;

pub use client::{CallError, call};
pub use server::{BindError, PeerRefused, Right, bind, may_speak, serve};
pub use types::{
    ControlRequest, ControlResponse, CutView, GrantView, InterfaceStatus, LatencyStatus,
    QueueStatus, RefusedView, Reloaded, Status, StatusClients,
};

/// The longest request, in bytes, the line's end included.
const MAX_REQUEST: usize = 64 * 1024;
/// The longest response: a list of a million grants has room.
const MAX_RESPONSE: u64 = 512 * 1024 * 1024;
