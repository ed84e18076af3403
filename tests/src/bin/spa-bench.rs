//! `make bench-gate`: measures the gate, and writes down what it found. `--quick` measures next to
//! nothing, to show that the benchmark works.

use anyhow::{Context, Result, bail};
use spa_tests::bench::{Extent, Findings, run, table};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: spa-bench [--quick] [--results FILE]";

fn main() -> ExitCode {
    match Arguments::read(std::env::args().skip(1)).and_then(|arguments| measure(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spa-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Arguments {
    quick: bool,
    results: Option<PathBuf>,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => arguments.quick = true,
                "--results" => arguments.results = Some(words.next().context(USAGE)?.into()),
                _ => bail!(USAGE),
            }
        }
        Ok(arguments)
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    // What can't be read is told before minutes of measuring.
    let kept = arguments.results.as_deref().map(Findings::read).transpose()?;
    let extent = if arguments.quick { Extent::quick() } else { Extent::full() };
    let results = run(&extent)?;
    println!("{}", table(&results));
    if let (Some(path), Some(kept)) = (&arguments.results, kept) {
        Findings { gate: Some(results), ..kept }.write(path)?;
    }
    Ok(())
}
