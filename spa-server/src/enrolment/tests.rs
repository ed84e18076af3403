use super::*;
use spa_keys::PrivateKey;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

const NOW: UnixMicros = UnixMicros::from_secs(1_800_000_000);

fn key(byte: u8) -> PublicKey {
    PrivateKey::from_bytes([byte; 32].into()).public()
}

fn pre_shared(byte: u8) -> Arc<PreSharedKey> {
    Arc::new(PreSharedKey::from_bytes([byte; 32].into()).unwrap())
}

fn invited() -> Introduction {
    Introduction::Invitation("aa".into())
}

fn enrolled(introduction: Introduction, byte: u8) -> Record {
    Record::Enrolled { introduction, key: key(byte), pre_shared: pre_shared(byte), at: NOW }
}

fn announced(introduction: Introduction, byte: u8) -> Record {
    Record::Announced { introduction, key: key(byte), pre_shared: pre_shared(byte), at: NOW }
}

fn replaced(introduction: Introduction, byte: u8) -> Record {
    Record::Replaced { introduction, key: key(byte), at: NOW }
}

fn withdrawn(introduction: Introduction, byte: u8) -> Record {
    Record::Withdrawn { introduction, key: key(byte), at: NOW }
}

fn after(records: &[Record]) -> Enrolments {
    let mut enrolments = Enrolments::default();
    for record in records {
        enrolments.apply(record);
    }
    enrolments
}

/// Present, pending, former.
fn keys(enrolments: &Enrolments, introduction: &Introduction) -> (Option<u8>, Option<u8>, Vec<u8>) {
    let byte = |wanted: &PublicKey| (0..=255).find(|byte| key(*byte) == *wanted).unwrap();
    let keys = enrolments.of(introduction).cloned().unwrap_or_default();
    let one = |key: Option<ClientKey>| key.map(|key| byte(&key.key));
    (one(keys.present), one(keys.pending), keys.former.iter().map(byte).collect())
}

#[test]
fn an_invitation_brings_one_key_and_for_ever() {
    let nobody = |_: &PublicKey| false;
    let fresh = Enrolments::default();
    assert_eq!(fresh.judge_enrolment(&invited(), &key(1), &pre_shared(1), nobody), Ok(Effect::New));
    let known = |_: &PublicKey| true;
    assert_eq!(
        fresh.judge_enrolment(&invited(), &key(1), &pre_shared(1), known),
        Err(Rejection::KeyKnown { offered: key(1) })
    );

    let used = after(&[enrolled(invited(), 1)]);
    assert_eq!(used.judge_enrolment(&invited(), &key(1), &pre_shared(1), known), Ok(Effect::Known));
    let other = used.judge_enrolment(&invited(), &key(2), &pre_shared(2), nobody);
    assert!(matches!(other, Err(Rejection::InvitationUsed { by, .. }) if by == key(1)));
    // The same key by another ephemeral one.
    let again = used.judge_enrolment(&invited(), &key(1), &pre_shared(9), known);
    assert!(matches!(again, Err(Rejection::InvitationUsed { .. })), "{again:?}");
    // One client's key by another invitation.
    let second = Introduction::Invitation("bb".into());
    assert_eq!(
        used.judge_enrolment(&second, &key(1), &pre_shared(1), nobody),
        Err(Rejection::KeyKnown { offered: key(1) })
    );
    assert_eq!(used.judge_enrolment(&second, &key(2), &pre_shared(2), nobody), Ok(Effect::New));

    // Whatever became of the key.
    let later = after(&[
        enrolled(invited(), 1),
        announced(invited(), 2),
        withdrawn(invited(), 2),
        announced(invited(), 3),
        replaced(invited(), 3),
    ]);
    assert_eq!(keys(&later, &invited()), (Some(3), None, vec![2, 1]));
    assert_eq!(
        later.judge_enrolment(&invited(), &key(1), &pre_shared(1), nobody),
        Ok(Effect::Known)
    );
    for byte in [2, 3, 4] {
        let other = later.judge_enrolment(&invited(), &key(byte), &pre_shared(byte), nobody);
        assert!(matches!(other, Err(Rejection::InvitationUsed { by, .. }) if by == key(1)));
        if byte < 4 {
            let elsewhere = later.judge_enrolment(&second, &key(byte), &pre_shared(byte), nobody);
            assert_eq!(elsewhere, Err(Rejection::KeyKnown { offered: key(byte) }));
        }
    }
}

