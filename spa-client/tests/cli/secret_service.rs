//! Keys in a real secret service: GNOME's, on a message bus of its own.

use crate::support::{Ear, Home, Ran, server_key};
use std::fs;
use std::process::{Command, Stdio};

/// Runs a script in a session of its own: a message bus, a home, no display. `$SPA` is the program.
fn session(home: &Home, script: &str) -> Ran {
    let program = home.command(&[]);
    let output = Command::new("dbus-run-session")
        .args(["--", "sh", "-euc", script])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home.path())
        .env("XDG_RUNTIME_DIR", home.path())
        .env("SPA_CONFIG_DIR", home.path())
        .env("SPA", program.get_program())
        .stdin(Stdio::null())
        .output()
        .expect("dbus-run-session; tests/install-needs installs it");
    Ran::of(&output, home.path())
}

/// Starts the service, with a keyring that this password unlocks.
const UNLOCKED: &str =
    "printf words | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1\n";

#[test]
fn a_key_in_the_secret_service_is_made_shown_and_knocks() {
    let ear = Ear::v4();
    let home = Home::empty();
    let add = format!(
        "\"$SPA\" server add work --host 127.0.0.1 --knock-port {} --public-key {} --identity secret-service:laptop",
        ear.port(),
        server_key()
    );
    let ran = session(
        &home,
        &format!(
            "{UNLOCKED}\
             \"$SPA\" keygen --output secret-service:laptop\n\
             {add}\n\
             \"$SPA\" key show\n\
             \"$SPA\" open ssh --no-wait\n\
             ! \"$SPA\" keygen --output secret-service:laptop\n\
             ! \"$SPA\" key show secret-service:other\n"
        ),
    );
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let keys: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(keys.len(), 2, "{}", ran.stdout);
    assert!(keys[0].starts_with("spa-public-") && keys[0] == keys[1], "{}", ran.stdout);
    for told in [
        "the private key is in secret-service:laptop; it stays there",
        "asked work to open ssh (127.0.0.1)",
        "the secret service has a key laptop already, which is left as it is",
        "the secret service has no key other; make one with: spa-client keygen --output secret-service:other",
    ] {
        assert!(ran.stderr.contains(told), "{told}: {}", ran.stderr);
    }
    assert_eq!(ear.hear().0.len(), 216);
    // In the keyring it is encrypted, and nowhere else is it.
    for entry in fs::read_dir(home.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            assert!(!text.contains("spa-private-"), "{}", path.display());
        }
    }
}

#[test]
fn a_key_file_is_copied_into_the_secret_service_and_its_passphrase_goes_along() {
    let home = Home::empty();
    home.write_key("identity.key");
    fs::write(home.file("words"), "some words").unwrap();
    let ran = session(
        &home,
        &format!(
            "{UNLOCKED}\
             chmod 600 \"$HOME/words\"\n\
             \"$SPA\" key copy --to secret-service:laptop\n\
             \"$SPA\" key passphrase secret-service:laptop --new-passphrase-file \"$HOME/words\"\n\
             \"$SPA\" key show secret-service:laptop\n\
             ! \"$SPA\" key copy --to secret-service:laptop\n"
        ),
    );
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout, format!("{}\n", crate::support::client_key()));
    assert!(ran.stderr.contains("identity = \"secret-service:laptop\""), "{}", ran.stderr);
    assert!(ran.stderr.contains("secret-service:laptop, under a passphrase"), "{}", ran.stderr);
    assert!(ran.stderr.contains("has a key laptop already"), "{}", ran.stderr);
}

#[test]
fn without_a_secret_service_what_is_missing_is_told() {
    let home = Home::with_server("host = \"127.0.0.1\"\nidentity = \"secret-service:laptop\"");
    for mut command in [home.command(&["open", "ssh"]), {
        let mut command = home.command(&["open", "ssh"]);
        command.env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/does/not/exist");
        command
    }] {
        let ran = Ran::of(&command.output().unwrap(), home.path());
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: no secret service can be asked for the key laptop (")
                && ran.stderr.contains("DBUS_SESSION_BUS_ADDRESS"),
            "{}",
            ran.stderr
        );
    }
}

/// Nobody can type its password: there is no display, so the service can't ask.
#[test]
fn a_locked_keyring_that_nobody_unlocks_is_told() {
    let home = Home::with_server("host = \"127.0.0.1\"\nidentity = \"secret-service:laptop\"");
    let made =
        session(&home, &format!("{UNLOCKED}\"$SPA\" keygen --output secret-service:laptop\n"));
    assert_eq!(made.status, 0, "{}", made.stderr);
    let ran = session(
        &home,
        "gnome-keyring-daemon --start --components=secrets >/dev/null 2>&1\n\
         ! \"$SPA\" open ssh\n",
    );
    assert_eq!((ran.status, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert!(
        ran.stderr.contains(
            "error: the secret service is locked, and was not unlocked for the key laptop"
        ),
        "{}",
        ran.stderr
    );
}
