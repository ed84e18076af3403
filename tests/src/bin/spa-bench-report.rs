//! `make bench-report`: draws the report of what the benchmarks have found, and measures nothing.

use anyhow::{Context, Result, bail, ensure};
use spa_tests::bench::{Findings, Report};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: spa-bench-report RESULTS DIRECTORY
RESULTS: what the benchmarks have written with --results; DIRECTORY: for benchmarks.md and benchmarks/";

fn main() -> ExitCode {
    match draw(std::env::args_os().skip(1).map(PathBuf::from)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spa-bench-report: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn draw(mut words: impl Iterator<Item = PathBuf>) -> Result<()> {
    let (results, directory) = (words.next().context(USAGE)?, words.next().context(USAGE)?);
    if words.next().is_some() {
        bail!(USAGE);
    }
    let findings = Findings::read(&results)?;
    let path = results.display();
    ensure!(findings != Findings::default(), "{path} holds nothing. Measure first: make bench");
    Report::of(&findings)?.write(&directory)
}
