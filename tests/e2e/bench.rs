//! The benchmark works: a quick run measures every back-end and our server with each, and writes
//! what can be read again. No figure is judged: a test is no place for it.

use anyhow::{Context, Result, ensure};
use spa_tests::bench::{Outcome, Results, Verdict, bars, markdown};
use spa_tests::{finish_within, our_binary};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

#[test]
fn a_quick_run_of_the_benchmark_measures_every_back_end() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (json, page) = (directory.path().join("gate.json"), directory.path().join("page.md"));
    let mut command = Command::new(our_binary("spa-bench")?);
    command.arg("--quick").arg("--json").arg(&json).arg("--page").arg(&page);
    let finished = finish_within(Duration::from_secs(300), &mut command)?;
    ensure!(finished.success(), "{finished}");

    let results: Results = serde_json::from_str(&fs::read_to_string(&json)?)?;
    ensure!(results.quick);
    ensure!(fs::read_to_string(&page)? == markdown(&results), "the page is of other results");
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
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("page.md");
    let mut command = Command::new(our_binary("spa-client-bench")?);
    command.arg("--quick").arg("--page").arg(&page);
    let finished = finish_within(Duration::from_secs(300), &mut command)?;
    ensure!(finished.success(), "{finished}");
    let text = fs::read_to_string(&page)?;
    ensure!(finished.stdout.trim() == text.trim());
    for (row, cells) in [
        ("| ssh, ", 4),
        ("| down a line of 1 Gbit/s, ", 4),
        ("| down a link without a limit, ", 4),
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
