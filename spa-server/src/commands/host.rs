//! What there is to know about this host: sshd's ports, capabilities, the clock, the name.

use crate::process::Run;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

const SSHD: &str = "/usr/sbin/sshd";
const SSHD_CONFIG: &str = "/etc/ssh/sshd_config";
const TIMEDATECTL: &str = "/usr/bin/timedatectl";
/// None of these tools has anything to think about.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Runs a future that the gate or a tool needs.
pub(super) fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}

/// The ports that sshd listens on, as it says itself, or else as its configuration does; none
/// when there is no sshd.
pub(super) async fn sshd_ports() -> BTreeSet<u16> {
    if let Ok(said) = Run::new(Path::new(SSHD), &["-T"]).time_limit(TIME_LIMIT).output().await {
        let ports = ports_in_test_output(&said);
        if !ports.is_empty() {
            return ports;
        }
    }
    match fs::read_to_string(SSHD_CONFIG) {
        Ok(config) => {
            let ports = ports_in_config(&config);
            if ports.is_empty() { [22].into() } else { ports }
        }
        Err(_) => BTreeSet::new(),
    }
}

/// What `sshd -T` prints: the addresses that it listens on have the ports in them.
fn ports_in_test_output(text: &str) -> BTreeSet<u16> {
    let of = |key: &str, separator: char| -> BTreeSet<u16> {
        text.lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
            .filter_map(|value| value.rsplit(separator).next()?.trim().parse().ok())
            .filter(|port| *port != 0)
            .collect()
    };
    let listening = of("listenaddress", ':');
    if listening.is_empty() { of("port", ' ') } else { listening }
}

/// `Port` lines of `sshd_config` itself.
fn ports_in_config(text: &str) -> BTreeSet<u16> {
    let mut words = text.lines().map(|line| line.split([' ', '\t', '=']).filter(|w| !w.is_empty()));
    words
        .by_ref()
        .map_while(|mut words| match words.next() {
            Some(key) if key.eq_ignore_ascii_case("match") => None,
            Some(key) if key.eq_ignore_ascii_case("port") => Some(words.next()),
            _ => Some(None),
        })
        .flatten()
        .filter_map(|port| port.parse().ok())
        .filter(|port| *port != 0)
        .collect()
}

/// Whether the system says that its clock follows a time server; none when it doesn't say.
pub(super) async fn clock_is_synchronised() -> Option<bool> {
    let args = ["show", "--property=NTPSynchronized", "--value"];
    let run = Run::new(Path::new(TIMEDATECTL), &args).time_limit(TIME_LIMIT);
    match run.output().await.ok()?.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// A capability that the daemon needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) name: &'static str,
    pub(super) what_for: &'static str,
    bit: u32,
}

/// What the daemon needs (capabilities(7)).
pub(super) const CAPABILITIES: [Capability; 2] = [
    Capability { name: "CAP_NET_RAW", what_for: "to see knocks", bit: 13 },
    Capability { name: "CAP_NET_ADMIN", what_for: "to change the firewall", bit: 12 },
];

/// The capabilities that this process lacks; an error when it can't know.
pub(super) fn missing_capabilities() -> io::Result<Vec<Capability>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = effective_capabilities(&status).ok_or(io::ErrorKind::InvalidData)?;
    Ok(CAPABILITIES.into_iter().filter(|c| effective & (1 << c.bit) == 0).collect())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The name of this host, if it has a usable one.
pub(super) fn name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let usable = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    usable.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sshd_says_where_it_listens() {
        let ports = |text| Vec::from_iter(ports_in_test_output(text));
        assert_eq!(
            ports(
                "port 22\naddressfamily any\nlistenaddress [::]:2222\nlistenaddress 10.0.0.1:22\n"
            ),
            [22, 2222]
        );
        assert_eq!(ports("port 22\nport 2022\nusepam yes\nxport 9\n"), [22, 2022]);
        assert!(ports("listenaddress somewhere\nport 0\n").is_empty());
    }

    #[test]
    fn sshd_config_says_the_port() {
        let ports = |text| Vec::from_iter(ports_in_config(text));
        assert_eq!(ports("#Port 22\nPort 2222\nport=2022\n\tPORT 23\n"), [23, 2022, 2222]);
        assert_eq!(ports("Port 2222\nMatch User x\nPort 99\n"), [2222]);
        assert!(ports("PermitRootLogin no\nPort x\n").is_empty());
    }

    #[test]
    fn capabilities_are_read() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t0000000000003000\n";
        assert_eq!(effective_capabilities(status), Some(0x3000));
        assert_eq!(effective_capabilities("CapEff:\tmany\n"), None);
        assert_eq!(effective_capabilities(""), None);
        let needed: u64 = CAPABILITIES.iter().map(|capability| 1 << capability.bit).sum();
        assert_eq!(needed, 0x3000);
    }
}
