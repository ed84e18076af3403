//! Interfaces that are missing, go away, come back.

use crate::net::{Namespace, Sender};
use crate::sample::{IPV4, UDP, ethernet, ipv4, udp};
use crate::{
    Event, PATIENCE, PORT, add_veth, is_retrying, is_running, named, next_mark, payload, settings,
    start, wait_for, with_veth,
};
use spa_server::capture::{Capture, CaptureError, InterfaceState, Interfaces};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

fn knock(mark: u8) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], &udp(PORT, &payload(mark))))
}

fn mark_of(event: &Event) -> u8 {
    let Event::Datagram(_, _, _, payload) = event else { panic!("{event:?}") };
    payload[0]
}

/// Datagrams can be lost while an interface comes up, so this one is sent until it arrives.
fn arrives(events: &Receiver<Event>, mark: u8) {
    let end = Instant::now() + PATIENCE;
    loop {
        Sender::on("far").send(&knock(mark));
        // Of one that is sent again, an earlier one can still come.
        if let Ok(event) = events.recv_timeout(Duration::from_millis(100)) {
            let found = mark_of(&event);
            assert!(
                found == mark || Some(found) == mark.checked_sub(1),
                "{found} instead of {mark}"
            );
            if found == mark {
                return;
            }
        }
        assert!(Instant::now() < end, "{mark} never arrived");
    }
}

#[test]
fn a_missing_interface_is_told_with_those_that_exist() {
    with_veth(|_| {
        let names = vec!["near".to_owned(), "absent0".to_owned()];
        let error = Capture::try_out(&settings(Interfaces::Named(names))).unwrap_err();
        assert!(matches!(error, CaptureError::Missing { .. }), "{error}");
        assert_eq!(
            error.to_string(),
            "there is no interface \"absent0\"; this host has far, lo, near"
        );
        Capture::try_out(&settings(named("near"))).unwrap();
        // With none at all there is nothing to start for.
        assert!(matches!(start(named("absent0")), Err(CaptureError::Missing { .. })));
    });
}

#[test]
fn an_interface_that_is_missing_at_the_start_keeps_nobody_out_at_the_others() {
    with_veth(|namespace| {
        let names = vec!["near".to_owned(), "late".to_owned()];
        let (capture, events) = start(Interfaces::Named(names)).unwrap();
        let states: Vec<_> = capture.health().into_iter().map(|one| one.state).collect();
        let [near, InterfaceState::Retrying { error }] = states.as_slice() else {
            panic!("{states:?}")
        };
        assert_eq!(*near, InterfaceState::Running);
        assert!(error.contains("\"late\""), "{error}");
        Sender::on("far").send(&knock(1));
        assert_eq!(next_mark(&events), 1);

        // As one that a dial-up or a tunnel makes.
        namespace.ip("link add late type veth peer name latefar");
        namespace.ip("link set late up");
        namespace.ip("link set latefar up");
        let end = Instant::now() + PATIENCE;
        while !capture.health().iter().all(|one| is_running(&one.state)) {
            assert!(Instant::now() < end, "never found: {:?}", capture.health());
            std::thread::sleep(Duration::from_millis(10));
        }
        Sender::on("latefar").send(&knock(2));
        assert_eq!(next_mark(&events), 2);
        drop(capture);
    });
}

#[test]
fn an_interface_that_is_deleted_and_made_anew_is_captured_again() {
    with_veth(|namespace| {
        let (capture, events) = start(named("near")).unwrap();
        Sender::on("far").send(&knock(1));
        assert_eq!(next_mark(&events), 1);

        namespace.ip("link del near");
        wait_for(&capture, "noticed", is_retrying);
        let InterfaceState::Retrying { error } = &capture.health()[0].state else { panic!() };
        assert!(error.contains("near"), "{error}");

        add_veth(namespace);
        wait_for(&capture, "recovered", is_running);
        arrives(&events, 2);
        drop(capture);
    });
}

/// Libpcap's own check can't see this when it happens between two reads.
#[test]
fn an_interface_that_is_replaced_at_once_is_captured_again() {
    with_veth(|namespace| {
        let (capture, events) = start(named("near")).unwrap();
        Sender::on("far").send(&knock(1));
        assert_eq!(next_mark(&events), 1);
        namespace.ip("link del near");
        add_veth(namespace);
        arrives(&events, 2);
        drop(capture);
    });
}

#[test]
fn when_another_interface_gets_the_name_that_one_is_captured() {
    with_veth(|namespace| {
        let (capture, events) = start(named("near")).unwrap();
        Sender::on("far").send(&knock(1));
        assert_eq!(next_mark(&events), 1);
        // Renamed while it is up, so that its capture sees no error at all.
        namespace.ip("link set near name former");
        wait_for(&capture, "noticed", is_retrying);

        namespace.ip("link set far name former-far");
        add_veth(namespace);
        wait_for(&capture, "recovered", is_running);
        arrives(&events, 2);
        // Were it still captured, it would come first, and be one too many.
        Sender::on("former-far").send(&knock(9));
        arrives(&events, 3);
        drop(capture);
    });
}

#[test]
fn an_interface_that_goes_down_and_up_is_captured_again() {
    with_veth(|namespace| {
        let (capture, events) = start(named("near")).unwrap();
        for mark in 1..4 {
            arrives(&events, mark);
            namespace.ip("link set near down");
            namespace.ip("link set near up");
        }
        arrives(&events, 4);
        drop(capture);
    });
}

#[test]
fn an_interface_that_is_down_at_the_start_is_waited_for() {
    with_veth(|namespace| {
        namespace.ip("link set near down");
        let (capture, events) = start(named("near")).unwrap();
        let state = capture.health()[0].state.clone();
        assert!(is_retrying(&state), "{state:?}");
        namespace.ip("link set near up");
        wait_for(&capture, "running", is_running);
        arrives(&events, 1);
        drop(capture);
    });
}

#[test]
fn any_survives_that_all_interfaces_are_deleted_and_made_anew() {
    with_veth(|namespace| {
        let (capture, events) = start(Interfaces::All).unwrap();
        for mark in 1..4 {
            arrives(&events, mark);
            namespace.ip("link del near");
            assert_eq!(capture.health()[0].state, InterfaceState::Running);
            add_veth(namespace);
        }
        arrives(&events, 4);
        drop(capture);
    });
}

#[test]
fn two_interfaces_have_a_thread_each_and_a_name_given_twice_has_one() {
    let namespace = Namespace::new();
    add_veth(&namespace);
    namespace.inside(|| {
        let names = ["near", "far", "near"].map(str::to_owned).to_vec();
        let (capture, events) = start(Interfaces::Named(names)).unwrap();
        let health = capture.health();
        let names: Vec<_> = health.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["near", "far"]);
        Sender::on("far").send(&knock(1));
        assert_eq!(next_mark(&events), 1);
        Sender::on("near").send(&knock(2));
        assert_eq!(next_mark(&events), 2);
        drop(capture);
        assert!(events.recv_timeout(PATIENCE).is_err(), "each came once");
    });
}
