//! The rules and sets of the gate as text for `iptables-restore`, `ipset` and `conntrack`. Pure.
//!
//! A table of ours is described whole ([`OwnTable`]); [`transition`] finds the batch that turns
//! what is there into what is wanted, and none if there is nothing to do. Rules are written just
//! as `iptables-save` prints them, so that the two can be compared.

use super::saved::{SavedTable, target};
use super::types::Connection;
use super::types::{Change, Family, LiveElement, Mode, Plan, Refusal};
use spa_proto::Transport;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// In table mangle: which packets are judged.
const GUARD: &str = "SPA-GUARD";
/// In table mangle: granted, established, or refused.
const JUDGE: &str = "SPA-JUDGE";
/// In table mangle: what happens to refused packets.
const REFUSE: &str = "SPA-REFUSE";
/// In table mangle, during an installation: keeps connection tracking on.
const TRACK: &str = "SPA-TRACK";
/// In table filter: what the host's own rules must not drop.
const INPUT: &str = "SPA-INPUT";
/// In table filter: catches refused packets that were translated to another host.
const FORWARD: &str = "SPA-FORWARD";
/// In table filter: the answer of a closed port.
const REJECT: &str = "SPA-REJECT";
/// Every chain that is ours. No other is ever touched.
const OWN_CHAINS: [&str; 7] = [GUARD, JUDGE, REFUSE, TRACK, INPUT, FORWARD, REJECT];
/// The packet mark of a refused packet on its way from the judgement in table mangle, the only
/// one before address translation, to table filter, the only one that can send a reset.
const MARK: &str = "0x20000000/0x20000000";

/// From which built-in chains chains of ours are jumped to.
const JUMPS: [(&str, &str); 3] = [("PREROUTING", GUARD), ("INPUT", INPUT), ("FORWARD", FORWARD)];

const KEPT: &str = "-m conntrack --ctstate RELATED,ESTABLISHED";

/// A table that holds chains of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// Judges before address translation.
    Mangle,
    /// Accepts and rejects.
    Filter,
}

impl TableName {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mangle, Self::Filter];

    /// The kernel's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Filter => "filter",
        }
    }
}

/// All that is ours in one table of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnTable {
    /// Our chains, each with its rules.
    chains: Vec<(&'static str, Vec<String>)>,
    /// From which built-in chains ours are jumped to, before all else.
    jumps: Vec<(&'static str, &'static str)>,
}

impl OwnTable {
    /// What is ours in a table as it stands, to come back to it later.
    pub fn of(saved: &SavedTable) -> Self {
        let chains: Vec<_> = OWN_CHAINS
            .into_iter()
            .filter(|chain| saved.has_chain(chain))
            .map(|chain| (chain, saved.rules(chain).to_vec()))
            .collect();
        let jumps =
            JUMPS.into_iter().filter(|(from, to)| saved.rules(from).contains(&jump(to))).collect();
        Self { chains, jumps }
    }

    /// Whether nothing is ours.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Names what is missing in a table, if anything: a chain, a rule, or our place before all
    /// else. Only the number of rules counts, since versions of the tools print them differently.
    pub fn missing_in(&self, saved: &SavedTable) -> Option<String> {
        for (chain, rules) in &self.chains {
            let found = saved.rules(chain).len();
            if !saved.has_chain(chain) || found != rules.len() {
                return Some(format!("chain {chain} has {found} rules of {}", rules.len()));
            }
        }
        self.jumps
            .iter()
            .find(|(from, to)| saved.rules(from).first() != Some(&jump(to)))
            .map(|(from, to)| format!("{from} doesn't begin with a jump to {to}"))
    }
}

/// What the plan wants in a table. `knock_ports` are those of the plan that no service uses.
pub fn wanted(family: Family, table: TableName, plan: &Plan, knock_ports: &[u16]) -> OwnTable {
    match (table, plan.mode) {
        (TableName::Mangle, Mode::Open) => OwnTable::default(),
        (TableName::Mangle, Mode::Guard) => mangle(family, plan, knock_ports),
        (TableName::Filter, Mode::Open) => filter(family, plan, None),
        (TableName::Filter, Mode::Guard) => filter(family, plan, Some(plan.refusal)),
    }
}

