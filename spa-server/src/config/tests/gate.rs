//! What guards the ports, and what can be opened, in files right and wrong.

use super::*;
use crate::gate::Backend;
use crate::service::{Connections, Forward, ForwardTo, Target};
use std::num::NonZeroU16;

#[test]
fn hook_commands_are_read_and_judged() {
    let hook = |lines: &str| format!("{SSH}[gate]\nbackend = \"hook\"\n[gate.hook]\n{lines}");
    let settings = |text: &str| Settings::parse(Path::new("/etc/spa/server.toml"), text).unwrap();
    let pair = "open = [\"/bin/open\", \"{source}\"]\nclose = [\"/bin/close\"]\n";
    let gate = settings(&hook(pair)).gate;
    assert_eq!(gate.backend, Backend::Hook);
    let plain = gate.hook.unwrap();
    assert_eq!(plain.open.to_string(), "/bin/open {source}");
    assert_eq!(plain.close.program(), Path::new("/bin/close"));
    assert_eq!((plain.refresh, plain.time_limit), (false, Duration::from_secs(10)));
    assert_eq!(plain.directory, Path::new("/var/lib/spa-gate/hook"));
    let text = hook(&format!("{pair}refresh = true\ntime-limit = \"1m\""));
    let full = settings(&format!("state-directory = \"/srv\"\n{text}")).gate.hook.unwrap();
    assert_eq!((full.refresh, full.time_limit), (true, Duration::from_secs(60)));
    assert_eq!(full.directory, Path::new("/srv-gate/hook"));
    // It may stand there for the day when it is wanted.
    let other = settings(&hook(pair).replace("\"hook\"", "\"ipset\"")).gate;
    assert!(other.backend == Backend::Ipset && other.hook.is_some());

    let needs = "needs it; write the program and its arguments, as in";
    assert_eq!(
        errors(&format!("{SSH}[gate]\nbackend = \"hook\"\n")),
        [
            format!("gate.hook.open: backend = \"hook\" {needs} [\"/usr/local/sbin/open-port\"]"),
            format!("gate.hook.close: backend = \"hook\" {needs} [\"/usr/local/sbin/close-port\"]"),
        ]
    );
    for (lines, told) in [
        (
            pair.replace("\"/bin/close\"", ""),
            "gate.hook.close: the list is empty; write the program",
        ),
        (pair.replace("/bin/open", "open"), "gate.hook.open: \"open\" is a relative path; "),
        (
            pair.replace("{source}", "$SRC {src}"),
            "gate.hook.open: {src} is no placeholder; there are {action}, {source}, {protocol}, {port}, {port-last}, {seconds}",
        ),
        (
            format!("{pair}time-limit = \"2m\""),
            "gate.hook.time-limit: 2m is out of range; it lies between 1s and 1m",
        ),
        (
            format!("{pair}shell = true"),
            "line 8: unknown field `shell`, expected one of `open`, `close`, `refresh`, `time-limit`",
        ),
    ] {
        let errors = errors(&hook(&lines));
        assert!(errors.len() == 1 && errors[0].starts_with(told), "{errors:?}");
    }
}

