//! Configurations in files, right and wrong.

use super::*;
use crate::capture::Interfaces;
use crate::enrolment::Introduction;
use crate::gate::{Backend, Mode, Refusal, ToolOverrides};
use crate::policy::Rate;
use crate::service::Service;
use ring::rand::SystemRandom;
use spa_keys::{
    Overwrite, PreSharedKey, pair_secret_for_server, write_pre_shared_key, write_private_key,
};
use spa_proto::{PacketLength, UnixMicros};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

mod gate;
mod kept;
mod locked_out;

const SSH: &str = "[services.ssh]\nports = [\"tcp/22\"]\n";

/// A directory with a server's key and a `server.toml`.
struct Host {
    directory: tempfile::TempDir,
    server: PrivateKey,
}

impl Host {
    fn new(server_toml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = PrivateKey::from_bytes([7; 32].into());
        let host = Self { directory, server };
        write_private_key(host.path("server.key"), &host.server, Overwrite::Refuse).unwrap();
        fs::create_dir(host.path("clients.d")).unwrap();
        host.write("server.toml", server_toml);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o644)).unwrap();
        self
    }

    fn client(&self, name: &str, key: &PublicKey, more: &str) -> &Self {
        let text = format!("public-key = \"{key}\"\n{more}");
        self.write(&format!("clients.d/{name}.toml"), &text)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.path("server.toml"))
    }

    /// What is wrong, with `DIR` for the directory.
    fn error(&self) -> String {
        let error = self.load().map(|_| ()).unwrap_err().to_string();
        error.replace(&*self.directory.path().to_string_lossy(), "DIR")
    }
}

fn key(seed: u8) -> PublicKey {
    PrivateKey::from_bytes([seed; 32].into()).public()
}

/// The errors of a `server.toml`, without the path.
fn errors(server_toml: &str) -> Vec<String> {
    match Settings::parse(Path::new("/etc/spa/server.toml"), server_toml) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(|problem| problem.fault.to_string()).collect(),
    }
}

