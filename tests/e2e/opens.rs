//! What a right knock opens: the service it asks for, for its sender, for the lifetime, and
//! nothing else.

use anyhow::{Context as _, Result, ensure};
use spa_tests::{
    Capture, Family, Listener, PortState, SSH_PORT, Scene, Service, WEB_PORT, eventually,
};
use std::time::{Duration, Instant};

/// Before, during and after one grant, from the owner's and from a stranger's host.
fn one_knock_opens_for_its_sender_only(family: Family) -> Result<()> {
    let scene = Scene::new()?;
    let (owner, other) = (scene.lab.owner(), scene.lab.other());
    scene.ensure_shut()?;

    scene.knock(owner, family, &scene.laptop.open("ssh").seal()?)?;
    scene.await_open(owner, family, SSH_PORT)?;
    ensure!(scene.sshd.login(owner, family, "echo in")?.ok()? == "in\n");

    // Nobody else, nothing else, and not by the other family.
    scene.ensure_sees(other, family, SSH_PORT, PortState::Filtered)?;
    scene.ensure_sees(owner, family, WEB_PORT, PortState::Filtered)?;
    for of_other_family in Family::BOTH.into_iter().filter(|other| *other != family) {
        scene.ensure_sees(owner, of_other_family, SSH_PORT, PortState::Filtered)?;
    }

    let grants = scene.server.grants()?;
    let [grant] = &grants[..] else { anyhow::bail!("there is not one grant: {grants:?}") };
    ensure!(grant.client == "laptop" && grant.service.to_string() == "ssh", "{grant:?}");
    ensure!(grant.source == owner.address(family).into(), "{grant:?}");
    ensure!(grant.seconds_left <= 30 && grant.seconds_left > 20, "the default is 30 s: {grant:?}");
    let status = scene.server.status()?;
    ensure!((status.accepted, status.opened, status.grants) == (1, 1, 1), "{status:?}");
    // It comes alone, and waits only if the daemon is at something else just then.
    ensure!(status.received >= 1 && status.queue.deepest <= 1, "{status:?}");
    let latency = status.latency.context("one has opened")?;
    ensure!(latency.knocks == 1 && (1..10_000_000).contains(&latency.p50_micros), "{latency:?}");
    let opened = scene.server.audit("opened")?;
    ensure!(opened.len() == 1, "{opened:?}");
    ensure!(
        opened[0].contains("client=laptop") && opened[0].contains("services=ssh"),
        "{opened:?}"
    );
    ensure!(opened[0].contains(&format!("source={}", owner.address(family))), "{opened:?}");
    Ok(())
}

#[test]
fn one_knock_opens_for_its_sender_only_by_ipv4() -> Result<()> {
    one_knock_opens_for_its_sender_only(Family::V4)
}

#[test]
fn one_knock_opens_for_its_sender_only_by_ipv6() -> Result<()> {
    one_knock_opens_for_its_sender_only(Family::V6)
}

#[test]
fn the_lifetime_ends_and_an_established_session_lives_on() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    let mut sessions = Vec::new();
    let start = Instant::now();
    for family in Family::BOTH {
        scene.knock(owner, family, &scene.laptop.open("ssh").lifetime(3).seal()?)?;
        scene.await_open(owner, family, SSH_PORT)?;
        sessions.push(scene.sshd.session(owner, family)?);
    }
    for family in Family::BOTH {
        scene.await_state(owner, family, SSH_PORT, PortState::Filtered)?;
    }
    ensure!(start.elapsed() > Duration::from_secs(2), "closed after {:?}", start.elapsed());
    scene.ensure_shut()?;
    eventually("the daemon is to forget the grants", || {
        Ok(scene.server.grants()?.is_empty().then_some(()))
    })?;
    for session in &mut sessions {
        session.ensure_alive()?;
    }
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    Ok(())
}

