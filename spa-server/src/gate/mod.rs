//! The types of the gate that the configuration names.

use serde::{Deserialize, Serialize};
use spa_proto::Port;
use std::path::PathBuf;

/// Who refuses what isn't granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The gate: it hides the guarded ports whatever firewall is there or not.
    #[default]
    Guard,
    /// The host's own firewall; the gate only accepts what is granted.
    Open,
}

/// What a guarded port looks like to those who have no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Like nothing: packets vanish.
    #[default]
    Drop,
    /// Like a closed port: TCP gets a reset, all else an ICMP port unreachable.
    Reject,
}

/// What the gate is to guard, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Plan {
    /// Who refuses.
    pub mode: Mode,
    /// How the gate refuses; in [`Mode::Open`] it never does.
    pub refusal: Refusal,
    /// The guarded ports: those of all services.
    pub ports: Vec<Port>,
    /// The UDP ports that knocks are sent to; hidden like the guarded ones.
    pub knock_ports: Vec<u16>,
    /// How many elements each of the two sets (IPv4, IPv6) may hold.
    pub max_elements: u32,
}

/// Paths that the administrator chose over those that would be found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ToolOverrides {
    /// In place of `iptables-restore`.
    pub iptables_restore: Option<PathBuf>,
    /// In place of `ip6tables-restore`.
    pub ip6tables_restore: Option<PathBuf>,
    /// In place of `iptables-save`.
    pub iptables_save: Option<PathBuf>,
    /// In place of `ip6tables-save`.
    pub ip6tables_save: Option<PathBuf>,
    /// In place of `ipset`.
    pub ipset: Option<PathBuf>,
    /// In place of `conntrack`.
    pub conntrack: Option<PathBuf>,
    /// In place of `nft`.
    pub nft: Option<PathBuf>,
}
