//! Keys under a passphrase, at a terminal and without one, and keys that a command gives.

#[cfg(test)]
mod unasked;

use crate::support::{CLIENT_PRIVATE, Ear, Home, Ran, client_key};
use crate::terminal::Terminal;
use spa_keys::{Overwrite, PrivateKey, StoredKeys};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const WORDS: &str = "correct horse battery staple";

fn private() -> PrivateKey {
    CLIENT_PRIVATE.parse().unwrap()
}

/// The key of the tests under a passphrase, which is cheap to try.
fn encrypted(words: &str, pre_shared: bool) -> StoredKeys {
    let random = ring::rand::SystemRandom::new();
    let psk = pre_shared.then(|| spa_keys::PreSharedKey::generate(&random).unwrap());
    let keys = spa_keys::ClientKeys { private: private(), pre_shared: psk };
    let words = spa_keys::Passphrase::new(Zeroizing::new(words.into())).unwrap();
    let cost = spa_keys::Cost::new(64, 1, 1).unwrap();
    StoredKeys::encrypted(&keys, &words, cost, &random).unwrap()
}

/// With a server called `work`, whose key is under a passphrase.
fn home(ear: &Ear) -> Home {
    let home = Home::empty();
    spa_keys::write_stored_keys(
        home.file("identity.key"),
        &encrypted(WORDS, false),
        Overwrite::Refuse,
    )
    .unwrap();
    home.add_server("work", &format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port()));
    home
}

