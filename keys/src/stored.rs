//! A client's keys as they are stored, wherever that is: the private key, and perhaps a
//! pre-shared key beside it, each plain or under a passphrase.
//!
//! The text is that of a key file: a line for each key, comments (`#`) and blank lines.

use crate::passphrase::Recipe;
use crate::text::{KeyKind, KeyTextError};
use crate::{
    Cost, DecryptError, EncryptError, EncryptedPreSharedKey, EncryptedPrivateKey, Passphrase,
    PreSharedKey, PrivateKey, PublicKey,
};
use core::fmt::Write as _;
use core::str::FromStr;
use ring::rand::SecureRandom;
use zeroize::Zeroizing;

/// A client's keys, ready for use.
#[derive(Debug)]
pub struct ClientKeys {
    /// The private key.
    pub private: PrivateKey,
    /// The pre-shared key, when there is one.
    pub pre_shared: Option<PreSharedKey>,
}

/// A private key as it is stored.
#[derive(Debug)]
pub enum StoredPrivateKey {
    /// As it is.
    Plain(PrivateKey),
    /// Under a passphrase.
    Encrypted(EncryptedPrivateKey),
}

/// A pre-shared key as it is stored.
#[derive(Debug)]
pub enum StoredPreSharedKey {
    /// As it is.
    Plain(PreSharedKey),
    /// Under a passphrase.
    Encrypted(EncryptedPreSharedKey),
}

impl StoredPrivateKey {
    /// The public key, for which no passphrase is needed.
    pub const fn public(&self) -> PublicKey {
        match self {
            Self::Plain(key) => key.public(),
            Self::Encrypted(key) => key.public(),
        }
    }

    /// The text of one line.
    pub fn to_text(&self) -> Zeroizing<String> {
        match self {
            Self::Plain(key) => key.to_text(),
            Self::Encrypted(key) => Zeroizing::new(key.to_string()),
        }
    }
}

impl FromStr for StoredPrivateKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        match KeyKind::of(text.trim_start()) {
            Some(KeyKind::EncryptedPrivate) => text.parse().map(Self::Encrypted),
            _ => text.parse().map(Self::Plain),
        }
    }
}

impl StoredPreSharedKey {
    /// Whether a passphrase is needed.
    pub const fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    /// The text of one line.
    pub fn to_text(&self) -> Zeroizing<String> {
        match self {
            Self::Plain(key) => key.to_text(),
            Self::Encrypted(key) => Zeroizing::new(key.to_string()),
        }
    }
}

impl FromStr for StoredPreSharedKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        match KeyKind::of(text.trim_start()) {
            Some(KeyKind::EncryptedPreShared) => text.parse().map(Self::Encrypted),
            _ => text.parse().map(Self::Plain),
        }
    }
}

/// A client's keys as they are stored; the text is read by [`FromStr`].
#[derive(Debug)]
pub struct StoredKeys {
    /// The private key.
    pub private: StoredPrivateKey,
    /// The pre-shared key, when there is one.
    pub pre_shared: Option<StoredPreSharedKey>,
}

impl StoredKeys {
    /// Keys without a passphrase.
    pub fn plain(keys: ClientKeys) -> Self {
        Self {
            private: StoredPrivateKey::Plain(keys.private),
            pre_shared: keys.pre_shared.map(StoredPreSharedKey::Plain),
        }
    }

    /// Keys under one passphrase, of which trying it has to be paid for once.
    pub fn encrypted(
        keys: &ClientKeys,
        passphrase: &Passphrase,
        cost: Cost,
        random: &dyn SecureRandom,
    ) -> Result<Self, EncryptError> {
        let recipe = Recipe::new(cost, random)?;
        let encrypting = recipe.derive(passphrase)?;
        let private = EncryptedPrivateKey::seal(&keys.private, recipe, &encrypting, random)?;
        let pre_shared = keys.pre_shared.as_ref();
        let pre_shared = pre_shared
            .map(|key| EncryptedPreSharedKey::seal(key, recipe, &encrypting, random))
            .transpose()?;
        Ok(Self {
            private: StoredPrivateKey::Encrypted(private),
            pre_shared: pre_shared.map(StoredPreSharedKey::Encrypted),
        })
    }

