//! What a configuration means, what is said of a wrong one, and what edits leave alone.

use super::*;
use std::fs;

const KEY: &str = "spa-public-wMhVlcx9xJF13OjNS9umBc3un8KC_CmV1VONnUazdnferDP3";
const PRIVATE: &str = "spa-private-YTtmyg1pB-8j5MqK_HlgGFWpXBm7oKAR7P91GhfmDItqgzHD";

fn parse(text: &str) -> Result<Config, String> {
    let text = text.replace("KEY", KEY);
    Config::parse(&text, "/etc/me/config.toml".into()).map_err(|error| error.to_string())
}

fn work(line: &str) -> Result<Config, String> {
    parse(&format!("[server.work]\nhost = \"gw\"\npublic-key = \"KEY\"\n{line}\n"))
}

#[test]
fn a_server_needs_a_host_and_a_key_and_has_defaults_for_the_rest() {
    let config = work("").unwrap();
    let server = config.server(None).unwrap();
    let plain = Server::new(
        "work".parse().unwrap(),
        "gw".parse().unwrap(),
        KEY.parse().unwrap(),
        "/etc/me/identity.key",
    );
    assert_eq!(*server, plain);
    assert_eq!(server.knock_ports, [NonZeroU16::new(62201).unwrap()]);
}

#[test]
fn everything_that_can_be_configured_arrives() {
    let config = parse(
        r#"
        default = "home"
        stun-server = "stun.example.org"
        ntp-server = "[2001:db8::9]:123"
        [server.home]
        host = "2001:db8::1"
        public-key = "KEY"
        knock-ports = [53, 443]
        identity = "/keys/home.key"
        pre-shared-key-file = "home.psk"
        plaintext-length = 256
        lifetime = "5m"
        bind-source = "observed"
        stun-server = "192.0.2.9:3479"
        [server.home.services]
        ssh = ["tcp/2222"]
        dns = ["udp/53", "tcp/53"]
        media = { ports = ["udp/10000-10100"] }
        [server.home.services.desk]
        ports = ["tcp/5900"]
        connections = 1
        [server.work]
        host = "gw.example.org"
        public-key = "KEY"
        bind-source = "192.0.2.7"
        "#,
    )
    .unwrap();
    let home = config.server(None).unwrap();
    assert_eq!(home.name.as_str(), "home");
    assert_eq!(home.host.as_str(), "2001:db8::1");
    assert_eq!(home.knock_ports.iter().map(|port| port.get()).collect::<Vec<_>>(), [53, 443]);
    assert_eq!(home.identity, KeySource::from("/keys/home.key"));
    assert_eq!(home.pre_shared_key, Some("/etc/me/home.psk".into()));
    assert_eq!(home.length.packet(), 256 + 88);
    assert_eq!(home.lifetime.unwrap().to_string(), "5m");
    assert_eq!(home.bind_source, BindSource::Observed);
    let stun = |server: &Server| server.stun_server.as_ref().map(ToString::to_string);
    assert_eq!(stun(home).as_deref(), Some("192.0.2.9:3479"));
    assert_eq!(config.ntp_server().unwrap().to_string(), "[2001:db8::9]:123");
    let shown = |name: &str| {
        let service = &home.services[&name.parse::<ServiceName>().unwrap()];
        let ports: Vec<_> = service.ports.iter().map(ToString::to_string).collect();
        (ports.join(" "), service.connections)
    };
    assert_eq!(home.services.len(), 4);
    assert_eq!(shown("dns"), ("udp/53 tcp/53".into(), Connections::Any));
    assert_eq!(shown("media"), ("udp/10000-10100".into(), Connections::Any));
    assert_eq!(shown("desk"), ("tcp/5900".into(), Connections::One));
    let work = config.server(Some("work")).unwrap();
    // The one for all servers.
    assert_eq!(stun(work).as_deref(), Some("stun.example.org"));
    assert_eq!(work.bind_source.to_string(), "192.0.2.7");
}

#[test]
fn the_example_is_a_configuration() {
    let text = include_str!("../../config.example.toml");
    let config = Config::parse(text, "/etc/me/config.toml".into()).unwrap();
    assert_eq!(config.server(None).unwrap().name.as_str(), "work");
    assert_eq!(config.server(Some("home")).unwrap().services.len(), 4);
}

