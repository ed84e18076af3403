//! The results for people: tables for a terminal, and the gate's part of the report. Pure. No
//! figure is written here by hand.

use super::bars::{KINDS, bars, short_count};
use super::elements::to_f64;
use super::figures::{Figure, short};
use super::packets::per_second;
use super::results::{BackendFigures, GrantCost, Outcome, PacketCost, ProgramFigures, Results};
use std::fmt::Write as _;

/// All tables, without a word about them.
pub fn table(results: &Results) -> String {
    let sections = [
        ("Bars", bars_table(results)),
        ("One more grant, microseconds", grants_table(results)),
        ("A burst, in batches", bursts_table(results)),
        ("Packets", packets_table(results)),
        ("A flush of the firewall, milliseconds", flushes_table(results)),
        ("Whole programs, saturated", programs_table(results)),
        ("Executed programs", execs_table(results)),
    ];
    let quick = if results.quick { QUICK } else { "" };
    sections.iter().fold(quick.to_owned(), |mut text, (title, table)| {
        let _ = write!(text, "{title}\n\n{table}\n");
        text
    })
}

/// The part of the report.
pub fn gate_part(results: &Results) -> String {
    let mut part = String::from("## The gate\n");
    if results.quick {
        let _ = write!(part, "\n{}", QUICK.trim_end());
        part.push('\n');
    }
    for (title, table, text) in [
        ("What the gate was to reach", bars_table(results), BARS),
        ("One more grant", grants_table(results), GRANTS),
        ("A burst", bursts_table(results), BURST),
        ("Packets", packets_table(results), PACKETS),
        ("A flush", flushes_table(results), FLUSHES),
        ("Beside other programs", programs_table(results) + &quicker(results), PROGRAMS),
        ("Executed programs", execs_table(results), EXECS),
    ] {
        let _ = write!(part, "\n### {title}\n\n{table}\n{text}");
    }
    part.push_str(AGAIN);
    part
}

pub(super) const QUICK: &str =
    "**A quick run, which only shows that the benchmark works: its figures mean nothing.**\n\n";

const BARS: &str = "\
The bars are those of the back-ends that keep grants in sets. Rules are looked at one after the other, so a back-end
of rules alone can't reach them with many grants; what it does is told all the same. The figure beside each verdict is the worst of both
families (and of all kinds of packets), by the medians.
";

const GRANTS: &str = "\
`Gate::apply` of one change on its own (*alone*), of a change among 256 (*of 256*: what the daemon does at most at once), and of one that withdraws
(*withdrawn*), where so many grants of each family are there already; every number of them on a host of its own. It ends when the kernel has
confirmed. *Times* is how often as dear as with none there: the median of the ratios within each round. The range holds the middle
four fifths of the rounds. Where fewer are there than there should be, the reason stands at the end.
";

const BURST: &str = "\
So many grants through `Gate::apply` in batches of 256, from the first call until the last is confirmed; then all of them are read back from the kernel and counted.
";

const PACKETS: &str = "\
SYNs over a virtual cable, sent by one processor, which also pays for what the receiving host does with them: connection tracking, the gate, the
answer. The figures are processor time a packet, sending included, and (*a second*) how many packets that makes for one processor. Every packet begins a connection
of its own. *Granted*: from sixteen granted addresses, to the guarded port, answered by a SYN cookie. *Refused*: each from another
address without a grant. *Unguarded*: to another port, answered. *No gate* is a host without any rule, and without connection tracking. *None* is a
host with the gate and no grants (but the sixteen); *rate left* is the packet rate with the grants as a part of that, the median of pairs. *Control* is the same between two
hosts that both have none: what the method can't tell from 100%. *Answered* is the worst round. Rules alone are met in their order: the newest grants, as the sixteen are, first; a refused packet passes all.
";

const FLUSHES: &str = "\
Milliseconds from the moment at which another program begins to flush the firewall (`iptables -F` in the tables mangle and filter, `nft flush ruleset` for nftables) until all
rules and a live grant are in the kernel again, as `iptables-save`, `ipset save` and `nft` read them; with the whole daemon, at various moments. Reading is part of it.
";

const PROGRAMS: &str = "\
So many valid knocks, made before, sent at once, each from another address, to the daemon, freshly started, with so many grants there already. The time runs from the first
packet until the daemon says that all are open and the kernel's own list shows them (not counting the reading of it), and is divided by their number. Others: Debian's packages, Debian's
`iptables`, grants put there beforehand in the form that they write themselves. Ours: knocks of ten clients, replay store and audit included.
";

const EXECS: &str = "\
Programs that the daemon and its children executed while it made so many grants, as `strace` counts them; *idle* is how many in as long a time without a knock (what the
daemon looks after now and then anyway), and *a grant* is the difference, divided.
";

const AGAIN: &str = "
### The gate again

    make bench-gate

It installs the Debian packages `fwknop-server`, `fwknop-client`, `knockd` and `strace` where they are missing (no service is started), needs root, takes some minutes, and stays within namespaces
that it makes. The results have the spread that the tables leave out.
";

