//! The daemon. To be replaced.

use std::path::Path;

/// Runs the daemon by the configuration at `config_path`, until it is told to stop.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = crate::config::Config::load(config_path)?;
    anyhow::bail!("the daemon is not there yet, for its {} clients", config.clients.len())
}
