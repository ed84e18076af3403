//! What the commands write, say and return.

use crate::support::{CLIENT_PRIVATE, Ear, Home, Ran, client_key, server_key};
use std::fs;

fn help(words: &[&str]) -> String {
    let ran = Home::empty().run(words);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    ran.stdout
}

#[test]
fn help_shows_all_there_is_with_examples() {
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_open", help(&["open", "--help"]));
    insta::assert_snapshot!("help_close", help(&["close", "--help"]));
    insta::assert_snapshot!("help_proxy", help(&["proxy", "--help"]));
    insta::assert_snapshot!("help_ssh", help(&["ssh", "--help"]));
    insta::assert_snapshot!("help_setup_ssh", help(&["setup", "ssh", "--help"]));
    insta::assert_snapshot!("help_status", help(&["status", "--help"]));
    insta::assert_snapshot!("help_list", help(&["list", "--help"]));
    insta::assert_snapshot!("help_keygen", help(&["keygen", "--help"]));
    insta::assert_snapshot!("help_completions", help(&["completions", "--help"]));
    insta::assert_snapshot!("help_doctor", help(&["doctor", "--help"]));
    insta::assert_snapshot!("help_server", help(&["server", "--help"]));
    insta::assert_snapshot!("help_server_add", help(&["server", "add", "--help"]));
    insta::assert_snapshot!("help_server_remove", help(&["server", "remove", "--help"]));
}

#[test]
fn help_fits_a_screen() {
    for words in
        [&["--help"][..], &["open", "--help"], &["doctor", "--help"], &["server", "add", "--help"]]
    {
        let text = help(words);
        assert!(text.lines().count() <= 40, "{words:?}: {} lines", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{words:?}");
    }
}

#[test]
fn keygen_prints_the_public_key_and_keeps_the_private_one() {
    let home = Home::empty();
    let ran = home.run(&["keygen"]);
    assert_eq!(ran.status, 0);
    let key = spa_keys::read_private_key(home.file("identity.key")).unwrap();
    assert_eq!(ran.stdout, format!("{}\n", key.public()));
    assert_eq!(
        ran.stderr,
        format!(
            "\
the private key is in [dir]/identity.key; it stays there, only the public key above is given away
next, on the server (as root):
  spa-server client add NAME --public-key {} --allow ssh
then here, with the server's own public key:
  spa-client server add work --host HOST --public-key KEY
",
            key.public()
        )
    );
}

#[cfg(unix)]
#[test]
fn keys_and_their_directory_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let outside = Home::empty();
    let home = outside.file("a/b");
    let mut keygen = outside.command(&["keygen"]);
    assert!(keygen.env("SPA_CONFIG_DIR", &home).output().unwrap().status.success());
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.join("identity.key")), 0o600);
    assert_eq!(mode(&home), 0o700);
}

#[test]
fn keygen_replaces_no_key() {
    let home = Home::empty();
    home.write_key("identity.key");
    let before = fs::read(home.file("identity.key")).unwrap();
    let exists = format!(
        "error: [dir]/identity.key exists already and is left as it is; its public key is {}",
        client_key()
    );
    assert_eq!(home.run(&["keygen"]), Ran::said(1, &exists));
    assert_eq!(
        home.run(&["keygen", "--force"]),
        Ran::said(
            2,
            "error: keygen replaces no key, since servers that know the old one would lock you out; \
             if you no longer need [dir]/identity.key, move it away first: \
             mv [dir]/identity.key [dir]/identity.key.old"
        )
    );
    assert_eq!(fs::read(home.file("identity.key")).unwrap(), before);

    let other = home.file("other.key");
    let ran = home.run(&["keygen", "--output", other.to_str().unwrap()]);
    assert_eq!(ran.status, 0);
    assert!(
        ran.stderr.ends_with(" --public-key KEY --identity [dir]/other.key\n"),
        "{}",
        ran.stderr
    );
    assert_ne!(fs::read(other).unwrap(), before);
}

