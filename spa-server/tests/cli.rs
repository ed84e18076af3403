//! The commands of `spa-server`, by the real program. What touches the network or the firewall runs
//! in a network namespace of its own; that takes root.

#![expect(clippy::unwrap_used, reason = "what is not as a test expects it has to fail the test")]

#[path = "cli/backends.rs"]
mod backends;
mod host;
#[path = "cli/man.rs"]
mod man;

use host::{Daemon, Host, PROGRAM, grant, key, status};
use spa_keys::PrivateKey;
use spa_proto::UnixMicros;
use spa_server::control::{ControlRequest, ControlResponse, GrantView, Reloaded, Status};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn init_writes_a_configuration_that_loads_and_overwrites_nothing() {
    let host = Host::new();
    assert_eq!(
        host.files(),
        [
            "0700 spa",
            "0700 spa/clients.d",
            "0600 spa/server.key",
            "0600 spa/server.toml",
            "0700 spa/state",
            "0600 spa/state/replay.log",
        ]
    );
    let config = host.loads();
    assert_eq!(config.server_key().to_string(), host.server);
    assert_eq!(config.settings.state_directory, host.path("state"));

    let before = host.read("server.toml") + &host.read("server.key");
    host.run(&["init", "--dir", "spa"]).failed(1, "server.toml is there already");
    assert_eq!(host.read("server.toml") + &host.read("server.key"), before);

    // The key is kept when only the configuration is gone: clients know it.
    fs::remove_file(host.path("server.toml")).unwrap();
    let again = host.run(&["init", "--dir", "spa", "--json"]).done();
    assert!(again.err.contains("server.key is there already and is used"), "{again:#?}");
    let json: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(json["public-key"], host.server);
    assert_eq!(json["config"], host.path("server.toml").to_str().unwrap());
}

#[test]
fn init_refuses_a_server_key_that_others_can_read() {
    let host = Host::new();
    fs::remove_file(host.path("server.toml")).unwrap();
    fs::set_permissions(host.path("server.key"), Permissions::from_mode(0o644)).unwrap();
    host.run(&["init", "--dir", "spa"]).failed(1, "is open to other users (mode 0644)");
    assert!(!host.path("server.toml").exists());
}

#[test]
fn a_client_with_its_own_key_is_added() {
    let host = Host::new();
    let words = ["client", "add", "laptop", "--allow", "ssh", "--public-key", &key(1)];
    let added = host.run(&words).done();
    assert!(added.out.starts_with("spa-client server add "), "{added:#?}");
    assert!(added.out.ends_with(&format!(" --public-key {}\n", host.server)), "{added:#?}");
    assert!(added.err.contains("the daemon does not run; this takes effect when it starts"));
    let config = host.loads();
    let laptop = key(1).parse::<spa_keys::PublicKey>().unwrap();
    assert_eq!(config.policy().clients_named("laptop"), Some(vec![laptop.into()]));
    assert!(host.files().contains(&"0600 spa/clients.d/laptop.toml".to_owned()));
    assert_eq!(host.files().len(), 7, "nothing is left beside it: {:?}", host.files());
}

