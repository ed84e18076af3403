//! The report: `docs/benchmarks.md`, its plots, and the results that both are drawn of. No figure
//! is written here by hand, and nothing but the results decides what is written.

use super::client::client_part;
use super::findings::Findings;
use super::fire::fire_part;
use super::plots::{Plot, plots};
use super::report::{gate_part, grid};
use super::results::Machine;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// A report, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The page.
    pub page: String,
    /// The plots, to which the page has links.
    pub plots: Vec<Plot>,
    /// What all of it is drawn of.
    pub results: String,
}

impl Report {
    /// Of these results.
    pub fn of(findings: &Findings) -> Result<Self> {
        let plots = findings.under_fire.as_ref().map(plots).transpose()?.unwrap_or_default();
        Ok(Self { page: page(findings, &plots), results: findings.text()?, plots })
    }

    /// Writes `benchmarks.md` into this directory, and all that belongs to it into its `benchmarks`,
    /// which is the report's own: plots that are no longer drawn are removed.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let own = directory.join("benchmarks");
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        for entry in fs::read_dir(&own)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "svg") {
                fs::remove_file(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        let plots =
            self.plots.iter().map(|plot| (own.join(plot.name).with_extension("svg"), &plot.svg));
        let texts = [
            (own.join("results.json"), &self.results),
            (directory.join("benchmarks.md"), &self.page),
        ];
        for (path, text) in plots.chain(texts) {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn page(findings: &Findings, plots: &[Plot]) -> String {
    let mut page = format!("{HEAD}{}", machines(findings));
    let parts = [
        findings.under_fire.as_ref().map(|fire| fire_part(fire, plots)),
        findings.gate.as_ref().map(gate_part),
        findings.client.as_ref().map(client_part),
    ];
    for part in parts.into_iter().flatten() {
        page.push('\n');
        page.push_str(&part);
    }
    page
}

const HEAD: &str = "\
# Benchmarks

Written by `make bench`; no figure is by hand, and the next run writes all of them anew. `make bench-fire`, `make bench-gate` and `make bench-client` measure
one part, and keep the others. Absolute figures move between machines and hours. What is compared was measured in turns, in one run, so the ratios hold.
[All figures](benchmarks/results.json), of which tables and plots are drawn; `make bench-report` draws them again.

";

/// Where and when each part was measured.
fn machines(findings: &Findings) -> String {
    let fire = findings.under_fire.as_ref().map(|part| ("under fire", &part.machine, part.seconds));
    let gate = findings.gate.as_ref().map(|part| ("the gate", &part.machine, part.seconds));
    let client = findings.client.as_ref().map(|part| ("the client", &part.machine, part.seconds));
    let parts: Vec<_> = [fire, gate, client].into_iter().flatten().collect();

    let row = |head: &str, cell: &dyn Fn(&Machine) -> String| {
        let cells = parts.iter().map(|(_, machine, _)| cell(machine));
        std::iter::once(head.to_owned()).chain(cells).collect::<Vec<_>>()
    };
    let mut rows = vec![
        row("date", &|machine| machine.date.clone()),
        row("processor", &|machine| format!("{} of {}", machine.processors, machine.processor)),
        row("memory", &|machine| format!("{} MiB", machine.memory_mib)),
        row("kernel", &|machine| machine.kernel.clone()),
        row("system", &|machine| machine.system.clone()),
    ];
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in parts.iter().flat_map(|(_, machine, _)| &machine.versions) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in names {
        rows.push(row(name, &|machine| {
            let version = machine.versions.iter().find(|(known, _)| known == name);
            version.map(|(_, version)| version.clone()).unwrap_or_default()
        }));
    }
    rows.push(row("load average before, after", &|machine| {
        format!("{}, {}", machine.load.0, machine.load.1)
    }));
    let took = parts.iter().map(|(_, _, seconds)| format!("{seconds:.0} s"));
    rows.push(std::iter::once("the run took".to_owned()).chain(took).collect());

    let heads: Vec<_> = std::iter::once("").chain(parts.iter().map(|part| part.0)).collect();
    grid(&heads, &rows)
}

#[cfg(test)]
mod tests {
    use super::super::client::example as client;
    use super::super::plots::example as fire;
    use super::*;

    #[test]
    fn the_report_is_of_what_is_there_and_each_plot_has_its_link() {
        let nothing = Report::of(&Findings::default()).unwrap();
        assert!(nothing.plots.is_empty() && !nothing.page.contains("\n## "), "{}", nothing.page);

        let findings = Findings { gate: None, under_fire: Some(fire()), client: Some(client()) };
        let report = Report::of(&findings).unwrap();
        let parts: Vec<_> = report.page.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(parts, ["## Under fire", "## The client"]);
        assert!(report.page.contains("|                            | under fire | the client |"));
        assert_eq!(report.page.matches("](benchmarks/").count(), report.plots.len() + 1);
        for plot in &report.plots {
            let link = format!("\n![{}](benchmarks/{}.svg)\n", plot.caption, plot.name);
            assert_eq!(report.page.matches(&link).count(), 1, "{}", report.page);
        }
    }

    #[test]
    fn what_is_written_can_be_drawn_again_of_the_results_alone() {
        let directory = tempfile::tempdir().unwrap();
        let findings = Findings { under_fire: Some(fire()), ..Findings::default() };
        Report::of(&findings).unwrap().write(directory.path()).unwrap();
        let own = directory.path().join("benchmarks");
        let read = Findings::read(&own.join("results.json")).unwrap();
        assert_eq!(read, findings);
        let page = fs::read_to_string(directory.path().join("benchmarks.md")).unwrap();
        assert_eq!(Report::of(&read).unwrap().page, page);

        // A plot of which nothing is measured any more goes.
        assert!(own.join("one-knock.svg").exists());
        Report::of(&Findings::default()).unwrap().write(directory.path()).unwrap();
        assert!(!own.join("one-knock.svg").exists());
    }
}
