//! The benchmark works: a quick run measures every back-end and our server with each, and writes
//! what can be read again. No figure is judged: a test is no place for it. A soak judges itself.

use anyhow::{Context, Result, ensure};
use spa_tests::bench::fire::{Fire, Role, fire_bars, fire_part};
use spa_tests::bench::{
    Findings, Noise, Outcome, Report, Verdict, bars, client_part, gate_part, table,
};
use spa_tests::{finish_within, our_binary};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Runs this benchmark, and gives back what it has written and what it has said.
fn quick_run(name: &str) -> Result<(Findings, String)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("results.json");
    let before = Findings { under_fire: Some(Fire::default()), ..Findings::default() };
    before.write(&path)?;
    let mut command = Command::new(our_binary(name)?);
    command.arg("--quick").arg("--results").arg(&path);
    let finished = finish_within(Duration::from_secs(300), &mut command)?;
    ensure!(finished.success(), "{finished}");
    let findings = Findings::read(&path)?;
    let is_kept = findings.under_fire == before.under_fire;
    ensure!(is_kept != (name == "spa-bench-fire"), "what others have found is to stay");
    can_be_drawn_again(&path, &findings)?;
    Ok((findings, finished.stdout))
}

/// The report is that of the file alone, and so is the one that is drawn of the copy beside it.
fn can_be_drawn_again(results: &Path, findings: &Findings) -> Result<()> {
    let report = Report::of(findings)?;
    let directory = tempfile::tempdir()?;
    let own = directory.path().join("benchmarks");
    for results in [results, &own.join("results.json")] {
        let mut command = Command::new(our_binary("spa-bench-report")?);
        command.arg(results).arg(directory.path());
        let finished = finish_within(Duration::from_secs(60), &mut command)?;
        ensure!(finished.success(), "{finished}");
        let page = fs::read_to_string(directory.path().join("benchmarks.md"))?;
        ensure!(page == report.page, "the page is of other results: {page}");
        for plot in &report.plots {
            let svg = fs::read_to_string(own.join(plot.name).with_extension("svg"))?;
            ensure!(svg == plot.svg, "{} is of other results", plot.name);
        }
    }
    Ok(())
}

#[test]
fn the_report_of_the_repository_is_that_of_its_results() -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let results = docs.join("benchmarks").join("results.json");
    let findings = Findings::read(&results)?;
    let extents = [
        findings.gate.as_ref().map(|part| part.quick),
        findings.under_fire.as_ref().map(|part| part.quick),
        findings.client.as_ref().map(|part| part.quick),
    ];
    ensure!(extents == [Some(false); 3], "not all was measured in full: {extents:?}; make bench");
    let report = Report::of(&findings)?;
    let page = fs::read_to_string(docs.join("benchmarks.md"))?;
    ensure!(
        page == report.page,
        "docs/benchmarks.md is of other results or words; make bench-report"
    );
    for plot in &report.plots {
        let svg = fs::read_to_string(results.with_file_name(plot.name).with_extension("svg"))?;
        ensure!(svg == plot.svg, "{} is of other results; make bench-report", plot.name);
    }
    Ok(())
}

#[test]
fn a_quick_run_of_the_benchmark_measures_every_back_end() -> Result<()> {
    let (findings, told) = quick_run("spa-bench")?;
    let results = findings.gate.context("nothing about the gate")?;
    ensure!(results.quick);
    ensure!(told.trim() == table(&results).trim(), "told were other results: {told}");
    ensure!(gate_part(&results).contains("A quick run"));
    for backend in &results.backends {
        let Outcome::Measured(figures) = &backend.outcome else {
            anyhow::bail!("{} was not measured: {:?}", backend.name, backend.outcome)
        };
        for cost in &figures.grants {
            ensure!(cost.present == cost.wanted && cost.single_us.is_some(), "{cost:?}");
        }
        ensure!(figures.grants.len() == 4 && figures.bursts.len() == 2, "{figures:?}");
        for burst in &figures.bursts {
            ensure!(burst.read_back == burst.wanted && burst.note.is_none(), "{burst:?}");
        }
        // Answered or not: that packets went where they had to is part of the measurement.
        ensure!(figures.packets.len() == 6, "{figures:?}");
        ensure!(figures.packets.iter().all(|cost| cost.rate.is_some()), "{figures:?}");
    }
    ensure!(results.flushes.len() == results.backends.len(), "{:?}", results.flushes);
    for flush in &results.flushes {
        let figures = flush.outcome.measured();
        let figures = figures.with_context(|| format!("{flush:?} was not measured"))?;
        ensure!(figures.ms.is_some_and(|figure| figure.median > 0.0), "{flush:?}");
    }
    for program in results.programs.iter().filter(|program| program.ours) {
        let figures = program.outcome.measured();
        let figures = figures.with_context(|| format!("{program:?} was not measured"))?;
        for level in &figures.saturated {
            ensure!(level.opened == level.knocks && level.note.is_none(), "{level:?}");
        }
    }
    let names = |ours| {
        let programs = results.programs.iter().filter(move |program| program.ours == ours);
        programs.map(|program| program.name.clone()).collect::<BTreeSet<_>>()
    };
    // Those of others are measured where they are installed, which `make bench` sees to.
    ensure!(names(false).len() == 3, "{:?}", names(false));
    ensure!(names(true).len() == results.backends.len(), "{:?}", names(true));
    ensure!(bars(&results).iter().all(|bar| bar.verdict != Verdict::NotRun));
    Ok(())
}