#[test]
fn one_key_is_pending_at_a_time_and_the_old_one_dies_with_the_first_knock() {
    let nobody = |_: &PublicKey| false;
    let introduction = Introduction::Key(key(1));
    let fresh = Enrolments::default();
    assert_eq!(
        fresh.judge_rotation(&introduction, &key(2), &pre_shared(2), nobody),
        Ok(Effect::New)
    );
    assert_eq!(
        fresh.judge_rotation(&introduction, &key(2), &pre_shared(2), |_| true),
        Err(Rejection::KeyKnown { offered: key(2) })
    );

    let pending = after(&[announced(introduction.clone(), 2)]);
    assert_eq!(keys(&pending, &introduction), (None, Some(2), vec![]));
    assert_eq!(
        pending.judge_rotation(&introduction, &key(2), &pre_shared(2), |_| true),
        Ok(Effect::Known)
    );
    let second = pending.judge_rotation(&introduction, &key(3), &pre_shared(3), nobody);
    let expected = Rejection::RotationPending { pending: key(2), offered: key(3) };
    assert_eq!(second, Err(expected));
    let again = pending.judge_rotation(&introduction, &key(2), &pre_shared(9), |_| true);
    assert!(matches!(again, Err(Rejection::RotationPending { .. })), "{again:?}");
    // Nor is it free for anybody else.
    let elsewhere =
        pending.judge_rotation(&Introduction::Key(key(9)), &key(2), &pre_shared(2), nobody);
    assert_eq!(elsewhere, Err(Rejection::KeyKnown { offered: key(2) }));
    assert_eq!(
        pending.judge_enrolment(&invited(), &key(2), &pre_shared(2), nobody),
        Err(Rejection::KeyKnown { offered: key(2) })
    );

    let switched = after(&[announced(introduction.clone(), 2), replaced(introduction.clone(), 2)]);
    assert_eq!(keys(&switched, &introduction), (Some(2), None, vec![1]));
    for byte in [1, 2] {
        let back = switched.judge_rotation(&introduction, &key(byte), &pre_shared(byte), nobody);
        assert_eq!(back, Err(Rejection::KeyKnown { offered: key(byte) }));
    }
    assert_eq!(
        switched.judge_rotation(&introduction, &key(3), &pre_shared(3), nobody),
        Ok(Effect::New)
    );

    let dropped = after(&[announced(introduction.clone(), 2), withdrawn(introduction.clone(), 2)]);
    assert_eq!(keys(&dropped, &introduction), (None, None, vec![2]));
    assert_eq!(
        dropped.judge_rotation(&introduction, &key(3), &pre_shared(3), nobody),
        Ok(Effect::New)
    );
    assert_eq!(
        dropped.judge_rotation(&introduction, &key(2), &pre_shared(2), nobody),
        Err(Rejection::KeyKnown { offered: key(2) })
    );
    // Of a key that nobody knows: the old one is dead all the same.
    let lost = after(&[replaced(introduction.clone(), 3)]);
    assert_eq!(keys(&lost, &introduction), (None, None, vec![1]));
    assert!(lost.of(&introduction).unwrap().is_lost);
    let again = after(&[
        replaced(introduction.clone(), 3),
        announced(introduction.clone(), 4),
        replaced(introduction.clone(), 4),
    ]);
    assert_eq!(keys(&again, &introduction), (Some(4), None, vec![1]));
    assert!(!again.of(&introduction).unwrap().is_lost);
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    assert!(EnrolmentStore::read(directory.path()).unwrap().is_none());
    let (mut store, found) = EnrolmentStore::open(directory.path(), NOW).unwrap();
    let since = store.enrolments().since;
    assert_eq!((found, since.distance(NOW).as_secs()), (Found::Missing, 2));
    let mode = fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for record in [
        enrolled(invited(), 1),
        announced(invited(), 2),
        replaced(invited(), 2),
        announced(Introduction::Key(key(7)), 8),
    ] {
        store.append(&record).unwrap();
    }
    let later = NOW.saturating_add(std::time::Duration::from_secs(9));
    let (again, found) = EnrolmentStore::open(directory.path(), later).unwrap();
    assert_eq!((found, again.enrolments().since), (Found::Whole, since));
    assert_eq!(keys(again.enrolments(), &invited()), (Some(2), None, vec![1]));
    assert_eq!(keys(again.enrolments(), &Introduction::Key(key(7))), (None, Some(8), vec![]));
    let present = again.enrolments().of(&invited()).unwrap().present.clone().unwrap();
    assert_eq!(present.pre_shared.to_text(), pre_shared(2).to_text());
    assert_eq!(again.enrolments().records, store.enrolments().records);
    let read = EnrolmentStore::read(directory.path()).unwrap().unwrap();
    assert_eq!(read.records, again.enrolments().records);
    // Made already: nothing changes.
    EnrolmentStore::ensure(directory.path(), later).unwrap();
    assert_eq!(EnrolmentStore::open(directory.path(), later).unwrap().1, Found::Whole);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_store_that_is_made_for_an_invitation_knows_of_it() {
    let directory = tempfile::tempdir().unwrap();
    EnrolmentStore::ensure(directory.path(), NOW).unwrap();
    let later = NOW.saturating_add(std::time::Duration::from_secs(9));
    let (store, found) = EnrolmentStore::open(directory.path(), later).unwrap();
    assert_eq!((found, store.enrolments().since), (Found::Whole, NOW));
}

#[test]
fn after_damage_nobody_knows_what_happened_before() {
    let later = NOW.saturating_add(std::time::Duration::from_secs(9));
    let whole = {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, _) = EnrolmentStore::open(directory.path(), NOW).unwrap();
        store.append(&enrolled(invited(), 1)).unwrap();
        store.append(&enrolled(Introduction::Invitation("bb".into()), 2)).unwrap();
        fs::read(store.path()).unwrap()
    };
    let second = Introduction::Invitation("bb".into());
    for at in (0..whole.len()).step_by(7) {
        for damaged in [
            // A bit, and the end missing.
            whole.iter().enumerate().map(|(n, byte)| byte ^ u8::from(n == at)).collect(),
            whole[..at].to_vec(),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("enrolments");
            fs::write(&path, &damaged).unwrap();
            let (mut store, _) = EnrolmentStore::open(directory.path(), later).unwrap();
            let (one, two) =
                (keys(store.enrolments(), &invited()).0, keys(store.enrolments(), &second).0);
            assert!(one.is_none_or(|key| key == 1) && two.is_none_or(|key| key == 2));
            let is_whole = one.is_some() && two.is_some();
            let is_told = store.enrolments().since > later;
            // A file that ends between two lines is whole, for all that anybody can see.
            let ends_whole = damaged.len() < whole.len() && damaged.ends_with(b"\n");
            assert!(is_told || is_whole || ends_whole || damaged.is_empty(), "byte {at}");
            // It can be written on.
            store.append(&enrolled(Introduction::Invitation("cc".into()), 3)).unwrap();
            let (again, _) = EnrolmentStore::open(directory.path(), later).unwrap();
            let third = keys(again.enrolments(), &Introduction::Invitation("cc".into())).0;
            assert_eq!(third, Some(3), "byte {at}");
        }
    }
}

