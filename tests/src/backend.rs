//! The gate's back-ends that the tests go through, and what each of them promises.

use crate::config::Configuration;

/// A back-end, as `[gate] backend` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// What the configuration calls it.
    pub name: &'static str,
    /// Whether its rules are in the chains of iptables: then they come before those of other
    /// users of iptables, and what they accept passes a default drop there.
    pub in_iptables: bool,
}

impl Backend {
    /// Rules of iptables that ask sets: what a host usually has.
    pub const IPSET: Self = Self { name: "ipset", in_iptables: true };
    /// Rules of iptables, one a grant.
    pub const IPTABLES: Self = Self { name: "iptables", in_iptables: true };
    /// A table of its own, which can't be where another table drops.
    pub const NFTABLES: Self = Self { name: "nftables", in_iptables: false };

    /// All that stand in the kernel. The hook's rules are those of its commands.
    pub const ALL: [Self; 3] = [Self::IPSET, Self::NFTABLES, Self::IPTABLES];

    /// Writes it into a configuration.
    pub fn choose(self, configuration: &mut Configuration) {
        configuration.gate.backend = Some(self.name.into());
    }
}
