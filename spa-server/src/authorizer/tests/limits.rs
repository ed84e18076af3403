//! Limits hold also among what arrives together.

use super::*;
use std::net::Ipv4Addr;

const MAX_SOURCES: u32 = 16;

fn server_with(max_grants: usize) -> Server {
    let mut server = server();
    let rate = Rate { per_minute: 6000, burst: 1000 };
    let rules = ClientRules { rate, max_sources: MAX_SOURCES, ..rules() };
    server.judge.lock().policy = policy(rules);
    server.authorizer.set_max_grants(max_grants);
    server
}

/// Knocks for `service`, each from an address of its own, from this one on.
fn from_each(server: &Server, service: &str, addresses: std::ops::Range<u8>) -> Vec<Candidate> {
    let knock = |last: u8| {
        let mut candidate = server.candidate(last, service);
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
        let knocks = from_each(&server, "ssh", 1..31);
        admit(&mut server, knocks, together).await;
        assert_eq!(server.kernel.admits().len(), 16, "together: {together}");
        assert_eq!(server.dropped("max-sources"), Some(14), "together: {together}");
        // Another service for a source that is in already is no source more.
        let knocks = from_each(&server, "web", 10..20);
        let again = knocks.into_iter().map(|mut knock| {
            knock.knock.nonce = Nonce([knock.knock.nonce.0[0] + 100; 24]);
            knock
        });
        let again = again.collect();
        admit(&mut server, again, together).await;
        assert_eq!(server.kernel.admits().len(), 16 + 7, "together: {together}");
        assert_eq!(server.dropped("max-sources"), Some(14 + 3), "together: {together}");
    }
}

#[tokio::test]
async fn there_are_so_many_grants_however_the_knocks_arrive() {
    for together in [false, true] {
        let mut server = server_with(5);
        let knocks = from_each(&server, "ssh", 1..9);
        admit(&mut server, knocks, together).await;
        assert_eq!(server.kernel.admits().len(), 5, "together: {together}");
        assert_eq!(server.dropped("max-grants"), Some(3), "together: {together}");
        // To refresh one needs no room.
        let mut again = from_each(&server, "ssh", 1..6);
        for knock in &mut again {
            knock.knock.nonce = Nonce([knock.knock.nonce.0[0] + 100; 24]);
        }
        admit(&mut server, again, together).await;
        assert_eq!(server.dropped("max-grants"), Some(3), "together: {together}");
        let accepted = server.counters.accepted.load(Ordering::Relaxed);
        assert_eq!(accepted, 5 + 5, "together: {together}");
    }
}