#[test]
fn a_quick_run_of_the_client_benchmark_fills_every_table() -> Result<()> {
    let (findings, told) = quick_run("spa-client-bench")?;
    let results = findings.client.context("nothing about the client")?;
    let text = client_part(&results);
    ensure!(told.trim() == text.trim(), "told were other results: {told}");
    ensure!(results.quick && results.throughput.len() == 6, "{results:?}");
    ensure!(results.processes.iter().all(|one| !one.ours || one.outcome.measured().is_some()));
    for (row, cells) in [
        ("| ssh, ", 4),
        ("| down a line of 1 Gbit/s ", 4),
        ("| down a link without a limit ", 4),
        ("| none to speak of ", 5),
        ("| 50 ms there and back ", 5),
        ("| `spa-client open ssh --no-wait` ", 3),
        ("| `fwknop -n host` ", 3),
    ] {
        let line = text.lines().find(|line| line.starts_with(row));
        let line = line.with_context(|| format!("{row:?} is not in {text}"))?;
        ensure!(line.matches('|').count() == cells + 1 && !line.contains("NaN"), "{line}");
    }
    Ok(())
}

#[test]
fn a_quick_run_under_fire_measures_ours_and_the_floor_in_every_way() -> Result<()> {
    let (findings, told) = quick_run("spa-bench-fire")?;
    let plots = Report::of(&findings)?.plots;
    let fire = findings.under_fire.context("nothing about fire")?;
    ensure!(fire.quick);
    ensure!(told.trim() == fire_part(&fire, &[]).trim(), "told were other results: {told}");
    let drawn: Vec<_> = plots.iter().map(|plot| plot.name).collect();
    let all = ["one-knock", "amid-noise", "memory", "noise-cost", "knocks-a-second"];
    ensure!(drawn == all, "{drawn:?}");
    // Those of others are measured where they are installed, which `make bench-fire` sees to.
    let own = |role: Role| matches!(role, Role::Ours | Role::Floor);
    for one in fire.singles.iter().filter(|one| own(one.role)) {
        let latency = one.outcome.measured().with_context(|| format!("{one:?}"))?;
        ensure!(latency.knocks == 4 && latency.opened == 4, "{one:?}");
        ensure!(latency.median_ms > 0.0 && latency.median_ms <= latency.slowest_ms, "{one:?}");
    }
    for one in fire.singles.iter().filter(|one| one.role == Role::Peer) {
        if let Outcome::NotRun(why) = &one.outcome {
            ensure!(why.contains("is not installed"), "{one:?}");
        }
    }
    for one in fire.noise.iter().filter(|one| own(one.role)) {
        let kinds = one.outcome.measured().with_context(|| format!("{one:?}"))?;
        ensure!(kinds.len() == if one.role == Role::Ours { 4 } else { 1 }, "{one:?}");
        ensure!(kinds.iter().any(|kind| kind.kind == Noise::Random), "{one:?}");
        for kind in kinds {
            // How fast is the machine's affair; that noise was there is not.
            ensure!(kind.alone > 0 && kind.sent_pps > 0.0 && kind.received_pps > 0.0, "{kind:?}");
            ensure!(kind.latency.knocks == 5, "{kind:?}");
            // The kernel opens in the very packet; a program of a debug build, beside other tests,
            // may be too late for the noise of a whole processor.
            ensure!(one.role == Role::Ours || kind.latency.opened == 5, "{kind:?}");
            ensure!(kind.state_bytes == 0, "noise was remembered: {kind:?}");
        }
    }
    // Two counters, two back-ends, and one of them without the prefilter, at two rates.
    ensure!(fire.costs.len() == 10, "{:?}", fire.costs);
    for cost in &fire.costs {
        ensure!(cost.ns > 0.0 && cost.seen > 0.0 && cost.seen < 1.01, "{cost:?}");
    }
    for one in fire.rates.iter().filter(|one| own(one.role)) {
        let rates = one.outcome.measured().with_context(|| format!("{one:?}"))?;
        ensure!(rates.iter().all(|rate| rate.opened == rate.knocks), "{one:?}");
    }
    let crowds = fire.crowds.measured().with_context(|| format!("{:?}", fire.crowds))?;
    ensure!(crowds.iter().map(|crowd| crowd.clients).eq([1, 50]), "{crowds:?}");
    for crowd in crowds {
        ensure!(crowd.latency.opened == crowd.latency.knocks && crowd.resident > 0, "{crowd:?}");
    }
    let count = |role| fire.singles.iter().filter(|one| one.role == role).count();
    ensure!([Role::Floor, Role::Peer, Role::Ours].map(count) == [1, 5, 2], "{:?}", fire.singles);
    let asked = fire_bars(&fire).into_iter().filter(|bar| bar.verdict == Verdict::NotRun);
    // Two bars are about the others, too.
    ensure!(asked.count() <= 2);
    Ok(())
}

#[test]
fn a_quick_soak_misses_nothing_and_says_so() -> Result<()> {
    let mut command = Command::new(our_binary("spa-soak")?);
    let finished = finish_within(Duration::from_secs(300), command.args(["--seconds", "20"]))?;
    ensure!(finished.success(), "{finished}");
    let (samples, criteria) = finished.stdout.split_once("\n\n").context("two tables")?;
    ensure!(samples.lines().count() >= 2 + 5, "{finished}");
    let verdicts: Vec<_> = criteria.lines().skip(2).collect();
    ensure!(verdicts.len() == 11, "{finished}");
    ensure!(verdicts.iter().all(|line| line.ends_with("| met |")), "{finished}");
    Ok(())
}
