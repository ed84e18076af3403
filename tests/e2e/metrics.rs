//! What Prometheus sees of a server: metrics that its own tools find sound, and that say what `status`
//! says; alerts that go off when they should.

use anyhow::{Context as _, Result, ensure};
use spa_tests::{
    Family, Finished, PortState, SSH_PORT, Scene, finish, finish_reading, our_binary, program,
    workspace,
};
use std::collections::BTreeMap;
use std::process::Command;

/// Samples by name and labels.
type Samples = BTreeMap<String, f64>;

fn samples(text: &str) -> Result<Samples> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("no value")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

fn promtool(words: &[&str], input: &str) -> Result<Finished> {
    finish_reading(input, Command::new(program("promtool")?).args(words))
}

#[test]
fn metrics_are_sound_and_say_what_status_says() -> Result<()> {
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh").seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    scene.knock(owner, Family::V4, &[0x5a; 216])?;
    scene.server.await_dropped("unknown-tag", 1)?;

    let text = scene.server.admin(&["metrics"])?.ok()?;
    // It finds fault with names, units, and missing texts.
    let judged = promtool(&["check", "metrics"], &text)?;
    ensure!(judged.success() && judged.said().trim().is_empty(), "{judged}\n{text}");
    let found = samples(&text)?;
    let is = |name: &str| found.get(name).copied().with_context(|| format!("no {name} in {text}"));
    let status = scene.server.status()?;
    for (name, expected) in [
        ("spa_up", 1.0),
        ("spa_gate_up", 1.0),
        ("spa_gate_wanted", 1.0),
        ("spa_replay_store_writable", 1.0),
        ("spa_last_reload_successful", 1.0),
        ("spa_grants", 1.0),
        ("spa_refused_sources", 0.0),
        ("spa_knocks_accepted_total", 1.0),
        ("spa_grants_opened_total", 1.0),
        ("spa_knocks_failed_total", 0.0),
        ("spa_datagrams_dropped_total{reason=\"unknown-tag\"}", 1.0),
        ("spa_datagrams_dropped_total{reason=\"replay\"}", 0.0),
        ("spa_clients{state=\"enabled\"}", 1.0),
    ] {
        let value = is(name)?;
        ensure!(value.to_bits() == f64::to_bits(expected), "{name} is {value}");
    }
    let interfaces = found.keys().filter(|name| name.starts_with("spa_interface_up{"));
    ensure!(interfaces.count() == status.interfaces.len(), "{text}");
    let reasons = found.keys().filter(|name| name.starts_with("spa_datagrams_dropped_total{"));
    ensure!(reasons.count() == status.dropped.len(), "{text}");
    let median = is("spa_open_latency_seconds{share=\"0.5\"}")?;
    ensure!(median > 0.0 && median < 10.0, "{median}");
    // Whoever may read metrics need not know who comes from where.
    let address = owner.address(Family::V4).to_string();
    ensure!(!text.contains("laptop") && !text.contains(&address), "{text}");
    Ok(())
}

#[test]
fn a_server_that_does_not_run_is_told_as_such() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.server.stop()?;
    let metrics = scene.server.admin(&["metrics"])?;
    ensure!(metrics.success() && samples(&metrics.stdout)? == [("spa_up".into(), 0.0)].into());
    ensure!(metrics.stderr.contains("the daemon does not run"), "{metrics}");
    let other = scene.lab.other();
    scene.ensure_sees(other, Family::V4, SSH_PORT, PortState::Filtered)?;
    Ok(())
}

#[test]
fn one_request_over_http_is_answered() -> Result<()> {
    let scene = Scene::new()?;
    let config = scene.server.config_path();
    let asked = |request: &str| {
        let mut command = scene.server.host().command(our_binary("spa-server")?)?;
        command.arg("--config").arg(&config).args(["metrics", "--http"]);
        finish_reading(request, &mut command)?.ok()
    };
    let answer = asked("GET /metrics HTTP/1.1\r\nHost: localhost:9463\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    ensure!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    ensure!(samples(body)?.get("spa_up") == Some(&1.0), "{body}");
    ensure!(asked("GET /config HTTP/1.1\r\n\r\n")?.starts_with("HTTP/1.1 404 "));
    ensure!(asked("\0".repeat(100).as_str())?.starts_with("HTTP/1.1 400 "));
    ensure!(asked("")?.is_empty());
    Ok(())
}

#[test]
fn alerts_go_off_when_they_should_and_know_no_other_metrics() -> Result<()> {
    let directory = workspace()?.join("packaging/prometheus");
    let run = |words: &[&str]| {
        finish(Command::new(program("promtool")?).args(words).current_dir(&directory))?.ok()
    };
    run(&["check", "rules", "alerts.yml"])?;
    run(&["test", "rules", "alerts-test.yml"])?;

    // What rules and dashboard ask for is what there is.
    let scene = Scene::new()?;
    let owner = scene.lab.owner();
    scene.knock(owner, Family::V4, &scene.laptop.open("ssh").seal()?)?;
    scene.await_open(owner, Family::V4, SSH_PORT)?;
    let text = scene.server.admin(&["metrics"])?.ok()?;
    let has = |name: &str| {
        let sample =
            |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        text.lines().any(sample)
    };
    let mut asked_for = 0;
    for file in ["alerts.yml", "grafana.json"] {
        let wanted = std::fs::read_to_string(directory.join(file))?;
        let words = wanted.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("spa_")) {
            ensure!(has(name), "{file} asks for {name}, which is not there:\n{text}");
            asked_for += 1;
        }
    }
    ensure!(asked_for > 20, "{asked_for} names were looked at");
    let dashboard = std::fs::read_to_string(directory.join("grafana.json"))?;
    // What the dashboard asks is what Prometheus understands: as rules it is judged.
    let expressions = expressions(&serde_json::from_str(&dashboard)?);
    ensure!(expressions.len() > 10, "{expressions:?}");
    let rules: Vec<_> = (0..)
        .zip(expressions)
        .map(|(number, expression)| {
            let expression =
                expression.replace("$instance", ".*").replace("$__rate_interval", "1m");
            serde_json::json!({ "record": format!("panel:{number}"), "expr": expression })
        })
        .collect();
    let file = scene.lab.directory().join("dashboard.yml");
    let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(&file, groups.to_string())?;
    run(&["check", "rules", &file.to_string_lossy()])?;
    Ok(())
}

/// All that is asked for, panel by panel.
fn expressions(dashboard: &serde_json::Value) -> Vec<String> {
    match dashboard {
        serde_json::Value::Object(fields) => {
            let own = fields.get("expr").and_then(|it| it.as_str()).map(str::to_owned);
            own.into_iter().chain(fields.values().flat_map(expressions)).collect()
        }
        serde_json::Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}
