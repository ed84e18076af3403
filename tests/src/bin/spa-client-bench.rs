//! `make bench-client`: measures the client, and writes down what it found. `--quick` measures next
//! to nothing, to show that the benchmark works.

use anyhow::{Context, Result, bail};
use spa_tests::bench::{client_part, measure_client};
use std::fs;
use std::process::ExitCode;

const USAGE: &str = "usage: spa-client-bench [--quick] [--page FILE]";

fn main() -> ExitCode {
    match measure(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spa-client-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(mut words: impl Iterator<Item = String>) -> Result<()> {
    let (mut quick, mut file) = (false, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--page" => file = Some(words.next().context(USAGE)?),
            _ => bail!(USAGE),
        }
    }
    let page = client_part(&measure_client(quick)?);
    println!("{page}");
    if let Some(file) = file {
        fs::write(&file, page).with_context(|| format!("can't write {file}"))?;
    }
    Ok(())
}
