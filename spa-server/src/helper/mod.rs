//! The gate helper: the one process that changes the kernel's firewall.
//!
//! The **worker** (`spa-server run`: capture, receiver, policy, state) reads what anybody may send. It
//! starts the helper, and gives up `CAP_NET_ADMIN` before it captures anything. The **helper** keeps
//! that, and reads nothing from any network. What the worker asks of it crosses a pair of sockets, and
//! is judged once more by its warden, from the configuration that the helper has read itself: a
//! worker that was taken over can open what some client may open, for as long as that one may, and can
//! take nothing away that hides a port.
//!
//! If either ends, so does the other. Grants and gate live in the kernel.
//!
//! [`RemoteGate`] and [`RemoteConnections`] are what the worker has in place of a gate and of the
//! kernel's lists; `serve` is the other end.

mod connections;
mod gate;
mod line;
mod ordered;
mod permits;
mod serve;
mod start;
mod warden;

pub use connections::RemoteConnections;
pub use gate::RemoteGate;
pub(crate) use ordered::{OrderFile, Ordered};
pub(crate) use serve::run;
pub use start::{Gone, Helper};

use crate::connections::{Ended, Inventory};
use crate::gate::{Backend, Cut, Doubt, GateAnswer, GateRequest, Guarded};
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;

/// What the worker asks of the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum HelperRequest {
    /// Of the gate.
    Gate(GateRequest),
    /// Take away the gates of other back-ends, now that this one stands.
    RemoveOthers,
    /// There is another configuration: read it.
    Reread,
    /// Wait until somebody may have changed what is ours.
    Disturbed,
    /// List the connections to these ports.
    List {
        /// The ports.
        guarded: Vec<Guarded>,
        /// Whether nobody waits for the answer.
        in_background: bool,
    },
    /// Tell which of these are established.
    Established {
        /// The connections.
        those: Inventory,
        /// To these ports.
        guarded: Vec<Guarded>,
    },
    /// End these connections.
    End {
        /// The connections.
        those: Inventory,
        /// Those of them that are established.
        established: Vec<Cut>,
        /// To these ports.
        guarded: Vec<Guarded>,
    },
    /// Tell of which of these the answering end has sent something.
    TalkedTo(Vec<Cut>),
}

/// What the helper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum HelperAnswer {
    /// Unasked, first of all: this is the back-end.
    Chosen {
        /// The back-end.
        backend: Backend,
        /// Those that can't be used here, and why not.
        passed_over: Vec<String>,
    },
    /// To [`HelperRequest::Gate`].
    Gate(GateAnswer),
    /// To [`HelperRequest::RemoveOthers`]: what did not work.
    Removed(Vec<String>),
    /// To [`HelperRequest::Reread`].
    Reread,
    /// To [`HelperRequest::Disturbed`].
    Disturbed(Doubt),
    /// To [`HelperRequest::List`].
    Listed {
        /// The connections.
        connections: Inventory,
        /// The processor time that it took.
        took: Duration,
    },
    /// To [`HelperRequest::Established`] and [`HelperRequest::TalkedTo`].
    Cuts(Vec<Cut>),
    /// To [`HelperRequest::End`].
    Ended(Ended),
    /// To any: it did not happen, and this is why, with all causes.
    Failed(String),
}

/// Why there is no answer of the helper's.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It has said why.
    #[error("{0}")]
    Refused(String),
    /// It is gone, or does not answer.
    #[error(
        "the gate helper does not answer (`journalctl -u 'spa-helper@*'` may say why); the daemon starts anew, and it with it"
    )]
    Silent(#[source] io::Error),
    /// It has answered something else than it was asked.
    #[error("the gate helper answers what it was not asked; is it another version?")]
    Confused,
}