fn mangle(family: Family, plan: &Plan, knock_ports: &[u16]) -> OwnTable {
    // Forwarded packets are other hosts' business, but those to a published port of a container
    // are still addressed to this one; broadcasts and the like end here, too. In the IPv6 match
    // MULTICAST would have to be met *besides* one of the others (xt_addrtype.c).
    let elsewhere = match family {
        Family::V4 => "-m addrtype ! --dst-type LOCAL,BROADCAST,MULTICAST -j RETURN",
        Family::V6 => "! -d ff00::/8 -m addrtype ! --dst-type LOCAL,ANYCAST -j RETURN",
    };
    let mut guard = vec!["-i lo -j RETURN".to_owned(), elsewhere.to_owned()];
    let guarded = ports(plan);
    guard.extend(guarded.iter().copied().map(judge_port));
    guard.extend(
        knock_ports
            .iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter(|port| !guarded.contains(&(Transport::Udp, **port)))
            // An answer to a query that this host sent from this port by chance is still let in.
            .map(|port| {
                let port = match_port((Transport::Udp, *port));
                format!("{port} -m conntrack ! --ctstate RELATED,ESTABLISHED -j {REFUSE}")
            }),
    );
    let judge = vec![
        format!("-m set --match-set {} src,dst -j RETURN", set_name(family)),
        format!("{KEPT} -j RETURN"),
        format!("-j {REFUSE}"),
    ];
    let refuse = match plan.refusal {
        Refusal::Drop => vec!["-j DROP".to_owned()],
        // The accept ends the way through table mangle: no later rule there can take the mark off.
        Refusal::Reject => vec![format!("-j MARK --set-xmark {MARK}"), "-j ACCEPT".to_owned()],
    };
    OwnTable {
        chains: vec![(GUARD, guard), (JUDGE, judge), (REFUSE, refuse)],
        jumps: vec![("PREROUTING", GUARD)],
    }
}

fn filter(family: Family, plan: &Plan, refusal: Option<Refusal>) -> OwnTable {
    let rejects = refusal == Some(Refusal::Reject);
    let mut input = Vec::new();
    if rejects {
        input.push(format!("-m mark --mark {MARK} -j {REJECT}"));
    }
    input.push(format!("-m set --match-set {} src,dst -j ACCEPT", set_name(family)));
    input.extend(
        ports(plan).into_iter().map(|port| format!("{} {KEPT} -j ACCEPT", match_port(port))),
    );
    // Once more: somebody else's chain in between may have taken the mark off, and an address of
    // this host that isn't in the routing table "local" (a VRF has its own) passed as another
    // host's. What was translated to a guarded port was judged by the port that it had before.
    if let Some(refusal) = refusal {
        let refuse = if refusal == Refusal::Reject { REJECT } else { "DROP" };
        input.extend(ports(plan).into_iter().map(|port| {
            format!("! -i lo {} -m conntrack ! --ctstate DNAT -j {refuse}", match_port(port))
        }));
    }
    let mut own = OwnTable { chains: vec![(INPUT, input)], jumps: vec![("INPUT", INPUT)] };
    if rejects {
        let unreachable = match family {
            Family::V4 => "icmp-port-unreachable",
            Family::V6 => "icmp6-port-unreachable",
        };
        // Only what was translated was to this host at first: the marks of packets that it merely
        // forwards are other people's.
        let refused = format!("-m mark --mark {MARK} -m conntrack --ctstate DNAT -j {REJECT}");
        own.chains.push((FORWARD, vec![refused]));
        own.chains.push((
            REJECT,
            vec![
                "-p tcp -j REJECT --reject-with tcp-reset".to_owned(),
                format!("-j REJECT --reject-with {unreachable}"),
            ],
        ));
        own.jumps.push(("FORWARD", FORWARD));
    }
    own
}

fn ports(plan: &Plan) -> BTreeSet<(Transport, u16)> {
    plan.guarded.iter().map(|one| (one.ports.transport(), one.ports.first().get())).collect()
}

fn match_port((transport, number): (Transport, u16)) -> String {
    format!("-p {transport} -m {transport} --dport {number}")
}

fn judge_port(port: (Transport, u16)) -> String {
    format!("{} -j {JUDGE}", match_port(port))
}