#[test]
fn from_nothing_to_a_knock_by_what_the_messages_say() {
    let home = Home::empty();
    let key = server_key().to_string();
    assert_eq!(
        home.run(&["open", "ssh"]),
        Ran::said(
            78,
            "error: there is no configuration [dir]/config.toml yet; add your server with: \
             spa-client server add NAME --host HOST --public-key KEY"
        )
    );
    let ear = Ear::v4();
    let port = ear.port().to_string();
    let add = [
        "server",
        "add",
        "work",
        "--host",
        "127.0.0.1",
        "--public-key",
        &key,
        "--knock-port",
        &port,
    ];
    assert_eq!(
        home.run(&add),
        Ran::said(
            0,
            "added work, the default server, to [dir]/config.toml\n\
             there is no identity key [dir]/identity.key yet; make one with: spa-client keygen"
        )
    );
    assert_eq!(
        home.run(&["open", "ssh"]),
        Ran::said(
            78,
            "error: there is no identity key [dir]/identity.key yet; make one with: spa-client keygen"
        )
    );
    assert_eq!(home.run(&["keygen"]).status, 0);
    assert_eq!(home.run(&["open", "ssh"]), Ran::said(0, "asked work to open ssh (127.0.0.1)"));
    assert_eq!(ear.hear().0.len(), 216);
}

#[test]
fn a_server_is_added_with_the_ports_of_its_services() {
    let home = Home::empty();
    let key = server_key().to_string();
    let add = |services: &[&str]| {
        let words = ["server", "add", "work", "--host", "gw", "--public-key", &key];
        let services = services.iter().flat_map(|service| ["--service", service]);
        home.run(&words.into_iter().chain(services).collect::<Vec<_>>())
    };
    for (services, told) in [
        (&["ssh"][..], "write a name and ports, as in ssh=tcp/2222"),
        (&["ssh="], "\"\" is not a port; "),
        (&["ssh=2222"], "\"2222\" is not a port; "),
        (&["ssh=tcp/22,"], "\"\" is not a port; "),
        (&["SSH=tcp/22"], "\"SSH\" is not a service name; "),
        (&["ssh=once"], "\"once\" is not a port; "),
        (&["ssh=,once"], "\"\" is not a port; "),
        (&["ssh=once,tcp/22"], "\"once\" is not a port; "),
        (&["ssh=tcp/22-21"], "\"tcp/22-21\" is not a range of ports; "),
        (&["ssh=tcp/22", "ssh=tcp/2222"], "--service names ssh twice; "),
    ] {
        let ran = add(services);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{services:?}");
        assert!(ran.stderr.contains(told), "{services:?}: {}", ran.stderr);
        assert!(!home.file("config.toml").exists(), "{services:?}");
    }
    assert_eq!(
        add(&[
            "ssh=tcp/2222",
            "web.admin=tcp/8443,udp/8443",
            "media=udp/10000-10100",
            "desk=tcp/5900,once",
        ])
        .status,
        0
    );
    assert_eq!(
        fs::read_to_string(home.file("config.toml")).unwrap(),
        format!(
            "default = \"work\"\n\n\
             [server.work]\nhost = \"gw\"\npublic-key = \"{key}\"\n\n\
             [server.work.services]\ndesk = {{ ports = [\"tcp/5900\"], connections = 1 }}\n\
             media = [\"udp/10000-10100\"]\nssh = [\"tcp/2222\"]\n\
             \"web.admin\" = [\"tcp/8443\", \"udp/8443\"]\n"
        )
    );
    let listed: serde_json::Value =
        serde_json::from_str(&home.run(&["list", "--json"]).stdout).unwrap();
    let services = &listed["servers"][0]["services"];
    assert_eq!(services["ssh"], serde_json::json!(["tcp/2222"]));
    assert_eq!(services["web.admin"], serde_json::json!(["tcp/8443", "udp/8443"]));
    assert_eq!(services["desk"], serde_json::json!({"ports": ["tcp/5900"], "connections": 1}));
    let shown = home.run(&["list"]).stdout;
    let line = "  services    desk (tcp/5900, one connection), http (tcp/80), https (tcp/443), \
                media (udp/10000-10100), ssh (tcp/2222), web.admin (tcp/8443, udp/8443)\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn servers_are_added_listed_and_removed() {
    let home = Home::empty();
    home.write_key("identity.key");
    let key = server_key().to_string();
    let add =
        |words: &[&str]| home.run(&[&["server", "add"], words, &["--public-key", &key]].concat());
    assert_eq!(
        add(&["work", "--host", "gw.example.org"]),
        Ran::said(
            0,
            "added work, the default server, to [dir]/config.toml\nnext: spa-client open ssh"
        )
    );
    assert_eq!(
        add(&["home", "--host", "[2001:db8::1]", "--knock-port", "53", "--knock-port", "443"]),
        Ran::said(0, "added home to [dir]/config.toml\nnext: spa-client open ssh@home")
    );
    assert_eq!(
        add(&["home", "--host", "elsewhere"]),
        Ran::said(
            1,
            "error: a server called home stands in [dir]/config.toml already; choose another name, \
             or first: spa-client server remove home"
        )
    );
    assert_eq!(
        fs::read_to_string(home.file("config.toml")).unwrap(),
        format!(
            "default = \"work\"\n\n\
             [server.work]\nhost = \"gw.example.org\"\npublic-key = \"{key}\"\n\n\
             [server.home]\nhost = \"2001:db8::1\"\npublic-key = \"{key}\"\nknock-ports = [53, 443]\n"
        )
    );
    let listed = home.run(&["list"]);
    let client = client_key();
    assert_eq!((listed.status, listed.stderr.as_str()), (0, ""));
    assert_eq!(
        listed.stdout,
        format!(
            "\
home
  host        2001:db8::1, knock ports 53, 443
  services    http (tcp/80), https (tcp/443), ssh (tcp/22)
  server key  {key}
  client key  {client}

work (default)
  host        gw.example.org, knock port 62201
  services    http (tcp/80), https (tcp/443), ssh (tcp/22)
  server key  {key}
  client key  {client}
"
        )
    );
    assert_eq!(
        home.run(&["server", "remove", "work"]),
        Ran::said(0, "removed work from [dir]/config.toml")
    );
    assert_eq!(
        home.run(&["server", "remove", "work"]),
        Ran::said(2, "error: no server is called \"work\" in [dir]/config.toml; known are: home")
    );
}

