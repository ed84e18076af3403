//! What is told from what, and who is asked how often.

use super::*;
use spa_keys::PrivateKey;

fn keys() -> ClientKeys {
    ClientKeys {
        private: PrivateKey::from_bytes(Zeroizing::new([1; 32])),
        pre_shared: Some(PreSharedKey::from_bytes(Zeroizing::new([3; 32])).unwrap()),
    }
}

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.into())).unwrap()
}

/// Knows these, and tries one after the other.
struct Knows(Vec<Passphrase>, Vec<u32>);

impl Unlock for Knows {
    fn passphrase(&mut self, locked: &Locked<'_>) -> Result<&Passphrase, UnlockError> {
        self.1.push(locked.attempt);
        let at = usize::try_from(locked.attempt).unwrap() - 1;
        self.0.get(at).ok_or(UnlockError::WrongTyped(locked.attempt - 1))
    }
}

fn file() -> (tempfile::TempDir, KeySource) {
    let directory = tempfile::tempdir().unwrap();
    let source = KeySource::from(directory.path().join("a.key"));
    (directory, source)
}

#[test]
fn a_source_is_a_file_or_an_item_and_says_so() {
    let parse = |text: &str| KeySource::parse(text, |file| Path::new("/k").join(file));
    assert_eq!(parse("a.key"), Ok("/k/a.key".into()));
    let item = parse("secret-service:work").unwrap();
    assert_eq!(item, KeySource::SecretService("work".parse().unwrap()));
    assert_eq!(item.to_string(), "secret-service:work");
    for name in ["", "a b", "a/b", "ü", &"x".repeat(65)] {
        assert!(parse(&format!("secret-service:{name}")).is_err(), "{name}");
    }
    let command = KeySource::Command(vec!["pass".into(), "show x".into()]);
    assert_eq!(command.to_string(), r#"key-command ["pass", "show x"]"#);
}

#[test]
fn nobody_is_asked_for_a_key_without_a_passphrase() {
    let (_directory, source) = file();
    source.store(&protected(keys(), None).unwrap(), Overwrite::Refuse).unwrap();
    let mut knows = Knows(Vec::new(), Vec::new());
    let read = source.keys(&mut knows).unwrap();
    assert_eq!(read.private.public(), keys().private.public());
    assert!(read.pre_shared.is_some());
    assert!(knows.1.is_empty());
}

#[test]
fn who_is_asked_is_asked_until_it_fits_or_there_is_no_other() {
    let (_directory, source) = file();
    let stored = protected(keys(), Some(&passphrase("right"))).unwrap();
    source.store(&stored, Overwrite::Refuse).unwrap();
    assert_eq!(source.stored().unwrap().public(), keys().private.public());

    let mut knows = Knows(["wrong", "right"].map(passphrase).into(), Vec::new());
    let read = source.keys(&mut knows).unwrap();
    assert_eq!(read.private.to_text(), keys().private.to_text());
    assert_eq!(read.pre_shared.unwrap().to_text(), keys().pre_shared.unwrap().to_text());
    assert_eq!(knows.1, [1, 2]);

    let mut knows = Knows(["wrong"].map(passphrase).into(), Vec::new());
    let error = source.keys(&mut knows).unwrap_err();
    assert!(matches!(error, KeyError::Locked { error: UnlockError::WrongTyped(1), .. }), "{error}");
    let error = source.keys(&mut NoPassphrase).unwrap_err();
    assert!(matches!(error, KeyError::Locked { error: UnlockError::NobodyToAsk, .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn a_command_gives_what_a_file_does_and_can_t_be_written_to() {
    let text = protected(keys(), None).unwrap().to_text();
    let source = KeySource::Command(["printf", "%s", &text].map(String::from).into());
    assert_eq!(source.keys(&mut NoPassphrase).unwrap().private.public(), keys().private.public());
    let stored = protected(keys(), None).unwrap();
    let error = source.store(&stored, Overwrite::Replace).unwrap_err();
    assert!(matches!(error, KeyError::ReadOnly { .. }), "{error}");

    let of = |text: &str| KeySource::Command(["printf", "%b", text].map(String::from).into());
    let psk = keys().pre_shared.unwrap().to_text();
    assert!(of(&format!("# mine\n{}\n", *psk)).pre_shared_key(&mut NoPassphrase).is_ok());
    for text in ["", "hunter2", "\\0377"] {
        let error = of(text).keys(&mut NoPassphrase).unwrap_err().to_string();
        assert!(!error.contains("hunter2") || error.matches("hunter2").count() == 1, "{error}");
        assert!(of(text).pre_shared_key(&mut NoPassphrase).is_err(), "{text}");
    }
}