fn jump(to: &str) -> String {
    format!("-j {to}")
}

/// The batch that turns on connection tracking and changes nothing else, or none if rules of ours
/// have turned it on already.
pub fn track(saved: &SavedTable) -> Option<String> {
    let tracks = saved.rules(JUDGE).iter().any(|rule| rule.contains("--ctstate"));
    (!tracks).then(|| format!("*mangle\n:{TRACK} - [0:0]\n-A {TRACK} {KEPT} -j RETURN\nCOMMIT\n"))
}

/// Whether the rules there judge the packets of a connection.
pub fn judges(saved: &SavedTable, connection: &Connection) -> bool {
    let rule = judge_port((connection.transport, connection.local.port()));
    track(saved).is_none() && saved.rules(GUARD).contains(&rule)
}

/// Ends a batch of [`track`], when other rules track.
pub const DISCARD_TRACK: &str = "*mangle\n:SPA-TRACK - [0:0]\n-X SPA-TRACK\nCOMMIT\n";

/// The batch that turns what is ours in a table into what is wanted; none if it is that already.
///
/// `:CHAIN` makes a chain or empties it, also with `--noflush`: it is only ever said of ours.
pub fn transition(table: TableName, saved: &SavedTable, wanted: &OwnTable) -> Option<String> {
    let is_wanted = |chain: &str| wanted.chains.iter().any(|(name, _)| *name == chain);
    let stale: Vec<_> = OWN_CHAINS
        .into_iter()
        .filter(|chain| saved.has_chain(chain) && !is_wanted(chain))
        .collect();
    let different: Vec<_> = wanted
        .chains
        .iter()
        .filter(|(chain, rules)| !saved.has_chain(chain) || saved.rules(chain) != rules)
        .collect();

    let mut lines = Vec::new();
    lines.extend(different.iter().map(|(chain, _)| format!(":{chain} - [0:0]")));
    for (chain, rules) in &different {
        lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
    }
    for (from, to) in &wanted.jumps {
        let rules = saved.rules(from);
        let ours = rules.iter().filter(|rule| **rule == jump(to)).count();
        if ours == 1 && rules.first() == Some(&jump(to)) {
            continue;
        }
        lines.extend((0..ours).map(|_| format!("-D {from} -j {to}")));
        lines.push(format!("-I {from} 1 -j {to}"));
    }
    for (from, to) in JUMPS {
        if is_wanted(to) && !wanted.jumps.contains(&(from, to)) {
            let ours = saved.rules(from).iter().filter(|rule| **rule == jump(to));
            lines.extend(ours.map(|rule| format!("-D {from} {rule}")));
        }
    }
    // A rule of anybody's that goes to a chain of ours can't stay when the chain goes.
    for chain in saved.chains().filter(|chain| !OWN_CHAINS.contains(chain)) {
        let to_stale = |rule: &&String| target(rule).is_some_and(|to| stale.contains(&to));
        lines.extend(saved.rules(chain).iter().filter(to_stale).map(|r| format!("-D {chain} {r}")));
    }
    lines.extend(stale.iter().map(|chain| format!("-F {chain}")));
    lines.extend(stale.iter().map(|chain| format!("-X {chain}")));

    if lines.is_empty() {
        return None;
    }
    Some(format!("*{}\n{}\nCOMMIT\n", table.as_str(), lines.join("\n")))
}

/// The name of the set of a family.
pub const fn set_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "spa4",
        Family::V6 => "spa6",
    }
}

/// The name under which a set is built that is to replace the one of a family.
pub const fn new_set_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "spa4-new",
        Family::V6 => "spa6-new",
    }
}

/// How ipset calls the family.
pub const fn set_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    }
}

/// The line that makes a set. `timeout 0` gives its elements a time of their own.
pub fn create_set(family: Family, name: &str, max_elements: u32) -> String {
    format!(
        "create {name} hash:ip,port family {} maxelem {max_elements} timeout 0\n",
        set_family(family)
    )
}

