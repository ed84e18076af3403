//! The pair secrets of the last run.

use super::*;

/// A thousand clients, and one with a pre-shared key; their secrets are kept.
fn host_with_kept_secrets() -> Host {
    let host = Host::new(SSH);
    fs::create_dir(host.path("state")).unwrap();
    let state = host.path("state");
    host.write("server.toml", &format!("state-directory = \"{}\"\n{SSH}", state.display()));
    for number in 0..1_000u32 {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let name = format!("client-{number:03}");
        host.client(&name, &PublicKey::from_bytes(bytes), "allow = [\"ssh\"]");
    }
    let more = format!(
        "allow = [\"ssh\"]\npre-shared-key-file = \"{}\"",
        host.path("laptop.psk").display()
    );
    host.client("laptop", &key(1), &more);
    host.new_pre_shared_key();
    host
}

impl Host {
    fn new_pre_shared_key(&self) {
        let pre_shared = PreSharedKey::generate(&SystemRandom::new()).unwrap();
        let file = self.path("laptop.psk");
        write_pre_shared_key(file, &pre_shared, Overwrite::Replace).unwrap();
    }

    /// Starts as a daemon does: how many agreements it makes, and whether the file was of no use.
    /// The secrets are those that a start without the file derives.
    fn start(&self) -> (usize, Option<String>) {
        let config = self.load().unwrap();
        for (sender, secret) in &config.senders.present {
            let client = PublicKey::from(sender.id());
            let pre_shared = config.roster.member(&sender.id()).unwrap().pre_shared;
            let wanted =
                pair_secret_for_server(&config.keys.present, &client, pre_shared.as_deref());
            assert_eq!(secret.keys(), wanted.unwrap().keys());
        }
        config.keep_secrets(&config.settings.state_directory).unwrap();
        (config.kept.derived, config.kept.unusable)
    }
}

#[test]
fn a_second_start_makes_no_agreements() {
    let host = host_with_kept_secrets();
    assert_eq!(host.start(), (1_000, None));
    let file = host.path("state/pair-secrets");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::read(&file).unwrap();
    assert_eq!(host.start(), (0, None));
    assert_eq!(fs::read(&file).unwrap(), written, "written without need");
    // Who only looks writes nothing, whatever there is to write.
    fs::remove_file(&file).unwrap();
    assert_eq!(host.load().unwrap().kept.derived, 1_000);
    assert!(!file.exists());
}

#[test]
fn what_has_changed_is_derived_and_who_is_gone_is_forgotten() {
    let host = host_with_kept_secrets();
    host.start();
    let file = host.path("state/pair-secrets");
    let length = || fs::metadata(&file).unwrap().len();
    let before = length();
    // What follows from a pre-shared key that lies elsewhere is not kept.
    host.new_pre_shared_key();
    assert_eq!((host.start(), length()), ((0, None), before));
    host.client("laptop", &key(1), "allow = [\"ssh\"]");
    assert_eq!((host.start(), length()), ((1, None), before + 128));
    host.client("client-007", &key(2), "allow = [\"ssh\"]");
    assert_eq!((host.start(), length()), ((1, None), before + 128));
    fs::remove_file(host.path("clients.d/client-008.toml")).unwrap();
    assert_eq!((host.start(), length()), ((0, None), before));
    // Too few to keep any.
    fs::remove_file(host.path("clients.d/client-009.toml")).unwrap();
    assert_eq!(host.start(), (999, None));
    assert!(!file.exists());
}

#[test]
fn a_file_of_secrets_that_is_not_ours_is_told_and_written_anew() {
    let host = host_with_kept_secrets();
    host.start();
    let file = host.path("state/pair-secrets");
    let whole = fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[5_000] ^= 1;
    for content in [&damaged[..], &whole[..whole.len() - 1], b"something else", b""] {
        fs::write(&file, content).unwrap();
        let (derived, unusable) = host.start();
        assert!(derived == 1_000 && unusable.is_some());
        assert_eq!(host.start(), (0, None));
    }
    let other = PrivateKey::from_bytes([8; 32].into());
    write_private_key(host.path("server.key"), &other, Overwrite::Replace).unwrap();
    let (derived, unusable) = host.start();
    assert!(derived == 1_000 && unusable.unwrap().contains("another private key"));
    // Nothing is kept under the one before, which is known as well.
    write_private_key(host.path("old.key"), &host.server, Overwrite::Refuse).unwrap();
    let before = fs::read_to_string(host.path("server.toml")).unwrap();
    let previous = format!(
        "previous-private-key-file = \"{}\"\nprevious-key-until = \"2099-01-01\"\n{before}",
        host.path("old.key").display()
    );
    host.write("server.toml", &previous);
    assert_eq!(host.start(), (0, None));
    host.write("server.toml", &before);
    assert_eq!(host.start(), (0, None));
    assert_eq!(fs::metadata(&file).unwrap().len(), u64::try_from(whole.len()).unwrap());
    // A client whose key is good for nothing is refused, whatever is in the file.
    host.client("client-001", &PublicKey::from_bytes([0; 32]), "allow = [\"ssh\"]");
    assert!(host.error().contains("low order"));
}
