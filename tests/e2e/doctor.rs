//! `spa-client doctor`, each of its messages met by breaking that very thing; and knocks that are
//! bound to what a STUN server sees. The laptop is behind a router, the server is the real one.

use anyhow::{Context, Result, ensure};
use spa_tests::{
    Family, Finished, Home, PortState, SSH_PORT, Scene, StunServer, TimeServer, finish, masquerade,
};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// A running server, and a laptop at home that may open `ssh` there.
fn cast() -> Result<(Scene, Home)> {
    cast_with(&[62201])
}

fn cast_with(knock_ports: &[u16]) -> Result<(Scene, Home)> {
    let ports = knock_ports.to_vec();
    let scene = Scene::with(|server| server.knock_ports = ports)?;
    let home = Home::new(&scene, knock_ports, "ssh")?;
    Ok((scene, home))
}

/// That it ended so, and said this.
fn ensure_told(run: &Finished, status: i32, told: &[&str], scene: &Scene) -> Result<()> {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let output = words(&run.stdout);
    ensure!(run.status.code() == Some(status), "{run}\n{}", scene.server.account());
    for part in told {
        ensure!(output.contains(part), "not said: {part:?}\n{run}\n{}", scene.server.account());
    }
    Ok(())
}

#[test]
fn nothing_is_wrong() -> Result<()> {
    let (scene, home) = cast()?;
    let _time = TimeServer::start(scene.lab.other(), Family::V6)?;
    let run = home.laptop.run(&["doctor", "work", "--ntp", "fd66::3"])?;
    ensure_told(
        &run,
        0,
        &[
            "ok configuration",
            "ok key",
            "ok name gateway: ",
            "ok route 10.66.0.1 from 10.80.1.1",
            "ok route fd66::1 from fd80::1:1",
            "s against fd66::3; ",
            "not checked own addresses no stun-server is configured",
            "ok hidden tcp/22 at 10.66.0.1 before a knock: no answer",
            "ok knock udp/62201 at 10.66.0.1, source as observed: tcp/22: open after",
            "ok knock udp/62201 at fd66::1, source as observed: tcp/22: open after",
            "result: nothing is wrong: ssh on work opens",
        ],
        &scene,
    )?;
    ensure!(run.stderr.is_empty(), "{run}");
    // One knock at each address, and no more.
    ensure!(scene.server.status()?.accepted == 2, "{}", scene.server.account());

    // What is open already is told, and the same as data.
    let again = home.laptop.run(&["doctor", "--json"])?;
    let json: serde_json::Value = serde_json::from_str(&again.clone().ok()?)?;
    ensure!(json["ok"] == true && json["server"] == "work" && json["service"] == "ssh", "{json}");
    let cause = json["cause"].as_str().unwrap_or_default();
    ensure!(cause.starts_with("ssh on work was open before the knock already"), "{json}");
    let checks = json["checks"].as_array().context("no checks")?;
    ensure!(
        checks.iter().any(|it| it["check"] == "hidden" && it["state"] == "not-checked"),
        "{json}"
    );
    Ok(())
}

