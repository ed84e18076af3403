//! A kernel that does not take what it is given: who is told what, and when it is made good.

use super::*;

#[tokio::test]
async fn a_kernel_that_takes_nothing_is_not_asked_for_each_knock() {
    let mut server = server();
    let knocks: Vec<_> = (0..20).map(|nonce| server.candidate(nonce, "ssh")).collect();
    server.kernel.fail(true);
    server.authorizer.admit(knocks).await;
    // The batch, and the look at what came of it.
    assert_eq!(server.kernel.calls(), 2);
    assert_eq!(crate::counters::read(&server.counters.failed), 20);
    assert_eq!(server.authorizer.count(BootMicros::now()), 0);

    server.kernel.fail(false);
    server.authorizer.tick().await;
    let knock = server.candidate(99, "ssh");
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
}

#[tokio::test]
async fn what_somebody_else_admits_is_told_also_where_it_is_withdrawn_by_the_way() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    let foreign = ("198.51.100.9", "tcp/22", 600);
    server.kernel.put(&[foreign]);
    // An installation has changed something: times are set anew.
    server.kernel.0.flushed.store(true, Ordering::Relaxed);
    server.authorizer.install(&plan()).await.unwrap();
    server.authorizer.tick().await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
    let told = server.authorizer.take_foreign();
    assert_eq!(
        told.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["tcp/22 from 198.51.100.9"]
    );
    assert!(server.authorizer.take_foreign().is_empty());

    // What the kernel did not take back may be our own.
    server.kernel.fail(true);
    assert!(server.authorizer.revoke(&Selection::default(), "test").await.is_err());
    server.kernel.fail(false);
    server.authorizer.tick().await;
    assert!(server.kernel.admits().is_empty());
    assert!(server.authorizer.take_foreign().is_empty());
}

#[tokio::test]
async fn what_the_kernel_did_not_take_back_is_revoked_as_soon_as_it_does() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    server.kernel.fail(true);
    let everything = Selection::default();
    assert!(server.authorizer.revoke(&everything, "test").await.is_err());
    server.authorizer.tick().await;
    assert!(server.authorizer.is_unreconciled());
    assert_eq!(crate::counters::read(&server.counters.closed), 0);
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
    // Whoever asks again is told the same.
    assert!(server.authorizer.revoke(&everything, "test").await.is_err());
    let others = Selection { service: Some("web".parse().unwrap()), ..Selection::default() };
    assert!(server.authorizer.revoke(&others, "test").await.unwrap().is_empty());

    server.kernel.fail(false);
    server.authorizer.tick().await;
    assert!(!server.authorizer.is_unreconciled());
    assert_eq!(crate::counters::read(&server.counters.closed), 1);
    assert!(server.kernel.admits().is_empty());
}

#[tokio::test]
async fn whoever_asks_again_for_what_the_kernel_did_not_take_back_has_it_done() {
    let mut server = server();
    let knocks = vec![server.candidate(1, "ssh"), server.candidate(2, "web")];
    server.authorizer.admit(knocks).await;
    let ssh = Selection { service: Some("ssh".parse().unwrap()), ..Selection::default() };
    server.kernel.fail(true);
    assert!(server.authorizer.revoke(&ssh, "test").await.is_err());
    server.kernel.fail(false);
    // With what is live besides.
    let gone = server.authorizer.revoke(&Selection::default(), "test").await.unwrap();
    assert_eq!(gone.len(), 2);
    assert!(server.kernel.admits().is_empty());
    assert_eq!(crate::counters::read(&server.counters.closed), 2);
    assert!(server.authorizer.revoke(&ssh, "test").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_wrong_is_told_also_where_it_can_not_be_mended() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    server.kernel.put(&[("198.51.100.9", "tcp/22", 600)]);
    server.kernel.refuse_changes(true);
    let restored = server.authorizer.restore(&plan()).await.unwrap();
    assert_eq!(restored.differences.surplus.len(), 1);
    assert!(restored.mended() && server.authorizer.is_unreconciled());
    server.kernel.refuse_changes(false);
    server.authorizer.tick().await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
}

#[tokio::test]
async fn what_the_kernel_did_not_close_stays_out_of_the_table_and_is_closed_as_soon_as_it_does() {
    let mut server = server();
    let knock = server.candidate(1, "ssh");
    server.authorizer.admit(vec![knock]).await;
    assert_eq!(server.kernel.admits(), ["tcp/22 from 192.0.2.7"]);
    server.kernel.fail(true);
    // The refresh in the same batch does not bring it back.
    let refresh = server.candidate(2, "ssh");
    let mut close = server.candidate(3, "ssh");
    close.knock.request.message_type = MessageType::Close;
    server.authorizer.admit(vec![refresh, close]).await;
    assert_eq!(server.authorizer.count(BootMicros::now()), 0);
    assert_eq!(crate::counters::read(&server.counters.failed), 2);

    server.kernel.fail(false);
    server.authorizer.tick().await;
    assert!(server.kernel.admits().is_empty());
}
