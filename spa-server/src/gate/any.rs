//! The back-end that the configuration names, or the first that works.

use super::types::{Backend, Change, Connection, Doubt, InstallReport, LiveElement, Look, Plan};
use super::{Gate, GateError, HookGate, IptablesGate, NftablesGate, Tools};
use crate::config::GateSettings;

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
}

/// Calls a method of whichever it is.
macro_rules! each {
    ($gate:expr, $one:ident => $call:expr) => {
        match $gate {
            AnyGate::Ipset($one) | AnyGate::Iptables($one) => $call,
            AnyGate::Hook($one) => $call,
            AnyGate::Nftables($one) => $call,
        }
    };
}

impl AnyGate {
    /// The back-end that the settings ask for. Nothing is touched yet.
    ///
    /// # Errors
    ///
    /// It can't work here, and the error says what is missing.
    pub fn choose(settings: &GateSettings) -> Result<Self, GateError> {
        match settings.backend {
            Backend::Auto | Backend::Ipset => {
                Ok(Self::Ipset(IptablesGate::new(Tools::find(&settings.tools)?)))
            }
            Backend::Iptables => {
                Ok(Self::Iptables(IptablesGate::without_sets(Tools::find(&settings.tools)?)))
            }
            Backend::Hook => match &settings.hook {
                Some(hook) => Ok(Self::Hook(HookGate::new(hook.clone())?)),
                None => Err(GateError::NotConfigured(Backend::Hook)),
            },
            Backend::Nftables => Ok(Self::Nftables(NftablesGate::new(&settings.tools)?)),
            Backend::DryRun => Err(GateError::NoSuchBackend(Backend::DryRun)),
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

    async fn sever(&self, connections: &[Connection]) -> Result<(), GateError> {
        each!(self, gate => gate.sever(connections).await)
    }

    async fn lift(&self) -> Result<(), GateError> {
        each!(self, gate => gate.lift().await)
    }

    async fn remove(&self) -> Result<(), GateError> {
        each!(self, gate => gate.remove().await)
    }
}
