//! The gate: what guards the ports in the kernel's firewall.
//!
//! [`types`] is the vocabulary and the seam to a helper process; [`Gate`] is what a back-end can
//! do. [`IptablesGate`] holds grants in ipset sets with a time limit on each element, or in rules
//! that say themselves until when they count: the kernel closes a port when the daemon is dead.
//! Its text is made by the pure [`render`] and [`sets`], and judged by the pure [`saved`],
//! [`foreign`] and [`sockets`]. [`NftablesGate`] has a table of its own; [`HookGate`] runs commands
//! of the administrator's; [`DryRunGate`] only says what it would do. [`AnyGate::choose`] finds out
//! which one it is.
//!
//! The gate knows nothing of clients, services or knocks.
//!
//! # How a packet goes
//!
//! In guard mode, a packet to a guarded port of this host is judged in table mangle, before any
//! address translation: of an established connection, granted, or refused. Refused packets are
//! dropped there, or marked there and rejected in table filter. Granted ones are sent in table nat
//! where their service is, if that is elsewhere. In table filter, what is established or was
//! granted is accepted before the host's own rules see it; what came to a guarded port untranslated
//! and is neither is refused there once more, whatever has become of the mark on the way. In open
//! mode there are only those accepts, and the host's rules refuse.
//!
//! Known limit: granted packets to ports that *others* publish or redirect must be accepted by the
//! host's own rules.

mod advice;
mod any;
mod bounds;
mod choice;
mod dry_run;
mod error;
pub mod foreign;
pub mod hook;
mod iptables;
mod leftover;
mod marks;
mod nftables;
pub mod render;
pub mod saved;
pub mod sets;
pub mod sockets;
mod tools;
mod trial_end;
pub mod types;

pub use any::AnyGate;
pub use choice::{Choice, PassedOver};
pub use dry_run::DryRunGate;
pub use error::GateError;
pub use hook::{CommandLine, CommandLineError, HookGate, HookSettings};
pub use iptables::IptablesGate;
pub use nftables::NftablesGate;
pub use tools::{MissingTool, ToolOverrides, Tools};
pub use types::{
    Backend, BusyKnockPort, Change, Connection, Cut, Doubt, Element, Family, GateAnswer,
    GateRequest, Guarded, InstallReport, LiveElement, Look, MAX_ELEMENT_SECONDS, Mode, Plan,
    Refusal,
};

use crate::causes::with_causes;
use std::sync::Arc;

/// A back-end of the gate.
///
/// Changes that one gate makes don't overlap: each waits for the one before it. An installation
/// that finds all in place delays no [`Gate::apply`]: it may be repeated now and then, to mend
/// what other programs have flushed.
pub trait Gate: Send + Sync {
    /// Which one it is; never [`Backend::Auto`].
    fn backend(&self) -> Backend;

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

    /// Looks at the host as [`Gate::install`] would, and changes nothing: the tools, the rules of
    /// others, the sockets on knock ports. [`InstallReport::changed`] tells whether rules and sets
    /// are other ones than an installation makes.
    ///
    /// # Errors
    ///
    /// What an installation would fail with.
    fn examine(&self, plan: &Plan)
    -> impl Future<Output = Result<InstallReport, GateError>> + Send;

    /// Waits until somebody else may have changed what is ours: for a notification of the
    /// kernel's, or for as long as may pass between two looks (500 ms) where it sends none.
    /// Nothing is lost between two calls.
    fn disturbed(&self) -> impl Future<Output = Doubt> + Send;

    /// Looks quickly whether all that was installed last is still there, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`GateError::NotInstalled`] if this gate has installed nothing, or has removed it.
    fn look(&self, doubt: Doubt) -> impl Future<Output = Result<Look, GateError>> + Send;

    /// Refuses the packets of these connections in both directions, also those of established
    /// ones, until [`Gate::lift`]; instead of those that are refused already.
    ///
    /// # Errors
    ///
    /// They go on.
    fn sever(&self, cuts: &[Cut]) -> impl Future<Output = Result<(), GateError>> + Send;

