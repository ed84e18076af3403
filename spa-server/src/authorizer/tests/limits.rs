//! Limits hold also among what arrives together.

use super::*;
use std::net::Ipv4Addr;
use std::ops::Range;

const MAX_SOURCES: u32 = 16;

fn server_with(max_grants: usize) -> Server {
    let mut server = server();
    let rate = Rate { per_minute: 6000, burst: 1000 };
    let rules = ClientRules { rate, max_sources: MAX_SOURCES, ..rules() };
    server.judge.lock().policy = policy(rules);
    server.authorizer.set_max_grants(max_grants);
    server
}

/// Knocks for `service`, each from one of these addresses; those of another `round` are others.
fn from_each(server: &Server, service: &str, addresses: Range<u8>, round: u8) -> Vec<Candidate> {
    let knock = |last: u8| {
        let mut candidate = server.candidate(last + 100 * round, service);
        candidate.knock.source = Ipv4Addr::new(192, 0, 2, last).into();
        candidate
    };
    addresses.map(knock).collect()
}

async fn admit(server: &mut Server, knocks: Vec<Candidate>, together: bool) {
    if together {
        server.authorizer.admit(knocks).await;
    } else {
        for knock in knocks {
            server.authorizer.admit(vec![knock]).await;
        }
    }
}

#[tokio::test]
async fn one_client_opens_for_so_many_sources_however_its_knocks_arrive() {
    for together in [false, true] {
        let mut server = server_with(100);
        let knocks = from_each(&server, "ssh", 1..31, 0);
        admit(&mut server, knocks, together).await;
        assert_eq!(server.kernel.admits().len(), 16, "together: {together}");
        assert_eq!(server.dropped("max-sources"), Some(14), "together: {together}");
        // Another service for a source that is in already is no source more.
        let again = from_each(&server, "web", 10..20, 1);
        admit(&mut server, again, together).await;
        assert_eq!(server.kernel.admits().len(), 16 + 7, "together: {together}");
        assert_eq!(server.dropped("max-sources"), Some(14 + 3), "together: {together}");
    }
}

#[tokio::test]
async fn there_are_so_many_grants_however_the_knocks_arrive() {
    for together in [false, true] {
        let mut server = server_with(5);
        let knocks = from_each(&server, "ssh", 1..9, 0);
        admit(&mut server, knocks, together).await;
        assert_eq!(server.kernel.admits().len(), 5, "together: {together}");
        assert_eq!(server.dropped("max-grants"), Some(3), "together: {together}");
        // To refresh one needs no room.
        let again = from_each(&server, "ssh", 1..6, 1);
        admit(&mut server, again, together).await;
        assert_eq!(server.dropped("max-grants"), Some(3), "together: {together}");
        let accepted = server.counters.accepted.load(Ordering::Relaxed);
        assert_eq!(accepted, 5 + 5, "together: {together}");
    }
}
