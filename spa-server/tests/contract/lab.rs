//! A lab: clients and a server on one link, another host behind the server, and gates on the server.

use crate::gates::LiveGate;
use crate::probe::{Flow, Probe, Session, misjudged};
use crate::services::Services;
use crate::space::Space;
use crate::subject::{Subject, Variant};
use spa_proto::PortRange;
use spa_server::gate::{
    Backend, Change, Element, Guarded, LiveElement, Mode, Plan, Refusal, ToolOverrides,
};
use spa_server::service::{Forward, ForwardTo, Target};
use std::fmt::Write as _;
use std::net::SocketAddr;
use tempfile::TempDir;

/// Indices of IPv4 and IPv6 in pairs of addresses.
pub(crate) const BOTH: [usize; 2] = [0, 1];

pub(crate) const SERVER: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];
/// Who is granted something.
pub(crate) const CLIENT: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
/// Who has an address in the same network.
pub(crate) const NEIGHBOUR: [&str; 2] = ["192.0.2.3", "2001:db8:1::3"];
/// The network of these two.
pub(crate) const NETWORK: [&str; 2] = ["192.0.2.0/24", "2001:db8:1::/64"];
/// Who comes from elsewhere.
pub(crate) const STRANGER: [&str; 2] = ["203.0.113.3", "2001:db8:3::3"];
/// The host behind the server.
pub(crate) const INNER: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];
/// The server, as the host behind it sees it.
pub(crate) const INSIDE: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];
/// Networks of which every address is the clients'.
pub(crate) const MANY: [&str; 2] = ["10.77.0.0/16", "2001:db8:77::/64"];

const SERVER_TCP: [u16; 7] = [22, 80, 7000, 7001, 7002, 7003, 8022];
const SERVER_UDP: [u16; 7] = [53, 5000, 9000, 10000, 10050, 10100, 10101];
const INNER_TCP: [u16; 5] = [22, 80, 7000, 7001, 7002];
const INNER_UDP: [u16; 2] = [5000, 10050];

/// The machines.
///
/// The link to the inner host is a bridge, as that of a container engine.
pub(crate) struct Lab {
    pub(crate) subject: &'static Subject,
    pub(crate) clients: Space,
    pub(crate) server: Space,
    pub(crate) inner: Space,
    pub(crate) at_server: Services,
    pub(crate) at_inner: Services,
    pub(crate) scripts: TempDir,
}