fn bars_table(results: &Results) -> String {
    let rows: Vec<_> = bars(results)
        .into_iter()
        .map(|bar| vec![bar.backend, bar.what, bar.verdict.as_str().to_owned(), bar.found])
        .collect();
    grid(&["back-end", "bar", "verdict", "found"], &rows)
}

fn grants_table(results: &Results) -> String {
    let heads = [
        "back-end",
        "family",
        "there",
        "alone",
        "range",
        "times",
        "of 256",
        "times",
        "withdrawn",
        "",
    ];
    of_backends(results, &heads, |figures| figures.grants.iter().map(grant_row).collect())
}

fn grant_row(cost: &GrantCost) -> Vec<String> {
    let there = if cost.present == cost.wanted {
        short_count(cost.present)
    } else {
        format!("{} of {}", short_count(cost.present), short_count(cost.wanted))
    };
    vec![
        cost.family.clone(),
        there,
        told(cost.single_us),
        cost.single_us
            .map(|figure| format!("{} to {}", short(figure.low), short(figure.high)))
            .unwrap_or_default(),
        told(cost.single_ratio),
        told(cost.batch_us),
        told(cost.batch_ratio),
        told(cost.withdraw_us),
        cost.note.clone().unwrap_or_default(),
    ]
}

fn bursts_table(results: &Results) -> String {
    let heads = ["back-end", "family", "grants", "seconds", "read back", "seconds for reading", ""];
    of_backends(results, &heads, |figures| {
        let rows = figures.bursts.iter().map(|burst| {
            vec![
                burst.family.clone(),
                short_count(burst.wanted),
                told(burst.seconds),
                short_count(burst.read_back),
                told(burst.reading_seconds),
                burst.note.clone().unwrap_or_default(),
            ]
        });
        rows.collect()
    })
}

fn packets_table(results: &Results) -> String {
    let heads = [
        "back-end",
        "packet",
        "family",
        "grants",
        "no gate, ns",
        "none, ns",
        "grants, ns",
        "a second",
        "rate left",
        "control",
        "answered",
    ];
    of_backends(results, &heads, |figures| {
        let mut rows = Vec::new();
        for kind in KINDS {
            rows.extend(figures.packets.iter().filter(|cost| cost.kind == kind).map(packet_row));
        }
        if let Some(why) = &figures.no_packets {
            rows.push(vec![why.clone()]);
        }
        rows
    })
}

fn packet_row(cost: &PacketCost) -> Vec<String> {
    let percent = |figure: Option<Figure>| {
        figure.map(|figure| format!("{:.0}%", figure.median * 100.0)).unwrap_or_default()
    };
    vec![
        cost.kind.name().to_owned(),
        cost.family.clone(),
        short_count(cost.present),
        told(cost.bare_ns),
        told(cost.none_ns),
        told(cost.many_ns),
        cost.many_ns.map(|figure| short(per_second(figure.median))).unwrap_or_default(),
        percent(cost.rate),
        percent(cost.control),
        cost.answered_permille.map(|permille| format!("{permille}‰")).unwrap_or_default(),
    ]
}

fn flushes_table(results: &Results) -> String {
    let all = results.flushes.iter().map(|one| (one.name.as_str(), &one.outcome));
    named(&["back-end", "flushes", "median", "slowest"], all.collect(), |figures| {
        let count = figures.ms.map(|figure| figure.count.to_string()).unwrap_or_default();
        let slowest = figures.slowest_ms.map(short).unwrap_or_default();
        vec![vec![count, told(figures.ms), slowest]]
    })
}

fn programs_table(results: &Results) -> String {
    let heads = ["program", "there", "knocks", "opened", "ms a grant", "range", ""];
    of_programs(results, &heads, |figures| {
        let rows = figures.saturated.iter().map(|level| {
            let range = |f: Figure| format!("{} to {}", short(f.low), short(f.high));
            vec![
                short_count(level.present),
                short_count(level.knocks),
                short_count(level.opened),
                told(level.ms_per_grant),
                level.ms_per_grant.map(range).unwrap_or_default(),
                level.note.clone().unwrap_or_default(),
            ]
        });
        rows.collect()
    })
}

/// Which of the others take less time for a grant than the worst of ours where as many are there.
fn quicker(results: &Results) -> String {
    let of = |ours| {
        let programs = results.programs.iter().filter(move |program| program.ours == ours);
        programs.flat_map(|program| {
            let levels = program.outcome.measured().map(|figures| figures.saturated.iter());
            levels.into_iter().flatten().filter_map(|level| {
                Some((program.name.as_str(), level.present, level.ms_per_grant?.median))
            })
        })
    };
    let quicker = of(false).filter_map(|(name, present, theirs)| {
        let ours = of(true).filter(|one| one.1 == present).map(|one| one.2);
        let worst = ours.max_by(f64::total_cmp).filter(|worst| theirs < *worst)?;
        let (theirs, worst, present) = (short(theirs), short(worst), short_count(present));
        Some(format!("{name} ({theirs} ms by {worst} ms, with {present} there)"))
    });
    let quicker: Vec<_> = quicker.collect();
    if quicker.is_empty() {
        return String::new();
    }
    format!("\nQuicker than the worst of ours: {}.\n", quicker.join(", "))
}