    /// Refuses no connections for their own sake any more. No harm if there are none.
    ///
    /// # Errors
    ///
    /// They are still refused.
    fn lift(&self) -> impl Future<Output = Result<(), GateError>> + Send;

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

    fn backend(&self) -> Backend {
        (**self).backend()
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        (**self).examine(plan).await
    }

    async fn disturbed(&self) -> Doubt {
        (**self).disturbed().await
    }

    async fn look(&self, doubt: Doubt) -> Result<Look, GateError> {
        (**self).look(doubt).await
    }

    async fn sever(&self, cuts: &[Cut]) -> Result<(), GateError> {
        (**self).sever(cuts).await
    }

    async fn lift(&self) -> Result<(), GateError> {
        (**self).lift().await
    }
}

/// Lets a gate answer a request: what a helper process does with each request that it reads.
pub async fn answer<G: Gate>(gate: &G, request: GateRequest) -> GateAnswer {
    let answer = match request {
        GateRequest::Install(plan) => gate.install(&plan).await.map(GateAnswer::Installed),
        GateRequest::Apply(changes) => gate.apply(&changes).await.map(|()| GateAnswer::Applied),
        GateRequest::Snapshot => gate.snapshot().await.map(GateAnswer::Snapshot),
        GateRequest::Examine(plan) => gate.examine(&plan).await.map(GateAnswer::Examined),
        GateRequest::Look(doubt) => gate.look(doubt).await.map(GateAnswer::Looked),
        GateRequest::Sever(those) => gate.sever(&those).await.map(|()| GateAnswer::Severed),
        GateRequest::Lift => gate.lift().await.map(|()| GateAnswer::Lifted),
        GateRequest::Remove => gate.remove().await.map(|()| GateAnswer::Removed),
    };
    answer.unwrap_or_else(|error| match error {
        GateError::NotInstalled => GateAnswer::NotInstalled,
        error => GateAnswer::Failed(with_causes(&error)),
    })
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

        fn backend(&self) -> Backend {
            Backend::DryRun
        }

        async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
            self.install(plan).await
        }

        async fn disturbed(&self) -> Doubt {
            std::future::pending().await
        }

        async fn look(&self, _: Doubt) -> Result<Look, GateError> {
            let elements = u64::try_from(self.0.lock().unwrap().len()).unwrap();
            Ok(Look { missing: vec!["chain SPA-GUARD".into()], elements })
        }

        async fn sever(&self, _: &[Cut]) -> Result<(), GateError> {
            Ok(())
        }

        async fn lift(&self) -> Result<(), GateError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn requests_and_answers_cross_a_process_boundary() {
        let gate = Model::default();
        let element =
            Element { source: "2001:db8::1".parse().unwrap(), ports: "tcp/22".parse().unwrap() };
        let plan = |max_elements| Plan {
            mode: Mode::Guard,
            refusal: Refusal::Reject,
            guarded: vec![Guarded::plain("tcp/22".parse().unwrap())],
            knock_ports: vec![62201],
            always_admit: Vec::new(),
            max_elements,
            trial_seconds: None,
        };
        let mut answers = Vec::new();
        for request in [
            GateRequest::Install(plan(9)),
            GateRequest::Apply(vec![
                Change::Admit { element, seconds: 30 },
                Change::Withdraw { element },
            ]),
            GateRequest::Snapshot,
            GateRequest::Look(Doubt::Elements),
            GateRequest::Sever(vec![Cut {
                connection: Connection {
                    transport: spa_proto::Transport::Tcp,
                    peer: "[2001:db8::1]:54321".parse().unwrap(),
                    local: "[2001:db8::2]:22".parse().unwrap(),
                },
                answered_from: "[2001:db8:1::2]:2222".parse().unwrap(),
            }]),
            GateRequest::Lift,
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
                r#"{"snapshot":[{"element":{"source":"2001:db8::1","ports":"tcp/22"},"seconds-left":30}]}"#,
                r#"{"looked":{"missing":["chain SPA-GUARD"],"elements":1}}"#,
                r#""severed""#,
                r#""lifted""#,
                r#""removed""#,
                r#"{"failed":"cannot write the rules: iptables is not an absolute path; name the tool by its full path"}"#,
            ]
        );
    }
}
