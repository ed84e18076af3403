//! `tests/vectors/encrypted_keys.json`, which a second implementation wrote from
//! `docs/protocol.md`.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde::Deserialize;
use spa_keys::{
    Cost, DecryptError, EncryptedPreSharedKey, EncryptedPrivateKey, KeyTextError, Passphrase,
    PreSharedKey, PrivateKey,
};
use zeroize::Zeroizing;

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    kind: String,
    passphrase: String,
    memory_kib: u32,
    passes: u16,
    lanes: u16,
    key: String,
    text: String,
}

#[derive(Deserialize)]
struct Invalid {
    kind: String,
    /// What has to be told: `text`, `passphrase` or `content`.
    what: String,
    why: String,
    text: String,
    passphrase: String,
}

fn vectors() -> Vectors {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/encrypted_keys.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn passphrase(hex: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(bytes(hex))).unwrap()
}

/// What decrypting gives, as the text of the plain key, and what it costs.
fn decrypt(
    kind: &str,
    text: &str,
    passphrase: &Passphrase,
) -> Result<Result<(String, Cost), DecryptError>, KeyTextError> {
    if kind == "encrypted-private" {
        let key: EncryptedPrivateKey = text.parse()?;
        assert_eq!(key.to_string(), text);
        let opened = key.decrypt(passphrase);
        Ok(opened.map(|opened| {
            assert_eq!(opened.public(), key.public());
            (opened.to_text().to_string(), key.cost())
        }))
    } else {
        let key: EncryptedPreSharedKey = text.parse()?;
        assert_eq!(key.to_string(), text);
        Ok(key.decrypt(passphrase).map(|opened| (opened.to_text().to_string(), key.cost())))
    }
}

#[test]
fn keys_under_a_passphrase_are_those_of_the_second_implementation() {
    let vectors = vectors();
    assert!(vectors.valid.len() >= 5);
    for v in vectors.valid {
        let key = Zeroizing::new(bytes(&v.key).try_into().unwrap());
        let plain = match v.kind.as_str() {
            "encrypted-private" => PrivateKey::from_bytes(key).to_text(),
            _ => PreSharedKey::from_bytes(key).unwrap().to_text(),
        };
        let (text, cost) = decrypt(&v.kind, &v.text, &passphrase(&v.passphrase)).unwrap().unwrap();
        assert_eq!(text, *plain);
        assert_eq!(Some(cost), Cost::new(v.memory_kib, v.passes, v.lanes));
    }
}

#[test]
fn what_must_be_refused_is_refused_for_its_reason() {
    let vectors = vectors();
    assert!(vectors.invalid.len() >= 20);
    for v in vectors.invalid {
        let found = match decrypt(&v.kind, &v.text, &passphrase(&v.passphrase)) {
            Err(_) => "text",
            Ok(Err(DecryptError::WrongPassphrase)) => "passphrase",
            Ok(Err(_)) => "content",
            Ok(Ok(_)) => "nothing",
        };
        assert_eq!(found, v.what, "{}", v.why);
    }
}
