//! `make bench`: measures the gate, and writes down what it found. `--quick` measures next to
//! nothing, to show that the benchmark works; it leaves the page alone.

use anyhow::{Context, Result, bail};
use spa_tests::bench::{Extent, Results, markdown, run, table};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: spa-bench [--quick] [--json FILE] [--page FILE]";

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
    json: Option<PathBuf>,
    page: Option<PathBuf>,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => arguments.quick = true,
                "--json" => arguments.json = Some(words.next().context(USAGE)?.into()),
                "--page" => arguments.page = Some(words.next().context(USAGE)?.into()),
                _ => bail!(USAGE),
            }
        }
        Ok(arguments)
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let extent = if arguments.quick { Extent::quick() } else { Extent::full() };
    let results = run(&extent)?;
    println!("{}", table(&results));
    if let Some(path) = &arguments.json {
        write(path, &json(&results)?)?;
    }
    if let Some(path) = &arguments.page {
        write(path, &markdown(&results))?;
    }
    Ok(())
}

fn json(results: &Results) -> Result<String> {
    Ok(serde_json::to_string_pretty(results)? + "\n")
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