fn secret_file(home: &Home, name: &str, content: &str) -> PathBuf {
    let path = home.file(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Without a terminal, with the passphrase in a file.
fn run_with(home: &Home, file: &str, words: &[&str]) -> Ran {
    let mut command = home.command(words);
    Ran::of(&command.env("SPA_PASSPHRASE_FILE", file).output().unwrap(), home.path())
}

/// Without a terminal at all.
fn run_detached(home: &Home, words: &[&str]) -> Ran {
    let program = home.command(words);
    let mut command = std::process::Command::new("/usr/bin/setsid");
    command.arg("--wait").arg(program.get_program()).args(words).env_clear();
    command.env("SPA_CONFIG_DIR", home.path()).stdin(Stdio::null());
    command.env("SPA_STATE_DIR", home.file("state"));
    Ran::of(&command.output().unwrap(), home.path())
}

#[test]
fn a_passphrase_typed_at_the_terminal_knocks_and_is_not_shown() {
    let ear = Ear::v4();
    let home = home(&ear);
    let mut terminal = Terminal::start(&home, &["open", "ssh", "--no-wait"]);
    let question = format!("passphrase of {}: ", home.file("identity.key").display());
    terminal.answer_unseen(&question, WORDS);
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    assert!(!shown.contains("horse"), "{shown}");
    assert!(shown.contains("asked work to open ssh (127.0.0.1)"), "{shown}");
    ear.knock();
    assert!(!ear.has_more());
}

/// Who types is not waiting for a port.
#[test]
fn a_proxy_gives_whoever_types_the_passphrase_time() {
    let ear = Ear::v4();
    let home = home(&ear);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let words = ["proxy", "127.0.0.1", &port, "--timeout", "3s"];
    let mut terminal = Terminal::start(&home, &words);
    terminal.see("passphrase of ");
    sleep(Duration::from_secs(4));
    terminal.answer_unseen("passphrase of ", WORDS);
    let other = std::thread::spawn(move || listener.accept().map(drop));
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    other.join().unwrap().unwrap();
    ear.knock();
    assert!(!ear.has_more());
}

#[test]
fn a_passphrase_may_be_typed_three_times() {
    let ear = Ear::v4();
    let home = home(&ear);
    let mut terminal = Terminal::start(&home, &["open", "ssh", "--no-wait"]);
    terminal.answer_unseen("identity.key: ", "wrong");
    terminal.answer_unseen("that is not the passphrase of this key; try again", "");
    terminal.answer_unseen("try again", WORDS);
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    ear.knock();

    let mut terminal = Terminal::start(&home, &["open", "ssh", "--no-wait"]);
    for _ in 0..3 {
        terminal.answer_unseen("passphrase of ", "wrong");
    }
    let (status, shown) = terminal.end();
    assert_eq!(status, 1, "{shown}");
    assert!(
        shown.contains("is under a passphrase: what was typed is not it, 3 times; try again"),
        "{shown}"
    );
    assert!(!ear.has_more());
}

#[test]
fn one_question_is_enough_for_keys_with_one_passphrase() {
    let ear = Ear::v4();
    let home = home(&ear);
    let psk = encrypted(WORDS, true).pre_shared.unwrap();
    spa_keys::write_stored_pre_shared_key(home.file("work.psk"), &psk, Overwrite::Refuse).unwrap();
    let config = fs::read_to_string(home.file("config.toml")).unwrap();
    fs::write(home.file("config.toml"), format!("{config}pre-shared-key-file = \"work.psk\"\n"))
        .unwrap();
    home.add_server("other", &format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port()));
    let mut terminal = Terminal::start(&home, &["open", "ssh@work", "ssh@other", "--no-wait"]);
    terminal.answer_unseen("identity.key: ", WORDS);
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    assert!(!shown.contains("passphrase of"), "{shown}");
    ear.hear();
    ear.hear();
}

/// `proxy` carries a connection there: not a byte of it is the client's to read.
#[test]
fn standard_input_is_left_alone() {
    let ear = Ear::v4();
    let home = home(&ear);
    secret_file(&home, "input", "not the passphrase\n");
    let redirection = format!("<{}", home.file("input").display());
    let mut terminal = Terminal::start_with(&home, &["open", "ssh", "--no-wait"], &redirection);
    terminal.answer_unseen("identity.key: ", WORDS);
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    ear.knock();
}

#[test]
fn a_file_gives_the_passphrase_where_nobody_can_type_it() {
    let ear = Ear::v4();
    let home = home(&ear);
    let open = ["open", "ssh", "--no-wait"];
    let nobody = run_detached(&home, &open);
    assert_eq!(
        nobody,
        Ran::said(
            1,
            "error: the key in [dir]/identity.key is under a passphrase: there is no terminal to ask \
             for it at; put it into a file that only you can read and name that in SPA_PASSPHRASE_FILE"
        )
    );
    let file = secret_file(&home, "words", &format!("{WORDS}\r\n"));
    let file = file.to_str().unwrap();
    let asked = Ran::said(0, "asked work to open ssh (127.0.0.1)");
    assert_eq!(run_with(&home, file, &open), asked);
    ear.knock();

    let refused = |file: &str, told: &str| {
        let ran = run_with(&home, file, &open);
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
        assert!(!ran.stderr.contains("horse"), "{}", ran.stderr);
        assert!(!ear.has_more());
    };
    fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
    refused(file, "is open to other users (mode 0640)");
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(file, home.file("link")).unwrap();
    refused(home.file("link").to_str().unwrap(), "is a symbolic link");
    refused(home.file("none").to_str().unwrap(), "there is no key file");
    refused("-", "standard input is not read for it");
    fs::write(file, "").unwrap();
    refused(file, "an empty passphrase protects nothing");
    fs::write(file, format!("{WORDS}\nmore\n")).unwrap();
    refused(file, "has several lines");
    fs::write(file, "wrong horse\n").unwrap();
    refused(file, "words is not it; correct SPA_PASSPHRASE_FILE");
    fs::write(file, WORDS).unwrap();
    assert_eq!(run_with(&home, file, &open), asked);
}

#[test]
fn a_key_is_made_under_a_passphrase_that_is_typed_twice() {
    let home = Home::empty();
    let mut terminal = Terminal::start(&home, &["keygen", "--encrypt"]);
    terminal.answer_unseen("new passphrase for ", WORDS);
    terminal.answer_unseen("the same again: ", "correct house");
    let (status, shown) = terminal.end();
    assert_eq!(status, 1);
    assert!(shown.contains("error: the two passphrases differ; nothing was written"), "{shown}");
    assert!(!home.file("identity.key").exists());

    let mut terminal = Terminal::start(&home, &["keygen", "--encrypt"]);
    terminal.answer_unseen("new passphrase for ", WORDS);
    terminal.answer_unseen("the same again: ", WORDS);
    let (status, shown) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    assert!(shown.contains("identity.key, under its passphrase; it stays there"), "{shown}");

    let stored = spa_keys::read_stored_keys(home.file("identity.key")).unwrap();
    assert!(stored.is_encrypted());
    assert!(shown.contains(&format!("{}\n", stored.public())), "{shown}");
    let shown = home.run(&["key", "show"]);
    assert_eq!((shown.status, shown.stdout), (0, format!("{}\n", stored.public())));
    assert_eq!(shown.stderr, "the private key is in [dir]/identity.key, under a passphrase\n");
    let mode = fs::metadata(home.file("identity.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = home.run(&["keygen", "--encrypt"]);
    assert_eq!(again.status, 1);
    assert!(again.stderr.contains("exists already and is left as it is"), "{}", again.stderr);
}

#[test]
fn a_list_shows_the_public_key_and_asks_nobody() {
    let ear = Ear::v4();
    let home = home(&ear);
    let marker = home.file("ran");
    home.add_server(
        "vault",
        &format!("host = \"h\"\nkey-command = [\"touch\", \"{}\"]", marker.display()),
    );
    home.add_server("ring", "host = \"h\"\nidentity = \"secret-service:ring\"");
    let ran = run_detached(&home, &["list"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let key = client_key();
    assert!(ran.stdout.contains(&format!("  client key  {key} (under a passphrase)\n")));
    assert!(ran.stdout.contains("  client key  by command: touch "), "{}", ran.stdout);
    assert!(ran.stdout.contains("  client key  in the secret service, as ring\n"));
    assert!(!marker.exists(), "a list ran a command");
    let ran = run_detached(&home, &["list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(list["servers"][2]["identity"]["passphrase"], true);
    assert_eq!(list["servers"][1]["identity"]["command"][0], "touch");
    assert_eq!(list["servers"][0]["identity"]["secret_service"], "ring");
    // The positive control.
    let ran = run_detached(&home, &["key", "show", "vault"]);
    assert_eq!((ran.status, marker.exists()), (1, true), "{}", ran.stderr);
}

#[test]
fn a_passphrase_is_put_on_changed_and_taken_away() {
    let home = Home::empty();
    home.write_key("identity.key");
    let plain = fs::read(home.file("identity.key")).unwrap();
    let first = secret_file(&home, "first", "first words");
    let second = secret_file(&home, "second", "second words");
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    let is = |state: &str| Ran::said(0, &format!("the key in [dir]/identity.key is {state}"));
    let put_on = home.run(&["key", "passphrase", "--new-passphrase-file", first]);
    assert_eq!(put_on, is("under the new passphrase now"));
    let before = fs::read(home.file("identity.key")).unwrap();
    assert!(!String::from_utf8(before.clone()).unwrap().contains("spa-private-"));

    let wrong = run_with(&home, second, &["key", "passphrase", "--new-passphrase-file", second]);
    assert_eq!(wrong.status, 1, "{}", wrong.stderr);
    assert_eq!(fs::read(home.file("identity.key")).unwrap(), before);

    let changed = run_with(&home, first, &["key", "passphrase", "--new-passphrase-file", second]);
    assert_eq!(changed, is("under the new passphrase now"));
    assert_eq!(run_with(&home, first, &["key", "passphrase", "--remove"]).status, 1);
    let removed = run_with(&home, second, &["key", "passphrase", "--remove"]);
    assert_eq!(removed, is("without a passphrase now"));
    assert_eq!(fs::read(home.file("identity.key")).unwrap(), plain);
    let nothing = home.run(&["key", "passphrase", "--remove"]);
    assert!(nothing.stderr.ends_with("has no passphrase; nothing was changed\n"));
}

#[test]
fn a_pre_shared_key_beside_or_apart_keeps_up_with_its_passphrase() {
    let home = Home::empty();
    let words = secret_file(&home, "words", "some words");
    let words = words.to_str().unwrap();
    let random = ring::rand::SystemRandom::new();
    let psk = spa_keys::PreSharedKey::generate(&random).unwrap();
    let text = format!("{CLIENT_PRIVATE}\n{}\n", *psk.to_text());
    secret_file(&home, "both.key", &text);
    secret_file(&home, "alone.psk", &psk.to_text());
    for name in ["both.key", "alone.psk"] {
        let path = home.file(name);
        let path = path.to_str().unwrap();
        let ran = home.run(&["key", "passphrase", path, "--new-passphrase-file", words]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let content = fs::read_to_string(path).unwrap();
        assert!(content.contains("spa-encrypted-psk-") && !content.contains(&**psk.to_text()));
        let ran = run_with(&home, words, &["key", "passphrase", path, "--remove"]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(fs::read_to_string(path).unwrap().contains(&**psk.to_text()));
    }
}

#[test]
fn a_key_is_replaced_whole_or_not_at_all_when_the_program_is_killed() {
    let home = Home::empty();
    home.write_key("identity.key");
    let words = secret_file(&home, "words", "some words");
    let words = words.to_str().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut replaced = false;
    for delay in (0..).map(|step| Duration::from_millis(step * 25)) {
        let mut child = home
            .command(&["key", "passphrase", "--new-passphrase-file", words])
            .env("SPA_PASSPHRASE_FILE", words)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        let stored = spa_keys::read_stored_keys(home.file("identity.key")).unwrap();
        assert_eq!(stored.public(), client_key());
        replaced |= stored.is_encrypted();
        if replaced || Instant::now() > deadline {
            break;
        }
    }
    assert!(replaced, "it never came so far");
}

#[test]
fn a_command_gives_the_key_and_standard_input_is_not_its() {
    let ear = Ear::v4();
    let home = Home::empty();
    secret_file(&home, "vault", &format!("{CLIENT_PRIVATE}\n"));
    let at = format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port());
    let vault = home.file("vault");
    home.add_server(
        "work",
        &format!("{at}\nkey-command = [\"/bin/cat\", \"{}\"]", vault.display()),
    );
    home.add_server("input", &format!("{at}\nkey-command = [\"/bin/cat\"]"));
    home.add_server("fails", &format!("{at}\nkey-command = [\"/bin/cat\", \"/does/not/exist\"]"));
    home.add_server("none", &format!("{at}\nkey-command = [\"/does/not/exist\"]"));
    let asked = Ran::said(0, "asked work to open ssh (127.0.0.1)");
    assert_eq!(home.run(&["open", "ssh@work"]), asked);
    ear.knock();

    // A key on standard input: the command must not get it.
    let mut command = home.command(&["open", "ssh@input"]);
    let output = command.stdin(fs::File::open(&vault).unwrap()).output().unwrap();
    assert_eq!(
        Ran::of(&output, home.path()),
        Ran::said(
            78,
            "error: what comes from key-command [\"/bin/cat\"] can't be used: there is no private \
             key; one line begins with spa-private- or spa-encrypted-private-"
        )
    );
    let ran = home.run(&["open", "ssh@fails"]);
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("No such file") && ran.stderr.contains(
        "key-command \"/bin/cat /does/not/exist\" failed (exit status: 1); what it said stands above"
    ), "{}", ran.stderr);
    let ran = home.run(&["open", "ssh@none"]);
    assert!(ran.stderr.contains("can't be started"), "{}", ran.stderr);
    assert!(!ear.has_more());

    // The encrypted form works too.
    fs::write(&vault, &**encrypted(WORDS, false).to_text()).unwrap();
    let words = secret_file(&home, "words", WORDS);
    assert_eq!(run_with(&home, words.to_str().unwrap(), &["open", "ssh@work"]), asked);
    ear.knock();
}

#[test]
fn a_command_is_a_list_of_words() {
    for (line, told) in [
        (
            "key-command = \"pass show spa/work\"",
            "[dir]/config.toml, line 4: key-command is a program and its arguments, each a string \
             of its own, as in [\"pass\", \"show\", \"spa/work\"]; no shell reads it",
        ),
        ("key-command = []", "key-command is a program and its arguments"),
        ("key-command = [1]", "key-command is a program and its arguments"),
        ("pre-shared-key-command = \"x\"", "pre-shared-key-command is a program and its"),
        (
            "key-command = [\"a\"]\nidentity = \"a\"",
            "line 4: the key comes from identity or from key-command, not from both",
        ),
        ("identity = \"secret-service:a b\"", "is not the name of a key in the secret service"),
    ] {
        let home = Home::with_server(&format!("host = \"h\"\n{line}"));
        let ran = home.run(&["open", "ssh"]);
        assert_eq!(ran.status, 78, "{}", ran.stderr);
        assert!(ran.stderr.contains(told), "{line}: {}", ran.stderr);
    }
}

#[test]
fn a_server_is_added_without_asking_for_the_passphrase() {
    let ear = Ear::v4();
    let home = home(&ear);
    let key = crate::support::server_key().to_string();
    let add = ["server", "add", "more", "--host", "h", "--public-key", &key];
    assert_eq!(run_detached(&home, &add).status, 0);
    let own = client_key().to_string();
    let add = ["server", "add", "self", "--host", "h", "--public-key", &own];
    let ran = run_detached(&home, &add);
    assert_eq!(ran.status, 78);
    assert!(ran.stderr.contains("the keys for server self can't be used"), "{}", ran.stderr);
}

#[test]
fn help_shows_the_commands_for_keys() {
    let help = |words: &[&str]| {
        let ran = Home::empty().run(words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let text = ran.stdout;
        assert!(text.lines().count() <= 40, "{words:?}: {} lines", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{words:?}");
        text
    };
    insta::assert_snapshot!("help_key", help(&["key", "--help"]));
    insta::assert_snapshot!("help_key_show", help(&["key", "show", "--help"]));
    insta::assert_snapshot!("help_key_passphrase", help(&["key", "passphrase", "--help"]));
    insta::assert_snapshot!("help_key_copy", help(&["key", "copy", "--help"]));
    insta::assert_snapshot!("help_export", help(&["export", "--help"]));
    insta::assert_snapshot!("help_import", help(&["import", "--help"]));
}