#[test]
fn what_is_wrong_is_told_with_file_and_line() {
    let at = "/etc/me/config.toml, line ";
    for (line, number, message) in [
        (
            "port = 1",
            4,
            "unknown field `port`, expected one of `host`, `more-hosts`, `public-key`, `knock-ports`, `identity`, `key-command`, `pre-shared-key-file`, `pre-shared-key-command`, `plaintext-length`, `lifetime`, `bind-source`, `stun-server`, `services`",
        ),
        ("knock-ports = []", 4, "knock-ports names at least one port, from 1 to 65535"),
        ("knock-ports = [0]", 4, "knock-ports names at least one port, from 1 to 65535"),
        (
            "plaintext-length = 100",
            4,
            "a plaintext length of 100 bytes is out of bounds; it lies between 128 and 320",
        ),
        (
            "lifetime = \"soon\"",
            4,
            "\"soon\" is no duration; write numbers with the units d, h, m, s, as in 30s or 1h30m",
        ),
        (
            "bind-source = \"me\"",
            4,
            "\"me\" is no source; write observed, auto, or the IP address that the server will see",
        ),
        (
            "services.ssh = [\"22\"]",
            4,
            "\"22\" is not a port; write tcp/ or udp/ and a number from 1 to 65535, as in tcp/22",
        ),
        (
            "services.ssh = [\n\"udp/2-1\"]",
            5,
            "\"udp/2-1\" is not a range of ports; write the lower number first, as in udp/10000-10100",
        ),
        (
            "[server.work.services.ssh]\nports = [\"tcp/22\"]\nconnections = 2",
            6,
            "connections is 1, or not there for as many as come",
        ),
        (
            "[server.work.services.ssh]\nports = [\"tcp/22\"]\nonce = true",
            6,
            "unknown field `once`, expected `ports` or `connections`",
        ),
        ("services.ssh = { connections = 1 }", 4, "missing field `ports`"),
        (
            "services.ssh = \"tcp/22\"",
            4,
            "invalid type: string \"tcp/22\", expected a list of ports, as in [\"tcp/22\"], or a table with ports in it",
        ),
        (
            "services.SSH = [\"tcp/22\"]",
            4,
            "\"SSH\" is not a service name; a name is 1 to 32 of a-z, 0-9, '-', '_', '.' and begins with a letter; a port is written tcp/22",
        ),
        (
            "[server.\"a b\"]\nhost = \"gw\"\npublic-key = \"KEY\"",
            4,
            "\"a b\" is not the name of a server; a name is 1 to 64 of A-Z, a-z, 0-9, '-', '_', '.' and begins with a letter or digit",
        ),
        (
            "[server.b]\nhost = \"me@gw\"\npublic-key = \"KEY\"",
            5,
            "\"me@gw\" is not a host; write a name or an IP address alone, as in gw.example.org, without user, port or path",
        ),
    ] {
        assert_eq!(work(line).unwrap_err(), format!("{at}{number}: {message}"), "{line}");
    }
    assert_eq!(
        parse("default = \"wrok\"\n[server.work]\nhost = \"gw\"\npublic-key = \"KEY\"")
            .unwrap_err(),
        format!("{at}1: there is no server \"wrok\" to be the default; did you mean work?")
    );
    assert_eq!(
        parse("[server.work]\nhost = gw").unwrap_err(),
        format!("{at}2: string values must be quoted, expected literal string")
    );
    assert_eq!(
        parse("[server.work]\nhost = \"gw\"").unwrap_err(),
        format!("{at}1: missing field `public-key`")
    );
}

#[test]
fn a_private_key_in_the_configuration_is_told_and_never_shown() {
    for line in [
        format!("public-key = \"{PRIVATE}\""),
        format!("public-key = {PRIVATE}"),
        format!("public-key = \"{PRIVATE}"),
        PRIVATE.to_string(),
    ] {
        let error = parse(&format!("[server.work]\nhost = \"gw\"\n{line}\n")).unwrap_err();
        assert!(error.starts_with("/etc/me/config.toml, line 3: "), "{error}");
        assert!(!error.contains(&PRIVATE[12..24]), "{error}");
    }
    let quoted = format!("[server.work]\nhost = \"gw\"\npublic-key = \"{PRIVATE}\"");
    assert!(parse(&quoted).unwrap_err().contains("this is a private key"));
}

#[test]
fn the_server_that_is_not_named_is_the_default_or_the_only_one() {
    let two = "[server.a]\nhost = \"a\"\npublic-key = \"KEY\"\n[server.b]\nhost = \"b\"\npublic-key = \"KEY\"";
    let error = |text: &str, name| match parse(text).unwrap().server(name) {
        Ok(server) => panic!("{server:?}"),
        Err(error) => error.to_string(),
    };
    assert_eq!(
        error(two, None),
        "which server is meant? /etc/me/config.toml has a, b and no default; name one, as in ssh@NAME, or set default = \"NAME\" there"
    );
    let chosen = parse(&format!("default = \"b\"\n{two}")).unwrap();
    assert_eq!(chosen.server(None).unwrap().name.as_str(), "b");
    assert_eq!(
        error("", None),
        "no server is configured in /etc/me/config.toml; add yours with: spa-client server add NAME --host HOST --public-key KEY"
    );
    assert_eq!(
        error(two, Some("office")),
        "no server is called \"office\" in /etc/me/config.toml; known are: a, b"
    );
    assert_eq!(
        error("", Some("office")),
        "no server is called \"office\" in /etc/me/config.toml; there is none yet, add yours with: spa-client server add"
    );
}

