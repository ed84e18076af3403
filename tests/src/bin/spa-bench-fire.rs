//! `make bench-fire`: measures how the server and others do under fire, and writes down what it
//! found. `--quick` measures next to nothing, to show that the benchmark works. `--count` is the
//! program that only counts datagrams; the benchmark starts it itself.

use anyhow::{Context, Result, bail};
use spa_tests::bench::fire::{FireExtent, Part, count_for_ever, fire, fire_page};
use std::fs;
use std::process::ExitCode;

const USAGE: &str = "usage: spa-bench-fire [--quick] [--only PART]... [--json FILE] [--page FILE]
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
    let (mut extent, mut json, mut page) = (FireExtent::full(), None, None);
    let mut parts = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => extent = FireExtent::quick(),
            "--only" => {
                let name = words.next().context(USAGE)?;
                let part = Part::ALL.into_iter().find(|part| part.name() == name);
                parts.push(part.context(USAGE)?);
            }
            "--json" => json = Some(words.next().context(USAGE)?),
            "--page" => page = Some(words.next().context(USAGE)?),
            _ => bail!(USAGE),
        }
    }
    let parts = if parts.is_empty() { Part::ALL.to_vec() } else { parts };
    let found = fire(&extent, &parts)?;
    let text = fire_page(&found);
    println!("{text}");
    for (file, text) in [(json, serde_json::to_string_pretty(&found)? + "\n"), (page, text)] {
        if let Some(file) = file {
            fs::write(&file, text).with_context(|| format!("can't write {file}"))?;
        }
    }
    Ok(())
}