#[test]
fn a_client_with_all_options_is_added() {
    let host = Host::new();
    host.edit("server.toml", |text| {
        format!("knock-ports = [53, 62201]\nplaintext-length = 256\n{text}[services.web]\nports = [\"tcp/443\", \"tcp/80\"]\n[services.http]\nports = [\"tcp/80\"]\n\
        [services.https]\nports = [\"tcp/443\", \"udp/443\"]\n")
    });
    let added = host
        .run(&[
            "client",
            "add",
            "b.ckup-1",
            "--allow",
            "ssh,web,http,https",
            "--max-lifetime",
            "300",
            "--source",
            "192.0.2.0/24",
            "--source",
            "2001:db8::7",
            "--expires",
            "2030-01-31",
            "--psk",
            "--require-bound-source",
            "--private-key-out",
            "out.key",
            "--json",
        ])
        .done();
    let json: serde_json::Value = serde_json::from_str(&added.out).unwrap();
    let command = json["client-command"].as_str().unwrap();
    let end = " --knock-port 53 --knock-port 62201 --plaintext-length 256 \
        --service https=tcp/443,udp/443 --service web=tcp/80,tcp/443 \
        --pre-shared-key-file ~/.config/spa/b.ckup-1.psk";
    assert!(command.ends_with(end), "{command}");
    let config = host.loads();
    let (clients, policy) = (config.clients(), config.policy());
    let client = clients["b.ckup-1"];
    assert_eq!(client.allow.len(), 4);
    assert_eq!(client.max_lifetime.as_secs(), 300);
    assert_eq!(client.sources.len(), 2);
    assert_eq!(client.expires, Some(UnixMicros::from_secs(1_896_048_000)));
    assert!(client.require_bound_source);

    // What the client gets fits what the server has.
    let directory = host.directory.path();
    let private = spa_keys::read_private_key(directory.join("out.key")).unwrap();
    assert_eq!(policy.clients_named("b.ckup-1"), Some(vec![private.public().into()]));
    assert_eq!(json["public-key"], private.public().to_string());
    let theirs = fs::read_to_string(directory.join("b.ckup-1.psk")).unwrap();
    assert_eq!(theirs, host.read("clients.d/b.ckup-1.psk"));
    spa_keys::read_pre_shared_key(directory.join("b.ckup-1.psk")).unwrap();

    host.run(&["client", "remove", "b.ckup-1"]).done();
    let files = host.files();
    assert!(!files.iter().any(|file| file.contains("clients.d/")), "{files:?}");
}

#[test]
fn the_client_is_told_of_ranges_and_of_what_lets_one_connection_in() {
    let host = Host::new();
    host.edit("server.toml", |text| {
        format!(
            "{text}[services.media]\nports = [\"udp/10000-10100\", \"tcp/443\"]\n\
            [services.desk]\nports = [\"tcp/5900\"]\nconnections = 1\n\
            [services.http]\nports = [\"tcp/80\"]\nconnections = 1\n"
        )
    });
    let words = ["client", "add", "laptop", "--allow", "ssh,media,desk,http"];
    let added = host.run(&words).done();
    let told: Vec<_> = added.out.trim().split("--service ").skip(1).map(str::trim).collect();
    assert_eq!(
        told,
        ["desk=tcp/5900,once", "http=tcp/80,once", "media=tcp/443,udp/10000-10100"],
        "{added:#?}"
    );
}

#[test]
fn an_expiry_may_be_a_duration_from_now() {
    let host = Host::new();
    host.run(&["client", "add", "a", "--allow", "ssh", "--expires", "90d"]).done();
    let expires = host.loads().clients()["a"].expires.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let off = expires.as_secs().abs_diff(now.as_secs() + 90 * 86_400);
    assert!(off < 600, "{off} s");
}

