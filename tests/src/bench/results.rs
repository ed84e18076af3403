//! What a run of the benchmark has found, as `target/bench/results.json` holds it.

use super::figures::Figure;
use serde::{Deserialize, Serialize};

/// All of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Results {
    /// Where and when it was measured.
    pub machine: Machine,
    /// Whether counts were so small that figures mean nothing: it was only shown to work.
    pub quick: bool,
    /// How long all of it took.
    pub seconds: f64,
    /// How many changes a batch has: what the daemon makes at most.
    pub batch: usize,
    /// The back-ends of the gate by themselves.
    pub backends: Vec<BackendResults>,
    /// The daemon with each back-end, when somebody flushes the firewall.
    pub flushes: Vec<FlushResults>,
    /// Whole programs, from a knock on the wire to the rule in the kernel.
    pub programs: Vec<ProgramResults>,
}

/// Where and when.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    pub date: String,
    pub processor: String,
    pub processors: usize,
    pub memory_mib: u64,
    pub kernel: String,
    pub system: String,
    /// Version by program or package.
    pub versions: Vec<(String, String)>,
    /// The load average of a minute, before and after.
    pub load: (String, String),
}

/// Something that was measured, or could not be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome<T> {
    /// It was.
    Measured(T),
    /// It was not, and this is why.
    NotRun(String),
}

impl<T> Outcome<T> {
    /// What was measured, if anything.
    pub const fn measured(&self) -> Option<&T> {
        match self {
            Self::Measured(figures) => Some(figures),
            Self::NotRun(_) => None,
        }
    }
}

/// How the cost of a grant should grow with those that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeping {
    /// Not at all: grants are elements of a set.
    Sets,
    /// With their number: grants are rules, looked at one after the other.
    Rules,
}

/// One back-end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackendResults {
    /// As the reports call it.
    pub name: String,
    /// What it keeps grants in.
    pub keeping: Keeping,
    /// What came of it.
    pub outcome: Outcome<BackendFigures>,
}

/// The figures of one back-end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackendFigures {
    /// One more grant.
    pub grants: Vec<GrantCost>,
    /// Many at once.
    pub bursts: Vec<Burst>,
    /// Packets.
    pub packets: Vec<PacketCost>,
    /// Why there are none.
    pub no_packets: Option<String>,
}

/// What one more grant costs where some are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GrantCost {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How many grants of each family were to be there.
    pub wanted: usize,
    /// How many there were, read back from the kernel.
    pub present: usize,
    /// How long it took to put them there, both families.
    pub filled_in_seconds: f64,
    /// Why there are fewer than wanted.
    pub note: Option<String>,
    /// Microseconds for one grant on its own, by rounds.
    pub single_us: Option<Figure>,
    /// The same as a multiple of that with none there, pairwise in each round.
    pub single_ratio: Option<Figure>,
    /// Microseconds for withdrawing one on its own.
    pub withdraw_us: Option<Figure>,
    /// Microseconds for each grant of a full batch.
    pub batch_us: Option<Figure>,
    /// The same as a multiple of that with none there.
    pub batch_ratio: Option<Figure>,
}

/// Many grants at once, in batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Burst {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How many grants there were to be.
    pub wanted: usize,
    /// How many of them the kernel held afterwards, at the worst.
    pub read_back: usize,
    /// Why it is fewer.
    pub note: Option<String>,
    /// Seconds until the last batch was confirmed.
    pub seconds: Option<Figure>,
    /// Seconds for reading all of them back.
    pub reading_seconds: Option<Figure>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PacketKind {
    /// A SYN to the guarded port from a granted address: answered.
    Granted,
    /// A SYN to the guarded port from any other address: not answered.
    Refused,
    /// A SYN to another open port: answered.
    Unguarded,
}

/// What packets of one kind cost, in nanoseconds of one processor, sending included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PacketCost {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// What becomes of them.
    pub kind: PacketKind,
    /// How many grants of the family were there.
    pub present: usize,
    /// How many packets a round had.
    pub packets: usize,
    /// How many in a thousand of those that had to be answered were, at the worst.
    pub answered_permille: Option<usize>,
    /// On a host without any gate.
    pub bare_ns: Option<Figure>,
    /// With no grants (for the granted kind: those of the sixteen senders).
    pub none_ns: Option<Figure>,
    /// With the present ones.
    pub many_ns: Option<Figure>,
    /// The rate with the present grants as a fraction of that with none, pairwise.
    pub rate: Option<Figure>,
    /// The same between two hosts that both have none: what the method can't tell apart.
    pub control: Option<Figure>,
}

/// The daemon with one back-end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlushResults {
    /// The back-end, as the reports call it.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome<FlushFigures>,
}

/// Milliseconds from a flush until the gate stands again, read from the kernel.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FlushFigures {
    /// Of all flushes.
    pub ms: Option<Figure>,
    /// Of the slowest one.
    pub slowest_ms: Option<f64>,
}

/// One program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProgramResults {
    /// As the reports call it.
    pub name: String,
    /// Whether it is ours.
    pub ours: bool,
    /// What came of it.
    pub outcome: Outcome<ProgramFigures>,
}

/// The figures of one program.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProgramFigures {
    /// Programs that it executed for some grants.
    pub execs: Option<Execs>,
    /// Valid knocks as fast as it takes them.
    pub saturated: Vec<Saturated>,
}

/// What was executed for some grants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Execs {
    /// How many grants.
    pub grants: usize,
    /// How many programs were executed meanwhile by the daemon and its children.
    pub executed: usize,
    /// How many in as long a time without any knock.
    pub idle: usize,
}

/// Valid knocks all at once, from as many sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Saturated {
    /// How many grants were there before.
    pub present: usize,
    /// How many knocks a round had.
    pub knocks: usize,
    /// How many of them opened, as the kernel has it, at the worst.
    pub opened: usize,
    /// Why it could not be measured, or not always.
    pub note: Option<String>,
    /// Milliseconds for each grant.
    pub ms_per_grant: Option<Figure>,
}
