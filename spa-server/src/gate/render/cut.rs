//! Rules that end connections: they refuse what else would be let in as established.

use crate::gate::types::{Connection, Family};
use spa_proto::Transport;

/// The rules for these connections, those of this family.
pub fn cut(family: Family, connections: &[Connection]) -> Vec<String> {
    connections
        .iter()
        .filter(|connection| Family::of(connection.peer.ip()) == family)
        .flat_map(refuse)
        .collect()
}

/// Refuses the packets of a connection: from the peer by the ends that it knows, whatever has been
/// translated since; to the peer, from whomever.
///
/// Resets pass, those above all that these rules make themselves: they go out by way of OUTPUT.
fn refuse(connection: &Connection) -> [String; 2] {
    let Connection { transport, peer, local } = connection;
    let (flags, verdict) = match transport {
        Transport::Tcp => (" ! --tcp-flags RST RST", "REJECT --reject-with tcp-reset"),
        Transport::Udp => ("", "DROP"),
    };
    let length = if peer.is_ipv4() { 32 } else { 128 };
    let (ip, port) = (peer.ip(), peer.port());
    [
        format!(
            "-s {ip}/{length} -p {transport} -m {transport} --sport {port}{flags} -m conntrack --ctorigdst {} --ctorigdstport {} -j {verdict}",
            local.ip(),
            local.port()
        ),
        format!(
            "-d {ip}/{length} -p {transport} -m {transport} --dport {port}{flags} -j {verdict}"
        ),
    ]
}