#[test]
fn a_client_that_can_not_be_is_refused_and_leaves_nothing_behind() {
    let host = Host::new();
    host.run(&["client", "add", "first", "--allow", "ssh", "--public-key", &key(1)]).done();
    let before = host.files();
    let private = PrivateKey::from_bytes([3; 32].into()).to_text().to_string();
    let low_order = spa_keys::PublicKey::from_bytes([0; 32]).to_string();
    for (words, code, message) in [
        (vec!["first", "--allow", "ssh"], 1, "there is a client first already"),
        (
            vec!["second", "--allow", "ssh", "--public-key", &key(1)],
            1,
            "client first has this public key already",
        ),
        (vec!["second", "--allow", "web"], 2, "there is no service web; server.toml has ssh"),
        (vec!["second", "--allow", "ssh", "--source", "home"], 2, "\"home\" is no network"),
        (vec!["second", "--allow", "ssh", "--expires", "soon"], 2, "is no point in time"),
        (vec!["second", "--allow", "ssh", "--max-lifetime", "9x"], 2, "\"9x\" is no duration"),
        (vec!["second", "--allow", "ssh", "--expires", "2030"], 2, "is no point in time"),
        (vec!["../second", "--allow", "ssh"], 2, "is no client name"),
        (
            vec!["second", "--allow", "ssh", "--public-key", &private],
            2,
            "this is a private key (spa-private-…), but a public key",
        ),
        (
            vec!["second", "--allow", "ssh", "--public-key", &low_order],
            2,
            "is a point of low order",
        ),
        (
            vec!["second", "--allow", "ssh", "--public-key", &host.server],
            2,
            "this public key is this side's own",
        ),
        (vec!["second", "--allow", "ssh", "--private-key-out", "spa/server.key"], 1, "server.key"),
    ] {
        let words: Vec<&str> = ["client", "add"].into_iter().chain(words).collect();
        let failed = host.run(&words).failed(code, message);
        assert!(!failed.err.contains(&private), "{failed:#?}");
        assert_eq!(failed.out, "");
        assert_eq!(host.files(), before, "{words:?}");
    }
    // A file in the way of the pre-shared key: the private key that was written goes again.
    fs::write(host.directory.path().join("second.psk"), "").unwrap();
    let before = host.files();
    host.run(&["client", "add", "second", "--allow", "ssh", "--psk"]).failed(1, "second.psk");
    assert_eq!(host.files(), before);
    host.run(&["client", "add", "second", "--allow", "ssh", "--public-key", &key(2)]).done();
}

#[test]
fn clients_are_listed_shown_disabled_enabled_and_removed() {
    let host = Host::new();
    let empty = host.run(&["client", "list"]).done();
    assert!(empty.out.is_empty() && empty.err.contains("there are no clients yet"));
    for (seed, name) in [(1, "laptop"), (2, "phone")] {
        host.run(&["client", "add", name, "--allow", "ssh", "--public-key", &key(seed)]).done();
    }
    host.edit("clients.d/phone.toml", |text| format!("# mine\n{text}expires = 2020-01-01\n"));
    host.run(&["client", "disable", "laptop"]).done();
    let listed = host.run(&["client", "list"]).done();
    assert_eq!(
        listed.out,
        "NAME    STATE     MAY OPEN  AT MOST  FROM\n\
        laptop  disabled  ssh       1h       anywhere\n\
        phone   expired   ssh       1h       anywhere\n"
    );
    assert!(!host.loads().clients()["laptop"].enabled);
    let enabled = host.run(&["client", "enable", "phone"]).done();
    assert!(enabled.err.contains("it stays locked out by its dates"), "{enabled:#?}");
    assert!(host.read("clients.d/phone.toml").starts_with("# mine\n"));
    host.run(&["client", "enable", "laptop"]).done();
    let shown = host.run(&["client", "show", "laptop"]).done();
    assert!(shown.out.contains("state         enabled\n"), "{shown:#?}");
    let json = host.run(&["client", "list", "--json"]).done();
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json[0]["public-key"], key(1));
    assert_eq!(json[1]["state"], "expired");

    host.run(&["client", "remove", "laptop"]).done();
    for command in ["show", "remove", "disable", "enable"] {
        host.run(&["client", command, "laptop"]).failed(1, "there is no client laptop");
    }
    assert_eq!(host.loads().count.total, 1);
}

#[test]
fn one_wrong_file_does_not_hide_the_other_clients() {
    let host = Host::new();
    host.run(&["client", "add", "laptop", "--allow", "ssh"]).done();
    host.write("clients.d/wrong.toml", "allow = 1");
    let listed = host.run(&["client", "list"]).failed(78, "wrong.toml: line 1: ");
    assert!(listed.out.contains("laptop"), "{listed:#?}");
    // A client can be locked out, and another let in, all the same.
    host.run(&["client", "disable", "wrong"]).done();
    let added = host.run(&["client", "add", "phone", "--allow", "ssh"]).done();
    assert!(added.err.contains("wrong.toml is wrong, so its key was not compared"), "{added:#?}");
}

