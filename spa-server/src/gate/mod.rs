//! The gate: what guards the ports in the kernel's firewall.
//!
//! [`types`] is the vocabulary and the seam to a helper process; [`Gate`] is what a back-end can
//! do; [`IptablesGate`] is the default back-end: iptables and ip6tables rules over ipset sets
//! with a time limit on each element, so that the kernel closes a port when the daemon is dead.
//! The back-end's text is made by the pure [`render`] and judged by the pure [`saved`],
//! [`foreign`] and [`sockets`].
//!
//! The gate knows nothing of clients, services or knocks.
//!
//! # How a packet goes
//!
//! In guard mode, a packet to a guarded port of this host is judged in table mangle, before any
//! address translation: granted (its source and port are in the set), of an established
//! connection, or refused. Refused packets are dropped there, or marked there and rejected in
//! table filter. In table filter, what was granted or is established is accepted before the
//! host's own rules see it; what came to a guarded port untranslated and is neither is refused there
//! once more, whatever has become of the mark on the way. In open mode there is only that accept, and the host's rules refuse.
//!
//! Known limits: packets that the host redirects from a guarded port to *another* port of itself
//! must be accepted by its own rules, as must those that it forwards to published ports.

mod error;
pub mod foreign;
mod iptables;
mod kernel;
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
use std::sync::Arc;

/// A back-end of the gate.
///
/// Changes that one gate makes don't overlap: each waits for the one before it. An installation
/// that finds all in place delays no [`Gate::apply`]: it may be repeated now and then, to mend
/// what other programs have flushed.
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
    /// Changes that the gate would never make are refused before any is made: above all,
    /// admitting to a port that the installed plan doesn't guard. If the kernel
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

/// One that is shared with somebody who looks at it.
impl<G: Gate> Gate for Arc<G> {
    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        (**self).install(plan).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        (**self).apply(changes).await
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        (**self).snapshot().await
    }

    async fn remove(&self) -> Result<(), GateError> {
        (**self).remove().await
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A gate that remembers, and fails on demand.
    #[derive(Default)]
    struct Model(Mutex<Vec<LiveElement>>);

    impl Gate for Model {
        async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
            match plan.max_elements {
                0 => Err(GateError::Tool {
                    doing: "write the rules",
                    source: crate::process::ProcessError::NotAbsolute("iptables".into()),
                }),
                _ => Ok(InstallReport { changed: true, ..InstallReport::default() }),
            }
        }

        async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
            for change in changes {
                if let Change::Admit { element, seconds } = *change {
                    self.0.lock().unwrap().push(LiveElement { element, seconds_left: seconds });
                }
            }
            Ok(())
        }

        async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
            Ok(self.0.lock().unwrap().clone())
        }

        async fn remove(&self) -> Result<(), GateError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn requests_and_answers_cross_a_process_boundary() {
        let gate = Model::default();
        let element =
            Element { source: "2001:db8::1".parse().unwrap(), port: "tcp/22".parse().unwrap() };
        let plan = |max_elements| Plan {
            mode: Mode::Guard,
            refusal: Refusal::Reject,
            ports: vec!["tcp/22".parse().unwrap()],
            knock_ports: vec![62201],
            max_elements,
        };
        let mut answers = Vec::new();
        for request in [
            GateRequest::Install(plan(9)),
            GateRequest::Apply(vec![
                Change::Admit { element, seconds: 30 },
                Change::Withdraw { element },
            ]),
            GateRequest::Snapshot,
            GateRequest::Remove,
            GateRequest::Install(plan(0)),
        ] {
            let text = serde_json::to_string(&request).unwrap();
            let read: GateRequest = serde_json::from_str(&text).unwrap();
            assert_eq!(read, request);
            let answer = answer(&gate, read).await;
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<GateAnswer>(&text).unwrap(), answer);
            answers.push(text);
        }
        assert_eq!(
            answers[1..],
            [
                r#""applied""#,
                r#"{"snapshot":[{"element":{"source":"2001:db8::1","port":"tcp/22"},"seconds-left":30}]}"#,
                r#""removed""#,
                r#"{"failed":"cannot write the rules: iptables is not an absolute path; name the tool by its full path"}"#,
            ]
        );
    }
}