    /// The public key, for which no passphrase is needed.
    pub const fn public(&self) -> PublicKey {
        self.private.public()
    }

    /// Whether one of them needs a passphrase.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.private, StoredPrivateKey::Encrypted(_))
            || self.pre_shared.as_ref().is_some_and(StoredPreSharedKey::is_encrypted)
    }

    /// The keys themselves, or the stored ones back when a passphrase is needed.
    #[expect(clippy::result_large_err, reason = "it is the other half of what there may be")]
    pub fn open(self) -> Result<ClientKeys, Self> {
        match self {
            Self { private: StoredPrivateKey::Plain(private), pre_shared: None } => {
                Ok(ClientKeys { private, pre_shared: None })
            }
            Self {
                private: StoredPrivateKey::Plain(private),
                pre_shared: Some(StoredPreSharedKey::Plain(key)),
            } => Ok(ClientKeys { private, pre_shared: Some(key) }),
            locked => Err(locked),
        }
    }

    /// The keys themselves. On error the same can be tried with another passphrase.
    pub fn decrypt(&self, passphrase: &Passphrase) -> Result<ClientKeys, DecryptError> {
        let mut derived: Option<(Recipe, Zeroizing<[u8; 32]>)> = None;
        let mut encrypting = |recipe: Recipe| match &derived {
            Some((of, key)) if *of == recipe => Ok(key.clone()),
            _ => {
                let key = recipe.derive(passphrase)?;
                derived = Some((recipe, key.clone()));
                Ok(key)
            }
        };
        let private = match &self.private {
            StoredPrivateKey::Plain(key) => key.again(),
            StoredPrivateKey::Encrypted(key) => key.open(&*encrypting(key.recipe())?)?,
        };
        let pre_shared = match &self.pre_shared {
            None => None,
            Some(StoredPreSharedKey::Plain(key)) => Some(key.again()),
            Some(StoredPreSharedKey::Encrypted(key)) => {
                Some(key.open(&*encrypting(key.recipe())?)?)
            }
        };
        Ok(ClientKeys { private, pre_shared })
    }

    /// The text of a key file, which names the public key in a comment; wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let private = self.private.to_text();
        let pre_shared = self.pre_shared.as_ref().map(StoredPreSharedKey::to_text);
        // Allocated once, so that no piece of a key stays behind.
        let mut text = Zeroizing::new(String::with_capacity(1024));
        let _ = write!(
            text,
            "# Private key for single-packet authorization. It stays on this machine.\n\
             # Its public key, to be given away:\n# {}\n{}\n",
            self.public(),
            *private
        );
        if let Some(key) = pre_shared {
            let _ = write!(
                text,
                "# Pre-shared key for single-packet authorization, for one client and one server only.\n{}\n",
                *key
            );
        }
        text
    }
}

impl FromStr for StoredKeys {
    type Err = StoredKeysError;

    fn from_str(text: &str) -> Result<Self, StoredKeysError> {
        let (mut private, mut pre_shared) = (None, None);
        let lines = (1..)
            .zip(text.lines().map(str::trim))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        for (line, text) in lines {
            let bad = |error| StoredKeysError::Key { line, error };
            let kind = KeyKind::of(text);
            if let Some(KeyKind::PreShared | KeyKind::EncryptedPreShared) = kind {
                let key = text.parse::<StoredPreSharedKey>().map_err(bad)?;
                if pre_shared.replace(key).is_some() {
                    return Err(StoredKeysError::Second { line, kind: KeyKind::PreShared });
                }
            } else {
                let key = text.parse::<StoredPrivateKey>().map_err(bad)?;
                if private.replace(key).is_some() {
                    return Err(StoredKeysError::Second { line, kind: KeyKind::Private });
                }
            }
        }
        match private {
            Some(private) => Ok(Self { private, pre_shared }),
            None => Err(StoredKeysError::NoKey),
        }
    }
}

