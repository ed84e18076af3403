//! The desktop's secret service: GNOME's, KDE's or another's over D-Bus, on macOS the keychain, on
//! Windows the credential manager. Built with the feature `secret-service`.
//!
//! An item has the attributes `service = "spa-client"` and `username = NAME`; its secret is the
//! text of a key file.

use super::SecretName;
use core::time::Duration;
use spa_keys::Overwrite;
use std::sync::mpsc;
use std::thread;
use zeroize::Zeroizing;

/// The service asks the user to unlock it, who may be at another window.
const TIME_LIMIT: Duration = Duration::from_secs(120);

pub(super) fn fetch(name: &SecretName) -> Result<Zeroizing<Vec<u8>>, SecretServiceError> {
    let owned = name.clone();
    within(name, move || system::fetch(&owned))
}

pub(super) fn remove(name: &SecretName) -> Result<(), SecretServiceError> {
    let owned = name.clone();
    within(name, move || system::remove(&owned))
}

pub(super) fn store(
    name: &SecretName,
    text: &Zeroizing<String>,
    overwrite: Overwrite,
) -> Result<(), SecretServiceError> {
    let (owned, text) = (name.clone(), text.clone());
    within(name, move || {
        if overwrite == Overwrite::Refuse {
            match system::fetch(&owned) {
                Ok(_) => return Err(SecretServiceError::Exists { name: owned }),
                Err(SecretServiceError::NotFound { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        system::store(&owned, text.as_bytes())
    })
}

/// Nothing in the crates below has a time limit.
fn within<T: Send + 'static>(
    name: &SecretName,
    work: impl FnOnce() -> Result<T, SecretServiceError> + Send + 'static,
) -> Result<T, SecretServiceError> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(TIME_LIMIT).unwrap_or_else(|_| {
        Err(SecretServiceError::Silent { name: name.clone(), seconds: TIME_LIMIT.as_secs() })
    })
}

#[cfg(all(
    feature = "secret-service",
    any(target_os = "linux", target_os = "freebsd", target_os = "macos", windows)
))]
mod system {
    use super::{SecretName, SecretServiceError};
    use keyring_core::Error;
    use keyring_core::api::CredentialStoreApi as _;
    use std::collections::HashMap;
    use zeroize::Zeroizing;

    #[cfg(target_os = "macos")]
    use apple_native_keyring_store::keychain::Store;
    #[cfg(windows)]
    use windows_native_keyring_store::Store;
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    use zbus_secret_service_keyring_store::Store;

    pub(super) fn fetch(name: &SecretName) -> Result<Zeroizing<Vec<u8>>, SecretServiceError> {
        let secret = entry(name).and_then(|entry| entry.get_secret());
        secret.map(Zeroizing::new).map_err(|error| told(name, error))
    }

    pub(super) fn store(name: &SecretName, secret: &[u8]) -> Result<(), SecretServiceError> {
        entry(name).and_then(|entry| entry.set_secret(secret)).map_err(|error| told(name, error))
    }

    pub(super) fn remove(name: &SecretName) -> Result<(), SecretServiceError> {
        let removed = entry(name).and_then(|entry| entry.delete_credential());
        removed.map_err(|error| told(name, error))
    }

    fn entry(name: &SecretName) -> Result<keyring_core::Entry, Error> {
        let store = Store::new()?;
        // What the user sees in a list of secrets; only the D-Bus service knows labels.
        let label = format!("spa-client: the key {name}");
        let labelled = HashMap::from([("label", label.as_str())]);
        let modifiers = cfg!(any(target_os = "linux", target_os = "freebsd")).then_some(&labelled);
        store.build("spa-client", name.as_str(), modifiers)
    }

    fn told(name: &SecretName, error: Error) -> SecretServiceError {
        let name = name.clone();
        match error {
            Error::NoEntry => SecretServiceError::NotFound { name },
            Error::NoStorageAccess(error) => {
                SecretServiceError::Locked { name, reason: error.to_string() }
            }
            other => SecretServiceError::Failed { name, reason: other.to_string() },
        }
    }
}

#[cfg(not(all(
    feature = "secret-service",
    any(target_os = "linux", target_os = "freebsd", target_os = "macos", windows)
)))]
mod system {
    use super::{SecretName, SecretServiceError};
    use zeroize::Zeroizing;

    pub(super) fn fetch(_: &SecretName) -> Result<Zeroizing<Vec<u8>>, SecretServiceError> {
        Err(SecretServiceError::NotBuilt)
    }

    pub(super) fn store(_: &SecretName, _: &[u8]) -> Result<(), SecretServiceError> {
        Err(SecretServiceError::NotBuilt)
    }

    pub(super) fn remove(_: &SecretName) -> Result<(), SecretServiceError> {
        Err(SecretServiceError::NotBuilt)
    }
}

/// Why the secret service gave or took no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretServiceError {
    /// No such item.
    #[error(
        "the secret service has no key {name}; make one with: spa-client keygen --output secret-service:{name}"
    )]
    NotFound {
        /// The item.
        name: SecretName,
    },
    /// An item of that name, which is not to be replaced.
    #[error(
        "the secret service has a key {name} already, which is left as it is; choose another name"
    )]
    Exists {
        /// The item.
        name: SecretName,
    },
    /// It is locked, and was not unlocked.
    #[error(
        "the secret service is locked, and was not unlocked for the key {name} ({reason}); unlock the keyring, by logging in to the desktop or in its own program, and try again"
    )]
    Locked {
        /// The item.
        name: SecretName,
        /// What the service says.
        reason: String,
    },
    /// It did not answer.
    #[error(
        "the secret service did not answer for {seconds} s when asked for the key {name}; does it wait in another window for being unlocked?"
    )]
    Silent {
        /// The item.
        name: SecretName,
        /// The limit.
        seconds: u64,
    },
    /// There is none, or it failed.
    #[error(
        "no secret service can be asked for the key {name} ({reason}); it is part of a desktop session: does one run (GNOME Keyring, KWallet, KeePassXC), and is DBUS_SESSION_BUS_ADDRESS set here? a key file needs none of it"
    )]
    Failed {
        /// The item.
        name: SecretName,
        /// What the system says.
        reason: String,
    },
    /// This program can't.
    #[error(
        "this spa-client was built without the secret service (feature secret-service); use a key file or key-command"
    )]
    NotBuilt,
}
