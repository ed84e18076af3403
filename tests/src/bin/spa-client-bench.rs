//! `make bench-client`: measures the client, and writes down what it found. `--quick` measures next
//! to nothing, to show that the benchmark works.

use anyhow::{Context, Result, bail};
use spa_tests::bench::{Findings, client_part, measure_client};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: spa-client-bench [--quick] [--results FILE]";

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
            "--results" => file = Some(PathBuf::from(words.next().context(USAGE)?)),
            _ => bail!(USAGE),
        }
    }
    // What can't be read is told before minutes of measuring.
    let kept = file.as_deref().map(Findings::read).transpose()?;
    let found = measure_client(quick)?;
    println!("{}", client_part(&found));
    if let (Some(file), Some(kept)) = (file, kept) {
        Findings { client: Some(found), ..kept }.write(&file)?;
    }
    Ok(())
}
