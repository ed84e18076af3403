//! What refuses the packets of single connections, for a while. Pure.
//!
//! It is a table of its own: it comes and goes in one transaction, and what an installation does
//! to the gate's table leaves it alone. A drop or a reject ends a packet's way whatever other tables
//! accept. A reset passes: it is what ends a connection, and the answers of these rules are
//! resets, too.
//!
//! Packets from the peer are refused before any address translation, by the end that the peer knows;
//! packets to the peer by the end that they come from, which is translated back only later. So they
//! are known with an entry of connection tracking and without.

use crate::gate::types::{Connection, Cut, Family, MAX_CUT_SECONDS};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

/// Family and name of the table.
pub(super) const TABLE: &str = "inet spa-cut";

const CHAINS: &str = "\
\tchain refuse {
\t\tmeta l4proto tcp reject with tcp reset
\t\tdrop
\t}
\tchain prerouting {
\t\ttype filter hook prerouting priority mangle - 1; policy accept;
\t\ttcp flags & rst == rst accept
\t\tip saddr . th sport . ip daddr . th dport . meta l4proto @asked4 goto refuse
\t\tip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @asked6 goto refuse
\t}
\tchain forward {
\t\ttype filter hook forward priority mangle - 1; policy accept;
\t\ttcp flags & rst == rst accept
\t\tip saddr . th sport . ip daddr . th dport . meta l4proto @answers4 goto refuse
\t\tip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @answers6 goto refuse
\t}
\tchain output {
\t\ttype filter hook output priority mangle - 1; policy accept;
\t\ttcp flags & rst == rst accept
\t\tip saddr . th sport . ip daddr . th dport . meta l4proto @answers4 goto refuse
\t\tip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @answers6 goto refuse
\t}
";

/// The script that refuses these connections, and none that was refused before.
pub(super) fn sever(cuts: &[Cut]) -> String {
    let mut text = lift();
    let _ = writeln!(text, "table {TABLE} {{");
    for (family, digit, address) in [(Family::V4, '4', "ipv4_addr"), (Family::V6, '6', "ipv6_addr")]
    {
        let mut asked = BTreeSet::new();
        let mut answers = BTreeSet::new();
        for Cut { connection: Connection { transport, peer, local }, answered_from } in cuts {
            if Family::of(peer.ip()) != family {
                continue;
            }
            let way = |from: &SocketAddr, to: &SocketAddr| {
                let (from_port, to_port) = (from.port(), to.port());
                format!("{} . {from_port} . {} . {to_port} . {transport}", from.ip(), to.ip())
            };
            asked.insert(way(peer, local));
            answers.insert(way(answered_from, peer));
        }
        let end = format!("{address} . inet_service");
        for (name, elements) in [("asked", asked), ("answers", answers)] {
            let name = format!("{name}{digit}");
            text.push_str(&set(&name, &format!("{end} . {end} . inet_proto"), &elements));
        }
    }
    text.push_str(CHAINS);
    text.push_str("}\n");
    text
}

/// The script that refuses none for its own sake any more.
pub(super) fn lift() -> String {
    // Made if it isn't there, so that deleting it can't fail.
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// Whether the table is in what `nft -j list ruleset` prints.
pub(super) fn is_in(json: &str) -> Result<bool, String> {
    let ruleset: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let objects = ruleset.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let name = |table: &Value| {
        let field = |key| table.get(key).and_then(Value::as_str).unwrap_or_default();
        format!("{} {}", field("family"), field("name"))
    };
    Ok(objects.filter_map(|object| object.get("table")).any(|table| name(table) == TABLE))
}

fn set(name: &str, key: &str, elements: &BTreeSet<String>) -> String {
    let elements: Vec<_> = elements.iter().map(String::as_str).collect();
    let elements = match elements.as_slice() {
        [] => String::new(),
        some => format!("\t\telements = {{ {} }}\n", some.join(", ")),
    };
    format!(
        "\tset {name} {{\n\t\ttype {key}\n\t\tflags timeout\n\t\ttimeout {MAX_CUT_SECONDS}s\n{elements}\t}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use spa_proto::Transport;

    #[test]
    fn both_directions_of_a_connection_are_refused() {
        let cut = |transport, peer: &str, local: &str, answered_from: &str| Cut {
            connection: Connection {
                transport,
                peer: peer.parse().unwrap(),
                local: local.parse().unwrap(),
            },
            answered_from: answered_from.parse().unwrap(),
        };
        let script = sever(&[
            cut(Transport::Tcp, "192.0.2.1:54321", "192.0.2.2:22", "192.0.2.2:22"),
            cut(Transport::Tcp, "192.0.2.1:54321", "192.0.2.2:22", "192.0.2.2:22"),
            cut(Transport::Udp, "[2001:db8::1]:5", "[2001:db8::2]:53", "[2001:db8:7::2]:5353"),
        ]);
        insta::assert_snapshot!(script, @"
        add table inet spa-cut
        delete table inet spa-cut
        table inet spa-cut {
        	set asked4 {
        		type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto
        		flags timeout
        		timeout 600s
        		elements = { 192.0.2.1 . 54321 . 192.0.2.2 . 22 . tcp }
        	}
        	set answers4 {
        		type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto
        		flags timeout
        		timeout 600s
        		elements = { 192.0.2.2 . 22 . 192.0.2.1 . 54321 . tcp }
        	}
        	set asked6 {
        		type ipv6_addr . inet_service . ipv6_addr . inet_service . inet_proto
        		flags timeout
        		timeout 600s
        		elements = { 2001:db8::1 . 5 . 2001:db8::2 . 53 . udp }
        	}
        	set answers6 {
        		type ipv6_addr . inet_service . ipv6_addr . inet_service . inet_proto
        		flags timeout
        		timeout 600s
        		elements = { 2001:db8:7::2 . 5353 . 2001:db8::1 . 5 . udp }
        	}
        	chain refuse {
        		meta l4proto tcp reject with tcp reset
        		drop
        	}
        	chain prerouting {
        		type filter hook prerouting priority mangle - 1; policy accept;
        		tcp flags & rst == rst accept
        		ip saddr . th sport . ip daddr . th dport . meta l4proto @asked4 goto refuse
        		ip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @asked6 goto refuse
        	}
        	chain forward {
        		type filter hook forward priority mangle - 1; policy accept;
        		tcp flags & rst == rst accept
        		ip saddr . th sport . ip daddr . th dport . meta l4proto @answers4 goto refuse
        		ip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @answers6 goto refuse
        	}
        	chain output {
        		type filter hook output priority mangle - 1; policy accept;
        		tcp flags & rst == rst accept
        		ip saddr . th sport . ip daddr . th dport . meta l4proto @answers4 goto refuse
        		ip6 saddr . th sport . ip6 daddr . th dport . meta l4proto @answers6 goto refuse
        	}
        }
        ");
    }
}
