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

/// Has the server refuse this source from now on.
fn refuse(server: &Server, source: &str) {
    let now = BootMicros::now();
    let until = now.saturating_add(Duration::from_secs(600));
    server.judge.lock().refused.refuse(source.parse().unwrap(), until, now).unwrap();
}

#[tokio::test]
async fn a_knock_from_a_refused_source_costs_nothing_and_opens_when_that_is_over() {
    let mut server = server_with(100);
    let rate = Rate { per_minute: 1, burst: 1 };
    server.judge.lock().policy = policy(ClientRules { rate, ..rules() });
    let knock = server.candidate(1, "ssh");
    // It waited in the queue while somebody had its source refused.
    refuse(&server, "192.0.2.0/24");
    for _ in 0..3 {
        server.authorizer.admit(vec![knock.clone()]).await;
    }
    assert_eq!(server.dropped("source-refused"), Some(3));
    assert_eq!(server.counters.accepted.load(Ordering::Relaxed), 0);
    server.judge.lock().refused.lift("192.0.2.0/24".parse().unwrap(), BootMicros::now());
    // Neither its one token was taken, nor is it a replay.
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
}

#[tokio::test]
async fn a_refused_source_may_close() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    refuse(&server, "192.0.2.7");
    let mut close = server.candidate(2, "ssh");
    close.knock.request.message_type = MessageType::Close;
    server.authorizer.admit(vec![close]).await;
    assert!(server.kernel.admits().is_empty());
    assert_eq!(server.dropped("source-refused"), Some(0));
}

#[tokio::test]
async fn who_would_admit_a_refused_address_along_with_himself_is_refused() {
    let mut server = server();
    let prefixes = Prefixes { v4: 24, v6: 64 };
    server.judge.lock().policy = policy(ClientRules { prefixes, ..rules() });
    refuse(&server, "192.0.2.200");
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(server.dropped("source-refused"), Some(1));
    // The control: another network's.
    let mut knock = server.candidate(2, "ssh");
    knock.knock.source = Ipv4Addr::new(192, 0, 3, 7).into();
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.3.0/24"]);
}

#[tokio::test]
async fn a_grant_of_a_refused_source_is_not_taken_over_from_an_earlier_daemon() {
    let mut server = server();
    let knocks = from_each(&server, "ssh", 1..3, 0);
    admit(&mut server, knocks, true).await;
    let grants: Vec<_> = server.authorizer.grants.iter().cloned().collect();
    let mut next = self::server();
    refuse(&next, "192.0.2.1");
    next.authorizer.resume(grants, Now::read()).await.unwrap();
    assert_eq!(next.kernel.admits(), ["tcp/22 from 192.0.2.2"]);
}