/// Why a text holds no client's keys. It repeats nothing of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoredKeysError {
    /// No private key.
    #[error("there is no private key; one line begins with spa-private- or spa-encrypted-private-")]
    NoKey,
    /// Two of a kind.
    #[error(
        "line {line}: this is a second {kind}; there is one private key, and one pre-shared key at most"
    )]
    Second {
        /// Counted from 1.
        line: usize,
        /// Of which there are two.
        kind: KeyKind,
    },
    /// A line that is no key.
    #[error("line {line}: {error}")]
    Key {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        error: KeyTextError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::rand::SystemRandom;

    fn keys(pre_shared: bool) -> ClientKeys {
        ClientKeys {
            private: PrivateKey::from_bytes(Zeroizing::new([1; 32])),
            pre_shared: pre_shared
                .then(|| PreSharedKey::from_bytes(Zeroizing::new([3; 32])).unwrap()),
        }
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.into())).unwrap()
    }

    fn texts(keys: &ClientKeys) -> (String, Option<String>) {
        let pre_shared = keys.pre_shared.as_ref().map(|key| key.to_text().to_string());
        (keys.private.to_text().to_string(), pre_shared)
    }

    #[test]
    fn keys_survive_their_text_plain_and_encrypted() {
        let words = passphrase("x");
        for with in [false, true] {
            let plain: StoredKeys = StoredKeys::plain(keys(with)).to_text().parse().unwrap();
            assert!(!plain.is_encrypted());
            assert_eq!(texts(&plain.decrypt(&words).unwrap()), texts(&keys(with)));
            assert_eq!(texts(&plain.open().unwrap()), texts(&keys(with)));

            let cost = Cost::new(8, 1, 1).unwrap();
            let random = SystemRandom::new();
            let sealed = StoredKeys::encrypted(&keys(with), &words, cost, &random).unwrap();
            let text = sealed.to_text();
            assert!(text.contains(&format!("# {}\n", keys(with).private.public())), "{}", *text);
            let read: StoredKeys = text.parse().unwrap();
            assert!(read.is_encrypted());
            assert_eq!(read.public(), keys(with).private.public());
            assert_eq!(texts(&read.decrypt(&words).unwrap()), texts(&keys(with)));
            let wrong = read.decrypt(&passphrase("y")).unwrap_err();
            assert_eq!(wrong, DecryptError::WrongPassphrase);
            assert!(read.open().is_err());
        }
    }

    #[test]
    fn one_derivation_opens_both_keys() {
        let (words, random) = (passphrase("x"), SystemRandom::new());
        let cost = Cost::new(8, 1, 1).unwrap();
        let sealed = StoredKeys::encrypted(&keys(true), &words, cost, &random).unwrap();
        let (StoredPrivateKey::Encrypted(one), Some(StoredPreSharedKey::Encrypted(two))) =
            (&sealed.private, &sealed.pre_shared)
        else {
            panic!("{sealed:?}");
        };
        assert_eq!(one.recipe(), two.recipe());
        // Under one key, so never with one nonce.
        assert_ne!(one.to_string()[54..86], two.to_string()[50..82]);
    }

    #[test]
    fn what_a_text_must_hold_is_told() {
        let of = |text: &str| text.parse::<StoredKeys>().unwrap_err().to_string();
        let (private, psk) = texts(&keys(true));
        let psk = psk.unwrap();
        assert!(of("# nothing\n").starts_with("there is no private key"));
        assert!(of(&psk).starts_with("there is no private key"));
        assert!(
            of(&format!("{private}\n{private}")).starts_with("line 2: this is a second private")
        );
        let two = format!("{psk}\n{private}\n\n{psk}");
        assert!(of(&two).starts_with("line 4: this is a second pre-shared key"));
        let public = keys(false).private.public();
        assert!(of(&public.to_string()).starts_with("line 1: this is a public key"));
        assert!(of(&format!("{private}\nlogin: me")).starts_with("line 2: this is no private key"));
    }
}
