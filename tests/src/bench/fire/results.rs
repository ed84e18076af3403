//! What a run under fire has found, as `target/bench/results.json` holds it.

use crate::bench::Outcome;
use crate::bench::contenders::Noise;
use crate::bench::results::Machine;
use serde::{Deserialize, Serialize};

/// All of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fire {
    /// Where and when it was measured.
    pub machine: Machine,
    /// Whether counts were so small that figures mean nothing: it was only shown to work.
    pub quick: bool,
    /// How long all of it took.
    pub seconds: f64,
    /// One knock on its own.
    pub singles: Vec<Of<Latency>>,
    /// Knocks amid noise.
    pub noise: Vec<Of<Vec<UnderNoise>>>,
    /// What noise costs.
    pub costs: Vec<NoiseCost>,
    /// Knocks at rates.
    pub rates: Vec<Of<Vec<Rate>>>,
    /// Few and many clients.
    pub crowds: Outcome<Vec<Crowd>>,
}

impl Default for Fire {
    fn default() -> Self {
        Self {
            machine: Machine::default(),
            quick: false,
            seconds: 0.0,
            singles: Vec::new(),
            noise: Vec::new(),
            costs: Vec::new(),
            rates: Vec::new(),
            crowds: Outcome::NotRun("it was not asked for".into()),
        }
    }
}

/// Something of one program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Of<T> {
    /// As the reports call it.
    pub name: String,
    /// Whose it is.
    pub role: Role,
    /// What came of it.
    pub outcome: Outcome<T>,
}

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Ours.
    Ours,
    /// Somebody else's.
    Peer,
    /// The kernel alone.
    Floor,
}

/// How long knocks took to open.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Latency {
    /// How many knocks were sent.
    pub knocks: usize,
    /// How many of them opened.
    pub opened: usize,
    /// Milliseconds, of those that opened.
    pub median_ms: f64,
    /// Ninety-nine in a hundred of those that opened took no longer.
    pub p99_ms: f64,
    /// The slowest of those that opened.
    pub slowest_ms: f64,
}

/// Knocks amid noise of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnderNoise {
    /// Which.
    pub kind: Noise,
    /// Datagrams a second that were sent.
    pub sent_pps: f64,
    /// Datagrams a second that came to the host.
    pub received_pps: f64,
    /// How long, in seconds.
    pub seconds: f64,
    /// The knocks.
    pub latency: Latency,
    /// How many datagrams of noise alone came before, while nobody knocked.
    pub alone: u64,
    /// By how many bytes the log has grown meanwhile.
    pub log_bytes: u64,
    /// By how many bytes the files have grown in which it remembers things.
    pub state_bytes: u64,
    /// Resident memory before any noise, KiB.
    pub resident_before: u64,
    /// The same after the noise.
    pub resident_after: u64,
}

/// Processor time for a datagram of noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NoiseCost {
    /// Which program.
    pub name: String,
    /// Whether it is ours.
    pub ours: bool,
    /// Datagrams a second; none: as many as the sender can.
    pub rate: Option<u64>,
    /// How many a second came to the host.
    pub received_pps: f64,
    /// Which part of them the program has seen.
    pub seen: f64,
    /// Nanoseconds for each that it has seen: of its own, and of what the kernel did for it in the
    /// sender's time.
    pub ns: f64,
    /// Those of its own.
    #[serde(default)]
    pub own_ns: f64,
    /// The same by that of the counter that takes packets as ours does, pairwise.
    pub ratio: f64,
    /// The same by that of the counter that lets the kernel gather packets.
    pub ratio_to_gathered: f64,
    /// Nanoseconds of the sender for each: with what the receiving host does in its time.
    pub sender_ns: f64,
}

/// Valid knocks at one rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rate {
    /// Knocks a second that were to be sent.
    pub wanted: u64,
    /// Knocks a second that were sent.
    pub sent: f64,
    /// How many knocks.
    pub knocks: usize,
    /// How many grants the kernel had in the end.
    pub opened: usize,
    /// How long after the last knock all of them were open, in milliseconds.
    pub behind_ms: Option<f64>,
    /// What the program says became of the others.
    pub losses: String,
}

/// A server with so many clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Crowd {
    /// How many.
    pub clients: usize,
    /// Seconds from the first start of the process, with nothing kept, until it answered.
    pub start_seconds: f64,
    /// The same of the second start.
    #[serde(default)]
    pub start_again_seconds: f64,
    /// Resident memory when it had started, KiB: the more of the two times.
    pub resident: u64,
    /// One knock on its own.
    pub latency: Latency,
    /// Nanoseconds for a datagram of noise.
    pub noise_ns: f64,
}
