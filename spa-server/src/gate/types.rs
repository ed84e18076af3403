//! The vocabulary of the gate: plain values that can cross a process boundary.
//!
//! Nothing in here knows how the kernel is spoken to.

use serde::{Deserialize, Serialize};
use spa_proto::Port;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The longest time that a kernel set can give an element: ipset has no longer timeout.
pub const MAX_ELEMENT_SECONDS: u32 = 2_147_483;

/// What the kernel admits: one source address to one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Element {
    /// Who may come in; never a v4-mapped IPv6 address.
    pub source: IpAddr,
    /// The port, before any address translation.
    pub port: Port,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.port, self.source)
    }
}

/// One change of what the kernel admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Change {
    /// Admit the element for this long from now, whatever was said of it before.
    Admit {
        /// What to admit.
        element: Element,
        /// For how many seconds, 1 to [`MAX_ELEMENT_SECONDS`].
        seconds: u32,
    },
    /// Admit the element no longer. No harm if it isn't admitted.
    Withdraw {
        /// What to withdraw.
        element: Element,
    },
}

impl Change {
    /// What the change is about.
    pub const fn element(&self) -> Element {
        match *self {
            Self::Admit { element, .. } | Self::Withdraw { element } => element,
        }
    }
}

/// An element that the kernel admits right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LiveElement {
    /// What is admitted.
    pub element: Element,
    /// For how many more whole seconds; the kernel rounds down.
    pub seconds_left: u32,
}

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

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A knock port that the gate doesn't hide, because a real service listens there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BusyKnockPort {
    /// The port.
    pub port: u16,
    /// For which family it is left alone.
    pub family: Family,
    /// Where the service listens.
    pub listener: SocketAddr,
}

impl fmt::Display for BusyKnockPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "knock port udp/{} is left alone over {}: a service listens on {}",
            self.port, self.family, self.listener
        )
    }
}

/// What an installation found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstallReport {
    /// Whether any rule or set had to be made or mended; `false`: all was in place already.
    pub changed: bool,
    /// Knock ports that are not hidden.
    pub busy_knock_ports: Vec<BusyKnockPort>,
    /// Established connections that connection tracking was told of, so that they live on.
    pub connections_kept: u32,
    /// What the administrator should know; each one a sentence.
    pub warnings: Vec<String>,
}

/// What the daemon asks of the gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum GateRequest {
    /// Bring rules and sets to this plan; elements stay.
    Install(Plan),
    /// Change what is admitted.
    Apply(Vec<Change>),
    /// Tell what is admitted.
    Snapshot,
    /// Take away all rules and sets of ours.
    Remove,
}

/// What the gate answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum GateAnswer {
    /// To [`GateRequest::Install`].
    Installed(InstallReport),
    /// To [`GateRequest::Apply`]: the kernel took all changes.
    Applied,
    /// To [`GateRequest::Snapshot`].
    Snapshot(Vec<LiveElement>),
    /// To [`GateRequest::Remove`].
    Removed,
    /// To any: it did not happen, and this is why, with all causes.
    Failed(String),
}