#[test]
fn a_second_knock_refreshes_and_never_duplicates_or_shortens() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    let rules = scene.server.rules()?;
    let knock = |lifetime: u32| {
        scene.knock(owner, Family::V4, &scene.laptop.open("ssh").lifetime(lifetime).seal()?)
    };
    let left = || -> Result<u64> {
        let grants = scene.server.grants()?;
        ensure!(grants.len() == 1, "there is not one grant: {grants:?}");
        ensure!(scene.server.elements()?.len() == 1, "{:?}", scene.server.elements()?);
        Ok(grants[0].seconds_left)
    };
    knock(60)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    ensure!(left()? <= 60);
    knock(600)?;
    eventually("the grant is to be refreshed", || Ok((left()? > 500).then_some(())))?;
    knock(10)?;
    scene.server.await_accepted(3)?;
    ensure!(left()? > 500, "a shorter knock has shortened the grant to {} s", left()?);
    ensure!(scene.server.rules()? == rules, "knocks have changed the rules");
    Ok(())
}

#[test]
fn the_owner_closes_what_was_opened() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh web").seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    scene.await_open(owner, Family::V4, WEB_PORT)?;
    let late = scene.laptop.open("ssh").seal()?;

    scene.knock(owner, Family::V4, &scene.laptop.close("ssh").seal()?)?;
    scene.await_state(owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.ensure_sees(owner, Family::V4, WEB_PORT, PortState::Open)?;
    ensure!(scene.server.audit("closed")?.len() == 1, "{}", scene.server.account());

    // An open that was sealed before the close and arrives after it.
    scene.knock(owner, Family::V4, &late)?;
    scene.server.await_dropped("superseded", 1)?;
    scene.ensure_sees(owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn a_neighbour_behind_the_same_address_is_not_closed_out() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let (_, neighbour) = scene.add_client("neighbour", |_| {})?;
    scene.server.start()?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh").seal()?)?;
    scene.knock(owner, Family::V4, &neighbour.open("ssh").seal()?)?;
    scene.server.await_accepted(2)?;
    ensure!(scene.server.grants()?.len() == 2);
    ensure!(scene.server.elements()?.len() == 1, "{:?}", scene.server.elements()?);

    scene.knock(owner, Family::V4, &scene.laptop.close("ssh").seal()?)?;
    scene.server.await_accepted(3)?;
    eventually(
        "one grant is to be left",
        || Ok((scene.server.grants()?.len() == 1).then_some(())),
    )?;
    scene.ensure_sees(owner, Family::V4, SSH_PORT, PortState::Open)?;

    scene.knock(owner, Family::V4, &neighbour.close("ssh").seal()?)?;
    scene.await_state(owner, Family::V4, SSH_PORT, PortState::Filtered)
}

#[test]
fn an_administrator_revokes_one_client_and_the_other_stays_in() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let (_, second) = scene.add_client("second", |_| {})?;
    scene.server.start()?;
    let (owner, other) = (scene.lab.owner(), scene.lab.other());
    scene.knock(owner, Family::V6, &scene.laptop.open("ssh").seal()?)?;
    scene.knock(other, Family::V6, &second.open("ssh").seal()?)?;
    scene.await_open(owner, Family::V6, SSH_PORT)?;
    scene.await_open(other, Family::V6, SSH_PORT)?;
    let listed = scene.server.admin(&["grants", "list"])?.ok()?;
    ensure!(listed.contains("laptop") && listed.contains("second"), "{listed}");

    scene.server.admin(&["grants", "revoke", "laptop"])?.ok()?;
    scene.ensure_sees(owner, Family::V6, SSH_PORT, PortState::Filtered)?;
    scene.ensure_sees(other, Family::V6, SSH_PORT, PortState::Open)?;
    ensure!(scene.server.audit("revoked")?.len() == 1, "{}", scene.server.account());
    scene.ensure_owner_gets_in(Family::V6)
}

#[test]
fn a_single_port_of_a_service_opens_alone() -> Result<()> {
    let scene = Scene::with(|configuration| {
        let both =
            Service { ports: vec!["tcp/22".into(), "tcp/8080".into()], ..Service::default() };
        configuration.services.insert("both".into(), both);
        configuration.clients[0].allow = vec!["both".into()];
    })?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("tcp/8080").seal()?)?;
    scene.await_open(owner, Family::V4, WEB_PORT)?;
    scene.ensure_sees(owner, Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.knock(owner, Family::V4, &scene.laptop.open("both").seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)
}