/// The one error of a `server.toml` with this line in it.
fn error_of(line: &str) -> String {
    let errors = errors(&format!("{line}\n{SSH}"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.concat()
}

/// The errors of a client's file on a server with the service ssh and a default of 30 s.
fn client_errors(more: &str) -> Vec<String> {
    let settings = Settings::parse(Path::new("/etc/spa/server.toml"), SSH).unwrap();
    let text = format!("public-key = \"{}\"\n{more}", key(1));
    match ClientSettings::parse(Path::new("/etc/spa/clients.d/a.toml"), &text, &settings) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(|problem| problem.fault.to_string()).collect(),
    }
}

fn client_error_of(line: &str) -> String {
    let errors = client_errors(&format!("allow = [\"ssh\"]\n{line}"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.concat()
}

#[test]
fn the_shipped_server_toml_is_right_and_shows_the_defaults() {
    let path = Path::new("/etc/spa/server.toml");
    let shipped = include_str!("../../../packaging/server.toml");
    let shown = Settings::parse(path, shipped).unwrap();
    assert_eq!(shown, Settings::parse(path, SSH).unwrap());
    assert_eq!(shown.control_socket, Path::new("/run/spa/control.sock"));

    // Every commented line, put in force, says what holds anyway, but for the examples at the end.
    let (defaults, _) = shipped.split_once("#[gate.tools]").unwrap();
    let in_force = |text: &str| -> String {
        text.lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') => setting,
                _ => line,
            })
            .flat_map(|line| [line, "\n"])
            .collect()
    };
    let mut text = in_force(defaults);
    assert!(text.contains("\nmax-grants = 65536\n") && text.contains("\nmode = \"guard\"\n"));
    text.push_str(SSH);
    let mut same = Settings::parse(path, &text).unwrap();
    // There is no default of that.
    assert!(same.previous_key.take().is_some());
    assert_eq!(same, shown);
    // The examples hold together, too.
    let all = Settings::parse(path, &in_force(shipped)).unwrap();
    assert_eq!(all.services.len(), 6);
    let hook = all.gate.hook.unwrap();
    assert_eq!((hook.refresh, hook.time_limit), (false, Duration::from_secs(10)));
}

#[test]
fn the_shipped_client_example_is_right_and_shows_the_defaults() {
    let settings = Settings::parse(Path::new("/etc/spa/server.toml"), SSH).unwrap();
    let path = Path::new("/etc/spa/clients.d/NAME.toml");
    let shipped = include_str!("../../../packaging/client.toml")
        .replace("spa-public-PLACEHOLDER", &key(1).to_string());
    let plain = ClientSettings::parse(path, &shipped, &settings).unwrap();
    assert_eq!(plain.rules.rate, Rate::default());

    let in_force: String = shipped
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let full = ClientSettings::parse(path, &in_force, &settings).unwrap();
    assert_eq!(full.rules.sources.len(), 2);
    assert!(full.rules.not_before.is_some() && full.rules.expires.is_some());
    let mut same = full.clone();
    same.introduced = Introduced::ByKey { public_key: key(1), pre_shared_key_file: None };
    same.rules.sources.clear();
    (same.rules.not_before, same.rules.expires) = (None, None);
    assert_eq!(same, plain);

    // In the place of a key; the section is written as prose, since both together are an error.
    let (_, invitation) = shipped.split_once("#   [invitation]").unwrap();
    let invited = format!("allow = [\"ssh\"]\n[invitation]{}", invitation.replace("#  ", ""));
    let invited = ClientSettings::parse(path, &invited, &settings).unwrap();
    assert!(matches!(invited.introduced, Introduced::ByInvitation { .. }));
    assert_eq!(invited.rules, plain.rules);
}

#[test]
fn what_is_not_said_has_a_default() {
    let settings = Settings::parse(Path::new("/srv/spa/server.toml"), SSH).unwrap();
    assert_eq!(
        settings,
        Settings {
            interfaces: Interfaces::All,
            knock_ports: vec![62_201],
            packet_length: PacketLength::default(),
            freshness: Duration::from_secs(60).try_into().unwrap(),
            private_key_file: "/srv/spa/server.key".into(),
            previous_key: None,
            state_directory: "/var/lib/spa".into(),
            control_socket: "/run/spa/control.sock".into(),
            clients_directory: "/srv/spa/clients.d".into(),
            default_lifetime: Duration::from_secs(30),
            max_grants: 65_536,
            prefilter: Prefiltering::Auto,
            gate: GateSettings {
                mode: Mode::Guard,
                refuse: Refusal::Drop,
                backend: Backend::Auto,
                always_admit: Vec::new(),
                tools: ToolOverrides::default(),
                hook: None,
            },
            services: [("ssh".parse().unwrap(), Service::plain(["tcp/22".parse().unwrap()]))]
                .into(),
        }
    );
}

#[test]
fn what_is_said_is_read() {
    let host = Host::new(
        r#"
        interfaces = ["eth0", "wg0.7"]
        knock-ports = [53, 62201]
        plaintext-length = 256
        freshness = "2m"
        state-directory = "/srv/state"
        default-lifetime = "1m30s"
        max-grants = 100
        [gate]
        mode = "open"
        refuse = "reject"
        tools.nft = "/opt/nft"
        [services.ssh]
        ports = ["tcp/22", "tcp/2222"]
        [services.dns]
        ports = ["tcp/53"]
        "#,
    );
    host.client(
        "laptop",
        &key(1),
        r#"
        allow = ["ssh", "dns"]
        max-lifetime = "20s"
        sources = ["192.0.2.0/24", "2001:db8::7"]
        not-before = 2026-01-01
        expires = "2027-01-01T00:00:00+01:00"
        require-bound-source = true
        rate = { burst = 5 }
        max-sources = 2
        "#,
    );
    host.client("tablet", &key(2), "allow = [\"dns\"]\nenabled = false\ndefault-lifetime = \"5m\"");
    host.write("clients.d/.hidden.toml", "not = read").write("clients.d/old.toml.bak", "not read");
    let config = host.load().unwrap();
    let settings = &config.settings;
    assert_eq!(settings.interfaces, Interfaces::Named(vec!["eth0".into(), "wg0.7".into()]));
    assert_eq!(settings.knock_ports, [53, 62_201]);
    assert_eq!(settings.packet_length.plaintext(), 256);
    assert_eq!(settings.freshness.get(), Duration::from_secs(120));
    assert_eq!(settings.default_lifetime, Duration::from_secs(90));
    assert_eq!(settings.gate.tools.nft, Some("/opt/nft".into()));
    let plan = settings.gate_plan();
    let ports: Vec<_> = plan.guarded.iter().map(|one| one.ports.to_string()).collect();
    assert_eq!(ports, ["tcp/22", "tcp/53", "tcp/2222"]);
    assert_eq!((plan.mode, plan.refusal), (Mode::Open, Refusal::Reject));
    // 100 grants of two ports each, and as many that the kernel has not forgotten yet.
    assert_eq!(plan.max_elements, 400);

    assert_eq!(config.server_key(), host.server.public());
    let clients = config.clients();
    assert_eq!(clients.keys().copied().collect::<Vec<_>>(), ["laptop", "tablet"]);
    assert_eq!(config.policy().name(&key(1).into()), Some("laptop"));
    let rules = clients["laptop"];
    assert_eq!(rules.max_lifetime, Duration::from_secs(20));
    assert_eq!(rules.default_lifetime, Duration::from_secs(20), "cut to the client's maximum");
    assert_eq!(rules.sources[1], "2001:db8::7/128".parse().unwrap());
    assert_eq!(rules.not_before, Some(UnixMicros::from_secs(1_767_225_600)));
    assert_eq!(rules.expires, Some(UnixMicros::from_secs(1_798_758_000)));
    assert!(rules.require_bound_source && rules.enabled);
    assert_eq!(rules.rate, Rate { per_minute: 60, burst: 5 });
    assert_eq!(rules.max_sources, 2);
    let tablet = clients["tablet"];
    assert_eq!(tablet.default_lifetime, Duration::from_secs(300));
    assert!(!tablet.enabled);
    assert_eq!((config.senders.present.len(), config.senders.previous.len()), (2, 0));
    assert_eq!((config.count.total, config.count.enabled), (2, 1));
    assert_eq!(config.policy().client(&key(1).into()), Some(rules));
}

#[test]
fn errors_of_server_toml() {
    for (line, error) in [
        ("interfaces = []", "interfaces: the list is empty; write [\"any\"] for all interfaces"),
        (
            "interfaces = [\"any\", \"eth0\"]",
            "interfaces: \"any\" stands for all interfaces; it can't be listed with others",
        ),
        ("interfaces = [\"eth0\", \"eth0\"]", "interfaces: eth0 is listed twice"),
        (
            "interfaces = [\"eth0; reboot\"]",
            "interfaces: \"eth0; reboot\" is no interface name; `ip link` lists them, and \"any\" stands for all",
        ),
        ("knock-ports = []", "knock-ports: the list is empty; write [62201] for the usual one"),
        ("knock-ports = [0]", "knock-ports: 0 is no port; a port is a number from 1 to 65535"),
        (
            "knock-ports = [65536]",
            "knock-ports: 65536 is no port; a port is a number from 1 to 65535",
        ),
        ("knock-ports = [53, 53]", "knock-ports: 53 is listed twice"),
        (
            "plaintext-length = 127",
            "plaintext-length: 127 is out of range; it lies between 128 and 320",
        ),
        ("freshness = \"9s\"", "freshness: 9s is out of range; it lies between 10s and 2m"),
        ("freshness = \"3m\"", "freshness: 3m is out of range; it lies between 10s and 2m"),
        (
            "default-lifetime = \"30\"",
            "default-lifetime: \"30\" is no duration; write numbers with the units d, h, m, s, as in 30s or 1h30m",
        ),
        (
            "default-lifetime = \"25d\"",
            "default-lifetime: 25d is out of range; it lies between 1s and 24d20h31m23s",
        ),
        ("max-grants = 0", "max-grants: 0 is out of range; it lies between 1 and 1048576"),
        (
            "state-directory = \"state\"",
            "state-directory: \"state\" is a relative path; write it out from the root, beginning with /",
        ),
        (
            "gate.tools.nft = \"nft\"",
            "gate.tools.nft: \"nft\" is a relative path; write it out from the root, beginning with /",
        ),
        (
            "services.Web.ports = [\"tcp/80\"]",
            "services.Web: \"Web\" is not a service name; a name is 1 to 32 of a-z, 0-9, '-', '_', '.' and begins with a letter; a port is written tcp/22",
        ),
        (
            "services.web.ports = []",
            "services.web.ports: the list is empty; write [\"tcp/22\"], for instance",
        ),
        (
            "services.web.ports = [\"80\"]",
            "services.web.ports: \"80\" is not a port; write tcp/ or udp/ and a number from 1 to 65535, as in tcp/22",
        ),
        (
            "services.web.ports = [\"tcp/80\", \"tcp/80\"]",
            "services.web.ports: tcp/80 is listed twice",
        ),
        (
            "services.web.ports = [\"udp/62201\"]",
            "services.web.ports: udp/62201 is a knock port already; take another knock port",
        ),
    ] {
        assert_eq!(error_of(line), error);
    }
    // A knock port is UDP: the same number of TCP is another port.
    assert_eq!(errors("services.web.ports = [\"tcp/62201\"]"), Vec::<String>::new());
}

#[test]
fn errors_of_the_syntax_name_the_line_and_keep_secrets() {
    for (text, error) in [
        (
            "# x\n\nknock-port = [1]\n",
            "line 3: unknown field `knock-port`, expected one of `interfaces`, `knock-ports`, \
            `plaintext-length`, `freshness`, `private-key-file`, `previous-private-key-file`, `previous-key-until`, `state-directory`, \
            `control-socket`, `clients-directory`, `default-lifetime`, `max-grants`, `prefilter`, `gate`, `services`",
        ),
        (
            "[gate]\nmode = \"closed\"",
            "line 2: unknown variant `closed`, expected `guard` or `open`",
        ),
        ("[gate]\nrefuse = 1", "line 2: wanted string or table"),
        ("interfaces = \"eth0\"", "line 1: invalid type: string \"eth0\", expected a sequence"),
        (
            "max-grants = \"spa-private-AAAA\"",
            "line 1: a secret key stands where it does not belong",
        ),
        (
            "services.ssh.port = [\"tcp/22\"]",
            "line 1: unknown field `port`, expected one of `ports`, `local-port`, `forward`, `masquerade`, `connections`",
        ),
    ] {
        assert_eq!(errors(text), [error], "{text}");
    }
    let broken = errors("private-key-file = \"spa-private-AAAA\nx = 1").concat();
    assert!(broken.starts_with("line 1: ") && !broken.contains("AAAA"), "{broken}");
    assert_eq!(
        errors("max-grants = 5"),
        [
            "there is no service, so nothing could ever be opened; add [services.ssh] with ports = [\"tcp/22\"]"
        ]
    );
}

#[test]
fn errors_of_a_client() {
    for (line, error) in [
        (
            "max-lifetime = \"0s\"",
            "max-lifetime: 0s is out of range; it lies between 1s and 24d20h31m23s",
        ),
        (
            "max-lifetime = \"1m\"\ndefault-lifetime = \"2m\"",
            "default-lifetime: 2m is longer than max-lifetime, which is 1m",
        ),
        (
            "sources = []",
            "sources: the list is empty; remove it to let the client knock from anywhere",
        ),
        (
            "sources = [\"home.example.org\"]",
            "sources: \"home.example.org\" is no network; write an address, as in 192.0.2.7, or a network, as in 192.0.2.0/24 or 2001:db8::/32",
        ),
        (
            "sources = [\"192.0.2.7/24\"]",
            "sources: 192.0.2.7/24 is an address in the network 192.0.2.0/24; write 192.0.2.0/24, or the address alone",
        ),
        (
            "sources = [\"::ffff:192.0.2.0/120\"]",
            "sources: ::ffff:192.0.2.0/120 stands for IPv4 addresses; write it as an IPv4 network",
        ),
        ("sources = [\"192.0.2.7\", \"192.0.2.7/32\"]", "sources: 192.0.2.7/32 is listed twice"),
        (
            "expires = \"next week\"",
            "expires: \"next week\" is no point in time; write a date, as in 2027-01-31, or date, time and offset, as in 2027-01-31T18:00:00Z",
        ),
        (
            "not-before = 2027-01-31T18:00:00",
            "not-before: \"2027-01-31T18:00:00\" is no point in time; write a date, as in 2027-01-31, or date, time and offset, as in 2027-01-31T18:00:00Z",
        ),
        (
            "not-before = 2027-01-01\nexpires = 2027-01-01T00:00:00Z",
            "expires: lies at or before not-before, so the client could never get in",
        ),
        ("max-sources = 0", "max-sources: 0 is out of range; it lies between 1 and 65536"),
        (
            "rate = { per-minute = 0 }",
            "rate.per-minute: 0 is out of range; it lies between 1 and 60000",
        ),
        ("rate.burst = -1", "rate.burst: -1 is out of range; it lies between 1 and 10000"),
        (
            "pre-shared-key-file = \"a.psk\"",
            "pre-shared-key-file: \"a.psk\" is a relative path; write it out from the root, beginning with /",
        ),
        (
            "expire = 2027-01-01",
            "line 3: unknown field `expire`, expected one of `public-key`, `invitation`, `allow`, `max-lifetime`, `default-lifetime`, `sources`, `not-before`, `expires`, `enabled`, `require-bound-source`, `pre-shared-key-file`, `rate`, `max-sources`, `source-prefix`",
        ),
    ] {
        assert_eq!(client_error_of(line), error);
    }
    for (allow, error) in [
        (
            "[]",
            "allow: the list is empty; name a service, or write enabled = false to lock the client out",
        ),
        ("[\"web\"]", "allow: there is no service web; server.toml has ssh"),
        ("[\"ssh\", \"ssh\"]", "allow: ssh is listed twice"),
        (
            "[\"tcp/22\"]",
            "allow: \"tcp/22\" is not a service name; a name is 1 to 32 of a-z, 0-9, '-', '_', '.' and begins with a letter; a port is written tcp/22",
        ),
    ] {
        assert_eq!(client_errors(&format!("allow = {allow}")), [error]);
    }
    assert_eq!(client_errors(""), ["line 1: missing field `allow`"]);
    assert_eq!(client_errors("allow = [\"ssh\"]"), Vec::<String>::new());
}

#[test]
fn errors_of_keys() {
    let allow = "allow = [\"ssh\"]";
    let host = Host::new(SSH);
    host.client("twin-a", &key(1), allow).client("twin-b", &key(1), allow);
    assert_eq!(
        host.error(),
        "DIR/clients.d/twin-b.toml: public-key: client twin-a has the same one; a key or an \
        invitation is for one client, so give each its own"
    );

    let host = Host::new(SSH);
    host.client("self", &host.server.public(), allow);
    assert!(host.error().contains("self.toml: public-key: this public key is this side's own"));

    let host = Host::new(SSH);
    host.client("low", &PublicKey::from_bytes([0; 32]), allow);
    assert!(host.error().contains("low.toml: public-key: this public key is a point of low order"));

    let host = Host::new(SSH);
    let private = host.server.to_text();
    let text = format!("public-key = \"{}\"\n{allow}", private.as_str());
    let error = host.write("clients.d/paste.toml", &text).error();
    assert!(error.contains("public-key: this is a private key (spa-private-…)"), "{error}");
    assert!(!error.contains(&private["spa-private-".len()..]));

    let host = Host::new(SSH);
    fs::remove_file(host.path("server.key")).unwrap();
    let error = host.client("laptop", &key(1), allow).error();
    assert!(error.starts_with("DIR/server.toml: private-key-file: there is no key file"));
}

#[test]
fn a_pre_shared_key_is_read_and_changes_the_secret() {
    let host = Host::new(SSH);
    let file = host.path("clients.d/a.psk");
    let more = format!("allow = [\"ssh\"]\npre-shared-key-file = \"{}\"", file.display());
    host.client("a", &key(1), &more);
    let error = host.error();
    assert!(error.contains("pre-shared-key-file: there is no key file"), "{error}");
    let pre_shared = PreSharedKey::generate(&SystemRandom::new()).unwrap();
    write_pre_shared_key(&file, &pre_shared, Overwrite::Refuse).unwrap();
    assert_eq!(host.load().unwrap().count.total, 1);
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    assert!(host.error().contains("is open to other users (mode 0640)"));
}

#[test]
fn all_errors_of_all_files_are_told_at_once() {
    let host = Host::new("knock-ports = [0]\nfreshness = \"1s\"\n");
    host.client("a", &key(1), "allow = [\"anything\"]\nmax-sources = 0");
    host.write("clients.d/b.toml", "public-key = 1");
    host.write("clients.d/-c.toml", "");
    assert_eq!(
        host.error(),
        "the configuration has 6 errors\n  \
        DIR/server.toml: knock-ports: 0 is no port; a port is a number from 1 to 65535\n  \
        DIR/server.toml: there is no service, so nothing could ever be opened; add [services.ssh] with ports = [\"tcp/22\"]\n  \
        DIR/server.toml: freshness: 1s is out of range; it lies between 10s and 2m\n  \
        DIR/clients.d/-c.toml: \"-c\" is no client name; a name is 1 to 64 of A-Z, a-z, 0-9, '-', '_', '.' and begins with a letter or a digit; rename the file, or let its name end in something else than .toml\n  \
        DIR/clients.d/a.toml: max-sources: 0 is out of range; it lies between 1 and 65536\n  \
        DIR/clients.d/b.toml: line 1: invalid type: integer `1`, expected a string"
    );
}

#[test]
fn files_that_others_can_write_are_refused() {
    for (name, mode) in
        [("server.toml", 0o664), ("clients.d/a.toml", 0o646), ("clients.d", 0o775), ("", 0o777)]
    {
        let host = Host::new(SSH);
        host.client("a", &key(1), "allow = [\"ssh\"]");
        let path = if name.is_empty() { host.directory.path().into() } else { host.path(name) };
        host.load().unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = host.error();
        assert!(error.contains(&format!("others than its owner can write it (mode {mode:04o})")));
    }
}

#[test]
fn a_server_without_clients_loads() {
    let host = Host::new(SSH);
    assert_eq!(host.load().unwrap().count.total, 0);
    fs::remove_dir(host.path("clients.d")).unwrap();
    assert_eq!(host.load().unwrap().count.total, 0);
}

#[test]
fn ten_thousand_clients_load_quickly() {
    let host = Host::new(SSH);
    for number in 0..10_000u32 {
        let mut seed = [1; 32];
        seed[..4].copy_from_slice(&number.to_le_bytes());
        // Any bytes below 2^255 - 19 are a public key.
        host.client(
            &format!("client-{number:05}"),
            &PublicKey::from_bytes(seed),
            "allow = [\"ssh\"]",
        );
    }
    let begin = Instant::now();
    let config = host.load().unwrap();
    let took = begin.elapsed();
    assert_eq!(config.count.total, 10_000);
    assert_eq!(config.clients().keys().nth(1234), Some(&"client-01234"));
    assert!(took < Duration::from_secs(20), "{took:?}: no start would wait for that");
    println!("10,000 clients in {took:?}");
}

#[test]
fn clients_may_be_elsewhere_if_that_is_there() {
    let host = Host::new(SSH);
    let elsewhere = host.path("elsewhere");
    host.write("server.toml", &format!("clients-directory = {elsewhere:?}\n{SSH}"));
    host.client("laptop", &key(1), "allow = [\"ssh\"]");
    // It may not be mounted yet; then nobody is to be taken for gone.
    assert!(host.error().starts_with("DIR/elsewhere: "), "{}", host.error());
    fs::rename(host.path("clients.d"), &elsewhere).unwrap();
    assert!(host.load().unwrap().clients().contains_key("laptop"));
    let laptop = client_file(&host.path("server.toml"), &"laptop".parse().unwrap());
    assert_eq!(laptop, elsewhere.join("laptop.toml"));
    assert_eq!(client_files(&host.path("server.toml")).unwrap(), [laptop]);
    // The usual one is made when it is needed.
    host.write("server.toml", SSH);
    assert_eq!(host.load().unwrap().clients().len(), 0);
    let relative = format!("clients-directory = \"elsewhere\"\n{SSH}");
    assert!(errors(&relative)[0].starts_with("clients-directory: "), "{:?}", errors(&relative));
}

#[test]
fn socket_state_and_clients_are_found_in_a_file_that_is_wrong_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("server.toml");
    let found = |text: &str| {
        std::fs::write(&path, text).unwrap();
        (Settings::control_socket_of(&path), Settings::state_directory_of(&path))
    };
    let usual = ("/run/spa/control.sock".into(), "/var/lib/spa".into());
    assert_eq!(
        found("control-socket = \"/a/b\" # mine\nknock-ports = [\nstate-directory='/c'\n[services"),
        ("/a/b".into(), "/c".into())
    );
    assert_eq!(found("#control-socket = \"/a/b\"\n#state-directory = \"/c\"\n"), usual);
    assert_eq!(found("control-socket = \"relative\"\nstate-directory = \"c\"\n"), usual);
    let sound = "[services.ssh]\nports = [\"tcp/22\"]\n";
    let stated = found(&format!("state-directory = \"/c\"\n{sound}"));
    assert_eq!(stated, (usual.0.clone(), "/c".into()));
    let clients = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Settings::clients_directory_of(&path)
    };
    assert_eq!(clients(sound), directory.path().join("clients.d"));
    for rest in [sound, "knock-ports = ["] {
        assert_eq!(clients(&format!("clients-directory = \"/c\"\n{rest}")), Path::new("/c"));
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(Settings::clients_directory_of(&path), directory.path().join("clients.d"));
    assert_eq!(Settings::control_socket_of(&path), usual.0);
    assert_eq!(Settings::state_directory_of(&path), usual.1);
}