/// The batch that puts a set of another size, with the same elements, in the place of the one
/// that is there.
///
/// A second is added to what is left of each time, which the kernel rounds down: a time may grow
/// by a moment, and never shrinks.
pub fn resize_set(family: Family, max_elements: u32, elements: &[LiveElement]) -> String {
    let (name, new) = (set_name(family), new_set_name(family));
    let mut text = create_set(family, new, max_elements);
    for live in elements {
        let seconds = live.seconds_left.saturating_add(1).min(super::MAX_ELEMENT_SECONDS);
        let change = Change::Admit { element: live.element, seconds };
        push_change(&mut text, new, &change);
    }
    let _ = writeln!(text, "swap {new} {name}\ndestroy {new}");
    text
}

/// The batch that makes these changes.
pub fn changes(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        push_change(&mut text, set_name(Family::of(change.element().source.address())), change);
    }
    text
}

// Writing to a string can't fail.
fn push_change(text: &mut String, set: &str, change: &Change) {
    let super::Element { source, ports } = change.element();
    let (transport, number) = (ports.transport(), ports.first());
    let _ = match change {
        Change::Admit { seconds, .. } => {
            writeln!(text, "add {set} {source},{transport}:{number} timeout {seconds}")
        }
        Change::Withdraw { .. } => writeln!(text, "del {set} {source},{transport}:{number}"),
    };
}

/// How long connection tracking is told to remember a connection that may be idle: what the
/// kernel itself gives an established TCP connection, five days.
const TCP_SECONDS: u32 = 432_000;
/// What the kernel itself gives an answered UDP flow.
const UDP_SECONDS: u32 = 120;

/// The arguments by which `conntrack` enters an established connection, as a peer's packet would
/// have begun it.
pub fn enter_connection(connection: &Connection) -> String {
    let whole = match connection.transport {
        Transport::Tcp => format!("--state ESTABLISHED -t {TCP_SECONDS}"),
        Transport::Udp => format!("-t {UDP_SECONDS}"),
    };
    format!("-I {} {whole} -u SEEN_REPLY,ASSURED", tuple(connection))
}

/// The arguments by which `conntrack` makes an entry that is there already, perhaps of one packet
/// only, into that of an established connection.
pub fn confirm_connection(connection: &Connection) -> String {
    format!("-U {} -u SEEN_REPLY,ASSURED", tuple(connection))
}

fn tuple(connection: &Connection) -> String {
    let Connection { transport, peer, local } = connection;
    format!(
        "-p {transport} -s {} -d {} --sport {} --dport {}",
        peer.ip(),
        local.ip(),
        peer.port(),
        local.port()
    )
}

/// The size of a set of ours, from what `ipset list -t` says of it; else what is not ours in it.
pub fn own_set_size(family: Family, listed: &str) -> Result<u32, String> {
    let line = |key: &str| {
        let found = listed.lines().find_map(|line| line.strip_prefix(key));
        found.map(str::trim).ok_or_else(|| format!("no line {key:?}"))
    };
    let kind = line("Type:")?;
    if kind != "hash:ip,port" {
        return Err(format!("its type is {kind}"));
    }
    let header = line("Header:")?;
    let words: Vec<_> = header.split(' ').collect();
    let value = |key: &str| {
        let at = words.iter().position(|word| *word == key);
        at.and_then(|at| words.get(at + 1)).copied()
    };
    if value("family") != Some(set_family(family)) {
        return Err(format!("its family is not {}", set_family(family)));
    }
    if value("timeout") != Some("0") {
        return Err("its elements have no time limit of their own".to_owned());
    }
    value("maxelem").and_then(|size| size.parse().ok()).ok_or_else(|| "it has no size".to_owned())
}

/// The elements in what `ipset save` prints. One without an end has no seconds left.
pub fn read_elements(saved: &str) -> Vec<LiveElement> {
    saved.lines().filter_map(read_element).collect()
}

/// `add spa4 192.0.2.1,tcp:22 timeout 29`
fn read_element(line: &str) -> Option<LiveElement> {
    let mut words = line.strip_prefix("add ")?.split(' ').skip(1);
    let (source, port) = words.next()?.split_once(',')?;
    let ports = port.replacen(':', "/", 1).parse().ok()?;
    let element = super::Element { source: source.parse().ok()?, ports };
    let seconds_left = words.skip_while(|word| *word != "timeout").nth(1);
    Some(LiveElement { element, seconds_left: seconds_left.map_or(Some(0), |s| s.parse().ok())? })
}

#[cfg(test)]
mod tests;