#[test]
fn without_a_daemon_the_commands_that_ask_it_say_so() {
    let host = Host::new();
    for words in [
        &["status"][..],
        &["grants", "list"],
        &["grants", "revoke", "--all"],
        &["reload"],
        &["client", "reset-replay", "laptop"],
    ] {
        let failed = host.run(words).failed(1, "the daemon does not run: nobody listens at");
        assert_eq!(failed.out, "");
    }
}

#[test]
fn without_a_configuration_the_status_is_78() {
    let host = Host::new();
    host.write("server.toml", "knock-ports = [0]\n");
    for words in [
        &["run"][..],
        &["client", "list"],
        &["client", "add", "laptop", "--allow", "ssh"],
        &["gate", "install"],
        &["gate", "show"],
    ] {
        host.run(words).failed(78, "0 is no port");
    }
    // The daemon may run all the same, by what was there before.
    host.run(&["status"]).failed(1, "the daemon does not run: nobody listens at");
    fs::remove_file(host.path("server.toml")).unwrap();
    for words in [&["run"], &["status"]] {
        host.run(words).failed(78, "`spa-server init` writes a configuration");
    }
}

#[test]
fn what_the_daemon_answers_is_shown() {
    let host = Host::new();
    let daemon = Daemon::start(&host, |request| match request {
        ControlRequest::Status => ControlResponse::Status(Box::new(status())),
        ControlRequest::GrantsList => ControlResponse::Grants(vec![grant()]),
        ControlRequest::GrantsRevoke { .. } => {
            ControlResponse::Revoked { grants: vec![grant()], cut: None }
        }
        ControlRequest::Reload => {
            let restart_needed = vec!["knock-ports".into()];
            ControlResponse::Reloaded(Reloaded { restart_needed, ..Reloaded::default() })
        }
        _ => ControlResponse::Done,
    });
    let shown = host.run(&["status"]).done();
    assert!(shown.out.contains("\ndropped       3 replay\n"), "{shown:#?}");
    let json = host.run(&["status", "--json"]).done();
    assert_eq!(serde_json::from_str::<Status>(&json.out).unwrap(), status());
    let listed = host.run(&["grants", "list"]).done();
    assert!(listed.out.starts_with("CLIENT  SOURCE     SERVICE"), "{listed:#?}");
    let json = host.run(&["grants", "list", "--json"]).done();
    assert_eq!(serde_json::from_str::<Vec<GrantView>>(&json.out).unwrap(), [grant()]);
    let reloaded = host.run(&["reload"]).done();
    assert!(reloaded.out.contains("`systemctl restart spa-server` only: knock-ports"));
    daemon.asked();

    let revoked = host.run(&["grants", "revoke", "laptop", "--source", "192.0.2.7"]).done();
    assert!(revoked.out.contains("laptop  192.0.2.7  ssh"), "{revoked:#?}");
    host.run(&["grants", "revoke", "--service", "tcp/22"]).done();
    host.run(&["grants", "revoke", "--all"]).done();
    let reset = host.run(&["client", "reset-replay", "laptop"]).done();
    assert!(reset.err.contains("client laptop is heard again in 1m\nwarning: "));
    host.run(&["client", "reset-replay", "--all"]).done();
    let revoke = |client: Option<&str>, source: Option<&str>, service: Option<&str>, all| {
        ControlRequest::GrantsRevoke {
            client: client.map(Into::into),
            source: source.map(|source| source.parse().unwrap()),
            service: service.map(|service| service.parse().unwrap()),
            all,
            cut: false,
        }
    };
    assert_eq!(
        daemon.asked(),
        [
            revoke(Some("laptop"), Some("192.0.2.7"), None, false),
            revoke(None, None, Some("tcp/22"), false),
            revoke(None, None, None, true),
            ControlRequest::ResetReplayWindow { client: Some("laptop".into()) },
            ControlRequest::ResetReplayWindow { client: None },
        ]
    );
}

