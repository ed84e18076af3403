//! Every way in which an authentic or nearly authentic knock is refused, each with its own drop
//! reason in `status`, and each with the right knock beside it that opens.

use anyhow::{Result, ensure};
use spa_tests::{
    Capture, Client, Device, Family, Identity, PortState, Rate, SSH_PORT, Scene, eventually,
};
use std::time::Duration;

/// A scene with the client `second` as `change` has it.
fn with_second(change: impl FnOnce(&mut Client)) -> Result<(Scene, Device)> {
    let mut scene = Scene::prepared(|_| {})?;
    let (_, second) = scene.add_client("second", change)?;
    scene.server.start()?;
    Ok((scene, second))
}

/// The knock is dropped for this reason, nothing opens and nothing is answered, and the right
/// knock of the laptop opens.
fn ensure_refused(scene: &Scene, knock: &[u8], reason: &str) -> Result<()> {
    let wire = Capture::of_answers(scene.lab.server())?;
    for family in Family::BOTH {
        refuse(scene, family, knock, reason)?;
    }
    scene.ensure_shut()?;
    wire.ensure_silence_of(scene.lab.server())?;
    for family in Family::BOTH {
        scene.ensure_owner_gets_in(family)?;
    }
    Ok(())
}

fn refuse(scene: &Scene, family: Family, knock: &[u8], reason: &str) -> Result<()> {
    let before = scene.server.dropped(reason)?;
    scene.knock(scene.lab.owner(), family, knock)?;
    scene.server.await_dropped(reason, before + 1)
}

#[test]
fn too_old_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let old = scene.laptop.with_clock_ahead(-62).open("ssh").seal()?;
    ensure_refused(&scene, &old, "too-old")
}

#[test]
fn too_far_in_the_future_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    // Far enough that it does not become fresh while the test runs.
    let new = scene.laptop.with_clock_ahead(130).open("ssh").seal()?;
    ensure_refused(&scene, &new, "too-new")
}

#[test]
fn the_freshness_window_is_as_wide_as_it_says() -> Result<()> {
    let scene = Scene::new()?;
    for seconds in [-55, 58] {
        let skewed = scene.laptop.with_clock_ahead(seconds).open("ssh").seal()?;
        scene.knock(scene.lab.owner(), Family::V4, &skewed)?;
        scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
        scene.revoke_all()?;
    }
    Ok(())
}

#[test]
fn a_clock_that_is_off_is_named_in_the_log() -> Result<()> {
    let scene = Scene::new()?;
    let skewed = scene.laptop.with_clock_ahead(-130).open("ssh").seal()?;
    refuse(&scene, Family::V4, &skewed, "too-old")?;
    eventually("the log is to name the client and the reason", || {
        let log = scene.server.log()?;
        let told = log.lines().any(|line| line.contains("laptop") && line.contains("too-old"));
        Ok(told.then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_client_of_another_server_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let other_server = Identity::generate()?;
    let elsewhere = scene.identity.device(other_server.public())?;
    ensure_refused(&scene, &elsewhere.open("ssh").seal()?, "unknown-tag")
}

#[test]
fn an_unknown_client_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let stranger = Identity::generate()?.device(scene.server_identity.public())?;
    ensure_refused(&scene, &stranger.open("ssh").seal()?, "unknown-tag")
}

#[test]
fn a_removed_client_is_refused() -> Result<()> {
    let (mut scene, second) = with_second(|_| {})?;
    scene.knock(scene.lab.owner(), Family::V4, &second.open("ssh").seal()?)?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)?;
    scene.revoke_all()?;
    scene
        .server
        .reconfigure(|configuration| configuration.clients.retain(|c| c.name != "second"))?;
    scene.server.restart()?;
    ensure_refused(&scene, &second.open("ssh").seal()?, "unknown-tag")
}

#[test]
fn a_disabled_client_is_refused() -> Result<()> {
    let (scene, second) = with_second(|client| client.enabled = Some(false))?;
    ensure_refused(&scene, &second.open("ssh").seal()?, "disabled")
}

#[test]
fn an_expired_client_is_refused() -> Result<()> {
    let (scene, second) =
        with_second(|client| client.expires = Some("2020-01-01T00:00:00Z".into()))?;
    ensure_refused(&scene, &second.open("ssh").seal()?, "expired")
}

#[test]
fn a_client_that_is_not_valid_yet_is_refused() -> Result<()> {
    let (scene, second) =
        with_second(|client| client.not_before = Some("2999-01-01T00:00:00Z".into()))?;
    ensure_refused(&scene, &second.open("ssh").seal()?, "not-yet-valid")
}

#[test]
fn a_service_that_is_not_allowed_is_refused_also_beside_one_that_is() -> Result<()> {
    let (scene, second) = with_second(|client| client.allow = vec!["web".into()])?;
    for items in ["ssh", "tcp/22", "web ssh", "no-such-service", "tcp/9"] {
        let before = scene.server.dropped("service-not-allowed")?;
        scene.knock(scene.lab.owner(), Family::V4, &second.open(items).seal()?)?;
        scene.server.await_dropped("service-not-allowed", before + 1)?;
    }
    ensure_refused(&scene, &second.open("ssh").seal()?, "service-not-allowed")
}

#[test]
fn a_lifetime_over_the_maximum_is_refused() -> Result<()> {
    let (scene, second) = with_second(|client| client.max_lifetime = Some("60s".into()))?;
    ensure_refused(&scene, &second.open("ssh").lifetime(61).seal()?, "lifetime")?;
    scene.revoke_all()?;
    scene.knock(scene.lab.owner(), Family::V4, &second.open("ssh").lifetime(60).seal()?)?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)
}

