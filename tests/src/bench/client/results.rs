//! What a run of the client's benchmark has found, as `target/bench/results.json` holds it.

use crate::bench::results::{Machine, Outcome};
use serde::{Deserialize, Serialize};

/// All of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClientResults {
    /// Where and when it was measured.
    pub machine: Machine,
    /// Whether counts were so small that figures mean nothing: it was only shown to work.
    pub quick: bool,
    /// How long all of it took.
    pub seconds: f64,
    /// Bytes through the proxy.
    pub throughput: Vec<Throughput>,
    /// From the start of a program to the first byte that comes back.
    pub firsts: Vec<FirstByte>,
    /// A knock as a whole process.
    pub processes: Vec<KnockProcess>,
}

/// Bytes through the proxy beside a direct connection; medians, Mbit/s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Throughput {
    /// As the report calls it.
    pub what: String,
    /// Without the proxy.
    pub direct: f64,
    /// With it.
    pub proxied: f64,
}

/// The first byte over one path; medians, milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FirstByte {
    /// As the report calls the path.
    pub path: String,
    /// From a port that is open, without any program.
    pub direct_ms: f64,
    /// The knock alone, which waits for nothing.
    pub knock_ms: f64,
    /// Through the proxy, from a port that is shut.
    pub proxy_ms: f64,
    /// Through the proxy, with a knock of before.
    pub again_ms: f64,
}

/// A program that knocks, from its start to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KnockProcess {
    /// Its command line, as the report writes it.
    pub name: String,
    /// Whether it is ours.
    pub ours: bool,
    /// What came of it.
    pub outcome: Outcome<ProcessTime>,
}

/// How long processes took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProcessTime {
    /// Milliseconds.
    pub median_ms: f64,
    /// Nine of ten took no longer.
    pub p90_ms: f64,
}
