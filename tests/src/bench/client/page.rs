//! The results for people: the client's part of the report. Pure. No figure is written here by hand.

use super::results::ClientResults;
use crate::bench::figures::short;
use crate::bench::report::{QUICK, grid};
use crate::bench::results::Outcome;
use std::fmt::Write as _;

/// The part of the report.
pub fn client_part(results: &ClientResults) -> String {
    let mut part = String::from("## The client\n\nAll ends share the processors of one machine.\n");
    if results.quick {
        let _ = write!(part, "\n{}", QUICK.trim_end());
        part.push('\n');
    }
    for (title, before, table, after) in [
        ("Bytes through the proxy", THROUGHPUT, throughput(results), CARRIED),
        ("The first byte", FIRSTS, firsts(results), ""),
        ("A knock as a process", PROCESSES, processes(results), ""),
    ] {
        let _ = write!(part, "\n### {title}\n\n{before}\n{table}{after}");
    }
    part.push_str(&faster(results));
    part.push_str("\n### The client again\n\n    make bench-client\n");
    part
}

const THROUGHPUT: &str = "\
The medians, Mbit/s, and the proxy's throughput as a share of the direct one. Bar: 95% and more.
";

const CARRIED: &str = "
With `--fdpass` the proxy hands the connection to ssh and ends: it carries no byte. The other rows are for programs that take none. Without
a limit of the link, and for ssh with its cipher, the processors are the limit there: the proxy's own work is all that is seen, on processors
that both ends need as well.
";

const FIRSTS: &str = "\
From the start of the program to the first byte of an answer, from a port that is shut before (the proxy) or open (direct, in this very
process). Medians, milliseconds. Bar: the knock, and no round trip more than the direct connection has.
";

const PROCESSES: &str = "\
From the start to the end of the whole program, in turns; ours is copied to its place before, as an installation does. Bar: `open ssh --no-wait` under 10 ms.
";

fn throughput(results: &ClientResults) -> String {
    let rows = results.throughput.iter().map(|row| {
        vec![
            row.what.clone(),
            short(row.direct),
            short(row.proxied),
            format!("{:.1}%", row.proxied / row.direct * 100.0),
        ]
    });
    grid(&["what", "direct", "by `spa-client proxy`", "share"], &rows.collect::<Vec<_>>())
}

fn firsts(results: &ClientResults) -> String {
    let heads = [
        "path",
        "direct, open",
        "`open --no-wait` alone",
        "proxy, shut",
        "proxy, knocked for before",
    ];
    let rows = results.firsts.iter().map(|row| {
        let figures = [row.direct_ms, row.knock_ms, row.proxy_ms, row.again_ms];
        std::iter::once(row.path.clone()).chain(figures.map(short)).collect()
    });
    grid(&heads, &rows.collect::<Vec<_>>())
}

fn processes(results: &ClientResults) -> String {
    let rows = results.processes.iter().map(|process| {
        let mut row = vec![process.name.clone()];
        match &process.outcome {
            Outcome::Measured(time) => row.extend([time.median_ms, time.p90_ms].map(short)),
            Outcome::NotRun(why) => row.push(why.clone()),
        }
        row
    });
    grid(&["program", "median, ms", "nine of ten, ms"], &rows.collect::<Vec<_>>())
}

/// Which of the others take less time than the slowest of ours.
fn faster(results: &ClientResults) -> String {
    let of = |ours| {
        let all = results.processes.iter().filter(move |process| process.ours == ours);
        all.filter_map(|process| {
            Some((process.name.as_str(), process.outcome.measured()?.median_ms))
        })
    };
    let Some(slowest) = of(true).map(|(_, ms)| ms).max_by(f64::total_cmp) else {
        return String::new();
    };
    let faster: Vec<_> = of(false)
        .filter(|(_, ms)| *ms < slowest)
        .map(|(name, ms)| format!("{name} ({} ms by {} ms)", short(ms), short(slowest)))
        .collect();
    if faster.is_empty() {
        return String::new();
    }
    format!("\nFaster than ours by the median: {}.\n", faster.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::results::{FirstByte, KnockProcess, ProcessTime, Throughput};
    use super::*;
    use crate::bench::results::Machine;

    /// Figures of one round.
    pub(crate) fn results() -> ClientResults {
        let process = |name: &str, ours, median_ms| KnockProcess {
            name: name.into(),
            ours,
            outcome: Outcome::Measured(ProcessTime { median_ms, p90_ms: 3.0 }),
        };
        ClientResults {
            machine: Machine::default(),
            quick: false,
            seconds: 1.0,
            throughput: vec![Throughput { what: "down".into(), direct: 200.0, proxied: 199.0 }],
            firsts: vec![FirstByte {
                path: "short".into(),
                direct_ms: 0.5,
                knock_ms: 2.5,
                proxy_ms: 3.5,
                again_ms: 2.75,
            }],
            processes: vec![
                process("ours", true, 2.0),
                process("quick", false, 1.5),
                process("slow", false, 2.5),
            ],
        }
    }

    #[test]
    fn who_is_faster_is_told_and_who_is_slower_is_not() {
        let text = client_part(&results());
        assert!(text.contains("\nFaster than ours by the median: quick (1.50 ms by 2.00 ms).\n"));
        let mut results = results();
        results.processes[1].outcome = Outcome::NotRun("it is not installed".into());
        let text = client_part(&results);
        assert!(!text.contains("Faster than ours"), "{text}");
        assert!(text.contains("it is not installed"), "{text}");
    }

    #[test]
    fn every_figure_has_its_cell() {
        let text = client_part(&results());
        for cells in [
            ["down", "200", "199", "99.5%"].as_slice(),
            &["short", "0.50", "2.50", "3.50", "2.75"],
            &["ours", "2.00", "3.00"],
        ] {
            let row = text.lines().find(|line| line.starts_with(&format!("| {} ", cells[0])));
            let found: Vec<_> = row.unwrap().trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(found, cells);
        }
    }
}
