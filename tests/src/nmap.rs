//! Port scans with the real nmap.

use crate::command::finish;
use crate::lab::{Family, Host};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// A kind of scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// `-sS`: TCP SYN.
    Syn,
    /// `-sA`: TCP ACK.
    Ack,
    /// `-sF`: TCP FIN.
    Fin,
    /// `-sN`: TCP without flags.
    Null,
    /// `-sX`: TCP FIN, PSH and URG.
    Xmas,
    /// `-sU`: UDP.
    Udp,
}

impl Scan {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Syn, Self::Ack, Self::Fin, Self::Null, Self::Xmas, Self::Udp];

    /// nmap's option for it.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Syn => "-sS",
            Self::Ack => "-sA",
            Self::Fin => "-sF",
            Self::Null => "-sN",
            Self::Xmas => "-sX",
            Self::Udp => "-sU",
        }
    }

    /// Scans `ports` of `target` from `from`.
    pub fn run(
        self,
        from: &Host,
        target: &Host,
        family: Family,
        ports: &[u16],
    ) -> Result<BTreeMap<u16, Scanned>> {
        let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut command = from.command("nmap")?;
        command.args(["-n", "-Pn", "--disable-arp-ping", "--send-eth", "-vv", "-T4"]);
        command.args(["--max-retries", "2", "--max-rtt-timeout", "300ms", "-oX", "-"]);
        command.args([self.option(), "-p", &list]);
        if family == Family::V6 {
            command.arg("-6");
        }
        let xml = finish(command.arg(target.address(family).to_string()))?.ok()?;
        let found = parse(&xml).with_context(|| format!("nmap wrote no list of ports:\n{xml}"))?;
        ensure!(
            ports.iter().all(|port| found.contains_key(port)),
            "nmap did not tell of every port of {ports:?}:\n{xml}"
        );
        Ok(found)
    }
}

/// All that a scanner learns about a port: the state, what it concluded that from, and the TTL of
/// the answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scanned {
    /// `open`, `filtered`, `open|filtered`, …
    pub state: String,
    /// `no-response`, `reset`, `port-unreach`, …
    pub reason: String,
    /// Of the answer, 0 without one.
    pub ttl: String,
}

/// Reads `<port portid="22"><state state="open" reason="syn-ack" reason_ttl="64"/>`.
fn parse(xml: &str) -> Option<BTreeMap<u16, Scanned>> {
    xml.split("<port ")
        .skip(1)
        .map(|port| {
            let attribute = |name: &str| {
                let (_, rest) = port.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value.to_owned())
            };
            let number = attribute("portid")?.parse().ok()?;
            let scanned = Scanned {
                state: attribute("<state state")?,
                reason: attribute("reason")?,
                ttl: attribute("reason_ttl")?,
            };
            Some((number, scanned))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;
    use crate::probe::Listener;

    #[test]
    fn nmap_tells_open_closed_and_filtered_ports_apart() {
        let lab = Lab::new().unwrap();
        let _open = Listener::tcp(lab.server(), 7000).unwrap();
        for family in Family::BOTH {
            let tables = if family == Family::V4 { "iptables" } else { "ip6tables" };
            lab.server().sh(&format!("{tables} -A INPUT -p tcp --dport 7002 -j DROP")).unwrap();
            let found =
                Scan::Syn.run(lab.other(), lab.server(), family, &[7000, 7001, 7002]).unwrap();
            let states: Vec<_> = found.values().map(|port| port.state.as_str()).collect();
            assert_eq!(states, ["open", "closed", "filtered"]);
            let reasons: Vec<_> = found.values().map(|port| port.reason.as_str()).collect();
            assert_eq!(reasons, ["syn-ack", "reset", "no-response"]);
        }
    }
}