#[test]
fn what_a_service_can_be_is_read_and_judged() {
    let of = |lines: &str| {
        let text = format!("[services.web]\n{lines}");
        let settings = Settings::parse(Path::new("/etc/spa/server.toml"), &text).unwrap();
        settings.services.into_values().next().unwrap()
    };
    let service = of("ports = [\"tcp/80\", \"udp/10000-10100\"]\nconnections = 1");
    assert_eq!(service.ports.len(), 2);
    assert_eq!((service.target, service.connections), (Target::Here, Connections::One));
    let port = NonZeroU16::new(8080).unwrap();
    assert_eq!(of("ports = [\"tcp/80\"]\nlocal-port = 8080").target, Target::LocalPort(port));
    let forward =
        of("ports = [\"tcp/80\"]\nforward = [\"10.0.0.5:8080\", \"fd00::5\"]\nmasquerade = true");
    let to = |address: &str, port| ForwardTo { address: address.parse().unwrap(), port };
    assert_eq!(
        forward.target,
        Target::Forward(Forward {
            v4: Some(to("10.0.0.5", Some(port))),
            v6: Some(to("fd00::5", None)),
            masquerade: true
        })
    );
    for (lines, told) in [
        ("ports = [\"tcp/90-80\"]", "web.ports: \"tcp/90-80\" is not a range of ports; "),
        (
            "ports = [\"tcp/80-90\", \"tcp/85\"]",
            "web.ports: tcp/85 and tcp/80-90 overlap; write one range",
        ),
        ("ports = [\"udp/62000-63000\"]", "web.ports: udp/62000-63000 is a knock port already; "),
        (
            "ports = [\"tcp/80\"]\nconnections = 2",
            "web.connections: 2 is not possible; 1 lets one connection in",
        ),
        ("ports = [\"tcp/80\"]\nlocal-port = 0", "web.local-port: 0 is no port; "),
        (
            "ports = [\"tcp/80\"]\nlocal-port = 1\nforward = [\"10.0.0.5\"]",
            "web.forward: a service has either a local-port or a forward; ",
        ),
        (
            "ports = [\"tcp/80\"]\nmasquerade = true",
            "web.masquerade: masquerade says how packets are forwarded; ",
        ),
        ("ports = [\"tcp/80\"]\nforward = []", "web.forward: the list is empty; "),
        (
            "ports = [\"tcp/80\"]\nforward = [\"gw:80\"]",
            "web.forward: \"gw:80\" is no host to forward to; ",
        ),
        (
            "ports = [\"tcp/80\"]\nforward = [\"127.0.0.1\"]",
            "web.forward: \"127.0.0.1\" is no host to forward to; ",
        ),
        (
            "ports = [\"tcp/80\"]\nforward = [\"10.0.0.5\", \"10.0.0.6\"]",
            "web.forward: 10.0.0.6 is a second host of its family; ",
        ),
    ] {
        let errors = errors(&format!("[services.web]\n{lines}"));
        assert!(errors.len() == 1, "{errors:?}");
        assert!(errors[0].starts_with(&format!("services.{told}")), "{errors:?}");
    }
    // One port, two ways.
    let two = format!("{SSH}[services.tunnel]\nports = [\"tcp/20-30\"]\nlocal-port = 9");
    let errors = errors(&two);
    assert!(
        errors.len() == 1 && errors[0].contains("tcp/20-30 is part of service ssh too"),
        "{errors:?}"
    );
    // Without a difference they may overlap.
    assert_eq!(super::errors(&two.replace("local-port = 9", "")), Vec::<String>::new());
}

#[test]
fn networks_that_are_always_admitted_are_judged() {
    let settings = |line: &str| {
        Settings::parse(
            Path::new("/etc/spa/server.toml"),
            &format!("gate.always-admit = {line}\n{SSH}"),
        )
    };
    let nets = settings("[\"192.0.2.7\", \"2001:db8::/32\"]").unwrap().gate_plan().always_admit;
    assert_eq!(nets, ["192.0.2.7/32".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    for (line, told) in [
        ("[\"home\"]", "gate.always-admit: \"home\" is neither an address nor a network; "),
        ("[\"::1\", \"::1/128\"]", "gate.always-admit: ::1 is listed twice"),
    ] {
        let error = settings(line).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn the_prefixes_of_a_client_are_judged() {
    for (prefix, told) in [
        ("ipv4 = 7", "source-prefix.ipv4: 7 is out of range; it lies between 16 and 32"),
        ("ipv4 = 33", "source-prefix.ipv4: 33 is out of range; "),
        ("ipv6 = 31", "source-prefix.ipv6: 31 is out of range; "),
        ("ipv6 = 129", "source-prefix.ipv6: 129 is out of range; "),
    ] {
        let error = client_error_of(&format!("source-prefix = {{ {prefix} }}"));
        assert!(error.starts_with(told), "{error}");
    }
    let none = client_errors("allow = [\"ssh\"]\nsource-prefix = { ipv4 = 24, ipv6 = 64 }");
    assert_eq!(none, Vec::<String>::new());
}

#[test]
fn a_client_with_a_prefix_may_open_no_service_for_one_connection() {
    let services =
        "[services.ssh]\nports = [\"tcp/22\"]\n[services.desk]\nports = [\"tcp/5900\"]\n";
    let limited = format!("{services}connections = 1\n");
    let with = |server: &str, more: &str| {
        let host = Host::new(server);
        host.client("a", &key(1), &format!("allow = [\"ssh\", \"desk\"]\n{more}"));
        host.client("b", &key(2), "allow = [\"desk\"]\n");
        host
    };
    for prefix in ["ipv4 = 24", "ipv6 = 64"] {
        let host = with(&limited, &format!("source-prefix = {{ {prefix} }}"));
        assert_eq!(
            host.error(),
            "DIR/clients.d/a.toml: source-prefix: a network is never let in for one connection, as service desk has it (connections = 1); leave out source-prefix, take desk out of allow, or connections out of [services.desk]"
        );
        // A start leaves this client out, and no other.
        let (config, problems) = Config::load_sound_clients(&host.path("server.toml")).unwrap();
        assert_eq!((config.count.total, problems.len()), (1, 1));
        assert!(config.clients().contains_key("b"));
    }
    assert!(with(&limited, "source-prefix = { ipv4 = 32, ipv6 = 128 }").load().is_ok());
    assert!(with(services, "source-prefix = { ipv4 = 24 }").load().is_ok());
}
