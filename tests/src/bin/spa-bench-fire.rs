//! `make bench-fire`: measures how the server and others do under fire, and writes down what it
//! found. `--quick` measures next to nothing, to show that the benchmark works. `--count` is the
//! program that only counts datagrams; the benchmark starts it itself.

use anyhow::{Context, Result, bail};
use spa_tests::bench::Findings;
use spa_tests::bench::fire::{FireExtent, Part, count_for_ever, fire, fire_part};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: spa-bench-fire [--quick] [--only PART]... [--results FILE]
PART: singles, noise, costs, rates, crowds";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((first, rest)) if first == "--count" => count_for_ever(rest),
        _ => measure(words.into_iter()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spa-bench-fire: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(mut words: impl Iterator<Item = String>) -> Result<()> {
    let (mut extent, mut file) = (FireExtent::full(), None);
    let mut parts = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => extent = FireExtent::quick(),
            "--only" => {
                let name = words.next().context(USAGE)?;
                let part = Part::ALL.into_iter().find(|part| part.name() == name);
                parts.push(part.context(USAGE)?);
            }
            "--results" => file = Some(PathBuf::from(words.next().context(USAGE)?)),
            _ => bail!(USAGE),
        }
    }
    let parts = if parts.is_empty() { Part::ALL.to_vec() } else { parts };
    // What can't be read is told before minutes of measuring.
    let kept = file.as_deref().map(Findings::read).transpose()?;
    let found = fire(&extent, &parts)?;
    println!("{}", fire_part(&found, &[]));
    if let (Some(file), Some(kept)) = (file, kept) {
        Findings { under_fire: Some(found), ..kept }.write(&file)?;
    }
    Ok(())
}