impl Lab {
    pub(crate) fn new(subject: &'static Subject) -> Self {
        let [clients, server, inner] = [(); 3].map(|()| Space::new());
        server.ip(&format!(
            "link add ext type veth peer name up netns {}\n\
             link add int type veth peer name up netns {}\n\
             link add inside type bridge\n\
             link set dev int up master inside\n",
            clients.path(),
            inner.path(),
        ));
        clients.ip(&addresses("up", [CLIENT, NEIGHBOUR]));
        server.ip(&(addresses("ext", [SERVER]) + &addresses("inside", [INSIDE])));
        inner.ip(&addresses("up", [INNER]));
        clients.ip(&addresses("lo", [STRANGER]));
        for family in BOTH {
            clients.ip(&format!(
                "route add default via {}\nroute add local {} dev lo\n",
                SERVER[family], MANY[family]
            ));
            server.ip(&format!(
                "route add {} via {}\nroute add {} via {}\n",
                STRANGER[family], CLIENT[family], MANY[family], CLIENT[family]
            ));
            inner.ip(&format!("route add default via {}\n", INSIDE[family]));
        }
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // The kernel would else tell only the first few senders that a port is closed.
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            server.set(key, value);
        }
        // Of these networks every address is theirs, without being one of an interface's.
        clients.set("ipv6/ip_nonlocal_bind", "1");
        let at_server = Services::start("server", &server, &SERVER_TCP, &SERVER_UDP);
        let at_inner = Services::start("inner", &inner, &INNER_TCP, &INNER_UDP);
        let scripts = tempfile::tempdir().unwrap();
        let lab = Self { subject, clients, server, inner, at_server, at_inner, scripts };
        lab.await_links();
        if subject.backend == Backend::Hook {
            crate::outside::write_commands(&lab);
        }
        lab
    }

    /// Links and neighbours take a moment until they carry the first packet. All paths answer
    /// before anything is tried.
    fn await_links(&self) {
        use crate::probe::{Seen, both, probe};
        let mut probes =
            [both(CLIENT, "tcp/80", Seen::Open), both(STRANGER, "tcp/80", Seen::Open)].concat();
        for family in BOTH {
            let inner = Seen::At("inner", 80);
            probes.push(probe(CLIENT[family], INNER[family], "tcp/80", inner));
        }
        self.see(&[&probes]);
    }

    /// A gate as the daemon would make it: nothing of those before it is known to it.
    pub(crate) fn gate(&self) -> LiveGate {
        self.gate_with(self.subject.tools())
    }

    /// A gate that uses these tools.
    pub(crate) fn gate_with(&self, tools: ToolOverrides) -> LiveGate {
        if self.subject.backend == Backend::Hook {
            crate::outside::await_end(self);
        }
        LiveGate::new(&self.server, self.subject.settings(tools, self.scripts.path())).unwrap()
    }

    /// A gate that has installed this plan.
    #[track_caller]
    pub(crate) fn installed(&self, plan: &Plan) -> LiveGate {
        if self.subject.backend == Backend::Hook {
            crate::outside::guard(self, plan);
        }
        let gate = self.gate();
        gate.install(plan).unwrap();
        gate
    }

    /// Looks at ports, all at once; every look must see what it expects.
    #[track_caller]
    pub(crate) fn see(&self, probes: &[&[Probe]]) {
        let wrong = misjudged(&self.clients, &probes.concat());
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), self.rules_for_a_message());
    }

    fn rules_for_a_message(&self) -> String {
        let save = self.subject.variant.commands()[0].clone() + "-save";
        self.server.run(&save) + &self.server.run("nft -s list ruleset")
    }

    /// A connection of the client's to the server's port.
    #[track_caller]
    pub(crate) fn session(&self, who: [&str; 2], family: usize, port: u16) -> Session {
        Session::open(&self.clients, at(who[family], 0), at(SERVER[family], port)).unwrap()
    }

    /// Datagrams of somebody's to the server's port.
    pub(crate) fn flow(&self, who: [&str; 2], family: usize, port: u16) -> Flow {
        Flow::new(&self.clients, who[family].parse().unwrap(), at(SERVER[family], port))
    }

    /// Runs rules through `iptables` and `ip6tables` on the server.
    #[track_caller]
    pub(crate) fn rules(&self, rules: &[&str]) {
        self.rules_of(self.subject.variant, rules);
    }

    /// Runs rules through a variant of `iptables` and `ip6tables` on the server.
    #[track_caller]
    pub(crate) fn rules_of(&self, variant: Variant, rules: &[&str]) {
        for command in variant.commands() {
            for rule in rules {
                self.server.run(&format!("{command} -w 5 {rule}"));
            }
        }
    }

    /// All rules of both variants and of nft, and all sets, as text; without comments, counters
    /// and what is left of times, and without the tables that hold nothing, which the tools make
    /// in passing.
    pub(crate) fn ruleset(&self) -> String {
        let mut text = String::new();
        for variant in Variant::BOTH {
            for command in variant.commands() {
                let saved = self.server.run(&format!("{command}-save"));
                for table in saved.split_inclusive("COMMIT\n") {
                    let lines = table.lines().filter(|line| !line.starts_with('#'));
                    let mut lines: Vec<_> = lines.map(timeless).collect();
                    // Grants that are rules stand in the order in which they came.
                    let is_grant = |line: &String| line.contains(GRANT);
                    lines.chunk_by_mut(|a, b| is_grant(a) && is_grant(b)).for_each(<[_]>::sort);
                    let is_plain = |line: &String| {
                        line.starts_with('*') || line == "COMMIT" || line.ends_with(" ACCEPT")
                    };
                    if !lines.iter().all(is_plain) {
                        let _ = writeln!(text, "{command} {}", lines.join("\n"));
                    }
                }
            }
        }
        let sets = self.server.run("ipset save");
        let mut lines: Vec<_> =
            sets.lines().map(|line| line.split(" timeout ").next().unwrap()).collect();
        lines.sort_unstable();
        text + &lines.join("\n") + "\n" + &native(&self.server.run("nft -s list ruleset"))
    }
}

/// How the comment of a rule begins that is a grant; it ends in a colon and a time.
const GRANT: &str = "--comment \"spa:";