#[test]
fn what_is_wrong_on_the_laptop_is_found_before_a_packet_leaves() -> Result<()> {
    let (scene, home) = cast()?;
    let key = home.laptop.private_key_file();
    let doctor = |told: &[&str]| ensure_told(&home.laptop.run(&["doctor"])?, 1, told, &scene);

    fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    doctor(&[
        "trouble key",
        "0644",
        "most likely: this client's key can't be used: ",
        "now: if none of them can have read it: chmod 600 ",
    ])?;
    let away = key.with_extension("away");
    fs::rename(&key, &away)?;
    doctor(&[
        "trouble key",
        "most likely: this client's key can't be used: ",
        "now: make one with: spa-client keygen",
    ])?;
    fs::rename(&away, &key)?;
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;

    let config = home.laptop.configuration().join("config.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("gateway", "nowhere.example"))?;
    doctor(&[
        "ok key",
        "trouble name \"nowhere.example\" does not resolve",
        "most likely: the name of the server can't be used: ",
    ])?;
    fs::write(&config, text.replace("host", "hots"))?;
    doctor(&["trouble configuration", "most likely: the configuration can't be used: ", "hots"])?;
    fs::write(&config, &text)?;
    let unknown = home.laptop.run(&["doctor", "elsewhere"])?;
    ensure_told(&unknown, 1, &["trouble configuration no server is called \"elsewhere\""], &scene)?;

    for family in ["-4", "-6"] {
        home.host.sh(&format!("ip {family} route del default"))?;
    }
    doctor(&[
        "trouble route 10.66.0.1: network",
        "trouble route fd66::1: network",
        "most likely: this machine has no way to gateway: ",
    ])?;
    home.host.sh("ip route add default via 10.80.1.2")?;
    home.host.sh("iptables -A OUTPUT -p udp --dport 62201 -j DROP")?;
    ensure_told(
        &home.laptop.run(&["doctor", "-4"])?,
        1,
        &[
            "trouble knock udp/62201 at 10.66.0.1, source as observed: it could not be sent",
            "most likely: no knock leaves this machine: operation not permitted",
            "now: does a firewall on this machine forbid it?",
        ],
        &scene,
    )?;
    ensure!(scene.server.status()?.accepted == 0, "{}", scene.server.account());
    // The control: with all of it mended, it opens.
    home.host.sh("iptables -F OUTPUT")?;
    ensure_told(&home.laptop.run(&["doctor", "-4"])?, 0, &["result: nothing is wrong"], &scene)
}

#[test]
fn a_clock_that_is_an_hour_ahead() -> Result<()> {
    let (scene, home) = cast()?;
    let _time = TimeServer::start(scene.lab.other(), Family::V4)?;
    home.configure("ntp-server = \"10.66.0.3:123\"")?;
    let mut doctor = home.laptop.command(&["doctor"])?;
    spa_tests::fake_clock(&mut doctor, 3600)?;
    let run = finish(&mut doctor)?;
    ensure_told(
        &run,
        1,
        &[
            "trouble clock +3600.",
            "against 10.66.0.3:123",
            "most likely: this machine's clock is 3600 s ahead",
            "now: set the clock",
        ],
        &scene,
    )?;
    scene.ensure_shut()
}

#[test]
fn what_the_server_does_not_take_is_for_its_log() -> Result<()> {
    let (scene, home) = cast()?;
    let told = [
        "trouble knock udp/62201 at 10.66.0.1, source as observed: tcp/22: no answer",
        "most likely: the knocks leave and nothing comes back",
        "it names this client and a reason",
        "spa-server client add NAME --public-key spa-public-",
    ];
    // Known, but not for this.
    let run = home.laptop.run(&["doctor", "-4", "--service", "tcp/8080"])?;
    ensure_told(&run, 1, &["tcp/8080: no answer", told[1], told[2]], &scene)?;
    ensure!(scene.server.dropped("service-not-allowed")? >= 1, "{}", scene.server.account());
    // Not known at all.
    scene.server.admin(&["client", "remove", "mine"])?.ok()?;
    scene.server.admin(&["reload"])?.ok()?;
    ensure_told(&home.laptop.run(&["doctor", "-4"])?, 1, &told, &scene)?;
    // No daemon, but its gate.
    let mut scene = scene;
    scene.server.kill9()?;
    ensure_told(&home.laptop.run(&["doctor", "-4"])?, 1, &told[..2], &scene)
}

#[test]
fn a_knock_port_that_is_filtered_on_the_way() -> Result<()> {
    let (scene, home) = cast_with(&[62201, 53])?;
    let router = scene.lab.owner();
    router.sh("iptables -A FORWARD -p udp --dport 62201 -j DROP")?;
    let run = home.laptop.run(&["doctor", "-4"])?;
    ensure_told(
        &run,
        0,
        &[
            "trouble knock udp/62201 at 10.66.0.1, source as observed: tcp/22: no answer",
            "ok knock udp/53 at 10.66.0.1, source as observed: tcp/22: open after",
            "result: knocks to udp/62201 are dropped on the way from this network, those to udp/53 pass",
            "now: put 53 first in the knock-ports of work",
        ],
        &scene,
    )
}

#[test]
fn a_firewall_on_the_way_that_says_no() -> Result<()> {
    for (with, tables, family, told) in [
        (
            "icmp-admin-prohibited",
            "iptables",
            "-4",
            "a firewall on the way forbids knocks to udp/62201",
        ),
        (
            "icmp6-adm-prohibited",
            "ip6tables",
            "-6",
            "a firewall on the way forbids knocks to udp/62201",
        ),
        (
            "icmp-port-unreachable",
            "iptables",
            "-4",
            "a firewall on the way rejects knocks to udp/62201, or no gate hides them",
        ),
    ] {
        let (scene, home) = cast()?;
        let reject =
            format!("{tables} -A FORWARD -p udp --dport 62201 -j REJECT --reject-with {with}");
        scene.lab.owner().sh(&reject)?;
        let run = home.laptop.run(&["doctor", family])?;
        ensure_told(&run, 1, &["for the knock came back: ", told], &scene)?;
    }
    Ok(())
}

#[test]
fn a_firewall_in_front_of_the_service() -> Result<()> {
    let (scene, home) = cast()?;
    scene.lab.owner().sh("iptables -A FORWARD -p tcp --dport 22 -j DROP")?;
    let run = home.laptop.run(&["doctor", "-4"])?;
    ensure_told(
        &run,
        1,
        &[
            "most likely: the knocks leave and nothing comes back",
            "it has opened ssh: a firewall in front of work (the provider's, say) drops tcp/22",
        ],
        &scene,
    )?;
    // As the advice has it: the server did open.
    ensure!(!scene.server.grants()?.is_empty(), "{}", scene.server.account());
    Ok(())
}

#[test]
fn ipv6_is_broken_and_ipv4_works() -> Result<()> {
    let (scene, home) = cast()?;
    scene.lab.owner().sh("ip6tables -A FORWARD -j DROP")?;
    let run = home.laptop.run(&["doctor"])?;
    ensure_told(
        &run,
        0,
        &["result: IPv4 works and IPv6 does not: no answer", "spa-client open -4 ssh@work"],
        &scene,
    )?;
    home.host.sh("ip -6 route del default")?;
    scene.revoke_all()?;
    let run = home.laptop.run(&["doctor"])?;
    ensure_told(
        &run,
        0,
        &["trouble route fd66::1: ", "result: IPv4 works and IPv6 does not: network"],
        &scene,
    )
}

#[test]
fn nothing_listens_behind_the_gate_or_nothing_is_there_at_all() -> Result<()> {
    let scene = Scene::with(|server| {
        let ports = vec!["tcp/2323".into()];
        let quiet = spa_tests::Service { ports, ..Default::default() };
        server.services.insert("quiet".into(), quiet);
    })?;
    let home = Home::new(&scene, &[62201], "ssh,quiet")?;
    let run = home.laptop.run(&["doctor", "-4", "--service", "tcp/2323"])?;
    ensure_told(
        &run,
        1,
        &[
            "ok hidden tcp/2323 at 10.66.0.1 before a knock: no answer",
            "tcp/2323: connection refused",
            "most likely: the knock opened tcp/2323, but nothing listens there",
            "now: on the server: does the service run",
        ],
        &scene,
    )?;
    // A machine without a gate: both ports are told to be shut.
    home.configure_server("# another one")?;
    let config = home.laptop.configuration().join("config.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("gateway", "10.66.0.3"))?;
    let run = home.laptop.run(&["doctor"])?;
    ensure_told(
        &run,
        1,
        &["came back: port unreachable", "10.66.0.3 refuses tcp/22 and the knock port alike"],
        &scene,
    )?;
    // A machine that is not there.
    fs::write(&config, text.replace("gateway", "10.66.0.99"))?;
    let run = home.laptop.run(&["doctor"])?;
    ensure_told(
        &run,
        1,
        &["most likely: 10.66.0.99 can't be reached: no route to host; the server is down"],
        &scene,
    )
}

#[test]
fn a_gate_that_refuses_what_it_hides() -> Result<()> {
    let scene = Scene::with(|server| server.gate.refuse = "reject".into())?;
    let home = Home::new(&scene, &[62201], "ssh")?;
    let run = home.laptop.run(&["doctor", "-4"])?;
    ensure_told(
        &run,
        0,
        &["before a knock: connection refused", "result: nothing is wrong"],
        &scene,
    )?;
    scene.server.admin(&["client", "remove", "mine"])?.ok()?;
    scene.server.admin(&["reload"])?.ok()?;
    let told = "most likely: gateway refuses tcp/22 and the knock port alike: either no gate hides them, or one that refuses what it hides took no knock";
    ensure_told(&home.laptop.run(&["doctor", "-4"])?, 1, &[told, "unknown tag"], &scene)
}

#[test]
fn udp_and_tcp_leave_by_different_addresses() -> Result<()> {
    let (scene, home) = cast()?;
    let router = scene.lab.owner();
    router.sh("ip addr add 10.66.0.20/24 dev eth0")?;
    for (protocol, address) in [("udp", "10.66.0.2"), ("tcp", "10.66.0.20")] {
        router.sh(&format!(
            "iptables -t nat -A POSTROUTING -o eth0 -p {protocol} -j SNAT --to-source {address}"
        ))?;
    }
    // Without a STUN server it is one of what the log can tell.
    let run = home.laptop.run(&["doctor", "-4"])?;
    ensure_told(
        &run,
        1,
        &[
            "most likely: the knocks leave and nothing comes back",
            "UDP and TCP leave this network by different addresses",
        ],
        &scene,
    )?;
    let _stun = StunServer::start(scene.lab.other())?;
    home.configure("stun-server = \"10.66.0.3\"")?;
    let run = home.laptop.run(&["doctor", "-4"])?;
    ensure_told(
        &run,
        1,
        &[
            "trouble own addresses UDP leaves by 10.66.0.2, TCP by 10.66.0.20",
            "most likely: UDP leaves this network by the address 10.66.0.2 and TCP by 10.66.0.20",
        ],
        &scene,
    )
}

#[test]
fn a_bound_source_that_a_router_rewrites() -> Result<()> {
    let (scene, home) = cast()?;
    masquerade(scene.lab.owner())?;
    home.configure_server("bind-source = \"10.80.1.1\"")?;
    let run = home.laptop.run(&["doctor"])?;
    ensure_told(
        &run,
        0,
        &[
            "trouble knock udp/62201 at 10.66.0.1, bound to 10.80.1.1: tcp/22: no answer",
            "ok knock udp/62201 at 10.66.0.1, source as observed: tcp/22: open after",
            "result: a router on the way changes the address 10.80.1.1 that knocks are bound to",
            "now: set bind-source = \"observed\"",
        ],
        &scene,
    )?;
    ensure!(scene.server.dropped("bound-source")? >= 1, "{}", scene.server.account());
    Ok(())
}

#[test]
fn behind_a_router_knocks_are_bound_to_what_the_stun_server_sees() -> Result<()> {
    let (scene, home) = cast()?;
    masquerade(scene.lab.owner())?;
    let open = ["open", "ssh", "--wait", "--fresh", "-v"];
    // The control: nobody is asked, and nothing bound.
    let run = home.laptop.run(&open)?;
    ensure!(run.success() && run.stderr.contains("10.80.1.1 is not a global one"), "{run}");

    let stun = StunServer::start(scene.lab.other())?;
    home.configure_server("stun-server = \"10.66.0.3:3478\"")?;
    let run = home.laptop.run(&open)?;
    ensure!(run.success(), "{run}\n{}", scene.server.account());
    let bound =
        "10.66.0.1 port 62201, bound to 10.66.0.2, as the STUN server 10.66.0.3:3478 sees it";
    ensure!(run.stderr.contains(bound), "{run}");
    ensure!(run.stderr.contains("STUN server 10.66.0.3:3478 has no IPv6 address"), "{run}");
    home.configure_server("bind-source = \"auto\"")?;
    let config = home.laptop.configuration().join("config.toml");
    fs::write(&config, fs::read_to_string(&config)?.replace("10.66.0.3:3478", "[fd66::3]:3478"))?;
    let run = home.laptop.run(&open)?;
    let bound = "fd66::1 port 62201, bound to fd66::2, as the STUN server [fd66::3]:3478 sees it";
    ensure!(run.success() && run.stderr.contains(bound), "{run}");

    // What a bound knock is for: from another address it opens nothing.
    ensure!(scene.server.dropped("bound-source")? == 0, "{}", scene.server.account());
    scene.ensure_sees(scene.lab.third(), Family::V4, SSH_PORT, PortState::Filtered)?;

    // A server that is gone costs a moment, and nothing else.
    drop(stun);
    scene.revoke_all()?;
    let run = home.laptop.run(&open)?;
    ensure!(run.success(), "{run}\n{}", scene.server.account());
    ensure!(run.stderr.contains("source as observed, because the STUN server"), "{run}");
    Ok(())
}
