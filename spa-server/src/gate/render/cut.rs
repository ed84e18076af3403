//! Rules that end connections: they refuse what else would be let in as established.

use crate::gate::types::{Connection, Cut, Family};
use spa_proto::Transport;
use std::net::SocketAddr;

/// The rules for these connections, those of this family.
pub fn cut(family: Family, cuts: &[Cut]) -> Vec<String> {
    cuts.iter()
        .filter(|cut| Family::of(cut.connection.peer.ip()) == family)
        .flat_map(refuse)
        .collect()
}

/// Refuses the packets of a connection, by the addresses that they have in table filter. Those from
/// the peer go to the end that answers, or, where nothing translates them any more, to the one that
/// the peer knows. Those to the peer come from the end that answers: that they do so by way of
/// another address is made so only later, and not at all when connection tracking has forgotten the
/// connection and the next packet begins a new one.
fn refuse(cut: &Cut) -> Vec<String> {
    let Cut { connection: Connection { transport, peer, local }, answered_from } = *cut;
    let mut ways = vec![(peer, answered_from), (answered_from, peer)];
    if local != answered_from {
        ways.push((peer, local));
    }
    ways.into_iter().map(|(from, to)| rule(transport, from, to)).collect()
}

/// Resets pass, those above all that these rules make themselves: they go out by way of OUTPUT.
fn rule(transport: Transport, from: SocketAddr, to: SocketAddr) -> String {
    let (flags, verdict) = match transport {
        Transport::Tcp => (" ! --tcp-flags RST RST", "REJECT --reject-with tcp-reset"),
        Transport::Udp => ("", "DROP"),
    };
    let length = if from.is_ipv4() { 32 } else { 128 };
    format!(
        "-s {}/{length} -d {}/{length} -p {transport} -m {transport} --sport {} --dport {}{flags} -j {verdict}",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    )
}