#[test]
fn what_is_no_file_of_ours_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("enrolments");
    fs::create_dir(&path).unwrap();
    let error = EnrolmentStore::open(directory.path(), NOW).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(EnrolmentStore::open(directory.path(), NOW).is_err());
    fs::remove_file(&path).unwrap();
    let gone = directory.path().join("gone");
    let error = EnrolmentStore::open(&gone, NOW).unwrap_err().to_string();
    assert!(error.contains("cannot make"), "{error}");
}

#[test]
fn nothing_is_written_to_a_file_that_a_restart_would_not_find() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = EnrolmentStore::open(directory.path(), NOW).unwrap();
    store.append(&enrolled(invited(), 1)).unwrap();
    let path = store.path().to_owned();
    let (content, aside) = (fs::read(&path).unwrap(), directory.path().join("aside"));
    let refused = |store: &mut EnrolmentStore| {
        let error = store.append(&announced(invited(), 2)).unwrap_err().to_string();
        assert!(error.contains("taken away"), "{error}");
        assert_eq!(keys(store.enrolments(), &invited()), (Some(1), None, vec![]));
    };
    fs::rename(&path, &aside).unwrap();
    refused(&mut store);
    fs::write(&path, content).unwrap();
    refused(&mut store);
    // Put back, it is the one.
    fs::rename(&aside, &path).unwrap();
    store.append(&announced(invited(), 2)).unwrap();
    assert_eq!(keys(store.enrolments(), &invited()), (Some(1), Some(2), vec![]));
}