#[test]
fn a_source_outside_the_allowed_networks_is_refused() -> Result<()> {
    let (scene, second) = with_second(|client| {
        client.sources = Some(vec!["10.66.0.3/32".into(), "fd66::3/128".into()]);
    })?;
    ensure_refused(&scene, &second.open("ssh").seal()?, "source-not-allowed")?;
    scene.revoke_all()?;
    for family in Family::BOTH {
        scene.knock(scene.lab.other(), family, &second.open("ssh").seal()?)?;
        scene.await_open(scene.lab.other(), family, SSH_PORT)?;
    }
    Ok(())
}

#[test]
fn a_bound_knock_from_another_address_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    let bound = scene.laptop.open("ssh").bound_to("192.0.2.1".parse()?).seal()?;
    ensure_refused(&scene, &bound, "bound-source")
}

#[test]
fn an_unbound_knock_is_refused_where_bound_ones_are_required() -> Result<()> {
    let (scene, second) = with_second(|client| client.require_bound_source = Some(true))?;
    ensure_refused(&scene, &second.open("ssh").seal()?, "bound-source-required")?;
    scene.revoke_all()?;
    let owner = scene.lab.owner();
    for family in Family::BOTH {
        let bound = second.open("ssh").bound_to(owner.address(family)).seal()?;
        scene.knock(owner, family, &bound)?;
        scene.await_open(owner, family, SSH_PORT)?;
    }
    Ok(())
}

