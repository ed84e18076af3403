//! Rules that end connections: they refuse what else would be let in as established, and stand before
//! all that admits. So each says itself until when it counts, should nobody be there to lift it. That is
//! a time of the clock on the wall; one that is set forward ends them early, when what they are to
//! refuse is mostly gone.

use super::held::datestop;
use crate::gate::types::{Connection, Cut, Family};
use spa_proto::Transport;
use std::net::SocketAddr;

/// A connection that is being cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutRule {
    /// Which one.
    pub cut: Cut,
    /// The last second in which it is refused, in Unix time.
    pub until: u64,
}

/// The rules for these connections, those of this family.
pub fn cut(family: Family, cuts: &[CutRule]) -> Vec<String> {
    cuts.iter()
        .filter(|rule| Family::of(rule.cut.connection.peer.ip()) == family)
        .flat_map(refuse)
        .collect()
}

/// Refuses the packets of a connection, by the addresses that they have in table filter. Those from
/// the peer go to the end that answers, or, where nothing translates them any more, to the one that
/// the peer knows. Those to the peer come from the end that answers: that they do so by way of
/// another address is made so only later, and not at all when connection tracking has forgotten the
/// connection and the next packet begins a new one.
fn refuse(rule: &CutRule) -> Vec<String> {
    let CutRule { cut: Cut { connection, answered_from }, until } = *rule;
    let Connection { transport, peer, local } = connection;
    let mut ways = vec![(peer, answered_from), (answered_from, peer)];
    if local != answered_from {
        ways.push((peer, local));
    }
    ways.into_iter().map(|(from, to)| way(transport, from, to, until)).collect()
}

/// Resets pass, those above all that these rules make themselves: they go out by way of OUTPUT.
fn way(transport: Transport, from: SocketAddr, to: SocketAddr, until: u64) -> String {
    let (flags, verdict) = match transport {
        Transport::Tcp => (" ! --tcp-flags RST RST", "REJECT --reject-with tcp-reset"),
        Transport::Udp => ("", "DROP"),
    };
    let length = if from.is_ipv4() { 32 } else { 128 };
    format!(
        "-s {}/{length} -d {}/{length} -p {transport} -m {transport} --sport {} --dport {}{flags} {} -j {verdict}",
        from.ip(),
        to.ip(),
        from.port(),
        to.port(),
        datestop(until)
    )
}