/// A line of rules or elements without its counters, and without when it ends.
fn timeless(line: &str) -> String {
    let line = line.split(" [").next().unwrap_or_default();
    let mut words = line.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        let until = word.strip_suffix('"').filter(|_| line.contains(GRANT));
        kept.push(until.and_then(|word| word.rsplit_once(':')).map_or(word, |(word, _)| word));
        if matches!(word, "expires" | "--datestop") {
            words.next();
        }
    }
    kept.join(" ")
}

/// What `nft` prints, but for the tables of iptables, what is left of times, and a comment that
/// is a digest of it all. Sets and chains, which it prints in the order of their making, are in
/// the order of their names.
fn native(ruleset: &str) -> String {
    let mut text = String::new();
    let mut of_iptables = false;
    let mut blocks: Vec<String> = Vec::new();
    for line in ruleset.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(table) = line.strip_prefix("table ") {
            let tables = ["filter", "mangle", "nat", "raw", "security"];
            let [family, name] = [0, 1].map(|at| table.split(' ').nth(at).unwrap());
            of_iptables = family != "inet" && tables.contains(&name);
        }
        if of_iptables {
            continue;
        }
        if line == "}" {
            blocks.sort();
            text.extend(std::mem::take(&mut blocks));
        }
        let line = timeless(line.split(" comment \"spa-server ").next().unwrap_or_default());
        match blocks.last_mut() {
            _ if line.starts_with("\tset ") || line.starts_with("\tchain ") => {
                blocks.push(line + "\n");
            }
            Some(block) => _ = writeln!(block, "{line}"),
            None => _ = writeln!(text, "{line}"),
        }
    }
    text
}

fn addresses<const N: usize>(link: &str, hosts: [[&str; 2]; N]) -> String {
    let mut lines = format!("link set dev {link} up\n");
    for [four, six] in hosts {
        let length = if link == "lo" { [32, 128] } else { [24, 64] };
        let _ = writeln!(lines, "address add {four}/{} dev {link}", length[0]);
        let _ = writeln!(lines, "address add {six}/{} dev {link} nodad", length[1]);
    }
    lines
}

/// Two rulesets are the same; else, in which lines they differ.
#[track_caller]
pub(crate) fn assert_same(found: &str, wanted: &str, about: &dyn std::fmt::Display) {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (found, wanted) = (lines(found), lines(wanted));
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    let at = found.iter().zip(&wanted).position(|(one, other)| one != other);
    assert!(
        found == wanted,
        "{about}: from line {at:?} of {}\n--- too much:\n{}\n--- missing:\n{}",
        found.join("\n"),
        only(&found, &wanted),
        only(&wanted, &found)
    );
}

/// An address with a port.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// A plan that guards these ports.
pub(crate) fn plan(guarded: &[&str]) -> Plan {
    Plan {
        mode: Mode::Guard,
        refusal: Refusal::Drop,
        guarded: guarded.iter().map(|p| Guarded::plain(ports(p))).collect(),
        knock_ports: vec![62201],
        always_admit: Vec::new(),
        max_elements: 1024,
        trial_seconds: None,
    }
}

pub(crate) fn ports(text: &str) -> PortRange {
    text.parse().unwrap()
}

pub(crate) fn element(source: &str, port: &str) -> Element {
    Element { source: source.parse().unwrap(), ports: ports(port) }
}

/// Admits both addresses, or networks, of somebody.
pub(crate) fn admit(who: [&str; 2], port: &str, seconds: u32) -> Vec<Change> {
    who.map(|source| Change::Admit { element: element(source, port), seconds }).to_vec()
}

pub(crate) fn withdraw(who: [&str; 2], port: &str) -> Vec<Change> {
    who.map(|source| Change::Withdraw { element: element(source, port) }).to_vec()
}

/// To the host behind the server, over both families.
pub(crate) fn forward(port: Option<u16>, masquerade: bool) -> Target {
    let port = port.map(|port| port.try_into().unwrap());
    let [v4, v6] = INNER.map(|address| Some(ForwardTo { address: address.parse().unwrap(), port }));
    Target::Forward(Forward { v4, v6, masquerade })
}

/// What of these is admitted, in order and without times.
pub(crate) fn elements(live: &[LiveElement]) -> Vec<Element> {
    let mut elements: Vec<_> = live.iter().map(|live| live.element).collect();
    elements.sort_unstable();
    elements
}

/// What a gate admits after it was asked to, in order.
pub(crate) fn admitted(changes: &[&[Change]]) -> Vec<Element> {
    let mut elements: Vec<_> = changes.concat().iter().map(Change::element).collect();
    elements.sort_unstable();
    elements
}
