//! All rules that a host has, written so that the same rules read the same: without comments and
//! counters, and without the empty base chains that iptables makes by being asked.

use crate::lab::Host;
use anyhow::{Result, ensure};
use std::fmt;

/// What prints rules in the form of `iptables-save`.
const SAVES: [&str; 4] =
    ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset(Vec<String>);

impl Ruleset {
    /// Reads both variants of iptables, nftables and the sets of ipset, of a host.
    pub fn of(host: &Host) -> Result<Self> {
        let mut lines = Vec::new();
        for save in SAVES {
            let saved = without_empty(&host.sh(save)?, &SAVED);
            lines.extend(saved.into_iter().map(|line| format!("{save}: {line}")));
        }
        let listed = without_empty(&host.sh("nft list ruleset")?, &LISTED);
        lines.extend(listed.into_iter().map(|line| format!("nft: {line}")));
        let sets = host.sh("ipset save")?;
        lines.extend(sets.lines().map(|line| format!("ipset: {line}")));
        Ok(Self(lines))
    }

    /// That this is the same as another one, which was read `when`.
    pub fn ensure_same_as(&self, before: &Self, when: &str) -> Result<()> {
        let missing = |these: &Self, those: &Self, sign: char| {
            let lines = these.0.iter().filter(|line| !those.0.contains(line));
            lines.map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
        };
        ensure!(
            self == before,
            "the rules are not what they were {when}, or not in that order:\n{}",
            [missing(before, self, '-'), missing(self, before, '+')].concat().join("\n")
        );
        Ok(())
    }

    /// Whether it has a line that contains `text`.
    pub fn mentions(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// What begins and ends a table, and what an empty base chain looks like in it.
struct Form {
    is_table: fn(&str) -> bool,
    is_end: fn(&str) -> bool,
    empty_chain: fn(&[String]) -> Option<usize>,
}

/// `*filter`, `:INPUT ACCEPT [0:0]`, `COMMIT`
const SAVED: Form = Form {
    is_table: |line| line.starts_with('*'),
    is_end: |line| line == "COMMIT",
    empty_chain: |lines| {
        let is_used = |chain: &str| {
            let rule = format!("-A {chain} ");
            lines.iter().any(|line| line.starts_with(&rule))
        };
        lines.iter().position(|line| {
            let mut words = line.strip_prefix(':').unwrap_or_default().split(' ');
            let chain = words.next().unwrap_or_default();
            words.next() == Some("ACCEPT") && !is_used(chain)
        })
    },
};

/// `table ip filter {`, `chain INPUT {`, `type filter hook input priority filter; policy accept;`
const LISTED: Form = Form {
    is_table: |line| line.starts_with("table "),
    is_end: |line| line == "}",
    empty_chain: |_| None,
};

/// The lines of a listing, without what the module's text says, and without tables in which nothing
/// is left.
fn without_empty(text: &str, form: &Form) -> Vec<String> {
    let text = without_empty_chains_of_nft(text);
    let (mut all, mut table) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let line = without_counters(line);
        let (begins, ends) = ((form.is_table)(&line), (form.is_end)(&line));
        table.push(line);
        if begins {
            table.drain(..table.len() - 1);
        }
        if ends {
            while let Some(at) = (form.empty_chain)(&table) {
                table.remove(at);
            }
            if table.len() > 2 {
                all.append(&mut table);
            }
            table.clear();
        }
    }
    all
}

/// `nft` prints an empty base chain as three lines.
fn without_empty_chains_of_nft(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let mut kept = String::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let is_empty_chain = line.starts_with("\tchain ")
            && lines.get(at + 1).is_some_and(|next| {
                next.starts_with("\t\ttype ") && next.ends_with("policy accept;")
            })
            && lines.get(at + 2).is_some_and(|next| next.trim() == "}");
        if is_empty_chain {
            at += 3;
            continue;
        }
        kept.push_str(line);
        kept.push('\n');
        at += 1;
    }
    kept
}

/// `:INPUT ACCEPT [12:3400]`, `counter packets 12 bytes 3400`
fn without_counters(line: &str) -> String {
    if line.starts_with(':') {
        return line.split(" [").next().unwrap_or(line).to_owned();
    }
    let words: Vec<_> = line.split(' ').collect();
    let is = |at: Option<usize>, word: &str| {
        at.and_then(|at| words.get(at)).is_some_and(|found| found.trim_start() == word)
    };
    let is_count = |at: usize| {
        is(at.checked_sub(1), "packets") && is(at.checked_sub(2), "counter")
            || is(at.checked_sub(1), "bytes") && is(at.checked_sub(4), "counter")
    };
    let kept: Vec<_> =
        words.iter().enumerate().map(|(at, word)| if is_count(at) { "0" } else { *word }).collect();
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;

    #[test]
    fn only_comments_counters_and_empty_base_chains_are_left_out() {
        let saved = "# Generated\n*mangle\n:INPUT ACCEPT [1:2]\nCOMMIT\n*filter\n\
                     :INPUT DROP [3:4]\n:FORWARD ACCEPT [5:6]\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\n\
                     -A OUTPUT -j MINE\nCOMMIT\n";
        assert_eq!(
            without_empty(saved, &SAVED),
            ["*filter", ":INPUT DROP", ":OUTPUT ACCEPT", ":MINE -", "-A OUTPUT -j MINE", "COMMIT"]
        );
        let base = "\t\ttype filter hook input priority filter; policy accept;\n";
        let listed = format!(
            "table ip mangle {{\n\tchain INPUT {{\n{base}\t}}\n\n}}\ntable ip t {{\n\tchain in \
             {{\n{base}\t\tcounter packets 12 bytes 3400 accept\n\t}}\n\tchain own {{\n\t}}\n}}\n"
        );
        let kept = without_empty(&listed, &LISTED);
        assert_eq!(
            kept.iter().map(|line| line.trim()).collect::<Vec<_>>(),
            [
                "table ip t {",
                "chain in {",
                "type filter hook input priority filter; policy accept;",
                "counter packets 0 bytes 0 accept",
                "}",
                "chain own {",
                "}",
                "}"
            ]
        );
    }

    #[test]
    fn a_rule_a_chain_or_a_set_more_is_seen() {
        let lab = Lab::new().unwrap();
        let host = lab.server();
        let bare = Ruleset::of(host).unwrap();
        host.sh("iptables -t mangle -L").unwrap();
        host.sh("ip6tables-legacy -t raw -L").unwrap();
        Ruleset::of(host).unwrap().ensure_same_as(&bare, "before it was asked").unwrap();
        for (change, back) in [
            ("iptables -A INPUT -j ACCEPT", "iptables -D INPUT -j ACCEPT"),
            ("ip6tables-legacy -N MINE", "ip6tables-legacy -X MINE"),
            ("iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT"),
            ("nft add table inet mine { chain c { accept; } ; }", "nft delete table inet mine"),
            ("ipset create mine hash:ip", "ipset destroy mine"),
        ] {
            host.sh(change).unwrap();
            let error = Ruleset::of(host).unwrap().ensure_same_as(&bare, "before");
            assert!(error.is_err(), "{change}");
            host.sh(back).unwrap();
            Ruleset::of(host).unwrap().ensure_same_as(&bare, "before").unwrap();
        }
    }
}
