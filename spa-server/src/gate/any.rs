//! One gate, whichever back-end it has.

use super::types::{Backend, Change, Cut, Doubt, InstallReport, LiveElement, Look, Plan};
use super::{DryRunGate, Gate, GateError, HookGate, IptablesGate, NftablesGate, dry_run, nftables};

/// One of the back-ends.
#[derive(Debug)]
pub enum AnyGate {
    /// iptables and ip6tables rules over ipset sets.
    Ipset(IptablesGate),
    /// iptables and ip6tables rules alone.
    Iptables(IptablesGate),
    /// Commands of the administrator's.
    Hook(HookGate),
    /// A table of nftables.
    Nftables(NftablesGate),
    /// Nothing.
    DryRun(DryRunGate),
}

/// Calls a method of whichever it is.
macro_rules! each {
    ($gate:expr, $one:ident => $call:expr) => {
        match $gate {
            AnyGate::Ipset($one) | AnyGate::Iptables($one) => $call,
            AnyGate::Hook($one) => $call,
            AnyGate::Nftables($one) => $call,
            AnyGate::DryRun($one) => $call,
        }
    };
}

impl AnyGate {
    /// What the back-end makes for this plan where there is nothing of it yet, line by line as its
    /// tools would read it; nothing, where that is for somebody else to say.
    pub fn script(&self, plan: &Plan) -> Vec<String> {
        match self {
            Self::Ipset(_) | Self::DryRun(_) => dry_run::script(plan),
            Self::Iptables(_) => dry_run::script_without_sets(plan),
            Self::Nftables(_) => nftables::script(plan),
            Self::Hook(_) => Vec::new(),
        }
    }
}

impl Gate for AnyGate {
    fn backend(&self) -> Backend {
        each!(self, gate => gate.backend())
    }

    async fn install(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        each!(self, gate => gate.install(plan).await)
    }

    async fn apply(&self, changes: &[Change]) -> Result<(), GateError> {
        each!(self, gate => gate.apply(changes).await)
    }

    async fn snapshot(&self) -> Result<Vec<LiveElement>, GateError> {
        each!(self, gate => gate.snapshot().await)
    }

    async fn examine(&self, plan: &Plan) -> Result<InstallReport, GateError> {
        each!(self, gate => gate.examine(plan).await)
    }

    async fn disturbed(&self) -> Doubt {
        each!(self, gate => gate.disturbed().await)
    }

    async fn look(&self, doubt: Doubt) -> Result<Look, GateError> {
        each!(self, gate => gate.look(doubt).await)
    }

    async fn sever(&self, cuts: &[Cut]) -> Result<(), GateError> {
        each!(self, gate => gate.sever(cuts).await)
    }

    async fn lift(&self) -> Result<(), GateError> {
        each!(self, gate => gate.lift().await)
    }

    async fn remove(&self) -> Result<(), GateError> {
        each!(self, gate => gate.remove().await)
    }
}
