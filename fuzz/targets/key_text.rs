//! Keys, invitations and key files as text: what is read and written again is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spa_keys::{
    EncryptedPreSharedKey, EncryptedPrivateKey, Invitation, InvitationSecret, PreSharedKey,
    PrivateKey, PublicKey, StoredKeys, StoredPreSharedKey, StoredPrivateKey,
};
use std::ops::Deref;
use std::str::FromStr;

fuzz_target!(|text: &str| {
    again::<PublicKey, _>(text, ToString::to_string);
    again::<PrivateKey, _>(text, PrivateKey::to_text);
    again::<PreSharedKey, _>(text, PreSharedKey::to_text);
    again::<InvitationSecret, _>(text, InvitationSecret::to_text);
    again::<EncryptedPrivateKey, _>(text, ToString::to_string);
    again::<EncryptedPreSharedKey, _>(text, ToString::to_string);
    again::<StoredPrivateKey, _>(text, StoredPrivateKey::to_text);
    again::<StoredPreSharedKey, _>(text, StoredPreSharedKey::to_text);
    again::<Invitation, _>(text, |invitation| invitation.to_text().unwrap());
    let _ = StoredKeys::from_str(text);
});

/// Written once, it stays the same.
fn again<T: FromStr, S: Deref>(text: &str, write: impl Fn(&T) -> S)
where
    T::Err: std::fmt::Debug,
    S::Target: AsRef<str> + PartialEq + std::fmt::Debug,
{
    let Ok(read) = text.parse::<T>() else { return };
    let written = write(&read);
    let second = write(&written.as_ref().parse::<T>().unwrap());
    assert_eq!(*written, *second);
}