#[test]
fn a_udp_service_is_hidden_and_opens_too() -> Result<()> {
    let scene = Scene::with(|configuration| {
        configuration.clients[0].allow.push("dns".into());
    })?;
    for family in Family::BOTH {
        let dns = scene.lab.server().at(family, 8053);
        ensure!(scene.lab.owner().udp(dns)? == PortState::Filtered);
        scene.knock(scene.lab.owner(), family, &scene.laptop.open("dns").seal()?)?;
        eventually("the UDP service is to answer", || {
            Ok((scene.lab.owner().udp(dns)? == PortState::Open).then_some(()))
        })?;
        ensure!(scene.lab.other().udp(dns)? == PortState::Filtered);
    }
    Ok(())
}

#[test]
fn every_knock_port_takes_knocks_and_a_port_in_use_is_left_alone() -> Result<()> {
    let mut scene =
        Scene::prepared(|configuration| configuration.knock_ports = vec![53, 443, 62201])?;
    // A real name server on a knock port goes on to answer its own clients.
    let _named = Listener::udp(scene.lab.server(), 53)?;
    scene.server.start()?;
    let owner = scene.lab.owner();
    for port in [53, 443, 62201] {
        for family in Family::BOTH {
            owner
                .send_udp(scene.lab.server().at(family, port), &scene.laptop.open("ssh").seal()?)?;
            scene.await_open(owner, family, SSH_PORT)?;
            scene.revoke_all()?;
        }
    }
    for family in Family::BOTH {
        ensure!(scene.lab.other().udp(scene.lab.server().at(family, 53))? == PortState::Open);
        for port in [443, 62201] {
            let hidden = scene.lab.server().at(family, port);
            ensure!(scene.lab.other().udp(hidden)? == PortState::Filtered);
        }
    }
    Ok(())
}

#[test]
fn knocks_are_seen_on_all_interfaces_also_on_those_that_come_later() -> Result<()> {
    let scene = Scene::with(|configuration| configuration.interfaces = vec!["any".into()])?;
    let owner = scene.lab.owner();
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    scene.revoke_all()?;

    scene.lab.add_link("late0")?;
    let ssh = "10.68.0.1:22".parse()?;
    ensure!(owner.tcp(ssh)? == PortState::Filtered);
    owner.send_udp("10.68.0.1:62201".parse()?, &scene.laptop.open("ssh").seal()?)?;
    owner.await_open(ssh)
}