fn execs_table(results: &Results) -> String {
    let heads = ["program", "grants", "executed", "idle", "a grant"];
    of_programs(results, &heads, |figures| {
        let Some(execs) = &figures.execs else { return vec![vec!["not counted".into()]] };
        let (executed, idle) = (to_f64(execs.executed), to_f64(execs.idle));
        let each = (executed - idle).max(0.0) / to_f64(execs.grants);
        vec![vec![
            execs.grants.to_string(),
            execs.executed.to_string(),
            execs.idle.to_string(),
            short(each),
        ]]
    })
}

/// The rows of all back-ends, each with its name before it.
fn of_backends(
    results: &Results,
    heads: &[&str],
    rows: impl Fn(&BackendFigures) -> Vec<Vec<String>>,
) -> String {
    let all = results.backends.iter().map(|one| (one.name.as_str(), &one.outcome));
    named(heads, all.collect(), rows)
}

fn of_programs(
    results: &Results,
    heads: &[&str],
    rows: impl Fn(&ProgramFigures) -> Vec<Vec<String>>,
) -> String {
    let all = results.programs.iter().map(|one| (one.name.as_str(), &one.outcome));
    named(heads, all.collect(), rows)
}

/// A table of what was measured, and below it what was not.
fn named<T>(
    heads: &[&str],
    all: Vec<(&str, &Outcome<T>)>,
    rows: impl Fn(&T) -> Vec<Vec<String>>,
) -> String {
    let mut measured = Vec::new();
    let mut missing = String::new();
    for (name, outcome) in all {
        match outcome {
            Outcome::Measured(figures) => measured.extend(
                rows(figures)
                    .into_iter()
                    .map(|row| std::iter::once(name.to_owned()).chain(row).collect::<Vec<_>>()),
            ),
            Outcome::NotRun(why) => {
                let _ = write!(missing, "\nNot run: {name}: {why}.\n");
            }
        }
    }
    grid(heads, &measured) + &missing
}

fn told(figure: Option<Figure>) -> String {
    figure.map(|figure| short(figure.median)).unwrap_or_default()
}

/// A table that is read as Markdown and as it stands; short rows are filled up.
pub(super) fn grid(heads: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
    let widths: Vec<_> = heads
        .iter()
        .enumerate()
        .map(|(at, head)| {
            let cells = rows.iter().map(|row| cell(row, at).chars().count());
            cells.chain([head.chars().count(), 3]).max().unwrap_or_default()
        })
        .collect();
    let mut text = String::new();
    let mut line = |cells: Vec<String>| {
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    };
    line(heads.iter().map(|head| (*head).to_owned()).collect());
    line(widths.iter().map(|width| "-".repeat(*width)).collect());
    for row in rows {
        line((0..heads.len()).map(|at| cell(row, at)).collect());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::results::{Machine, ProgramResults, Saturated};
    use super::*;

    #[test]
    fn who_is_quicker_with_as_many_grants_is_told() {
        let program = |name: &str, ours, all: &[(usize, f64)]| ProgramResults {
            name: name.into(),
            ours,
            outcome: Outcome::Measured(ProgramFigures {
                execs: None,
                saturated: all
                    .iter()
                    .map(|(present, ms)| Saturated {
                        present: *present,
                        knocks: 10,
                        opened: 10,
                        note: None,
                        ms_per_grant: Figure::of(&[*ms]),
                    })
                    .collect(),
            }),
        };
        let mut results = Results {
            machine: Machine::default(),
            quick: false,
            seconds: 1.0,
            batch: 256,
            backends: Vec::new(),
            flushes: Vec::new(),
            programs: vec![
                program("one", true, &[(0, 1.0), (1_000, 3.0)]),
                program("two", true, &[(0, 2.0), (1_000, 1.0)]),
                program("theirs", false, &[(0, 2.5), (1_000, 2.5)]),
            ],
        };
        let told =
            "\nQuicker than the worst of ours: theirs (2.50 ms by 3.00 ms, with 1,000 there).\n";
        assert_eq!(quicker(&results), told);
        assert!(gate_part(&results).contains(told));
        results.programs.pop();
        assert_eq!(quicker(&results), "");
    }

    #[test]
    fn a_grid_is_aligned_and_filled_up() {
        let rows = [vec!["a".into(), "12,345".into()], vec!["bcde".into()]];
        let expected =
            "| x    | number |\n| ---- | ------ |\n| a    | 12,345 |\n| bcde |        |\n";
        assert_eq!(grid(&["x", "number"], &rows), expected);
    }
}