#[test]
fn a_line_that_was_not_ours_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = EnrolmentStore::open(directory.path(), NOW).unwrap();
    let path = store.path().to_owned();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let line = enrolled(invited(), 1).line().unwrap();
    let forged = line.replace(&key(1).to_string(), &key(2).to_string());
    OpenOptions::new().append(true).open(&path).unwrap().write_all(forged.as_bytes()).unwrap();
    let (store, found) = EnrolmentStore::open(directory.path(), NOW).unwrap();
    assert_eq!(found, Found::Damaged(1));
    assert!(store.enrolments().of(&invited()).is_none());
}

/// As after a downgrade: what this version does not know is told once, is no damage, and the later
/// version finds it again.
#[test]
fn a_whole_line_of_a_later_version_is_kept_and_what_came_before_it_is_not_known() {
    let later = NOW.saturating_add(std::time::Duration::from_secs(9));
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = EnrolmentStore::open(directory.path(), NOW).unwrap();
    store.append(&enrolled(invited(), 1)).unwrap();
    let path = store.path().to_owned();
    let of_later = super::record::whole_line(r#"{"event":"suspended","key":"tpm:7"}"#);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(of_later.as_bytes()).unwrap();
    let (mut store, found) = EnrolmentStore::open(directory.path(), later).unwrap();
    assert_eq!(found, Found::Unknown(1));
    assert!(store.enrolments().since > later);
    assert_eq!(keys(store.enrolments(), &invited()).0, Some(1));
    store.append(&announced(invited(), 2)).unwrap();
    let (again, found) = EnrolmentStore::open(directory.path(), later).unwrap();
    assert_eq!((found, again.enrolments().since), (Found::Whole, store.enrolments().since));
    assert_eq!(again.enrolments().records, store.enrolments().records);
    assert!(fs::read_to_string(&path).unwrap().contains(of_later.as_str()));
    // Damage beside it is still damage, and does not take it along.
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"noise\n").unwrap();
    let (_, found) = EnrolmentStore::open(directory.path(), later).unwrap();
    assert_eq!(found, Found::Damaged(1));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(of_later.as_str()) && !text.contains("noise"));
}

#[test]
fn a_store_that_can_not_be_written_still_says_who_has_enrolled() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = EnrolmentStore::open(directory.path(), NOW).unwrap();
    store.append(&enrolled(invited(), 1)).unwrap();
    let mut store = EnrolmentStore::read_only(directory.path());
    assert_eq!(keys(store.enrolments(), &invited()).0, Some(1));
    let error = store.append(&announced(invited(), 2)).unwrap_err().to_string();
    assert!(error.contains("restart"), "{error}");
    assert_eq!(keys(store.enrolments(), &invited()), (Some(1), None, vec![]));
    // Where nothing is known, no invitation is good.
    let nothing = EnrolmentStore::read_only(&directory.path().join("gone"));
    assert_eq!(nothing.enrolments().since, UnixMicros(u64::MAX));
}
