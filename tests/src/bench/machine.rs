//! On what, with which versions and when it was measured.

use super::results::Machine;
use crate::command::finish;
use crate::programs::foreign_program;
use std::ffi::OsStr;
use std::fs;
use std::process::Command;

/// Packages whose versions matter, where they are installed.
const PACKAGES: [&str; 6] =
    ["iptables", "ipset", "nftables", "fwknop-server", "knockd", "libpcap0.8"];

/// What Debian has no package of, and the program of it that tells the version, as the last word.
const FOREIGN: [(&str, &str); 2] = [("letmein", "letmeind"), ("ruroco", "ruroco-server")];

/// This machine, now. What can't be read is left empty.
pub(super) fn describe() -> Machine {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut versions = vec![("spa".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
    for package in PACKAGES {
        let version = said("dpkg-query", &["-W", "-f=${Version}", package]);
        if !version.is_empty() {
            versions.push((package.to_owned(), version));
        }
    }
    for (name, program) in FOREIGN {
        let words = foreign_program(program).map(|path| said(path, &["--version"]));
        if let Some(version) = words.unwrap_or_default().split_whitespace().last() {
            versions.push((name.to_owned(), version.to_owned()));
        }
    }
    Machine {
        date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        processor: field("/proc/cpuinfo", "model name"),
        processors,
        memory_mib: field("/proc/meminfo", "MemTotal")
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse::<u64>().ok())
            .map_or(0, |kib| kib / 1024),
        kernel: read("/proc/sys/kernel/osrelease"),
        system: field_of(&read("/etc/os-release"), "PRETTY_NAME", '=').trim_matches('"').to_owned(),
        versions,
        load: (load(), String::new()),
    }
}

/// The load average of the last minute.
pub(super) fn load() -> String {
    read("/proc/loadavg").split_whitespace().next().unwrap_or_default().to_owned()
}

fn said(program: impl AsRef<OsStr>, arguments: &[&str]) -> String {
    let finished = finish(Command::new(program).args(arguments));
    finished.ok().filter(crate::Finished::success).map(|f| f.stdout).unwrap_or_default()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    field_of(&read(path), name, ':')
}

fn field_of(text: &str, name: &str, separator: char) -> String {
    let lines = text.lines().filter_map(|line| line.split_once(separator));
    let found = lines.into_iter().find(|(key, _)| key.trim() == name);
    found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}
