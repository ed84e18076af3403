//! Keys under a passphrase.

use super::*;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use std::time::{Duration, Instant};

/// As little as there is: these tests are about the form.
fn cheap() -> Cost {
    Cost::new(8, 1, 1).unwrap()
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.into())).unwrap()
}

fn private(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes(Zeroizing::new([byte; 32]))
}

fn pre_shared(byte: u8) -> PreSharedKey {
    PreSharedKey::from_bytes(Zeroizing::new([byte; 32])).unwrap()
}

fn encrypted(byte: u8, words: &str) -> EncryptedPrivateKey {
    let random = SystemRandom::new();
    EncryptedPrivateKey::encrypt(&private(byte), &passphrase(words), cheap(), &random).unwrap()
}

#[test]
fn a_key_comes_back_by_its_passphrase_and_by_no_other() {
    let key = encrypted(1, "correct horse");
    let read: EncryptedPrivateKey = key.to_string().parse().unwrap();
    assert_eq!(read, key);
    assert_eq!(read.public(), private(1).public());
    let opened = read.decrypt(&passphrase("correct horse")).unwrap();
    assert_eq!(opened.to_text(), private(1).to_text());
    for wrong in ["correct horse ", "Correct horse", "c", "correct horse\n"] {
        let error = read.decrypt(&passphrase(wrong)).unwrap_err();
        assert_eq!(error, DecryptError::WrongPassphrase, "{wrong:?}");
    }

    let random = SystemRandom::new();
    let words = passphrase("battery staple");
    let key = EncryptedPreSharedKey::encrypt(&pre_shared(3), &words, cheap(), &random).unwrap();
    let read: EncryptedPreSharedKey = key.to_string().parse().unwrap();
    assert_eq!(read.decrypt(&words).unwrap().to_text(), pre_shared(3).to_text());
    let error = read.decrypt(&passphrase("staple")).unwrap_err();
    assert_eq!(error, DecryptError::WrongPassphrase);
}

#[test]
fn a_key_is_encrypted_anew_each_time_and_does_not_show() {
    let [one, two] = [(); 2].map(|()| encrypted(1, "x").to_string());
    assert!(one.starts_with("spa-encrypted-private-") && one.len() == 22 + 176, "{one}");
    assert_ne!(one[..60], two[..60]);
    let shown = format!("{:?}", encrypted(1, "x"));
    assert_eq!(shown, format!("EncryptedPrivateKey({})", private(1).public()));
}

/// Past the checksum, as somebody does who can write the file.
#[test]
fn every_flipped_bit_is_refused() {
    let key = encrypted(1, "x");
    let bytes = key.sealed.to_bytes(key.public.as_bytes());
    assert_eq!(bytes.len(), PRIVATE_LENGTH);
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let text = text::encode(KeyKind::EncryptedPrivate, &bytes);
        // What asks for much more than `cheap` is not tried; the test would take its time.
        let opened = text.parse::<EncryptedPrivateKey>();
        if let Ok(key) = &opened
            && (key.cost().to_bytes()[..4] > [0, 0, 64, 0][..]
                || key.cost().to_bytes()[4..6] > [2, 0][..])
        {
            continue;
        }
        let opened = opened.map(|key| key.decrypt(&passphrase("x")).map(drop));
        assert!(!matches!(opened, Ok(Ok(()))), "bit {bit}");
    }
    // The positive control.
    let text = text::encode(KeyKind::EncryptedPrivate, &bytes);
    assert!(text.parse::<EncryptedPrivateKey>().unwrap().decrypt(&passphrase("x")).is_ok());
}

#[test]
fn a_typing_error_is_told_from_a_wrong_passphrase() {
    let good = encrypted(1, "x").to_string();
    for at in 22..good.len() {
        for other in ['A', 'B', '-', ' ', 'é'] {
            let mut typo = good.clone();
            typo.replace_range(at..=at, &other.to_string());
            if typo == good {
                continue;
            }
            let error = typo.parse::<EncryptedPrivateKey>().unwrap_err();
            let told = matches!(
                error,
                KeyTextError::Checksum { .. }
                    | KeyTextError::Character { .. }
                    | KeyTextError::Length { .. }
            );
            assert!(told, "{at} {other:?}: {error}");
        }
        assert!(good[..at].parse::<EncryptedPrivateKey>().is_err());
    }
}

#[test]
fn a_hostile_cost_is_refused_at_once() {
    let key = encrypted(1, "x");
    let mut bytes = key.sealed.to_bytes(key.public.as_bytes());
    for cost in [
        [0xff; 8],
        [0, 0x10, 0, 1, 0, 1, 0, 1],
        [0, 0x10, 0, 0, 0, 5, 0, 1],
        [0, 0, 1, 0, 0, 1, 0, 0],
        [0; 8],
    ] {
        bytes[..8].copy_from_slice(&cost);
        let text = text::encode(KeyKind::EncryptedPrivate, &bytes);
        let begun = Instant::now();
        let error = text.parse::<EncryptedPrivateKey>().unwrap_err();
        assert!(matches!(error, KeyTextError::Cost { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
    let message = {
        bytes[..8].copy_from_slice(&[0x06, 0x40, 0, 0, 0, 1, 0, 1]);
        let text = text::encode(KeyKind::EncryptedPrivate, &bytes);
        text.parse::<EncryptedPrivateKey>().unwrap_err().to_string()
    };
    assert!(message.contains("104857600 KiB"), "{message}");
}

#[test]
fn one_kind_is_not_taken_for_another() {
    let random = SystemRandom::new();
    let words = passphrase("x");
    let psk = EncryptedPreSharedKey::encrypt(&pre_shared(3), &words, cheap(), &random).unwrap();
    let psk = psk.to_string();
    let error = psk.parse::<EncryptedPrivateKey>().unwrap_err();
    assert!(matches!(error, KeyTextError::Kind { .. }), "{error}");
    let plain = private(1).to_text();
    assert!(plain.parse::<EncryptedPrivateKey>().is_err());
    let message = encrypted(1, "x").to_string().parse::<PrivateKey>().unwrap_err().to_string();
    assert_eq!(
        message,
        "this is a private key under a passphrase (spa-encrypted-private-…), but a private key \
         (spa-private-…) belongs here; there is no way to give the passphrase here; take it off \
         with: spa-client key passphrase --remove"
    );
}

proptest! {
    #[test]
    fn every_key_survives_every_passphrase(
        key: [u8; 32],
        words in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let key = PrivateKey::from_bytes(Zeroizing::new(key));
        let words = Passphrase::new(Zeroizing::new(words)).unwrap();
        let random = SystemRandom::new();
        let sealed = EncryptedPrivateKey::encrypt(&key, &words, cheap(), &random).unwrap();
        let read: EncryptedPrivateKey = sealed.to_string().parse().unwrap();
        prop_assert_eq!(read.decrypt(&words).unwrap().to_text(), key.to_text());
    }

    #[test]
    fn no_text_panics(text in "(spa-encrypted-(private|psk)-)?[A-Za-z0-9_-]{0,200}") {
        let _ = text.parse::<EncryptedPrivateKey>();
        let _ = text.parse::<EncryptedPreSharedKey>();
    }
}
