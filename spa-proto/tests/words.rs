//! The words that stand in logs, in `status` and in test vectors.

use spa_proto::{AnnouncementKind, ClientId, DropReason, Freshness, MessageType, Nonce};
use std::time::Duration;

#[test]
fn keys_and_ids_are_written_as_hexadecimal_digits() {
    let mut bytes = [0xa5; 32];
    bytes[0] = 0x01;
    assert_eq!(ClientId(bytes).to_string(), format!("01{}", "a5".repeat(31)));
    let mut bytes = [0xa5; 24];
    bytes[0] = 0x01;
    assert_eq!(Nonce(bytes).to_string(), format!("01{}", "a5".repeat(23)));
}

#[test]
fn every_kind_of_message_and_every_reason_has_its_word() {
    assert_eq!([MessageType::Open, MessageType::Close].map(MessageType::as_str), ["open", "close"]);
    let kinds = [AnnouncementKind::Enrolment, AnnouncementKind::Rotation];
    assert_eq!(kinds.map(AnnouncementKind::as_str), ["enrolment", "rotation"]);
    for reason in DropReason::ALL {
        assert_eq!(reason.to_string(), reason.as_str());
    }
    assert_eq!(DropReason::UnknownTag.to_string(), "unknown-tag");
}

#[test]
fn a_freshness_window_that_can_not_be_is_told_with_its_bounds() {
    let error = Freshness::try_from(Duration::from_secs(9)).err().map(|error| error.to_string());
    assert!(error.is_some_and(|error| error.contains("10") && error.contains("120")));
}
