//! The vocabulary of the gate: plain values that can cross a process boundary.
//!
//! Nothing in here knows how the kernel is spoken to.

use crate::service::{Connections, Target};
use crate::source::Source;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use spa_proto::{PortRange, Transport};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The longest time that a kernel set can give an element: ipset has no longer timeout.
pub const MAX_ELEMENT_SECONDS: u32 = 2_147_483;

/// What the kernel admits: a source to ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Element {
    /// Who may come in.
    pub source: Source,
    /// The ports, before any address translation: those of a [`Guarded`], or one of them.
    pub ports: PortRange,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.ports, self.source)
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

/// Which part of the kernel guards the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The first of these that works on this host.
    #[default]
    Auto,
    /// iptables and ip6tables rules over ipset sets.
    Ipset,
    /// iptables and ip6tables rules alone.
    Iptables,
    /// A table of nftables.
    Nftables,
    /// Commands of the administrator's.
    Hook,
    /// Nothing: it says what it would do.
    DryRun,
}

impl Backend {
    /// As the configuration writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Hook => "hook",
            Self::DryRun => "dry-run",
        }
    }

    /// Whether it keeps ports closed by itself, so that whoever gets in while it is away is a
    /// stranger.
    pub const fn hides(self) -> bool {
        !matches!(self, Self::Hook | Self::DryRun)
    }

    /// Who closes what is open, and when nobody does.
    pub const fn closing(self) -> &'static str {
        match self {
            Self::Auto => "who closes what is open depends on the back-end",
            Self::Ipset | Self::Nftables => {
                "the kernel closes what is open in time, also when the daemon is dead"
            }
            Self::Iptables => {
                "the kernel closes what is open by the clock on the wall, also when the daemon is dead"
            }
            Self::Hook => {
                "the daemon alone closes what is open: when it is dead or frozen, that stays open until it runs again"
            }
            Self::DryRun => "nothing is ever open",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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
    /// The guarded ports: those of all services. Where two overlap they have the same target
    /// and connections.
    pub guarded: Vec<Guarded>,
    /// The UDP ports that knocks are sent to; hidden like the guarded ones.
    pub knock_ports: Vec<u16>,
    /// From where the guarded ports can be reached without a grant, always.
    pub always_admit: Vec<IpNet>,
    /// How many elements may be admitted at a time, of each family.
    pub max_elements: u32,
    /// For a gate on trial: after so many seconds it refuses nothing any more, whatever has become
    /// of this program. `None`: it stands until it is removed.
    pub trial_seconds: Option<u32>,
}

/// Ports that are hidden from all who have no grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Guarded {
    /// The ports.
    pub ports: PortRange,
    /// Who answers there.
    pub target: Target,
    /// How many connections a grant lets in.
    pub connections: Connections,
}

impl Guarded {
    /// Ports of this host's own, with as many connections as come.
    pub const fn plain(ports: PortRange) -> Self {
        Self { ports, target: Target::Here, connections: Connections::Any }
    }
}

impl Plan {
    /// What is guarded at these ports, all of them; `None` if nothing is.
    pub fn guarded_at(&self, ports: PortRange) -> Option<&Guarded> {
        let exact = self.guarded.iter().find(|guarded| guarded.ports == ports);
        exact.or_else(|| {
            let covers = |guarded: &&Guarded| guarded.ports.covers(ports);
            self.guarded.iter().find(covers).filter(|_| ports.single().is_some())
        })
    }
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

/// A connection between a peer and this host, or one that this host forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Connection {
    /// TCP or UDP.
    #[serde(with = "transport_text")]
    pub transport: Transport,
    /// The other end, as this host sees it.
    pub peer: SocketAddr,
    /// This host's end, before any address translation.
    pub local: SocketAddr,
}

/// A connection whose packets are refused, by both its ends: its peer may have others with this host,
/// and with those behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cut {
    /// As its peer knows it.
    pub connection: Connection,
    /// The end that answers, after any address translation: the socket of a program of this host,
    /// of a container, or of another host.
    pub answered_from: SocketAddr,
}

/// For how many seconds the packets of connections are refused if nobody lifts that: whoever would is
/// dead then.
pub(super) const MAX_CUT_SECONDS: u32 = 600;

/// `"tcp"` or `"udp"`.
mod transport_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use spa_proto::Transport;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(
        transport: &Transport,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(transport.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Transport, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "tcp" => Ok(Transport::Tcp),
            "udp" => Ok(Transport::Udp),
            other => Err(D::Error::custom(format!("{other:?} is neither tcp nor udp"))),
        }
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
    /// In what the rules and sets differed from the plan, as an administrator would call it.
    #[serde(default)]
    pub differences: Vec<String>,
}

/// What may have been changed by somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// The number of elements.
    Elements,
    /// Rules, sets, elements.
    Everything,
}

/// What a quick look at the kernel has found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Look {
    /// What of the installed plan is missing or changed, as an administrator would call it.
    pub missing: Vec<String>,
    /// How many elements the kernel holds; those whose time has just ended may be among them.
    pub elements: u64,
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
    /// Compare with a plan, and look for what is in the way; change nothing.
    Examine(Plan),
    /// Look quickly whether all of the installed plan is there.
    Look(Doubt),
    /// Refuse the packets of these connections, in both directions.
    Sever(Vec<Cut>),
    /// Refuse them no more.
    Lift,
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
    /// To [`GateRequest::Examine`].
    Examined(InstallReport),
    /// To [`GateRequest::Look`].
    Looked(Look),
    /// To [`GateRequest::Sever`].
    Severed,
    /// To [`GateRequest::Lift`].
    Lifted,
    /// To [`GateRequest::Remove`].
    Removed,
    /// To any: there is no gate.
    NotInstalled,
    /// To [`GateRequest::Remove`]: it stays, and this is why.
    NotOrdered(String),
    /// To any: it did not happen, and this is why, with all causes.
    Failed(String),
}
