//! The real `spa-client` on a host of the lab, with a configuration directory of its own.

use crate::command::{Finished, finish};
use crate::lab::{Host, Lab};
use crate::programs::our_binary;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// See the module's text.
pub struct Laptop {
    host: Host,
    configuration: PathBuf,
}

impl Laptop {
    /// One without a key yet, with its files in the lab's directory under `name`.
    pub fn new(lab: &Lab, host: &Host, name: &str) -> Self {
        Self { host: host.clone(), configuration: lab.directory().join(name) }
    }

    /// Makes its key by the real command; gives back the public half as it was printed.
    pub fn keygen(&self) -> Result<String> {
        let printed = self.run(&["keygen"])?.ok()?;
        let key = printed.split_whitespace().find(|word| word.starts_with("spa-public-"));
        key.map(Into::into).with_context(|| format!("keygen prints no public key: {printed:?}"))
    }

    /// The file of its private key.
    pub fn private_key_file(&self) -> PathBuf {
        self.configuration.join("identity.key")
    }

    /// Its configuration directory.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// `spa-client` with these arguments, not started yet.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.host.command(our_binary("spa-client")?)?;
        command.args(words);
        for (variable, value) in self.environment() {
            command.env(variable, value);
        }
        Ok(command)
    }

    /// The variables that make a `spa-client` this laptop's, also one that another program starts.
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("SPA_CONFIG_DIR", self.configuration.clone()),
            ("SPA_STATE_DIR", self.configuration.join("state")),
            ("HOME", "/nonexistent".into()),
        ]
    }

    /// Runs `spa-client` to its end.
    pub fn run(&self, words: &[&str]) -> Result<Finished> {
        finish(&mut self.command(words)?)
    }
}