#[test]
fn a_running_daemon_takes_changes_up_and_its_refusal_is_told() {
    let host = Host::new();
    let broken = host.path("clients.d/wrong.toml");
    let daemon = Daemon::start(&host, move |_| {
        if broken.exists() {
            ControlResponse::error(&"wrong.toml: line 1: no")
        } else {
            ControlResponse::Reloaded(Reloaded { clients: 1, services: 1, ..Reloaded::default() })
        }
    });
    let added = host.run(&["client", "add", "laptop", "--allow", "ssh"]).done();
    assert!(added.err.contains("the daemon has reloaded: 1 client, 1 service"), "{added:#?}");
    host.run(&["client", "disable", "laptop"]).done();
    host.run(&["client", "enable", "laptop"]).done();
    host.run(&["client", "remove", "laptop"]).done();
    assert_eq!(daemon.asked(), [const { ControlRequest::Reload }; 4]);
    host.run(&["client", "list"]).done();
    assert_eq!(daemon.asked(), []);

    host.write("clients.d/wrong.toml", "");
    let added = host.run(&["client", "add", "laptop", "--allow", "ssh", "--public-key", &key(1)]);
    let added = added.failed(
        1,
        "the change is written, but the running daemon has not taken it up: wrong.toml: line 1: no",
    );
    assert!(added.out.starts_with("spa-client server add"), "{added:#?}");
    host.run(&["reload"]).failed(1, "wrong.toml: line 1: no");
}

#[test]
fn check_finds_nothing_wrong_with_what_init_and_add_wrote() {
    let host = Host::new();
    host.run(&["client", "add", "laptop", "--allow", "ssh"]).done();
    let checked = host.script_in_namespace("% check").done();
    for check in
        ["configuration", "keys", "capabilities", "capture", "state", "control", "backend", "gate"]
    {
        let line = format!("ok       {check}");
        assert!(checked.out.lines().any(|l| l.starts_with(&line)), "{check}: {checked:#?}");
    }
    assert!(!checked.out.contains("error"), "{checked:#?}");
    let json = host.script_in_namespace("% check --json").done();
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json[0]["outcome"], "ok");
}

#[test]
fn check_says_what_is_wrong_and_how_to_mend_it() {
    let host = Host::new();
    let good = host.read("server.toml");
    host.run(&["client", "add", "laptop", "--allow", "ssh", "--expires", "2020-01-01"]).done();
    let found = |code, message: &str| {
        let checked = host.script_in_namespace("% check");
        assert_eq!(checked.code, code, "{checked:#?}");
        assert!(checked.out.contains(message), "{message}\n{}", checked.out);
    };
    found(0, "warning  configuration  client laptop expired at 2020-01-01T00:00:00Z; remove it");

    let with = |line: &str| host.write("server.toml", &format!("{line}\n{good}"));
    with("interfaces = [\"lo\", \"eth7\"]");
    found(1, "error    capture        there is no interface \"eth7\"; this host has lo");
    with("gate.tools.iptables-save = \"/nowhere/iptables-save\"");
    host.edit("server.toml", |text| text.replace("\n[gate]\n", "\n"));
    found(1, "apt install iptables");
    with("freshness = \"1s\"");
    found(78, "error    configuration  ");
    host.write("server.toml", &good);
    host.write("clients.d/wrong.toml", "");
    found(78, "ok       capture");
    fs::remove_file(host.path("clients.d/wrong.toml")).unwrap();

    fs::set_permissions(host.path("state"), Permissions::from_mode(0o755)).unwrap();
    found(0, "warning  state");
    fs::set_permissions(host.path("state"), Permissions::from_mode(0o777)).unwrap();
    found(1, "others can write");
    fs::remove_dir_all(host.path("state")).unwrap();
    found(1, "make it: install -d -m 700 ");
    fs::create_dir(host.path("state")).unwrap();
    fs::set_permissions(host.path("state"), Permissions::from_mode(0o700)).unwrap();

    fs::set_permissions(host.path("server.key"), Permissions::from_mode(0o640)).unwrap();
    found(78, "is open to other users (mode 0640)");
    fs::set_permissions(host.path("server.key"), Permissions::from_mode(0o600)).unwrap();

    let checked =
        host.script_in_namespace("setpriv --inh-caps=-net_raw --bounding-set=-net_raw % check");
    assert_eq!(checked.code, 1, "{checked:#?}");
    assert!(checked.out.contains("CAP_NET_RAW is missing"), "{checked:#?}");
    found(0, "ok       capabilities");
}