#[test]
fn a_typing_error_is_guessed_and_another_word_is_not() {
    let names = ["work", "home", "gw.example.org"];
    let guess = |wanted| closest(wanted, names.into_iter());
    assert_eq!(guess("wrok"), Some("work"));
    assert_eq!(guess("WORK"), Some("work"));
    assert_eq!(guess("gw.exmaple.org"), Some("gw.example.org"));
    assert_eq!(guess("office"), None);
    assert_eq!(guess("x"), None);
}

#[test]
fn edits_keep_what_the_user_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let (directory, path) = (directory.path(), Config::path(directory.path()));
    let before = format!(
        "# mine\ndefault = \"work\" # the office\n\n[server.work]\nhost = \"gw\" # here\npublic-key = \"{KEY}\"\n"
    );
    fs::write(&path, &before).unwrap();
    let home = Server::new(
        "home".parse().unwrap(),
        "h".parse().unwrap(),
        KEY.parse().unwrap(),
        Config::default_identity(directory),
    );
    Config::add_server(directory, &home, false).unwrap();
    let added = format!("{before}\n[server.home]\nhost = \"h\"\npublic-key = \"{KEY}\"\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), added);

    let again = Config::add_server(directory, &home, true).unwrap_err();
    assert!(matches!(again, ConfigError::Exists { .. }));
    assert_eq!(fs::read_to_string(&path).unwrap(), added, "a refused change changed the file");

    Config::remove_server(directory, "home").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    let unknown = Config::remove_server(directory, "home").unwrap_err();
    assert!(matches!(unknown, ConfigError::UnknownServer { .. }));
    let config = Config::remove_server(directory, "work").unwrap();
    assert_eq!((config.default, config.servers.len()), (None, 0));
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "something was left behind");
}

#[test]
fn a_server_is_read_as_it_was_added() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("new");
    let mut server = Server::new(
        "gw.example.org".parse().unwrap(),
        "2001:db8::1".parse().unwrap(),
        KEY.parse().unwrap(),
        "/keys/a.key",
    );
    server.knock_ports = [53, 443].into_iter().filter_map(NonZeroU16::new).collect();
    server.pre_shared_key = Some(directory.join("a.psk").into());
    server.length = PacketLength::try_from(200).unwrap();
    server.lifetime = Some("5m".parse().unwrap());
    server.bind_source = BindSource::Observed;
    server.stun_server = Some("stun.example.org:3478".parse().unwrap());
    let ports = ["tcp/2222", "udp/10000-10100"].map(|ports| ports.parse().unwrap());
    let mut service = Service::plain(ports);
    server.services.insert("ssh".parse().unwrap(), service.clone());
    service.connections = Connections::One;
    server.services.insert("desk".parse().unwrap(), service);
    Config::add_server(&directory, &server, false).unwrap();
    let config = Config::load(&directory).unwrap();
    assert_eq!(config.servers().collect::<Vec<_>>(), [&server]);
    assert_eq!(config.default, Some(server.name), "the first server is the default");
}

#[test]
fn a_server_joins_servers_written_as_an_inline_table() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let text = format!("server = {{ a = {{ host = \"a\", public-key = \"{KEY}\" }} }}\n");
    fs::write(Config::path(directory), text).unwrap();
    let b = Server::new(
        "b".parse().unwrap(),
        "b".parse().unwrap(),
        KEY.parse().unwrap(),
        Config::default_identity(directory),
    );
    let config = Config::add_server(directory, &b, true).unwrap();
    assert_eq!(config.servers().count(), 2);
    assert_eq!(Config::load(directory).unwrap(), config);
}

#[cfg(unix)]
#[test]
fn a_configuration_that_is_a_link_stays_one_and_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (real, link) =
        (directory.path().join("dotfiles.toml"), directory.path().join("config.toml"));
    fs::write(&real, format!("[server.a]\nhost = \"a\"\npublic-key = \"{KEY}\"\n")).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    Config::remove_server(directory.path(), "a").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(Config::load(directory.path()).unwrap().servers().count(), 0);
}

#[test]
fn a_tilde_is_the_home_directory_and_other_paths_start_in_the_configuration() {
    let home = etcetera::home_dir().unwrap();
    let identity = |text: &str| {
        work(&format!("identity = \"{text}\"")).unwrap().server(None).unwrap().identity.clone()
    };
    assert_eq!(identity("~/keys/a"), home.join("keys/a").into());
    assert_eq!(identity("keys/a"), "/etc/me/keys/a".into());
    assert_eq!(identity("/keys/a"), "/keys/a".into());
    assert_eq!(identity("~other/a"), "/etc/me/~other/a".into());
}