#[test]
fn the_list_is_there_for_programs_too() {
    let home =
        Home::with_server("host = \"gw\"\nlifetime = \"5m\"\nservices.admin = [\"tcp/8443\"]");
    home.add_server("bare", "host = \"b\"\nidentity = \"none.key\"");
    let ran = home.run(&["list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(list["default"], serde_json::Value::Null);
    assert_eq!(list["servers"][0]["name"], "bare");
    assert_eq!(
        list["servers"][0]["identity"]["error"],
        "there is no identity key [dir]/none.key yet; make one with: \
         spa-client keygen --output [dir]/none.key"
    );
    assert_eq!(
        list["servers"][1],
        serde_json::json!({
            "name": "work",
            "host": "gw",
            "more_hosts": [],
            "knock_ports": [62201],
            "public_key": server_key().to_string(),
            "identity": {
                "file": "[dir]/identity.key",
                "command": null,
                "secret_service": null,
                "passphrase": false,
                "public_key": client_key().to_string(),
                "error": null
            },
            "pre_shared_key_file": null,
            "pre_shared_key_command": null,
            "plaintext_length": 128,
            "lifetime_seconds": 300,
            "bind_source": "auto",
            "stun_server": null,
            "services": {
                "admin": ["tcp/8443"], "http": ["tcp/80"], "https": ["tcp/443"], "ssh": ["tcp/22"]
            }
        })
    );
}

#[test]
fn a_private_key_given_as_a_public_one_is_refused_and_not_shown() {
    let home = Home::empty();
    let ran = home.run(&["server", "add", "work", "--host", "gw", "--public-key", CLIENT_PRIVATE]);
    assert_eq!(
        ran,
        Ran::said(
            2,
            "error: the key after --public-key can't be used: this is a private key (spa-private-…), \
             but a public key (spa-public-…) belongs here; a private key never leaves its machine: \
             give the public key that belongs to it, and if others may have seen the private key, \
             make a new one"
        )
    );
    assert!(!home.file("config.toml").exists());
}

#[test]
fn keys_that_do_not_go_together_are_refused_when_the_server_is_added() {
    let home = Home::empty();
    home.write_key("identity.key");
    let own = client_key().to_string();
    let ran = home.run(&["server", "add", "work", "--host", "gw", "--public-key", &own]);
    assert_eq!((ran.status, ran.stdout.as_str()), (78, ""));
    assert!(
        ran.stderr.starts_with("error: the keys for server work can't be used: "),
        "{}",
        ran.stderr
    );
    assert!(!home.file("config.toml").exists());
}

/// Each with a configuration that is right in everything else: the positive control is
/// `from_nothing_to_a_knock_by_what_the_messages_say`.
#[test]
fn what_is_wrong_is_told_before_a_packet_leaves() {
    let home = Home::with_server("host = \"127.0.0.1\"\nknock-ports = [1]");
    let named = |length: usize| {
        (0..8)
            .map(|n| format!("{n}").repeat(length))
            .map(|name| format!("x{name}"))
            .collect::<Vec<_>>()
    };
    let long: Vec<String> = named(31);
    let long: Vec<&str> = ["open"].into_iter().chain(long.iter().map(String::as_str)).collect();
    for (words, status, error) in [
        (
            &["open", "ssh@wrok"][..],
            2,
            "no server is called \"wrok\" in [dir]/config.toml; did you mean work?",
        ),
        (
            &["open", "ssh", "--server", "office"],
            2,
            "no server is called \"office\" in [dir]/config.toml; known are: work",
        ),
        (&["open", "ssh", "ssh@work"], 2, "ssh is named twice"),
        (
            &["close", "a", "b", "c", "d", "e", "f", "g", "h", "i"],
            2,
            "a request names 1 to 8 services or ports, not 9",
        ),
        (
            &long,
            2,
            "the names of the services take 264 bytes together, this server's packets have room for 97; \
             ask for fewer at once",
        ),
        (
            &["open", "ssh", "-6"],
            1,
            "127.0.0.1 has no IPv6 address; leave the choice of the address family away",
        ),
        (
            &["open", "ssh", "--source", "2001:db8::1"],
            2,
            "the knock is to be bound to 2001:db8::1, but 127.0.0.1 has no IPv6 address; \
             name a source of the server's address family",
        ),
    ] {
        assert_eq!(home.run(words), Ran::said(status, &format!("error: {error}")), "{words:?}");
    }
}

#[test]
fn words_that_are_no_targets_are_usage_errors() {
    let home = Home::with_server("host = \"127.0.0.1\"\nknock-ports = [1]");
    for (words, told) in [
        (&["open", "SSH"][..], "\"SSH\" is not a service name; "),
        (&["open", "tcp/0"], "\"tcp/0\" is not a port; "),
        (&["open", "ssh@"], "\"\" is not the name of a server; "),
        (&["open", "ssh", "--lifetime", "30x"], "\"30x\" is no duration; "),
        (&["open", "ssh", "--lifetime", "0"], "0s is no lifetime; "),
        (&["open", "ssh", "--source", "me"], "\"me\" is no source; "),
        (&["open", "ssh", "-4", "-6"], "cannot be used with"),
        (&["close", "ssh", "--wait"], "unexpected argument '--wait'"),
        (&["open"], "required arguments were not provided"),
        (&["server", "add", "w", "--host", "a b", "--public-key", "x"], "\"a b\" is not a host; "),
    ] {
        let ran = home.run(words);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{words:?}");
        assert!(ran.stderr.contains(told), "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn a_host_that_does_not_resolve_is_told() {
    // Reserved never to exist (RFC 6761); without name servers the answer is no other.
    let home = Home::with_server("host = \"gw.invalid\"");
    let ran = home.run(&["open", "ssh"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.starts_with("error: \"gw.invalid\" does not resolve to an address (")
            && ran.stderr.ends_with(
                "); check the server's host in the configuration, and this machine's name servers\n"
            ),
        "{}",
        ran.stderr
    );
}

#[cfg(unix)]
#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let ear = Ear::v4();
    let home = Home::with_server(&format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port()));
    let key = home.file("identity.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(
        home.run(&["open", "ssh"]),
        Ran::said(
            78,
            "error: the key file [dir]/identity.key is open to other users (mode 0640); \
             if none of them can have read it: chmod 600 [dir]/identity.key, else make a new key"
        )
    );
    assert!(!ear.has_more());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(home.run(&["open", "ssh"]).status, 0);
    assert!(ear.has_more());
}

#[test]
fn a_mistake_at_one_server_keeps_all_knocks_back() {
    let ear = Ear::v4();
    let home = Home::with_server(&format!("host = \"127.0.0.1\"\nknock-ports = [{}]", ear.port()));
    home.add_server("other", "host = \"127.0.0.1\"\nidentity = \"none.key\"");
    assert_eq!(home.run(&["open", "ssh@work", "ssh@other"]).status, 78);
    assert!(!ear.has_more());
    assert_eq!(home.run(&["open", "ssh@work"]).status, 0);
    assert!(ear.has_more());
}