#[test]
fn more_sources_than_allowed_are_refused() -> Result<()> {
    let (scene, second) = with_second(|client| client.max_sources = Some(2))?;
    for address in ["10.66.0.101:9", "10.66.0.102:9"] {
        scene.knock_as(address.parse()?, &second.open("ssh").seal()?)?;
    }
    scene.server.await_accepted(2)?;
    scene.knock_as("10.66.0.103:9".parse()?, &second.open("ssh").seal()?)?;
    scene.server.await_dropped("max-sources", 1)?;
    ensure!(scene.server.elements()?.len() == 2, "{:?}", scene.server.elements()?);
    // A source that it has already is none more.
    scene.knock_as("10.66.0.101:9".parse()?, &second.open("ssh").seal()?)?;
    scene.server.await_accepted(3)?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn more_knocks_than_the_rate_allows_are_refused() -> Result<()> {
    let (scene, second) =
        with_second(|client| client.rate = Some(Rate { per_minute: 1, burst: 3 }))?;
    for _ in 0..4 {
        scene.knock(scene.lab.owner(), Family::V4, &second.open("ssh").seal()?)?;
    }
    scene.server.await_dropped("rate", 1)?;
    scene.server.await_accepted(3)?;
    scene.revoke_all()?;
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn an_observer_who_sends_the_bound_knock_first_does_not_burn_it() -> Result<()> {
    let scene = Scene::new()?;
    let (owner, other) = (scene.lab.owner(), scene.lab.other());
    for family in Family::BOTH {
        let knock = scene.laptop.open("ssh").bound_to(owner.address(family)).seal()?;
        let before = scene.server.dropped("bound-source")?;
        scene.knock(other, family, &knock)?;
        scene.server.await_dropped("bound-source", before + 1)?;
        scene.ensure_shut()?;
        scene.knock(owner, family, &knock)?;
        scene.await_open(owner, family, SSH_PORT)?;
        scene.revoke_all()?;
    }
    Ok(())
}

#[test]
fn an_observer_outside_the_allowed_networks_does_not_burn_the_knock() -> Result<()> {
    let (scene, second) = with_second(|client| client.sources = Some(vec!["10.66.0.2/32".into()]))?;
    let knock = second.open("ssh").seal()?;
    scene.knock(scene.lab.other(), Family::V4, &knock)?;
    scene.server.await_dropped("source-not-allowed", 1)?;
    scene.knock(scene.lab.owner(), Family::V4, &knock)?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)
}

#[test]
fn replays_and_refused_knocks_cost_no_token_of_any_limit() -> Result<()> {
    let (scene, second) =
        with_second(|client| client.rate = Some(Rate { per_minute: 1, burst: 2 }))?;
    let owner = scene.lab.owner();
    let first = second.open("ssh").seal()?;
    scene.knock(owner, Family::V4, &first)?;
    scene.server.await_accepted(1)?;
    // What an observer can send, from wherever: replays, and the owner's knocks from elsewhere.
    scene.lab.other().send_udp_all(scene.door(Family::V4), &vec![first; 100])?;
    scene.server.await_dropped("replay", 100)?;
    let bound = second.open("ssh").bound_to(owner.address(Family::V4)).seal()?;
    scene.lab.other().send_udp_all(scene.door(Family::V4), &vec![bound.clone(); 100])?;
    scene.server.await_dropped("bound-source", 100)?;
    ensure!(scene.server.dropped("rate")? == 0);
    // The second token is still there for the owner's own datagram.
    scene.revoke_all()?;
    scene.knock(owner, Family::V4, &bound)?;
    scene.await_open(owner, Family::V4, SSH_PORT)
}

#[test]
fn refusals_of_one_client_write_a_line_a_minute_at_most() -> Result<()> {
    let (scene, second) = with_second(|client| client.enabled = Some(false))?;
    let before = scene.server.log()?.lines().count();
    let lines = || -> Result<usize> {
        let log = scene.server.log()?;
        Ok(log.lines().skip(before).filter(|line| line.contains("second")).count())
    };
    for round in 1..=2 {
        let knocks = (0..300).map(|_| second.open("ssh").seal()).collect::<Result<Vec<_>>>()?;
        scene.lab.owner().send_udp_all(scene.door(Family::V4), &knocks)?;
        scene.server.await_dropped("disabled", 300 * round)?;
        eventually("a line is to tell of the refusals", || Ok((lines()? > 0).then_some(())))?;
    }
    // Long enough for the server to write what it has to write.
    let uptime = scene.server.status()?.uptime;
    eventually("some seconds are to pass", || {
        Ok((scene.server.status()?.uptime > uptime + 3).then_some(()))
    })?;
    // One at once; a slow machine may have reached the next minute.
    ensure!(lines()? <= 2, "{} lines for 600 refusals:\n{}", lines()?, scene.server.log()?);
    scene.ensure_owner_gets_in(Family::V4)
}

#[test]
fn a_pre_shared_key_is_part_of_the_identity() -> Result<()> {
    let mut scene = Scene::prepared(|_| {})?;
    let random = ring::rand::SystemRandom::new();
    let key = spa_keys::PreSharedKey::generate(&random)?;
    let path = scene.server.directory().join("second.psk");
    spa_keys::write_pre_shared_key(&path, &key, spa_keys::Overwrite::Refuse)?;
    let (identity, without) =
        scene.add_client("second", |client| client.pre_shared_key_file = Some(path))?;
    let with = identity.with_pre_shared(key).device(scene.server_identity.public())?;
    scene.server.start()?;
    refuse(&scene, Family::V4, &without.open("ssh").seal()?, "unknown-tag")?;
    scene.ensure_shut()?;
    scene.knock(scene.lab.owner(), Family::V4, &with.open("ssh").seal()?)?;
    scene.await_open(scene.lab.owner(), Family::V4, SSH_PORT)
}

#[test]
fn a_client_that_expires_while_its_grant_is_open_gets_no_further_one() -> Result<()> {
    let soon = spa_tests::now().as_secs() + 6;
    let text = jiff::Timestamp::from_second(i64::try_from(soon)?)?.to_string();
    let (scene, second) = with_second(|client| client.expires = Some(text))?;
    scene.knock(scene.lab.owner(), Family::V4, &second.open("web").seal()?)?;
    scene.server.await_accepted(1)?;
    spa_tests::eventually_within(Duration::from_secs(30), "the date is to pass", || {
        Ok((spa_tests::now().as_secs() > soon).then_some(()))
    })?;
    refuse(&scene, Family::V4, &second.open("ssh").seal()?, "expired")?;
    scene.ensure_sees(scene.lab.owner(), Family::V4, SSH_PORT, PortState::Filtered)?;
    scene.ensure_owner_gets_in(Family::V4)
}