#[test]
fn two_devices_with_one_key_and_reordered_datagrams_get_in() -> Result<()> {
    let scene = Scene::new()?;
    let (owner, other) = (scene.lab.owner(), scene.lab.other());
    // Two devices at once, one clock slow, the other fast.
    let (slow, fast) = (scene.laptop.with_clock_ahead(-40), scene.laptop.with_clock_ahead(40));
    scene.knock(other, Family::V4, &fast.open("ssh").seal()?)?;
    scene.knock(owner, Family::V4, &slow.open("ssh").seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    scene.await_open(other, Family::V4, SSH_PORT)?;

    // The later knock overtakes the earlier.
    let earlier = slow.open("web").seal()?;
    let later = slow.open("ssh").seal()?;
    scene.knock(owner, Family::V6, &later)?;
    scene.await_open(owner, Family::V6, SSH_PORT)?;
    scene.knock(owner, Family::V6, &earlier)?;
    scene.await_open(owner, Family::V6, WEB_PORT)?;
    scene.server.await_accepted(4)
}

#[test]
fn granted_traffic_passes_the_hosts_own_default_drop() -> Result<()> {
    for mode in ["guard", "open"] {
        let mut scene = Scene::prepared(|configuration| configuration.gate.mode = mode.into())?;
        let server = scene.lab.server();
        for tables in ["iptables", "ip6tables"] {
            server.sh(&format!("{tables} -A INPUT -i lo -j ACCEPT"))?;
            server.sh(&format!("{tables} -A INPUT -p icmp -j ACCEPT"))?;
            server.sh(&format!("{tables} -P INPUT DROP"))?;
        }
        let before = scene.server.rules()?;
        scene.server.start()?;
        let owner = scene.lab.owner();
        for family in Family::BOTH {
            scene.ensure_sees(owner, family, SSH_PORT, PortState::Filtered)?;
            scene.knock(owner, family, &scene.laptop.open("ssh").lifetime(3).seal()?)?;
            scene.await_open(owner, family, SSH_PORT)?;
            scene.ensure_sees(scene.lab.other(), family, SSH_PORT, PortState::Filtered)?;
            // Established sessions need the host's leave too.
            let mut session = scene.sshd.session(owner, family)?;
            scene.await_state(owner, family, SSH_PORT, PortState::Filtered)?;
            session.ensure_alive()?;
        }
        let own = |rule: &&str| !rule.to_lowercase().contains("spa");
        let now = scene.server.rules()?;
        for rule in before.lines().filter(own) {
            ensure!(now.lines().any(|line| line == rule), "{mode} has taken away {rule:?}");
        }
    }
    Ok(())
}

#[test]
fn a_published_port_of_a_container_is_guarded_before_nat() -> Result<()> {
    let mut scene = Scene::prepared(|configuration| {
        configuration
            .services
            .insert("app".into(), Service { ports: vec!["tcp/8443".into()], ..Service::default() });
        configuration.clients[0].allow.push("app".into());
    })?;
    let server = scene.lab.server();
    let container = scene.lab.container()?;
    let _app = Listener::tcp(&container, 80)?;
    for (tables, to) in [("iptables", "10.77.0.2:80"), ("ip6tables", "[fd77::2]:80")] {
        server.sh(&format!(
            "{tables} -t nat -A PREROUTING -i eth0 -p tcp --dport 8443 -j DNAT --to-destination {to}"
        ))?;
    }
    let (owner, other) = (scene.lab.owner(), scene.lab.other());
    for family in Family::BOTH {
        // The positive control: it is published.
        scene.ensure_sees(other, family, 8443, PortState::Open)?;
    }
    scene.server.start()?;
    for family in Family::BOTH {
        scene.ensure_sees(owner, family, 8443, PortState::Filtered)?;
        scene.knock(owner, family, &scene.laptop.open("app").seal()?)?;
        scene.await_open(owner, family, 8443)?;
        scene.ensure_sees(other, family, 8443, PortState::Filtered)?;
    }
    Ok(())
}

#[test]
fn loopback_passes_and_no_socket_is_bound_to_a_knock_port() -> Result<()> {
    let scene = Scene::new()?;
    let server = scene.lab.server();
    for address in ["127.0.0.1:22", "[::1]:22", "10.66.0.1:22", "[fd66::1]:22"] {
        ensure!(
            server.tcp(address.parse()?)? == PortState::Open,
            "{address} from the server itself"
        );
    }
    let bound = server.sh("ss -Hlnu")?;
    ensure!(bound.contains(":8053"), "the list does not show what is bound:\n{bound}");
    ensure!(!bound.contains(":62201"), "a socket is bound to the knock port:\n{bound}");
    Ok(())
}

#[test]
fn a_gateway_that_routes_leaves_the_traffic_of_others_alone() -> Result<()> {
    let scene = Scene::new()?;
    let container = scene.lab.container()?;
    let _ssh = Listener::tcp(&container, SSH_PORT)?;
    let owner = scene.lab.owner();
    owner.sh("ip route add 10.77.0.0/24 via 10.66.0.1")?;
    owner.sh("ip -6 route add fd77::/64 via fd66::1")?;
    for family in Family::BOTH {
        ensure!(owner.tcp(container.at(family, SSH_PORT))? == PortState::Open, "{family:?}");
        scene.ensure_sees(owner, family, SSH_PORT, PortState::Filtered)?;
    }
    Ok(())
}

#[test]
fn the_server_answers_a_right_knock_with_silence_too() -> Result<()> {
    let scene = Scene::new()?;
    let wire = Capture::on(scene.lab.server(), "ip or ip6")?;
    for family in Family::BOTH {
        scene.knock(scene.lab.owner(), family, &scene.laptop.open("ssh").seal()?)?;
    }
    scene.server.await_accepted(2)?;
    eventually("both grants are to be there", || {
        Ok((scene.server.elements()?.len() == 2).then_some(()))
    })?;
    wire.ensure_silence_of(scene.lab.server())?;
    // The positive control: an answer would have been seen.
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
    ensure!(wire.ensure_silence_of(scene.lab.server()).is_err());
    Ok(())
}
