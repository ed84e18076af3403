//! The back-ends that the contract is held against, and what each of them promises.

use crate::lab::Lab;
use crate::outside;
use spa_server::config::GateSettings;
use spa_server::gate::{Backend, Mode, Refusal, ToolOverrides};
use std::path::{Path, PathBuf};

/// A back-end on a kind of host.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Which back-end.
    pub(crate) backend: Backend,
    /// What `iptables` is on this host.
    pub(crate) variant: Variant,
    /// What it promises beside what every back-end does.
    pub(crate) promises: Promises,
}

/// What not every back-end promises. What isn't promised is shown to be refused, or not to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promises {
    /// What is granted passes rules of the host's own that drop everything.
    pub(crate) passes_default_drop: bool,
    /// It can leave refusing to the host's own rules.
    pub(crate) open_mode: bool,
    /// A grant can be used up by one connection.
    pub(crate) one_connection: bool,
    /// Elements live in sets, and so cost the same however many there are.
    pub(crate) sets: bool,
}

/// iptables as it is on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(crate) const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    /// The commands `iptables` and `ip6tables`.
    pub(crate) fn commands(self) -> [String; 2] {
        ["iptables", "ip6tables"].map(|tool| format!("{tool}-{}", self.name()))
    }
}

const IPTABLES: Promises =
    Promises { passes_default_drop: true, open_mode: true, one_connection: true, sets: true };

pub(crate) const IPSET_NFT: Subject =
    Subject { backend: Backend::Ipset, variant: Variant::Nft, promises: IPTABLES };
pub(crate) const IPSET_LEGACY: Subject =
    Subject { backend: Backend::Ipset, variant: Variant::Legacy, promises: IPTABLES };

/// One rule for each grant.
const RULES: Promises = Promises { sets: false, ..IPTABLES };

pub(crate) const IPTABLES_NFT: Subject =
    Subject { backend: Backend::Iptables, variant: Variant::Nft, promises: RULES };
pub(crate) const IPTABLES_LEGACY: Subject =
    Subject { backend: Backend::Iptables, variant: Variant::Legacy, promises: RULES };

pub(crate) const NFTABLES: Subject = Subject {
    backend: Backend::Nftables,
    variant: Variant::Nft,
    promises: Promises {
        passes_default_drop: false,
        open_mode: false,
        one_connection: true,
        sets: true,
    },
};

/// What keeps to other firewalls, or to none.
const NOTHING: Promises =
    Promises { passes_default_drop: false, open_mode: false, one_connection: false, sets: false };

pub(crate) const HOOK: Subject =
    Subject { backend: Backend::Hook, variant: Variant::Nft, promises: NOTHING };
pub(crate) const DRY_RUN: Subject =
    Subject { backend: Backend::DryRun, variant: Variant::Nft, promises: NOTHING };

impl Subject {
    /// The tools of this host, where nothing goes wrong.
    pub(crate) fn tools(&self) -> ToolOverrides {
        let path = |tool: String| Some(PathBuf::from(format!("/usr/sbin/{tool}")));
        let variant = self.variant.name();
        ToolOverrides {
            iptables_restore: path(format!("iptables-{variant}-restore")),
            ip6tables_restore: path(format!("ip6tables-{variant}-restore")),
            iptables_save: path(format!("iptables-{variant}-save")),
            ip6tables_save: path(format!("ip6tables-{variant}-save")),
            nft: path("nft".to_owned()),
        }
    }

    /// Whether its rules are rules of iptables.
    pub(crate) fn uses_iptables(&self) -> bool {
        matches!(self.backend, Backend::Ipset | Backend::Iptables)
    }

    /// Whether its tools wait for each other by a lock.
    pub(crate) fn takes_the_lock(&self) -> bool {
        self.uses_iptables() && self.variant == Variant::Legacy
    }

    /// What the daemon would read from its configuration.
    pub(crate) fn settings(&self, tools: ToolOverrides, directory: &Path) -> GateSettings {
        GateSettings {
            mode: Mode::Guard,
            refuse: Refusal::Drop,
            backend: self.backend,
            always_admit: Vec::new(),
            tools,
            hook: (self.backend == Backend::Hook).then(|| outside::commands(directory)),
        }
    }
}

/// What the host's own firewall does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// Nothing.
    Accepts,
    /// Drops everything, but what hosts need to find each other.
    Drops,
}

impl Host {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Accepts, Self::Drops];

    /// Sets the firewall up.
    pub(crate) fn prepare(self, lab: &Lab) {
        if self == Self::Drops {
            lab.rules(&[
                "-A INPUT -i lo -j ACCEPT",
                "-A INPUT -p icmpv6 -j ACCEPT",
                "-P INPUT DROP",
                "-P FORWARD DROP",
            ]);
        }
    }
}
