//! The gate: what guards the ports in the kernel's firewall.
//!
//! [`types`] is the vocabulary and the seam to a helper process; [`Gate`] is what a back-end can
//! do; [`IptablesGate`] is the default back-end: iptables and ip6tables rules over ipset sets
//! with a time limit on each element, so that the kernel closes a port when the daemon is dead.
//! The back-end's text is made by the pure [`render`] and judged by the pure [`saved`],
//! [`foreign`] and [`sockets`].
//!
//! The gate knows nothing of clients, services or knocks.

mod error;
pub mod foreign;
mod iptables;
pub mod render;
pub mod saved;
pub mod sockets;
mod tools;
pub mod types;

pub use error::GateError;
pub use iptables::IptablesGate;
pub use tools::{MissingTool, ToolOverrides, Tools};
pub use types::{
    BusyKnockPort, Change, Element, Family, GateAnswer, GateRequest, InstallReport, LiveElement,
    MAX_ELEMENT_SECONDS, Mode, Plan, Refusal,
};

use crate::causes::with_causes;

/// A back-end of the gate.
///
/// The operations of one gate don't overlap: each waits for the one before it.
pub trait Gate: Send + Sync {
    /// Brings the rules and sets of ours to this plan. What is in place already isn't touched,
    /// elements live on, nothing of anybody else's changes.
    ///
    /// # Errors
    ///
    /// Nothing is installed, or what was installed before is back.
    fn install(&self, plan: &Plan)
    -> impl Future<Output = Result<InstallReport, GateError>> + Send;

    /// Makes these changes, in this order, in one batch.
    ///
    /// # Errors
    ///
    /// Changes that the gate would never make are refused before any is made. If the kernel
    /// refuses one, an unknown part of the batch has happened: take a [`Gate::snapshot`] and
    /// apply what makes it right.
    fn apply(&self, changes: &[Change]) -> impl Future<Output = Result<(), GateError>> + Send;

    /// What the kernel admits right now.
    ///
    /// # Errors
    ///
    /// [`GateError::NotInstalled`] if there are no sets of ours.
    fn snapshot(&self) -> impl Future<Output = Result<Vec<LiveElement>, GateError>> + Send;

    /// Takes away all rules and sets of ours. No harm if there are none.
    ///
    /// # Errors
    ///
    /// Something of ours is still there, and the error says what.
    fn remove(&self) -> impl Future<Output = Result<(), GateError>> + Send;
}

/// Lets a gate answer a request: what a helper process does with each request that it reads.
pub async fn answer<G: Gate>(gate: &G, request: GateRequest) -> GateAnswer {
    let answer = match request {
        GateRequest::Install(plan) => gate.install(&plan).await.map(GateAnswer::Installed),
        GateRequest::Apply(changes) => gate.apply(&changes).await.map(|()| GateAnswer::Applied),
        GateRequest::Snapshot => gate.snapshot().await.map(GateAnswer::Snapshot),
        GateRequest::Remove => gate.remove().await.map(|()| GateAnswer::Removed),
    };
    answer.unwrap_or_else(|error| GateAnswer::Failed(with_causes(&error)))
}
