//! The gate's back-ends that the tests go through, and what each of them promises.

use crate::config::Configuration;

/// A back-end, as `[gate] backend` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// What it is called in messages.
    pub name: &'static str,
    /// What the configuration says; none is the default.
    key: Option<&'static str>,
    /// Whether its rules are in the chains of iptables: then they come before those of other
    /// users of iptables, and what they accept passes a default drop there.
    pub in_iptables: bool,
}

impl Backend {
    /// All that there are.
    pub const ALL: [Self; 1] = [Self { name: "ipset", key: None, in_iptables: true }];

    /// Writes it into a configuration.
    pub fn choose(self, configuration: &mut Configuration) {
        configuration.gate.backend = self.key.map(Into::into);
    }
}
