//! `make soak`: keeps a server under a mixed load for ten minutes, or as long as it is told, and
//! judges whether it has missed a knock, and whether anything of it has grown.

use anyhow::{Context, Result, bail};
use spa_tests::bench::fire::soak;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: spa-soak [--minutes N | --seconds N]";
const MINUTES: u64 = 10;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spa-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut words: impl Iterator<Item = String>) -> Result<()> {
    let mut seconds = MINUTES * 60;
    while let Some(word) = words.next() {
        let unit = match word.as_str() {
            "--minutes" => 60,
            "--seconds" => 1,
            _ => bail!(USAGE),
        };
        let count: u64 = words.next().and_then(|count| count.parse().ok()).context(USAGE)?;
        seconds = count.saturating_mul(unit);
    }
    let found = soak(Duration::from_secs(seconds))?;
    print!("{found}");
    let missed: Vec<_> =
        found.missed().map(|one| format!("{} ({})", one.name, one.found)).collect();
    if !missed.is_empty() {
        bail!("the server has missed: {}", missed.join("; "));
    }
    Ok(())
}