#[test]
fn check_names_a_real_service_on_a_knock_port() {
    let host = Host::new();
    let listen = "import socket,subprocess,sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('0.0.0.0', 62201))\n\
        sys.exit(subprocess.run(sys.argv[1:]).returncode)";
    host.write("listen.py", listen);
    let script = format!("python3 {} % check", host.path("listen.py").display());
    let checked = host.script_in_namespace(&script).done();
    let busy = "knock port udp/62201 is left alone over IPv4";
    assert!(checked.out.contains(busy), "{checked:#?}");
    let control = host.script_in_namespace("% check").done();
    assert!(!control.out.contains(busy), "{control:#?}");
}

#[test]
fn the_gate_is_installed_shown_and_removed_without_a_daemon() {
    let host = Host::new();
    let installed = host
        .script_in_namespace(
            "% gate show; % gate install; ipset add spa4 192.0.2.7,tcp:22 timeout 100;
            % gate install; % gate show; iptables-save | grep -c SPA",
        )
        .done();
    let begin = "the gate is not installed (back-end ipset)\nthe gate is installed\n\
        the gate was in place already\nthe gate is installed (back-end ipset)\n\
        SOURCE     PORT    LEFT\n\
        192.0.2.7  tcp/22  1m";
    assert!(installed.out.starts_with(begin), "{installed:#?}");
    assert!(installed.err.contains("the daemon does not run: nothing opens the ports now"));

    let json = host.script_in_namespace("% gate install --json; % gate show --json").done();
    let mut values = serde_json::Deserializer::from_str(&json.out).into_iter();
    let installed: serde_json::Value = values.next().unwrap().unwrap();
    let shown: serde_json::Value = values.next().unwrap().unwrap();
    assert_eq!((&installed["changed"], &shown["up-to-date"]), (&true.into(), &true.into()));
}

#[test]
fn the_gate_can_be_removed_without_a_configuration() {
    let host = Host::new();
    let config = host.path("server.toml");
    let removed = host
        .script_in_namespace(&format!(
            "% gate install; test $(iptables-save | grep -c SPA) -gt 0; echo '[' > {config};
            % gate remove; % gate remove; iptables-save; ip6tables-save; ipset list -name",
            config = config.display()
        ))
        .done();
    assert!(!removed.out.contains("SPA") && !removed.out.contains("spa4"), "{removed:#?}");
    assert!(removed.err.contains("no usable configuration at"), "{removed:#?}");
    assert!(removed.err.contains("the gate is removed"), "{removed:#?}");
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let host = Host::new();
    assert_eq!(host.command(PROGRAM, &[]).code, 2);
    host.run(&["reboot"]).failed(2, "unrecognized subcommand");
    host.run(&["grants", "revoke"]).failed(2, "required");
    let help = host.command(PROGRAM, &["--help"]).done();
    assert!(help.out.contains("Example, on a fresh server:") && help.err.is_empty());
    assert!(host.command(PROGRAM, &["--version"]).done().out.starts_with("spa-server 0."));
}
