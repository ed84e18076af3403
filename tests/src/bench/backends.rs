//! The back-ends that are measured. A further one is one entry more.

use super::results::Keeping;
use spa_server::config::GateSettings;
use spa_server::gate::{AnyGate, Backend, GateError, ToolOverrides};

/// A back-end on one variant of the tools.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// As the reports call it.
    pub(super) name: &'static str,
    /// As the configuration calls it.
    pub(super) backend: Backend,
    /// What it keeps grants in.
    pub(super) keeping: Keeping,
    /// Which iptables, `nft` or `legacy`; `None`: it uses none.
    pub(super) iptables: Option<&'static str>,
}

pub(super) const CANDIDATES: [Candidate; 5] = [
    Candidate {
        name: "ipset, iptables-nft",
        backend: Backend::Ipset,
        keeping: Keeping::Sets,
        iptables: Some("nft"),
    },
    Candidate {
        name: "ipset, iptables-legacy",
        backend: Backend::Ipset,
        keeping: Keeping::Sets,
        iptables: Some("legacy"),
    },
    Candidate {
        name: "nftables",
        backend: Backend::Nftables,
        keeping: Keeping::Sets,
        iptables: None,
    },
    Candidate {
        name: "iptables alone, nft",
        backend: Backend::Iptables,
        keeping: Keeping::Rules,
        iptables: Some("nft"),
    },
    Candidate {
        name: "iptables alone, legacy",
        backend: Backend::Iptables,
        keeping: Keeping::Rules,
        iptables: Some("legacy"),
    },
];

impl Candidate {
    /// The `[gate.tools]` of the configuration.
    pub(super) fn tools(&self) -> Vec<(&'static str, String)> {
        let Some(variant) = self.iptables else { return Vec::new() };
        ["iptables-restore", "ip6tables-restore", "iptables-save", "ip6tables-save"]
            .into_iter()
            .map(|tool| {
                let (family, action) = tool.split_once('-').unwrap_or((tool, ""));
                (tool, format!("/usr/sbin/{family}-{variant}-{action}"))
            })
            .collect()
    }

    /// The back-end; nothing is touched yet.
    pub(super) fn gate(&self) -> Result<AnyGate, GateError> {
        let tools = self.tools();
        let path = |name| tools.iter().find(|(of, _)| *of == name).map(|(_, path)| path.into());
        let settings = GateSettings {
            mode: spa_server::gate::Mode::Guard,
            refuse: spa_server::gate::Refusal::Drop,
            backend: self.backend,
            always_admit: Vec::new(),
            tools: ToolOverrides {
                iptables_restore: path("iptables-restore"),
                ip6tables_restore: path("ip6tables-restore"),
                iptables_save: path("iptables-save"),
                ip6tables_save: path("ip6tables-save"),
                ..ToolOverrides::default()
            },
            hook: None,
        };
        AnyGate::of(self.backend, &settings)
    }
}
